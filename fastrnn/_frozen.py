"""Layers whose weights may be packed for inference."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastrnn._stack import Stack
from fastrnn.packed import Packed, pack, refusal

Self = TypeVar("Self", bound="Freezable")


class Frozen(NamedTuple):
    """What `freeze` keeps: the weights as it read them, and their packs, by layer and direction."""

    weights: list[list[Tensor]]
    packs: list[Packed]


class Freezable(Stack):
    """Stacked layers that can hold packed weights for inference, and lose them when they train.

    Packs are never found by a tensor's address or version: updates through `.data` leave both as
    they are. So it takes a call to make them, and whatever may change a weight drops them.
    """

    _frozen: Frozen | None = None

    def freeze(self: Self) -> Self:
        """Pack the weights once, for calls without gradients; the module goes into evaluation.

        `unfreeze`, `train`, `eval`, loading a state, moving and casting drop the packs, and
        copies and pickles have none. A change of a weight in place is not seen until then.

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
        self._frozen = Frozen(weights, packs)
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
        for names, weights in zip(self._all_weights, frozen.weights, strict=True):
            for name, weight in zip(names, weights, strict=True):
                # A parametrized weight is none of the parameters.
                if self._parameters.get(name, weight) is not weight:
                    raise RuntimeError(
                        f"{op}: {name} is not the parameter that freeze() packed: "
                        "call freeze() again"
                    )

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
