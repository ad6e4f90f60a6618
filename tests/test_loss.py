"""linear_cross_entropy against torch's linear and cross_entropy."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

import fastrnn
from fastrnn import _library, loss
from tests.layers import assert_as_close_as_torch

native = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
FLOORS = {torch.float32: 1e-6, torch.float64: 2e-14, torch.bfloat16: 2**-7}
# M, K, V: odd sizes, one class, sums longer than a slice, several chunks of rows.
SIZES = {
    "odd": (7, 5, 3),
    "one": (4, 16, 1),
    "few": (50, 20, 100),
    "long": (35, 33, 3001),
    "chunks": (130, 6, 60000),
}
OPTIONS = {
    "plain": {},
    "smooth": {"label_smoothing": 0.1, "reduction": "sum"},
    "ignore": {"ignore_index": 0},
}


def torchs(hidden, weight, bias, target, **options):
    return F.cross_entropy(F.linear(hidden, weight, bias), target, **options)


def by_formula(
    hidden, weight, bias, target, ignore_index=-100, label_smoothing=0.0, reduction="mean"
):
    """In float64 closer than torch's own smoothed loss, which is 1e-13 off at 60,000 classes."""
    counted = target != ignore_index
    logits = F.linear(hidden, weight, bias)[counted]
    picked = logits.gather(1, target[counted].unsqueeze(1)).squeeze(1)
    smooth = (1 - label_smoothing) * picked + label_smoothing * logits.mean(1)
    losses = logits.logsumexp(1) - smooth
    return losses.mean() if reduction == "mean" else losses.sum()


def with_gradients(function, tensors, target, options):
    """Loss, then the gradients of three times it."""
    tensors = [None if t is None else t.detach().requires_grad_() for t in tensors]
    value = function(*tensors, target, **options)
    wanted = [t for t in tensors if t is not None]
    return [value.detach(), *torch.autograd.grad(3 * value, wanted)]


def random_case(size, dtype, bias=True):
    rows, features, classes = SIZES[size]
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, features, generator=generator, dtype=torch.float64) / 2
    shift = torch.randn(classes, generator=generator, dtype=torch.float64) if bias else None
    target = torch.randint(classes, (rows,), generator=generator)
    target[0] = classes - 1
    tensors = [hidden, weight, shift]
    return [None if t is None else t.to(dtype) for t in tensors], target


@native
def test_gradients_are_the_callers_own():
    tensors, target = random_case("odd", torch.float64)
    weight = tensors[1].requires_grad_()
    value = loss.linear_cross_entropy(*tensors, target)
    (first,) = torch.autograd.grad(value, weight, retain_graph=True)
    expected = first.clone()
    first.mul_(5)
    (second,) = torch.autograd.grad(value, weight, retain_graph=True)
    assert torch.equal(second, expected)


@native
def test_a_kept_graph_gives_the_same_gradients_again():
    tensors, target = random_case("odd", torch.float64)
    expected = with_gradients(loss.linear_cross_entropy, tensors, target, {})[1:]
    leaves = [t.detach().requires_grad_() for t in tensors]
    value = 3 * loss.linear_cross_entropy(*leaves, target)
    for kept in (True, True, False):
        for leaf in leaves:
            leaf.grad = None
        value.backward(retain_graph=kept)
        for leaf, gradient in zip(leaves, expected, strict=True):
            assert torch.equal(leaf.grad, gradient)
            leaf.grad.mul_(7)  # clipping, say
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@native
def test_gradients_add_up_and_hooks_see_them():
    tensors, target = random_case("odd", torch.float64)
    expected = with_gradients(loss.linear_cross_entropy, tensors, target, {})[1:]
    leaves = [t.detach().requires_grad_() for t in tensors]
    seen = []
    for leaf in leaves:
        leaf.register_hook(lambda g: seen.append(g) or g)
    for factor in (1, 2):
        (factor * loss.linear_cross_entropy(*leaves, target)).backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)
    for first, second in zip(seen[:3], seen[3:], strict=True):
        torch.testing.assert_close(2 * first, second)


@native
def test_what_others_hold_is_not_changed():
    tensors, target = random_case("odd", torch.float64)
    leaves = [t.detach().requires_grad_() for t in tensors]
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        value = 3 * loss.linear_cross_entropy(*leaves, target)
    before = [t.clone() for t in held]
    value.backward()
    for leaf in leaves:
        leaf.grad.mul_(7)
    assert all(map(torch.equal, held, before))


@native
def test_gradients_of_many_factors_at_once():
    tensors, target = random_case("odd", torch.float64)
    leaves = [t.detach().requires_grad_() for t in tensors]
    factors = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    value = loss.linear_cross_entropy(*leaves, target)
    found = torch.autograd.grad(value, leaves, factors, is_grads_batched=True)
    expected = with_gradients(loss.linear_cross_entropy, tensors, target, {})[1:]
    for many, gradient in zip(found, expected, strict=True):
        for i, factor in enumerate(factors):
            torch.testing.assert_close(many[i], gradient * factor / 3)
    found = torch.func.grad(loss.linear_cross_entropy, (0, 1, 2))(*tensors, target)
    for one, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(3 * one, gradient)


@native
def test_a_tangent_that_comes_with_the_gradient():
    tensors, target = random_case("odd", torch.float64)
    hidden = tensors[0].requires_grad_()
    expected = with_gradients(loss.linear_cross_entropy, tensors, target, {})[1] / 3
    value = loss.linear_cross_entropy(*tensors, target)
    with forward_ad.dual_level():
        factor = forward_ad.make_dual(torch.ones_like(value), torch.full_like(value, 5))
        (gradient,) = torch.autograd.grad(value, hidden, factor)
        torch.testing.assert_close(forward_ad.unpack_dual(gradient).tangent, 5 * expected)


@native
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_gradients_through_a_batch_of_losses():
    tensors, target = random_case("odd", torch.float64)
    leaves = [torch.stack([t, t.cos()]).requires_grad_() for t in tensors]

    def total(*tensors):
        return torch.vmap(lambda *one: loss.linear_cross_entropy(*one, target))(*tensors).sum()

    apart = sum(loss.linear_cross_entropy(*one, target) for one in zip(*leaves, strict=True))
    expected = torch.autograd.grad(apart, leaves)
    torch.testing.assert_close(torch.autograd.grad(total(*leaves), leaves), expected)
    compiled = torch.compile(torch.func.grad(total, (0, 1, 2)), backend="aot_eager")
    for gradient in (torch.func.grad(total, (0, 1, 2)), compiled):
        torch.testing.assert_close(gradient(*leaves), expected, rtol=0, atol=1e-14)


@native
def test_what_is_saved_is_handed_out_where_nobody_reads_it_again():
    tensors, target = random_case("long", torch.float32)
    weight = tensors[1].requires_grad_()
    for factor in (1, 3):
        value = factor * loss.linear_cross_entropy(*tensors, target)
        address = value.grad_fn.next_functions[0][0].saved_tensors[-2].data_ptr()
        (gradient,) = torch.autograd.grad(value, weight)
        assert gradient.data_ptr() == address


def assert_close(tensors, target, options, dtype):
    exactly = [None if t is None else t.double() for t in tensors]
    exact = with_gradients(by_formula, exactly, target, options)
    theirs = with_gradients(torchs, tensors, target, options)
    ours = with_gradients(loss.linear_cross_entropy, tensors, target, options)
    for name, *values in zip(("loss", "hidden", "weight", "bias"), ours, theirs, exact):  # noqa: B905
        assert_as_close_as_torch(name, *values, FLOORS[dtype])


@native
@pytest.mark.parametrize("dtype", FLOORS, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradients(size, options, dtype):
    if size == "one" and options == "ignore":
        pytest.skip("no row would count")
    for bias in (True, False):
        tensors, target = random_case(size, dtype, bias)
        assert_close(tensors, target, OPTIONS[options], dtype)


@native
@pytest.mark.parametrize("size", [(3000, 64, 30), (6000, 16, 2)], ids=str)
def test_gradients_round_as_torchs_over_many_rows(size):
    rows, features, classes = size
    generator = torch.Generator().manual_seed(1)
    hidden = torch.rand(rows, features, generator=generator)  # sums that grow
    weight = torch.randn(classes, features, generator=generator) / 10
    target = torch.randint(classes, (rows,), generator=generator)
    tensors = [hidden, weight, torch.zeros(classes)]
    ours = with_gradients(loss.linear_cross_entropy, tensors, target, {})
    peers = with_gradients(torchs, tensors, target, {})
    exact = with_gradients(torchs, [t.double() for t in tensors], target, {})
    for o, t, e in zip(ours[1:], peers[1:], exact[1:], strict=True):
        assert (o - e).norm() <= 2 * (t - e).norm() + 1e-7 * e.norm()


@native
def test_under_autocast_products_are_of_bfloat16():
    tensors, target = random_case("long", torch.float32)
    exact = with_gradients(by_formula, [t.double() for t in tensors], target, {})
    plain = with_gradients(loss.linear_cross_entropy, tensors, target, {})
    with torch.autocast("cpu", torch.bfloat16):
        theirs = with_gradients(torchs, tensors, target, {})
        ours = with_gradients(loss.linear_cross_entropy, tensors, target, {})
    for name, *values in zip(
        ("loss", "hidden", "weight", "bias"), ours, theirs, exact, strict=True
    ):
        assert_as_close_as_torch(name, *values, 2**-9)
    assert all(
        a.dtype == torch.float32 and not a.equal(b) for a, b in zip(ours, plain, strict=True)
    )


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logits_far_from_zero(dtype):
    """Above, below, and on both sides, of some classes or of all."""
    for shift in (-100, -30, 30, 100):
        for part in (slice(None), slice(None, 3), slice(700, 2500), slice(-1, None)):
            tensors, target = random_case("long", dtype)
            tensors[2][part] += shift
            for options in OPTIONS.values():
                assert_close(tensors, target, options, dtype)


@native
@pytest.mark.parametrize(
    ("name", "only"), [("avx512", " and bfloat16"), ("avx2", ""), ("portable", "")]
)
def test_on_lower_instruction_sets(name, only):
    if os.environ.get("FASTRNN_CPU"):
        pytest.skip("this process was started for one instruction set")
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k"]
    environment = os.environ | {"FASTRNN_CPU": name}
    command.append(f"test_loss_and{only}")
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "FASTRNN_CPU must be one of" in found.stdout + found.stderr:
        pytest.skip(f"this processor or build has no {name}")
    assert found.returncode == 0, found.stdout


@native
@pytest.mark.parametrize("size", SIZES)
def test_inference_equals_training_and_threads_do_not_matter(size):
    tensors, target = random_case(size, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(with_gradients(loss.linear_cross_entropy, tensors, target, {}))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert torch.equal(loss.linear_cross_entropy(*tensors, target), results[0][0])


@native
def test_leading_axes_and_strides():
    tensors, target = random_case("long", torch.float64)
    hidden = tensors[0].view(5, 7, -1).transpose(0, 1)
    value = loss.linear_cross_entropy(hidden, tensors[1], tensors[2], target.view(5, 7).T)
    expected = loss.linear_cross_entropy(*tensors, target)
    torch.testing.assert_close(value, expected)


@native
def test_no_row_counts_and_no_rows():
    tensors, target = random_case("odd", torch.float64)
    ignored = torch.full_like(target, -100)
    assert loss.linear_cross_entropy(*tensors, ignored).isnan()
    total = with_gradients(loss.linear_cross_entropy, tensors, ignored, {"reduction": "sum"})
    assert all(not t.any() for t in total)
    options = (-100, 0.1, True, False, True)
    found, default = (op(*tensors, ignored, *options) for op in (loss._OP, loss._default))
    for ours, theirs in zip(found, default, strict=True):
        torch.testing.assert_close(theirs, ours, equal_nan=True)
    assert not any(t.any() for t in default[1:])
    empty = with_gradients(
        loss.linear_cross_entropy, [tensors[0][:0], *tensors[1:]], target[:0], {"reduction": "sum"}
    )
    assert all(not t.any() for t in empty)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_no_rows_or_no_features_as_in_torch(backend, reduction):
    """A mean of no rows is NaN; without features the bias alone makes the logits."""
    tensors, target = random_case("odd", torch.float64)
    rows = [tensors[0][:0], *tensors[1:]], target[:0]
    features = [tensors[0][:, :0], tensors[1][:, :0], tensors[2]], target
    for given, classes in (rows, features):
        options = {"reduction": reduction}
        theirs = with_gradients(torchs, given, classes, options)
        with fastrnn.use_backend(backend):
            ours = with_gradients(loss.linear_cross_entropy, given, classes, options)
            value = loss.linear_cross_entropy(*given, classes, **options)
        for found, expected in zip((*ours, value), (*theirs, theirs[0]), strict=True):
            torch.testing.assert_close(found, expected, equal_nan=True)


@native
def test_the_operator_refuses_no_features():
    tensors, target = random_case("odd", torch.float64)
    hidden, weight, bias = tensors[0][:, :0], tensors[1][:, :0], tensors[2]
    op = torch.ops.fastrnn.linear_cross_entropy.default
    with pytest.raises(RuntimeError, match=r"at least one row and column, got \[3, 0\]"):
        op(hidden, weight, bias, target, -100, 0.0, True, False, True)


@native
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_logits_as_in_torch(value):
    tensors, target = random_case("long", torch.float64)
    tensors[2][5] = value
    target[3] = 5
    ours = with_gradients(loss.linear_cross_entropy, tensors, target, {})
    theirs = with_gradients(torchs, tensors, target, {})
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)
    assert torch.equal(ours[1].isnan(), theirs[1].isnan())


@native
def test_gradients_of_second_order():
    tensors, target = random_case("odd", torch.float64)
    inputs = [t.requires_grad_() for t in tensors]

    def run(*tensors):
        return loss.linear_cross_entropy(*tensors, target, label_smoothing=0.2)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_opcheck_and_compile():
    op = torch.ops.fastrnn.linear_cross_entropy.default
    for dtype, bfloat16 in ((torch.float32, True), (torch.float64, False)):
        tensors, target = random_case("odd", dtype)
        args = (*tensors, target, -100, 0.1, True, bfloat16)
        for gradients in (True, False):
            torch.library.opcheck(op, (*args, gradients))
            found, expected = (f(*args, gradients) for f in (op, loss._default))
            close = {"rtol": 0.0, "atol": 5e-3} if bfloat16 else {}
            torch.testing.assert_close(found, expected, **close)
    compiled = torch.compile(loss.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        with_gradients(compiled, tensors, target, {}),
        with_gradients(loss.linear_cross_entropy, tensors, target, {}),
    )


class Loss(torch.nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, hidden, target):
        return fastrnn.linear_cross_entropy(hidden, self.weight, self.bias, target)


@pytest.mark.parametrize("way", ["export", "strict export", "trace"])
def test_exported_and_traced_programs_have_gradients(way):
    (hidden, weight, bias), target = random_case("odd", torch.float64)
    module, args = Loss(weight, bias), (hidden.requires_grad_(), target)
    if way == "trace":
        program = torch.jit.trace(module, args)
    else:
        program = torch.export.export(module, args, strict="strict" in way).module()
    found, expected = (
        torch.autograd.grad(3 * each(*args), [hidden, *each.parameters()])
        for each in (program, module)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(3, 4)}, r"weight must be \[V, K\] = \[V, 5\], got \[3, 4\]"),
        ({"bias": torch.zeros(4)}, r"bias must be \[V\] = \[3\], got \[4\]"),
        (
            {"target": torch.zeros(6, dtype=torch.int64)},
            r"target must be \[7\], one for each row of hidden \[7, 5\], got \[6\]",
        ),
        ({"hidden": torch.zeros([])}, r"hidden must be \[..., K\], got \[\]"),
        ({"target": torch.zeros(7)}, "target must be int64, got torch.float32"),
        ({"weight": torch.zeros(3, 5).double()}, "weight must be torch.float32, got torch.float64"),
        ({"label_smoothing": 2.0}, r"label_smoothing must be in \[0, 1\], got 2.0"),
        (
            {"hidden": torch.zeros(7, 5).long()},
            "hidden must be of a floating dtype, got torch.int64",
        ),
        ({"reduction": "none"}, "reduction must be 'mean' or 'sum', got 'none'"),
    ],
)
def test_errors_name_argument_expected_and_got(change, message):
    arguments = {
        "hidden": torch.zeros(7, 5),
        "weight": torch.zeros(3, 5),
        "bias": torch.zeros(3),
        "target": torch.zeros(7, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=f"linear_cross_entropy: .*{message}"):
        loss.linear_cross_entropy(**(arguments | change))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ignore_index": "a"}, "ignore_index must be an int, got str"),
        ({"ignore_index": 1.5}, "ignore_index must be an int, got float"),
        ({"label_smoothing": "a"}, "label_smoothing must be a number, got str"),
    ],
)
def test_options_of_another_type(option, message):
    tensors, target = random_case("odd", torch.float32)
    with pytest.raises(TypeError, match=f"^linear_cross_entropy: {message}$"):
        loss.linear_cross_entropy(*tensors, target, **option)


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3, 1)])
def test_a_target_laid_out_otherwise_is_refused(shape):
    """Its rows would be other rows' targets."""
    hidden, weight = torch.zeros(2, 3, 5), torch.zeros(4, 5)
    message = r"target must be \[2, 3\], one for each row of hidden \[2, 3, 5\], got "
    with pytest.raises(ValueError, match=message + re.escape(str(list(shape)))):
        loss.linear_cross_entropy(hidden, weight, None, torch.zeros(shape, dtype=torch.int64))


def test_what_is_no_tensor_and_rows_without_axes():
    tensors, target = random_case("odd", torch.float32)
    with pytest.raises(TypeError, match="linear_cross_entropy: target must be a Tensor, got list"):
        loss.linear_cross_entropy(*tensors, target.tolist())
    hidden, *rest = tensors
    one = loss.linear_cross_entropy(hidden[0], *rest, target[0])
    torch.testing.assert_close(one, loss.linear_cross_entropy(hidden[:1], *rest, target[:1]))


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_any_mix_of_dtypes(lower):
    tensors, target = random_case("long", torch.float32)
    tensors[0] = tensors[0].to(lower)  # as a layer's output comes, beside float32 weights
    exact = with_gradients(by_formula, [t.double() for t in tensors], target, {})
    with torch.autocast("cpu", lower):
        theirs = with_gradients(torchs, tensors, target, {})
        ours = with_gradients(loss.linear_cross_entropy, tensors, target, {})
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    for name, *values in zip(
        ("loss", "hidden", "weight", "bias"), ours, theirs, exact, strict=True
    ):
        assert_as_close_as_torch(name, *values, 2**-9)


@native
@pytest.mark.parametrize("wrong", [3, -1])
def test_target_out_of_range(wrong):
    tensors, target = random_case("odd", torch.float32)
    target[2] = wrong
    with pytest.raises(RuntimeError, match=rf"target must be in \[0, 3\), got {wrong}"):
        loss.linear_cross_entropy(*tensors, target)
