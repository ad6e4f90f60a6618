"""What RNN, LSTM and GRU share: parameters, argument checks, the walk over layers."""

from __future__ import annotations

import math
import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _checks
from fastrnn.cells import CELLS
from fastrnn.functional import recurrence

Pair = tuple[Tensor, Tensor]
Tensors = tuple[Tensor, ...]
Device = torch.device | str | int | None


class Recurrent(nn.Module):
    """A module that runs one of `CELLS`."""

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

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), as torch.nn does."""
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0.0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        for name, default in self._shown.items():
            value = getattr(self, name, default)
            if value != default:
                text += f", {name}={value}"
        return text


class Layers(Recurrent):
    """Stacked layers of one or two directions over whole sequences."""

    _shown: ClassVar[dict[str, object]] = {
        "proj_size": 0,
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
        "reset_after": True,
    }

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        _checks.probability(dropout)
        _checks.flag("bias", bias)
        _checks.flag("batch_first", batch_first)
        _checks.positive("input_size", input_size)
        _checks.positive("hidden_size", hidden_size)
        _checks.positive("num_layers", num_layers)
        _checks.projection(proj_size, hidden_size)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={num_layers}",
                stacklevel=3,
            )
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        rows = CELLS[self.cell_name].gates * hidden_size
        width = proj_size or hidden_size
        directions = 2 if bidirectional else 1
        for k, names in enumerate(self._all_weights):
            shapes = {
                "weight_ih": (rows, input_size if k < directions else width * directions),
                "weight_hh": (rows, width),
                "bias_ih": (rows,),
                "bias_hh": (rows,),
                "weight_hr": (proj_size, hidden_size),
            }
            for kind, name in zip(self._kinds, names, strict=True):
                empty = torch.empty(shapes[kind], device=device, dtype=dtype)
                self.register_parameter(name, nn.Parameter(empty))
        self.reset_parameters()

    @property
    def cell_name(self) -> str:
        """The key of `CELLS` that this module runs."""
        return self.mode.lower()

    @property
    def _kinds(self) -> list[str]:
        """What each layer and direction holds, in torch's order."""
        kinds = ["weight_ih", "weight_hh"]
        if self.bias:
            kinds += ["bias_ih", "bias_hh"]
        return [*kinds, "weight_hr"] if self.proj_size else kinds

    @property
    def _all_weights(self) -> list[list[str]]:
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        ends = [f"_l{layer}{suffix}" for layer in range(self.num_layers) for suffix in suffixes]
        return [[kind + end for kind in self._kinds] for end in ends]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters, one list per layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [weight for weights in self.all_weights for weight in weights]

    def flatten_parameters(self) -> None:
        """Do nothing: only cuDNN needs its weights side by side."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | Pair | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor | Pair]:
        """Run the layers over a batch of sequences.

        Args:
            input: [T, B, I], [B, T, I] with `batch_first`, [T, I], or a PackedSequence, in the
                weights' dtype.
            hx: the states before the first step, [L*D, B, H] (D directions; [L*D, H] for
                unbatched input); an LSTM's are a pair (h_0, c_0), whose h_0 has `proj_size`
                units if that is set; default None: zeros.

        Returns:
            The last layer's output, laid out as `input` with D*H units, and the states after the
            last step, laid out as `hx`.

        Raises:
            ValueError, RuntimeError, TypeError: an argument does not fit, as in torch.nn.
        """
        weights = self.all_weights  # read once, here: parametrizations compute on every access
        states = None if hx is None else _checks.as_states("lstm", hx, self._states, RuntimeError)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, states, weights)
        _checks.layer_input(type(self).__name__, input, states)
        batched = input.dim() == 3
        rows = input if batched else input.unsqueeze(1)  # [T, B, I]
        if batched and self.batch_first:
            rows = input.transpose(0, 1)
        if states is not None and not batched:
            states = tuple(s.unsqueeze(1) for s in states)
        states = self._first(rows, states, rows.size(1), weights)
        output, states = self._run(rows, states, weights)
        if not batched:
            return output.squeeze(1), unwrap(tuple(s.squeeze(1) for s in states))
        return output.transpose(0, 1) if self.batch_first else output, unwrap(states)

    def _forward_packed(
        self, input: PackedSequence, states: Tensors | None, weights: list[list[Tensor]]
    ) -> tuple[PackedSequence, Tensor | Pair]:
        rows, batch_sizes, order, inverse = input
        if rows.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {rows.dim()}")
        states = self._first(rows, states, int(batch_sizes[0]), weights)
        # Packed rows are sorted by length, the caller's states are not.
        output, states = self._run(rows, _permute(states, order), weights, batch_sizes)
        packed = PackedSequence(output, batch_sizes, order, inverse)
        return packed, unwrap(_permute(states, inverse))

    def _first(
        self, rows: Tensor, states: Tensors | None, batch: int, weights: list[list[Tensor]]
    ) -> Tensors:
        """Check that rows [T, B, I] or [N, I] and states [L*D, B, width] fit; default states."""
        _checks.layer_rows(rows, weights[0][0], self.input_size)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        shapes = [(len(weights), batch, width) for width in widths[: self._states]]
        if states is None:
            return tuple(rows.new_zeros(shape) for shape in shapes)
        _checks.layer_states(states, shapes, rows)
        return states

    def _run(
        self,
        rows: Tensor,
        states: Tensors,
        weights: list[list[Tensor]],
        batch_sizes: Tensor | None = None,
    ) -> tuple[Tensor, Tensors]:
        """Every layer over rows [T, B, I] or [N, I], from states [L*D, B, width]."""
        last: list[Tensor | Pair] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                rows = F.dropout(rows, self.dropout, self.training)
            outputs = []
            for reverse in (False, True) if self.bidirectional else (False,):
                k = len(last)
                first = tuple(s[k] for s in states)
                output, state_n = recurrence(
                    self.cell_name,
                    rows,
                    (first[0], first[1]) if self.proj_size else torch.stack(first),
                    batch_sizes=batch_sizes,
                    reverse=reverse,
                    **dict(zip(self._kinds, weights[k], strict=True)),
                )
                outputs.append(output)
                last.append(state_n)
            rows = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
        # Copies, so that callers may change them in place (`h_n.detach_()`).
        return rows, tuple(torch.stack([n[s] for n in last]) for s in range(len(states)))


def _permute(states: Tensors, order: Tensor | None) -> Tensors:
    """Reorder the sequences of states [L*D, B, width]."""
    return states if order is None else tuple(s.index_select(1, order) for s in states)


def unwrap(states: Tensors) -> Tensor | Pair:
    """The states as callers see them: one tensor, or an LSTM's pair."""
    return states[0] if len(states) == 1 else (states[0], states[1])
