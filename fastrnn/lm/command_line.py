"""The command line, read into options."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import tyro

from fastrnn.lm.complete import complete
from fastrnn.lm.config import Config
from fastrnn.lm.errors import UserError
from fastrnn.lm.presets import describe_presets, preset_file
from fastrnn.lm.run import CONFIG
from fastrnn.lm.settings import option_names, suggest, update_from_toml


def parse(arguments: list[str]) -> Config:
    """Options from a command line, over those of a resumed run, of --config and of --preset.

    Args:
        arguments: the command line without the program's name.

    Returns:
        All options, completed and checked.

    Raises:
        UserError: an option is unknown, lacks its value or does not fit.
        SystemExit: after --help and --presets.
    """
    config = _parse_over(Config(), arguments)
    if config.run.presets:
        print(describe_presets())
        raise SystemExit(0)
    files = [preset_file(config.run.preset)] if config.run.preset is not None else []
    files += [Path(config.run.config)] if config.run.config is not None else []
    if config.run.resume and config.run.out is not None:
        saved = Path(config.run.out) / CONFIG
        files += [saved] if saved.is_file() else []
    if files:
        base = Config()
        for file in files:
            update_from_toml(base, file)
        config = _parse_over(base, arguments)
    complete(config)
    return config


def _parse_over(default: Config, arguments: list[str]) -> Config:
    known = ["--" + name.replace("_", "-") for name in ["help", *option_names()]]
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        if option.startswith("--") and option.replace("--no-", "--", 1) not in known:
            raise UserError(f"unknown option {option!r}{suggest(option, known)}")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                Config,
                prog="fastrnn.train",
                args=arguments,
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UserError(_unboxed(errors.getvalue())) from error


def _unboxed(box: str) -> str:
    """The first paragraph of the box that tyro draws around a message, as one line."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    end = next((i for i, line in enumerate(lines) if re.fullmatch("─+", line)), len(lines))
    return " ".join(lines[:end]) or " ".join(box.split())
