"""Loss of a model on a text."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from fastrnn.lm.batches import Batch, Sentences, window
from fastrnn.lm.config import TrainingOptions
from fastrnn.lm.data import scored_columns
from fastrnn.lm.memory import trimmed
from fastrnn.lm.model import LanguageModel

COLUMNS = 10


@torch.inference_mode()
def evaluate(
    model: LanguageModel,
    tokens: Tensor,
    before: int,
    batch: int,
    document: int | None = None,
    sentences: bool = False,
    columns: int = COLUMNS,
) -> tuple[float, float]:
    """Mean loss over every token of a text, each predicted once.

    Args:
        model: put in evaluation mode.
        tokens: integers [N].
        before: the token taken to stand before the first.
        batch: predictions made at a time, at least; a transformer is read in windows of its context
            whatever it is, or what it sees, and so its loss, would depend on it.
        document: the token that begins a document, which is not predicted; default None.
        sentences: read every line from a hidden state of zeros; default False.
        columns: parts of the text that are read side by side, each from a hidden state of zeros, at
            most; default 10.

    Returns:
        The loss in nats, and tokens per second.
    """
    model.eval()
    device = next(model.parameters()).device
    began, state, count = time.perf_counter(), None, 0
    total = torch.zeros((), dtype=torch.float64, device=device)
    context = getattr(model.rnn, "context", None)
    for part in trimmed(_batches(tokens, before, batch, document, sentences, columns, context)):
        part = part.to(device)
        given = state if part.carried else None
        loss, state = model.loss(part.inputs, part.targets, given, "sum", part.resets, part.lengths)
        total += loss
        count += part.count
    return float(total) / max(count, 1), count / (time.perf_counter() - began)


def _batches(
    tokens: Tensor,
    before: int,
    batch: int,
    document: int | None,
    sentences: bool,
    columns: int,
    context: int | None,
) -> Iterator[Batch]:
    if sentences:
        yield from Sentences(tokens, TrainingOptions(), before).every(batch)
        return
    columns = min(columns, tokens.numel())
    inputs, targets = scored_columns(tokens, columns, before)
    rows = -(-batch // columns) if context is None else context
    for row in range(0, inputs.size(0), rows):
        yield window(inputs[row : row + rows], targets[row : row + rows], document)
