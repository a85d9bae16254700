"""`lorebench tune` and `run --rates`, with a stub for the worker whose perplexity at each rate is known."""

from __future__ import annotations

import functools
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeping import STUB, starts, stub_settings, wait_until
from typer.testing import CliRunner, Result

from harness.cli.commands import app
from harness.cli.options import Selection
from harness.engine import runner
from harness.engine.process.lock import Lock
from harness.errors import UserError
from harness.record import read
from harness.tables.format import DASH

Tune = Callable[..., Result]
#: What each row scores at each rate; elsewhere 50.
INSIDE = {"0.001": 3.0, "0.003": 2.0, "0.01": 4.0, "0.03": "diverged"}
HIGH = {"0.001": 9.0, "0.003": 8.0, "0.01": 7.0, "0.03": 6.0, "0.1": 5.0, "0.3": 5.5}
LOW = {"0.001": 2.0, "0.0003": 1.5, "0.0001": 1.9}
WILD = {
    **dict.fromkeys(("0.0003", "0.001", "0.003", "0.01", "0.03"), "diverged"),
    "0.0001": 4.0,
    "3e-05": 4.5,
}


def suite(folder: Path, *rows: dict[str, Any], **more: Any) -> Path:
    """A suite of stub rows that train on the embedded text, with seeds 0 and 100."""
    path = folder / "some.yaml"
    content = {"suite": "some", "matrix": {"seed": [0, 100]}, "rows": list(rows), **more}
    path.write_text(json.dumps(content))
    return path


def row(label: str, perplexity: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"label": label, "method": {"stub:Stub": {"perplexity": perplexity}}, **settings}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runner.Settings:
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runner, "Settings", functools.partial(runner.Settings, command=STUB))
    return stub_settings(tmp_path)


@pytest.fixture
def tune(tmp_path: Path, settings: runner.Settings) -> Tune:
    def go(path: Path, *arguments: str) -> Result:
        given = ["tune", str(path), "--results", str(tmp_path / "results"), *arguments]
        return CliRunner().invoke(app, given, catch_exceptions=True)

    return go


def found(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The rows of the file by label."""
    content = yaml.safe_load((tmp_path / "results/stub-1/some_lr/rates.yaml").read_text())
    return {each["label"]: each for part in content["tuned"] for each in part["rows"]}


def test_each_row_gets_the_best_rate_and_the_grid_goes_on_until_that_is_inside(
    tmp_path: Path, tune: Tune, settings: runner.Settings
) -> None:
    rows = [row("inside", INSIDE), row("high", HIGH), row("low", LOW), row("wild", WILD)]
    said = tune(suite(tmp_path, *rows, row("base", {}, **{"train.stage": "compress"})))
    assert said.exit_code == 0, said.output
    assert {label: each["lr"] for label, each in found(tmp_path).items()} == {
        "inside": 0.003,
        "high": 0.1,
        "low": 0.0003,
        "wild": 0.0001,
    }
    assert found(tmp_path)["inside"]["perplexities"] == [3.0, 2.0, 4.0, None]
    assert found(tmp_path)["high"]["rates"] == [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    assert found(tmp_path)["wild"]["rates"] == [3e-05, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03]
    assert len(starts(settings)) == 4 * 4 + 2 + 2 + 3, "each once, and nothing beyond what is needed"
    (line,) = [line for line in said.output.splitlines() if line.split()[:1] == ["inside"]]
    assert line.split()[-7:-1] == ["3.000", "2.000*", "4.000", "diverged", DASH, DASH]
    last = said.output.strip().splitlines()[-1]
    assert last.endswith(f"--rates={tmp_path}/results/stub-1/some_lr/rates.yaml")


def test_the_same_command_runs_nothing_again_and_other_rates_only_what_is_new(
    tmp_path: Path, tune: Tune, settings: runner.Settings
) -> None:
    path = suite(tmp_path, row("inside", INSIDE), row("high", HIGH))
    tune(path, "--rates", "3e-3,1e-2", "--extend", "1")
    assert [each["lr"] for each in found(tmp_path).values()] == [0.003, 0.03]
    first = starts(settings)
    assert len(first) == 2 * 2 + 2
    said = tune(path, "--rates", "3e-3,1e-2", "--extend", "1")
    assert starts(settings) == first
    assert "0.03, the highest tried" in said.output
    tune(path)
    assert len(starts(settings)) == 8 + 2
    assert [each["lr"] for each in found(tmp_path).values()] == [0.003, 0.1]


def test_trials_have_a_seed_of_their_own_and_the_command_that_repeats_each(
    tmp_path: Path, tune: Tune, settings: runner.Settings
) -> None:
    path = suite(tmp_path, row("inside", INSIDE))
    tune(path)
    records = [read(found) for found in (tmp_path / "results/stub-1/some_lr").glob("*-s*.json")]
    assert {record.seed for record in records} == {101}, "0 and 100 are reported"
    assert all(
        record.config["evaluate"]["perplexity"][0]["protocol"] == "world-b-validation" for record in records
    )
    commands = [record.rerun.removeprefix(f"lorebench tune {path} ") for record in records]
    started = starts(settings)
    for command in commands:
        assert tune(path, *command.replace("'", "").split()).exit_code == 0
    assert starts(settings) == started
    assert len(set(commands)) == 4
    with pytest.raises(UserError, match="--seed 100: rows of suite some report this seed"):
        raise tune(path, "--seed", "100").exception or AssertionError
    assert tune(path, "--only", "seed=0").exit_code == 0
    assert starts(settings) == started, "what is not selected is reported, too"
    tune(path, "--seed", "7")
    assert len(starts(settings)) == 8


def test_rows_that_share_a_config_are_tried_once_and_rates_of_a_row_are_no_rows(
    tmp_path: Path, tune: Tune, settings: runner.Settings
) -> None:
    """Rates per row, an axis of rates, and two labels of one config but for the rate."""
    rows = [row("a", INSIDE, **{"train.lr": 0.5}), row("b", INSIDE, **{"train.lr": 0.7})]
    tune(suite(tmp_path, *rows, base={"train": {"steps": 5}}))
    assert len(starts(settings)) == 4
    assert [each["lr"] for each in found(tmp_path).values()] == [0.003, 0.003]
    (tmp_path / "results/stub-1/some_lr/rates.yaml").unlink()
    tune(
        suite(
            tmp_path,
            row("a", INSIDE),
            base={"train": {"steps": 5}},
            matrix={"train.lr": [0.1, 0.2], "seed": [0, 100]},
        )
    )
    assert list(found(tmp_path)) == ["a"]
    assert len(starts(settings)) == 4


def test_rows_of_one_label_are_told_apart(tmp_path: Path, tune: Tune) -> None:
    path = suite(tmp_path, row("a", INSIDE), matrix={"train.steps": [5, 6]})
    tune(path)
    file = tmp_path / "results/stub-1/some_lr/rates.yaml"
    rows = yaml.safe_load(file.read_text())["tuned"][0]["rows"]
    assert [each["only"] for each in rows] == [["train.steps=5"], ["train.steps=6"]]
    rows[1] |= {"lr": 0.01, "perplexities": [3.0, 2.0, 1.5, None]}
    content = yaml.safe_load(file.read_text())
    content["tuned"][0]["rows"] = rows
    file.write_text(json.dumps(content))
    chosen = Selection(str(path), rates=file).load().runs
    assert {(run.train.steps, run.train.lr) for run in chosen} == {(5, 0.003), (6, 0.01)}
    alone = Selection(str(path), rates=file, only=["train.steps=6"]).load().runs
    assert {run.train.lr for run in alone} == {0.01}


def test_rows_of_one_label_with_other_methods_are_refused(
    tmp_path: Path, tune: Tune, settings: runner.Settings
) -> None:
    """The rate of the first would be that of both."""
    path = suite(tmp_path, row("a", INSIDE), row("a", HIGH))
    assert "several methods have the label 'a'" in str(tune(path).exception)
    assert starts(settings) == []


def test_rows_tuned_one_by_one_share_a_file_and_a_repeated_trial_takes_nothing_from_it(
    tmp_path: Path, tune: Tune
) -> None:
    path = suite(tmp_path, row("inside", INSIDE), row("high", HIGH))
    tune(path, "--only", "label=inside")
    tune(path, "--only", "label=high")
    both = found(tmp_path)
    assert {label: each["lr"] for label, each in both.items()} == {"inside": 0.003, "high": 0.1}
    tune(path, "--only", "label=inside", "--rates", "1e-2", "--extend", "0")
    assert found(tmp_path) == both
    tune(path, "--only", "label=inside", "--rates", "1e-2,5e-2", "--extend", "0")
    assert (found(tmp_path)["inside"]["rates"], found(tmp_path)["high"]) == ([0.01, 0.05], both["high"])


def test_a_row_with_other_options_keeps_its_earlier_rate_until_it_is_tuned_again(
    tmp_path: Path, tune: Tune
) -> None:
    """The file then has rates of both, and of a file that knows no options the row is replaced."""
    path = suite(tmp_path, row("a", INSIDE))
    tune(path)
    file = tmp_path / "results/stub-1/some_lr/rates.yaml"
    suite(tmp_path, row("a", HIGH))
    with pytest.raises(UserError, match=r"row 'a' was tuned with method.stub:Stub.perplexity '{.*; run"):
        Selection(str(path), rates=file).load()
    tune(path)
    for scores, rate in ((INSIDE, 0.003), (HIGH, 0.1)):
        suite(tmp_path, row("a", scores))
        assert {run.train.lr for run in Selection(str(path), rates=file).load().runs} == {rate}
    content = yaml.safe_load(file.read_text())
    for each in content["tuned"]:
        del each["train"], each["rows"][1:], each["rows"][0]["method"]
    file.write_text(json.dumps(content))
    suite(tmp_path, row("a", LOW))
    tune(path)
    assert len(yaml.safe_load(file.read_text())["tuned"]) == 1


def test_a_file_that_holds_something_else_is_not_replaced(
    tmp_path: Path, tune: Tune, settings: runner.Settings
) -> None:
    path = suite(tmp_path, row("inside", INSIDE))
    before = path.read_bytes()
    assert "is there and holds no rates" in str(tune(path, "--out", str(path)).exception)
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps({**json.loads(before), "suite": "other"}))
    file = tmp_path / "rates.yaml"
    assert starts(settings) == []
    assert tune(path, "--out", str(file)).exit_code == 0
    assert "has rates of suite 'some'" in str(tune(other, "--out", str(file)).exception)
    assert path.read_bytes() == before


def test_a_file_that_was_edited_into_nonsense_is_replaced_and_that_is_said(
    tmp_path: Path, tune: Tune
) -> None:
    path = suite(tmp_path, row("inside", INSIDE), row("high", HIGH))
    tune(path)
    file = tmp_path / "results/stub-1/some_lr/rates.yaml"
    file.write_text(file.read_text().replace("lr: 0.003", "lr: 0.01"))
    said = tune(path, "--only", "label=high")
    assert "rates.yaml: replaced without what it held, as it cannot be read: " in said.output
    assert "row 'inside': lr 0.01 is not the best by its perplexities, 0.003" in said.output
    assert list(found(tmp_path)) == ["high"]


def test_two_that_write_one_file_at_once_lose_no_row(
    tmp_path: Path, tune: Tune, settings: runner.Settings
) -> None:
    path = suite(tmp_path, row("inside", INSIDE), row("high", HIGH))
    tune(path, "--only", "label=inside")
    file = tmp_path / "results/stub-1/some_lr/rates.yaml"
    both = file.read_bytes()
    tune(path, "--only", "label=high", "--out", str(tmp_path / "high.yaml"))
    file.unlink()
    lock = Lock(file.with_name(".rates.yaml.lock"))
    assert lock.take()
    with ThreadPoolExecutor() as pool:
        second = pool.submit(tune, path, "--only", "label=high")
        with pytest.raises(TimeoutError):
            second.result(timeout=1.5)  # it waits for the first, which has read the file
        file.write_bytes(both)
        lock.give()
        assert second.result().exit_code == 0
    assert {label: each["lr"] for label, each in found(tmp_path).items()} == {"inside": 0.003, "high": 0.1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_had_finished_when_it_was_killed_is_not_tried_again(
    tmp_path: Path, tune: Tune, settings: runner.Settings, number: signal.Signals
) -> None:
    path = suite(tmp_path, row("a", {**INSIDE, "0.01": "hang"}), row("inside", INSIDE))
    given = ["tune", str(path), "--results", str(tmp_path / "results")]
    code = (
        "import functools, signal, sys\nfrom harness.cli import main\nfrom harness.engine import runner\n"
        f"runner.Settings = functools.partial(runner.Settings, command={STUB!r})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        f"sys.argv = ['lorebench', *{given!r}]\nmain.main()\n"
    )
    said = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(starts(settings)) == 3)
    said.send_signal(number)
    assert said.stderr is not None
    *_, last = said.stderr.read().strip().splitlines()
    if number == signal.SIGKILL:
        assert said.wait() == -number
    else:
        assert (said.wait(), last) == (128 + number, "lorebench: stopped; the same command continues")
    folder = tmp_path / "results/stub-1/some_lr"
    assert not list(folder.glob("*rates*"))
    before = starts(settings)
    assert tune(path, "--only", "label=a", "--rates", "1e-3,3e-3", "--extend", "0").exit_code == 0
    assert starts(settings) == before, "both had finished"
    assert found(tmp_path)["a"]["perplexities"] == [3.0, 2.0]


BROKEN = {"100.0": "diverged", "300.0": 626.0, "1000.0": "diverged"}


def test_a_best_rate_above_failures_is_no_end_of_the_search(
    tmp_path: Path, tune: Tune, settings: runner.Settings
) -> None:
    """Rates far too high: a trial that happens to end is not the best because those around it failed."""
    lower = {"30.0": "diverged", "10.0": 9.0, "3.0": 4.0, "1.0": 5.0}
    path = suite(tmp_path, row("a", {**BROKEN, **lower}))
    said = tune(path, "--rates", "100,300,1000", "--extend", "1")
    assert said.exit_code == 0
    assert "a: 300, below it every trial failed; next: 30" in said.output
    assert "300, below it every trial failed" in said.output.splitlines()[-2]
    assert len(starts(settings)) == 3 + 1
    said = tune(path, "--rates", "100,300,1000")
    assert found(tmp_path)["a"]["rates"] == [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
    assert found(tmp_path)["a"]["lr"] == 3.0
    assert len(starts(settings)) == 3 + 4


def test_a_best_rate_that_leaves_the_model_as_it_was_is_said(tmp_path: Path, tune: Tune) -> None:
    """By the loss of the first update, which is in the record of every trial."""
    rows = [row("a", BROKEN), row("b", INSIDE), row("c", BROKEN)]
    rows[0]["method"]["stub:Stub"]["first_loss"] = math.log(600.1)
    rows[1]["method"]["stub:Stub"]["first_loss"] = math.log(600.1)
    said = tune(suite(tmp_path, *rows), "--rates", "1e-3,3e-3,300", "--extend", "0", "--only", "label=a")
    assert said.exit_code == 0
    assert "no better" not in said.output, "50 at 0.001 and 0.003"
    said = tune(suite(tmp_path, *rows), "--rates", "100,300,1000", "--extend", "0")
    assert said.exit_code == 0
    doubts = [line for line in said.output.splitlines() if "no better" in line]
    assert doubts == [
        "a: its best rate 300 leaves the model no better than before training: perplexity 626.000 on "
        "validation text, and 600.100 before on the first batch; try other rates by --rates"
    ]


def test_a_command_that_finds_no_rate_at_all_fails(tmp_path: Path, tune: Tune) -> None:
    said = tune(suite(tmp_path, row("a", dict.fromkeys(("0.001", "0.003"), "oom"))), "--rates", "1e-3,3e-3")
    assert said.exit_code == 1
    last = said.output.strip().splitlines()[-1]
    assert last.endswith("rates.yaml; none for these rows, as every trial failed; try others by --rates")
    assert found(tmp_path)["a"]["lr"] is None


def test_a_row_without_a_rate_is_said_and_can_be_left_out(tmp_path: Path, tune: Tune) -> None:
    failing = dict.fromkeys(("0.001", "0.003", "0.01", "0.03"), "oom")
    path = suite(tmp_path, row("big", failing), row("inside", INSIDE))
    said = tune(path)
    assert said.exit_code == 0
    assert "none: every trial failed" in said.output
    file = tmp_path / "results/stub-1/some_lr/rates.yaml"
    with pytest.raises(
        UserError,
        match="all 4 trials of row 'big' failed, so there is no rate; tune it with other --rates \\(row",
    ) as caught:
        Selection(str(path), rates=file).load()
    assert str(caught.value).count("--only") == 1
    assert {run.train.lr for run in Selection(str(path), rates=file, only=["label=inside"]).load().runs} == {
        0.003
    }


def test_a_refused_trial_ends_the_search_and_keeps_what_is_finished(
    tmp_path: Path, tune: Tune, settings: runner.Settings
) -> None:
    refused = {"label": "bad", "method": {"stub:Stub": {"do": "bad-input"}}}
    path = suite(tmp_path, row("inside", INSIDE), refused)
    assert "no such file" in str(tune(path).exception)
    assert not (tmp_path / "results/stub-1/some_lr/rates.yaml").exists()
    before = len(starts(settings))
    assert tune(path, "--only", "label=inside").exit_code == 0
    assert len(starts(settings)) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--rates", "1e-3,x"],
            r"--rates '1e-3,x': 'x' is no learning rate; give numbers from 1e-09 to 1000 with",
        ),
        (["--rates", "0.1,nan"], "'nan' is no learning rate"),
        (["--rates", "0.1,1e-1"], "a rate is given twice"),
        (["--rates", ""], "'' is no learning rate"),
        (["--extend", "-1"], "--extend -1: give a number from 0 to 20"),
        (["--out", "rates.txt"], "name a file that ends in .yaml or .yml, in a folder"),
        (
            ["--set", "data={source: random, seq_len: 8}"],
            "row 'inside' trains on random tokens, so there is no",
        ),
        (["--set", "train.stage=compress"], "none of the selected rows trains"),
        (["--set", "train.lr=0.1"], "--rates: train.lr is given twice, first by --set 'train.lr=0.1'"),
        (["--set", "train={lr: 0.1}"], "train.lr is given twice"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_starts(
    tmp_path: Path, tune: Tune, settings: runner.Settings, arguments: list[str], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        raise tune(suite(tmp_path, row("inside", INSIDE)), *arguments).exception or AssertionError
    assert starts(settings) == []


def test_the_help_offers_each_option_once() -> None:
    said = CliRunner().invoke(app, ["tune", "--help"]).output
    options = re.findall(r"^ +(--[a-z-]+)", said, re.MULTILINE)
    assert len(options) == len(set(options)) > 10


def test_a_dry_run_shows_the_first_grid_and_starts_nothing(
    tmp_path: Path, tune: Tune, settings: runner.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.engine.sweep import resolution

    monkeypatch.setattr(resolution, "resolve", functools.partial(resolution.resolve, command=STUB))
    said = tune(suite(tmp_path, row("inside", INSIDE)), "--dry-run")
    assert "4 of 4 runs would start" in said.output
    assert starts(settings) == []
