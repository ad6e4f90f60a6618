"""A projected h and layer normalisation in the CUDA operators, over emulated kernels."""

from __future__ import annotations

import pytest
import torch

from fastrnn import ops
from tests import emulated
from tests.layers import assert_as_close_as_torch, everything, random_layer
from tests.test_recurrence_device import FLOORS, by_operators, check, poisoned_memory, schedule
from tests.test_rows import KINDS, layer_of

__all__ = ["poisoned_memory", "schedule"]  # fixtures

pytest.importorskip("fastrnn._C", reason="no compiled module")
# batch_sizes, I, H
SHAPES = {
    "step": ([5], 12, 33),
    "padded": ([3, 3, 3], 8, 40),
    "ragged": ([5, 5, 3, 3, 1], 7, 24),
    "ended": ([3, 2, 0], 5, 9),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_grid(kind, dtype, shape):
    for reverse, bias, projected in ((False, True, False), (True, False, False), (True, True, True)):
        options = {"bias": bias, "projected": projected, "reverse": reverse}
        check(layer_of(kind, *SHAPES[shape], **options), dtype)
