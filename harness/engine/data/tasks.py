"""Load lm-eval tasks with their data and shots, and the texts of a task to train on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import TaskData
from harness.errors import UserError, nearest
from harness.files import ROOT, from_user, visible

BENCHMARKS = ROOT / "benchmarks"
EMBEDDED_TASKS = BENCHMARKS / "embedded" / "tasks"
#: The papers' downstream tasks, read from their original files.
PAPER_TASKS = BENCHMARKS / "tasks"
#: The most tokens of an answer where a task does not say, by lm-eval 0.4.13 (HFLM.max_gen_toks).
ANSWER_LENGTH = 256
SHIPPED_TASKS = (EMBEDDED_TASKS, PAPER_TASKS)


def existing_folder(path: str | Path) -> Path:
    """Return the path of a folder with tasks; UserError when it does not exist."""
    folder = from_user(path)
    if not folder.is_dir():
        raise UserError(f"no folder {str(path)!r} to look for tasks in; check evaluate.task_paths")
    return folder.resolve()


def load_tasks(
    names: Sequence[str], paths: Sequence[Path], task_data: str | None = None, shots: int | None = None
) -> dict[str, Any]:
    """Load tasks by name, groups as their tasks, with their data; `task_data` is a folder with their files.

    The thousands of tasks that lm-eval ships are read only when one of them is named. UserError for a task
    that is unknown, whose data cannot be loaded, that has neither metric, or that has too few examples for
    so many `shots` (None: the task's default).
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import TaskIndex

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # lm-eval 0.4.13 also takes hidden files, and the first file of a task wins: a copy left by an editor.
    setattr(TaskIndex, "_iter_yaml_files", staticmethod(_task_files))  # noqa: B010
    options: dict[str, Any] = {"include_path": [str(path) for path in paths]}
    if task_data is not None:
        options["metadata"] = {"task_data": task_data}
    manager = TaskManager(include_defaults=False, **options)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_defaults=True, **options)
    loaded: dict[str, Any] = {}
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"unknown task {name!r}; {nearest(name, manager.all_tasks)}")
        try:
            loaded.update(manager.load([name])["tasks"])
        except UserError:
            raise
        except Exception as error:  # whatever a task's own code or the hub raises
            why = f"{type(error).__name__}: {error}; its data must be reachable or in the local cache"
            raise UserError(f"task {name!r} cannot be loaded: {why}") from error
    if shots is not None:
        for name, task in loaded.items():
            _give_shots(name, task, shots)
    return {name: task for name, task in loaded.items() if metric_of(name, task)}


def _task_files(folder: Path) -> list[Path]:
    """Return the files of tasks below a folder in order, without hidden ones."""
    return [path for path in visible(folder, "**/*.yaml") if "__pycache__" not in path.parts]


def _give_shots(name: str, task: Any, shots: int) -> None:
    """Put that many solved examples before each question, never the question itself.

    lm-eval 0.4.13 ignores the option for a task whose own number is 0, and excludes a question from its
    examples only when both come from the split named as the test split.
    """
    config, examples = task.config, task.fewshot_cfg
    scored = config.test_split or config.validation_split
    drawn = examples.split or config.training_split or config.validation_split or config.test_split
    own = drawn == scored and (examples.split is not None or examples.samples is None)
    if own:
        config.test_split = examples.split = scored
    if shots and len(task.sampler.df) < shots + own:
        left = f"it has {len(task.sampler.df) - own} examples beside a question"
        raise UserError(f"task {name!r}: {shots} shots requested, {left}; set evaluate.shots to fewer")
    task.set_config("num_fewshot", shots)


def answer_length(options: Mapping[str, Any]) -> int:
    """Return the most tokens of an answer by a task's options for generating one."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(dict(options), ANSWER_LENGTH)["max_gen_toks"])


def check_room(tasks: Mapping[str, Any], context: int) -> None:
    """Raise UserError for a task whose answers may fill the model's whole context, so that no prompt fits."""
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            longest = answer_length(task.config.generation_kwargs or {})
            if longest >= context:
                raise UserError(
                    f"task {name!r}: an answer may have {longest} tokens and the model's context {context}, "
                    "so no question fits; use another task or a model with a longer context"
                )


def metric_of(name: str, task: Any) -> str:
    """Return `acc` where the task reports it, else `exact_match`; UserError where it reports neither."""
    reported = task.aggregation()
    found = [metric for metric in ("acc", "exact_match") if metric in reported]
    if not found:
        raise UserError(f"task {name!r} reports {', '.join(reported)}; a task needs acc or exact_match")
    return found[0]


def training_texts(config: TaskData) -> tuple[list[str], str, str]:
    """Return all training texts of a task in order, with its name and version for the record.

    The task's metadata name their column as `training_text`. UserError for missing files.
    """
    name = config.task
    task: Any = load_tasks([name], [PAPER_TASKS], config.folder)[name]
    metadata = task.get_config("metadata")
    texts = list(task.training_docs()[metadata["training_text"]])
    return texts, f"{name}/train", str(metadata["version"])
