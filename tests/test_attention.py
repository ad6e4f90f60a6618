"""masked_attention against its definition in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import fastrnn
from fastrnn import _attention, _library
from fastrnn.functional import masked_attention
from tests.attentions import AXES, by_definition, kept, random_case
from tests.layers import assert_as_close_as_torch

pytestmark = pytest.mark.usefixtures("poisoned_memory")
native = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
FLOORS = {torch.float32: 1e-6, torch.float64: 2e-14}
# B, heads, Lq, Lk, E, D: odd sizes, the seeds' own, a key beyond whole vectors, several blocks of
# each kind, one column, a few queries of many keys.
SIZES = {
    "odd": (2, 3, 5, 7, 8, 6),
    "words": (2, 2, 35, 35, 32, 32),
    "few": (2, 2, 14, 33, 20, 36),
    "long": (1, 1, 110, 270, 64, 64),
    "wide": (1, 1, 201, 140, 24, 250),
    "one": (1, 2, 3, 1, 1, 1),
    "step": (2, 3, 2, 300, 40, 70),
}
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "dropout": {"dropout_p": 0.3},
    "both": {"is_causal": True, "dropout_p": 0.5},
}
MASKS = [None, *((axes, False) for axes in AXES), ("full", True), ("bias", True), ("keys", True)]


def with_gradients(case, attend):
    """Output, and the gradients of its product with a fixed tensor."""
    leaves = [t.detach().requires_grad_() for t in case.differentiable]
    output = attend(case.with_tensors(*leaves))
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def ours(case):
    return _attention.MaskedAttention.apply(*case.arguments)[0]


def assert_as_close(case, dtype, attend=ours):
    exact, theirs = with_gradients(case, by_definition), None
    theirs = with_gradients(case.to(dtype), by_definition)
    found = with_gradients(case.to(dtype), attend)
    largest = max(t.abs().max().item() for t in exact if t.numel())
    for name, *values in zip(("output", "query", "key", "value", "mask"), found, theirs, exact):  # noqa: B905
        assert_as_close_as_torch(name, *values, FLOORS[dtype], largest)


@native
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients(size, options, dtype):
    for mask in MASKS:
        axes, additive = mask or (None, False)
        assert_as_close(random_case(SIZES[size], axes, additive, **OPTIONS[options]), dtype)


@native
@pytest.mark.parametrize("name", ["avx2", "portable"])
def test_on_lower_instruction_sets(name):
    if os.environ.get("FASTRNN_CPU"):
        pytest.skip("this process was started for one instruction set")
    some = "(test_values or rounded) and (odd or few or long or step)"
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", some]
    environment = os.environ | {"FASTRNN_CPU": name}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "FASTRNN_CPU must be one of" in found.stdout + found.stderr:
        pytest.skip(f"this processor or build has no {name}")
    assert found.returncode == 0, found.stdout


@native
@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(
    st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 150)] * 2, *[st.integers(1, 70)] * 2),
    st.sampled_from(MASKS),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 0.999]),
)
def test_random_sizes(sizes, mask, is_causal, dropout_p):
    axes, additive = mask or (None, False)
    assert_as_close(random_case(sizes, axes, additive, is_causal, dropout_p), torch.float64)


@native
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("size", ["words", "long"])
def test_scores_far_from_zero(size, dtype):
    """Below, above, and on both sides: a row whose weights would vanish, or overflow, as they are;
    in the first keys only, in the last, or in one query."""
    for shift in (-100, -30, 30, 100):
        for part in (slice(None), slice(None, 3), slice(-3, None)):
            case = random_case(SIZES[size], "full", True)
            case.mask[..., part] += shift
            assert_as_close(case, dtype)
            case = random_case(SIZES[size], "full", True, is_causal=True, dropout_p=0.2)
            case.mask[..., 7:8, part] += shift
            assert_as_close(case, dtype)
    case = random_case(SIZES[size], "heads")
    assert_as_close(replace(case, scale=6.0), dtype)


@native
@pytest.mark.parametrize("heads", [1, 3, 16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_do_not_matter(heads, dtype):
    case = random_case((1, heads, 300, 300, 24, 40), "bias", True, True, 0.2).to(dtype)
    case.mask = case.mask[:, :1].contiguous()  # one for all heads
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(with_gradients(case, ours))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@native
@pytest.mark.parametrize("layout", ["contiguous", "heads inside rows"])
def test_many_short_heads(layout):
    """Gradients so large go past the caches; some heads and some queries attend to nothing."""
    sizes = 128, 16, 17, 35, 32, 32
    case = random_case(sizes, "full")
    case.mask[::3, 5] = False
    case.mask[1::3, :, :, 20:] = False
    if layout != "contiguous":
        case.tensors = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in case.tensors]
    assert_as_close(case, torch.float32)


@native
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("keys", [3, 19, 36])
def test_blocks_of_queries_whose_last_ones_attend_to_nothing(keys, dtype):
    """Rows of scores shorter than their last panel; 96 queries are whole blocks of every set."""
    case = random_case((1, 2, 96, keys, 8, 8), "full", additive=True)
    case.mask[:, :, 20:32] = case.mask[:, :, 36:48] = case.mask[:, :, 84:] = -torch.inf
    assert_as_close(case, dtype)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=native), "reference"])
def test_a_query_that_attends_to_nothing_gives_zeros(backend):
    for additive in (False, True):
        case = random_case((1, 2, 20, 40, 8, 8), "full", additive)
        case.mask[:, :, 4] = -torch.inf if additive else False
        case.mask[:, 1] = -torch.inf if additive else False
        leaves = [t.requires_grad_() for t in case.differentiable]
        with fastrnn.use_backend(backend):
            output = masked_attention(*case.tensors, case.mask)
            grads = torch.autograd.grad(output.sum(), leaves)
        assert not output[:, :, 4].any() and not output[:, 1].any() and output[:, 0, 5].all()
        assert not grads[0][:, :, 4].any() and not any(g[:, 1].any() for g in grads)
        assert all(g.isfinite().all() for g in grads) and grads[2][:, 0].any()


@native
@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_nothing_to_do(sizes):
    case = random_case((*sizes, 8, 8))
    output, *grads = with_gradients(case, ours)
    assert output.shape == case.tensors[0].shape and not output.any()
    assert all(not g.any() and g.shape == t.shape for g, t in zip(grads, case.tensors, strict=True))


@native
def test_inputs_of_any_strides():
    case = random_case((3, 2, 40, 50, 24, 24), "full", True)
    expected = with_gradients(case, ours)
    layouts = {
        "heads inside rows": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        "rows inside columns": lambda t: t.mT.contiguous().mT,
        "every other": lambda t: torch.stack((t, t), -1).flatten(-2)[..., ::2],
    }
    for name, lay in layouts.items():
        strided = case.with_tensors(*map(lay, case.differentiable))
        assert not strided.tensors[0].is_contiguous()
        found = with_gradients(strided, ours)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name
    output = masked_attention(*map(layouts["heads inside rows"], case.tensors))
    assert output.transpose(1, 2).is_contiguous()  # what an output projection reads


@native
def test_expanded_inputs_and_masks():
    case = random_case((2, 3, 9, 11, 8, 8), "keys")
    query, key, value = (t[:1, :1].expand(2, 3, -1, -1) for t in case.tensors)
    mask = case.mask.expand(2, 3, 9, 11)
    expected = masked_attention(query.clone(), key.clone(), value.clone(), case.mask)
    assert torch.equal(masked_attention(query, key, value, mask), expected)
    one = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    masked_attention(*case.tensors, one.expand(2, 3, 9, 11)).sum().backward()
    assert one.grad.abs() < 1e-12


def test_leading_axes_and_integer_masks():
    case = random_case((2, 3, 5, 7, 8, 8), "heads")
    expected = masked_attention(*case.tensors, case.mask)
    assert torch.equal(masked_attention(*case.tensors, case.mask.long()), expected)
    one = [t[1, 2] for t in case.tensors]
    torch.testing.assert_close(masked_attention(*one, case.mask[1, 0]), expected[1, 2])
    flat = [t.flatten(0, 1) for t in case.tensors]
    mask = case.mask.expand(-1, 3, -1, -1).flatten(0, 1)
    torch.testing.assert_close(masked_attention(*flat, mask), expected.flatten(0, 1))
    deep = [torch.stack((t, t.flip(0))) for t in case.tensors]
    found = masked_attention(*deep, case.mask)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], masked_attention(*deep, case.mask)[1])


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lower_precision(dtype):
    case = random_case((1, 2, 50, 60, 32, 32), "bias", True).to(dtype)

    def attend(case):
        return masked_attention(*case.tensors, case.mask)

    def torchs(case):
        return F.scaled_dot_product_attention(*case.tensors, case.mask)

    found, theirs = with_gradients(case, attend), with_gradients(case, torchs)
    exact = with_gradients(case.to(torch.float64), by_definition)
    for name, *values in zip(("output", "query", "key", "value", "mask"), found, theirs, exact):  # noqa: B905
        assert values[0].dtype == dtype
        assert_as_close_as_torch(name, *values, torch.finfo(dtype).eps)
    with fastrnn.use_backend("reference"):
        assert_as_close_as_torch("reference", attend(case), theirs[0], exact[0], 1e-3)
    with torch.autocast("cpu", dtype):
        output = masked_attention(*(t.float() for t in case.tensors), case.mask.float())
    assert output.dtype == dtype and torch.equal(output, found[0])


@native
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_is_float32_rounded(size, options):
    forward = torch.ops.fastrnn.masked_attention
    backward = torch.ops.fastrnn.masked_attention_backward
    for mask in MASKS:
        axes, added = mask or (None, False)
        case = random_case(SIZES[size], axes, added, **OPTIONS[options]).to(torch.bfloat16)
        wide = case.to(torch.float32)
        (output, sums), (exact, exact_sums) = forward(*case.arguments), forward(*wide.arguments)
        assert torch.equal(output, exact.bfloat16()) and torch.equal(sums, exact_sums)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        *tensors, seed = case.arguments[:5]
        found = backward(grad, *tensors, seed, output, sums, *case.options, added)
        *tensors, seed = wide.arguments[:5]
        known = (grad.float(), *tensors, seed, output.float(), sums)
        for one, other in zip(found, backward(*known, *case.options, added), strict=True):
            assert one.dtype == torch.bfloat16 and torch.equal(one, other.bfloat16())


@native
def test_dropout_takes_the_words_it_names():
    case = random_case((2, 3, 6, 70, 4, 70), dropout_p=0.3)
    case.tensors[0].zero_()  # every weight 1 / 70, and the values read them out
    case.tensors[2] = torch.eye(70, dtype=torch.float64).expand(2, 3, 70, 70)
    expected = kept(case) / 70 / 0.7
    torch.testing.assert_close(ours(case), expected)
    assert 0.65 < kept(case).mean() < 0.75


@native
def test_dropout_draws_from_torchs_generator():
    tensors = random_case((2, 2, 30, 40, 8, 8)).tensors
    plain = masked_attention(*tensors)

    def draw():
        return masked_attention(*tensors, dropout_p=0.4)

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert torch.equal(draw(), first) and not torch.equal(second, first)
    draws = torch.stack([draw() for _ in range(400)])
    assert ((draws.mean(0) - plain).abs() <= 6 * draws.std(0) / 20).all()


@native
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_scores_as_in_torch(value):
    case = random_case((1, 1, 20, 50, 8, 8))
    case.tensors[0][0, 0, 3, 2] = value
    expected = F.scaled_dot_product_attention(*case.tensors)
    torch.testing.assert_close(ours(case), expected, equal_nan=True)


@native
@pytest.mark.slow
def test_memory_grows_with_the_length_alone():
    code = (
        "import resource, torch\n"
        "from fastrnn.functional import masked_attention\n"
        "tensors = [torch.randn(1, 1, 16384, 8, requires_grad=True) for _ in range(3)]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "masked_attention(*tensors, is_causal=True).sum().backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 1024  # KiB; the scores alone would be 1 GiB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(5)}, r"query must be \[..., Lq, E\], got \[5\]"),
        ({"query": torch.zeros(2, 3, 5, 0)}, r"query must be .* with E of at least 1"),
        ({"query": torch.zeros(2, 3, 5, 8).long()}, "query must be of a floating dtype"),
        ({"key": torch.zeros(2, 3, 7, 9)}, r"key must be \[2, 3, 'Lk', 8\], got \[2, 3, 7, 9\]"),
        ({"value": torch.zeros(2, 3, 6, 8)}, r"value must be \[2, 3, 7, 'D'\], got \[2, 3, 6, 8\]"),
        ({"value": torch.zeros(2, 3, 7, 8).double()}, "value must be torch.float32, got"),
        ({"key": torch.zeros(2, 3, 7, 8, device="meta")}, "key must be on cpu, got meta"),
        (
            {"mask": torch.zeros(2, 3, 7, 5)},
            r"mask must be broadcastable to .* = \[2, 3, 5, 7\], got \[2, 3, 7, 5\]",
        ),
        ({"mask": torch.zeros(5, 7, device="meta")}, "mask must be on cpu, got meta"),
        ({"mask": torch.zeros(5, 7).half()}, "mask must be torch.float32, got torch.float16"),
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\), got 1.0"),
        ({"dropout_p": -0.1}, r"dropout_p must be in \[0, 1\), got -0.1"),
        ({"dropout_p": "0.1"}, r"dropout_p must be in \[0, 1\), got '0.1'"),
        ({"scale": float("inf")}, "scale must be finite, got inf"),
        ({"scale": float("nan")}, "scale must be finite, got nan"),
    ],
)
def test_errors_name_argument_expected_and_got(change, message):
    arguments = {
        "query": torch.zeros(2, 3, 5, 8),
        "key": torch.zeros(2, 3, 7, 8),
        "value": torch.zeros(2, 3, 7, 8),
    }
    with pytest.raises(ValueError, match=f"masked_attention: {message}"):
        masked_attention(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[({name: [1]}, f"{name} must be a Tensor, got list") for name in ("query", "mask")],
        ({"is_causal": "no"}, "is_causal should be of type bool, got: str"),
        ({"scale": "a"}, "scale must be a number, got str"),
    ],
)
def test_arguments_of_another_type(change, message):
    one = torch.zeros(2, 3, 5, 8)
    with pytest.raises(TypeError, match=f"^masked_attention: {message}$"):
        masked_attention(**({"query": one, "key": one, "value": one} | change))
