"""From text to token numbers, and from token numbers to batches."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastrnn.lm.batches import IGNORED
from fastrnn.lm.config import CorpusOptions
from fastrnn.lm.corpus import SPLITS, read_corpus
from fastrnn.lm.errors import UserError

EOS = "<eos>"
UNKNOWN = "<unk>"
DOCUMENT = "<doc>"


class Vocabulary:
    """Tokens and their numbers.

    Args:
        tokens: distinct strings, `<eos>` and `<unk>` among them; a token's place is its number.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.numbers = {token: number for number, token in enumerate(tokens)}
        self.eos = self.numbers[EOS]
        self.unknown = self.numbers[UNKNOWN]
        self.document = self.numbers.get(DOCUMENT)

    @classmethod
    def of(cls, tokens: list[str], min_count: int) -> Vocabulary:
        """The tokens seen at least `min_count` times, most frequent first, then `<unk>`."""
        counts = Counter(tokens)
        kept = [t for t, n in counts.most_common() if n >= min_count or t in (EOS, UNKNOWN)]
        return cls(kept + [t for t in (EOS, UNKNOWN) if t not in counts])

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: list[str]) -> Tensor:
        """Numbers of tokens, int64 [len(tokens)]; those not in the dictionary as `<unk>`."""
        get, unknown = self.numbers.get, self.unknown
        numbers = (get(token, unknown) for token in tokens)
        return torch.from_numpy(np.fromiter(numbers, np.int64, len(tokens)))


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus.

    Args:
        vocabulary: the dictionary of its training text.
        train: int64 [tokens], `<eos>` after every line; so `valid` and `test`.
    """

    vocabulary: Vocabulary
    train: Tensor
    valid: Tensor
    test: Tensor

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the dictionary and the three texts."""
        found = hashlib.sha256(json.dumps(self.vocabulary.tokens).encode())
        for tokens in (self.train, self.valid, self.test):
            found.update(tokens.numpy().tobytes())
        return found.hexdigest()


def tokenize(text: str, level: str) -> list[str]:
    """The words (split on white space) or characters of a text, `<eos>` after every line."""
    if level == "char":
        return [EOS if character == "\n" else character for character in text]
    return text.replace("\n", f" {EOS} ").split()


def load_corpus(options: CorpusOptions, batch_size: int, bptt: int) -> Corpus:
    """Read and encode a corpus.

    Args:
        options: what to read and how to cut it.
        batch_size: columns that the training text must fill.
        bptt: rows that it must fill.

    Returns:
        The corpus.

    Raises:
        UserError: the text is missing, empty, not UTF-8 or too short.
    """
    train, *others = (tokenize(text, options.level) for text in read_corpus(options.data))
    # At least two rows: one to read, one to predict.
    if len(train) < batch_size * max(bptt, 2):
        raise UserError(
            f"--data {options.data}: the training text has {len(train)} tokens, fewer than "
            f"--batch-size x --bptt = {batch_size} x {bptt} = {batch_size * bptt}"
        )
    least = options.min_count
    if least is None:
        # A text without rare words, but no <unk> to predict, would leave <unk> untrained.
        least = 2 if options.level == "word" and UNKNOWN not in train else 1
    vocabulary = Vocabulary.of(train, least)
    encoded = dict(zip(SPLITS, map(vocabulary.encode, (train, *others)), strict=True))
    return Corpus(vocabulary, **encoded)


def batchify(tokens: Tensor, columns: int) -> Tensor:
    """Lay a text out in columns that are read downwards side by side.

    Args:
        tokens: int64 [N].
        columns: B.

    Returns:
        int64 [N // B, B], contiguous; column b continues where column b - 1 ends. The last N % B
        tokens are left out.
    """
    rows = tokens.numel() // columns
    return tokens[: rows * columns].view(columns, rows).t().contiguous()


def scored_columns(tokens: Tensor, columns: int, before: int) -> tuple[Tensor, Tensor]:
    """Lay a text out so that every one of its tokens is predicted exactly once.

    Args:
        tokens: int64 [N].
        columns: B.
        before: the token taken to stand before the first.

    Returns:
        Inputs and targets, int64 [ceil(N / B), B]; targets past the end are `IGNORED`.
    """
    count = tokens.numel()
    rows = -(-count // columns)
    inputs = tokens.new_full((rows * columns,), before)
    inputs[1:count] = tokens[:-1]
    targets = tokens.new_full((rows * columns,), IGNORED)
    targets[:count] = tokens
    return batchify(inputs, columns), batchify(targets, columns)
