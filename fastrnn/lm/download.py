"""Corpora fetched once into the cache, and checked."""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from fastrnn.lm.datasets import Dataset
from fastrnn.lm.errors import UserError
from fastrnn.lm.texts import TextFile

_TIMEOUT = 30  # seconds without a byte


def cache_folder() -> Path:
    """Where what can be made again is kept: FASTRNN_CACHE, else fastrnn in the user's cache.

    Raises:
        UserError: there is neither.
    """
    if own := os.environ.get("FASTRNN_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "fastrnn"
    try:
        return Path.home() / ".cache" / "fastrnn"
    except RuntimeError as error:  # as in a container, where users may have numbers alone
        raise UserError("there is no home folder: set FASTRNN_CACHE to a folder") from error


def fetch(name: str, dataset: Dataset, folder: Path) -> Path:
    """A corpus in the cache, downloaded if it is not there.

    Args:
        name: of the corpus.
        dataset: its files.
        folder: of all corpora in the cache.

    Returns:
        The corpus's folder or file.

    Raises:
        UserError: a file cannot be had, or is not what it should be.
    """
    place = folder / dataset.place
    for file, source in dataset.files.items():
        path = place / file if file else place
        if path.is_file():
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{path.parent}: cannot be written: {error.strerror}; set FASTRNN_CACHE to a "
                "folder that can"
            ) from error
        arrived = path.with_name(path.name + ".part")
        try:
            _download(source.address, arrived)
        except (OSError, HTTPException) as error:
            own = os.environ.get("FASTRNN_DATA")
            best = Path(own) / dataset.place if own else place
            raise UserError(
                f"--data {name}: {source.address} cannot be downloaded ({_reason(error)}); put "
                f"{_wanted(dataset)} {best}"
            ) from error
        found = _sums(arrived)
        if not set(found) & set(source.sums):
            kept = arrived.rename(path.with_name(path.name + ".mismatch"))
            kind = next(sum for sum in found if _kind(sum) == _kind(source.sums[0]))
            raise UserError(
                f"--data {name}: {source.address} has sum {kind}, expected "
                f"{' or '.join(source.sums)}; kept as {kept}"
            )
        arrived.rename(path)
    return place


def _wanted(dataset: Dataset) -> str:
    names = [name for name in dataset.files if name]
    return f"{', '.join(names)} into" if names else "it at"


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__


def _download(address: str, path: Path) -> None:
    """Bring a file here, with a line of progress on a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with (
        urllib.request.urlopen(address, timeout=_TIMEOUT) as answer,
        path.open("wb") as file,
        Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress,
    ):
        length = answer.headers.get("Content-Length")
        task = progress.add_task(address, total=int(length) if length else None)
        while block := answer.read(2**16):
            file.write(block)
            progress.advance(task, len(block))


def _kind(sum: str) -> tuple[bool, int]:
    return sum.startswith("text:"), len(sum)


def _sums(path: Path) -> list[str]:
    """A file's sha256 and git blob id, and its text's sum if it has Project Gutenberg's marks."""
    content = path.read_bytes()
    blob = b"blob %d\0" % len(content) + content
    sums = [hashlib.sha256(content).hexdigest(), hashlib.sha1(blob).hexdigest()]
    if b"START OF TH" in content:
        text = "".join(TextFile(path)).strip()
        sums.append("text:" + hashlib.sha256(text.encode()).hexdigest())
    return sums
