"""The command line, read into options."""

from __future__ import annotations

from pathlib import Path

from fastrnn.lm.complete import complete
from fastrnn.lm.config import Config
from fastrnn.lm.options import read_options
from fastrnn.lm.presets import describe_presets, preset_file
from fastrnn.lm.run import CONFIG
from fastrnn.lm.settings import update_from_toml


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
    return read_options(Config, "fastrnn.train", arguments, default)
