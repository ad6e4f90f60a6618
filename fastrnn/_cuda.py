"""CUDA devices: whether the compiled kernels run on one, and by which schedule."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import _library

SCHEDULES = ("cluster", "grid", "step")
LAUNCHES = ("cluster", "grid", "layers")  # those that a device may refuse
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Facts(NamedTuple):
    """What a device offers to a kernel.

    Args:
        capability: compute capability times ten.
        processors: multiprocessors.
        shared_memory: bytes that one block can have.
        clusters: of 2, 4, 8 and 16 blocks that run at once; 0 where that is not known.
    """

    capability: int
    processors: int
    shared_memory: int
    clusters: tuple[int, ...] = (0, 0, 0, 0)


_known: dict[int, Facts | str] = {}
_asked: list[use_schedule] = []  # the last is followed
_asking = threading.Lock()
_tf32 = False  # what the kernels have been told


class use_schedule:  # noqa: N801 (reads as a function)
    """Run CUDA recurrences by one schedule from now on, or inside a `with` block.

    A schedule that cannot run raises when it is needed. FASTRNN_SCHEDULE sets the first choice.
    All threads follow it, since autograd runs CUDA kernels on its own ones; of blocks that overlap,
    the one that began last.

    Args:
        name: "cluster", "grid", "step", or "auto" (the fastest that can run).

    Raises:
        ValueError: on another name.
    """

    def __init__(self, name: str, source: str = "use_schedule") -> None:
        if name not in (*SCHEDULES, "auto"):
            wanted = (*SCHEDULES, "auto")
            raise ValueError(f"{source}: schedule must be one of {wanted}, got {name!r}")
        self._name = name
        with _asking:
            _asked.append(self)
            del _asked[:-100]  # calls so old have no block
            _tell()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        with _asking:
            if self in _asked:
                _asked.remove(self)
            _tell()


def _tell() -> None:
    if _library.unavailable is None:
        torch.ops.fastrnn.use_cuda_schedule.default(schedule_asked())


def schedule_asked() -> str:
    """The schedule that `use_schedule` or FASTRNN_SCHEDULE asked for."""
    return _asked[-1]._name if _asked else "auto"


if asked := os.environ.get("FASTRNN_SCHEDULE"):
    with _library.environment():
        use_schedule(asked, "FASTRNN_SCHEDULE")


def tf32_allowed() -> bool:
    """Whether torch lets products of float32 tensors on CUDA devices be TF32's."""
    # Any mix of torch's old and new switches, which `allow_tf32` refuses to read.
    return bool(torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32")


def follow_tf32(input: Tensor) -> None:
    """Let the kernels use TF32 where torch does. A compiled program keeps what was last told."""
    global _tf32
    if not input.is_cuda or input.dtype != torch.float32 or torch.compiler.is_compiling():
        return
    if (allowed := tf32_allowed()) != _tf32:
        _tf32 = allowed
        torch.ops.fastrnn.use_cuda_tf32.default(allowed)


def facts(index: int) -> Facts | str:
    """What CUDA device number `index` offers, or why the compiled kernels do not run on it."""
    if index not in _known:
        _known[index] = _probed(index)
    return _known[index]


# What `torch.compiler.assume_constant_result` does, which would import all of Dynamo to do it.
facts._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _probed(index: int) -> Facts | str:
    try:
        major, minor, *found = torch.ops.fastrnn.cuda_device.default(index)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    processors, shared, *clusters, has_code = found
    if not has_code:
        return f"this build has no code for compute capability {major}.{minor}"
    return Facts(10 * major + minor, processors, shared, tuple(clusters))


def refusal(index: int, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels cannot run on a device, or None."""
    found = facts(index)
    if isinstance(found, str):
        return found
    if dtype not in DTYPES:
        return f"the CUDA kernels take float16, bfloat16, float32 and float64, got {dtype}"
    return None


def plan(
    cell: str,
    dtype: torch.dtype,
    steps: int,
    batch: int,
    hidden: int,
    device: int,
    directions: int,
    layers: int,
    features: Collection[str],
) -> Any:
    """The schedule of a forward pass on a device that can run it, as `fastrnn._C.plan` gives it.

    None without `fastrnn._C`.
    """
    try:
        module = importlib.import_module("fastrnn._C")
    except ImportError:
        return None
    tf32 = dtype == torch.float32 and tf32_allowed()
    name = "tf32" if tf32 else str(dtype).removeprefix("torch.")
    on = facts(device)
    assert isinstance(on, Facts)  # or the backend would have been refused
    options = {"schedule": schedule_asked(), "directions": directions, "layers": layers}
    options |= on._asdict()
    options |= {"layer_norm": "layer_norm" in features, "projected": "proj_size" in features}
    failure = torch.ops.fastrnn.cuda_launch_failure.default
    failed = {launch: failure(device, launch) for launch in LAUNCHES}
    return module.plan(cell, name, steps, batch, hidden, failed=failed, **options)
