"""End a program in order by Ctrl-C, SIGTERM or a closed terminal: one exception, not amid a critical step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What a person, a scheduler and a closed terminal send.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupted(KeyboardInterrupt):
    """A signal that ends the program; a program that was ended by signal N has exit code 128 + N."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    """What the handler of the main thread needs to know."""

    shielded = False
    pending: int | None = None


@contextmanager
def raised() -> Iterator[None]:
    """Raise `Interrupted` on each of the signals; one that is ignored, as under nohup, stays so.

    No effect outside the main thread, which alone gets signals.
    """
    if not _in_main_thread():
        yield
        return
    before = {}
    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """Hold signals back until the block has ended; those of `raised` only."""
    if not _in_main_thread():
        yield
        return
    before, _State.shielded = _State.shielded, True
    try:
        yield
    finally:
        _State.shielded = before
        _raise_pending()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let signals in again within a shielded block, where it waits."""
    if not _in_main_thread():
        yield
        return
    before, _State.shielded = _State.shielded, False
    try:
        _raise_pending()
        yield
    finally:
        _State.shielded = before


def postpone(interrupt: KeyboardInterrupt) -> None:
    """Raise a signal again at the end of the shielded block, at once where there is none."""
    if not (_State.shielded and _in_main_thread()):
        raise interrupt
    _State.pending = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT


def _raise_pending() -> None:
    if _State.pending is not None and not _State.shielded:
        number, _State.pending = _State.pending, None
        raise Interrupted(number)


def _handle(number: int, _frame: FrameType | None) -> None:
    if not _State.shielded:
        raise Interrupted(number)
    _State.pending = number


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
