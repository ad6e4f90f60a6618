"""Memory that glibc's malloc holds free, given back before it grows without bound."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

TRIM_INTERVAL = 10  # steps; each could add 100 MB where the heap grows
_LIMIT = 2**30
T = TypeVar("T")


class _Usage(ctypes.Structure):
    """struct mallinfo2 of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@functools.cache
def _malloc() -> tuple[Callable[[], _Usage], Callable[[int], int]] | None:
    """mallinfo2 and malloc_trim, where the C library is a glibc that has both (2.33 on)."""
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if not hasattr(library, "mallinfo2"):
        return None
    assert library is not None
    usage = library.mallinfo2
    usage.restype = _Usage
    return usage, library.malloc_trim


def trim_free_memory(limit: int = _LIMIT) -> bool:
    """Give memory that malloc holds free back to the system, if there is much of it.

    torch asks for aligned memory, and before glibc 2.38 an aligned request does not fit into the
    hole that one of the same size left. When small allocations settle beside such holes, every
    step takes its large buffers from new memory: 28 MB logits were seen to leave 13 GB of holes
    in 400 steps, with 0.15 GB in use.

    Args:
        limit: bytes resident beyond those in use that are not worth the call; default 1 GiB.

    Returns:
        Whether there were more, so that they were given back; False without glibc.
    """
    malloc = _malloc()
    if malloc is None:
        return False
    usage, trim = malloc
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return False
    used = usage()
    # Holes that were given back count as free for malloc, so residence is asked of the system.
    if pages * os.sysconf("SC_PAGE_SIZE") - used.uordblks - used.hblkhd <= limit:
        return False
    trim(0)
    return True


def trimmed(items: Iterable[T]) -> Iterator[T]:
    """The same items, one for each step of a loop; before every 10th, free memory is given back."""
    for step, item in enumerate(items, 1):
        if step % TRIM_INTERVAL == 0:
            trim_free_memory()
        yield item
