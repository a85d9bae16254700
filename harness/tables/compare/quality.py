"""Judge perplexity and accuracy on the same windows and the same documents, one by one.

The files beside a record decide (`windows/<protocol>.jsonl`, `samples/<task>.jsonl`). They are read where the
totals of the records leave the verdict open, and used only where they add up to these totals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.record import Accuracy, Perplexity
from harness.tables.compare.comparison import Verdict
from harness.tables.compare.pairing import Loaded
from harness.tables.format import plain
from harness.tables.statistics import (
    ALPHA,
    LEAST_PERPLEXITY_CHANGE,
    LEAST_WINDOWS,
    growth,
    mcnemar,
    paired_bootstrap,
)

LARGEST_FILE = 256 << 20
LARGEST_NLL = 1e300
WINDOWS, SAMPLES = "windows", "samples"
Judged = tuple[Verdict, str]


class AbsentError(Exception):
    """The file that a rule needs is missing or invalid; the message says why."""


def perplexity(name: str, base: tuple[Loaded, Perplexity], candidate: tuple[Loaded, Perplexity]) -> Judged:
    """Return the verdict on one protocol: worse if certain on these windows and by more than 0.2 %."""
    before, after = base[1], candidate[1]
    same = (before.text, before.tokens, before.windows, before.context, before.batches)
    if same != (after.text, after.tokens, after.windows, after.context, after.batches):
        return "x", "not comparable: another text, or cut in another way"
    if not math.isfinite(before.nll_nats):
        return "x", "not comparable: the base is not finite"
    if not math.isfinite(after.nll_nats):
        return "regression", "no longer finite"
    change = growth((after.nll_nats - before.nll_nats) / before.tokens)
    moved = f"{_perplexity(before)} -> {_perplexity(after)} ({100 * change:+.2f} %)"
    if abs(change) <= LEAST_PERPLEXITY_CHANGE:
        return "ok", moved
    if before.windows < LEAST_WINDOWS:
        return "withheld", f"{moved}, but {before.windows} windows are too few for an interval"
    try:
        first, second = (_windows(loaded, name, scored) for loaded, scored in (base, candidate))
    except AbsentError as error:
        return "x", f"not comparable: no per-window nll: {error} ({moved})"
    if [window.same for window in first] != [window.same for window in second]:
        return "x", f"not comparable: other windows ({moved})"
    tokens = [window.tokens for window in first]
    found = paired_bootstrap([w.nats for w in first], [w.nats for w in second], tokens)
    moved += f", 95 % interval {100 * found.low:+.2f} … {100 * found.high:+.2f} %"
    if not found.certain:
        return "ok", f"{moved}, which holds 0"
    return ("regression" if change > 0 else "improvement"), moved


def _perplexity(scored: Perplexity) -> str:
    return f"{growth(scored.nll_nats / scored.tokens) + 1:,.4g}"


@dataclass(frozen=True)
class Window:
    """One scored sequence: what it is, how many tokens it predicts, and its nll in nats."""

    same: str
    tokens: int
    nats: float


def _windows(loaded: Loaded, name: str, scored: Perplexity) -> list[Window]:
    found = []
    for line in _lines(loaded.folder / WINDOWS, name):
        same, tokens, nats = line.get("sha256"), line.get("tokens"), line.get("nll_nats")
        if not (isinstance(same, str) and type(tokens) is int and isinstance(nats, int | float)):
            raise AbsentError(f"the file of {plain(name, 40)} holds something else")
        if not (0 <= tokens <= scored.tokens and 0 <= nats < LARGEST_NLL):
            raise AbsentError(f"the file of {plain(name, 40)} holds impossible numbers")
        found.append(Window(same, tokens, float(nats)))
    if len(found) != scored.windows or sum(window.tokens for window in found) != scored.tokens:
        raise AbsentError("the windows beside the record are not those of the record")
    if not math.isclose(math.fsum(window.nats for window in found), scored.nll_nats, rel_tol=1e-9):
        raise AbsentError("the windows beside the record do not add up to it")
    return found


# ---------------------------------------------------------------------------------------- accuracy
@dataclass(frozen=True)
class Answers:
    """Two runs' answers to one task: how many became wrong (`lost`) and right (`won`), of `documents`.

    `right` counts the right answers of the candidate.
    """

    lost: int
    won: int
    documents: int
    right: int

    @property
    def p_value(self) -> float:
        """The p value of McNemar's exact test."""
        return mcnemar(self.lost, self.won)

    def judge(self, adjusted: float) -> Judged:
        """Return the verdict, given the p value adjusted for all tests."""
        if self.lost == self.won:
            return "ok", f"{self.right} of {self.documents} right, as before"
        change = 100 * (self.won - self.lost) / self.documents
        moved = f"{change:+.1f} points: {self.lost} of {self.documents} became wrong, {self.won} right"
        moved += f" (McNemar, Holm: p = {adjusted:.2g})"
        if adjusted > ALPHA:
            return "ok", moved
        return ("regression" if self.lost > self.won else "improvement"), moved


def answers(name: str, base: tuple[Loaded, Accuracy], candidate: tuple[Loaded, Accuracy]) -> Judged | Answers:
    """Return how the answers to one task moved, or why that cannot be tested.

    Equal numbers of right answers mean as many lost as won: p = 1 without reading samples. The task still
    counts as tested, else p values would be adjusted for too few.
    """
    before, after = base[1], candidate[1]
    if (before.version, before.documents) != (after.version, after.documents):
        moved = f"version {before.version} -> {after.version}, "
        moved += f"documents {before.documents} -> {after.documents}"
        return "x", f"not comparable: {plain(moved, 120)}"
    if before.correct == after.correct:
        return Answers(0, 0, after.documents, after.correct)
    moved = f"{before.correct} -> {after.correct} of {after.documents} right"
    try:
        first, second = (_answered(loaded, name, task) for loaded, task in (base, candidate))
    except AbsentError as error:
        return "x", f"not comparable: no samples: {error} ({moved})"
    if set(first) != set(second):
        return "x", f"not comparable: {len(set(first) ^ set(second))} questions differ ({moved})"
    lost = sum(first[key] and not second[key] for key in first)
    won = sum(second[key] and not first[key] for key in first)
    return Answers(lost, won, len(first), after.correct)


def _answered(loaded: Loaded, name: str, task: Accuracy) -> dict[str, bool]:
    """Return whether each question was answered right, by the hashes of the question."""
    found: dict[str, bool] = {}
    for line in _lines(loaded.folder / SAMPLES, name):
        question = [line.get(key) for key in ("doc_id", "doc_hash", "prompt_hash")]
        right = line.get("correct")
        if type(right) is not bool or not all(isinstance(part, (str, int)) for part in question):
            raise AbsentError(f"the file of {plain(name, 40)} holds something else")
        found[json.dumps(question)] = right
    if (len(found), sum(found.values())) != (task.documents, task.correct):
        raise AbsentError("the samples beside the record are not those of the record")
    return found


# --------------------------------------------------------------------------------------- the files
def _lines(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file of a run; AbsentError where it is missing or invalid."""
    path = folder / f"{name}.jsonl"
    if path.name != f"{name}.jsonl" or name.startswith(".") or "\0" in name:
        raise AbsentError(f"{plain(name, 40)!r} is not a file name")
    try:
        if not path.is_file():
            raise AbsentError("no such file beside the record")
        if path.stat().st_size > LARGEST_FILE:
            raise AbsentError(f"the file is larger than {LARGEST_FILE >> 20} MiB")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise AbsentError(f"they cannot be read ({type(error).__name__})") from error
    for text in filter(None, lines):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AbsentError("a line is cut or is not JSON") from error
        if not isinstance(line, dict):
            raise AbsentError("a line is not an object")
        yield line
