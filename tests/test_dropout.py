"""Dropout by masks that are a function of one number."""

import pytest
import torch
from torch.autograd import forward_ad

import fastrnn
from fastrnn import _dropout, _library
from fastrnn._dropout import dropout

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
op = torch.ops.fastrnn.dropout.default
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SEED = torch.tensor([0x0123456789ABCDEF])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (63,), (64,), (65,), (7, 3, 50), (40, 1000)])
def test_masks_are_those_of_the_reference(shape, dtype):
    x = torch.randn(shape).to(dtype)
    for p in (0.0, 0.25, 0.9):
        assert torch.equal(op(x, SEED, p), _dropout._default(x, SEED, p))
    assert not torch.equal(op(x, SEED, 0.5), op(x, SEED + 1, 0.5)) or x.numel() == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_share_of_p_is_dropped_and_the_others_are_scaled(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = op(torch.ones(1_000_000), SEED, 0.3)
    finally:
        torch.set_num_threads(before)
    values, counts = found.unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.7]))
    assert abs(int(counts[0]) - 300_000) < 5 * (1e6 * 0.3 * 0.7) ** 0.5
    assert found.sum() == op(torch.ones(1_000_000), SEED, 0.3).sum()  # whatever the threads


def test_neighbours_are_dropped_independently():
    kept = op(torch.ones(200_000), SEED, 0.5) > 0
    for lag in (1, 2, 4, 64):
        both = (kept[lag:] & kept[:-lag]).double().mean()
        assert abs(both - 0.25) < 5 * (0.25 * 0.75 / 2e5) ** 0.5


def test_the_generator_decides():
    x = torch.ones(100)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.5)) and not torch.equal(first, second)


def test_strided_input_and_ends():
    x = torch.randn(6, 8)
    assert torch.equal(op(x.T, SEED, 0.5), op(x.T.contiguous(), SEED, 0.5))
    assert op(torch.empty(0, 3), SEED, 0.5).shape == (0, 3)
    assert dropout(x, 0.5, training=False) is x
    assert torch.equal(dropout(x, 0.0), x) and torch.equal(dropout(x, 1.0), torch.zeros_like(x))
    assert dropout(x.half(), 0.5).dtype == torch.float16
    nan = torch.full((100,), torch.nan)
    assert op(nan, SEED, 0.5).isnan().all()  # as in torch, none is hidden


def test_gradients_have_the_same_mask():
    x = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    found = op(x, SEED, 0.4)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(grad, op(torch.ones_like(x), SEED, 0.4))
    run = lambda x: op(x, SEED, 0.4).tanh()  # noqa: E731
    assert torch.autograd.gradcheck(run, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, x)


def test_a_tangent_that_comes_with_the_gradient():
    x, tangent = torch.randn(8, requires_grad=True), torch.randn(8)
    output = dropout(x, 0.5)
    (mask,) = torch.autograd.grad(output, x, torch.ones(8), retain_graph=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(8), tangent)
        (gradient,) = torch.autograd.grad(output, x, dual)
        assert torch.equal(forward_ad.unpack_dual(gradient).tangent, mask * tangent)


def test_opcheck():
    torch.library.opcheck(op, (torch.randn(3, 4, requires_grad=True), SEED, 0.5))
    torch.library.opcheck(op, (torch.randn(3, 4).bfloat16(), SEED, 0.25))


def test_compiles():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: dropout(x, 0.5) * 2, fullgraph=True, backend="aot_eager")
    x = torch.ones(1000, requires_grad=True)
    found = compiled(x)
    found.sum().backward()
    assert 300 < int((found == 0).sum()) < 700
    assert torch.equal(x.grad, found.detach()) and not torch.equal(compiled(x), found)


def test_samples():
    x = torch.ones(5, 200)
    for randomness, alike in (("same", True), ("different", False)):
        found = torch.vmap(lambda x: dropout(x, 0.5), randomness=randomness)(x)
        assert torch.equal(found[0], found[1]) == alike
    weight = torch.randn(200)
    grads = torch.func.vmap(
        torch.func.grad(lambda w, x: (dropout(w, 0.5) * x).sum()), (None, 0), randomness="different"
    )(weight, x)
    assert grads.shape == x.shape and set(grads.unique().tolist()) == {0.0, 2.0}


def test_mistakes():
    with pytest.raises(RuntimeError, match=r"dropout: p must be in \[0, 1\), got 1"):
        op(torch.ones(3), SEED, 1.0)
    for seed, got in (
        (SEED.int(), r"Int \[1\]"),
        (torch.zeros(2, dtype=torch.int64), r"Long \[2\]"),
    ):
        with pytest.raises(RuntimeError, match=f"seed must be one CPU int64, got {got} on cpu"):
            op(torch.ones(3), seed, 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        dropout(torch.ones(3), 1.5)


def test_weight_dropout_takes_it():
    module = fastrnn.LSTM(4, 5, weight_dropout=0.5)
    torch.manual_seed(1)
    (dropped,) = module._read_weights()
    torch.manual_seed(1)
    assert torch.equal(dropped[1], dropout(module.weight_hh_l0, 0.5))
    module(torch.randn(3, 2, 4))[0].sum().backward()
    assert (module.weight_hh_l0.grad == 0).any() and (module.weight_hh_l0.grad != 0).any()
