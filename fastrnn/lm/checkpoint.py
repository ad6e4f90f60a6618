"""Checkpoints: folders of safetensors and JSON, replaced as a whole and checked by hash.

A checkpoint holds model.safetensors (the weights), state.safetensors (optimizer, carried hidden
state, random generators) and state.json (counters, and the sha256 of the other two). The one before
is kept beside it, for the day that the newest is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from fastrnn.lm.errors import UserError

_WEIGHTS, _STATE, _COUNTERS = "model.safetensors", "state.safetensors", "state.json"
_TRIES = 10  # to read a checkpoint that another process goes on replacing
_GONE = ".gone"  # what is after the name of a folder that is being deleted
_FORMAT = 2  # counted up when a checkpoint of before can no longer be continued


@dataclass
class Checkpoint:
    """What a run is continued from.

    Args:
        weights: the model's parameters by name; shared ones once.
        state: optimizer, hidden state and generators, by name.
        counters: everything that is not a tensor; JSON values.
    """

    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    counters: dict[str, Any]


def write_file(path: Path, content: bytes) -> None:
    """Write a file that, after a crash at any moment, is the old one or the new one, whole."""
    # By the process, as another may write the same file at the same time.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        _write_through(temporary, content)
        os.replace(temporary, path)
    except OSError as error:  # which would name the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep_old: bool = False) -> None:
    """Replace a checkpoint by another.

    The new one is written beside the old, brought to the disk, and takes the old one's name; the
    old one stays, under the name `folder` + ".old". `load_checkpoint` finds one of the two after a
    crash at any moment.

    Args:
        folder: the checkpoint's folder; its parent exists.
        checkpoint: what to write; tensors on any device.
        keep_old: leave the one before the old where it is, and delete the old; default False.

    Raises:
        OSError: the disk is full or cannot be written; the old checkpoint is still there.
    """
    new, old = _beside(folder)
    _settle(folder)
    new.mkdir()
    hashes = {}
    for name, tensors in ((_WEIGHTS, checkpoint.weights), (_STATE, checkpoint.state)):
        content = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()})
        hashes[name] = hashlib.sha256(content).hexdigest()
        _write_through(new / name, content)
    hashes[_COUNTERS] = _hash_counters(checkpoint.counters)
    counters = checkpoint.counters | {"format": _FORMAT, "sha256": hashes}
    _write_through(new / _COUNTERS, json.dumps(counters, indent=1).encode())
    _sync_folder(new)
    gone = folder.with_name(folder.name + _GONE)
    if folder.exists():
        if old.exists() and not keep_old:
            shutil.rmtree(old)
        folder.rename(gone if old.exists() else old)
    new.rename(folder)
    _sync_folder(folder.parent)
    if gone.exists():
        shutil.rmtree(gone)


def checkpoint_exists(folder: Path) -> bool:
    """Whether there is something that `load_checkpoint` may try to load."""
    return any(path.is_dir() for path in (folder, _beside(folder)[1]))


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def load_checkpoint(folder: Path, warn: Callable[[str], None] = _to_stderr) -> Checkpoint:
    """Read a checkpoint, or the one before where it is damaged.

    Args:
        folder: the checkpoint's folder; nothing is changed in it.
        warn: told in one line if it is damaged; default: prints on standard error.

    Returns:
        The checkpoint, on the CPU.

    Raises:
        UserError: a file of it is missing, truncated or changed since it was written, or is of
            another version of this program; and so is the one before.
    """
    for _ in range(_TRIES):
        before = _identity(folder)
        problem, candidate, found = _load_newest(folder)
        # Files of two checkpoints are no damage: one was replaced by the other meanwhile.
        if (found and not problem) or _identity(folder) == before:
            break
    if found is None:
        raise problem or UserError(f"{folder}: there is no checkpoint")
    if problem is not None:
        warn(f"{problem}; using {candidate}, of step {found.counters.get('step')}")
    return found


def load_before(folder: Path, step: int, warn: Callable[[str], None] = _to_stderr) -> Checkpoint:
    """Read the checkpoint that was replaced last, or the newest where that one is damaged.

    Args:
        folder: the newest checkpoint's folder.
        step: of the one that it replaced.
        warn: as for `load_checkpoint`.

    Raises:
        UserError: neither can be read.
    """
    old = _beside(folder)[1]
    try:
        found = _load(old)
        if found.counters["step"] == step:
            return found
        problem = f"{old}: of step {found.counters['step']}, expected {step}"
    except UserError as error:
        problem = str(error)
    found = load_checkpoint(folder, warn)
    warn(f"{problem}; using {folder}, of step {found.counters['step']}")
    return found


def _load_newest(folder: Path) -> tuple[UserError | None, Path, Checkpoint | None]:
    """What is wrong with the newest, and the newest that nothing is wrong with, if any."""
    new, old = _beside(folder)
    problem: UserError | None = None
    # The new one is complete if the program died just before the others stepped aside.
    for candidate in (folder, new, old):
        if not candidate.is_dir() and (candidate != folder or new.is_dir() or old.is_dir()):
            continue
        try:
            return problem, candidate, _load(candidate)
        except UserError as error:
            problem = problem or error
    return problem, folder, None


def _identity(folder: Path) -> tuple[int, ...] | None:
    """What tells a folder from another that has had its name; None: there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _load(folder: Path) -> Checkpoint:
    try:
        counters = json.loads(_read(folder / _COUNTERS))
        written, hashes = counters.pop("format"), counters.pop("sha256")
        if written != _FORMAT:
            raise UserError(f"{folder}: the checkpoint has format {written}, expected {_FORMAT}")
        if hashes[_COUNTERS] != _hash_counters(counters):
            raise ValueError("the hash differs")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / _COUNTERS}: the checkpoint is truncated or damaged") from error
    parts = []
    for name in (_WEIGHTS, _STATE):
        expected = hashes[name]
        content = _read(folder / name)
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise UserError(
                f"{folder / name}: the checkpoint is truncated or damaged: {len(content)} bytes "
                f"with sha256 {found[:16]}..., expected {expected[:16]}..."
            )
        parts.append(load(content))
    return Checkpoint(parts[0], parts[1], counters)


def restore_weights(model: torch.nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Copy a checkpoint's weights into a model.

    Args:
        model: changed in place.
        weights: tensors by parameter name.
        source: the checkpoint's folder, for the message.

    Raises:
        UserError: names or shapes differ from the model's.
    """
    parameters = dict(model.named_parameters())
    for name in sorted(parameters.keys() | weights.keys()):
        have = list(weights[name].shape) if name in weights else "nothing"
        want = list(parameters[name].shape) if name in parameters else "nothing"
        if have != want:
            raise UserError(
                f"{source / _WEIGHTS}: the checkpoint does not fit its config: {name} is {have}, "
                f"expected {want}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _hash_counters(counters: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(counters, sort_keys=True).encode()).hexdigest()


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")


def _settle(folder: Path) -> None:
    """Finish or undo what a crash left of a replacement."""
    new, old = _beside(folder)
    if not folder.exists() and old.is_dir() and new.is_dir():
        new.rename(folder)  # the old one steps aside only when the new one is complete
    for left in (new, folder.with_name(folder.name + _GONE)):
        if left.is_dir():
            shutil.rmtree(left)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be read: {error.strerror}") from error


def _write_through(path: Path, content: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # of a full disk, without a name
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
