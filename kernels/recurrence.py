"""`fastrnn::recurrence` and its gradient in Triton: the operators' arguments and results."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from . import by_sequence, by_step, checks
from .cells import CELLS
from .checks import fitting
from .layer import Layer, on_chip
from .walk import Walk


def schedule(cell: str, dtype: torch.dtype, hidden: int) -> ModuleType:
    """What a layer runs on: the same for every batch and length, and so are its bits."""
    return by_sequence if on_chip(cell, dtype, hidden) else by_step


def _schedule(layer: Layer) -> ModuleType:
    return schedule(layer.name, layer.state.dtype, layer.hidden)


def _layer(
    input: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    batch_sizes: Tensor,
    resets: Tensor | None,
    seed: Tensor | None,
    sequences: Tensor | None,
    zoneout: list[float],
    cell: str,
    reverse: bool,
) -> Layer:
    checks.known_cell(cell)
    c = CELLS[cell]
    rows, batch, hidden = input.size(0), state.size(1), state.size(2)
    sizes = checks.steps(batch_sizes, batch, rows)
    checks.probabilities(zoneout, c.states)
    flags, numbers = (
        torch.empty(0, dtype=d, device=input.device) for d in (torch.bool, torch.int64)
    )
    walk = Walk(
        sizes,
        fitting("resets", resets, flags, rows),
        None if seed is None else fitting("seed", seed.reshape(-1), numbers, 1),
        fitting("sequences", sequences, numbers, batch),
        tuple(zoneout),
        reverse,
    )
    return Layer(
        cell,
        fitting("state", state, input, c.states, batch, hidden),
        fitting("weight_hh", weight_hh, input, c.gates * hidden, hidden),
        fitting("bias_hh", bias_hh, input, c.gates * hidden),
        walk,
    )


def recurrence(
    input: Tensor,
    state: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    gains: Tensor | None,
    batch_sizes: Tensor,
    resets: Tensor | None,
    seed: Tensor | None,
    sequences: Tensor | None,
    zoneout: list[float],
    cell: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, last states, cells and reserve, as `fastrnn.cells.recurrence` defines them."""
    checks.absent(weight_hr=weight_hr, gains=gains)
    rows = (batch_sizes, resets, seed, sequences, zoneout, cell, reverse)
    layer = _layer(input, state, weight_hh, bias_hh, *rows)
    gates, hidden = layer.cell.gates * layer.hidden, layer.hidden
    if weight_ih is None:
        x_proj = fitting("input", input, input, layer.rows, gates)
    else:
        fitting("weight_ih", weight_ih, input, gates, input.size(1))
        x_proj = F.linear(input, weight_ih, fitting("bias_ih", bias_ih, input, gates))
    kept = layer.rows if save else 0
    output = input.new_empty(layer.rows, hidden)
    cells = input.new_empty(layer.cell.states - 1, kept, hidden)
    reserve = input.new_empty(kept, layer.slots * hidden)
    if layer.rows == 0:
        return output, state.clone(), cells, reserve
    state_n = torch.empty_like(layer.state)
    saved = (cells, reserve) if save else (None, None)
    with torch.cuda.device_of(input):
        _schedule(layer).forward(layer, x_proj, output, state_n, *saved)
    return output, state_n, cells, reserve


def recurrence_backward(
    grad_output: Tensor | None,
    grad_state_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    state: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    gains: Tensor | None,
    batch_sizes: Tensor,
    resets: Tensor | None,
    seed: Tensor | None,
    sequences: Tensor | None,
    zoneout: list[float],
    output: Tensor,
    cells: Tensor,
    reserve: Tensor,
    cell: str,
    reverse: bool,
    input_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, ...]:
    """Gradients of the tensors from input to gains; empty if not wanted."""
    checks.absent(weight_hr=weight_hr, gains=gains)
    rows = (batch_sizes, resets, seed, sequences, zoneout, cell, reverse)
    layer = _layer(input, state, weight_hh, bias_hh, *rows)
    n, hidden, more = layer.rows, layer.hidden, layer.cell.states - 1
    gates = layer.cell.gates * hidden
    grad_state_n = fitting("grad_state_n", grad_state_n, input, *state.shape)
    saved = (
        fitting("output", output, input, n, hidden),
        fitting("cells", cells, input, more, n, hidden),
        fitting("reserve", reserve, input, n, layer.slots * hidden),
    )
    given = (
        fitting("grad_output", grad_output, input, n, hidden),
        torch.zeros_like(layer.state) if grad_state_n is None else grad_state_n,
        fitting("grad_cells", grad_cells, input, more, n, hidden) if more else None,
    )
    # A gradient of neither the x- nor the h-products is wanted in memory twice.
    grad_x = input.new_empty(n, gates)
    grad_h = None if layer.cell.shared_gradients else torch.empty_like(grad_x)
    grad_state = torch.empty_like(layer.state)
    with torch.cuda.device_of(input):
        if n == 0:
            grad_state.copy_(given[1])
        else:
            _schedule(layer).backward(layer, *saved, *given, grad_x, grad_h, grad_state)
    sent = grad_x if grad_h is None else grad_h
    none = input.new_empty(0)
    grad_input = none
    if input_grad:
        grad_input = grad_x if weight_ih is None else grad_x @ weight_ih
    grads = [none.clone() for _ in range(6)]
    if weight_grad:
        if weight_ih is not None:
            grads[0] = grad_x.T @ input
        grads[1] = _weight_hh_gradient(layer, sent, *saved)
        if bias_ih is not None:
            grads[2] = grad_x.sum(0)
        if bias_hh is not None:
            grads[3] = sent.sum(0)
    return grad_input, grad_state, *grads


def _weight_hh_gradient(
    layer: Layer, sent: Tensor, output: Tensor, cells: Tensor, reserve: Tensor
) -> Tensor:
    """[G*H, H]: of the gates' gradients [N, G*H] and what each product multiplied."""
    previous = layer.walk.previous(output, layer.state[0])
    first = layer.cell.operand_gates * layer.hidden
    if first == 0:
        return sent.T @ previous
    # The second product's operand is made of the first slot and the state before.
    operand = reserve[:, : layer.hidden] * previous
    return torch.cat((sent[:, :first].T @ previous, sent[:, first:].T @ operand))
