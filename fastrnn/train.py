"""Train a recurrent language model: the program `fastrnn.train`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import torch

from fastrnn.lm.errors import UserError

# The extra that brings each package.
_EXTRA = dict.fromkeys(("tyro", "rich", "safetensors", "matplotlib", "numpy"), "train") | {
    "tokenizers": "bpe",
    "tensorboard": "tensorboard",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: the command line without the program's name; default: that of the process.

    Returns:
        The exit code: 0; 2 after a mistake of the user, told in one line on standard error; 143
        after SIGTERM, with the state saved; 130 after a second Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        # Imported here so that a package that is not installed is told in one line too.
        from fastrnn.lm.command_line import parse
        from fastrnn.lm.report import Reporter
        from fastrnn.lm.session import train

        return train(parse(arguments), Reporter())
    except KeyboardInterrupt:
        print("fastrnn.train: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        text = _one_line(error)
        if text is None:
            raise
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"fastrnn.train: {text}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str | None:
    """What to tell the user about an error, or None if it is a fault of the program."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    # torch's CPU allocator raises a plain RuntimeError.
    no_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if no_memory or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        reason = str(error).strip().partition("\n")[0]
        return f"out of memory; lower --batch-size, --bptt or --hidden-size ({reason})"
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA:
        extra = f"pip install 'fastrnn[{_EXTRA[error.name]}]'"
        return f"the package {error.name} is not installed: {extra}"
    return None


if __name__ == "__main__":
    sys.exit(main())
