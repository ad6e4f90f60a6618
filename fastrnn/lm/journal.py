"""What a training tells while it runs: metrics, progress, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastrnn.lm.figures import perplexity
from fastrnn.lm.report import Reporter
from fastrnn.lm.run import Run
from fastrnn.lm.snapshot import Progress


class Journal:
    """Writes the metrics of a run and shows its progress.

    Args:
        run: where metrics go.
        reporter: where progress goes.
        progress: what is told of.
        steps: how many steps there will be.
        batches: the number of them in an epoch, from 1.
    """

    def __init__(
        self,
        run: Run,
        reporter: Reporter,
        progress: Progress,
        steps: int,
        batches: Callable[[int], int],
    ) -> None:
        self._run, self._reporter, self._progress, self._steps = run, reporter, progress, steps
        self._batches = batches
        self.begin()

    def begin(self) -> None:
        """The training starts, or goes on, from where `progress` is now."""
        counters, now = self._progress.counters, time.perf_counter()
        self._first_step = counters.step
        self._start = now - counters.seconds
        self._session = self._interval = now
        self._tokens = 0

    def tell_time(self) -> None:
        """Bring the time spent training up to date."""
        self._progress.counters.seconds = time.perf_counter() - self._start

    def count(self, tokens: int) -> None:
        """So many tokens more were trained on."""
        self._tokens += tokens

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The time inside the block is no part of the training's speed."""
        began = time.perf_counter()
        yield
        self._interval += time.perf_counter() - began

    def log(self) -> None:
        """Tell the training loss since this was last called."""
        counters, now = self._progress.counters, time.perf_counter()
        loss = counters.interval_loss / counters.interval_tokens
        speed = self._tokens / (now - self._interval)
        self.record("train", loss, speed)
        a_step = (now - self._session) / max(counters.step - self._first_step, 1)
        left = (self._steps - counters.step) * a_step
        self._reporter.progress(counters.epoch, counters.step, self._steps, loss, speed, left)
        counters.interval_loss, counters.interval_tokens = 0.0, 0
        self._tokens, self._interval = 0, time.perf_counter()

    def validated(self, loss: float, tokens_per_s: float) -> None:
        """Tell the validation loss."""
        counters = self._progress.counters
        self.record("valid", loss, tokens_per_s)
        self._reporter.say(
            f"epoch {counters.epoch}  step {counters.step}  {counters.seconds:.0f} s  "
            f"valid loss {loss:.3f}  valid ppl {perplexity(loss):.2f}  lr {counters.rate:.3g}"
        )

    def record(self, split: str, loss: float, tokens_per_s: float) -> None:
        """Write a line of metrics for the step reached."""
        counters = self._progress.counters
        self.tell_time()
        self._run.record(
            step=counters.step,
            epoch=counters.epoch if split == "train" else self._passes(),
            split=split,
            loss=loss,
            lr=counters.rate,
            tokens_per_s=round(tokens_per_s, 1),
            seconds=round(counters.seconds, 3),
        )

    def _passes(self) -> float:
        """Passes over the text that were made, with the fraction of one that has not ended."""
        counters = self._progress.counters
        share = counters.batch / self._batches(counters.epoch)
        return counters.epoch - 1 + (int(share) if share.is_integer() else share)
