"""Where a training step's time goes: what is timed, the program, its errors."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import pytest
import torch

from fastrnn.lm import batches, loop, profiling
from fastrnn.lm.command_line import parse
from fastrnn.lm.data import load_corpus
from fastrnn.lm.model import LanguageModel, build_model
from fastrnn.lm.profiling import PHASES, WARMUP, Stopwatch
from fastrnn.profile import main


@pytest.fixture
def given(runs: Path, tmp_path: Path) -> list[str]:
    options = f"--data {runs / 'text.txt'} --hidden-size 16 --batch-size 8 --bptt 10"
    return [*options.split(), "--out", str(tmp_path / "profile")]


def test_each_part_is_timed_by_itself(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only what belongs to a phase moves on."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def spend(seconds: float) -> None:
        clock[0] += seconds

    class Slow(LanguageModel):
        def objective(self, *args: object) -> object:
            spend(2.0)
            found = super().objective(*args)  # type: ignore[arg-type]
            spend(8.0)
            found[0].register_hook(lambda _: spend(16.0))
            return found

    config = parse([*given, "--clip", "0", "--epochs", "9"])
    corpus = load_corpus(config.corpus, 8, 10)
    model = build_model(len(corpus.vocabulary), config.model, 80, torch.device("cpu"))
    model.__class__ = Slow
    model.rnn.register_forward_hook(lambda *_: spend(4.0))
    # An epoch is one window: a validation lies between any two steps.
    corpus = dataclasses.replace(corpus, train=corpus.train[:88])
    monkeypatch.setattr(loop, "evaluate", lambda *_: (spend(32.0), (1.0, 1.0))[1])
    with Stopwatch(model, 3, 0) as watch:
        profiling._train(config, corpus, model, watch)
    assert len(watch.steps) == WARMUP + 3
    found = watch.medians()
    assert found == {
        **dict.fromkeys(PHASES, 0.0),
        **{"embedding": 2.0, "recurrence": 4.0, "output + loss": 8.0, "backward": 16.0},
    }
    assert "objective" not in vars(model)  # as it was


def test_the_steps_are_those_of_the_trainer(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has learned afterwards, which a mock-up of a step would not make sure of."""
    made = []
    build = profiling.build_model

    def keep(*args: object) -> LanguageModel:
        made.append(build(*args))  # type: ignore[arg-type]
        return made[0]

    monkeypatch.setattr(profiling, "build_model", keep)
    assert main([*given, "--steps", "60", "--lr", "0.03"]) == 0
    model = made[0].eval()
    config = parse(given)
    corpus = load_corpus(config.corpus, 8, 10)
    with torch.no_grad():
        rows = corpus.test.long().unsqueeze(1)
        loss, _ = model.loss(rows[:-1], rows[1:], None)
    assert float(loss) < 0.5  # from log 6 = 1.79


def test_table_json_and_pictures(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*given, "--steps", "4", "--trace", "--cell", "lstm"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("lstm 1 x 16, 8 x 10 tokens a step, 6 in the dictionary, on cpu,")
    out = tmp_path / "profile"
    assert {p.name for p in out.iterdir()} == {
        *("profile.json", "profile.png", "profile.svg", "trace.json")
    }
    content = json.loads((out / "profile.json").read_text())
    assert content["steps"] == 4 and content["tokens_per_step"] == 80
    assert list(content["seconds"]) == list(PHASES)
    assert all(value > 0 for value in content["seconds"].values())
    total = sum(content["seconds"].values())
    for line, (phase, value) in zip(printed[1:], content["seconds"].items(), strict=False):
        assert line.split("%")[0].rstrip().endswith(f"{100 * value / total:.1f}")
        assert line.strip().startswith(phase)
    assert f"{80 / total:,.0f} tokens/s" in printed[8]
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    steps = [e for e in events if str(e.get("name")).startswith("Optimizer.step")]
    assert len(steps) == profiling.TRACED


@pytest.mark.parametrize("way", ["--sentences", "--random-bptt"])
def test_no_more_epochs_are_drawn_than_are_read(
    given: list[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    drawn, plain = [], batches.generator_of

    def draw(seed: int, epoch: int) -> torch.Generator:
        drawn.append(epoch)
        return plain(seed, epoch)

    monkeypatch.setattr(batches, "generator_of", draw)
    assert main([*given, "--steps", "3", way]) == 0
    assert 1 <= len(drawn) <= 3


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
    given: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(profiling, "_train", lambda *_: pytest.fail("measured"))
    (tmp_path / "profile").touch()
    assert main(given) == 2
    assert capsys.readouterr().err == f"fastrnn.profile: {tmp_path / 'profile'}: File exists\n"

    def refuse(*_: object, dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert main([*given, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"fastrnn.profile: {tmp_path}: Permission denied\n"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("--steps 0", "--steps must be from 1 to 1000000, got 0"),
        ("--stepps 3", "unknown option '--stepps', did you mean '--steps'?"),
        ("--compile", "--compile, --cuda-graphs: such a step has no parts that could be timed"),
        ("--hidden-size 0", "--hidden-size must be at least 1, got 0"),
        ("--data nowhere", "--data nowhere: no such folder or file"),
        ("--device teapot", "--device teapot: cannot be used"),
    ],
)
def test_mistakes(
    given: list[str], capsys: pytest.CaptureFixture[str], more: str, expected: str
) -> None:
    assert main([*given, *more.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith("fastrnn.profile: ") and expected in told and told.count("\n") == 1
