"""Ctrl-C and SIGTERM as wishes to stop, granted where it does no harm."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopOnSignal:
    """Inside its `with` block the first signal only sets `asked`; Ctrl-C after it interrupts.

    Args:
        asked: the signal's number; 0 until there is one.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
