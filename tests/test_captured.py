"""Training steps as recordings make the same numbers as plain ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tyro")

from fastrnn.lm import captured, snapshot  # noqa: E402
from fastrnn.lm.captured import WARM_UP, CapturedStep  # noqa: E402
from fastrnn.lm.checkpoint import load_checkpoint  # noqa: E402
from fastrnn.lm.command_line import parse  # noqa: E402
from fastrnn.lm.optim import make_optimizer  # noqa: E402
from fastrnn.lm.report import Reporter  # noqa: E402
from fastrnn.lm.session import train  # noqa: E402
from fastrnn.lm.step import Step  # noqa: E402
from fastrnn.train import main  # noqa: E402
from tests.gpu_checks import training_graph_agrees  # noqa: E402
from tests.recorded import Recorded  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Those that are made, in order."""
    made: list[Recorded] = []

    def make(device: torch.device) -> Recorded:
        made.append(Recorded(device))
        return made[-1]

    monkeypatch.setattr(captured, "CudaGraph", make)
    return made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """90 x 8 tokens to train on: 8 whole windows of 10 an epoch, and one of 9."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(12, (80, 9), generator=generator).tolist()
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(f"w{w}" for w in line) + "\n" for line in words))
    return path


def run(text: Path, out: Path, options: str, graphs: bool = True, resume: bool = False) -> int:
    given = f"--data {text} --out {out} --hidden-size 12 --batch-size 8 --bptt 10"
    more = ["--resume", "--no-cuda-graphs"] if resume else []
    config = parse([*given.split(), *options.split(), *more])
    config.run.cuda_graphs = graphs
    return train(config, Reporter())


def assert_alike(one: Path, other: Path) -> None:
    """Weights, optimizer, hidden state and counters, to the bit."""
    first, second = load_checkpoint(one / "last"), load_checkpoint(other / "last")
    for left, right in ((first.weights, second.weights), (first.state, second.state)):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].equal(right[name]), name
    for name in ("step", "batch", "epoch", "rate", "norm", "best_loss", "valid_losses"):
        assert second.counters[name] == first.counters[name], name


@pytest.mark.parametrize(
    "options",
    [
        "--cell lstm --num-layers 2 --dropout 0.2",
        "--cell gru --optimizer sgd --lr 4 --clip 0.05 --accumulate 2 --ar 1 --tar 1",
        "--cell gru --optimizer sgd --lr 5 --clip 0 --no-tied --dropout-weights 0.2 --zoneout 0.1",
        "--cell transformer --heads 2 --optimizer adamw --dropout 0.1 --warmup 5",
        "--cell lstm --optimizer nt-asgd --lr 30 --patience 1 --epochs 5 --variational",
    ],
)
def test_a_recorded_run_has_the_numbers_of_a_plain_one(
    text: Path,
    tmp_path: Path,
    graphs: list[Recorded],
    options: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = f"--epochs 2 --log-interval 7 --checkpoint-interval 13 {options}"
    plain, recorded = tmp_path / "plain", tmp_path / "recorded"
    rate = Step._rate
    with monkeypatch.context() as patch:  # the learning rate of a recording is a float32
        patch.setattr(Step, "_rate", lambda *given: float(np.float32(rate(*given))))
        # ... and its gradients are dense.
        patch.setattr(snapshot, "make_optimizer", lambda *given, rowwise: make_optimizer(*given))
        run(text, plain, options, graphs=False)
    assert not graphs
    run(text, recorded, options)
    (graph,) = graphs
    epochs = 5 if "asgd" in options else 2
    assert graph.warmed == WARM_UP
    assert graph.replays == 8 * epochs - WARM_UP  # an epoch's ninth window is plain
    assert_alike(plain, recorded)
    averaged = load_checkpoint(recorded / "last").counters["averaged"]
    assert (averaged > 0) == ("asgd" in options)
    losses = [(out / "metrics.jsonl").read_text().count('"loss"') for out in (plain, recorded)]
    assert losses[0] == losses[1]


def test_it_can_be_continued_to_the_same_bits(
    text: Path, tmp_path: Path, graphs: list[Recorded]
) -> None:
    options = "--cell lstm --epochs 4 --dropout 0.2 --schedule constant"
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(text, straight, f"{options} --max-steps 26")
    run(text, broken, f"{options} --max-steps 15")
    run(text, broken, f"{options} --max-steps 26", resume=True)
    assert len(graphs) == 4  # the third of them before the checkpoint was read
    assert graphs[2].replays == 0 < graphs[3].replays
    assert_alike(straight, broken)


def test_a_step_that_would_spoil_the_weights_is_not_made_and_told_of(
    text: Path, tmp_path: Path, graphs: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    load, weights = CapturedStep._load, {}

    def poisoned(self: CapturedStep, batch: object) -> None:
        load(self, batch)
        step = self._progress.counters.step
        weights[step] = self._progress.model.decoder.bias.detach().clone()
        if step == 14 and not self._progress.counters.rewinds:
            self._states[0][0].fill_(torch.nan)

    monkeypatch.setattr(CapturedStep, "_load", poisoned)
    out = tmp_path / "run"
    options = "--cell gru --optimizer sgd --lr 1 --schedule constant --checkpoint-interval 5"
    run(text, out, f"{options} --epochs 4 --no-tied --log-interval 1000")
    log = (out / "log.txt").read_text()
    assert "the training loss is nan at step 15: back to step 10, at half the rate" in log
    assert load_checkpoint(out / "last").counters["step"] == 36
    assert all(bool(bias.isfinite().all()) for bias in weights.values())
    assert len(graphs) == 2  # the way back has new tensors


def test_a_batch_that_is_bad_twice_is_left_out(
    text: Path, tmp_path: Path, graphs: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = CapturedStep._load

    def poisoned(self: CapturedStep, batch: object) -> None:
        load(self, batch)
        if self._progress.counters.step == 15:
            self._states[0][0].fill_(torch.nan)

    monkeypatch.setattr(CapturedStep, "_load", poisoned)
    monkeypatch.setattr(captured, "PATIENCE", 1)
    out = tmp_path / "run"
    run(text, out, "--cell gru --epochs 2 --checkpoint-interval 6 --log-interval 1000")
    last = load_checkpoint(out / "last").counters
    assert (last["step"], last["skipped"], last["rewinds"]) == (18, [15], 2)


@pytest.mark.parametrize("cell", ["lstm", "transformer"])
def test_what_is_checked_on_a_gpu_holds_with_the_stand_in(cell: str) -> None:
    graph = Recorded()
    training_graph_agrees(cell, "cpu", graph)
    assert graph.replays == 4


def test_the_stand_in_finds_what_a_graph_forbids() -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="the host waits"):
        Recorded().record(lambda: print(float(x.sum())))
    graph, total = Recorded(), torch.zeros(3)
    graph.record(lambda: total.add_(x * 2).mul_(1))
    assert not total.any()
    graph.replay()
    x.fill_(3)
    graph.replay()
    assert total.tolist() == [8.0, 8.0, 8.0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "--cuda-graphs needs a CUDA device, got --device cpu"),
        ("--device cuda --random-bptt", "--cuda-graphs needs windows that are all alike"),
        ("--device cuda --sentences", "--cuda-graphs needs windows that are all alike"),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: str, expected: str
) -> None:
    assert main(["--cuda-graphs", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1, said
