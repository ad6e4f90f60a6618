"""Everything that changes while a model is trained, into checkpoints and out of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from fastrnn.lm.checkpoint import Checkpoint, restore_weights
from fastrnn.lm.config import Config
from fastrnn.lm.data import Corpus
from fastrnn.lm.layers import State
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.optim import Average, make_optimizer
from fastrnn.lm.parallel import World
from fastrnn.lm.settings import to_dict


@dataclass
class Counters:
    """Where a run is; all of it is in its checkpoints.

    Args:
        epoch: the epoch under way, from 1.
        batch: the batch of it that comes next, from 0.
        step: optimizer steps made.
        rate: the learning rate of the last of them.
        lr_scale: what validation and divergence have left of the learning rate.
        norm: running mean of the gradient's norm.
        valid_losses: at the end of every epoch.
        best_loss: the lowest of them, None before the first.
        best_step: the step it was seen at.
        averaged: steps in the weights' mean.
        rewinds: times the run went back after it diverged.
        trouble: the step that it diverged at last; -1: none.
        skipped: steps whose batch is left out, for it diverged twice there.
        returns_to: the step of the checkpoint before, where a rewind goes back to that one: to the
            last that was due, while this one was made because the run was stopped; else None.
        seconds: spent training, validation included.
        interval_loss: sum of the losses of the training tokens since the last report.
        interval_tokens: their number.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    rate: float = 0.0
    lr_scale: float = 1.0
    norm: float = 0.0
    valid_losses: list[float] = field(default_factory=list)
    best_loss: float | None = None
    best_step: int = 0
    averaged: int = 0
    rewinds: int = 0
    trouble: int = -1
    skipped: list[int] = field(default_factory=list)
    returns_to: int | None = None
    seconds: float = 0.0
    interval_loss: float = 0.0
    interval_tokens: int = 0


class Progress:
    """The state of a training: weights, optimizer, mean weights, hidden state, counters.

    Args:
        config: all options, completed.
        model: on its device.
        world: the processes that share the work.
    """

    def __init__(self, config: Config, model: LanguageModel, world: World) -> None:
        self.model, self.world = model, world
        self.device = next(model.parameters()).device
        # Processes add up dense gradients; a compiled or recorded step has no others; a GPU would
        # wait.
        whole = config.run.compile or config.run.cuda_graphs
        alone = world.size == 1 and not whole and self.device.type == "cpu"
        self.optimizer = make_optimizer(model, config.optimizer, rowwise=alone)
        self.average = Average(model)
        self.state: list[State | None] = [None] * config.training.accumulate
        self.counters = Counters()
        self._config = config
        if world.rank:  # the leader goes on with the numbers after those of its weights
            torch.manual_seed(config.training.seed + 2**32 * world.rank)

    def forget_state(self) -> None:
        """The text begins anew: hidden states of zeros."""
        self.state = [None] * len(self.state)

    def finite(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(p.isfinite().all()) for p in self.model.parameters())

    def to_checkpoint(self, corpus: Corpus, metrics_lines: int) -> Checkpoint:
        """All that the next steps depend on; every process calls this.

        Args:
            corpus: the text.
            metrics_lines: how many there are.
        """
        world = self.world
        tensors: dict[str, Tensor] = {}
        for rank, generator in enumerate(world.gather(torch.get_rng_state())):
            tensors[f"generator.cpu.{rank}"] = generator.cpu()
        if self.device.type == "cuda":
            for rank, generator in enumerate(world.gather(torch.cuda.get_rng_state(self.device))):
                tensors[f"generator.cuda.{rank}"] = generator.cpu()
        for index, slots in self.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{slot}"] = value
        tensors |= {f"average.{name}": mean for name, mean in self.average.weights.items()}
        # As one process has it, in whatever parts and processes the columns were worked through.
        for index, parts in enumerate(zip(*(s for s in self.state if s is not None), strict=True)):
            shares = world.gather(torch.cat(parts, dim=1))
            tensors[f"carried.{index}"] = torch.cat(shares, dim=1)
        self.counters.averaged = self.average.count
        counters = asdict(self.counters) | {
            "metrics_lines": metrics_lines,
            "config": to_dict(self._config),
            "corpus": corpus.fingerprint,
            "vocabulary": corpus.vocabulary.digest,
        }
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        return Checkpoint(weights, tensors, counters)

    def restore(self, checkpoint: Checkpoint, source: Path) -> None:
        """Go on from a checkpoint of this run.

        Args:
            checkpoint: what `to_checkpoint` made; with another number of processes, or on another
                kind of device, dropout goes on from other random numbers.
            source: its folder, for messages.

        Raises:
            UserError: it was made with a model of other sizes.
        """
        restore_weights(self.model, checkpoint.weights, source)
        tensors, rank = checkpoint.state, self.world.rank
        slots: dict[int, dict[str, Tensor]] = {}
        means: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, slot = rest.split(".")
                slots.setdefault(int(index), {})[slot] = tensor
            elif kind == "average":
                means[rest] = tensor.to(self.device)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        names = {f.name for f in fields(Counters)}
        self.counters = Counters(**{k: v for k, v in checkpoint.counters.items() if k in names})
        self.average.weights, self.average.count = means, self.counters.averaged
        if f"generator.cpu.{rank}" in tensors:
            torch.set_rng_state(tensors[f"generator.cpu.{rank}"])
        if self.device.type == "cuda" and f"generator.cuda.{rank}" in tensors:
            torch.cuda.set_rng_state(tensors[f"generator.cuda.{rank}"], self.device)
        carried = [
            tensors[k]
            for k in sorted(
                (k for k in tensors if k.startswith("carried.")),
                key=lambda k: int(k.partition(".")[2]),
            )
        ]
        self.state = [None] * len(self.state)
        if carried:
            parts = self.world.size * len(self.state)
            for part in range(len(self.state)):
                share = rank * len(self.state) + part
                self.state[part] = tuple(
                    c.chunk(parts, dim=1)[share].to(self.device).contiguous() for c in carried
                )
