"""Whole runs in the ways that the options offer: precision, sentences, documents, levels."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro")

from fastrnn.lm.checkpoint import load_checkpoint  # noqa: E402
from fastrnn.lm.evaluate import evaluate  # noqa: E402
from fastrnn.lm.model import LanguageModel  # noqa: E402
from fastrnn.train import main  # noqa: E402
from tests.test_data import dataset  # noqa: E402
from tests.test_training_options import options_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("= one =\na b a c a d\nb b\n\nthe fox\n" * 150)
    return path


def run(text: Path, out: Path, more: str) -> list[dict[str, Any]]:
    given = f"--data {text} --out {out} --hidden-size 16 --batch-size 8 --bptt 10"
    given += "" if "--lr" in more else " --lr 0.02"
    assert main([*given.split(), *more.split()]) == 0
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ("--sentences --cell lstm", 2.0),
        ("--sentences --cell rnn-tanh --accumulate 2 --num-layers 2 --residual", 2.2),
        ("--documents ^= --cell lstm --zoneout 0.1", 2.4),
        ("--level char --charset letters", 2.2),
        ("--level bpe --bpe-size 280", 15.0),
        ("--cell gru-reset-before --variational --dropout-words 0.1 --dropout-weights 0.2", 1.9),
        ("--cell lstm --layer-norm --num-layers 2 --ar 1 --tar 1 --random-bptt --epochs 6", 2.4),
        ("--precision bfloat16 --cell lstm --num-layers 2", 2.6),
    ],
)
def test_it_learns(text: Path, tmp_path: Path, options: str, limit: float) -> None:
    if "bpe" in options:
        pytest.importorskip("tokenizers")
    options += "" if "--epochs" in options else " --epochs 4"
    metrics = run(text, tmp_path / "run", options)
    assert metrics[-1]["split"] == "test" and metrics[-1]["ppl"] < limit


@pytest.mark.parametrize(
    "options",
    [
        "--sentences --accumulate 2",
        "--optimizer sgd --no-tied --lr 1",
        "--documents ^= --dropout-words 0.1 --variational",
        "--optimizer nt-asgd --patience 1 --lr 30 --cell lstm --random-bptt --batch-size 32",
    ],
)
def test_it_can_be_continued_to_the_same_bits(text: Path, tmp_path: Path, options: str) -> None:
    steps = 100
    run(text, tmp_path / "a", f"{options} --epochs 20 --max-steps {steps} --schedule constant")
    run(text, tmp_path / "b", f"{options} --epochs 20 --max-steps 68 --schedule constant")
    assert main(["--out", str(tmp_path / "b"), "--resume", "--max-steps", str(steps)]) == 0
    one, other = (load_checkpoint(tmp_path / name / "last") for name in "ab")
    assert all(one.weights[name].equal(weight) for name, weight in other.weights.items())
    assert all(one.state[name].equal(state) for name, state in other.state.items())
    assert one.counters["averaged"] == other.counters["averaged"]
    assert one.counters["averaged"] > 0 or "asgd" not in options


@pytest.mark.slow
def test_compiled_steps_are_the_same_to_rounding(text: Path, tmp_path: Path) -> None:
    losses = []
    for name, more in (("a", ""), ("b", "--compile")):
        options = f"--cell lstm --dropout 0 --max-steps 15 --log-interval 1 {more}"
        metrics = run(text, tmp_path / name, options)
        losses.append([m["loss"] for m in metrics])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_five_layers_are_better_than_one(tmp_path: Path) -> None:
    losses = []
    for layers in (1, 5):
        out = tmp_path / str(layers)
        more = f"--hidden-size 32 --num-layers {layers} --residual --epochs 2 --out {out}"
        data = ["--data", str(dataset("time_machine.txt"))]
        assert main(["--preset", "time-machine-gru128", *data, *more.split()]) == 0
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append(metrics[-1]["loss"])
    assert losses[1] < losses[0] - 0.1


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    model = LanguageModel(50, options_of(cell="lstm", num_layers=2, hidden_size=32, dropout=0.0))
    tokens = torch.randint(50, (21, 4))
    given = (tokens[:-1], tokens[1:], None, None, None, 0.0, 0.0)
    exact = model.objective(*given)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.objective(*given)[0]
    rough.backward()
    assert rough.item() != exact.item() and rough.item() == pytest.approx(exact.item(), rel=1e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@torch.no_grad()
def test_evaluation_of_sentences_and_documents_starts_afresh() -> None:
    torch.manual_seed(0)
    model = LanguageModel(7, options_of(cell="lstm", hidden_size=5, dropout=0.0))
    eos, document = 0, 6
    lines = [[1, 2, eos], [3, eos], [4, 5, 1, 2, eos]]
    total = 0.0
    for line in lines:
        inputs = torch.tensor([[eos, *line[:-1]]]).T
        total += float(model.loss(inputs, torch.tensor([line]).T, None, "sum")[0])
    text = torch.tensor([t for line in lines for t in line], dtype=torch.int32)
    loss, _ = evaluate(model.train(), text, eos, 2, sentences=True)
    assert loss == pytest.approx(total / 10, rel=1e-5)

    total = 0.0
    for line in lines:
        inputs = torch.tensor([[document, *line[:-1]]]).T
        total += float(model.loss(inputs, torch.tensor([line]).T, None, "sum")[0])
    text = torch.tensor([t for line in lines for t in (document, *line)], dtype=torch.int32)
    loss, _ = evaluate(model, text, eos, 4, document, columns=1)
    assert loss == pytest.approx(total / 10, rel=1e-5)
