"""Which values a line may join: segments of one row and quantity, and where and why they break off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.record import Record
from harness.tables.aggregate import Row, agree
from harness.tables.compare.comparison import Difference
from harness.tables.compare.pairing import differences
from harness.tables.format import plain
from harness.tables.history.commits import started
from harness.tables.history.loading import Found
from harness.tables.history.quantities import BY_SEED, conditions, measurement, scored_text, values
from harness.tables.history.series import Kind, Point, Quantity

NAME_LENGTH = 80


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
        """What a series keeps of it."""
        item = self.record
        when = plain(item.started_at, 40) if item.started_at else None
        return Point(
            self.order, self.value, item.seed, item.repeat, item.run_id, when, plain(self.found.source)
        )


@dataclass
class Segment:
    """Runs whose values belong together, and what is known to be equal among them.

    `lost` are those whose value can be neither drawn nor tested.
    """

    row: str
    quantity: Quantity
    config_id: str
    known: dict[str, str] = field(default_factory=dict)
    by_seed: dict[int, dict[str, str]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)

    def takes(self, record: Record, known: Mapping[str, str], by_seed: Mapping[str, str]) -> bool:
        """Whether a run belongs here: what is not known contradicts nothing."""
        same = self.config_id == record.config_id and agree(known, self.known)
        return same and agree(by_seed, self.by_seed.get(record.seed, {}))

    def add(self, run: Run, known: Mapping[str, str], by_seed: Mapping[str, str]) -> None:
        """Take a run."""
        self.known |= known
        self.by_seed.setdefault(run.record.seed, {}).update(by_seed)
        (self.runs if self.quantity.usable(run.value) else self.lost).append(run)


def names(found: Sequence[Found], orders: Sequence[int]) -> dict[str, str]:
    """A name for each config: its label, with the settings that tell it from others of the label at a commit.

    So the rates of a grid are rows of their own, while a row whose config moved from one commit to the next
    keeps its name, and its series breaks.
    """
    records = {each.record.config_id: each.record for each in found}
    together: dict[tuple[str, int], set[str]] = {}
    for each, order in zip(found, orders, strict=True):
        together.setdefault((each.record.label, order), set()).add(each.record.config_id)
    varied: dict[str, set[str]] = {}
    for (label, _), configs in together.items():
        if len(configs) > 1:
            varied.setdefault(label, set()).update(_varying([records[config] for config in configs]))
            varied[label].add("")
    taken: dict[tuple[str, str], str] = {}
    for config, record in records.items():
        label = plain(record.label, NAME_LENGTH)
        keys = sorted(varied.get(record.label, set()) - {""})
        settings = _settings(record)
        behind = [f"{key}={settings[key]}" for key in keys if key in settings]
        taken[label, config] = ", ".join((label, *behind))
    clashing = {taken[plain(records[c].label, NAME_LENGTH), c] for c in _clashing(together, records, taken)}
    return {
        config: f"{name} [{config[:6]}]" if name in clashing else plain(name, 2 * NAME_LENGTH)
        for (_, config), name in taken.items()
    }


def _clashing(
    together: Mapping[tuple[str, int], set[str]],
    records: Mapping[str, Record],
    taken: Mapping[tuple[str, str], str],
) -> Iterator[str]:
    """Configs that have one name at one commit, as those that differ in a method's options alone."""
    for configs in together.values():
        seen: set[str] = set()
        for config in sorted(configs):
            name = taken[plain(records[config].label, NAME_LENGTH), config]
            if name in seen:
                yield config
            seen.add(name)


def _varying(records: Sequence[Record]) -> set[str]:
    settings = [_settings(record) for record in records]
    keys = {key for each in settings for key in each}
    return {key for key in keys if len({each.get(key) for each in settings}) > 1}


def _settings(record: Record) -> dict[str, str]:
    try:
        return Row(record.config_id, {}, [record]).settings
    except (RecursionError, AttributeError):  # no config of ours is nested a thousand times
        return {}


def join(found: Sequence[Found], orders: Sequence[int], rows: Mapping[str, str]) -> list[Segment]:
    """All segments, in the order of their first runs; one may have nothing but values that are lost."""
    segments: dict[tuple[str, Quantity], list[Segment]] = {}
    known: dict[tuple[int, Kind], tuple[dict[str, str], dict[str, str]]] = {}
    pairs = sorted(zip(orders, found, strict=True), key=lambda pair: (pair[0], _turn(pair[1].record)))
    for order, each in pairs:
        for quantity, value in values(each.record).items():
            key = id(each), quantity.kind
            if key not in known:
                known[key] = conditions(each.record, quantity)
            here, by_seed = known[key]
            here = here | scored_text(each.record, quantity)
            open_ones = segments.setdefault((rows[each.record.config_id], quantity), [])
            segment = next(
                (one for one in reversed(open_ones) if one.takes(each.record, here, by_seed)), None
            )
            if segment is None:
                segment = Segment(rows[each.record.config_id], quantity, each.record.config_id)
                open_ones.append(segment)
            segment.add(Run(each, order, value), here, by_seed)
    return [segment for several in segments.values() for segment in several]


def _turn(record: Record) -> tuple[float, str, int, int]:
    """Runs of a commit in the order of their start."""
    when = started(record)
    return when.timestamp() if when else 0.0, record.config_id, record.seed, record.repeat


def fields(before: Segment, after: Segment) -> tuple[Difference, ...]:
    """In what two segments of a row and quantity differ."""
    new = after.runs[0].record
    same = [run for run in before.runs if run.record.seed == new.seed]
    old = (same or before.runs)[-1].record
    skipped = ("seed",) if same else BY_SEED
    found = differences(old, new, measurement(after.quantity.kind))
    kept = [each for each in found if each.field not in skipped]
    texts = scored_text(old, after.quantity), scored_text(new, after.quantity)
    kept += [
        Difference(key, plain(texts[0][key], 60), plain(value, 60))
        for key, value in texts[1].items()
        if key in texts[0] and texts[0][key] != value
    ]
    return tuple(kept)


def breaks(segments: Iterable[Segment]) -> Iterator[tuple[Segment, Segment, bool]]:
    """Each segment with the one that it continues, and whether that one goes on beside it.

    Of the earlier segments of its row and quantity that is the one that ended last.
    """
    grouped: dict[tuple[str, Quantity], list[Segment]] = {}
    for segment in segments:
        grouped.setdefault((segment.row, segment.quantity), []).append(segment)
    for several in grouped.values():
        several.sort(key=lambda segment: segment.runs[0].order)
        for place, segment in enumerate(several):
            start = segment.runs[0].order
            ended = [one for one in several[:place] if one.runs[-1].order < start]
            earlier = (
                ended or [one for one in several[:place] if one.runs[0].order < start] or several[:place]
            )
            if earlier:
                yield max(earlier, key=lambda one: one.runs[-1].order), segment, not ended
