"""Which implementation runs, and why the others do not."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastrnn import _cuda, _kernels, _library
from fastrnn._version import __version__
from fastrnn.cells import COMPILED

BACKENDS = ("native", "triton", "reference")
# Options of a recurrence that neither the CPU's bfloat16 kernels nor Triton's have.
OF_FEW_KERNELS = ("proj_size", "layer_norm")
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Choice:
    """What will run a recurrence.

    Args:
        backend: "native", "triton" or "reference".
        schedule: how the backend walks the sequence.
        refused: backend -> reason, for every backend that does not run.
    """

    backend: str
    schedule: str
    refused: dict[str, str] = field(default_factory=dict)


def _checked(name: str, source: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"{source}: backend must be one of {(*BACKENDS, 'auto')}, got {name!r}")
    return name


_calls: list[use_backend] = []  # the last is the process's choice


class _Blocks(threading.local):
    """The names of the `with` blocks that a thread is in."""

    def __init__(self) -> None:  # run by each thread; found faster than a class's default
        self.names: tuple[str, ...] = ()


_blocks = _Blocks()


class use_backend:  # noqa: N801 (reads as a function)
    """Run every recurrence on one backend from now on, or inside a `with` block.

    A call by itself is for the whole process; a `with` block for its own thread, whatever calls
    say meanwhile.

    Args:
        name: "native", "triton", "reference", or "auto" (the fastest that can run).

    Raises:
        ValueError: on another name. A backend that cannot run raises when it is needed.
    """

    def __init__(self, name: str, source: str = "use_backend") -> None:
        self._name = _checked(name, source)
        # A `with` block takes the call back: not by restoring what was before, which may be
        # another thread's that is being taken back as well. Calls so old stay.
        _calls.append(self)
        del _calls[:-100]

    def __enter__(self) -> None:
        if self in _calls:
            _calls.remove(self)
        _enter(self._name)

    def __exit__(self, *_: object) -> None:
        _leave()


def _enter(name: str) -> None:
    _blocks.names = (*_blocks.names, name)


def _leave() -> None:
    _blocks.names = _blocks.names[:-1]


def asked() -> str:
    """The backend that this thread's innermost block asks for, or else the process."""
    names = _blocks.names
    return names[-1] if names else _calls[-1]._name


use_backend("auto")
if wanted := os.environ.get("FASTRNN_BACKEND"):
    with _library.environment():
        use_backend(wanted, "FASTRNN_BACKEND")


class AsAskedNow:
    """A context, for later, any thread and any number of times, of what is asked for now."""

    def __init__(self) -> None:
        self._name = asked()

    def __enter__(self) -> None:
        _enter(self._name)

    def __exit__(self, *_: object) -> None:
        _leave()


def lacking(cell: str) -> str | None:
    """Why no kernels can run a cell; None if some can."""
    return None if cell in COMPILED else f"no compiled kernel for cell {cell!r}"


def _native_refusal(input: Tensor, features: Collection[str], lacks: str | None) -> str | None:
    if _library.unavailable is not None:
        return _library.unavailable
    device = input.device
    if device.type == "cuda":
        if reason := _cuda.refusal(device.index or 0, input.dtype):
            return reason
    elif device.type != "cpu":
        return f"the compiled kernels take cpu and cuda tensors, got {device.type}"
    elif input.dtype not in _CPU_DTYPES:
        return f"the CPU kernels take float32, float64 and bfloat16, got {input.dtype}"
    elif input.dtype == torch.bfloat16 and (reason := _without("bfloat16 CPU", features)):
        return reason
    if forward_ad._current_level >= 0:  # they would drop the tangents, under no_grad silently
        return "the compiled kernels have no forward-mode derivative"
    return lacks


def _without(kernels: str, features: Collection[str]) -> str | None:
    for name in OF_FEW_KERNELS:
        if name in features:
            return f"the {kernels} kernels have no {name}"
    return None


def _triton_refusal(input: Tensor, features: Collection[str], lacks: str | None) -> str | None:
    if _kernels.TRITON is None:
        return "the triton package is not installed"
    # Interpreted kernels are for tests: they run on CPU tensors where they are asked for by name.
    interpreted = asked() == "triton" and input.device.type == "cpu" and _kernels.INTERPRETED
    if input.device.type != "cuda" and not interpreted:
        return f"the Triton kernels take cuda tensors, got {input.device.type}"
    if input.dtype not in _TRITON_DTYPES:
        return f"the Triton kernels take 16, 32 and 64 bit floating point, got {input.dtype}"
    if forward_ad._current_level >= 0:
        return "the Triton kernels have no forward-mode derivative"
    return _without("Triton", features) or lacks


def choose(
    input: Tensor,
    lacks: str | None = None,
    native_lacks: str | None = None,
    triton_lacks: str | None = None,
    features: Collection[str] = (),
) -> Choice:
    """Pick the backend of a recurrence.

    Args:
        input: any tensor of the recurrence's dtype and device.
        lacks: why no kernels can run it; default None: some can.
        native_lacks: why the C++ kernels alone cannot; default None.
        triton_lacks: the same of the Triton kernels; default None.
        features: names of the options in use; default none.

    Returns:
        The choice, with the reasons against every other backend.

    Raises:
        RuntimeError: the backend that `use_backend` or FASTRNN_BACKEND asked for cannot run.
        ValueError: an environment variable has a wrong value.
    """
    if _library.mistake is not None:
        raise ValueError(_library.mistake)
    refusals = {
        "native": _native_refusal(input, features, lacks or native_lacks),
        "triton": _triton_refusal(input, features, lacks or triton_lacks),
        "reference": None,
    }
    possible = [name for name, reason in refusals.items() if reason is None]
    name = asked()
    if name == "auto":
        chosen, reason = possible[0], "slower than {}"
    elif name in possible:
        chosen, reason = name, "{} was asked for"
    else:
        raise RuntimeError(f"backend {name!r} was asked for: {refusals[name]}")
    reason = reason.format(chosen)
    refused = {name: why or reason for name, why in refusals.items() if name != chosen}
    if chosen == "reference":
        return Choice(chosen, "step by step in torch", refused)
    if chosen == "triton":
        return Choice(chosen, "fused Triton kernels", refused)
    if input.is_cuda:
        return Choice(chosen, "on the GPU", refused)
    return Choice(chosen, f"whole sequence on the CPU, {_library.instruction_set}", refused)


def scheduled(
    choice: Choice,
    cell: str,
    input: Tensor,
    steps: int,
    batch: int,
    hidden_size: int,
    directions: int = 1,
    layers: int = 1,
    features: Collection[str] = (),
) -> Choice:
    """A choice with the schedule that the GPU will walk T steps of B sequences by.

    Args:
        choice: of `choose`.
        cell: a key of `CELLS`.
        input: any tensor of the recurrence's dtype and device.
        steps: T.
        batch: B.
        hidden_size: H.
        directions: that run side by side; default 1.
        layers: of one direction, that may run in one launch; default 1.
        features: names of the options in use; default none.

    Returns:
        The choice; unchanged unless the compiled kernels run it on a CUDA device.
    """
    if choice.backend != "native" or not input.is_cuda:
        return choice
    device = input.device.index or 0
    plan = _cuda.plan(
        cell, input.dtype, steps, batch, hidden_size, device, directions, layers, features
    )
    if plan is None:
        return choice
    refused = {f"{name} schedule": why for name, why in plan["refused"].items()}
    if plan["apart"]:
        refused["layers in one launch"] = plan["apart"]
    return Choice(choice.backend, plan["text"], choice.refused | refused)


def chosen(
    input: Tensor,
    lacks: str | None = None,
    native_lacks: str | None = None,
    triton_lacks: str | None = None,
    features: Collection[str] = (),
) -> str:
    """The backend that `choose` picks, found faster; same arguments and errors."""
    lacking = lacks or native_lacks
    if asked() in ("auto", "native") and _native_refusal(input, features, lacking) is None:
        return "native"
    return choose(input, lacks, native_lacks, triton_lacks, features).backend


def show_config() -> str:
    """Versions, and each backend with why it is or is not available.

    Returns:
        Several lines of text.
    """
    lines = [
        f"fastrnn {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"machine: {platform.machine()}, {torch.get_num_threads()} threads",
    ]
    if _library.unavailable is None:
        threads = min(torch.get_num_threads(), torch.ops.fastrnn.cpu_allowed.default())
        lines.append(
            f"native: available, CPU kernels for {_library.instruction_set}, {threads} threads"
        )
        lines.extend(f"  {name}: {value}" for name, value in _library.build_info().items())
        for index in range(torch.cuda.device_count()):
            lines.append(f"  {torch.cuda.get_device_name(index)}: {_cuda.facts(index)}")
    else:
        lines.append(f"native: {_library.unavailable}")
    triton = _kernels.TRITON
    lines.append("triton: " + (f"available, Triton {triton}" if triton else "not installed"))
    lines.extend(f"  {line}" for line in _kernels.tuned())
    lines.append("reference: available")
    lines.append(f"asked for: {asked()}")
    return "\n".join(lines)
