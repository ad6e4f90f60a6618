"""Autocast: which dtypes a recurrence takes and gives inside `torch.autocast`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Run = TypeVar("Run", bound=Callable[..., tuple[Any, ...]])


def lower_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for where `tensor` goes in; None where it asks for none.

    Like torch's, it leaves float64 and complex numbers alone.
    """
    if not torch._C._is_any_autocast_enabled():
        return None
    kind = tensor.device.type
    if tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return None
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def lowered(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that autocast asks for."""
    dtype = lower_dtype(tensor)
    return tensor if dtype is None else tensor.to(dtype)


def _to(value: Any, dtype: torch.dtype) -> Any:
    """A tensor, or a tuple of them, in another floating dtype; anything else as it is."""
    if isinstance(value, tuple):
        cast = [_to(item, dtype) for item in value]
        return value._make(cast) if hasattr(value, "_make") else tuple(cast)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value if value.dtype == torch.float64 else value.to(dtype)


def autocasts(run: Run) -> Run:
    """Give `functional.run` torch's behaviour inside autocast.

    Any mix of dtypes goes in. The work is done in autocast's dtype; in float32 where the CPU
    kernels have nothing lower (float16, a projection of h, layer norm); and packed weights stay as
    they are. What comes out has the dtype it has in torch.nn's steps: a product's (an RNN's h, a
    projected h) is autocast's, a sum with the state before it (the others) is promoted to the
    state's.
    """

    @wraps(run)
    def wrapped(cell: str, input: Tensor, state: Any, *args: Any, **options: Any) -> Any:
        lower = lower_dtype(input)
        if lower is None:
            return run(cell, input, state, *args, **options)
        kind = input.device.type
        exact = lower == torch.float16 or any(
            options.get(name) is not None for name in ("weight_hr", "layer_norm")
        )
        work = torch.float32 if kind == "cpu" and exact else lower
        if "packed" in options:  # panels cannot be cast
            work = options["packed"].weights.dtype
        with torch.autocast(kind, enabled=False):
            cast = {name: _to(value, work) for name, value in options.items()}
            output, state_n, cells = run(
                cell, _to(input, work), _to(state, work), *_to(args, work), **cast
            )
        given = [s.dtype for s in state] if isinstance(state, tuple) else [state.dtype]
        promoted = [torch.promote_types(lower, dtype) for dtype in given]
        if cell.startswith("rnn_") or options.get("weight_hr") is not None:
            promoted[0] = lower
        if len(set(promoted)) == 1 and isinstance(state_n, Tensor):
            state_n = state_n.to(promoted[0])
        else:
            state_n = tuple(s.to(d) for s, d in zip(state_n, promoted, strict=True))
        cells = None if cells is None else cells.to(promoted[-1])
        return output.to(promoted[0]), state_n, cells

    return wrapped  # type: ignore[return-value]
