"""Builds the two compiled pieces, libfastrnn.so and the module _C, and puts them in place."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from build_tools import toolchain, torch_location
from build_tools.plan import LIBRARY, MODULE, Plan
from build_tools.runner import Step, run
from build_tools.toolchain import BuildError, Cuda, SettingError

REASON = "libfastrnn.reason"
# Each of these set to 1 turns a failed build into an error.
REQUIRED = ("FASTRNN_REQUIRE_EXT", "FASTRNN_CUDA")


def _warn(line: str) -> None:
    print(f"fastrnn: warning: {line}", file=sys.stderr, flush=True)


def _carry_out(plan: Plan) -> list[Path]:
    """Compiles and links; returns the finished files."""
    header = plan.root / plan.build_dir / "build_facts.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    text = plan.facts()
    # Written only when it differs, or module.cpp would be compiled every time.
    if not header.is_file() or header.read_text() != text:
        header.write_text(text)
    steps, module, jobs = plan.library(), list[Step](), toolchain.jobs()
    try:
        module = plan.module()
        run([*steps, *module], plan.root, plan.build_dir, jobs)
        steps += module
    except BuildError as error:
        # The kernels do not need it: without its headers, or with some that do not compile, they
        # are still built.
        of_module = {step.output.name for step in module}
        if toolchain.switch("FASTRNN_REQUIRE_EXT") or not of_module.issuperset(error.outputs):
            raise
        _warn(f"fastrnn._C is left out: {error}")
        run(steps, plan.root, plan.build_dir, jobs)
    return [plan.root / step.output for step in steps if step.depfile is None]


def build(root: Path) -> list[Path]:
    """Compiles the tree at root with what this machine has.

    Args:
        root: folder that holds csrc/.

    Returns:
        The finished files, under root/build.

    Raises:
        BuildError: something is missing or a command failed.
    """
    cxx = toolchain.compiler()
    torch = torch_location.find()
    if torch is None:
        raise BuildError("torch is not installed in the build environment")
    if not torch.supported:
        oldest = ".".join(map(str, torch_location.OLDEST))
        raise BuildError(f"torch must be {oldest} or later, got {torch.version}")
    required = toolchain.switch("FASTRNN_CUDA")
    cuda: Cuda | str
    try:
        cuda = toolchain.cuda()
    except SettingError:
        raise
    except BuildError as error:
        if required:
            raise
        cuda = str(error)
    try:
        return _carry_out(Plan(root, torch, cxx, cuda))
    except BuildError as error:
        # Unless CUDA was asked for, an nvcc that fails costs only the GPU part.
        if required or not any(".cu." in name for name in error.outputs):
            raise
        cuda = str(error)
    _warn(f"building without CUDA: {cuda}")
    return _carry_out(Plan(root, torch, cxx, cuda))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Builds of one tree take turns: two at once would link each other's unfinished objects."""
    folder = root / "build"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as file:
        with suppress(ImportError, OSError):  # Windows has no such locks, some file systems none
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(source: Path, folder: Path) -> None:
    # Never written over in place: a process that has the old file mapped would crash.
    fresh = folder / f".{source.name}.{os.getpid()}"
    try:
        shutil.copy2(source, fresh)
        fresh.replace(folder / source.name)
    finally:
        fresh.unlink(missing_ok=True)


def install(root: Path, folder: Path) -> list[str]:
    """Builds, and puts the finished files, or the reason why there are none, into folder.

    Args:
        root: folder that holds csrc/.
        folder: the package's folder, in the source tree or in a wheel's build tree.

    Returns:
        Names of the files put there.

    Raises:
        BuildError, OSError: the build failed and FASTRNN_REQUIRE_EXT=1 or FASTRNN_CUDA=1 is set.
        SettingError: a setting is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    required = [name for name in REQUIRED if toolchain.switch(name)]
    try:
        with _alone(root):
            built = build(root)
            for path in built:
                _replace(path, folder)
    except (BuildError, OSError) as error:
        if required or isinstance(error, SettingError):
            raise
        built = []
        _warn(f"no compiled kernels, the reference backend will run: {error}")
        (folder / REASON).write_text(f"{error}\n", "utf-8", "backslashreplace")
    else:
        (folder / REASON).unlink(missing_ok=True)
    names = [path.name for path in built]
    for stale in {LIBRARY, MODULE}.difference(names):
        (folder / stale).unlink(missing_ok=True)
    return names or [REASON]
