"""Dynamic evaluation: a model that goes on learning from the text it is scored on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from fastrnn.lm.batches import Batch, window
from fastrnn.lm.data import batchify, scored_columns
from fastrnn.lm.layers import State
from fastrnn.lm.memory import trimmed
from fastrnn.lm.model import LanguageModel

# The training text is sampled for the mean square of its gradients in windows of this many columns.
COLUMNS, WINDOWS = 100, 500


@dataclass(frozen=True)
class Adaptation:
    """How weights follow the text.

    Args:
        rule: "rms" divides each gradient by the root of its mean square over the training text,
            and pulls weights with large gradients back more; "sgd" does neither.
        rate: eta, what gradients are multiplied by.
        decay: lambda, the share of the way back to the trained weights made at every step.
        window: tokens between two steps.
        epsilon: added to the root ("rms").

    Source: Krause et al. 2018, equations 7-9, with the authors' published code for what the mean
    square is taken over and for the bound on the decay.
    """

    rule: Literal["rms", "sgd"] = "rms"
    rate: float = 5e-5
    decay: float = 2e-3
    window: int = 5
    epsilon: float = 2e-5


def evaluate_dynamically(
    model: LanguageModel,
    tokens: Tensor,
    before: int,
    training: Tensor,
    adaptation: Adaptation,
    document: int | None = None,
) -> float:
    """Mean loss over every token of a text, each scored before the weights learn from it.

    Args:
        model: in evaluation mode afterwards, with the weights that it came with.
        tokens: integers [N], read as one column.
        before: the token taken to stand before the first.
        training: integers [M], the training text; read by "rms".
        adaptation: how the weights follow.
        document: the token that begins a document, which is not predicted; default None.

    Returns:
        The loss in nats; not finite where the rate is too high.
    """
    model.eval()
    parameters = _trainable(model)
    trained = [p.detach().clone() for p in parameters]
    length, rate, decay = adaptation.window, adaptation.rate, adaptation.decay
    steps: list[Tensor] = []  # what each gradient is multiplied by, "rms"
    pulls: list[Tensor] = []
    if adaptation.rule == "rms":
        roots = gradient_roots(model, training, length, document)
        steps = [rate / (root + adaptation.epsilon) for root in roots]
        pulls = decay_shares(roots, decay)
    device = parameters[0].device
    inputs, targets = scored_columns(tokens, 1, before)
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    state: State | None = None
    try:
        for rows, carried in trimmed(_windows(model, inputs.size(0), length)):
            part = window(inputs[rows], targets[rows], document)
            loss, state = _loss(model, part.to(device), state if carried else None)
            if not part.count:  # nothing but the beginning of a document
                continue
            total += loss.detach() * part.count
            count += part.count
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for k, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                    # Before the gradient's step: the way back is from where the weights stood.
                    p.lerp_(trained[k], pulls[k] if pulls else decay)
                    if steps:
                        p.addcmul_(gradient, steps[k], value=-1)
                    else:
                        p.sub_(gradient, alpha=rate)
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, trained, strict=True):
                p.copy_(value)
    return float(total) / max(count, 1)


def _trainable(model: LanguageModel) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _windows(model: LanguageModel, rows: int, length: int) -> Iterator[tuple[slice, bool]]:
    """Rows of each step, and whether the state before is theirs: a transformer, which `evaluate`
    reads in windows of its context, sees as much of them here, none of what lies before."""
    context = getattr(model.rnn, "context", rows)
    for begin in range(0, rows, context):
        end = min(begin + context, rows)
        for row in range(begin, end, length):
            yield slice(row, min(row + length, end)), row > begin


def _loss(model: LanguageModel, part: Batch, state: State | None) -> tuple[Tensor, State]:
    """The mean loss of a batch, and the states after it."""
    return model.loss(part.inputs, part.targets, state, "mean", part.resets)


def gradient_roots(
    model: LanguageModel, training: Tensor, length: int, document: int | None = None
) -> list[Tensor]:
    """Root of the mean square of each weight's gradient over the training text.

    Args:
        model: in evaluation mode.
        training: integers [M], read in up to 100 columns, up to 500 windows of it.
        length: steps of a window.
        document: as for `evaluate_dynamically`.

    Returns:
        One tensor for each parameter that training changes, of its shape.
    """
    parameters = _trainable(model)
    columns = batchify(training, min(COLUMNS, training.numel() // 2))
    squares = [torch.zeros_like(p, requires_grad=False) for p in parameters]
    state: State | None = None
    inputs, targets = columns[:-1], columns[1:]
    windows = list(islice(_windows(model, inputs.size(0), length), WINDOWS))
    for rows, carried in trimmed(windows):
        part = window(inputs[rows], targets[rows], document)
        loss, state = _loss(model, part.to(parameters[0].device), state if carried else None)
        if not part.count:
            continue
        for square, gradient in zip(squares, torch.autograd.grad(loss, parameters), strict=True):
            square.addcmul_(gradient, gradient)
    return [(square / len(windows)).sqrt_() for square in squares]


def decay_shares(roots: list[Tensor], decay: float) -> list[Tensor]:
    """How far each weight is pulled back: `decay` on average, by the size of its gradients, and
    never further than home."""
    mean = torch.stack([root.mean() for root in roots]).mean()
    return [(decay * root / mean).clamp_(max=1) for root in roots]
