"""Several processes that train one model, each on its share of a batch's columns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from fastrnn.lm.config import Config
from fastrnn.lm.errors import UserError


class World:
    """The processes of this run; one that was not started by torchrun is alone.

    Args:
        device: where this process computes; decides between gloo and nccl.

    Raises:
        UserError: the processes cannot reach one another.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._device = device
        if self.size > 1:
            # Its functions' defaults are the group there is when it is imported, as torch's
            # optimizers do later: the group, kept by them, would outlive its end, and threads
            # that hold tensors while the interpreter ends abort the process.
            import torch.distributed.nn.functional  # noqa: F401

            try:
                if device.type == "cuda":
                    dist.init_process_group("nccl", device_id=device)
                else:
                    dist.init_process_group("gloo")
            except (RuntimeError, ValueError) as error:
                place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
                raise UserError(
                    f"rank {self.rank} of {self.size}: no connection at {place}: "
                    f"{_first_line(error)}"
                ) from error

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Around what all processes do together: one that is gone is told in one line."""
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"rank {self.rank} of {self.size}: another process is gone, --resume continues "
                f"from the last checkpoint: {_first_line(error)}"
            ) from error

    def sum_gradients(self, gradients: list[Tensor]) -> None:
        """Replace every process's gradients by their sum, the same bits everywhere."""
        if self.size == 1:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        with self._together():
            dist.all_reduce(flat)
        parts = torch.split(flat, [g.numel() for g in gradients])
        torch._foreach_copy_(
            gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)]
        )

    def sum(self, *values: float) -> list[float]:
        """The sums of every process's values."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self._device)
        with self._together():
            dist.all_reduce(summed)
        return [float(v) for v in summed.tolist()]

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=self._device)
        with self._together():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.size > 1:
            with self._together():
                dist.barrier()

    def from_leader(self, *values: float) -> list[float]:
        """The values that the leading process has."""
        mine = values if self.leads else (0.0,) * len(values)
        return self.sum(*mine)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor, all of one shape and dtype, by rank."""
        if self.size == 1:
            return [tensor]
        mine = tensor.to(self._device).contiguous()
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self._together():
            dist.all_gather(found, mine)
        return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def check_shares(config: Config, size: int) -> None:
    """Raise a UserError if so many processes cannot share this run's work evenly."""
    columns, parts = config.training.batch_size, size * config.training.accumulate
    if size > 1 and config.run.out is None:
        raise UserError("several processes need --out, one folder that all of them can read")
    if size > 1 and config.run.cuda_graphs:
        raise UserError(f"--cuda-graphs needs a single process, got {size}")
    if columns % parts:
        raise UserError(
            f"--batch-size must be a multiple of processes x --accumulate = {parts}, got {columns}"
        )
