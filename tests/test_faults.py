"""Runs that are killed, terminated, out of disk or damaged lose nothing that was saved."""

import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro")

from fastrnn.lm import checkpoint as checkpoint_module  # noqa: E402
from fastrnn.lm.checkpoint import load_before, load_checkpoint, save_checkpoint  # noqa: E402
from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.loop import Trainer  # noqa: E402
from fastrnn.lm.report import Reporter  # noqa: E402
from fastrnn.lm.session import train  # noqa: E402
from fastrnn.train import main  # noqa: E402
from tests.test_checkpoint import (  # noqa: E402, F401
    Dies,
    Watching,
    arguments,
    make,
    outcome,
    text,
)

pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")


def in_child(arguments: list[str]) -> int:
    """Start the program in a fork of this process, which has torch loaded already."""
    child = os.fork()
    if child:
        return child
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        torch.set_num_threads(1)
        os._exit(main(arguments))
    finally:
        os._exit(99)


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_the_same_bits(
    text: Path,  # noqa: F811
    tmp_path: Path,
    kills: int,
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    more = ("--cell", "lstm", "--num-layers", "2", "--checkpoint-interval", "2", "--epochs", "4")
    began = time.monotonic()
    train(parse(arguments(text, straight, *more)), Reporter())
    whole = time.monotonic() - began
    moments = random.Random(5)
    for _ in range(kills):
        child = in_child(arguments(text, killed, *more, "--resume"))
        time.sleep(moments.uniform(0, 1.2 * whole))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    train(parse(arguments(text, killed, *more, "--resume")), Reporter())
    assert outcome(killed) == outcome(straight)


@pytest.mark.parametrize("keep_old", [False, True])
def test_a_crash_at_any_point_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_old: bool
) -> None:
    calls = {"left": -1, "made": 0}

    def crashing(function):  # type: ignore[no-untyped-def]
        def wrapped(*args, **options):  # type: ignore[no-untyped-def]
            calls["made"] += 1
            if calls["left"] == 0:
                raise Dies
            calls["left"] -= 1
            return function(*args, **options)

        return wrapped

    for name in ("fsync",):
        monkeypatch.setattr(checkpoint_module.os, name, crashing(getattr(os, name)))
    monkeypatch.setattr(Path, "rename", crashing(Path.rename))
    monkeypatch.setattr(Path, "mkdir", crashing(Path.mkdir))
    monkeypatch.setattr(
        checkpoint_module.shutil, "rmtree", crashing(checkpoint_module.shutil.rmtree)
    )
    seen = set()
    for point in range(20):
        folder = tmp_path / str(point) / "last"
        calls["left"] = -1
        folder.parent.mkdir()
        for value in (1, 2):
            save_checkpoint(folder, make(value))
        calls["left"] = point
        try:
            save_checkpoint(folder, make(3), keep_old)
        except Dies:
            pass
        else:
            break
        calls["left"] = -1
        seen.add(load_checkpoint(folder).counters["step"])
        assert not keep_old or load_before(folder, 1).counters["step"] == 1
        save_checkpoint(folder, make(4))
        assert load_checkpoint(folder).counters["step"] == 4
        assert sorted(p.name for p in folder.parent.iterdir()) == ["last", "last.old"]
    else:
        pytest.fail("a save takes fewer steps than this")
    assert point > 6 and seen == {2, 3}


def test_sigterm_saves_at_once_and_the_run_goes_on_later(
    text: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(parse(arguments(text, straight)), Reporter())
    capsys.readouterr()

    def terminate() -> None:
        signal.raise_signal(signal.SIGTERM)

    assert train(parse(arguments(text, stopped)), Watching(10, terminate)) == 143
    printed = capsys.readouterr().out
    assert "terminated at step 10 of 60" in printed and "test perplexity" not in printed
    assert load_checkpoint(stopped / "last").counters["step"] == 10
    train(parse(["--out", str(stopped), "--resume"]), Reporter())
    assert outcome(stopped) == outcome(straight)


@pytest.mark.parametrize("stops", [(9,), (9, 11), (9, 10, 11), (6,)])
def test_a_rewind_after_stops_goes_back_to_what_was_due(
    text: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stops: tuple[int, ...],
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    left: list[int] = []
    step = Trainer.step

    def diverging(trainer: Trainer) -> str | None:
        counters = trainer.counters
        if counters.step == 12 and not counters.rewinds:
            return "the loss was made up"
        if counters.step in left:
            left.remove(counters.step)
            signal.raise_signal(signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", diverging)
    train(parse(arguments(text, straight)), Reporter())
    assert "at step 13: back to step 7, at half the rate" in capsys.readouterr().out
    left = list(stops)
    for _ in stops:
        assert train(parse(arguments(text, stopped, "--resume")), Reporter()) == 143
    train(parse(["--out", str(stopped), "--resume"]), Reporter())
    assert "at step 13: back to step 7, at half the rate" in capsys.readouterr().out
    assert outcome(stopped) == outcome(straight)


def test_a_rewind_makes_do_with_the_stops_checkpoint(tmp_path: Path) -> None:
    folder, said = tmp_path / "last", []
    for value in (1, 2):
        save_checkpoint(folder, make(value))
    assert load_before(folder, 1, said.append).counters["step"] == 1 and not said
    assert load_before(folder, 7, said.append).counters["step"] == 2
    assert said.pop() == f"{folder}.old: of step 1, expected 7; using {folder}, of step 2"
    (tmp_path / "last.old" / "model.safetensors").write_text("")
    assert load_before(folder, 1, said.append).counters["step"] == 2
    assert "is truncated or damaged" in said[0] and "of step 2" in said[0]


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    text: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    straight, damaged = tmp_path / "straight", tmp_path / "damaged"
    train(parse(arguments(text, straight)), Reporter())

    def die() -> None:
        raise Dies

    with pytest.raises(Dies):
        train(parse(arguments(text, damaged)), Watching(50, die))
    path = damaged / "last" / name
    path.write_bytes(path.read_bytes()[:-10])
    capsys.readouterr()
    train(parse(["--out", str(damaged), "--resume"]), Reporter())
    said = capsys.readouterr().out
    assert f"{name}: the checkpoint is truncated or damaged" in said
    assert "last.old, of step 42" in said and "continuing after step 42" in said
    assert outcome(damaged) == outcome(straight)


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(
    text: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    assert main(arguments(text, out, "--max-steps", "20")) == 0
    before = load_checkpoint(out / "last")
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond a few hundred bytes, as on a disk that is almost full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        code = main(["--out", str(out), "--resume", "--max-steps", "60"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and "File too large" in said, said
    after = load_checkpoint(out / "last")
    assert after.counters == before.counters
    assert all(after.weights[k].equal(w) for k, w in before.weights.items())
    assert main(["--out", str(out), "--resume", "--max-steps", "60"]) == 0


def test_a_folder_that_becomes_read_only_keeps_the_last_checkpoint(
    text: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    assert main(arguments(text, out, "--max-steps", "20")) == 0
    before = load_checkpoint(out / "last").counters

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    if os.geteuid() == 0:  # root may write anywhere
        monkeypatch.setattr(checkpoint_module, "_write_through", refuse)
    else:
        out.chmod(0o500)
    capsys.readouterr()
    code = main(["--out", str(out), "--resume", "--max-steps", "60"])
    monkeypatch.undo()
    out.chmod(0o700)
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and "Permission denied" in said
    assert load_checkpoint(out / "last").counters == before
