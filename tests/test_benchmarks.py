"""The benchmarks themselves, on tiny cases; no test asserts a time."""

import os
import re
import subprocess
import sys

import pytest
import torch
from benchmark_rows import made_up

from benchmarks import (
    cases,
    features,
    growth,
    language_model,
    layers,
    loss,
    machine,
    results,
    suites,
    targets,
)
from benchmarks.__main__ import main
from benchmarks.layers import Shape
from benchmarks.worker import MALLOC, Workers, _Worker
from fastrnn import _library

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Shape(3, 2, 5, 4, 2)
native = pytest.mark.skipif(_library.unavailable is not None, reason="no compiled kernels")


class TestCases:
    @pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
    def test_stream(self, cell):
        runs_and_checks(layers.stream(cell, Shape(1, 2, 5, 4, 2)))

    @pytest.mark.parametrize("mode", layers.MODES)
    @pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
    def test_layers(self, cell, mode):
        if mode == "frozen" and _library.unavailable is not None:
            pytest.skip("no compiled kernels")
        runs_and_checks(layers.layers(cell, mode, TINY, torch.float64, "auto"))

    @pytest.mark.parametrize("name", features.FEATURES)
    def test_features(self, name):
        work = features.feature(name, Shape(6, 4, 5, 4, 2))
        runs_and_checks(work)
        assert list(work.runs)[:2] == ["ours", "plain"]

    def test_loss(self):
        runs_and_checks(loss.loss(6, 5, 11))

    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_training_step(self, cell):
        work = language_model.training_step(cell, TINY._replace(I=4), 11)
        runs_and_checks(work)
        assert (list(work.runs), work.tokens) == (["ours", "accelerated", "torch.nn"], 6)

    def test_products_and_numbers_are_the_modules(self):
        module = torch.nn.GRU(TINY.I, TINY.H, TINY.L)
        weights = sum(p.numel() for n, p in module.named_parameters() if n.startswith("weight"))
        every = sum(p.numel() for p in module.parameters())
        rows = TINY.T * TINY.B
        assert layers.forward_multiply_adds("gru", TINY) == rows * weights
        moved = every + rows * (TINY.I + TINY.L * TINY.H)
        assert layers.forward_numbers("gru", TINY) == moved

    def test_lengths_have_a_mean_of_half_the_maximum(self):
        for shape in (layers.WORDS, Shape(6, 4, 5, 4, 2)):
            lengths = features.half_lengths(shape)
            assert lengths.min() >= 1 and lengths.max() == shape.T
            assert float(lengths.float().mean()) == shape.T / 2

    def test_a_wrong_result_is_an_error_without_times(self):
        def build():
            work = loss.loss(6, 5, 11)
            wrong = {"ours": lambda: torch.zeros(1), "torch.nn": lambda: torch.ones(1)}
            check = lambda: layers.assert_close([wrong["ours"]()], [wrong["torch.nn"]()])  # noqa: E731
            return cases.Work(wrong, check, work.multiply_adds)

        row = cases.measure(cases.Case("loss", "wrong", build), quick=True)
        assert row["error"].startswith("AssertionError") and set(row) == {"error", "threads"}

    def test_threads_are_the_cases_and_set_back(self):
        build = lambda: cases.Work({"ours": lambda: None}, lambda: None)  # noqa: E731
        row = cases.measure(cases.Case("loss", "none", build, threads=2), quick=True)
        assert (row["threads"], torch.get_num_threads()) == (2, 1)

    def test_floor(self, monkeypatch):
        rates = {
            "product_rate": lambda itemsize: 500.0 * 4 / itemsize,
            "bandwidth": lambda size: 100.0,
        }
        for name, rate in (rates | {"barrier": lambda: 0.5}).items():
            monkeypatch.setattr(machine, name, rate)
        work = cases.Work({}, lambda: None, 10**9, 8, 10**9, barriers=100)
        found = cases.floor(work, 20.0)
        # 2e9 operations at 250 GFLOP/s of float64; 1e9 bytes at 100 GB/s; 100 barriers.
        assert (found["products_ms"], found["bytes_ms"], found["barriers_ms"]) == (8.0, 10.0, 0.05)
        assert (found["ms"], found["fraction"]) == (10.0, 0.5)

    def test_every_target_names_a_case(self):
        assert not set(targets.TARGETS) - set(suites.all_cases())

    def test_choosing(self):
        names = [case.name for case in suites.chosen([], quick=False)]
        assert len(set(names)) == len(names) == len(suites.all_cases())
        assert all(n.startswith("loss/") for n in (c.name for c in suites.chosen(["loss"], False)))
        assert suites.chosen(["growth/lstm/L=8/threads=1"], quick=True)[0].threads == 1
        with pytest.raises(ValueError, match="no case is called 'layer'; --list"):
            suites.chosen(["layer"], False)

    def test_slope(self):
        sizes = [1, 2, 4, 8, 16, 32]
        assert growth.slope(sizes, [3.0 * n**1.5 for n in sizes]) == pytest.approx(1.5)
        assert growth.slope(sizes, [10.0, 10.0, 10.0, 8.0, 16.0, 32.0]) == pytest.approx(1.0)


def runs_and_checks(work):
    work.check()
    for run in work.runs.values():
        run()
    assert next(iter(work.runs)) == "ours" and work.multiply_adds > 0


class TestRates:
    @native
    def test_are_positive_and_cost_little(self):
        assert machine.product_rate() > 0 and machine.bandwidth(1) > 0
        assert machine.barrier() >= 0
        for bad in (torch.ones(10), torch.ones(2048, dtype=torch.float64), torch.ones(64, 64).T):
            with pytest.raises(RuntimeError, match="cpu_bandwidth: memory must be float32"):
                torch.ops.fastrnn.cpu_bandwidth(bad)


class TestRunner:
    CASE = "growth/lstm/H=16/threads=1"

    def test_a_run_adds_a_row_per_setting_it_is_for(self, tmp_path, capsys):
        path = tmp_path / "rows.jsonl"
        results.append([made_up()], path)
        assert main([self.CASE, "--quick", "--out", str(path)]) == 0
        first, row = results.read(path)
        assert first == made_up()
        assert (row["case"], row["malloc"], row["axis"], row["quick"]) == (
            self.CASE,
            "kept",
            "H",
            True,
        )
        assert set(row["times"]) == {"ours", "torch.nn"}
        assert re.search(r"H=16/threads=1 \(kept\): [\d.e-]+ ms \[", capsys.readouterr().out)

    def test_a_process_that_dies_is_an_error(self):
        with Workers() as workers:
            workers._workers = {m: _Worker({"PYTHONHASHSEED": "none such"}) for m in MALLOC}
            row = workers.measure(suites.all_cases()[self.CASE], "kept", quick=True)
        assert row["error"] == "the worker ended with code 1" and row["case"] == self.CASE

    def test_a_case_that_crashes_is_an_error_and_the_next_is_not(self):
        worker = _Worker({})
        assert worker.ask("times", "none such", True)["error"] == "the process ended with code 1"
        assert "times" in worker.ask("times", self.CASE, True)
        worker.close()

    def test_pytest_collects_a_test_per_case_and_setting(self):
        command = [sys.executable, "-m", "pytest", "benchmarks", "--quick", "--collect-only", "-q"]
        done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=True)
        cases = suites.chosen([], quick=True)
        assert f"{sum(len(case.malloc) for case in cases)} tests collected" in done.stdout

    def test_a_reader_that_goes_away_gets_no_traceback(self):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "benchmarks", "--list"]
        done = subprocess.run(command, cwd=machine.ROOT, stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b"")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nothing"], "no case is called 'nothing'; --list names them all"),
            ([CASE, "--malloc", "default"], f"{CASE} is measured under --malloc kept only"),
            (["growth", "--quick"], "none of 'growth' is in the quick run"),
        ],
    )
    def test_mistakes(self, capsys, arguments, message):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2 and message in capsys.readouterr().err
