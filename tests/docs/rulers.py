"""The source of each ruler as a hash: `python -m tests.docs.rulers` writes them to rulers.json.

Run it after a change of a ruler, with the protocol's version in harness/record.py one higher unless
no measured value can have changed. Comments, docstrings and blank lines are no part of a ruler.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import tokenize
from pathlib import Path
from typing import Any

from harness.record import PROTOCOLS
from tests.docs.sources import ROOT, docstrings

FILE = Path(__file__).with_name("rulers.json")
#: What decides the values of a protocol: a whole file, or one of its classes, functions or constants.
RULERS = {
    "memory": (
        "harness/engine/measure/peak.py",
        "harness/engine/measure/storages.py",
        "harness/engine/measure/components.py:Components",
        "harness/engine/measure/components.py:components",
        "harness/engine/run/train.py:WARMUP_STEPS",
        "harness/engine/run/train.py:METERED_STEPS",
        "harness/engine/run/train.py:MemoryWindow",
        "harness/engine/run/train.py:Trainer._metered",
        "harness/engine/run/train.py:Trainer._metered_update",
        "harness/engine/run/train.py:Trainer._update",
        "harness/engine/run/train.py:Trainer._loss",
        "harness/engine/run/phases.py:RunInProgress._note_training",
    ),
    "time": (
        "harness/engine/measure/speed.py:StepClock",
        "harness/engine/measure/speed.py:tokens_per_s",
        "harness/engine/run/train.py:WARMUP_STEPS",
        "harness/engine/run/train.py:Trainer.run",
        "harness/engine/run/train.py:Trainer._timed_update",
        "harness/engine/run/train.py:Trainer._update",
        "harness/engine/run/train.py:Trainer._loss",
        "harness/engine/run/record_writer.py:RecordWriter.phase",
    ),
    "perplexity": (
        "harness/engine/quality/protocols.py:_world",
        "harness/engine/quality/protocols.py:_set_aside",
        "harness/engine/quality/paper_protocols.py",
        "harness/engine/quality/corpora.py",
        "harness/engine/quality/scored_text.py",
        "harness/engine/quality/perplexity.py:Scored",
        "harness/engine/quality/perplexity.py:score",
        "harness/engine/quality/perplexity.py:_batch_nll",
        "harness/engine/data/encoding.py:encode",
        "harness/engine/data/encoding.py:encode_each",
        "harness/engine/data/encoding.py:encode_some",
        "harness/engine/data/windows.py",
        "harness/engine/data/parts.py:Documents",
        "harness/engine/data/parts.py:cut",
        "harness/engine/data/parts.py:parts_of",
    ),
    "accuracy": (
        "harness/engine/quality/tasks.py:SEED",
        "harness/engine/quality/tasks.py:evaluate_tasks",
        "harness/engine/quality/tasks.py:_language_model",
        "harness/engine/quality/tasks.py:_answers",
        "harness/engine/data/tasks.py:_give_shots",
        "harness/engine/data/tasks.py:metric_of",
        "harness/engine/quality/task_scores.py:are_right",
        "harness/engine/quality/task_scores.py:accuracy",
        "harness/engine/quality/task_scores.py:_chance",
        "harness/engine/quality/task_scores.py:as_published",
        "harness/engine/quality/task_scores.py:_unread",
        "benchmarks/tasks/papers.py",
    ),
}


def current() -> dict[str, dict[str, Any]]:
    """Version and hash of every protocol as the code is now."""
    return {
        name: {
            "version": PROTOCOLS[name],
            "sha256": hashlib.sha256("\n".join(map(code, places)).encode()).hexdigest(),
        }
        for name, places in RULERS.items()
    }


def code(place: str) -> str:
    """The lines of a file or of one of its definitions, without what does not act."""
    file, _, path = place.partition(":")
    source = (ROOT / file).read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.splitlines()
    for constant in docstrings(tree):
        assert constant.end_lineno is not None
        for number in range(constant.lineno, constant.end_lineno + 1):
            lines[number - 1] = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and lines[token.start[0] - 1]:
            lines[token.start[0] - 1] = token.line[: token.start[1]]
    first, last = _span(tree, path) if path else (1, len(lines))
    return "\n".join(line.rstrip() for line in lines[first - 1 : last] if line.strip())


def _span(tree: ast.Module, path: str) -> tuple[int, int]:
    """First and last line of a definition by its dotted name, decorators included."""
    body = tree.body
    found: ast.stmt | None = None
    for name in path.split("."):
        found = next((node for node in body if name in _names(node)), None)
        assert found is not None, f"no {path} any more"
        body = getattr(found, "body", [])
    assert found.end_lineno is not None
    marks = [mark.lineno for mark in getattr(found, "decorator_list", [])]
    return min([found.lineno, *marks]), found.end_lineno


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {ast.unparse(target) for target in node.targets}
    return {getattr(node, "name", "")} - {""}


if __name__ == "__main__":
    FILE.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")
