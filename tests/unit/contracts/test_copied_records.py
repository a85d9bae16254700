"""A copy of a record beside it, or in the folder of another suite, is never shown or averaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import load_records, record_index
from harness.errors import UserError
from harness.tables import records
from harness.tables.compare import pairing
from harness.tables.history import loading
from harness.tables.papers import lookup
from tests.support.gate_records import made, put
from tests.support.history_records import Repository

RUN, OTHER = made().run_id, made(seed=999).run_id


def of_papers(folder: Path) -> set[str]:
    """The labels that the tables of papers read."""
    return {row.label for row in lookup.Sources(folder, folder, (folder,))._of_suite("demo")}


LABELS: dict[str, Callable[[Path], set[str]]] = {
    "report": lambda folder: {item.label for item in records.load(folder / "machine" / "demo")[0]},
    "gate": lambda folder: {item.record.label for item in pairing.load(folder).records},
    "history": lambda folder: {item.record.label for item in loading.collect([folder], "demo").found},
    "papers": of_papers,
    "load_records": lambda folder: set(load_records(folder)["label"]),
}


def edited(source: Path, target: Path, **values: str) -> Path:
    """Copy a record and replace values that its id does not follow from."""
    content = {**json.loads(source.read_text()), "label": "edited", **values}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content))
    return target


@pytest.mark.filterwarnings("ignore:.*left out. a copy of run")
@pytest.mark.parametrize("name", [f"{RUN}.bak.json", f"{RUN}.old.json", f"{OTHER}.json", "a.json"])
@pytest.mark.parametrize("reader", LABELS)
def test_a_copy_of_a_record_does_not_take_its_place(
    reader: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    place = put(tmp_path / "runs", made())
    edited(place, place.with_name(name), started_at="2026-11-22T10:00:00+00:00")
    assert LABELS[reader](tmp_path / "runs") == {"row"}


def test_a_copy_is_skipped_with_what_it_is_a_copy_of_also_from_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record_index, "GRANULARITY_NS", 0)
    place = put(tmp_path, made())
    for seed in range(1, record_index.LEAST):
        put(tmp_path, made(seed=seed))
    copy = edited(place, place.with_name(f"{RUN}.old.json"))
    says = f"a copy of run {RUN}: named after its run it would be {RUN}.json"
    for _ in range(2):
        found, notes = records.load(place.parent)
        assert [item.label for item in found] == ["row"] * record_index.LEAST
        assert notes[0] == f"Skipped {copy.name}: {says}"
    assert pairing.load(tmp_path).skipped == (f"machine/demo/{copy.name}: {says}",)
    assert loading.collect([tmp_path], "demo").skipped == [f"{copy}: {says}"]
    with pytest.raises(UserError, match=f"{copy.name}: {says}; move it away and run again"):
        record_index.read_all(place.parent)


def test_a_file_that_is_given_itself_may_have_any_name(tmp_path: Path) -> None:
    copy = edited(put(tmp_path, made()), tmp_path / "base.json")
    assert [item.record.label for item in pairing.load(copy).records] == ["edited"]
    assert list(load_records(copy)["label"]) == ["edited"]
    assert records.read(copy).label == "edited"


@pytest.mark.parametrize("reader", ["report", "papers"])
def test_a_record_of_another_suite_is_not_of_the_suite_of_its_folder(reader: str, tmp_path: Path) -> None:
    place = put(tmp_path, made())
    edited(place, place.with_name(f"{OTHER}.json"))
    other = put(tmp_path / "other", made("edited", seed=1, suite="other"))
    shutil.copy(other, place.parent)
    assert LABELS[reader](tmp_path) == {"row"}
    notes = records.load(place.parent)[1]
    assert f"Skipped {other.name}: a record of suite 'other' in a folder of suite 'demo'" in notes


def test_a_committed_copy_does_not_take_the_place_of_the_record(tmp_path: Path) -> None:
    repository = Repository.at(tmp_path)
    repository.commit()
    place = repository.record()
    same = place.with_name("a.json")
    shutil.copy(place, same)
    edited(place, place.with_name(f"{RUN}.old.json"), started_at="2026-11-22T10:00:00+00:00")
    sha = repository.commit()
    for path in place.parent.glob("*.json"):
        path.unlink()
    found = loading.collect([repository.results], "demo", committed=True)
    assert [(item.record.label, item.source) for item in found.found] == [
        ("row", f"{sha[:7]}:{place.relative_to(repository.results).as_posix()}")
    ]
    assert len(found.skipped) == 2
