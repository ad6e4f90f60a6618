"""`pytest benchmarks/` is the performance run: a test per case and malloc setting. Same workers,
rows and files as `python -m benchmarks`; `-k` chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks import results, suites
from benchmarks.__main__ import line
from benchmarks.cases import Case, Row
from benchmarks.machine import environment
from benchmarks.worker import Workers

LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="main cases, few rounds: a minute")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = suites.chosen([], metafunc.config.getoption("quick"))
    found = [(case, malloc) for case in cases for malloc in case.malloc]
    ids = [f"{case.name} {malloc}" for case, malloc in found]
    metafunc.parametrize(("case", "malloc"), found, ids=ids)


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Iterator[Callable[[Case, str], Row]]:
    """Measures a case under a setting, keeps the row, and shows it at the end."""
    quick, facts = pytestconfig.getoption("quick"), environment()
    path = results.QUICK if quick else results.FULL
    with Workers() as workers:

        def measure(case: Case, malloc: str) -> Row:
            row = workers.measure(case, malloc, quick) | facts
            results.append([row], path)
            pytestconfig.stash[LINES].append(line(row))
            return row

        yield measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for text in config.stash[LINES]:
        terminalreporter.write_line(text)
