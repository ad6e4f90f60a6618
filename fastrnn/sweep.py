"""Train over a range of settings: the program `fastrnn.sweep`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastrnn.lm.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: the command line without the program's name; default: that of the process.

    Returns:
        The exit code; 130 after Ctrl-C and 143 after SIGTERM, with the runs saved; else see
        `run_program`.
    """
    return run_program("fastrnn.sweep", _work, argv)


def _work(arguments: list[str]) -> int:
    from fastrnn.lm.options import read_options
    from fastrnn.lm.sweeping import SweepingOptions, sweep

    return sweep(read_options(SweepingOptions, "fastrnn.sweep", arguments))


if __name__ == "__main__":
    sys.exit(main())
