"""The CUDA operators on CPU tensors: csrc/*_device.cpp over the emulated kernels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from build_tools import runner, toolchain, torch_location
from build_tools.plan import STABLE_ABI
from fastrnn import _attention, _schemas, bidirectional, ops, wavefront
from tests import emulator

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    *(f"csrc/{name}_device.cpp" for name in ("attention", "recurrence", "stack")),
    *(f"csrc/{name}.cpp" for name in ("attention", "recurrence", "checks", "plan", "walk")),
    "tests/emulated.cpp",
)
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-DFASTRNN_CUDA=1"]


def build() -> Path:
    """The library of the operators, up to date; it finds the emulator's beside it."""
    emulated, torch_found = emulator.build(), torch_location.find()
    assert torch_found is not None
    folder = Path("build", "emulated")
    cxx, steps = toolchain.compiler(), []
    for source in map(Path, SOURCES):
        output, depfile = (folder / f"{source.name}{end}" for end in (".o", ".d"))
        files = ["-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(output)]
        includes = ["-isystem", str(torch_found.include)]
        command = (*cxx, *FLAGS, *STABLE_ABI, *includes, *files)
        steps.append(runner.Step(output, (source,), command, depfile))
    objects = tuple(step.output for step in steps)
    library = folder / "libemulated.so"
    link = [*cxx, "-shared", *map(str, objects), "-o", str(library), str(emulated)]
    link += [f"-Wl,-rpath,{emulated.parent}"]
    link += ["-L", str(torch_found.lib), "-ltorch", "-ltorch_cpu", "-lc10"]
    runner.run([*steps, runner.Step(library, objects, tuple(link))], ROOT, folder, 1)
    return ROOT / library


@functools.cache
def operators() -> Any:
    """torch.ops.fastrnn_emulated: those of the CUDA operators."""
    path = build()
    definitions = torch.library.Library("fastrnn_emulated", "DEF")
    names = ("recurrence", "recurrence_backward", "recurrence_both", "recurrence_both_backward")
    names += ("recurrence_stack", "recurrence_stack_backward")
    names += ("masked_attention", "masked_attention_backward")
    wanted = tuple(f"{n}(" for n in (*names, "use_cuda_schedule", "use_cuda_tf32", "cuda_barriers"))
    for schema in _schemas.SCHEMAS:
        if schema.startswith(wanted):
            definitions.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    definitions.define("refuse_launch(str name, bool refuse) -> ()")
    definitions.define("launch_failure(int device, int launch) -> str")
    torch.ops.load_library(str(path))
    fakes = {
        "recurrence": ops._fake_forward,
        "recurrence_backward": ops._fake_backward,
        "recurrence_both": bidirectional.fake_forward,
        "recurrence_both_backward": bidirectional.fake_backward,
        "recurrence_stack": wavefront.fake_forward,
        "recurrence_stack_backward": wavefront.fake_backward,
        "masked_attention": _attention._fake_forward,
        "masked_attention_backward": _attention._fake_backward,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"fastrnn_emulated::{name}", fake, lib=definitions)
    operators.definitions = definitions  # type: ignore[attr-defined] # they live as long as it
    return torch.ops.fastrnn_emulated
