"""Text from a trained model."""

from __future__ import annotations

import re

import torch

from fastrnn.lm.model import LanguageModel
from fastrnn.lm.tokens import EOS, Vocabulary, pairs_text


@torch.inference_mode()
def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    length: int,
    seed: int,
    temperature: float = 0.8,
) -> list[str]:
    """Sample tokens one after another, each fed back, beginning at the start of a line.

    `<unk>` stands for no token in particular and is never drawn.

    Args:
        model: the language model; put in evaluation mode.
        vocabulary: its dictionary.
        length: tokens to draw.
        seed: seed of the draws; the same seed gives the same text.
        temperature: what scores are divided by; below 1, likely tokens gain; default 0.8.

    Returns:
        The tokens.
    """
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    token, state, drawn = torch.tensor([[vocabulary.eos]]), None, []
    for _ in range(length):
        logits, state = model(token.to(device), state)
        scores = logits[0].float().cpu() / temperature
        scores[vocabulary.unknown] = -torch.inf
        token = torch.multinomial(scores.softmax(0), 1, generator=generator).view(1, 1)
        drawn.append(vocabulary.tokens[int(token)])
    return drawn


def to_text(tokens: list[str], level: str) -> str:
    """Tokens as text to read: `<eos>` ends a line, words stand apart, punctuation does not."""
    if level == "char":
        return "".join("\n" if token == EOS else token for token in tokens)
    if level == "bpe":
        return pairs_text(tokens)
    text = " ".join(tokens).replace(f" {EOS} ", "\n").replace(EOS, "").strip()
    return re.sub(r"\( ", "(", re.sub(r" ([.,:;?!)])", r"\1", text))
