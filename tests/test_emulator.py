"""The emulator of csrc/emulator: it computes, and it finds the mistakes it is there to find."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from build_tools import toolchain
from tests.emulator import ROOT, SANITIZER, SANITIZERS, EmulatorError

SEEDS = range(20)
MISTAKES = {
    "past_the_end": "out of bounds: .* writes device memory",
    "past_shared": "out of bounds: .* writes shared memory",
    "unwritten": "never written: .* reads shared memory",
    "two_writers": "race: .* writes device memory, written by",
    "ended_peer": "(shared memory .* of a block that ends|out of bounds)",
    "no_flag": "deadlock: .* at a flag",
    "odd_pair": "misaligned: .* writes device memory",
    "odd_copy": "misaligned: .* reads device memory",
    "odd_matrix": "misaligned: .* reads shared memory",
    "odd_eight": "misaligned: .* reads device memory",
}


def run(device, name, *args):
    pointers = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in args]
    code = getattr(device.library, name)(*pointers)
    if code:
        raise EmulatorError(device.library.emulator_report().decode() or f"launch: error {code}")


class Case:
    """A right kernel: its arguments, made anew each time, and what it should leave in the last."""

    def __init__(self, device, name):
        self.device, self.name = device, name
        self.x = device.put(torch.arange(256.0))
        self.out = device.empty((256,), torch.float32)
        rows = self.x.view(4, 64)
        self.args, self.expected = {
            "test_reverse_block": ((self.x, self.out, 4, 64), rows.flip(1)),
            "test_reverse_warp": ((self.x, self.out), self.x[:64].view(2, 32).flip(1)),
            "test_rotate_cluster": ((self.x, self.out, 4, 64), rows.roll(-1, 0)),
            "test_rotate_grid": (
                (
                    self.x,
                    device.empty((256,), torch.float32),
                    self.out,
                    device.put(torch.zeros(1, dtype=torch.int32)),
                    4,
                    64,
                ),
                rows.roll(-1, 0),
            ),
        }[name]

    def run(self):
        run(self.device, self.name, *self.args)
        assert torch.equal(self.out[: self.expected.numel()], self.expected.flatten())


# The barriers, releases and acquires of each.
SITES = {
    "test_reverse_block": 1,
    "test_reverse_warp": 1,
    "test_rotate_cluster": 4,
    "test_rotate_grid": 4,
}


@pytest.mark.parametrize("name", SITES)
def test_right_kernels_pass_in_any_order(device, name):
    for seed in SEEDS:
        device.clear()
        device.seed(seed)
        Case(device, name).run()


@pytest.mark.parametrize("name", SITES)
def test_a_missing_barrier_is_found_in_every_order(device, name):
    Case(device, name).run()
    sites = device.sites()
    assert len(sites) == SITES[name]
    for site in sites:
        for seed in SEEDS:
            device.clear()
            device.seed(seed)
            case = Case(device, name)
            device.remove(site)
            with pytest.raises(EmulatorError, match="race|never written|a block that ends"):
                case.run()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported(device, mistake):
    out = device.empty((32,), torch.float32)
    flag = device.put(torch.zeros(1, dtype=torch.int32))
    with pytest.raises(EmulatorError, match=MISTAKES[mistake]):
        run(device, "test_wrong", list(MISTAKES).index(mistake), out, flag, 32, 128)


def test_a_launch_that_no_device_takes(device):
    out = device.empty((32,), torch.float32)
    with pytest.raises(EmulatorError, match="launch: error 1"):
        run(device, "test_wrong", 99, out, None, 32, 227 * 1024 + 4)
    with pytest.raises(EmulatorError, match="launch: error 1"):
        run(device, "test_wrong", 99, out, None, 1025, 0)
    run(device, "test_wrong", 99, out, None, 1024, 227 * 1024)


def test_shuffle(device):
    x, out = device.put(torch.arange(32.0)), device.empty((32,), torch.float32)
    run(device, "test_sum_warp", x, out)
    assert out.tolist() == [496.0] * 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mma(device, dtype):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(8, 16).to(dtype)
    out = device.empty((16, 8), torch.float32)
    run(device, "test_multiply", dtype == torch.float16, device.put(a), device.put(b), out)
    torch.testing.assert_close(out, a.float() @ b.float().T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_torchs(device, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    wide = torch.empty(2**16)
    half = dtype == torch.float16
    run(device, "test_widen", half, every, wide, 2**16)
    assert torch.equal(wide.nan_to_num(7), every.view(dtype).float().nan_to_num(7))
    # Around every number, half-way between neighbours, and far out.
    near = torch.cat([wide * s for s in (1.0, 1 + 2**-12, 1 - 2**-12, 1 + 2**-9)])
    near = torch.cat([near, (wide[:-1] + wide[1:]) / 2, torch.randn(10000) * 1e-6])
    found = torch.empty(len(near), dtype=dtype)
    run(device, "test_narrow", half, near, found, len(near))
    expected = near.to(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [name for name in SANITIZERS if name])
@pytest.mark.parametrize(
    "file",
    [f"test_cuda_{name}.py" for name in ("step", "rows", "persistent", "stack", "attention")],
)
def test_kernels_under_a_sanitizer(file, sanitizer):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    environment = os.environ | {SANITIZER: sanitizer}
    if sanitizer == "address":
        library = toolchain.compiler() + ["-print-file-name=libasan.so"]
        found = subprocess.run(library, capture_output=True, text=True, check=True).stdout.strip()
        # Fibers have stacks of their own, and Python does not free all it has.
        options = "detect_leaks=0:detect_stack_use_after_return=0:verify_asan_link_order=0"
        environment |= {"LD_PRELOAD": found, "ASAN_OPTIONS": options}
        command += ["-k", "not missed"]  # the hooks find races
    done = subprocess.run(
        [*command, f"tests/{file}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
