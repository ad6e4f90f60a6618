"""The training step as a CUDA graph: its kernels recorded once, and launched together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastrnn.lm.batches import Batch
from fastrnn.lm.config import Config
from fastrnn.lm.guard import divergence, limit, newest_share
from fastrnn.lm.layers import State
from fastrnn.lm.parallel import World
from fastrnn.lm.snapshot import Progress
from fastrnn.lm.step import Step, total_norm

WARM_UP = 3  # plain steps before the recording, which torch asks for
PATIENCE = 20  # steps between two looks at what the guard has found
Result = TypeVar("Result")


class Graph(Protocol):
    """Work that is recorded once and then run with what its tensors hold by then."""

    def warm_up(self, work: Callable[[], Result]) -> Result:
        """Do the work as it will be recorded, but do it."""

    def record(self, work: Callable[[], None]) -> None:
        """Record the work without doing it; nothing in it may wait for the device."""

    def replay(self) -> None:
        """Do what was recorded."""


class CudaGraph:
    """A `Graph` on a CUDA device.

    Args:
        device: that all tensors of the work are on.

    Source: torch.cuda.graphs, whole-network capture: a warm-up on a stream of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._graph = device, torch.cuda.CUDAGraph()
        self._side: Any = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], Result]) -> Result:
        """See `Graph`."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = work()
        current.wait_stream(self._side)
        return result

    def record(self, work: Callable[[], None]) -> None:
        """See `Graph`."""
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph):
            work()

    def replay(self) -> None:
        """See `Graph`."""
        self._graph.replay()


class CapturedStep(Step):
    """Steps with the numbers of `Step`, each a single launch.

    What the graph reads and changes lies in tensors that stay where they are. Batches of another
    shape (an epoch's last), and the first few, go the plain way. The guard acts inside the graph:
    a step that would spoil the weights leaves them as they were, and `settle` tells of it later.

    Args:
        config: as for `Step`, as are progress, world and steps.
        graph: default: one on the model's device.
    """

    def __init__(
        self,
        config: Config,
        progress: Progress,
        world: World,
        steps: int,
        graph: Graph | None = None,
    ) -> None:
        super().__init__(config, progress, world, steps)
        device, options = progress.device, config.training
        self._graph = CudaGraph(device) if graph is None else graph
        self._plain_steps, self._recorded, self._pending = 0, False, 0
        self._shape = (options.bptt, options.batch_size)
        self._inputs, self._targets = (
            torch.zeros(self._shape, dtype=torch.int64, device=device) for _ in range(2)
        )
        self._states: list[State] = []  # of each part, once their shapes are known

        def number(value: float = 0.0) -> Tensor:
            return torch.tensor(value, dtype=torch.float64, device=device)

        # Told to the graph: the step's number, the guard's limit, the newest norm's share.
        self._number, self._limit, self._share = number(), number(), number()
        self._learning_rate = torch.zeros((), device=device)
        self._clip = number(config.optimizer.clip)
        # Told by it: sum of the losses, running mean of the norm; number, loss, norm and running
        # mean at the first step that was not made.
        self._total, self._usual = number(), number()
        self._spoilt = torch.full((4,), -1.0, dtype=torch.float64, device=device)

    def __call__(self, batch: Batch) -> str | None:
        """As `Step`'s; why a step was not made may be told later."""
        plain = super().__call__
        fits = batch.inputs.shape == self._shape and batch.resets is None and batch.lengths is None
        if not fits or batch.count != batch.targets.numel():
            return self.settle() or plain(batch)
        if self._plain_steps < WARM_UP:
            self._plain_steps += 1
            reason = self._graph.warm_up(lambda: plain(batch))
            self._states = [tuple(map(torch.clone, part or ())) for part in self._progress.state]
            return reason
        self._load(batch)
        if not self._recorded:
            self._record()
        self._graph.replay()
        progress = self._progress
        progress.state = list(self._states)
        if progress.average.begun:
            progress.average.update()
        progress.counters.interval_tokens += batch.count
        self._pending += 1
        return self.settle() if self._pending == PATIENCE else None

    def settle(self) -> str | None:
        """Bring the counters up to date; why a step was not made, with the counter at that step."""
        if not self._pending:
            return None
        self._pending = 0
        counters = self._progress.counters
        told = torch.cat((torch.stack((self._total, self._usual)), self._spoilt)).tolist()
        counters.interval_loss, counters.norm, step, loss, norm, usual = told
        if step < 0:
            return None
        counters.step = int(step)
        return divergence(loss, norm, usual, counters.step, self._config.training.explosion)

    def _rate(self, batch: Batch) -> float:
        return float(np.float32(super()._rate(batch)))  # what a graph can be told

    def _load(self, batch: Batch) -> None:
        """Put what this step depends on where the graph reads it."""
        progress, counters = self._progress, self._progress.counters
        for there, here in ((self._inputs, batch.inputs), (self._targets, batch.targets)):
            there.copy_(here.pin_memory() if there.is_cuda else here, non_blocking=True)
        for states, given in zip(self._states, progress.state, strict=True):
            for k, state in enumerate(states):
                if given is None:
                    state.zero_()
                elif given[k] is not state:
                    state.copy_(given[k])
        if not self._pending:  # plain steps may have come between
            self._total.fill_(counters.interval_loss)
            self._usual.fill_(counters.norm)
        counters.rate = self._rate(batch)
        self._learning_rate.fill_(counters.rate)
        self._number.fill_(counters.step)
        self._limit.fill_(limit(counters.step, self._config.training.explosion))
        self._share.fill_(newest_share(counters.step))

    def _record(self) -> None:
        optimizer: Any = self._progress.optimizer
        self._progress.model.train()
        groups = optimizer.param_groups
        kept = [dict(group) for group in groups]
        for group in groups:
            group["lr"] = self._learning_rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            self._graph.record(self._work)
        finally:
            optimizer.grad_scale = optimizer.found_inf = None
            for group, before in zip(groups, kept, strict=True):
                group.update(before)
        self._recorded = True

    def _work(self) -> None:
        """A step as `Step` makes it, of tensors alone."""
        optimizer: Any = self._progress.optimizer
        optimizer.zero_grad()
        loss = self._gradients()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm, usual = total_norm(gradients), self._usual.clone()
        spoils = ~(loss.isfinite() & norm.isfinite()) | (norm > self._limit * usual)
        if self._config.optimizer.clip:
            optimizer.grad_scale = ((norm + 1e-6) / self._clip).clamp(min=1).float()
        optimizer.found_inf = spoils.float()  # at 1 nothing is changed
        optimizer.step()
        mean = usual + (norm - usual) * self._share
        self._usual.copy_(torch.where(spoils, usual, mean))
        self._total.add_(loss * self._targets.numel())
        first = spoils & (self._spoilt[0] < 0)
        told = torch.stack((self._number, loss, norm, usual))
        self._spoilt.copy_(torch.where(first, told, self._spoilt))

    def _gradients(self) -> Tensor:
        """Those of the batch's mean loss, which is returned, float64 []."""
        options, parts = self._config.training, len(self._states)
        loss = torch.zeros_like(self._total)
        width = self._shape[1] // parts
        for index, states in enumerate(self._states):
            columns = slice(index * width, (index + 1) * width)
            entropy, penalty, after = self._objective(
                self._inputs[:, columns],
                self._targets[:, columns],
                states or None,
                None,
                None,
                options.ar,
                options.tar,
            )
            ((entropy + penalty) * (1 / parts)).backward()
            loss = loss + entropy.detach().double() * (1 / parts)
            for state, new in zip(states, after, strict=True):
                state.copy_(new)
        return loss


def make_step(config: Config, progress: Progress, world: World, steps: int) -> Step:
    """The kind of steps that the options ask for; arguments as for `Step`."""
    kind = CapturedStep if config.run.cuda_graphs else Step
    return kind(config, progress, world, steps)
