"""Runs used from another folder than they were made in, their texts moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrnn.evaluate import main
from fastrnn.train import main as train


def test_a_text_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (("text.txt", "a b a\n"), ("other.txt", "b a\n")):
        (tmp_path / name).write_text(words * 200)
    given = "--data text.txt --out run --hidden-size 4 --batch-size 2 --bptt 4 --max-steps"
    assert train([*given.split(), "2"]) == 0
    config = (tmp_path / "run" / "config.toml").read_text()
    assert f'data = "{tmp_path / "text.txt"}"\n' in config
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert main(["--run", "../run"]) == 0
    assert train(["--out", "../run", "--resume", "--max-steps", "3"]) == 0

    (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    capsys.readouterr()
    assert main(["--run", "../run"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"fastrnn.evaluate: --data {tmp_path / 'text.txt'}: no such folder")
    assert told.endswith("; `data` in ../run/config.toml says where it is, and may be changed\n")
    resume = "--out ../run --resume --max-steps 4 --data"
    assert train([*resume.split(), "../moved.txt"]) == 0
    assert main(["--run", "../run"]) == 0
    # Not even of a run that has finished is the result that of another text.
    assert train([*resume.split(), "../other.txt"]) == 2
    assert "the checkpoint was made from another text than --data" in capsys.readouterr().err
