"""Every cell in plain torch: the definition that all other backends are tested against.

Letters used throughout the project: T steps, B sequences, N packed rows (the sum of
`batch_sizes`), I input size, H hidden size, G gates, S states, R reserve slots, L layers.
A stage is one product of a step with its gate maths; `csrc/cells.h` holds the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastrnn._cell import Cell, Tensors, try_out
from fastrnn.regularisers import PLAIN, Extras, LayerNorm, keep

__all__ = ["CELLS", "COMPILED", "LAYER_NORMED", "Cell", "recurrence", "register", "step"]


def lstm(
    x: Tensors, h: Tensors, prev: Tensors, norm: LayerNorm | None = None
) -> tuple[Tensors, Tensors]:
    i, f, g, o = (a + b for a, b in zip(x, h, strict=True))
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * prev[1] + i * g
    return (o * torch.tanh(c if norm is None else norm.cell(c)), c), (i, f, g, o)


def gru(x: Tensors, h: Tensors, prev: Tensors) -> tuple[Tensors, Tensors]:
    r, z = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
    n = torch.tanh(x[2] + r * h[2])
    return (n + z * (prev[0] - n),), (r, z, n, h[2])


def gru_reset_before_operand(x: Tensors, h: Tensors, prev: Tensors) -> tuple[Tensor, Tensors]:
    r, z = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
    return r * prev[0], (r, z)


def gru_reset_before(
    x: Tensors, h: Tensors, prev: Tensors, reserve: Tensors
) -> tuple[Tensors, Tensors]:
    r, z = reserve
    n = torch.tanh(x[0] + h[0])
    return (n + z * (prev[0] - n),), (r, z, n)


def rnn_tanh(x: Tensors, h: Tensors, prev: Tensors) -> tuple[Tensors, Tensors]:
    return (torch.tanh(x[0] + h[0]),), ()


def rnn_relu(x: Tensors, h: Tensors, prev: Tensors) -> tuple[Tensors, Tensors]:
    return (torch.relu(x[0] + h[0]),), ()


CELLS: dict[str, Cell] = {
    "lstm": Cell(gates=4, states=2, reserve=4, forward=lstm),
    "gru": Cell(gates=3, states=1, reserve=4, forward=gru),
    "gru_reset_before": Cell(
        gates=3,
        states=1,
        reserve=3,
        forward=gru_reset_before,
        operand_gates=2,
        operand=gru_reset_before_operand,
    ),
    "rnn_tanh": Cell(gates=1, states=1, reserve=0, forward=rnn_tanh),
    "rnn_relu": Cell(gates=1, states=1, reserve=0, forward=rnn_relu),
}
COMPILED = frozenset(CELLS)  # those that csrc/cells.h has, too
LAYER_NORMED = ("lstm", "gru")


def register(name: str, cell: Cell) -> None:
    """Add a cell of your own to `CELLS`, for `recurrence` and `RNNOf`.

    It runs on the reference backend, with gradients of every order. The cell is tried on small
    float64 tensors first. A process that loads a pickled `RNNOf` has to register its cell before.

    Args:
        name: a new name.
        cell: its sizes and its functions in differentiable torch.

    Raises:
        TypeError: an argument, or what a function returns, is of another type.
        ValueError: the name is taken, a size is impossible, or a function does not return as many
            tensors as the sizes say, or of another shape.
    """
    if not isinstance(name, str):
        raise TypeError(f"register: name must be a str, got {type(name).__name__}")
    if name in CELLS:
        raise ValueError(f"register: name must be new, got {name!r}, one of {list(CELLS)}")
    if not isinstance(cell, Cell):
        raise TypeError(f"register: cell must be a fastrnn.cells.Cell, got {type(cell).__name__}")
    try_out(cell)
    CELLS[name] = cell


def widened(states: Tensors) -> Tensor:
    """States as the operators take them, [S, B, H]: zeros follow an h of P units."""
    h, *others = states
    return torch.stack((F.pad(h, (0, others[0].size(1) - h.size(1))), *others))


def narrowed(stacked: Tensor, width: int) -> Tensors:
    """The states that `widened` stacked; width: P."""
    h, *others = stacked.unbind()
    return (h[..., :width], *others)


def projected(
    input: Tensor, weight_ih: Tensor | None, bias_ih: Tensor | None, norm: LayerNorm | None
) -> tuple[Tensor, Tensor]:
    """The input's projection [N, G*H] as steps take it, and as layer normalisation found it.

    Args:
        input: [N, I], or without `weight_ih` the projection itself.
        weight_ih: [G*H, I] or None.
        bias_ih: [G*H] or None; without `weight_ih` it counts after a norm only.
        norm: of the projection; None: no normalisation.
    """
    if norm is None:
        x_proj = input if weight_ih is None else F.linear(input, weight_ih, bias_ih)
        return x_proj, x_proj
    product = input if weight_ih is None else F.linear(input, weight_ih)
    return norm.input(product, bias_ih), product


def step(
    cell: Cell,
    x_proj: Tensor,
    prev: Tensors,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    norm: LayerNorm | None = None,
) -> tuple[Tensors, Tensors]:
    """One step of a cell.

    Args:
        cell: an entry of CELLS.
        x_proj: [B, G*H], the input projection with its bias.
        prev: S tensors [B, H], the states before the step.
        weight_hh: [G*H, H].
        bias_hh: [G*H] or None.
        norm: of the state's projection, and of the LSTM's c; default None.

    Returns:
        The S next states and the R reserve slots, [B, H] each; with a norm, G more slots: the
        state's projection.
    """
    x = x_proj.chunk(cell.gates, dim=1)
    if norm is not None:
        h_proj = F.linear(prev[0], weight_hh)
        h = norm.hidden(h_proj, bias_hh).chunk(cell.gates, dim=1)
        next_, reserve = cell.forward(x, h, prev, *([] if norm.ln_c_weight is None else [norm]))
        return next_, (*reserve, *h_proj.chunk(cell.gates, dim=1))
    if cell.operand is None:
        h = F.linear(prev[0], weight_hh, bias_hh).chunk(cell.gates, dim=1)
        return cell.forward(x, h, prev)
    gates = cell.operand_gates
    split = gates * x[0].size(1)
    bias = (None, None) if bias_hh is None else (bias_hh[:split], bias_hh[split:])
    h = F.linear(prev[0], weight_hh[:split], bias[0]).chunk(gates, dim=1)
    operand, reserve = cell.operand(x[:gates], h, prev)
    h = F.linear(operand, weight_hh[split:], bias[1]).chunk(cell.gates - gates, dim=1)
    return cell.forward(x[gates:], h, prev, reserve)


def recurrence(
    cell: Cell,
    x_proj: Tensor,
    state: Tensors,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    batch_sizes: Sequence[int],
    reverse: bool,
    weight_hr: Tensor | None = None,
    extras: Extras = PLAIN,
) -> tuple[Tensor, Tensors, Tensor, Tensor]:
    """The time loop over packed rows, differentiable any number of times.

    Args:
        cell: an entry of CELLS.
        x_proj: [N, G*H].
        state: S tensors [B, H], the states before the first step.
        weight_hh: [G*H, H], or [G*H, P] with `weight_hr`.
        bias_hh: [G*H] or None.
        batch_sizes: T numbers of active sequences, non-increasing, their sum N.
        reverse: run from each sequence's last row to its first.
        weight_hr: [P, H], projects the new h (the LSTM's `proj_size`), or None.
        extras: resets, zoneout, layer normalisation (of the state's side); default none.

    Returns:
        output [N, H] (or [N, P]), the S last states, cells [S-1, N, H] (every step's states
        beyond the first) and reserve [N, R*H]: after the R slots come, with zoneout or
        `weight_hr`, the S states that they acted on, and with layer normalisation the state's
        projection, G slots.

    Source: Hochreiter and Schmidhuber 1997 with Gers et al. 2000 (LSTM); Cho et al. 2014, eq. 5-8
    (GRU, reset before the product); Elman 1990 (RNN); Sak et al. 2014 (projection).
    """
    starts = [0]
    for size in batch_sizes:
        starts.append(starts[-1] + size)
    kept = extras.zoneout_masks([s.size(1) for s in state], batch_sizes)
    order = range(len(batch_sizes))
    steps: list[tuple[Tensors, Tensors]] = []
    for t in reversed(order) if reverse else order:
        b, rows = batch_sizes[t], slice(starts[t], starts[t + 1])
        # Sequences that have ended (or, in reverse, not begun) keep their state.
        prev = tuple(s[:b] for s in state)
        if extras.resets is not None:
            prev = tuple(s.masked_fill(extras.resets[rows, None], 0) for s in prev)
        next_, reserve = step(cell, x_proj[rows], prev, weight_hh, bias_hh, extras.layer_norm)
        if kept or weight_hr is not None:
            reserve = (*reserve[: cell.reserve], *next_, *reserve[cell.reserve :])
        if weight_hr is not None:
            next_ = (F.linear(next_[0], weight_hr), *next_[1:])
        if kept:
            masks = (m[rows] if isinstance(m, Tensor) else m for m in kept)
            next_ = tuple(map(keep, prev, next_, masks))
        state = tuple(torch.cat((n, s[b:])) for n, s in zip(next_, state, strict=True))
        steps.append((next_, reserve))
    if reverse:
        steps.reverse()
    output = torch.cat([next_[0] for next_, _ in steps])
    cells = [torch.cat([next_[s] for next_, _ in steps]) for s in range(1, cell.states)]
    slots = [torch.cat(every) for every in zip(*(reserve for _, reserve in steps), strict=True)]
    no_slots = output.new_empty(output.size(0), 0)
    return (
        output,
        state,
        torch.stack(cells) if cells else output.new_empty(0, *output.shape),
        torch.cat(slots, dim=1) if slots else no_slots,
    )
