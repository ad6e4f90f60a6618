"""From a corpus's name to its numbers, and from numbers to columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastrnn.lm.batches import IGNORED
from fastrnn.lm.config import CorpusOptions
from fastrnn.lm.corpus import read_corpus
from fastrnn.lm.download import cache_folder
from fastrnn.lm.encoded import encoded
from fastrnn.lm.errors import UserError
from fastrnn.lm.texts import Text
from fastrnn.lm.tokens import Vocabulary


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus.

    Args:
        vocabulary: the dictionary of its training text.
        train: int32 [tokens], `<eos>` after every line; so `valid` and `test`. They are mapped from
            files: what is read is in memory, no more.
        fingerprint: a hash of the texts and of how they were cut.
        tokenizer: file of the byte-pair tokenizer, or None.
        texts: what `train`, `valid` and `test` were made from.
    """

    vocabulary: Vocabulary
    train: Tensor
    valid: Tensor
    test: Tensor
    fingerprint: str = ""
    tokenizer: Path | None = None
    texts: tuple[Text, ...] = ()


def load_corpus(options: CorpusOptions, batch_size: int, bptt: int) -> Corpus:
    """Read and encode a corpus, or find it encoded in the cache.

    Args:
        options: what to read and how to cut it.
        batch_size: columns that the training text must fill.
        bptt: rows that it must fill.

    Returns:
        The corpus.

    Raises:
        UserError: the text is missing, empty, not UTF-8 or too short.
    """
    texts = read_corpus(options.data)
    key, vocabulary, (train, valid, test), tokenizer = encoded(
        texts, options, cache_folder() / "encoded"
    )
    if options.documents is not None and vocabulary.document is None:
        raise UserError(
            f"--data {options.data}: no line of the training text matches --documents "
            f"{options.documents!r}"
        )
    if options.sentences:
        lines = int((train == vocabulary.eos).sum())
        if lines < batch_size:
            raise UserError(
                f"--data {options.data}: the training text has {lines} lines, fewer than "
                f"--batch-size {batch_size}"
            )
    # At least two rows: one to read, one to predict.
    elif train.numel() < batch_size * max(bptt, 2):
        raise UserError(
            f"--data {options.data}: the training text has {train.numel()} tokens, fewer than "
            f"--batch-size x --bptt = {batch_size} x {bptt} = {batch_size * bptt}"
        )
    return Corpus(vocabulary, train, valid, test, key, tokenizer, texts)


def batchify(tokens: Tensor, columns: int) -> Tensor:
    """Lay a text out in columns that are read downwards side by side.

    Args:
        tokens: integers [N].
        columns: B.

    Returns:
        [N // B, B], contiguous; column b continues where column b - 1 ends. The last N % B tokens
        are left out.
    """
    rows = tokens.numel() // columns
    return tokens[: rows * columns].view(columns, rows).t().contiguous()


def scored_columns(tokens: Tensor, columns: int, before: int) -> tuple[Tensor, Tensor]:
    """Lay a text out so that every one of its tokens is predicted exactly once.

    Args:
        tokens: integers [N].
        columns: B.
        before: the token taken to stand before the first.

    Returns:
        Inputs and targets, [ceil(N / B), B]; targets past the end are `IGNORED`.
    """
    count = tokens.numel()
    rows = -(-count // columns)
    inputs = tokens.new_full((rows * columns,), before)
    inputs[1:count] = tokens[:-1]
    targets = tokens.new_full((rows * columns,), IGNORED)
    targets[:count] = tokens
    return batchify(inputs, columns), batchify(targets, columns)
