"""Measuring trained models: dynamic evaluation, time-steps, the program, its errors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastrnn import train
from fastrnn.evaluate import main
from fastrnn.lm import measuring, memory
from fastrnn.lm.config import ModelOptions
from fastrnn.lm.dynamic import Adaptation, decay_shares, evaluate_dynamically, gradient_roots
from fastrnn.lm.evaluate import evaluate
from fastrnn.lm.fragments import run_card
from fastrnn.lm.measuring import count_characters, count_letters
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.reporting import short_names
from fastrnn.lm.run import Run
from fastrnn.lm.saved import open_run, read_text_of
from fastrnn.lm.summary import read_summary
from fastrnn.lm.time_steps import gradient_norm_per_step, loss_per_step
from fastrnn.lm.tokens import Vocabulary, tokenize

CELLS = ["rnn-tanh", "lstm", "gru"]


def make_model(cell: str, layers: int = 2, scale: float = 1.0) -> LanguageModel:
    torch.manual_seed(1)
    options = ModelOptions(cell, emb_size=7, hidden_size=9, num_layers=layers, tied=False)  # type: ignore[arg-type]
    model = LanguageModel(11, options)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model.eval()


def text(count: int) -> torch.Tensor:
    return torch.randint(11, (count,), generator=torch.Generator().manual_seed(2))


# ---- time-steps


@pytest.mark.parametrize("cell", CELLS)
def test_loss_at_each_step_is_that_of_torch(cell: str) -> None:
    model, tokens = make_model(cell, scale=3), text(4 * 31)
    rnn = {"lstm": nn.LSTM, "gru": nn.GRU}.get(cell, nn.RNN)(7, 9, 2)
    layers = [layer.named_parameters() for layer in model.rnn.layers]
    rnn.load_state_dict(
        {name.replace("l0", f"l{k}"): p for k, each in enumerate(layers) for name, p in each}
    )
    assert model.encoder is not None
    columns = tokens.view(4, 31).t()
    with torch.no_grad():
        output, _ = rnn(model.encoder(columns))
        scores = model.decoder(output)[:30]
    losses = F.cross_entropy(scores.flatten(0, 1), columns[1:].flatten(), reduction="none")
    found = loss_per_step(model, tokens, 4, 6)
    assert found == pytest.approx(losses.view(5, 6, 4).mean((0, 2)).tolist(), rel=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_torch_cells(cell: str) -> None:
    model, tokens = make_model(cell, layers=3, scale=2), text(4 * 13)
    kind = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}.get(cell, nn.RNNCell)
    cells = []
    for k, width in enumerate((7, 9, 9)):
        cells.append(kind(width, 9))
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        values = {name: getattr(model.rnn.layers[k], f"{name}_l0").detach() for name in names}
        cells[-1].load_state_dict(values)
    columns, states, expected = tokens.view(4, 13).t(), [None] * 3, []
    assert model.encoder is not None
    for start in (0, 6):  # the state is carried from window to window, gradients are not
        hidden = []
        for row in columns[start : start + 6]:
            x = model.encoder(row).detach()
            hidden.append([])
            for k, each in enumerate(cells):
                states[k] = each(x, states[k])
                x = states[k][0] if cell == "lstm" else states[k]
                x.retain_grad()
                hidden[-1].append(x)
        F.cross_entropy(model.decoder(x), columns[start + 6]).backward()
        # d loss / d h of each text is its share of the mean, so the sum is the average.
        means = [torch.cat([h.grad.sum(0) for h in layers]) for layers in hidden]
        expected.append(torch.stack([m.norm() for m in means]))
        states = [tuple(t.detach() for t in s) if cell == "lstm" else s.detach() for s in states]
    mean = torch.stack(expected).mean(0)
    found = gradient_norm_per_step(model, tokens, 4, 6)
    assert found == pytest.approx((mean / mean.max()).tolist(), rel=1e-4)
    # The layers run as before afterwards.
    assert not any("forward" in vars(layer) for layer in model.rnn.layers)


def test_a_model_without_recurrent_layers_has_no_gradients_to_show() -> None:
    class Forgetful(nn.Module):
        def forward(self, x: torch.Tensor, *_: object) -> tuple[torch.Tensor, tuple[()]]:
            return F.pad(x, (0, 2)), ()

    model = make_model("gru")
    model.rnn = Forgetful()  # type: ignore[assignment]
    assert gradient_norm_per_step(model, text(40), 4, 6) == []
    assert len(loss_per_step(model, text(40), 4, 6)) == 6


def test_a_text_shorter_than_a_window() -> None:
    model = make_model("gru")
    assert len(loss_per_step(model, text(8), 20, 35)) == 1
    assert gradient_norm_per_step(model, text(9), 2, 35) == pytest.approx(
        gradient_norm_per_step(model, text(9), 2, 3)
    )


# ---- dynamic evaluation


def test_every_measure_gives_free_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """21 GB of a heap's holes were seen after a train split's windows; 0.6 GB otherwise."""
    model, tokens = make_model("gru"), text(400)
    adaptation = Adaptation("sgd", 0.1, 0.0, window=5)
    for measured in (
        lambda: evaluate(model, tokens, 0, 20),
        lambda: loss_per_step(model, tokens, 4, 6),
        lambda: evaluate_dynamically(model, tokens, 0, tokens, adaptation),
        lambda: gradient_roots(model, text(5000), 4),
    ):
        calls: list[None] = []
        monkeypatch.setattr(memory, "trim_free_memory", lambda calls=calls: calls.append(None))
        measured()
        assert calls


@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_dynamic_evaluation_follows_the_equations(rule: str) -> None:
    model, tokens, training = make_model("lstm"), text(23), text(300).flip(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adaptation = Adaptation(rule, 0.05, 0.03, 4, 1e-4)  # type: ignore[arg-type]
    found = evaluate_dynamically(model, tokens, 0, training, adaptation)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])

    parameters, stream = list(model.parameters()), torch.cat((torch.zeros(1).long(), tokens))
    trained = [p.detach().clone() for p in parameters]
    roots = gradient_roots(model, training, 4)
    mean = sum(float(root.mean()) for root in roots) / len(roots)
    total, state = 0.0, None
    for start in range(0, 23, 4):
        end = min(start + 4, 23)
        logits, state = model(stream[start:end].unsqueeze(1), state)
        state = tuple(s.detach() for s in state)
        loss = F.cross_entropy(logits, stream[start + 1 : end + 1])
        total += float(loss.detach()) * (end - start)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, root, home in zip(parameters, gradients, roots, trained, strict=True):
                if rule == "sgd":
                    p += 0.03 * (home - p) - 0.05 * g
                else:
                    share = (0.03 * root / mean).clamp(max=1)
                    p += share * (home - p) - 0.05 * g / (root + 1e-4)
    assert found == pytest.approx(total / 23, rel=1e-5)


def test_gradient_roots_are_means_over_windows() -> None:
    model, training = make_model("gru", layers=1), text(100 * 9)
    columns = training.view(100, 9).t()
    squares, state = 0.0, None
    for start, end in ((0, 3), (3, 6), (6, 8)):
        logits, state = model(columns[start:end], state)
        loss = F.cross_entropy(logits, columns[start + 1 : end + 1].flatten())
        squares = squares + torch.autograd.grad(loss, model.decoder.weight)[0].square()
        state = tuple(s.detach() for s in state)
    names = [name for name, _ in model.named_parameters()]
    found = gradient_roots(model, training, 3)[names.index("decoder.weight")]
    torch.testing.assert_close(found, (squares / 3).sqrt(), rtol=1e-4, atol=1e-7)


def test_weights_are_never_pulled_beyond_home() -> None:
    shares = decay_shares([torch.tensor([0.0, 1.0]), torch.tensor([200.0])], 0.8)
    assert [s.tolist() for s in shares] == [[0, pytest.approx(0.8 / 100.25)], [1]]


@pytest.mark.parametrize(("rule", "rate"), [("sgd", 0.5), ("rms", 2e-4)])
def test_a_text_of_its_own_kind_is_learned_on_the_way(rule: str, rate: float) -> None:
    model, tokens = make_model("gru"), torch.tensor([3, 1, 4, 1, 5]).repeat(60)
    static, _ = evaluate(model, tokens, 0, 100)
    adaptation = Adaptation(rule, rate, 0.0, 5)  # type: ignore[arg-type]
    assert evaluate_dynamically(model, tokens, 0, text(5000), adaptation) < 0.9 * static


def test_characters_are_counted_as_they_stand_in_the_text() -> None:
    written = "ab c\n\nd efg\n"
    assert count_letters([written, " h  i\n"]) == len(written) + len("h i\n")
    characters = tokenize(written, "char")
    vocabulary = Vocabulary.of(characters, 1)
    assert count_characters(vocabulary.encode(characters), vocabulary, "char") == len(written)


# ---- the program


def one_column_loss(folder: Path) -> float:
    """The validation loss of a run, its text read at once."""
    run = open_run(folder)
    tokens = read_text_of(run).valid.long()
    given = torch.cat((torch.tensor([run.vocabulary.eos]), tokens[:-1]))
    with torch.no_grad():
        scores, _ = run.model(given.unsqueeze(1))
    return F.cross_entropy(scores, tokens).item()


def test_runs_are_measured_together(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(runs / "words"), str(runs / "characters")]
    out = tmp_path / "measured"
    given = ["--split", "valid", "--dynamic", "--rule", "sgd", "--out", str(out)]
    assert main(["--run", *names, *given]) == 0
    printed = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {
        "evaluation.json",
        *(f"{n}-per-step.{end}" for n in ("loss", "gradient") for end in ("png", "svg")),
    }
    content = json.loads((out / "evaluation.json").read_text())
    assert content["split"] == "valid" and [r["run"] for r in content["runs"]] == names
    for name, found in zip(("words", "characters"), content["runs"], strict=True):
        lines = (runs / name / "metrics.jsonl").read_text().splitlines()
        best = min(m["loss"] for m in map(json.loads, lines) if m["split"] == "valid")
        assert found["loss"] == pytest.approx(best, rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(best), rel=1e-5)
        bits = best / math.log(2) * found["tokens"] / found["characters"]
        assert found["bits_per_character"] == pytest.approx(bits, rel=1e-5)
        assert f"perplexity {math.exp(best):.2f}, {bits:.3f} bits per character" in printed
        static = found["one_column"]
        assert static["loss"] == pytest.approx(one_column_loss(runs / name), rel=1e-5)
        assert static["loss"] != found["loss"]  # whose ten columns begin without a past
        assert f"reads: perplexity {static['perplexity']:.2f}, " in printed
        assert found["dynamic"]["rule"] == "sgd" and 0 < found["dynamic"]["loss"] < 2 * best
        assert len(found["loss_per_step"]) == len(found["gradient_norm_per_step"]) == 10
        assert max(found["gradient_norm_per_step"]) == 1
    # 20 lines of 12 characters: words count their spaces and line ends.
    assert [r["characters"] for r in content["runs"]] == [240, 240]
    assert [r["tokens"] for r in content["runs"]] == [140, 240]


def test_each_run_has_its_own_figures_beside_it(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Runs of one name, as those of two sweeps are.
    first, second = (tmp_path / place / "run" for place in ("a", "b"))
    shutil.copytree(runs / "words", first)
    shutil.copytree(runs / "characters", second)
    given = ["--split", "valid", "--dynamic", "--rule", "sgd"]
    assert main(["--run", str(first), str(second), *given]) == 0
    found = {}
    for run in (first, second):
        found[run] = read_summary(run).evaluations["valid"]
        assert found[run]["run"] == str(run)
        (name,) = short_names([run])
        dynamic = f"valid, dynamic {found[run]['dynamic']['perplexity']:.2f}"
        assert dynamic in run_card(read_summary(run), name)
    assert found[first]["perplexity"] != found[second]["perplexity"]
    both = json.loads((first / "evaluation-valid" / "evaluation.json").read_text())["runs"]
    assert both == [found[first], found[second]]

    monkeypatch.chdir(second)
    assert main(["--run", ".", "--split", "valid"]) == 0
    again = read_summary(second).evaluations["valid"]
    assert again["perplexity"] == found[second]["perplexity"] and "dynamic" not in again

    # A folder that cannot be written, of a run beside the first, is told and no more.
    shutil.rmtree(second / "evaluation-valid")
    (second / "evaluation-valid").touch()
    capsys.readouterr()
    assert main(["--run", str(first), str(second), "--split", "valid"]) == 0
    assert f"{second}/evaluation-valid/evaluation.json: cannot be" in capsys.readouterr().out
    assert len(json.loads((first / "evaluation-valid/evaluation.json").read_text())["runs"]) == 2


def test_a_model_without_gradients_is_measured(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Far beyond saturation; and its perplexity is not finite.
    out = tmp_path / "run"
    given = f"--data {runs / 'text.txt'} --out {out} --hidden-size 8 --batch-size 8 --bptt 10"
    spoilt = "--epochs 2 --optimizer sgd --lr 1e5 --clip 0 --explosion 0 --dropout 0"
    assert train.main([*given.split(), *spoilt.split()]) == 0
    capsys.readouterr()
    assert main(["--run", str(out)]) == 0
    assert "perplexity not finite" in capsys.readouterr().out
    text = (out / "evaluation-test" / "evaluation.json").read_text()
    assert "NaN" not in text and "Infinity" not in text


def test_words_out_of_the_dictionary_have_the_letters_of_the_text(tmp_path: Path) -> None:
    path, out = tmp_path / "text.txt", tmp_path / "run"
    path.write_text("a b a\n" * 190 + "a unheard-of\n" * 10)
    given = f"--data {path} --out {out} --hidden-size 4 --batch-size 2 --bptt 4 --max-steps 2"
    assert train.main(given.split()) == 0
    assert main(["--run", str(out)]) == 0
    content = json.loads((out / "evaluation-test" / "evaluation.json").read_text())
    assert content["runs"][0]["characters"] == 10 * len("a unheard-of\n")


def test_results_go_beside_the_run(runs: Path) -> None:
    assert main(["--run", str(runs / "words")]) == 0
    found = json.loads((runs / "words" / "evaluation-test" / "evaluation.json").read_text())
    assert found["split"] == "test" and "dynamic" not in found["runs"][0]


def test_pictures_of_an_evaluation_before_do_not_stay(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--run", str(runs / "words"), "--out", str(tmp_path)]
    assert main(given) == 0
    (tmp_path / "notes").touch()
    monkeypatch.setattr(measuring, "gradient_norm_per_step", lambda *_: [])
    assert main(given) == 0
    made = ["evaluation.json", "loss-per-step.png", "loss-per-step.svg"]
    assert capsys.readouterr().out.splitlines()[-1] == f"in {tmp_path}: {', '.join(made)}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [*made, "notes"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--split dev", "'dev'"),
        ("--rule adam", "'adam'"),
        ("--rate 0", "--rate must be above 0 and finite in float32, got 0.0"),
        ("--rate 1e39", "--rate must be above 0 and finite in float32, got 1e+39"),
        ("--decay 2", "--decay must be in [0, 1], got 2.0"),
        ("--rule sgd", "--rule does nothing without --dynamic"),
        ("--window 6", "--window does nothing without --dynamic"),
        ("--window 0", "--window must be at least 1, got 0"),
        ("--dinamic", "unknown option '--dinamic', did you mean '--dynamic'?"),
        ("--run nowhere", "--run nowhere: no such folder"),
        (f"--out {__file__}", f"--out '{__file__}': expected a folder, but {__file__} is a file"),
        (f"--out {__file__}/x", f"expected a folder, but {__file__} is a file"),
        ("--run", "--run needs the folder of a run"),
    ],
)
def test_mistakes(
    runs: Path, capsys: pytest.CaptureFixture[str], given: str, expected: str
) -> None:
    run = [] if given.startswith("--run") else ["--run", str(runs / "words")]
    assert main([*run, *given.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith("fastrnn.evaluate: ") and expected in told and told.count("\n") == 1


def test_a_mistake_in_the_last_run_is_told_before_the_first_is_measured(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(runs / "words"), "nowhere"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "--run nowhere: no such folder" in printed.err


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_text_of_the_same_words_that_changed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name in ("train", "valid", "test"):
        (data / f"{name}.txt").write_text("a b a c a d\n" * 100)
    given = f"--data {data} --out {out} --hidden-size 6 --batch-size 4 --bptt 10 --max-steps 2"
    assert train.main(given.split()) == 0
    assert main(["--run", str(out)]) == 0
    path = data / f"{split}.txt"
    path.write_text(path.read_text() + "a a\n")
    capsys.readouterr()
    # Of whichever split: dynamic evaluation reads the training text, too.
    assert main(["--run", str(out), "--split", "test"]) == 2
    said = capsys.readouterr().err
    expected = f"--data {data} holds another text now than the run was trained on"
    where = f"`data` in {out}/config.toml says where it is, and may be changed"
    assert said == f"fastrnn.evaluate: --run {out}: {expected}; {where}\n"
    path.unlink()
    assert main(["--run", str(out), "--split", "test"]) == 2
    assert f"missing: {split}.txt" in capsys.readouterr().err


def test_a_run_that_is_being_written_is_measured(runs: Path) -> None:
    with Run(runs / "words") as run:
        run.claim()
        assert main(["--run", str(run.folder)]) == 0


def test_a_text_that_changed_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "copy"
    copied.mkdir()
    other = tmp_path / "other.txt"
    other.write_text("a b a c a e\n" * 400)
    config = (runs / "words" / "config.toml").read_text()
    (copied / "config.toml").write_text(config.replace(str(runs / "text.txt"), str(other)))
    for name in ("best", "vocabulary.json"):
        (copied / name).symlink_to(runs / "words" / name)
    assert main(["--run", str(copied)]) == 2
    assert "holds another text now than the run was trained on" in capsys.readouterr().err
