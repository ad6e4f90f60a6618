"""What a person sees: the progress line, and the curves of a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fastrnn.lm.checkpoint import write_file
from fastrnn.lm.figures import perplexity


class Reporter:
    """Prints lines, and on a terminal keeps one live line of progress below them.

    Args:
        console: where to print; default: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _Console()
        self.log: Callable[[str], None] | None = None  # is given every line, too
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Reporter:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print lines of text as they are."""
        if self.log is not None:
            self.log(text)
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def progress(
        self, epoch: int, step: int, steps: int, loss: float, tokens_per_s: float, left: float
    ) -> None:
        """Show how far training is.

        Args:
            epoch: the epoch under way, from 1.
            step: optimizer steps made.
            steps: how many there will be.
            loss: mean training loss since the report before, in nats.
            tokens_per_s: speed since then.
            left: seconds that the rest may take.
        """
        line = (
            f"epoch {epoch}  step {step}/{steps}  loss {loss:.3f}  ppl {perplexity(loss):.2f}  "
            f"{tokens_per_s:,.0f} tokens/s  {duration(left)} left"
        )
        if self._live.is_started:
            if self.log is not None:
                self.log(line)
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.say(line)


class _Console(Console):
    """Standard output; where its reader has gone away, rich would end the program with code 1."""

    def on_broken_pipe(self) -> None:
        """Leave it to `run_program`."""
        raise BrokenPipeError


class Silent(Reporter):
    """Says nothing: for the processes beside the one that reports."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), force_terminal=False))


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours before them when there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def draw_curves(metrics: list[dict[str, Any]], folder: Path) -> None:
    """Draw training and validation loss by step and by seconds.

    Args:
        metrics: lines of metrics.jsonl.
        folder: where to write curves.png and curves.svg.
    """
    # Here and not above: matplotlib takes about a second to import, and most runs draw once.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, label in zip(axes, ("step", "seconds"), ("step", "seconds"), strict=True):
        for split, style in (("train", "-"), ("valid", "o-"), ("test", "s")):
            lines = [m for m in metrics if m["split"] == split and m["loss"] is not None]
            if lines:
                losses = [m["loss"] for m in lines]
                name = f"{split} (lowest {min(losses):.3f})"
                axis.plot([m[key] for m in lines], losses, style, label=name)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss (nats a token)")
    axes[1].legend()
    for kind in ("png", "svg"):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=120)
        write_file(folder / f"curves.{kind}", content.getvalue())
