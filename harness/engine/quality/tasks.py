"""Ask lm-eval tasks of the model in memory, and return its accuracy on each.

How answers are scored is `task_scores.py`; how tasks are loaded is `harness.engine.data.tasks`.
"""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable, Mapping
from functools import lru_cache, partial, partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.engine.data import doubts
from harness.engine.data.tasks import answer_length, metric_of
from harness.engine.quality import task_scores
from harness.engine.quality.perplexity import evaluating
from harness.record import Accuracy

#: The seed of everything in lm-eval that could draw a random number (few-shot examples, sampling).
SEED = 0
#: Encoded texts that are kept, the last ones.
ENCODINGS = 4096


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
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Accuracy]:
    """Return the accuracy on tasks of `load_tasks`; write all answers as JSONL to `samples_to`.

    `warn` takes what makes an accuracy doubtful.
    A task's metric is `acc` where it reports that, else `exact_match`; of several filters the task's first
    one counts. Every document counts, so an answer that cannot be parsed is wrong. Where the task's metadata
    name a `legacy_filter`, the result also holds the accuracy by that filter without such answers.
    The tokenizer decides on special tokens: HFLM 0.4.13 with `add_bos_token=None` encodes the context as the
    tokenizer does, never adds a second `<s>` to a text that begins with one, and predicts from `<s>` (else
    `</s>`) where a context is empty. It works on a copy of the tokenizer, which may need a token to pad with.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with evaluating(model):
        lm = _language_model(model, _able_to_pad(tokenizer), batch, device, max_length)
        given = _answers(lm, tasks, limit)
    found = {}
    for name, by_filter in given.items():
        task, samples = tasks[name], next(iter(by_filter.values()))
        metric = metric_of(name, task)
        right = task_scores.are_right(name, samples, metric)
        found[name] = task_scores.accuracy(task, samples, right)
        legacy = (task.get_config("metadata") or {}).get("legacy_filter")
        if legacy is not None:
            official = by_filter[legacy]
            official_right = task_scores.are_right(name, official, metric)
            found[name] = task_scores.as_published(found[name], samples, official, official_right)
        found[name] = _doubted(found[name], name, lm, samples, warn)
        if samples_to is not None:
            task_scores.write_samples(samples_to / f"{name}.jsonl", samples, right)
    return found


def _able_to_pad(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer with marks to pad with and to end by: the original is saved as it was."""
    tokenizer = copy.deepcopy(tokenizer)
    marks = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.eos_token, tokenizer.bos_token)
    tokenizer.pad_token = next(filter(None, marks), None)  # HFLM would add one, beyond the embedding
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.pad_token  # HFLM reads its text
    return tokenizer


def _doubted(
    honest: Accuracy, name: str, lm: Any, samples: task_scores.Samples, warn: Callable[[str], None]
) -> Accuracy:
    """Add how many documents lost a part of a prompt or of an answer; warn of those and of what is doubtful.

    As HFLM 0.4.13 cuts: to the context and one token that is only predicted, or to what leaves room for an
    answer.
    """
    truncated = 0
    read: list[int] = []
    for sample in samples:
        cut = False
        for context, asked in sample["arguments"]:
            choice = asked if isinstance(asked, str) else ""
            ids = lm.tok_encode(context + choice, add_special_tokens=None if context else False)
            room = (
                lm.max_length if not context else lm.max_length + 1
            )  # a mark stands before an empty context
            room = room if isinstance(asked, str) else lm.max_length - answer_length(asked)
            cut = cut or len(ids) > room
            read += ids
        truncated += cut
    for warning in doubts.of_tokens(np.asarray(read, dtype=np.int64), lm.tokenizer, f"prompts of {name}"):
        warn(warning)
    broken = sum(any(_is_broken(one) for one in sample["filtered_resps"]) for sample in samples)
    if broken:
        warn(
            f"answers to {name}: the scores of {broken} of {len(samples)} are not finite, so they are chance"
        )
    if truncated:
        warn(
            f"prompts of {name}: {truncated} of {len(samples)} are longer than the model's context and lost "
            "their beginning"
        )
    unfinished = sum(any(_key(*each) in lm.unfinished for each in s["arguments"]) for s in samples)
    if unfinished:
        warn(f"answers to {name}: {unfinished} of {len(samples)} were cut at the task's limit of tokens")
    return honest.model_copy(update={"truncated": truncated or None, "unfinished": unfinished or None})


def _is_broken(answer: Any) -> bool:
    """Return whether an answer is a choice's log-likelihood, with its greediness, that is not a number."""
    return isinstance(answer, (list, tuple)) and not math.isfinite(answer[0])


def _language_model(model: nn.Module, tokenizer: Any, batch: int, device: torch.device, length: int) -> Any:
    from lm_eval.models.huggingface import HFLM  # here, because lm-eval takes seconds to import

    class QuietHFLM(HFLM):
        """No progress bars: the standard error of a run is a log file."""

        loglikelihood = partialmethod(HFLM.loglikelihood, disable_tqdm=True)
        generate_until = partialmethod(HFLM.generate_until, disable_tqdm=True)

        unfinished: set[tuple[str, str]]
        decoded: tuple[Any, str]

        def tok_decode(self, tokens: Any, *given: Any, **named: Any) -> str:
            """Keep what was decoded last, for `_note_unfinished`."""
            self.decoded = tokens, super().tok_decode(tokens, *given, **named)
            return self.decoded[1]

    log = logging.getLogger("lm_eval.models.huggingface")
    log.setLevel(logging.ERROR)  # it warns that the model is in memory already
    options = {"batch_size": batch, "max_length": length, "device": str(device), "softmax_dtype": "float32"}
    lm = QuietHFLM(model, tokenizer=tokenizer, **options)
    log.setLevel(logging.WARNING)  # it warns when it cuts a prompt
    # A prompt comes again with each of its choices, and all come again to be doubted.
    lm.tok_encode = lru_cache(ENCODINGS)(lm.tok_encode)
    lm.unfinished = set()
    lm.cache_hook = SimpleNamespace(add_partial=partial(_note_unfinished, lm))
    return lm


def _note_unfinished(lm: Any, kind: str, request: tuple[Any, Any], answer: str) -> None:
    """Note the prompt of an answer that reached its limit of tokens before an end mark or a stop sequence.

    HFLM 0.4.13 hands each answer to its cache just after it has decoded it and cut it at a stop sequence.
    """
    if kind == "generate_until":
        tokens, text = lm.decoded
        marks = (lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id)
        if len(tokens) >= answer_length(request[1]) and tokens[-1] not in marks and answer == text:
            lm.unfinished.add(_key(*request))


def _key(prompt: str, options: Any) -> tuple[str, str]:
    return prompt, repr(options)


def _answers(
    lm: Any, loaded: Mapping[str, Any], limit: int | None
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the logged answer to every document of every task, by the task's filters in order."""
    from lm_eval import evaluate

    # What `lm_eval.simple_evaluate` 0.4.13 does, but for its report on this machine, which costs a second.
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    for task in loaded.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SEED)
    results = evaluate(lm, {"tasks": dict(loaded), "groups": {}}, limit=limit, bootstrap_iters=0)
    every: dict[str, list[dict[str, Any]]] = results["samples"]
    by_filter: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, samples in every.items():
        for sample in samples:
            by_filter.setdefault(name, {}).setdefault(sample["filter"], []).append(sample)
    return by_filter
