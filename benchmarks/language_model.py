"""One training step of the word model, with our layers and with torch.nn's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import fastrnn
from benchmarks.timing import compare

VOCABULARY, BATCH, STEPS = 10_000, 20, 35


class WordModel(nn.Module):
    """Embedding, recurrent layers, decoder: word_language_model's program."""

    def __init__(self, kind: type[nn.Module], size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size)
        self.layers = kind(size, size, 2)
        self.decoder = nn.Linear(size, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layers(self.embedding(tokens))[0])


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    """One row per cell and size; tokens/s of each beside the times."""
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (STEPS + 1, BATCH))
    for kind in (nn.LSTM, nn.GRU):
        for size in (200,) if quick else (200, 650):
            peer = WordModel(kind, size)
            ours = WordModel(kind, size)
            ours.load_state_dict(peer.state_dict())
            fastrnn.accelerate(ours)

            def step(model: nn.Module) -> None:
                model.zero_grad()
                logits = model(tokens[:-1]).flatten(0, 1)
                nn.functional.cross_entropy(logits, tokens[1:].flatten()).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.25)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(parameter.grad, alpha=-0.1)

            runs = {
                "ours": lambda step=step, m=ours: step(m),
                "torch.nn": lambda step=step, m=peer: step(m),
            }
            case = {"model": kind.__name__, "size": size, "layers": 2, "vocabulary": VOCABULARY}
            row = compare(case, runs, None, 8 if quick else 20)
            row["tokens_per_s"] = {
                name: round(STEPS * BATCH / row[name]["p50"] * 1e3) for name in runs
            }
            yield row
