"""Train a recurrent language model: the program `fastrnn.train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastrnn.lm.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: the command line without the program's name; default: that of the process.

    Returns:
        The exit code; 130 after Ctrl-C and 143 after SIGTERM, with the state saved; else see
        `run_program`.
    """
    return run_program("fastrnn.train", _work, argv)


def _work(arguments: list[str]) -> int:
    from fastrnn.lm.command_line import parse
    from fastrnn.lm.report import Reporter
    from fastrnn.lm.session import train

    return train(parse(arguments), Reporter())


if __name__ == "__main__":
    sys.exit(main())
