"""What may act inside a step besides the cell: resets, zoneout and layer normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-5
_WORD = 0xFFFFFFFF  # 32 bits; a word is kept in an int64
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class LayerNorm(NamedTuple):
    """The gains of a recurrence with layer normalisation; the layer's own biases come after it.

    Args:
        ln_ih_weight: [G*H], of the input's projection.
        ln_hh_weight: [G*H], of the state's.
        ln_c_weight: [H], of the LSTM's c on its way to h; None for other cells.
        ln_c_bias: [H], added there; None for other cells.

    Source: Ba et al. 2016, eq. 20-22, normalising all gates of a projection together.
    """

    ln_ih_weight: Tensor
    ln_hh_weight: Tensor
    ln_c_weight: Tensor | None = None
    ln_c_bias: Tensor | None = None

    @classmethod
    def split(cls, gains: Tensor, gates: int, states: int) -> LayerNorm:
        """What `joined` put together, for a cell of so many gates and states."""
        others = 2 * (states - 1)
        hidden = gains.size(0) // (2 * gates + others)
        return cls(*torch.split(gains, [gates * hidden] * 2 + [hidden] * others))

    def joined(self) -> Tensor:
        """The gains one after the other, as the operators take them."""
        return torch.cat([gain for gain in self if gain is not None])

    def input(self, projection: Tensor, bias: Tensor | None) -> Tensor:
        """[N, G*H] normalised, plus the bias."""
        return _normalised(projection, self.ln_ih_weight, bias)

    def hidden(self, projection: Tensor, bias: Tensor | None) -> Tensor:
        """[B, G*H] normalised, plus the bias."""
        return _normalised(projection, self.ln_hh_weight, bias)

    def cell(self, c: Tensor) -> Tensor:
        """The LSTM's c [B, H] normalised, as its h sees it."""
        assert self.ln_c_weight is not None
        return _normalised(c, self.ln_c_weight, self.ln_c_bias)


def _normalised(x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    return F.layer_norm(x, gain.shape, gain, bias, LAYER_NORM_EPS)


@dataclass(frozen=True)
class Extras:
    """The optional behaviours of a recurrence over N packed rows; all absent by default.

    Args:
        resets: bool [N], whether the state is zeroed before the row's step.
        zoneout: S probabilities of a unit keeping its value for a step.
        seed: int64 with one value, what zoneout's masks are a function of; None: each mask is
            replaced by its expectation, as in evaluation.
        sequences: int64 [B], the numbers by which zoneout's masks know the sequences, so that a
            sequence gets the same masks wherever sorting puts it; None: 0 to B-1.
        layer_norm: gains, or None.
    """

    resets: Tensor | None = None
    zoneout: tuple[float, ...] | None = None
    seed: Tensor | None = None
    sequences: Tensor | None = None
    layer_norm: LayerNorm | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are present."""
        every = ("resets", "zoneout", "layer_norm")
        return tuple(name for name in every if getattr(self, name) is not None)

    def zoneout_masks(
        self, widths: Sequence[int], batch_sizes: Sequence[int]
    ) -> list[Tensor | float]:
        """For each state, where it keeps its value (bool [N, width]) or how much of it."""
        if self.zoneout is None or self.seed is None:
            return list(self.zoneout or ())
        steps, sequences = row_indices(
            torch.tensor(batch_sizes, device=self.seed.device), sum(batch_sizes)
        )
        if self.sequences is not None:
            sequences = self.sequences[sequences]
        return [
            # Exact for every p: no mask at 0, all of it at 1.
            random_words(self.seed, state, steps, sequences, width) < round(p * 2**32)
            for state, (p, width) in enumerate(zip(self.zoneout, widths, strict=True))
        ]


PLAIN = Extras()


def keep(prev: Tensor, next: Tensor, kept: Tensor | float) -> Tensor:
    """Zoneout: `next` [B, H] with the units of `prev` that are kept, or so much of each.

    Source: Krueger et al. 2016, eq. 3.
    """
    if isinstance(kept, Tensor):
        return torch.where(kept, prev, next)
    return kept * prev + (1 - kept) * next if kept else next


def row_indices(batch_sizes: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Of every packed row, its step and its sequence's place in the batch, int64 [N] each."""
    every = torch.arange(rows, device=batch_sizes.device)
    count = torch.arange(batch_sizes.size(0), device=batch_sizes.device)
    steps = torch.repeat_interleave(count, batch_sizes, output_size=rows)
    starts = batch_sizes.cumsum(0) - batch_sizes
    return steps, every - starts[steps]


def random_words(seed: Tensor, state: int, steps: Tensor, sequences: Tensor, width: int) -> Tensor:
    """Uniform 32-bit words, a pure function of where they are used.

    Word u of a row is word u % 4 of Philox-4x32-10 at the counter (u // 4, sequence, step, state)
    under the key (low half of the seed, high half).

    Args:
        seed: int64 with one value.
        state: index of the state, 0 for h.
        steps: int64 [N].
        sequences: int64 [N].
        width: units of the state.

    Returns:
        int64 [N, width], values from 0 to 2**32 - 1.
    """
    quads = torch.arange(-(-width // 4), device=steps.device)
    fourth = torch.full_like(quads, state)
    seed = seed.reshape(())
    words = philox(
        (quads, sequences.unsqueeze(1) & _WORD, steps.unsqueeze(1), fourth),
        (seed & _WORD, seed >> 32),
    )
    return torch.stack(words, dim=-1).flatten(-2)[..., :width]


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox-4x32-10, a counter-based generator.

    Args:
        counter: 4 words as int64 tensors that broadcast together.
        key: 2 words as int64 tensors.

    Returns:
        4 words.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3.
    """
    a, b, c, d = counter
    for round in range(_ROUNDS):
        m, n = ((word + round * by) & _WORD for word, by in zip(key, _KEY_STEPS, strict=True))
        # 64-bit products: they wrap, which leaves the bits that an unsigned product has.
        x, y = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (y >> 32 & _WORD) ^ b ^ m, y & _WORD, (x >> 32 & _WORD) ^ d ^ n, x & _WORD
    return [a, b, c, d]
