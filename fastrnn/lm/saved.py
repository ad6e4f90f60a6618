"""A run's trained model, read back from its folder."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from fastrnn.lm.checkpoint import checkpoint_exists, load_checkpoint, restore_weights
from fastrnn.lm.complete import complete
from fastrnn.lm.config import Config
from fastrnn.lm.data import Corpus, load_corpus
from fastrnn.lm.device import find_device
from fastrnn.lm.errors import UserError
from fastrnn.lm.model import LanguageModel, build_model
from fastrnn.lm.run import CONFIG, VOCABULARY, Run
from fastrnn.lm.settings import check_same_run, to_dict, update_from_toml
from fastrnn.lm.tokens import Vocabulary


@dataclass(frozen=True)
class SavedRun:
    """A run that can be used.

    Args:
        folder: of the run.
        config: its options, completed.
        vocabulary: its dictionary.
        fingerprint: of the text it was trained on.
        model: the best model it has found, in evaluation mode.
    """

    folder: Path
    config: Config
    vocabulary: Vocabulary
    fingerprint: str
    model: LanguageModel


def open_run(folder: str, device: str = "cpu") -> SavedRun:
    """Read a run's options, dictionary and best model.

    Args:
        folder: of the run.
        device: where the model goes; default "cpu".

    Returns:
        The run. While it has no best model yet, with its last one.

    Raises:
        UserError: there is no run, it has no checkpoint yet, or a file is damaged.
    """
    run = Run(Path(folder))
    if not run.folder.is_dir():
        raise UserError(f"--run {folder}: no such folder")
    if not (run.folder / CONFIG).is_file():
        raise UserError(f"--run {folder}: not the folder of a run: it has no {CONFIG}")
    config = Config()
    update_from_toml(config, run.folder / CONFIG)
    complete(config)
    source = next((place for place in (run.best, run.last) if checkpoint_exists(place)), None)
    if source is None:
        raise UserError(f"--run {folder}: the run has no checkpoint yet")
    vocabulary = _read_vocabulary(run.folder / VOCABULARY)
    checkpoint = load_checkpoint(source)
    counters = checkpoint.counters
    # Of an edited file some cells would take another's weights. What is newer has its default.
    check_same_run(config, to_dict(config) | counters["config"], run.folder / CONFIG)
    # One of before does not tell.
    if counters.get("vocabulary", vocabulary.digest) != vocabulary.digest:
        raise UserError(
            f"{run.folder / VOCABULARY}: expected the dictionary that {source} was made with, of "
            f"sha256 {counters['vocabulary'][:16]}..., got another, of {vocabulary.digest[:16]}..."
        )
    if source == run.last and counters["best_loss"] is not None:
        print(f"{run.best}: missing; using {source}, of step {counters['step']}", file=sys.stderr)
    model = build_model(len(vocabulary), config.model, 1, find_device(device))
    restore_weights(model, checkpoint.weights, source)
    return SavedRun(run.folder, config, vocabulary, counters["corpus"], model.eval())


def read_text_of(run: SavedRun) -> Corpus:
    """The encoded text that a run was trained on.

    Args:
        run: an opened run.

    Returns:
        The text.

    Raises:
        UserError: it cannot be read, or any split of it is another now than when the run was made.
    """
    options = run.config.training
    corpus = load_corpus(run.config.corpus, options.batch_size, options.bptt)
    if corpus.fingerprint != run.fingerprint:
        raise UserError(
            f"--run {run.folder}: --data {run.config.corpus.data} holds another text now than "
            "the run was trained on"
        )
    return corpus


def _read_vocabulary(path: Path) -> Vocabulary:
    try:
        return Vocabulary(json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged: expected a list of tokens") from error
