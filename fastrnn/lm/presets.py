"""Options of published experiments, as TOML files in the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastrnn._suggest import suggest
from fastrnn.lm.errors import UserError

_FOLDER = Path(str(files("fastrnn.lm"))) / "presets"


def preset_names() -> list[str]:
    """Every preset, in order."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def preset_file(name: str) -> Path:
    """The options of a preset.

    Raises:
        UserError: there is none of that name.
    """
    if name not in preset_names():
        raise UserError(f"--preset {name}: no such preset{suggest(name, preset_names())}")
    return _FOLDER / f"{name}.toml"


def describe_presets() -> str:
    """Every preset's name and where it comes from."""
    lines = []
    for name in preset_names():
        text = (_FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        comment = [line.removeprefix("#").strip() for line in text if line.startswith("#")]
        lines.append(f"{name}: {' '.join(comment).removeprefix('Source: ')}")
    return "\n".join(lines)
