"""Recognise that memory ran out, on a GPU or on the host, and how much had been asked for."""

from __future__ import annotations

import errno
import re

import torch

UNITS = {
    "bytes": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "PiB": 2**50,
    "EiB": 2**60,
}
#: CUDA: "Tried to allocate 2.00 GiB"; CPU: "you tried to allocate 137438953472 bytes"; numpy: "Unable to
#: allocate 8.00 EiB for an array".
ASKED = re.compile(rf"(?:[Tt]ried|Unable) to allocate ([\d.]+) ?({'|'.join(UNITS)})\b")
#: What a RuntimeError says: the allocator of the CPU, a CUDA call past torch's allocator, a CUDA library.
RAN_OUT = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch on any device, Python or the system."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in RAN_OUT)


def requested_bytes(message: str) -> int | None:
    """The bytes that were asked for, where the message says so."""
    found = ASKED.search(message)
    return round(float(found[1]) * UNITS[found[2]]) if found else None
