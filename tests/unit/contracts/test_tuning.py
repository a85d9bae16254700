"""Trials of rates, the series of rates, and the file of rates: of one suite, one model and one text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import rates, tuning
from harness.cli.options import Selection
from harness.config import FilesData, Run, TuningConfig
from harness.engine.process.job import Job
from harness.engine.run import checks
from harness.engine.sweep import resolution
from harness.errors import UserError
from harness.inputs import as_of
from harness.record import Training
from tests.docs.sources import ROOT

RAW = ROOT / "results" / "raw"


# ----------------------------------------------------------------------------------------- trials
@pytest.mark.parametrize("name", ["finetune", "compressed", "welore", "pretrain"])
def test_trials_of_the_suites_that_ship_are_the_runs_of_the_reference_records(name: str) -> None:
    """So the records are read, and nothing runs again."""
    reported = Selection(name).load()
    trials = tuning.trials(reported, tuning.seed_for(reported))
    grids = {run.name: run.tuning.grid for run in reported.runs if run.tuning}
    runs = [
        tuning.at_rate(replace(trials, runs=(run,)), rate) for run in trials.runs for rate in grids[run.name]
    ]
    (folder,) = RAW.glob(f"*/{trials.name}")
    assert {run.run_id for run in checks.resolve(runs)} == {path.stem for path in folder.glob("*-s*-r*.json")}


def test_a_user_s_text_keeps_a_share_of_its_training_documents_for_trials() -> None:
    given = ["train.lr=0.5", "evaluate.limit=3", "evaluate.batch=4"]
    chosen = Selection("finetune", data=["a.txt"], settings=given[:1] + given[2:]).load()
    (run, *_) = tuning.trials(chosen, 7).runs
    assert isinstance(run.data, FilesData)
    assert (run.data.validation, run.data.holdout, run.seed, run.save_weights) == (0.1, 0.1, 7, False)
    assert [each.protocol for each in run.evaluate.perplexity] == ["validation"]
    assert (run.evaluate.tasks, run.evaluate.batch) == ((), 4)
    own = Selection("finetune", data=["a.txt"], settings=["data.validation=0.3"]).load()
    assert {run.data.validation for run in tuning.trials(own, 7).runs} == {0.3}  # type: ignore[union-attr]


def test_rates_go_on_by_the_series_over_the_decades() -> None:
    series = [3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0]
    for lower, higher in pairwise(series):
        assert tuning.neighbour(lower, above=True) == higher
        assert tuning.neighbour(higher, above=False) == lower
        assert tuning.neighbour(1.1 * lower, above=True) == higher
        assert tuning.neighbour(0.9 * higher, above=False) == lower


def test_the_search_ends_where_rates_are_no_longer_allowed() -> None:
    """So the command in a record, with its rate under `--rates`, is not refused."""
    assert (tuning.neighbour(3e-9, above=False), tuning.neighbour(300, above=True)) == (1e-9, 1e3)
    assert (tuning.neighbour(1e-9, above=False), tuning.neighbour(1e3, above=True)) == (None, None)
    assert tuning.beyond({1e-9: 2.0, 3e-9: 3.0}, diverged=True) == []
    assert tuning.beyond({300.0: 3.0, 1e3: 2.0}, diverged=True) == []
    assert tuning.beyond({1e-9: math.inf, 3e-9: 3.0}, diverged=True) == [1e-8]
    assert tuning.beyond({1e-9: math.inf}, diverged=True) == []


@pytest.mark.parametrize(
    ("tried", "best", "beyond"),
    [
        ({0.001: 3.0, 0.003: 2.0, 0.01: 4.0}, 0.003, []),
        ({0.001: 3.0, 0.003: 4.0}, 0.001, [0.0003]),
        ({0.001: 3.0, 0.003: 2.0}, 0.003, [0.01]),
        ({0.005: 3.0}, 0.005, [0.003, 0.01]),
        ({0.001: 2.0, 0.003: 2.0, 0.01: 2.0}, 0.003, []),
        ({0.001: 2.0, 0.003: math.inf}, 0.001, [0.0003]),
        ({0.001: 3.0, 0.003: 2.0, 0.01: math.inf}, 0.003, []),
        ({0.001: 3.0, 0.003: math.inf, 0.01: 2.0, 0.03: 4.0}, 0.01, []),
        ({100.0: math.inf, 300.0: 626.0, 1000.0: math.inf}, 300.0, [30.0]),
        ({10.0: 9.0, 30.0: math.inf, 100.0: math.inf, 300.0: 626.0}, 10.0, [3.0]),
        ({0.001: math.inf, 0.003: 2.0, 0.01: 2.0, 0.03: 4.0}, 0.01, []),
        ({0.001: math.inf, 0.003: math.inf}, None, [0.0003]),
    ],
)
def test_the_grid_goes_on_where_the_best_rate_is_at_its_edge(
    tried: dict[float, float], best: float | None, beyond: list[float]
) -> None:
    assert tuning.best(tried) == best
    assert tuning.beyond(tried, diverged=True) == beyond
    assert tuning.beyond(tried, diverged=False) == ([] if best is None else beyond)


@pytest.mark.parametrize(
    ("tried", "says"),
    [
        ({0.001: 3.0, 0.003: 2.0, 0.01: 4.0}, "0.003"),
        ({0.001: 3.0, 0.003: 2.0, 0.01: math.inf}, "0.003"),
        ({0.001: 2.0, 0.003: 3.0}, "0.001, the lowest tried"),
        ({0.001: 3.0, 0.003: 2.0}, "0.003, the highest tried"),
        ({0.005: 3.0}, "0.005, the lowest tried and the highest tried"),
        ({100: math.inf, 300: 626.0, 1000: math.inf}, "300, below it every trial failed"),
        ({100: math.inf, 300: 626.0}, "300, below it every trial failed and the highest tried"),
        ({1e-9: 2.0, 3e-9: 3.0}, "1e-09, the lowest allowed"),
        (
            {1e-9: math.inf, 3e-9: 3.0, 1e-8: 4.0},
            "3e-09, below it every trial failed, down to the lowest allowed",
        ),
        ({300: 3.0, 1000: 2.0}, "1000, the highest allowed"),
        ({0.001: math.inf}, "none: every trial failed"),
        ({1e-9: math.inf}, "none: every trial failed, down to the lowest allowed"),
    ],
)
def test_what_bounds_no_better_rate_is_said(tried: dict[float, float], says: str) -> None:
    assert tuning.in_words(tried) == says


@pytest.mark.parametrize(
    ("training", "before"),
    [
        ({"steps": 1, "tokens": 8, "first_loss": math.log(600.0), "last_loss": 1.0}, 600.0),
        ({"steps": 2, "tokens": 8, "loss": [math.log(600.0), 1.0]}, 600.0),
        ({"steps": 1, "tokens": 8, "first_loss": 1e4, "last_loss": 1.0}, math.inf),
        ({"steps": 0, "tokens": 0}, None),
        (None, None),
    ],
)
def test_the_first_loss_tells_what_the_model_was_before_training(
    tmp_path: Path, training: dict[str, Any] | None, before: float | None
) -> None:
    record = Job(Run.model_validate({"method": "full"}), "some", tmp_path / "x", "cpu", tmp_path, "").blank()
    record.training = None if training is None else Training.model_validate(training)
    found = tuning.untrained(record)
    assert found == (None if before is None else pytest.approx(before))


# ------------------------------------------------------------------------------------------- file
ROWS = {
    "suite": "some",
    "base": {"train": {"steps": 5}, "tuning": {"suite": "old", "grid": [1e-3]}},
    "rows": [
        {"label": "a", "method": "full"},
        {"label": "1e-3", "method": "lora"},
        {"label": "base", "method": "full", "train.stage": "compress"},
    ],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "some.yaml"
    path.write_text(json.dumps(ROWS))
    return path


def written(
    place: Path, inputs: dict[str, str] | None = None, labels: tuple[str, ...] = ("a", "1e-3")
) -> Path:
    """A file of rates for the rows of the suite as it stands there."""
    run = Selection(str(place)).load().runs[0].model_dump(mode="json")
    rows = tuple(
        rates.Row(label=label, lr=1e-5, rates=(1e-5, 0.02), perplexities=(2.5, None)) for label in labels
    )
    tuned = rates.TunedOn(model=run["model"], data=run["data"], inputs=inputs or {}, rows=rows)
    path = place.with_name("rates.yaml")
    rates.Rates(suite="some", trials="some_lr", seed=100, tuned=(tuned,)).write(path)
    return path


def test_each_row_that_trains_gets_its_rate_and_says_where_it_is_from(place: Path) -> None:
    file = written(place, {"weights": "abc"})
    a, lora, base = Selection(str(place), rates=file).load().runs
    assert (a.train.lr, lora.train.lr) == (1e-5, 1e-5)
    assert a.tuning == TuningConfig(suite="some_lr", grid=(1e-5, 0.02), inputs={"weights": "abc"})
    assert base.train.lr == 1e-3, "nothing is trained there"
    assert rates.read(file).tuned[0].rows[1].label == "1e-3", "text, though it looks like a number"


def test_the_id_of_a_run_is_that_of_its_rate_alone(place: Path) -> None:
    tuned = Selection(str(place), rates=written(place)).load().runs[0]
    by_hand = (
        Selection(str(place), settings=["train.lr=1e-5", "tuning=null"], only=["label=a"]).load().runs[0]
    )
    assert (tuned.run_id, by_hand.tuning) == (by_hand.run_id, None)


def test_a_row_without_a_rate_is_refused_unless_it_is_left_out(place: Path) -> None:
    file = written(place, labels=("a",))
    with pytest.raises(
        UserError, match=r"rates.yaml: no rate for row '1e-3'; it has a: tune that row, too \(row '1e-3'; sel"
    ) as caught:
        Selection(str(place), rates=file).load()
    assert str(caught.value).count("--only") == 1
    assert len(Selection(str(place), rates=file, only=["label=a", "label=base"]).load().runs) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"settings": ["train.lr=0.1"]}, r"train.lr is given twice, first by --set 'train.lr=0.1'"),
        ({"settings": ["train={lr: 0.1}"]}, r"train.lr is given twice"),
        ({"settings": ["tuning=null"]}, r"tuning is given twice"),
        (
            {"data": ["x/notes.txt"]},
            r"tuned with data.source 'embedded', .* but this is .*data.paths 'notes.txt'",
        ),
        (
            {"model": "org/name@main"},
            r"tuned with model.source 'embedded', but this is model.source 'hub', ",
        ),
        (
            {"settings": ["data.seq_len=64"]},
            r"data.seq_len 128, but this is data.seq_len 64; run `lorebench tune some",
        ),
    ],
)
def test_rates_are_for_what_they_were_tuned_for(place: Path, options: dict[str, Any], says: str) -> None:
    file = written(place)
    with pytest.raises(UserError, match=says) as caught:
        Selection(str(place), rates=file, **options).load()
    assert "\n" not in str(caught.value)


def test_the_seed_of_the_trials_is_not_reported(place: Path) -> None:
    file = written(place)
    for given in ({"seed": [0, 100]}, {"settings": ["seed=100"]}):
        with pytest.raises(UserError, match=r"rates.yaml: seed 100 is that of its trials; report others"):
            Selection(str(place), rates=file, **given).load()  # type: ignore[arg-type]
    chosen = Selection(str(place), rates=file, seed=[0, 100], only=["seed=0"]).load().runs
    assert {(run.seed, run.train.lr) for run in chosen} == {(0, 1e-5), (0, 1e-3)}


def test_the_command_that_tunes_takes_what_changes_the_suite_but_rates() -> None:
    given = ["train.steps=5", "train.lr=0.1", "tuning=null"]
    chosen = Selection("welore", model="./mine", settings=given, rates=Path("r.yaml"), seed=[1])
    assert chosen.tune() == "lorebench tune welore --model=./mine --set=train.steps=5"


def test_settings_that_one_side_lacks_are_named(place: Path) -> None:
    data = {"source": "files", "paths": ["a.txt"], "separator": "|"}
    content = json.loads(place.read_text())
    place.write_text(json.dumps({**content, "base": {"data": data}}))
    file = written(place)
    del data["separator"]
    place.write_text(json.dumps({**content, "base": {"data": data}}))
    with pytest.raises(
        UserError, match=r"tuned with data.separator '\|', but this is no data.separator; run"
    ):
        Selection(str(place), rates=file).load()


def tuned(place: Path) -> Path:
    """A file as `tune` writes it, with what each row of the suite was tuned with."""
    runs = [run for run in Selection(str(place)).load().runs if run.train.stage != "compress"]
    found = []
    for run in runs:
        known = run.model_dump(mode="json")
        row = {"label": run.name, "method": known["method"], "lr": 0.02, "rates": [0.02], "perplexities": [2]}
        train = {key: item for key, item in known["train"].items() if key not in ("lr", "steps")}
        found.append({"model": known["model"], "data": known["data"], "inputs": {}, "train": train})
        found[-1]["rows"] = [row]
    path = place.with_name("rates.yaml")
    content = {"suite": "some", "trials": "some_lr", "seed": 100, "tuned": found}
    rates.Rates.model_validate(content).write(path)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": {"lora": {"rank": 8}}}, "no method.lora.rank, but this is method.lora.rank 8; run"),
        ({"method": "full"}, "method 'lora', but this is method 'full'; run"),
        ({"method": ["lora", "velora"]}, "method 'lora', but this is method 'lora, velora'; run"),
        ({"train.batch": 3}, "train.batch 16, but this is train.batch 3; run"),
        (
            {"train.betas": [0.9, 0.95]},
            r"train.betas '\[0.9, 0.999\]', but this is train.betas '\[0.9, 0.95\]'; run",
        ),
    ],
)
def test_a_row_that_was_changed_since_has_no_rate(place: Path, change: dict[str, Any], says: str) -> None:
    file, content = tuned(place), json.loads(place.read_text())
    rows = [*content["rows"][:1], {**content["rows"][1], **change}, *content["rows"][2:]]
    place.write_text(json.dumps({**content, "rows": rows}))
    with pytest.raises(UserError, match=rf"rates.yaml: row '1e-3' was tuned with {says}") as caught:
        Selection(str(place), rates=file).load()
    assert "\n" not in str(caught.value)
    left = Selection(str(place), rates=file, only=["label=a", "label=base"]).load().runs
    assert [run.train.lr for run in left] == [0.02, 1e-3]


@pytest.mark.parametrize("change", [{}, {"steps": 50}, {"activation_checkpointing": True}])
def test_a_longer_training_takes_the_rate_of_a_shorter(place: Path, change: dict[str, Any]) -> None:
    settings = [f"train.{key}={json.dumps(item)}" for key, item in change.items()]
    runs = Selection(str(place), rates=tuned(place), settings=settings).load().runs
    assert [run.train.lr for run in runs] == [0.02, 0.02, 1e-3]


def edited(place: Path, change: Callable[[list[Any]], Any]) -> Path:
    """A file of rates as someone has changed it by hand."""
    file = written(place)
    content = yaml.safe_load(file.read_text())
    change(content["tuned"])
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tuned: tuned.append(tuned[0]), r"2 rates for row 'a'; leave one of them there"),
        (lambda tuned: tuned[0].update(data={"source": "files", "paths": 5}), "data.paths: give a list"),
        (lambda tuned: tuned[0].update(data={"source": "files", "paths": [5]}), "data.paths.0: give text"),
        (lambda tuned: tuned[0].update(model={}), "tuned.0.model"),
        (lambda tuned: tuned.clear(), "tuned: give a list with at least 1"),
        (lambda tuned: tuned[0]["rows"].clear(), "rows: give a list with at least 1"),
        (lambda tuned: tuned[0]["rows"][0].update(lr="x"), "lr: give a number"),
        (
            lambda tuned: tuned[0]["rows"][0].update(lr=0.02),
            "row 'a': lr 0.02 is not the best by its perplexities, 1e-05; run `lorebench tune` again, "
            "or give a rate of your own by --set train.lr=RATE in place of --rates$",
        ),
        (
            lambda tuned: tuned[0]["rows"][0].update(lr=0.5),
            "row 'a': lr 0.5 is none of its rates; run `lorebench tune` again, or give a rate of your own by",
        ),
        (
            lambda tuned: tuned[0]["rows"][0].update(perplexities=[2.5, 2.4]),
            "row 'a': lr 1e-05 is not the best by its perplexities, 0.02; run",
        ),
        (
            lambda tuned: tuned[0]["rows"][0].update(perplexities=[None, None]),
            "row 'a': lr 1e-05 is not the best by its perplexities, null, as every trial failed; run",
        ),
        (
            lambda tuned: tuned[0]["rows"][0].update(lr=None),
            "row 'a': lr null is not the best by its perplexities, 1e-05; run",
        ),
        (
            lambda tuned: tuned[0]["rows"][0].update(rates=[1e-5, 1e-5]),
            "row 'a': rate 1e-05 is given twice; leave one, with its perplexity",
        ),
    ],
)
def test_a_file_that_was_edited_into_nonsense_is_refused(
    place: Path, change: Callable[[list[Any]], Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Selection(str(place), rates=edited(place, change)).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("seed", "says"), [(-5, "number of at least 0"), (1.5, "whole number")])
def test_a_file_of_rates_has_a_seed_that_trials_can_have(place: Path, seed: float, says: str) -> None:
    file = written(place)
    file.write_text(json.dumps({**yaml.safe_load(file.read_text()), "seed": seed}))
    with pytest.raises(UserError, match=rf"rates.yaml:\d+: seed: give a .*{says}"):
        Selection(str(place), rates=file).load()


def test_of_equally_good_rates_a_file_may_give_each() -> None:
    for rate in (1e-5, 0.02):
        row = {"label": "a", "lr": rate, "rates": (1e-5, 0.02), "perplexities": (2.5, 2.5)}
        assert rates.Row.model_validate(row).lr == rate


def test_rates_and_suites_may_be_named_yml(place: Path) -> None:
    file, mine = written(place).rename(place.with_name("rates.yml")), place.rename(place.with_suffix(".yml"))
    assert Selection(str(mine), rates=file).load().runs[0].train.lr == 1e-5


def test_of_many_rows_with_a_rate_some_are_named(place: Path) -> None:
    file = written(place, labels=tuple(f"r{number}" for number in range(500)))
    with pytest.raises(UserError, match=r"it has r0, r1, .*, r19 and 480 more: tune that row, too \("):
        Selection(str(place), rates=file).load()


def test_rates_of_another_suite_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"tuned for suite 'some', not for 'finetune'"):
        Selection("finetune", rates=written(place)).load()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "rates.yaml"),
        ("suite: some\n", "rates.yaml.*trials"),
        ("[1, 2]", "rates.yaml"),
        ("\0", "rates.yaml"),
        (None, r"no such file; `lorebench tune SUITE` writes one"),
    ],
)
def test_a_file_that_is_none_of_rates_is_refused(place: Path, content: str | None, says: str) -> None:
    file = place.with_name("rates.yaml")
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        Selection(str(place), rates=file).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"lr": 0.5}, {"lr": -1.0}, {"perplexities": (2.0,)}, {"perplexities": (0.5, 2.0)}]
)
def test_a_row_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    row = {"label": "a", "lr": 1e-3, "rates": (1e-3, 3e-3), "perplexities": (2.0, 3.0)}
    with pytest.raises(ValueError, match=r"lr|perplexities"):
        rates.Row.model_validate({**row, **change})


def test_other_weights_under_the_same_name_are_no_longer_what_was_tuned_for(place: Path) -> None:
    """Both are asked for in the same words, so hashes tell: those of the file and of what a worker finds."""
    (run, *_) = (
        Selection(str(place), rates=written(place, {"weights": "abc", "text a.txt": "def"})).load().runs
    )
    found = {run.run_id: {"weights": "abc", "text a.txt": "other", "task t": "x"}}
    resolution._check_tuned([run], {run.run_id: {"weights": "abc"}})
    with pytest.raises(
        UserError, match=r"^--rates .*: text a.txt: not what the learning rate of row 'a' was tuned"
    ):
        resolution._check_tuned([run], found)


def test_a_record_is_tuned_where_its_run_is_today(tmp_path: Path) -> None:
    run = Run.model_validate({"method": "full", "label": "a", "tuning": {"suite": "s_lr", "grid": [1e-3]}})
    bare = run.model_copy(update={"tuning": None})
    for was, now in ((bare, run), (run, bare), (run, run)):
        record = Job(was, "some", tmp_path / was.run_id, "cpu", tmp_path, "").blank()
        assert as_of(record, now).config == now.canonical
        assert as_of(record, now).run_id == record.run_id
