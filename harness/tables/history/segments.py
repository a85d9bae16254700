"""Join runs whose values are comparable into segments of one row and quantity; find where they break."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.record import Record
from harness.tables.aggregate import Row, agree, grouped
from harness.tables.compare.comparison import Difference
from harness.tables.compare.pairing import differences, standing
from harness.tables.format import plain
from harness.tables.history.commits import started
from harness.tables.history.loading import Found
from harness.tables.history.quantities import Scored, conditions, measured, measurement, scored_text, seeded
from harness.tables.history.series import Kind, Point, Quantity

NAME_LENGTH = 80
#: What the conditions of a value follow from: a number for those of its run, the kind, the scored text.
Key = tuple[int, Kind, Scored]


@dataclass(frozen=True)
class Run:
    """A record at its place among the commits, with the value of one quantity."""

    found: Found
    order: int
    value: float

    @property
    def record(self) -> Record:
        """The record."""
        return self.found.record

    @property
    def point(self) -> Point:
        """The point of a series that stands for it."""
        return Point(self.order, self.value, *self.found.names)


@dataclass(frozen=True)
class Stand:
    """The conditions of a run for one kind of quantity: for all runs, and for those of its seed."""

    config_id: str
    seed: int
    known: dict[str, str]
    by_seed: dict[str, str]

    @classmethod
    def of(cls, record: Record, kind: Kind, scored: Scored) -> Stand:
        """Return the conditions of a value that was measured on a text or documents."""
        known, by_seed = conditions(record, kind)
        return cls(record.config_id, record.seed, known | scored_text(scored), by_seed)


@dataclass
class Segment:
    """Runs whose values are comparable, and the conditions known to be equal among them.

    `lost` are the runs whose value can be neither drawn nor tested; `joined` the conditions of its runs.
    """

    row: str
    quantity: Quantity
    config_id: str
    known: dict[str, str] = field(default_factory=dict)
    by_seed: dict[int, dict[str, str]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)
    joined: set[Key] = field(default_factory=set)

    def takes(self, key: Key, stand: Stand) -> bool:
        """Return whether a run of these conditions belongs here; one that is unknown contradicts nothing."""
        if key in self.joined:
            return True
        same = self.config_id == stand.config_id and agree(stand.known, self.known)
        return same and agree(stand.by_seed, self.by_seed.get(stand.seed, {}))

    def add(self, run: Run, key: Key, stand: Stand) -> None:
        """Add a run and its conditions."""
        if key not in self.joined:
            self.joined.add(key)
            self.known |= stand.known
            self.by_seed.setdefault(stand.seed, {}).update(stand.by_seed)
        (self.runs if self.quantity.usable(run.value) else self.lost).append(run)


def names(placed: Sequence[tuple[Found, int]]) -> dict[str, str]:
    """Name each config: its label, with the settings that differ among configs of the label at a commit.

    So the rates of a grid are rows of their own, while a row whose config changed from one commit to the next
    keeps its name, and its series breaks. Configs that differ in a method's options alone are told apart by
    the beginning of their ids.
    """
    records = {each.record.config_id: each.record for each, _ in placed}
    together: dict[tuple[str, int], set[str]] = {}
    for each, order in placed:
        together.setdefault((each.record.label, order), set()).add(each.record.config_id)
    settings = {config: _settings(record) for config, record in records.items()}
    varied: dict[str, set[str]] = {}
    for (label, _), configs in together.items():
        varied.setdefault(label, set()).update(_varying([settings[config] for config in configs]))
    taken: dict[str, str] = {}
    for config, record in records.items():
        own, keys = settings[config], sorted(varied.get(record.label, ()))
        behind = [f"{key}={own[key]}" for key in keys if key in own]
        taken[config] = ", ".join((plain(record.label, NAME_LENGTH), *behind))
    repeated = [Counter(taken[config] for config in configs) for configs in together.values()]
    clashing = {name for counts in repeated for name, count in counts.items() if count > 1}
    return {
        config: f"{name} [{config[:6]}]" if name in clashing else plain(name, 2 * NAME_LENGTH)
        for config, name in taken.items()
    }


def _varying(settings: Sequence[Mapping[str, str]]) -> set[str]:
    keys = {key for each in settings for key in each}
    return {key for key in keys if len({each.get(key) for each in settings}) > 1}


def _settings(record: Record) -> dict[str, str]:
    try:
        return Row(record.config_id, {}, [record]).settings
    except (RecursionError, AttributeError):  # no config of ours is nested a thousand times
        return {}


def join(placed: Iterable[tuple[Found, int]], rows: Mapping[str, str]) -> list[Segment]:
    """Return all segments in the order of their first runs; one may consist of lost values alone."""
    segments: dict[tuple[str, Quantity], list[Segment]] = {}
    numbers: dict[Hashable, int] = {}
    stands: dict[Key, Stand] = {}
    for each, order in sorted(placed, key=lambda pair: (pair[1], _turn(pair[0].record))):
        record = each.record
        row, common = rows[record.config_id], (record.config_id, record.seed, standing(record))
        number = numbers.setdefault(common, len(numbers))  # is hashed many times, the other once
        for quantity, (value, scored) in measured(record).items():
            key = number, quantity.kind, scored
            if (stand := stands.get(key)) is None:
                stand = stands[key] = Stand.of(record, quantity.kind, scored)
            several = segments.setdefault((row, quantity), [])
            segment = next((one for one in reversed(several) if one.takes(key, stand)), None)
            if segment is None:
                segment = Segment(row, quantity, record.config_id)
                several.append(segment)
            segment.add(Run(each, order, value), key, stand)
    return [segment for several in segments.values() for segment in several]


def _turn(record: Record) -> tuple[float, str, int, int]:
    """Order runs of a commit by their start."""
    when = started(record)
    return when.timestamp() if when else 0.0, record.config_id, record.seed, record.repeat


def fields(before: Segment, after: Segment) -> tuple[Difference, ...]:
    """Return the fields in which two segments of a row and quantity differ."""
    new = after.runs[0].record
    same = [run for run in before.runs if run.record.seed == new.seed]
    old = (same or before.runs)[-1].record
    skipped = ("seed",) if same else seeded(new)
    found = differences(old, new, measurement(after.quantity.kind))
    kept = [each for each in found if each.field not in skipped]
    text, later = (scored_text(measured(record)[after.quantity][1]) for record in (old, new))
    kept += [
        Difference(key, plain(text[key], 60), plain(value, 60))
        for key, value in later.items()
        if text.get(key, value) != value
    ]
    return tuple(kept)


def breaks(segments: Iterable[Segment]) -> Iterator[tuple[Segment, Segment, bool]]:
    """Yield (the segment before, a segment, whether the one before goes on beside it).

    Of the earlier segments of its row and quantity, the one before is the one that ended last.
    """
    for several in grouped(segments, lambda segment: (segment.row, segment.quantity)).values():
        several.sort(key=lambda segment: segment.runs[0].order)
        for place, segment in enumerate(several):
            start = segment.runs[0].order
            ended = [one for one in several[:place] if one.runs[-1].order < start]
            begun = [one for one in several[:place] if one.runs[0].order < start]
            if earlier := ended or begun or several[:place]:
                yield max(earlier, key=lambda one: one.runs[-1].order), segment, not ended
