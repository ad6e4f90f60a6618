"""What `fastrnn.profile` does: time the parts of real training steps."""

from __future__ import annotations

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.optim import optimizer as optim

from fastrnn.lm.checkpoint import write_file
from fastrnn.lm.command_line import parse
from fastrnn.lm.config import Config
from fastrnn.lm.data import Corpus, load_corpus
from fastrnn.lm.device import find_device, select_backend
from fastrnn.lm.errors import UserError
from fastrnn.lm.loop import Trainer
from fastrnn.lm.model import LanguageModel, build_model
from fastrnn.lm.options import read_options
from fastrnn.lm.pictures import new_figure, save_figure
from fastrnn.lm.report import Reporter
from fastrnn.lm.run import Run

PHASES = ("data", "embedding", "recurrence", "output + loss", "backward", "clip", "update")
WARMUP, TRACED = 5, 5  # steps


@dataclass
class ProfilingOptions:
    """Measure what share of a training step each part takes. All options of fastrnn.train set what
    is trained; --out names the folder for profile.json and the picture (default: profile)."""

    config: Config = field(default_factory=Config)
    steps: int = 50
    """Steps to time, after 5 to warm up."""
    trace: bool = False
    """Also write trace.json of 5 steps, by torch.profiler, for chrome://tracing or Perfetto."""


class _Enough(Exception):
    """Ends a training from within, when its steps have been timed."""


class Stopwatch:
    """Times the parts of training steps from hooks, so that the steps are the trainer's own.

    Args:
        model: what is trained; its `rnn` is the recurrence.
        steps: how many to time, after some to warm up.
        traced: how many to record by torch.profiler after those.
    """

    def __init__(self, model: LanguageModel, steps: int, traced: int) -> None:
        self._model, self._timed, self._last = model, WARMUP + steps, WARMUP + steps + traced
        self._device = next(model.parameters()).device
        self._now = 0.0
        self._step = dict.fromkeys(PHASES, 0.0)
        self._tokens = 0
        self.steps: list[dict[str, float]] = []
        self.profiler = torch.profiler.profile() if traced else None
        self._handles: list[Any] = []

    def __enter__(self) -> Stopwatch:
        model = self._model
        model.objective = self._around(model.objective)  # type: ignore[method-assign]
        self._handles = [
            model.rnn.register_forward_pre_hook(lambda *_: self._mark("embedding")),
            model.rnn.register_forward_hook(lambda *_: self._mark("recurrence")),
            *(self._after_gradient(p) for p in model.parameters() if p.requires_grad),
            optim.register_optimizer_step_pre_hook(lambda *_: self._mark("clip")),
            optim.register_optimizer_step_post_hook(lambda *_: self._end_step()),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        del self._model.objective
        for handle in self._handles:
            handle.remove()

    def begun(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """The same step, at whose beginning the clock starts: validations and checkpoints, which
        lie between steps, are no part of them."""

        def begin() -> Any:
            self._now = time.perf_counter()
            return step()

        return begin

    def _around(self, objective: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            self._mark("data")
            self._tokens += args[1].numel()
            result = objective(*args)
            self._mark("output + loss")
            return result

        return timed

    def _after_gradient(self, parameter: Any) -> Any:
        # The last of these to be called ends the backward pass.
        return parameter.register_post_accumulate_grad_hook(lambda _: self._mark("backward"))

    def _mark(self, phase: str) -> None:
        """What has passed since the mark before was spent in `phase`."""
        if not self._model.training:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._step[phase] += now - self._now
        self._now = now

    def _end_step(self) -> None:
        self._mark("update")
        self.steps.append(self._step)
        self._step = dict.fromkeys(PHASES, 0.0)
        if len(self.steps) == self._timed and self.profiler is not None:
            self.profiler.start()
        if len(self.steps) == self._last:
            if self.profiler is not None:
                self.profiler.stop()
            raise _Enough

    @property
    def tokens(self) -> float:
        """Mean number of tokens that a step reads."""
        return self._tokens / len(self.steps)

    def medians(self) -> dict[str, float]:
        """Seconds of each part in the median step; no part suffers from another's outlier."""
        timed = self.steps[WARMUP : self._timed]
        return {phase: statistics.median(step[phase] for step in timed) for phase in PHASES}


def profile(arguments: list[str]) -> None:
    """Time training steps; print a table, write it as JSON and a picture.

    Args:
        arguments: the command line; see `ProfilingOptions`.

    Raises:
        UserError: an option, a file or a device cannot be used.
    """
    options = read_options(ProfilingOptions, "fastrnn.profile", arguments)
    if not 1 <= options.steps <= 10**6:
        raise UserError(f"--steps must be from 1 to 1000000, got {options.steps}")
    config = parse(_trainers(arguments))
    if config.run.compile or config.run.cuda_graphs:
        raise UserError("--compile, --cuda-graphs: such a step has no parts that could be timed")
    folder = Path(config.run.out or "profile")
    training, config.run.checkpoint_interval = config.training, 0
    # The stopwatch ends it before. Twice as many: a step of nothing but beginnings of documents
    # is not timed, and the one after it has others.
    training.epochs = training.max_steps = 2 * (WARMUP + options.steps + TRACED)
    device = find_device(config.run.device)
    with select_backend(config.run.backend, device) as backend:
        corpus = load_corpus(config.corpus, training.batch_size, training.bptt)
        torch.manual_seed(training.seed)
        rows = training.batch_size * training.bptt
        model = build_model(len(corpus.vocabulary), config.model, rows, device)
        _make(folder)
        with Stopwatch(model, options.steps, TRACED if options.trace else 0) as watch:
            _train(config, corpus, model, watch)
    seconds = watch.medians()
    kind = f"{config.model.cell} {config.model.num_layers} x {config.model.hidden_size}"
    what = (
        f"{kind}, {training.batch_size} x {training.bptt} tokens a step, "
        f"{len(corpus.vocabulary):,} in the dictionary, on {device}, {backend} kernels"
    )
    _show(seconds, what, watch.tokens, options.steps)
    content = {"what": what, "steps": options.steps, "seconds": seconds}
    content["tokens_per_step"] = watch.tokens
    write_file(folder / "profile.json", json.dumps(content, indent=1).encode())
    _draw(seconds, what, folder / "profile")
    if watch.profiler is not None:
        watch.profiler.export_chrome_trace(str(folder / "trace.json"))
    made = "profile.json, profile.png, profile.svg" + (", trace.json" if options.trace else "")
    print(f"in {folder}: {made}")


def _make(folder: Path) -> None:
    """Make the folder, and see that it can be written before anything is measured."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _trainers(arguments: list[str]) -> list[str]:
    """The arguments without those that only this program knows."""
    kept, skip = [], False
    for argument in arguments:
        name, given, _ = argument.partition("=")
        if skip or name in ("--steps", "--trace", "--no-trace"):
            skip = not skip and name == "--steps" and not given
        else:
            kept.append(argument)
    return kept


def _train(config: Config, corpus: Corpus, model: LanguageModel, watch: Stopwatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        run.start(config, corpus)
        try:
            trainer = Trainer(config, corpus, model, run, Reporter(Console(file=io.StringIO())))
            trainer.step = watch.begun(trainer.step)  # type: ignore[method-assign]
            trainer.fit()
        except _Enough:
            return


def _show(seconds: dict[str, float], what: str, tokens: float, steps: int) -> None:
    total = sum(seconds.values())
    print(what)
    for phase, value in seconds.items():
        bar = "█" * round(40 * value / total)
        print(f"  {phase:<14}{1000 * value:9.2f} ms {100 * value / total:6.1f}%  {bar}".rstrip())
    speed = f"{tokens / total:,.0f} tokens/s"
    print(f"  {'a step':<14}{1000 * total:9.2f} ms  {speed}; medians of {steps} steps")


def _draw(seconds: dict[str, float], what: str, path: Path) -> None:
    figure, axis = new_figure(8, 3.4)
    total = sum(seconds.values())
    values = [100 * value / total for value in seconds.values()]
    bars = axis.barh(list(seconds), values)
    labels = [f"{1000 * s:.2f} ms, {v:.1f}%" for s, v in zip(seconds.values(), values, strict=True)]
    axis.bar_label(bars, labels, padding=4)
    axis.invert_yaxis()
    axis.set_xlim(0, max(values) * 1.3)
    axis.set_xlabel("% of a training step")
    axis.set_title(what, fontsize=9)
    save_figure(figure, path)
