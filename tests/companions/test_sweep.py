"""Sweeps: what is tried, once each; going on after a kill; workers; errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna")

import optuna  # noqa: E402

from fastrnn.lm import sweeping  # noqa: E402
from fastrnn.lm.checkpoint import load_checkpoint  # noqa: E402
from fastrnn.lm.lock import try_lock  # noqa: E402
from fastrnn.lm.plan import Plan, options_of, read_plan  # noqa: E402
from fastrnn.lm.program import one_line  # noqa: E402
from fastrnn.lm.study import open_study  # noqa: E402
from fastrnn.sweep import main  # noqa: E402


def write(tmp_path: Path, runs: Path, search: str, more: str = "", settings: str = "") -> Path:
    """A sweep's file, of runs of 15 steps."""
    path = tmp_path / "plan.toml"
    path.write_text(
        f"out = '{tmp_path / 'sweep'}'\n{more}\n[settings]\ndata = '{runs / 'text.txt'}'\n"
        f"batch-size = 8\nbptt = 10\nhidden-size = 8\ndropout = 0.0\n"
        f"{settings or 'max-steps = 15'}\n[search]\n{search}\n"
    )
    return path


def made(out: Path) -> dict[str, dict[str, object]]:
    """The settings of each run, by folder."""
    return {
        path.parent.name: tomllib.loads(path.read_text())
        for path in sorted(out.glob("*/config.toml"))
    }


def test_a_grid_is_tried_once_and_reported(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, runs, 'cell = ["gru", "rnn-tanh"]\nlr = [0.02, 0.001]')
    assert main([str(path)]) == 0
    printed = capsys.readouterr().out
    found = made(tmp_path / "sweep")
    tried = [(s["cell"], s["lr"]) for s in found.values()]
    assert sorted(tried) == sorted((c, lr) for c in ("gru", "rnn-tanh") for lr in (0.02, 0.001))
    losses = {}
    for name in found:
        lines = (tmp_path / "sweep" / name / "metrics.jsonl").read_text().splitlines()
        ppl = [m["ppl"] for m in map(json.loads, lines) if m["split"] == "valid"]
        losses[name] = min(ppl)
        assert f"{name}  valid perplexity {min(ppl):.2f}" in printed
    best = min(losses, key=losses.__getitem__)
    assert found[best]["lr"] == 0.02
    assert (
        f"best: {best}, valid perplexity {losses[best]:.2f}, cell {found[best]['cell']}" in printed
    )
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert all(f'title="{name}"' in page for name in found)

    # Again: nothing is left to do, and nothing is done.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").glob("*/metrics.jsonl")}
    assert main([str(path)]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "0000  " not in capsys.readouterr().out

    # Another search in the same folder is refused.
    path.write_text(path.read_text().replace("0.001", "0.002"))
    assert main([str(path)]) == 2
    assert "began with another method, [settings] or [search]" in capsys.readouterr().err


def test_a_search_draws_within_its_ranges_and_can_grow(runs: Path, tmp_path: Path) -> None:
    search = "lr = { low = 1e-4, high = 1e-1, log = true }\nnum-layers = { low = 1, high = 3 }\n"
    search += "clip = { low = 0.25, high = 1.0, step = 0.25 }\ntied = [true, false]"
    path = write(tmp_path, runs, search, 'method = "tpe"\ntrials = 3', "max-steps = 4")
    assert main([str(path)]) == 0
    assert len(made(tmp_path / "sweep")) == 3
    path.write_text(path.read_text().replace("trials = 3", "trials = 6"))
    assert main([str(path)]) == 0
    found = list(made(tmp_path / "sweep").values())
    assert len(found) == 6
    assert len({s["lr"] for s in found}) == 6  # each trial draws anew
    for settings in found:
        assert 1e-4 <= settings["lr"] <= 1e-1
        assert settings["num_layers"] in (1, 2, 3) and settings["clip"] in (0.25, 0.5, 0.75, 1.0)
    assert len({s["tied"] for s in found}) == 2


def test_a_range_with_integer_ends_is_of_the_option_s_type(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        "method = 'random'\n[search]\nlr = {low = 1, high = 4, log = true}\n"
        "dropout = {low = 0, high = 0.5}\nclip = {low = 1, high = 4, step = 1}\n"
        "hidden-size = {low = 1, high = 4}"
    )
    plan = read_plan(path)
    drawn: dict[str, set[float]] = {key: set() for key in plan.search}
    study = optuna.create_study(sampler=sweeping._sampler(plan, 0))
    for _ in range(40):
        trial = study.ask()
        for key, values in plan.search.items():
            drawn[key].add(sweeping._suggest(trial, key, values))
    assert len(drawn["lr"]) == 40 and min(drawn["lr"]) >= 1 and max(drawn["lr"]) <= 4
    assert len(drawn["dropout"]) == 40
    assert drawn["clip"] == {1.0, 2.0, 3.0, 4.0} and drawn["hidden_size"] == {1, 2, 3, 4}
    assert all(type(size) is int for size in drawn["hidden_size"])


def test_draws_differ_by_trial_and_not_by_worker() -> None:
    plan = Plan(Path("x"), "random", 9, 3, None, {}, {"lr": {"low": 0.0, "high": 1.0}})
    drawn = []
    for number in (0, 1, 2, 2):
        study = optuna.create_study(sampler=sweeping._sampler(plan, number))
        drawn.append(study.ask().suggest_float("lr", 0, 1))
    assert len(set(drawn)) == 3 and drawn[2] == drawn[3]


def test_killed_workers_are_gone_on_for_where_they_were(runs: Path, tmp_path: Path) -> None:
    settings = "epochs = 100\nmax-steps = 800\ncheckpoint-interval = 30\nlog-interval = 10"
    path = write(tmp_path, runs, "lr = [0.01, 0.002, 0.001]", "", settings)
    begun = [tmp_path / "sweep" / name / "metrics.jsonl" for name in ("0000", "0001")]
    command = [sys.executable, "-m", "fastrnn.sweep", str(path), "--workers", "2"]
    with subprocess.Popen(command, start_new_session=True) as program:
        while not all(p.is_file() and p.read_text().count("\n") > 8 for p in begun):
            assert program.poll() is None
            time.sleep(0.02)
        os.killpg(program.pid, signal.SIGKILL)
    before = [p.read_text().splitlines()[:5] for p in begun]
    assert main([str(path)]) == 0
    found = {name: s["lr"] for name, s in made(tmp_path / "sweep").items()}
    assert sorted(found.values()) == [0.001, 0.002, 0.01] and len(found) == 3
    for name in found:
        lines = (tmp_path / "sweep" / name / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 800
    # Seconds among them: those steps were not made again.
    assert before == [p.read_text().splitlines()[:5] for p in begun]
    states = [trial.state.name for trial in open_study(read_plan(path)).trials]
    assert states.count("COMPLETE") == 3 and 1 <= states.count("FAIL") == len(states) - 3


def test_an_interrupted_sweep_goes_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, runs, "lr = [0.01, 0.001]", "", "max-steps = 2")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "train", interrupt)
        assert main([str(path)]) == 130
        # As the trainer ends after the first Ctrl-C, and after SIGTERM: in order.
        for code in (130, 143):
            patch.setattr(sweeping, "train", lambda *_, code=code: code)
            assert main([str(path)]) == code
    assert main([str(path)]) == 0
    assert sorted(made(tmp_path / "sweep")) == ["0000", "0001"]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "Ctrl-C"])
def test_a_signal_stops_the_workers_at_their_checkpoints(
    runs: Path, tmp_path: Path, how: str
) -> None:
    settings = "epochs = 10000\ncheckpoint-interval = 0\nlog-interval = 1"
    path = write(tmp_path, runs, "lr = [0.01, 0.002, 0.001]", "", settings)
    begun = [tmp_path / "sweep" / name for name in ("0000", "0001")]
    command = [sys.executable, "-m", "fastrnn.sweep", str(path), "--workers", "2"]
    given = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **given) as program:  # type: ignore[call-overload]
        metrics = [folder / "metrics.jsonl" for folder in begun]
        while not all(p.is_file() and p.read_text().count("\n") > 8 for p in metrics):
            assert program.poll() is None
            time.sleep(0.02)
        if how == "Ctrl-C":
            os.killpg(program.pid, signal.SIGINT)  # a terminal's reaches the workers, too
        else:
            program.send_signal(getattr(signal, how))
        told = program.communicate(timeout=60)[1]
    code = 143 if how == "SIGTERM" else 130
    assert (program.returncode, told) == (code, "fastrnn.sweep: interrupted\n")
    for folder in begun:
        lock = try_lock(tmp_path / "sweep" / f".{folder.name}.lock")
        assert lock is not None  # no worker is left
        lock.close()
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        steps = [m["step"] for m in map(json.loads, lines) if m["split"] == "train"]
        assert load_checkpoint(folder / "last").counters["step"] == steps[-1]
    assert not (tmp_path / "sweep" / "0002").exists()


def test_a_worker_whose_sweep_was_killed_begins_no_further_run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, runs, "lr = [0.01, 0.001]", "", "max-steps = 2")
    plan = read_plan(path)
    plan.out.mkdir()
    sweeping._prepare(open_study(plan), plan, path)
    alive = iter([True, False, False])
    parent = SimpleNamespace(is_alive=lambda: next(alive))
    monkeypatch.setattr(sweeping.multiprocessing, "parent_process", lambda: parent)
    assert sweeping.work(path) == 143
    assert sorted(made(plan.out)) == ["0000"]


@pytest.mark.slow
def test_workers_share_the_runs(runs: Path, tmp_path: Path) -> None:
    path = write(tmp_path, runs, "seed = [1, 2, 3, 4]", "", "max-steps = 4")
    assert main([str(path), "--workers", "2"]) == 0
    found = made(tmp_path / "sweep")
    assert sorted(s["seed"] for s in found.values()) == [1, 2, 3, 4]
    assert sorted(found) == ["0000", "0001", "0002", "0003"]


def test_a_database_will_do(runs: Path, tmp_path: Path) -> None:
    storage = f"storage = 'sqlite:///{tmp_path / 'study.db'}'"
    path = write(tmp_path, runs, "lr = [0.01, 0.001]", storage, "max-steps = 2")
    assert main([str(path)]) == 0
    assert len(made(tmp_path / "sweep")) == 2
    assert not (tmp_path / "sweep" / "study.jsonl").exists()


@pytest.mark.parametrize("search", ["lr = [0.01, 0.001]", "lr = { low = 0.001, high = 0.01 }"])
def test_a_run_that_fails_does_not_end_the_sweep_and_is_tried_again(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], search: str
) -> None:
    # A fault of one run that its options do not tell: its folder is taken by a file.
    more = "" if "[" in search else "method = 'random'\ntrials = 2"
    path = write(tmp_path, runs, search, more, "max-steps = 2")
    taken = tmp_path / "sweep" / "0000" / "vocabulary.json"
    taken.mkdir(parents=True)
    for _ in range(2):
        assert main([str(path)]) == 2
        printed = capsys.readouterr()
        assert "0000  failed: " in printed.out and "best: 0001" in printed.out
        assert printed.err == (
            "fastrnn.sweep: 1 of 2 runs failed, see above why: 0000; started again, the sweep "
            "tries them again\n"
        )
    taken.rmdir()
    assert main([str(path)]) == 0
    again = capsys.readouterr().out
    settings = printed.out.splitlines()[0]
    assert settings.startswith("0000  lr ") and again.splitlines()[0] == settings
    assert "0001  valid" not in again and sorted(made(tmp_path / "sweep")) == ["0000", "0001"]


def test_a_file_that_a_crash_has_cut_is_gone_on_with(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, runs, "lr = [0.01, 0.001]", "", "max-steps = 2")
    assert main([str(path)]) == 0
    study = tmp_path / "sweep" / "study.jsonl"
    whole = study.read_bytes()
    for size in range(len(whole) - 20, 0, -len(whole) // 5):  # inside the queue's making, too
        study.write_bytes(whole[:size])
        capsys.readouterr()
        assert main([str(path)]) == 0
        told = f"{study}: the last line was cut off, and is dropped\n"
        assert capsys.readouterr().out.startswith(told)
        trials = open_study(read_plan(path)).trials
        assert {t.params["lr"] for t in trials if t.state.name == "COMPLETE"} == {0.01, 0.001}
    study.write_bytes(b"{\n" + whole)
    assert main([str(path)]) == 2
    assert f"{study}: damaged: a line is not JSON: " in capsys.readouterr().err


def test_options_of_a_run(tmp_path: Path) -> None:
    settings = {"tied": False, "emb_size": 4, "lr": 1e-5, "data": "a b", "cell": "lstm"}
    config = options_of(settings, tmp_path / "x")
    assert (config.model.tied, config.model.emb_size) == (False, 4)
    assert config.corpus.data == "a b" and config.run.resume
    assert config.run.out == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "[search] must name an option to try values of"),
        ("out = ''\n[search]\nlr = [1]", "out: expected the path of a folder, got ''"),
        ("serch = 1", "unknown key 'serch', did you mean 'search'?"),
        ("[search]\nhiden-size = [1]", "unknown option 'hiden-size', did you mean 'hidden_size'?"),
        ("[settings]\nout = 'x'", "settings: unknown option 'out'"),
        ("method = 'gird'\n[search]\nlr = [1]", "method: expected one of grid, random, tpe"),
        ("trials = 0\n[search]\nlr = [1]", "trials must be at least 1, got 0"),
        ("trials = 'x'\n[search]\nlr = [1]", "trials: expected int, got 'x'"),
        ("[search]\nlr = 1", "search.lr: expected a list, or a table with low and high, got 1"),
        ("[search]\nlr = [1, 2, 1.0]", "expected runs that differ, got this twice: lr 1"),
        ("[search]\nlr = [0.1]\ncell = ['gru', 'gru']", "got this twice: lr 0.1, cell gru"),
        ("[search]\nlr = []", "search.lr: expected a list of one value or more"),
        ("[search]\nlr = {low = 1, high = 2}", "search.lr: method grid needs a list of values"),
        ("method='tpe'\n[search]\nlr = {low = 2, high = 1}", "search.lr: no such range"),
        ("method='tpe'\n[search]\nlr = {low = 0, high = 1, log = true}", "no such range"),
        ("method='tpe'\n[search]\nlr = {low = 0, hi = 1}", "low and high"),
        ("method='tpe'\n[search]\nlr = {low = 0, high = 'x'}", "search.lr.high: expected a float"),
        ("method='tpe'\n[search]\nlr = {low = 0.1, high = 1.0, step = nan}", "no such range"),
        ("method='tpe'\n[search]\nlr = {low = nan, high = 1.0}", "no such range"),
        (f"method='tpe'\n[search]\nlr = {{low = 1, high = 1{400 * '0'}}}", "search.lr.high: exp"),
        (f"[search]\nlr = [1{5000 * '0'}]", "not valid TOML: "),
        (
            "method='tpe'\n[search]\nbptt = {low = 1, high = 9, step = 0.5}",
            "search.bptt.step: expected int, got 0.5",
        ),
        ("[settings]\nlr = 1\n[search]\nlr = [1]", "lr is in both [settings] and [search]"),
        ("[settings]\nlr = [1]\n[search]\nseed = [1]", "settings.lr: expected one value"),
        ("[search]\ndropout = [0.1, 1.5]", "with dropout 1.5: --dropout must be"),
        ("[search]\ncell = ['gru', 'gur']", "with cell gur: "),
        ("[search]\nseed = [" + "1," * 101 + "]\nlr = [" + "1," * 100 + "]", "more than 10000"),
        ("[search", "not valid TOML"),
    ],
)
def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(content)
    assert main([str(path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"fastrnn.sweep: {path}: ") and expected in told
    assert told.count("\n") == 1


def test_mistakes_elsewhere(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    assert "nowhere.toml: cannot be read: No such file" in told("nowhere.toml")
    path = write(tmp_path, runs, "lr = [0.1]")
    assert "--workers must be at least 1, got 0" in told(str(path), "--workers", "0")
    path = write(tmp_path, runs, "lr = [0.1]", "storage = 'nosuch://me:secret@host/x'")
    error = told(str(path))
    assert "storage nosuch: cannot be opened: " in error and "secret" not in error


def test_a_missing_package_names_its_extra() -> None:
    error = ModuleNotFoundError("No module named 'optuna'", name="optuna")
    assert one_line(error) == ("the package optuna is not installed: pip install 'fastrnn[sweep]'")
