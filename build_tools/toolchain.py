"""Finds what can compile here: the C++ compiler, the CUDA toolkit, the instruction sets."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

COMPILERS = ("g++", "c++", "clang++")
DEFAULT_ARCH = "90a"


class BuildError(Exception):
    """The native part cannot be built; the message is the reason, in one line.

    Args:
        reason: one line.
        outputs: the files whose commands failed, where it was a command that failed.
    """

    def __init__(self, reason: str, outputs: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.outputs = outputs


class SettingError(BuildError):
    """An environment variable has a value that means nothing: an error whatever else is set."""


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit and what to compile with it.

    Args:
        nvcc: the compiler.
        include: folder with cuda_runtime.h.
        lib: folder with libcudart_static.a.
        archs: such as ("80", "90a").
    """

    nvcc: Path
    include: Path
    lib: Path
    archs: tuple[str, ...]


def told(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """What a program prints; one that cannot be started has failed as any other may."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def switch(name: str) -> bool | None:
    """A 0|1 environment variable; None when unset or empty."""
    text = os.environ.get(name, "")
    if text not in ("", "0", "1"):
        raise SettingError(f"{name} must be 0 or 1, got {text!r}")
    return None if text == "" else text == "1"


def jobs() -> int:
    """How many commands run at once: MAX_JOBS, else the processors this process may use."""
    text = os.environ.get("MAX_JOBS", "")
    if text == "":
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    if not text.isdecimal() or int(text) == 0:
        raise SettingError(f"MAX_JOBS must be a positive integer, got {text!r}")
    return int(text)


def compiler() -> list[str]:
    """The C++ compiler's command: CXX, else the first of g++, c++, clang++ on PATH."""
    text = os.environ.get("CXX", "")
    try:
        asked = shlex.split(text)
    except ValueError as error:
        raise SettingError(f"CXX must be a command, got {text!r}: {error}") from error
    if asked:
        if shutil.which(asked[0]) is None:
            raise BuildError(f"no C++ compiler: CXX={shlex.join(asked)} was not found")
        return asked
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(f"no C++ compiler: none of {', '.join(COMPILERS)} is on PATH and CXX is unset")


def instruction_sets() -> dict[str, list[str]]:
    """Instruction sets that csrc/*_cpu.cpp is compiled for, each with its compiler flags."""
    sets: dict[str, list[str]] = {"portable": []}
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        # gcc would load what a whole tile reads before its products, and spill sums for it.
        sets["portable"] = ["-fno-schedule-insns"]
    if machine in ("x86_64", "amd64"):
        sets["avx2"] = ["-mavx2", "-mfma"]
        sets["avx512"] = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")] + ["-mfma"]
        sets["avx512_bf16"] = [*sets["avx512"], "-mavx512bf16"]
    return sets


def _toolkit_roots() -> list[Path]:
    """Folders that may be a toolkit, most wanted first; CUDA_HOME, when set, is the only one."""
    if home := os.environ.get("CUDA_HOME"):
        return [Path(home)]
    roots = [Path("/usr/local/cuda")]
    if nvcc := shutil.which("nvcc"):
        # The nvcc on PATH may be a link into the toolkit, or a script that only calls it: then
        # its own dry run names the folder.
        roots += [Path(nvcc).parent.parent, Path(nvcc).resolve().parent.parent]
        said = told(nvcc, "--dryrun", "-c", "none.cu").stderr
        roots += [Path(top).resolve() for top in re.findall(r"\bTOP=(\S+)", said)]
    return roots


def _toolkit() -> tuple[Path, Path, Path]:
    """nvcc, the headers' folder and the static runtime's folder."""
    roots = _toolkit_roots()
    for root in roots:
        include = root / "include"
        if not (include / "cuda_runtime.h").is_file():
            continue
        own = shutil.which(root / "bin" / "nvcc")
        nvcc = own or shutil.which("nvcc")
        folders = [root / "lib64", root / "lib", *sorted((root / "lib").glob("*-linux-gnu"))]
        lib = next((f for f in folders if (f / "libcudart_static.a").is_file()), None)
        if nvcc is None:
            raise BuildError(f"nvcc is neither in {root / 'bin'} nor on PATH")
        if lib is None:
            raise BuildError(f"libcudart_static.a is not in {root}")
        return Path(nvcc), include, lib
    looked = ", ".join(dict.fromkeys(map(str, roots)))
    raise BuildError(f"no CUDA toolkit: include/cuda_runtime.h is not in {looked}")


def _known_archs(nvcc: Path) -> list[str]:
    """What this nvcc compiles for, without the a or f of a specific variant."""
    return re.findall(r"\bsm_(\d+)", told(nvcc, "--list-gpu-code").stdout)


def _visible_archs() -> list[str]:
    """Architectures of the GPUs here."""
    listed = told("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").stdout
    archs = [found.replace(".", "") for found in re.findall(r"^\d+\.\d+$", listed, re.M)]
    # Hopper's own instructions exist under the name 90a alone.
    return ["90a" if arch == "90" else arch for arch in archs]


def _archs(nvcc: Path) -> tuple[str, ...]:
    known = _known_archs(nvcc)
    text = os.environ.get("FASTRNN_CUDA_ARCHS", "")
    if text == "":
        usable = [arch for arch in _visible_archs() if arch.rstrip("af") in known]
        return tuple(dict.fromkeys(usable)) or (DEFAULT_ARCH,)
    asked = [arch.strip() for arch in text.split(";") if arch.strip()]
    if not asked or not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in asked):
        raise SettingError(
            f"FASTRNN_CUDA_ARCHS must be architectures joined by ';' such as '80;90a', got {text!r}"
        )
    for arch in asked:
        if arch.rstrip("af") not in known:
            raise SettingError(
                f"FASTRNN_CUDA_ARCHS: this nvcc compiles for {', '.join(known)}, got {arch!r}"
            )
    return tuple(dict.fromkeys(asked))


def cuda() -> Cuda:
    """The CUDA toolkit to compile with.

    Returns:
        The toolkit and the architectures of FASTRNN_CUDA_ARCHS, else of the GPUs here, else 90a.

    Raises:
        BuildError: FASTRNN_CUDA=0, or there is no complete toolkit.
    """
    if switch("FASTRNN_CUDA") is False:
        raise BuildError("switched off by FASTRNN_CUDA=0")
    nvcc, include, lib = _toolkit()
    return Cuda(nvcc, include, lib, _archs(nvcc))
