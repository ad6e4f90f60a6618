"""What the trainer's options for model, optimizer and batches do, in values."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro")

from fastrnn.lm.batches import IGNORED, Columns  # noqa: E402
from fastrnn.lm.checkpoint import load_checkpoint  # noqa: E402
from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.complete import complete  # noqa: E402
from fastrnn.lm.config import Config, ModelOptions, OptimizerOptions, TrainingOptions  # noqa: E402
from fastrnn.lm.data import Corpus  # noqa: E402
from fastrnn.lm.dropout import Dropout  # noqa: E402
from fastrnn.lm.errors import UserError  # noqa: E402
from fastrnn.lm.guard import divergence, running_mean  # noqa: E402
from fastrnn.lm.layers import RecurrentStack  # noqa: E402
from fastrnn.lm.loop import Trainer  # noqa: E402
from fastrnn.lm.model import LanguageModel, count_parameters  # noqa: E402
from fastrnn.lm.optim import Average, gradients_of, make_optimizer, stalled  # noqa: E402
from fastrnn.lm.report import Reporter  # noqa: E402
from fastrnn.lm.run import Run  # noqa: E402
from fastrnn.lm.schedule import learning_rate  # noqa: E402
from fastrnn.lm.step import clip, total_norm  # noqa: E402
from fastrnn.lm.tokens import Vocabulary  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
CELLS = ["rnn-tanh", "rnn-relu", "lstm", "gru", "gru-reset-before"]


def options_of(**options: Any) -> ModelOptions:
    config = Config(model=ModelOptions(**options))
    complete(config)
    return config.model


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(8, shape, generator=torch.Generator().manual_seed(5))


# ---- model


SHAPES: list[dict[str, Any]] = [
    {"num_layers": 3, "hidden_size": 9, "output_size": 5},
    {"num_layers": 1, "output_size": 5, "emb_size": 0, "tied": False},
    {"num_layers": 2, "init": "course", "tied": False, "emb_size": 4},
]


@pytest.mark.parametrize(
    ("cell", "more"),
    [(cell, more) for cell in CELLS for more in SHAPES]
    + [(cell, {"num_layers": 2, "layer_norm": True}) for cell in ("lstm", "gru")],
)
def test_parameters_are_counted_as_they_are(cell: str, more: dict[str, Any]) -> None:
    options = options_of(cell=cell, **more)
    model = LanguageModel(11, options)
    assert count_parameters(11, options) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    logits, state = model(torch.zeros(4, 2, dtype=torch.int64))
    assert logits.shape == (8, 11)
    again, _ = model(torch.zeros(4, 2, dtype=torch.int64), state)
    assert again.shape == (8, 11)


def test_an_lstm_cell_of_200_with_one_bias_has_320800_parameters() -> None:
    options = options_of(cell="lstm", emb_size=200, hidden_size=200, tied=False, init="course")
    layer = LanguageModel(10, options).rnn.layers[0]
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 320_800


def test_initial_values_of_zaremba_and_of_the_course() -> None:
    torch.manual_seed(0)
    zaremba = LanguageModel(
        50, options_of(cell="lstm", num_layers=2, hidden_size=40, init="zaremba", init_range=0.04)
    )
    for name, weight in zaremba.named_parameters():
        assert 0.035 < float(weight.detach().abs().max()) <= 0.04, name
    course = LanguageModel(50, options_of(cell="gru-reset-before", hidden_size=100, init="course"))
    layer = course.rnn.layers[0]
    assert not layer.bias_hh_l0.any() and not layer.bias_hh_l0.requires_grad
    assert 0.099 < float(layer.weight_hh_l0.detach().abs().max()) <= 0.1
    assert not course.decoder.bias.any()


def test_residual_adds_what_equally_wide_layers_read() -> None:
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "hidden_size": 6, "output_size": 4}
    stack = RecurrentStack(6, options_of(cell="gru", residual=True, dropout=0.0, **sizes))
    x = torch.randn(5, 2, 6)
    first = stack.layers[0](x)[0]
    second = first + stack.layers[1](first)[0]
    torch.testing.assert_close(stack(x, None)[0], stack.layers[2](second)[0])


def test_dropouts_are_set_apart() -> None:
    model = LanguageModel(
        9, options_of(num_layers=2, dropout=0.1, dropout_layers=0.2, dropout_output=0.3)
    )
    assert [d.p for d in (model.drop_input, model.rnn.between, model.drop_output)] == [
        *(0.1, 0.2, 0.3)
    ]


def test_variational_dropout_is_the_same_at_every_step() -> None:
    torch.manual_seed(0)
    ones = torch.ones(30, 4, 50)
    dropped = Dropout(0.25, variational=True)(ones)
    assert dropped.equal(dropped[:1].expand_as(ones))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert 0.15 < float((dropped[0] == 0).float().mean()) < 0.35
    assert not (plain := Dropout(0.25, variational=False)(ones)).equal(plain[:1].expand_as(ones))
    assert Dropout(0.9, variational=True).eval()(ones).equal(ones)


def test_a_dropped_word_is_dropped_wherever_it_stands() -> None:
    torch.manual_seed(0)
    model = LanguageModel(40, options_of(hidden_size=3, dropout=0.0, dropout_words=0.5))
    seen = []
    model.rnn.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    tokens = torch.arange(40).repeat(2, 1).T  # every word in both columns
    model(tokens)
    assert model.encoder is not None
    kept = seen[0][:, 0].any(1)
    assert 8 < int(kept.sum()) < 32
    expected = model.encoder.weight.detach() * 2 * kept.unsqueeze(1)
    for column in (0, 1):
        torch.testing.assert_close(seen[0][:, column], expected)


def test_weight_dropout_and_zoneout_reach_the_layers() -> None:
    options = options_of(cell="lstm", dropout_weights=0.5, zoneout=0.1, zoneout_cell=0.2)
    layer = LanguageModel(9, options).rnn.layers[0]
    assert (layer.weight_dropout, layer.zoneout) == (0.5, (0.1, 0.2))


def test_activation_regularisation_is_added_to_the_loss() -> None:
    torch.manual_seed(0)
    model = LanguageModel(8, options_of(hidden_size=5, dropout=0.0, num_layers=2))
    tokens, targets = random_tokens(6, 3), random_tokens(6, 3)
    outputs = []
    model.rnn.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    entropy, penalty, _ = model.objective(tokens, targets, None, None, None, 2.0, 3.0)
    torch.testing.assert_close(entropy, model.loss(tokens, targets, None)[0])
    h = outputs[0]
    expected = 2 * (h**2).mean() + 3 * ((h[1:] - h[:-1]) ** 2).mean()
    torch.testing.assert_close(penalty, expected)


# ---- schedules and optimizers


def rates(text: str, epochs: int) -> list[float]:
    options = parse(text.split()).optimizer
    return [learning_rate(options, epoch, 0, 100, 1.0) for epoch in range(1, epochs + 1)]


def test_decay_begins_after_an_epoch() -> None:
    found = rates("--optimizer sgd --lr 4 --schedule decay --decay-from 2 --decay-factor 0.5", 5)
    assert found == [4, 4, 2, 1, 0.5]


def test_course_schedule_compounds_after_14_epochs() -> None:
    rate, expected = 10.0, []
    for epoch in range(40):  # as ptb-lm.py has it: epochs from 0, the rate multiplied in place
        rate *= (1 / 1.15) ** max(epoch - 14, 0)
        expected.append(rate)
    assert rates("--optimizer sgd --lr 10 --schedule course", 40) == pytest.approx(expected)
    assert expected[14] == 10 and expected[15] < 10


def test_cosine_warms_up_and_ends_at_zero() -> None:
    options = parse(["--lr", "1", "--warmup", "10"]).optimizer
    found = [learning_rate(options, 1, step, 110, 1.0) for step in range(110)]
    assert found[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    expected = [(1 + math.cos(math.pi * k / 100)) / 2 for k in range(100)]
    assert found[10:] == pytest.approx(expected)


def test_average_is_the_mean_of_the_weights_and_can_be_swapped_in() -> None:
    model = torch.nn.Linear(3, 2)
    average = Average(model)
    first = model.weight.detach().clone()
    with average.in_place():
        assert model.weight.equal(first)
    average.begin()
    seen = []
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        seen.append(model.weight.detach().clone())
        average.update()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), torch.stack(seen).mean(0))
    assert model.weight.equal(seen[-1])


def test_stalled_compares_with_validations_before_the_last_few() -> None:
    assert not stalled([3.0, 2.0, 2.5], 2)
    assert stalled([2.0, 2.5, 2.6, 2.1], 2)
    assert not stalled([2.0, 2.5, 2.6, 1.9], 2)


def test_divergence_is_told_from_training() -> None:
    assert divergence(5.0, 2.0, 1.0, 100, 10.0) is None
    assert divergence(5.0, 11.0, 1.0, 5, 10.0) is None  # too early to tell
    assert divergence(5.0, 11.0, 1.0, 100, 0.0) is None
    assert "11, its running mean 1" in (divergence(5.0, 11.0, 1.0, 100, 10.0) or "")
    assert "loss is nan" in (divergence(math.nan, 1.0, 1.0, 0, 0.0) or "")
    assert "norm is inf" in (divergence(1.0, math.inf, 1.0, 0, 0.0) or "")
    usual = 0.0
    for step, norm in enumerate((4.0, 6.0, 8.0)):
        usual = running_mean(usual, norm, step)
    assert usual == 6.0


# ---- batches


def test_random_windows_cover_the_text_once() -> None:
    options = TrainingOptions(batch_size=2, bptt=20, random_bptt=True, seed=3)
    tokens = torch.arange(20_000, dtype=torch.int32)
    columns = Columns(tokens, options, None)
    rows, sizes = [], []
    for index in range(columns.count(1)):
        batch = columns.get(1, index)
        rows.append(batch.inputs)
        sizes.append(batch.inputs.size(0))
        assert batch.targets.equal(batch.inputs + 1) and batch.count == batch.targets.numel()
    assert torch.cat(rows).equal(torch.arange(20_000).view(2, -1).T[:-1])
    usual = sum(sizes) / len(sizes)
    assert 18.5 < usual < 20.5 and min(sizes[:-1]) >= 5 and max(sizes) > 25
    again = Columns(tokens, options, None)
    assert again.ends(1).tolist() == columns.ends(1).tolist() != again.ends(2).tolist()


def make_trainer(tmp_path: Path, text: str, rows: int = 41) -> Trainer:
    config = parse([*text.split(), "--out", str(tmp_path)])
    torch.manual_seed(config.training.seed)
    vocabulary = Vocabulary([*"abcdef", "<unk>", "<eos>"])
    tokens = random_tokens(config.training.batch_size * rows)
    corpus = Corpus(vocabulary, tokens, tokens[:50], tokens[:50])
    run = Run(tmp_path)
    run.start(config, corpus)
    return Trainer(config, corpus, LanguageModel(8, config.model), run, Reporter())


SMALL = "--hidden-size 6 --batch-size 4 --bptt 10 --epochs 2 --dropout 0 --lr 0.05 --log-interval 1"


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_accumulated_parts_give_the_whole_batch_s_steps(tmp_path: Path, cell: str) -> None:
    trainers = []
    for parts in (1, 2, 4):
        text = f"{SMALL} --cell {cell} --accumulate {parts} --optimizer sgd --ar 1 --tar 1"
        trainer = make_trainer(tmp_path / str(parts), text)
        trainer.fit()
        trainers.append(trainer)
    for other in trainers[1:]:
        for a, b in zip(trainers[0].model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_make_torch_s_steps(tmp_path: Path, name: str) -> None:
    trainer = make_trainer(tmp_path, f"{SMALL} --optimizer {name} --weight-decay 0.1 --clip 0")
    trainer.config.optimizer.schedule = "constant"
    weight = trainer.model.decoder.bias
    before = weight.detach().clone()
    batch = trainer.batches.get(1, 0)
    loss, _ = trainer.model.loss(batch.inputs, batch.targets, None)
    (gradient,) = torch.autograd.grad(loss, weight)
    trainer._step(batch)
    if name == "sgd":
        expected = before - 0.05 * (gradient + 0.1 * before)
    else:  # the first step of Adam is the gradient's sign, and the bias starts as zero
        expected = before - 0.05 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_rowwise_updates_equal_dense_ones(limit: float) -> None:
    options = options_of(
        cell="lstm", emb_size=5, hidden_size=6, num_layers=1, tied=False, dropout=0.0
    )
    models = [LanguageModel(50, options).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    before = models[0].encoder.weight.detach().clone()
    tokens = torch.tensor([[3, 7, 3], [3, 49, 0]])
    norms = []
    for model, rowwise in zip(models, (False, True), strict=True):
        optimizer = make_optimizer(
            model, OptimizerOptions("sgd", lr=0.5, weight_decay=0.0), rowwise
        )
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(2):  # gradients add up
                model.loss(tokens, tokens, None)[0].backward()
            assert model.encoder.weight.grad.is_sparse == rowwise
            norms.append(float(total_norm(gradients_of(model.parameters()))))
            clip(optimizer, limit, norms[-1])
            optimizer.step()
    assert norms[2:] == pytest.approx(norms[:2], rel=1e-12)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    changed = (models[1].encoder.weight.detach() != before).any(1).nonzero().flatten()
    assert changed.tolist() == [0, 3, 7, 49]


def test_the_gradients_norm_has_the_same_bits_for_any_number_of_threads() -> None:
    gradients = [torch.randn(size) for size in (3, 65, 200_001, 2_000_000)]
    threads, norms = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norms.append(float(total_norm(gradients)))
    finally:
        torch.set_num_threads(threads)
    assert norms[0] == norms[1] == norms[2]
    exact = float(torch.cat(gradients).double().norm())
    assert norms[0] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("more", ["--tied", "--optimizer adam", "--weight-decay 0.1"])
def test_updates_are_dense_where_every_row_changes(tmp_path: Path, more: str) -> None:
    text = f"{SMALL} --optimizer sgd --no-tied {more}"
    model = make_trainer(tmp_path / "dense", text).model
    assert model.encoder is not None and not model.encoder.sparse
    model = make_trainer(tmp_path / "rows", f"{SMALL} --optimizer sgd --no-tied").model
    assert model.encoder is not None and model.encoder.sparse


def test_random_bptt_scales_the_rate_with_the_window(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, f"{SMALL} --random-bptt --optimizer sgd --schedule constant")
    for index in range(3):
        batch = trainer.batches.get(1, index)
        trainer._step(batch)
        assert trainer.counters.rate == pytest.approx(0.05 * batch.inputs.size(0) / 10)


def test_course_biases_stay_zero(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, f"{SMALL} --init course --cell gru-reset-before")
    trainer.fit()
    layer = trainer.model.rnn.layers[0]
    assert not layer.bias_hh_l0.any() and bool(layer.bias_ih_l0.detach().abs().max() > 0.05)


def test_nt_asgd_averages_once_validation_stalls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{SMALL} --optimizer nt-asgd --patience 1 --epochs 12 --lr 30 --explosion 0"
    trainer = make_trainer(tmp_path, text.replace("--lr 0.05", ""))
    trainer.fit()
    assert "validation has stalled: averaging from step" in capsys.readouterr().out
    assert trainer.progress.average.count > 0
    kept = dataclasses.asdict(trainer.counters)
    assert kept["averaged"] == trainer.progress.average.count


# ---- divergence


def replace_objective(trainer: Trainer, objective: Callable[..., Any]) -> None:
    """For the steps to come, and for those made anew after a rewind."""
    trainer.model.objective = trainer._step._objective = objective


class Poisoned:
    """A model's objective that gives NaN for the batches of some calls."""

    def __init__(self, trainer: Trainer, bad: torch.Tensor) -> None:
        self.objective, self.bad = trainer._step._objective, bad
        self.met = 0

    def __call__(self, inputs: torch.Tensor, *rest: Any) -> tuple[Any, ...]:
        entropy, penalty, state = self.objective(inputs, *rest)
        if inputs.equal(self.bad):
            self.met += 1
            return entropy * math.nan, penalty, state
        return entropy, penalty, state


def test_a_poisoned_batch_is_left_out_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path, f"{SMALL} --epochs 1 --checkpoint-interval 2")
    poisoned = Poisoned(trainer, trainer.batches.get(1, 3).inputs)
    replace_objective(trainer, poisoned)
    trainer.fit()
    said = capsys.readouterr().out
    assert "the training loss is nan at step 4: back to step 2, at half the rate" in said
    assert "leaving out the batch of step 4" in said
    assert poisoned.met == 2 and trainer.counters.step == trainer.steps == 4
    assert trainer.counters.skipped == [3] and trainer.counters.lr_scale == 0.25
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    assert [m["step"] for m in trainer.run.metrics if m["split"] == "train"] == [1, 2, 3]


def test_an_exploding_gradient_is_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{SMALL} --epochs 9 --checkpoint-interval 10 --explosion 1000 --rewinds 1"
    trainer = make_trainer(tmp_path, text, rows=51)
    plain, met = trainer._step._objective, [0]

    def exploding(*args: Any) -> tuple[Any, ...]:
        entropy, penalty, state = plain(*args)
        met[0] += trainer.counters.step == 33
        return entropy * (1e6 if trainer.counters.step == 33 else 1), penalty, state

    replace_objective(trainer, exploding)
    with pytest.raises(UserError, match="the gradient's norm is .* at step 34: lower --lr"):
        trainer.fit()
    said = capsys.readouterr().out
    assert "the gradient's norm is" in said and "back to step 30, at half the rate" in said
    last = load_checkpoint(tmp_path / "last")
    assert met == [2] and last.counters["step"] == 30 and last.counters["lr_scale"] == 0.5


def test_ignored_targets_are_not_counted() -> None:
    batch = Columns(torch.tensor([1, 2, 9, 3, 4, 5]), TrainingOptions(1, 6), 9).get(1, 0)
    assert batch.targets.flatten().tolist() == [2, IGNORED, 3, 4, 5] and batch.count == 4
    assert batch.resets is not None
    assert batch.resets.flatten().tolist() == [False, False, True, False, False]
