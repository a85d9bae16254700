"""Committed records of runs on a CPU, on however many threads."""

from __future__ import annotations

from pathlib import Path

RAW = Path(__file__).resolve().parents[2] / "results" / "raw"


def records_of(suite: str) -> Path:
    """Return the folder of the committed records of a suite."""
    [folder] = RAW.glob(f"cpu-*/{suite}")
    return folder
