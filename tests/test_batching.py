"""torch.vmap over the operators equals a loop, whichever arguments have samples."""

import warnings

import pytest
import torch

from fastrnn import ops
from fastrnn.cells import CELLS
from tests.layers import random_layer

V = 3


def sampled(layer, places, dim):
    """The layer's arguments, those at `places` V times with different values, and vmap's dims."""
    arguments, dims = list(layer.arguments), [None] * len(layer.arguments)
    for place in places:
        t = arguments[place]
        t = t.detach() if isinstance(t, torch.Tensor) else t
        varied = [
            t if v == 0 else t.flip(-1) if t.dtype != torch.float64 else t * (1 + v)
            for v in range(V)
        ]
        dims[place] = min(dim, t.dim())
        arguments[place] = torch.stack(varied, dims[place])
    return arguments, dims


def loop(function, arguments, dims):
    def of_sample(v):
        return [a if d is None else a.select(d, v) for a, d in zip(arguments, dims, strict=True)]

    return [torch.stack(r) for r in zip(*(function(*of_sample(v)) for v in range(V)), strict=True)]


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_equals_a_loop_without_a_warning(cell, extras):
    layer = random_layer(cell, [4, 4, 2], 3, 5, reverse=True)
    if extras:
        layer = layer.with_extras(drawn=True)
    layer.extras = (*layer.extras[:2], None, layer.extras[3])  # sequences by their place
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        # input and state; each alone; resets; a weight; the seed
        for places in ((0, 1), (0,), (1,), (0, 9), (3, 4), (0, 10)):
            if not extras and places[-1] in (9, 10):
                continue
            for dim in (0, 1, 2):
                arguments, dims = sampled(layer, places, dim)
                found = torch.vmap(ops.Recurrence.apply, tuple(dims))(*arguments)
                expected = loop(ops.Recurrence.apply, arguments, dims)
                torch.testing.assert_close(list(found), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_equal_a_loops(cell, extras):
    layer = random_layer(cell, [4, 2], 3, 5)
    layer = layer.with_extras(drawn=True) if extras else layer
    for wanted in ((0, 1), (2, 3, 4, 5), (0, 3)):

        def total(*arguments):
            output, state_n, cells, _ = ops.Recurrence.apply(*arguments)
            return output.square().sum() + state_n.cos().sum() + cells.sin().sum()

        gradients = torch.func.grad(total, argnums=wanted)
        arguments, dims = sampled(layer, (0, 1), 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = torch.vmap(gradients, tuple(dims))(*arguments)
        expected = loop(gradients, arguments, dims)
        torch.testing.assert_close(list(found), expected, rtol=1e-11, atol=1e-11)
