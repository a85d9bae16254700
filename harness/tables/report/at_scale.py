"""Memory and speed of a suite's rows on the large model of its section `at_scale`, by forecast alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.suite import Suite
from harness.tables import format
from harness.tables.aggregate import Row, flat
from harness.tables.format import DASH, Column

GIB = 1 << 30
#: The device whose speed is forecast, by the name of its profile.
DEVICE = "h200"
#: GiB that CUDA has on devices sold with so many GB (RTX 4090, RTX A6000, A100), and what is kept free there.
USABLE_GIB, RESERVE_GIB = {24: 23.6, 48: 47.5, 80: 79.1}, 1.0


@dataclass(frozen=True)
class Forecast:
    """Peak bytes of training and tokens per second of a row; None where nothing trains or is known.

    Where no row of the suite trains, both are those of scoring text.
    """

    peak_bytes: int | None = None
    tokens_per_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class AtScale:
    """The forecasts of a suite by name, of a `model` in a `setting`, the speed on a `device`.

    Names are labels; where several rows have one, `several` has their names by label, each with the settings
    that tell it from the others. `scoring` tells that no row trains and all values are those of scoring text.
    """

    model: str
    setting: str
    device: str
    rows: Mapping[str, Forecast]
    baseline: str | None = None
    several: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    scoring: bool = False

    def of(self, row: Row | None) -> Forecast:
        """Return the forecast of a row, or one without values where there is none or it cannot be told."""
        if row is None:
            return self.rows.get(self.baseline or "", Forecast())
        names = self.several.get(row.label)
        if names is None:
            return self.rows.get(row.label, Forecast())
        alike = [
            self.rows[name]
            for name, settings in names.items()
            if all(row.settings.get(key) == value for key, value in settings.items())
        ]
        return alike[0] if alike and alike.count(alike[0]) == len(alike) else Forecast()

    def columns(self, rows: Sequence[Row], bases: Sequence[Row | None]) -> Iterator[Column]:
        """Yield a column of each value for rows in this order, each beside its baseline."""
        found, base = [self.of(row) for row in rows], [self.of(row) for row in bases]
        peaks, speeds = ([each.peak_bytes for each in found], [each.tokens_per_s for each in found])
        yield _column(f"{self.head} GiB", [peak and format.fixed(1)(peak / GIB) for peak in peaks])
        yield _column("ratio", _ratios(peaks, [each.peak_bytes for each in base]), spare=True)
        yield _column("fits", [peak and smallest(peak) for peak in peaks], joined=True)
        yield _column(f"{self.head} tokens/s", [speed and f"{speed:,.0f}" for speed in speeds])
        yield _column("ratio", _ratios(speeds, [each.tokens_per_s for each in base]), spare=True)

    @property
    def short(self) -> str:
        """Return the model as it is named in headings."""
        return self.model.rpartition("-")[2]

    @property
    def head(self) -> str:
        """Return the model as in the headings of its values, which say where they are not of training."""
        return f"{self.short} scoring" if self.scoring else self.short

    @property
    def work(self) -> str:
        """Return what the values are of, in words."""
        return "scoring text" if self.scoring else "training"

    @property
    def line_below(self) -> str:
        """Say in a line what the columns are, for where nothing else is said."""
        scored = "scoring text, " if self.scoring else ""
        return (
            f"{self.short}: forecast for {self.model}, {scored}{self.setting}, speed on {self.device}; "
            "not measured"
        )

    @property
    def caption(self) -> str:
        """Say what the columns are."""
        sold, usable = (" / ".join(map(str, sizes)) for sizes in (USABLE_GIB, USABLE_GIB.values()))
        passes = f"{self.work} (forward only, without gradients)" if self.scoring else self.work
        return (
            f"columns of {self.model}, forecast, not measured: peak of {passes} and speed on {self.device} "
            f"with {self.setting}, at rates that are partly assumed, those of decompositions above all "
            f"(lorebench plan --at-scale --on {DEVICE}); fits: GB of the smallest device of {sold} that has "
            f"{RESERVE_GIB:g} GiB to spare of the {usable} GiB that can be used"
        )

    def notes(self) -> list[str]:
        """Return why rows have no forecast."""
        reasons = {label: row.reason for label, row in self.rows.items() if row.reason}
        alike = [
            f"{label}: no forecast at scale: no setting tells the rows of this label apart; give each its own"
            for label, names in self.several.items()
            if len({tuple(sorted(settings.items())) for settings in names.values()}) < len(names)
        ]
        return [f"{label}: no forecast at scale: {reason}" for label, reason in reasons.items()] + alike

    def line(self, row: Row) -> dict[str, float | None]:
        """Return the values of a row for the CSV."""
        found = self.of(row)
        name = "at_scale_scoring" if self.scoring else "at_scale"
        return {f"{name}_peak_bytes": found.peak_bytes, f"{name}_tokens_per_s": found.tokens_per_s}


def of_plan(plan: Mapping[str, Any], suite: Suite) -> AtScale:
    """Return the forecasts in a plan, as its JSON file has them, of a suite's runs at scale.

    Those of training, or of scoring text where no run trains.
    """
    run, device = suite.runs[0], ""
    scoring = all(run.train.stage == "compress" for run in suite.runs)
    rows: dict[str, Forecast] = {}
    for row in plan["rows"]:
        made: Mapping[str, Any] = row.get("scoring", {}) if scoring else row
        speed: dict[str, Any] = next(iter(made.get("speed", ())), {})
        device = speed.get("device", device)
        rows[row["label"]] = Forecast(
            peak_bytes=made.get("peak_allocated_bytes") if scoring or row["steps"] is not None else None,
            tokens_per_s=speed.get("tokens_per_s"),
            reason=row["reason"] or speed.get("reason"),
        )
    setting = f"{run.train.batch} \N{MULTIPLICATION SIGN} {run.data.seq_len:,} tokens in {run.train.dtype}"
    model = str(getattr(run.model, "name", run.model.source))
    several = {
        label: {name: settings for name, settings in alike.items() if name in rows}
        for label, alike in told_apart(suite).items()
    }
    return AtScale(model, setting, device, rows, suite.baseline, several, scoring)


def told_apart(suite: Suite) -> dict[str, dict[str, dict[str, str]]]:
    """Return the names of the runs that share a label, each with those settings that not all of them have."""
    names, labels = suite.names(suite.runs), Counter(run.name for run in suite.runs)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for run in suite.runs:
        if labels[run.name] > 1:
            settings = dict(
                flat(run.model_dump(mode="json", include={key.split(".")[0] for key in suite.axes}))
            )
            found.setdefault(run.name, {})[names[run.name, run.config_id]] = settings
    for alike in found.values():
        common = set.intersection(*(set(settings.items()) for settings in alike.values()))
        for settings in alike.values():
            for key, _ in common:
                del settings[key]
    return found


def smallest(peak_bytes: int) -> str:
    """Return the GB of the smallest device that a peak fits on, with what is kept free there."""
    fitting = [sold for sold, usable in USABLE_GIB.items() if peak_bytes / GIB + RESERVE_GIB <= usable]
    return str(fitting[0]) if fitting else f"> {max(USABLE_GIB)}"


def _column(name: str, cells: Sequence[Any], joined: bool = False, spare: bool = False) -> Column:
    texts = tuple(DASH if cell is None else str(cell) for cell in cells)
    return Column(name, texts, joined=joined or spare, spare=spare)


def _ratios(values: Sequence[float | None], bases: Sequence[float | None]) -> list[str | None]:
    pairs = zip(values, bases, strict=True)
    return [format.ratio(value / base) if value and base else None for value, base in pairs]
