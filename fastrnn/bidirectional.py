"""Both directions of a layer as one operator, whose kernels run them side by side.

On a CUDA device in one launch, not two streams: no tensor has to be kept alive from one stream to
the other, and a CUDA graph captures it as it is. On a CPU each direction has half of the threads,
which then wait for one another once, not in every step. Elsewhere the operator is
`fastrnn::recurrence` twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import _arguments, _cuda, batching, ops
from fastrnn._arguments import WEIGHTS
from fastrnn._autocast import lower_dtype
from fastrnn._calls import (
    applied,
    below_autograd,
    by_functions,
    need_gradients,
    second_order,
    unsaved,
)
from fastrnn._library import LIBRARY
from fastrnn.backends import chosen
from fastrnn.cells import CELLS, COMPILED

_SINGLE = torch.ops.fastrnn.recurrence.default
_SINGLE_BACKWARD = torch.ops.fastrnn.recurrence_backward.default
_BOTH = torch.ops.fastrnn.recurrence_both.default
_BOTH_BACKWARD = torch.ops.fastrnn.recurrence_both_backward.default
_ROWS = ("resets", "zoneout", "seed", "sequences")
_CELL = 18  # its place among the arguments
_BACKWARD = 6  # where those of the forward pass begin among the backward operator's
_GRADIENTS = 6  # of one direction: it has neither weight_hr nor gains


def _way(args: Sequence[Any], way: int) -> tuple[Any, ...]:
    """One direction's arguments of `fastrnn::recurrence` up to `reverse`, of the operator's."""
    first = 1 + 5 * way
    batch_sizes, *rows, sequences, zoneout, cell = args[11 : _CELL + 1]
    options = (batch_sizes, rows[way], rows[2 + way], sequences, zoneout, cell, bool(way))
    return (args[0], *args[first : first + 5], None, None, *options)


def _way_backward(args: Sequence[Any], way: int) -> tuple[Any, ...]:
    """The same of `fastrnn::recurrence_backward`."""
    *_, cell, input_grad, weight_grad = args
    saved = _BACKWARD + _CELL + 3 * way
    forward = _way((*args[_BACKWARD : _BACKWARD + _CELL], cell), way)[:-2]
    last = (*args[saved : saved + 3], cell, bool(way), input_grad, weight_grad)
    return (*args[3 * way : 3 * way + 3], *forward, *last)


def _twice(of_one: Any, way_of: Any) -> Any:
    """An operator's function, made of what does one direction."""

    def of_both(*args: Any) -> tuple[Tensor, ...]:
        return tuple(t for way in (0, 1) for t in of_one(*way_of(args, way))[:_GRADIENTS])

    return of_both


def _way_and_save(args: Sequence[Any], way: int) -> tuple[Any, ...]:
    return (*_way(args, way), args[-1])


def _batched(op: Any, rule: Any, way_of: Any) -> Any:
    """The rule under vmap: that of one direction, twice."""

    def of_both(info: Any, dims: Any, *args: Any) -> tuple[Any, Any]:
        found: list[tuple[Any, Any]] = []
        for way in (0, 1):
            # The direction is no argument, so it has no axis.
            axes = [None if isinstance(d, bool) else d for d in way_of(dims, way)]
            results, places = rule(op, info, tuple(axes), *way_of(args, way))
            found += list(zip(results, places, strict=True))[:_GRADIENTS]
        results, places = zip(*found, strict=True)
        return results, places

    return of_both


class BothDirections(torch.autograd.Function):
    """`fastrnn::recurrence_both` with gradients; takes its arguments up to `cell`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return below_autograd(_BOTH, *args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.zoneout, ctx.cell = inputs
        ctx.mark_non_differentiable(output[3], output[7])
        ctx.set_materialize_grads(False)
        saved = (output[i] for i in (0, 2, 3, 4, 6, 7))
        ctx.save_for_backward(*tensors, *saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        given = [*grads[:3], *grads[4:7]]
        if all(g is None for g in given):
            return (None,) * (_CELL + 1)
        needs = ctx.needs_input_grad
        *tensors, out, cells_, reserve, out_back, cells_back, reserve_back = ctx.saved_tensors
        for way, output in enumerate((out, out_back)):
            if all(g is None for g in given[3 * way : 3 * way + 3]):
                given[3 * way] = torch.zeros_like(output)
        saved = (out, cells_, reserve, out_back, cells_back, reserve_back)
        wanted = needs[0], any(needs[i] for i in (*range(2, 6), *range(7, 11)))
        args = (*given, *tensors, ctx.zoneout, *saved, ctx.cell, *wanted)
        if second_order():
            found = _twice(ops.RecurrenceBackward.apply, _way_backward)(*args)
        else:
            _cuda.follow_tf32(tensors[0])
            found = _BOTH_BACKWARD(*args)
        by_way = (*found[1:6], *found[7:12])
        of_input = found[0] + found[6] if needs[0] else None
        kept = (g if need else None for g, need in zip(by_way, needs[1:11], strict=True))
        return (of_input, *kept, *(None,) * (_CELL - 10))


def _differentiable(*args: Any) -> tuple[Tensor, ...]:
    """The operator by itself: gradients flow too."""
    if not need_gradients(args):
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(_BOTH(*args))
    *inputs, save = args
    found = applied(BothDirections, *inputs)
    return tuple(found) if save else unsaved(found)


_library: Any = LIBRARY
_forward = _twice(_SINGLE, _way_and_save)
_backward = _twice(_SINGLE_BACKWARD, _way_backward)
fake_forward = _twice(ops._fake_forward, _way_and_save)
fake_backward = _twice(ops._fake_backward, _way_backward)
for _op, _run, _fake, _rule in (
    (_BOTH, _forward, fake_forward, _batched(_SINGLE, batching.forward, _way_and_save)),
    (
        _BOTH_BACKWARD,
        _backward,
        fake_backward,
        _batched(_SINGLE_BACKWARD, batching.backward, _way_backward),
    ),
):
    _name = _op._schema.name
    _library.impl(_name.removeprefix("fastrnn::"), _run, "CompositeExplicitAutograd")
    torch.library.register_fake(_name, _fake)
    torch.library.register_vmap(_name, _rule)
_library.impl("recurrence_both", _differentiable, "Autograd")


def side_by_side(cell: str, input: Tensor, ways: Sequence[dict[str, Any]]) -> bool:
    """Whether `run_both` takes a layer, and its device gains by it.

    Args:
        cell: a key of `CELLS`.
        input: the layer's.
        ways: what each direction passes to `functional.run` besides input and state.
    """
    if input.device.type not in ("cpu", "cuda") or cell not in COMPILED or input.numel() == 0:
        return False
    if lower_dtype(input) is not None or not set(ways[0]) <= {*WEIGHTS, *_ROWS}:
        return False
    return chosen(input) == "native"


def run_both(
    cell: str,
    input: Tensor,
    states: Sequence[tuple[Tensor, ...]],
    ways: Sequence[dict[str, Any]],
    batch_sizes: Tensor | None,
    return_cells: bool,
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """`functional.run` of both directions; arguments of `side_by_side`, and each one's S states."""
    padded, steps = batch_sizes is None, input.shape[:2]
    if batch_sizes is None:
        batch_sizes = _arguments.padded_sizes(input)
    rates = _arguments.rates("recurrence", ways[0].get("zoneout", 0.0), CELLS[cell].states)
    resets = (way.get("resets") for way in ways)
    args = (
        input.flatten(0, 1) if padded else input,
        *(
            t
            for state, way in zip(states, ways, strict=True)
            for t in (torch.stack(state), *map(way.get, WEIGHTS))
        ),
        batch_sizes,
        *(None if r is None else r.flatten() for r in resets),
        *(way.get("seed") for way in ways),
        *(ways[0].get("sequences"), list(rates or ()), cell),
    )
    if by_functions():
        found = applied(BothDirections, *args)
    else:
        found = below_autograd(_BOTH, *args, return_cells)
    results = []
    for output, state_n, cells_, _ in (found[:4], found[4:]):
        every = cells_[0] if return_cells else None
        if padded:
            output = output.unflatten(0, steps)
            every = None if every is None else every.unflatten(0, steps)
        results.append((output, state_n, every))
    return results
