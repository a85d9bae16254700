"""Options concern the selected rows alone, and two labels are never one run: there would be one record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import suite
from harness.cli.options import Selection
from harness.errors import UserError

ROWS = """\
suite: s
baseline: a
rows:
- {label: a, method: full, train.stage: pretrain}
- {label: b, method: full, train.stage: finetune}
- {method: lora, seed: 1}
"""


def loaded(
    folder: Path, text: str, only: Sequence[str] = (), seed: Sequence[int] = (), *settings: str
) -> suite.Suite:
    path = _written(folder, text)
    return Selection(str(path), settings=list(settings), only=list(only), seed=list(seed)).load()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            "- {label: a, method: full}\n- {label: b, method: full}",
            r"the rows 'a' \(.*some.yaml:3\) and 'b' \(.*some.yaml:4\) are one run under two labels; change",
        ),
        (
            "- {method: full}\n- {label: b, method: full}",
            r"rows 'full' \(.*:3\) and 'b' \(.*:4\) are one run",
        ),
        (
            "- {label: a, method: full}\n- {method: full, label: a}",
            r":4: row: the same is given twice, first at .*some.yaml:3; change one or leave it out",
        ),
    ],
)
def test_a_file_that_holds_one_run_twice_is_refused(tmp_path: Path, rows: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        suite.load(_written(tmp_path, f"suite: s\nrows:\n{rows}\n"))


@pytest.mark.parametrize(
    ("axis", "says"),
    [
        ("seed: [0, 1, 0]", r":4: matrix 'seed': 0 is given twice, first at .*:4; change one"),
        (
            "train:\n  - {lr: 1e-3}\n  - {lr: 0.001}",
            r":6: matrix 'train': the same is given twice, first at .*:5",
        ),
    ],
)
def test_a_value_twice_in_an_axis_is_refused(tmp_path: Path, axis: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        suite.load(_written(tmp_path, f"suite: s\nbase: {{method: full}}\nmatrix:\n  {axis}\n"))


def test_options_that_make_two_rows_equal_are_named_with_both_rows(tmp_path: Path) -> None:
    assert len(loaded(tmp_path, ROWS).runs) == 3
    says = r"--set 'train.stage=finetune': the rows 'a' \(.*:4\) and 'b' \(.*:5\) become one run; select one"
    with pytest.raises(UserError, match=says):
        loaded(tmp_path, ROWS, (), (), "train.stage=finetune")
    one = loaded(tmp_path, ROWS, ["label=a"], (), "train.stage=finetune").runs
    assert [(run.name, run.train.stage) for run in one] == [("a", "finetune")]


def test_a_seed_that_makes_two_rows_equal_is_named(tmp_path: Path) -> None:
    text = "suite: s\nrows:\n- {label: a, method: full}\n- {label: b, method: full, seed: 1}\n"
    with pytest.raises(UserError, match=r"--seed 5: the rows 'a' \(.*:3\) and 'b' \(.*:4\) become one run"):
        loaded(tmp_path, text, (), [5])
    with pytest.raises(UserError, match="--seed 5 is given twice; name each seed once"):
        loaded(tmp_path, text, (), [5, 6, 5])


def test_a_row_that_fixes_what_the_matrix_varies_is_one_run(tmp_path: Path) -> None:
    text = "suite: s\nmatrix: {seed: [0, 1, 2]}\nrows: [{method: full}, {method: lora, seed: 1}]\n"
    found = loaded(tmp_path, text).runs
    assert [(run.name, run.seed) for run in found] == [("full", 0), ("full", 1), ("full", 2), ("lora", 1)]
    assert [(run.name, run.seed) for run in loaded(tmp_path, text, (), [7]).runs] == [
        ("full", 7),
        ("lora", 7),
    ]


MIXED = """\
suite: s
baseline: full
base: {train: {steps: 2}}
rows:
- {label: full, method: full, train.refresh_at: [2]}
- {label: uniform, method: {uniform: {err: 0.5}}}
- {label: scored, method: full, train.lr: 1e-4, evaluate.tasks: [embedded_b]}
"""


@pytest.mark.parametrize(
    ("setting", "fits", "others", "says"),
    [
        ("method.uniform.err=0.2", "uniform", "full", "cannot set 'method.uniform.err': 'method' is a value"),
        (
            "train.steps=1",
            "uniform",
            "full",
            r"some.yaml:5: train.refresh_at: update 2 is beyond the last one",
        ),
        ("evaluate.shots=0", "scored", "uniform", "--set 'evaluate.shots=0': evaluate.shots has no effect"),
        ("train.refresh_at=[3]", None, "scored", "train.refresh_at: update 3 is beyond"),
    ],
)
def test_an_option_is_checked_in_the_selected_rows_alone(
    tmp_path: Path, setting: str, fits: str | None, others: str, says: str
) -> None:
    if fits is not None:
        (run,) = loaded(tmp_path, MIXED, [f"label={fits}"], (), setting).runs
        assert run.name == fits
        with pytest.raises(UserError, match=says):
            loaded(tmp_path, MIXED, [f"label={fits}", f"label={others}"], (), setting, "evaluate.tasks=[]")
    with pytest.raises(UserError, match=says):
        loaded(tmp_path, MIXED, [f"label={others}"], (), setting)


def test_an_option_that_fits_some_rows_says_which_it_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a section \(row 'full'; select others by --only\)$"):
        loaded(tmp_path, MIXED, (), (), "method.uniform.err=0.2")
    with pytest.raises(UserError, match=r"did you mean 'steps'[^(]*$"):
        loaded(tmp_path, MIXED, (), (), "train.stpes=1")


def test_other_options_still_hold_in_a_row_that_refuses_one(tmp_path: Path) -> None:
    """So that --only selects by what the row would be, and does not lose the mistake."""
    with pytest.raises(UserError, match="'method' is a value"):
        loaded(tmp_path, MIXED, ["train.lr=0.25"], (), "train.lr=0.25", "method.uniform.err=0.2")


def test_a_mistake_of_the_file_is_refused_in_rows_that_are_not_selected(tmp_path: Path) -> None:
    text = MIXED.replace("[2]", "[3]")
    with pytest.raises(UserError, match="update 3 is beyond"):
        loaded(tmp_path, text, ["label=uniform"])


def _written(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.lr=-1", "train.lr: give a number above 0"),
        ("train.stepz=3", "stepz"),
        ("data.seq_len=0", "seq_len"),
    ],
)
def test_a_mistake_is_one_whatever_seeds_are_asked_for(tmp_path: Path, setting: str, says: str) -> None:
    for seed in ((), (0,), (0, 5)):
        with pytest.raises(UserError, match=f"--set '?{setting}'?: .*{says}"):
            loaded(tmp_path, ROWS, (), seed, setting)


def test_a_setting_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.batch is given twice, first by --set 'train\.batch=2'"):
        loaded(tmp_path, ROWS, (), (), "train.batch=2", "train.batch=4")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": [1], "settings": ["seed=2"]}, "--set 'seed=2': --seed gives the seed, too"),
        (
            {"model": "./m", "settings": ["model.source=embedded"]},
            "model.source is given twice, first by --model",
        ),
        ({"model": "./m", "settings": ["model.path=./n"]}, "model.path is given twice, first by --model"),
        ({"model": "a/b@v1", "settings": ["model.revision=v2"]}, "model.revision is given twice"),
        ({"model": "./m", "settings": ["model=!replace {source: embedded}"]}, "beside the whole of model"),
        ({"data": ["a.txt"], "settings": ["data={paths: [b.txt]}"]}, "data.paths is given twice"),
        ({"data": ["a/b"], "settings": ["data.id=c/d"]}, "data.id is given twice, first by --data"),
        ({"only": ["seed=0", "seed=2"]}, r"--only 'seed=2': no run matches it .*the values of seed are: 0"),
        ({"only": ["label=a", "method=lora", "label=lora"]}, "--only 'label=a': no run matches"),
    ],
)
def test_no_option_is_given_and_ignored(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Selection(str(_written(tmp_path, ROWS)), **options).load()


def test_what_an_option_only_implies_may_be_set(tmp_path: Path) -> None:
    path, settings = (
        str(_written(tmp_path, ROWS)),
        ["data.name=small", "data.revision=v2", "model.revision=v3"],
    )
    run = Selection(path, "a/b", ["c/d"], [*settings, "evaluate.perplexity=[]"]).load().runs[0]
    data, model = run.data.model_dump(), run.model.model_dump()
    assert (data["id"], data["name"], data["revision"]) == ("c/d", "small", "v2")
    assert (model["id"], model["revision"], run.evaluate.perplexity) == ("a/b", "v3", ())


def test_another_method_needs_another_label(tmp_path: Path) -> None:
    says = "--set 'method=lora': another method under the label 'a'; give a label, too: --set label=NAME"
    with pytest.raises(UserError, match=says):
        loaded(tmp_path, ROWS, ["label=a"], (), "method=lora")
    for label in ("a", "other"):  # whether it is the baseline's or not
        (run,) = loaded(tmp_path, ROWS, ["train.stage=pretrain"], (), "method=lora", f"label={label}").runs
        assert (run.name, run.method[0].name) == (label, "lora")
    assert loaded(tmp_path, ROWS, ["label=a"], (), "method=full").runs[0].name == "a"
    assert loaded(tmp_path, ROWS, ["seed=1"], (), "method=full").runs[0].name == "full"


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_options_the_wrong_one_is_blamed(tmp_path: Path, order: int) -> None:
    settings = ["evaluate.tasks=[embedded_nosuch]", "evaluate.limit=3"][::order]
    with pytest.raises(UserError, match="no task 'embedded_nosuch'"):
        loaded(tmp_path, ROWS, (), (), *settings)
