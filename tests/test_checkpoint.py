"""Checkpoints survive crashes, notice damage and continue to the bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro")

from safetensors.torch import load_file  # noqa: E402

from fastrnn.lm import checkpoint as checkpoint_module  # noqa: E402
from fastrnn.lm.checkpoint import (  # noqa: E402
    Checkpoint,
    checkpoint_exists,
    load_checkpoint,
    restore_weights,
    save_checkpoint,
    write_file,
)
from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.errors import UserError  # noqa: E402
from fastrnn.lm.report import Reporter  # noqa: E402
from fastrnn.lm.session import train  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def make(value: float) -> Checkpoint:
    weights, state = {"w": torch.full((2, 3), value)}, {"s": torch.tensor([value])}
    return Checkpoint(weights, state, {"step": int(value)})


def test_checkpoint_comes_back_as_saved(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last", make(1))
    save_checkpoint(tmp_path / "last", make(2))
    loaded = load_checkpoint(tmp_path / "last")
    assert loaded.weights["w"].equal(torch.full((2, 3), 2.0))
    assert loaded.state["s"].equal(torch.tensor([2]))
    assert loaded.counters["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "last.old"]
    assert load_checkpoint(tmp_path / "last.old").counters["step"] == 1


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path / "last", make(1))
    path = tmp_path / "last" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-7])
    else:
        path.write_bytes(content.replace(b'"', b"!"))
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "last")
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_replacement_cut_short_is_settled(tmp_path: Path) -> None:
    last, new, old = (tmp_path / name for name in ("last", "last.new", "last.old"))
    save_checkpoint(last, make(1))
    new.mkdir()
    (new / "model.safetensors").write_bytes(b"half")  # died while writing
    assert checkpoint_exists(last)
    assert load_checkpoint(last).counters["step"] == 1
    shutil.rmtree(new)
    save_checkpoint(tmp_path / "other", make(2))
    last.rename(old)  # died between the two renames
    (tmp_path / "other").rename(new)
    assert checkpoint_exists(last)
    assert load_checkpoint(last).counters["step"] == 2
    save_checkpoint(last, make(3))
    assert [load_checkpoint(p).counters["step"] for p in (last, old)] == [3, 2]
    assert not new.exists()


@pytest.mark.parametrize("moment", ["model.safetensors", "state.safetensors"])
def test_a_checkpoint_replaced_while_it_is_read_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder, read = tmp_path / "last", checkpoint_module._read
    for value in (1, 2):
        save_checkpoint(folder, make(value))
    left = [3, 4]

    def slow(path: Path) -> bytes:
        if path.name == moment and left:
            save_checkpoint(folder, make(left.pop(0)))
        return read(path)

    monkeypatch.setattr(checkpoint_module, "_read", slow)
    warnings: list[str] = []
    found = load_checkpoint(folder, warnings.append)
    assert (found.counters["step"], warnings) == (4, [])


def test_half_a_first_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "last.new").mkdir()
    assert not checkpoint_exists(tmp_path / "last")


def test_edited_counters_and_other_versions_are_noticed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last", make(1))
    path = tmp_path / "last" / "state.json"
    text = path.read_text()
    path.write_text(text.replace('"step": 1', '"step": 3'))
    with pytest.raises(UserError, match=r"state\.json: the checkpoint is truncated or damaged"):
        load_checkpoint(tmp_path / "last")
    path.write_text(text.replace('"format": 2', '"format": 99'))
    with pytest.raises(UserError, match="the checkpoint has format 99, expected 2"):
        load_checkpoint(tmp_path / "last")


def test_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "last", make(1))
    write_file(tmp_path / "file", b"old")
    names = sorted(path.name for path in tmp_path.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "last", make(2))
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "last.new"]
    assert load_checkpoint(tmp_path / "last").counters["step"] == 1
    assert (tmp_path / "file").read_bytes() == b"old"


def test_two_processes_may_write_a_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, replace = True, os.replace

    def interrupted(new: Path, path: Path) -> None:
        nonlocal first
        if first:  # as another process, which has written its own by now
            first = False
            monkeypatch.setattr(checkpoint_module.os, "getpid", lambda: -1)
            write_file(path, b"theirs")
        replace(new, path)

    monkeypatch.setattr(checkpoint_module.os, "replace", interrupted)
    write_file(tmp_path / "file", b"ours")
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_weights_of_another_shape_or_name_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    with pytest.raises(UserError, match=r"weight is \[2, 4\], expected \[2, 3\]"):
        restore_weights(model, {"weight": torch.zeros(2, 4)}, tmp_path)
    with pytest.raises(UserError, match=r"bias is \[2\], expected nothing"):
        weights = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
        restore_weights(model, weights, tmp_path)
    with pytest.raises(UserError, match=r"weight is nothing, expected \[2, 3\]"):
        restore_weights(model, {}, tmp_path)


class Dies(Exception):
    """Stands for a kill."""


class Watching(Reporter):
    """A reporter that does something at one step."""

    def __init__(self, at: int, action: Any) -> None:
        super().__init__()
        self.at, self.action = at, action

    def progress(self, epoch: int, step: int, *rest: Any) -> None:
        if step == self.at:
            self.action()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(30, (60, 12), generator=generator).tolist()
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(f"w{w}" for w in line) + "\n" for line in words))
    return path


def arguments(text: Path, out: Path, *more: str) -> list[str]:
    given = (
        f"--data {text} --out {out} --hidden-size 12 --batch-size 4 --bptt 9 --epochs 3 "
        "--log-interval 5 --checkpoint-interval 7 --dropout 0.3"
    )
    return [*given.split(), *more]


def outcome(out: Path) -> tuple[Any, ...]:
    """All that two equal runs must agree on: weights, state, counters, metrics, result."""
    timed = {"seconds", "tokens_per_s", "sha256"}
    parts: list[Any] = []
    for folder in ("last", "best"):
        for name in ("model", "state"):
            tensors = load_file(out / folder / f"{name}.safetensors")
            parts.append({k: t.numpy().tobytes() for k, t in tensors.items()})
        parts.append(json.loads((out / folder / "state.json").read_text()))
    parts += [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    parts.append(json.loads((out / "result.json").read_text()))
    return tuple({k: v for k, v in part.items() if k not in timed} for part in parts)


def die() -> None:
    raise Dies


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_resumed_run_equals_one_that_was_not_stopped(
    text: Path, tmp_path: Path, optimizer: str, cell: str
) -> None:
    more = ("--optimizer", optimizer, "--cell", cell, "--lr", "0.01", "--schedule", "plateau")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(parse(arguments(text, straight, *more)), Reporter())
    for at in (10, 25, 40):  # of 60 steps; checkpoints at 7, 14 ... lie between two reports
        with pytest.raises(Dies):
            train(parse(arguments(text, broken, *more, "--resume")), Watching(at, die))
    train(parse(["--out", str(broken), "--resume"]), Reporter())
    assert outcome(broken) == outcome(straight)


def test_killed_process_continues_to_the_same_bits(text: Path, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(parse(arguments(text, straight)), Reporter())
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrnn.train", *arguments(text, killed)],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    limit = time.monotonic() + 60
    while not (killed / "last").is_dir() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (killed / "config.toml").is_file()
    train(parse(arguments(text, killed, "--resume")), Reporter())
    assert outcome(killed) == outcome(straight)


def test_ctrl_c_saves_evaluates_and_can_be_continued(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(parse(arguments(text, straight)), Reporter())
    capsys.readouterr()

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    assert train(parse(arguments(text, stopped)), Watching(10, interrupt)) == 130
    printed = capsys.readouterr().out
    assert "interrupted at step 10 of" in printed
    assert "test perplexity" in printed.splitlines()[-1]
    assert load_checkpoint(stopped / "last").counters["step"] == 10
    assert not (stopped / "result.json").exists()
    assert json.loads((stopped / "metrics.jsonl").read_text().splitlines()[-1])["split"] == "test"
    train(parse(["--out", str(stopped), "--resume"]), Reporter())
    assert outcome(stopped) == outcome(straight)


def test_a_run_does_not_become_shorter(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(parse(arguments(text, out)), Reporter())
    again = ["--out", str(out), "--resume", "--epochs"]
    message = "--epochs 2, which ends at step 40: expected no fewer steps than .* which is 60"
    with pytest.raises(UserError, match=message):
        train(parse([*again, "2"]), Reporter())
    assert train(parse([*again, "3"]), Reporter()) == 0


def test_finished_run_tells_its_result_and_longer_one_continues(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(parse(arguments(text, out)), Reporter())
    steps = load_checkpoint(out / "last").counters["step"]
    last_line = capsys.readouterr().out.splitlines()[-1]
    before = outcome(out)
    train(parse(["--out", str(out), "--resume"]), Reporter())
    printed = capsys.readouterr().out
    assert "finished" in printed and printed.splitlines()[-1] == last_line
    assert outcome(out) == before
    train(parse(["--out", str(out), "--resume", "--epochs", "4"]), Reporter())
    assert load_checkpoint(out / "last").counters["step"] == steps // 3 * 4
