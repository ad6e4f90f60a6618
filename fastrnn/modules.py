"""Drop-in modules for torch.nn's recurrent layers; `accelerate` puts them into a model."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import nn

from fastrnn import _checks
from fastrnn._layers import Layers
from fastrnn._recurrent import Device
from fastrnn._stack import Options
from fastrnn._swap import swap
from fastrnn.custom import RNNOf
from fastrnn.single_step import GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "Options", "RNN", "RNNCell", "RNNOf", "accelerate"]


def _no_projection(proj_size: int | None) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class RNN(Layers):
    """Elman recurrent layers, as `torch.nn.RNN`.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L; default 1.
        nonlinearity: "tanh" (default) or "relu".
        bias: whether the layers have biases; default True.
        batch_first: padded input and output are [B, T, ...]; default False: [T, B, ...].
        dropout: probability of zeroing an output between layers, in training; default 0.
        bidirectional: add layers that run from the end; default False.
        device: of the parameters; default None: torch's default.
        dtype: of the parameters; default None: torch's default.
        options: see `Options`.

    Raises:
        ValueError, TypeError: an argument is impossible, as in torch.nn.

    Source: Elman 1990, with one activation for hidden and output.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        _no_projection(proj_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
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
        self.nonlinearity = nonlinearity


class LSTM(Layers):
    """Long short-term memory layers, as `torch.nn.LSTM`.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L; default 1.
        bias: whether the layers have biases; default True.
        batch_first: padded input and output are [B, T, ...]; default False: [T, B, ...].
        dropout: probability of zeroing an output between layers, in training; default 0.
        bidirectional: add layers that run from the end; default False.
        proj_size: P, units that h is projected to; default 0: no projection.
        device: of the parameters; default None: torch's default.
        dtype: of the parameters; default None: torch's default.
        options: see `Options`.

    Raises:
        ValueError, TypeError: an argument is impossible, as in torch.nn.

    Source: Hochreiter and Schmidhuber 1997, with Gers et al. 2000; Sak et al. 2014 (projection).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            **options,
        )


class GRU(Layers):
    """Gated recurrent unit layers, as `torch.nn.GRU`.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L; default 1.
        bias: whether the layers have biases; default True.
        batch_first: padded input and output are [B, T, ...]; default False: [T, B, ...].
        dropout: probability of zeroing an output between layers, in training; default 0.
        bidirectional: add layers that run from the end; default False.
        device: of the parameters; default None: torch's default.
        dtype: of the parameters; default None: torch's default.
        reset_after: reset the product (torch's and cuDNN's way; default True), or the state
            before the product (the original).
        options: see `Options`.

    Raises:
        ValueError, TypeError: an argument is impossible, as in torch.nn.

    Source: Cho et al. 2014, eq. 5-8, for `reset_after=False`.
    """

    reset_after: bool = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        proj_size: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        _no_projection(proj_size)
        _checks.flag("reset_after", reset_after)
        _checks.normalisation("GRU", reset_after, options.get("layer_norm", False), 0)
        super().__init__(
            "GRU",
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
        self.reset_after = reset_after

    @property
    def cell_name(self) -> str:
        """The key of `CELLS` that this module runs."""
        return "gru" if self.reset_after else "gru_reset_before"


def accelerate(model: nn.Module) -> nn.Module:
    """Replace every torch.nn recurrent layer and cell of a model by ours, in place.

    The replacements hold the very same parameters, buffers, hooks and options. Subclasses, and
    modules whose call was patched or compiled (by TorchScript, too), keep running as they are and
    are named in a warning.

    Args:
        model: any module.

    Returns:
        The model, or the replacement of a model that is itself a recurrent module.

    Raises:
        TypeError: `model` is not a module.
    """
    return swap(
        model,
        {
            nn.RNN: RNN,
            nn.LSTM: LSTM,
            nn.GRU: GRU,
            nn.RNNCell: RNNCell,
            nn.LSTMCell: LSTMCell,
            nn.GRUCell: GRUCell,
        },
    )
