"""Recognise that memory ran out, on a GPU or on the host, and how much had been asked for."""

from __future__ import annotations

import re

import torch

UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
#: CUDA: "Tried to allocate 2.00 GiB"; CPU: "you tried to allocate 137438953472 bytes".
ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|B|KiB|MiB|GiB|TiB)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch on any device, or Python itself."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def requested_bytes(message: str) -> int | None:
    """The bytes that were asked for, where the message says so."""
    found = ASKED.search(message)
    return round(float(found[1]) * UNITS[found[2]]) if found else None
