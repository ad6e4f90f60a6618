"""The learning rate of every step."""

from __future__ import annotations

import math

from fastrnn.lm.config import OptimizerOptions

_COURSE_EPOCHS, _COURSE_FACTOR = 14, 1 / 1.15


def learning_rate(
    options: OptimizerOptions, epoch: int, step: int, steps: int, scale: float
) -> float:
    """The rate of a step.

    Args:
        options: completed.
        epoch: the epoch under way, from 1.
        step: steps made before this one.
        steps: how many there will be in all.
        scale: what validation and divergence have left of the rate.

    Returns:
        The rate.

    Source: Zaremba et al. 2014, section 4.1 (decay); IFT6135 assignment, ptb-lm.py (course);
    Loshchilov and Hutter 2017, eq. 5 without restarts (cosine).
    """
    assert options.lr is not None and options.decay_factor is not None
    rate = options.lr * scale
    if options.schedule == "decay":
        rate *= options.decay_factor ** max(epoch - options.decay_from, 0)
    elif options.schedule == "course":
        # The factor itself shrinks each epoch, and each epoch's multiplies the rate reached.
        beyond = max(epoch - 1 - _COURSE_EPOCHS, 0)
        rate *= _COURSE_FACTOR ** (beyond * (beyond + 1) // 2)
    elif options.schedule == "cosine":
        done = (step - options.warmup) / max(steps - options.warmup, 1)
        rate *= (1 + math.cos(math.pi * min(max(done, 0), 1))) / 2
    return rate * min((step + 1) / options.warmup, 1) if options.warmup else rate
