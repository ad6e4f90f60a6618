"""The compiled pieces: what they say of themselves, and how they are built."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from build_tools import native, plan, runner, toolchain, torch_location
from build_tools.runner import Step

ROOT = Path(__file__).resolve().parent.parent
BUILT = (ROOT / "fastrnn" / plan.LIBRARY).exists()
needs_build = pytest.mark.skipif(
    not BUILT and os.environ.get("FASTRNN_REQUIRE_EXT") != "1", reason="nothing compiled here"
)
X86 = platform.machine().lower() in ("x86_64", "amd64")


@needs_build
def test_build_info() -> None:
    from fastrnn import _C, _schemas

    info = _C.build_info()
    assert re.match(r"(gcc|clang) \d+\.\d+", info["compiler"])
    assert {"-std=c++20", "-O3", "-fopenmp"} <= set(info["flags"].split())
    assert "-ffast-math" not in info["flags"]
    assert int(info["torch"].split(".")[0]) >= 2
    sets = ["portable", "avx2", "avx512", "avx512_bf16"]
    assert info["instruction_sets"] == (sets if X86 else sets[:1])
    assert info["schemas"] == _schemas.DIGEST
    # Exactly one of the two: architectures, or why there are none.
    assert bool(info["cuda_archs"]) != bool(info["cuda_reason"])


@needs_build
def test_library_knows_no_python_and_no_machine() -> None:
    library = ROOT / "fastrnn" / plan.LIBRARY
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    told = subprocess.run(
        ["readelf", "-d", library], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.+?)\]", told)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "python" in name or "cudart" in name]
    assert "RPATH" not in told and "RUNPATH" not in told


@needs_build
def test_one_openmp_runtime() -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    code = (
        "import fastrnn, torch\n"
        "fastrnn.LSTM(3, 4)(torch.randn(2, 1, 3))\n"
        "rows = open('/proc/self/maps').read().splitlines()\n"
        "paths = {row.split()[-1] for row in rows if '/' in row}\n"
        "assert any(path.endswith('libfastrnn.so') for path in paths)\n"
        "print(*(p for p in paths if any(n in p for n in ('libgomp', 'libomp', 'libiomp'))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.split()) == 1, done.stdout


def _shared_symbols(listing: str, isa: str) -> list[str]:
    """Weak, unique and common definitions that do not carry the instruction set's namespace.

    The linker keeps one copy of such a symbol for every unit: if it keeps the AVX-512 one, the
    portable path runs it too, and an older processor stops at an illegal instruction.
    """
    rows = (line.split() for line in listing.splitlines())
    weak = [row[-1] for row in rows if len(row) == 3 and row[1] in "WVuC"]
    own = f"{len(isa)}{isa}"
    # The personality reference is data: a pointer, the same for all.
    return [name for name in weak if own not in name and not name.startswith("DW.ref.")]


def test_shared_symbols_are_found() -> None:
    listing = (
        "0000000000000000 W _ZSt3maxIfERKT_S2_S2_\n"
        "0000000000000000 W _ZN7fastrnn6avx5124tileIfEEvv\n"
        "0000000000000000 T _ZN7fastrnn4planEv\n"
        "0000000000000000 V DW.ref.__gxx_personality_v0\n"
        "                 w __gmon_start__\n"
    )
    assert _shared_symbols(listing, "avx512") == ["_ZSt3maxIfERKT_S2_S2_"]
    assert "_ZN7fastrnn6avx5124tileIfEEvv" in _shared_symbols(listing, "avx2")


@pytest.mark.parametrize(
    ("machine", "sets"),
    [
        ("x86_64", ["portable", "avx2", "avx512", "avx512_bf16"]),
        ("AMD64", ["portable", "avx2", "avx512", "avx512_bf16"]),
        ("aarch64", ["portable"]),
        ("ppc64le", ["portable"]),
    ],
)
def test_a_machine_has_its_instruction_sets(
    monkeypatch: pytest.MonkeyPatch, machine: str, sets: list[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    found = toolchain.instruction_sets()
    assert list(found) == sets
    assert ("-fno-schedule-insns" in found["portable"]) == (machine == "aarch64")


@needs_build
@pytest.mark.parametrize("isa", toolchain.instruction_sets())
def test_instruction_sets_share_no_code(isa: str) -> None:
    objects = sorted((ROOT / "build").glob(f"torch-*/*_cpu.{isa}.o"))
    sources = {path.stem for path in (ROOT / "csrc").glob("*_cpu.cpp")}
    objects = [path for path in objects if path.name.split(".")[0] in sources]
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs nm and the build folder")
    for path in objects:
        told = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        assert not _shared_symbols(told, isa), path


def _tree(root: Path) -> None:
    """A small source tree with one of each kind of unit, and a header between two of them."""
    csrc = root / "csrc"
    csrc.mkdir()
    (root / "fastrnn").mkdir()
    (root / "fastrnn" / "_schemas.py").write_text('DIGEST = ""\n')
    (csrc / "shared.h").write_text("int shared();\n")
    (csrc / "one.cpp").write_text('#include "shared.h"\nint one() { return shared(); }\n')
    (csrc / "two.cpp").write_text('#include "shared.h"\nint shared() { return 2; }\n')
    (csrc / "loop_cpu.cpp").write_text("namespace FASTRNN_ISA { int loop() { return 3; } }\n")


def _plan(root: Path) -> plan.Plan:
    torch_found = torch_location.find()
    assert torch_found is not None
    return plan.Plan(root, torch_found, toolchain.compiler(), "not in this test")


def _build(root: Path) -> dict[str, int]:
    """Builds the tree's library; returns each output's modification time."""
    tree = _plan(root)
    steps = tree.library()
    runner.run(steps, root, tree.build_dir, 2)
    return {step.output.name: (root / step.output).stat().st_mtime_ns for step in steps}


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, toolchain.COMPILERS)), reason="needs a C++ compiler"
)
needs_ninja = pytest.mark.skipif(runner.find_ninja() is None, reason="needs ninja")


@needs_compiler
@needs_ninja
def test_touching_one_file_rebuilds_one_object(tmp_path: Path) -> None:
    _tree(tmp_path)
    first = _build(tmp_path)
    sets = toolchain.instruction_sets()
    loops = {f"loop_cpu.{isa}.o" for isa in sets}
    assert set(first) == {"one.o", "two.o", plan.LIBRARY} | loops
    assert _build(tmp_path) == first

    def rebuilt(name: str) -> set[str]:
        before = _build(tmp_path)
        path = tmp_path / "csrc" / name
        path.write_text(path.read_text() + "// touched\n")
        after = _build(tmp_path)
        return {output for output in after if after[output] != before[output]}

    assert rebuilt("one.cpp") == {"one.o", plan.LIBRARY}
    assert rebuilt("loop_cpu.cpp") == loops | {plan.LIBRARY}
    assert rebuilt("shared.h") == {"one.o", "two.o", plan.LIBRARY}


@needs_compiler
def test_without_ninja_the_same_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find_ninja", lambda: None)
    _tree(tmp_path)
    assert plan.LIBRARY in _build(tmp_path)
    (tmp_path / "csrc" / "one.cpp").write_text("int one( {\n")
    with pytest.raises(toolchain.BuildError, match=r"building one\.o failed: .*error") as caught:
        _build(tmp_path)
    assert caught.value.outputs == ("one.o",)


@needs_compiler
@needs_ninja
def test_a_failed_command_is_named(tmp_path: Path) -> None:
    _tree(tmp_path)
    (tmp_path / "csrc" / "two.cpp").write_text("int two( {\n")
    with pytest.raises(toolchain.BuildError, match=r"building two\.o failed: csrc/two\.cpp.*error"):
        _build(tmp_path)


@needs_ninja
def test_a_command_that_names_no_error_is_quoted(tmp_path: Path) -> None:
    steps = [
        Step(Path(f"{name}.o"), (), ("sh", "-c", "echo it is lost; exit 3"), Path(f"{name}.d"))
        for name in "ab"
    ]
    with pytest.raises(toolchain.BuildError, match=r"building .*\.o failed: it is lost$"):
        runner.run(steps, tmp_path, Path(), 2)


@needs_ninja
def test_a_path_of_another_encoding(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.o")
    runner.run([Step(Path(name), (), ("touch", name), Path("d"))], tmp_path, Path(), 1)
    assert (tmp_path / name).exists()


@needs_compiler
def test_the_module_is_compiled_without_the_stable_abi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Headers of torch 2.11 do not compile with its macro; whatever fails in _C costs _C alone."""
    monkeypatch.delenv("FASTRNN_REQUIRE_EXT", raising=False)
    _tree(tmp_path)
    csrc, module = tmp_path / "csrc", "#ifdef TORCH_TARGET_VERSION\n#error pybind11\n#endif\n"
    (csrc / "plan.cpp").write_text("")
    (csrc / "module.cpp").write_text(module)
    (csrc / "two.cpp").write_text(
        "#ifndef TORCH_TARGET_VERSION\n#error\n#endif\nint shared() { return 2; }\n"
    )
    tree = _plan(tmp_path)
    pybind11 = tree.torch.include / "pybind11" / "pybind11.h"
    if not pybind11.is_file():
        pytest.skip(f"needs {pybind11}")
    names = [path.name for path in native._carry_out(tree)]
    assert names == [plan.LIBRARY, plan.MODULE]

    (csrc / "module.cpp").write_text("int module( {\n")
    assert [path.name for path in native._carry_out(tree)] == [plan.LIBRARY]
    told = capfd.readouterr().err
    assert re.search(r"warning: fastrnn\._C is left out: building module\..* failed: .*error", told)
    monkeypatch.setenv("FASTRNN_REQUIRE_EXT", "1")
    with pytest.raises(toolchain.BuildError, match=r"building module\."):
        native._carry_out(tree)
    monkeypatch.delenv("FASTRNN_REQUIRE_EXT")
    (csrc / "module.cpp").write_text(module)
    (csrc / "one.cpp").write_text("int one( {\n")
    with pytest.raises(toolchain.BuildError, match=r"building one\.o failed"):
        native._carry_out(tree)


def test_no_compiler_leaves_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in native.REQUIRED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    package = tmp_path / "fastrnn"
    package.mkdir()
    (package / plan.LIBRARY).write_text("of an earlier build")
    assert native.install(tmp_path, package) == [native.REASON]
    assert (package / native.REASON).read_text().startswith("no C++ compiler: none of g++")
    assert not (package / plan.LIBRARY).exists()

    monkeypatch.setenv("FASTRNN_REQUIRE_EXT", "1")
    with pytest.raises(toolchain.BuildError, match=r"no C\+\+ compiler"):
        native.install(tmp_path, package)


def test_any_failure_leaves_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in native.REQUIRED:
        monkeypatch.delenv(name, raising=False)

    def full(root: Path) -> list[Path]:
        raise OSError(28, "No space left on device", "caf\udce9")

    monkeypatch.setattr(native, "build", full)
    assert native.install(tmp_path, tmp_path) == [native.REASON]
    said = (tmp_path / native.REASON).read_text("utf-8")
    assert said.startswith("[Errno 28] No space left on device")
    monkeypatch.setenv("FASTRNN_REQUIRE_EXT", "1")
    with pytest.raises(OSError, match="No space left"):
        native.install(tmp_path, tmp_path)


def test_builds_of_one_tree_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def build(root: Path) -> list[Path]:
        told.append("begins")
        time.sleep(0.2)
        told.append("ends")
        return []

    monkeypatch.setattr(native, "build", build)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(native.install, tmp_path, tmp_path / name) for name in "ab"]:
            done.result()
    assert told == ["begins", "ends"] * 2


def test_a_wheel_takes_nothing_from_earlier_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("setuptools")
    from build_tools import backend

    left = tmp_path / "build" / "lib.linux" / "fastrnn" / "removed.py"
    left.parent.mkdir(parents=True)
    left.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backend.build_meta, "build_wheel", lambda *_: str(left.exists()))
    assert backend.build_wheel("dist") == "False"


@pytest.mark.parametrize(
    ("name", "value", "read", "says"),
    [
        ("FASTRNN_CUDA", "yes", toolchain.cuda, "FASTRNN_CUDA must be 0 or 1, got 'yes'"),
        ("MAX_JOBS", "0", toolchain.jobs, "MAX_JOBS must be a positive integer, got '0'"),
        ("CXX", 'g++ "', toolchain.compiler, "CXX must be a command, got 'g\\+\\+ \"': No closing"),
    ],
)
def test_wrong_settings(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: Callable[[], object], says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(toolchain.SettingError, match=says):
        read()


@needs_compiler
def test_a_wrong_setting_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FASTRNN_REQUIRE_EXT", raising=False)
    monkeypatch.setenv("MAX_JOBS", "0")
    _tree(tmp_path)
    with pytest.raises(toolchain.SettingError, match="MAX_JOBS"):
        native._carry_out(_plan(tmp_path))
    assert "left out" not in capfd.readouterr().err


def test_a_program_that_does_not_start_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ninja", "nvcc", "nvidia-smi"):
        (tmp_path / name).write_bytes(b"\x7fELF of another machine")
        (tmp_path / name).chmod(0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runner.find_ninja() in (None, [sys.executable, "-m", "ninja"])
    assert toolchain._toolkit_roots()[1:] == [tmp_path.parent] * 2
    assert toolchain._visible_archs() == []


def test_cuda_is_found_by_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTRNN_CUDA", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(toolchain.BuildError, match="cuda_runtime.h is not in"):
        toolchain.cuda()
    for file in ("include/cuda_runtime.h", "bin/nvcc", "lib64/libcudart_static.a"):
        path = tmp_path / file
        path.parent.mkdir()
        path.write_text("#!/bin/sh\necho sm_80 sm_90\n")
        path.chmod(0o755)
    monkeypatch.setenv("FASTRNN_CUDA_ARCHS", "80; 90a")
    found = toolchain.cuda()
    assert (found.nvcc, found.archs) == (tmp_path / "bin" / "nvcc", ("80", "90a"))
    monkeypatch.setenv("FASTRNN_CUDA_ARCHS", "80;35")
    with pytest.raises(toolchain.SettingError, match="compiles for 80, 90, got '35'"):
        toolchain.cuda()
    monkeypatch.setenv("FASTRNN_CUDA", "0")
    with pytest.raises(toolchain.BuildError, match="FASTRNN_CUDA=0"):
        toolchain.cuda()


def test_torch_is_found_without_importing_it() -> None:
    found = torch_location.find()
    assert found is not None
    assert found.version == torch.__version__
    assert (found.include / "torch" / "csrc" / "stable" / "library.h").is_file()
    assert not torch_location.Torch(Path("torch"), "2.10.1").supported
    assert torch_location.Torch(Path("torch"), "2.11.0a0+git1").supported


def test_ninja_file_escapes_paths() -> None:
    step = Step(Path("a b.o"), (Path("c:d.cpp"),), ("g++", "-D$x", "e f"), Path("a b.d"))
    text = runner.ninja_file([step], Path("build"))
    assert "build a$ b.o: compile c$:d.cpp" in text
    assert "cmd = g++ '-D$$x' 'e f'" in text
