"""The kernels of whole rows, layer normalisation and projection of h, against the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from math import ceil

import pytest
import torch

from fastrnn import _library, ops
from tests.layers import assert_all_as_close_as_torch, everything, random_layer
from tests.test_recurrence import FLOORS, SHAPES

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
KINDS = ("projected", "normed lstm", "normed gru")
DTYPES = (torch.float32, torch.float64)
forward = torch.ops.fastrnn.recurrence.default
backward = torch.ops.fastrnn.recurrence_backward.default


def layer_of(kind, sizes, input_size, hidden, **options):
    if kind == "projected":
        return random_layer(
            "lstm", sizes, input_size, hidden, proj_size=ceil(hidden / 2), **options
        )
    return random_layer(kind.split()[1], sizes, input_size, hidden, norm=True, **options)


def detached(layer):
    return [a.detach() if isinstance(a, torch.Tensor) else a for a in layer.arguments]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Everything torch allocates holds NaN until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "extras"),
    [(shape, None) for shape in SHAPES]
    + [(shape, mode) for shape in ("step", "ragged") for mode in ("training", "evaluation")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_grid(kind, shape, dtype, extras):
    sizes, input_size, hidden = SHAPES[shape]
    if shape == "one" and kind != "projected":
        # Of one input or two units normalised, gradients are differences of equals.
        input_size = hidden = 8
    if shape == "tall" and kind != "projected":
        # Each normalisation of few units magnifies errors; after many steps they compare by luck.
        sizes, hidden = sizes[:3], 33
    for reverse, bias, projected in (
        (False, True, False),
        (True, True, False),
        (True, False, False),
        (False, True, True),
    ):
        layer = layer_of(
            kind, sizes, input_size, hidden, bias=bias, projected=projected, reverse=reverse
        )
        if extras is not None:
            layer = layer.with_extras(drawn=extras == "training")
        rounded = layer.to(dtype)
        assert_all_as_close_as_torch(
            everything(ops.Recurrence.apply, rounded),
            everything(ops.reference, rounded),
            everything(ops.reference, layer),
            FLOORS[dtype],
        )


@pytest.mark.parametrize("name", ["avx2", "portable"])
def test_grid_on_lower_instruction_sets(name):
    if os.environ.get("FASTRNN_CPU"):
        pytest.skip("this process was started for one instruction set")
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k"]
    found = subprocess.run(
        [*command, "test_grid and (ragged or wide) or same_bits"],
        env=os.environ | {"FASTRNN_CPU": name},
        capture_output=True,
        text=True,
    )
    if "FASTRNN_CPU must be one of" in found.stdout + found.stderr:
        pytest.skip(f"this processor or build has no {name}")
    assert found.returncode == 0, found.stdout
    assert " passed" in found.stdout


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 18])
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_are_as_exact(kind, rows):
    """Their weights are multiplied as they lie, by all threads together."""
    layer = layer_of(kind, [rows], 170, 290)
    rounded, before = layer.to(torch.float32), torch.get_num_threads()
    found = everything(ops.Recurrence.apply, rounded)
    expected = (everything(ops.reference, each) for each in (rounded, layer))
    assert_all_as_close_as_torch(found, *expected, FLOORS[torch.float32])
    torch.set_num_threads(3)
    try:
        again = everything(ops.Recurrence.apply, rounded)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(t, again[name]) for name, t in found.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extras", [False, True])
def test_same_bits_for_any_number_of_threads_and_run(kind, extras):
    before = torch.get_num_threads()
    layer = layer_of(kind, [20] * 40 + [13], 50, 130).to(torch.float32)
    layer = layer.with_extras(drawn=True) if extras else layer
    try:
        results = []
        for threads in (1, 2, 7, 2):
            torch.set_num_threads(threads)
            results.append(everything(ops.Recurrence.apply, layer).values())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_and_inference_give_the_same_bits(kind, extras):
    for dtype in DTYPES:
        layer = layer_of(kind, [7, 7, 2], 9, 40, reverse=True).to(dtype)
        layer = layer.with_extras(drawn=True) if extras else layer
        x, state, w_ih, w_hh, b_ih, b_hh, w_hr, gains, *rows = detached(layer)
        expected = forward(*detached(layer), True)
        inferred = forward(*detached(layer), False)
        assert torch.equal(inferred[0], expected[0]) and torch.equal(inferred[1], expected[1])
        assert inferred[2].numel() == inferred[3].numel() == 0
        packed = torch.ops.fastrnn.pack_weights.default(w_ih, w_hh, w_hr, layer.cell)
        run, width = torch.ops.fastrnn.recurrence_packed.default, 0 if w_hr is None else len(w_hr)
        arguments = (b_ih, b_hh, gains, *rows[:5], layer.cell, width, True, True)
        for found, wanted in zip(run(x, state, packed, *arguments), expected, strict=False):
            assert torch.equal(found, wanted)
        with pytest.raises(RuntimeError, match="recurrence: packed must be"):
            run(x, state, packed[:-1], *arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    layer = layer_of(kind, [3, 3, 1], 3, 4).with_extras(drawn=True)
    args = detached(layer)
    torch.library.opcheck(forward, (*args, True))
    output, state_n, cells, reserve = forward(*args, True)
    saved = (output.cos(), state_n.cos(), None, *args[:13], output, cells, reserve, *args[13:])
    torch.library.opcheck(backward, (*saved, True, True))


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_wanted_gradient_is_the_defaults(kind, extras):
    layer = layer_of(kind, [4, 4, 2], 3, 5)
    layer = layer.with_extras(drawn=True) if extras else layer
    args = detached(layer)
    ours = forward(*args, True)
    torch.testing.assert_close(ours, ops._default_forward(*args, True), rtol=1e-12, atol=1e-12)
    grads = (ours[0].cos(), None, ours[2].cos())
    saved = (*grads, *args[:13], ours[0], ours[2], ours[3], *args[13:])
    for wanted in ((True, True), (False, True), (True, False)):
        torch.testing.assert_close(
            backward(*saved, *wanted),
            ops._default_backward(*saved, *wanted),
            rtol=1e-11,
            atol=1e-11,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_first_and_second_order(kind):
    layer = layer_of(kind, [2, 1], 2, 3, reverse=True).with_extras(drawn=True)

    def run(*tensors):
        outputs = ops.Recurrence.apply(*layer.with_present(tensors))
        return outputs[: 3 if layer.cell == "lstm" else 2]

    assert torch.autograd.gradcheck(run, layer.present)
    assert torch.autograd.gradgradcheck(run, layer.present)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_equals_a_loop(kind):
    layer = layer_of(kind, [4, 4, 2], 3, 5).with_extras(drawn=True)

    def gradients(x, state):
        def total(x, weight_hh):
            tensors = [x, state, layer.tensors[2], weight_hh, *layer.tensors[4:]]
            rest = (*layer.rows, layer.cell, layer.reverse)
            output, state_n, _, _ = ops.Recurrence.apply(*tensors, *rest)
            return output.square().sum() + state_n.cos().sum()

        return torch.func.grad(total, (0, 1))(x, layer.tensors[3])

    x, state = (torch.stack([t, 2 * t, -t]).detach() for t in layer.tensors[:2])
    found = torch.vmap(gradients)(x, state)
    each = [gradients(a, b) for a, b in zip(x, state, strict=True)]
    for mine, expected in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.stack(expected), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_input_stays_in_its_sequence(kind, value):
    layer = layer_of(kind, [3] * 4, 5, 20)
    with torch.no_grad():
        clean = forward(*layer.arguments, False)[0].unflatten(0, (4, 3))
        layer.tensors[0][4, 2] = value  # step 1, sequence 1
        ours = forward(*layer.arguments, False)[0]
        expected = ops.reference(*layer.arguments)[0]
    assert torch.equal(ours.isnan(), expected.isnan())
    torch.testing.assert_close(ours, expected, equal_nan=True)
    assert torch.equal(ours.unflatten(0, (4, 3))[:, [0, 2]], clean[:, [0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch(kind):
    layer = layer_of(kind, [1], 3, 4)
    x, state, *weights = layer.present
    arguments = list(layer.arguments)
    arguments[0], arguments[1] = x[:0], state[:, :0]
    arguments[8] = torch.tensor([0, 0])
    output, state_n, *_ = ops.Recurrence.apply(*arguments)
    assert (
        output.shape == (0, 2 if kind == "projected" else 4) and state_n.shape == state[:, :0].shape
    )
    for grad in torch.autograd.grad(output.sum(), weights):
        assert not grad.any()


@pytest.mark.parametrize(
    ("kind", "place", "change", "message"),
    [
        ("projected", 6, lambda t: t[:, 1:], r"weight_hr must be \[3, 5\], got \[3, 4\]"),
        ("projected", 6, lambda t: t[:0], "weight_hr must have 1 to H = 5 rows, got 0"),
        ("projected", 3, lambda t: t[:, 1:], r"weight_hh must be \[20, 3\], got \[20, 2\]"),
        ("projected", 7, lambda _: torch.ones(50).double(), "gains must be absent with weight_hr"),
        ("projected", 13, lambda _: "gru", "weight_hr needs cell lstm, got gru"),
        ("normed gru", 7, lambda t: t[1:], r"gains must be \[30\], got \[29\]"),
        ("normed lstm", 7, lambda t: t.float(), "gains must have the input's dtype"),
        ("normed gru", 13, lambda _: "gru_reset_before", "gains need cell lstm or gru, got gru_r"),
    ],
)
def test_raw_operator_names_argument_expected_and_got(kind, place, change, message):
    args = detached(layer_of(kind, [3, 1], 4, 5))
    args[place] = change(args[place])
    with pytest.raises(RuntimeError, match=f"recurrence: {message}") as raised:
        forward(*args, True)
    assert "\n" not in str(raised.value)


def test_packed_operators_check_the_projection():
    w_ih, w_hh, w_hr = torch.ones(20, 4), torch.ones(20, 3), torch.ones(3, 5)
    pack, stepper = torch.ops.fastrnn.pack_weights.default, torch.ops.fastrnn.stepper.default
    packed = pack(w_ih, w_hh, w_hr, "lstm")
    states = torch.zeros(1, 2, 2, 5)
    assert stepper(states, packed, None, None, [], "lstm", 4, 3).dtype == torch.uint8
    with pytest.raises(RuntimeError, match="proj_size must be 0 to H = 5, got 6"):
        stepper(states, packed, None, None, [], "lstm", 4, 6)
    with pytest.raises(RuntimeError, match="packed must be"):
        stepper(states, packed, None, None, [], "lstm", 4, 2)
    with pytest.raises(RuntimeError, match="proj_size needs cell lstm without gains"):
        stepper(states, packed, None, torch.ones(1, 50), [], "lstm", 4, 3)
    with pytest.raises(RuntimeError, match="must be at least 1, got 1, 2, 5 and 0"):
        stepper(states, packed, None, None, [], "lstm", 0, 3)
    with pytest.raises(RuntimeError, match=r"weight_hr must be \[3, 5\], got \[3, 4\]"):
        pack(w_ih, w_hh, w_hr[:, 1:], "lstm")
