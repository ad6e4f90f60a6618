"""Seconds that an epoch of a preset takes, of the trainer and of pytorch's word_language_model.

Both train on the preset's text with its settings, in processes of their own that take turns step by
step; an epoch is so many times the median step. Neither validates.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.apart import Apart, in_a_copy
from benchmarks.language_model import WordModel
from benchmarks.layers import Shape, assert_close
from benchmarks.machine import environment
from benchmarks.timing import Run, interleaved, percentiles
from fastrnn.lm.command_line import parse
from fastrnn.lm.config import Config
from fastrnn.lm.data import load_corpus
from fastrnn.lm.errors import UserError
from fastrnn.lm.loop import Trainer
from fastrnn.lm.model import build_model
from fastrnn.lm.report import Reporter
from fastrnn.lm.run import Run as Folder

PRESETS = ("s3-lstm", "s3-lstm-dropout", "s3-gru", "s3-gru-dropout")
CHECKED = 3  # steps after which both have the same weights, where nothing is dropped


class Peer(WordModel):
    """The model of pytorch's word_language_model, with dropouts set apart.

    Args:
        config: options with an embedding, and layers of one width.
        vocabulary: tokens in the dictionary.
    """

    def __init__(self, config: Config, vocabulary: int) -> None:
        model, training = config.model, config.training
        assert model.emb_size is not None
        sizes = (model.emb_size, model.hidden_size, model.num_layers)
        super().__init__(model.cell, Shape(training.bptt, training.batch_size, *sizes), vocabulary)
        first, self.rnn.dropout, last = model.dropouts
        self.first, self.last = nn.Dropout(first), nn.Dropout(last)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Log probabilities [T*B, V] after tokens [T, B], and the state after them."""
        output, state = self.rnn(self.first(self.encoder(tokens)), state)
        return F.log_softmax(self.decoder(self.last(output)).flatten(0, 1), 1), state


class Epoch:
    """Both programs at the start of an epoch.

    Args:
        arguments: options of fastrnn.train.
        folder: where the trainer may write.
    """

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.config = config = parse(arguments)
        training = config.training
        corpus = load_corpus(config.corpus, training.batch_size, training.bptt)
        self.words = len(corpus.vocabulary)
        torch.manual_seed(training.seed)
        rows = training.batch_size * training.bptt
        self.model = build_model(self.words, config.model, rows, torch.device("cpu"))
        run = Folder(folder)
        run.start(config, corpus)
        quiet = Reporter(Console(file=io.StringIO()))
        self.trainer = Trainer(config, corpus, self.model, run, quiet)
        self.batches = self.trainer.batches.count(1)

    def ours(self) -> Run:
        """The trainer's steps, one after the other, with what it does after a step."""
        return self.trainer.advance

    def peers(self) -> tuple[Peer, Run]:
        """A model with the same weights, and steps on it as pytorch's program makes them."""
        peer, options = Peer(self.config, self.words), self.config.optimizer
        peer.take(self.model)
        assert options.optimizer == "sgd" and options.lr is not None
        rate, total, state, index = options.lr, 0.0, None, 0

        def step() -> None:
            nonlocal total, state, index
            batch = self.trainer.batches.get(1, index)
            index += 1
            peer.zero_grad()
            if state is not None:
                lstm = isinstance(state, tuple)
                state = tuple(s.detach() for s in state) if lstm else state.detach()
            scores, state = peer(batch.inputs, state)
            loss = F.nll_loss(scores, batch.targets.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(peer.parameters(), options.clip)
            for parameter in peer.parameters():
                parameter.data.add_(parameter.grad, alpha=-rate)
            total += loss.item()

        return peer, step

    def check(self) -> None:
        """Both have the same weights after some steps."""
        ours, (peer, theirs) = self.ours(), self.peers()
        for _ in range(CHECKED):
            ours()
            theirs()
        copy = Peer(self.config, self.words)
        copy.take(self.model)
        found, expected = ([p.detach() for p in m.parameters()] for m in (copy, peer))
        assert_close(found, expected)


def measure(arguments: list[str], steps: int) -> dict[str, Any]:
    """Seconds per epoch of both.

    Args:
        arguments: options of fastrnn.train.
        steps: of each, at the most; an epoch's, if it has fewer.

    Returns:
        `batches` of an epoch; `ours` and `torch.nn` with p20, p50 and p80 of its seconds; `ratio`.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = parse(arguments)
        if not any(config.model.dropouts):
            in_a_copy(lambda: Epoch(arguments, Path(folder) / "checked").check())
        kinds: dict[str, Callable[[], Run]] = {
            "ours": lambda: Epoch(arguments, Path(folder) / "ours").ours(),
            "torch.nn": lambda: Epoch(arguments, Path(folder) / "torch").peers()[1],
        }
        # Their processes begin before this one has started threads.
        runs = {name: Apart(make) for name, make in kinds.items()}
        for run in runs.values():
            stack.callback(run.close)
        batches = in_numbers(arguments)
        rounds = min(steps, batches - 3)  # without those that warm up
        times = interleaved(runs, rounds=rounds, seconds=1e9, at_least=rounds, repeat=False)
    parts = {name: percentiles(ms) for name, ms in times.milliseconds.items()}
    found: dict[str, Any] = {"batches": batches, "disturbed": times.disturbed}
    for name, each in parts.items():
        found[name] = {p: round(each[p] * batches / 1e3, 2) for p in ("p20", "p50", "p80")}
    found["ratio"] = round(parts["torch.nn"]["p50"] / parts["ours"]["p50"], 2)
    return found


def in_numbers(arguments: list[str]) -> int:
    """Batches of an epoch."""
    config = parse(arguments)
    options = config.training
    train = load_corpus(config.corpus, options.batch_size, options.bptt).train
    return -(-(train.numel() // options.batch_size - 1) // options.bptt)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit code 0, or 2 after a mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epochs", description=__doc__)
    parser.add_argument("presets", nargs="*", default=PRESETS, help="default: the four of S3")
    parser.add_argument("--steps", type=int, default=200, help="of each (default: 200)")
    parser.add_argument("--options", default="", help="more options of fastrnn.train")
    parser.add_argument("--out", type=Path, help="file to add the rows to, as lines of JSON")
    options = parser.parse_args(arguments)
    try:
        for preset in options.presets:
            given = ["--preset", preset, *options.options.split()]
            row = measure(given, options.steps)
            ours, peers = row["ours"], row["torch.nn"]
            print(
                f"{preset}: {ours['p50']} s an epoch [{ours['p20']}, {ours['p80']}], torch.nn "
                f"{peers['p50']} s [{peers['p20']}, {peers['p80']}]: {row['ratio']} times as fast"
                + (", DISTURBED" if row["disturbed"] else ""),
                flush=True,
            )
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps({"preset": preset, **row, **environment()}) + "\n")
    except UserError as error:
        print(f"benchmarks.epochs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
