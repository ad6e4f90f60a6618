"""One training step of the word model: torch.nn's, accelerated, and with the loss fused too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import fastrnn
from benchmarks.timing import compare
from fastrnn.loss import linear_cross_entropy

VOCABULARY, BATCH, STEPS = 10_000, 20, 35


class WordModel(nn.Module):
    """Embedding, recurrent layers, decoder: word_language_model's program."""

    def __init__(self, kind: type[nn.Module], size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size)
        self.layers = kind(size, size, 2)
        self.decoder = nn.Linear(size, VOCABULARY)

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor, fused: bool) -> torch.Tensor:
        """Mean cross entropy of targets [T, B] after tokens [T, B]."""
        hidden, _ = self.layers(self.embedding(tokens))
        if fused:
            return linear_cross_entropy(hidden, self.decoder.weight, self.decoder.bias, targets)
        logits = self.decoder(hidden).flatten(0, 1)
        return nn.functional.cross_entropy(logits, targets.flatten())


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    """One row per cell and size; tokens/s of each beside the times."""
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (STEPS + 1, BATCH))
    for kind in (nn.LSTM, nn.GRU):
        for size in (200,) if quick else (200, 650):
            models = {name: WordModel(kind, size) for name in ("ours", "accelerated", "torch.nn")}
            for name, model in models.items():
                model.load_state_dict(models["torch.nn"].state_dict())
                if name != "torch.nn":
                    fastrnn.accelerate(model)

            def step(name: str, models=models) -> None:
                model = models[name]
                model.zero_grad()
                model.loss(tokens[:-1], tokens[1:], fused=name == "ours").backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.25)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(parameter.grad, alpha=-0.1)

            runs = {name: lambda step=step, name=name: step(name) for name in models}
            case = {"model": kind.__name__, "size": size, "layers": 2, "vocabulary": VOCABULARY}
            row = compare(case, runs, None, 8 if quick else 20)
            row["tokens_per_s"] = {
                name: round(STEPS * BATCH / row[name]["p50"] * 1e3) for name in runs
            }
            yield row
