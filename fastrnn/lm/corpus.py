"""Find a corpus and read its text: a folder, a file, a known name or the Python manual."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastrnn.lm.errors import UserError
from fastrnn.lm.manual import manual_splits

SPLITS = ("train", "valid", "test")
# Names that --data takes, and where each lies in the folder named by FASTRNN_DATA.
NAMES = {
    "ptb": "ptb",
    "wikitext-2": "wikitext-2",
    "time-machine": "time_machine.txt",
    "tiny-shakespeare": "tiny_shakespeare.txt",
}
DEFAULT = "python-docs"
_GUTENBERG = re.compile(r"\*\*\* ?START OF TH.*?\n(.*)\*\*\* ?END OF TH", re.S)


def read_corpus(data: str) -> tuple[str, str, str]:
    """The text of a corpus.

    Args:
        data: "python-docs", a key of `NAMES`, or the path of a folder or file.

    Returns:
        Train, valid and test text, each ending in a newline.

    Raises:
        UserError: something is missing, empty or not UTF-8.
    """
    if data == DEFAULT:
        return manual_splits()
    path = _locate(data)
    if path.is_dir():
        missing = [f"{s}.txt" for s in SPLITS if not (path / f"{s}.txt").is_file()]
        if missing:
            raise UserError(
                f"{path}: the folder must hold train.txt, valid.txt and test.txt; "
                f"missing: {', '.join(missing)}"
            )
        train, valid, test = (read_text(path / f"{s}.txt") for s in SPLITS)
        return train, valid, test
    return split_lines(read_text(path), path)


def _locate(data: str) -> Path:
    if data not in NAMES:
        path = Path(data)
        if not data or not path.exists():
            known = ", ".join((DEFAULT, *NAMES))
            raise UserError(f"--data {data}: no such folder or file, nor one of {known}")
        return path
    folder = os.environ.get("FASTRNN_DATA")
    if not folder:
        raise UserError(
            f"--data {data}: set the variable FASTRNN_DATA to a folder that holds {NAMES[data]}"
        )
    path = Path(folder) / NAMES[data]
    if not path.exists():
        raise UserError(f"--data {data}: {path} does not exist (FASTRNN_DATA is {folder})")
    return path


def read_text(path: Path) -> str:
    """A text file's lines, each ended by one newline.

    A Project Gutenberg text is cut to what lies between its START and END marks.

    Args:
        path: file of UTF-8 text, with any kind of line ends.

    Returns:
        The text.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or holds nothing but white space.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: invalid at byte {error.start}") from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if marked := _GUTENBERG.search(text):
        text = marked[1]
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    return text if text.endswith("\n") else text + "\n"


def split_lines(text: str, path: Path) -> tuple[str, str, str]:
    """Cut one text into its first 90%, next 5% and last 5% of lines.

    Args:
        text: lines, each ended by a newline.
        path: where it came from, for the message.

    Returns:
        Train, valid and test text.

    Raises:
        UserError: there are too few lines.
    """
    lines = [f"{line}\n" for line in text.split("\n")[:-1]]
    first, second = len(lines) * 90 // 100, len(lines) * 95 // 100
    parts = "".join(lines[:first]), "".join(lines[first:second]), "".join(lines[second:])
    if not all(part.strip() for part in parts):
        raise UserError(
            f"{path}: {len(lines)} lines are too few to split 90/5/5 into train, valid and test"
        )
    return parts
