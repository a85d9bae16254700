"""The option `--jobs` of the programs beside the suites, and the processes that it asks for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

from harness.errors import UserError


def add_to(parser: argparse.ArgumentParser, default: int) -> None:
    """Let a parser take `--jobs N`; it refuses what starts no process."""
    described = f"processes; default {default}"
    parser.add_argument("--jobs", type=_number, default=default, metavar="N", help=described)


@contextmanager
def pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes that share nothing with this one; UserError where one of them dies."""
    try:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as made:
            yield made
    except BrokenProcessPool as error:
        fewer = "; try again with --jobs 1" if jobs > 1 else ""
        raise UserError(
            f"one of {jobs} processes died before its work was done, as when memory runs out{fewer}"
        ) from error


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of processes; give at least 1")
    return number
