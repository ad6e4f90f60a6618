"""The trainer's options: one dataclass behind the command line and config.toml."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from fastrnn.lm.errors import UserError


def _unset(metavar: str, default: str) -> object:
    """How --help shows an option whose default depends on others."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass
class CorpusOptions:
    """What to read and how to cut it into tokens."""

    data: Annotated[
        str,
        tyro.conf.arg(
            help="Folder with train.txt, valid.txt and test.txt; or one text file, split 90/5/5 by "
            "lines; or ptb, wikitext-2, time-machine or tiny-shakespeare, found in the folder that "
            "the variable FASTRNN_DATA names; or python-docs, the manual and docstrings of this "
            "Python."
        ),
    ] = "python-docs"
    level: Literal["word", "char"] = "word"
    """Whether a token is a word (split on white space) or a character."""
    min_count: Annotated[int | None, _unset("INT", "1; for words 2, unless the text has <unk>")] = (
        None
    )
    """Tokens seen less often in the training text become <unk>."""


@dataclass
class ModelOptions:
    """Embedding, recurrent layers, softmax."""

    cell: Literal["rnn-tanh", "rnn-relu", "lstm", "gru"] = "gru"
    """Kind of recurrent layer."""
    emb_size: Annotated[int | None, _unset("INT", "the hidden size")] = None
    """Width of the embedding; 0 feeds one-hot vectors instead."""
    hidden_size: int = 200
    """Units of each recurrent layer."""
    num_layers: int = 1
    """Recurrent layers."""
    tied: bool = True
    """Use the embedding as the weight of the output layer too; needs emb-size = hidden-size."""
    dropout: float = 0.3
    """Probability of dropping a value after the embedding, between layers and before the output."""


@dataclass
class TrainingOptions:
    """Batches, optimizer and length of training."""

    batch_size: int = 20
    """Columns of text read side by side."""
    bptt: int = 35
    """Steps that gradients flow back through; the hidden state is carried further."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Plain stochastic gradient descent, or Adam."""
    lr: Annotated[float | None, _unset("FLOAT", "20 with sgd, 0.006 with adam")] = None
    """Learning rate at the start."""
    schedule: Annotated[
        Literal["plateau", "cosine"] | None,
        _unset("{plateau,cosine}", "plateau with sgd, cosine with adam"),
    ] = None
    """Divide the rate by 4 after every epoch that is not the best yet in validation, or lower it
    to 0 along a half cosine."""
    clip: float = 0.25
    """Scale gradients down to this norm when theirs is larger; 0: never."""
    epochs: int = 5
    """Passes over the training text."""
    max_steps: Annotated[int | None, _unset("INT", "as the epochs take")] = None
    """Stop after this many optimizer steps, if the epochs have not ended before."""
    seed: int = 1
    """Seed of weights and dropout."""


@dataclass
class RunOptions:
    """Where to compute, what to write, what to report."""

    backend: Literal["auto", "native", "triton", "reference"] = "auto"
    """Kernels of the recurrent layers; one that is asked for runs or is an error."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 ..."""
    out: Annotated[str | None, _unset("DIR", "runs/ and the date and time")] = None
    """Folder of the run: config.toml, metrics.jsonl, curves.png, last/ and best/."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, with its options; without one, start
    afresh."""
    force: bool = False
    """Replace the run in --out, if there is one."""
    config: Annotated[str | None, _unset("FILE.toml", "none")] = None
    """TOML file of options, like config.toml of a run; the command line overrides it."""
    log_interval: int = 100
    """Steps between two reports of the training loss."""
    checkpoint_interval: int = 1000
    """Steps between two checkpoints, besides the one after every epoch; 0: none besides."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class Config:
    """Train a recurrent language model; with no options, on the Python manual in about a minute."""

    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    run: RunOptions = field(default_factory=RunOptions)


def complete(config: Config) -> None:
    """Fill in the options whose default depends on others, then check them all.

    Args:
        config: changed in place.

    Raises:
        UserError: an option is outside its range or does not go with another.
    """
    model, training, run = config.model, config.training, config.run
    sgd = training.optimizer == "sgd"
    training.lr = (20.0 if sgd else 0.006) if training.lr is None else training.lr
    training.schedule = training.schedule or ("plateau" if sgd else "cosine")
    model.emb_size = model.hidden_size if model.emb_size is None else model.emb_size
    for group, name, least in (
        *((model, name, 1) for name in ("hidden_size", "num_layers")),
        *((training, name, 1) for name in ("batch_size", "bptt", "epochs")),
        (config.corpus, "min_count", 1),
        (model, "emb_size", 0),
        (training, "max_steps", 1),
        (training, "seed", 0),
        (run, "log_interval", 1),
        (run, "checkpoint_interval", 0),
    ):
        value = getattr(group, name)
        if value is not None and value < least:
            raise UserError(f"{_flag(name)} must be at least {least}, got {value}")
        if value is not None and value >= 2**63:
            raise UserError(f"{_flag(name)} must be below 2**63, got {value}")
    for name, path in (("data", config.corpus.data), ("out", run.out or "")):
        if any("\ud800" <= character <= "\udfff" for character in path):
            # Bytes that are not UTF-8 arrive so; config.toml could not hold them.
            raise UserError(f"{_flag(name)} {path!r}: the path is not UTF-8")
    if not 0 <= model.dropout < 1:
        raise UserError(f"--dropout must be at least 0 and below 1, got {model.dropout}")
    if not 0 < training.lr < math.inf:
        raise UserError(f"--lr must be above 0 and finite, got {training.lr}")
    if not 0 <= training.clip < math.inf:
        raise UserError(f"--clip must be at least 0 and finite, got {training.clip}")
    if model.tied and model.emb_size != model.hidden_size:
        raise UserError(
            f"--tied needs --emb-size equal to --hidden-size, got {model.emb_size} and "
            f"{model.hidden_size}; pass --no-tied or change one"
        )
    if run.resume and run.out is None:
        raise UserError("--resume needs --out, the folder of the run to continue")
    if run.resume and run.force:
        raise UserError("--resume continues a run and --force replaces it: pass one of them")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
