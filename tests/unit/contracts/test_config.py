"""Suites and runs: identity, expansion, overrides, and a helpful line for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness import plugins, suite
from harness.config import Run
from harness.errors import UserError
from harness.suite import parse_override
from harness.validation import validate

REFERENCE = Path(__file__).parents[3] / "results" / "raw"
SUITES = list(suite.shipped_suites().values())
HUB = {"source": "hub", "id": "owner/name"}
SMALL = {
    "suite": "small",
    "question": "which?",
    "baseline": "full",
    "base": {"train": {"steps": 10}},
    "matrix": {"method": ["full", {"lora": {"rank": 8}}], "seed": [0, 1]},
}


def run(**values):
    return validate(Run, {"method": "full", **values}, where="here")


@pytest.fixture
def load(tmp_path):
    def write_and_load(content, *overrides):
        path = tmp_path / "some.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return suite.load(path, [parse_override(text) for text in overrides])

    return write_and_load


# ---------------------------------------------------------------------------------------- identity
def test_seed_repeat_label_and_saved_weights_are_not_part_of_the_config():
    same = [run(), run(seed=3), run(repeat=2), run(label="mine"), run(save_weights=True)]
    assert len({item.config_id for item in same}) == 1


def test_options_that_are_off_and_the_origin_of_a_rate_are_no_part_of_the_config():
    off = run(train={"per_layer": False, "state_bits": None}, tuning=None)
    tuned = run(tuning={"suite": "other", "grid": [1e-3]})
    assert off.config_id == tuned.config_id == run().config_id
    assert not {"per_layer", "state_bits"} & run().model_dump()["train"].keys()


def test_the_reference_records_still_have_the_ids_of_their_configs():
    """A setting that is added must leave earlier records valid, or they must be measured again."""
    records = [json.loads(path.read_text()) for path in REFERENCE.glob("*/*/*.json")]
    assert records
    assert [Run.model_validate(item["config"]).config_id for item in records] == [
        item["config_id"] for item in records
    ]


def test_a_run_is_identified_by_config_seed_and_repeat():
    assert run(seed=3, repeat=2).run_id == f"{run().config_id}-s3-r2"
    assert run(label="mine").run_id == run().run_id


@pytest.mark.parametrize(
    "change",
    [
        {"method": "lora"},
        {"method": {"full": {"option": 1}}},
        {"method": ["full", "full"]},
        {"model": {"source": "shape", "name": "llama-9m"}},
        {"model": HUB},
        {"model": {**HUB, "revision": "abc"}},
        {"data": {"source": "embedded", "world": "a"}},
        {"data": {"source": "embedded", "seq_len": 64}},
        {"train": {"lr": 0.1}},
        {"train": {"betas": [0.9, 0.95]}},
        {"train": {"clip": 1.0}},
        {"train": {"dtype": "bfloat16"}},
        {"train": {"per_layer": True}},
        {"train": {"state_bits": 32}},
        {"evaluate": {"perplexity": ["world-b"]}},
        {"evaluate": {"tasks": ["embedded"]}},
        {"evaluate": {"limit": 5}},
    ],
    ids=str,
)
def test_whatever_changes_the_work_changes_the_id(change):
    assert run(**change).config_id != run().config_id


def test_the_id_does_not_depend_on_how_the_same_thing_is_written():
    pairs = [
        (run(method="lora"), run(method=[{"lora": None}])),
        (run(method={"lora": {"a": 1, "b": 2}}), run(method={"name": "lora", "options": {"b": 2, "a": 1}})),
        (run(train={"lr": 1}), run(train={"lr": 1.0})),
        (run(train={}), run(train={"steps": 100})),
        (run(evaluate={"perplexity": ["heldout"]}), run(evaluate={"perplexity": [{"protocol": "heldout"}]})),
    ]
    for one, other in pairs:
        assert one.config_id == other.config_id


def test_a_run_survives_its_own_dump():
    before = run(method=["full", {"lora": {"rank": 4}}], model=HUB, train={"clip": 1.0}, label="mine")
    after = Run.model_validate(before.model_dump(mode="json"))
    assert after == before
    assert after.run_id == before.run_id


def test_a_run_is_named_by_its_label_or_its_stack():
    assert run(method=["full", {"lora": {"rank": 4, "alpha": 8}}]).name == "full + lora(rank=4, alpha=8)"
    assert run(label="mine").name == "mine"


@pytest.mark.parametrize(
    ("model", "tier"),
    [
        ({"source": "embedded"}, "embedded"),
        ({"source": "shape", "name": "llama-9m"}, "shapes"),
        (HUB, "weights"),
        ({"source": "local", "path": "here"}, "weights"),
    ],
)
def test_the_tier_follows_from_the_model(model, tier):
    assert run(model=model).tier == tier


# --------------------------------------------------------------------------------------- expansion
def test_a_matrix_is_crossed_in_order_with_the_last_axis_fastest(load):
    found = load(SMALL)
    assert [(item.name, item.seed) for item in found.runs] == [
        ("full", 0),
        ("full", 1),
        ("lora(rank=8)", 0),
        ("lora(rank=8)", 1),
    ]
    assert all(item.train.steps == 10 for item in found.runs)
    assert (found.name, found.question, found.baseline) == ("small", "which?", "full")


def test_an_axis_may_move_several_settings_together(load):
    axis = {"train.lr + train.steps": [[0.1, 5], [0.2, 9]]}
    found = load({"suite": "s", "base": {"method": "full"}, "matrix": axis})
    assert [(item.train.lr, item.train.steps) for item in found.runs] == [(0.1, 5), (0.2, 9)]
    assert found.axes == ("train.lr", "train.steps")
    for item in found.runs:
        assert found.only(found.selector(item)).runs == (item,)


def test_rows_are_crossed_with_the_matrix_and_win_over_it(load):
    rows = [{"method": "full"}, {"method": "lora", "train.lr": 0.5, "seed": 7}]
    found = load({"suite": "s", "base": {"train": {"lr": 0.1}}, "matrix": {"seed": [0, 1]}, "rows": rows})
    assert [(item.name, item.train.lr, item.seed) for item in found.runs] == [
        ("full", 0.1, 0),
        ("full", 0.1, 1),
        ("lora", 0.5, 7),
    ]


def test_the_base_alone_is_one_run(load):
    assert len(load({"suite": "s", "base": {"method": "full"}}).runs) == 1


def test_runs_of_a_suite_do_not_change_each_other(load):
    shared = {"full": {"option": {"deep": 1}}}
    rows = [{}, {"method.full.option.deep": 2}]
    first, second = load({"suite": "s", "base": {"method": shared}, "rows": rows}).runs
    assert first.method[0].options == {"option": {"deep": 1}}
    assert second.method[0].options == {"option": {"deep": 2}}


def test_other_seeds_replace_those_of_the_suite(load):
    found = load(SMALL)
    assert found.with_seeds([]) == found
    assert [(item.name, item.seed) for item in found.with_seeds([5]).runs] == [
        ("full", 5),
        ("lora(rank=8)", 5),
    ]


def test_seeds_of_the_command_line_count_towards_the_most_runs(load, monkeypatch):
    monkeypatch.setattr(suite, "MOST_RUNS", 3)
    with pytest.raises(UserError, match="--seed: 4 runs in one suite; at most 3"):
        load(SMALL).with_seeds([5, 6])


def test_conditions_choose_runs(load):
    found = load(SMALL)
    assert {item.name for item in found.only(["method=lora"]).runs} == {"lora(rank=8)"}
    assert {item.seed for item in found.only(["seed=1"]).runs} == {1}
    assert len(found.only(["seed=0", "seed=1", "method=full"]).runs) == 2
    with pytest.raises(UserError, match=r"no run matches; the labels are: full, lora\(rank=8\)"):
        found.only(["label=nothing"])
    with pytest.raises(UserError, match=r"no run matches; the values of method are: full, lora$"):
        found.only(["method=nothing"])
    with pytest.raises(UserError, match=r"no run matches; the values of seed are: 0, 1$"):
        found.only(["method=lora", "seed=7"])
    with pytest.raises(UserError, match=r"no setting 'train\.nothing'"):
        found.only(["train.nothing=1"])


def test_the_selector_of_a_run_chooses_exactly_that_run(load):
    found = load(
        {**SMALL, "matrix": {**SMALL["matrix"], "train.lr": [1e-3, 1e-5], "evaluate.tasks": [["a"], []]}}
    )
    assert len(found.runs) == 16
    for item in found.runs:
        assert found.only(found.selector(item)).runs == (item,)


# --------------------------------------------------------------------------------------- overrides
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.steps=3", ("train.steps", 3)),
        ("train.lr=1e-3", ("train.lr", 1e-3)),
        ("train.lr=0.5", ("train.lr", 0.5)),
        ("evaluate.tasks=[a, b]", ("evaluate.tasks", ["a", "b"])),
        ("method={lora: {rank: 4}}", ("method", {"lora": {"rank": 4}})),
        ("train.clip=null", ("train.clip", None)),
        ("save_weights=true", ("save_weights", True)),
        ("label=a=b", ("label", "a=b")),
        (" label =x", ("label", "x")),
    ],
)
def test_an_override_reads_its_value_as_yaml(text, expected):
    override = parse_override(text)
    assert (override.key, override.value.plain()) == expected


@pytest.mark.parametrize("text", ["train.steps", "=3", " =3", "train.steps=[1"])
def test_an_override_that_says_nothing_is_refused(text):
    with pytest.raises(UserError, match="--set"):
        parse_override(text)


def test_overrides_win_over_rows_and_matrix(load):
    content = {"suite": "s", "matrix": {"train.lr": [0.1]}, "rows": [{"method": "full", "train.lr": 0.2}]}
    assert load(content, "train.lr=0.3").runs[0].train.lr == 0.3


# ---------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tran": {}}, "unknown key 'tran'; did you mean 'train'?"),
        ({"train": {"step": 1}}, "unknown key 'step' in train; did you mean 'steps'"),
        (
            {"data": {"source": "embedded", "wrld": "a"}},
            "unknown key 'wrld' in data of source embedded; did you mean 'world'",
        ),
        (
            {"model": {**HUB, "revison": "x"}},
            "unknown key 'revison' in model of source hub; did you mean 'revision'",
        ),
        (
            {"model": {**HUB, "path": "x"}},
            "unknown key 'path' in model of source hub; known: id, revision, source",
        ),
        (
            {"evaluate": {"perplexity": [{"protocol": "x", "path": []}]}},
            "unknown key 'path' in evaluate.perplexity.0; did you mean 'paths'",
        ),
        (
            {"method": {"name": "full", "option": {}}},
            "unknown key 'option' in method.0; did you mean 'options'",
        ),
        ({"train": {"zzz": 1}}, "unknown key 'zzz' in train; known: activation_checkpointing, batch, betas"),
        ({"method": "ful"}, "unknown method 'ful'; did you mean 'full'?"),
        ({"method": []}, "method: give a list with at least 1 of them, not an empty one"),
        ({"method": {"full": 3}}, "method.0.options: give a section, as {key: value}, not 3"),
        ({"method": {"full": {}, "lora": {}}}, "unknown key 'full' in method.0; known: name, options"),
        ({"model": {"source": "hubb"}}, "'embedded', 'shape', 'local', 'hub'"),
        ({"model": {"source": "hub"}}, "model.id is required and missing"),
        ({"data": {"source": "files", "paths": []}}, "data.paths: give a list with at least 1 of them"),
        ({"train": {"warmup": -1}}, "train.warmup: give a number of at least 0, not -1"),
        ({"train": {"batch": 0}}, "train.batch: give a number above 0, not 0"),
        ({"train": {"lr": "fast"}}, "train.lr: give a number, not the text 'fast'"),
        ({"train": {"lr": float("nan")}}, "train.lr: give a finite number, not nan"),
        ({"train": {"betas": [0.9, 1.0]}}, "train.betas.1: give a number below 1, not 1.0"),
        ({"train": {"schedule": "cosin"}}, "'cosine', 'linear' or 'constant', not 'cosin'"),
        ({"seed": -1}, "seed: give a number of at least 0, not -1"),
    ],
    ids=str,
)
def test_a_wrong_value_is_one_line_with_its_place_and_what_is_allowed(values, message):
    with pytest.raises(UserError) as caught:
        run(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "some.yaml:1: give a section, as {key: value}, not nothing"),
        ("- a\n- b\n", "some.yaml:1: give a section, as {key: value}, not a list"),
        ("suite: [", "some.yaml:1:9: not valid YAML"),
        ("suite: s\n\tbase: {}\n", "some.yaml:2:1: not valid YAML"),
        ({"base": {"method": "full"}}, "some.yaml:1: suite is required and missing"),
        ({"suite": "s", "matrx": {}}, "unknown key 'matrx'; did you mean 'matrix'?"),
        ({"suite": "s", "matrix": {"seed": 3}}, "some.yaml:2: matrix.seed: give a list, as [a, b], not 3"),
        ({"suite": "s", "matrix": {"method": []}}, "the suite has no runs"),
        ({"suite": "s", "matrix": {"train.lr + seed": [0.1]}}, "0.1 is not a list of 2 values"),
        ({"suite": "s", "rows": []}, "the suite has no runs"),
        ({"suite": "s"}, "some.yaml:1: method is required and missing"),
        ({"suite": "s", "matrix": {"mehtod": ["full"]}}, "unknown key 'mehtod'; did you mean 'method'"),
        ({"suite": "s", "rows": [{"method": "full", "seed.x": 1}], "base": {"seed": 1}}, "'seed' is a value"),
    ],
    ids=str,
)
def test_a_wrong_suite_is_one_line(load, content, message):
    with pytest.raises(UserError) as caught:
        load(content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_python_objects_in_yaml_are_refused(load):
    with pytest.raises(UserError, match=r"some.yaml:1: the tag !!python/object/apply:os.getcwd is not known"):
        load("suite: !!python/object/apply:os.getcwd []")


def test_text_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "some.yaml").write_bytes(b"suite: \xff")
    with pytest.raises(UserError, match="not valid YAML"):
        suite.load(tmp_path / "some.yaml")


def test_an_unknown_suite_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "shapes.yaml").write_text("suite: shapes\nbase: {method: full}\n")
    monkeypatch.setattr(suite, "suites_folder", lambda: tmp_path)
    assert suite.load("shapes").name == "shapes"
    with pytest.raises(UserError, match=r"no suite 'shape': .*did you mean 'shapes'"):
        suite.load("shape")


# ------------------------------------------------------------------------------------ tuning
def test_a_rate_that_is_said_to_be_tuned_must_be_one_that_was_tried(load):
    tuned = {**SMALL, "base": {"tuning": {"suite": "some_lr", "grid": [1e-3, 1e-2]}}}
    assert load(tuned, "train.lr=0.01").runs[0].tuning.grid == (1e-3, 1e-2)
    with pytest.raises(
        UserError, match=r"train.lr 0.02 is none of those that suite 'some_lr' tried \(0.001, 0.01\)"
    ):
        load(tuned, "train.lr=0.02")
    assert load(tuned, "train.lr=0.02", "tuning=null").runs[0].train.lr == 0.02
    assert load(tuned, "train.lr=0.02", "train.stage=compress").runs, "nothing is trained there"


@pytest.mark.parametrize("option", ["data.documents=50", "model={source: local, path: x}", "method=lora"])
def test_a_rate_is_not_tuned_for_what_an_option_makes_of_the_row(load, option):
    """And so may be any, as where a person says that it was not tuned."""
    tuned = {
        "suite": "small",
        "base": {"tuning": {"suite": "some_lr", "grid": [1e-3]}},
        "rows": [{"method": "full"}],
    }
    found = load(tuned, option, "train.lr=0.02").runs[0]
    assert (found.tuning, found.train.lr) == (None, 0.02)
    again = load(tuned, option, "tuning={suite: mine, grid: [0.001]}").runs[0]
    assert again.tuning.suite == "mine", "what is given by hand stays"
    assert load(tuned, "train.steps=5").runs[0].tuning.suite == "some_lr"


# ------------------------------------------------------------------------------------ what ships
@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_suite_that_ships_loads_with_its_methods_and_its_baseline(path):
    found = suite.load(path)
    assert found.name == path.stem
    assert found.baseline is None or found.baseline in {item.name for item in found.runs}
    for choice in {repr(choice): choice for item in found.runs for choice in item.method}.values():
        plugins.build(choice.name, choice.options)


def test_configs_suites_records_and_reports_do_not_import_torch():
    code = (
        "import sys, harness.suite, harness.record, harness.tables.report; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_label_is_taken_by_the_letter_even_where_it_is_yaml(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text('suite: s\nrows: [{label: "7b: full", method: full}, {label: "3", method: lora}]')
    found = suite.load(file)
    for condition in ("label=7b: full", 'label="7b: full"'):
        assert [run.name for run in found.only([condition]).runs] == ["7b: full"]
    assert [run.name for run in found.only(["label=3"]).runs] == ["3"]
    for run in found.runs:
        assert found.only(found.selector(run)).runs == (run,)
