"""A word model's training step, whole: the trainer's, and a plain torch loop as it is and with
`accelerate()` on its model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastrnn
from benchmarks.cases import Case, Work
from benchmarks.layers import Shape, assert_close, forward_multiply_adds, forward_numbers
from fastrnn.lm.config import ModelOptions, OptimizerOptions
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.optim import gradients_of, make_optimizer
from fastrnn.lm.step import clip, total_norm

VOCABULARY, CLIP, RATE = 10_000, 0.25, 0.1
SIZES = (200, 650)


def cases() -> Iterator[Case]:
    """Every row of this suite."""
    for cell in ("lstm", "gru"):
        for size in SIZES:
            yield _case(cell, size, quick=size == 200)
    for size in SIZES:
        yield _case("lstm", size, "bfloat16")


def _case(cell: str, size: int, precision: str = "float32", quick: bool = False) -> Case:
    shape = Shape(35, 20, size, size, 2)
    columns = {"cell": cell, "mode": "train", **shape._asdict(), "V": VOCABULARY}
    rough = precision != "float32"
    if rough:
        columns["precision"] = precision
    return Case(
        "language_model",
        f"{cell}/{shape}" + (f"/{precision}" if rough else ""),
        partial(training_step, cell, shape, VOCABULARY, getattr(torch, precision)),
        columns,
        quick=quick,
        seconds=3.0,
        apart=("ours", "accelerated", "torch.nn"),
    )


class WordModel(nn.Module):
    """Embedding, recurrent layers, decoder, with the parameters of the trainer's model."""

    def __init__(self, cell: str, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        self.encoder = nn.Embedding(vocabulary, shape.I)
        self.rnn = getattr(nn, cell.upper())(shape.I, shape.H, shape.L)
        self.decoder = nn.Linear(shape.H, vocabulary)

    def take(self, trainers: LanguageModel) -> None:
        """Copy its weights, whose recurrent layers are modules of their own."""
        named = trainers.state_dict()
        layer = re.compile(r"layers\.(\d+)\.(.*)_l0")
        self.load_state_dict({layer.sub(r"\2_l\1", name): named[name] for name in named})

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of targets [T, B] after tokens [T, B]."""
        logits = self.decoder(self.rnn(self.encoder(tokens))[0])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def training_step(
    cell: str, shape: Shape, vocabulary: int, precision: torch.dtype = torch.float32
) -> Work:
    """Loss, gradients, clipping and SGD on random words; ours with products of a precision, the
    others in float32."""
    text = torch.randint(vocabulary, (shape.T + 1, shape.B))
    tokens, targets = text[:-1], text[1:]
    options = ModelOptions(cell, shape.I, shape.H, shape.L, tied=False, dropout=0.0)
    trainers = LanguageModel(vocabulary, options)
    models = {name: WordModel(cell, shape, vocabulary) for name in ("accelerated", "torch.nn")}
    for model in models.values():
        model.take(trainers)
    fastrnn.accelerate(models["accelerated"])
    options_of_step = OptimizerOptions("sgd", lr=RATE, weight_decay=0.0)
    optimizer = make_optimizer(trainers, options_of_step, rowwise=True)

    def trainer_step() -> Tensor:
        """As `fastrnn.lm.step` takes it."""
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss, _ = trainers.loss(tokens, targets, None)
        optimizer.zero_grad()
        loss.backward()
        clip(optimizer, CLIP, float(total_norm(gradients_of(trainers.parameters()))))
        optimizer.step()
        return loss.detach()

    def plain_step(model: WordModel) -> Tensor:
        """As pytorch's word_language_model takes it."""
        model.zero_grad()
        loss = model.loss(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for parameter in model.parameters():
            parameter.data.add_(parameter.grad, alpha=-RATE)
        return loss.detach()

    runs = {"ours": trainer_step}
    runs |= {name: partial(plain_step, model) for name, model in models.items()}

    def check() -> None:
        """Losses of a step, and weights after it."""
        losses = {name: run() for name, run in runs.items()}
        weights = {name: list(m.parameters()) for name, m in (("ours", trainers), *models.items())}
        for name in models:
            assert_close([losses["ours"].to(precision)], [losses[name].to(precision)])
            found, expected = (
                [w.detach().to(precision) for w in weights[n]] for n in ("ours", name)
            )
            assert_close(found, expected)

    rows = shape.T * shape.B
    products = forward_multiply_adds(cell, shape) + rows * shape.H * vocabulary
    numbers = forward_numbers(cell, shape) + vocabulary * (shape.I + shape.H + 1)
    return Work(
        runs,
        check,
        3 * products,
        precision.itemsize,
        bytes=12 * numbers,
        barriers=2 * shape.T * shape.L,
        tokens=rows,
    )
