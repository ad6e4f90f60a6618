"""The training loop: steps, validation, schedule, checkpoints."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from fastrnn.lm.checkpoint import Checkpoint, restore_weights, save_checkpoint
from fastrnn.lm.config import Config
from fastrnn.lm.data import Corpus, batchify
from fastrnn.lm.errors import UserError
from fastrnn.lm.evaluate import evaluate
from fastrnn.lm.interrupt import StopOnInterrupt
from fastrnn.lm.memory import trim_free_memory
from fastrnn.lm.model import LanguageModel, State
from fastrnn.lm.report import Reporter
from fastrnn.lm.run import Run, perplexity
from fastrnn.lm.settings import to_dict
from fastrnn.lm.snapshot import make_optimizer, pack, unpack

TRIM_INTERVAL = 10  # steps; each could add 100 MB where the heap grows


@dataclass
class Counters:
    """Where a run is; all of it is in its checkpoints.

    Args:
        epoch: the epoch under way, from 1.
        row: the row of the columns that comes next.
        step: optimizer steps made.
        lr_scale: what stalled validation has left of the learning rate.
        best_loss: lowest validation loss, None before the first validation.
        best_step: the step it was seen at.
        seconds: spent training, validation included.
        interval_tokens: training tokens since the last report.
    """

    epoch: int = 1
    row: int = 0
    step: int = 0
    lr_scale: float = 1.0
    best_loss: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    interval_tokens: int = 0


class Trainer:
    """Trains one model on one corpus.

    Args:
        config: all options, completed.
        corpus: the encoded text.
        model: on its device.
        run: where metrics and checkpoints go.
        reporter: where progress goes.
    """

    def __init__(
        self, config: Config, corpus: Corpus, model: LanguageModel, run: Run, reporter: Reporter
    ) -> None:
        self.config, self.corpus, self.model = config, corpus, model
        self.run, self.reporter = run, reporter
        self.device = next(model.parameters()).device
        self.counters = Counters()
        self.interrupted = False
        options = config.training
        self._optimizer = make_optimizer(model, options)
        columns = batchify(corpus.train, options.batch_size).to(self.device)
        self._inputs, self._targets = columns[:-1], columns[1:]
        self._rows = self._inputs.size(0)
        self.steps = options.epochs * -(-self._rows // options.bptt)
        if options.max_steps is not None:
            self.steps = min(self.steps, options.max_steps)
        self._state: State | None = None
        self._rate = 0.0
        self._interval_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self._begin_session()

    def _begin_session(self) -> None:
        self._first_step = self.counters.step
        self._start = time.perf_counter() - self.counters.seconds
        self._session_start = self._interval_start = time.perf_counter()
        self._timed_tokens = 0

    def fit(self) -> None:
        """Train to the last step, or until Ctrl-C, which sets `interrupted` once the state reached
        is in the last checkpoint."""
        with StopOnInterrupt() as stop:
            while self.counters.step < self.steps and not stop.asked:
                self._advance()
        self.interrupted = self.counters.step < self.steps
        if self.interrupted:
            self._save(self.run.last)

    def _advance(self) -> None:
        """One optimizer step, and what is due after it."""
        counters, options = self.counters, self.config.run
        end = min(counters.row + self.config.training.bptt, self._rows)
        self._step(self._inputs[counters.row : end], self._targets[counters.row : end])
        counters.row = end
        counters.step += 1
        if counters.step % TRIM_INTERVAL == 0:
            trim_free_memory()
        last, epoch_ends = counters.step == self.steps, end == self._rows
        if counters.step % options.log_interval == 0 or last:
            self._log()
        if epoch_ends or last:
            self._validate(epoch_ends)
        elif options.checkpoint_interval and counters.step % options.checkpoint_interval == 0:
            self._save(self.run.last)

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        self.model.train()
        self._rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        loss, self._state = self.model.loss(inputs, targets, self._state)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.training.clip:
            torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.config.training.clip, foreach=True
            )
        self._optimizer.step()
        # Summed on the device: reading it every step would make the host wait.
        self._interval_loss += loss.detach() * targets.numel()
        self.counters.interval_tokens += targets.numel()
        self._timed_tokens += targets.numel()

    def _learning_rate(self) -> float:
        """The rate of the next step."""
        options = self.config.training
        assert options.lr is not None
        rate = options.lr * self.counters.lr_scale
        if options.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * min(self.counters.step / self.steps, 1))) / 2
        return rate

    def _log(self) -> None:
        counters, now = self.counters, time.perf_counter()
        loss = float(self._interval_loss) / counters.interval_tokens
        if not math.isfinite(loss):
            raise UserError(
                f"the training loss is {loss} at step {counters.step}: lower --lr or --clip "
                f"(the last checkpoint is kept)"
            )
        speed = self._timed_tokens / (now - self._interval_start)
        self.record("train", loss, speed)
        a_step = (now - self._session_start) / (counters.step - self._first_step)
        left = (self.steps - counters.step) * a_step
        self.reporter.progress(counters.epoch, counters.step, self.steps, loss, speed, left)
        self._interval_loss.zero_()
        counters.interval_tokens = self._timed_tokens = 0
        self._interval_start = time.perf_counter()

    def _validate(self, epoch_ends: bool) -> None:
        """Evaluate, keep the model if it is the best so far, and checkpoint."""
        counters, began = self.counters, time.perf_counter()
        loss, speed = self.evaluate(self.corpus.valid)
        self.record("valid", loss, speed)
        self.reporter.say(
            f"epoch {counters.epoch}  step {counters.step}  {counters.seconds:.0f} s  "
            f"valid loss {loss:.3f}  valid ppl {perplexity(loss):.2f}  "
            f"lr {self._rate:.3g}"
        )
        better = counters.best_loss is None or loss < counters.best_loss
        if better:
            counters.best_loss, counters.best_step = loss, counters.step
        elif epoch_ends and self.config.training.schedule == "plateau":
            counters.lr_scale /= 4
        if epoch_ends:
            counters.epoch, counters.row, self._state = counters.epoch + 1, 0, None
        # The best first: if the program dies in between, the epoch is repeated from the last.
        if better:
            self._save(self.run.best)
        self._save(self.run.last)
        self._interval_start += time.perf_counter() - began

    def evaluate(self, tokens: Tensor) -> tuple[float, float]:
        """Mean loss in nats over every token of a text, int64 [N], and tokens per second."""
        options = self.config.training
        batch = options.batch_size * options.bptt
        return evaluate(self.model, tokens, self.corpus.vocabulary.eos, batch)

    def record(self, split: str, loss: float, tokens_per_s: float) -> None:
        """Write a line of metrics for the step reached."""
        counters = self.counters
        counters.seconds = time.perf_counter() - self._start
        self.run.record(
            step=counters.step,
            epoch=counters.epoch,
            split=split,
            loss=loss,
            lr=self._rate,
            tokens_per_s=round(tokens_per_s, 1),
            seconds=round(counters.seconds, 3),
        )

    def _save(self, folder: Path) -> None:
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise UserError(
                f"weights are no longer finite at step {self.counters.step}: lower --lr or --clip "
                f"(the checkpoint before is kept)"
            )
        self.counters.seconds = time.perf_counter() - self._start
        tensors = pack(self._optimizer, self._state, self._interval_loss)
        counters = asdict(self.counters) | {
            "rate": self._rate,
            "metrics_lines": self.run.sync_metrics(),
            "config": to_dict(self.config),
            "corpus": self.corpus.fingerprint(),
        }
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        save_checkpoint(folder, Checkpoint(weights, tensors, counters))

    def restore(self, checkpoint: Checkpoint, source: Path) -> None:
        """Go on from a checkpoint of this run.

        Args:
            checkpoint: what `fit` saved.
            source: its folder, for messages.

        Raises:
            UserError: it was made from another text or with a model of other sizes.
        """
        saved = checkpoint.counters
        if saved["corpus"] != self.corpus.fingerprint():
            raise UserError(
                f"{source}: the checkpoint was made from another text than --data "
                f"{self.config.corpus.data} holds now"
            )
        restore_weights(self.model, checkpoint.weights, source)
        self._state, self._interval_loss = unpack(checkpoint.state, self._optimizer, self.device)
        self.counters = Counters(**{f.name: saved[f.name] for f in fields(Counters)})
        self._rate = saved["rate"]
        self._begin_session()
