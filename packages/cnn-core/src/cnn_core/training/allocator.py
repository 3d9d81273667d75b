"""Keep glibc from returning memory to the kernel at every training step.

By default, glibc maps large blocks one by one and unmaps them as soon as they are freed. On the
CPU each training step then spends time on new, zeroed pages: up to two thirds of the step for a
small network. With higher thresholds, freed blocks stay in the process and are reused.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_memory"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
MMAP_BYTES = 2**30  # smaller blocks come from the heap
PAD_BYTES = 64 * 2**20  # extra space each time the heap grows


def keep_memory() -> str:
    """Raise glibc's thresholds for this process; return a description for environment.json.

    Applies only on Linux with glibc's own allocator. Does nothing if CNNZOO_MALLOC=default, or if
    the user has set a MALLOC_ variable or a malloc tunable. Afterwards, freed memory stays with
    the process until the process ends.
    """
    if os.environ.get("CNNZOO_MALLOC") == "default":
        return "default (CNNZOO_MALLOC)"
    variables = [name for name in os.environ if name.startswith("MALLOC_")]
    if variables or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return "default (the user's settings)"
    # Other allocators, such as jemalloc, replace glibc's through LD_PRELOAD.
    if os.environ.get("LD_PRELOAD") or not sys.platform.startswith("linux"):
        return "default"
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return "default"
    # 2^31 - 1 is the largest value that mallopt accepts: the heap is then almost never trimmed.
    settings = (
        (M_MMAP_THRESHOLD, MMAP_BYTES),
        (M_TRIM_THRESHOLD, 2**31 - 1),
        (M_TOP_PAD, PAD_BYTES),
    )
    accepted = all(mallopt(parameter, value) == 1 for parameter, value in settings)
    if not accepted:
        return "default"
    return "glibc, freed memory is kept (CNNZOO_MALLOC=default turns this off)"
