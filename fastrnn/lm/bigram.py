"""The yardstick: an interpolated Kneser-Ney bigram model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class KneserNeyBigram:
    """Bigram probabilities with interpolated Kneser-Ney smoothing.

        p(w | u) = max(c(uw) - D, 0) / c(u) + D N(u.) / c(u) p1(w)
        p1(w)    = max(N(.w) - D1, 0) / N(..) + D1 N(. distinct w) / N(..) / V

    where N(u.) counts the distinct words after u, N(.w) those before w and N(..) distinct pairs;
    D = n1 / (n1 + 2 n2) from the pairs seen once and twice, D1 likewise from N(.w). The uniform
    share in p1 gives words that the text lacks a probability.

    Args:
        tokens: integers [N], the training text.
        size: V, words in the dictionary.
        before: the word taken to stand before the first.

    Source: Kneser and Ney 1995; Chen and Goodman 1998, equations 4.37 (interpolated) and 3.20 (D).
    """

    def __init__(self, tokens: Tensor, size: int, before: int) -> None:
        self._size, self._before = size, before
        pairs, counts = np.unique(self._pairs(tokens), return_counts=True)
        first, second = pairs // size, pairs % size
        discount = _discount(counts)
        followed = np.bincount(first, counts, size)  # c(u)
        followers = np.bincount(first, minlength=size)  # N(u.)
        preceders = np.bincount(second, minlength=size)  # N(.w)
        discount1 = _discount(preceders)
        spread = discount1 * np.count_nonzero(preceders) / size
        self._continuation: Floats = (np.maximum(preceders - discount1, 0) + spread) / len(pairs)
        seen = np.maximum(followed, 1)
        # A word never followed by anything leaves all its mass to the continuation.
        self._back_off: Floats = np.where(followed > 0, discount * followers / seen, 1.0)
        self._known: Ints = pairs
        self._direct: Floats = (counts - discount) / followed[first]

    def _pairs(self, tokens: Tensor) -> Ints:
        words: Ints = tokens.numpy().astype(np.int64)
        previous = np.concatenate(([self._before], words[:-1]))
        return previous * self._size + words

    def probabilities(self, tokens: Tensor) -> Floats:
        """Probability of each token of a text given the one before it.

        Args:
            tokens: integers [N], below V.

        Returns:
            float64 [N].
        """
        pairs = self._pairs(tokens)
        place = np.minimum(np.searchsorted(self._known, pairs), len(self._known) - 1)
        direct = np.where(self._known[place] == pairs, self._direct[place], 0.0)
        smooth = self._back_off[pairs // self._size] * self._continuation[pairs % self._size]
        return np.asarray(direct + smooth)

    def perplexity(self, tokens: Tensor) -> float:
        """exp of the mean negative log-probability of a text's tokens, integers [N]."""
        return float(np.exp(-np.log(self.probabilities(tokens)).mean()))


def _discount(counts: npt.NDArray[np.integer[npt.NBitBase]] | Ints) -> float:
    """D = n1 / (n1 + 2 n2), kept off 0 and 1, where a text too small for the estimate puts it."""
    once, twice = int(np.sum(counts == 1)), int(np.sum(counts == 2))
    return min(max(once / max(once + 2 * twice, 1), 0.1), 0.9)
