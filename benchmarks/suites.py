"""All cases, by name."""

from __future__ import annotations

from fnmatch import fnmatchcase

from benchmarks import (
    attention,
    callers,
    directions,
    features,
    growth,
    language_model,
    layers,
    loss,
    single_steps,
)
from benchmarks.cases import Case

SUITES = (
    layers,
    directions,
    callers,
    single_steps,
    features,
    loss,
    attention,
    language_model,
    growth,
)


def all_cases() -> dict[str, Case]:
    """Name -> case, in the order they are measured in."""
    return {case.name: case for suite in SUITES for case in suite.cases()}


def chosen(patterns: list[str], quick: bool) -> list[Case]:
    """The cases that names or patterns ("layers/gru/*", or the beginning "layers/gru") choose.

    Args:
        patterns: none: all of them.
        quick: of those, the quick ones; named in full, any.

    Raises:
        ValueError: a pattern chooses nothing, or nothing is left.
    """
    cases = all_cases()
    found: dict[str, Case] = {}
    for pattern in patterns or ["*"]:
        hits = [n for n in cases if fnmatchcase(n, pattern) or n.startswith(pattern + "/")]
        if not hits:
            raise ValueError(f"benchmarks: no case is called {pattern!r}; --list names them all")
        found |= {n: cases[n] for n in hits if not quick or cases[n].quick or n == pattern}
    if not found:
        raise ValueError(
            f"benchmarks: none of {', '.join(map(repr, patterns))} is in the quick run"
        )
    return list(found.values())
