"""The rulers of quality: negative log-likelihood of token sequences, and the bridge to lm-eval.

What text a perplexity protocol scores, and how it is cut, is `protocols.py`; nothing here divides by
anything but the number of predicted tokens.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.engine import answers
from harness.errors import UserError, nearest
from harness.record import Accuracy

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
EMBEDDED_TASKS = BENCHMARKS / "embedded" / "tasks"
#: The papers' downstream tasks, read from their original files.
PAPER_TASKS = BENCHMARKS / "tasks"
SHIPPED_TASKS = (EMBEDDED_TASKS, PAPER_TASKS)
#: The seed of everything in lm-eval that could draw a random number (few-shot examples, sampling).
SEED = 0


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for all modules, then each back to its own mode (a frozen part may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Scored:
    """Summed negative log-likelihood over `tokens` predictions, and each sequence's own sum, in order."""

    nll_nats: float
    tokens: int
    sequence_nll_nats: list[float]

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens)."""
        try:
            return math.exp(self.nll_nats / self.tokens)
        except OverflowError:
            return math.inf


def score(
    model: nn.Module,
    sequences: Sequence[np.ndarray | list[int]],
    batch: int,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Score each sequence alone: its first token is context only, the other n - 1 are predicted.

    Sequences of like length share a batch, padded on the right: under causal attention no token sees
    what follows it, so padding needs no mask and the result does not depend on `batch` (but for the
    float noise of matrix products of another shape). Log-softmax in float32, sums in float64.
    UserError when there is nothing to predict.
    """
    tokens = sum(max(len(sequence) - 1, 0) for sequence in sequences)
    if tokens == 0:
        raise UserError(f"nothing to score: {len(sequences)} sequences, none longer than one token")
    # the longest first, so that memory runs out at the start or not at all
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    nll = [0.0] * len(sequences)
    with _evaluating(model), torch.no_grad():  # no inference mode: a model may cache what it computes
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            values = _batch_nll(model, [sequences[index] for index in chosen], device)
            for index, value in zip(chosen, values, strict=True):
                nll[index] = value
            if on_progress is not None:
                on_progress(min(first + batch, len(order)), len(order))
    return Scored(math.fsum(nll), tokens, nll)


def _batch_nll(
    model: nn.Module, sequences: Sequence[np.ndarray | list[int]], device: torch.device
) -> list[float]:
    """The nll of each of these sequences, the longest of which comes first; one batch of logits is alive."""
    lengths = [len(sequence) for sequence in sequences]
    if lengths[0] < 2:
        return [0.0] * len(sequences)
    padded = np.zeros((len(sequences), lengths[0]), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : lengths[row]] = sequence
    ids = torch.from_numpy(padded).to(device)
    logits: Tensor = model(input_ids=ids[:, :-1], use_cache=False).logits  # (batch, longest - 1, vocabulary)
    sums = [  # row by row, so that only one sequence's logits are ever held in float32
        F.cross_entropy(logits[row, : n - 1].float(), ids[row, 1:n], reduction="none").double().sum()
        for row, n in enumerate(lengths)
    ]
    return torch.stack(sums).tolist()


def existing_folder(path: str | Path) -> Path:
    """The path of a folder with tasks; UserError when there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {str(path)!r} to look for tasks in; check evaluate.task_paths")
    return folder.resolve()


def evaluate_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Mapping[str, Any],
    *,
    limit: int | None,
    batch: int,
    device: torch.device,
    max_length: int,
    samples_to: Path | None,
) -> dict[str, Accuracy]:
    """Accuracy on tasks of `load_tasks`; one JSONL per task with every answer in `samples_to`.

    A task's metric is `acc` where it reports that, else `exact_match`; with several filters the first
    one of the task counts. Every document counts, so an answer that cannot be parsed is a wrong one. Where
    the task's metadata name a `legacy_filter`, what a script that leaves such answers out would report with
    that filter stands beside the accuracy.
    Special tokens are the tokenizer's own choice: HFLM 0.4.13 with `add_bos_token=None` encodes the
    context as the tokenizer does, never adds a second `<s>` to a text that begins with one, and where
    a context is empty predicts from `<s>` (else `</s>`).
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with _evaluating(model):
        given = _answers(_language_model(model, tokenizer, batch, device, max_length), tasks, limit)
    found = {}
    for name, by_filter in given.items():
        task, samples = tasks[name], next(iter(by_filter.values()))
        metric = answers.metric_of(name, task)
        right = answers.are_right(name, samples, metric)
        found[name] = answers.accuracy(task, samples, right)
        legacy = (task.get_config("metadata") or {}).get("legacy_filter")
        if legacy is not None:
            official = by_filter[legacy]
            official_right = answers.are_right(name, official, metric)
            found[name] = answers.as_published(found[name], samples, official, official_right)
        if samples_to is not None:
            answers.write_samples(samples_to / f"{name}.jsonl", samples, right)
    return found


def _language_model(model: nn.Module, tokenizer: Any, batch: int, device: torch.device, length: int) -> Any:
    from lm_eval.models.huggingface import HFLM  # here, because lm-eval takes seconds to import

    class QuietHFLM(HFLM):
        """No progress bars: the standard error of a run is a log file."""

        loglikelihood = partialmethod(HFLM.loglikelihood, disable_tqdm=True)
        generate_until = partialmethod(HFLM.generate_until, disable_tqdm=True)

    log = logging.getLogger("lm_eval.models.huggingface")
    log.setLevel(logging.ERROR)  # it warns that the model is in memory already
    options = {"batch_size": batch, "max_length": length, "device": str(device), "softmax_dtype": "float32"}
    lm = QuietHFLM(model, tokenizer=tokenizer, **options)
    log.setLevel(logging.WARNING)  # it warns when it cuts a prompt
    return lm


def _answers(
    lm: Any, loaded: Mapping[str, Any], limit: int | None
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The answer to every document of every task, as lm-eval logs it, by the task's filters in order."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    options = {"limit": limit, "bootstrap_iters": 0, "log_samples": True}
    options |= dict.fromkeys([f"{who}random_seed" for who in ("", "numpy_", "torch_", "fewshot_")], SEED)
    nothing = TaskManager(include_defaults=False)  # without one it would read all of its own tasks
    results = simple_evaluate(lm, tasks=list(loaded.values()), task_manager=nothing, **options)
    every: dict[str, list[dict[str, Any]]] = results["samples"]
    by_filter: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, samples in every.items():
        for sample in samples:
            by_filter.setdefault(name, {}).setdefault(sample["filter"], []).append(sample)
    return by_filter


def load_tasks(
    names: Sequence[str], paths: Sequence[Path], task_data: str | None = None, shots: int | None = None
) -> dict[str, Any]:
    """Task objects by name, groups as their tasks, with their data; `task_data` is a folder with their files.

    The thousands of tasks of lm-eval itself are read only when one is asked for. UserError for an
    unknown task, one whose data cannot be had, one with neither metric, and one with too few examples for
    as many `shots` (None: as the task says).
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
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
    return {name: task for name, task in loaded.items() if answers.metric_of(name, task)}


def _give_shots(name: str, task: Any, shots: int) -> None:
    """Put as many solved examples before each question, and never the question itself.

    lm-eval 0.4.13 leaves a task alone that says 0, and a question out of its own examples only where the
    split of both is named as the test split.
    """
    config, examples = task.config, task.fewshot_cfg
    scored = config.test_split or config.validation_split
    drawn = examples.split or config.training_split or config.validation_split or config.test_split
    own = drawn == scored and (examples.split is not None or examples.samples is None)
    if own:
        config.test_split = examples.split = scored
    if shots and len(task.sampler.df) < shots + own:
        left = f"it has {len(task.sampler.df) - own} examples beside a question"
        raise UserError(f"task {name!r}: {shots} shots asked for, {left}; set evaluate.shots to fewer")
    task.set_config("num_fewshot", shots)
