"""What RNN, LSTM and GRU hold: options and parameters."""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from fastrnn import _checks
from fastrnn._arguments import Rates, rates
from fastrnn._recurrent import Device, Recurrent
from fastrnn._suggest import suggest
from fastrnn.cells import CELLS, LAYER_NORMED
from fastrnn.regularisers import LayerNorm


class Options(TypedDict, total=False):
    """What our layers can do beyond torch's; keyword arguments of every constructor.

    Args:
        zoneout: probability of a unit of h to keep its value for a step, in training; an LSTM
            also takes (of h, of c); in evaluation states mix in that proportion; default 0.
        weight_dropout: probability of zeroing an element of `weight_hh`, in training, drawn anew
            in every forward pass, the others scaled up; default 0.
        variational: `dropout` between layers draws one mask per sequence for all steps; default
            False.
        layer_norm: normalise the projections of input and state, and an LSTM's c on its way to h
            (LSTM without `proj_size`, GRU with `reset_after`); default False. Adds parameters
            `ln_ih_weight_l0`, `ln_hh_weight_l0`, and an LSTM's `ln_c_weight_l0`, `ln_c_bias_l0`.
        recompute: keep only each layer's inputs for the backward pass, which runs the layer once
            more; default False. The same bits; two layers keep at most about a fifth of the bytes
            between the passes, for 1.4 times the time, and a step's peak falls by a fifth: the
            backward pass holds one layer whole. No effect inside `torch.func` transforms.

    Source: Krueger et al. 2016 (zoneout), Wan et al. 2013 (weight dropout), Gal and Ghahramani
    2016 (variational), Ba et al. 2016 (layer_norm).
    """

    zoneout: Rates
    weight_dropout: float
    variational: bool
    layer_norm: bool
    recompute: bool


_WEIGHTS, _BIASES = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh")


def _names(kinds: tuple[str, ...], layers: int, both: bool) -> tuple[tuple[str, ...], ...]:
    """Of the parameters of each layer and direction."""
    suffixes = ("", "_reverse") if both else ("",)
    ends = [f"_l{layer}{suffix}" for layer in range(layers) for suffix in suffixes]
    return tuple(tuple(kind + end for kind in kinds) for end in ends)


_cached_names = cache(_names)  # which Dynamo warns of


class Stack(Recurrent):
    """Parameters of stacked layers of one or two directions."""

    _shown: ClassVar[dict[str, object]] = {
        "proj_size": 0,
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
        "reset_after": True,
        "zoneout": 0.0,
        "weight_dropout": 0.0,
        "variational": False,
        "layer_norm": False,
        "recompute": False,
    }
    # For modules that `accelerate` made: torch's hold none of these.
    zoneout: Rates = 0.0
    weight_dropout: float = 0.0
    variational: bool = False
    layer_norm: bool = False
    recompute: bool = False

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
        /,
        zoneout: Rates = 0.0,
        weight_dropout: float = 0.0,
        variational: bool = False,
        layer_norm: bool = False,
        recompute: bool = False,
        **unknown: object,
    ) -> None:
        super().__init__()
        if unknown:
            # Here, so that the message names the module whose constructor was called.
            own, name = type(self), next(iter(unknown))
            near = suggest(name, [*inspect.signature(own).parameters, *Options.__annotations__])
            raise TypeError(f"{own.__name__}() got an unexpected keyword argument {name!r}{near}")
        _checks.probability("dropout", dropout)
        _checks.flag("bias", bias)
        _checks.flag("batch_first", batch_first)
        _checks.switch("bidirectional", bidirectional)
        _checks.positive("input_size", input_size)
        _checks.positive("hidden_size", hidden_size)
        num_layers = _checks.index("num_layers", num_layers)
        _checks.positive("num_layers", num_layers)
        _checks.projection(proj_size, hidden_size)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={num_layers}",
                stacklevel=3,
            )
        _checks.probability("weight_dropout", weight_dropout)
        _checks.flag("variational", variational)
        _checks.flag("recompute", recompute)
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        op = type(self).__name__
        rates(op, zoneout, self._states)
        _checks.normalisation(op, self.cell_name in LAYER_NORMED, layer_norm, proj_size)
        self.zoneout = zoneout
        self.weight_dropout = float(weight_dropout)
        self.variational = variational
        self.layer_norm = layer_norm
        self.recompute = recompute
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
                "ln_ih_weight": (rows,),
                "ln_hh_weight": (rows,),
                "ln_c_weight": (hidden_size,),
                "ln_c_bias": (hidden_size,),
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
    def _kinds(self) -> tuple[str, ...]:
        """What each layer and direction holds, in torch's order, then its gains."""
        kinds: tuple[str, ...] = _WEIGHTS + _BIASES if self.bias else _WEIGHTS
        if self.proj_size:
            kinds += ("weight_hr",)
        if self.layer_norm:
            kinds += LayerNorm._fields if self.cell_name == "lstm" else LayerNorm._fields[:2]
        return kinds

    @property
    def _all_weights(self) -> tuple[tuple[str, ...], ...]:
        find = _names if torch.compiler.is_compiling() else _cached_names
        return find(self._kinds, self.num_layers, self.bidirectional)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters, one list per layer and direction."""
        try:
            return [self._read(names) for names in self._all_weights]
        except AttributeError as error:  # of a property, Module.__getattr__ would say it of that
            raise RuntimeError(f"{type(self).__name__}: a weight is missing: {error}") from error

    def _widths(self) -> tuple[int, ...]:
        """Units of each state."""
        return (self.proj_size or self.hidden_size, *(self.hidden_size,) * (self._states - 1))

    def _named(self, weights: list[list[Tensor]]) -> list[dict[str, Any]]:
        """`all_weights` as arguments of `recurrence`."""
        every = []
        for each in weights:
            named: dict[str, Any] = dict(zip(self._kinds, each, strict=True))
            if self.layer_norm:
                gains = [named.pop(name) for name in LayerNorm._fields if name in named]
                named["layer_norm"] = LayerNorm(*gains)
            every.append(named)
        return every

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [weight for weights in self.all_weights for weight in weights]

    def flatten_parameters(self) -> None:
        """Do nothing: only cuDNN needs its weights side by side."""
