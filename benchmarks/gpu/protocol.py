"""What a worker says to the process that watches it: lines of JSON, among others for people.

{"begin": task}
{"trying": what, "seconds": some}: what is to blame if nothing follows for so long; null: the task
    itself. Without "seconds" the supervisor decides.
{"lost": why}: the device does not work any more in this process, which ends.
{"case": task, ...}: the task's row.
"""

from __future__ import annotations

import json
from typing import Any


def say(row: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(row), flush=True)


def heard(line: str) -> dict[str, Any] | None:
    """What `say` said, or None if the line is for people."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def family(task: str) -> str:
    """The tasks among which what is lost again and again stays out."""
    return task.split("-")[0]
