"""The random states of torch, CUDA, numpy and Python: taken, and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def taken(device: torch.device) -> dict[str, Any]:
    """Return the states of all generators that a training on a device may draw from."""
    kind, keys, *place = np.random.get_state()
    found = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *place),
        "torch": torch.get_rng_state(),
    }
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def put_back(device: torch.device, state: dict[str, Any]) -> None:
    """Let the generators go on from states that were taken."""
    random.setstate(state["python"])
    kind, keys, *place = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *place))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Put the states back at the end of a block, whatever it draws."""
    state = taken(device)
    try:
        yield
    finally:
        put_back(device, state)
