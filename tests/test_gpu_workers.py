"""The processes of `python -m benchmarks.gpu`: what hangs or dies costs itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import correctness
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.process import ROOT, finished
from benchmarks.gpu.supervise import Supervisor
from tests import gpu_checks

# A worker: of the task "a-crash" it dies, of "a-hang" and whatever says "grid" it hangs in that, of
# "a-slow" it is silent for as long as it says, in the others it loses the device where they say so.
WORKER = """
import argparse, json, os, sys, time
def say(row):
    print(json.dumps(row), flush=True)
parser = argparse.ArgumentParser()
parser.add_argument("tasks", nargs="+")
parser.add_argument("--without", type=json.loads)
options = parser.parse_args()
for task in options.tasks:
    kind, what, *_ = task.split("-")
    out = options.without.get(kind, {}) | options.without.get(task, {})
    say({"begin": task})
    if what == "crash":
        print("it hurts", flush=True)
        os._exit(3)
    if what == "hang":
        time.sleep(60)
    if what == "slow":
        say({"trying": "triton", "seconds": 60})
        time.sleep(3)
    if what == "grid" and "grid" not in out:
        say({"trying": "step"})
        say({"trying": "grid"})
        time.sleep(60)
    if what == "lose" and "grid" not in out:
        say({"trying": "grid"})
        say({"lost": "an illegal access"})
        time.sleep(60)
    say({"case": task, "out": out})
"""


# Starts a worker that would sleep for a minute.
STARTER = """
import sys
from benchmarks.gpu.process import started
worker = "import time; print('sleeps', flush=True); time.sleep(60)"
with started([sys.executable, "-c", worker], None) as process:
    process.wait()
"""


@pytest.fixture
def supervised(tmp_path: Path):
    """Rows of tasks by their name, and what the log has."""

    def run(*tasks):
        worker, log = tmp_path / "worker.py", tmp_path / "log"
        worker.write_text(WORKER)
        watch = Supervisor(Budget(120), 2, log, command=(sys.executable, str(worker)))
        return {row["case"]: row for row in watch.rows(tasks)}, log.read_text()

    return run


def test_a_worker_that_dies_or_hangs_costs_its_own_row(supervised):
    tasks = ["a-good", "a-crash", "a-lose", "a-hang", "a-slow", "b-good"]
    rows, log = supervised(*tasks)
    assert list(rows) == tasks
    assert rows["a-crash"]["errors"]["case"] == "the worker ended with status 3: it hurts"
    assert rows["a-lose"]["out"] == {"grid": "an illegal access"}
    assert rows["a-hang"]["errors"]["case"] == "took longer than 2 s"
    assert rows["a-slow"]["out"] == rows["b-good"]["out"] == {}
    assert "it hurts\n" in log and '{"begin": "a-hang"}\n' in log


def test_a_worker_ends_with_who_started_it():
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"sleeps\n"
        starter.kill()
        killed = time.monotonic()
        assert starter.stdout.read() == b""  # which the worker would keep open
    assert time.monotonic() - killed < 30


def test_what_hangs_twice_is_left_out_of_all_that_is_like_it(supervised):
    rows, log = supervised("a-grid-1", "a-grid-2", "a-grid-3", "a-grid-4", "b-grid-1")
    late = {"grid": "took longer than 2 s"}
    out = {"grid": "left out after a-grid-2: took longer than 2 s"}
    assert rows["a-grid-1"]["out"] == rows["a-grid-2"]["out"] == rows["b-grid-1"]["out"] == late
    assert rows["a-grid-3"]["out"] == rows["a-grid-4"]["out"] == out
    assert log.count('{"trying": "grid"}') == 3


def test_a_lost_device_costs_less_than_a_hang(supervised):
    rows, _ = supervised(*(f"a-lose-{i}" for i in range(10)))
    own = [row["out"] == {"grid": "an illegal access"} for row in rows.values()]
    assert all(own[:3]) and not own[-1]


def test_out_of_time_is_said(tmp_path: Path):
    log = tmp_path / "log"
    late = [{"case": name, "skipped": "out of time"} for name in "ab"]
    supervisor = Supervisor(Budget(10), 60, log, command=("false",))
    assert list(supervisor.rows(["a", "b"], keep=10)) == late
    # Nothing is to blame where the time for everything is up.
    silent = (sys.executable, "-c", "import time; time.sleep(60)")
    assert list(Supervisor(Budget(2), 60, log, command=silent).rows(["a", "b"])) == late


def test_what_a_process_has_started_ends_with_it(tmp_path: Path):
    """A build's compilers, too; what was said until then is kept."""
    log = tmp_path / "log"
    log.write_text("before\n")
    script = "sleep 60 & echo $!; echo $FASTRNN_CUDA >&2; exit $0"
    status, said = finished(("sh", "-c", script, "7"), 60, log, FASTRNN_CUDA="1")
    assert (status, said[1:]) == (7, ["1"])
    status, (late,) = finished(("sh", "-c", "sleep 60 & echo $!; wait"), 0.5, log)
    assert status is None
    assert log.read_text() == f"before\n{said[0]}\n1\n{late}\n"
    for process in (said[0], late):
        stat = Path(f"/proc/{process}/stat")
        assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_the_tests_that_need_a_gpu_are_run():
    """Those of tests/test_gpu.py are the checks, the others Triton's."""
    tests = Path(__file__).parent
    found = [p.name for p in sorted(tests.glob("test_*.py")) if "pytest.mark.gpu" in p.read_text()]
    found.remove(Path(__file__).name)
    assert found == ["test_gpu.py", "test_triton.py"]
    assert correctness.TRITON[-1] == "tests/test_triton.py"


def test_the_tools_run_where_they_are(monkeypatch, tmp_path):
    log = tmp_path / "log"
    monkeypatch.setenv("PATH", str(tmp_path))
    row = correctness.sanitized("memcheck", 60, log)
    assert row == {"case": "memcheck", "skipped": "there is no compute-sanitizer"}
    tool = tmp_path / "compute-sanitizer"

    def says(*lines, then="exit 0"):
        tool.write_text("\n".join(["#!/bin/sh", *(f"echo '{line}'" for line in lines), then]))
        tool.chmod(0o755)

    says(then='echo "$@"; exit 9')
    row = correctness.sanitized("synccheck", 60, log)
    said = row["said"]
    assert "--tool synccheck" in said and said.endswith("tests.gpu_checks --small")
    assert row["errors"] == {"synccheck": said}

    banner, summary = "========= COMPUTE-SANITIZER", "========= ERROR SUMMARY: 0 errors"
    says(banner, "10 of 10 checks passed", summary)
    assert correctness.sanitized("memcheck", 60, log) == {"case": "memcheck", "said": summary}
    hangs = "read _ < /dev/zero"
    says(banner, "in lstm", then=hangs)
    late = {"case": "memcheck", "said": "in lstm", "skipped": "took longer than 2 s"}
    assert correctness.sanitized("memcheck", 2, log) == late
    says(banner, "========= Invalid __global__ read of size 4 bytes", "in lstm", then=hangs)
    error = {"memcheck": "========= Invalid __global__ read of size 4 bytes"}
    assert correctness.sanitized("memcheck", 2, log) == late | {"errors": error}
    assert "in lstm\n" in log.read_text()


def test_triton_is_tested_in_a_process_of_its_own(monkeypatch, tmp_path):
    log = tmp_path / "log"
    monkeypatch.setattr(correctness.importlib.util, "find_spec", lambda name: None)
    assert correctness.triton(9, log) == {"case": "triton", "skipped": "there is no pytest"}
    monkeypatch.setattr(correctness.importlib.util, "find_spec", lambda name: name)
    lines = "print('t.py::one PASSED', 't.py::two FAILED', 't.py::three', sep=chr(10))"
    script = f"import os, time; {lines}; time.sleep(60 * int(os.environ['FASTRNN_REQUIRE_GPU']))"
    monkeypatch.setattr(correctness, "TRITON", (sys.executable, "-c", script))
    assert correctness.triton(5, log) == {
        "case": "triton",
        "said": "t.py::three",
        "skipped": "took longer than 5 s",
        "errors": {"triton": "t.py::two FAILED"},
    }


# The checks, of which one hangs, one is wrong and one breaks the device for those after it.
CHECKS = """
import sys, time
from benchmarks.gpu import clock
from tests import gpu_checks

class Device(clock.Clock):
    broken = False

    def __init__(self, device):
        super().__init__("cpu")

    def wait(self):
        if Device.broken:
            raise RuntimeError("an illegal access")

def hang():
    print("at it", flush=True)
    time.sleep(600)

def wrong():
    assert False, "off by one"

def breaks():
    Device.broken = True

def fine():
    assert not Device.broken

made = {"a": fine, "b": hang, "c": wrong, "d": breaks, "e": fine}
gpu_checks.Clock, gpu_checks.checks = Device, lambda: made
sys.exit(gpu_checks.main())
"""


def test_a_check_that_hangs_costs_itself(monkeypatch, tmp_path):
    log = tmp_path / "log"
    monkeypatch.setattr(gpu_checks, "checks", lambda: dict.fromkeys("abcde"))
    monkeypatch.setattr(correctness, "CHECKS", (sys.executable, "-c", CHECKS))
    monkeypatch.setattr(correctness, "SECONDS", 4)
    row = correctness.checks(Budget(300), log)
    assert row == {
        "case": "checks",
        "said": "2 of 5 passed, 0 left out",
        "errors": {
            "b": "took longer than 4 s",
            "c": "AssertionError: off by one",
            "d": "RuntimeError: an illegal access",
        },
    }
    told = log.read_text()
    assert told.index('{"begin": "b"}') < told.index("at it") < told.index('{"begin": "c"}')


def test_checks_by_themselves(monkeypatch, capsys):
    """What stays out, and the exit status."""

    def wrong():
        raise AssertionError("off\nby one")

    made = {"a-1": lambda: None, "a-2": wrong, "b-1": wrong, "b-2": wrong}
    monkeypatch.setattr(gpu_checks, "checks", lambda: made)
    monkeypatch.setattr(gpu_checks, "Clock", lambda device: Clock("cpu"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu_checks", *arguments])
        status, told = gpu_checks.main(), capsys.readouterr().out.splitlines()
        rows = [json.loads(line) for line in told if line.startswith('{"case"')]
        return status, {row["case"]: row for row in rows}, told[-1]

    assert run("a-1") == (0, {"a-1": {"case": "a-1"}}, "1 of 1 checks passed")
    out = {"b-1": {"check": "hung"}, "b": {"check": "hung twice"}}
    status, rows, last = run("--without", json.dumps(out))
    assert (status, last) == (1, "1 of 4 checks passed")
    assert rows["a-2"]["errors"] == {"check": "AssertionError: off"}
    assert rows["b-1"]["errors"] == {"check": "hung"}
    assert rows["b-2"] == {"case": "b-2", "skipped": "hung twice"}
