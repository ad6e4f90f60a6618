"""Large results come from the system in large pages, where it has them."""

import os
import re
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn import _library

pytestmark = pytest.mark.skipif(
    _library.unavailable is not None or not Path("/sys/kernel/mm/transparent_hugepage").is_dir(),
    reason="no compiled kernels, or a system without transparent large pages",
)
PAGE = 2 << 20


def asked_for(address: int) -> bool:
    """Whether the mapping that holds an address has been advised to use large pages."""
    holds = False
    for line in Path(f"/proc/{os.getpid()}/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            holds = int(found[1], 16) <= address < int(found[2], 16)
        elif holds and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError(f"no mapping holds {address:x}")


def inside(tensor: torch.Tensor) -> list[int]:
    """An address in each large page that lies in a tensor whole."""
    begin = tensor.data_ptr()
    first = -(-begin // PAGE) * PAGE
    return list(range(first, begin + tensor.nbytes - PAGE + 1, PAGE))


def assert_asked(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        assert inside(tensor) and all(map(asked_for, inside(tensor)))


def test_recurrences_ask():
    module = fastrnn.LSTM(8, 1100)
    output, _ = module(torch.randn(50, 24, 8))
    output.sum().backward()
    assert_asked(output, module.weight_hh_l0.grad)
    module.eval().freeze()
    with torch.no_grad():
        assert_asked(module(torch.randn(50, 24, 8))[0])


def test_attention_asks():
    q, k, v = (torch.randn(2, 8, 1100, 64, requires_grad=True) for _ in range(3))
    output = fastrnn.functional.masked_attention(q, k, v)
    output.backward(torch.ones_like(output))
    assert_asked(output, q.grad, k.grad, v.grad)


def test_the_loss_asks():
    weight = torch.randn(20_000, 64, requires_grad=True)
    hidden = torch.randn(64, 64)
    target = torch.randint(20_000, (64,))
    fastrnn.linear_cross_entropy(hidden, weight, None, target).backward()
    assert_asked(weight.grad)
