"""The time there is."""

from __future__ import annotations

import time


class Budget:
    """Seconds from now on.

    Args:
        seconds: all there is.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, not below zero."""
        return max(0.0, self._end - time.monotonic())

    def share(self, most: float, keep: float = 0.0) -> float:
        """Seconds for a stage: `most`, or what is left once `keep` is put aside for the others."""
        return max(0.0, min(most, self.left() - keep))
