"""The command line: a user's mistake is one line and exit code 2, and a finished run is never done twice."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from harness import record, series
from harness.cli import commands, plan, show
from harness.cli import main as cli
from harness.config import Run
from harness.engine import runner, worker
from harness.engine.sweep import resolution
from harness.errors import UserError
from harness.plugins import find
from harness.registry import REGISTRY
from harness.suite import Suite, load, parse_override
from tests.support import forked

ROOT = Path(__file__).resolve().parents[3]
NANO: dict[str, Any] = {
    "suite": "nano",
    "baseline": "full",
    "base": {
        "model": {"source": "shape", "name": "nano"},
        "data": {"source": "random", "seq_len": 16},
        "train": {"stage": "pretrain", "steps": 8, "batch": 2},
    },
    "rows": [
        {"label": "full", "method": "full"},
        {
            "label": "low rank",
            "method": {"lora": {"rank": 2}},
            "train.stage": "finetune",
            "save_weights": True,
        },
    ],
}


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


Lorebench = Callable[..., Said]


@pytest.fixture
def lorebench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Lorebench:
    """The command line within this process."""
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["lorebench", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture
def resolve_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are completed within this process, which has imported what that takes seconds to import."""

    def resolve(runs: Sequence[Run], device: str = "auto", *_: Any, **reads: Any) -> resolution.Plan:
        cache = str(reads["cache"]) if reads.get("cache") else None
        written = [run.model_dump(mode="json") for run in runs]
        answer = worker.resolve({"runs": written, "device": device, **reads, "cache": cache})
        resolved = tuple(Run.model_validate(run) for run in answer["runs"])
        hashes = zip(resolved, answer["inputs"] or (), strict=False)
        inputs = {run.run_id: found for run, found in hashes}
        return resolution.Plan(resolved, answer["device"], answer["machine"], inputs=inputs)

    monkeypatch.setattr(resolution, "resolve", resolve)


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Suite, runner.Settings, Any]]:
    """What would be run: suite, settings and the function that gives the command to repeat a run.

    Nothing is forecast at scale for it, which would take a minute for a suite that ships.
    """
    calls: list[tuple[Suite, runner.Settings, Any]] = []

    def sweep(suite: Suite, settings: runner.Settings, display: Any, rerun: Any) -> runner.Sweep:
        calls.append((suite, settings, rerun))
        return runner.Sweep(tmp_path)

    monkeypatch.setattr(runner, "sweep", sweep)
    monkeypatch.setattr(plan, "forecast_at_scale", lambda suite: None)
    return calls


def suite_file(folder: Path, content: Any = NANO, name: str = "nano.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def with_row(**row: Any) -> dict[str, Any]:
    return {**NANO, "rows": [{"label": "full", **row}]}


# ----------------------------------------------------------------------------------------- a user's mistakes
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (with_row(method="full", train={"stpes": 3}), "unknown key 'stpes' in train; did you mean 'steps'"),
        (with_row(method="fulll"), "unknown method 'fulll'; did you mean 'full'?"),
        (with_row(method="full", **{"train.lr": -1}), "train.lr: give a number above 0, not -1"),
        ({**NANO, "matirx": {}}, "unknown key 'matirx'; did you mean 'matrix'?"),
        ("suite: nano\nbase: {train: [\n", "nano.yaml:3:1: not valid YAML"),
        ("suite: nano\n\tbase: 1\n", "nano.yaml:2:1: not valid YAML"),
        ("- 1\n- 2\n", "nano.yaml:1: give a section, as {key: value}"),
        ("", "nano.yaml:1: give a section, as {key: value}"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line(
    lorebench: Lorebench, tmp_path: Path, content: Any, says: str
) -> None:
    said = lorebench("run", suite_file(tmp_path, content))
    assert (said.code, said.out) == (2, "")
    assert says in said.err
    assert said.err.startswith("lorebench: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "train.steps"], "--set 'train.steps': write KEY=VALUE, for example train.steps=100"),
        (["--set", "train.steps=many"], "train.steps: give a whole number, not the text 'many'"),
        (["--set", "train.stepz=3"], "unknown key 'stepz' in train; did you mean 'steps'"),
        (["--set", "train.lr=[1"], "--set 'train.lr=[1': the value is not valid YAML"),
        (["--set", "method=fulll"], "unknown method 'fulll'; did you mean 'full'?"),
        (["--only", "full"], "--only 'full': write KEY=VALUE"),
        (["--only", "label=none"], "--only 'label=none': no run matches; the labels are: full, low rank"),
        (["--only", "train.stepz=3"], "no setting 'train.stepz' to select by"),
        (["--set", "train.lr=0x_"], "train.lr: give a number, not the text '0x_'"),
        (["--set", "train.lr=!!float abc"], "'abc' is no float; leave the tag out"),
        (["--set", f"seed={'9' * 5000}"], "an integer of 5,000 digits is too large"),
        (["--set", f"label={'[' * 2000}"], "nested more than 40 deep"),
        (["--set", "label=&a [*a]"], "an alias stands inside the value that it repeats"),
        (["--set", "label=2001-13-45"], "baseline 'full' names no row; the labels are: 2001-13-45"),
        (["--only", "method=[full]"], "no run matches; the values of method are: full, lora"),
        (["--only", "seed=5"], "no run matches; the values of seed are: 0"),
        (["--set", "steps=3"], "--set 'steps=3': unknown key 'steps'; did you mean 'train.steps'?"),
        (["--set", "train.seq_len=3"], "unknown key 'seq_len' in train; did you mean 'data.seq_len'?"),
        (["--set", "name=x"], "unknown key 'name'; did you mean 'model.name' or 'data.name'?"),
        (["--only", "steps=3"], "no setting 'steps' to select by; did you mean 'train.steps'?"),
        (["--only", "data.seq_len=3"], "the values of data.seq_len are: 16"),
        (["--only", "train.lr=[1"], "--only 'train.lr=[1': the value is not valid YAML"),
        (["--model", "~nosuchuser/x"], "--model '~nosuchuser/x': no such user"),
        (["--model", "a/b/c"], "--model 'a/b/c': neither a folder here nor a hub id"),
        (["--model", "x" * 5000 + "/y"], "neither a folder here nor a hub id"),
        (["--model", "https://user:PASS@host/x"], "--model: the value holds a user name or password"),
        (["--model=user:PASS@host/x"], "--model: the value holds a user name or password"),
        (["--data", "https://user:PASS@host/x.txt"], "--data: the value holds a user name or password"),
        (
            ["--set", "model={source: hub, id: 'user:PASS@h'}"],
            "--set: the value holds a user name or password",
        ),
        (["--set", "evaluate.task_data=https://u:PASS@h"], "--set: the value holds a user name or password"),
        (["https://user:PASS@host/x"], "argument 5: the value holds a user name or password"),
        (["--results", "x\udcff"], "--results: not UTF-8 text"),
        (["--data", "~nosuchuser/x"], "--data '~nosuchuser/x': no such user"),
        (["--data", "a:b"], "--data 'a:b': neither a file here nor a `datasets` id"),
        (["--seed", str(2**70)], f"--seed {2**70}: give a whole number from 0 to"),
        (["--seed", "x"], "Invalid value for '--seed': give a whole number; see lorebench run --help"),
        (["--seed"], "lorebench: Option '--seed' requires an argument; see lorebench run --help"),
        (["--full=yes"], "lorebench: Option '--full' does not take a value; see lorebench run --help"),
        (["--nothing"], "lorebench: No such option: --nothing"),
        (["more"], "Got unexpected extra argument"),
        (["--budget", "soon"], "'soon' is not a duration; write for example 90s, 25m or 6h"),
        (["--budget", ""], "'' is not a duration"),
        (["--deadline", "-5m"], "'-5m' is not a duration"),
        (["--deadline", "nan"], "'nan' is not a duration"),
        (["--deadline", "0"], "'0' is not a duration"),
        (["--data", "a.txt", "--data", "some/set"], "not a mixture"),
        (["--device", "gpu"], "no device 'gpu'; use auto, cpu, cuda or cuda:N"),
        (
            ["--set", "method={uniform: {err: 1.5}}", "--set", "label=full"],
            "method uniform: err: give a number below 1, not 1.5",
        ),
        (
            ["--set", "method={uniform: {err: 0}}", "--set", "label=full"],
            "method uniform: err: give a number above 0, not 0",
        ),
        (
            ["--set", "method={lora: {ranc: 1}}", "--set", "label=full"],
            "method lora: unknown key 'ranc'; did you mean 'rank'?",
        ),
        (["--data", "./none.txt"], "no file at none.txt"),
        (["--model", "./none"], "no model folder at none"),
        (["--set", "suite=x"], "unknown key 'suite'"),
    ],
)
@pytest.mark.usefixtures("resolve_here")
def test_a_mistake_on_the_command_line_is_one_line(
    lorebench: Lorebench, tmp_path: Path, arguments: list[str], says: str
) -> None:
    said = lorebench("run", suite_file(tmp_path), "--results", tmp_path / "runs", *arguments)
    assert (said.code, said.out) == (2, "")
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not list(tmp_path.glob("runs/*/*/*.json")), "nothing has started"


def test_a_mistake_before_the_command_is_one_line(lorebench: Lorebench) -> None:
    said = lorebench("--version=3")
    says = "lorebench: Option '--version' does not take a value; see lorebench --help\n"
    assert (said.code, said.out, said.err) == (2, "", says)


@pytest.mark.parametrize("name", ["welor", "./none.yaml", "none/welore"])
def test_an_unknown_suite_is_refused(lorebench: Lorebench, name: str) -> None:
    for command in ("run", "report", "plan"):
        said = lorebench(command, name)
        assert said.code == 2
        assert said.err.startswith(
            f"lorebench: no suite {str(Path(name))!r}: neither a file nor a suite that "
        )
        assert said.err.count("\n") == 1
    assert "did you mean 'welore'" in lorebench("run", "welor").err


LONG = "x" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", LONG),
        ("report", "SUITE", "--results", LONG),
        ("report", "SUITE", "--out", f"{LONG}.html"),
        ("report", "SUITE", "--out", "page.html", "--history", LONG),
        ("history", LONG),
        ("history", "SUITE", "--results", LONG),
        ("history", "SUITE", "--out", f"{LONG}.csv"),
        ("paper", "welore", "--results", LONG),
        ("plan", LONG),
        ("plan", "SUITE", "--out", f"{LONG}.json"),
        ("export", "0123", "model", "--results", LONG),
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
@pytest.mark.usefixtures("resolve_here")
def test_a_path_that_no_system_takes_is_one_line(
    lorebench: Lorebench, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    suite = str(suite_file(tmp_path))
    said = lorebench(*(suite if word == "SUITE" else word for word in arguments))
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("lorebench: ")
    assert said.err.count("\n") == 1


def test_a_line_about_a_mistake_stays_one_whatever_is_in_it(
    lorebench: Lorebench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def app(**_: object) -> None:
        raise UserError("the row a\nb\x1b[31m is unknown")

    monkeypatch.setattr(commands, "app", app)
    assert lorebench() == Said(2, "", "lorebench: the row a b [31m is unknown\n")


def test_a_defect_is_not_taken_for_a_mistake(lorebench: Lorebench, monkeypatch: pytest.MonkeyPatch) -> None:
    def app(**_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(commands, "app", app)
    with pytest.raises(RuntimeError, match="a defect"):
        lorebench()


def test_the_export_of_an_unknown_run_is_refused(lorebench: Lorebench, tmp_path: Path) -> None:
    said = lorebench("export", "0123", tmp_path / "model", "--results", tmp_path)
    assert said == Said(
        2,
        "",
        f"lorebench: no record begins with '0123' under {tmp_path}; "
        "give a whole run id or the path of a record\n",
    )


@pytest.mark.usefixtures("resolve_here")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"schema_version": 99}', "schema version 99, this lorebench reads 1; use another --results folder"),
        ('{"schema', "not a record"),
        ("[]", "schema version None"),
    ],
)
def test_a_record_that_cannot_be_read_stops_before_anything_runs(
    lorebench: Lorebench, tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "runs" / worker.resolve({"runs": [], "device": "cpu"})["machine"] / "nano" / "old.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    said = lorebench("run", suite_file(tmp_path), "--results", tmp_path / "runs", "--device", "cpu")
    assert (said.code, said.out) == (2, "")
    assert f"{path}: {says}" in said.err
    assert said.err.count("\n") == 1
    assert [file.name for file in path.parent.glob("*.json")] == ["old.json"]


def test_a_report_without_records_says_how_to_get_some(
    lorebench: Lorebench, resolve_here: None, tmp_path: Path
) -> None:
    said = lorebench("report", suite_file(tmp_path), "--results", tmp_path / "runs")
    assert said.code == 2
    assert "no records of suite 'nano'" in said.err


def test_the_options_of_a_method_are_explained_with_what_each_may_be(lorebench: Lorebench) -> None:
    said = lorebench("methods", "lora")
    assert said.code == 0
    assert "alpha: number > 0 or null; default null\n  Numerator of the scaling alpha / rank;" in said.out
    assert "dropout: number >= 0 and < 1; default 0.0\n  Dropout on the input of the adapters.\n" in said.out
    assert "others: frozen or train; default frozen\n  What has no adapter" in said.out


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_option_of_a_method_that_ships_is_explained(lorebench: Lorebench, name: str) -> None:
    lines = lorebench("methods", name).out.splitlines()
    for option in find(name).Config.model_fields:
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"{option}: ")]
        assert len(" ".join(lines[place + 1 : place + 3]).split()) >= 3  # the first may go on in the next


def test_options_are_listed_as_a_suite_would_have_them(lorebench: Lorebench) -> None:
    listed = lorebench("methods").out
    assert "\ngalore       rank: 128 " in listed
    edge = listed.index("stages")
    said = " ".join(word for line in listed.splitlines() for word in line[:edge].split())
    assert " targets: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] " in said
    assert " lazy: null " in said
    assert " train_head: true " in said
    assert not re.search(r"\b(None|True|False)\b|\('", listed)


def test_optimizers_have_their_options_as_a_suite_would_have_them(lorebench: Lorebench) -> None:
    said = " ".join(lorebench("methods", "optim").out.split())
    assert " Adafactor: beta2_decay -0.8, eps [null, 0.001], d 1.0, foreach false, maximize false " in said
    assert not re.search(r" (None|True|False)[,\n]", said)


def test_what_explains_a_method_is_as_wide_as_the_terminal(
    lorebench: Lorebench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "console", lambda: Console(width=60))
    said = lorebench("methods", "galore").out
    assert 50 < max(map(len, said.splitlines())) <= 60
    assert "\ntargets: list of text; default [q_proj, k_proj, v_proj,\n  o_proj, " in said


def test_one_option_of_a_method_may_decide_which_others_are_explained(lorebench: Lorebench) -> None:
    without = lorebench("methods", "peft").out
    assert "\nOFT: peft.OFTConfig\n" in without
    assert "\nDORA: LORA with use_dora: true\n" in without
    assert f"Installed: peft {metadata.version('peft')}." in " ".join(without.split())
    assert "\noft_block_size: " not in without
    said = lorebench("methods", "peft", "--set", "type=oft")
    assert "\noft_block_size: whole number; default 32\n  OFT block size across different layers." in said.out
    assert "\nlora_alpha: " not in said.out
    assert "\nDORA: " not in said.out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("peft", "--set", "type=OFTT"), "method peft: type: peft has no tuner 'OFTT'; did you mean 'OFT'"),
        (("peft", "--set", "lora_alfa=3"), "method peft: unknown key 'lora_alfa'; did you mean 'lora_alpha'"),
        (("lora", "--set", "r=3"), "method lora: unknown key 'r'; "),
        (("--set", "type=OFT"), "--set is about the options of one method; name it"),
    ],
)
def test_an_option_that_explains_nothing_is_refused(
    lorebench: Lorebench, given: tuple[str, ...], said: str
) -> None:
    answer = lorebench("methods", *given)
    assert answer.code == 2
    assert said in answer.err


def test_the_version_is_that_of_the_project(lorebench: Lorebench) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lorebench("--version") == Said(0, f"lorebench {project['version']}\n", "")


@pytest.mark.parametrize("command", [(), ("run",), ("suites",)])
def test_h_is_help(lorebench: Lorebench, command: tuple[str, ...]) -> None:
    assert lorebench(*command, "-h") == lorebench(*command, "--help")
    assert lorebench(*command, "-h").out.startswith(" ".join(("Usage: lorebench", *command)))


@pytest.mark.parametrize(
    ("typed", "offered"), [("run wel", "welore"), ("pla", "plan"), ("run --ke", "--keep-old")]
)
def test_a_shell_completes_commands_options_and_suites(typed: str, offered: str) -> None:
    words = {"COMP_WORDS": f"lorebench {typed}", "COMP_CWORD": str(len(typed.split()))}
    assert offered in lorebench_process(_LOREBENCH_COMPLETE="complete_bash", **words).stdout.split()


def test_a_label_with_a_comma_is_quoted_beside_others(lorebench: Lorebench) -> None:
    assert (
        '"uniform 50 %", "uniform 50 %, untrained", ' in lorebench("run", "welore", "--only", "label=x").err
    )


def test_suites_lists_every_file_that_ships_with_its_runs_and_question(lorebench: Lorebench) -> None:
    said = " ".join(lorebench("suites").out.split())
    for file in (ROOT / "benchmarks" / "suites").rglob("*.yaml"):
        name = file.relative_to(ROOT / "benchmarks" / "suites").with_suffix("").as_posix()
        content = {key.value: item.value for key, item in yaml.compose(file.read_text()).value}
        first = " ".join(content["question"].split()[:6])
        assert f"{name} {len(load(name).runs)} {first}" in said


def test_without_a_command_the_help_is_shown(lorebench: Lorebench) -> None:
    said = lorebench()
    assert all(command in said.out + said.err for command in ("methods", "plan", "run", "report", "export"))


# -------------------------------------------------------------------------------------------- selection
Swept = list[tuple[Suite, runner.Settings, Any]]


def test_only_seed_and_set_choose_what_is_run(lorebench: Lorebench, swept: Swept, tmp_path: Path) -> None:
    path = suite_file(tmp_path)
    lorebench("run", path, "--only", "label=full", "--seed", "3", "--seed", "4", "--set", "train.steps=5")
    ((suite, settings, _),) = swept
    assert [(run.name, run.seed, run.train.steps) for run in suite.runs] == [("full", 3, 5), ("full", 4, 5)]
    assert (settings.device, settings.deadline_s, settings.budget_s, settings.retry) == (
        "auto",
        None,
        None,
        False,
    )


def test_only_finds_a_method_by_its_name(lorebench: Lorebench, swept: Swept, tmp_path: Path) -> None:
    lorebench("run", suite_file(tmp_path), "--only", "method=lora")
    assert [run.name for run in swept[0][0].runs] == ["low rank"]


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("25m", 1500), ("1.5h", 5400)])
def test_time_spans_are_read_with_their_unit(
    lorebench: Lorebench, swept: Swept, tmp_path: Path, text: str, seconds: float
) -> None:
    lorebench("run", suite_file(tmp_path), "--budget", text, "--deadline", text)
    assert (swept[0][1].budget_s, swept[0][1].deadline_s) == (seconds, seconds)


def test_a_model_is_a_folder_where_it_looks_like_one_and_else_a_hub_id(
    lorebench: Lorebench, swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    path = suite_file(tmp_path)
    for given in ("mine", "./other", "org/name", "org/name@v2"):
        lorebench("run", path, "--model", given)
    found = [suite.runs[0].model.model_dump() for suite, _, _ in swept]
    assert found == [
        {"source": "local", "path": "mine"},
        {"source": "local", "path": "./other"},
        {"source": "hub", "id": "org/name", "revision": "main"},
        {"source": "hub", "id": "org/name", "revision": "v2"},
    ]


def test_text_of_ones_own_replaces_the_world_and_what_is_held_out_of_it_is_scored(
    lorebench: Lorebench, swept: Swept
) -> None:
    lorebench("run", "welore", "--data", "a.txt", "--data", "b.jsonl")
    lorebench("run", "welore", "--data", "org/texts@abc")
    files, hub = (suite.runs[0] for suite, _, _ in swept)
    assert files.data.model_dump()["paths"] == ("a.txt", "b.jsonl")
    assert (hub.data.model_dump()["id"], hub.data.model_dump()["revision"]) == ("org/texts", "abc")
    for run in (files, hub):
        assert [item.protocol for item in run.evaluate.perplexity] == ["heldout"]
        assert run.evaluate.tasks == ()


def test_the_command_to_repeat_a_run_chooses_that_run_alone(
    lorebench: Lorebench, swept: Swept, tmp_path: Path
) -> None:
    path = suite_file(tmp_path, {**NANO, "matrix": {"seed": [0, 1], "train.lr": [0.001, 0.01]}})
    lorebench("run", path, "--set", "train.steps=9", "--device", "cpu")
    suite, _, rerun = swept[0]
    assert len(suite.runs) == 8
    for run in suite.runs:
        words = shlex.split(rerun(run))
        assert words[0] == "lorebench"
        lorebench(*words[1:])
        assert [again.run_id for again in swept[-1][0].runs] == [run.run_id]
        assert swept[-1][1].device == "cpu"


# ------------------------------------------------------------------------------------- processes of its own
def lorebench_process(
    *arguments: str | Path, program: Sequence[str] = (sys.executable, "-m", "harness.cli"), **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [*program, *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(("command", "option"), [("run", "--budget"), ("plan", "--device-gib")])
def test_help_imports_no_torch(command: str, option: str) -> None:
    script = (
        "import sys\n"
        "from harness.cli import commands as cli\n"
        f"try:\n    cli.app(['{command}', '--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'pandas', 'lm_eval'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert option in found.stdout


def test_a_wrong_option_of_a_method_ends_a_real_process_with_one_line(tmp_path: Path) -> None:
    path = suite_file(tmp_path, with_row(method={"welore": {"err": 1}}))
    found = lorebench_process("run", path, "--results", tmp_path / "runs")
    assert found.returncode == 2
    line = path.read_text().splitlines().index("  method:") + 2
    assert found.stderr == f"lorebench: {path}:{line + 1}: method welore: err: give a number below 1, not 1\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Said]:
    """The suite, the results and what was said by a sweep in processes of its own."""
    folder = tmp_path_factory.mktemp("nano")
    path, results = suite_file(folder), folder / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOREBENCH_CACHE", str(folder / "cache"))
        words = "run", path, "--results", results, "--device", "cpu"
        found = lorebench_process(*words, program=forked.command("harness.cli"))
    return path, results, Said(found.returncode, found.stdout, found.stderr)


def table(text: str) -> str:
    """The printed tables without the lines about where things are."""
    return "\n".join(line for line in text.splitlines() if not line.startswith(("records:", "tables:")))


def test_a_suite_runs_and_leaves_records_and_tables(finished: tuple[Path, Path, Said]) -> None:
    _, results, said = finished
    assert said.code == 0, said.err
    records = [record.read(path) for path in sorted(results.glob("*/nano/*.json"))]
    assert {one.label: one.outcome.status for one in records} == {"full": "ok", "low rank": "ok"}
    for one in records:
        assert one.training is not None
        assert one.time is not None
        assert one.memory is not None
        assert one.memory.train is not None
        assert len(series.losses(one)) == one.training.steps == 8
        assert series.timed(one.time) == 3
        assert one.time.wall_s == pytest.approx(sum(one.time.phase_s.values()), rel=0.01)
    written = {path.suffix for path in results.glob("*/nano/tables/*")}
    assert {".md", ".csv"} <= written
    assert "low rank" in said.out


def test_the_same_command_again_runs_nothing_and_prints_the_same(
    finished: tuple[Path, Path, Said],
    lorebench: Lorebench,
    resolve_here: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, results, first = finished
    before = {file: file.stat().st_mtime_ns for file in results.glob("*/nano/*.json")}

    def refuse(*_: Any) -> None:
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr(runner, "carry_out", refuse)
    again = lorebench("run", path, "--results", results, "--device", "cpu")
    assert again.code == 0
    assert {file: file.stat().st_mtime_ns for file in results.glob("*/nano/*.json")} == before
    assert table(again.out) == table(first.out)


def test_a_dry_run_shows_what_would_start_and_leaves_all_as_it_was(
    finished: tuple[Path, Path, Said], lorebench: Lorebench, resolve_here: None, swept: Swept
) -> None:
    path, results, _ = finished
    before = {file: file.stat().st_mtime_ns for file in results.rglob("*")}
    command = (
        "run",
        path,
        "--results",
        results,
        "--device",
        "cpu",
        "--dry-run",
        "--seed",
        "0",
        "--seed",
        "1",
    )
    said = lorebench(*command)
    assert "2 of 4 runs would start on cpu, about " in said.out
    shown = [line.split() for line in said.out.splitlines() if "-s" in line]
    assert [(" ".join(line[:-4]), line[-1]) for line in shown if line[-1] == "stays"] == [
        ("full", "stays"),
        ("low rank", "stays"),
    ]
    again = lorebench(*command, "--only", "seed=1", "--only", "label=full").out
    assert "1 of 1 run would start" in again
    assert not swept
    assert {file: file.stat().st_mtime_ns for file in results.rglob("*")} == before


@pytest.mark.usefixtures("resolve_here")
def test_a_dry_run_makes_no_folder_of_results(lorebench: Lorebench, tmp_path: Path) -> None:
    said = lorebench("run", suite_file(tmp_path), "--results", tmp_path / "runs", "--dry-run")
    assert "2 of 2 runs would start on cpu; records: " in said.out
    assert not (tmp_path / "runs").exists()


def test_report_prints_the_same_tables(
    finished: tuple[Path, Path, Said], lorebench: Lorebench, resolve_here: None, tmp_path: Path
) -> None:
    path, results, first = finished
    said = lorebench("report", path, "--results", results, "--out", tmp_path / "tables")
    assert said.code == 0
    assert table(said.out) == table(first.out)
    assert list((tmp_path / "tables").glob("*.md"))


def test_a_run_and_a_report_print_an_overview_and_with_full_all_that_files_have(
    finished: tuple[Path, Path, Said], lorebench: Lorebench, resolve_here: None, tmp_path: Path
) -> None:
    path, results, first = finished
    out = ("--out", tmp_path / "tables")
    assert first.out.splitlines()[-2] == "- all tables and settings: --full"
    (written,) = results.glob("*/nano/tables/*.md")
    for said in (first, lorebench("report", path, "--results", results, *out)):
        titles = [line for line in written.read_text().splitlines() if line.startswith("## ")]
        assert len(titles) > 4
        assert [title for title in titles if title[3:] in said.out] == ["## At a glance"]
    for command in ("run", "report"):
        device = ("--device", "cpu") if command == "run" else out
        full = lorebench(command, path, "--results", results, *device, "--full").out
        assert all(title[3:] in full for title in titles if "share" not in title and "Notes" not in title)
        assert "±" in full
        assert "--full" not in full


@pytest.mark.parametrize("form", ["md", "csv", "tex", "json", "txt"])
def test_a_report_is_printed_as_it_is_written(
    finished: tuple[Path, Path, Said], lorebench: Lorebench, resolve_here: None, tmp_path: Path, form: str
) -> None:
    path, results, _ = finished
    out, folder = tmp_path / f"one.{form}", tmp_path / "tables"
    given = ("--format", "text" if form == "txt" else form, "--out", out, "--out", folder)
    said = lorebench("report", path, "--results", results, *given, "--full")
    assert said.out == out.read_text()
    assert [path.suffix for path in sorted(folder.iterdir())] == [".csv", ".md", ".tex"]
    if form == "json":
        assert [row["method"] for row in json.loads(said.out)["rows"]] == ["full", "low rank"]
    elif form != "txt":
        assert (folder / f"nano.{form}").read_text() == said.out


def test_a_report_names_what_has_changed_since_its_runs(
    finished: tuple[Path, Path, Said], lorebench: Lorebench, resolve_here: None, tmp_path: Path
) -> None:
    path, results, _ = finished
    shutil.copytree(results, tmp_path / "runs")
    text = tmp_path / "held-out.txt"
    text.write_text("today\n\nas well")
    held = f"evaluate.perplexity=[{{protocol: c4-256, paths: [{text}]}}]"
    (run,) = load(path, [parse_override(held)]).only(["label=full"]).runs
    earlier = next(file for file in tmp_path.glob("runs/*/nano/*.json") if record.read(file).label == "full")
    content = json.loads(earlier.read_text())
    content |= {"run_id": run.run_id, "config_id": run.config_id, "config": run.model_dump(mode="json")}
    content["inputs"] = {"text held-out.txt": "0" * 64}
    (earlier.parent / f"{run.run_id}.json").write_text(json.dumps(content))
    command = ("report", path, "--results", tmp_path / "runs", "--set", held, "--only", "label=full")
    said = lorebench(*command, "--out", tmp_path / "tables")
    assert said.code == 0, said.err
    assert "Older inputs: full ran before these changed: text held-out.txt." in " ".join(said.out.split())
    text.unlink()
    assert "Older inputs" not in lorebench(*command, "--out", tmp_path / "tables").out


def test_tables_that_cannot_be_written_are_one_line(
    finished: tuple[Path, Path, Said], lorebench: Lorebench, resolve_here: None
) -> None:
    path, results, _ = finished
    taken = path.with_name("taken")
    taken.touch()
    said = lorebench("report", path, "--results", results, "--out", taken)
    assert (said.code, said.err) == (
        2,
        f"lorebench: {taken}: no tables can be written there: File exists\n",
    )


def test_report_leaves_out_what_is_not_asked_for_and_says_what_is_missing(
    finished: tuple[Path, Path, Said], lorebench: Lorebench, resolve_here: None, tmp_path: Path
) -> None:
    path, results, _ = finished
    out = ("--out", tmp_path / "tables")
    one = lorebench("report", path, "--results", results, "--only", "label=full", *out).out
    assert "low rank" not in one
    assert "not shown, of other configurations: 1 record; 1 record has" in one
    more = lorebench("report", path, "--results", results, "--seed", "0", "--seed", "1", *out).out
    assert "no record yet: 2 of 4 runs" in more


def test_a_report_that_matches_nothing_says_what_is_there_and_ends_with_2(
    finished: tuple[Path, Path, Said], lorebench: Lorebench, resolve_here: None
) -> None:
    """The model and the text that it asks for need not be there: a report reads records alone."""
    path, results, _ = finished
    said = lorebench("report", path, "--results", results, "--model", "./nowhere", "--data", "./no.jsonl")
    assert (said.code, said.out) == (2, "")
    assert said.err == "lorebench: 0 of 2 runs match; 2 records have no --model no --data\n"


def test_the_kept_weights_of_a_run_are_exported_by_the_beginning_of_its_id(
    finished: tuple[Path, Path, Said], lorebench: Lorebench, tmp_path: Path
) -> None:
    _, results, _ = finished
    kept = {record.read(path).label: path for path in results.glob("*/nano/*.json")}
    said = lorebench("export", kept["low rank"].stem[:8], tmp_path / "model", "--results", results)
    assert (said.code, said.out) == (0, f"{tmp_path / 'model'}: written as dense\n")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["hidden_size"] == 32
    refused = lorebench("export", kept["full"], tmp_path / "other", "--results", results)
    assert refused.code == 2
    assert "saved no weights" in refused.err


def test_options_of_a_section_are_explained_below_the_option_that_may_be_it(lorebench: Lorebench) -> None:
    said, lord = (" ".join(lorebench("methods", name).out.split()) for name in ("compress", "lord"))
    may_be = "allocator: uniform or per_type or welore or owl or strs or bayes; default "
    assert f"{may_be}uniform How much of each matrix" in said
    assert f"{may_be}{{type: per_type, preset: lord}}" in lord
    assert "owl: One share for all matrices of a block" in said
    assert "threshold: number >= 1; default 5.0. How many times the mean of its block" in said
    assert "range: list of number > 0 and < 1 and number > 0; default [0.2, 1.001]." in said
