"""The transformer in the place of the language model's recurrent layers."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro")

from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.dynamic import Adaptation, evaluate_dynamically  # noqa: E402
from fastrnn.lm.evaluate import evaluate  # noqa: E402
from fastrnn.lm.generate import Sampling, stream  # noqa: E402
from fastrnn.lm.model import LanguageModel, count_parameters  # noqa: E402
from fastrnn.lm.saved import open_run  # noqa: E402
from fastrnn.train import main  # noqa: E402
from tests.test_training_options import options_of  # noqa: E402
from tests.test_ways_of_training import run, text  # noqa: E402, F401

pytestmark = pytest.mark.usefixtures("one_thread")


def small(**more: object) -> LanguageModel:
    torch.manual_seed(0)
    given = {"cell": "transformer", "hidden_size": 16, "num_layers": 2, "dropout": 0.0}
    return LanguageModel(9, options_of(**given | more))


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_as_they_are(tied: bool) -> None:
    options = options_of(cell="transformer", hidden_size=16, num_layers=3, tied=tied)
    model = LanguageModel(11, options)
    assert count_parameters(11, options) == sum(p.numel() for p in model.parameters())


def test_no_place_sees_a_later_one() -> None:
    model = small().eval()
    tokens = torch.randint(9, (12, 2))
    other = tokens.clone()
    other[7:] = (other[7:] + 1) % 9
    (one, _), (two, _) = model(tokens), model(other)
    torch.testing.assert_close(one[:14], two[:14])
    assert not one[14:].equal(two[14:])


def test_tokens_read_one_by_one_give_what_they_give_together() -> None:
    model = small(context=8).eval()
    tokens = torch.randint(9, (8, 3))
    whole, _ = model(tokens)
    state, parts = None, []
    for token in tokens:
        logits, state = model(token.unsqueeze(0), state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts), whole)
    further, state = model(tokens[:1], state)
    assert state is not None and state[0].size(0) == 8
    shifted, _ = model(torch.cat((tokens[1:], tokens[:1])))
    torch.testing.assert_close(further, shifted[-3:])


def test_evaluation_reads_windows_of_the_trained_length() -> None:
    model = small(context=5)
    lengths = []
    model.rnn.blocks.register_forward_pre_hook(lambda _, args: lengths.append(args[0].size(0)))
    tokens = torch.randint(9, (230,), dtype=torch.int32)
    losses = {evaluate(model, tokens, 0, batch)[0] for batch in (700, 50, 10, 1)}
    # Ten columns of 23; the last window of 3 looks back for 2. The batch's size changes nothing.
    assert lengths == 4 * [5, 5, 5, 5, 5] and len(losses) == 1


@pytest.mark.parametrize("window", [1, 3, 6, 10])
def test_dynamic_evaluation_sees_as_much_as_evaluation(window: int) -> None:
    model = small(context=6)
    tokens = torch.randint(9, (60,), dtype=torch.int32)
    inputs = torch.cat((tokens.new_zeros(1), tokens[:-1])).long().view(10, 6).t()
    expected, _ = model.eval().loss(inputs, tokens.long().view(10, 6).t(), None)
    found = evaluate_dynamically(model, tokens, 0, tokens, Adaptation("sgd", 1e-12, 0.0, window))
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_course_draws_matrices_as_glorot() -> None:
    model = small(init="course", tied=False)
    matrix = model.rnn.blocks.blocks[0].feed_forward[0].weight.detach()
    bound = (6 / (16 + 64)) ** 0.5
    assert 0.98 * bound < float(matrix.abs().max()) <= bound


def test_course_transformer_has_its_size() -> None:
    model = parse(["--preset", "course-transformer"]).model
    assert (model.heads, model.context, model.dropouts) == (16, 35, (0.1, 0.1, 0.0))
    assert count_parameters(10_000, model) / 1e6 == pytest.approx(29.2, abs=0.1)


@pytest.mark.parametrize("more", ["", "--sentences"])
def test_it_learns(text: Path, tmp_path: Path, more: str) -> None:  # noqa: F811
    options = f"--cell transformer --heads 2 --num-layers 2 --epochs 4 --dropout 0.1 {more}"
    assert run(text, tmp_path / "a", options)[-1]["ppl"] < 2.6


def test_it_writes_what_all_at_once_gives(text: Path, tmp_path: Path) -> None:  # noqa: F811
    run(text, tmp_path / "a", "--cell transformer --heads 2 --epochs 2 --dropout 0")
    saved = open_run(str(tmp_path / "a"))
    none, steps = torch.empty(0, dtype=torch.int64), 25  # beyond the context, 10
    drawn = torch.cat(list(stream(saved.model, saved.vocabulary, none, steps, 1, Sampling(0.0))))
    tokens = torch.cat((torch.tensor([saved.vocabulary.eos]), drawn))
    never = [n for n in (saved.vocabulary.unknown, saved.vocabulary.document) if n is not None]
    for place in range(steps):
        scores, _ = saved.model(tokens[max(0, place - 9) : place + 1].unsqueeze(1))
        scores[:, never] = -torch.inf
        assert int(scores[-1].argmax()) == int(drawn[place])


@pytest.mark.parametrize("rule", ["rms", "sgd"])
def test_it_follows_the_text_it_is_scored_on(rule: str) -> None:
    model = small(context=6)
    tokens = torch.arange(9, dtype=torch.int32).repeat(150)
    before = [p.detach().clone() for p in model.parameters()]
    still = evaluate_dynamically(model, tokens, 0, tokens, Adaptation("sgd", 1e-12, 0.0))
    rate = 5e-5 if rule == "rms" else 0.1
    moving = evaluate_dynamically(model, tokens, 0, tokens, Adaptation(rule, rate, 0.0))
    assert still == pytest.approx(evaluate(model, tokens, 0, 10)[0], rel=0.05)
    assert moving < still - 0.3
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert parameter.equal(value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--heads 3", "--heads must divide --hidden-size, got 3 and 200"),
        ("--heads 0", "--heads must be at least 1, got 0"),
        ("--emb-size 100 --no-tied", "--cell transformer needs --emb-size and --output-size equal"),
        ("--zoneout 0.1", "--zoneout needs a recurrent --cell, got transformer"),
        ("--variational", "--variational needs a recurrent --cell, got transformer"),
        ("--init zaremba", "--init zaremba needs a recurrent --cell, got transformer"),
        ("--residual", "--residual needs a recurrent --cell, got transformer"),
        ("--documents x", "--documents needs a recurrent --cell, got transformer"),
        ("--layer-norm", "--layer-norm needs --cell lstm or gru, got transformer"),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: str, expected: str
) -> None:
    assert main(["--cell", "transformer", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1, said
