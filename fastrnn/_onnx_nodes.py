"""How our modules look in ONNX, put into the graph while torch traces a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import _checks
from fastrnn._layers import Layers, Pair, Recurrent, Tensors, unwrap
from fastrnn.single_step import SingleStep


class Node(NamedTuple):
    """How ONNX writes a cell: the node, torch's gates in its order, and what else it needs."""

    kind: str
    gates: tuple[int, ...]
    attributes: dict[str, int]
    activation: str | None


NODES = {
    "lstm": Node("LSTM", (0, 3, 1, 2), {}, None),  # i, f, g, o -> i, o, f, c
    "gru": Node("GRU", (1, 0, 2), {"linear_before_reset": 1}, None),  # r, z, n -> z, r, h
    "gru_reset_before": Node("GRU", (1, 0, 2), {"linear_before_reset": 0}, None),
    "rnn_tanh": Node("RNN", (0,), {}, "Tanh"),
    "rnn_relu": Node("RNN", (0,), {}, "Relu"),
}
# Options that change the recurrence itself, in evaluation too.
_INEXPRESSIBLE = ("proj_size", "layer_norm", "zoneout")


def refusal(title: str, what: str) -> ValueError:
    """The error that a module does or has something ONNX lacks."""
    return ValueError(f"onnx.export: {title} {what}, which ONNX cannot express")


def refuse(module: Recurrent, title: str) -> None:
    """Raise unless ONNX has a node for a module."""
    if module.cell_name not in NODES:
        raise refusal(title, f"runs the cell {module.cell_name!r}")
    for option in _INEXPRESSIBLE:
        value = getattr(module, option, None)
        if any(value) if isinstance(value, tuple) else value:
            raise refusal(title, f"has {option}={value}")


def _emit(
    cell: str,
    rows: Tensor,
    first: Tensors | None,
    sides: Sequence[Sequence[Tensor]],
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensors]:
    """Put the node of one layer into the graph that is being traced.

    Args:
        cell: a key of `NODES`.
        rows: [T, B, I].
        first: S tensors [D, B, H], the states before the first step; None: zeros.
        sides: per direction (D) weight_ih, weight_hh and, if there, bias_ih, bias_hh.
        lengths: int32 [B], where each sequence ends; default None: at T.

    Returns:
        output [T, B, D*H] and the S last states [D, B, H].
    """
    node, directions = NODES[cell], len(sides)
    steps, batch, hidden = rows.size(0), rows.size(1), sides[0][1].size(1)
    order = [gate * hidden + unit for gate in node.gates for unit in range(hidden)]
    index = torch.tensor(order, device=rows.device)

    def stacked(kind: int) -> Tensor:
        """One of `sides`, [D, G*H, ...] with ONNX's order of gates."""
        return torch.stack([side[kind] for side in sides]).index_select(1, index)

    biases = torch.cat([stacked(2), stacked(3)], dim=1) if len(sides[0]) > 2 else None
    attributes: dict[str, Any] = {
        "hidden_size": hidden,
        "direction": "bidirectional" if directions == 2 else "forward",
        **node.attributes,
    }
    if node.activation is not None:
        attributes["activations"] = [node.activation] * directions
    states = 2 if node.kind == "LSTM" else 1
    found = torch.onnx.ops.symbolic_multi_out(
        node.kind,
        [rows, stacked(0), stacked(1), biases, lengths, *(first or ())],
        attributes,
        dtypes=[rows.dtype] * (1 + states),
        shapes=[(steps, directions, batch, hidden), *[(directions, batch, hidden)] * states],
    )
    output, *last = (value.to(rows.device) for value in found)  # torch leaves them on the CPU
    joined = output.squeeze(1) if directions == 1 else output.transpose(1, 2).flatten(2)
    return joined, tuple(last)


def run_layers(
    module: Layers,
    input: Tensor,
    hx: Tensor | Pair | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | Pair]:
    """`Layers.forward` in evaluation, as one node per layer."""
    op = type(module).__name__
    states = None if hx is None else _checks.as_states("lstm", hx, module._states, RuntimeError)
    _checks.layer_input(op, input, states)
    if lengths is not None:
        lengths = _checks.sequence_lengths(op, lengths, input, module.batch_first).int()
    batched = input.dim() == 3
    rows = input if batched else input.unsqueeze(1)  # [T, B, I]
    if batched and module.batch_first:
        rows = input.transpose(0, 1)
    weights = module.all_weights
    _checks.layer_rows(rows, weights[0][0], module.input_size)
    if states is not None:
        states = states if batched else tuple(s.unsqueeze(1) for s in states)
        shape = (len(weights), rows.size(1), module.hidden_size)
        _checks.layer_states(states, [shape] * len(states), rows)
    directions = 2 if module.bidirectional else 1
    lasts = []
    for k in range(0, len(weights), directions):
        first = None if states is None else tuple(s[k : k + directions] for s in states)
        rows, last = _emit(module.cell_name, rows, first, weights[k : k + directions], lengths)
        lasts.append(last)
    after = tuple(torch.cat(parts) for parts in zip(*lasts, strict=True))
    if not batched:
        return rows.squeeze(1), unwrap(tuple(s.squeeze(1) for s in after))
    return rows.transpose(0, 1) if module.batch_first else rows, unwrap(after)


def run_step(module: SingleStep, input: Tensor, hx: Tensor | Pair | None = None) -> Tensor | Pair:
    """`SingleStep.forward` as a node that runs one step."""
    op = type(module).__name__
    weights = [module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh]
    _checks.cell_input(op, input, module.weight_ih, module.input_size)

    def batched(value: Tensor) -> Tensor:
        """[1, B, ...] of [B, ...] or [...]."""
        return (value if input.dim() == 2 else value.unsqueeze(0)).unsqueeze(0)

    first = None
    if hx is not None:
        states = _checks.as_states("lstm_cell", hx, module._states, TypeError)
        _checks.cell_states(op, states, input, module.hidden_size)
        first = tuple(batched(s) for s in states)
    present = [w for w in weights if w is not None]
    _, last = _emit(module.cell_name, batched(input), first, [present])
    return unwrap(tuple(s.squeeze(0) if input.dim() == 2 else s.flatten() for s in last))
