"""Text from a trained model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrnn._layers import Layers
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.tokens import EOS, Vocabulary, pairs_text
from fastrnn.streaming import Stream


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the model's scores.

    Args:
        temperature: what scores are divided by; below 1, likely tokens gain; 0: always the
            likeliest; default 0.8.
        top_k: draw from this many likeliest tokens only; default None: from all.
        top_p: draw from the fewest likeliest tokens that hold this probability together, in
            (0, 1]; default 1: from all.
        seed: seed of the draws; the same seed gives the same text; default 1.

    Source: Fan et al. 2018 (top k); Holtzman et al. 2020 (top p).
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 1


@torch.inference_mode()
def stream(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Tensor,
    length: int,
    batch: int,
    sampling: Sampling,
) -> Iterator[Tensor]:
    """Sample tokens one after another, each fed back, beginning at the start of a line.

    `<unk>` stands for no token in particular, a document's mark is never predicted: neither is
    drawn.

    Args:
        model: the language model; put in evaluation mode.
        vocabulary: its dictionary.
        prompt: int64 [P], what the text begins with; may be empty.
        length: tokens to draw after it.
        batch: B, texts drawn side by side.
        sampling: how.

    Yields:
        int64 [B], `length` times, as soon as they are drawn.
    """
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(sampling.seed)
    never = [n for n in (vocabulary.unknown, vocabulary.document) if n is not None]
    start = torch.cat((torch.tensor([vocabulary.eos]), prompt))
    tokens = start.unsqueeze(1).expand(-1, batch)
    logits, state = model(tokens.to(device))
    with _stepping(model, batch):
        for left in range(length - 1, -1, -1):
            scores = logits[-batch:].float().cpu()
            scores[:, never] = -torch.inf
            drawn = _draw(scores, sampling, generator)
            yield drawn
            if left:
                logits, state = model(drawn.unsqueeze(0).to(device), state)


@contextmanager
def _stepping(model: LanguageModel, batch: int) -> Iterator[None]:
    """Inside a `with` block the recurrent layers make single steps from packed weights.

    They start from the states that the model is first given, and then go on from their own.
    """

    def stepper(steps: Stream) -> Callable[..., Any]:
        begun = False

        def forward(x: Tensor, hx: Any = None, **_: Any) -> tuple[Tensor, Any]:
            nonlocal begun
            if not begun:
                steps.state, begun = hx, True
            return steps.step(x[0]).unsqueeze(0), hx

        return forward

    stacks = [module for module in model.modules() if isinstance(module, Layers)]
    for stack in stacks:
        stack.forward = stepper(stack.stream(batch))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for stack in stacks:
            del stack.forward


def _draw(scores: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token for each row of scores [B, V], int64 [B]."""
    if sampling.temperature == 0:
        return scores.argmax(1)
    # In float64, below which there is no temperature, and the likeliest at 0: nothing overflows
    # but what is never drawn.
    scores = scores.double() - scores.amax(1, keepdim=True)
    scores = (scores / sampling.temperature).float()
    if sampling.top_k is not None and sampling.top_k < scores.size(1):
        least = scores.topk(sampling.top_k, dim=1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    probabilities = scores.softmax(1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(stable=True, dim=1, descending=True)
        # A token stays if those before it do not hold top_p yet: the likeliest always does.
        ordered[ordered.cumsum(1) - ordered >= sampling.top_p] = 0
        probabilities = torch.zeros_like(ordered).scatter_(1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    length: int,
    seed: int,
    temperature: float = 0.8,
) -> list[str]:
    """One sampled text as a whole, without a prompt; see `stream`.

    Args:
        model: the language model; put in evaluation mode.
        vocabulary: its dictionary.
        length: tokens to draw.
        seed: seed of the draws.
        temperature: see `Sampling`; default 0.8.

    Returns:
        The tokens.
    """
    prompt = torch.empty(0, dtype=torch.int64)
    sampling = Sampling(temperature, seed=seed)
    drawn = stream(model, vocabulary, prompt, length, 1, sampling)
    return [vocabulary.tokens[int(token)] for token in drawn]


def pieces(tokens: Iterable[str], level: str) -> Iterator[str]:
    """Each token as the text that it adds: `<eos>` ends a line, words stand apart, punctuation
    does not, and byte pairs wait until their character is whole."""
    if level == "bpe":
        yield from _pair_pieces(tokens)
        return
    apart = ""
    for token in tokens:
        if token == EOS:
            apart = ""
            yield "\n"
        elif level == "char":
            yield token
        else:
            yield ("" if re.match(r"[.,:;?!)]", token) else apart) + token
            apart = "" if token.endswith("(") else " "


def _pair_pieces(tokens: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for token in tokens:
        held.append(token)
        text = pairs_text(held)
        if not text.endswith("\ufffd"):
            held = []
            yield text
    yield pairs_text(held)


def to_text(tokens: Iterable[str], level: str) -> str:
    """Tokens as text to read, without white space around a text of words; see `pieces`."""
    text = "".join(pieces(tokens, level))
    return text.strip() if level == "word" else text
