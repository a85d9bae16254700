"""Committed records, on whichever machine they were made."""

from __future__ import annotations

from pathlib import Path

RAW = Path(__file__).resolve().parents[2] / "results" / "raw"


def records_of(suite: str) -> Path:
    """Return the folder of the committed records of a suite that has been run on one machine."""
    [folder] = RAW.glob(f"*/{suite}")
    return folder
