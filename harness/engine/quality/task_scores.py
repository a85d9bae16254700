"""Score the answers to a task: right, wrong, not readable, and the accuracy that a paper's script reports.

The answers come from lm-eval (`tasks.py`), with one sample per document and filter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import strict_json
from harness.errors import UserError
from harness.files import private, private_folder
from harness.record import Accuracy

UNPARSABLE = "[invalid]"  # the result of lm-eval's regex filter where nothing matches

Samples = Sequence[dict[str, Any]]


def are_right(name: str, samples: Samples, metric: str) -> list[bool]:
    """Return whether each answer is right; UserError for a metric that is not 0 or 1."""
    values = [float(sample.get(metric, 0.0)) for sample in samples]
    for value in values:
        if value not in (0.0, 1.0):
            raise UserError(
                f"task {name!r}: {metric} of a document is {value}, which is neither right nor wrong"
            )
    return [value == 1.0 for value in values]


def accuracy(task: Any, samples: Samples, right: Sequence[bool]) -> Accuracy:
    """Return the share of right answers among all documents, with its standard error and chance."""
    documents, correct = len(right), sum(right)
    share = correct / documents
    metadata = task.get_config("metadata") or {}
    return Accuracy(
        accuracy=share,
        stderr=math.sqrt(share * (1 - share) / (documents - 1)) if documents > 1 else None,
        correct=correct,
        documents=documents,
        chance=metadata.get("chance", _chance(task, samples)),
        version=str(metadata.get("version", task.VERSION)),
    )


def _chance(task: Any, samples: Samples) -> float | None:
    """Return one over the number of choices where all documents have the same number, else None."""
    if task.OUTPUT_TYPE != "multiple_choice" or "acc_mutual_info" in task.aggregation():
        return None  # mutual information scores each choice twice
    choices = {len(sample["arguments"]) for sample in samples}
    return 1 / choices.pop() if len(choices) == 1 else None


def as_published(honest: Accuracy, answers: Samples, official: Samples, right: Sequence[bool]) -> Accuracy:
    """Add the number of unreadable answers, and the accuracy reported by a script that leaves those out.

    `official` are the answers as such a script reads them, `right` whether each is right then. Unreadable
    answers leave its denominator, so its accuracy can be too high.
    """
    readable = [correct for sample, correct in zip(official, right, strict=True) if not _unread(sample)]
    return honest.model_copy(
        update={
            "unparsable": sum(map(_unread, answers)),
            "legacy_accuracy": sum(readable) / len(readable) if readable else None,
            "legacy_documents": len(readable),
        }
    )


def _unread(sample: dict[str, Any]) -> bool:
    return sample["filtered_resps"][0] == UNPARSABLE


def write_samples(path: Path, samples: Samples, right: Sequence[bool]) -> None:
    """Write one line per document; equal hashes show that two runs answered the same question."""
    private_folder(path.parent)
    with open(path, "w", encoding="utf-8", opener=private) as file:
        for sample, correct in zip(samples, right, strict=True):
            line = {key: sample[key] for key in ("doc_id", "doc_hash", "prompt_hash", "target", "doc")}
            line |= {"responses": sample["filtered_resps"], "correct": correct}
            file.write(strict_json.text(line, default=str, ensure_ascii=False))
