"""The commands that make libfastrnn.so and the module _C from csrc/."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from build_tools import toolchain
from build_tools.runner import Step
from build_tools.toolchain import BuildError, Cuda
from build_tools.torch_location import Torch

LIBRARY = "libfastrnn.so"
MODULE = "_C" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")

OPTIMISE = ["-O3", "-fPIC", "-fvisibility=hidden"]
COMMON = ["-std=c++20", *OPTIMISE, "-Wall", "-fopenmp"]
# Contracted multiply-adds and branch-free maths, but NaN and Inf still propagate.
FLOATING_POINT = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# The stable ABI of torch 2.11: the library runs on that torch and every later one. Units of _C see
# no header of torch's own, and the pybind11 that some torches carry refuses the macro.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
LINK = ["-shared", "-fopenmp"]
LINUX_LINK = ["-Wl,-z,defs", "-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else []


def cuda_flags(cuda: Cuda) -> list[str]:
    """What nvcc is told about a .cu file, whatever it makes of it."""
    return ["-std=c++20", "-O3", "-DFASTRNN_CUDA=1", "-I", str(cuda.include)]


def _pybind11() -> str | None:
    """Headers of the pybind11 package, for a torch that carries none."""
    spec = importlib.util.find_spec("pybind11")
    return str(Path(spec.origin).parent / "include") if spec and spec.origin else None


@dataclass
class Plan:
    """Everything needed to compile one source tree; paths are relative to its root.

    Args:
        root: folder that holds csrc/.
        torch: the torch to build against.
        cxx: the C++ compiler's command.
        cuda: the CUDA toolkit, or why there is none.
    """

    root: Path
    torch: Torch
    cxx: list[str]
    cuda: Cuda | str
    sets: dict[str, list[str]] = field(default_factory=toolchain.instruction_sets)

    @property
    def build_dir(self) -> Path:
        """One folder per torch version, with and without CUDA: going back rebuilds nothing."""
        suffix = "-cuda" if isinstance(self.cuda, Cuda) else ""
        return Path("build", f"torch-{self.torch.version}{suffix}")

    @property
    def defines(self) -> list[str]:
        """Macros of what there is, which every unit sees."""
        macros = [f"-DFASTRNN_HAVE_{name.upper()}=1" for name in self.sets if name != "portable"]
        if isinstance(self.cuda, Cuda):
            macros.append("-DFASTRNN_CUDA=1")
        return macros

    def _compile(self, source: Path, name: str, flags: Sequence[str]) -> Step:
        output, depfile = (self.build_dir / f"{name}{end}" for end in (".o", ".d"))
        files = ["-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(output)]
        includes = ["-isystem", str(self.torch.include)]
        command = [*self.cxx, *COMMON, *FLOATING_POINT, *self.defines, *flags, *includes, *files]
        return Step(output, (source,), tuple(command), depfile)

    def _compile_cuda(self, source: Path, cuda: Cuda) -> Step:
        output, depfile = (self.build_dir / f"{source.name}{end}" for end in (".o", ".d"))
        # CXX may be a launcher and its compiler, or a compiler and its options.
        host = [word for word in self.cxx if not word.startswith("-")][-1]
        command = [str(cuda.nvcc), *cuda_flags(cuda), "-ccbin", host]
        command += ["-Xcompiler", ",".join(OPTIMISE[1:])]
        for arch in cuda.archs:
            command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
        command += ["-MMD", "-MF", str(depfile)]
        command += ["-c", str(source), "-o", str(output)]
        return Step(output, (source,), tuple(command), depfile)

    def library(self) -> list[Step]:
        """The steps that make libfastrnn.so: objects, then the link."""
        csrc = self.root / "csrc"
        sources = sorted(p.relative_to(self.root) for p in csrc.glob("*.cpp"))
        steps = []
        for source in sources:
            if source.name == "module.cpp":
                continue
            if not source.stem.endswith("_cpu"):
                facts = ["-I", str(self.build_dir)] if source.stem == "schemas" else []
                steps.append(self._compile(source, source.stem, [*STABLE_ABI, *facts]))
                continue
            for name, flags in self.sets.items():
                flags = [*STABLE_ABI, f"-DFASTRNN_ISA={name}", *flags]
                steps.append(self._compile(source, f"{source.stem}.{name}", flags))
        libraries = ["-L", str(self.torch.lib), "-Wl,--no-as-needed"]
        libraries += ["-ltorch", "-ltorch_cpu", "-lc10"]
        if isinstance(self.cuda, Cuda):
            for path in sorted(csrc.glob("*.cu")):
                steps.append(self._compile_cuda(path.relative_to(self.root), self.cuda))
            libraries += ["-L", str(self.cuda.lib), "-lcudart_static", "-lpthread", "-ldl", "-lrt"]
        objects = tuple(step.output for step in steps)
        output = self.build_dir / LIBRARY
        command = [*self.cxx, *LINK, *LINUX_LINK, *map(str, objects), *libraries]
        return [*steps, Step(output, objects, (*command, "-o", str(output)))]

    def module(self) -> list[Step]:
        """The steps that make _C: its objects and their link."""
        paths = [sysconfig.get_path("include"), sysconfig.get_path("platinclude"), _pybind11()]
        folders = [path for path in dict.fromkeys(paths) if path]
        if not any(Path(folder, "Python.h").is_file() for folder in folders):
            raise BuildError(f"Python.h is not in {paths[0]} (install Python's headers)")
        headers = [Path(self.torch.include), *map(Path, folders)]
        if not any((folder / "pybind11" / "pybind11.h").is_file() for folder in headers):
            raise BuildError(
                f"pybind11's headers are neither in {self.torch.include} nor installed"
            )
        flags = ["-I", str(self.build_dir)]
        for folder in folders:
            flags += ["-isystem", folder]
        steps = [
            self._compile(Path("csrc", f"{name}.cpp"), f"{name}.{MODULE}", flags)
            for name in ("module", "plan")
        ]
        objects = tuple(step.output for step in steps)
        output = self.build_dir / MODULE
        command = (*self.cxx, "-shared", *map(str, objects), "-o", str(output))
        return [*steps, Step(output, objects, command)]

    def facts(self) -> str:
        """Text of build_facts.h, which module.cpp includes."""
        archs, reason = (self.cuda.archs, "") if isinstance(self.cuda, Cuda) else ((), self.cuda)
        schemas = runpy.run_path(str(self.root / "fastrnn" / "_schemas.py"))
        rows = {
            "FLAGS": json.dumps(shlex.join([*COMMON, *FLOATING_POINT])),
            "TORCH_VERSION": json.dumps(self.torch.version),
            "INSTRUCTION_SETS": json.dumps(",".join(self.sets)),
            "CUDA_ARCHS": json.dumps(",".join(archs)),
            "CUDA_REASON": json.dumps(reason),
            "SCHEMAS": json.dumps(schemas["DIGEST"]),
        }
        return "".join(f"#define FASTRNN_{name} {text}\n" for name, text in rows.items())
