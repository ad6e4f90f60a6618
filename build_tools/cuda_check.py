"""Compiles every csrc/*.cu for each architecture; fails on spills and on too much shared memory."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build_tools import toolchain
from build_tools.plan import cuda_flags
from build_tools.toolchain import BuildError, Cuda

ROOT = Path(__file__).resolve().parent.parent
# Bytes of shared memory that one block can have.
# Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
SHARED_MEMORY = {"80": 163 << 10, "90a": 227 << 10, "100": 227 << 10, "120": 99 << 10}
# Two values stored and loaded once, outside every loop as a rule: compilers come and go by that.
TOLERATED = 16


@dataclass
class Kernel:
    """What ptxas reports of one kernel, for one architecture.

    Args:
        name: mangled name.
        arch: such as "sm_90a".
        registers: of each thread.
        shared: bytes of static shared memory.
        stack: bytes of local memory of each thread.
        spills: bytes stored and loaded because registers ran out.
    """

    name: str
    arch: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0


def kernels(report: str) -> list[Kernel]:
    """What `nvcc -Xptxas -v` says; functions that a kernel calls count as the kernel's own."""
    found: list[Kernel] = []
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(.+?)' for '(.+?)'", line):
            found.append(Kernel(*entry.groups()))
            continue
        numbers = {what: int(number) for number, what in re.findall(r"(\d+) ([a-z ]+)", line)}
        if not found or not numbers:
            continue
        kernel = found[-1]
        kernel.stack += numbers.get("bytes stack frame", 0)
        kernel.spills += numbers.get("bytes spill stores", 0) + numbers.get("bytes spill loads", 0)
        kernel.registers = max(kernel.registers, numbers.get("registers", 0))
        kernel.shared = max(kernel.shared, numbers.get("bytes smem", 0))
    return found


def faults(kernel: Kernel) -> list[str]:
    """What is wrong with it, in words."""
    most = SHARED_MEMORY.get(kernel.arch.removeprefix("sm_"), max(SHARED_MEMORY.values()))
    wrong = []
    if kernel.spills > TOLERATED:
        wrong.append(f"spills {kernel.spills} bytes")
    if kernel.shared > most:
        wrong.append(f"needs {kernel.shared} bytes of shared memory, a block has {most}")
    return wrong


def readable(names: list[str]) -> list[str]:
    """Demangled, without arguments and our own namespaces, where the tool for it exists."""
    if not names or shutil.which("c++filt") is None:
        return names
    told = subprocess.run(
        ["c++filt", "--no-params"], input="\n".join(names), capture_output=True, text=True
    )
    return re.sub(r"fastrnn::|\(anonymous namespace\)::|device::", "", told.stdout).splitlines()


def compiled(source: Path, arch: str, cuda: Cuda) -> list[Kernel]:
    """The kernels of one file on one architecture.

    Raises:
        BuildError: nvcc refuses it.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [str(cuda.nvcc), *cuda_flags(cuda), "-Xptxas", "-v", f"-arch=sm_{arch}"]
        command += ["-cubin", "-o", str(Path(folder, "kernel.cubin")), str(source)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        error = next((line for line in said.splitlines() if "error" in line), "no output")
        raise BuildError(f"{source.name} for sm_{arch}: {error.strip()}", (source.name,))
    return kernels(said)


def check(sources: list[Path], archs: list[str], cuda: Cuda) -> int:
    """Prints every kernel's resources; returns how many have a fault."""
    tasks = [(source, arch) for arch in archs for source in sources]
    with ThreadPoolExecutor(toolchain.jobs()) as pool:
        reports = list(pool.map(lambda task: compiled(*task, cuda), tasks))
    found = [kernel for report in reports for kernel in report]
    names = readable([kernel.name for kernel in found])
    wrong = 0
    print("arch    registers  shared  stack  spills  kernel")
    for kernel, name in zip(found, names, strict=True):
        row = f"{kernel.arch:8}{kernel.registers:9}{kernel.shared:8}{kernel.stack:7}"
        told = faults(kernel)
        wrong += bool(told)
        print(f"{row}{kernel.spills:8}  {name}{''.join(f': {fault}' for fault in told)}")
    print(f"{len(found)} kernels of {len(sources)} files for {', '.join(archs)}: {wrong} at fault")
    return wrong


def main() -> int:
    """Parse the command line; exit status 1 for a fault, 2 for no compiler or a refusal."""
    parser = argparse.ArgumentParser(prog="python -m build_tools.cuda_check", description=__doc__)
    parser.add_argument("--arch", choices=SHARED_MEMORY, action="append", help="default: all")
    parser.add_argument("sources", nargs="*", type=Path, help="default: every csrc/*.cu")
    options = parser.parse_args()
    sources = [path.resolve() for path in options.sources] or sorted((ROOT / "csrc").glob("*.cu"))
    try:
        wrong = check(sources, options.arch or list(SHARED_MEMORY), toolchain.cuda())
    except BuildError as error:
        print(f"cuda-check: {error}", file=sys.stderr)
        return 2
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
