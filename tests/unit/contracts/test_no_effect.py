"""Settings that would be accepted and ignored are refused before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import no_effect, suite
from harness.errors import UserError
from harness.suite import parse_override

SUITE = """\
suite: s
base:
  method: full
  train: {steps: 20, warmup: 2}
  data: {source: random}
"""
SCORED = "evaluate.perplexity=[world-a, {protocol: c4-joined, context: 256}]"


def load(tmp_path: Path, *overrides: str, text: str = SUITE) -> suite.Suite:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return suite.load(path, [parse_override(each) for each in overrides])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.refresh_at=[5, 21]"], "train.refresh_at: update 21 is beyond the last one, train.steps 20"),
        (["train.refresh_at=[5, 5]"], "train.refresh_at: give each update once, in increasing order"),
        (["train.refresh_at=[9, 5]"], "train.refresh_at: give each update once, in increasing order"),
        (["train.schedule=constant", "train.min_lr_ratio=0.5"], "train.min_lr_ratio has no effect"),
        (["data.seq_len=1"], "data.seq_len: give a number of at least 2, not 1"),
        ([f"data.seq_len={2**31}"], "data.seq_len: give a number of at most"),
        ([f"train.steps={2**40}"], "train.steps: give a number of at most"),
        ([f"seed={2**70}"], f"{2**70} is too large; the largest integer is {2**63 - 1}"),
        ([f"repeat={2**40}"], "repeat: give a number of at most"),
        (["evaluate.limit=5"], "evaluate.limit has no effect: no row scores tasks"),
        (["evaluate.shots=0"], "evaluate.shots has no effect: no row scores tasks"),
        (["evaluate.task_paths=[x]"], "evaluate.task_paths has no effect: no row scores tasks"),
        (["evaluate.task_data=x"], "evaluate.task_data has no effect: no row scores tasks"),
        (["evaluate.tasks=[a, b, a]"], "evaluate.tasks: a is given twice"),
        (
            ["evaluate.perplexity=[world-a, {protocol: world-a}]"],
            "evaluate.perplexity: world-a is given twice",
        ),
        (
            ["evaluate.during.every=5"],
            "evaluate.during: evaluate.perplexity names no protocol; add one, or leave this out",
        ),
        (
            [SCORED, "evaluate.during={every: 20}"],
            "evaluate.during.every: 20 is not below train.steps 20, and the last update is scored anyway",
        ),
        ([SCORED, "evaluate.during.every=1"], "evaluate.during.every: give a number of at least 2, not 1"),
        ([SCORED, "evaluate.during={}"], "evaluate.during.every is required and missing"),
        (
            [SCORED, "evaluate.during={every: 5, perplexity: [world-b]}"],
            "evaluate.during.perplexity: 'world-b' is none of evaluate.perplexity "
            "(world-a, c4-joined(context=256))",
        ),
        (
            [SCORED, "evaluate.during={every: 5, perplexity: [world-a, world-a]}"],
            "evaluate.during.perplexity: world-a is given twice",
        ),
        ([SCORED, "evaluate.during={every: 5, perplexity: []}"], "evaluate.during.perplexity: it is empty"),
        (
            [SCORED, "evaluate.during.every=5", "train.stage=compress"],
            "evaluate.during has no effect: no row trains; leave it out",
        ),
        (
            ["model={source: shape, name: nano, tokenizer: x}"],
            "model.tokenizer has no effect: no row reads text",
        ),
        (
            ["data={source: datasets, id: a/b, field: x, template: alpaca}"],
            "data.field: 'x' is not read with data.template",
        ),
        (["label=' '"], "label: give 1 to 200 printable characters"),
        (['label="a\\tb"'], "label: give 1 to 200 printable characters"),
        (['label=" a"'], "label: cannot be told from 'a' in a table"),
        (['label="a  b"'], "label: cannot be told from 'a b' in a table"),
        (["label=e\u0301"], "label: cannot be told from '\u00e9' in a table"),
        (["label=a\u034f"], "label: it holds a character that is drawn as nothing; leave it out"),
        (["label=a\ufe0f"], "label: it holds a character that is drawn as nothing"),
        (["label=\u3164"], "label: it holds a character that is drawn as nothing"),
        (["label=\u2800"], "label: it holds a character that is drawn as nothing"),
        ([f"label={'x' * 201}"], "label: give 1 to 200 printable characters"),
    ],
)
def test_a_setting_without_effect_is_refused(tmp_path: Path, settings: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, *settings)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        ["train.warmup=20"],
        ["train.refresh_at=[1, 20]"],
        ["train.stage=compress", "train.warmup=20", "train.refresh_at=[30]"],
        ["evaluate.tasks=[embedded_b]", "evaluate.limit=5", "evaluate.shots=0"],
        ["model={source: shape, name: nano, tokenizer: x}", "evaluate.tasks=[embedded_b]"],
        [f"seed={2**63 - 1}"],
        ["data.seq_len=2"],
        [SCORED, "evaluate.during.every=19"],
        ["evaluate.perplexity=[]", "evaluate.during.every=19"],
    ],
)
def test_a_setting_with_an_effect_is_taken(tmp_path: Path, settings: list[str]) -> None:
    assert load(tmp_path, *settings).runs


def test_a_setting_of_the_base_needs_one_row_that_acts_on_it(tmp_path: Path) -> None:
    text = SUITE + "  evaluate: {limit: 5}\nrows: [{}, {evaluate.tasks: [embedded_b]}]"
    assert len(load(tmp_path, text=text).runs) == 2
    with pytest.raises(UserError, match=r"some.yaml:6: evaluate.limit has no effect"):
        load(tmp_path, "evaluate.tasks=[]", text=text)


@pytest.mark.parametrize(
    ("named", "scored"),
    [
        ("", ["world-a", "c4-joined(context=256)"]),
        (", perplexity: [world-a]", ["world-a"]),
        (", perplexity: [c4-welore]", ["c4-joined(context=256)"]),
        (", perplexity: ['c4-joined(context=256)', world-a]", ["world-a", "c4-joined(context=256)"]),
    ],
)
def test_protocols_to_score_in_training_are_named_with_their_options_or_without(
    tmp_path: Path, named: str, scored: list[str]
) -> None:
    (run,) = load(tmp_path, SCORED, f"evaluate.during={{every: 5{named}}}").runs
    assert run.evaluate.in_training == scored


def test_scores_in_training_are_part_of_an_id_only_where_they_are_on(tmp_path: Path) -> None:
    ids = [
        load(tmp_path, SCORED, f"evaluate.during={during}").runs[0].config_id
        for during in ("null", "{every: 5}", "{every: 6}", "{every: 5, perplexity: null}")
    ]
    assert ids[0] == load(tmp_path, SCORED).runs[0].config_id
    assert len(set(ids)) == 3
    assert ids[1] == ids[3]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"\n\n", "\n\n"),
        (r'"\n\n"', "\n\n"),
        (r"\t", "\t"),
        (r"\r\n", "\r\n"),
        ("--", "--"),
        (r"a\nb", "a\nb"),
    ],
)
def test_a_separator_reads_backslashes_as_what_is_meant(tmp_path: Path, written: str, meant: str) -> None:
    found = load(tmp_path, "data={source: files, paths: [a.txt]}", f"data.separator={written}").runs[0]
    same = load(
        tmp_path, f"data={{source: files, paths: [a.txt], separator: {meant!r}}}".replace("'", '"')
    ).runs[0]
    assert found.data.separator == meant  # type: ignore[union-attr]
    assert found.config_id == same.config_id


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_a_seed_of_the_command_line_is_checked_as_one_of_the_file(tmp_path: Path, seed: int) -> None:
    with pytest.raises(UserError, match=f"--seed {seed}: give a whole number from 0 to {2**63 - 1}"):
        load(tmp_path).with_seeds([seed])
    assert load(tmp_path).with_seeds([2**63 - 1]).runs[0].seed == 2**63 - 1


def test_a_baseline_that_names_no_row_is_refused(tmp_path: Path) -> None:
    text = "suite: s\nbaseline: full\nrows:\n- {label: all, method: full}\n"
    with pytest.raises(UserError, match=r"some.yaml:2: baseline 'full' names no row; the labels are: all$"):
        load(tmp_path, text=text)


def test_a_warm_up_that_leaves_no_update_is_said_once_with_its_rows(tmp_path: Path) -> None:
    others = "{label: b, train.stage: compress}, {label: c, train.warmup: 1}, {label: d, train.batch: 3}"
    rows = f"rows: [{{label: a}}, {others}]\n"
    matrix = "matrix: {seed: [0, 1]}\n"
    found = load(tmp_path, "train.steps=2", text=SUITE + matrix + rows)
    text = "2 updates of warm-up leave none of 2: the learning rate never reaches 0.001"
    assert no_effect.doubts(found.runs) == [f"a, d: {text}"]
    assert no_effect.doubts(found.only(["label=d"]).runs) == [f"all rows: {text}"]
    assert no_effect.doubts(load(tmp_path).runs) == []
