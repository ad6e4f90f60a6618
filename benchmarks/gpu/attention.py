"""One case of attention: our kernels beside the fastest backend of torch's own function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.cases import AttentionCase
from benchmarks.gpu.clock import Run
from benchmarks.gpu.measure import DTYPES, PEER, Measurement, work
from fastrnn import _attention
from fastrnn.functional import masked_attention

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


class Attend(nn.Module):
    """Attention to keys and values that are its parameters.

    Args:
        by: "exact", "ours" or one of `BACKENDS`.
        key: [B, heads, L, E]; value: the same.
        mask: boolean, or None: causal.
    """

    def __init__(self, by: str, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        super().__init__()
        self.by, self.mask = by, mask
        self.key, self.value = nn.Parameter(key.clone()), nn.Parameter(value.clone())

    def forward(self, query: Tensor) -> tuple[Tensor]:
        """The output alone."""
        key, value, mask, causal = self.key, self.value, self.mask, self.mask is None
        if self.by == "exact":
            scale = query.size(-1) ** -0.5
            return (_attention.reference(query, key, value, mask, None, causal, 0.0, scale)[0],)
        if self.by == "ours":
            return (masked_attention(query, key, value, mask, is_causal=causal),)
        with sdpa_kernel(BACKENDS[self.by]):
            return (F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal),)


class AttentionMeasurement(Measurement):
    """As `Measurement`, of an `AttentionCase`."""

    ours = ("auto", "triton")

    def _draw(self) -> None:
        B, heads, positions, size = self.case.shape  # noqa: N806
        shape = (B, heads, positions, size)
        draw = [torch.randn(shape, dtype=torch.float64, device=self.device) for _ in range(4)]
        self.inputs, self.memory = (draw[0], draw[1]), (draw[2], draw[3])
        self.mask: Tensor | None = None
        if self.case.mask == "boolean":
            self.mask = torch.rand(B, 1, positions, positions, device=self.device) > 0.3
            self.mask[..., 0] = True
        self.row["sdpa"] = self.peer = self._fastest()

    def _made(self, name: str) -> tuple[nn.Module, Tensor, Run]:
        dtype = torch.float64 if name == "exact" else DTYPES[self.case.precision]
        by = "ours" if name in self.ours else self.peer if name == PEER else name
        x, grad, key, value = (t.to(dtype, copy=True) for t in (*self.inputs, *self.memory))
        module = Attend(by, key, value, self.mask)
        x.requires_grad_(self.case.mode == "train")
        return module, x, work(module, x, grad, self.case.mode)

    def _fastest(self) -> str:
        """Of torch's backends that take the case."""
        found: dict[str, float] = {}
        for name in BACKENDS:
            _, _, run = self._made(name)
            try:
                run()
                found[name] = min(self.clock.milliseconds(run) for _ in range(3))
            except RuntimeError as error:  # it refuses a mask, a dtype or the device
                self.row["refused"][name] = str(error).splitlines()[0]
        return min(found, key=lambda name: found[name])


def measurement(case: Any, *rest: Any) -> Measurement:
    """Of either kind of case."""
    kind = AttentionMeasurement if isinstance(case, AttentionCase) else Measurement
    return kind(case, *rest)
