"""Inference on weights that are packed once, not in every call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import _arguments
from fastrnn._arguments import Rates
from fastrnn._autocast import autocasts
from fastrnn._cell import Tensors
from fastrnn.backends import choose, chosen, lacking
from fastrnn.batching import Dims, one_by_one
from fastrnn.cells import narrowed, widened
from fastrnn.regularisers import PLAIN, LayerNorm


class Packed(NamedTuple):
    """The weights of one layer and direction as the CPU kernels read them, in this process.

    Args:
        weights: weight_ih, weight_hh and weight_hr in panels.
        bias_ih: [G*H] or None.
        bias_hh: [G*H] or None.
        gains: of layer normalisation, joined, or None.
        proj_size: P, or 0.
    """

    weights: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    gains: Tensor | None
    proj_size: int


def refusal(cell: str, tensor: Tensor, features: list[str]) -> str | None:
    """Why weights like `tensor` cannot be packed for a cell with such options; None if they can."""
    choice = choose(tensor, lacking(cell) or _elsewhere(tensor), features=features)
    return None if choice.backend == "native" else choice.refused["native"]


def _elsewhere(tensor: Tensor) -> str | None:
    return "only the CPU kernels take packed weights" if tensor.is_cuda else None


def pack(
    cell: str,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    layer_norm: LayerNorm | None = None,
) -> Packed:
    """A copy of a layer's weights for `run_packed`; arguments as in `recurrence`."""
    with torch.no_grad():
        weights = torch.ops.fastrnn.pack_weights.default(weight_ih, weight_hh, weight_hr, cell)
        ih, hh = (None if b is None else b.detach().clone() for b in (bias_ih, bias_hh))
        gains = None if layer_norm is None else layer_norm.joined()
        return Packed(weights, ih, hh, gains, 0 if weight_hr is None else weight_hr.size(0))


@autocasts
def run_packed(
    cell: str,
    input: Tensor,
    state: Tensors,
    packed: Packed,
    *,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    resets: Tensor | None = None,
    zoneout: Rates | None = None,
    seed: Tensor | None = None,
    sequences: Tensor | None = None,
    return_cells: bool = False,
) -> tuple[Tensor, Tensor | Tensors, Tensor | None]:
    """`functional.run` without gradients, on packed weights."""
    if chosen(input, _elsewhere(input)) != "native":
        raise RuntimeError(f"packed weights need the native backend: {refusal(cell, input, [])}")
    extras = PLAIN
    if resets is not None or zoneout is not None:
        extras = _arguments.extras(cell, input, state, None, resets, zoneout, seed, sequences, None)
    rows, shape, width = input, input.shape[:-1], packed.proj_size
    if batch_sizes is None:
        batch_sizes = _arguments.padded_sizes(input)
        rows = input.flatten(0, 1)
    else:
        _arguments.sizes(batch_sizes, input.size(0), state[0].size(0))
    arguments: tuple[Any, ...] = (
        *(rows, widened(state) if width else torch.stack(state), *packed[:4], batch_sizes),
        *(extras.resets, extras.seed, extras.sequences, list(extras.zoneout or ())),
        *(cell, width, reverse, return_cells),
    )
    output, state_n, cells = torch.ops.fastrnn.recurrence_packed.default(*arguments)
    every = cells[0].view(*shape, cells.size(-1)) if return_cells else None
    last = narrowed(state_n, width) if width else state_n
    return output.view(*shape, output.size(-1)), last, every


@torch.library.register_vmap("fastrnn::recurrence_packed")
def _batched(info: Any, dims: Dims, *args: Any) -> tuple[Any, Any]:
    return one_by_one(torch.ops.fastrnn.recurrence_packed.default, info.batch_size, dims, args)


@torch.library.register_fake("fastrnn::recurrence_packed")
def _fake(*args: Any) -> tuple[Tensor, ...]:
    input, state, (proj_size, _, return_cells) = args[0], args[1], args[-3:]
    rows, hidden = input.size(0), state.size(2)
    return (
        input.new_empty(rows, proj_size or hidden),
        input.new_empty(state.shape),
        input.new_empty(state.size(0) - 1, rows if return_cells else 0, hidden),
    )
