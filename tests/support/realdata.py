"""Where real texts and tokenizers lie, for the tests that are marked `realdata`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def development_data(*parts: str) -> Path:
    """A file or folder of the development data; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("LOREBENCH_DEVELOPMENT_DATA", beside), *parts)
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts)} here: set LOREBENCH_DEVELOPMENT_DATA to the folder of real data")
    return path
