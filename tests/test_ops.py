"""The operators as torch sees them: registration, gradients of every order, transforms."""

from __future__ import annotations

import ctypes
import gc

import pytest
import torch

from fastrnn import _library, ops
from fastrnn.cells import CELLS
from tests.layers import random_layer

SIZES = [3, 3, 2, 1]
native = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")


def small_layer(cell, **options):
    return random_layer(cell, SIZES, 3, 2, **options)


def loss(layer):
    """A function of the layer's present tensors that every output flows into."""

    def run(*tensors):
        outputs = ops.Recurrence.apply(*layer.with_present(tensors))[:3]
        return sum((o * o.detach().cos()).sum() for o in outputs)

    return run


@pytest.mark.parametrize(("extras", "projected"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("default", [False, True], ids=["registered", "default"])
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell, default, extras, projected):
    layer = small_layer(cell, projected=projected)
    if extras:
        layer = layer.with_extras(drawn=True)
    args = [t.detach() if isinstance(t, torch.Tensor) else t for t in layer.arguments]
    forward = torch.ops.fastrnn.recurrence.default
    backward = torch.ops.fastrnn.recurrence_backward.default
    if default:
        # Meta and CPU kernels take precedence by key; a scratch operator has the default alone.
        library = torch.library.Library("fastrnn_default", "FRAGMENT")
        for op, run in ((forward, ops._default_forward), (backward, ops._default_backward)):
            name = op._schema.name.split("::")[1]
            library.define(str(op._schema).split("::")[1], tags=(torch.Tag.pt2_compliant_tag,))
            library.impl(name, run, "CompositeExplicitAutograd")
        fakes = {"recurrence": ops._fake_forward, "recurrence_backward": ops._fake_backward}
        for name, fake in fakes.items():
            torch.library.register_fake(f"fastrnn_default::{name}", fake, lib=library)
        forward = torch.ops.fastrnn_default.recurrence.default
        backward = torch.ops.fastrnn_default.recurrence_backward.default
    for save in (True, False):
        torch.library.opcheck(forward, (*args, save))
    output, state_n, cells, reserve = forward(*args, True)
    grads = (output.cos(), None, cells.cos())
    for wanted in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(
            backward, (*grads, *args[:13], output, cells, reserve, cell, False, *wanted)
        )


@native
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_first_and_second_order(cell, reverse, extras):
    layer = small_layer(cell, reverse=reverse)
    layer = layer.with_extras(drawn=True) if extras else layer
    if cell == "rnn_relu":  # keep away from the kink
        layer.tensors[4].data += 0.3

    def run(*tensors):
        outputs = ops.Recurrence.apply(*layer.with_present(tensors))
        return outputs[: 3 if CELLS[cell].states > 1 else 2]

    assert torch.autograd.gradcheck(run, layer.present)
    assert torch.autograd.gradgradcheck(run, layer.present)


@native
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_default_equals_native(cell, extras):
    layer = small_layer(cell)
    layer = layer.with_extras(drawn=True) if extras else layer
    args = [t.detach() if isinstance(t, torch.Tensor) else t for t in layer.arguments]
    ours = torch.ops.fastrnn.recurrence.default(*args, True)
    default = ops._default_forward(*args, True)
    torch.testing.assert_close(ours, default, rtol=1e-12, atol=1e-12)
    grads = (ours[0].cos(), ours[1].sin(), ours[2].cos())
    saved = (*grads, *args[:13], ours[0], ours[2], ours[3], cell, False)
    for wanted in ((True, True), (False, True), (True, False)):
        torch.testing.assert_close(
            torch.ops.fastrnn.recurrence_backward.default(*saved, *wanted),
            ops._default_backward(*saved, *wanted),
            rtol=1e-11,
            atol=1e-11,
        )


@pytest.mark.parametrize("cell", CELLS)
def test_compiles_without_a_graph_break(cell):
    layer = small_layer(cell)
    run = loss(layer)
    run(*layer.present).backward()
    expected = [t.grad.clone() for t in layer.present]
    for t in layer.present:
        t.grad = None
    torch.compile(run, fullgraph=True, backend="aot_eager")(*layer.present).backward()
    torch.testing.assert_close([t.grad for t in layer.present], expected)


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_transforms_agree_with_autograd():
    layer = small_layer("lstm")
    present = [t.detach() for t in layer.present]
    run = loss(layer)
    every = tuple(range(len(present)))
    expected = torch.autograd.grad(run(*layer.present), layer.present)
    torch.testing.assert_close(torch.func.grad(run, argnums=every)(*present), expected)
    # Per-sample gradients: the batch of one below is the call above.
    stacked = torch.stack([present[0], present[0] + 0.1])
    per_sample = torch.func.vmap(torch.func.grad(run), in_dims=(0, *[None] * 5))(
        stacked, *present[1:]
    )
    torch.testing.assert_close(per_sample[0], expected[0])
    shifted = torch.func.grad(run)(stacked[1], *present[1:])
    torch.testing.assert_close(per_sample[1], shifted)


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_hessian_equals_the_reference():
    layer = small_layer("gru")
    present = [t.detach() for t in layer.present]

    def hessian(function):
        def of_weight(weight):
            tensors = (*present[:3], weight, *present[4:])
            return function(*layer.with_present(tensors))[0].square().sum()

        return torch.func.jacrev(torch.func.jacrev(of_weight))(present[3])

    torch.testing.assert_close(hessian(ops.Recurrence.apply), hessian(ops.reference))


def test_wrong_shapes_to_the_raw_operator_raise():
    layer = small_layer("lstm")
    forward = torch.ops.fastrnn.recurrence.default
    for position, tensor in enumerate(layer.present):
        args = list(layer.arguments)
        args[position] = tensor.detach()[..., :-1]
        with pytest.raises((RuntimeError, ValueError)):
            forward(*args, True)
    for sizes in ([], [3, 3, 2], [1, 3, 3, 2], [4, 3, 2], [3, 7, -1]):
        args = list(layer.arguments)
        args[8] = torch.tensor(sizes, dtype=torch.int64)
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            forward(*args, True)


@native
def test_raw_operator_names_argument_expected_and_got():
    layer = small_layer("lstm")
    args = list(layer.arguments)
    args[3] = args[3].detach().T
    with pytest.raises(RuntimeError, match=r"recurrence: weight_hh must be \[8, 2\], got \[2, 8\]"):
        torch.ops.fastrnn.recurrence.default(*args, True)
    rows = torch.randn(layer.arguments[0].size(0), layer.arguments[3].size(0))
    args = [rows, layer.arguments[1], None, *layer.arguments[3:13], "lstm", False]
    with pytest.raises(RuntimeError, match=r"bias_ih must be absent without weight_ih, got \[8\]"):
        torch.ops.fastrnn.recurrence.default(*args, True)
    args = [*layer.arguments[:13], "lstmm", False]
    with pytest.raises(RuntimeError, match="no compiled cell is called 'lstmm'"):
        torch.ops.fastrnn.recurrence.default(*args, True)


class _Heap(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [
        *((f"unread{k}", ctypes.c_size_t) for k in range(7)),
        ("in_use", ctypes.c_size_t),  # uordblks, bytes
        *((f"unread{k}", ctypes.c_size_t) for k in (7, 8)),
    ]


@native
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc's mallinfo2")
def test_calls_leave_nothing_behind():
    """Under a byte each, where one string would be 48: torch's own conversion leaked one.

    In the best of three rounds: a page that something else takes meanwhile is taken once.
    """
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Heap
    layer = random_layer("lstm", [2, 2, 1], 3, 4)
    rows, state, *weights = (t.detach() for t in layer.present)
    given = (layer.batch_sizes, None)
    run, stack, pack = (
        getattr(torch.ops.fastrnn, name).default
        for name in ("recurrence", "recurrence_stack", "pack_weights")
    )
    options = (*given, None, None, [], "lstm", False, True)
    calls = {
        "recurrence": lambda: run(rows, state, *weights, None, None, *options),
        "recurrence_stack": lambda: stack(rows, [state, *weights], *given, "lstm", True, True),
        "pack_weights": lambda: pack(*weights[:2], None, "lstm"),
    }
    for name, call in calls.items():
        for _ in range(100):
            call()
        grown = []
        for _ in range(3):
            gc.collect()
            before = mallinfo().in_use
            for _ in range(4000):
                call()
            gc.collect()
            grown.append(mallinfo().in_use - before)
        assert min(grown) < 4000, name
