"""The study that all workers of a sweep share, in a file of its folder or in a database."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from fastrnn.lm.errors import UserError
from fastrnn.lm.plan import Plan

_FILE = "study.jsonl"


def open_study(plan: Plan) -> optuna.Study:
    """The study of a sweep, which may have begun.

    Args:
        plan: the sweep, whose folder is there.

    Raises:
        UserError: its storage cannot be opened, or is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = plan.out.name
    return optuna.create_study(study_name=name, storage=_storage(plan), load_if_exists=True)


def _storage(plan: Plan) -> BaseStorage:
    if plan.storage is None:
        path = plan.out / _FILE
        _mend(path)
        try:
            return JournalStorage(JournalFileBackend(str(path)))
        except ValueError as error:
            raise UserError(f"{path}: damaged: a line is not JSON: {error}") from error
    kind = plan.storage.partition(":")[0]  # no more of it: there may be a password inside
    try:
        return RDBStorage(plan.storage)
    except ModuleNotFoundError as error:
        raise UserError(f"storage {kind}: the package {error.name} is not installed") from error
    except Exception as error:  # of sqlalchemy, or of the database's own package
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"storage {kind}: cannot be opened: {reason}") from error


def _mend(path: Path) -> None:
    """Drop what a crash has left of a line at the end of a study's file."""
    if not path.is_file():
        return
    lock = JournalFileSymlinkLock(str(path))  # under which others write
    lock.acquire()
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
            print(f"{path}: the last line was cut off, and is dropped", flush=True)
    finally:
        lock.release()
