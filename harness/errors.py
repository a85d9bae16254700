"""Errors that a person can act on, as opposed to defects of the program."""

from __future__ import annotations

import difflib
import errno
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from harness.plain_text import without_secrets

#: Exit code of every program here for input that a person must change; the message is on standard error.
EXIT_BAD_INPUT = 2


#: Characters of one message, or of one line of a log, that a record, an event or a terminal gets.
LONGEST_MESSAGE = 2000


class UserError(Exception):
    """A request that cannot be carried out: one line on what was given, what is allowed and what to do.

    The command line prints it without a traceback and exits with `EXIT_BAD_INPUT`. `path` leads to the
    setting that is to blame and `run` is the number of the run, as far as these are known.
    """

    def __init__(self, text: str = "", path: tuple[int | str, ...] = (), run: int | None = None) -> None:
        super().__init__(text)
        self.path, self.run = path, run


class UnsupportedError(Exception):
    """A valid request that a method cannot carry out; it becomes a row with status `unsupported`."""


class MethodError(Exception):
    """A method that breaks its contract: a run becomes a row with status `error` and this message."""


class DivergedError(Exception):
    """The loss became NaN or infinite; it becomes a row with status `diverged`."""


def bounded(text: str, limit: int = LONGEST_MESSAGE) -> str:
    """Return a text, or so much of its start and end that it has `limit` characters with a note on the rest.

    A message may quote what it is about, a tensor or a document of megabytes.
    """
    if len(text) <= limit:
        return text
    note = f" … {len(text):,} characters in all … "
    tail = (limit - len(note)) // 4
    return text[: limit - len(note) - tail] + note + text[len(text) - tail :]


def text_of(error: BaseException) -> str:
    """Return the message of an exception without secrets, empty where it cannot even be asked for it."""
    try:
        return without_secrets(str(error).strip())
    except Exception:
        return ""


#: Messages of a RuntimeError: the allocator of the CPU, a CUDA call past torch's allocator, a CUDA library.
RAN_OUT = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports exhausted memory: torch on any device, Python or the system."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, by its name
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in text_of(error) for words in RAN_OUT)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads input into a UserError that begins with `what`.

    Libraries raise types of their own for a broken file, those in Rust even panics, which are no `Exception`.
    Exhausted memory, an interrupt and a UserError pass as they are.
    """
    try:
        yield
    except (UserError, UnsupportedError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of an exception on one line, else its type."""
    return " ".join(text_of(error).split())[:limit] or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint with the known words nearest to an unknown one, or all of them when they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return did_you_mean(close)
    if len(names) > 40:
        return f"none of the {len(names)} known names comes near"
    return f"known: {listed(names)}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 run`, `2 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def did_you_mean(names: Iterable[str]) -> str:
    """Return the question whether one of some names was meant."""
    return f"did you mean {' or '.join(map(repr, names))}?"


def listed(names: Iterable[str]) -> str:
    """Return names with commas between them, all in quotes where one of them holds a comma itself."""
    given = list(names)
    quoted = any("," in name for name in given)
    return ", ".join(json.dumps(name, ensure_ascii=False) if quoted else name for name in given)
