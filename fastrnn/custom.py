"""Layers of any cell, a user's own among them."""

from __future__ import annotations

from typing import Unpack

import torch

from fastrnn._layers import Layers
from fastrnn._recurrent import Device
from fastrnn._stack import Options
from fastrnn.cells import CELLS


class RNNOf(Layers):
    """Recurrent layers of a cell of `CELLS`, as `torch.nn.RNN` otherwise.

    Args:
        cell: its name; `fastrnn.cells.register` adds one of your own.
        input_size: I.
        hidden_size: H.
        num_layers: L; default 1.
        bias: whether the layers have biases; default True.
        batch_first: padded input and output are [B, T, ...]; default False: [T, B, ...].
        dropout: probability of zeroing an output between layers, in training; default 0.
        bidirectional: add layers that run from the end; default False.
        device: of the parameters; default None: torch's default.
        dtype: of the parameters; default None: torch's default.
        options: see `Options`.

    Raises:
        ValueError, TypeError: an argument is impossible.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(cell, str) or cell not in CELLS:
            raise ValueError(f"RNNOf: cell must be one of {list(CELLS)}, got {cell!r}")
        if "proj_size" in options:
            raise TypeError(
                "RNNOf() got an unexpected keyword argument 'proj_size': no cell but "
                "fastrnn.LSTM's has a projection"
            )
        super().__init__(
            cell,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            **options,
        )

    @property
    def cell_name(self) -> str:
        """The key of `CELLS` that this module runs."""
        if self.mode not in CELLS:  # a module that was saved knows its cell by name
            raise RuntimeError(f"RNNOf: cell {self.mode!r} must be registered in this process")
        return self.mode

    def extra_repr(self) -> str:
        return f"{self.mode!r}, {super().extra_repr()}"
