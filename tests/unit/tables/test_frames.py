"""Records as pandas frames: every value of the JSON under its dotted key, every update in a row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import load_records, series
from harness.errors import UserError
from harness.series import Series
from tests.support.reference import records_of

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = records_of("welore")
#: Records that hold their updates themselves.
OLDER = records_of("pretrain_small_lr")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of three records with scores and tasks."""
    return copied(REFERENCE, tmp_path / "runs")


def copied(records: Path, folder: Path) -> Path:
    """Copy three records of runs that trained, with their series, to a new folder."""
    folder.mkdir()
    trained = [path for path in sorted(records.glob("*.json")) if '"tokens_per_s"' in path.read_text()]
    for path in trained[:3]:
        for file in records.glob(f"{path.stem}.*"):
            shutil.copy(file, folder)
    return folder


def contents(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def value(content: Any, dotted: str) -> Any:
    """Follow a dotted key; names of protocols and of tasks have no dot here."""
    for part in dotted.split("."):
        content = content[int(part) if isinstance(content, list) else part]
    return content


@pytest.mark.parametrize(
    "key",
    [
        *("label", "seed", "outcome.status", "config.train.lr", "config.method.0.name", "rerun"),
        *("memory.train.peak_allocated_bytes", "time.tokens_per_s", "environment.packages.torch"),
        *("quality.perplexity.world-b.perplexity", "quality.tasks.embedded_b_facts.correct"),
    ],
)
def test_a_run_is_a_row_with_the_keys_of_its_record(folder: Path, key: str) -> None:
    runs = load_records(folder)
    found = contents(folder)
    assert list(runs.index) == [(str(folder), content["run_id"]) for content in found]
    assert runs[key].tolist() == [value(content, key) for content in found]


def test_what_one_run_did_not_measure_is_missing(folder: Path) -> None:
    first = min(folder.glob("*.json"))
    content = json.loads(first.read_text())
    del content["quality"]
    first.write_text(json.dumps(content))
    missing = load_records(folder)["quality.perplexity.world-b.perplexity"].isna()
    assert missing.tolist() == [True, False, False]


def test_older_records_give_their_updates(tmp_path: Path) -> None:
    folder = copied(OLDER, tmp_path / "runs")
    updates = load_records(folder, updates=True)
    for content in contents(folder):
        own = updates.loc[str(folder), content["run_id"]]
        assert own.index.tolist() == list(range(1, content["training"]["steps"] + 1))
        for name in ("loss", "lr"):
            assert own[name].tolist() == content["training"][name]


def test_updates_are_those_of_the_file_beside_the_record(folder: Path) -> None:
    record = min(folder.glob("*.json"))
    content = json.loads(record.read_text())
    course = Series(loss=[2.0, 1.5, 1.25], lr=[0.1, 0.2, 0.1], ranks=[None, {"q": 2}, None])
    content["training"] = {"steps": 3, "tokens": 48}
    content["series"] = vars(series.write(course, record, content["run_id"]))
    record.write_text(json.dumps(content))
    own = load_records(record, updates=True).loc[str(folder), content["run_id"]]
    beside = pd.read_parquet(folder / content["series"]["file"]).set_index("step")
    for name in ("loss", "lr"):
        pd.testing.assert_series_equal(own[name], beside[name])
    assert own["ranks"].tolist() == [None, {"q": 2}, None]
    assert "grad_norm" not in own


def test_a_file_that_is_no_record_is_left_out_with_a_warning(folder: Path) -> None:
    (folder / "plan.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"plan\.json: left out: schema version None"):
        assert len(load_records(folder)) == 3


@pytest.mark.parametrize("damage", ["missing", "of another run"])
def test_updates_that_cannot_be_read_are_left_out_with_a_warning(folder: Path, damage: str) -> None:
    first, *others = sorted(folder.glob("*.json"))
    beside = folder / json.loads(first.read_text())["series"]["file"]
    if damage == "missing":
        beside.unlink()
    else:
        shutil.copy(folder / json.loads(others[0].read_text())["series"]["file"], beside)
    with pytest.warns(UserWarning, match=rf"{first.name}: its updates are left out: {beside.name}: ") as said:
        updates = load_records(folder, updates=True)
    assert [warning.filename for warning in said] == [__file__]  # the line of the caller
    assert updates.index.unique("run_id").tolist() == [path.stem for path in others]
    assert len(load_records(folder)) == 3


def test_a_run_is_told_from_the_same_one_of_another_folder(tmp_path: Path) -> None:
    """A run id follows from the config, which two suites, machines or folders of results may share."""
    places = [tmp_path / place for place in ("a/cpu-1t/welore", "a/cpu-2t/welore", "b/cpu-1t/welore", "c")]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        copied(REFERENCE, place)
    runs, updates = load_records(tmp_path), load_records(tmp_path, updates=True)
    assert runs.index.is_unique
    assert updates.index.is_unique
    assert runs.index.unique("folder").tolist() == list(map(str, places))
    assert runs["machine"].fillna("").tolist() == 3 * ["cpu-1t"] + 3 * ["cpu-2t"] + 3 * ["cpu-1t"] + 3 * [""]
    joined = updates.join(runs[["label", "seed"]])
    assert joined.index.equals(updates.index)
    for folder, content in [(str(place), content) for place in places for content in contents(place)]:
        assert set(joined.loc[folder, content["run_id"]]["label"]) == {content["label"]}


def test_a_record_below_several_paths_is_one_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(folder)
    (folder / "plan.json").write_text("{}")
    paths = [folder, tmp_path, "runs", "linked", min(folder.glob("*.json"))]
    with pytest.warns(UserWarning, match=r"plan\.json: left out") as said:
        runs = load_records(*paths)
    assert len(said) == 1
    assert len(runs) == 3
    with pytest.warns(UserWarning, match="left out"):
        updates, once = load_records(*paths, updates=True), load_records(folder, updates=True)
    pd.testing.assert_frame_equal(updates, once)


def test_of_a_run_that_a_folder_holds_twice_the_first_is_read(folder: Path) -> None:
    first = min(folder.glob("*.json"))
    copy = Path(shutil.copy(first, folder / "a.json"))
    with pytest.warns(
        UserWarning, match=rf"a\.json: left out: a copy of run {first.stem}: {first.name} is read"
    ):
        assert len(load_records(first, copy)) == 1


def test_the_documented_lines_work_on_the_reference_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").symlink_to(ROOT / "results" / "raw")
    monkeypatch.chdir(tmp_path)
    section = (
        (ROOT / "docs" / "measurement.md").read_text(encoding="utf-8").split("## Records in Python\n")[1]
    )
    held: dict[str, Any] = {}
    for line in section.split("```")[1].removeprefix("python\n").splitlines():
        exec(line, held)
    runs, named = held["runs"], held["named"]
    assert runs.index.is_unique
    assert len(runs) == len(list((ROOT / "results" / "raw").glob("*/*/*.json")))
    assert set(runs["machine"]) == {path.name for path in (ROOT / "results" / "raw").iterdir()}
    assert len(named) == len(held["updates"])
    assert not named[["machine", "suite", "label"]].isna().any(axis=None)


def test_a_path_that_is_missing_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        load_records(folder / "none")


def test_a_folder_without_records_is_an_empty_frame(tmp_path: Path) -> None:
    assert load_records(tmp_path).empty
    assert load_records(tmp_path, updates=True).empty
