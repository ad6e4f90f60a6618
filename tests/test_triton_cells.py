"""kernels/cells.py, function by function, against fastrnn/cells.py and its derivatives."""

from __future__ import annotations

import pytest
import torch

from fastrnn import _kernels
from fastrnn.cells import CELLS, COMPILED
from tests.test_triton import COMPILED_CELLS, on_devices

pytestmark = pytest.mark.triton
WIDTH = 32


def by_definition(cell, x, h, prev, grad_next, grad_operand):
    """Next states, reserve, and the gradients of x, h and prev, the operand's own included."""
    c = CELLS[cell]
    leaves = [t.clone().requires_grad_() for t in (x, h, prev)]
    xs, hs, before = (t.unbind() for t in leaves)
    total, first = 0, c.operand_gates
    so_far = []
    if c.operand is not None:
        operand, reserve = c.operand(xs[:first], hs[:first], before)
        total, so_far = (operand * grad_operand[0]).sum(), [reserve]
    next_, reserve = c.forward(xs[first:], hs[first:], before, *so_far)
    total = total + (torch.stack(next_) * grad_next).sum()
    slots = torch.stack(reserve) if reserve else x[:0]
    grads = torch.autograd.grad(total, leaves, materialize_grads=True)
    return [t.detach() for t in (torch.stack(next_), slots, *grads)]


@on_devices
@pytest.mark.parametrize("cell", COMPILED_CELLS)
def test_twins_agree(cell, device):
    from tests import triton_cells

    c, twin = CELLS[cell], _kernels.module("cells").CELLS[cell]
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        values = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
        return (2 * values).to(device)

    x, h, prev, grad_next = (draw(n) for n in (c.gates, c.gates, c.states, c.states))
    grad_operand = draw(1)
    expected = by_definition(cell, x, h, prev, grad_next, grad_operand)
    found = [torch.full_like(t, float("nan")) for t in expected]
    next_, reserve, *grads = found
    sizes = {"FIRST": c.operand_gates, "G": c.gates, "S": c.states, "R": c.reserve}
    operand = torch.full_like(grad_operand, float("nan"))
    functions = {"FORWARD": twin.forward, "OPERAND": twin.operand}
    triton_cells.forward[(1,)](x, h, prev, next_, reserve, operand, **functions, **sizes)
    functions = {"BACKWARD": twin.backward, "OPERAND_BACKWARD": twin.operand_backward}
    triton_cells.backward[(1,)](
        reserve, prev, next_, grad_next, grad_operand, *grads, **functions, **sizes
    )
    for name, ours, theirs in zip(
        ("next", "reserve", "grad_x", "grad_h", "grad_prev"), found, expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14, msg=name)


def test_the_same_cells_with_the_same_sizes():
    twins = _kernels.module("cells").CELLS
    assert set(twins) == COMPILED
    for name, twin in twins.items():
        c = CELLS[name]
        sizes = twin.gates, twin.states, twin.reserve, twin.operand_gates
        assert sizes == (c.gates, c.states, c.reserve, c.operand_gates)
        assert (twin.operand is None) == (c.operand is None)
