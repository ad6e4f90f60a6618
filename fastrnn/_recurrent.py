"""What every recurrent module has: a cell, initialisation, a repr."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastrnn import _checks
from fastrnn.cells import CELLS

Tensors = tuple[Tensor, ...]
Pair = Tensors  # an LSTM's two
Device = torch.device | str | int | None


class Recurrent(nn.Module):
    """A module that runs one of `CELLS`."""

    __prepare_scriptable__ = _checks.no_script
    _shown: ClassVar[dict[str, object]]  # options of the repr, with the values it leaves out
    input_size: int
    hidden_size: int

    @property
    def cell_name(self) -> str:
        """The key of `CELLS` that this module runs."""
        raise NotImplementedError

    @property
    def _states(self) -> int:
        return CELLS[self.cell_name].states

    def _read(self, names: Sequence[str]) -> list[Any]:
        """The parameters of these names, or what they are computed from."""
        # Past Module.__getattr__, a microsecond each; what is parametrized is not among these.
        plain: dict[str, Any] = self._parameters
        return [plain[name] if name in plain else getattr(self, name) for name in names]

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), as torch.nn does.

        Gains and biases of layer normalisation become ones and zeros.
        """
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0.0
        for name, parameter in self.named_parameters():
            if name.startswith("ln_"):
                nn.init.constant_(parameter, float("weight" in name))
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        for name, default in self._shown.items():
            value = getattr(self, name, default)
            if value != default:
                text += f", {name}={value}"
        return text


def by_state(ends: Sequence[Tensor | Tensors]) -> Tensors:
    """The last states of every layer and direction, [S, B, H] or S tensors: S of [L*D, B, width].

    No views, so that callers may change them in place (`h_n.detach_()`).
    """
    stacked = [end for end in ends if isinstance(end, Tensor)]
    if not stacked:
        return tuple(torch.stack(every) for every in zip(*ends, strict=True))
    joined = stacked[0] if len(stacked) == 1 else torch.stack(stacked, 1).flatten(0, 1)
    states = stacked[0].size(0)
    return (joined,) if states == 1 else torch.unsafe_chunk(joined, states)


def unwrap(states: Tensors) -> Tensor | Tensors:
    """The states as callers see them: one tensor, or an LSTM's pair."""
    return states[0] if len(states) == 1 else states
