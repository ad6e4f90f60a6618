"""The schedule for narrow layers: one kernel for all steps."""

from __future__ import annotations

import triton
from torch import Tensor

from .layer import TILE, Layer, precision
from .sequence_backward import backward_sequence
from .sequence_forward import forward_sequence
from .tuning import Config, tuned

NAME = "whole sequence in one Triton kernel, weights on chip"


def candidates(layer: Layer) -> list[Config]:
    """How a program's tile may be dealt to warps: more of them where the weights are many."""
    size = layer.cell.gates * layer.units**2 * layer.state.element_size()
    # 16 warps leave a lane 128 registers: too few for TF32's operands beside four gates' sums.
    many = (8,) if precision() == "tf32" and layer.cell.gates > 3 else (8, 16)
    return [Config(TILE, layer.units, w) for w in ((4, 8) if size <= 32_768 else many)]


def _constants(layer: Layer, config: Config) -> dict[str, object]:
    return {
        "GATES": layer.cell.gates,
        "STATES": layer.cell.states,
        "SLOTS": layer.cell.reserve,
        "OPERAND_GATES": layer.cell.operand_gates,
        "REVERSE": layer.walk.reverse,
        "ZONEOUT": layer.walk.mode,
        "DOT": layer.dot,
        "PRECISION": precision(),
        "ROWS": config.rows,
        "UNITS": config.units,
        **config.options,
    }


def _sizes(layer: Layer) -> tuple[int, ...]:
    return *layer.walk.kept, len(layer.walk.sizes), layer.batch, layer.rows, layer.hidden


def forward(
    layer: Layer,
    x_proj: Tensor,
    output: Tensor,
    state_n: Tensor,
    cells: Tensor | None,
    reserve: Tensor | None,
) -> None:
    """Fill output [N, H], state_n [S, B, H] and, unless None, cells and reserve."""
    walk, device = layer.walk, x_proj.device
    extras = walk.starts(device), walk.reset_rows, walk.seed, walk.sequences

    def run(config: Config) -> None:
        forward_sequence[(triton.cdiv(layer.batch, config.rows),)](
            x_proj,
            layer.weight_hh,
            layer.bias_hh,
            layer.state,
            *extras,
            output,
            state_n,
            cells,
            reserve,
            *_sizes(layer),
            FORWARD=layer.cell.forward,
            OPERAND=layer.cell.operand,
            **_constants(layer, config),
        )

    run(tuned(("forward_sequence", *layer.key), candidates(layer), device, run))


def backward(
    layer: Layer,
    output: Tensor,
    cells: Tensor,
    reserve: Tensor,
    grad_output: Tensor | None,
    grad_state_n: Tensor,
    grad_cells: Tensor | None,
    grad_x: Tensor,
    grad_h: Tensor | None,
    grad_state: Tensor,
) -> None:
    """Fill grad_x [N, G*H], grad_h (None: it is grad_x) and grad_state [S, B, H]."""
    walk, device = layer.walk, output.device
    extras = walk.starts(device), walk.reset_rows, walk.seed, walk.sequences

    def run(config: Config) -> None:
        backward_sequence[(triton.cdiv(layer.batch, config.rows),)](
            layer.weight_hh,
            layer.state,
            *extras,
            output,
            cells,
            reserve,
            grad_output,
            grad_state_n,
            grad_cells,
            grad_x,
            grad_h,
            grad_state,
            *_sizes(layer),
            BACKWARD=layer.cell.backward,
            OPERAND_BACKWARD=layer.cell.operand_backward,
            **_constants(layer, config),
        )

    run(tuned(("backward_sequence", *layer.key), candidates(layer), device, run))
