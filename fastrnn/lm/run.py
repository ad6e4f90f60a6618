"""The folder of a run: its options, metrics, dictionary and result."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from fastrnn.lm.checkpoint import checkpoint_exists, write_file
from fastrnn.lm.config import Config
from fastrnn.lm.data import Corpus
from fastrnn.lm.errors import UserError
from fastrnn.lm.settings import to_toml

CONFIG, METRICS, RESULT, LOG = "config.toml", "metrics.jsonl", "result.json", "log.txt"
LAST, BEST = "last", "best"
_FILES = (
    CONFIG,
    METRICS,
    RESULT,
    LOG,
    "vocabulary.json",
    "tokenizer.json",
    "curves.png",
    "curves.svg",
)
_FOLDERS = tuple(name + end for name in (LAST, BEST) for end in ("", ".new", ".old"))


class Run:
    """The folder of one run.

    Args:
        folder: where it is or will be.
        writes: whether this process is the one that writes there; default True.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self.last, self.best = folder / LAST, folder / BEST
        self.metrics: list[dict[str, Any]] = []
        self._board: Any = None

    def open_board(self) -> None:
        """Write the metrics for TensorBoard, too, from now on.

        Raises:
            ModuleNotFoundError: the package tensorboard is not installed.
        """
        if self.writes:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder))

    def check_free(self) -> None:
        """Raise a UserError if the folder holds anything."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(
                f"--out {self.folder}: exists and is not an empty folder; pass --resume to "
                "continue the run in it, --force to replace it, or another folder"
            )

    def start(self, config: Config, corpus: Corpus) -> None:
        """Make the folder, without what an older run left in it, and write the options.

        Args:
            config: the run's options.
            corpus: the run's text, whose dictionary is kept.

        Raises:
            UserError: the folder cannot be written.
        """
        if not self.writes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # By name: whatever else lies in the folder is not this program's to delete.
            for name in _FILES:
                (self.folder / name).unlink(missing_ok=True)
            for name in _FOLDERS:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            write_file(self.folder / CONFIG, to_toml(config).encode())
            tokens = json.dumps(corpus.vocabulary.tokens, ensure_ascii=False)
            write_file(self.folder / "vocabulary.json", tokens.encode())
            if corpus.tokenizer is not None:
                write_file(self.folder / "tokenizer.json", corpus.tokenizer.read_bytes())
        except OSError as error:
            raise UserError(f"--out {self.folder}: cannot be written: {error.strerror}") from error

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return self.folder.is_dir() and checkpoint_exists(self.last)

    def continue_from(self, config: Config, lines: int) -> None:
        """Drop the metrics written after a checkpoint and any earlier result.

        Args:
            config: options, written anew.
            lines: lines of metrics that there were when the checkpoint was made.

        Raises:
            UserError: the metrics are damaged.
        """
        path = self.folder / METRICS
        text = path.read_text().splitlines()[:lines] if path.is_file() else []
        try:
            self.metrics = [json.loads(line) for line in text]
        except ValueError as error:
            raise UserError(f"{path}: damaged: a line is not JSON: {error}") from error
        self.keep_metrics(lines)
        if self.writes:
            (self.folder / RESULT).unlink(missing_ok=True)
            write_file(self.folder / CONFIG, to_toml(config).encode())

    def keep_metrics(self, lines: int) -> None:
        """Drop all metrics but the first so many lines."""
        del self.metrics[lines:]
        if self.writes:
            text = "".join(json.dumps(line) + "\n" for line in self.metrics)
            write_file(self.folder / METRICS, text.encode())

    def log(self, text: str) -> None:
        """Append lines to the run's log."""
        if self.writes:
            self._append(LOG, f"{text}\n")

    def _append(self, name: str, text: str) -> None:
        path = self.folder / name
        try:
            with path.open("a") as file:
                file.write(text)
        except OSError as error:  # of a full disk, without a name
            raise OSError(error.errno, error.strerror, str(path)) from error

    def record(self, **values: float | str) -> None:
        """Append one line to the metrics; `ppl` is added, null where exp(loss) is not finite."""
        loss = float(values["loss"])
        values["ppl"] = perplexity(loss)
        line = {k: _finite(v) for k, v in values.items()}
        self.metrics.append(line)
        if self.writes:
            self._append(METRICS, json.dumps(line) + "\n")
        if self._board is not None:
            for name in ("loss", "ppl", "lr", "tokens_per_s"):
                if line[name] is not None:
                    self._board.add_scalar(f"{line['split']}/{name}", line[name], line["step"])

    def sync_metrics(self) -> int:
        """Bring the metrics to the disk; returns how many lines there are."""
        if self.writes:
            with (self.folder / METRICS).open("a") as file:
                os.fsync(file.fileno())
        return len(self.metrics)

    def close(self) -> None:
        """End what writes in the background."""
        if self._board is not None:
            self._board.close()

    def write_result(self, config: Config, result: dict[str, Any]) -> None:
        """Mark the run as finished, with what it came to.

        Args:
            config: tells how long the run was to be.
            result: JSON values.
        """
        content = result | {"length": _length(config)}
        if self.writes:
            write_file(self.folder / RESULT, json.dumps(content, indent=1).encode())

    def read_result(self, config: Config) -> dict[str, Any] | None:
        """What `write_result` wrote, or None if the run has not finished or is to be longer."""
        path = self.folder / RESULT
        if not path.is_file():
            return None
        try:
            result: dict[str, Any] = json.loads(path.read_text())
            return result if result["length"] == _length(config) else None
        except (ValueError, KeyError, TypeError):  # damaged: it is worked out again
            return None


def _length(config: Config) -> list[int | None]:
    return [config.training.epochs, config.training.max_steps]


def default_folder() -> Path:
    """runs/ and the date and time, with a number behind it if that is taken."""
    base = Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite where that is beyond float64."""
    return math.exp(loss) if loss < 700 else math.inf


def _finite(value: Any) -> Any:
    """JSON has no infinities: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
