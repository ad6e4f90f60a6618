"""What ptxas says, read; a kernel that spills is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_tools import cuda_check, toolchain
from build_tools.cuda_check import Kernel

# Verbatim: two kernels, the second with a function of its own that is not inlined.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5lightIdEvPT_' for 'sm_90a'
ptxas info    : Function properties for _Z5lightIdEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 2048 bytes smem, 380 bytes cmem[0]
ptxas info    : Compile time = 3.493 ms
ptxas info    : Compiling entry function '_Z5heavyPKfPf' for 'sm_90a'
ptxas info    : Function properties for _Z5heavyPKfPf
    408 bytes stack frame, 508 bytes spill stores, 500 bytes spill loads
ptxas info    : Function properties for _Z6helperf
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 416 bytes cumulative stack size
"""
HEAVY = """
__global__ void __launch_bounds__(1024, 2) heavy(const float* in, float* out) {
  float v[96];
  for (int i = 0; i < 96; ++i) v[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 96; ++i) out[(95 - i) * 1024 + threadIdx.x] = v[i] * v[(i * 7) % 96];
}
"""


def nvcc() -> toolchain.Cuda | None:
    try:
        return toolchain.cuda()
    except toolchain.BuildError:
        return None


needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="needs nvcc")


def test_every_kernel_of_a_report_is_read() -> None:
    light, heavy = cuda_check.kernels(REPORT)
    assert light == Kernel("_Z5lightIdEvPT_", "sm_90a", registers=12, shared=2048)
    assert heavy == Kernel("_Z5heavyPKfPf", "sm_90a", registers=32, stack=416, spills=1016)
    assert cuda_check.kernels("nvcc warning : nothing to do") == []


def test_spills_and_shared_memory_are_faults() -> None:
    assert cuda_check.faults(Kernel("k", "sm_90a", 255, 232448, 64)) == []
    assert cuda_check.faults(Kernel("k", "sm_90a", spills=24)) == ["spills 24 bytes"]
    assert cuda_check.faults(Kernel("k", "sm_90a", spills=16)) == []
    (fault,) = cuda_check.faults(Kernel("k", "sm_120", shared=232448))
    assert fault == "needs 232448 bytes of shared memory, a block has 101376"


@needs_nvcc
def test_a_kernel_that_spills_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda = nvcc()
    assert cuda is not None
    source = tmp_path / "heavy.cu"
    source.write_text(HEAVY)
    assert cuda_check.check([source], ["90a"], cuda) == 1
    row, last = capsys.readouterr().out.splitlines()[1:]
    assert row.startswith("sm_90a") and "heavy" in row and ": spills " in row
    assert last == "1 kernels of 1 files for 90a: 1 at fault"
    source.write_text(HEAVY.replace("1024, 2", "512"))
    assert cuda_check.check([source], ["90a"], cuda) == 0


@needs_nvcc
def test_an_error_is_one_line(tmp_path: Path) -> None:
    cuda = nvcc()
    assert cuda is not None
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void broken( {}\n")
    with pytest.raises(toolchain.BuildError, match=r"^broken\.cu for sm_80: .*error") as caught:
        cuda_check.compiled(source, "80", cuda)
    assert "\n" not in str(caught.value)
