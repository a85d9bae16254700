"""Forecasts of memory for the parent process: from the cache, else from workers that simulate. No torch.

Each answer is stored as soon as it arrives, so an interrupted request continues where it stopped.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import record as records
from harness.engine.forecast.cache import (
    ForecastAnswer,
    ForecastCache,
    ForecastRequest,
    Keys,
    Notify,
    RankSource,
)
from harness.engine.process.child import GRACE_S, Worker
from harness.errors import UserError
from harness.files import from_user, is_there
from harness.registry import check_name

#: A worker takes 0.5 GiB and as many seconds to start as a forecast of 7B.
MOST_WORKERS, WORTH_A_WORKER = 4, 2

OnProgress = Callable[[ForecastRequest, int, int], None]
OnAnswer = Callable[[str, ForecastAnswer], None]


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class ForecastClient:
    """Requests forecasts; `command` starts a worker, `notify` receives what a person should know."""

    cache: Path
    command: Sequence[str]
    ranks: RankSource = None
    notify: Notify = _ignore

    def ask(
        self, requests: Sequence[ForecastRequest], on_progress: OnProgress = _ignore
    ) -> list[ForecastAnswer]:
        """Return an answer to each request, in order; equal ones, as from several seeds, are computed once.

        `on_progress` is called with (request, answered, all) for each new answer. UserError for ranks that
        are wrong for every run.
        """
        key_of, cache = Keys(self.ranks), ForecastCache(self.cache / "forecasts", self.notify)
        keys = [key_of.of(request) for request in requests]
        wanted = dict(zip(keys, requests, strict=True))
        found = {key: answer for key, request in wanted.items() if (answer := cache.read(key, request))}
        lock = threading.Lock()

        def on_answer(key: str, answer: ForecastAnswer) -> None:
            with lock:
                found[key] = answer
                if answer.lasting:
                    cache.write(key, answer)
                on_progress(wanted[key], len(found), len(wanted))

        while missing := {key: request for key, request in wanted.items() if key not in found}:
            peaks = {
                answer.report.config_id: answer.report.peak_allocated_bytes
                for key, answer in found.items()
                if answer.report is not None and wanted[key].meter == "cuda"
            }
            self._compute(missing, peaks, on_answer)
        return [found[key] for key in keys]

    def cached(self, requests: Sequence[ForecastRequest]) -> list[ForecastAnswer | None]:
        """Return the cached answer to each request, or None; computes nothing."""
        key_of, cache = Keys(self.ranks), ForecastCache(self.cache / "forecasts", self.notify)
        return [cache.read(key_of.of(request), request) for request in requests]

    def _compute(
        self, missing: Mapping[str, ForecastRequest], peaks: Mapping[str, int], on_answer: OnAnswer
    ) -> None:
        """Deal the requests out to workers and wait for all answers."""
        shares = _shares(missing)
        # Leaving stops the workers first, which ends the threads that listen to them.
        with (
            tempfile.TemporaryDirectory() as folder,
            ThreadPoolExecutor(len(shares)) as pool,
            ExitStack() as started,
        ):
            ends = []
            for index, share in enumerate(shares):
                log = Path(folder) / f"log-{index}.txt"
                worker = Worker([*self.command, "simulate"], log)
                started.callback(worker.stop, GRACE_S)
                ends.append(pool.submit(self._listen, worker, share, peaks, on_answer))
            for end in ends:
                end.result()

    def _listen(
        self,
        worker: Worker,
        share: Mapping[str, ForecastRequest],
        peaks: Mapping[str, int],
        on_answer: OnAnswer,
    ) -> None:
        """Pass a worker's answers on; the request at which it dies is answered by its death.

        A worker that never reached its first request answers all of them so: another would do no better.
        """
        left = dict.fromkeys(share)
        seen: dict[str, Any] = {}

        def on_event(event: Mapping[str, Any]) -> None:
            seen.update(event)
            if event.get("key") in left:
                del left[event["key"]]
                on_answer(event["key"], ForecastAnswer.model_validate(event["answer"]))

        said = worker.ask({"ranks": self.ranks, "items": _items(share, peaks)}, on_event)
        if "error" in seen:
            raise UserError(str(seen["error"]))
        reason = f"the simulation failed: {said}"
        for key in list(left)[: 1 if "ready" in seen else None]:
            on_answer(key, ForecastAnswer(kind="failed", reason=reason))


def _items(share: Mapping[str, ForecastRequest], peaks: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the requests as a worker reads them."""
    return [
        {
            "key": key,
            "run": request.run.model_dump(mode="json"),
            "setting": request.setting,
            "limit": request.limit,
            "meter": request.meter,
            "peak": peaks.get(request.run.config_id),
        }
        for key, request in share.items()
    ]


def _shares(missing: Mapping[str, ForecastRequest]) -> list[dict[str, ForecastRequest]]:
    """Deal the requests of whole configs out to as many workers as are worth their start."""
    configs = list(dict.fromkeys(request.run.config_id for request in missing.values()))
    count = max(1, min(MOST_WORKERS, os.cpu_count() or 1, len(configs) // WORTH_A_WORKER))
    worker_of = {config: index % count for index, config in enumerate(configs)}
    shares: list[dict[str, ForecastRequest]] = [{} for _ in range(count)]
    for key, request in missing.items():
        shares[worker_of[request.run.config_id]][key] = request
    return shares


# --------------------------------------------------------------------------------- ranks by people
def read_ranks(text: str) -> tuple[RankSource, str]:
    """Ranks as a person names them, and where they came from in words.

    `text` is the name of an approximation, a record (its chosen ranks are taken), or a JSON file of
    {layer: rank} or {method: {layer: rank}}. UserError for a file that is none of these.
    """
    path = from_user(text)
    if not (is_there(path) or path.suffix == ".json" or "/" in text):
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
