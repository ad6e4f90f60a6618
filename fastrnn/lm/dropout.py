"""Dropout as a language model's layers take it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrnn._dropout import dropout


class Dropout(nn.Module):
    """Dropout over [T, B, H], of single values or of units at every step alike.

    Args:
        p: probability of dropping.
        variational: draw one mask [B, H] for all steps; default False.

    Source: Srivastava et al. 2014; Gal and Ghahramani 2016 (variational).
    """

    def __init__(self, p: float, variational: bool = False) -> None:
        super().__init__()
        self.p, self.variational = p, variational

    def forward(self, input: Tensor) -> Tensor:
        """`input` with values dropped, the others scaled up; in evaluation as it is."""
        if not self.variational:
            return dropout(input, self.p, self.training)
        return input * dropout(torch.ones_like(input[:1]), self.p, self.training)
