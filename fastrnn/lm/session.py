"""One run from options to result: what happens between the command line and the loop."""

from __future__ import annotations

import importlib
import math
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastrnn.lm.bigram import KneserNeyBigram
from fastrnn.lm.checkpoint import Checkpoint, load_checkpoint, restore_weights
from fastrnn.lm.config import Config
from fastrnn.lm.data import Corpus, load_corpus
from fastrnn.lm.device import find_device, select_backend
from fastrnn.lm.errors import UserError
from fastrnn.lm.figures import perplexity
from fastrnn.lm.generate import generate, to_text
from fastrnn.lm.loop import Trainer
from fastrnn.lm.model import build_model, count_parameters
from fastrnn.lm.parallel import World, check_shares
from fastrnn.lm.report import Reporter, Silent, draw_curves
from fastrnn.lm.run import CONFIG, METRICS, Run, default_folder
from fastrnn.lm.settings import check_same_run

SAMPLE_TOKENS = {"word": 60, "char": 300, "bpe": 90}
BIGRAM_TOKENS = 10**8  # a longer text would take gigabytes to count


def train(config: Config, reporter: Reporter) -> int:
    """Train, or continue training, a language model and evaluate it.

    Args:
        config: all options, completed.
        reporter: where to say what happens.

    Returns:
        The exit code: 0; 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: an option, a file or a checkpoint cannot be used.
    """
    # A package that only the end needs, and that is not there, is told before all else.
    for package in ("matplotlib", *["tensorboard"] * config.run.tensorboard):
        importlib.import_module(package)
    name = config.run.device
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one device for each process
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = find_device(name)
    if config.run.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    with select_backend(config.run.backend, device) as backend, World(device) as world:
        check_shares(config, world.size)
        out = config.run.out
        place = default_folder() if out is None else nullcontext(Path(out))
        with place as folder, Run(folder, world.leads) as run:
            reporter = reporter if world.leads else Silent()
            return _train_on(device, backend, world, run, config, reporter)


def _train_on(
    device: torch.device, backend: str, world: World, run: Run, config: Config, reporter: Reporter
) -> int:
    checkpoint = _find_checkpoint(config, run, reporter)
    # With other data the text is read and compared first.
    told = checkpoint is not None and checkpoint.counters["config"]["data"] == config.corpus.data
    if told and (result := run.read_result(config)) is not None:
        reporter.say(f"{run.folder}: this run has finished; its result:")
        _say_result(result, reporter)
        return 0
    world.wait()  # until all have seen what there is
    options = config.training
    corpus = load_corpus(config.corpus, options.batch_size, options.bptt)
    torch.manual_seed(options.seed)
    rows, words = options.batch_size * options.bptt, len(corpus.vocabulary)
    model = build_model(words, config.model, rows, device)
    trainer = Trainer(config, corpus, model, run, reporter, world)
    if checkpoint is not None:
        trainer.restore(checkpoint, run.last)
        _check_length(trainer)
        if trainer.counters.best_loss is not None:
            load_checkpoint(run.best, reporter.say)  # damage is told now, not after the training
        expected = checkpoint.counters["metrics_lines"]
        if (left := run.continue_from(config, corpus, expected)) < expected:
            reporter.say(
                f"{run.folder / METRICS}: expected {expected} lines, got {left}: the curves lack "
                "the others"
            )
    else:
        run.start(config, corpus)
    reporter.log = run.log
    reporter.say(
        f"{config.corpus.data}: {corpus.train.numel():,} training tokens, {words:,} in the "
        f"dictionary; {config.model.cell} with {count_parameters(words, config.model):,} "
        f"parameters on {device}, {backend} kernels; writing {run.folder}"
    )
    if config.run.tensorboard:
        run.open_board()
    with reporter:
        trainer.fit()
    if trainer.stopped_by:
        how = "interrupted" if trainer.stopped_by == signal.SIGINT else "terminated"
        reporter.say(
            f"{how} at step {trainer.counters.step} of {trainer.steps}; --out {run.folder} "
            "--resume continues" + ("; result so far:" if how == "interrupted" else "")
        )
    code = 128 + trainer.stopped_by if trainer.stopped_by else 0
    if trainer.stopped_by == signal.SIGTERM:  # there may be seconds left
        return code
    if not world.leads:
        trainer.evaluate(corpus.test)  # hears what the leader finds
        return code
    result = _finish(trainer)
    draw_curves(run.metrics, run.folder)
    if not trainer.stopped_by:
        run.write_result(config, result)
    _say_result(result, reporter)
    return code


def _find_checkpoint(config: Config, run: Run, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint to continue from, if that is asked for and there is one."""
    if config.run.resume:
        run.claim()  # before the first look: what another process writes may change at any time
    if not (config.run.resume and run.has_checkpoint()):
        run.check_free(config.run)
        if config.run.resume:
            reporter.say(f"{run.folder}: no checkpoint yet, starting afresh")
        return None
    checkpoint = load_checkpoint(run.last, reporter.say)
    try:
        check_same_run(config, checkpoint.counters["config"], run.last)
    except UserError as error:
        path = run.folder / CONFIG
        if path.is_file() and path.read_bytes().strip():
            raise
        found = "empty" if path.is_file() else "missing"
        raise UserError(
            f"{path}: {found}, so that all options must be given again; {error}"
        ) from error
    reporter.say(f"{run.folder}: continuing after step {checkpoint.counters['step']}")
    return checkpoint


def _check_length(trainer: Trainer) -> None:
    """Raise a UserError if the run is longer already than it is to become."""
    made, options = trainer.counters.step, trainer.config.training
    if made <= trainer.steps:
        return
    end = f"--epochs {options.epochs}, which ends at step {trainer.steps}"
    if options.max_steps == trainer.steps:
        end = f"--max-steps {options.max_steps}"
    raise UserError(
        f"{end}: expected no fewer steps than --out {trainer.run.folder} has made, which is {made}"
    )


def _finish(trainer: Trainer) -> dict[str, Any]:
    """Evaluate the best model on the test text, beside the bigram, and let it write."""
    corpus, run, model = trainer.corpus, trainer.run, trainer.model
    # Interrupted before the first validation there is no best yet: the model is as it stands.
    if trainer.counters.best_loss is not None:
        best = load_checkpoint(run.best, trainer.reporter.say)
        restore_weights(model, best.weights, run.best)
    loss, speed = trainer.evaluate(corpus.test)
    trainer.journal.record("test", loss, speed)
    vocabulary, level = corpus.vocabulary, trainer.config.corpus.level
    tokens = generate(model, vocabulary, SAMPLE_TOKENS[level], trainer.config.training.seed)
    return {
        "test_perplexity": perplexity(loss),
        "bigram_perplexity": _bigram_perplexity(corpus),
        "sample": to_text(tokens, level),
        "best_step": trainer.counters.best_step,
        "seconds": round(trainer.counters.seconds, 1),
    }


def _bigram_perplexity(corpus: Corpus) -> float | None:
    if corpus.train.numel() > BIGRAM_TOKENS:
        return None
    vocabulary = corpus.vocabulary
    bigram = KneserNeyBigram(corpus.train, len(vocabulary), vocabulary.eos)
    found = bigram.probabilities(corpus.test)
    if vocabulary.document is not None:  # the model does not predict it either
        found = found[corpus.test.numpy() != vocabulary.document]
    return float(np.exp(-np.log(found).mean()))


def _say_result(result: dict[str, Any], reporter: Reporter) -> None:
    bigram = result["bigram_perplexity"]
    reporter.say(f"sample:\n{result['sample']}\n")
    test = result["test_perplexity"]  # null, read back, where it was infinite
    reporter.say(
        f"test perplexity {math.inf if test is None else test:.2f}"
        + ("" if bigram is None else f" (bigram {bigram:.2f})")
    )
