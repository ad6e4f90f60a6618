"""The folder of a run: its options, metrics, dictionary and result."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from fastrnn.lm.checkpoint import checkpoint_exists, write_file
from fastrnn.lm.config import Config, RunOptions
from fastrnn.lm.corpus import SPLITS
from fastrnn.lm.data import Corpus
from fastrnn.lm.errors import UserError
from fastrnn.lm.figures import Metrics, finite, is_figure, parse_metrics, perplexity
from fastrnn.lm.lock import try_lock
from fastrnn.lm.pictures import ENDINGS
from fastrnn.lm.settings import to_toml

CONFIG, METRICS, RESULT, LOG = "config.toml", "metrics.jsonl", "result.json", "log.txt"
VOCABULARY, TOKENIZER = "vocabulary.json", "tokenizer.json"
LAST, BEST, LOCK = "last", "best", ".lock"
# What `fastrnn.evaluate` finds of the best model, by split, and the pictures that it draws beside.
EVALUATIONS = {split: f"evaluation-{split}/evaluation.json" for split in SPLITS}
LOSSES, GRADIENTS = "loss-per-step", "gradient-per-step"
_EVALUATED = (
    *EVALUATIONS.values(),
    *(f"evaluation-{s}/{p}.{e}" for s in SPLITS for p in (LOSSES, GRADIENTS) for e in ENDINGS),
)
_FILES = (
    CONFIG,
    METRICS,
    RESULT,
    LOG,
    VOCABULARY,
    TOKENIZER,
    "curves.png",
    "curves.svg",
    *_EVALUATED,
)
CHECKPOINTS = tuple(name + end for name in (LAST, BEST) for end in ("", ".new", ".old", ".gone"))


class Run:
    """The folder of one run.

    Args:
        folder: where it is or will be.
        writes: whether this process is the one that writes there; default True.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self.last, self.best = folder / LAST, folder / BEST
        self.metrics: Metrics = []
        self._board: Any = None
        self._lock: IO[str] | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._board, self._lock):
            if each is not None:
                each.close()

    def open_board(self) -> None:
        """Write the metrics for TensorBoard, too, from now on.

        Raises:
            ModuleNotFoundError: the package tensorboard is not installed.
        """
        if self.writes:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder))

    def claim(self) -> None:
        """Keep other processes from writing the folder, as long as this one lives in its `with`.

        Raises:
            UserError: another process is writing there.
        """
        if not self.writes or self._lock is not None:
            return
        try:
            self._lock = try_lock(self.folder / LOCK)
        except OSError:  # not there yet; or not to be written, which what writes there will tell
            return
        if self._lock is None:
            raise UserError(f"--out {self.folder}: the run is being written by another process")

    def check_free(self, options: RunOptions) -> None:
        """Raise a UserError if a start would lose what the folder holds, and may not.

        Args:
            options: with `force` it may; with `resume` it may lose a run that came to nothing, as
                one does that dies before its first checkpoint.
        """
        if options.force or not self.folder.exists():
            return
        if options.resume and self.folder.is_dir():
            if self._came_to_something():
                raise UserError(
                    f"--out {self.folder}: has the results of a run, but no last checkpoint to "
                    "continue from; pass --force to start anew, or another folder"
                )
        elif not self.folder.is_dir() or any(p.name != LOCK for p in self.folder.iterdir()):
            raise UserError(
                f"--out {self.folder}: exists and is not an empty folder; pass --resume to "
                "continue the run in it, --force to replace it, or another folder"
            )

    def _came_to_something(self) -> bool:
        files = [self.folder / name for name in (METRICS, RESULT)]
        return checkpoint_exists(self.best) or any(f.is_file() and f.stat().st_size for f in files)

    def start(self, config: Config, corpus: Corpus) -> None:
        """Make the folder, without what an older run left in it, and write the options.

        Args:
            config: the run's options.
            corpus: the run's text, whose dictionary is kept.

        Raises:
            UserError: the folder cannot be written, or another process writes or has written there.
        """
        if not self.writes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claim()
            self.check_free(config.run)  # again: until now it was not ours alone
            # By name: whatever else lies in the folder is not this program's to delete.
            for name in _FILES:
                (self.folder / name).unlink(missing_ok=True)
            for name in CHECKPOINTS:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            self._describe(config, corpus)
        except OSError as error:
            raise UserError(f"--out {self.folder}: cannot be written: {error.strerror}") from error

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return self.folder.is_dir() and checkpoint_exists(self.last)

    def continue_from(self, config: Config, corpus: Corpus, lines: int) -> int:
        """Drop the metrics written after a checkpoint and any earlier result.

        Args:
            config: options, written anew.
            corpus: the run's text, whose dictionary is written anew.
            lines: lines of metrics that there were when the checkpoint was made.

        Returns:
            How many of them are left.

        Raises:
            UserError: the metrics are damaged.
        """
        path = self.folder / METRICS
        text = path.read_bytes().splitlines()[:lines] if path.is_file() else []
        self.metrics = parse_metrics(path, text)
        self.keep_metrics(lines)
        if self.writes:
            for name in (RESULT, *_EVALUATED):
                (self.folder / name).unlink(missing_ok=True)
            self._describe(config, corpus)
        return len(self.metrics)

    def _describe(self, config: Config, corpus: Corpus) -> None:
        write_file(self.folder / CONFIG, to_toml(config).encode())
        tokens = json.dumps(corpus.vocabulary.tokens, ensure_ascii=False)
        write_file(self.folder / VOCABULARY, tokens.encode())
        if corpus.tokenizer is not None:
            write_file(self.folder / TOKENIZER, corpus.tokenizer.read_bytes())

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
            # A path in it may be no text.
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:  # of a full disk, without a name
            raise OSError(error.errno, error.strerror, str(path)) from error

    def record(self, **values: float | str) -> None:
        """Append one line to the metrics; `ppl` is added, null where exp(loss) is not finite."""
        loss = float(values["loss"])
        values["ppl"] = perplexity(loss)
        line = finite(values)
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

    def write_result(self, config: Config, result: dict[str, Any]) -> None:
        """Mark the run as finished, with what it came to.

        Args:
            config: tells how long the run was to be.
            result: JSON values; infinities become null.
        """
        content = finite(result) | {"length": _length(config)}
        if self.writes:
            write_file(self.folder / RESULT, json.dumps(content, indent=1).encode())

    def read_result(self, config: Config) -> dict[str, Any] | None:
        """What `write_result` wrote, or None if the run has not finished or is to be longer."""
        path = self.folder / RESULT
        if not path.is_file():
            return None
        try:
            result: dict[str, Any] = json.loads(path.read_bytes())
            whole = isinstance(result["sample"], str) and all(
                is_figure(result[f"{name}_perplexity"]) for name in ("test", "bigram")
            )
            return result if whole and result["length"] == _length(config) else None
        except (ValueError, KeyError, TypeError):  # damaged: it is worked out again
            return None


def _length(config: Config) -> list[int | None]:
    return [config.training.epochs, config.training.max_steps]


@contextmanager
def default_folder() -> Iterator[Path]:
    """runs/ and the date and time, with a number behind it if that is taken.

    The folder is made at once, so that no other run takes it; if nothing came into it, it goes.
    """
    Path("runs").mkdir(exist_ok=True)
    base = Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
    for number in count(1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    try:
        yield folder
    finally:
        with suppress(OSError):
            os.removedirs(folder)  # those that are empty
