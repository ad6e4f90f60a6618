"""Where a training step's time goes: the program `fastrnn.profile`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastrnn.lm.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: the command line without the program's name; default: that of the process.

    Returns:
        The exit code; see `run_program`.
    """
    return run_program("fastrnn.profile", _work, argv)


def _work(arguments: list[str]) -> None:
    from fastrnn.lm.profiling import profile

    profile(arguments)


if __name__ == "__main__":
    sys.exit(main())
