"""A suite of many runs: each is what it is alone, and what they share is checked once."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import suite, validation
from harness.config import Run
from harness.errors import UserError

RATES = [1e-4, 1e-3, 1e-2]
SEEDS = list(range(20))
ROWS: list[dict[str, Any]] = [
    {"label": "plain", "method": "full"},
    {"label": "other", "method": {"lora": {"rank": 4}}, "train": {"steps": 7}, "evaluate.batch": 2},
]


def written(tmp_path: Path, **changes: Any) -> Path:
    """A suite of the rows, rates and seeds."""
    content = {
        "suite": "many",
        "base": {"train": {"batch": 3}, "evaluate": {"perplexity": ["world-b"]}},
        "matrix": {"train.lr": RATES, "seed": SEEDS},
        "rows": ROWS,
    }
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False), encoding="utf-8")
    return path


def test_each_run_is_what_its_settings_are_alone(tmp_path: Path) -> None:
    alone = []
    for row, lr, seed in itertools.product(ROWS, RATES, SEEDS):
        train = {"batch": 3, "lr": lr, **row.get("train", {})}
        evaluate: dict[str, Any] = {"perplexity": ["world-b"]}
        evaluate |= {"batch": row["evaluate.batch"]} if "evaluate.batch" in row else {}
        alone.append(
            Run(label=row["label"], method=row["method"], train=train, evaluate=evaluate, seed=seed)  # type: ignore[arg-type]
        )
    found = suite.load(written(tmp_path)).runs
    assert list(map(repr, found)) == list(map(repr, alone))
    assert [run.model_fields_set for run in found] == [run.model_fields_set for run in alone]


def test_an_id_is_a_hash_of_the_config_without_what_does_not_change_the_work(tmp_path: Path) -> None:
    for run in suite.load(written(tmp_path)).runs:
        content = run.canonical
        for key in ("seed", "repeat", "save_weights", "tuning"):
            content.pop(key, None)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        assert run.config_id == hashlib.sha256(text.encode()).hexdigest()[:12]
        assert run.run_id == f"{run.config_id}-s{run.seed}-r{run.repeat}"


def test_a_copy_with_another_setting_has_the_id_of_that_setting(tmp_path: Path) -> None:
    run = suite.load(written(tmp_path)).runs[0]
    before = run.config_id
    for deep in (False, True):
        train = run.train.model_copy(update={"batch": 8}, deep=deep)
        changed = run.model_copy(update={"train": train}, deep=deep)
        assert changed.config_id == Run.model_validate(changed.model_dump()).config_id != before
    assert run.config_id == before


def test_what_runs_share_is_validated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    original = validation.validate

    def noted(cls: Any, value: Any, where: str) -> Any:
        seen.append(cls)
        return original(cls, value, where)

    monkeypatch.setattr(validation, "validate", noted)
    assert len(suite.load(written(tmp_path)).runs) == len(ROWS) * len(RATES) * len(SEEDS)
    # Each seed, label and method, the two sections `evaluate`, and `train` of each row with each rate.
    assert seen.count(Run) == len(SEEDS) + 2 * len(ROWS) + 2 + len(ROWS) * len(RATES)


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        ({"train.lr": [1e-3, -1], "seed": SEEDS}, "train.lr: give a number above 0, not -1"),
        ({"train.lr": RATES, "seed": [0, "1"]}, "seed: give a whole number, not the text '1'"),
        ({"train.lr": RATES, "seed": [0, True]}, "seed: give a whole number, not True"),
    ],
)
def test_the_line_of_a_mistake_in_one_of_many_runs_is_named(
    tmp_path: Path, matrix: dict[str, Any], problem: str
) -> None:
    path = written(tmp_path, matrix=matrix)
    lines = path.read_text(encoding="utf-8").splitlines()
    with pytest.raises(UserError) as caught:
        suite.load(path)
    place, _, said = str(caught.value).removeprefix(f"{path}:").partition(": ")
    bad = lines[int(place) - 1].strip()
    assert bad in ("- -1", "- '1'", "- true"), bad
    assert said == problem


def test_what_is_wrong_with_one_of_many_runs_is_wrong_with_each_other_seed(tmp_path: Path) -> None:
    """A run that was refused is not what the next one is copied from."""
    override = suite.parse_override("train.lr=0.5")
    tuned = {"batch": 3, "lr": 1e-3}
    base = {"train": tuned, "tuning": {"suite": "rates", "grid": [1e-3]}}
    path = written(tmp_path, base=base, matrix={"seed": SEEDS})
    runs = suite.expand(path, [override]).runs
    assert [run.train.lr for run in runs] == [1e-3] * len(runs)
    assert all("none of those that suite 'rates' tried" in str(run.misfit) for run in runs)
    assert len(runs) == len(ROWS) * len(SEEDS)
