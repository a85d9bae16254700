"""The command `lorebench plan`: forecast the memory of a suite's runs without running them.

`plan_suite` is the one way to forecasts of many runs; studies call it as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from harness.cli import options, output, show
from harness.config import Run
from harness.errors import UnsupportedError, UserError, counted
from harness.files import cache_folder
from harness.inputs import outdated
from harness.suite import Override, Suite

if TYPE_CHECKING:
    from harness.devices import DeviceProfile
    from harness.engine.forecast.cache import ForecastAnswer, ForecastRequest
    from harness.engine.sweep.estimates import Estimates
    from harness.engine.sweep.resolution import Plan as Resolved
    from harness.forecast import Capacity, MemoryReport, Setting
    from harness.speed_forecast import SpeedForecast
    from harness.tables.plan.plan import Plan, Row
    from harness.tables.report.at_scale import AtScale

Format = Literal["text", "md", "tex", "json"]
LARGEST_GIB = 100_000.0

ReserveGib = Annotated[
    str,
    typer.Option(
        metavar="GIB",
        help="Reserve on each device for what is not modelled: the device context, workspaces of libraries, "
        "fragmentation.",
    ),
]
Ranks = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Ranks that depend on the weights: the name of an approximation, a record, or a JSON file of "
        "{layer: rank} or {method: {layer: rank}}.",
    ),
]
On = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DEVICE|FILE",
        help="Also forecast the speed on a device: a name from `lorebench devices`, or a profile's file; "
        "repeatable.",
    ),
]


@options.selects
def plan(
    selection: options.Selection,
    device: options.Device = "auto",
    results: options.Results = Path("runs"),
    device_gib: Annotated[
        list[str] | None,
        typer.Option(metavar="GIB", help="Size of a device to fit the runs on; repeatable."),
    ] = None,
    reserve_gib: ReserveGib = "1",
    max_batch: Annotated[bool, typer.Option("--max-batch", help="Find the largest batch that fits.")] = False,
    max_seq: Annotated[bool, typer.Option("--max-seq", help="Find the largest length that fits.")] = False,
    ranks: Ranks = None,
    on: On = None,
    at_scale: Annotated[
        bool, typer.Option("--at-scale", help="Plan the rows on the model of the suite's `at_scale` instead.")
    ] = False,
    form: Annotated[Format, typer.Option("--format", help="Format of what is printed.")] = "text",
    out: output.Out = None,
) -> None:
    """Predict memory and speed of a suite's runs without running them or reading any weights."""
    from harness import forecast
    from harness.tables.plan import tables
    from harness.tables.plan.plan import as_json

    sizes = _sizes(device_gib or (), reserve_gib)
    searched = [s for s, on in zip(forecast.SETTINGS, (max_batch, max_seq), strict=True) if on]
    if searched and not device_gib:
        option = "--max-batch" if max_batch else "--max-seq"
        raise UserError(f"{option} needs the size of a device: add for example --device-gib 24")
    to = output.destinations(out, get_args(Format))
    profiles = _profiles(on or ())
    chosen = selection.load()
    selection.check_files()
    if at_scale:
        chosen = _at_scale(chosen, replace(selection, model=None, data=None).overrides())
    made = plan_suite(chosen, device, results, sizes, searched, ranks, profiles, notify=show.say)
    show.report(tables.build(made), to, chosen.name, form, {"json": lambda _: as_json(made)})


def _profiles(given: Sequence[str]) -> list[DeviceProfile]:
    """Return the profiles of devices; UserError for two of one title, which tables could not tell apart."""
    from harness.devices import profile

    found: dict[str, tuple[str, DeviceProfile]] = {}
    for name in dict.fromkeys(given):
        made = profile(name)
        if made.title in found:
            other = found[made.title][0]
            raise UserError(f"--on {name}: it has the title of --on {other}, {made.title!r}; change one")
        found[made.title] = name, made
    return [made for _, made in found.values()]


def forecast_at_scale(chosen: Suite) -> AtScale | None:
    """Return forecasts of a suite's rows on the large model of its section `at_scale`.

    None without one, and where an option gave another model: then what is measured of that is shown.
    """
    from harness.devices import profile
    from harness.tables.plan.plan import as_dict
    from harness.tables.report.at_scale import DEVICE, of_plan

    scaled = None if chosen.other_model else chosen.at_scale()
    if scaled is None:
        return None
    try:
        show.say(f"forecasting {counted(len(scaled.runs), 'row')} at scale; what has not changed is known")
        made = plan_suite(scaled, "cpu", profiles=[profile(DEVICE)], notify=show.say)
    except UserError as error:  # what was measured is shown without it
        show.say(f"no forecast at scale: {error}")
        return None
    return of_plan(as_dict(made), scaled)


def _at_scale(chosen: Suite, overrides: Sequence[Override]) -> Suite:
    scaled = chosen.at_scale(overrides)
    if scaled is None:
        raise UserError(
            f"--at-scale: suite {chosen.name!r} has no section `at_scale`; add one, or leave it out"
        )
    return scaled


def plan_suite(
    chosen: Suite,
    device: str = "auto",
    results: Path = Path("runs"),
    sizes: tuple[Sequence[float], float] = ((), 0.0),
    searched: Sequence[Setting] = (),
    ranks: str | None = None,
    profiles: Sequence[DeviceProfile] = (),
    notify: Callable[[str], None] = print,
) -> Plan:
    """Plan a suite: forecast each config, from the cache or by simulation, and see what has run already.

    `sizes` are devices and reserve in GiB, `searched` the settings whose largest value to find on each
    device, `ranks` the text of `--ranks`, `profiles` the devices to forecast speed on. `notify` gets a line
    per simulation. UserError for wrong options.
    """
    from harness.engine.forecast import client
    from harness.engine.forecast.cache import ForecastRequest
    from harness.engine.process import child
    from harness.forecast import UNSEEN
    from harness.tables.plan.plan import Plan

    source, words = (None, None) if ranks is None else client.read_ranks(ranks)
    resolved, finished, estimates = _done(chosen, device, results)
    configs = _by_config(resolved.runs)
    firsts = [runs[0] for runs in configs.values()]
    searches = _searches(firsts, searched, *sizes)
    forecaster = client.ForecastClient(cache_folder(), child.WORKER, source, notify)
    answers = iter(
        forecaster.ask([*map(ForecastRequest, firsts), *searches.values()], partial(_notify, notify))
    )
    reports = dict(zip(configs, answers, strict=False))
    largest = dict(zip(searches, answers, strict=True))
    rows, names = [], chosen.names(resolved.runs)
    for key, runs in configs.items():
        own = {(setting, gib): answer for (of, setting, gib), answer in largest.items() if of == key[1]}
        rows.append(_row(names[key], runs, finished, estimates, reports[key], own, profiles))
    return Plan(
        suite=chosen.name,
        question=chosen.question,
        machine=resolved.machine,
        rows=tuple(rows),
        device_gib=tuple(sizes[0]),
        reserve_gib=sizes[1],
        unseen=UNSEEN,
        ranks=words,
        devices=tuple(profiles),
        baseline=chosen.baseline,
        setting=_setting(firsts),
    )


def _setting(runs: Sequence[Run]) -> str:
    """Return what is planned: models, dtypes, and sequences with their lengths."""
    trained = [run for run in runs if run.train.stage != "compress"]
    sizes = (f"{run.train.batch} \N{MULTIPLICATION SIGN} {run.data.seq_len:,}" for run in trained)
    models = dict.fromkeys(_model(run) for run in runs)
    told = [", ".join(models), ", ".join(dict.fromkeys(run.train.dtype for run in runs))]
    return "; ".join(told + ([f"{', '.join(dict.fromkeys(sizes))} tokens at a time"] if trained else []))


def _model(run: Run) -> str:
    """Return the name of a run's model: of its shape, its folder, its id, or that it is embedded."""
    held = dict(run.model)
    named = next(
        (str(held[key]) for key in ("name", "path", "id") if key in held), f"{run.model.source} model"
    )
    others = (key for key in held if key not in ("source", "name", "path", "id", "tokenizer"))
    beside = [f"{key} {held[key]}" for key in others if held[key] is not None]
    return f"{named} ({', '.join(beside)})" if beside else named


def _done(chosen: Suite, device: str, results: Path) -> tuple[Resolved, set[str], Estimates]:
    """Return the completed runs, the ids of those that need not run again, and estimates of times."""
    from harness.engine.sweep import resolution
    from harness.engine.sweep.earlier import survey
    from harness.engine.sweep.estimates import Estimates

    # Hashes tell which runs are finished; where nothing has run, no weights need be read.
    cache = cache_folder() if any(results.glob(f"*/{chosen.name}/*.json")) else None
    resolved = resolution.resolve(chosen.runs, device, text=False, cache=cache)
    estimates = Estimates()
    found = survey(resolved.runs, results / resolved.machine / chosen.name, estimates, resolved.inputs)
    stale = outdated(found, resolved.inputs)
    done = {run_id for run_id, record in found.items() if record.finished and run_id not in stale}
    return resolved, done, estimates


def _by_config(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Group the different runs by label and config, in order; two labels may be one config at scale."""
    configs: dict[tuple[str, str], list[Run]] = {}
    for run in {(run.name, run.run_id): run for run in runs}.values():
        configs.setdefault((run.name, run.config_id), []).append(run)
    return configs


def _searches(
    runs: Sequence[Run], searched: Sequence[Setting], devices: Sequence[float], reserve: float
) -> dict[tuple[str, Setting, float], ForecastRequest]:
    """Return the requests for largest settings by config id, setting and GiB of the device."""
    from harness.engine.forecast.cache import ForecastRequest
    from harness.tables.plan.plan import GIB

    return {
        (run.config_id, setting, gib): ForecastRequest(run, setting, int((gib - reserve) * GIB))
        for run, setting, gib in itertools.product(runs, searched, devices)
        if run.train.stage != "compress"  # no batch, no length
    }


def _notify(notify: Callable[[str], None], request: ForecastRequest, done: int, total: int) -> None:
    searched = "" if request.setting is None else f", largest {request.setting}"
    notify(f"[{done}/{total}] {request.run.name}{searched}: simulated")


def _row(
    label: str,
    runs: Sequence[Run],
    finished: set[str],
    estimates: Estimates,
    answer: ForecastAnswer,
    largest: Mapping[tuple[Setting, float], ForecastAnswer],
    profiles: Sequence[DeviceProfile],
) -> Row:
    """Build the row of one config; where there is no answer it holds the reason."""
    from harness.tables.plan.plan import Row

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
        tokens_per_step=_tokens(runs[0]),
        speed=_speed(runs[0], answer.report, profiles) if answer.report else {},
        scoring_speed=_scoring_speed(runs[0], answer.report, profiles) if answer.report else {},
    )


def _tokens(run: Run) -> int:
    """Return the tokens of an update, padding included."""
    return run.train.batch * run.train.grad_accum * run.data.seq_len


def _speed(
    run: Run, report: MemoryReport, profiles: Sequence[DeviceProfile]
) -> dict[str, SpeedForecast | str]:
    """Return the forecast of speed by device, or the reason for having none; empty where nothing trains."""
    from harness.speed_forecast import forecast_speed

    used = profiles if report.work else ()
    return _by_device(used, lambda each: forecast_speed(report, each, _tokens(run), run.train.dtype))


def _scoring_speed(
    run: Run, report: MemoryReport, profiles: Sequence[DeviceProfile]
) -> dict[str, SpeedForecast | str]:
    """Return the same of scoring text; empty where the run trains."""
    from harness.speed_forecast import forecast_scoring

    scoring = report.scoring
    if scoring is None:
        return {}
    return _by_device(profiles, lambda each: forecast_scoring(scoring, each, run.train.dtype))


def _by_device(
    profiles: Sequence[DeviceProfile], forecast: Callable[[DeviceProfile], SpeedForecast]
) -> dict[str, SpeedForecast | str]:
    found: dict[str, SpeedForecast | str] = {}
    for device in profiles:
        try:
            found[device.title] = forecast(device)
        except UnsupportedError as error:
            found[device.title] = str(error)
    return found


def _sizes(devices: Sequence[str], reserve: str) -> tuple[tuple[float, ...], float]:
    """Return device sizes and the reserve on each, in GiB; UserError where nothing would be left."""
    given = tuple(dict.fromkeys(_gib(text, "--device-gib") for text in devices))
    reserved = _gib(reserve, "--reserve-gib", zero=True)
    if given and reserved >= min(given):
        raise UserError(
            f"--reserve-gib {reserved:g} leaves nothing of --device-gib {min(given):g}; reserve less"
        )
    return given, reserved


def _gib(text: str, option: str, zero: bool = False) -> float:
    """Read a size in GiB, 0 only where `zero` allows it; UserError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (0 < value <= LARGEST_GIB or (zero and value == 0)):
        allowed = "from 0" if zero else "above 0"
        raise UserError(f"{option} {text}: give GiB as a number {allowed}, at most {LARGEST_GIB:g}")
    return value
