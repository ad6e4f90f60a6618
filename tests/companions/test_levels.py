"""The programs on runs whose text was cut in other ways: byte pairs, letters, documents, lines."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrnn.evaluate import main as evaluate
from fastrnn.generate import main as generate
from fastrnn.lm.dynamic import Adaptation, evaluate_dynamically
from fastrnn.lm.generate import Sampling, pieces, stream
from fastrnn.lm.measuring import count_characters
from fastrnn.lm.saved import open_run, read_text_of
from fastrnn.lm.time_steps import gradient_norm_per_step, loss_per_step
from fastrnn.lm.tokens import DOCUMENT, Vocabulary
from fastrnn.train import main as train

TEXT = "= Title =\n" + "Der Bär saß, süß.\n" * 4


def make(folder: Path, options: str) -> Path:
    """A short run of a GRU on `TEXT`, many times over."""
    (folder / "text.txt").write_text(TEXT * 60)
    out = folder / "run"
    given = f"--data {folder / 'text.txt'} --hidden-size 8 --batch-size 4 --bptt 10 --epochs 1"
    assert train([*given.split(), "--out", str(out), *options.split()]) == 0
    return out


def written(run: Path, capsys: pytest.CaptureFixture[str], prompt: str, *more: str) -> str:
    capsys.readouterr()
    assert generate(["--run", str(run), "--prompt", prompt, "--length", "12", *more]) == 0
    return capsys.readouterr().out


def measured(run: Path, *more: str) -> dict[str, Any]:
    assert evaluate(["--run", str(run), *more]) == 0
    content = json.loads((run / "evaluation-test" / "evaluation.json").read_text())
    found: dict[str, Any] = content["runs"][0]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert found["loss"] == pytest.approx(lines[-1]["loss"], rel=1e-5)
    bits = found["loss"] * found["tokens"] / math.log(2)
    assert found["bits_per_character"] == pytest.approx(bits / found["characters"])
    return found


def test_byte_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    run = make(tmp_path, "--level bpe --bpe-size 300")
    assert written(run, capsys, "Der Bär ").startswith("Der Bär ")
    found = measured(run, "--dynamic")
    # Characters, not bytes: the test text is the last 15 lines of 300.
    assert found["characters"] == 3 * len(TEXT)
    assert found["tokens"] < found["characters"]
    path = run / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE({"of another": 0}, [])).save(str(path))
    assert generate(["--run", str(run), "--prompt", "x"]) == 2
    assert "tokenizer.json: expected pieces of the run's" in capsys.readouterr().err
    path.write_text("{")
    assert generate(["--run", str(run), "--prompt", "x"]) == 2
    assert "tokenizer.json: damaged" in capsys.readouterr().err


def test_byte_pairs_do_not_depend_on_the_locale(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    ascii_ = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    own = {"FASTRNN_CACHE": str(tmp_path / "cache"), "PYTHONIOENCODING": "utf-8"}

    def run(program: str, *arguments: str) -> str:
        command = [sys.executable, "-m", f"fastrnn.{program}", *arguments]
        done = subprocess.run(command, capture_output=True, env=os.environ | ascii_ | own)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    (tmp_path / "text.txt").write_text(TEXT * 60, encoding="utf-8")
    given = f"--data {tmp_path / 'text.txt'} --level bpe --bpe-size 300 --hidden-size 8"
    out = str(tmp_path / "run")
    run("train", *given.split(), "--batch-size", "4", "--max-steps", "2", "--out", out)
    assert run("generate", "--run", out, "--prompt", "Der ", "--length", "3").startswith("Der ")


def test_pieces_of_characters_wait_for_their_rest() -> None:
    pytest.importorskip("tokenizers")
    # "ä" is two bytes, C3 A4; byte pairs write them as two letters.
    assert list(pieces(["B", "Ã", "¤", "r", "<eos>"], "bpe"))[:4] == ["B", "ä", "r", "\n"]


def test_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path, "--level char --charset letters")
    text = written(run, capsys, "Der  Bar!")
    assert text.startswith("der bar ") and set(text[:-1]) <= set("abcdefghijklmnopqrstuvwxyz ")
    found = measured(run)
    assert found["tokens"] == found["characters"]


def test_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path, "--documents ^=.*=$ --no-tied --emb-size 5")
    assert "<doc>" not in written(run, capsys, "Der Bär", "--temperature", "100")
    found = measured(run, "--dynamic", "--rule", "sgd")
    opened = open_run(str(run))
    document = opened.vocabulary.document
    tokens = read_text_of(opened).test
    assert int((tokens == document).sum()) == 3 and found["tokens"] == tokens.numel() - 3
    assert found["characters"] == 3 * len(TEXT)

    # Nothing before a document matters to it: each is scored as if it stood alone.
    model, before = opened.model, opened.vocabulary.eos
    again = torch.cat((torch.full((7,), before + 1), tokens))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    still = Adaptation("sgd", 1e-30, 0.0, 4)
    alone = evaluate_dynamically(model, tokens, before, tokens, still, document)
    behind = evaluate_dynamically(model, again, before, tokens, still, document)
    first = evaluate_dynamically(model, again[:7], before, tokens, still, document)
    count = found["tokens"]
    assert (alone * count + first * 7) / (count + 7) == pytest.approx(behind, rel=1e-5)

    losses = loss_per_step(model, tokens.repeat(2), 2, 10, document)
    norms = gradient_norm_per_step(model, tokens.repeat(2), 2, 10, document)
    assert len(losses) == len(norms) == 10 and max(norms) == 1
    # `document` is never drawn, however likely.
    with torch.no_grad():
        model.decoder.bias[document] = 100.0
    drawn = stream(model, opened.vocabulary, torch.tensor([before]), 5, 3, Sampling())
    assert not any((tokens == document).any() for tokens in drawn)


def test_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path, "--sentences")
    found = measured(run)
    assert "loss_per_step" not in found
    assert {p.name for p in (run / "evaluation-test").iterdir()} == {"evaluation.json"}
    assert evaluate(["--run", str(run), "--dynamic"]) == 2
    assert "--dynamic needs a run on continuous text" in capsys.readouterr().err


def test_several_kinds_of_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--cell gru-reset-before --num-layers 3 --residual --init course --output-size 6"
    run = make(tmp_path, f"{options} --dropout 0.2 --variational --zoneout 0.1")
    assert written(run, capsys, "Der Bär").startswith("Der Bär")
    assert measured(run, "--dynamic")["dynamic"]["loss"] > 0


def test_characters_of_documents_are_none() -> None:
    vocabulary = Vocabulary([DOCUMENT, "<eos>", "ab", "<unk>"])
    assert count_characters(torch.tensor([0, 2, 2, 1]), vocabulary, "bpe") == 5
