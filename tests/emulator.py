"""The CUDA kernels on the CPU: csrc/*.cu built for csrc/emulator/ and called by ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from build_tools import runner, toolchain

ROOT = Path(__file__).resolve().parent.parent
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # as in kernels_cuda.h
TF32 = len(DTYPES)  # float32 whose products are TF32's
# Their hooks at every load and store are ours (csrc/emulator/memory.cpp), not the sanitizer's.
HOOKS = ["-fsanitize=thread"]
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-DFASTRNN_EMULATOR"]
UNDEFINED = ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
# By what the kernels are looked at: "undefined" besides the hooks, "address" in their place (both
# want the same calls), with the sanitizer's library loaded before everything else.
SANITIZERS = {"": HOOKS, "undefined": [*HOOKS, *UNDEFINED], "address": ["-fsanitize=address"]}
SANITIZER = "FASTRNN_TEST_SANITIZER"  # one of them, in the environment
SCHEDULES = ("cluster", "grid", "stack")  # stack: layers one above the other
NOT_KERNELS = ("device.cu",)


def build(sanitizer: str = "") -> Path:
    """The library, up to date, by one of SANITIZERS."""
    cxx = toolchain.compiler()
    folder = Path("build", f"emulator-{sanitizer}" if sanitizer else "emulator")
    flags = SANITIZERS[sanitizer]
    kernels = [p for p in sorted(ROOT.glob("csrc/*.cu")) if p.name not in NOT_KERNELS]
    steps = []
    own = [ROOT / "tests" / "emulator_kernels.cu", *sorted(ROOT.glob("csrc/emulator/*.cpp"))]
    for source in [*kernels, *own]:
        output, depfile = (folder / f"{source.name}{end}" for end in (".o", ".d"))
        extra = flags if source.suffix == ".cu" else []
        # Every shape takes the wide kernels where it can.
        extra = [*extra, "-DFASTRNN_WIDE_FROM=1", "-x", "c++"]
        path = source.relative_to(ROOT)
        files = ["-MMD", "-MF", str(depfile), "-c", str(path), "-o", str(output)]
        command = (*cxx, *FLAGS, *extra, *files)
        steps.append(runner.Step(output, (path,), command, depfile))
    objects = tuple(step.output for step in steps)
    library = folder / "libemulator.so"
    link = [*cxx, "-shared", *map(str, objects), "-o", str(library), "-ldl"]
    link += [flag for flag in flags if flag not in HOOKS]
    runner.run([*steps, runner.Step(library, objects, tuple(link))], ROOT, folder, 1)
    return ROOT / library


class Step(ctypes.Structure):
    """`Step` of kernels_cuda.h; so are the others here."""

    _fields_ = [
        (name, c_int64)
        for name in ("time", "row", "rows", "prev_row", "prev_rows", "next_row", "next_rows")
    ]


class Extras(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("resets", "seed", "sequences")),
        *(("zoned", c_bool), ("zoneout", c_double * 2)),
    ]


_SEQUENCE = [
    *((name, c_int64) for name in ("rows", "batch", "hidden_size", "projected")),
    *((name, c_void_p) for name in ("state", "bias_ih", "bias_hh", "gains")),
    ("extras", Extras),
]
FORWARD = ("x_proj", "running", "output", "cells", "reserve", "unprojected")
BACKWARD = (
    *("grad_output", "grad_state_n", "grad_cells", "output", "cells", "reserve", "carry"),
    *("grad_x", "grad_h", "grad_state", "previous", "operand", "grad_projected"),
)
NORM_BACKWARD = (
    *("gates", "gates_h", "grad_c", "moments"),
    *("grad_gains", "grad_bias_ih", "grad_bias_hh"),
)


class Forward(ctypes.Structure):
    _fields_ = [*_SEQUENCE, *((name, c_void_p) for name in FORWARD)]


class Backward(ctypes.Structure):
    _fields_ = [*_SEQUENCE, *((name, c_void_p) for name in BACKWARD)]


class NormBackward(Backward):
    _fields_ = [(name, c_void_p) for name in NORM_BACKWARD]


class Steps(ctypes.Structure):
    _fields_ = [("steps", c_int64), ("table", c_void_p), ("reverse", c_bool)]


class WayForward(ctypes.Structure):
    _fields_ = [
        *(("arguments", Forward), ("steps", Steps)),
        *((name, c_void_p) for name in ("weight_hh", "weight_on")),
    ]


class WayBackward(ctypes.Structure):
    _fields_ = [
        *(("arguments", Backward), ("steps", Steps)),
        *((name, c_void_p) for name in ("weight_hh", "weight_on")),
    ]


class Layout(ctypes.Structure):
    _fields_ = [
        *((name, c_int) for name in ("cluster", "clusters", "share", "tile", "threads")),
        *((name, c_int64) for name in ("shared", "bytes")),
    ]


def _function(*types: Any) -> Any:
    return CFUNCTYPE(c_int, *types)


class StepKernels(ctypes.Structure):
    _fields_ = [
        *((name, c_int) for name in ("gates", "states", "reserve", "operand_gates")),
        ("shared_gradients", c_bool),
        ("forward", _function(POINTER(Forward), POINTER(Step), *[c_void_p] * 3)),
        ("operand", _function(POINTER(Forward), POINTER(Step), *[c_void_p] * 4)),
        ("backward", _function(POINTER(Backward), POINTER(Step), *[c_void_p] * 2)),
        ("operand_backward", _function(POINTER(Backward), POINTER(Step), *[c_void_p] * 2)),
        ("begin", _function(POINTER(Backward), POINTER(Step), *[c_void_p] * 2)),
        ("project", _function(POINTER(Forward), POINTER(Step), *[c_void_p] * 2)),
        ("project_backward", _function(POINTER(Backward), POINTER(Step), *[c_void_p] * 2)),
    ]


class NormKernels(ctypes.Structure):
    _fields_ = [
        ("forward", _function(POINTER(Forward), POINTER(Step), *[c_void_p] * 3)),
        ("backward", _function(POINTER(NormBackward), POINTER(Step), *[c_void_p] * 2)),
        ("finish", _function(POINTER(NormBackward), c_void_p)),
    ]


class PersistentKernels(ctypes.Structure):
    _fields_ = [
        (
            "layout",
            CFUNCTYPE(c_bool, c_bool, *[c_int64] * 2, *[c_int] * 3, c_int64, POINTER(Layout)),
        ),
        *(
            (
                name,
                _function(POINTER(way), c_int, POINTER(Layout), *[c_void_p] * 2),
            )
            for name, way in (("forward", WayForward), ("backward", WayBackward))
        ),
    ]


class EmulatorError(RuntimeError):
    """The emulator found a mistake in a kernel."""


class Emulator:
    """The emulated device.

    Args:
        library: what `build` returned.
    """

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        for name, result in (
            *(("emulator_allocate", c_void_p), ("emulator_report", c_char_p)),
            ("emulator_site", c_char_p),
            *((f"emulator_{name}_kernels", c_void_p) for name in ("step", "norm", *SCHEDULES)),
        ):
            getattr(self.library, name).restype = result

    def empty(self, shape: Any, dtype: torch.dtype, misalign: int = 0) -> Tensor:
        """Device memory of NaNs (bytes 0xFF), `misalign` bytes off a good alignment."""
        size = torch.Size(shape)
        count = max(size.numel(), 1)
        bytes_ = count * dtype.itemsize
        address = self.library.emulator_allocate(ctypes.c_size_t(bytes_), misalign)
        assert address, "the emulated device is out of memory"
        buffer = (ctypes.c_char * bytes_).from_address(address)
        return torch.frombuffer(buffer, dtype=dtype, count=count)[: size.numel()].view(size)

    def put(self, tensor: Tensor | None, misalign: int = 0) -> Tensor | None:
        """A copy in the device's memory."""
        if tensor is None:
            return None
        return self.empty(tensor.shape, tensor.dtype, misalign).copy_(tensor.detach())

    def clear(self) -> None:
        """Free all device memory, forget the sites, take none out, run threads in turn."""
        self.library.emulator_release()
        self.seed(0)
        self.remove("")

    def seed(self, seed: int) -> None:
        """The order in which threads run ahead of each other; 0: in turn."""
        self.library.emulator_seed(seed)

    def sites(self) -> list[str]:
        """The barriers, releases and acquires that have run since `clear`."""
        return [self._site(i) for i in range(self.library.emulator_sites())]

    def _site(self, i: int) -> str:
        return str(self.library.emulator_site(i).decode())

    def remove(self, site: str) -> None:
        """Take one of `sites` out, or none."""
        self.library.emulator_remove(site.encode())

    def step_kernels(self, cell: str, dtype: torch.dtype) -> StepKernels:
        """The step schedule's kernels."""
        found = self.library.emulator_step_kernels(cell.encode(), DTYPES.index(dtype))
        return StepKernels.from_address(found)

    def norm_kernels(self, cell: str, dtype: torch.dtype) -> NormKernels:
        """Those of layer normalisation."""
        found = self.library.emulator_norm_kernels(cell.encode(), DTYPES.index(dtype))
        return NormKernels.from_address(found)

    def persistent_kernels(
        self, schedule: str, cell: str, dtype: torch.dtype, tf32: bool = False
    ) -> PersistentKernels | None:
        """Those of one of SCHEDULES, if it has the cell and dtype."""
        get = getattr(self.library, f"emulator_{schedule}_kernels")
        found = get(cell.encode(), TF32 if tf32 else DTYPES.index(dtype))
        return PersistentKernels.from_address(found) if found else None

    def run(self, kernel: Callable[..., int], *args: Any) -> None:
        """Launch; structures, device tensors (or None) and the stream's place.

        Raises:
            EmulatorError: with what was found.
        """
        code = kernel(*(a.data_ptr() if isinstance(a, Tensor) else a for a in args), None)
        if code:
            raise EmulatorError(self.library.emulator_report().decode() or f"launch: error {code}")


@functools.cache
def emulator() -> Emulator:
    """The one of this process, built first."""
    return Emulator(build(os.environ.get(SANITIZER, "")))


def pointer(tensor: Tensor | None) -> int | None:
    """For a structure's field; an empty tensor is null, too."""
    return tensor.data_ptr() if tensor is not None and tensor.numel() else None
