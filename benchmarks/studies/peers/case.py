"""What one comparison with a peer is; each module beside this one lists the cases of one method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Duel:
    """Two pieces of work on the same tensors, to be called many times in turns, and what was checked.

    `facts` are measured once while the duel is set up, e.g. how far both results lie apart.
    """

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One line of the table; `set_up` makes the tensors, checks that both do the same work, returns a duel.

    `target` is the ratio ours / peer that we want to stay below; None where none was set. `heavy` cases
    get fewer rounds.
    """

    method: str
    work: str
    shape: str
    peer: str
    set_up: Callable[[], Duel]
    target: float | None = None
    heavy: bool = False
