"""Texts that are read piece by piece, so that they may be larger than memory."""

from __future__ import annotations

import functools
import hashlib
import itertools
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastrnn.lm.errors import UserError

PIECE = 2**22  # bytes read at a time; a piece ends with a line, however long that is
_HEADER = 2**16  # bytes in which Project Gutenberg's START mark is looked for
_START = re.compile(rb"\*\*\* ?START OF TH[^\r\n]*(\r\n|\r|\n)")
_ENDS = (b"*** END OF TH", b"***END OF TH")


class Text(Protocol):
    """A text: lines, each ended by one newline."""

    def __iter__(self) -> Iterator[str]:
        """Its pieces; every piece but the last ends with a line."""

    @property
    def digest(self) -> str:
        """A hash of all that its pieces depend on."""


@dataclass(frozen=True)
class Words:
    """A text in memory.

    Args:
        text: all of it.
    """

    text: str

    def __iter__(self) -> Iterator[str]:
        yield self.text

    @property
    def digest(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class TextFile:
    """A file of UTF-8 text with any kind of line ends.

    A Project Gutenberg text is cut to what lies between its START and END marks.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or holds nothing but white space; some of
            it only while it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._start, self._stop = _between_marks(file.fileno())
        except OSError as error:
            raise self._unreadable(error) from error
        if not any(piece.strip() for piece in self):
            raise UserError(f"{path}: the file is empty")

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: cannot be read: {error.strerror}")

    def __iter__(self) -> Iterator[str]:
        position = self._start
        try:
            with self.path.open("rb") as file:
                file.seek(self._start)
                for raw in _ending_lines(iter(functools.partial(self._read, file), b"")):
                    try:
                        text = raw.decode()
                    except UnicodeDecodeError as error:
                        place = position + error.start
                        raise UserError(
                            f"{self.path}: not UTF-8 text: invalid at byte {place}"
                        ) from error
                    text = text.removeprefix("\ufeff") if position == 0 else text
                    position += len(raw)
                    text = text.replace("\r\n", "\n").replace("\r", "\n")
                    yield text if text.endswith("\n") else text + "\n"
        except OSError as error:
            raise self._unreadable(error) from error

    def _read(self, file: Reader) -> bytes:
        return file.read(min(PIECE, self._stop - file.tell()))

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class Reader(Protocol):
    """What is asked of a file that is open for reading."""

    def read(self, size: int, /) -> bytes: ...

    def tell(self) -> int: ...


@dataclass(frozen=True)
class Lines:
    """Some of the lines of a file.

    Args:
        file: the file.
        first: number of the first of them, from 0.
        last: number of the first that is no longer among them.
    """

    file: TextFile
    first: int
    last: int

    def __iter__(self) -> Iterator[str]:
        before = 0
        for piece in self.file:
            count = piece.count("\n")
            first, last = max(self.first - before, 0), min(self.last - before, count)
            if first == 0 and last == count:
                yield piece
            elif first < last:
                # Not splitlines, which takes more than newlines for the ends of lines.
                yield "\n".join(piece.split("\n")[first:last]) + "\n"
            before += count
            if before >= self.last:
                return

    @property
    def digest(self) -> str:
        """Hash of the file and the numbers."""
        return f"{self.file.digest}:{self.first}:{self.last}"


def split_lines(file: TextFile) -> tuple[Text, Text, Text]:
    """Cut one text into its first 90%, next 5% and last 5% of lines.

    Args:
        file: the text.

    Returns:
        Train, valid and test text.

    Raises:
        UserError: there are too few lines, or too many blank ones.
    """
    count = sum(piece.count("\n") for piece in file)
    ends = (0, count * 90 // 100, count * 95 // 100, count)
    train, valid, test = (Lines(file, a, b) for a, b in itertools.pairwise(ends))
    for name, part in (("train", train), ("valid", valid), ("test", test)):
        if part.first == part.last:
            are = "line is" if count == 1 else "lines are"
            raise UserError(
                f"{file.path}: {count} {are} too few to split 90/5/5 into train, valid and test"
            )
        if not any(piece.strip() for piece in part):
            raise UserError(
                f"{file.path}: split 90/5/5 into train, valid and test by lines, {name} has "
                "nothing but blank ones"
            )
    return train, valid, test


def _ending_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that end with a line, all but the last."""
    held: list[bytes] = []
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if not end:
            held.append(block)
            continue
        yield b"".join((*held, block[:end]))
        held = [block[end:]]
    rest = b"".join(held)
    if rest:
        yield rest


def _between_marks(descriptor: int) -> tuple[int, int]:
    """Where a file's text starts and stops, without Project Gutenberg's header and licence."""
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
            size = len(content)
            marked = _START.search(content[:_HEADER])
            if marked is None:
                return 0, size
            stop = max(content.rfind(end) for end in _ENDS)
            return (marked.end(), stop) if stop >= marked.end() else (0, size)
    except ValueError:  # an empty file has nothing to map
        return 0, 0
