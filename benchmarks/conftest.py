"""`pytest benchmarks/` is the performance run: a test per case and malloc setting. Same workers,
rows and files as `python -m benchmarks`; `-k` chooses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks import results, suites
from benchmarks.__main__ import line
from benchmarks.cases import Row
from benchmarks.machine import environment
from benchmarks.worker import MALLOC, Worker

LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="main cases, few rounds: a minute")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = suites.chosen([], metafunc.config.getoption("quick"))
    found = [(case.name, malloc) for case in cases for malloc in case.malloc]
    metafunc.parametrize(("name", "malloc"), found, ids=[" ".join(pair) for pair in found])


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Iterator[Callable[[str, str], Row]]:
    """Measures a case under a setting, keeps the row, and shows it at the end."""
    quick, facts = pytestconfig.getoption("quick"), environment()
    path = results.QUICK if quick else results.FULL
    with contextlib.ExitStack() as stack:
        workers = {malloc: stack.enter_context(Worker(malloc)) for malloc in MALLOC}

        def measure(name: str, malloc: str) -> Row:
            row = workers[malloc].measure(name, quick) | facts
            results.append([row], path)
            pytestconfig.stash[LINES].append(line(row))
            return row

        yield measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for text in config.stash[LINES]:
        terminalreporter.write_line(text)
