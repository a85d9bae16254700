"""Generate the questions of the lm-eval tasks in memory, so that nothing is downloaded or stored.

lm-eval loads this file by its path, from any working directory, without the repository being importable. That
is why it puts the repository's root on the module path by itself.
"""

import sys
from pathlib import Path
from typing import Any

import datasets

_ROOT = Path(__file__).resolve().parents[3]
if str(_ROOT) not in sys.path:
    sys.path.append(str(_ROOT))

from benchmarks.embedded.world import questions  # noqa: E402  (needs the path above)

QUESTIONS = 200


def load(world: str, skill: str, **_unused: Any) -> dict[str, datasets.Dataset]:
    """Return the split "test" of one task; lm-eval also passes the task's metadata, unused here."""
    rows = [
        {"prompt": question.prompt, "choices": list(question.choices), "answer": question.answer}
        for question in questions(world, skill, "test", QUESTIONS)
    ]
    return {"test": datasets.Dataset.from_list(rows)}
