"""Layers whose weights may be packed for inference."""

from __future__ import annotations

from operator import is_
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastrnn._stack import Stack
from fastrnn.packed import Packed, pack, refusal

Self = TypeVar("Self", bound="Freezable")


class Held(NamedTuple):
    """What one of a module's registries held when the module was frozen."""

    prefix: str
    registry: dict[str, Any]
    then: dict[str, Any]
    values: list[Any]


class Frozen(NamedTuple):
    """What `freeze` keeps: the weights as it read them, and their packs, by layer and direction.

    Also what the weights were made of: parameters, and of those that are parametrized or pruned
    the originals, masks and modules.
    """

    weights: list[list[Tensor]]
    packs: list[Packed]
    held: list[Held]


class Freezable(Stack):
    """Stacked layers that can hold packed weights for inference, and lose them when they train.

    Packs are never found by a tensor's address or version: updates through `.data` leave both as
    they are. So it takes a call to make them, and whatever may change a weight drops them.
    """

    _frozen: Frozen | None = None

    def freeze(self: Self) -> Self:
        """Pack the weights once, for calls without gradients; the module goes into evaluation.

        `unfreeze`, `train`, `eval`, loading a state, moving, casting and initialising drop the
        packs, and copies and pickles have none. A change of a weight in place is not seen until
        then; another weight in its place, a parametrization or a mask is an error.

        Returns:
            The module itself.

        Raises:
            RuntimeError: the native backend cannot run this module.
        """
        op = type(self).__name__
        self.eval()
        with torch.no_grad():
            weights = self.all_weights
        reason = self.packing_refusal()
        if reason is not None:
            raise RuntimeError(f"{op}.freeze: the native backend must run the module: {reason}")
        packs = [pack(self.cell_name, **named) for named in self._named(weights)]
        held = [
            Held(f"{path}." if path else "", registry, dict(registry), list(registry.values()))
            for path, part in self.named_modules()
            for registry in (part._parameters, part._buffers, part._modules)
        ]
        self._frozen = Frozen(weights, packs, held)
        return self

    def unfreeze(self: Self) -> Self:
        """Drop the packed weights; returns the module itself."""
        self._frozen = None
        return self

    def packing_refusal(self) -> str | None:
        """Why this module's weights cannot be packed; None if they can."""
        options = {"proj_size": self.proj_size > 0, "layer_norm": self.layer_norm}
        used = [name for name, on in options.items() if on]
        return refusal(self.cell_name, next(self.parameters()), used)

    def _check_frozen(self, frozen: Frozen) -> None:
        """Raise unless the packs may stand in for the weights in this call."""
        op = type(self).__name__
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{op}: a frozen module has no gradients: call it under torch.no_grad(), "
                "or unfreeze() it"
            )
        if torch.compiler.is_exporting():
            raise RuntimeError(f"{op}: packed weights are for this process: unfreeze() to export")
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError(f"{op}: packed weights are for this process: unfreeze() to trace")
        for prefix, registry, then, values in frozen.held:
            if len(registry) != len(values) or not all(map(is_, registry.values(), values)):
                both = then | registry
                name = next(n for n in both if registry.get(n, both) is not then.get(n, both))
                raise RuntimeError(
                    f"{op}: {prefix}{name} is not what freeze() packed: call freeze() again"
                )

    def reset_parameters(self) -> None:
        """Draw every parameter anew, and drop packed weights."""
        self._frozen = None
        super().reset_parameters()

    def train(self: Self, mode: bool = True) -> Self:
        """Set training or evaluation mode, and drop packed weights."""
        self._frozen = None
        return super().train(mode)

    def _apply(self: Self, fn: Any, recurse: bool = True) -> Self:
        self._frozen = None
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def _load_from_state_dict(self, *args: Any) -> None:
        self._frozen = None
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_frozen", None)
        return state
