"""Imports point down only, and `import fastrnn` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lowest floor first; a floor may import itself and those before it. "fastrnn" is __init__.py.
FLOORS = (
    ("_version", "_schemas", "_library", "_C", "_kernels", "_suggest"),
    ("kernels",),
    ("regularisers", "_cell"),
    ("cells",),
    ("_cuda",),
    ("backends", "_calls"),
    ("batching", "_attention_batching", "_attention", "ops"),
    ("triton_ops", "triton_attention", "_dropout"),
    (
        "_arguments",
        "_autocast",
        "_checks",
        "attention",
        "functional",
        "loss",
        "packed",
        "wavefront",
    ),
    ("bidirectional", "plain", "_recompute", "_recurrent", "_rows", "_stack", "_swap", "_flops"),
    ("_frozen", "streaming", "_layers", "single_step", "custom", "init"),
    ("modules", "multihead"),
    ("_onnx_nodes", "onnx"),
    ("fastrnn",),
    ("lm",),
    ("train", "generate", "evaluate", "profile", "report", "sweep"),
)
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
HEAVY = ("tyro", "rich", "safetensors", "matplotlib", "triton", "pytest", "tensorboard", "onnx")


def _sources() -> dict[str, Path]:
    """Dotted module name -> file, for everything that is imported as fastrnn."""
    sources = {}
    for folder, package in ((ROOT / "fastrnn", ()), (ROOT / "kernels", ("kernels",))):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            sources[".".join(("fastrnn", *package, *parts))] = path
    return sources


SOURCES = _sources()


def _floor(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imported(module: str, text: str, is_package: bool = False) -> set[str]:
    """The floors that a module's text imports, anywhere in it.

    `from fastrnn import name` is an import of the floor `name` where there is such a module, and
    of the package itself otherwise.
    """
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = len(parts) - node.level + is_package
                base = ".".join([*parts[:kept], *filter(None, [base])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] != "fastrnn":
                continue
            inside = len(parts) > 1 and parts[1] in RANK
            found.add(parts[1] if inside else "fastrnn")
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    path = SOURCES[module]
    floor = _floor(module)
    assert floor in RANK, f"{path}: give fastrnn.{floor} its floor in tests/test_floors.py"
    below = imported(module, path.read_text(), path.name == "__init__.py")
    above = sorted(name for name in below if RANK[name] > RANK[floor])
    assert not above, f"{path} (floor {floor}) imports from above: {above}"


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("fastrnn.ops", "from fastrnn import cells, LSTM", {"cells", "fastrnn"}),
        ("fastrnn.ops", "def f():\n    from .modules import LSTM", {"modules"}),
        ("fastrnn.lm.loop", "from . import data\nfrom ..cells import CELLS", {"lm", "cells"}),
        ("fastrnn.lm.loop", "import fastrnn.train as t, torch", {"train"}),
        ("fastrnn.lm.loop", "from torch import nn", set()),
    ],
)
def test_the_reader_of_imports(module: str, text: str, expected: set[str]) -> None:
    assert imported(module, text) == expected


def test_import_is_light() -> None:
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import fastrnn\n"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))\n"
        "print(*sorted(m for m in sys.modules if m.startswith('fastrnn.')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    added, ours = (line.split() for line in done.stdout.splitlines())
    assert "fastrnn" in added
    assert not set(added) & set(HEAVY)
    assert "fastrnn.modules" in ours
    assert not [name for name in ours if name.startswith(("fastrnn.train", "fastrnn.lm"))]
