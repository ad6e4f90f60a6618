"""What a launch asks of CUDA, without a device: csrc/gpu.h over a runtime that is not there."""

import subprocess
from pathlib import Path

import pytest

from build_tools import toolchain
from build_tools.plan import cuda_flags

ROOT = Path(__file__).resolve().parent.parent


def test_launches_and_the_probe(tmp_path):
    try:
        cuda = toolchain.cuda()
    except toolchain.BuildError:
        pytest.skip("needs nvcc")
    program = tmp_path / "launches"
    command = [str(cuda.nvcc), *cuda_flags(cuda), "-arch=sm_90a", "-cudart", "none"]
    # Functions of the runtime that nobody calls have no stand-in.
    command += ["-Xcompiler", "-no-pie", "-Xlinker", "--unresolved-symbols=ignore-all"]
    command += ["-o", str(program), "tests/launches.cu"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
