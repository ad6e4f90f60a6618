"""Recurrences as functions of tensors: argument checks, then the backend that runs them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn import cells, ops
from fastrnn.backends import choose
from fastrnn.cells import CELLS, Cell

Pair = tuple[Tensor, Tensor]
Tensors = tuple[Tensor, ...]


def _expect(name: str, tensor: Tensor, symbols: str, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"recurrence: {name} must be {symbols} = {list(shape)}, got {list(tensor.shape)}"
        )


def _check(
    cell: Cell,
    input: Tensor,
    state: Tensors,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    batch: int | None,
) -> None:
    """Raise a ValueError that names the first argument that does not fit."""
    if len(state) != cell.states:
        raise ValueError(f"recurrence: state must hold S = {cell.states} tensors, got {len(state)}")
    for part in state:
        if part.dim() != 2:
            raise ValueError(f"recurrence: each state must be [B, H], got {list(part.shape)}")
    hidden = state[-1].size(1)
    width = hidden if weight_hr is None else weight_hr.size(0)
    for s, part in enumerate(state):
        size = state[0].size(0) if batch is None else batch
        _expect("state", part, "[B, H]", (size, width if s == 0 else hidden))
    rows = cell.gates * hidden
    _expect(
        "weight_hh", weight_hh, "[G*H, P]" if weight_hr is not None else "[G*H, H]", (rows, width)
    )
    if weight_hr is not None:
        _expect("weight_hr", weight_hr, "[P, H]", (width, hidden))
    if weight_ih is None:
        _expect("input", input, "[..., G*H] (x_proj)", (*input.shape[:-1], rows))
    else:
        _expect("weight_ih", weight_ih, "[G*H, I]", (rows, input.size(-1)))
    for name, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None:
            _expect(name, bias, "[G*H]", (rows,))
    named = {
        "state": state[0],
        "weight_ih": weight_ih,
        "weight_hh": weight_hh,
        "bias_ih": bias_ih,
        "bias_hh": bias_hh,
        "weight_hr": weight_hr,
    }
    for name, tensor in named.items():
        if tensor is None:
            continue
        if tensor.dtype != input.dtype:
            raise ValueError(
                f"recurrence: {name} must have the input's dtype {input.dtype}, got {tensor.dtype}"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"recurrence: {name} must be on the input's device {input.device}, "
                f"got {tensor.device}"
            )


def _check_batch_sizes(batch_sizes: Tensor, rows: int, batch: int) -> None:
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
        raise ValueError(
            "recurrence: batch_sizes must be a CPU int64 tensor [T], "
            f"got {batch_sizes.dtype} {list(batch_sizes.shape)} on {batch_sizes.device}"
        )
    if torch.compiler.is_compiling():  # values are not known while tracing
        return
    sizes = batch_sizes.tolist()
    if sizes != sorted(sizes, reverse=True) or sizes[-1:] < [1] or sizes[0] != batch:
        raise ValueError(
            f"recurrence: batch_sizes must be non-increasing from B = {batch} to at least 1, "
            f"got {sizes}"
        )
    if sum(sizes) != rows:
        raise ValueError(f"recurrence: batch_sizes must sum to N = {rows}, got {sum(sizes)}")


def recurrence(
    cell: str,
    input: Tensor,
    state: Tensor | Pair,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    weight_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor | Pair]:
    """One layer and direction of a recurrent network over a batch of sequences.

    Args:
        cell: a key of `CELLS`.
        input: [T, B, I] padded, or packed rows [N, I] with `batch_sizes`; float32 or float64 on
            the native backend, any floating dtype on the reference.
        state: [S, B, H], the states before the first step (h; then c for an LSTM); with
            `weight_hr` the pair (h [B, P], c [B, H]).
        weight_ih: [G*H, I] in torch's gate order, or None: `input` is the projection, I = G*H.
        weight_hh: [G*H, H], or [G*H, P] with `weight_hr`.
        bias_ih: [G*H]; default None.
        bias_hh: [G*H]; default None.
        batch_sizes: CPU int64 [T], active sequences per step, non-increasing; default None.
        reverse: run from each sequence's last row to its first; rows stay in place.
        weight_hr: [P, H], the LSTM's output projection; default None.

    Returns:
        output [T, B, H] (or [N, H]) and each sequence's last states, shaped as `state`.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit, or `cell` is unknown.
        RuntimeError: an explicitly chosen backend cannot run it.

    Source: see `fastrnn.cells.recurrence`.
    """
    if cell not in CELLS:
        raise ValueError(f"recurrence: cell must be one of {list(CELLS)}, got {cell!r}")
    padded = batch_sizes is None
    if input.dim() != (3 if padded else 2):
        raise ValueError(
            f"recurrence: input must be {'[T, B, I]' if padded else '[N, I]'}, "
            f"got {list(input.shape)}"
        )
    states = state if isinstance(state, tuple) else state.unbind()
    _check(
        CELLS[cell],
        input,
        states,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        weight_hr,
        input.size(1) if padded else None,
    )
    steps = input.size(0)
    if batch_sizes is None:
        batch_sizes = torch.full((steps,), input.size(1), dtype=torch.int64)
        rows = input.flatten(0, 1)
    else:
        _check_batch_sizes(batch_sizes, steps, states[0].size(0))
        rows = input
    if choose(input, weight_hr is not None).backend == "native":
        stacked = state if isinstance(state, Tensor) else torch.stack(state)
        args = (rows, stacked, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, cell, reverse)
        if torch.is_grad_enabled():
            output, state_n = ops.Recurrence.apply(*args)[:2]
        else:
            output, state_n, _, _ = torch.ops.fastrnn.recurrence.default(*args, False)
    else:
        sizes = [input.size(1)] * steps if padded else batch_sizes.tolist()
        x_proj = rows if weight_ih is None else F.linear(rows, weight_ih, bias_ih)
        output, last, _, _ = cells.recurrence(
            CELLS[cell], x_proj, states, weight_hh, bias_hh, sizes, reverse, weight_hr
        )
        state_n = torch.stack(last) if isinstance(state, Tensor) else last
    return (output.unflatten(0, input.shape[:2]) if padded else output), state_n


def explain(module: torch.nn.Module, input: Tensor | None = None) -> str:
    """Say which backend and schedule a module runs on, and why the others do not.

    Args:
        module: one of this package's recurrent modules.
        input: what it will be called with; default None: a tensor like its weights.

    Returns:
        One line per backend, the chosen one first.

    Raises:
        TypeError: `module` is not one of ours.
    """
    name = getattr(module, "cell_name", None)
    if name not in CELLS:
        raise TypeError(f"explain: module must be a fastrnn module, got {type(module).__name__}")
    tensor = next(module.parameters()) if input is None else input
    choice = choose(tensor, getattr(module, "proj_size", 0) > 0)
    lines = [f"{choice.backend}: runs {name} ({choice.schedule})"]
    return "\n".join(lines + [f"{b}: no, {reason}" for b, reason in choice.refused.items()])
