"""What every program does around its work: exit codes, and one line for every mistake."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import torch

from fastrnn import _library
from fastrnn.lm.errors import UserError

# Packages that a plain installation lacks, and the extra that brings them.
_EXTRAS = dict.fromkeys(("tyro", "rich", "safetensors", "matplotlib", "numpy"), "train")
_EXTRAS |= {"optuna": "sweep", "tokenizers": "bpe", "tensorboard": "tensorboard"}
# What a program asks for memory by.
_LOWER = {"fastrnn.generate": "--batch"}
_LOWER |= dict.fromkeys(
    ("fastrnn.train", "fastrnn.profile", "fastrnn.sweep"), "--batch-size, --bptt or --hidden-size"
)


def run_program(
    name: str, work: Callable[[list[str]], int | None], argv: Sequence[str] | None = None
) -> int:
    """Do a program's work and turn what goes wrong into an exit code.

    Args:
        name: the program's, for messages.
        work: takes the command line, may return an exit code; imports what it needs itself, so
            that a package that is not installed is told in one line too.
        argv: the command line without the program's name; default: that of the process.

    Returns:
        The exit code: that of `work`, or 0; 2 after a mistake of the user, told in one line on
        standard error; 130 after Ctrl-C; 141 where the reader of the output went away.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _print_anything()
    try:
        if _library.mistake is not None:
            raise UserError(_library.mistake)
        code = work(arguments) or 0
        sys.stdout.flush()  # what cannot be written is told here, not by Python at exit
        return code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()  # as `| head` leaves it
        return 141
    except Exception as error:
        text = one_line(error, name)
        if isinstance(error, OSError) and not error.filename and _output_fails():
            _drop_output()
            text = f"standard output: {error.strerror}"
        if text is None:
            raise
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"{name}: {text}", file=sys.stderr)
        return 2


def _print_anything() -> None:
    """No work is lost because its result cannot be shown: a letter that the terminal's encoding
    lacks is escaped, and what goes to a closed standard output goes nowhere."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _output_fails() -> bool:
    """Whether standard output is what could not be written, told by a line's end more."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _drop_output() -> None:
    """Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(error: Exception, name: str = "") -> str | None:
    """What to tell the user about an error.

    Args:
        error: what went wrong.
        name: of the program, for what could be asked of it instead; default: nothing is said of it.

    Returns:
        One line, or None if it is a fault of the program.
    """
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    # torch's CPU allocator raises a plain RuntimeError.
    no_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if no_memory or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        reason = str(error).strip().partition("\n")[0]
        advice = f"; lower {_LOWER[name]}" if name in _LOWER else ""
        return f"out of memory{advice} ({reason})"
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        extra = _EXTRAS[error.name]
        return f"the package {error.name} is not installed: pip install 'fastrnn[{extra}]'"
    return None
