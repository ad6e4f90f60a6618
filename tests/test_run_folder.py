"""The folder of a run: one process writes it, and nothing that cannot be made again is lost."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tyro")

from fastrnn import generate  # noqa: E402
from fastrnn.lm import run as run_module  # noqa: E402
from fastrnn.lm.checkpoint import load_checkpoint  # noqa: E402
from fastrnn.lm.lock import try_lock  # noqa: E402
from fastrnn.lm.reporting import page  # noqa: E402
from fastrnn.lm.run import Run, default_folder  # noqa: E402
from fastrnn.lm.summary import read_summary  # noqa: E402
from fastrnn.train import main  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("a b a c a d\n" * 600)
    return path


def small(text: Path, out: Path, more: str = "") -> list[str]:
    given = f"--data {text} --out {out} --hidden-size 6 --batch-size 8 --bptt 10 --epochs 1"
    return [*given.split(), *more.split()]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastrnn.train: ") and said.count("\n") == 1
    return said


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


# ---- whose it is


def test_runs_of_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_module.time, "strftime", lambda _: "now")
    with default_folder() as first, default_folder() as second, default_folder() as third:
        assert [first, second, third] == [Path(f"runs/now{end}") for end in ("", "-2", "-3")]
        (second / "config.toml").touch()
    # One that nothing came into is gone.
    assert [path.name for path in Path("runs").iterdir()] == ["now-2"]


def test_a_run_without_out_has_the_first_folder_that_is_free(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_module.time, "strftime", lambda _: "now")
    given = [each for each in small(text, Path("x"), "--max-steps 1") if each not in ("--out", "x")]
    assert main([*given, "--bptt", "1000"]) == 2
    assert not Path("runs").exists()
    for _ in range(2):
        assert main(given) == 0
    assert {path.parent.name for path in Path("runs").glob("*/result.json")} == {"now", "now-2"}


def test_a_folder_that_another_process_writes_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    program = subprocess.Popen(
        [sys.executable, "-m", "fastrnn.train", *small(text, out, "--epochs 100000")],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    limit = time.monotonic() + 60
    while not (out / "best").is_dir() and program.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    program.send_signal(signal.SIGSTOP)
    before = contents(out)
    for how in ("--resume", "--force"):
        said = refused(capsys, small(text, out, how))
        assert said.endswith(f"{out}: the run is being written by another process\n")
    assert contents(out) == before
    assert generate.main(["--run", str(out), "--length", "1"]) == 0  # who reads needs no lock
    program.kill()
    program.wait()
    lock = try_lock(out / ".lock")  # gone with the process
    assert lock is not None
    lock.close()
    made = max(1, load_checkpoint(out / "last").counters["step"])
    assert main(small(text, out, f"--resume --max-steps {made}")) == 0


def test_a_run_that_began_and_ended_meanwhile_is_not_replaced(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    claim = Run.claim

    def late(run: Run) -> None:
        (run.folder / "config.toml").write_text("of another")
        claim(run)

    monkeypatch.setattr(Run, "claim", late)
    assert "exists and is not an empty folder" in refused(capsys, small(text, out))
    assert (out / "config.toml").read_text() == "of another"


def test_what_cannot_be_locked_can_be_read(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(small(text, out, "--max-steps 1")) == 0
    (out / ".lock").unlink()
    (out / ".lock").mkdir()  # as good as a folder that may not be written
    before = contents(out)
    assert main(["--out", str(out), "--resume"]) == 0
    assert "this run has finished" in capsys.readouterr().out and contents(out) == before


# ---- what is in it


def test_validations_within_an_epoch_are_no_epochs(text: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main(small(text, whole)) == 0
    *_, valid, test = lines_of(whole)
    assert (valid["split"], valid["epoch"]) == ("valid", 1)
    assert (test["split"], test["epoch"]) == ("test", 1)
    steps = valid["step"]
    assert main(small(text, part, "--max-steps 10")) == 0
    *_, valid, test = lines_of(part)
    assert valid["epoch"] == test["epoch"] == 10 / steps
    summary = read_summary(part)
    assert summary.curve("valid")["epoch"] == [round(10 / steps, 4)]
    assert summary.seconds_an_epoch == pytest.approx(valid["seconds"] * steps / 10)
    # Gone on to the end of the second epoch.
    assert main(["--out", str(part), "--resume", "--max-steps", str(2 * steps)]) == 0
    assert main(["--out", str(part), "--resume", "--epochs", "2"]) == 0
    assert read_summary(part).curve("valid")["epoch"] == [round(10 / steps, 4), 1, 2]


def test_an_evaluation_of_other_weights_is_dropped(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    folders = [out / f"evaluation-{split}" for split in ("valid", "test")]
    paths = [folder / "evaluation.json" for folder in folders]

    def evaluated() -> None:
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_text('{"runs": [{"perplexity": 2.0}]}')
            for name in ("loss-per-step", "gradient-per-step"):
                path.with_name(f"{name}.png").touch()
                path.with_name(f"{name}.svg").touch()

    assert main(small(text, out, "--max-steps 1")) == 0
    evaluated()
    assert main(["--out", str(out), "--resume"]) == 0  # finished: nothing changes
    assert read_summary(out).evaluations == {s: {"perplexity": 2.0} for s in ("valid", "test")}
    for more in ("--resume --max-steps 2", "--force --max-steps 1"):
        evaluated()
        assert main(small(text, out, more)) == 0
        assert not any(any(folder.iterdir()) for folder in folders), more


def test_a_result_that_is_not_finite_is_json(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = "--epochs 2 --optimizer sgd --lr 1e5 --clip 0 --explosion 0"
    assert main(small(text, out, more)) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("test perplexity inf (bigram ")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    result = json.loads((out / "result.json").read_text(), parse_constant=refuse)
    assert result["test_perplexity"] is None
    assert main(["--out", str(out), "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("test perplexity inf (bigram ")
    summary = read_summary(out)
    assert summary.test == math.inf and "lowest test" not in page([summary], "x")


@pytest.mark.parametrize(
    "damage", [b"\xff\n", b"5\n", b"[\n", b'{"split": "valid", "step": 1, "loss": 1}\n']
)
def test_damaged_metrics_are_told_before_training(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    out = tmp_path / "run"
    assert main(small(text, out, "--log-interval 10")) == 0
    path = out / "metrics.jsonl"
    first, _, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join((first, damage, *rest)))
    before = contents(out)
    said = refused(capsys, ["--out", str(out), "--resume", "--epochs", "2"])
    assert said.endswith("metrics.jsonl: damaged: line 2 is not a JSON object of metrics\n")
    assert contents(out) == before


@pytest.mark.parametrize(
    "damaged", [b"\xff", b"5", b'{"length": [1, 1]}', b'{"sample": 1, "length": [1, 1]}']
)
def test_a_damaged_result_is_worked_out_again(text: Path, tmp_path: Path, damaged: bytes) -> None:
    out = tmp_path / "run"
    assert main(small(text, out, "--max-steps 1")) == 0
    result = json.loads((out / "result.json").read_bytes())
    (out / "result.json").write_bytes(damaged)
    assert main(["--out", str(out), "--resume"]) == 0
    again = json.loads((out / "result.json").read_bytes())
    assert again | {"seconds": 0} == result | {"seconds": 0}


@pytest.mark.parametrize("left", ["best", "result.json", "metrics.jsonl"])
def test_results_without_a_last_checkpoint_are_kept(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str
) -> None:
    out, aside = tmp_path / "run", tmp_path / "aside"
    assert main(small(text, out, "--max-steps 2")) == 0
    aside.mkdir()
    for name in {path.name for path in out.iterdir()} - {"config.toml", left}:
        (out / name).rename(aside / name)
    before = contents(out)
    said = refused(capsys, small(text, out, "--resume --max-steps 2"))
    assert "has the results of a run, but no last checkpoint to continue from; pass --force" in said
    assert {name: content for name, content in contents(out).items() if name != ".lock"} == before
    assert main(small(text, out, "--force --max-steps 2")) == 0


def test_a_run_killed_before_its_first_checkpoint_starts_afresh(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(small(text, out, "--max-steps 1")) == 0
    for path in out.iterdir():
        if path.name not in ("config.toml", "vocabulary.json", "log.txt", ".lock"):
            path.rename(tmp_path / path.name)
    (out / "metrics.jsonl").touch()
    (out / "last.new").mkdir()
    assert main(small(text, out, "--resume --max-steps 1")) == 0
    assert "no checkpoint yet, starting afresh" in capsys.readouterr().out


# ---- what is said


def test_letters_that_cannot_be_shown_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "rün"
    text.write_text("éé è\n" * 600)
    for program, arguments in (
        (main, small(text, out, "--level char --max-steps 5")),
        (generate.main, ["--run", str(out), "--prompt", "é", "--length", "3"]),
    ):
        shown = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
            assert program(arguments) == 0
            sys.stdout.flush()
            assert b"\\xe9" in shown.getvalue()
    assert "é" in json.loads((out / "result.json").read_text())["sample"]
    assert "é" in (out / "log.txt").read_text(encoding="utf-8")


def test_without_standard_output_all_is_done(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for program, arguments in (
        (main, small(text, out, "--max-steps 1")),
        (generate.main, ["--run", str(out), "--length", "3"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None)  # as `>&-` leaves it
            assert program(arguments) == 0
    assert (out / "result.json").is_file()


def test_the_log_takes_any_line(tmp_path: Path) -> None:
    Run(tmp_path).log("é of a path \udcff")
    assert (tmp_path / "log.txt").read_bytes() == "é of a path \\udcff\n".encode()
