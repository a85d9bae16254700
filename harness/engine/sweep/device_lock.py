"""Hold a device exclusively, so that sweeps on one host do not disturb each other's measurements."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.engine.process.lock import Lock
from harness.engine.process.progress import Display

#: Characters of the name of a file, with room for what stands around it.
LONGEST_NAME = 200


@contextmanager
def device_lock(device: str, cache: Path, display: Display, device_id: str | None = None) -> Iterator[Lock]:
    """Hold the device exclusively, so that runs do not disturb each other; the lock dies with its holder.

    `device_id` names the same hardware for all processes of this host, however they number their devices.
    Where the folder of caches cannot be written to, the display notes it and nothing is locked.
    """
    name = f"{socket.gethostname()}-{device_id or _numbered(device)}"
    lock = Lock(cache / f"device-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)[:LONGEST_NAME]}.lock")

    def waiting() -> None:
        display.note(f"waiting: another sweep uses the device {device} ({lock.holder})")

    try:
        lock.wait(waiting)
    except OSError as error:
        display.note(
            f"{lock.path}: the device cannot be locked: {error.strerror}; another sweep may "
            "disturb the timing; name another folder of caches by LOREBENCH_CACHE"
        )
    try:
        yield lock
    finally:
        lock.give()


def _numbered(device: str) -> str:
    """Return the name of a device by its number among all of the host, as far as the environment tells."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return device
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    index = int(number or 0)
    return f"cuda-{visible[index] if index < len(visible) else index}"
