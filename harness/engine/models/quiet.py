"""Keep transformers quiet while a folder is looked at: what is wrong with it is said in one line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

STANDARD_ERROR = 2


@contextmanager
def quietly() -> Iterator[None]:
    """Switch off warnings, reports and progress bars of transformers in a block."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def without_panics() -> Iterator[None]:
    """Keep what libraries in Rust print of a panic, with its frames, from standard error in a block."""
    kept = os.dup(STANDARD_ERROR)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, STANDARD_ERROR)
        yield
    finally:
        os.dup2(kept, STANDARD_ERROR)
        os.close(kept)
        os.close(nothing)
