"""The axis of a history: the commit of each record, and the order of commits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
#: In place of the start of a commit whose runs have none: it comes first.
UNKNOWN = datetime.min.replace(tzinfo=UTC)


def started(record: Record) -> datetime | None:
    """Return when a run started, in UTC; None where its record has no valid ISO 8601 time."""
    try:
        when = datetime.fromisoformat(record.started_at or "")
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def place(
    found: Sequence[Found], repositories: Iterable[Path]
) -> tuple[tuple[Commit, ...], list[tuple[Found, int]]]:
    """Return all commits, oldest first, and each record with the place of its commit.

    The first repository that knows any of the commits orders those that it knows; the others are placed by
    the earliest start of their runs.
    """
    keys = [_key(each.record) for each in found]
    starts: dict[Key, list[datetime]] = {}
    for each, key in zip(found, keys, strict=True):
        when = started(each.record)
        starts.setdefault(key, []).extend([when] if when else [])
    earliest = {key: min(times, default=UNKNOWN) for key, times in starts.items()}
    known = _known({sha for sha, _ in keys if sha}, repositories)
    ordered = _ordered(earliest, known)
    commits = tuple(
        Commit(
            order,
            name,
            plain(sha) or None,
            dirty=bool(sha and other),
            when=earliest[sha, other].isoformat() if starts[sha, other] else None,
            subject=plain(known[sha][1], SUBJECT_LENGTH) if sha in known else "",
            known=sha in known,
        )
        for order, ((sha, other), name) in enumerate(zip(ordered, _names(ordered), strict=True))
    )
    orders = {key: order for order, key in enumerate(ordered)}
    return commits, [(each, orders[key]) for each, key in zip(found, keys, strict=True)]


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


def _ordered(earliest: Mapping[Key, datetime], known: Mapping[str, tuple[int, str]]) -> list[Key]:
    """Order known commits as the repository does, each unknown one before the first that started later."""
    inside = [key for key in earliest if key[0] in known]
    inside.sort(key=lambda key: (known[key[0]][0], bool(key[1]), earliest[key], key))
    outside = [key for key in earliest if key[0] not in known]
    outside.sort(key=lambda key: (earliest[key], key))
    ordered: list[Key] = []
    for key in inside:
        while outside and earliest[outside[0]] < earliest[key]:
            ordered.append(outside.pop(0))
        ordered.append(key)
    return ordered + outside


def _names(ordered: Sequence[Key]) -> list[str]:
    """Name commits: `abc1234`, `abc1234+` with changed files (and a hash if several), `no commit <day>`."""
    names = [
        plain(sha)[:SHORT] + ("+" if other else "") if sha else f"no commit {other}" for sha, other in ordered
    ]
    repeated = Counter(names)
    return [
        name + plain(other)[:4] if repeated[name] > 1 and sha else name
        for name, (sha, other) in zip(names, ordered, strict=True)
    ]
