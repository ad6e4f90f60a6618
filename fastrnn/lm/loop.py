"""The training loop: steps, validation, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from fastrnn.lm.batches import Columns, Sentences, count_batches
from fastrnn.lm.captured import make_step
from fastrnn.lm.checkpoint import (
    Checkpoint,
    checkpoint_exists,
    load_before,
    load_checkpoint,
    save_checkpoint,
)
from fastrnn.lm.config import Config
from fastrnn.lm.data import Corpus
from fastrnn.lm.errors import UserError
from fastrnn.lm.evaluate import evaluate
from fastrnn.lm.interrupt import StopOnSignal
from fastrnn.lm.journal import Journal
from fastrnn.lm.memory import TRIM_INTERVAL, trim_free_memory
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.optim import stalled
from fastrnn.lm.parallel import World
from fastrnn.lm.report import Reporter
from fastrnn.lm.run import Run
from fastrnn.lm.snapshot import Counters, Progress


class Trainer:
    """Trains one model on one corpus.

    Args:
        config: all options, completed.
        corpus: the encoded text.
        model: on its device.
        run: where metrics and checkpoints go.
        reporter: where progress goes.
        world: the processes that share the work; default: this one alone.
    """

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        model: LanguageModel,
        run: Run,
        reporter: Reporter,
        world: World | None = None,
    ) -> None:
        self.config, self.corpus, self.model = config, corpus, model
        self.run, self.reporter = run, reporter
        self.world = world or World(torch.device("cpu"))
        self.progress = Progress(config, model, self.world)
        self.stopped_by = 0
        self._due = 0  # the step of the last checkpoint that was due
        options, vocabulary = config.training, corpus.vocabulary
        self.batches: Columns | Sentences
        if config.corpus.sentences:
            self.batches = Sentences(corpus.train, options, vocabulary.eos)
        else:
            self.batches = Columns(corpus.train, options, vocabulary.document)
        self.steps = count_batches(self.batches, options.epochs, options.max_steps)
        self._step = make_step(config, self.progress, self.world, self.steps)
        self.journal = Journal(run, reporter, self.progress, self.steps, self.batches.count)

    @property
    def counters(self) -> Counters:
        """Where the run is."""
        return self.progress.counters

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What changes the weights."""
        return self.progress.optimizer

    def fit(self) -> None:
        """Train to the last step, or until a signal: its number is then in `stopped_by`, and the
        state reached in the last checkpoint."""
        if self.counters.step == 0:
            self._save(self.run.last)  # what a run that diverges early goes back to
        with StopOnSignal() as stop:
            while self.counters.step < self.steps and not self.stopped_by:
                self.advance()
                self.stopped_by = self.world.largest(stop.asked)
            if self.counters.step == self.steps:
                self.stopped_by = 0
            elif self.stopped_by and not self._rewound(self._step.settle()):
                self._save_stop()  # a second SIGTERM waits for it

    def advance(self) -> None:
        """One step, and what is due after it."""
        counters, options = self.counters, self.config.run
        if self._rewound(self.step()):
            return
        if counters.step % TRIM_INTERVAL == 0:
            trim_free_memory()
        last = counters.step == self.steps
        epoch_ends = counters.batch == self.batches.count(counters.epoch)
        logs = counters.step % options.log_interval == 0 or last
        every = options.checkpoint_interval
        saves = bool(every) and counters.step % every == 0
        if (epoch_ends or logs or saves) and self._rewound(self._step.settle()):
            return
        if counters.interval_tokens and logs:
            self.journal.log()
        if epoch_ends or last:
            with self.journal.pause():
                self._validate(epoch_ends)
        elif saves:
            self._save(self.run.last)

    def _rewound(self, reason: str | None) -> bool:
        """Go back if there is a reason to."""
        if reason is not None:
            self._rewind(reason)
        return reason is not None

    def step(self) -> str | None:
        """One step, and no more; or why it was not made: it would have spoilt the weights."""
        counters = self.counters
        if counters.step not in counters.skipped:
            batch = self.batches.get(counters.epoch, counters.batch)
            reason = self._step(batch)
            if reason is not None:
                return reason
            self.journal.count(batch.count)
        counters.batch += 1
        counters.step += 1
        return None

    def _validate(self, epoch_ends: bool) -> None:
        """Evaluate, keep the model if it is the best so far, and checkpoint."""
        counters, average = self.counters, self.progress.average
        options = self.config.optimizer
        with average.in_place():
            loss, speed = self.evaluate(self.corpus.valid)
            self.journal.validated(loss, speed)
            if not math.isfinite(loss):
                raise self._diverged(f"the validation loss is {loss}", counters.step)
            better = counters.best_loss is None or loss < counters.best_loss
            if better:
                counters.best_loss, counters.best_step = loss, counters.step
            elif epoch_ends and options.schedule == "plateau":
                assert options.decay_factor is not None
                counters.lr_scale *= options.decay_factor
            if epoch_ends:
                counters.valid_losses.append(loss)
                counters.epoch, counters.batch = counters.epoch + 1, 0
                self.progress.forget_state()
            # The best first: if the program dies in between, the epoch is repeated from the last.
            if better:
                self._save(self.run.best)
        waits = options.optimizer == "nt-asgd" and not average.begun
        if waits and stalled(counters.valid_losses, options.patience):
            average.begin()
            self.reporter.say(f"validation has stalled: averaging from step {counters.step} on")
        self._save(self.run.last)

    def _rewind(self, reason: str) -> None:
        """Go back to the last checkpoint, and on from there at half the rate."""
        diverged, rewinds = self.counters.step, self.counters.rewinds + 1
        again = self.counters.trouble == diverged
        if rewinds > self.config.training.rewinds:
            raise self._diverged(reason, diverged + 1)
        checkpoint = self._load_due()
        self.world.wait()  # until all have read it
        self.restore(checkpoint, self.run.last)
        counters = self.counters
        counters.rewinds, counters.trouble = rewinds, diverged
        counters.lr_scale /= 2
        if again:
            counters.skipped.append(diverged)
        self.run.keep_metrics(checkpoint.counters["metrics_lines"])
        self._save(self.run.last)
        self.reporter.say(
            f"{reason} at step {diverged + 1}: back to step {counters.step}, at half the rate"
            + (f", leaving out the batch of step {diverged + 1}" if again else "")
        )

    def _diverged(self, reason: str, step: int) -> UserError:
        return UserError(
            f"{reason} at step {step}: lower --lr or --clip (the last checkpoint, "
            f"{self.run.last}, is from before)"
        )

    def _load_due(self) -> Checkpoint:
        """The last checkpoint that was due: were it one of a stop, the weights after a rewind
        would depend on when the run was stopped."""
        step = self.counters.returns_to
        if step is None:
            return load_checkpoint(self.run.last, self.reporter.say)
        return load_before(self.run.last, step, self.reporter.say)

    def evaluate(self, tokens: Tensor) -> tuple[float, float]:
        """Mean loss in nats over every token of a text, integers [N], and tokens per second."""
        options, vocabulary = self.config.training, self.corpus.vocabulary
        result = (0.0, 0.0)
        if self.world.leads:
            batch = options.batch_size * options.bptt
            sentences = self.config.corpus.sentences
            batch = options.batch_size if sentences else batch
            result = evaluate(
                self.model, tokens, vocabulary.eos, batch, vocabulary.document, sentences
            )
        loss, speed = self.world.from_leader(*result)
        return loss, speed

    def _save(self, folder: Path) -> None:
        self.counters.returns_to = None
        self._write(folder)
        self._due = self.counters.step

    def _save_stop(self) -> None:
        """Save where a stop came, beside the last checkpoint that was due."""
        counters = self.counters
        if counters.step == self._due:  # no step was made since
            return
        stopped_before = counters.returns_to is not None
        counters.returns_to = self._due
        self._write(self.run.last, keep_old=stopped_before)

    def _write(self, folder: Path, keep_old: bool = False) -> None:
        if not self.progress.finite():
            raise self._diverged("weights are no longer finite", self.counters.step)
        self.journal.tell_time()
        lines = self.run.sync_metrics()
        checkpoint = self.progress.to_checkpoint(self.corpus, lines)
        if self.world.leads:
            save_checkpoint(folder, checkpoint, keep_old)
        self.world.wait()

    def restore(self, checkpoint: Checkpoint, source: Path) -> None:
        """Go on from a checkpoint of this run.

        Args:
            checkpoint: what `fit` saved.
            source: its folder, for messages.

        Raises:
            UserError: it was made from another text or dictionary, or with a model of other sizes.
        """
        if checkpoint.counters["corpus"] != self.corpus.fingerprint:
            raise UserError(
                f"{source}: the checkpoint was made from another text than --data "
                f"{self.config.corpus.data} holds now"
            )
        digest = self.corpus.vocabulary.digest
        if checkpoint.counters.get("vocabulary", digest) != digest:  # of another tokenizers
            raise UserError(
                f"{source}: the checkpoint was made with another dictionary than is made of --data "
                f"{self.config.corpus.data} now"
            )
        self.progress.restore(checkpoint, source)
        counters, best = self.counters, self.run.best
        if counters.best_loss is not None and not checkpoint_exists(best):
            self.reporter.say(
                f"{best}: missing, expected the model of step {counters.best_step}; the best from "
                "here on takes its place"
            )
            counters.best_loss = None
        due = self.counters.returns_to
        self._due = self.counters.step if due is None else due
        # Its recording would go on with the tensors that were there before.
        self._step = make_step(self.config, self.progress, self.world, self.steps)
        self.journal.begin()
