"""How benchmarks time what they compare: in turns, without disturbed rounds; clocks are made up."""

import itertools
import os
import time

import pytest
import torch

from benchmarks import apart, cases, language_model, timing
from benchmarks.layers import Shape
from benchmarks.memory import peak_memory


class Scripted:
    """A run whose n-th sample takes n seconds and loses what the script says."""

    def __init__(self, lost):
        self.samples = (timing.Sample(float(n), part) for n, part in enumerate(lost, 1))

    def sample(self, repeats):
        return next(self.samples)


class TestTiming:
    def test_every_round_times_each_run_in_turns(self, monkeypatch):
        monkeypatch.setattr(timing, "waited", dict)
        order = []
        runs = {name: lambda name=name: order.append(name) for name in "ab"}
        times = timing.interleaved(runs, rounds=4, seconds=60, warmup=1)
        assert {name: len(ms) for name, ms in times.milliseconds.items()} == {"a": 4, "b": 4}
        short = [name for name, _ in itertools.groupby(order)]
        # Warm, then forwards, backwards, forwards, backwards.
        assert short == ["a", "b", "a", "b", "a", "b", "a"]
        assert order.count("a") > 100  # what is short runs many times a sample

    def test_rounds_that_waited_for_a_processor_do_not_count(self):
        # A run to warm up, then rounds of which the third and fourth lost time.
        run = Scripted([0.0, 0.0, 0.0, 0.5, 0.03, 0.01, 0.0])
        times = timing.interleaved({"a": run}, rounds=4, seconds=60)
        assert times.milliseconds == {"a": [2000.0, 3000.0, 6000.0, 7000.0]}
        assert (times.rejected, times.disturbed) == (2, False)

    def test_when_no_round_is_clean_all_count_and_it_says_so(self, monkeypatch):
        monkeypatch.setattr(timing, "GRACE", 0.0)
        times = timing.interleaved({"a": Scripted([1.0] * 7)}, seconds=0.0, warmup=2)
        assert (len(times.milliseconds["a"]), times.rejected, times.disturbed) == (5, 0, True)

    def test_what_a_sample_lost_is_the_part_that_threads_waited(self, monkeypatch):
        waits = iter([{"1": 1.0, "2": 5.0}, {"1": 1.5, "2": 5.25, "3": 0.25}])
        clock = iter([10.0, 14.0])
        monkeypatch.setattr(timing, "waited", lambda: next(waits))
        monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
        assert timing.sample(lambda: None, 2) == timing.Sample(seconds=2.0, lost=0.25)

    def test_percentiles(self):
        found = timing.percentiles([float(n) for n in range(1, 12)])
        assert found == {"p20": 3.0, "p50": 6.0, "p80": 9.0, "rounds": 11}

    def test_peak_memory_sees_what_is_freed_before_the_end(self):
        # Linux's count lags by up to 32 pages a processor.
        found = [peak_memory(lambda: torch.ones(2**24).sum()) for _ in range(3)]
        assert found == [None] * 3 or 2**26 - 2**18 <= max(found) < 2**26 + 2**24


class TestApart:
    def test_each_run_is_in_a_process_of_its_own(self):
        seen = []
        run = apart.Apart(lambda: lambda: seen.append(os.getpid()))
        assert run.sample(3).seconds > 0 and not seen
        run.close()
        with pytest.raises(ProcessLookupError):
            os.kill(run._child, 0)

    def test_a_process_that_ends_is_an_error(self):
        run = apart.Apart(lambda: lambda: os._exit(3))
        with pytest.raises(RuntimeError, match="the process of a run ended"):
            run.sample(1)
        run.close()

    def test_what_a_copy_raises(self):
        apart.in_a_copy(lambda: None)
        with pytest.raises(AssertionError, match="^two$"):
            apart.in_a_copy(lambda: raises("two\nlines"))
        with pytest.raises(AssertionError, match="the process ended with code 3"):
            apart.in_a_copy(lambda: os._exit(3))

    def test_a_case_of_runs_apart(self):
        wait = lambda: time.sleep(1e-3)  # noqa: E731
        build = lambda: cases.Work({"ours": wait, "torch.nn": wait}, lambda: None)  # noqa: E731
        names = ("ours", "torch.nn")
        row = cases.measure(cases.Case("loss", "none", build, apart=names), quick=True)
        assert set(row["times"]) == set(names) and row["ratio"]["torch.nn"] > 0

    def test_names_are_the_works(self):
        for case in language_model.cases():
            assert case.apart == tuple(
                language_model.training_step("gru", Shape(3, 2, 4, 4, 2), 11).runs
            )


def raises(text):
    raise ValueError(text)
