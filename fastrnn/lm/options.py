"""A program's command line, read into a dataclass of options."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from typing import Any, TypeVar

import tyro

from fastrnn._suggest import suggest
from fastrnn.lm.errors import UserError

Options = TypeVar("Options")
# What tyro says of a value of another type, and what we say.
_TYRO = {
    r"Missing value for argument '(--[\w-]+)'.*": r"\1: expected a value, got none; one that begins"
    r" with - is given as \1=-...",
    r"Error parsing (--[\w-]+)": r"\1",
    r"no type matching {None}\|(\w+) could be instantiated from \[(.*)\]\.": r"expected \1, got \2",
    r"invalid literal for int\(\) with base 10: ": "expected INT, got ",
    r"could not convert string to float: ": "expected FLOAT, got ",
}


def read_options(
    kind: type[Options], name: str, arguments: list[str], default: Options | None = None
) -> Options:
    """Options from a command line.

    Args:
        kind: dataclass of options, or of groups of options.
        name: the program's.
        arguments: the command line without it.
        default: what options are that the command line does not name; default: the fields'.

    Returns:
        The options, of the right types.

    Raises:
        UserError: an option is unknown, lacks its value or has one of another type.
        SystemExit: after --help.
    """
    known = ["--" + option.replace("_", "-") for option in ["help", *_names(kind)]]
    for option in named(arguments):
        if option.replace("--no-", "--", 1) not in known:
            raise UserError(f"unknown option {option!r}{suggest(option, known)}")
    errors = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            config = (tyro.conf.OmitArgPrefixes,)
            read: Options = tyro.cli(kind, prog=name, args=arguments, config=config, **given)
            return read
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UserError(_unboxed(errors.getvalue())) from error


def named(arguments: list[str]) -> list[str]:
    """The options that a command line names, with dashes."""
    names = (argument.partition("=")[0].replace("_", "-") for argument in arguments)
    return [name for name in names if name.startswith("--")]


def _names(kind: Any) -> list[str]:
    """The flat names of a dataclass's fields, those of groups in place of the group."""
    names: list[str] = []
    for field in dataclasses.fields(kind):
        group: Any = field.default_factory
        names += _names(group) if dataclasses.is_dataclass(group) else [field.name]
    return names


def _unboxed(box: str) -> str:
    """What the box that tyro draws around a message says first, as one line; where the locale is
    not UTF-8 the box is of spaces and dashes."""
    _, *rows = [line.strip("│ ") for line in box.strip().splitlines()] or [""]  # without its title
    if rows and _is_rule(rows[0]):
        del rows[0]
    end = next((i for i, row in enumerate(rows) if not row or _is_rule(row)), len(rows))
    text = " ".join(rows[:end]) or " ".join(box.split())
    for pattern, expected in _TYRO.items():
        text = re.sub(pattern, expected, text)
    return text


def _is_rule(row: str) -> bool:
    return re.fullmatch("[─-]+", row) is not None
