"""`python -m benchmarks.gpu` as far as it runs without a GPU: budget, workers, timing, table."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import correctness, library, measure, report
from benchmarks.gpu.attention import measurement
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.cases import PEAKS, AttentionCase, AttentionShape, Case, Shape, cases
from benchmarks.gpu.clock import Clock, Contender
from benchmarks.gpu.measure import Measurement
from benchmarks.gpu.peaks import PARTS
from fastrnn import _attention, _library, ops
from tests import gpu_attention, gpu_checks
from tests.conftest import pytest_runtest_setup

ATTENTION = AttentionCase(AttentionShape(2, 3, 10, 4), "causal", "float32", "train", "eager")
TINY = Case("lstm", Shape(3, 2, 4, 5, 2), "float32", "train", "eager")


def test_cases_have_names_of_their_own_and_the_wanted_shapes():
    every = list(cases())
    assert len({case.name for case in every}) == len(every)
    shapes = {tuple(case.shape) for case in every}
    assert shapes >= {(35, 20, h, h, 2) for h in (200, 650, 1500)}
    assert (35, 20, 256, 256, 3) in shapes
    layers = [c for c in every if isinstance(c, Case)]
    assert {c.precision for c in layers if c.shape.T == 1024} == {"float16"}
    attentions = [c for c in every if isinstance(c, AttentionCase)]
    assert {c.mask for c in attentions} == {"boolean", "causal"}
    assert {c.precision for c in every} == {"float32", "tf32", "float16", "bfloat16"}
    assert {c.mode for c in every} == {"forward", "train"}
    assert tuple(PARTS) == PEAKS


def test_operations_and_chain():
    case = Case("lstm", Shape(35, 20, 200, 300, 2), "bfloat16", "forward", "eager")
    layers = 1200 * (200 + 300) + 1200 * (300 + 300)
    assert case.operations == 2 * 35 * 20 * layers
    assert case.chain == 70
    assert TINY.operations == 3 * 2 * 3 * 2 * 20 * (4 + 5 + 5 + 5)
    assert TINY.chain == 12
    assert ATTENTION.operations == 7 * 2 * 2 * 3 * 10 * 10 * 4 / 2


def test_budget(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(60)
    assert budget.share(20) == 20
    now[0] += 50
    assert (budget.left(), budget.share(20), budget.share(20, keep=4)) == (10, 10, 6)
    now[0] += 50
    assert (budget.left(), budget.share(20), budget.share(20, keep=4)) == (0, 0, 0)


def test_clock_takes_turns_and_repeats_what_is_short(monkeypatch):
    now, order, inside = [0.0], [], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    @contextmanager
    def within(name):
        inside.append(name)
        yield
        inside.remove(name)

    def contender(name, seconds):
        def run():
            assert inside == [name]
            order.append(name)
            now[0] += seconds

        return Contender(run, lambda: within(name))

    runs = {"a": contender("a", 4e-3), "b": contender("b", 5e-4)}
    times = Clock("cpu").interleaved(runs, 6, 0.0)
    # The time is up after the fifth round.
    assert times == {"a": [pytest.approx(4.0)] * 5, "b": [pytest.approx(0.5)] * 5}
    a, b = "a", "bbbb"  # as long as a sample, SAMPLE, at the least
    assert "".join(order) == "aaabbb" + (a + b) + (b + a) + (a + b) + (b + a) + (a + b)


def test_a_case_on_the_cpu(monkeypatch):
    monkeypatch.setattr(measure, "refusal", lambda name, *_: None if name == "torch.nn" else "no")
    row = Measurement(TINY, "cpu").run(5, 0.1)
    assert row["torch.nn"]["p20"] <= row["torch.nn"]["p50"] <= row["torch.nn"]["p80"]
    assert row["refused"] == dict.fromkeys(measure.OURS, "no")
    assert row["error"] == {"torch.nn": pytest.approx(0.5, abs=0.5)}
    assert not row["errors"] and "ratio" not in row
    assert json.loads(json.dumps(row))["T"] == 3


def test_our_schedules_take_part(monkeypatch):
    """On the CPU all of our contenders run the CPU's kernels; none is refused here."""
    monkeypatch.setattr(measure, "refusal", lambda name, *_: "no" if name == "triton" else None)
    lost, out = {"cluster": "broke the device"}, {"grid": "hung twice"}
    row = Measurement(TINY, "cpu", lost, out).run(5, 0.1)
    assert row["errors"] == lost
    assert row["refused"] == out | {"triton": "no"}
    assert row["best"] in ("auto", "step")
    assert row["ratio"]["torch.nn"] > 0
    assert row["error"]["step"] <= 1


@pytest.mark.parametrize("mask", ["boolean", "causal"])
def test_attention_on_the_cpu(monkeypatch, mask):
    monkeypatch.setattr(measure, "refusal", lambda name, *_: "no" if name == "triton" else None)
    row = measurement(replace(ATTENTION, mask=mask), "cpu").run(5, 0.1)
    assert row["sdpa"] in ("flash", "math") and "efficient" in row["refused"]
    assert row["error"]["auto"] <= 1 and not row["errors"]
    assert (row["best"], row["ratio"]["torch.nn"] > 0) == ("auto", True)
    line = " ".join(report.table([row]).splitlines()[1].split())
    assert line.startswith(f"attention-2x3x10x4-{mask}-float32-train-eager")


def test_a_contender_that_fails_leaves_the_others(monkeypatch):
    monkeypatch.setattr(measure, "refusal", lambda name, *_: None)
    made = Measurement._made

    def broken(self, name):
        if name == "grid":
            raise RuntimeError("grid: no\nmore lines")
        if name == "step":
            raise RuntimeError("recurrence: the step schedule was asked for: it has no kernels")
        module, x, run = made(self, name)
        if name == "cluster":
            with torch.no_grad():
                module.bias_hh_l0.add_(1)
        return module, x, run

    monkeypatch.setattr(Measurement, "_made", broken)
    row = Measurement(TINY, "cpu", {"triton": "out", "auto": "out"}).run(5, 0.1)
    assert row["errors"]["grid"] == "RuntimeError: grid: no"
    assert row["refused"]["step"].endswith("it has no kernels")
    assert "times the error that is allowed" in row["errors"]["cluster"]
    assert "best" not in row and "torch.nn" in row

    monkeypatch.setattr(Clock, "alive", lambda clock: False)
    with pytest.raises(RuntimeError, match="times the error that is allowed"):
        Measurement(TINY, "cpu", {"auto": "out"}).run(5, 0.1)


def test_what_is_tried_is_said_before_it_can_hang(monkeypatch, capsys):
    """When it is checked and at each of its turns."""
    monkeypatch.setattr(measure, "refusal", lambda name, *_: "no" if name == "triton" else None)
    out = {"auto": "out", "cluster": "out"}
    Measurement(TINY, "cpu", out).run(5, 0.0)
    told = [json.loads(line)["trying"] for line in capsys.readouterr().out.splitlines()]
    turn = [None, "grid", "step"]
    assert told == turn + turn + turn + turn[::-1] + turn + turn[::-1] + turn


def test_one_api_says_whether_products_may_be_tf32():
    """Reading torch's older switches raises once the newer ones have been set."""
    matmul, rnn = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    with gpu_checks.tf32():
        for name, value in (("tf32", "tf32"), ("float32", "ieee"), ("bfloat16", "ieee")):
            with measure.precision(name):
                assert (matmul.fp32_precision, rnn.fp32_precision) == (value, value)
            assert (matmul.fp32_precision, rnn.fp32_precision) == ("tf32", before)


def row(name, **more):
    case = {"precision": "bfloat16", "T": 35, "L": 2, "errors": {}}
    return {"case": name} | case | more


def test_table_and_floor():
    times = {"p20": 0.9, "p50": 1.0, "p80": 1.1}
    good = row("one", **{"torch.nn": times, "step": times | {"p50": 0.5}}, best="step")
    good["ratio"] = {"torch.nn": 2.0}
    peaks = {"bfloat16_tflops": 500.0, "cluster_8_barrier_us": 1.0}
    good |= report.floor(good, 1e8, 70, peaks)
    assert (good["floor_ms"], good["floor_fraction"]) == (0.07, 0.14)
    assert report.floor(row("x"), 1e12, 70, peaks) == {"floor_ms": 2.0}
    assert report.floor(row("x"), 1e12, 70, {}) == {}
    bad = row("two", errors={"grid": "RuntimeError: it broke"})
    late = [{"case": name, "skipped": "out of time"} for name in ("three", "four")]
    tool = {"case": "memcheck", "skipped": "there is no compute-sanitizer"}
    text = report.table([good, bad, *late, tool]).splitlines()
    heads = "case torch.nn auto cluster grid step triton ratio us/step of floor"
    assert " ".join(text[0].split()) == heads
    assert " ".join(text[1].split()) == "one 1.000 - - - 0.500 - 2.00x 7.14 14%"
    assert " ".join(text[2].split()) == "two - - - failed - - - - -"
    assert text[3] == "two: grid: RuntimeError: it broke"
    assert text[4] == "left out: 2, from three on: out of time"
    assert text[5] == "left out: 1, from memcheck on: there is no compute-sanitizer"
    assert [report.failed(r) for r in (good, bad)] == [False, True]


def test_command_line(capsys):
    options = program.parsed(["--only", "gru", "--minutes", "2"])
    assert (options.minutes, options.rounds) == (2, 30)
    assert {case.cell for case in program.chosen(options.only)} == {"gru"}
    for arguments, message in (
        (["--only", "transformer"], "no case's name holds 'transformer'"),
        (["--minutes", "0"], "--minutes must be positive"),
        (["--minutes", "nan"], "--minutes must be positive"),
        (["--results", "/"], "--results must be a file, got the folder /"),
        (["--rounds", "1"], "--rounds at least 5"),
    ):
        with pytest.raises(SystemExit):
            program.parsed(arguments)
        assert message in capsys.readouterr().err


def test_rows_are_appended(tmp_path: Path):
    path = tmp_path / "new" / "gpu.jsonl"
    program.append([{"case": "a"}], path)
    program.append([{"case": "b"}], path)
    assert [json.loads(line)["case"] for line in path.read_text().splitlines()] == ["a", "b"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_tests_are_skipped_or_fail(monkeypatch):
    class Item:
        def get_closest_marker(self, name):
            return object() if name == "gpu" else None

    monkeypatch.delenv("FASTRNN_REQUIRE_GPU", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs a CUDA device"):
        pytest_runtest_setup(Item())
    monkeypatch.setenv("FASTRNN_REQUIRE_GPU", "1")
    with pytest.raises(pytest.fail.Exception, match="needs a CUDA device"):
        pytest_runtest_setup(Item())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_library_says_so(tmp_path):
    log = tmp_path / "log"
    assert library.refusal(log) == "torch sees no GPU"
    assert library.refusal(log, 0.1) == "importing fastrnn took longer than 0 s"


def test_the_library_that_runs_is_heard_among_warnings(monkeypatch, tmp_path):
    script = f"import sys; print('a warning'); print({library.RUNS!r}); sys.exit('another')"
    monkeypatch.setattr(library, "PROBE", script)
    assert library.refusal(tmp_path / "log") == ""


def test_environment_is_heard_among_warnings(monkeypatch, tmp_path):
    script = """print('a warning', '{"gpu": "none"}', 'another', sep=chr(10))"""
    monkeypatch.setattr(program, "ENVIRONMENT", script)
    facts = program.environment(tmp_path / "log")
    assert (facts["suite"], facts["gpu"], len(facts["commit"]) > 6) == ("gpu", "none", True)


def test_nothing_runs_on_a_library_that_does_not(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(library, "refusal", lambda log: "no code for it")
    monkeypatch.setattr(library, "build", lambda seconds, log: "")
    monkeypatch.setattr(sys, "argv", ["gpu", "--results", str(tmp_path / "gpu.jsonl")])
    assert program.main() == 2
    assert capsys.readouterr().err == "gpu: no code for it\n"
    monkeypatch.setattr(library, "build", lambda *_: pytest.fail("there is nothing to build"))
    monkeypatch.setattr(library, "refusal", lambda log: library.NO_GPU)
    assert program.main() == 2
    assert capsys.readouterr().err == "gpu: torch sees no GPU\n"
    monkeypatch.setattr(library, "refusal", lambda log: "no code for it")
    monkeypatch.setattr(library, "build", lambda *_: "the build broke")
    assert program.main() == 2
    assert capsys.readouterr().err == "gpu: the build broke\n"


def test_results_that_cannot_be_kept_are_told_before_anything_runs(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["gpu", "--results", str(tmp_path / "file" / "gpu.jsonl")])
    assert program.main() == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("gpu: --results: ") and "file" in told[0]


def test_a_whole_run(monkeypatch, tmp_path, capsys):
    """The stages in their order, one of which fails, and what is left of them."""
    monkeypatch.setattr(library, "refusal", lambda log: "")
    monkeypatch.setattr(program, "environment", lambda log: {"gpu": "none"})
    minutes = {}

    def stage(name, seconds, errors):
        minutes[name] = seconds / 60
        return {"case": name, "errors": errors}

    monkeypatch.setattr(correctness, "checks", lambda own, log: stage("checks", own.left(), {}))
    monkeypatch.setattr(correctness, "triton", lambda seconds, log: stage("triton", seconds, {}))
    monkeypatch.setattr(
        correctness,
        "sanitized",
        lambda tool, seconds, log: stage(tool, seconds, {tool: "a race"} if "race" in tool else {}),
    )

    class Workers:
        def __init__(self, *_):
            pass

        def rows(self, tasks, keep=0.0):
            for task in tasks:
                times = {"p20": 1.0, "p50": 2.0, "p80": 3.0}
                case = {"case": task, "precision": "bfloat16", "T": 35, "L": 2, "best": "step"}
                rates = {"case": task, "bfloat16_tflops": 500.0} if "products" in task else {}
                yield {"case": task} | rates if "peak" in task else case | {"step": times}

    monkeypatch.setattr(program, "Supervisor", Workers)
    path = tmp_path / "gpu.jsonl"
    name = next(cases()).name
    monkeypatch.setattr(sys, "argv", ["gpu", "--only", name, "--results", str(path)])
    assert program.main() == 1
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    stages = ["checks", *PEAKS, name, "triton", "memcheck", "synccheck", "racecheck"]
    assert [row["case"] for row in rows] == stages
    assert all(row["gpu"] == "none" for row in rows)
    assert rows[stages.index(name)]["floor_fraction"] > 0
    shares = {"checks": 2.25, "triton": 2.5, "memcheck": 3.75, "synccheck": 3.75, "racecheck": 7.5}
    assert minutes == pytest.approx(shares, abs=0.1)
    told = capsys.readouterr().out
    assert "racecheck: racecheck: a race" in told
    assert told.endswith(f"kept in {path}, all that was said in {path}.log\n")


def test_error_is_in_units_of_what_is_allowed():
    right = [torch.tensor([1.0, 2.0], dtype=torch.float64)]
    near = [right[0] + 0.01]
    assert measure.error_of(right, right, right, 0.0) == 0
    assert measure.error_of(near, right, near, 0.0) == pytest.approx(0.5)
    assert measure.error_of(near, right, right, 1e-2) == pytest.approx(0.5)
    assert measure.error_of([right[0] * torch.nan], right, near, 1.0) == float("inf")


class Off:
    """An attention that is off by a thousandth."""

    @staticmethod
    def apply(*args):
        output, *rest = _attention.reference(*args)
        return output + 1e-3, *rest


@pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")
def test_the_checks_for_a_gpu_can_fail(monkeypatch):
    """Their own code, with the CPU in the GPU's place."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor.detach().clone())
    gpu_checks.agrees("step", torch.float32, "lstm", "small")
    gpu_checks.agrees("step", torch.float64, "gru", "small", extras=True)
    gpu_attention.attention_agrees(torch.float64, 1e-12, "small", "added")
    with pytest.raises(AssertionError, match="added 0: error"):
        monkeypatch.setattr(_attention, "MaskedAttention", Off)
        gpu_attention.attention_agrees(torch.float64, 1e-12, "small", "added")
    names = gpu_checks.checks()
    assert next(iter(names)) == "they-run"  # or a device that refuses everything might pass
    assert {"cluster-lstm-bfloat16-padded", "grid-gru-graph", "they-run", "devices"} <= set(names)

    right = ops.Recurrence

    class Wrong:
        @staticmethod
        def apply(*args):
            output, *rest = right.apply(*args)
            return output + 1e-3, *rest

    monkeypatch.setattr(gpu_checks.ops, "Recurrence", Wrong)
    with pytest.raises(AssertionError, match="output: error"):
        gpu_checks.agrees("step", torch.float32, "lstm", "small")

    class Refusing:
        @staticmethod
        def apply(*args):
            raise RuntimeError("recurrence: the grid schedule was asked for: it has no kernels")

    monkeypatch.setattr(gpu_checks.ops, "Recurrence", Refusing)
    names["grid-lstm-float32-small"]()
    with pytest.raises(gpu_checks.Refused):
        gpu_checks.agrees("grid", torch.float32, "lstm", "small")
    with pytest.raises(RuntimeError, match="grid schedule"):
        gpu_checks.agrees("step", torch.float32, "lstm", "small")
