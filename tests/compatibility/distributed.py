"""Data-parallel training in two processes, against one process with the whole batch.

Run as a program it is one of the two: `distributed.py RANK FOLDER`, writing FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import rnn

ROOT = Path(__file__).resolve().parents[2]
WORLD, IN, H, T, B = 2, 4, 6, 5, 4


@cache
def ranks() -> list[dict[str, str]]:
    """What each process found wrong, "" if nothing, by "library.kind"."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        processes = [
            subprocess.Popen([sys.executable, __file__, str(rank), folder], env=environment)
            for rank in range(WORLD)
        ]
        try:
            codes = [process.wait(600) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0] * WORLD, f"exit codes {codes}"
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(WORLD)]


class Model(nn.Module):
    """Two layers of a kind, between products, and a layer that is never used."""

    def __init__(self, library: object, kind: str) -> None:
        super().__init__()
        self.embed = nn.Linear(IN, H, dtype=torch.float64)
        self.layers = getattr(library, kind)(H, H, 2, bidirectional=True, dtype=torch.float64)
        self.head = nn.Linear(2 * H, 3, dtype=torch.float64)
        self.unused = getattr(library, kind)(H, H, dtype=torch.float64)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(x)
        if lengths is None:
            return self.head(self.layers(x)[0])
        packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return self.head(rnn.pad_packed_sequence(self.layers(packed)[0], total_length=T)[0])


def compare(rank: int, library: object, kind: str) -> str:
    """What differs between the averaged gradients and those of the joint batch; "" if nothing."""
    torch.manual_seed(3)
    model, alone = Model(library, kind), Model(nn, kind)
    alone.load_state_dict(model.state_dict())
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, alone)]
    mine = slice(rank * B // WORLD, (rank + 1) * B // WORLD)
    for step in range(3):
        x = torch.randn(T, B, IN, dtype=torch.float64)  # the same on both ranks
        lengths = torch.tensor([2, 5, 4, 3]) if step == 1 else None
        for optimizer in optimizers:
            optimizer.zero_grad()
        part = None if lengths is None else lengths[mine]
        parallel(x[:, mine], part).square().mean().backward()
        alone(x, lengths).square().mean().backward()
        for (name, got), expected in zip(model.named_parameters(), alone.parameters(), strict=True):
            if expected.grad is None:
                if got.grad is not None and got.grad.abs().max() > 0:
                    return f"{name} has a gradient, step {step}"
            elif (got.grad - expected.grad).abs().max() > 1e-12:
                return f"gradient of {name}, step {step}"
        for optimizer in optimizers:
            optimizer.step()
    for (name, got), expected in zip(model.named_parameters(), alone.parameters(), strict=True):
        # Adam divides by the root of the squares: roundings of tiny gradients grow.
        if (got - expected).abs().max() > 1e-6:
            return f"{name} after three steps"
        other = got.detach().clone()
        distributed.broadcast(other, src=0)
        if not torch.equal(other, got):
            return f"{name} differs between the processes"
    return ""


def main(rank: int, folder: Path) -> None:
    from fastrnn import modules

    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    found = {}
    for library in (nn, modules):
        for kind in ("RNN", "GRU", "LSTM"):
            found[f"{library.__name__}.{kind}"] = compare(rank, library, kind)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    # Leave only when nobody is in a collective any more, and without gloo's destructors: one
    # that finds the other process gone aborts.
    for _ in range(6000):
        if (folder / f"{1 - rank}.json").exists():
            os._exit(0)
        time.sleep(0.01)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
