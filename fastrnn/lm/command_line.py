"""The command line, read into options."""

from __future__ import annotations

from pathlib import Path

from fastrnn.lm.checkpoint import checkpoint_exists
from fastrnn.lm.complete import check_effect, complete
from fastrnn.lm.config import Config
from fastrnn.lm.options import named, read_options
from fastrnn.lm.presets import describe_presets, preset_file
from fastrnn.lm.run import CONFIG, LAST
from fastrnn.lm.settings import check_same_run, to_dict, update_from_toml


def parse(arguments: list[str], by_hand: bool = True) -> Config:
    """Options from a command line, over those of --config, of --preset and of a resumed run.

    Args:
        arguments: the command line without the program's name.
        by_hand: whether an option that would do nothing is a mistake; default True.

    Returns:
        All options, completed and checked.

    Raises:
        UserError: an option is unknown, lacks its value or does not fit, or a run to continue was
            made with other options.
        SystemExit: after --help and --presets.
    """
    config = _parse_over(Config(), arguments)
    if config.run.presets:
        print(describe_presets())
        raise SystemExit(0)
    saved = _saved(config)
    files = [saved] if saved is not None else []
    files += [preset_file(config.run.preset)] if config.run.preset is not None else []
    files += [Path(config.run.config)] if config.run.config is not None else []
    if files:
        base = Config()
        for file in files:
            update_from_toml(base, file)
        config = _parse_over(base, arguments)
    if saved is not None and checkpoint_exists(saved.parent / LAST):
        before = Config()
        update_from_toml(before, saved)
        check_same_run(config, to_dict(before), saved)  # before some do not go with others
    complete(config)
    if by_hand:
        check_effect(config, named(arguments))
    return config


def _saved(config: Config) -> Path | None:
    """The options of the run to continue, if it has begun."""
    if not config.run.resume or config.run.out is None:
        return None
    path = Path(config.run.out) / CONFIG
    return path if path.is_file() else None


def _parse_over(default: Config, arguments: list[str]) -> Config:
    return read_options(Config, "fastrnn.train", arguments, default)
