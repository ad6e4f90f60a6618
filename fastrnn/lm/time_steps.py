"""What a model does at each step of a window: its loss there, and how far gradients reach back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn._layers import Layers
from fastrnn.lm.batches import IGNORED, Batch, window
from fastrnn.lm.data import batchify
from fastrnn.lm.layers import State
from fastrnn.lm.memory import trimmed
from fastrnn.lm.model import LanguageModel

GRADIENT_WINDOWS = 10


def _windows(
    model: LanguageModel, tokens: Tensor, columns: int, steps: int, document: int | None
) -> Iterator[Batch]:
    """A text read in windows of equal length; a rest is left out."""
    device = next(model.parameters()).device
    rows = batchify(tokens, min(columns, tokens.numel() // 2))
    steps = min(steps, rows.size(0) - 1)
    for row in trimmed(range(0, rows.size(0) - steps, steps)):
        part = window(rows[row : row + steps], rows[row + 1 : row + steps + 1], document)
        yield part.to(device)


@torch.inference_mode()
def loss_per_step(
    model: LanguageModel, tokens: Tensor, columns: int, steps: int, document: int | None = None
) -> list[float]:
    """Mean loss at each step of a window, over all whole windows of a text.

    Args:
        model: put in evaluation mode; its state is carried from window to window, as in training.
        tokens: integers [N], of which two or more fill a column.
        columns: B, texts read side by side.
        steps: T, of a window; shorter where the columns are.
        document: the token that begins a document, which is not predicted; default None.

    Returns:
        T losses in nats.
    """
    model.eval()
    sums: Tensor | float = 0.0
    counts: Tensor | int = 0
    state: State | None = None
    for part in _windows(model, tokens, columns, steps, document):
        logits, state = model(part.inputs, state, part.resets)
        losses = F.cross_entropy(logits.float(), part.targets.flatten(), reduction="none")
        sums = sums + losses.view(part.targets.shape).sum(1, dtype=torch.float64)
        counts = counts + (part.targets != IGNORED).sum(1)
    return (torch.as_tensor(sums) / torch.as_tensor(counts).clamp_min(1)).tolist()


def gradient_norm_per_step(
    model: LanguageModel, tokens: Tensor, columns: int, steps: int, document: int | None = None
) -> list[float]:
    """How strongly the loss at a window's last step depends on the hidden state at each step.

    The gradient of the last step's loss with respect to every layer's h_t, averaged over the batch,
    layers concatenated; its norm, averaged over up to 10 windows, the largest scaled to 1.

    Args:
        model: put in evaluation mode.
        tokens: as for `loss_per_step`; so the rest.

    Returns:
        T norms from 0 to 1; none for a model without recurrent layers.
    """
    model.eval()
    norms: list[Tensor] = []
    state: State | None = None
    windows = _windows(model, tokens, columns, steps, document)
    with _recorded(model) as hidden:
        for part in islice(windows, GRADIENT_WINDOWS):
            hidden.clear()
            for t, row in enumerate(part.inputs):
                resets = None if part.resets is None else part.resets[t : t + 1]
                logits, state = model(row.unsqueeze(0), state, resets)
            total = F.cross_entropy(logits.float(), part.targets[-1], reduction="sum")
            loss = total / (part.targets[-1] != IGNORED).sum().clamp_min(1)
            if not hidden:
                return []
            # Each column's share of the mean loss: summed over the batch it is the mean gradient.
            gradients = torch.autograd.grad(loss, hidden)
            squares = torch.stack([g.sum(1).square().sum() for g in gradients])
            norms.append(squares.view(len(part.inputs), -1).sum(1).sqrt())
            assert state is not None
            state = tuple(s.detach() for s in state)
    mean = torch.stack(norms).double().mean(0)
    return (mean / mean.max().clamp_min(torch.finfo(mean.dtype).tiny)).tolist()


@contextmanager
def _recorded(model: LanguageModel) -> Iterator[list[Tensor]]:
    """Collects every layer's h_t [1, B, H], layer by layer, as the model makes single steps.

    A layer's output and its last state are two tensors: here they are one, so that its gradient
    counts both the layer above and the next step.
    """
    hidden: list[Tensor] = []

    def stepper(layer: Layers) -> Callable[..., Any]:
        def forward(x: Tensor, hx: Any = None, **options: Any) -> tuple[Tensor, Any]:
            h, last = type(layer).forward(layer, x, hx, **options)
            hidden.append(h)
            return h, (h, *last[1:]) if isinstance(last, tuple) else h

        return forward

    layers = [module for module in model.modules() if isinstance(module, Layers)]
    for layer in layers:
        layer.forward = stepper(layer)  # type: ignore[method-assign]
    try:
        yield hidden
    finally:
        for layer in layers:
            del layer.forward
