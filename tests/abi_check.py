"""Runs the library built against one torch under another: make abi-check calls it there."""

from __future__ import annotations

import sys

import torch

import fastrnn
from fastrnn import _C


def main() -> int:
    """Compare one LSTM, forward and backward, against torch.nn; returns the exit code."""
    built, running = _C.build_info()["torch"], torch.__version__
    print(f"built against torch {built}, running under torch {running}")
    if built == running:
        print("abi-check: the torch here is the one built against, so this shows nothing")
        return 1
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(13, 17, num_layers=2, dtype=torch.float64)
    ours = fastrnn.LSTM(13, 17, num_layers=2, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(7, 3, 13, dtype=torch.float64)
    with fastrnn.use_backend("native"):
        output, _ = ours(x)
        output.square().sum().backward()
    expected, _ = theirs(x)
    expected.square().sum().backward()
    torch.testing.assert_close(output, expected)
    for (name, mine), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, reference.grad, msg=lambda text, n=name: f"{n}: {text}"
        )
    print("ok: outputs and gradients equal torch.nn.LSTM's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
