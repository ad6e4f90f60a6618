"""Several callers in one process, and work of several sizes: their bits, and threads."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastrnn
from fastrnn import _library

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_callers_at_once_get_the_bits_of_one(kind):
    """A call beside others has fewer threads."""
    torch.manual_seed(0)
    module = getattr(fastrnn, kind)(5, 150, 2)
    inputs = [torch.randn(40, batch, 5) for batch in (1, 3, 9)]

    def run(x):
        output = module(x)[0]
        return [output, *torch.autograd.grad(output.sin().sum(), list(module.parameters()))]

    expected = [run(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(run, inputs * 8)):
            for a, b in zip(expected[k % 3], found, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed by Linux")
def test_a_small_call_ends_no_thread():
    """One with work for two of six; starting four others anew took longer than the call."""
    few, many = fastrnn.LSTM(40, 140), fastrnn.LSTM(40, 600)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with torch.no_grad():
            many(torch.randn(2, 20, 40))
            threads = set(os.listdir("/proc/self/task"))
            few(torch.randn(20, 1, 40))
            many(torch.randn(2, 20, 40))
        assert threads <= set(os.listdir("/proc/self/task"))
    finally:
        torch.set_num_threads(before)
