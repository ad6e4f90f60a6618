"""Multi-head attention as a module."""

from __future__ import annotations

from torch import Tensor, nn

from fastrnn._arguments import are_tensors, number
from fastrnn._autocast import lower_dtype
from fastrnn._checks import no_script
from fastrnn.attention import masked_attention


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each in its own projection of the inputs.

    Args:
        n_units: width of query, key, value and output.
        n_heads: attentions; divides `n_units`.
        dropout: probability of dropping an attention weight in training, in [0, 1); default 0.

    Raises:
        ValueError: a size is not positive, `n_heads` does not divide `n_units`, or `dropout` is
            outside [0, 1).
        TypeError: `dropout` is no number.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    __prepare_scriptable__ = no_script

    def __init__(self, n_units: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        for name, size in (("n_units", n_units), ("n_heads", n_heads)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"MultiHeadAttention: {name} must be a positive int, got {size!r}")
        if n_units % n_heads:
            raise ValueError(
                f"MultiHeadAttention: n_heads must divide n_units = {n_units}, got {n_heads}"
            )
        number("MultiHeadAttention: dropout", dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f"MultiHeadAttention: dropout must be in [0, 1), got {dropout!r}")
        self.n_units, self.n_heads, self.dropout = n_units, n_heads, dropout
        self.q_proj = nn.Linear(n_units, n_units)
        self.k_proj = nn.Linear(n_units, n_units)
        self.v_proj = nn.Linear(n_units, n_units)
        self.out_proj = nn.Linear(n_units, n_units)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        *,
        is_causal: bool = False,
    ) -> Tensor:
        """Attend.

        Args:
            query: [B, Lq, n_units].
            key: [B, Lk, n_units].
            value: [B, Lk, n_units].
            mask: 0/1 integers or booleans (1: attend), broadcastable to [B, Lq, Lk], or with a head
                axis to [B, n_heads, Lq, Lk]; default None.
            is_causal: query i attends to keys j <= i only; default False.

        Returns:
            [B, Lq, n_units].

        Raises:
            TypeError: what should be a tensor is none.
            ValueError: a shape, dtype or device does not fit.
        """
        needed = {"query": query, "key": key, "value": value}
        are_tensors("MultiHeadAttention", needed, {"mask": mask})
        units = f"n_units = {self.n_units}"
        _expect("query", query, (None, None, self.n_units), f"[B, L, {units}]")
        batch, length = query.shape[:2]
        _expect("key", key, (batch, None, self.n_units), f"[B = {batch}, L, {units}]")
        keys = key.size(1)
        _expect("value", value, (batch, keys, self.n_units), f"[B = {batch}, L = {keys}, {units}]")
        projection = self.q_proj
        # What is put in a linear layer's place, such as a quantized one, takes what it takes. The
        # bias, since a weight may be parametrized, and made anew at every look.
        if isinstance(projection, nn.Linear) and (bias := projection.bias) is not None:
            for name, tensor in needed.items():
                if tensor.dtype != bias.dtype or tensor.device != bias.device:
                    _expect_like(name, tensor, bias)
        if mask is not None and mask.is_floating_point():  # 0 and 1, or to be added?
            raise ValueError(
                f"MultiHeadAttention: mask must be boolean or of 0/1 integers, got {mask.dtype}"
            )
        if mask is not None and mask.dim() <= 3:
            full = [batch, length, keys]
            # From the right, each size is the whole one or 1.
            if any(m not in (1, f) for m, f in zip(mask.shape[::-1], full[::-1], strict=False)):
                raise ValueError(
                    f"MultiHeadAttention: mask must be broadcastable to [B, Lq, Lk] = {full}, "
                    f"got {list(mask.shape)}"
                )
            mask = mask.unsqueeze(1) if mask.dim() == 3 else mask
        output = masked_attention(
            self._heads(self.q_proj(query)),
            self._heads(self.k_proj(key)),
            self._heads(self.v_proj(value)),
            mask,
            is_causal=is_causal,
            dropout_p=self.dropout if self.training else 0.0,
        )
        projected: Tensor = self.out_proj(output.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, tensor: Tensor) -> Tensor:
        """[B, L, n_units] as [B, n_heads, L, n_units / n_heads]."""
        width = self.n_units // self.n_heads
        return tensor.view(*tensor.shape[:2], self.n_heads, width).transpose(1, 2)

    def extra_repr(self) -> str:
        """Sizes, as printed."""
        return f"{self.n_units}, {self.n_heads}, dropout={self.dropout}"


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...], text: str) -> None:
    """Raise unless a tensor has a shape, None being any size."""
    sizes = tuple(tensor.shape)
    fits = len(sizes) == len(shape) and all(
        w in (None, s) for s, w in zip(sizes, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"MultiHeadAttention: {name} must be {text}, got {list(sizes)}")


def _expect_like(name: str, tensor: Tensor, bias: Tensor) -> None:
    """Raise unless a tensor has the weights' dtype, or one that autocast makes the same, and
    device."""
    if tensor.device != bias.device:
        raise ValueError(
            f"MultiHeadAttention: {name} must be on the weights' device {bias.device}, "
            f"got {tensor.device}"
        )
    lower = lower_dtype(tensor)
    if lower is None or lower != lower_dtype(bias):
        raise ValueError(
            f"MultiHeadAttention: {name} must have the weights' dtype {bias.dtype}, "
            f"got {tensor.dtype}"
        )
