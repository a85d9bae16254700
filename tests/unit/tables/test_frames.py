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

REFERENCE = records_of("welore")
#: Records that hold their updates themselves.
OLDER = records_of("pretrain_small_lr")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of three records with scores and tasks."""
    return copied(REFERENCE, tmp_path / "runs")


def copied(records: Path, folder: Path) -> Path:
    """Copy three records of runs that trained to a new folder."""
    folder.mkdir()
    trained = [path for path in sorted(records.glob("*.json")) if '"tokens_per_s"' in path.read_text()]
    for path in trained[:3]:
        shutil.copy(path, folder)
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
    assert list(runs.index) == [content["run_id"] for content in found]
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
        own = updates.loc[content["run_id"]]
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
    own = load_records(record, updates=True).loc[content["run_id"]]
    beside = pd.read_parquet(folder / content["series"]["file"]).set_index("step")
    for name in ("loss", "lr"):
        pd.testing.assert_series_equal(own[name], beside[name])
    assert own["ranks"].tolist() == [None, {"q": 2}, None]
    assert "grad_norm" not in own


def test_a_file_that_is_no_record_is_left_out_with_a_warning(folder: Path) -> None:
    (folder / "plan.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"plan\.json: left out: schema version None"):
        assert len(load_records(folder)) == 3


def test_folders_are_read_together_and_one_that_is_missing_is_refused(folder: Path) -> None:
    first = min(folder.glob("*.json"))
    assert len(load_records(folder, str(first))) == 4
    with pytest.raises(UserError, match="no such file or folder"):
        load_records(folder / "none")


def test_a_folder_without_records_is_an_empty_frame(tmp_path: Path) -> None:
    assert load_records(tmp_path).empty
    assert load_records(tmp_path, updates=True).empty
