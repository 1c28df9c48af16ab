"""The C library's heap: one for all threads of a process, and what is free of it given back to the machine.

Does nothing where the library is not glibc. It knows nothing of tensors, and imports no torch.
"""

from __future__ import annotations

import ctypes
import gc

_LIBC = ctypes.CDLL(None)
_IS_GLIBC = hasattr(_LIBC, "gnu_get_libc_version")
_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def share_heap() -> None:
    """Let the threads that are still to come allocate from the main thread's heap. To be called before they are there.

    Else each has one of its own: what one frees no other takes, and the end of it is not given back.
    """
    if _IS_GLIBC:
        _LIBC.mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Give memory that was freed in small pieces back to the machine: else it stays for reuse. About a millisecond."""
    if _IS_GLIBC:
        _LIBC.malloc_trim(0)


def free_unused() -> None:
    """Give back what loading left behind."""
    gc.collect()
    give_back()
