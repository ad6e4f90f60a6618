"""When a step must not be taken."""

from __future__ import annotations

import math

_WARM = 20  # steps before the running mean of the norm means something
_SHARE = 0.02  # of the newest norm in it


def divergence(loss: float, norm: float, usual: float, step: int, explosion: float) -> str | None:
    """Why the step would spoil the weights, or None.

    Args:
        loss: the batch's mean loss.
        norm: the gradient's, before clipping.
        usual: its running mean.
        step: steps made before.
        explosion: multiple of `usual` that is too much; 0: none is.
    """
    if not math.isfinite(loss):
        return f"the training loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient's norm is {norm}"
    if norm > limit(step, explosion) * usual:
        return f"the gradient's norm is {norm:.3g}, its running mean {usual:.3g}"
    return None


def limit(step: int, explosion: float) -> float:
    """The multiple of the usual norm that is too much at a step; infinite: none is."""
    return explosion if explosion and step >= _WARM else math.inf


def running_mean(usual: float, norm: float, step: int) -> float:
    """The running mean with one more norm in it."""
    return usual + (norm - usual) * newest_share(step)


def newest_share(step: int) -> float:
    """The newest norm's share in the running mean."""
    return max(_SHARE, 1 / (step + 1))
