"""The recurrent layers of a language model, with what acts between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import modules
from fastrnn.lm.config import ModelOptions
from fastrnn.lm.dropout import Dropout
from fastrnn.lm.transformer import Transformer

State = tuple[Tensor, ...]  # of every layer h, and after it an LSTM's c: [1, B, units] each
Layer = modules.RNN | modules.LSTM | modules.GRU


class RecurrentStack(nn.Module):
    """Recurrent layers one above the other, each a module of its own.

    Args:
        input_size: units of what the first layer reads.
        options: completed; its cell, sizes, regularisers and initial values.
    """

    def __init__(self, input_size: int, options: ModelOptions) -> None:
        widths = units(options)
        below = [input_size, *widths[:-1]]
        super().__init__()
        self.layers = nn.ModuleList(
            _layer(i, h, options) for i, h in zip(below, widths, strict=True)
        )
        self.between = Dropout(options.dropouts[1], options.variational)
        self.residual = options.residual
        self.states = 2 if options.cell == "lstm" else 1
        for layer in self.layers:
            _initialise(layer, options)

    def forward(
        self,
        input: Tensor,
        state: State | None,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Run all layers.

        Args:
            input: [T, B, input_size].
            state: what the call before returned; None: zeros.
            resets: bool [T, B], steps before which the state is zeroed; default None.
            lengths: CPU int64 [B], where each column ends; default None: at T.

        Returns:
            The last layer's output [T, B, units], and the states after each column's last step.
        """
        options: dict[str, Any] = {"resets": resets, "lengths": lengths}
        after: list[Tensor] = []
        rows = input
        for k, layer in enumerate(self.layers):
            given: Any = None
            if state is not None:
                given = state[self.states * k : self.states * (k + 1)]
                given = given if self.states == 2 else given[0]
            below = rows if k == 0 else self.between(rows)
            output, last = layer(below, given, **options)
            after.extend(last if isinstance(last, tuple) else (last,))
            adds = self.residual and k > 0 and output.shape == rows.shape
            rows = rows + output if adds else output
        return rows, tuple(after)


class TransformerStack(nn.Module):
    """Transformer layers in the place of recurrent ones.

    Nothing is carried from window to window in training. In evaluation the state is the embeddings
    last read, so that tokens can be read one by one.

    Args:
        options: completed; its sizes, heads, dropout and context.
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        assert options.context is not None
        self.context = options.context
        self.blocks = Transformer(
            options.hidden_size, options.num_layers, options.heads, dropout=options.dropouts[1]
        )

    def forward(
        self,
        input: Tensor,
        state: State | None,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """As `RecurrentStack`'s; what lies beyond `lengths` is behind all that counts."""
        if self.training:
            return self.blocks(input), ()
        read = torch.cat((state[0], input)) if state else input
        # No more places than in training, unless the input alone has more.
        read = read[-max(self.context, input.size(0)) :]
        return self.blocks(read)[-input.size(0) :], (read[-self.context :],)


def units(options: ModelOptions) -> list[int]:
    """Units of each layer, lowest first."""
    return [options.hidden_size] * (options.num_layers - 1) + [options.top_size]


def _layer(input_size: int, hidden_size: int, options: ModelOptions) -> Layer:
    more: dict[str, Any] = {
        "weight_dropout": options.dropout_weights,
        "layer_norm": options.layer_norm,
        "zoneout": options.zoneout,
    }
    sizes = (input_size, hidden_size)
    if options.cell == "lstm":
        more["zoneout"] = options.zoneouts
        return modules.LSTM(*sizes, **more)
    if options.cell.startswith("gru"):
        return modules.GRU(*sizes, reset_after=options.cell == "gru", **more)
    return modules.RNN(*sizes, nonlinearity=options.cell.removeprefix("rnn-"), **more)


@torch.no_grad()
def _initialise(layer: nn.Module, options: ModelOptions) -> None:
    """Change what the layer's constructor drew, as `options.init` says."""
    for name, parameter in layer.named_parameters():
        if options.init == "zaremba" and name.startswith(("weight", "bias")):
            nn.init.uniform_(parameter, -options.init_range, options.init_range)
        elif options.init == "course" and name.startswith("bias_hh"):
            nn.init.zeros_(parameter)
            parameter.requires_grad_(False)  # a gate has one bias: bias_ih
