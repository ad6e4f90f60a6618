"""Find a corpus: a folder, a file, a known name or the Python manual."""

from __future__ import annotations

import os
from pathlib import Path

from fastrnn._suggest import suggest
from fastrnn.lm.datasets import DATASETS, DEFAULT
from fastrnn.lm.download import cache_folder, fetch
from fastrnn.lm.errors import UserError
from fastrnn.lm.manual import manual_splits
from fastrnn.lm.texts import Text, TextFile, Words, split_lines

SPLITS = ("train", "valid", "test")


def read_corpus(data: str) -> tuple[Text, Text, Text]:
    """The text of a corpus.

    Args:
        data: "python-docs", a key of `DATASETS`, or the path of a folder or file.

    Returns:
        Train, valid and test text.

    Raises:
        UserError: something is missing, empty, not UTF-8, or cannot be downloaded.
    """
    if data == DEFAULT:
        train, valid, test = map(Words, manual_splits())
        return train, valid, test
    path = _locate(data)
    if not path.is_dir():
        return split_lines(TextFile(path))
    missing = [f"{s}.txt" for s in SPLITS if not (path / f"{s}.txt").is_file()]
    if missing:
        raise UserError(
            f"{path}: the folder must hold train.txt, valid.txt and test.txt; "
            f"missing: {', '.join(missing)}"
        )
    return (
        TextFile(path / "train.txt"),
        TextFile(path / "valid.txt"),
        TextFile(path / "test.txt"),
    )


def _locate(data: str) -> Path:
    if data not in DATASETS:
        path = Path(data)
        if not data or not path.exists():
            known = [DEFAULT, *DATASETS]
            raise UserError(
                f"--data {data or repr(data)}: no such folder or file, nor one of "
                + ", ".join(known)
                + suggest(data, known)
            )
        return path
    dataset = DATASETS[data]
    own = os.environ.get("FASTRNN_DATA")
    if own and (Path(own) / dataset.place).exists():
        return Path(own) / dataset.place
    return fetch(data, dataset, cache_folder() / "data")
