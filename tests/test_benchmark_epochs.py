"""The benchmark of whole epochs, on a text of some lines."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tyro")

from benchmarks import epochs  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def options(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("a b a c a d\nb c a\n" * 200)
    return f"--data {path} --hidden-size 8 --emb-size 6 --bptt 9 --batch-size 4"


@pytest.mark.parametrize("preset", ["s3-lstm", "s3-gru"])
def test_both_programs_make_the_same_steps(options: str, tmp_path: Path, preset: str) -> None:
    epoch = epochs.Epoch(["--preset", preset, *options.split()], tmp_path / "run")
    epoch.check()
    epoch.ours()()
    with pytest.raises(AssertionError):
        epoch.check()  # no longer at the same window


def test_an_epochs_seconds_are_told_and_kept(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    given = ["s3-lstm-dropout", "--steps", "4", "--options", options, "--out", str(out)]
    assert epochs.main(given) == 0
    row = json.loads(out.read_text())
    assert row["preset"] == "s3-lstm-dropout" and row["batches"] == 55
    assert row["ours"]["p50"] > 0 and row["torch.nn"]["p50"] > 0 and row["ratio"] > 0
    assert "s an epoch [" in capsys.readouterr().out
    assert epochs.main(["s3-lstn"]) == 2
    assert "did you mean 's3-lstm'?" in capsys.readouterr().err
