"""Several callers in one process, and work of several sizes: their bits, and threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn import _library

pytestmark = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_callers_at_once_get_the_bits_of_one(kind):
    """A call beside others has fewer threads; of one sequence, both layers' one."""
    torch.manual_seed(0)
    module = getattr(fastrnn, kind)(5, 100, 2)
    inputs = [torch.randn(110, batch, 5) for batch in (1, 3, 9)]

    def run(x):
        output = module(x)[0]
        return [output, *torch.autograd.grad(output.sin().sum(), list(module.parameters()))]

    expected = [run(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(run, inputs * 8)):
            for a, b in zip(expected[k % 3], found, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


FEWER = """
import torch, fastrnn
module, x = fastrnn.LSTM(5, 70, 3), torch.randn(80, 1, 5)
found = []
for threads in (1, 3):
    torch.set_num_threads(threads)
    output = module(x)[0]
    found += [[output, *torch.autograd.grad(output.sin().sum(), list(module.parameters()))]]
assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
"""


def test_a_region_of_fewer_threads_than_layers():
    """Three would run at once, but OpenMP gives two threads of three."""
    env = os.environ | {"OMP_THREAD_LIMIT": "2"}
    subprocess.run([sys.executable, "-c", FEWER], env=env, check=True, timeout=100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(("sizes", "layers"), [([8] + [1] * 15, 1), ([1] * 16, 2)])
def test_few_rows_have_the_bits_of_one_thread(sizes, layers, kind, dtype):
    """Whether their sums go along k has to do with neither sequences of their own nor waves."""
    torch.manual_seed(0)
    module = getattr(fastrnn, kind)(256, 128, layers).to(dtype)
    rows = torch.randn(sum(sizes), 256, dtype=dtype)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        try:
            output = module(PackedSequence(rows, torch.tensor(sizes)))[0].data
            grads = torch.autograd.grad(output.sin().sum(), list(module.parameters()))
            with torch.no_grad():
                padded = module(rows[:16, None])[0]
        finally:
            torch.set_num_threads(before)
        found.append([output, padded, *grads])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_fork_goes_on_alone():
    """The threads that its parent's calls had stay with the parent."""
    module, x = fastrnn.LSTM(5, 200), torch.randn(3, 9, 5)
    with torch.no_grad():
        expected = module(x)[0]
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(module(x)[0], expected) else 1)
    for _ in range(300):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended and status == 0


BESIDE = """
import os, threading, time, torch, fastrnn
busy, busy_x = fastrnn.LSTM(600, 600), torch.randn(100, 32, 600)
few, few_x = fastrnn.LSTM(40, 300), torch.randn(3, 20, 40)
stop = False
def run():
    with torch.no_grad():
        while not stop: busy(busy_x)
thread = threading.Thread(target=run)
thread.start()
lone = 0
for _ in range(4):
    time.sleep(0.3)
    child = os.fork()
    if child == 0:
        with torch.no_grad(): few(few_x)
        os._exit(len(os.listdir("/proc/self/task")) == 1)
    lone += os.waitpid(child, 0)[1] != 0
stop = True
thread.join()
assert lone == 0, lone
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed by Linux")
@pytest.mark.skipif(
    _library.unavailable is None and torch.ops.fastrnn.cpu_allowed.default() < 2,
    reason="one processor",
)
def test_a_fork_beside_a_running_layer_has_threads():
    """The regions that its parent's other threads were in are none of the child's."""
    subprocess.run([sys.executable, "-c", BESIDE], check=True, timeout=100)


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


NO_LIMIT = 2**31 - 1
LIMITS = {
    "none": ({}, NO_LIMIT),
    "version 2": ({"proc/self/cgroup": "0::/", "cpu.max": "150000 100000"}, 2),
    "version 2 without": ({"proc/self/cgroup": "0::/", "cpu.max": "max 100000"}, NO_LIMIT),
    "of a group around it": (
        {
            "proc/self/cgroup": "0::/a/b",
            "a/cpu.max": "300000 100000",
            "a/b/cpu.max": "800000 100000",
        },
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "7:cpuset:/\n4:cpu,cpuacct:/a\n0::/",
            "cpu/a/cpu.cfs_quota_us": "50000",
            "cpu/a/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
        },
        1,
    ),
    "the host's path": (
        {
            "proc/self/cgroup": "4:cpuacct,cpu:/a/b",
            "cpu/cpu.cfs_quota_us": "250000",
            "cpu/cpu.cfs_period_us": "100000",
        },
        3,
    ),
    "of something else": ({"proc/self/cgroup": "4:cpuset:/", "cpu.max": "100000 100000"}, NO_LIMIT),
    "no sense": ({"proc/self/cgroup": "::\n:\n0::a\n0::", "cpu.max": "1 0"}, NO_LIMIT),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_containers_limit_is_seen(tmp_path, name):
    """Of version 1 and 2 of control groups, in the group itself and those around it."""
    files, processors = LIMITS[name]
    for file, text in files.items():
        path = tmp_path / ("" if file.startswith("proc") else "sys/fs/cgroup") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert torch.ops.fastrnn.cpu_allowed.default(str(tmp_path)) == processors
