"""What a cell is, and the trial that a user's own cell has to pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell with pointwise gate maths.

    Args:
        gates: G, blocks of H rows in each weight.
        states: S, tensors carried from step to step; the first is the output.
        reserve: R, blocks of H values a step keeps for the backward pass.
        forward: (x, h, prev) -> (next, reserve); x and h are G tensors [B, H] each, prev and
            next S tensors.
        operand_gates: gates computed before `operand`; 0 for a cell of one product a step.
        operand: (x, h, prev) -> (second operand [B, H], reserve) over the first `operand_gates`
            gates; the other gates then multiply the operand instead of the state, and `forward`
            takes the reserve so far as a fourth argument.
    """

    gates: int
    states: int
    reserve: int
    forward: Callable[..., tuple[Tensors, Tensors]]
    operand_gates: int = 0
    operand: Callable[[Tensors, Tensors, Tensors], tuple[Tensor, Tensors]] | None = None


_SHAPE = (2, 3)  # [B, H] of the trial


def _check_sizes(cell: Cell) -> None:
    lowest = {"gates": 1, "states": 1, "reserve": 0, "operand_gates": 0}
    for name, low in lowest.items():
        size = getattr(cell, name)
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"register: {name} must be an int, got {type(size).__name__}")
        if size < low:
            raise ValueError(f"register: {name} must be at least {low}, got {size}")
    for name in ("forward", "operand"):
        function = getattr(cell, name)
        if not callable(function) and (name == "forward" or function is not None):
            raise TypeError(f"register: {name} must be callable, got {type(function).__name__}")
    if (cell.operand is None) != (cell.operand_gates == 0):
        raise ValueError("register: operand and operand_gates must be given together")
    if cell.operand_gates >= cell.gates:
        raise ValueError(
            f"register: operand_gates must be below gates = {cell.gates}, got {cell.operand_gates}"
        )


def _called(name: str, function: Callable[..., object], *args: object) -> tuple[object, object]:
    """The two things that a cell's function returns."""
    try:
        result = function(*args)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"register: {name} failed on tensors {list(_SHAPE)}: {line}") from error
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"register: {name} must return a pair, got {type(result).__name__}")
    return result


def _checked(name: str, found: object, count: int | None) -> Tensors:
    """`found` as `count` tensors (any number if None) of the trial's shape and dtype."""
    if not isinstance(found, tuple):
        raise TypeError(f"register: {name} must be a tuple of tensors, got {type(found).__name__}")
    if count is not None and len(found) != count:
        raise ValueError(f"register: {name} must be {count} tensors, got {len(found)}")
    for tensor in found:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"register: {name} must hold tensors, got {type(tensor).__name__}")
        if tensor.shape != _SHAPE or tensor.dtype != torch.float64:
            raise ValueError(
                f"register: {name} must hold torch.float64 {list(_SHAPE)} for such arguments, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
    return found


@torch.inference_mode(False)
@torch.enable_grad()
def try_out(cell: Cell) -> None:
    """Call a cell's functions once on small tensors.

    Args:
        cell: as given by a user.

    Raises:
        TypeError: a size, a function, or what a function returns is of another type.
        ValueError: a size is impossible, or a function fails, does not return as many tensors as
            the sizes say, or of another shape or dtype, or no gradient can flow through it.
    """
    _check_sizes(cell)

    def take(count: int) -> Tensors:
        # Not random numbers: a registration leaves the generator alone.
        values = torch.linspace(-1, 1, 6, dtype=torch.float64, device="cpu").view(_SHAPE)
        return tuple(values.clone().requires_grad_() for _ in range(count))

    prev, first = take(cell.states), cell.operand_gates
    rest = cell.gates - first
    so_far: list[Tensors] = []
    if cell.operand is not None:
        operand, reserve = _called("operand", cell.operand, take(first), take(first), prev)
        _checked("operand's operand", (operand,), 1)
        so_far = [_checked("operand's reserve", reserve, None)]
    next_, reserve = _called("forward", cell.forward, take(rest), take(rest), prev, *so_far)
    states = _checked("forward's next states", next_, cell.states)
    _checked("forward's reserve", reserve, cell.reserve)
    if not states[0].requires_grad:
        raise ValueError("register: forward must be differentiable, got a detached state")
