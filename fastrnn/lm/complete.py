"""Options whose default depends on others, and what all options have to satisfy."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from fastrnn.lm.config import Config, ModelOptions, OptimizerOptions
from fastrnn.lm.datasets import DATASETS, DEFAULT
from fastrnn.lm.errors import UserError

LARGEST = torch.finfo(torch.float32).max
_RATES = {"sgd": 20.0, "nt-asgd": 30.0, "adam": 0.006, "adamw": 0.006}
_SCHEDULES = {"sgd": "plateau", "nt-asgd": "constant", "adam": "cosine", "adamw": "cosine"}
_FACTORS = {"plateau": 0.25, "decay": 0.5}


def complete(config: Config) -> None:
    """Fill in the options whose default depends on others, then check them all.

    Args:
        config: changed in place.

    Raises:
        UserError: an option is outside its range or does not go with another.
    """
    model = config.model
    model.emb_size = model.top_size if model.emb_size is None else model.emb_size
    model.context = config.training.bptt if model.context is None else model.context
    _fill_optimizer(config.optimizer)
    _check_ranges(config)
    _check_corpus(config)
    config.corpus.data = _lasting(config.corpus.data)
    _check_model(config.model)
    _check_run(config)


def check_effect(config: Config, given: list[str]) -> None:
    """Refuse options that were given and would do nothing beside the others.

    Args:
        config: completed.
        given: options of the command line, with dashes.

    Raises:
        UserError: names the first of them.
    """
    model, optimizer, level = config.model, config.optimizer, config.corpus.level
    one_layer = model.num_layers == 1
    cell, init = f"with --cell {model.cell}", f"with --init {model.init}"
    schedule = f"with --schedule {optimizer.schedule}"
    parts = model.dropout_input, model.dropout_layers, model.dropout_output
    idle: dict[str, tuple[bool, str]] = {
        "bpe-size": (level != "bpe", f"with --level {level}"),
        "heads": (model.cell != "transformer", cell),
        "context": (model.cell != "transformer", cell),
        "hidden-size": (
            one_layer and model.output_size is not None,
            "with --num-layers 1, whose units are --output-size",
        ),
        "residual": (one_layer, "with --num-layers 1"),
        "dropout": (
            None not in parts,
            "where --dropout-input, --dropout-layers and --dropout-output are set",
        ),
        "dropout-input": (not model.emb_size and bool(model.dropout_input), "with --emb-size 0"),
        "dropout-layers": (
            one_layer and model.cell != "transformer" and bool(model.dropout_layers),
            "with --num-layers 1",
        ),
        "init-range": (model.init != "zaremba", init),
        "decay-from": (optimizer.schedule != "decay", schedule),
        "decay-factor": (optimizer.schedule not in _FACTORS, schedule),
        "patience": (optimizer.optimizer != "nt-asgd", f"with --optimizer {optimizer.optimizer}"),
        "force": (config.run.out is None, "without --out"),
    }
    for name, (nothing, why) in idle.items():
        if nothing and f"--{name}" in given:
            raise UserError(f"--{name} does nothing {why}")


def _fill_optimizer(options: OptimizerOptions) -> None:
    name = options.optimizer
    options.lr = _RATES[name] if options.lr is None else options.lr
    options.schedule = options.schedule or _SCHEDULES[name]  # type: ignore[assignment]
    if options.decay_factor is None:
        options.decay_factor = _FACTORS.get(options.schedule or "", 0.5)
    if options.weight_decay is None:
        options.weight_decay = 0.01 if name == "adamw" else 0.0


def _check_ranges(config: Config) -> None:
    corpus, model, optimizer, training, run = (
        *(config.corpus, config.model, config.optimizer, config.training, config.run),
    )
    least: tuple[tuple[object, str, int], ...] = (
        (training, "bptt", 1),
        (model, "hidden_size num_layers output_size heads context", 1),
        (training, "batch_size epochs accumulate max_steps", 1),
        (corpus, "min_count", 1),
        (corpus, "bpe_size", 258),  # every byte, <eos> and <unk>
        (model, "emb_size", 0),
        (optimizer, "decay_from patience", 1),
        (optimizer, "warmup", 0),
        (training, "seed rewinds", 0),
        (run, "log_interval", 1),
        (run, "checkpoint_interval", 0),
    )
    for group, names, bound in least:
        for name in names.split():
            value = getattr(group, name)
            if value is not None and value < bound:
                raise UserError(f"{flag(name)} must be at least {bound}, got {value}")
            if value is not None and value >= 2**63:
                raise UserError(f"{flag(name)} must be below 2**63, got {value}")
    for name in (
        *("dropout", "dropout_input", "dropout_layers", "dropout_output"),
        *("dropout_words", "dropout_weights", "zoneout", "zoneout_cell"),
    ):
        value = getattr(model, name)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"{flag(name)} must be at least 0 and below 1, got {value}")
    for group, name in ((optimizer, "lr"), (model, "init_range"), (optimizer, "decay_factor")):
        value = getattr(group, name)
        if not 0 < value <= LARGEST:
            raise UserError(f"{flag(name)} must be above 0 and finite in float32, got {value}")
    if model.init_range > LARGEST / 2:  # the width from -r to r is finite, too
        most = f"{LARGEST / 2:.5g}"
        raise UserError(f"--init-range must be at most {most}, got {model.init_range}")
    for group, names in ((optimizer, "clip weight_decay"), (training, "ar tar explosion")):
        for name in names.split():
            value = getattr(group, name)
            if not 0 <= value < math.inf:
                raise UserError(f"{flag(name)} must be at least 0 and finite, got {value}")


def _check_corpus(config: Config) -> None:
    corpus, training = config.corpus, config.training
    # config.toml could not hold them.
    for name, text in (("data", corpus.data), ("documents", corpus.documents or "")):
        if not_utf8(text):
            raise UserError(f"{flag(name)} {text!r}: not UTF-8")
    if corpus.level == "bpe" and corpus.min_count is not None:
        raise UserError("--level bpe has no rare pieces: it goes without --min-count")
    if corpus.charset == "letters" and corpus.level != "char":
        raise UserError(f"--charset letters needs --level char, got {corpus.level}")
    if corpus.charset == "letters" and (corpus.sentences or corpus.documents is not None):
        raise UserError("--charset letters has no lines: it goes without --sentences, --documents")
    if corpus.sentences and corpus.documents is not None:
        raise UserError("--sentences starts every line afresh: it goes without --documents")
    if corpus.documents is not None and config.model.cell == "transformer":
        raise UserError("--documents needs a recurrent --cell, got transformer")
    if corpus.documents is not None:
        try:
            re.compile(corpus.documents)
        except re.error as error:
            raise UserError(f"--documents {corpus.documents!r}: no regex: {error}") from error
    if corpus.sentences and (training.random_bptt or training.ar or training.tar):
        raise UserError("--sentences goes without --random-bptt, --ar and --tar")
    if training.batch_size % training.accumulate:
        raise UserError(
            f"--accumulate must divide --batch-size, got {training.accumulate} and "
            f"{training.batch_size}"
        )


def _lasting(data: str) -> str:
    """The same data, to be found from any folder: config.toml will be read in others."""
    path = Path(data)
    if data in ("", DEFAULT, *DATASETS) or path.is_absolute() or not path.exists():
        return data
    found = str(path.resolve())
    return data if not_utf8(found) else found


def _check_model(model: ModelOptions) -> None:
    if model.tied and model.emb_size != model.top_size:
        size = "hidden" if model.output_size is None else "output"
        raise UserError(
            f"--tied needs --emb-size equal to --{size}-size, got {model.emb_size} and "
            f"{model.top_size}; pass --no-tied or change one"
        )
    if model.cell == "transformer":
        _check_transformer(model)
    if model.layer_norm and model.cell not in ("lstm", "gru"):
        raise UserError(f"--layer-norm needs --cell lstm or gru, got {model.cell}")
    if model.zoneout_cell and model.cell != "lstm":
        raise UserError(f"--zoneout-cell needs --cell lstm, got {model.cell}")
    if model.dropout_words and not model.emb_size:
        raise UserError("--dropout-words needs an embedding, got --emb-size 0")


def _check_transformer(model: ModelOptions) -> None:
    if model.hidden_size % model.heads:
        raise UserError(
            f"--heads must divide --hidden-size, got {model.heads} and {model.hidden_size}"
        )
    if not model.emb_size == model.top_size == model.hidden_size:
        raise UserError(
            f"--cell transformer needs --emb-size and --output-size equal to --hidden-size = "
            f"{model.hidden_size}, got {model.emb_size} and {model.top_size}"
        )
    recurrent = "zoneout", "zoneout_cell", "dropout_weights", "residual", "dropout_input"
    for name in (*recurrent, "variational"):
        if getattr(model, name):
            raise UserError(f"{flag(name)} needs a recurrent --cell, got transformer")
    if model.init == "zaremba":
        raise UserError("--init zaremba needs a recurrent --cell, got transformer")


def _check_run(config: Config) -> None:
    run = config.run
    if run.out is not None and (not run.out or not_utf8(run.out)):
        raise UserError(f"--out: expected the path of a folder, in UTF-8, got {run.out!r}")
    if run.resume and run.out is None:
        raise UserError("--resume needs --out, the folder of the run to continue")
    if run.resume and run.force:
        raise UserError("--resume continues a run and --force replaces it: pass one of them")
    if run.precision == "tf32" and not run.device.startswith("cuda"):
        raise UserError(f"--precision tf32 needs a CUDA device, got --device {run.device}")
    if run.cuda_graphs and not run.device.startswith("cuda"):
        raise UserError(f"--cuda-graphs needs a CUDA device, got --device {run.device}")
    corpus = config.corpus
    varying = corpus.sentences or corpus.documents is not None or config.training.random_bptt
    if run.cuda_graphs and varying:
        raise UserError(
            "--cuda-graphs needs windows that are all alike: it goes without --sentences, "
            "--documents and --random-bptt"
        )


def not_utf8(text: str) -> bool:
    """Whether a text of the command line had bytes that are not UTF-8, which arrive as
    surrogates."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def flag(name: str) -> str:
    """An option's name as it is on the command line."""
    return "--" + name.replace("_", "-")
