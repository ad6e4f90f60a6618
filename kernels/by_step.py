"""The schedule for any shape: torch's product and one fused kernel a step."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .layer import Layer
from .step_backward import backward_step, operand_backward_step
from .step_forward import forward_step, operand_step
from .tuning import INTERPRETED, Config, tuned
from .walk import Step

NAME = "step by step, a product and a fused Triton kernel each"


def candidates(layer: Layer) -> list[Config]:
    """Tiles of a step; few and large programs in the interpreter, whose cost is their number."""
    if INTERPRETED:
        return [Config(16, 64, 1)]
    width = triton.next_power_of_2(layer.hidden)
    tiles = [Config(1, 256, 2), Config(1, 1024, 8), Config(4, 128, 4)]
    return list(dict.fromkeys(tile._replace(units=min(tile.units, width)) for tile in tiles))


def _grid(layer: Layer, config: Config, count: int) -> tuple[int, int]:
    return triton.cdiv(count, config.rows), triton.cdiv(layer.hidden, config.units)


def _constants(layer: Layer, config: Config) -> dict[str, object]:
    return {
        "GATES": layer.cell.gates,
        "STATES": layer.cell.states,
        "ROWS": config.rows,
        "UNITS": config.units,
        **config.options,
    }


def forward(
    layer: Layer,
    x_proj: Tensor,
    output: Tensor,
    state_n: Tensor,
    cells: Tensor | None,
    reserve: Tensor | None,
) -> None:
    """Fill output [N, H], state_n [S, B, H] and, unless None, cells and reserve."""
    walk, cell, hidden = layer.walk, layer.cell, layer.hidden
    first = cell.operand_gates * hidden
    # [H, G*H] or, where a second product follows, its first gates' columns and the others.
    first_weight, weight = layer.weight_hh[:first].T, layer.weight_hh[first:].T
    first_proj = x_proj.new_empty(layer.batch, first)
    h_proj = x_proj.new_empty(layer.batch, cell.gates * hidden - first)
    operand = x_proj.new_empty(layer.batch, hidden)
    slots = reserve
    if first and reserve is None:  # the gates before the second product wait for it somewhere
        slots = x_proj.new_empty(layer.batch, layer.slots * hidden)

    def run(config: Config) -> None:
        carry = layer.state.to(layer.math, copy=True)
        same = carry.dtype == x_proj.dtype
        h = carry[0] if same else layer.state[0].clone()
        constants = _constants(layer, config)
        for step in walk.steps:
            n, grid = step.count, _grid(layer, config, step.count)
            slot_row = 0 if reserve is None else step.row
            factor = h
            if first:
                torch.mm(h[:n], first_weight, out=first_proj[:n])
                operand_step[grid](
                    x_proj,
                    first_proj,
                    layer.bias_hh,
                    carry,
                    operand,
                    slots,
                    walk.reset_rows,
                    step.row,
                    slot_row,
                    n,
                    layer.batch,
                    hidden,
                    OPERAND=cell.operand,
                    FIRST=cell.operand_gates,
                    ALL_SLOTS=layer.slots,
                    **constants,
                )
                factor = operand
            torch.mm(factor[:n], weight, out=h_proj[:n])
            forward_step[grid](
                x_proj,
                h_proj,
                layer.bias_hh,
                carry,
                None if same else h,
                output,
                cells,
                slots,
                walk.reset_rows,
                walk.seed,
                walk.sequences,
                *walk.kept,
                step.number,
                step.row,
                slot_row,
                n,
                layer.batch,
                layer.rows,
                hidden,
                FORWARD=cell.forward,
                FIRST=cell.operand_gates,
                SLOTS=cell.reserve,
                ZONEOUT=walk.mode,
                **constants,
            )
        state_n.copy_(carry)

    run(tuned(("forward_step", *layer.key), candidates(layer), x_proj.device, run))


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
    walk, cell, hidden = layer.walk, layer.cell, layer.hidden
    first = cell.operand_gates * hidden
    through = output.new_empty(layer.batch, hidden)
    grad_operand = torch.empty_like(through)
    sent = grad_x if grad_h is None else grad_h

    def run(config: Config) -> None:
        carry = grad_state_n.to(layer.math, copy=True)
        constants = _constants(layer, config)
        for step in reversed(walk.steps):
            n, rows = step.count, slice(step.row, step.row + step.count)
            grid = _grid(layer, config, max(n, step.after_count))
            backward_step[grid](
                layer.state,
                output,
                cells,
                reserve,
                grad_output,
                grad_cells,
                carry,
                through,
                grad_x,
                grad_h,
                walk.reset_rows,
                walk.seed,
                walk.sequences,
                *walk.kept,
                *step,
                layer.batch,
                layer.rows,
                hidden,
                BACKWARD=cell.backward,
                SLOTS=cell.reserve,
                ZONEOUT=walk.mode,
                **constants,
            )
            if first:
                torch.mm(sent[rows, first:], layer.weight_hh[first:], out=grad_operand[:n])
                operand_backward_step[_grid(layer, config, n)](
                    layer.state,
                    output,
                    cells,
                    reserve,
                    grad_operand,
                    carry,
                    grad_x,
                    walk.reset_rows,
                    *step[1:5],
                    layer.batch,
                    layer.rows,
                    hidden,
                    OPERAND_BACKWARD=cell.operand_backward,
                    FIRST=cell.operand_gates,
                    ALL_SLOTS=layer.slots,
                    **constants,
                )
                torch.mm(sent[rows, :first], layer.weight_hh[:first], out=through[:n])
            else:
                torch.mm(sent[rows], layer.weight_hh, out=through[:n])
        _give_back(layer, walk.steps[0], carry[0], through)
        grad_state.copy_(carry)

    run(tuned(("backward_step", *layer.key), candidates(layer), output.device, run))


def _give_back(layer: Layer, step: Step, carry: Tensor, through: Tensor) -> None:
    """Add to the first state's gradient [B, H] what the first step sent back."""
    last = through[: step.count]
    resets = layer.walk.resets
    if resets is not None:
        last = last.masked_fill(resets[step.row : step.row + step.count, None], 0)
    carry[: step.count] += last
