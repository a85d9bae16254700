"""Forecasts of memory for the parent: from the cache, else from workers that simulate. No torch.

Every answer is kept as soon as it is there, so that what is interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import record as records
from harness.config import Run
from harness.engine.forecast.cache import (
    ForecastAnswer,
    ForecastCache,
    ForecastRequest,
    Keys,
    RankSource,
    Say,
)
from harness.engine.process.child import Worker
from harness.errors import UserError
from harness.forecast import MemoryReport
from harness.registry import check_name

LONGEST_S = 30 * 24 * 3600.0
GRACE_S = 2.0
#: A worker takes 0.5 GiB and seconds to start.
MOST_WORKERS, WORTH_A_WORKER = 4, 6

Told = Callable[[ForecastRequest, int, int], None]


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class ForecastClient:
    """Answers requests about memory; `command` starts a worker, `note` tells a person of trouble."""

    cache: Path
    command: Sequence[str]
    ranks: RankSource = None
    note: Say = _ignore

    def ask(self, requests: Sequence[ForecastRequest], told: Told = _ignore) -> list[ForecastAnswer]:
        """An answer to each request, in order; `told` gets (request, answered, all) for each new one.

        Equal requests, as from seeds and repeats of one config, are one. UserError for ranks that are
        wrong whatever the run.
        """
        key_of, kept = Keys(self.ranks), ForecastCache(self.cache / "forecasts", self.note)
        keys = [key_of.of(request) for request in requests]
        asked = dict(zip(keys, requests, strict=True))
        found = {key: answer for key, request in asked.items() if (answer := kept.read(key, request))}

        def answered(key: str, answer: ForecastAnswer) -> None:
            found[key] = answer
            if answer.lasting:
                kept.write(key, answer)
            told(asked[key], len(found), len(asked))

        while missing := {key: request for key, request in asked.items() if key not in found}:
            peaks = {
                answer.report.config_id: answer.report.peak_allocated_bytes
                for answer in found.values()
                if answer.report is not None
            }
            self._compute(missing, peaks, answered)
        return [found[key] for key in keys]

    def _compute(
        self,
        missing: Mapping[str, ForecastRequest],
        peaks: Mapping[str, int],
        answered: Callable[[str, ForecastAnswer], None],
    ) -> None:
        """Let workers answer, each its share; many requests are worth several of them."""
        shares = _shares(missing)
        lock = threading.Lock()

        def one_by_one(key: str, answer: ForecastAnswer) -> None:
            with lock:
                answered(key, answer)

        with tempfile.TemporaryDirectory() as folder:
            logs = [Path(folder) / f"log-{index}.txt" for index in range(len(shares))]
            workers = [Worker([*self.command, "simulate"], log) for log in logs]
            try:
                with ThreadPoolExecutor(len(workers)) as pool:
                    try:
                        ends = [
                            pool.submit(self._listen, worker, log, share, peaks, one_by_one)
                            for worker, log, share in zip(workers, logs, shares, strict=True)
                        ]
                        for end in ends:
                            end.result()
                    except BaseException:
                        for worker in workers:
                            worker.stop(GRACE_S)  # whoever listens to it then comes to an end
                        raise
            finally:
                for worker in workers:
                    worker.stop(GRACE_S)

    def _listen(
        self,
        worker: Worker,
        log: Path,
        share: Mapping[str, ForecastRequest],
        peaks: Mapping[str, int],
        answered: Callable[[str, ForecastAnswer], None],
    ) -> None:
        """Pass a worker's answers on; where it dies, the question that it died of is answered by that.

        A worker that never came to the first question answers all of them so: another would do no better.
        """
        left = dict.fromkeys(share)
        heard: dict[str, Any] = {}

        def hear(event: Mapping[str, Any]) -> None:
            heard.update(event)
            if event.get("key") in left:
                del left[event["key"]]
                answered(event["key"], ForecastAnswer.model_validate(event["answer"]))

        self._send(worker, share, peaks)
        worker.follow(LONGEST_S, hear)
        worker.stop(GRACE_S)
        if "error" in heard:
            raise UserError(str(heard["error"]))
        said = log.read_text(errors="replace").strip().splitlines()[-1:]
        why = ": ".join(["the simulation failed", worker.last_words(), *said])
        for key in list(left)[: 1 if "ready" in heard else None]:
            answered(key, ForecastAnswer(kind="failed", reason=why))

    def _send(self, worker: Worker, missing: Mapping[str, ForecastRequest], peaks: Mapping[str, int]) -> None:
        """The request is one line; standard input stays open, for its end would end the worker."""
        items = [
            {
                "key": key,
                "run": request.run.model_dump(mode="json"),
                "setting": request.setting,
                "limit": request.limit,
                "peak": peaks.get(request.run.config_id),
            }
            for key, request in missing.items()
        ]
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):  # a worker that is gone says why by its exit
            worker.process.stdin.write(json.dumps({"ranks": self.ranks, "items": items}).encode() + b"\n")
            worker.process.stdin.flush()


def _shares(missing: Mapping[str, ForecastRequest]) -> list[dict[str, ForecastRequest]]:
    """The requests of whole configs, dealt out to as many workers as are worth their start."""
    configs = list(dict.fromkeys(request.run.config_id for request in missing.values()))
    count = max(1, min(MOST_WORKERS, os.cpu_count() or 1, len(configs) // WORTH_A_WORKER))
    turn = {config: index % count for index, config in enumerate(configs)}
    shares: list[dict[str, ForecastRequest]] = [{} for _ in range(count)]
    for key, request in missing.items():
        shares[turn[request.run.config_id]][key] = request
    return shares


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
    answers = ForecastClient(cache, command, ranks, note).ask(
        [ForecastRequest(run) for run in wanted.values()], told
    )
    return {key: answer.report or answer.reason for key, answer in zip(wanted, answers, strict=True)}


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
