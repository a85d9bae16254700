"""The training split of a shipped task as texts: the task says what they are, this file asks for them."""

from __future__ import annotations

from typing import Any

from harness.config import TaskData
from harness.engine import quality
from harness.errors import UserError, nearest


def training_texts(config: TaskData) -> tuple[list[str], str, str]:
    """All texts to train on in their order, with the name and the version of the task for the record.

    They are the column that the task's metadata name as `training_text`. UserError for a task that is not
    there, or whose files cannot be had.
    """
    name = config.task
    known = [path.stem for path in quality.PAPER_TASKS.glob("paper_*.yaml")]
    if name not in known:
        raise UserError(f"no task {name!r} to train on (data.task); {nearest(name, known)}")
    task: Any = quality.load_tasks([name], [quality.PAPER_TASKS], config.folder)[name]
    metadata = task.get_config("metadata")
    texts = list(task.training_docs()[metadata["training_text"]])
    return texts, f"{name}/train", str(metadata["version"])
