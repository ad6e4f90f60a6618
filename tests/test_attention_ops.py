"""masked_attention as torch sees it: registration, gradients of every order, transforms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastrnn import _attention, _library
from fastrnn.functional import masked_attention
from tests.attentions import random_case

native = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
SIZES = (2, 2, 3, 5, 4, 3)
CASES = {
    "plain": {},
    "boolean": {"mask": "full", "is_causal": True},
    "additive": {"mask": "bias", "additive": True},
    "dropout": {"mask": "keys", "additive": True, "dropout_p": 0.3},
}


def both_operators():
    return (
        torch.ops.fastrnn.masked_attention.default,
        torch.ops.fastrnn.masked_attention_backward.default,
    )


@pytest.mark.parametrize("layout", ["contiguous", "heads inside rows"])
@pytest.mark.parametrize("case", CASES)
def test_opcheck_and_default(case, layout):
    case = random_case(SIZES, **CASES[case])
    if layout != "contiguous":
        case.tensors = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in case.tensors]
    forward, backward = both_operators()
    output, logsumexp = forward(*case.arguments)
    wanted = len(case.differentiable) == 4
    saved = (output.cos(), *case.arguments[:5], output, logsumexp, *case.options, wanted)
    torch.library.opcheck(forward, case.arguments)
    torch.library.opcheck(backward, saved)
    for op, default, args in (
        (forward, _attention._default_forward, case.arguments),
        (backward, _attention._default_backward, saved),
    ):
        torch.testing.assert_close(op(*args), default(*args), rtol=1e-12, atol=1e-12)
        assert [t.stride() for t in op(*args)] == [t.stride() for t in default(*args)]


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 0, 3, 5), (2, 4, 3, 0)], ids=str)
def test_empty_results_have_the_strides_that_tracing_expects(shape):
    """B, Lq, heads, D; the heads inside the rows."""
    query, key = (torch.randn(*shape[:3], 6).transpose(1, 2) for _ in range(2))
    value = torch.randn(shape).transpose(1, 2)
    forward = both_operators()[0]
    output = forward(query, key, value, None, None, False, 0.0, 1.0)[0]
    assert output.stride() == _attention._fake_forward(query, key, value)[0].stride()
    torch.library.opcheck(forward, (query, key, value, None, None, False, 0.0, 1.0))


@native
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_first_and_second_order(case):
    case = random_case(SIZES, **CASES[case])

    def run(*tensors):
        return _attention.MaskedAttention.apply(*case.with_tensors(*tensors).arguments)[0]

    leaves = [t.requires_grad_() for t in case.differentiable]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def loss(query, key, value, mask):
    return masked_attention(query, key, value, mask, is_causal=True).cos().sum()


def test_compiles_without_a_graph_break():
    tensors = [t.requires_grad_() for t in random_case(SIZES, "bias", True).differentiable]
    expected = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*tensors), tensors), expected)

    def dropped(query, key, value, mask):
        return masked_attention(query, key, value, mask, dropout_p=0.5).sum()

    compiled = torch.compile(dropped, fullgraph=True, backend="aot_eager")
    # With gradients on, whether any is needed or not.
    for given in (tensors, [t.detach() for t in tensors]):
        torch.manual_seed(1)
        expected = dropped(*given)
        torch.manual_seed(1)
        torch.testing.assert_close(compiled(*given), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batched", [(0, None, 1, None), (None, 0, 0, 0), (2, 0, None, 3)])
def test_vmap_is_a_loop(batched, case):
    case = random_case(SIZES, **CASES[case])
    inputs = [*case.tensors, case.mask]
    batched = [None if t is None else dim for t, dim in zip(inputs, batched, strict=True)]
    stacked = [
        t if dim is None else torch.stack((t, t.flip(-1)), dim)
        for t, dim in zip(inputs, batched, strict=True)
    ]
    differentiable = tuple(range(len(case.differentiable)))

    def run(*inputs):
        case_ = replace(case, tensors=list(inputs[:3]), mask=inputs[3])
        return _attention.MaskedAttention.apply(*case_.arguments)[0]

    def gradients(*inputs):
        return torch.func.grad(lambda *a: run(*a).cos().sum(), differentiable)(*inputs)

    for function in (lambda *inputs: (run(*inputs),), gradients):
        found = torch.func.vmap(function, in_dims=tuple(batched))(*stacked)
        for sample in range(2):
            alone = [
                t if dim is None else t.select(dim, sample)
                for t, dim in zip(stacked, batched, strict=True)
            ]
            torch.testing.assert_close([f[sample] for f in found], list(function(*alone)))


def test_transforms_agree_with_autograd():
    tensors = random_case(SIZES, "bias", True).differentiable
    leaves = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    every = (0, 1, 2, 3)
    torch.testing.assert_close(torch.func.grad(loss, argnums=every)(*tensors), expected)
    stacked = torch.stack([tensors[0], tensors[0] + 0.1])
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None, None))(
        stacked, *tensors[1:]
    )
    torch.testing.assert_close(per_sample[0], expected[0])
    torch.testing.assert_close(per_sample[1], torch.func.grad(loss)(stacked[1], *tensors[1:]))
    hessian = torch.func.jacrev(torch.func.jacrev(loss, argnums=2), argnums=0)(*tensors)
    forward = torch.func.jacfwd(torch.func.jacrev(loss, argnums=2), argnums=0)(*tensors)
    torch.testing.assert_close(hessian, forward)


def test_an_exported_program_has_gradients():
    class Attend(torch.nn.Module):
        def forward(self, query, key, value):
            return masked_attention(query, key, value, is_causal=True)

    tensors = random_case(SIZES).tensors
    program = torch.export.export(Attend(), tuple(tensors)).module()
    leaves = [t.requires_grad_() for t in tensors]
    expected = torch.autograd.grad(Attend()(*leaves).cos().sum(), leaves)
    found = torch.autograd.grad(program(*leaves).cos().sum(), leaves)
    torch.testing.assert_close(found, expected)


@native
def test_wrong_arguments_to_the_raw_operators_raise():
    case = random_case(SIZES, "full", True, dropout_p=0.1)
    forward, backward = both_operators()
    output, logsumexp = forward(*case.arguments)
    wrong = {
        0: case.tensors[0][..., :-1],
        1: case.tensors[1].float(),
        2: case.tensors[2][:, :, :-1],
        3: case.mask[..., :-1],
        4: torch.tensor([1, 2]),
        6: 1.5,
    }
    for position, argument in wrong.items():
        args = list(case.arguments)
        args[position] = argument
        with pytest.raises(RuntimeError, match="masked_attention: "):
            forward(*args)
    for grad, out, logs in (
        (output[..., :-1], output, logsumexp),
        (output, output[:1], logsumexp),
        (output, output, logsumexp[..., :-1]),
    ):
        with pytest.raises(RuntimeError, match="masked_attention: "):
            backward(grad, *case.arguments[:5], out, logs, *case.options, True)
