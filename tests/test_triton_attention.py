"""The Triton attention kernels against the reference, and compiled for GPUs not there."""

from __future__ import annotations

import math

import pytest
import torch

import fastrnn
from fastrnn import _kernels
from fastrnn._attention import reference
from tests.gpu_checks import tf32
from tests.layers import assert_as_close_as_torch
from tests.test_triton import FLOORS, INTERPRETED, on_devices

pytestmark = pytest.mark.triton
NAMES = ("output", "logsumexp", "grad_query", "grad_key", "grad_value", "grad_mask")


def boolean(generator, batch, heads, queries, keys):
    """With a row, and whole tiles, that may attend to nothing."""
    mask = torch.rand(batch, 1, queries, keys, generator=generator) < 0.4
    mask[0, :, 3] = False
    mask[..., :33] = False
    return mask


def padding(generator, batch, heads, queries, keys):
    lengths = torch.arange(keys - batch, keys)[:, None]
    return (torch.arange(keys) < lengths)[:, None, None]


def some_of(*free):
    """A boolean mask, broadcast along the axes that are not in `free`."""

    def draw(generator, *sizes):
        shape = [n if axis in free else 1 for axis, n in enumerate(sizes)]
        return torch.rand(shape, generator=generator) < 0.7

    return draw


def added(*free):
    """An additive mask, broadcast along the axes that are not in `free`."""

    def draw(generator, *sizes):
        shape = [n if axis in free else 1 for axis, n in enumerate(sizes)]
        mask = torch.randn(shape, generator=generator, dtype=torch.float64)
        mask[..., 2:3] = -math.inf
        return mask

    return draw


def transposed(generator, batch, heads, queries, keys):
    """An additive mask whose columns lie side by side."""
    return added(0, 1, 2, 3)(generator, batch, heads, keys, queries).mT


# B, heads, Lq, Lk, E, D, then the mask, causality and dropout.
CASES = {
    "plain": ((2, 2, 40, 70, 20, 33), None, False, 0.0),
    "boolean": ((2, 2, 40, 70, 20, 16), boolean, False, 0.3),
    "padding": ((2, 1, 70, 40, 16, 16), padding, True, 0.0),
    "queries": ((2, 2, 40, 37, 8, 16), some_of(1, 2), True, 0.2),
    "added to weights": ((2, 2, 40, 37, 8, 16), added(0, 1), True, 0.0),
    "added": ((2, 2, 37, 40, 8, 16), added(0, 1, 2, 3), True, 0.2),
    "added to keys": ((2, 2, 37, 40, 8, 16), added(3), False, 0.0),
    "added to heads": ((2, 2, 20, 12, 8, 16), added(1, 3), False, 0.2),
    "added by columns": ((1, 2, 20, 12, 7, 9), transposed, False, 0.0),
}


def everything(function, backward, args, grad):
    """Results of both passes."""
    detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
    wanted = detached[3] is not None and detached[3].is_floating_point()
    output, logsumexp = function(*detached)
    saved = *detached[:5], output, logsumexp, *detached[5:]
    return output, logsumexp, *backward(grad, *saved, wanted)


def by_autograd(grad, query, key, value, mask, seed, output, logsumexp, *options):
    *options, wanted = options
    leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    leaves += [mask.clone().requires_grad_()] if wanted else []
    masks = leaves[3:] or [mask]
    found = reference(*leaves[:3], *masks, seed, *options)[0]
    return torch.autograd.grad(found, leaves, grad)


@on_devices
@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(name, device):
    sizes, make_mask, is_causal, dropout_p = CASES[name]
    batch, heads, queries, keys, size, width = sizes
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Heads inside rows, as a projection leaves them, and as they are otherwise.
    query, key = draw(batch, queries, heads, size).transpose(1, 2), draw(batch, heads, keys, size)
    value, grad = draw(batch, heads, keys, width), draw(batch, heads, queries, width)
    mask = None if make_mask is None else make_mask(generator, batch, heads, queries, keys)
    seed = torch.tensor([-(2**61) + 7]) if dropout_p else None
    options = is_causal, dropout_p, size**-0.5
    attention = _kernels.module("attention")
    ours = attention.masked_attention, attention.masked_attention_backward
    exact = everything(reference, by_autograd, (query, key, value, mask, seed, *options), grad)
    for dtype in (torch.float64 if name == "boolean" else torch.float32, torch.bfloat16):
        args = [
            t if t is None else t.to(device, dtype if t.is_floating_point() else t.dtype)
            for t in (query, key, value, mask, seed)
        ]
        lower = grad.to(device, dtype)
        torchs = everything(reference, by_autograd, (*args, *options), lower)
        found = everything(*ours, (*args, *options), lower)
        for what, *values in zip(NAMES, found, torchs, exact, strict=False):
            values = [v.cpu().nan_to_num(posinf=9.0) for v in values]
            assert_as_close_as_torch(f"{what} {dtype}", *values, FLOORS[dtype])


@on_devices
def test_operator(device):
    """By name through the function: gradients of both orders, opcheck, compile."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, 2, n, 8, generator=generator).to(device).requires_grad_() for n in (5, 6, 6)
    ]
    mask = torch.rand(1, 1, 5, 6, generator=generator).to(device) < 0.7
    function = fastrnn.functional.masked_attention
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = []
    for name, run in (("triton", function), ("reference", function), ("triton", compiled)):
        with fastrnn.use_backend(name):
            output = run(*tensors, mask, is_causal=True)
        twice = run is function
        grads = torch.autograd.grad(output.square().sum(), tensors, create_graph=twice)
        seconds = torch.autograd.grad(sum(g.sum() for g in grads), tensors) if twice else ()
        found.append([output, *grads, *seconds])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], found[0][:4])
    args = (*(t.detach() for t in tensors), mask, torch.tensor([3]).to(device), False, 0.3, 0.5)
    torch.library.opcheck(torch.ops.fastrnn.triton_masked_attention.default, args)


@on_devices
@pytest.mark.parametrize("scale", [-0.5, 0.0, 1e-60])
def test_scales_that_are_not_positive_in_float32(scale, device):
    generator = torch.Generator().manual_seed(0)
    query, grad = torch.randn(2, 1, 2, 40, 16, generator=generator).to(device)
    mask = torch.rand(1, 1, 40, 40, generator=generator).to(device) < 0.7
    mask[..., 5, :] = False
    attention = _kernels.module("attention")
    args = query, query, query, mask, None, True, 0.0, scale
    found = everything(attention.masked_attention, attention.masked_attention_backward, args, grad)
    for ours, exact in zip(found, everything(reference, by_autograd, args, grad), strict=False):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


@on_devices
def test_elements_more_than_32_bits_apart(device):
    """Pages of memory between the rows are never touched, so they cost nothing."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 1, 33, 8), (1, 1, 33, 8), (1, 1, 33, 33)  # the last row lies 2**31 elements away
    near = [torch.randn(shape, generator=generator).to(device, torch.float16) for shape in shapes]
    memory = torch.empty(33 * 2**26, dtype=torch.float16, device=device)
    far = [
        memory[64 * n :].as_strided(t.shape, (0, 0, 2**26, 1)).copy_(t) for n, t in enumerate(near)
    ]
    attention = _kernels.module("attention")
    passes = attention.masked_attention, attention.masked_attention_backward
    found = []
    for query, grad, mask in (near, far):
        found.append(everything(*passes, (query, query, query, mask, None, False, 0.0, 1.0), grad))
    assert all(map(torch.equal, *found))


@on_devices
def test_no_queries_or_keys(device):
    attention = _kernels.module("attention")
    for queries, keys in ((0, 3), (3, 0)):
        query, key = torch.ones(1, 1, queries, 8), torch.ones(1, 1, keys, 8)
        args = [t.to(device) for t in (query, key, key)]
        rest = None, None, False, 0.0, 1.0
        output, logsumexp = attention.masked_attention(*args, *rest)
        assert torch.equal(output.cpu(), torch.zeros(1, 1, queries, 8))
        grads = attention.masked_attention_backward(
            output, *args, *rest[:2], output, logsumexp, *rest[2:], False
        )
        for grad, of in zip(grads[:3], args, strict=True):
            assert torch.equal(grad, torch.zeros_like(of))


@on_devices
def test_errors_name_argument_expected_and_got(device):
    attention = _kernels.module("attention")
    query, rest = torch.ones(1, 1, 3, 8, device=device), (None, None, False, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"key must be \[1, 1, 3, 8\] .* got \[1, 1, 3, 4\]"):
        attention.masked_attention(query, query[..., :4], query, *rest)
    wide = torch.ones(1, 1, 3, 300, device=device)
    with pytest.raises(ValueError, match="heads must have at most 256 units, got 300"):
        attention.masked_attention(wide, wide, wide, *rest)


def compile_attention(capability, dtype, size, kind, dropped=True):
    """The kernels of both passes, with dropout if there is a mask and it is `dropped`."""
    from tests.triton_device import SHARED, Device

    attention = _kernels.module("attention")
    query, key = torch.zeros(2, 2, 100, size, dtype=dtype), torch.zeros(2, 2, 80, size, dtype=dtype)
    mask = {
        "causal": None,
        "boolean": torch.ones(2, 1, 100, 80, dtype=torch.bool),
        "added": torch.zeros(1, 2, 100, 1, dtype=dtype),
        "added to keys": torch.zeros(1, 2, 1, 80, dtype=dtype),
        "causal and added": torch.zeros(1, 2, 100, 80, dtype=dtype),
    }[kind]
    seed = None if mask is None or not dropped else torch.zeros(1, dtype=torch.int64)
    args = query, key, key, mask, seed
    options = "causal" in kind, 0.0 if seed is None else 0.1, 1.0
    wanted = "added" in kind
    with Device(capability) as device:
        output, logsumexp = attention.masked_attention(*args, *options)
        attention.masked_attention_backward(output, *args, output, logsumexp, *options, wanted)
    assert len(device.compiled) == (4 if wanted else 3)
    for kernel in device.compiled:
        assert kernel.shared <= SHARED[capability], kernel
        assert kernel.stack <= (512 if size == 256 else 64), (kernel, size, dtype, kind)
    return device.compiled


if not INTERPRETED:

    @pytest.mark.parametrize("capability", [90, 120])  # the most and the least shared memory
    def test_two_architectures(capability):
        compile_attention(capability, torch.bfloat16, 64, "boolean")

    def test_products_of_float32_are_exact_where_torch_may_round():
        with tf32():
            for kernel in compile_attention(90, torch.float32, 64, "causal"):
                assert not kernel.count("HMMA") and not kernel.count("HGMMA"), kernel

    def test_kernels_of_float64_read_no_bytes():
        """Triton 3.6 ends the process where the operand of a product of float64 depends on one."""
        checked = _kernels.module("attention")._checked
        query, mask = torch.zeros(1, 1, 2, 8, dtype=torch.float64), torch.tensor([[True, False]])
        call = checked(query, query, query, mask[None, None], None, False, 0.0, 1.0)
        found, _ = call.expanded_mask
        assert found.dtype == torch.float64 and found.tolist() == [[[[0.0, -math.inf]]]]
        compile_attention(90, torch.float64, 64, "boolean")

    @pytest.mark.parametrize("kind", ["causal", "boolean"])
    def test_loads_run_ahead_of_the_products_of_four_warps(kind):
        for kernel in compile_attention(90, torch.bfloat16, 128, kind, dropped=False):
            assert kernel.count("LDGSTS") and kernel.count("HGMMA"), kernel
            assert not kernel.count("HMMA"), kernel

    def test_more_heads_or_rows_than_the_short_axes_of_a_grid_are_long():
        from tests.triton_device import Device

        attention = _kernels.module("attention")
        options = False, 0.0, 1.0
        for query in (torch.zeros(10, 7000, 1, 8), torch.zeros(1, 1, 2**21 + 1, 1)):
            args = query, query, query, torch.zeros(*query.shape[:3], 1), None
            with Device(90) as device:  # refuses a launch that a GPU would
                output, logsumexp = attention.masked_attention(*args, *options)
                saved = *args, output, logsumexp, *options
                attention.masked_attention_backward(output, *saved, True)
            assert device.launches == 4

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "kind", ["causal", "boolean", "added", "added to keys", "causal and added"]
    )
    @pytest.mark.parametrize("capability", [80, 90, 100, 120])
    def test_each_kernel_and_configuration(capability, kind):
        attention = _kernels.module("attention")
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            for size in (32, 64, 128, 256):
                if size <= attention.widest(dtype):
                    compile_attention(capability, dtype, size, kind)
