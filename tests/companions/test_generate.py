"""Text from a trained model: the draws, the program, its errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn.generate import main
from fastrnn.lm.config import ModelOptions
from fastrnn.lm.generate import Sampling, stream
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.tokens import Vocabulary

WORDS = Vocabulary(["<eos>", "a", "b", "c", "d", "<unk>"])
NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture
def biased() -> LanguageModel:
    """A model whose scores depend on nothing: p = 0.4 a, 0.3 b, 0.2 c, 0.1 d."""
    model = LanguageModel(6, ModelOptions("gru", hidden_size=4, emb_size=4, tied=False))
    with torch.no_grad():
        model.decoder.weight.zero_()
        model.decoder.bias.copy_(torch.tensor([1e-30, 0.4, 0.3, 0.2, 0.1, 50.0]).log())
    return model


def draws(model: LanguageModel, count: int, **sampling: float) -> list[float]:
    """How often each token is drawn."""
    tokens = torch.cat(list(stream(model, WORDS, NONE, 10, count // 10, Sampling(**sampling))))
    return (torch.bincount(tokens, minlength=6) / count).tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"temperature": 1.0}, [0, 0.4, 0.3, 0.2, 0.1, 0]),
        ({"temperature": 0.5}, [0, 16 / 30, 9 / 30, 4 / 30, 1 / 30, 0]),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0, 0]),
        ({"temperature": 1e-40}, [0, 1, 0, 0, 0, 0]),
        ({"temperature": 5e-324, "top_k": 2, "top_p": 0.5}, [0, 1, 0, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 100}, [0, 0.4, 0.3, 0.2, 0.1, 0]),
        ({"temperature": 1.0, "top_p": 0.69}, [0, 4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.71}, [0, 4 / 9, 3 / 9, 2 / 9, 0, 0]),
        ({"temperature": 1.0, "top_p": 1e-9}, [0, 1, 0, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.5}, [0, 4 / 7, 3 / 7, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_they_should(
    biased: LanguageModel, sampling: dict[str, float], expected: list[float]
) -> None:
    found = draws(biased, 40_000, **sampling)
    # Five standard deviations of a share of 40,000 draws are at most 0.0125.
    assert found == pytest.approx(expected, abs=0.0125)
    assert [f > 0 for f in found] == [e > 0 for e in expected]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_prompt_sets_the_state_and_columns_do_not_touch(backend: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(6, ModelOptions("lstm", hidden_size=8, emb_size=8, num_layers=2))
    with torch.no_grad():
        model.decoder.weight.normal_()
    prompt = torch.tensor([1, 2, 3])
    greedy = Sampling(temperature=0)
    with fastrnn.use_backend(backend):
        found = torch.stack(list(stream(model, WORDS, prompt, 8, 3, greedy)))
    assert found.shape == (8, 3) and torch.equal(found[:, :1].expand(-1, 3), found)
    assert not any("forward" in vars(module) for module in model.modules())  # as it was
    tokens = [0, 1, 2, 3]
    for token in found[:, 0].tolist():
        scores = model.eval()(torch.tensor(tokens).unsqueeze(1))[0][-1].detach()
        scores[5] = -torch.inf
        assert token == int(scores.argmax())
        tokens.append(token)


def test_words_continue_the_prompt(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--run", str(runs / "words"), "--temperature", "0", "--length", "4"]
    assert main([*given, "--prompt", "a b a"]) == 0
    assert capsys.readouterr().out == "a b a c a d\n\n"
    assert main([*given, "--prompt", "a b a", "--batch", "2"]) == 0
    assert capsys.readouterr().out == "--- 1\na b a c a d\n--- 2\na b a c a d\n"


def test_characters_and_seeds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--run", str(runs / "characters"), "--prompt", "a ", "--length", "30"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*given, "--seed", seed, "--temperature", "1"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert all(t.startswith("a ") and len(t) == 33 and set(t) <= set("abcd \n") for t in texts)


def test_tokens_are_printed_as_they_come(runs: Path) -> None:
    command = [sys.executable, "-m", "fastrnn.generate", "--run", str(runs / "words")]
    with subprocess.Popen([*command, "--length", "1000000"], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.read(20)  # long before a million
        program.stdout.close()
        assert program.wait(60) == 141


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--prompt hello", "--prompt: the word 'hello' is not in the dictionary of"),
        ("--prompt Ab", "did you mean 'b'?"),
        (
            "--prompt -x",
            "generate: --prompt: expected a value, got none; one that begins with - is given as "
            "--prompt=-...\n",
        ),
        ("--prompt a\udcff", "--prompt 'a\\udcff': not UTF-8\n"),
        ("--top-p 0", "--top-p must be above 0 and at most 1, got 0.0"),
        ("--top-p 1.01", "--top-p must be above 0 and at most 1, got 1.01"),
        ("--top-p nan", "--top-p must be above 0 and at most 1, got nan"),
        ("--top-k 0", "--top-k must be at least 1 and below 2**63, got 0"),
        ("--temperature -1", "--temperature must be at least 0 and finite, got -1.0"),
        (f"--batch {10**11}", f"--batch {10**11} needs about "),
        ("--temperature 0 --top-k 3", "--top-k does nothing with --temperature 0"),
        ("--temperature 0 --top-p 0.9", "--top-p does nothing with --temperature 0"),
        ("--temperature inf", "--temperature must be at least 0 and finite, got inf"),
        ("--length 0", "--length must be at least 1"),
        ("--batch 0", "--batch must be at least 1"),
        ("--seed -1", "--seed must be at least 0"),
        ("--lenght 3", "unknown option '--lenght', did you mean '--length'?"),
        ("--length three", "--length"),
        ("--device teapot", "--device teapot: cannot be used"),
        ("--run nowhere", "--run nowhere: no such folder"),
    ],
)
def test_mistakes(
    runs: Path, capsys: pytest.CaptureFixture[str], given: str, expected: str
) -> None:
    assert main(["--run", str(runs / "words"), *given.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith("fastrnn.generate: ") and expected in told and told.count("\n") == 1


def test_folders_that_are_no_runs(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> str:
        assert main(["--run", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "not the folder of a run: it has no config.toml" in told()
    config = (runs / "words" / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(config)
    assert "the run has no checkpoint yet" in told()
    (tmp_path / "best").symlink_to(runs / "words" / "best")
    assert "vocabulary.json: cannot be read" in told()
    (tmp_path / "vocabulary.json").write_text("[1")
    assert "vocabulary.json: damaged" in told()
    (tmp_path / "vocabulary.json").write_text('["<eos>", "<unk>"]')
    assert "vocabulary.json: expected the dictionary that " in told()
    shutil.copy(runs / "words" / "vocabulary.json", tmp_path)
    (tmp_path / "config.toml").write_text(config.replace("num_layers = 2", "num_layers = 1"))
    assert "config.toml: the run was made with other options: num_layers 2 -> 1" in told()
    (tmp_path / "config.toml").write_text(config.replace("cell", "sell"))
    assert "unknown option 'sell', did you mean 'cell'?" in told()
