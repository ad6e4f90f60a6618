"""Loss of a model on a text."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fastrnn.lm.data import scored_columns
from fastrnn.lm.model import LanguageModel

COLUMNS = 10


@torch.inference_mode()
def evaluate(model: LanguageModel, tokens: Tensor, before: int, batch: int) -> tuple[float, float]:
    """Mean loss over every token of a text, each predicted once.

    Args:
        model: put in evaluation mode.
        tokens: int64 [N], read in up to 10 columns side by side.
        before: the token taken to stand before the first.
        batch: predictions made at a time, at least.

    Returns:
        The loss in nats, and tokens per second.
    """
    model.eval()
    device = next(model.parameters()).device
    began, state = time.perf_counter(), None
    columns = min(COLUMNS, tokens.numel())
    inputs, targets = (t.to(device) for t in scored_columns(tokens, columns, before))
    rows = -(-batch // columns)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for row in range(0, inputs.size(0), rows):
        part = slice(row, row + rows)
        loss, state = model.loss(inputs[part], targets[part], state, "sum")
        total += loss
    return float(total) / tokens.numel(), tokens.numel() / (time.perf_counter() - began)
