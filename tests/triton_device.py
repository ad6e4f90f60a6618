"""A stand-in for a CUDA driver: kernels are compiled as on that device, but nothing runs.

With it active a launch goes through Triton's own specialisation of its arguments and its compiler,
down to the binary, whose registers, stack and shared memory are then read.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

# Bytes of shared memory that a block can have, by compute capability.
SHARED = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
GRID = (2**31 - 1, 65_535, 65_535)  # blocks along each axis
_TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def _dump(binary: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(_TOOL), what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of a multiprocessor; `stack` is where spilled registers go."""

    name: str
    registers: int
    stack: int
    shared: int
    warps: int
    binary: bytes = field(repr=False)

    def count(self, instruction: str) -> int:
        """How often its machine code has it."""
        return _dump(self.binary, "--dump-sass").count(f" {instruction}.")


@dataclass
class Device:
    """The stand-in, of one compute capability; `compiled` fills as kernels are launched."""

    capability: int
    compiled: list[Compiled] = field(default_factory=list)
    launches: int = 0

    def __enter__(self) -> Device:
        driver.set_active(self)
        return self

    def __exit__(self, *_: object) -> None:
        driver._active = None

    @property
    def utils(self) -> Device:
        return self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled by the device's index

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED[device]}

    def launcher_cls(self, source: object, metadata: object):
        self._warps = metadata.num_warps

        def launch(*args: object) -> None:
            assert all(0 < size <= most for size, most in zip(args, GRID, strict=False)), args[:3]
            self.launches += 1

        return launch

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[object, ...]:
        found = _dump(binary, "--dump-resource-usage")
        usage = re.search(r"REG:(\d+) STACK:(\d+)", found)
        assert usage, found
        registers, stack = map(int, usage.groups())
        self.compiled.append(Compiled(name, registers, stack, shared, self._warps, binary))
        return object(), object(), registers, stack, 1024
