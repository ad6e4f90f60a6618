"""Every case is right before it is timed; how fast it is, no test asserts."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.cases import Case, Row
from benchmarks.results import wrong_with


def test_case(measured: Callable[[Case, str], Row], case: Case, malloc: str) -> None:
    row = measured(case, malloc)
    assert "error" not in row, row["error"]
    assert wrong_with(row) is None
