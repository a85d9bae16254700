"""The plan of a suite: its runs, their forecasts and what is done already, put together. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from harness.config import Run
from harness.engine import runner
from harness.engine.forecast import client
from harness.engine.forecast.cache import Answer, Question
from harness.engine.runner import Estimates
from harness.forecast import UNSEEN, Capacity, Setting
from harness.suite import Suite
from harness.tables.plan.plan import GIB, Plan, Row


def plan(
    chosen: Suite,
    device: str,
    results: Path,
    sizes: tuple[Sequence[float], float],
    searched: Sequence[Setting],
    ranks: str | None,
    cache: Path,
    say: Callable[[str], None],
) -> Plan:
    """All that there is to know about a suite before it runs; `sizes` are devices and reserve in GiB.

    `ranks` is what a person gave; `say` is told of each simulation as it is done.
    """
    source, said = (None, None) if ranks is None else client.read_ranks(ranks)
    resolved = runner.resolve(chosen.runs, device, text=False)
    configs = _by_config(resolved.runs)
    estimates = runner.Estimates()
    found = runner.survey(resolved.runs, results / resolved.machine / chosen.name, estimates)
    finished = {key for key, record in found.items() if record.finished}
    devices, reserve = sizes
    questions = [Question(runs[0]) for runs in configs.values()]
    searches = {
        (runs[0].config_id, setting, gib): Question(runs[0], setting, int((gib - reserve) * GIB))
        for runs in configs.values()
        for setting in searched
        for gib in devices
        if runs[0].train.stage != "compress"  # no batch, no length
    }
    oracle = client.Oracle(cache, runner.WORKER, source, say)
    answers = iter(oracle.ask([*questions, *searches.values()], partial(_tell, say)))
    forecasts = dict(zip(configs, answers, strict=False))
    largest = dict(zip(searches, answers, strict=True))
    rows = []
    for config_id, runs in configs.items():
        mine = {(setting, gib): answer for (key, setting, gib), answer in largest.items() if key == config_id}
        label = _config_name(chosen, resolved.runs, runs[0])
        rows.append(_planned(label, runs, finished, estimates, forecasts[config_id], mine))
    return Plan(
        suite=chosen.name,
        question=chosen.question,
        machine=resolved.machine,
        rows=tuple(rows),
        device_gib=tuple(devices),
        reserve_gib=reserve,
        unseen=UNSEEN,
        ranks=said,
    )


def _by_config(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The different runs of each config, in order."""
    configs: dict[str, list[Run]] = {}
    for run in {run.run_id: run for run in runs}.values():
        configs.setdefault(run.config_id, []).append(run)
    return configs


def _tell(say: Callable[[str], None], question: Question, done: int, total: int) -> None:
    searched = "" if question.setting is None else f", largest {question.setting}"
    say(f"[{done}/{total}] {question.run.name}{searched}: simulated")


def _planned(
    label: str,
    runs: Sequence[Run],
    finished: set[str],
    estimates: Estimates,
    answer: Answer,
    largest: Mapping[tuple[Setting, float], Answer],
) -> Row:
    """The row of one config; what could not be answered says why."""
    train = runs[0].train
    done = sum(run.run_id in finished for run in runs)
    seconds = estimates.known(runs[0])
    left = len(runs) - done
    by_setting: dict[str, dict[float, Capacity | str]] = {}
    for (setting, gib), found in largest.items() if answer.report else ():
        by_setting.setdefault(setting, {})[gib] = found.capacity or found.reason
    return Row(
        label=label,
        config_id=runs[0].config_id,
        done=done,
        todo=left,
        seconds=0.0 if left == 0 else None if seconds is None else left * seconds,
        forecast=answer.report or answer.reason,
        largest=by_setting,
        steps=None if train.stage == "compress" else train.steps,
        tokens_per_step=train.batch * train.grad_accum * runs[0].data.seq_len,
    )


def _config_name(chosen: Suite, runs: Sequence[Run], run: Run) -> str:
    """The label, with what varies beside it where other configs have the same one."""
    if len({other.config_id for other in runs if other.name == run.name}) == 1:
        return run.name
    varies = [text for text in chosen.selector(run) if not text.startswith(("label=", "seed="))]
    return " ".join([run.name, *varies])
