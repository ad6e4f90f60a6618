"""One optimizer step: gradients of a batch, the guard, clipping, the update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastrnn.lm.batches import Batch
from fastrnn.lm.config import Config, RunOptions
from fastrnn.lm.guard import divergence, running_mean
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.optim import gradients_of
from fastrnn.lm.parallel import World
from fastrnn.lm.schedule import learning_rate
from fastrnn.lm.snapshot import Progress

_ROWS = 64  # of a gradient, whose norms are taken apart


class Step:
    """Makes steps on one model.

    Args:
        config: all options, completed.
        progress: what a step changes.
        world: the processes that share a batch's columns.
        steps: how many steps there will be, for the schedule.
    """

    def __init__(self, config: Config, progress: Progress, world: World, steps: int) -> None:
        self._config, self._progress, self._world = config, progress, world
        self._steps = steps
        self._parameters = [p for p in progress.model.parameters() if p.requires_grad]
        self._objective = _objective(progress.model, config.run, progress.device)

    def __call__(self, batch: Batch) -> str | None:
        """Change the weights by a batch's gradient, and count it; or say why that would spoil
        them, which leaves them as they are."""
        if not batch.count:  # nothing but beginnings of documents, which are not predicted
            return None
        progress, options = self._progress, self._config.optimizer
        counters = progress.counters
        progress.model.train()
        progress.optimizer.zero_grad()
        loss = self._backward(batch)
        gradients = gradients_of(self._parameters)
        self._world.sum_gradients(gradients)
        norm = float(total_norm(gradients))
        explosion = self._config.training.explosion
        reason = divergence(loss, norm, counters.norm, counters.step, explosion)
        if reason is not None:
            return reason
        counters.norm = running_mean(counters.norm, norm, counters.step)
        clip(progress.optimizer, options.clip, norm)
        counters.rate = self._rate(batch)
        for group in progress.optimizer.param_groups:
            group["lr"] = counters.rate
        progress.optimizer.step()
        if progress.average.begun:
            progress.average.update()
        counters.interval_loss += loss * batch.count
        counters.interval_tokens += batch.count
        return None

    def settle(self) -> str | None:
        """Why a step made before would have spoilt the weights, where that is told late."""
        return None

    def _backward(self, batch: Batch) -> float:
        """Gradients of this process's share of a batch's mean loss; that of the whole batch."""
        options, state = self._config.training, self._progress.state
        share, total = batch.part(self._world.rank, self._world.size), 0.0
        if not share.count:  # the other processes have gradients, and all add up as many
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
        for index in range(options.accumulate):
            part = share.part(index, options.accumulate).to(self._progress.device)
            entropy, penalty, state[index] = self._objective(
                part.inputs,
                part.targets,
                state[index] if part.carried else None,
                part.resets,
                part.lengths,
                options.ar,
                options.tar,
            )
            # Each term is a mean over what it counts: targets, or places, of which all columns
            # have as many.
            loss = penalty * (part.inputs.size(1) / batch.inputs.size(1))
            if part.count:  # else the mean is none
                weight = part.count / batch.count
                loss = loss + entropy * weight
                total += float(entropy.detach()) * weight
            if not isinstance(loss, float):  # which it is with neither of the two
                loss.backward()
        return self._world.sum(total)[0]

    def _rate(self, batch: Batch) -> float:
        counters, options = self._progress.counters, self._config.training
        rate = learning_rate(
            self._config.optimizer, counters.epoch, counters.step, self._steps, counters.lr_scale
        )
        return rate * batch.inputs.size(0) / options.bptt if options.random_bptt else rate


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together, float64 [], to the same bits for any number of threads.

    Each is cut into rows, which threads take whole; how torch.dot cuts it, as do norms of a whole
    tensor, follows the number of threads.
    """
    norms = []
    for gradient in gradients:
        values = (gradient.values() if gradient.is_sparse else gradient).flatten()
        width = values.numel() // _ROWS
        rows, rest = values[: _ROWS * width].view(_ROWS, width), values[_ROWS * width :]
        norms.append(torch.linalg.vector_norm(rows, dim=1))
        norms.append(torch.linalg.vector_norm(rest, dim=0, keepdim=True))
    return torch.cat(norms).double().square().sum().sqrt()


def clip(optimizer: torch.optim.Optimizer, limit: float, norm: float) -> None:
    """Have the next step's gradients scaled down as `clip_grad_norm_` does.

    The fused optimizers divide by `grad_scale` while they update, which saves a pass over all
    gradients (1.4 ms of a step of 34 at 4.6 million numbers on two cores).

    Args:
        optimizer: fused.
        limit: 0: none.
        norm: of the gradients as they are.
    """
    scale = max((norm + 1e-6) / limit, 1.0) if limit else 1.0
    device = optimizer.param_groups[0]["params"][0].device
    optimizer.grad_scale = torch.tensor(scale, device=device) if scale > 1 else None  # type: ignore[attr-defined]
    optimizer.found_inf = None  # type: ignore[attr-defined]


def _objective(
    model: LanguageModel, options: RunOptions, device: torch.device
) -> Callable[..., tuple[Any, ...]]:
    """`model.objective` as the options want it computed."""
    function: Callable[..., tuple[Any, ...]] = model.objective
    if options.compile:
        function = torch.compile(function)
    if options.precision == "bfloat16":
        function = torch.autocast(device.type, torch.bfloat16)(function)
    return function
