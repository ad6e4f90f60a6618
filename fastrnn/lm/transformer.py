"""A stack of Transformer blocks for the language model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastrnn.lm.dropout import Dropout
from fastrnn.multihead import MultiHeadAttention


def sinusoids(positions: int, width: int, device: torch.device | None = None) -> Tensor:
    """What is added to the embeddings for their places.

    Args:
        positions: T.
        width: H, sines in its even columns, cosines in its odd ones.
        device: where to make them; default: the CPU.

    Returns:
        [T, H].

    Source: Vaswani et al. 2017, section 3.5.
    """
    places = torch.arange(positions, device=device)
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angles = places.unsqueeze(1) * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :width]


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer, each around a residual connection.

    Args:
        width: H.
        heads: attention heads; divides H.
        inner: units of the feed-forward layer.
        dropout: probability of dropping an attention weight, an inner unit, or what is added.
        pre_norm: layer normalisation before attention and feed-forward layer, rather than after
            what they give is added.

    Source: Vaswani et al. 2017, section 3.1; Xiong et al. 2020, figure 1 (pre-norm).
    """

    def __init__(
        self, width: int, heads: int, inner: int, dropout: float = 0.0, pre_norm: bool = True
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = MultiHeadAttention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, inner), nn.ReLU(), Dropout(dropout), nn.Linear(inner, width)
        )
        self.feed_forward_norm = nn.LayerNorm(width)
        self.drop = Dropout(dropout)

    def forward(self, states: Tensor, padding: Tensor | None = None) -> Tensor:
        """Let each place look at itself and those before it.

        Args:
            states: [B, T, H].
            padding: bool [B, T], True at places that are no part of the text; default None.

        Returns:
            [B, T, H].
        """
        mask = None if padding is None else ~padding.unsqueeze(1)
        if self.pre_norm:
            states = states + self.drop(self._attend(self.attention_norm(states), mask))
            states = states + self.drop(self.feed_forward(self.feed_forward_norm(states)))
        else:
            states = self.attention_norm(states + self.drop(self._attend(states, mask)))
            states = self.feed_forward_norm(states + self.drop(self.feed_forward(states)))
        return states

    def _attend(self, states: Tensor, mask: Tensor | None) -> Tensor:
        attended: Tensor = self.attention(states, states, states, mask, is_causal=True)
        return attended


class Transformer(nn.Module):
    """Blocks over embeddings: takes and gives [T, B, H], as a recurrent layer does.

    Args:
        width: H.
        layers: blocks.
        heads: attention heads of each; divides H.
        inner: units of the feed-forward layers; default None: 4 H.
        dropout: as for `TransformerBlock`; default 0.
        pre_norm: as for `TransformerBlock`; default True, which normalises once more at the end.

    Source: Vaswani et al. 2017, the decoder without its second attention.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        inner: int | None = None,
        dropout: float = 0.0,
        pre_norm: bool = True,
    ) -> None:
        super().__init__()
        inner = 4 * width if inner is None else inner
        self.scale = math.sqrt(width)
        self.drop = Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, inner, dropout, pre_norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()

    def forward(self, embedded: Tensor, padding: Tensor | None = None) -> Tensor:
        """States of a text's places, none of which sees a later one.

        Args:
            embedded: [T, B, H]; multiplied by sqrt(H), then placed by `sinusoids`.
            padding: bool [T, B], True at places that are no part of the text; default None.

        Returns:
            [T, B, H]; what stands at padded places is not to be used.
        """
        places = sinusoids(embedded.size(0), embedded.size(2), embedded.device).to(embedded)
        states = self.drop(embedded * self.scale + places.unsqueeze(1)).transpose(0, 1)
        for block in self.blocks:
            states = block(states, None if padding is None else padding.T)
        normed: Tensor = self.norm(states)
        return normed.transpose(0, 1)
