"""Keep glibc from returning memory to the kernel at every training step.

glibc maps large blocks one by one and unmaps them when they are freed, so that each step of a
training on the CPU pays for fresh, zeroed pages: up to two thirds of a step of a small network.
With higher thresholds the blocks stay in the process and are used again.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_memory"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
MAPPED = 2**30  # bytes: smaller blocks come from the heap
PAD = 64 * 2**20  # bytes the heap grows by beyond what is asked for


def keep_memory() -> str:
    """Raise glibc's thresholds for this process; return a description for environment.json.

    Only on Linux with glibc's own allocator, and neither with CNNZOO_MALLOC=default nor where the
    user has set a MALLOC_ variable or tunable. Freed memory then stays with the process until it
    ends.
    """
    if os.environ.get("CNNZOO_MALLOC") == "default":
        return "default (CNNZOO_MALLOC)"
    chosen = [name for name in os.environ if name.startswith("MALLOC_")]
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return "default (the user's settings)"
    # LD_PRELOAD is how another allocator, such as jemalloc, takes glibc's place.
    if os.environ.get("LD_PRELOAD") or not sys.platform.startswith("linux"):
        return "default"
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return "default"
    # 2^31 - 1 is the largest value that mallopt takes: the heap is then hardly ever trimmed.
    settings = ((M_MMAP_THRESHOLD, MAPPED), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, PAD))
    taken = all(mallopt(parameter, value) == 1 for parameter, value in settings)
    return "glibc, memory kept (CNNZOO_MALLOC=default: not)" if taken else "default"
