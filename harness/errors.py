"""Errors that a person can act on, as opposed to defects of the program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Exit code of every program here for input that a person must change; the message is on standard error.
EXIT_BAD_INPUT = 2


class UserError(Exception):
    """Something that was asked for cannot be done: one line says what was given, what is allowed, what to do.

    The command line prints it without a traceback and exits with `EXIT_BAD_INPUT`.
    """


class UnsupportedError(Exception):
    """A valid request that a method honestly cannot carry out; it becomes a row with status `unsupported`."""


class DivergedError(Exception):
    """The loss became NaN or infinite; it becomes a row with status `diverged`."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an exception of a library says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known words come nearest to an unknown one, and list all of them when they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    if len(names) > 40:
        return f"none of the {len(names)} known names comes near"
    return "known: " + ", ".join(names)
