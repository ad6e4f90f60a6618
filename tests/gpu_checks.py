"""What has to hold on a machine with a GPU; `tests/test_gpu.py` runs it, `python -m` too.

Every schedule, cell and dtype against float64, with torch's own error as the measure; capture in a
CUDA graph, the trainer's step included; the same bits twice; streams; devices that do not belong
together.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import fastrnn
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.protocol import family, say
from fastrnn import _cuda, ops
from fastrnn.bidirectional import BothDirections
from fastrnn.cells import CELLS, COMPILED, LAYER_NORMED
from fastrnn.wavefront import Stack, layer_by_layer
from tests.gpu_attention import attention_checks
from tests.layers import Layer, assert_as_close_as_torch, everything, random_layer

# A few roundings of each dtype, relative to the largest value.
FLOORS = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
# batch_sizes, I, H
SHAPES = {
    "small": ([3] * 4, 8, 24),
    "padded": ([20] * 9, 40, 256),
    "ragged": ([21] * 3 + [13] * 3 + [2], 33, 100),
    "wide": ([20] * 4, 64, 650),
}
# What only the step schedule has, and the cells that have it.
OPTIONS = {"projected": ("lstm",), "normed": LAYER_NORMED}
Check = Callable[[], None]


def options(name: str | None, hidden: int) -> dict[str, Any]:
    """Arguments of `random_layer` for one of OPTIONS, or for none."""
    return {None: {}, "projected": {"proj_size": hidden // 2}, "normed": {"norm": True}}[name]


def on_gpu(layer: Layer, dtype: torch.dtype) -> Layer:
    """A copy there; batch_sizes stay."""
    there = layer.to(dtype)
    there.tensors = [
        None if t is None else t.detach().cuda().requires_grad_() for t in there.tensors
    ]
    resets, seed, sequences, rates = layer.extras
    moved = (None if t is None else t.cuda() for t in (resets, seed, sequences))
    there.extras = (*moved, rates)
    return there


class Refused(Exception):  # noqa: N818 (what it is)
    """The schedule that was asked for does not take the layer."""


@contextmanager
def asked_for(schedule: str) -> Iterator[None]:
    """One schedule, and no other.

    Raises:
        Refused: it does not take what runs inside; the step schedule takes everything.
    """
    try:
        with _cuda.use_schedule(schedule):
            yield
    except RuntimeError as error:
        if schedule != "step" and f"the {schedule} schedule was asked for: it " in str(error):
            raise Refused(str(error)) from error
        raise


def agrees(
    schedule: str,
    dtype: torch.dtype,
    cell: str,
    shape: str,
    extras: bool = False,
    option: str | None = None,
) -> None:
    """One layer, forward and backward, against float64."""
    more = options(option, SHAPES[shape][2])
    layer = random_layer(cell, *SHAPES[shape], reverse=shape == "ragged", **more)
    if extras:
        layer = layer.with_extras(drawn=True)
    there = on_gpu(layer, dtype)
    with asked_for(schedule):
        ours = everything(ops.Recurrence.apply, there)
        again = everything(ops.Recurrence.apply, there)
    exact, torchs = everything(ops.reference, layer), everything(ops.reference, there)
    for name, right in exact.items():
        assert torch.equal(ours[name], again[name]), f"{name}: other bits the second time"
        assert_as_close_as_torch(name, ours[name].cpu(), torchs[name].cpu(), right, FLOORS[dtype])


@contextmanager
def tf32() -> Iterator[None]:
    """torch lets products of float32 tensors be TF32's."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def agrees_by_tf32(schedule: str, cell: str, shape: str) -> None:
    """The same with TF32's roundings in every product."""
    layer = random_layer(cell, *SHAPES[shape], reverse=shape == "ragged")
    there = on_gpu(layer, torch.float32)
    exact = everything(ops.reference, layer)
    with tf32(), asked_for(schedule):
        ours, torchs = everything(ops.Recurrence.apply, there), everything(ops.reference, there)
    for name, right in exact.items():
        assert_as_close_as_torch(name, ours[name].cpu(), torchs[name].cpu(), right, 4 * 2**-10)


def side_by_side(schedule: str, cell: str, dtype: torch.dtype, shape: str) -> None:
    """Both directions in one launch, against each by itself on the step schedule."""
    layer = on_gpu(random_layer(cell, *SHAPES[shape]), dtype)
    other = on_gpu(random_layer(cell, *SHAPES[shape], reverse=True, seed=1), dtype)
    other.tensors[0] = layer.tensors[0]
    none = (None,) * 5
    args = (*layer.tensors[:6], *other.tensors[1:6], layer.batch_sizes, *none, [], cell)
    leaves = [*layer.present, *other.present[1:]]

    def results(found: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        kept = [found[i] for i in (0, 1, 4, 5)]
        total = sum(t.float().square().sum() for t in kept)
        return [*kept, *torch.autograd.grad(total, leaves)]

    with asked_for(schedule):
        ours = results(BothDirections.apply(*args))
    with asked_for("step"):
        singles = [t for way in (layer, other) for t in ops.Recurrence.apply(*way.arguments)]
        expected = results(tuple(singles))
    for a, b in zip(ours, expected, strict=True):
        worst = (a.float() - b.float()).abs().max()
        assert worst <= 8 * torch.finfo(dtype).eps * b.float().abs().max(), worst


def layers_in_one_launch(cell: str, dtype: torch.dtype, layers: int = 2) -> None:
    """A stack against float64; the same bits twice."""
    every = [random_layer(cell, [20] * 35, 200 if k else 40, 200, seed=k) for k in range(layers)]
    lower = [on_gpu(layer, dtype) for layer in every]
    reference = layer_by_layer(ops.reference)

    def results(run: Any, of: list[Layer]) -> list[torch.Tensor]:
        input, tensors = of[0].tensors[0], [t for layer in of for t in layer.tensors[1:6]]
        found = run(input, tensors, of[0].batch_sizes, None, cell, True)
        kept = [found[-4], *found[1::4]]
        total = sum(t.square().sum() for t in kept)
        return [*kept, *torch.autograd.grad(total, [input, *tensors])]

    def ours(input: torch.Tensor, tensors: list[torch.Tensor], *rows: Any) -> Any:
        return Stack.apply(input, *rows, *tensors)

    found, again = results(ours, lower), results(ours, lower)
    exact, torchs = results(reference, every), results(reference, lower)
    for name, values in enumerate(zip(found, again, torchs, exact, strict=True)):
        one, other, theirs, right = (t.detach().cpu() for t in values)
        assert torch.equal(one, other), f"{name}: other bits the second time"
        assert_as_close_as_torch(str(name), one, theirs, right, FLOORS[dtype])


def graph_replays(schedule: str, cell: str, both: bool = False, option: str | None = None) -> None:
    """A captured training pass follows its input, to the bit."""
    layer = on_gpu(random_layer(cell, [8] * 5, 16, 64, **options(option, 64)), torch.bfloat16)
    x = layer.tensors[0]

    def step() -> tuple[torch.Tensor, ...]:
        if both:
            rows = (layer.batch_sizes, *(None,) * 5, [], cell)
            found = BothDirections.apply(*layer.tensors[:6], *layer.tensors[1:6], *rows)
            output = found[0] + found[4]
        else:
            output, *_ = ops.Recurrence.apply(*layer.arguments)
        return (output, *torch.autograd.grad(output.float().square().sum(), layer.present))

    with asked_for(schedule):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for _ in range(2):
            with torch.no_grad():
                x.copy_(torch.randn_like(x))
            graph.replay()
            for found, expected in zip(captured, step(), strict=True):
                assert torch.equal(found, expected)


def training_graph_agrees(cell: str, device: str = "cuda", graph: Any = None) -> None:
    """The trainer's step as a graph, against its plain step; an odd window goes between."""
    try:
        from fastrnn.lm.batches import window
        from fastrnn.lm.captured import WARM_UP, CapturedStep
        from fastrnn.lm.complete import complete
        from fastrnn.lm.config import Config, ModelOptions, OptimizerOptions, TrainingOptions
        from fastrnn.lm.model import LanguageModel
        from fastrnn.lm.parallel import World
        from fastrnn.lm.snapshot import Progress
        from fastrnn.lm.step import Step
    except ModuleNotFoundError as error:  # of what the trainer needs and fastrnn does not
        print(f"not checked: {error}")
        return
    sizes = TrainingOptions(bptt=7, batch_size=4, explosion=0.0)
    model_options: Any = ModelOptions(cell, hidden_size=24, dropout=0.2)
    # Adam would make steps of rounding errors: the gradient of attention's key biases is zero.
    optimizer: Any = "sgd" if cell == "transformer" else "adam"
    config = Config(
        model=model_options, optimizer=OptimizerOptions(optimizer, lr=0.01), training=sizes
    )
    complete(config)
    text = torch.randint(50, (61, 4), generator=torch.Generator().manual_seed(1))
    ends = [*range(7, 7 * (WARM_UP + 3), 7), 7 * (WARM_UP + 2) + 3, 7 * (WARM_UP + 3) + 3]
    ends += [ends[-1] + 7]
    found = []
    for captures in (False, True):
        torch.manual_seed(0)
        model = LanguageModel(50, config.model).to(device)
        there = torch.device(device)
        progress = Progress(config, model, World(there))
        if captures:
            step: Step = CapturedStep(config, progress, World(there), 99, graph)
        else:
            step = Step(config, progress, World(there), 99)
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            batch = window(text[start:end], text[start + 1 : end + 1], None)
            assert step(batch) is None
            progress.counters.step += 1
        assert step.settle() is None
        counters = progress.counters
        found.append((counters.interval_loss, counters.norm, *(p for p in model.parameters())))
    for plain, captured in zip(*found, strict=True):
        torch.testing.assert_close(captured, plain, rtol=1e-4, atol=1e-5)


def modules_agree(cell: str, proj_size: int = 0, layer_norm: bool = False) -> None:
    """Two layers, both directions, a packed batch, against torch.nn on the CPU in float64.

    With layer norm, against ours on the CPU.
    """
    kind = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}[cell]
    torch.manual_seed(0)
    shared: dict[str, Any] = {"bidirectional": True, "dtype": torch.float64}
    shared |= {"proj_size": proj_size} if proj_size else {}
    normed = {"layer_norm": True} if layer_norm else {}
    peer = getattr(fastrnn if layer_norm else torch.nn, kind)(13, 40, 2, **shared, **normed)
    ours = getattr(fastrnn, kind)(13, 40, 2, **shared, **normed).cuda()
    ours.load_state_dict(peer.state_dict())
    rows = [torch.randn(n, 13, dtype=torch.float64) for n in (7, 2, 5)]
    packed = torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    with fastrnn.use_backend("native"):
        found, _ = ours(packed.to("cuda"))
    expected, _ = peer(packed)
    torch.testing.assert_close(found.data.cpu(), expected.data)


def streams_are_kept() -> None:
    """Work goes to the stream that is current."""
    layer = on_gpu(random_layer("lstm", [8] * 5, 16, 64), torch.float32)
    run = torch.ops.fastrnn.recurrence.default
    with torch.no_grad():
        expected = run(*layer.arguments, False)[0]
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            found = run(*layer.arguments, False)[0]
        side.synchronize()
    assert torch.equal(found, expected)


def devices_are_checked() -> None:
    """Tensors of two devices are refused in one line."""
    layer = on_gpu(random_layer("lstm", [3, 3], 4, 8), torch.float32)
    layer.tensors[3] = layer.tensors[3].detach().cpu()
    try:
        torch.ops.fastrnn.recurrence.default(*layer.arguments, False)
    except RuntimeError as error:
        device = f"cuda:{torch.cuda.current_device()}"
        wanted = f"weight_hh must be on the input's device {device}, got cpu"
        assert wanted in str(error), error
        return
    raise AssertionError("a weight on the CPU was taken")


def may_be_refused(check: Check) -> None:
    """Persistent schedules take what fits; `they_run` says what has to."""
    try:
        check()
    except Refused as refused:
        print(refused)


def they_run() -> None:
    """The fast schedules run where the device has them."""
    device = torch.cuda.current_device()
    facts = _cuda.facts(device)
    assert isinstance(facts, _cuda.Facts), facts
    agrees("grid", torch.bfloat16, "lstm", "wide")
    agrees("grid", torch.bfloat16, "gru_reset_before", "wide")
    agrees_by_tf32("grid", "lstm", "wide")
    side_by_side("grid", "lstm", torch.bfloat16, "ragged")
    if facts.capability >= 90:
        agrees("cluster", torch.bfloat16, "lstm", "padded")
        agrees("cluster", torch.bfloat16, "gru_reset_before", "padded")
        agrees_by_tf32("cluster", "lstm", "padded")
        side_by_side("cluster", "lstm", torch.bfloat16, "padded")
        plan = _cuda.plan("lstm", torch.bfloat16, 35, 20, 200, device, 1, 2, ())
        assert plan is None or plan["layers"] == 2, plan["apart"]
        agrees("cluster", torch.float32, "gru", "ragged")


def checks() -> dict[str, Check]:
    """All of them, by name, the most telling first: those at the end may find no time left."""
    found: dict[str, Check] = {
        "they-run": they_run,
        "streams": streams_are_kept,
        "devices": devices_are_checked,
    }
    for schedule in _cuda.SCHEDULES:
        for cell in sorted(COMPILED & set(CELLS)):
            for dtype in FLOORS:
                for shape in SHAPES:
                    name = f"{schedule}-{cell}-{str(dtype)[6:]}-{shape}"
                    found[name] = partial(
                        may_be_refused, partial(agrees, schedule, dtype, cell, shape)
                    )
            extras = partial(agrees, schedule, torch.float32, cell, "ragged", extras=True)
            found[f"{schedule}-{cell}-extras"] = partial(may_be_refused, extras)
            for both in (False, True):
                graph = partial(graph_replays, schedule, cell, both)
                name = f"{schedule}-{cell}-graph{'-both' * both}"
                found[name] = partial(may_be_refused, graph)
            if cell == "rnn_relu":  # a gradient jumps where a rounding changes a sign
                continue
            for shape in ("padded", "ragged"):
                loose = partial(agrees_by_tf32, schedule, cell, shape)
                found[f"{schedule}-{cell}-tf32-{shape}"] = partial(may_be_refused, loose)
                pair = partial(side_by_side, schedule, cell, torch.bfloat16, shape)
                found[f"{schedule}-{cell}-both-{shape}"] = partial(may_be_refused, pair)
    for option, cells in OPTIONS.items():
        for cell in cells:
            name = f"step-{option}-{cell}"
            for shape in SHAPES:
                for dtype in FLOORS:
                    found[f"{name}-{str(dtype)[6:]}-{shape}"] = partial(
                        agrees, "step", dtype, cell, shape, option=option
                    )
            found[f"{name}-extras"] = partial(
                agrees, "step", torch.float32, cell, "ragged", extras=True, option=option
            )
            found[f"{name}-graph"] = partial(graph_replays, "step", cell, option=option)
    for cell in ("lstm", "rnn_tanh"):
        for dtype in (torch.bfloat16, torch.float16):
            for layers in (2, 3):
                name = f"stack-{cell}-{str(dtype)[6:]}-{layers}"
                found[name] = partial(layers_in_one_launch, cell, dtype, layers)
    for cell in ("lstm", "gru", "rnn_tanh"):
        found[f"module-{cell}"] = partial(modules_agree, cell)
    found["module-projected-lstm"] = partial(modules_agree, "lstm", proj_size=17)
    for cell in LAYER_NORMED:
        found[f"module-normed-{cell}"] = partial(modules_agree, cell, layer_norm=True)
    for cell in ("lstm", "gru", "transformer"):
        found[f"training-graph-{cell}"] = partial(training_graph_agrees, cell)
    return found | attention_checks(FLOORS)


def failure(check: Check, clock: Clock) -> str:
    """What is wrong, in a line; empty if nothing is."""
    try:
        check()
        clock.wait()  # or the next check would be blamed for what this one has queued
    except Exception as error:
        traceback.print_exc(file=sys.stdout, limit=-2)
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def main() -> int:
    """Run those named, the small ones or all, as a worker of benchmarks/gpu/supervise.py does.

    Exit status 1 if one failed, or broke the device for those after it.
    """
    some = ("lstm-bfloat16-small", "gru-float32-small", "added-bfloat16-small")
    every, clock = checks(), Clock("cuda")
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_checks", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--small", action="store_true", help="a few small layers")
    parser.add_argument(
        "--without", type=json.loads, default={}, help="JSON: name or its beginning -> what is lost"
    )
    options = parser.parse_args()
    wanted = options.names or [n for n in every if not options.small or n.endswith(some)]
    passed = 0
    for name in wanted:
        say({"begin": name})
        if lost := options.without.get(name):
            say({"case": name, "errors": lost})
            continue
        if lost := options.without.get(family(name)):
            say({"case": name, "skipped": lost["check"]})
            continue
        say({"trying": "check"})
        why = failure(every[name], clock)
        if why and not clock.alive():
            say({"lost": why})
            return 1
        passed += not why
        say({"case": name} | ({"errors": {"check": why}} if why else {}))
    print(f"{passed} of {len(wanted)} checks passed")
    return int(passed < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
