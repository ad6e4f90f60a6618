"""Locks between processes, which end with the process that holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def try_lock(path: Path) -> IO[str] | None:
    """Take a lock, or leave it to the process that has it.

    Args:
        path: the lock's file, made if need be. It stays: were it deleted, another process could
            hold the lock of a file that is no longer there.

    Returns:
        An open file that holds the lock until it is closed or its process dies; None if another
        has it.

    Raises:
        OSError: the file cannot be written, or its file system has no locks.
    """
    file = path.open("w")
    if os.name == "posix":
        import fcntl  # Windows lacks it: there a lock is always free

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
    return file


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine, once those before have done.

    Args:
        path: as for `try_lock`.
    """
    with path.open("w") as file:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
