"""Let the C library keep memory that is freed, as the allocator of a GPU does.

By default glibc returns the activations of each update to the system and takes them anew, page by page, in
the next. That time is of no method, and comes and goes with sizes. Live tensors are counted all the same.
"""

from __future__ import annotations

import ctypes
import os
import platform

#: Parameters of glibc's `mallopt`, by the variable that sets each for a process, with the value: no memory is
#: returned from the end of the heap, and none is mapped apart.
KEPT = {"MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1), "MALLOC_MMAP_MAX_": (-4, 0)}


def keep_freed_memory() -> None:
    """Set it for this process and, by the environment, for its children and its record.

    Nothing is set where one of the variables is given, and without glibc.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in KEPT):
        return
    library = ctypes.CDLL("libc.so.6")
    for name, (parameter, value) in KEPT.items():
        library.mallopt(parameter, value)
        os.environ[name] = str(value)
