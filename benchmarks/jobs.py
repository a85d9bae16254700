"""The option `--jobs` of the programs beside the suites."""

from __future__ import annotations

import argparse


def add_to(parser: argparse.ArgumentParser, default: int) -> None:
    """Let a parser take `--jobs N`; it refuses what starts no process."""
    described = f"processes; default {default}"
    parser.add_argument("--jobs", type=_number, default=default, metavar="N", help=described)


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of processes; give at least 1")
    return number
