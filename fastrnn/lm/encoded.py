"""Corpora as numbers in files of the cache, found again by what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from fastrnn.lm.config import CorpusOptions
from fastrnn.lm.corpus import SPLITS
from fastrnn.lm.errors import UserError
from fastrnn.lm.texts import Text
from fastrnn.lm.tokens import DOCUMENT, Vocabulary, cutter, tokens_of, vocabulary_of

# Counted up when the same text and options give other numbers; those of other levels are kept.
_FORMAT = {"word": 1, "char": 1, "bpe": 2}
_Found = tuple[Vocabulary, list[Tensor], Path | None]
_VOCABULARY, _TOKENIZER, _COUNTS = "vocabulary.json", "tokenizer.json", "counts.json"


def encoded(
    texts: tuple[Text, Text, Text], options: CorpusOptions, cache: Path
) -> tuple[str, Vocabulary, list[Tensor], Path | None]:
    """Numbers of three texts' tokens, mapped from files.

    Args:
        texts: train, valid, test.
        options: how they are cut.
        cache: the folder of all such files; what is there is not made again.

    Returns:
        The key of text and options, the dictionary of the training text, the three texts as int32
        [tokens] that are read from their files as they are used, and the file of the byte-pair
        tokenizer if there is one.

    Raises:
        UserError: the cache cannot be written, or a text not be read.
    """
    key = _key(texts, options)
    folder = cache / key[:32]
    found = _read(folder, options)
    for _ in range(3):  # once, unless another process moves ours aside for its own
        if found is None:
            found = _made(texts, options, folder)
    if found is None:
        raise UserError(f"{folder}: three times encoded, and three times replaced by others")
    return key, *found


def _made(texts: tuple[Text, Text, Text], options: CorpusOptions, folder: Path) -> _Found | None:
    """Encode in a folder beside, give it this one's place unless another process has, and read."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as room:
            made = Path(room, "made")  # within, for others may read it
            made.mkdir()
            _encode(texts, options, made)
            try:
                made.rename(folder)  # not over another, which a process may have just read from
            except OSError:
                if _read(folder, options) is None:  # what a crash has left
                    folder.rename(Path(room, "left"))
                    made.rename(folder)
    except OSError as error:
        found = _read(folder, options)
        if found is None:
            raise UserError(
                f"{folder.parent}: cannot be written: {error.strerror}; set FASTRNN_CACHE to a "
                "folder that can"
            ) from error
        return found
    return _read(folder, options)


def _key(texts: tuple[Text, Text, Text], options: CorpusOptions) -> str:
    cut = {k: v for k, v in asdict(options).items() if k not in ("data", "sentences")}
    if options.documents is not None:
        cut["mark"] = DOCUMENT  # of a text without documents the key is what it always was
    parts = [_FORMAT[options.level], cut, [text.digest for text in texts]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(folder: Path, options: CorpusOptions) -> _Found | None:
    """What a folder of the cache holds; None if it is not there, or not whole."""
    tokenizer = [folder / _TOKENIZER] if options.level == "bpe" else []
    try:
        counts, tokens, *_ = (
            json.loads(file.read_text(encoding="utf-8"))
            for file in (folder / _COUNTS, folder / _VOCABULARY, *tokenizer)
        )
        files = [folder / f"{split}.int32" for split in SPLITS]
        if [file.stat().st_size for file in files] != [4 * count for count in counts]:
            return None
        vocabulary = Vocabulary(tokens)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        tensors = [
            torch.from_file(str(file), size=count, dtype=torch.int32)
            for file, count in zip(files, counts, strict=True)
        ]
    except RuntimeError:
        if all(file.exists() for file in files):
            raise
        return None  # another process has just replaced the folder
    return vocabulary, tensors, tokenizer[0] if tokenizer else None


def _encode(texts: tuple[Text, Text, Text], options: CorpusOptions, folder: Path) -> None:
    train = texts[0]
    cut, tokenizer = cutter(options, train)
    seen: Counter[str] = Counter()
    for tokens in tokens_of(train, options, cut):
        seen.update(tokens)
    known = () if tokenizer is None else sorted(tokenizer.get_vocab())
    vocabulary = vocabulary_of(options, seen, known)
    counts = []
    for split, text in zip(SPLITS, texts, strict=True):
        count = 0
        with (folder / f"{split}.int32").open("wb") as file:
            for tokens in tokens_of(text, options, cut):
                file.write(vocabulary.encode(tokens).numpy().astype(np.int32).tobytes())
                count += len(tokens)
            file.flush()
            os.fsync(file.fileno())
        if not count:
            raise UserError(f"--data {options.data}: the {split} text has no tokens")
        counts.append(count)
    (folder / _VOCABULARY).write_text(json.dumps(vocabulary.tokens), encoding="utf-8")
    if tokenizer is not None:
        (folder / _TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / _COUNTS).write_text(json.dumps(counts), encoding="utf-8")
