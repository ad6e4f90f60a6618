"""fastrnn.recurrence: accuracy over cells, dtypes and shapes, determinism, bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

import fastrnn
from fastrnn import _library, ops
from fastrnn.cells import CELLS
from tests.layers import assert_all_as_close_as_torch, everything, random_layer

pytestmark = pytest.mark.usefixtures("poisoned_memory")
native = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
# A few roundings of each dtype, relative to the largest value.
FLOORS = {torch.float32: 1e-6, torch.float64: 2e-14, torch.bfloat16: 2**-7}
# batch_sizes, I, H: single steps, ragged batches, sizes around the vector and tile widths, rows
# beyond one slice of the weights' gradients.
SHAPES = {
    "one": ([1], 1, 1),
    "step": ([5], 20, 33),
    "padded": ([5, 5], 33, 128),
    "ragged": ([9, 9, 4, 4, 1, 0], 7, 40),  # the last step has no sequence left
    "long": ([1] * 63, 16, 16),
    "uneven": ([9] * 9 + [4] * 8 + [1], 7, 40),  # steps enough for threads of their own sequences
    "tall": ([100] * 16, 12, 17),
    "wide": ([20] * 3, 70, 200),
}


@native
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize(
    ("shape", "extras"),
    [(shape, None) for shape in SHAPES]
    + [(shape, mode) for shape in ("step", "ragged") for mode in ("training", "evaluation")],
)
@pytest.mark.parametrize("cell", CELLS)
def test_grid(cell, shape, dtype, extras):
    for reverse in (False, True):
        for bias, projected in ((True, False), (False, False), (True, True)):
            layer = random_layer(
                cell, *SHAPES[shape], bias=bias, projected=projected, reverse=reverse
            )
            if extras is not None:
                layer = layer.with_extras(drawn=extras == "training")
            rounded = layer.to(dtype)
            results = (
                everything(ops.Recurrence.apply, rounded),
                everything(ops.reference, rounded),
                everything(ops.reference, rounded.to(torch.float64)),
            )
            if (cell, dtype) == ("rnn_relu", torch.bfloat16):
                # A unit near 0 that bfloat16 puts on the other side of relu's kink has another
                # gradient altogether.
                results = [
                    {n: t for n, t in each.items() if not n.startswith("grad_")} for each in results
                ]
            assert_all_as_close_as_torch(*results, FLOORS[dtype])


@native
@pytest.mark.parametrize(
    ("batch_sizes", "H"),
    [
        (list(range(27, 0, -1)), 600),
        ([50, 13, 2], 1040),  # sums in several slices either way, gradients larger than a cache
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_any_number_of_rows_by_weights_of_a_far_cache(cell, batch_sizes, H):
    layer = random_layer(cell, batch_sizes, 8, H).to(torch.float32)
    exact = everything(ops.reference, layer.to(torch.float64))
    found = everything(ops.Recurrence.apply, layer), everything(ops.reference, layer)
    assert_all_as_close_as_torch(*found, exact, FLOORS[torch.float32])


@native
@pytest.mark.parametrize(
    ("name", "only"), [("avx512", " and bfloat16"), ("avx2", ""), ("portable", "")]
)
def test_grid_on_lower_instruction_sets(name, only):
    if os.environ.get("FASTRNN_CPU"):
        pytest.skip("this process was started for one instruction set")
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k"]
    found = subprocess.run(
        [*command, f"(test_grid and (ragged or wide) or same_bits or nearest){only}"],
        env=os.environ | {"FASTRNN_CPU": name},
        capture_output=True,
        text=True,
    )
    if "FASTRNN_CPU must be one of" in found.stdout + found.stderr:
        pytest.skip(f"this processor or build has no {name}")
    assert found.returncode == 0, found.stdout
    assert " passed" in found.stdout


@native
def test_bfloat16_is_rounded_to_the_nearest_of_two_to_the_even():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, generator=generator).bfloat16()
    bias = torch.randn(2000, generator=generator).bfloat16() * 2**-5
    ties = torch.tensor([1.0, 1 + 2**-7, 3e38, torch.inf, torch.nan])
    x[:5], bias[:5] = ties.bfloat16(), torch.tensor([2**-8, 2**-8, 3e38, 1, 1]).bfloat16()
    zeros, w = torch.zeros(1, 1, 2000).bfloat16(), torch.zeros(2000, 2000).bfloat16()
    output, _ = fastrnn.recurrence("rnn_relu", x[None, None], zeros, None, w, None, bias)
    assert torch.equal(output[0, 0].nan_to_num(-1), (x + bias).relu().nan_to_num(-1))
    assert output[0, 0, :4].tolist() == [1.0, 1 + 2**-6, torch.inf, torch.inf]


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", [False, True])
def test_same_bits_for_any_number_of_threads_and_run(cell, extras, dtype):
    before = torch.get_num_threads()
    # Sequences enough for two threads to take some each, not for seven; then fewer, then one.
    layer = random_layer(cell, [20] * 14 + [13, 5, 1], 50, 200).to(dtype)
    layer = layer.with_extras(drawn=True) if extras else layer
    try:
        results = []
        for threads in (1, 2, 7, 2):
            torch.set_num_threads(threads)
            results.append(everything(ops.Recurrence.apply, layer).values())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@native
@pytest.mark.parametrize("cell", CELLS)
def test_inference_equals_training(cell):
    layer = random_layer(cell, [6, 6, 3], 10, 24)
    trained = torch.ops.fastrnn.recurrence.default(*layer.arguments, True)
    inferred = torch.ops.fastrnn.recurrence.default(*layer.arguments, False)
    assert torch.equal(trained[0], inferred[0])
    assert torch.equal(trained[1], inferred[1])
    assert inferred[2].numel() == inferred[3].numel() == 0


@native
@pytest.mark.parametrize("shape", ["ragged", "wide"])
@pytest.mark.parametrize("cell", CELLS)
def test_packed_weights_give_the_same_bits(cell, shape):
    for dtype in FLOORS:
        layer = random_layer(cell, *SHAPES[shape], reverse=True).to(dtype)
        x, state, w_ih, w_hh, b_ih, b_hh = (t.detach() for t in layer.present)
        packed = torch.ops.fastrnn.pack_weights.default(w_ih, w_hh, None, cell)
        run = torch.ops.fastrnn.recurrence_packed.default
        for extras in (False, True):
            layer = layer.with_extras(drawn=True) if extras else layer
            rest = (None, *layer.rows, cell, 0, True, True)
            output, state_n, cells = run(x, state, packed, b_ih, b_hh, *rest)
            expected = torch.ops.fastrnn.recurrence.default(*layer.arguments, True)
            assert torch.equal(output, expected[0])
            assert torch.equal(state_n, expected[1])
            assert torch.equal(cells, expected[2])
        with pytest.raises(RuntimeError, match="recurrence: packed must be"):
            run(x, state, packed[:-1], b_ih, b_hh, *rest)


@native
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("cell", CELLS)
def test_non_finite_input_reaches_the_output_and_no_other_sequence(cell, value, dtype):
    layer = random_layer(cell, [3] * 4, 5, 20).to(dtype)
    close = partial(torch.testing.assert_close, equal_nan=True)
    if dtype == torch.bfloat16:
        close = partial(close, rtol=0.0, atol=0.05)
    with torch.no_grad():
        clean = ops.reference(*layer.arguments)[0].unflatten(0, (4, 3))
        layer.tensors[0][4, 0] = value  # step 1, sequence 1, next to sequence 0's odd last number
        ours = torch.ops.fastrnn.recurrence.default(*layer.arguments, False)[0]
        expected = ops.reference(*layer.arguments)[0]
    assert torch.equal(ours.isnan(), expected.isnan())
    close(ours, expected)
    others = ours.unflatten(0, (4, 3))[:, [0, 2]]
    close(others, clean[:, [0, 2]])


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
@pytest.mark.parametrize("cell", CELLS)
def test_an_infinite_state_is_what_it_is_in_the_reference(cell, value, dtype):
    """A gate of -inf is 0 and no small number: 0 times infinity is NaN."""
    layer = random_layer(cell, [3] * 2, 5, 20).to(dtype)
    with torch.no_grad():
        layer.tensors[1][0, 1, 0] = value
        ours = torch.ops.fastrnn.recurrence.default(*layer.arguments, False)[0]
        expected = ops.reference(*layer.arguments)[0]
    torch.testing.assert_close(ours, expected, equal_nan=True)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_past_a_nan_are_the_references(cell, dtype):
    layer = random_layer(cell, [3] * 4, 5, 20).to(dtype)
    with torch.no_grad():
        layer.tensors[0][4, 0] = float("nan")  # step 1, sequence 1
    found, expected = (
        torch.autograd.grad(run(*layer.arguments)[0].sum(), layer.present)
        for run in (ops.Recurrence.apply, ops.reference)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@native
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
def test_extreme_gates_saturate(dtype):
    values = [0.0, -0.0, 1e-30, -1e-6, 1e-3, 0.3, -5.0, 12.0, -40.0, 1e4, -1e30]
    x = torch.tensor(values, dtype=dtype).unsqueeze(1)
    zeros = torch.zeros(1, len(values), 1, dtype=dtype)
    w = torch.zeros(1, 1, dtype=dtype)
    output, _ = fastrnn.recurrence("rnn_tanh", x.unsqueeze(0), zeros, None, w)
    exact = torch.tanh(x.double())
    error = (output[0].double() - exact).abs() / exact.abs().clamp_min(torch.finfo(dtype).tiny)
    assert error.max() <= 4 * torch.finfo(dtype).eps  # relative, near zero too


@native
def test_updates_through_data_are_seen():
    layer = random_layer("lstm", [4] * 3, 6, 16)
    first = ops.Recurrence.apply(*layer.arguments)[0]
    layer.tensors[3].data.add_(0.1)
    second = ops.Recurrence.apply(*layer.arguments)[0]
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, ops.reference(*layer.arguments)[0])


@native
@pytest.mark.parametrize("cell", CELLS)
def test_empty_batch(cell):
    c = CELLS[cell]
    x = torch.zeros(3, 0, 5, requires_grad=True)
    state = torch.zeros(c.states, 0, 4)
    w_ih = torch.ones(c.gates * 4, 5, requires_grad=True)
    w_hh = torch.ones(c.gates * 4, 4, requires_grad=True)
    output, state_n = fastrnn.recurrence(cell, x, state, w_ih, w_hh)
    assert output.shape == (3, 0, 4)
    assert state_n.shape == (c.states, 0, 4)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(w_hh.grad, torch.zeros_like(w_hh))
    assert torch.equal(w_ih.grad, torch.zeros_like(w_ih))


@native
def test_strided_arguments():
    layer = random_layer("gru", [4] * 3, 6, 16)
    x, state, w_ih, w_hh, b_ih, b_hh = layer.present
    expected = ops.reference(*layer.arguments)[0]
    output, _ = fastrnn.recurrence(
        "gru",
        x.unflatten(0, (3, 4)).transpose(0, 1).contiguous().transpose(0, 1),
        state.repeat_interleave(2, dim=2)[..., ::2],
        w_ih.T.contiguous().T,
        w_hh.T.contiguous().T,
        b_ih.repeat_interleave(3)[::3],
        b_hh,
    )
    torch.testing.assert_close(output.flatten(0, 1), expected)
    # An expanded gradient, as sum() sends back.
    (ours,) = torch.autograd.grad(output.sum(), w_hh, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), w_hh)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native)])
def test_last_states_come_as_the_first_ones(backend):
    layer = random_layer("lstm", [4] * 3, 6, 5, proj_size=5)
    x, state, w_ih, w_hh, b_ih, b_hh, w_hr = layer.present
    weights = (w_ih, w_hh, b_ih, b_hh)
    with fastrnn.use_backend(backend):
        x = x.unflatten(0, (3, 4))
        _, stacked = fastrnn.recurrence("lstm", x, state, *weights, weight_hr=w_hr)
        _, pair = fastrnn.recurrence("lstm", x, tuple(state), *weights, weight_hr=w_hr)
    assert isinstance(pair, tuple)
    assert stacked.shape == state.shape
    assert torch.equal(stacked, torch.stack(pair))


@native
def test_one_pool_of_threads_of_one_dtype_at_a_time():
    """Calls from several Python threads at once do not share scratch memory."""
    from concurrent.futures import ThreadPoolExecutor

    layers = [random_layer("lstm", [8] * 5, 12, 64, seed=s).to(torch.float32) for s in range(4)]
    run = torch.ops.fastrnn.recurrence.default
    with torch.no_grad():
        expected = [run(*layer.arguments, False)[0] for layer in layers]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(10):
                found = pool.map(lambda layer: run(*layer.arguments, False)[0], layers)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def call(**changes):
    """A good GRU call with some arguments changed."""
    arguments = {
        "cell": "gru",
        "input": torch.zeros(4, 2, 3),
        "state": torch.zeros(1, 2, 5),
        "weight_ih": torch.zeros(15, 3),
        "weight_hh": torch.zeros(15, 5),
        "bias_ih": torch.zeros(15),
        "bias_hh": torch.zeros(15),
    }
    return fastrnn.recurrence(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # ruff: noqa: E501
        ({"cell": "grue"}, r"cell must be one of .*, got 'grue'"),
        ({"input": torch.zeros(4, 3)}, r"input must be \[T, B, I\], got \[4, 3\]"),
        ({"weight_hh": torch.zeros(5, 15)}, r"weight_hh must be \[G\*H, H\] = \[15, 5\], got \[5, 15\]"),
        ({"weight_ih": torch.zeros(15, 4)}, r"weight_ih must be \[G\*H, I\] = \[15, 3\], got \[15, 4\]"),
        ({"weight_ih": None}, r"input must be \[..., G\*H\] \(x_proj\) = \[4, 2, 15\], got \[4, 2, 3\]"),
        ({"weight_ih": None, "input": torch.zeros(4, 2, 15)}, r"bias_ih must be None without weight_ih: .*; got \[15\]"),
        ({"bias_hh": torch.zeros(14)}, r"bias_hh must be \[G\*H\] = \[15\], got \[14\]"),
        ({"state": torch.zeros(1, 3, 5)}, r"state must be \[B, H\] = \[2, 5\], got \[3, 5\]"),
        ({"state": torch.zeros(2, 2, 5)}, r"state must hold S = 1 tensors, got 2"),
        ({"state": torch.zeros(1, 5)}, r"state must be \[S, B, H\], got \[1, 5\]"),
        ({"state": torch.tensor(1.0)}, r"state must be \[S, B, H\], got \[\]"),
        ({"state": (torch.zeros(5),)}, r"each state must be \[B, H\], got \[5\]"),
        ({"input": torch.zeros(0, 2, 3)}, r"input must be of at least one step, T = 1, got \[0, 2, 3\]"),
        ({"weight_hh": torch.zeros(15, 5).double()}, r"weight_hh must have the input's dtype"),
        ({"bias_ih": torch.zeros(15, device="meta")}, r"bias_ih must be on the input's device cpu"),
        ({"weight_hr": torch.zeros(5, 5)}, r"weight_hr must be None for a cell of one state"),
        ({"batch_sizes": torch.tensor([2, 2])}, r"input must be \[N, I\], got \[4, 2, 3\]"),
    ],
)  # fmt: skip
def test_errors_name_argument_expected_and_got(changes, message):
    for backend in ("auto", "reference"):
        with (
            fastrnn.use_backend(backend),
            pytest.raises(ValueError, match=f"recurrence: {message}") as raised,
        ):
            call(**changes)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": [[1.0]]}, "input must be a Tensor, got list"),
        ({"state": None}, "state must be a Tensor, got NoneType"),
        ({"state": [None]}, "state must be a Tensor, got NoneType"),
        ({"weight_hh": None}, "weight_hh must be a Tensor, got NoneType"),
        ({"bias_hh": 0.0}, "bias_hh must be a Tensor, got float"),
        ({"batch_sizes": [2, 2]}, "batch_sizes must be a Tensor, got list"),
        ({"reverse": "x"}, "reverse should be of type bool, got: str"),
        ({"return_cells": 1}, "return_cells should be of type bool, got: int"),
    ],
)
def test_arguments_of_another_type(changes, message):
    with pytest.raises(TypeError, match=f"^recurrence: {message}$"):
        call(**changes)


def test_states_of_another_dtype_or_device():
    h, c = torch.zeros(2, 5), torch.zeros(2, 5)
    given = {"weight_ih": torch.zeros(20, 3), "weight_hh": torch.zeros(20, 5)}
    given |= {"bias_ih": None, "bias_hh": None}
    with pytest.raises(
        ValueError, match=r"state must have the input's dtype .*, got torch.float64"
    ):
        call(cell="lstm", state=(h, c.double()), **given)
    with pytest.raises(ValueError, match="state must be on the input's device cpu, got meta"):
        call(cell="lstm", state=(h, c.to("meta")), **given)
    with pytest.raises(ValueError, match="input must be of a floating dtype, got torch.int64"):
        call(input=torch.zeros(4, 2, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 3], r"non-increasing from B = 2 to at least 1, got \[2, 3\]"),
        ([1, 1], r"non-increasing from B = 2"),
        ([2, 0], r"to at least 1"),
        ([], r"non-increasing from B = 2"),
        ([2, 1], r"must sum to N = 4, got 3"),
    ],
)
def test_bad_batch_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        call(input=torch.zeros(4, 3), batch_sizes=torch.tensor(sizes, dtype=torch.int64))


def test_batch_sizes_of_another_dtype():
    with pytest.raises(
        ValueError, match=r"batch_sizes must be a CPU int64 tensor \[T\], got torch.int32"
    ):
        call(input=torch.zeros(4, 3), batch_sizes=torch.tensor([2, 2], dtype=torch.int32))


@native
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_weights_gradients_round_as_torchs_over_many_rows(name):
    def gradients(module, x):
        return torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))

    errors = []
    for seed in range(3):
        torch.manual_seed(seed)
        peer = getattr(torch.nn, name)(64, 64)
        ours, exact = getattr(fastrnn, name)(64, 64), getattr(torch.nn, name)(64, 64).double()
        ours.load_state_dict(peer.state_dict())
        exact.load_state_dict(peer.state_dict())
        x = torch.randn(35, 20, 64).abs()  # sums that grow
        found = zip(
            gradients(ours, x), gradients(peer, x), gradients(exact, x.double()), strict=True
        )
        errors += [[((g - e).norm() / e.norm()).item() for g in (o, p)] for o, p, e in found]
    mine, torchs = torch.tensor(errors).view(3, -1, 2).median(0).values.unbind(1)
    assert (mine <= 2 * torchs).all(), (mine, torchs)
