"""Reuse of freed CPU memory instead of returning it to the system."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's M_TRIM_THRESHOLD and M_MMAP_MAX


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for later tensors; no effect with other C libraries.

    By default, tensors of 32 MB or more and free memory at the end of the heap are returned to the system and requested again
    in the next step, with a page fault for every 4 kB. On a CPU this takes at least a fifth of a small network's training
    step.

    Returns:
        True if glibc accepted the setting.

    Source: mallopt(3). On a GPU, PyTorch keeps freed memory itself.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # another C library
        return False
    return library.mallopt(TRIM_THRESHOLD, 2**31 - 1) == 1 and library.mallopt(MMAP_MAX, 0) == 1
