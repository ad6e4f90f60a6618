"""Presets, and mistakes in the options around them."""

from pathlib import Path

import pytest

pytest.importorskip("tyro")

from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.errors import UserError  # noqa: E402
from fastrnn.lm.layers import units  # noqa: E402
from fastrnn.lm.model import count_parameters  # noqa: E402
from fastrnn.lm.presets import preset_names  # noqa: E402
from fastrnn.lm.settings import to_toml  # noqa: E402
from fastrnn.train import main  # noqa: E402


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name: str) -> None:
    config = parse(["--preset", name])
    assert config.corpus.data in ("ptb", "wikitext-2", "time-machine")
    assert parse(["--preset", name, "--seed", "77"]).training.seed == 77


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *(("zaremba-small", 4.7), ("zaremba-medium", 20), ("zaremba-large", 66)),
        ("awd-lstm-ptb", 24),
    ],
)
def test_published_sizes(name: str, millions: float) -> None:
    # "4.7M", "20M", "66M", "24M": rounded there.
    found = count_parameters(10_000, parse(["--preset", name]).model)
    assert found / 1e6 == pytest.approx(millions, rel=0.03)


def test_awd_lstm_is_narrow_at_the_top() -> None:
    model = parse(["--preset", "awd-lstm-ptb"]).model
    assert units(model) == [1150, 1150, 400] and model.tied and model.dropouts == (0.4, 0.25, 0.4)


def test_presets_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--presets"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == preset_names()
    assert all(len(line.partition(": ")[2]) > 20 for line in lines)


def test_a_file_goes_over_a_preset_and_the_command_line_over_both(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("bptt = 17\nbatch_size = 11\n")
    options = ["--preset", "word-lm", "--config", str(file), "--batch-size", "12"]
    training = parse(options).training
    assert (training.bptt, training.batch_size, training.seed) == (17, 12, 1111)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--preset zaremba-smal", "no such preset, did you mean 'zaremba-small'?"),
        ("--preset nothing-like-it", "--preset nothing-like-it: no such preset"),
        ("--layer-norm --cell rnn-tanh", "--layer-norm needs --cell lstm or gru, got rnn-tanh"),
        ("--charset letters", "--charset letters needs --level char, got word"),
        ("--level char --charset letters --sentences", "it goes without --sentences"),
        ("--documents x --sentences", "it goes without --documents"),
        ("--documents (", "--documents '(': no regex: missing )"),
        ("--sentences --ar 1", "--sentences goes without --random-bptt, --ar and --tar"),
        ("--accumulate 3", "--accumulate must divide --batch-size, got 3 and 20"),
        ("--dropout-words 0.1 --emb-size 0 --no-tied", "--dropout-words needs an embedding"),
        ("--dropout-weights 1", "--dropout-weights must be at least 0 and below 1, got 1.0"),
        ("--zoneout-cell -1", "--zoneout-cell must be at least 0 and below 1, got -1.0"),
        ("--zoneout-cell 0.1 --cell gru", "--zoneout-cell needs --cell lstm, got gru"),
        ("--precision tf32", "--precision tf32 needs a CUDA device, got --device cpu"),
        ("--precision float16", "'float16'"),
        ("--explosion nan", "--explosion must be at least 0 and finite, got nan"),
        ("--init-range 0", "--init-range must be above 0 and finite in float32, got 0.0"),
        ("--init-range 1e39", "--init-range must be above 0 and finite in float32, got 1e+39"),
        ("--init-range 1.8e38", "--init-range must be at most 1.7014e+38, got 1.8e+38"),
        ("--output-size 7", "--tied needs"),
        ("--bpe-size 10", "--bpe-size must be at least 258, got 10"),
        ("--warmup -1", "--warmup must be at least 0, got -1"),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: str, expected: str
) -> None:
    words = arguments.split()
    more = ["--emb-size", "200"] if arguments == "--output-size 7" else []
    assert main([*words, *more]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("option", "why", "useful"),
    [
        ("--bpe-size 300", "with --level word", "--level bpe"),
        ("--heads 8", "with --cell gru", "--cell transformer"),
        ("--context=20", "with --cell gru", "--cell transformer"),
        (
            "--hidden_size 8",
            "with --num-layers 1, whose units are",
            "--output-size 9 --num-layers 2",
        ),
        ("--residual", "with --num-layers 1", "--num-layers 2"),
        ("--dropout 0", "where --dropout-input, --dropout-layers and", ""),
        ("--dropout-input 0.1", "with --emb-size 0", "--emb-size 9"),
        ("--dropout-layers 0.1", "with --num-layers 1", "--num-layers 2"),
        ("--init-range 0.2", "with --init torch", "--init zaremba"),
        ("--decay-from 2", "with --schedule cosine", "--schedule decay"),
        ("--decay-factor 0.1", "with --schedule cosine", "--schedule plateau"),
        ("--patience 3", "with --optimizer adam", "--optimizer nt-asgd"),
        ("--force", "without --out", "--out run"),
    ],
)
def test_options_that_would_do_nothing_are_told(
    tmp_path: Path, option: str, why: str, useful: str
) -> None:
    name = option.replace("=", " ").split()[0].replace("_", "-")
    others = {
        "--hidden-size": ["--output-size", "9"],
        "--dropout": [f"--dropout-{part}=0.1" for part in ("input", "layers", "output")],
        "--dropout-input": ["--emb-size", "0"],
    }.get(name, [])
    given = ["--no-tied", *others, *option.split()]
    with pytest.raises(UserError, match=f"^{name} does nothing {why}"):
        parse(given)
    # In a file, or among what a sweep tries, it may be of use to others.
    parse(given, by_hand=False)
    file = tmp_path / "options.toml"
    file.write_text(to_toml(parse(given, by_hand=False)))
    parse(["--config", str(file)])
    if useful:
        parse([*given, *useful.split()])


@pytest.mark.parametrize(
    ("package", "option"),
    [("tokenizers", "--level bpe"), ("tensorboard", "--tensorboard"), ("matplotlib", "")],
)
def test_a_package_that_is_not_installed_names_its_extra(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    option: str,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    (tmp_path / "text.txt").write_text("a b c\n" * 500)
    out = tmp_path / "run"
    assert main(["--data", str(tmp_path / "text.txt"), "--out", str(out), *option.split()]) == 2
    said = capsys.readouterr().err
    extra = {"tokenizers": "bpe", "matplotlib": "train"}.get(package, package)
    assert f"{package} is not installed: pip install 'fastrnn[{extra}]'" in said
    assert not out.exists()
