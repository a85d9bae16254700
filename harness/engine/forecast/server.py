"""Answers to requests for forecasts, by simulation: the worker's side of client.py."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from harness import forecast
from harness.config import Run
from harness.engine.forecast import capacity
from harness.engine.forecast.cache import ForecastAnswer, RankSource
from harness.engine.forecast.count import count
from harness.engine.forecast.dry_run import Ranks, simulate
from harness.engine.run import checks, prepare
from harness.errors import MethodError, UnsupportedError, UserError, nearest, one_line
from harness.plugins import find
from harness.registry import available
from harness.validation import validate

#: Known peaks in bytes by config and setting, and then by value of the setting.
Seen = dict[tuple[str, str], dict[int, int]]


def answer_all(request: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Answer the items of a request in order and send each answer at once; UserError for unknown ranks.

    Peaks that were found for one item, or came with it, help to answer the next about the same run.
    """
    items = [(item, validate(Run, item["run"], where="run")) for item in request["items"]]
    _check_approximation(request["ranks"], [run for _, run in items])
    send({"ready": True})
    seen: Seen = {}
    for item, run in items:
        try:
            answer = _answer(run, item, ranks_for(run, request["ranks"]), seen)
        except UnsupportedError as error:
            answer = ForecastAnswer(kind="unsupported", reason=one_line(error))
        except UserError as error:
            answer = ForecastAnswer(kind="refused", reason=one_line(error))
        except MethodError as error:
            answer = ForecastAnswer(kind="failed", reason=one_line(error))
        except Exception as error:
            traceback.print_exception(error)
            reason = f"the simulation failed: {type(error).__name__}: {one_line(error)}"
            answer = ForecastAnswer(kind="failed", reason=reason)
        send({"key": item["key"], "answer": answer.model_dump(mode="json", exclude_none=True)})


def _answer(run: Run, item: Mapping[str, Any], ranks: Ranks, seen: Seen) -> ForecastAnswer:
    if item["meter"] == "live":
        return ForecastAnswer(kind="report", report=count(run))
    if item["meter"] == "exact":
        return ForecastAnswer(kind="report", report=simulate(run, ranks, granularity=1))
    if item["setting"] is None:
        report = simulate(run, ranks)
        for setting in forecast.SETTINGS:
            peaks = seen.setdefault((run.config_id, setting), {})
            peaks[capacity.value_of(run, setting)] = report.peak_allocated_bytes
        return ForecastAnswer(kind="report", report=report)
    peaks = seen.setdefault((run.config_id, item["setting"]), {})
    if item["peak"] is not None:
        peaks[capacity.value_of(run, item["setting"])] = item["peak"]

    def peak(changed: Run) -> int:
        return simulate(changed, ranks).peak_allocated_bytes

    found = capacity.largest(run, item["setting"], item["limit"], peak, seen=peaks)
    return ForecastAnswer(kind="capacity", capacity=found)


def ranks_for(run: Run, given: RankSource) -> Ranks:
    """Return ranks by method for a simulation; those without a method go to the only one that needs some."""
    if not isinstance(given, dict):
        return given
    methods = zip(prepare.keys(run), checks.stack(run), strict=True)
    dependent = [key for key, method in methods if method.caps.value_dependent]
    if not dependent:
        return None
    if "methods" in given:
        return given["methods"]
    if len(dependent) > 1:
        raise UserError(
            f"the given ranks name no method, and {' and '.join(dependent)} both need some: "
            "write {method: {layer: rank}}"
        )
    return {dependent[0]: given["layers"]}


def _check_approximation(given: RankSource, runs: Sequence[Run]) -> None:
    """Raise UserError for the name of an approximation that no available method has."""
    if not isinstance(given, str):
        return
    known: set[str] = set()
    for name in {*available(), *(choice.name for run in runs for choice in run.method)}:
        with suppress(UserError):  # a method of another package that cannot be imported
            known |= set(find(name).approximations)
    if given not in known:
        raise UserError(
            f"--ranks {given}: neither a file nor an approximation of any method; {nearest(given, known)}"
        )
