"""Tokens: how a text is cut into them, and their numbers."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrnn.lm.config import CorpusOptions
from fastrnn.lm.errors import UserError

EOS = "<eos>"
UNKNOWN = "<unk>"
# Begins a document: read from a hidden state of zeros, never predicted. With the space it is no
# token that a text could hold.
DOCUMENT = " <doc>"
Cut = Callable[[str], list[str]]  # the tokens of whole lines


class Vocabulary:
    """Tokens and their numbers.

    Args:
        tokens: distinct strings, `<unk>` among them, and `<eos>` or a space; a token's place is its
            number.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.numbers = {token: number for number, token in enumerate(tokens)}
        # A text of letters has no lines: a space stands before it.
        self.eos = self.numbers[EOS if EOS in self.numbers else " "]
        self.unknown = self.numbers[UNKNOWN]
        self.document = self.numbers.get(DOCUMENT)

    @cached_property
    def digest(self) -> str:
        """The sha256 of all tokens in their order."""
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()

    @classmethod
    def of(cls, tokens: Iterable[str], min_count: int) -> Vocabulary:
        """The tokens seen at least `min_count` times, most frequent first, then `<unk>`."""
        return cls.counted(Counter(tokens), min_count)

    @classmethod
    def counted(
        cls, counts: Counter[str], min_count: int, special: tuple[str, ...] = (EOS, UNKNOWN)
    ) -> Vocabulary:
        """As `of`, from counts; `special` are in it whether they were seen or not."""
        kept = [t for t, n in counts.most_common() if n >= min_count or t in special]
        return cls(kept + [t for t in special if t not in counts])

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: list[str]) -> Tensor:
        """Numbers of tokens, int64 [len(tokens)]; those not in the dictionary as `<unk>`."""
        get, unknown = self.numbers.get, self.unknown
        numbers = (get(token, unknown) for token in tokens)
        return torch.from_numpy(np.fromiter(numbers, np.int64, len(tokens)))


def tokenize(text: str, level: str) -> list[str]:
    """The words (split on white space) or characters of a text, `<eos>` after every line."""
    if level == "char":
        return [EOS if character == "\n" else character for character in text]
    return text.replace("\n", f" {EOS} ").split()


def cutter(options: CorpusOptions, training: Iterable[str]) -> tuple[Cut, Any]:
    """How the options want a text cut.

    Args:
        options: of the corpus.
        training: pieces of the training text, from whose lines byte pairs are learnt.

    Returns:
        The function that cuts pieces of one text after another, and the tokenizer (of the package
        tokenizers) behind it, or None.
    """
    if options.charset == "letters":
        return letters, None
    if options.level != "bpe":
        return (lambda text: tokenize(text, options.level)), None
    pairs = _learn_pairs(training, options.bpe_size)
    return (lambda text: cut_pairs(pairs, text)), pairs


def tokens_of(text: Iterable[str], options: CorpusOptions, cut: Cut) -> Iterator[list[str]]:
    """The tokens of a text, piece by piece, with `DOCUMENT` before every document."""
    begins = None if options.documents is None else re.compile(options.documents)
    spaced = True  # letters: whether the piece before ended in a space
    for piece in text:
        if begins is None:
            tokens = cut(piece)
        else:
            tokens = []
            for line in _lines(piece):
                if begins.search(line):
                    tokens.append(DOCUMENT)
                tokens += cut(f"{line}\n")
        if options.charset == "letters" and tokens:
            tokens = tokens[1:] if spaced and tokens[0] == " " else tokens
            spaced = tokens[-1] == " " if tokens else spaced
        yield tokens


def _lines(piece: str) -> list[str]:
    return piece.split("\n")[:-1]


def letters(text: str) -> list[str]:
    """Lower-case a to z, with one space for whatever lies between.

    Source: Zhang et al., Dive into Deep Learning, section 9.2, which reads The Time Machine so.
    """
    return list(re.sub("[^a-z]+", " ", text.lower()))


def _learn_pairs(training: Iterable[str], size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,  # and <eos> and <unk>
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # As they will be cut: pairs that hold a newline would never be used.
    pairs.train_from_iterator((line for piece in training for line in _lines(piece)), trainer)
    return pairs


def cut_pairs(pairs: Any, text: str) -> list[str]:
    """The pieces that a tokenizer cuts lines into, `<eos>` after every line."""
    found: list[str] = []
    for line in pairs.encode_batch(_lines(text)):
        found += line.tokens
        found.append(EOS)
    return found


def pairs_text(tokens: list[str]) -> str:
    """The text of byte-pair tokens, with a newline for every `<eos>`."""
    from tokenizers import decoders

    lines = " ".join(tokens).split(EOS)
    decoder = decoders.ByteLevel()
    return "\n".join(decoder.decode(line.split()) for line in lines)


def least_count(options: CorpusOptions, counts: Counter[str]) -> int:
    """`min_count`, or what it is if it is not set."""
    if options.min_count is not None:
        return options.min_count
    # A text without rare words, but no <unk> to predict, would leave <unk> untrained.
    return 2 if options.level == "word" and UNKNOWN not in counts else 1


def vocabulary_of(options: CorpusOptions, counts: Counter[str], known: Iterable[str]) -> Vocabulary:
    """The dictionary of a training text.

    Args:
        options: how it was cut.
        counts: how often each token was seen.
        known: tokens that other texts may have, whether they were seen or not.

    Raises:
        UserError: it has nothing but special tokens, or none often enough.
    """
    mark = [DOCUMENT] if DOCUMENT in counts else []  # however few documents there are
    special = (" " if options.charset == "letters" else EOS, UNKNOWN, *mark, *known)
    seen = [n for token, n in counts.items() if token not in (EOS, UNKNOWN, DOCUMENT, " ")]
    if not seen:
        raise UserError(f"--data {options.data}: the training text has no tokens")
    least = least_count(options, counts)
    vocabulary = Vocabulary.counted(counts, least, special)
    if not vocabulary.numbers.keys() - {EOS, UNKNOWN, DOCUMENT}:
        raise UserError(
            f"--data {options.data}: expected tokens that are seen --min-count = {least} times, "
            f"got none that is seen more than {max(seen)}"
        )
    return vocabulary
