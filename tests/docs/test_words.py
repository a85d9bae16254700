"""Words that readers stumbled over are gone from sources, documents and generated pages."""

from __future__ import annotations

import re

import pytest

from tests.docs.sources import texts

#: Old words as patterns, and what is written instead.
REPLACED = {
    r"pedigree": "provenance",
    r"one ruler": "same evaluation",
    r"\boracle\b|\bforesight\b|\bforesee": "forecast client",
    r"\brehearsal\b": "dry run",
    r"\bwhereabouts\b": "attribution",
    r"\bremembering\b": "fake cache",
    r"\btether": "parent watch",
    r"\bsoundness\b|\bbelieved\b": "valid",
    r"\bset aside\b": "skipped",
    r"\bhollow\b": "build_empty",
    r"\bchooser\b": "sampling",
    r"\blore\b": "facts",
    r"\bmoods? of a machine": "machine noise",
    r"\barbiter\b": "schedule",
    r"\bin turns\b(?![][:])": "interleaved",
    r"test stand": "environment",
    r"no time span": "is not a duration",
    r"by guessing": "chance",
    r"of the generator itself": "floor",
    r"ended in any way": "any status",
    r"with their spread": "with error bars",
    r"not seen by a simulation|a simulation does not see": "not modelled",
    r"tokens a step": "tokens/step",
    r"start nothing that": "time budget",
    r"longest time for one run": "timeout per run",
    r"when no verdict is due": "inconclusive",
    r"attempted err": "target rank reduction",
    r"whoever": "a plain subject",
    r"of its own accord": "by itself",
}


@pytest.mark.parametrize("old", REPLACED)
def test_an_old_word_is_gone(old: str) -> None:
    pattern = re.compile(old, re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in texts()
        if name.name != "test_words.py" and name.parts[:2] != ("results", "raw")
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, f"write {REPLACED[old]!r}"
