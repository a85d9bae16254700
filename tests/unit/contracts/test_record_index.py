"""The index of records: it saves reading, and is never trusted over a file."""

from __future__ import annotations

import json
import marshal
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import many_records
from harness import config, record, record_index
from harness.config import Run
from harness.errors import UserError
from harness.tables import records
from harness.tables.aggregate import rows
from harness.tables.compare import pairing
from harness.tables.compare.judge import compare

MANY = record_index.LEAST + 8
#: Seconds since a change: far beyond the granularity of any file system.
LONG = 3600


def runs(seeds: int) -> list[Run]:
    return [Run(method="full", label="full", seed=seed) for seed in range(seeds)]


def age(folder: Path) -> None:
    """Make all files old enough for an index."""
    for path in folder.rglob("*.json"):
        then = path.stat().st_mtime - LONG
        os.utime(path, (then, then))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of records that an index may hold, with a cache of its own."""
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record_index, "GRANULARITY_NS", 0)
    list(many_records.write(tmp_path / "runs", "many", runs(MANY)))
    place = tmp_path / "runs" / "cpu-2t" / "many"
    age(place)
    return place


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are parsed from now on."""
    found: list[str] = []
    parse = record.parse

    def noted(text: str, where: str, limits: bool = False) -> record.Record:
        found.append(Path(where).name)
        return parse(text, where, limits)

    monkeypatch.setattr(record, "parse", noted)
    return found


def read(folder: Path) -> list[record.Record]:
    answers = list(record_index.read_each(sorted(folder.glob("*.json"))))
    assert not [error for _, _, error in answers if error]
    return [item for _, item, _ in answers if item]


def index(folder: Path) -> Path:
    (found,) = (folder.parents[2] / "cache" / "records").iterdir()
    return found


def test_a_second_call_parses_no_file_and_gives_equal_records(folder: Path, parsed: list[str]) -> None:
    first = read(folder)
    assert len(parsed) == MANY
    parsed.clear()
    again = read(folder)
    assert parsed == []
    plain = [record.read(path) for path in sorted(folder.glob("*.json"))]
    assert again == first == plain
    assert [item.model_dump_json() for item in again] == [item.model_dump_json() for item in plain]
    assert list(map(repr, again)) == list(map(repr, plain))
    assert record_index.read_all(folder) == plain


def test_equal_parts_of_records_from_an_index_are_one_object_and_stored_once(folder: Path) -> None:
    read(folder)
    first, second, *_ = read(folder)
    assert first.environment is second.environment
    assert first.parameters is second.parameters
    assert first.config["train"] is second.config["train"]
    assert first.time is not second.time
    assert index(folder).stat().st_size < sum(path.stat().st_size for path in folder.glob("*.json")) / 4
    first.label = "mine"
    assert second.label == "full"


@pytest.mark.parametrize("value", [True, 1, 1.0, -0.0, 0.0, "1", None, [], {}, [1], [True]])
def test_parts_that_python_takes_for_equal_stay_apart(folder: Path, value: object) -> None:
    for number, path in enumerate(sorted(folder.glob("*.json"))[:8]):
        content = json.loads(path.read_text())
        others = (value, True, 1, 1.0, 0, 0.0, False, -0.0)
        content["parameters"]["facts"] = {"one": {"same": others[number]}, "two": [others[number]]}
        path.write_text(json.dumps(content))
    age(folder)
    read(folder)
    plain = [record.read(path) for path in sorted(folder.glob("*.json"))]
    assert list(map(repr, read(folder))) == list(map(repr, plain))


def rewritten(path: Path) -> None:
    """The same size and time, another content: what a restored backup may have."""
    before = path.stat()
    path.write_text(path.read_text().replace('"label": "full"', '"label": "fulk"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_text(path.read_text().replace('"label": "full"', '"label": "fulk"'))
    other.replace(path)


def touched(path: Path) -> None:
    os.utime(path)


@pytest.mark.parametrize(("change", "label"), [(rewritten, "fulk"), (replaced, "fulk"), (touched, "full")])
def test_a_changed_file_is_read_again_alone(
    folder: Path, parsed: list[str], change: Callable[[Path], None], label: str
) -> None:
    read(folder)
    path = sorted(folder.glob("*.json"))[3]
    change(path)
    parsed.clear()
    assert read(folder)[3].label == label
    assert parsed == [path.name]


def test_a_file_that_changed_just_before_the_index_was_written_is_read_again(
    folder: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_index, "GRANULARITY_NS", LONG * 1_000_000_000 * 2)
    read(folder)
    parsed.clear()
    read(folder)
    assert len(parsed) == MANY


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def stranger(path: Path) -> None:
    path.write_bytes(b"\x80\x04K\x01." * 100)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [cut, flipped, emptied, stranger, folder_instead, Path.unlink])
def test_an_index_that_cannot_be_used_is_ignored(
    folder: Path, parsed: list[str], harm: Callable[[Path], Any]
) -> None:
    first = read(folder)
    harm(index(folder))
    parsed.clear()
    assert read(folder) == first
    assert len(parsed) == MANY


def test_an_index_of_another_version_or_folder_is_ignored_and_written_again(
    folder: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read(folder)
    mine = index(folder)
    monkeypatch.setattr(record_index, "_version", lambda: b"v" * 32)
    parsed.clear()
    read(folder)
    assert len(parsed) == MANY
    parsed.clear()
    read(folder)
    assert parsed == []
    other = folder.with_name("other")
    folder.rename(other)
    mine.rename(record_index._Folder(other).file)
    read(other)
    assert len(parsed) == MANY


def test_a_cache_that_cannot_be_written_costs_time_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, parsed: list[str]
) -> None:
    (folder.parents[2] / "file").write_text("no folder")
    monkeypatch.setenv("LOREBENCH_CACHE", str(folder.parents[2] / "file"))
    assert len(read(folder)) == len(read(folder)) == MANY
    assert len(parsed) == 2 * MANY


def test_what_is_no_valid_record_is_told_each_time_and_never_kept(folder: Path, parsed: list[str]) -> None:
    broken, impossible, *_ = sorted(folder.glob("*.json"))
    broken.write_text("{")
    content = json.loads(impossible.read_text())
    content["parameters"]["total"] = -1
    impossible.write_text(json.dumps(content))
    for _ in range(2):
        parsed.clear()
        found, notes = records.load(folder)
        assert len(found) == MANY - 2
        assert "not a record" in notes[0]
        assert "parameters.total: is not a count" in notes[1]
    assert parsed == [broken.name, impossible.name]


def test_a_sweep_reads_a_value_beyond_limits_and_a_foreign_record_ends_it(folder: Path) -> None:
    first, second, *_ = sorted(folder.glob("*.json"))
    content = json.loads(first.read_text())
    content["parameters"]["total"] = -1
    first.write_text(json.dumps(content))
    for _ in range(2):
        assert record_index.read_all(folder)[0].parameters.total == -1  # type: ignore[union-attr]
    second.rename(folder / "other-s0-r0.json")
    with pytest.raises(UserError, match=r"a copy of run .*; move it away"):
        record_index.read_all(folder)


def test_many_readers_at_once_agree(folder: Path) -> None:
    expected, found = read(folder), []
    readers = [threading.Thread(target=lambda: found.append(read(folder))) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [expected] * 4


# ------------------------------------------------------------------------------- work grows with the number
def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """How often a function of a module is called from now on."""
    calls = [0]
    function = getattr(module, name)

    def count(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        return function(*given, **named)

    monkeypatch.setattr(module, name, count)
    return calls


def many(count: int) -> list[record.Record]:
    """Records of one seed each, of as many configs."""
    content = many_records.template()
    found = []
    for number in range(count):
        own = {"config_id": f"{number:012x}", "run_id": f"{number:012x}-s0-r0", "seed": 0, "repeat": 0}
        found.append(record.Record.model_validate({**content, **own}))
    return found


def test_the_work_of_grouping_and_comparing_grows_with_the_number_of_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from harness.tables import aggregate
    from harness.tables.compare import judge

    agreed, differing, same = (
        counted(monkeypatch, aggregate, "agree"),
        counted(monkeypatch, judge, "differences"),
        counted(monkeypatch, record.Record, "__eq__"),
    )
    done = []
    for count in (50, 100):
        items = many(count)
        assert len(rows(items)) == count
        side = pairing.Side(tuple(pairing.Loaded(item, Path(item.run_id)) for item in items), ())
        other = pairing.Side(side.records[::-1], ())  # the order that took longest
        compare(side, other)
        done.append([calls[0] for calls in (agreed, differing, same)])
        for calls in (agreed, differing, same):
            calls[0] = 0
    assert all(after <= 2 * before + 4 for before, after in zip(*done, strict=True)), done


def test_an_id_is_hashed_once_and_a_copy_with_another_setting_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(method="full")
    texts = counted(monkeypatch, config, "_text")
    first = run.config_id
    copies = [run.model_copy(update={"seed": seed}) for seed in range(5)]
    assert {copy.config_id for copy in copies} == {first}
    assert [copy.run_id for copy in copies] == [f"{first}-s{seed}-r0" for seed in range(5)]
    assert texts == [5]  # each section once
    faster = run.model_copy(update={"train": run.train.model_copy(update={"lr": 0.5})})
    assert faster.config_id == Run(method="full", train={"lr": 0.5}).config_id != first
    assert run == Run(method="full") == Run.model_validate(run.model_dump())


def test_the_index_of_a_folder_that_is_gone_is_removed(folder: Path) -> None:
    read(folder)
    here = index(folder)
    gone, harmed = (here.with_name(f"{name}.index") for name in ("gone", "harmed"))
    head = len(record_index.MAGIC) + 64
    gone.write_bytes(b"x" * head + marshal.dumps(b"/no/such/folder"))
    harmed.write_bytes(b"x" * head)
    other = folder.with_name("other")
    folder.rename(other)
    folder.mkdir()
    record_index._remove_left_over.cache_clear()
    read(other)
    left = sorted(path.name for path in here.parent.iterdir())
    assert left == sorted([here.name, record_index._Folder(other).file.name])
