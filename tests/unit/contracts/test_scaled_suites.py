"""A suite's section `at_scale`: the same rows on a large model, one run per label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import suite as suites
from harness.cli import plan
from harness.config import ShapeModel
from harness.errors import UserError
from harness.tables.plan import plan as plan_values

SUITE: dict[str, Any] = {
    "suite": "small",
    "baseline": "full",
    "base": {
        "model": {"source": "embedded"},
        "data": {"source": "embedded", "world": "b", "seq_len": 64},
        "train": {"steps": 7, "batch": 16, "lr": 1e-3},
        "evaluate": {"perplexity": ["world-b"], "tasks": ["embedded_b"]},
    },
    "matrix": {"seed": [0, 1]},
    "rows": [
        {"label": "full", "method": "full"},
        {"label": "lora", "method": {"lora": {"rank": 4}}},
        {"label": "galore", "method": {"galore": {"rank": 8}}, "train.per_layer": True},
    ],
    "at_scale": {
        "base": {
            "model": {"source": "shape", "name": "llama-2-7b"},
            "data": {"source": "random", "seq_len": 2048},
            "train.dtype": "bfloat16",
            "train": {"batch": 1, "state_bits": 16},
        },
        "labels": {"galore": {"method": {"galore": {"rank": 1024}}, "train.state_bits": 8}},
    },
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **changes}, sort_keys=False))
    return path


def test_rows_keep_their_settings_and_take_those_of_the_section(tmp_path: Path) -> None:
    scaled = suites.load(written(tmp_path)).at_scale()
    assert scaled is not None
    assert [run.name for run in scaled.runs] == ["full", "lora", "galore"]
    assert scaled.baseline == "full"
    full, lora, galore = scaled.runs
    for run in scaled.runs:
        assert isinstance(run.model, ShapeModel)
        assert (run.model.name, run.data.source, run.data.seq_len) == ("llama-2-7b", "random", 2048)
        assert (run.train.batch, run.train.dtype, run.train.steps) == (1, "bfloat16", 7)
        assert (run.evaluate.perplexity, run.evaluate.tasks) == ((), ())
    assert (full.train.state_bits, galore.train.state_bits) == (16, 8)
    assert lora.method[0].options == {"rank": 4}
    assert galore.method[0].options == {"rank": 1024}
    assert galore.train.per_layer


def test_the_measured_runs_are_the_same_with_and_without_it(tmp_path: Path) -> None:
    with_it = suites.load(written(tmp_path))
    without = suites.load(written(tmp_path, at_scale=None))
    assert [run.run_id for run in with_it.runs] == [run.run_id for run in without.runs]
    assert without.at_scale() is None


def test_only_what_is_selected_is_planned_and_options_of_the_command_line_hold(tmp_path: Path) -> None:
    overrides = [suites.parse_override("method.lora.rank=32"), suites.parse_override("model.source=embedded")]
    chosen = suites.expand(written(tmp_path), overrides).only(["label=lora"]).checked()
    scaled = chosen.at_scale()
    assert scaled is not None
    (run,) = scaled.runs
    assert run.method[0].options == {"rank": 32}
    assert run.model.source == "shape"


def test_options_given_for_the_plan_at_scale_win_over_the_section(tmp_path: Path) -> None:
    overrides = [suites.parse_override(text) for text in ("data.seq_len=64", "train.batch=8")]
    suite = suites.load(written(tmp_path), overrides)
    kept, changed = suite.at_scale(), suite.at_scale(overrides)
    assert kept is not None
    assert changed is not None
    assert {(run.data.seq_len, run.train.batch) for run in kept.runs} == {(2048, 1)}
    assert {(run.data.seq_len, run.train.batch) for run in changed.runs} == {(64, 8)}
    wrong = [suites.parse_override("method.lora.rank=8")]
    with pytest.raises(UserError, match=r"method.lora.rank"):
        suite.at_scale(wrong)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"base": {}, "labels": {"lorra": {"train.batch": 1}}}, "at_scale: 'lorra' names no row"),
        ({"base": {"train.batsh": 1}}, "batsh"),
        ({"base": {"model": {"source": "shape", "name": "llama-2-7b"}, "train.batch": 0}}, "train.batch"),
        ({"base": {"train.batch": 1, "train": {"batch": 2}}}, "given twice"),
        ({"labels": {}}, "base"),
        ({"base": {}, "rows": []}, "rows"),
        ("llama-2-7b", "at_scale"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, section: Any, said: str) -> None:
    path = written(tmp_path, at_scale=section)
    with pytest.raises(UserError, match=said) as refused:
        suites.load(path)
    assert f"{path}" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["welore", "pretrain", "finetune", "compressed"])
def test_the_suites_of_methods_answer_at_the_scale_of_llama_2(name: str) -> None:
    chosen = suites.load(name)
    scaled = chosen.at_scale()
    assert scaled is not None
    assert {run.name for run in scaled.runs} == {run.name for run in chosen.runs}
    assert {getattr(run.model, "name", None) for run in scaled.runs} == {"llama-2-7b"}
    assert {run.train.dtype for run in scaled.runs} == {"bfloat16"}
    eight = {run.name for run in chosen.runs if run.train.state_bits == 8}
    assert {run.name for run in scaled.runs if run.train.state_bits == 8} == eight


def test_a_model_at_scale_has_nothing_of_the_model_of_the_rows(tmp_path: Path) -> None:
    small = {**SUITE["base"], "model": {"source": "shape", "name": "60m", "layers": 2, "vocab": 512}}
    scaled = suites.load(written(tmp_path, base=small)).at_scale()
    assert scaled is not None
    large = ShapeModel(source="shape", name="llama-2-7b")
    assert {run.model for run in scaled.runs} == {large}


def test_each_row_of_a_label_is_a_run_at_scale_unless_it_is_the_same_there(tmp_path: Path) -> None:
    matrix = {"seed": [0, 1], "train.batch": [4, 8], "train.lr": [1e-3, 1e-2], "data.seq_len": [64, 32]}
    path = written(tmp_path, matrix=matrix, rows=SUITE["rows"][2:], baseline="galore")
    scaled = suites.load(path).at_scale()
    assert scaled is not None
    assert len(scaled.runs) == 2  # one for each rate; batch and length are those of the section
    assert {run.train.lr for run in scaled.runs} == {1e-3, 1e-2}


@pytest.mark.parametrize(("text", "other"), [("model.source=embedded", True), ("train.steps=3", False)])
def test_what_is_measured_of_another_model_is_shown_and_no_forecast_of_the_suites_large_one(
    text: str, other: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecasts: list[object] = []
    monkeypatch.setattr(plan, "plan_suite", lambda *given, **named: forecasts.append(given))
    monkeypatch.setattr(plan_values, "as_dict", lambda made: {"rows": []})
    suite = suites.load(written(tmp_path), [suites.parse_override(text)])
    assert suite.other_model == other
    assert (plan.forecast_at_scale(suite) is None) == other
    assert len(forecasts) == int(not other)
