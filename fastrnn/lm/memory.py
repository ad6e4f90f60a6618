"""Memory that glibc's malloc holds free, given back before it grows without bound."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable

_LIMIT = 2**29


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
    step takes its large buffers from new memory: 28 MB logits were seen to leave 10 GB of holes
    in 150 steps, with 0.15 GB in use. Asking costs microseconds, giving back a millisecond or so
    each time there is something to give.

    Args:
        limit: bytes held free that are not worth the call; default 512 MiB.

    Returns:
        Whether there was more, so that it was given back; False without glibc.
    """
    malloc = _malloc()
    if malloc is None or malloc[0]().fordblks <= limit:
        return False
    malloc[1](0)
    return True
