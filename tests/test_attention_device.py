"""The CUDA attention operators' host side over emulated kernels on CPU tensors."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastrnn
from build_tools import toolchain
from fastrnn import _attention, _cuda, _library, attention
from tests import emulated
from tests.attentions import random_case
from tests.emulator import DTYPES

try:
    toolchain.compiler()
except toolchain.BuildError as error:
    pytest.skip(str(error), allow_module_level=True)

CASES = {
    "plain": {},
    "boolean": {"mask": "keys", "is_causal": True, "dropout_p": 0.3},
    "added": {"mask": "bias", "additive": True},
}
SIZES = (2, 2, 9, 12, 8, 6)


def operators():
    found = emulated.operators()
    return found.masked_attention.default, found.masked_attention_backward.default


def saved(case, output, logsumexp):
    wanted = len(case.differentiable) == 4
    return (output.cos(), *case.arguments[:5], output, logsumexp, *case.options, wanted)


@pytest.mark.parametrize("layout", ["contiguous", "heads inside rows", "columns outside"])
@pytest.mark.parametrize("name", CASES)
def test_as_the_default(name, layout):
    case = random_case(SIZES, **CASES[name])
    if layout == "heads inside rows":
        case.tensors = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in case.tensors]
    elif layout == "columns outside":
        case.tensors = [t.mT.contiguous().mT for t in case.tensors]
    forward, backward = operators()
    args = saved(case, *forward(*case.arguments))
    for op, default, given in (
        (forward, _attention._default_forward, case.arguments),
        (backward, _attention._default_backward, args),
    ):
        found, expected = op(*given), default(*given)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
        assert [t.stride() for t in found] == [t.stride() for t in expected]


def test_opcheck_and_dtypes():
    forward, backward = operators()
    for dtype in DTYPES:
        case = random_case(SIZES, **CASES["added"]).to(dtype)
        results = forward(*case.arguments)
        assert [t.dtype for t in results] == [dtype, _attention.statistics_dtype(dtype)]
        found = backward(*saved(case, *results))
        assert [t.dtype for t in found] == [dtype] * 4
    every = "test_schema", "test_faketensor"
    torch.library.opcheck(forward, case.arguments, test_utils=every)
    torch.library.opcheck(backward, saved(case, *results), test_utils=every)


def test_expanded_masks_are_read_by_their_strides():
    case = random_case(SIZES, "keys")
    forward, backward = operators()
    expected = forward(*case.arguments)
    case.mask = case.mask.expand(2, 2, 9, 12)
    assert torch.equal(forward(*case.arguments)[0], expected[0])
    one = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    case.mask = one.expand(2, 2, 9, 12)
    grads = backward(*saved(case, *forward(*case.arguments)))
    assert grads[3].shape == (2, 2, 9, 12)


def test_wrong_arguments_raise():
    case = random_case(SIZES, "full", True, dropout_p=0.1)
    forward, _ = operators()
    wide = torch.zeros(2, 2, 9, 257, dtype=torch.float64)
    wrong = {
        0: (case.tensors[0].long(), "the CUDA kernels take floating-point tensors"),
        1: (case.tensors[1].float(), "key must have the query's dtype"),
        2: (case.tensors[2][:, :, :-1], "value must be"),
        3: (case.mask[..., :-1], "mask must broadcast to"),
        4: (torch.tensor([1, 2]), "seed must be an int64 tensor of one value"),
    }
    for position, (argument, message) in wrong.items():
        args = list(case.arguments)
        args[position] = argument
        with pytest.raises(RuntimeError, match=message):
            forward(*args)
    with pytest.raises(RuntimeError, match="heads of at most 256 units, got 257"):
        forward(wide, wide, wide, None, None, False, 0.0, 1.0)


@pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
def test_the_choice_on_a_gpu(monkeypatch):
    """Native first; a head too wide for all kernels goes to torch."""
    monkeypatch.setattr(_cuda, "_known", {0: _cuda.Facts(90, 132, 232448)})

    def told(width, dtype):
        with FakeTensorMode(allow_non_fake_inputs=True):
            return attention.explained(torch.empty(1, 2, 5, width, device="cuda:0", dtype=dtype))

    for width, dtype in ((256, torch.bfloat16), (128, torch.float64)):
        assert told(width, dtype)[0] == "native: runs masked attention (tiles on the GPU)"
    wide = told(300, torch.float16)
    assert wide[0].startswith("reference: runs masked attention")
    assert "native: no, the CUDA kernels take heads of at most 256 units, got 300" in wide
    with fastrnn.use_backend("triton"):
        assert told(64, torch.float16)[0] == "triton: runs masked attention (fused Triton kernels)"
