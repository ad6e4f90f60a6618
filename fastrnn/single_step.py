"""One step of a recurrent network: drop-in modules for torch.nn's cells."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fastrnn import _checks
from fastrnn._arguments import WEIGHTS
from fastrnn._recurrent import Device, Recurrent, Tensors, unwrap
from fastrnn.cells import CELLS
from fastrnn.functional import run
from fastrnn.plain import run_layers
from fastrnn.wavefront import at_once


class SingleStep(Recurrent):
    """One step of one layer."""

    _shown: ClassVar[dict[str, object]] = {
        "bias": True,
        "nonlinearity": "tanh",
        "reset_after": True,
    }
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(
        self,
        gates: int,
        input_size: int,
        hidden_size: int,
        bias: bool,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        # torch.nn takes numpy's ints here and for `num_layers`, and for no other size.
        input_size = _checks.index("input_size", input_size)
        hidden_size = _checks.index("hidden_size", hidden_size)
        _checks.not_negative("input_size", input_size)
        _checks.not_negative("hidden_size", hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = gates * hidden_size
        shapes = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, hidden_size),
            "bias_ih": (rows,) if bias else None,
            "bias_hh": (rows,) if bias else None,
        }
        for name, shape in shapes.items():
            empty = None if shape is None else torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, None if empty is None else nn.Parameter(empty))
        self.reset_parameters()

    def forward(self, input: Tensor, hx: Tensor | Tensors | None = None) -> Tensor | Tensors:
        """Run one step.

        Args:
            input: [B, I] or [I], in the weights' dtype.
            hx: the state before the step, [B, H] or [H]; an LSTM's is a pair (h_0, c_0);
                default None: zeros.

        Returns:
            The state after the step, laid out as `hx`.

        Raises:
            ValueError, RuntimeError, TypeError: an argument does not fit, as in torch.nn.
        """
        op, cell = type(self).__name__, self.cell_name
        states: Tensors = ()
        weights = self._read(WEIGHTS)
        _checks.cell_input(op, input, weights[0], self.input_size)
        if hx is not None:
            states = _checks.as_states("lstm_cell", hx, self._states, TypeError)
            _checks.cell_states(op, states, input, self.hidden_size)
        batched, present = input.dim() == 2, [weight for weight in weights if weight is not None]
        rows = input if batched else input.unsqueeze(0)  # [B, I]
        if not batched:
            states = tuple(state.unsqueeze(0) for state in states)
        if self.hidden_size > 0 and len(present) != 3 and at_once(cell, input, [present]):
            _, last = run_layers(cell, rows, states, [present], self.hidden_size)
            if batched:
                return unwrap(last)
        else:
            zeros = (self._states, rows.size(0), self.hidden_size)
            _, ends, _ = run(cell, rows.unsqueeze(0), states or rows.new_zeros(zeros), *weights)
            last = tuple(ends)
        # No views: callers may change them in place (`h.detach_()`).
        return unwrap(tuple((s if batched else s.squeeze(0)).clone() for s in last))


class RNNCell(SingleStep):
    """An Elman step, as `torch.nn.RNNCell`.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether it has biases; default True.
        nonlinearity: "tanh" (default) or "relu".
        device: of the parameters; default None: torch's default.
        dtype: of the parameters; default None: torch's default.

    Raises:
        RuntimeError, TypeError: an argument is impossible, as in torch.nn.

    Source: Elman 1990.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        gates = CELLS[_elman(nonlinearity)].gates
        super().__init__(gates, input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    @property
    def cell_name(self) -> str:
        """The key of `CELLS` that this module runs."""
        return _elman(self.nonlinearity)


class LSTMCell(SingleStep):
    """A long short-term memory step, as `torch.nn.LSTMCell`.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether it has biases; default True.
        device: of the parameters; default None: torch's default.
        dtype: of the parameters; default None: torch's default.

    Raises:
        RuntimeError, TypeError: an argument is impossible, as in torch.nn.

    Source: Hochreiter and Schmidhuber 1997, with Gers et al. 2000.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(CELLS["lstm"].gates, input_size, hidden_size, bias, device, dtype)

    @property
    def cell_name(self) -> str:
        """The key of `CELLS` that this module runs."""
        return "lstm"


class GRUCell(SingleStep):
    """A gated recurrent unit step, as `torch.nn.GRUCell`.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether it has biases; default True.
        device: of the parameters; default None: torch's default.
        dtype: of the parameters; default None: torch's default.
        reset_after: reset the product (torch's and cuDNN's way; default True), or the state
            before the product (the original).

    Raises:
        RuntimeError, TypeError: an argument is impossible, as in torch.nn.

    Source: Cho et al. 2014, eq. 5-8, for `reset_after=False`.
    """

    reset_after: bool = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        _checks.flag("reset_after", reset_after)
        super().__init__(CELLS["gru"].gates, input_size, hidden_size, bias, device, dtype)
        self.reset_after = reset_after

    @property
    def cell_name(self) -> str:
        """The key of `CELLS` that this module runs."""
        return "gru" if self.reset_after else "gru_reset_before"


def _elman(nonlinearity: str) -> str:
    """The cell of an activation."""
    name = f"rnn_{nonlinearity}"
    if name not in CELLS:
        raise RuntimeError(f"Unknown nonlinearity: {nonlinearity}. Select from 'tanh' or 'relu'.")
    return name
