"""What a model does at each step of a window: its loss there, and how far gradients reach back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn._layers import Layers
from fastrnn.lm.data import batchify
from fastrnn.lm.errors import UserError
from fastrnn.lm.model import LanguageModel, State

GRADIENT_WINDOWS = 10


def _windows(
    tokens: Tensor, columns: int, steps: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets [T, B] of a text read in windows of equal length; a rest is left out."""
    rows = batchify(tokens, min(columns, tokens.numel() // 2)).to(device)
    steps = min(steps, rows.size(0) - 1)
    for row in range(0, rows.size(0) - steps, steps):
        yield rows[row : row + steps], rows[row + 1 : row + steps + 1]


@torch.inference_mode()
def loss_per_step(model: LanguageModel, tokens: Tensor, columns: int, steps: int) -> list[float]:
    """Mean loss at each step of a window, over all whole windows of a text.

    Args:
        model: put in evaluation mode; its state is carried from window to window, as in training.
        tokens: int64 [N], of which two or more fill a column.
        columns: B, texts read side by side.
        steps: T, of a window; shorter where the columns are.

    Returns:
        T losses in nats.
    """
    model.eval()
    device = next(model.parameters()).device
    sums: list[Tensor] = []
    state: State | None = None
    for inputs, targets in _windows(tokens, columns, steps, device):
        logits, state = model(inputs, state)
        losses = F.cross_entropy(logits.float(), targets.flatten(), reduction="none")
        sums.append(losses.view(targets.shape).mean(1))
    return torch.stack(sums).double().mean(0).tolist()


def gradient_norm_per_step(
    model: LanguageModel, tokens: Tensor, columns: int, steps: int
) -> list[float]:
    """How strongly the loss at a window's last step depends on the hidden state at each step.

    The gradient of the last step's loss with respect to every layer's h_t, averaged over the batch,
    layers concatenated; its norm, averaged over up to 10 windows, the largest scaled to 1.

    Args:
        model: put in evaluation mode; its layers have h.
        tokens: as for `loss_per_step`; so the rest.

    Returns:
        T norms from 0 to 1.

    Raises:
        UserError: the model has no recurrent layers.
    """
    model.eval()
    device = next(model.parameters()).device
    norms: list[Tensor] = []
    state: State | None = None
    windows = _windows(tokens, columns, steps, device)
    with _recorded(model) as hidden:
        for _, (inputs, targets) in zip(range(GRADIENT_WINDOWS), windows, strict=False):
            hidden.clear()
            for step in inputs.unsqueeze(1):
                logits, state = model(step, state)
            loss = F.cross_entropy(logits.float(), targets[-1])  # the mean over the batch
            if not hidden:
                raise UserError("gradient norms per time-step need a model with recurrent layers")
            # Each column's share of the mean loss: summed over the batch it is the mean gradient.
            gradients = torch.autograd.grad(loss, hidden)
            squares = torch.stack([g.sum(1).square().sum() for g in gradients])
            norms.append(squares.view(len(inputs), -1).sum(1).sqrt())
            assert state is not None
            cut = [s.detach() for s in (state if isinstance(state, tuple) else (state,))]
            state = _joined(cut)
    mean = torch.stack(norms).double().mean(0)
    return (mean / mean.max().clamp_min(torch.finfo(mean.dtype).tiny)).tolist()


@contextmanager
def _recorded(model: LanguageModel) -> Iterator[list[Tensor]]:
    """Collects every layer's h_t [1, B, H], layer by layer, as the model makes single steps.

    The fused layers have no such tensors: here each layer runs on its own, and the h that the next
    step starts from is the one that the layer above reads.
    """
    hidden: list[Tensor] = []

    def step(layers: list[Layers], x: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        before = None if hx is None else hx if isinstance(hx, tuple) else (hx,)
        after = []
        for k, layer in enumerate(layers):
            first = None if before is None else tuple(s[k : k + 1] for s in before)
            x, last = layer(x, first if first is None or len(first) > 1 else first[0])
            hidden.append(x)
            after.append((x, *last[1:]) if isinstance(last, tuple) else (x,))
        return x, _joined([torch.cat(each) for each in zip(*after, strict=True)])

    stacks = [module for module in model.modules() if isinstance(module, Layers)]
    for stack in stacks:
        layers = _layers_of(stack)
        stack.forward = lambda x, hx=None, layers=layers: step(layers, x, hx)  # type: ignore
    try:
        yield hidden
    finally:
        for stack in stacks:
            del stack.forward


def _joined(states: list[Tensor]) -> State:
    return states[0] if len(states) == 1 else (states[0], states[1])


def _layers_of(stack: Layers) -> list[Layers]:
    """Each layer of a stack as a stack of one, over the same parameters."""
    layers = []
    for weights in stack.all_weights:
        layer = copy.copy(stack)
        layer.num_layers, layer.input_size = 1, weights[0].size(1)
        named: Any = zip(layer._all_weights[0], weights, strict=True)
        layer._parameters = dict(named)
        layers.append(layer)
    return layers
