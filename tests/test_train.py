"""The training program: its loop against a hand-written one, its files, its errors."""

import json
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("tyro")

from fastrnn.lm import memory  # noqa: E402
from fastrnn.lm.checkpoint import load_checkpoint  # noqa: E402
from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.complete import complete  # noqa: E402
from fastrnn.lm.config import Config, ModelOptions  # noqa: E402
from fastrnn.lm.data import batchify, load_corpus  # noqa: E402
from fastrnn.lm.errors import UserError  # noqa: E402
from fastrnn.lm.evaluate import evaluate  # noqa: E402
from fastrnn.lm.generate import generate, to_text  # noqa: E402
from fastrnn.lm.loop import Trainer  # noqa: E402
from fastrnn.lm.model import LanguageModel, build_model, count_parameters  # noqa: E402
from fastrnn.lm.program import one_line  # noqa: E402
from fastrnn.lm.report import Reporter, duration  # noqa: E402
from fastrnn.lm.run import Run  # noqa: E402
from fastrnn.lm.settings import to_dict, to_toml  # noqa: E402
from fastrnn.train import main  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
CELLS = ["rnn-tanh", "rnn-relu", "lstm", "gru"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Lines of which a bigram predicts every other word badly, a recurrent network all well."""
    path = tmp_path / "text.txt"
    path.write_text("a b a c a d\n" * 600)
    return path


def small(text: Path, out: Path, *more: str) -> list[str]:
    given = f"--data {text} --out {out} --hidden-size 16 --batch-size 8 --bptt 10 --epochs 1"
    return [*given.split(), *more]


def options_of(**options: Any) -> ModelOptions:
    config = Config(model=ModelOptions(**options))
    complete(config)
    return config.model


# ---- model and loop


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("width", "tied"), [(7, True), (7, False), (5, False), (0, False)])
def test_parameters_are_counted_as_they_are(cell: str, width: int, tied: bool) -> None:
    options = options_of(cell=cell, emb_size=width, hidden_size=7, num_layers=3, tied=tied)
    model = LanguageModel(11, options)
    assert count_parameters(11, options) == sum(p.numel() for p in model.parameters())
    logits, _ = model(torch.zeros(4, 2, dtype=torch.int64))
    assert logits.shape == (8, 11)


def test_recurrent_parameters_match_published_counts() -> None:
    # The Time Machine's models: 28 symbols, one-hot; recurrent weights alone.
    for cell, hidden, expected in (("gru", 8, 912), ("gru", 128, 60_672), ("lstm", 128, 80_896)):
        options = options_of(cell=cell, emb_size=0, hidden_size=hidden, tied=False)
        assert count_parameters(28, options) - 28 * (hidden + 1) == expected


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = LanguageModel(500, options_of(cell="lstm", emb_size=30, hidden_size=40, tied=False))
    assert model.encoder is not None
    for weight in (model.encoder.weight, model.decoder.weight):
        assert 0.099 < float(weight.detach().abs().max()) <= 0.1
        assert abs(float(weight.detach().mean())) < 0.002
    assert not model.decoder.bias.any()


@pytest.mark.parametrize("cell", CELLS)
def test_trainer_makes_the_steps_of_a_plain_torch_loop(
    text: Path, tmp_path: Path, cell: str
) -> None:
    more = (
        f"--cell {cell} --dropout 0 --optimizer sgd --lr 1 --clip 0.25 --max-steps 8 "
        "--no-tied --emb-size 9 --num-layers 2 --log-interval 1"
    )
    config = parse(small(text, tmp_path / "run", *more.split()))
    corpus = load_corpus(config.corpus, 8, 10)
    torch.manual_seed(3)
    model = build_model(len(corpus.vocabulary), config.model, 80, torch.device("cpu"))
    run = Run(tmp_path / "run")
    run.start(config, corpus)

    layer = {"lstm": nn.LSTM, "gru": nn.GRU}.get(cell, nn.RNN)
    nonlinearity = {} if cell in ("lstm", "gru") else {"nonlinearity": cell.removeprefix("rnn-")}
    rnn = layer(9, 16, 2, **nonlinearity)
    state = {
        name.removesuffix("l0") + f"l{k}": weight
        for k, module in enumerate(model.rnn.layers)
        for name, weight in module.state_dict().items()
    }
    rnn.load_state_dict(state)
    encoder, decoder = (
        nn.Embedding(len(corpus.vocabulary), 9),
        nn.Linear(16, len(corpus.vocabulary)),
    )
    assert model.encoder is not None
    encoder.load_state_dict(model.encoder.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    parameters = [*encoder.parameters(), *rnn.parameters(), *decoder.parameters()]
    columns, state, losses = batchify(corpus.train.long(), 8), None, []
    for step in range(8):
        inputs, targets = columns[step * 10 :][:10], columns[step * 10 + 1 :][:10]
        output, state = rnn(encoder(inputs), state)
        state = tuple(s.detach() for s in state) if cell == "lstm" else state.detach()
        loss = nn.functional.cross_entropy(decoder(output).flatten(0, 1), targets.flatten())
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= g * min(1.0, 0.25 / (float(norm) + 1e-6))
        losses.append(float(loss.detach()))

    Trainer(config, corpus, model, run, Reporter()).fit()
    found = [m["loss"] for m in run.metrics if m["split"] == "train"]
    assert found == pytest.approx(losses, rel=2e-5)
    for ours, theirs in zip(model.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=1e-5)


def test_evaluation_counts_every_token_once() -> None:
    torch.manual_seed(0)
    model = LanguageModel(6, options_of(hidden_size=4, tied=False, dropout=0.5))
    with torch.no_grad():  # scores that depend on nothing but the bias
        model.decoder.weight.zero_()
        model.decoder.bias.copy_(torch.arange(6) / 3)
    log_p = model.decoder.bias.detach().log_softmax(0)
    for count in (1, 9, 10, 47):
        tokens = torch.randint(6, (count,))
        loss, _ = evaluate(model, tokens, 0, 20)
        assert loss == pytest.approx(-float(log_p[tokens].mean()), rel=1e-6)


def test_state_is_carried_from_window_to_window() -> None:
    torch.manual_seed(0)
    model = LanguageModel(6, options_of(cell="lstm", hidden_size=4, num_layers=2, dropout=0.0))
    tokens = torch.randint(6, (40,))
    whole, _ = evaluate(model, tokens, 0, 40)
    parts, _ = evaluate(model, tokens, 0, 10)  # 10 columns: one row at a time
    assert parts == pytest.approx(whole, rel=1e-6)


def test_plateau_divides_the_rate_by_four(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # A rate too small to change anything: no epoch after the first is better.
    more = ["--optimizer", "sgd", "--lr", "1e-30", "--epochs", "4", "--dropout", "0"]
    assert main(small(text, out, *more)) == 0
    rates = [m["lr"] for m in read_metrics(out) if m["split"] == "valid"]
    assert rates == pytest.approx([1e-30, 1e-30, 1e-30 / 4, 1e-30 / 16])


def test_cosine_ends_near_zero(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(small(text, out, "--lr", "0.01", "--max-steps", "10", "--log-interval", "1")) == 0
    rates = [m["lr"] for m in read_metrics(out) if m["split"] == "train"]
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * k / 10)) for k in range(10)])


# ---- the program


def read_metrics(out: Path) -> list[dict[str, float | str]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_writes_its_folder(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(small(text, out, "--epochs", "8", "--lr", "0.02", "--log-interval", "20")) == 0
    printed = capsys.readouterr().out.splitlines()
    words = printed[-1].split()
    assert words[:2] == ["test", "perplexity"] and words[3] == "(bigram"
    model, bigram = float(words[2]), float(words[4].rstrip(")"))
    assert 1 <= model < 1.1 < 1.5 < bigram
    assert any(line.startswith("epoch 1  step 20/") and "tokens/s" in line for line in printed)

    assert {p.name for p in out.iterdir()} == {
        *("config.toml", "metrics.jsonl", "vocabulary.json", "result.json", "log.txt", ".lock"),
        *("curves.png", "curves.svg", "last", "last.old", "best", "best.old"),
    }
    for folder in ("last", "best"):
        assert (out / folder / "model.safetensors").is_file()
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert tomllib.loads((out / "config.toml").read_text())["hidden_size"] == 16
    metrics = read_metrics(out)
    for line in metrics:
        keys = {"step", "epoch", "split", "loss", "ppl", "lr", "tokens_per_s", "seconds"}
        assert set(line) == keys
        assert line["ppl"] == pytest.approx(math.exp(float(line["loss"])))
    assert [m["split"] for m in metrics].count("valid") == 8
    assert metrics[-1]["split"] == "test" and metrics[-1]["ppl"] == pytest.approx(model, abs=0.006)
    seconds = [float(m["seconds"]) for m in metrics]
    assert seconds == sorted(seconds) and seconds[0] > 0


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("level", ["word", "char"])
def test_every_cell_runs_one_hot_at_both_levels(
    text: Path, tmp_path: Path, cell: str, level: str
) -> None:
    out = tmp_path / "run"
    more = f"--cell {cell} --level {level} --emb-size 0 --no-tied --num-layers 1 --max-steps 25"
    assert main(small(text, out, *more.split(), "--lr", "0.03", "--log-interval", "5")) == 0
    losses = [float(m["loss"]) for m in read_metrics(out) if m["split"] == "train"]
    assert losses[-1] < losses[0] - 0.3


def test_reference_backend_agrees(text: Path, tmp_path: Path) -> None:
    results = []
    for backend in ("auto", "reference"):
        out = tmp_path / backend
        assert main(small(text, out, "--max-steps", "30", "--backend", backend)) == 0
        results.append(float(read_metrics(out)[-1]["loss"]))
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_sample_is_the_same_for_a_seed_and_has_no_unknown() -> None:
    torch.manual_seed(0)
    from fastrnn.lm.tokens import Vocabulary

    vocabulary = Vocabulary(["a", "<unk>", "<eos>", "b"])
    model = LanguageModel(4, options_of(hidden_size=8))
    with torch.no_grad():
        model.decoder.bias[1] = 50.0
    drawn = generate(model, vocabulary, 40, seed=1)
    assert drawn == generate(model, vocabulary, 40, seed=1) != generate(model, vocabulary, 40, 2)
    assert set(drawn) == {"a", "b", "<eos>"}


def test_tokens_read_as_text() -> None:
    tokens = ["call", "it", "(", "once", ")", ".", "<eos>", "see", "x", ",", "y", "<eos>"]
    assert to_text(tokens, "word") == "call it (once).\nsee x, y"
    assert to_text(["a", " ", "<eos>", "b"], "char") == "a \nb"


def test_duration() -> None:
    assert [duration(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]


@pytest.mark.skipif(memory._malloc() is None, reason="no glibc with mallinfo2")
def test_free_memory_is_given_back_beyond_the_limit() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # Pages that stay held keep the freed ones between them from leaving at the heap's end.
    held = [torch.ones(2**14) for _ in range(400)]
    del held[::2]
    before = resident()
    assert not memory.trim_free_memory(limit=2**50)
    assert memory.trim_free_memory(limit=2**20)
    assert resident() < before - 5 * 2**20  # of 12.5 MiB freed
    assert not memory.trim_free_memory(limit=before)


def test_memory_is_left_alone_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_malloc", lambda: None)
    assert not memory.trim_free_memory(limit=0)


# ---- options


def test_options_come_back_from_their_toml(tmp_path: Path) -> None:
    odd = 'a "quoted" \\ path\twith \x7f, # and é.txt'
    config = parse(["--data", odd, "--lr", "1e-05", "--no-tied", "--max-steps", "3"])
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    again = parse(["--config", str(path)])
    assert to_dict(again) == to_dict(config)
    assert again.corpus.data == odd and again.optimizer.lr == 1e-05


def test_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("hidden-size = 30\nclip = 1\ntied = false\ncell = 'gru'\n")
    config = parse(["--config", str(path), "--hidden-size", "40", "--tied"])
    assert (config.model.hidden_size, config.model.emb_size, config.model.tied) == (40, 40, True)
    assert (config.optimizer.clip, config.model.cell) == (1.0, "gru")


def test_defaults_that_depend_on_others() -> None:
    sgd, adam = parse(["--optimizer", "sgd"]).optimizer, parse([]).optimizer
    assert (sgd.lr, sgd.schedule) == (20.0, "plateau")
    assert adam.schedule == "cosine" and adam.lr is not None and adam.lr < 0.1


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    names = (
        "data level cell emb-size hidden-size num-layers tied dropout batch-size bptt optimizer "
        "lr clip epochs max-steps seed backend device out resume force config log-interval "
        "checkpoint-interval"
    )
    for name in names.split():
        assert f"--{name}" in printed, name
    assert "(default: 20 with sgd" in printed


# ---- bad input


def error_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """What the program says about a mistake: exactly one line, with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.endswith("\n") and said.count("\n") == 1 and "Traceback" not in said
    assert said.startswith("fastrnn.train: ")
    return said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--hiden-size 3", "unknown option '--hiden-size', did you mean '--hidden-size'?"),
        ("--hidden-size", "--hidden-size"),
        ("--hidden-size many", "many"),
        ("--cell elman", "'elman'"),
        ("stray", "stray"),
        ("--hidden-size 0", "--hidden-size must be at least 1, got 0"),
        ("--num-layers -1", "--num-layers must be at least 1, got -1"),
        ("--batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--bptt 0", "--bptt must be at least 1, got 0"),
        ("--epochs 0", "--epochs must be at least 1, got 0"),
        ("--max-steps 0", "--max-steps must be at least 1, got 0"),
        ("--seed 9223372036854775808", "--seed must be below 2**63"),
        ("--bptt 1 --batch-size 3780", "3780 tokens, fewer than"),
        ("--data a\udcffb", "--data 'a\\udcffb': not UTF-8"),
        ("--documents a\udcffb", "--documents 'a\\udcffb': not UTF-8"),
        ("--out=", "--out: expected the path of a folder, in UTF-8, got ''"),
        ("--out=\udcff", "--out: expected the path of a folder, in UTF-8, got '\\udcff'"),
        ("--seed -1", "--seed must be at least 0, got -1"),
        ("--emb-size -5 --no-tied", "--emb-size must be at least 0, got -5"),
        ("--emb-size 100", "--tied needs --emb-size equal to --hidden-size, got 100 and 16"),
        ("--dropout 1", "--dropout must be at least 0 and below 1, got 1.0"),
        ("--dropout nan", "--dropout must be"),
        ("--lr 0", "--lr must be above 0 and finite in float32, got 0.0"),
        ("--lr inf", "--lr must be above 0 and finite in float32, got inf"),
        ("--lr 1e39", "--lr must be above 0 and finite in float32, got 1e+39"),
        ("--clip -1", "--clip must be at least 0 and finite, got -1.0"),
        (
            "--level bpe --min-count 3",
            "--level bpe has no rare pieces: it goes without --min-count",
        ),
        ("--level bpe --bpe-size 257", "--bpe-size must be at least 258, got 257"),
        ("--hidden-size 10000000", "GiB of memory, cpu has"),
        ("--num-layers 1000000000000", "GiB of memory, cpu has"),
        ("--bptt 1000", "3780 tokens, fewer than --batch-size x --bptt = 8 x 1000 = 8000"),
        ("--device warp", "--device warp: cannot be used"),
        ("--device meta", "--device meta: cannot be used"),
        ("--backend triton", "--backend triton"),
        ("--data nowhere", "--data nowhere: no such folder or file, nor one of python-docs, ptb"),
        ("--data=", "--data '': no such folder or file"),
        ("--data wikitext2", "tiny-shakespeare, did you mean 'wikitext-2'?"),
        ("--lr x", "fastrnn.train: --lr: expected FLOAT, got 'x'\n"),
        ("--bptt 1.5", "fastrnn.train: --bptt: expected INT, got '1.5'\n"),
        ("--cell lsmt", "fastrnn.train: invalid choice 'lsmt' for argument '--cell'"),
        ("--config nowhere.toml", "nowhere.toml: cannot be read: No such file"),
        ("--resume --force", "--resume continues a run and --force replaces it"),
    ],
)
def test_mistakes_are_told_in_one_line(
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    expected: str,
) -> None:
    out = tmp_path / "run"
    assert expected in error_line(capsys, small(text, out, *arguments.split()))
    assert not out.exists()


def test_data_mistakes_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    out = tmp_path / "run"
    assert "missing: train.txt, valid.txt, test.txt" in error_line(capsys, small(folder, out))
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text("a b c\n" * 100)
    (folder / "valid.txt").write_text(" \n\n")
    assert "valid.txt: the file is empty" in error_line(capsys, small(folder, out))
    (folder / "valid.txt").write_bytes(b"abc\n\xff\n")
    assert "valid.txt: not UTF-8 text: invalid at byte 4" in error_line(capsys, small(folder, out))
    (folder / "valid.txt").unlink()
    assert "missing: valid.txt" in error_line(capsys, small(folder, out))
    (tmp_path / "empty.txt").touch()
    assert "empty.txt: the file is empty" in error_line(capsys, small(tmp_path / "empty.txt", out))


def test_config_file_mistakes(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "options.toml"
    arguments = small(text, tmp_path / "run", "--config", str(path))
    for content, expected in (
        ("hiden_size = 3", "unknown option 'hiden_size', did you mean 'hidden_size'?"),
        ("num_layers = 2.5", "num_layers: expected int, got 2.5"),
        ("num_layers = true", "num_layers: expected int, got True"),
        ("cell = 'x'", "cell: expected one of ['rnn-tanh', 'rnn-relu', 'lstm', 'gru', "),
        ("out = 'x'", "options.toml: 'out' is an option of the command line alone\n"),
        ("debugg = 1", "options.toml: unknown option 'debugg'\n"),
        (f"lr = 1{400 * '0'}", "lr: expected float, got an integer beyond its range"),
        (f"lr = 1{5000 * '0'}", "not valid TOML: "),
        ("[model]", "unknown option 'model'"),
        ("= 3", "not valid TOML"),
    ):
        path.write_text(content)
        said = error_line(capsys, arguments)
        assert "options.toml: " in said and expected in said


def test_output_folder_mistakes(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--max-steps", "2")
    assert "text.txt/run: cannot be written" in error_line(capsys, small(text, text / "run", *more))
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert "pass --resume to continue" in error_line(capsys, small(text, out, *more))
    assert main(small(text, out, *more, "--force")) == 0
    assert "pass --resume to continue" in error_line(capsys, small(text, out, *more))
    assert main(small(text, out, *more, "--force")) == 0
    assert (out / "mine.txt").read_text() == "keep"
    assert "--resume needs --out" in error_line(capsys, ["--resume"])
    if os.geteuid() != 0:  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        said = error_line(capsys, small(text, closed / "run", *more))
        assert "closed/run: cannot be written: Permission denied" in said


def test_resume_mistakes(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(small(text, out, "--max-steps", "2", "--resume")) == 0
    assert "no checkpoint yet, starting afresh" in capsys.readouterr().out
    again = ["--out", str(out), "--resume", "--max-steps", "4"]
    said = error_line(capsys, [*again, "--hidden-size", "32", "--emb-size", "32", "--bptt", "11"])
    assert "config.toml: the run was made with other options" in said
    assert "hidden_size 16 -> 32" in said and "bptt 10 -> 11" in said
    # All are told, not the first that does not go with the others.
    assert "hidden_size 16 -> 32" in error_line(capsys, [*again, "--hidden-size", "32"])
    said = error_line(capsys, [*again, "--preset", "word-lm"])
    assert "cell 'gru' -> 'lstm'" in said and "bptt 10 -> 35" in said
    config = (out / "config.toml").read_text()
    for found in ("empty", "missing"):
        (out / "config.toml").write_text("")
        if found == "missing":
            (out / "config.toml").unlink()
        said = error_line(capsys, again)
        assert f"{out}/config.toml: {found}, so that all options must be given again; " in said
    (out / "config.toml").write_text(config)
    before = (out / "last" / "state.json").read_bytes(), (out / "result.json").read_bytes()
    said = error_line(capsys, [*again[:-1], "1"])
    made = f"expected no fewer steps than --out {out} has made, which is 2"
    assert f"--max-steps 1: {made}" in said
    state = out / "last" / "state.json"
    assert before == (state.read_bytes(), (out / "result.json").read_bytes())
    assert (out / "config.toml").read_text() == config
    text.write_text(text.read_text() + "g\n")
    assert "made from another text" in error_line(capsys, again)
    metrics = out / "metrics.jsonl"
    lines = metrics.read_text()
    text.write_text(text.read_text().removesuffix("g\n"))
    metrics.write_text("{" + lines)
    assert "metrics.jsonl: damaged" in error_line(capsys, again)
    metrics.write_text(lines)
    for name in ("last", "last.old"):
        weights = out / name / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors: the checkpoint is truncated" in error_line(capsys, again)


def test_divergence_stops_and_keeps_the_last_checkpoint(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ["--optimizer", "sgd", "--lr", "1e38", "--clip", "0", "--log-interval", "1"]
    said = error_line(capsys, small(text, out, *more))
    assert "lower --lr or --clip" in said and "at step" in said
    assert load_checkpoint(out / "last").counters["step"] == 0 and not (out / "best").exists()
    weights = load_checkpoint(out / "last").weights
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


def test_a_validation_loss_that_is_not_finite_is_a_divergence(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of weights that are huge and finite: there was nothing to draw a sample from."""
    monkeypatch.setattr(Trainer, "evaluate", lambda self, tokens: (math.inf, 1.0))
    out = tmp_path / "run"
    said = error_line(capsys, small(text, out))
    assert "the validation loss is inf at step" in said and "lower --lr or --clip" in said
    assert load_checkpoint(out / "last").counters["step"] == 0 and not (out / "best").exists()


def test_debug_shows_the_traceback(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", "nowhere", "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "nowhere: no such folder" in said.splitlines()[-1]


def test_program_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn.train", "--data", "nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fastrnn.train: --data nowhere: no such folder")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_reader_that_goes_away_ends_it_with_141(text: Path, tmp_path: Path) -> None:
    given = small(text, tmp_path / "run", "--epochs", "1000", "--log-interval", "1")
    command = [sys.executable, "-m", "fastrnn.train", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.wait(60) == 141
        assert program.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("program", ["train", "report"])
def test_an_output_that_is_full_is_told_in_one_line(
    text: Path, tmp_path: Path, program: str
) -> None:
    out = tmp_path / "run"
    given = small(text, out, "--max-steps", "1")
    if program == "report":
        assert main(given) == 0
        given = [str(out), "-o", str(tmp_path / "page.html")]
    command = [sys.executable, "-m", f"fastrnn.{program}", *given]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    told = f"fastrnn.{program}: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.parametrize(
    ("program", "advice"),
    [
        ("fastrnn.train", "; lower --batch-size, --bptt or --hidden-size"),
        ("fastrnn.generate", "; lower --batch"),
        ("fastrnn.evaluate", ""),
    ],
)
def test_memory_is_asked_of_options_that_the_program_has(program: str, advice: str) -> None:
    assert one_line(MemoryError("8 TB"), program) == f"out of memory{advice} (8 TB)"


def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "fastrnn.lm.command_line")
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert "tyro is not installed: pip install 'fastrnn[train]'" in error_line(capsys, [])


def test_user_error_is_not_a_value_error() -> None:
    # The program turns it into one line; a ValueError is a fault and keeps its traceback.
    assert not issubclass(UserError, ValueError)
