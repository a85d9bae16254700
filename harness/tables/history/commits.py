"""The axis of a history: the commit of each record, and the order of commits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from harness.record import Record
from harness.tables.format import plain
from harness.tables.history import git_log
from harness.tables.history.loading import Found
from harness.tables.history.series import Commit

SHORT = 7
SUBJECT_LENGTH = 80
#: A commit and the hash of its changed files, or a day.
Key = tuple[str, str]


@dataclass
class _Place:
    """A commit before its order is known."""

    key: Key
    starts: list[datetime] = field(default_factory=list)

    @property
    def earliest(self) -> datetime:
        """The first start of a run; commits without one come first."""
        return min(self.starts, default=datetime.min.replace(tzinfo=UTC))


def started(record: Record) -> datetime | None:
    """Return when a run started, in UTC; None where its record has no valid ISO 8601 time."""
    try:
        when = datetime.fromisoformat(record.started_at or "")
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def place(found: Sequence[Found], repositories: Iterable[Path]) -> tuple[tuple[Commit, ...], list[int]]:
    """Return all commits, oldest first, and the place of each record's commit.

    The first repository that knows any of the commits orders those that it knows; the others are placed by
    the earliest start of their runs.
    """
    keys = [_key(each.record) for each in found]
    places: dict[Key, _Place] = {}
    for each, key in zip(found, keys, strict=True):
        when = started(each.record)
        places.setdefault(key, _Place(key)).starts += [when] if when else []
    known = _known({sha for sha, _ in keys if sha}, repositories)
    ordered = _ordered(list(places.values()), known)
    names = _names(ordered)
    commits = tuple(
        _commit(order, each, names[order], known.get(each.key[0])) for order, each in enumerate(ordered)
    )
    orders = {each.key: order for order, each in enumerate(ordered)}
    return commits, [orders[key] for key in keys]


def _key(record: Record) -> Key:
    here = record.environment
    if here and here.git_sha:
        return here.git_sha, here.git_dirty_sha256 or ""
    when = started(record)
    return "", when.date().isoformat() if when else "unknown day"


def _known(shas: set[str], repositories: Iterable[Path]) -> dict[str, tuple[int, str]]:
    for repository in dict.fromkeys(repositories):
        found = git_log.order(repository) if shas else {}
        known = {sha: found[sha] for sha in shas if sha in found}
        if known:
            return known
    return {}


def _ordered(places: list[_Place], known: dict[str, tuple[int, str]]) -> list[_Place]:
    """Order known commits as the repository does, each unknown one before the first that started later."""
    inside = [each for each in places if each.key[0] in known]
    inside.sort(key=lambda each: (known[each.key[0]][0], bool(each.key[1]), each.earliest, each.key))
    outside = [each for each in places if each.key[0] not in known]
    outside.sort(key=lambda each: (each.earliest, each.key))
    ordered: list[_Place] = []
    for each in inside:
        while outside and outside[0].earliest < each.earliest:
            ordered.append(outside.pop(0))
        ordered.append(each)
    return ordered + outside


def _names(ordered: Sequence[_Place]) -> list[str]:
    """Name commits: `abc1234`, `abc1234+` with changed files (and a hash if several), `no commit <day>`."""
    names = []
    for each in ordered:
        sha, other = each.key
        names.append(plain(sha, None)[:SHORT] + ("+" if other else "") if sha else f"no commit {other}")
    repeated = Counter(names)
    pairs = zip(names, ordered, strict=True)
    return [
        name + plain(each.key[1])[:4] if repeated[name] > 1 and each.key[0] else name for name, each in pairs
    ]


def _commit(order: int, each: _Place, name: str, known: tuple[int, str] | None) -> Commit:
    sha, other = each.key
    found = Commit(order, name, plain(sha) or None, dirty=bool(sha and other))
    when = each.earliest.isoformat() if each.starts else None
    subject = plain(known[1], SUBJECT_LENGTH) if known else ""
    return replace(found, when=when, subject=subject, known=known is not None)
