"""Runs compile commands: through ninja (only what changed), else all of them on a few threads."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build_tools.toolchain import BuildError, told


@dataclass(frozen=True)
class Step:
    """One command; paths are relative to the project's root, where it runs.

    Args:
        output: the file it writes.
        inputs: the files it reads, as far as known beforehand.
        command: program and arguments.
        depfile: where the compiler lists the headers it met; None for a link.
    """

    output: Path
    inputs: tuple[Path, ...]
    command: tuple[str, ...]
    depfile: Path | None = None


def find_ninja() -> list[str] | None:
    """ninja's command: the program on PATH, else the Python package, else None."""
    candidates = [[program]] if (program := shutil.which("ninja")) else []
    if importlib.util.find_spec("ninja"):
        candidates.append([sys.executable, "-m", "ninja"])
    for command in candidates:
        # A version manager's shim can be on PATH with no ninja behind it.
        if told(*command, "--version").returncode == 0:
            return command
    return None


def _escape(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(steps: Sequence[Step], build_dir: Path) -> str:
    """The text of build.ninja for these steps."""
    lines = [f"builddir = {_escape(build_dir)}", ""]
    for kind, extra in (("compile", ["  depfile = $dep", "  deps = gcc"]), ("link", [])):
        lines += [f"rule {kind}", "  command = $cmd", f"  description = {kind} $out", *extra, ""]
    for step in steps:
        kind = "compile" if step.depfile else "link"
        inputs = " ".join(map(_escape, step.inputs))
        lines.append(f"build {_escape(step.output)}: {kind} {inputs}")
        lines.append(f"  cmd = {shlex.join(step.command).replace('$', '$$')}")
        if step.depfile:
            lines.append(f"  dep = {_escape(step.depfile)}")
    return "\n".join([*lines, ""])


def _failure(output: str, failed: Sequence[str]) -> BuildError:
    """The failed commands' outputs and the first line that names an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reason = next(
        (line for line in lines if re.search(r"\b(fatal|error|undefined reference)\b", line)),
        lines[-1] if lines else "no output",
    )
    return BuildError(f"building {', '.join(failed)} failed: {reason}", tuple(failed))


def _run_ninja(
    ninja: list[str], steps: Sequence[Step], root: Path, build_dir: Path, jobs: int
) -> None:
    script = build_dir / "build.ninja"
    # Paths are bytes to the system, whatever they mean in this locale.
    (root / script).write_bytes(os.fsencode(ninja_file(steps, build_dir)))
    command = [*ninja, "-f", str(script), "-j", str(jobs)]
    lines = []
    with subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        text = "".join(lines)
        named = re.findall(r"^FAILED: (?:\[.*?\] )?(.+?)\s*$", text, re.M)
        # What the failing command printed lies between ninja's line that repeats the command and
        # the next of ninja's own.
        own = r"FAILED: |ninja: |\[\d+/\d+\] "
        printed = re.search(rf"^FAILED: .*\n.*\n((?:(?!{own}).*\n)*)", text, re.M)
        said = printed[1] if printed else text
        raise _failure(said, [Path(name).name for name in named] or ["build.ninja"])


def _run_step(step: Step, root: Path) -> None:
    print(f"{step.output}", flush=True)
    done = subprocess.run(
        step.command,
        cwd=root,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    said = done.stdout + done.stderr
    print(said, end="", flush=True)
    if done.returncode:
        raise _failure(said, [step.output.name])


def _run_threads(steps: Iterable[Step], root: Path, jobs: int) -> None:
    """Compiles first, links after; everything is done afresh."""
    steps = list(steps)
    with ThreadPoolExecutor(jobs) as pool:
        for wave in ([s for s in steps if s.depfile], [s for s in steps if not s.depfile]):
            pending = [pool.submit(_run_step, step, root) for step in wave]
            try:
                for one in pending:
                    one.result()
            except BuildError:
                pool.shutdown(cancel_futures=True)
                raise


def run(steps: Sequence[Step], root: Path, build_dir: Path, jobs: int) -> None:
    """Brings every step's output up to date.

    Args:
        steps: what to run; links may read compiles' outputs.
        root: the project's root, where commands run.
        build_dir: folder for ninja's files, relative to root.
        jobs: commands at once.

    Raises:
        BuildError: a command failed.
    """
    for step in steps:
        (root / step.output).parent.mkdir(parents=True, exist_ok=True)
    if ninja := find_ninja():
        _run_ninja(ninja, steps, root, build_dir, jobs)
    else:
        _run_threads(steps, root, jobs)
