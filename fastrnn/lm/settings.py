"""Options as names and values: `config.toml` written and read, runs compared."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastrnn._suggest import suggest
from fastrnn.lm.config import (
    Config,
    CorpusOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    TrainingOptions,
)
from fastrnn.lm.errors import UserError

Options = CorpusOptions | ModelOptions | OptimizerOptions | TrainingOptions | RunOptions
# Asked of one command, no property of a run: never written to config.toml.
_COMMAND_ONLY = ("out", "resume", "force", "preset", "presets", "config", "debug")
# May differ when a run is continued; everything else shapes the weights or the order of the text.
# Where the text lies may: that it is the same is told by its hash.
_FREE_ON_RESUME = (
    *_COMMAND_ONLY,
    "data",
    *("epochs", "max_steps", "backend", "device", "compile", "cuda_graphs", "tensorboard"),
    *("rewinds", "log_interval", "checkpoint_interval"),
)


def _groups(config: Config) -> tuple[Options, ...]:
    return config.corpus, config.model, config.optimizer, config.training, config.run


def option_names() -> list[str]:
    """Every option's flat name, with underscores."""
    return [f.name for group in _groups(Config()) for f in dataclasses.fields(group)]


def to_dict(config: Config) -> dict[str, Any]:
    """The options of a run as flat names and values; unset ones are left out."""
    flat = {k: v for group in _groups(config) for k, v in dataclasses.asdict(group).items()}
    return {k: v for k, v in flat.items() if v is not None and k not in _COMMAND_ONLY}


def to_toml(config: Config) -> str:
    """The options of a run as TOML text, one `name = value` a line."""
    lines = []
    for name, value in to_dict(config).items():
        # JSON's strings are TOML's, but for DEL; so are its true and false. repr keeps floats.
        text = repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{name} = {text}".replace("\x7f", "\\u007f"))
    return "\n".join(lines) + "\n"


def update_from_toml(config: Config, path: Path) -> None:
    """Set the options that a TOML file names.

    Args:
        config: changed in place.
        path: file of `name = value` lines; names with dashes or underscores.

    Raises:
        UserError: the file cannot be read, names an unknown option or gives a wrong type.
    """
    owners = {f.name: group for group in _groups(config) for f in dataclasses.fields(group)}
    known = [name for name in owners if name not in _COMMAND_ONLY]
    for entry, value in read_toml(path).items():
        name = entry.replace("-", "_")
        if name in _COMMAND_ONLY:
            raise UserError(f"{path}: {entry!r} is an option of the command line alone")
        if name not in known:
            raise UserError(f"{path}: unknown option {entry!r}{suggest(name, known)}")
        setattr(owners[name], name, typed(name, value, f"{path}: {entry}"))


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except ValueError as error:  # of tomllib, or of a number of more digits than int() takes
        raise UserError(f"{path}: not valid TOML: {error}") from error


def typed(name: str, value: object, where: str) -> Any:
    """A value that a TOML file gives an option; an integer will do for a float.

    Args:
        name: of the option, with underscores.
        value: as it was read.
        where: it was read, for the message.

    Raises:
        UserError: it is not of the option's type.
    """
    hints = (get_type_hints(type(group)) for group in _groups(Config()))
    hint = next(each[name] for each in hints if name in each)
    members = [m for m in (get_args(hint) or (hint,)) if m is not type(None)]
    choices = [c for m in members for c in (get_args(m) or (m,))]
    if isinstance(value, int) and not isinstance(value, bool) and float in choices:
        try:
            return float(value)
        except OverflowError as error:
            raise UserError(f"{where}: expected float, got an integer beyond its range") from error
    if value in choices or type(value) in choices:
        return value
    expected = [c.__name__ if isinstance(c, type) else c for c in choices]
    wanted = expected[0] if len(expected) == 1 else f"one of {expected}"
    raise UserError(f"{where}: expected {wanted}, got {value!r}")


def check_same_run(config: Config, saved: dict[str, Any], source: Path) -> None:
    """Refuse to continue a checkpoint with options that it was not made with.

    Args:
        config: what is asked now.
        saved: `to_dict` of the configuration that the checkpoint was made with.
        source: the checkpoint, for the message.

    Raises:
        UserError: names every option that differs.
    """
    now = to_dict(config)
    names = [n for n in option_names() if n not in _FREE_ON_RESUME and now.get(n) != saved.get(n)]
    if names:
        changes = ", ".join(f"{n} {saved.get(n)!r} -> {now.get(n)!r}" for n in names)
        raise UserError(f"{source}: the run was made with other options: {changes}")
