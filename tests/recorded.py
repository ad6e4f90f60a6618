"""A stand-in for CUDA graphs on the CPU: operators recorded with their tensors, and run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")
Call = tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]


def tensors_of(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def written(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operator changes."""
    found = []
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else options.get(argument.name)
            found += tensors_of(value)
    return found


class _Recording(TorchDispatchMode):
    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self.calls, self.before = calls, {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host waits for the device inside a recording")
        for tensor in written(function, args, kwargs):
            storage = tensor.untyped_storage()
            self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, tensors_of(result)))
        return result


class Recorded:
    """`fastrnn.lm.captured.Graph` for the CPU.

    As with a CUDA graph nothing in Python runs again, tensors stay where they were, and what was
    recorded has not been done; random numbers go on.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.calls: list[Call] = []
        self.warmed = self.replays = 0

    def warm_up(self, work: Callable[[], Result]) -> Result:
        self.warmed += 1
        return work()

    def record(self, work: Callable[[], None]) -> None:
        generator = torch.get_rng_state()
        with _Recording(self.calls) as recording:
            work()
        for storage, before in recording.before.values():
            storage.copy_(before)
        torch.set_rng_state(generator)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for function, args, options, outputs in self.calls:
            inputs = {t.untyped_storage().data_ptr() for t in tensors_of((args, options))}
            found = tensors_of(function(*args, **options))
            for output, new in zip(outputs, found, strict=True):
                if output.untyped_storage().data_ptr() not in inputs:  # neither a view nor changed
                    output.copy_(new)
