"""Sections of a suite are merged key by key, and each mistake is blamed on the line it comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import suite
from harness.cli.options import Selection
from harness.errors import UserError
from harness.suite import Suite, parse_override

Load = Callable[..., Suite]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(text: str, *overrides: str) -> Suite:
        path = tmp_path / "some.yaml"
        path.write_text(text)
        return suite.load(path, [parse_override(each) for each in overrides])

    return write_and_load


BASE = """\
suite: s
base:
  model: {source: shape, name: nano, vocab: 100}
  data: {source: files, paths: [a.txt], separator: "--", seq_len: 64, holdout: 0.2}
  train: {lr: 0.5, steps: 7, batch: 3, betas: [0.8, 0.9]}
  evaluate: {perplexity: [heldout], batch: 4}
  method: {galore: {rank: 4, period: 5}}
"""


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("train: {lr: 0.1}", {"train.lr": 0.1, "train.steps": 7, "train.batch": 3}),
        ("train.lr: 0.1", {"train.lr": 0.1, "train.steps": 7, "train.batch": 3}),
        ("train: !replace {lr: 0.1}", {"train.lr": 0.1, "train.steps": 100, "train.batch": 16}),
        ("train: {betas: [0.1, 0.2]}", {"train.betas": [0.1, 0.2], "train.lr": 0.5}),
        ("evaluate: {batch: 5}", {"evaluate.batch": 5, "evaluate.perplexity": [{"protocol": "heldout"}]}),
        ("data: {holdout: 0.3}", {"data.source": "files", "data.paths": ["a.txt"], "data.holdout": 0.3}),
        ("data: {source: files, paths: [b.txt]}", {"data.paths": ["b.txt"], "data.separator": "--"}),
        ("model: {vocab: 200}", {"model.name": "nano", "model.vocab": 200}),
    ],
)
def test_a_row_changes_only_what_it_names(load: Load, row: str, changes: dict[str, Any]) -> None:
    for run in (
        load(f"{BASE}rows: [{{{row}}}]").runs[0],
        load(BASE, row.replace(": ", "=", 1)).runs[0],
        load(f"{BASE}matrix: {{{row.replace(': ', ': [', 1)}]}}").runs[0],
    ):
        plain = run.model_dump(mode="json", exclude_none=True)
        for key, value in changes.items():
            held: Any = plain
            for part in key.split("."):
                held = held[part]
            assert held == value, key


@pytest.mark.parametrize("row", ["data: {source: random}", "data.source: random"])
def test_another_source_keeps_what_both_have_and_drops_the_rest(load: Load, row: str) -> None:
    data = (
        load(f"{BASE}  evaluate.perplexity: []\nrows: [{{{row}}}]".replace("perplexity: [heldout], ", ""))
        .runs[0]
        .data
    )
    assert data.model_dump() == {"source": "random", "seq_len": 64}


@pytest.mark.parametrize("source", ["data.source: random", "data: {source: random}"])
def test_what_another_source_lacks_is_refused_before_it_too(load: Load, source: str) -> None:
    for order in (1, -1):
        given = ["data.holdout: 0.3", source][::order]
        with pytest.raises(UserError, match=r"some.yaml:8: unknown key 'holdout' in data of source random"):
            load(f"{BASE}rows: [{{{', '.join(given)}}}]")
        with pytest.raises(UserError, match=r"--set .*: unknown key 'holdout' in data of source random"):
            load(BASE, *(each.replace(": ", "=", 1) for each in given))


def test_another_source_with_a_key_that_it_lacks_is_still_refused(load: Load) -> None:
    with pytest.raises(UserError, match=r"some.yaml:8: unknown key 'paths' in data of source random"):
        load(f"{BASE}rows: [{{data: {{source: random, paths: [x]}}}}]")


def test_an_entry_of_method_replaces_the_methods_of_the_base_and_dots_set_one_option(load: Load) -> None:
    rows = "rows: [{method: {galore: {rank: 8}}}, {method.galore.rank: 8}, {method: lora}]"
    options = [(run.method[0].name, run.method[0].options) for run in load(BASE + rows).runs]
    assert options == [("galore", {"rank": 8}), ("galore", {"rank": 8, "period": 5}), ("lora", {})]


def test_a_matrix_merges_too_and_rows_win_over_it(load: Load) -> None:
    text = (
        f"{BASE}matrix: {{train: [{{lr: 0.1}}, {{lr: 0.2}}]}}\nrows: [{{}}, {{train: {{lr: 0.3, batch: 4}}}}]"
    )
    found = [(run.train.lr, run.train.batch, run.train.steps) for run in load(text).runs]
    assert found == [(0.1, 3, 7), (0.2, 3, 7), (0.3, 4, 7)]


KEPT = "holdout: 0.2, seq_len: 64"
FILES = "source: files, paths: [old.txt, old.jsonl], separator: '--', field: body, " + KEPT
SET = "source: datasets, id: old/set, name: small, split: test, field: body, limit: 9, " + KEPT


@pytest.mark.parametrize(
    ("old", "given", "found"),
    [
        (FILES, ["a.txt"], {"separator": "--", "field": "text"}),
        (FILES, ["a.jsonl"], {"separator": None, "field": "body"}),
        (FILES, ["a.jsonl.gz", "./b"], {"separator": "--", "field": "body"}),
        (FILES, ["new/set@v2"], {"id": "new/set", "revision": "v2", "name": None, "field": "body"}),
        (SET, ["new/set"], {"id": "new/set", "name": None, "split": "train", "field": "body", "limit": 9}),
        (SET, ["./a.jsonl"], {"paths": ("./a.jsonl",), "field": "body", "separator": None}),
        (f"{SET.replace('field: body', 'template: alpaca')}", ["a.md"], {"template": None}),
        (f"{SET.replace('field: body', 'template: alpaca')}", ["a.json"], {"template": "alpaca"}),
        ("source: random, seq_len: 64", ["a.txt"], {"holdout": 0.1, "separator": None}),
    ],
)
def test_other_text_keeps_the_settings_that_are_not_about_the_old_one(
    tmp_path: Path, old: str, given: list[str], found: dict[str, Any]
) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"suite: s\nbase: {{method: full, data: {{{old}}}}}\n")
    data = {"template": None, **Selection(str(path), data=given).load().runs[0].data.model_dump()}
    assert data == data | {"holdout": 0.2, "seq_len": 64} | found
    assert Selection(str(path), data=given, settings=["data.seq_len=8"]).load().runs[0].data.seq_len == 8


def test_another_model_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(BASE.replace("nano,", "nano, tokenizer: ./t,"))
    run = Selection(str(path), model="org/name").load().runs[0]
    assert run.model.model_dump() == {"source": "hub", "id": "org/name", "revision": "main"}


def test_overrides_merge_in_their_order(load: Load) -> None:
    run = load(BASE, "train={lr: 0.1}", "train.steps=9", "train={batch: 2}").runs[0]
    assert (run.train.lr, run.train.steps, run.train.batch) == (0.1, 9, 2)


ONE_PATH = "suite: s\nbase: {method: full}\n"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("train.lr: 0.5, train: !replace {steps: 3}", "train.lr is given beside the whole of train"),
        ("train: !replace {steps: 3}, train.lr: 0.5", "train.lr is given beside the whole of train"),
        ("method.lora.rank: 4, method: full", "method.lora.rank is given beside the whole of method"),
        ("method: {lora: {rank: 4}}, method.lora.alpha: 1", "method.lora.alpha is given beside the whole of"),
        ("train.lr: 0.5, train: {lr: 0.25}", "train.lr is given twice, first by "),
        ("train: {betas: [0, 0]}, train.betas: [0, 0]", "train.betas is given twice, first by "),
    ],
)
def test_no_setting_drops_another_of_the_same_section_or_command(load: Load, given: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"some.yaml:3: {says}"):
        load(f"{ONE_PATH}rows: [{{label: a, {given}}}]")
    options = given.replace(", train", "\ntrain").replace(", method", "\nmethod").replace(": ", "=", 1)
    first, second = options.split("\n")
    with pytest.raises(UserError, match=rf"--set .*: {says}"):
        load(ONE_PATH, first, second.replace(": ", "=", 1))


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (
            "train.lr: [1, 2], train: [!replace {steps: 3}, !replace {steps: 4}]",
            "train.lr is given beside the whole of train, first by train.lr of matrix 'train.lr'",
        ),
        ("train: [{batch: 3, lr: 0.7}, {batch: 4, lr: 0.8}], train.lr: [1]", "train.lr is given twice"),
        ("train: [{batch: 3}, {lr: 0.8}], train.lr + seed: [[1, 2]]", "train.lr is given twice"),
        ("method: [full, lora], method.lora.rank: [4, 8]", "method.lora.rank is given beside the whole of"),
        ("seed + seed: [[1, 2]]", "seed is given twice, first by seed of matrix 'seed . seed'"),
    ],
)
def test_no_axis_drops_what_another_gives_in_any_entry(load: Load, axes: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"some.yaml:3: {says}"):
        load(f"{ONE_PATH}matrix: {{{axes}}}")


def test_axes_may_vary_different_settings_of_a_section(load: Load) -> None:
    runs = load(f"{ONE_PATH}matrix: {{train: [{{lr: 1}}, {{lr: 2}}], train.steps: [3, 4]}}").runs
    found = [(run.train.lr, run.train.steps) for run in runs]
    assert found == [(lr, steps) for lr in (1, 2) for steps in (3, 4)]


def test_a_section_that_merges_one_that_replaces_replaces_too(load: Load) -> None:
    """Of settings neither named nor merged the default holds, not what the base says."""
    rows = "- {train: &t !replace {steps: 2}}\n- {train: {<<: *t, lr: 2.0e-3}}\n"
    first, second = load(f"{BASE}rows:\n{rows}").runs
    assert (first.train.steps, first.train.batch) == (2, 16)
    assert (second.train.steps, second.train.batch, second.train.lr) == (2, 16, 2e-3)


def test_keys_of_the_base_may_be_dotted(load: Load) -> None:
    run = load("suite: s\nbase: {method: full, train.lr: 0.1, train: {steps: 5}}").runs[0]
    assert (run.train.lr, run.train.steps) == (0.1, 5)


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        ("suite: s\nbase:\n  method: full\n  train:\n    stpes: 3\n", (), ":5: unknown key 'stpes' in train"),
        (
            "suite: s\nbase:\n  method: full\n  train: {lr: fast}\n",
            (),
            ":4: train.lr: give a number, not the text",
        ),
        (
            "suite: s\nbase: {method: full}\nrows:\n  - {train: {lr: -1}}\n",
            (),
            ":4: train.lr: give a number above 0",
        ),
        (
            "suite: s\nbase: {method: full}\nmatrix:\n  seed: [0, -1]\n",
            (),
            ":4: seed: give a number of at least 0",
        ),
        (
            "suite: s\nbase: {method: full}\nmatrix:\n  train.lr:\n  - 1\n  - x\n",
            (),
            ":6: train.lr: give a number",
        ),
        ("suite: s\nbase: {method: full, seed: x}\n", ("train.lr=0.1",), ":2: seed: give a whole number"),
        ("suite: s\nbase: {method: full}\n", ("train.lr=x",), "--set 'train.lr=x': train.lr: give a number"),
        (
            "suite: s\nbase: {method: full}\n",
            ("train={stpes: 1}",),
            "--set 'train={stpes: 1}': unknown key 'stpes'",
        ),
        (
            "suite: s\nbase: {method: full}\n",
            ("tran.lr=1",),
            "--set 'tran.lr=1': unknown key 'tran'; did you mean",
        ),
        (
            "suite: s\nbase: {method: full}\n",
            ("train..lr=1",),
            "--set 'train..lr=1': 'train..lr' is no setting",
        ),
        ("suite: s\nbase: {method: full}\n", (".=1",), "'.' is no setting; write for example train.steps"),
        ("suite: s\nbase: {method: full}\n", ("seed.x=1",), "--set 'seed.x=1': seed"),
        (
            "suite: s\nbase: {method: full, seed: 1}\n",
            ("seed.x=1",),
            "cannot set 'seed.x': 'seed' is a value",
        ),
        ("suite: s\nrows:\n- {method: full, train.lr: 1, train: {lr: 2}}", (), ":3: train.lr is given twice"),
        ("suite: s\nbase:\n  method: fulll\n", (), ":3: unknown method 'fulll'"),
        (
            "suite: s\nmatrix:\n  seed: [1]\n  seed + train.lr: [[1, 2]]\n",
            (),
            ":4: seed is given twice, first by seed of matrix 'seed'",
        ),
        (
            "suite: s\nbase: {method: full}\nmatrix:\n  seed + train.lr:\n  - [1]\n",
            (),
            ":5: matrix 'seed + train.lr': a list is",
        ),
        ("suite: ../../esc\nbase: {method: full}\n", (), ":1: suite: suite name '../../esc' names a folder"),
        ("suite: ''\nbase: {method: full}\n", (), ":1: suite: suite name '' names a folder"),
        ("suite: .\nbase: {method: full}\n", (), ":1: suite: suite name '.' names a folder"),
        ("suite: a/b\nbase: {method: full}\n", (), ":1: suite: suite name 'a/b' names a folder"),
        (
            "suite: s\nbaseline: foul\nbase: {method: full}\n",
            (),
            ":2: baseline 'foul' names no row; the labels are: full",
        ),
        ("suite: s\nrows: {method: full}\n", (), ":2: rows: give a list, as [a, b], not a section"),
        ("suite: s\nrows: [full]\n", (), ":2: rows.0: give a section, as {key: value}, not 'full'"),
        ("suite: s\nbase: {method: {full: false}}\n", (), ":2: method.0.options: give a section"),
        (
            "suite: s\nbase: {method: full}\n",
            ("evaluate.perplexity=[heldot]",),
            "--set 'evaluate.perplexity=[heldot]': evaluate.perplexity.0.protocol: no perplexity protocol "
            "'heldot'; did you mean 'heldout'",
        ),
        (
            "suite: s\nbase: {method: full}\nrows:\n- evaluate: {tasks: [embeded_b]}\n",
            (),
            ":4: evaluate: no task 'embeded_b'; did you mean 'embedded_b'",
        ),
        (
            "suite: s\nbase: {method: full}\n",
            ("evaluate.tasks=[paper_bolq]",),
            "evaluate: no task 'paper_bolq'; did you mean 'paper_boolq'",
        ),
        (
            "suite: s\nbase: {method: full}\n",
            ("data={source: task, task: paper_svam}",),
            "data.task: no task 'paper_svam' to train on; did you mean 'paper_svamp'",
        ),
        ("suite: 3\n", (), ":1: suite: give text, in quotes where it looks like a number, not 3"),
        (
            "suite: s\nbase: {method: full, save_weights: yes}\n",
            (),
            ":2: save_weights: give true or false, not the text 'yes'",
        ),
        (
            "suite: s\nbase: {method: full, save_weights: 1}\n",
            (),
            ":2: save_weights: give true or false, not 1",
        ),
        ("suite: s\nbase: {method: full, seed: true}\n", (), ":2: seed: give a whole number, not True"),
        ("suite: s\nbase: {method: full, seed: 1.5}\n", (), ":2: seed: give a whole number, not 1.5"),
        (
            "suite: s\nbase: {method: full, train: {betas: ['0.9', 0.9]}}\n",
            (),
            ":2: train.betas.0: give a number, not the text",
        ),
        (
            "suite: s\nbase: {method: full, train: {lr: .inf}}\n",
            (),
            ":2: train.lr: give a finite number, not inf",
        ),
        (
            "suite: s\nbase: {method: full}\nmatrix: {seed: [%s], repeat: [%s]}"
            % ((", ".join(map(str, range(200))),) * 2),
            (),
            "40,000 runs in one suite; at most 20,000",
        ),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_mistake_names_its_line_or_its_option(
    load: Load, text: str, overrides: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
