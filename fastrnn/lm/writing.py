"""What `fastrnn.generate` does: continue a prompt, token by token."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import torch
import tyro
from torch import Tensor

from fastrnn._suggest import suggest
from fastrnn.lm.complete import not_utf8
from fastrnn.lm.device import memory_of
from fastrnn.lm.errors import UserError
from fastrnn.lm.generate import Sampling, pieces, stream, to_text
from fastrnn.lm.run import TOKENIZER
from fastrnn.lm.saved import SavedRun, open_run
from fastrnn.lm.tokens import cut_pairs, cutter


@dataclass
class WritingOptions:
    """Continue a prompt with a trained model, printing each token as it comes."""

    run: str
    """Folder of the run; its best model writes."""
    prompt: str = ""
    """What the text begins with, at the start of a line."""
    length: int = 100
    """Tokens to draw after it."""
    temperature: float = 0.8
    """What scores are divided by; 0: always the likeliest token."""
    top_k: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")
    ] = None
    """Draw from this many likeliest tokens only."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that hold this probability together."""
    seed: int = 1
    """Seed of the draws."""
    batch: int = 1
    """Texts to draw; more than one are printed when they are whole."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 ..."""
    debug: bool = False
    """Show the traceback of an error."""


def write(options: WritingOptions) -> None:
    """Print texts that a run's model continues a prompt with.

    Args:
        options: see `WritingOptions`.

    Raises:
        UserError: an option is out of range, the run cannot be read, or a token of the prompt is
            not in its dictionary.
    """
    _check(options)
    run = open_run(options.run, options.device)
    level = run.config.corpus.level
    prompt = _encode(run, options.prompt)
    _check_memory(run, options.batch, prompt.numel())
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    drawn = stream(run.model, run.vocabulary, prompt, options.length, options.batch, sampling)
    if options.batch == 1:
        for piece in pieces(_tokens(run, prompt, drawn), level):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
        return
    columns = torch.stack(list(drawn), 1)
    for number, column in enumerate(columns, 1):
        text = to_text(_tokens(run, prompt, iter(column)), level)
        print(f"--- {number}\n{text}")


def _tokens(run: SavedRun, prompt: Tensor, drawn: Iterator[Tensor]) -> Iterator[str]:
    for numbers in (iter(prompt), drawn):
        yield from (run.vocabulary.tokens[int(number)] for number in numbers)


def _encode(run: SavedRun, prompt: str) -> Tensor:
    level, known = run.config.corpus.level, run.vocabulary.numbers
    tokens = _cut(run, prompt)
    for token in tokens:
        if token not in known:
            kind = {"char": "character", "word": "word", "bpe": "piece"}[level]
            near = suggest(token, list(islice(known, 100_000)))
            raise UserError(
                f"--prompt: the {kind} {token!r} is not in the dictionary of {run.folder}{near}"
            )
    return run.vocabulary.encode(tokens)


def _cut(run: SavedRun, prompt: str) -> list[str]:
    """The prompt's tokens, cut as the run's text was."""
    if run.config.corpus.level != "bpe":
        return cutter(run.config.corpus, ())[0](prompt)
    from tokenizers import Tokenizer

    path = run.folder / TOKENIZER
    try:
        pairs = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # the package's own, of no class of its own
        raise UserError(f"{path}: damaged: {error}") from error
    if not pairs.get_vocab().keys() <= run.vocabulary.numbers.keys():
        raise UserError(f"{path}: expected pieces of the run's dictionary, got others")
    return cut_pairs(pairs, f"{prompt}\n")[:-1]  # without the <eos> of a line that goes on


def _check_memory(run: SavedRun, batch: int, prompt: int) -> None:
    """Raise a UserError where a system out of memory would kill the program, or another."""
    # Scores of every token of the prompt, then of one, in up to six tensors; states and gates.
    scores = len(run.vocabulary) * (prompt + 7)
    units = run.config.model.num_layers * run.config.model.hidden_size * 6
    needed, present = 4 * batch * (scores + units), memory_of(torch.device("cpu"))
    if present is not None and needed > present:
        raise UserError(
            f"--batch {batch} needs about {needed / 2**30:.0f} GiB of memory, cpu has "
            f"{present / 2**30:.0f}"
        )


def _check(options: WritingOptions) -> None:
    for name, least in (("length", 1), ("batch", 1), ("top_k", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and not least <= value < 2**63:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} must be at least {least} and below 2**63, got {value}")
    if not 0 <= options.temperature < math.inf:
        raise UserError(f"--temperature must be at least 0 and finite, got {options.temperature}")
    if not_utf8(options.prompt):
        raise UserError(f"--prompt {options.prompt!r}: not UTF-8")
    if not 0 < options.top_p <= 1:
        raise UserError(f"--top-p must be above 0 and at most 1, got {options.top_p}")
    for name, given in (("k", options.top_k is not None), ("p", options.top_p < 1)):
        if given and options.temperature == 0:
            raise UserError(f"--top-{name} does nothing with --temperature 0")
