"""Files beside a run's checkpoint that are gone, or are another run's."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("tyro")

from fastrnn.generate import main as generate  # noqa: E402
from fastrnn.lm.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from fastrnn.train import main  # noqa: E402
from tests.test_run_folder import contents, lines_of, refused, small, text  # noqa: E402, F401

pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")


@pytest.fixture
def out(text: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A run of two steps, whose best is of the second."""
    assert main(small(text, tmp_path / "run", "--max-steps 2 --log-interval 1")) == 0
    return tmp_path / "run"


def go_on(out: Path) -> int:
    return main(["--out", str(out), "--resume", "--max-steps", "4"])


def test_metrics_that_are_gone_are_told(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "metrics.jsonl").unlink()
    assert go_on(out) == 0
    told = "metrics.jsonl: expected 3 lines, got 0: the curves lack the others\n"
    assert told in capsys.readouterr().out
    assert {line["step"] for line in lines_of(out)} == {3, 4}
    (out / "result.json").unlink()
    assert go_on(out) == 0
    assert "the curves lack" not in capsys.readouterr().out


def test_a_best_model_that_is_gone_is_told_and_replaced(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The lost one's loss is out of reach: it has to be forgotten.
    last = load_checkpoint(out / "last")
    last.counters["best_loss"] = 0.001
    save_checkpoint(out / "last", last)
    for name in ("best", "best.old"):
        shutil.rmtree(out / name, ignore_errors=True)
    assert generate(["--run", str(out), "--length", "1"]) == 0
    assert capsys.readouterr().err == f"{out}/best: missing; using {out}/last, of step 2\n"
    assert go_on(out) == 0
    assert f"{out}/best: missing, expected the model of step 2" in capsys.readouterr().out
    assert load_checkpoint(out / "best").counters["step"] == 4


def test_a_best_model_that_is_damaged_is_told_before_training(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in out.glob("best*/model.safetensors"):
        path.write_bytes(b"")
    before = contents(out)
    said = refused(capsys, ["--out", str(out), "--resume", "--max-steps", "4"])
    assert "best/model.safetensors: the checkpoint is truncated or damaged" in said
    assert contents(out) == before


def test_a_dictionary_that_is_gone_is_written_again(out: Path) -> None:
    path = out / "vocabulary.json"
    before = path.read_bytes()
    path.unlink()
    assert go_on(out) == 0
    assert path.read_bytes() == before


def test_another_dictionary_is_refused(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "vocabulary.json"
    first, second, *rest = json.loads(path.read_bytes())
    path.write_text(json.dumps([second, first, *rest]))
    capsys.readouterr()
    assert generate(["--run", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"{path}: expected the dictionary that {out}/best was made with" in said
    assert said.count("\n") == 1
    assert go_on(out) == 0  # which has the text to make it of
    assert generate(["--run", str(out), "--length", "1"]) == 0


def test_edited_options_are_refused(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "config.toml"
    config = path.read_text()
    path.write_text(config.replace('"gru"', '"gru-reset-before"'))  # whose weights are as large
    capsys.readouterr()
    assert generate(["--run", str(out)]) == 2
    told = f"{path}: the run was made with other options: cell 'gru' -> 'gru-reset-before'\n"
    assert capsys.readouterr().err == f"fastrnn.generate: {told}"
    path.write_text("".join(line for line in config.splitlines(True) if "zoneout" not in line))
    assert generate(["--run", str(out), "--length", "1"]) == 0  # as of a version before


def test_a_checkpoint_of_another_dictionary_is_refused(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = load_checkpoint(out / "last")
    last.counters["vocabulary"] = "0"
    save_checkpoint(out / "last", last)
    before = contents(out)
    said = refused(capsys, ["--out", str(out), "--resume", "--max-steps", "4"])
    assert "was made with another dictionary than is made of --data" in said
    assert contents(out) == before
    last.counters.pop("vocabulary")  # as those of before
    save_checkpoint(out / "last", last)
    assert go_on(out) == 0
