"""Forecasts of memory for the parent: from the cache, else from one worker that simulates. No torch.

Every answer is kept as soon as it is there, so that what is interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import record as records
from harness.config import Run, ShapeModel
from harness.engine.forecasts import Answer, Kept, Keys, Question, RankSource, Say
from harness.engine.process import Worker
from harness.engine.shapes import shape_of
from harness.errors import UserError
from harness.forecast import MemoryReport
from harness.method import check_name

LONGEST_S = 30 * 24 * 3600.0
GRACE_S = 2.0
GIB = 1 << 30
#: How many times larger than weights and activations, counted generously, a device must be for a run on it
#: to go without a forecast. States of an optimizer and gradients in float32 are 5 times the weights.
AMPLE = 64

Told = Callable[[Question, int, int], None]


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Oracle:
    """Answers questions about memory; `command` starts a worker, `note` tells a person of trouble."""

    cache: Path
    command: Sequence[str]
    ranks: RankSource = None
    note: Say = _ignore

    def ask(self, questions: Sequence[Question], told: Told = _ignore) -> list[Answer]:
        """An answer to each question, in order; `told` gets (question, answered, all) for each new one.

        Equal questions, as from seeds and repeats of one config, are one. UserError for ranks that are
        wrong whatever the run.
        """
        key_of, kept = Keys(self.ranks), Kept(self.cache / "forecasts", self.note)
        keys = [key_of.of(question) for question in questions]
        asked = dict(zip(keys, questions, strict=True))
        found = {key: answer for key, question in asked.items() if (answer := kept.read(key, question))}

        def answered(key: str, answer: Answer) -> None:
            found[key] = answer
            if answer.lasting:
                kept.write(key, answer)
            told(asked[key], len(found), len(asked))

        while missing := {key: question for key, question in asked.items() if key not in found}:
            peaks = {
                answer.report.config_id: answer.report.peak_allocated_bytes
                for answer in found.values()
                if answer.report is not None
            }
            self._compute(missing, peaks, answered)
        return [found[key] for key in keys]

    def _compute(
        self,
        missing: Mapping[str, Question],
        peaks: Mapping[str, int],
        answered: Callable[[str, Answer], None],
    ) -> None:
        """Let a worker answer; where it dies, the question that it died of is answered by that.

        A worker that never came to the first question answers all of them so: another would do no better.
        """
        left = dict.fromkeys(missing)
        heard: dict[str, Any] = {}

        def hear(event: Mapping[str, Any]) -> None:
            heard.update(event)
            if event.get("key") in left:
                del left[event["key"]]
                answered(event["key"], Answer.model_validate(event["answer"]))

        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log.txt"
            worker = Worker([*self.command, "simulate"], log)
            try:
                self._send(worker, missing, peaks)
                worker.follow(LONGEST_S, hear)
            finally:
                worker.stop(GRACE_S)
            said = log.read_text(errors="replace").strip().splitlines()[-1:]
        if "error" in heard:
            raise UserError(str(heard["error"]))
        why = ": ".join(["the simulation failed", worker.last_words(), *said])
        for key in list(left)[: 1 if "ready" in heard else None]:
            answered(key, Answer(kind="failed", reason=why))

    def _send(self, worker: Worker, missing: Mapping[str, Question], peaks: Mapping[str, int]) -> None:
        """The request is one line; standard input stays open, for its end would end the worker."""
        items = [
            {
                "key": key,
                "run": question.run.model_dump(mode="json"),
                "setting": question.setting,
                "limit": question.limit,
                "peak": peaks.get(question.run.config_id),
            }
            for key, question in missing.items()
        ]
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):  # a worker that is gone says why by its exit
            worker.process.stdin.write(json.dumps({"ranks": self.ranks, "items": items}).encode() + b"\n")
            worker.process.stdin.flush()


def foresee(
    runs: Iterable[Run],
    ranks: RankSource,
    cache: Path,
    command: Sequence[str],
    note: Say = _ignore,
    told: Told = _ignore,
) -> dict[str, MemoryReport | str]:
    """By config id the forecast of each run, or in one line why there is none."""
    wanted = {run.config_id: run for run in runs}
    answers = Oracle(cache, command, ranks, note).ask([Question(run) for run in wanted.values()], told)
    return {key: answer.report or answer.reason for key, answer in zip(wanted, answers, strict=True)}


# -------------------------------------------------------------------------------- what cannot fit
def refusals(
    runs: Sequence[Run], device: str, device_bytes: int, cache: Path, command: Sequence[str], note: Say
) -> dict[str, str]:
    """By run id why a run cannot fit its device: the peak of its own tensors is larger than all of it.

    What a simulation does not see only adds to that. A run without a forecast is never refused; where a
    simulation failed for reasons of its own, that is noted.
    """
    doubtful = [run for run in runs if run.tier != "embedded" and not is_ample(run, device_bytes)]
    answers = Oracle(cache, command, None, note).ask([Question(run) for run in doubtful]) if doubtful else []
    refused: dict[str, str] = {}
    failed: dict[str, None] = {}
    for run, answer in zip(doubtful, answers, strict=True):
        if answer.kind == "failed":
            failed[f"{run.name}: no forecast of its memory: {answer.reason}"] = None
        elif answer.report is not None and answer.report.peak_allocated_bytes > device_bytes:
            refused[run.run_id] = _refusal(run, answer.report.peak_allocated_bytes, device, device_bytes)
    for text in failed:
        note(text)
    return refused


def _refusal(run: Run, peak: int, device: str, device_bytes: int) -> str:
    place = "cuda:0" if device == "cuda" else device
    model = dict(run.model)
    name = str(model.get("name") or model.get("id") or model.get("path"))
    return (
        f"{name} {run.name}: needs at least {peak / GIB:.1f} GiB, {place} has {device_bytes / GIB:.1f} GiB; "
        "choose a smaller batch, length or model, see lorebench plan, or --force"
    )


def is_ample(run: Run, device_bytes: int) -> bool:
    """Whether a device is so much larger than a named shape that a simulation would be wasted time.

    Counts weights and 64 hidden-sized and all score tensors of every layer as alive at once, in float32,
    and asks for `AMPLE` times that. An error here costs no more than the check itself.
    """
    if not isinstance(run.model, ShapeModel):
        return False
    shape = shape_of(run.model)
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate
    weights = shape.layers * layer + 2 * shape.vocab * shape.hidden
    per_token = shape.vocab + shape.layers * (64 * shape.hidden + shape.heads * run.data.seq_len)
    return AMPLE * 4 * (weights + run.train.batch * run.data.seq_len * per_token) < device_bytes


# --------------------------------------------------------------------------------- ranks by people
def read_ranks(text: str) -> tuple[RankSource, str]:
    """Ranks as a person names them, and where they came from in words.

    `text` is the name of an approximation, a record (its chosen ranks are taken), or a JSON file of
    {layer: rank} or {method: {layer: rank}}. UserError for a file that is none of these.
    """
    path = Path(text).expanduser()
    if not (path.exists() or path.suffix == ".json" or "/" in text):
        return text, f"the approximation {text!r}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--ranks {text}: cannot be read: {error.strerror}; give a record or a JSON file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--ranks {text}: not JSON: {error}") from error
    if isinstance(content, dict) and "schema_version" in content:
        record = records.read(path)
        chosen = record.parameters.chosen_ranks if record.parameters else {}
        if not chosen:
            raise UserError(f"--ranks {text}: this record chose no ranks; give one of a method that does")
        return {"methods": chosen}, f"the record {record.run_id} ({record.label})"
    nested = (
        isinstance(content, dict) and bool(content) and all(isinstance(v, dict) for v in content.values())
    )
    for name, ranks in content.items() if nested else [("", content)]:
        _check_ranks(text, name, ranks)
        if nested:
            check_name(name.partition("#")[0])  # one that occurs twice in a stack carries its position
    return {"methods" if nested else "layers": content}, f"the file {path.name}"


def _check_ranks(text: str, method: str, ranks: Any) -> None:
    where = f"--ranks {text}: " + (f"{method}: " if method else "")
    if not isinstance(ranks, dict) or not ranks:
        raise UserError(f"{where}no ranks; write {{layer: rank}} or {{method: {{layer: rank}}}}")
    for layer, rank in ranks.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise UserError(f"{where}{layer}: rank {json.dumps(rank)}; a rank is a whole number from 1")
