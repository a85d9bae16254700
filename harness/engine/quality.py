"""The rulers of quality: negative log-likelihood of token sequences, and the bridge to lm-eval.

What text a perplexity protocol scores, and how it is cut, is `protocols.py`; nothing here divides by
anything but the number of predicted tokens.
"""

from __future__ import annotations

import json
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

from harness.errors import UserError, nearest
from harness.record import Accuracy

EMBEDDED_TASKS = Path(__file__).resolve().parents[2] / "benchmarks" / "embedded" / "tasks"
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
    one of the task counts. Every document counts, so an answer that cannot be parsed is a wrong one.
    Special tokens are the tokenizer's own choice: HFLM 0.4.13 with `add_bos_token=None` encodes the
    context as the tokenizer does, never adds a second `<s>` to a text that begins with one, and where
    a context is empty predicts from `<s>` (else `</s>`).
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with _evaluating(model):
        answers = _answers(_language_model(model, tokenizer, batch, device, max_length), tasks, limit)
    found = {}
    for name, samples in answers.items():
        metric = _metric(name, tasks[name])
        right = [_is_right(name, sample, metric) for sample in samples]
        found[name] = _accuracy(tasks[name], samples, right)
        if samples_to is not None:
            _write_samples(samples_to / f"{name}.jsonl", samples, right)
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


def _answers(lm: Any, loaded: Mapping[str, Any], limit: int | None) -> dict[str, list[dict[str, Any]]]:
    """The answer to every document of every task by the task's first filter, as lm-eval logs it."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    options = {"limit": limit, "bootstrap_iters": 0, "log_samples": True}
    options |= dict.fromkeys([f"{who}random_seed" for who in ("", "numpy_", "torch_", "fewshot_")], SEED)
    nothing = TaskManager(include_defaults=False)  # without one it would read all of its own tasks
    results = simple_evaluate(lm, tasks=list(loaded.values()), task_manager=nothing, **options)
    every: dict[str, list[dict[str, Any]]] = results["samples"]
    return {name: [one for one in all_ if one["filter"] == all_[0]["filter"]] for name, all_ in every.items()}


def load_tasks(names: Sequence[str], paths: Sequence[Path]) -> dict[str, Any]:
    """Task objects by name, groups as their tasks, with their data.

    The thousands of tasks of lm-eval itself are read only when one is asked for. UserError for an
    unknown task, one whose data cannot be had, and one with neither metric.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    include = [str(path) for path in paths]
    manager = TaskManager(include_path=include, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include, include_defaults=True)
    loaded: dict[str, Any] = {}
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"unknown task {name!r}; {nearest(name, manager.all_tasks)}")
        try:
            loaded.update(manager.load([name])["tasks"])
        except Exception as error:  # whatever a task's own code or the hub raises
            why = f"{type(error).__name__}: {error}; its data must be reachable or in the local cache"
            raise UserError(f"task {name!r} cannot be loaded: {why}") from error
    return {name: task for name, task in loaded.items() if _metric(name, task)}


def _metric(name: str, task: Any) -> str:
    reported = task.aggregation()
    found = [metric for metric in ("acc", "exact_match") if metric in reported]
    if not found:
        raise UserError(f"task {name!r} reports {', '.join(reported)}; a task needs acc or exact_match")
    return found[0]


def _is_right(name: str, sample: dict[str, Any], metric: str) -> bool:
    value = float(sample.get(metric, 0.0))
    if value not in (0.0, 1.0):
        raise UserError(f"task {name!r}: {metric} of a document is {value}, which is neither right nor wrong")
    return value == 1.0


def _accuracy(task: Any, samples: Sequence[dict[str, Any]], right: Sequence[bool]) -> Accuracy:
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


def _chance(task: Any, samples: Sequence[dict[str, Any]]) -> float | None:
    """One over the number of choices, where every document has the same number; else unknown."""
    if task.OUTPUT_TYPE != "multiple_choice" or "acc_mutual_info" in task.aggregation():
        return None  # mutual information asks for each choice twice
    choices = {len(sample["arguments"]) for sample in samples}
    return 1 / choices.pop() if len(choices) == 1 else None


def _write_samples(path: Path, samples: Sequence[dict[str, Any]], right: Sequence[bool]) -> None:
    """One line per document; the hash tells that two runs were asked the same question."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for sample, correct in zip(samples, right, strict=True):
            line = {key: sample[key] for key in ("doc_id", "doc_hash", "prompt_hash", "target", "doc")}
            line |= {"responses": sample["filtered_resps"], "correct": correct}
            file.write(json.dumps(line, default=str, ensure_ascii=False) + "\n")
