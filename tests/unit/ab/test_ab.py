"""The command `lorebench ab`: who runs when, what is asked of each revision, and what is said in the end.

The revisions here are small: their command line writes the record that a file of theirs describes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.ab.checkouts import Revision
from harness.ab.schedule import can_be_together, interleave
from harness.cli import main as cli
from harness.config import Run
from harness.engine.process import progress
from harness.engine.process.lock import Lock
from harness.engine.sweep import resolution
from harness.engine.sweep.device_lock import device_lock
from harness.files import ROOT, cache_folder
from harness.record import VARIABLES
from harness.tables.statistics import interleaved
from tests.support.gate_records import made, memory

GIT = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
SUITE = """
suite: demo
baseline: full
base: {train: {steps: 30}}
matrix: {seed: [3, 4]}
rows:
  - {label: full, method: full}
  - {label: other, method: lora}
  - {label: pruned, method: welore, train.stage: compress}
"""
COMMAND = """
import datetime, hashlib, json, os, pathlib, socket, subprocess, sys
tree = next(p for p in pathlib.Path(__file__).resolve().parents if (p / "behaviour.json").is_file())
given = [item.partition("=")[::2] for item in sys.argv[2:]]
said = {key: value for key, value in given if key != "--set"}
settings = dict(value.split("=", 1) for key, value in given if key == "--set")
only = dict(value.split("=", 1) for key, value in given if key == "--only")
behaviour = json.loads((tree / "behaviour.json").read_text())
with (tree.parent / "calls.jsonl").open("a") as file:
    file.write(json.dumps([tree.name, sys.argv[1:]]) + "\\n")
place = os.environ.get("LOREBENCH_TURNS")
if place and "deaf" not in behaviour:
    own = socket.socket(socket.AF_UNIX)
    own.connect(place)
    for _ in range(3):
        own.sendall(b"?")
        assert own.recv(1) == b"!"
        with (tree.parent / "turns.txt").open("a") as file:
            file.write(tree.name + "\\n")
        __import__("time").sleep(behaviour.get("update", 0))
if "refuse" in behaviour:
    sys.exit(f"lorebench: {behaviour['refuse']}")
label, repeat = json.loads(only["label"]), int(settings["repeat"])
record = behaviour["records"][label]
if "train.batch" in only:
    record["config"] = {"train": {"batch": int(only["train.batch"])}}
if place and "deaf" not in behaviour:
    record["environment"]["flags"] = {"in_turns": True}
now = datetime.datetime.now(datetime.UTC).isoformat()
record |= {"repeat": repeat, "seed": int(said["--seed"]), "started_at": now}
record["config"] |= {"repeat": repeat, "seed": record["seed"]}
hashed = {key: record["config"].get(key) for key in ("data", "evaluate", "method", "model", "train")}
hashed = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
record["config_id"] = hashlib.sha256(hashed.encode()).hexdigest()[:12]
record["run_id"] = f"{record['config_id']}-s{record['seed']}-r{repeat}"
sha = subprocess.run(["git", "-C", tree, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
record["environment"]["git_sha"] = behaviour.get("claims", sha)
speeds = record.pop("speeds")
record["time"] = {"tokens_per_s": speeds[repeat % len(speeds)]} if speeds else None
file = pathlib.Path(said["--results"], "cpu", "demo", record["run_id"] + ".json")
file.parent.mkdir(parents=True, exist_ok=True)
if not file.exists():  # what is finished is left alone
    file.write_text(json.dumps(record))
"""
PATIENCE_S = 20
EVEN = (1000.0, 1001.0, 1002.0, 1003.0, 1004.0)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@dataclass
class Place:
    """A repository whose revisions behave as they are told, and the command line."""

    root: Path
    call: Callable[..., Said]

    @property
    def suite(self) -> Path:
        return self.root.parent / "demo.yaml"

    def commit(self, name: str, **behaviour: Any) -> None:
        (self.root / "behaviour.json").write_text(json.dumps(behaviour))
        git(self.root, "add", ".")
        git(self.root, "commit", "-q", "--allow-empty", "-m", name)
        git(self.root, "tag", name)

    @property
    def calls(self) -> list[tuple[str, list[str]]]:
        """Every call of a revision in order: its commit, and what it was given."""
        file = self.root.parent / "cache" / "revisions" / "calls.jsonl"
        return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    def sha(self, name: str) -> str:
        return git(self.root, "rev-parse", name)


def git(root: Path, *arguments: str) -> str:
    answer = subprocess.run([*GIT, *arguments], cwd=root, check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def behaving(other: Sequence[float] = EVEN, full: Sequence[float] = EVEN, **parts: Any) -> dict[str, Any]:
    """Records of both rows; `parts` are those of the row `other`."""
    rows = {"full": made("full"), "other": made("other", **parts)}
    found = {label: json.loads(record.model_dump_json(exclude_none=True)) for label, record in rows.items()}
    for label, speeds in (("full", full), ("other", other)):
        found[label]["speeds"] = list(speeds)
    return {"records": found}


def scaled(factor: float) -> list[float]:
    return [factor * value for value in EVEN]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    root = tmp_path / "repository"
    (root / "harness").mkdir(parents=True)
    (root / "harness" / "__init__.py").touch()
    (root / "harness" / "cli.py").write_text(COMMAND)
    (root / "pyproject.toml").write_text("[project]\ndependencies = []\n")
    git(root, "init", "-q", "-b", "main")
    suite = tmp_path / "demo.yaml"
    suite.write_text(SUITE)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        resolution, "resolve", lambda runs, device, **reads: resolution.Plan(tuple(runs), "cpu", "cpu")
    )

    def call(*arguments: Any) -> Said:
        where = ["--repository", root, "--results", tmp_path / "records"]
        given = [*arguments[:2], suite, *where, *arguments[2:]]
        monkeypatch.setattr("sys.argv", ["lorebench", "ab", *map(str, given)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return Place(root, call)


# ----------------------------------------------------------------------------------------- verdicts
def test_two_revisions_that_behave_alike_pass(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving(scaled(1.01), scaled(0.995)))
    said = place.call("a", "b")
    assert said.code == 0, said
    assert sorted(said.out.splitlines()) == [
        "ab: passed (1 informational, 5 ok)",
        "informational: demo/full (all runs) throughput: -0.5 % by medians of 5 and 5 runs; the control row",
        "ok: demo/full (seed 3 and 4 more) peak unchanged",
        "ok: demo/other (all runs) throughput: +1.0 % by medians of 5 and 5 runs, within 3.0 %",
        "ok: demo/other (seed 3 and 4 more) peak unchanged",
    ]


def test_a_slower_row_beside_a_stable_control_is_a_regression(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving(scaled(0.9)))
    said = place.call("a", "b")
    assert said.code == 1
    assert "regression: demo/other (all runs) throughput: -10.0 % by medians of 5 and 5 runs" in said.out
    assert "ab: failed" in said.out


def test_a_slower_row_is_no_verdict_when_the_control_moved_too(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving(scaled(0.9), scaled(0.93)))
    said = place.call("a", "b")
    assert said.code == 2
    assert "inconclusive: demo/other (all runs) throughput: -10.0 %" in said.out
    assert "the control row full moved, too: -7.0 %" in said.out
    assert "ab: inconclusive" in said.out


def test_a_larger_peak_needs_one_run(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving(memory=memory(optimizer_bytes=801 << 20)))
    said = place.call("a", "b", "--repeats", 1)
    assert said.code == 1
    assert "regression: demo/other (seed 3) peak +1 MiB: optimizer +1" in said.out


def test_repeats_that_say_the_same_are_one_line(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving(memory=memory(optimizer_bytes=801 << 20)))
    out = place.call("a", "b").out
    assert out.count("peak +1 MiB") == 1
    assert "demo/other (seed 3 and 4 more) peak +1 MiB" in out


def test_fewer_than_five_runs_are_reported_and_not_judged(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving(scaled(0.5)))
    said = place.call("a", "b", "--repeats", 4)
    assert said.code == 0
    assert "informational: demo/other (all runs) throughput: -50.0 %" in said.out
    assert "4 runs of a side, a verdict needs 5" in said.out


def test_a_row_without_a_throughput_says_so(place: Place) -> None:
    training = {"steps": 2, "tokens": 2, "loss": [1.0, 1.0], "lr": [0.1, 0.1]}
    place.commit("a", **behaving((), training=training))
    place.commit("b", **behaving((), training=training))
    out = place.call("a", "b").out
    cause = "not measured: more updates are needed (train.steps)"
    assert f"not comparable: demo/other (all runs) throughput: {cause}" in out


def test_packages_belong_to_a_revision_and_are_named(place: Place) -> None:
    newer = behaving(scaled(0.9))
    for record in newer["records"].values():
        record["environment"]["packages"] = {**record["environment"]["packages"], "torch": "2.14.0"}
    place.commit("a", **behaving())
    place.commit("b", **newer)
    said = place.call("a", "b")
    assert said.code == 1
    assert "the environments differ: torch 2.13.0 -> 2.14.0\n" in said.out
    assert "not comparable" not in said.out


def test_a_changed_default_is_not_compared_and_named(place: Place) -> None:
    other = behaving()
    other["records"]["other"] |= {"config": {"train": {"lr": 1.0}}}
    place.commit("a", **behaving())
    place.commit("b", **other)
    said = place.call("a", "b")
    assert "not comparable: demo/other" in said.out
    assert "config_id" in said.out
    assert "train.lr 0.001 -> 1.0" in said.out


@pytest.mark.parametrize("form", ["json", "md", "github", "junit"])
def test_every_form_of_the_gate_is_there(place: Place, form: str, tmp_path: Path) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving(scaled(0.9)))
    out = tmp_path / f"out.{'xml' if form == 'junit' else form}"
    said = place.call("a", "b", "--format", form, *(["--out", out] if form != "github" else []))
    assert said.code == 1
    assert "completely separated" in said.out
    if form != "github":
        assert out.read_text() == said.out


# -------------------------------------------------------------------------------------------- turns
def run(label: str) -> Run:
    return Run.model_validate({"label": label, "method": "full"})


@pytest.mark.parametrize("repeats", [1, 2, 5, 8])
def test_sides_take_turns_and_each_begins_as_often_as_the_other(repeats: int) -> None:
    found = interleave([run("x"), run("y")], repeats)
    for label in "xy":
        sides = [turn.side for turn in found if turn.run.name == label]
        assert interleaved([side == 1 for side in sides])
        assert sides.count(0) == sides.count(1) == repeats
        begins = sides[::2]
        assert abs(begins.count(0) - begins.count(1)) <= 1
    assert [turn.run.repeat for turn in found] == sorted(turn.run.repeat for turn in found)


def test_on_a_cpu_revisions_that_know_how_are_there_at_once_and_their_updates_take_turns(
    place: Place,
) -> None:
    (place.root / "harness" / "engine").mkdir()
    (place.root / "harness" / "engine" / "turn.py").touch()
    place.commit("a", **behaving(), update=0.1)
    place.commit("b", **behaving(), update=0.1)
    said = place.call("a", "b", "--repeats", 1, "--only", "label=full")
    assert said.code == 0, said
    turns = (place.root.parent / "cache" / "revisions" / "turns.txt").read_text().split()
    assert turns in ([place.sha(name) for name in order] for order in ("ababab", "bababa"))
    assert "a and b: full seed 3: started" in said.err


@pytest.fixture
def pair(place: Place) -> Place:
    """Two revisions that know how to wait for their turns."""
    (place.root / "harness" / "engine").mkdir()
    (place.root / "harness" / "engine" / "turn.py").touch()
    place.commit("a", **behaving())
    place.commit("b", **behaving())
    return place


ONE_PAIR = ("--repeats", 1, "--only", "label=full")


CLIENTS = {"old": "turn.py", "new": "measure/lockstep.py", "none": "other.py"}


def lay(tree: Path, command_line: str, client: str) -> None:
    """Make a tree with the command line as a file ("old") or a folder, and a client of lockstep."""
    shutil.rmtree(tree / "harness", ignore_errors=True)
    entry = "harness/cli.py" if command_line == "old" else "harness/cli/__main__.py"
    for name, text in ((entry, COMMAND), (f"harness/engine/{CLIENTS[client]}", "")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
        (tree / name).with_name("__init__.py").touch()
    (tree / "harness" / "__init__.py").touch()


@pytest.mark.parametrize("names", [("old", "new"), ("new", "old"), ("new", "new")])
def test_a_revision_before_a_move_is_compared_with_one_after_it(place: Place, names: tuple[str, str]) -> None:
    for name, shape in zip("ab", names, strict=True):
        lay(place.root, shape, shape)
        place.commit(name, **behaving(), update=0.06)
    said = place.call("a", "b", *ONE_PAIR)
    assert said.code == 0, said
    turns = (place.root.parent / "cache" / "revisions" / "turns.txt").read_text().split()
    assert turns in ([place.sha(name) for name in order] for order in ("ababab", "bababa"))


@pytest.mark.parametrize("first", CLIENTS)
@pytest.mark.parametrize("second", CLIENTS)
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_two_revisions_are_in_lockstep_on_a_cpu_where_both_have_the_client(
    tmp_path: Path, first: str, second: str, device: str
) -> None:
    sides = []
    for name, client in (("a", first), ("b", second)):
        lay(tmp_path / name, "old", client)
        sides.append(Revision(name, "0" * 40, tmp_path / name))
    assert can_be_together(sides, device) == ("none" not in (first, second) and device == "cpu")


def test_runs_that_were_timed_at_once_without_turns_are_refused_and_measured_again(pair: Place) -> None:
    pair.commit("deaf", **behaving(), deaf=True)
    for calls in (2, 4):
        said = pair.call("a", "deaf", *ONE_PAIR)
        assert said.code == 2
        assert "full did not wait between its updates, so both sides were timed at once" in said.err
        assert len(pair.calls) == calls
    assert pair.call("a", "deaf", *ONE_PAIR, "--apart").code == 0


@pytest.mark.parametrize("broken", ["no turns", "gone"])
def test_a_pair_of_which_one_run_is_no_good_is_measured_again(pair: Place, broken: str) -> None:
    pair.call("a", "b", *ONE_PAIR)
    file = next((pair.root.parent / "records").rglob("b/*/cpu/demo/*.json"))
    content = json.loads(file.read_text())
    del content["environment"]["flags"]
    file.write_text(json.dumps(content)) if broken == "no turns" else file.unlink()
    for _ in range(2):
        assert pair.call("a", "b", *ONE_PAIR).code == 0
        assert len(pair.calls) == 4


def test_records_of_runs_in_turns_are_no_answer_for_runs_that_shall_be_apart(pair: Place) -> None:
    pair.call("a", "b", *ONE_PAIR)
    pair.call("a", "b", *ONE_PAIR, "--apart")
    assert len(pair.calls) == 4


def test_a_long_name_of_the_folder_for_temporary_files_is_no_obstacle(
    pair: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    assert pair.call("a", "b", *ONE_PAIR).code == 0
    assert (pair.root.parent / "cache" / "revisions" / "turns.txt").exists()


def test_without_a_place_for_sockets_one_run_follows_the_other(
    pair: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.ab.lockstep.socket_folder", lambda: None)
    said = pair.call("a", "b", *ONE_PAIR)
    assert said.code == 0
    assert "one run follows the other" in said.err
    assert not (pair.root.parent / "cache" / "revisions" / "turns.txt").exists()


def test_runs_that_are_asked_to_be_apart_are(place: Place) -> None:
    (place.root / "harness" / "engine").mkdir()
    (place.root / "harness" / "engine" / "turn.py").touch()
    place.commit("a", **behaving())
    place.commit("b", **behaving())
    assert place.call("a", "b", "--repeats", 1, "--apart").code == 0
    assert place.call("a", "b", "--repeats", 1, "--quality", "--only", "label=full").code == 0
    assert not (place.root.parent / "cache" / "revisions" / "turns.txt").exists()


def test_both_sides_are_asked_the_same_and_what_costs_and_is_not_needed_is_left_out(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving())
    assert place.call("a", "b", "--repeats", 2, "--set", "train.steps=9").code == 0
    asked = [given for _, given in place.calls]
    assert [sha for sha, _ in place.calls] == [place.sha(name) for name in "abab" + "baba"]
    assert {given[0] for given in asked} == {"run"}
    first, second = ([item for item in given if "--results" not in item] for given in asked[:2])
    assert first == second
    for setting in ("train.steps=9", "evaluate.perplexity=[]", "evaluate.tasks=[]", "save_weights=false"):
        assert f"--set={setting}" in first
    assert not any("pruned" in item for given in asked for item in given)


def test_the_control_row_runs_even_when_it_is_not_asked_for(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving())
    place.call("a", "b", "--repeats", 1, "--only", "label=other")
    assert [item for _, given in place.calls[::2] for item in given if "--only=label" in item] == [
        '--only=label="full"',
        '--only=label="other"',
    ]


def test_one_seed_suffices_unless_several_are_named(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving())
    place.call("a", "b", "--repeats", 1)
    assert {item for _, given in place.calls for item in given if "--seed" in item} == {"--seed=3"}
    place.call("a", "b", "--repeats", 1, "--seed", 7, "--seed", 8)
    assert {item for _, given in place.calls for item in given if "--seed" in item} == {
        *("--seed=3", "--seed=7", "--seed=8")
    }


def test_what_is_finished_is_not_run_again_and_more_repeats_go_on(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving())
    place.call("a", "b", "--repeats", 2)
    assert len(place.calls) == 8
    place.call("a", "b", "--repeats", 2)
    assert len(place.calls) == 8
    place.call("a", "b", "--repeats", 3)
    assert len(place.calls) == 12


def test_other_settings_are_another_comparison(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving())
    place.call("a", "b", "--repeats", 1)
    place.call("a", "b", "--repeats", 1, "--set", "train.steps=9")
    assert len(place.calls) == 8


def test_each_configuration_of_a_label_runs_and_is_compared(place: Place) -> None:
    place.suite.write_text(SUITE.replace("seed: [3, 4]", "train.batch: [2, 4]"))
    place.commit("a", **behaving())
    place.commit("b", **behaving())
    said = place.call("a", "b", "--repeats", 1)
    ran = [[item for item in given if "train.batch" in item] for _, given in place.calls]
    assert ran == [[f"--only=train.batch={batch}"] for batch in (2, 4, 2, 4) for _ in "ab"]
    assert "ok: demo/full (seed 0 and 1 more) peak unchanged" in said.out
    assert "demo/full (all runs and 1 more) throughput" in said.out


def test_the_control_row_runs_in_the_configuration_that_is_asked_for(place: Place) -> None:
    place.suite.write_text(SUITE.replace("seed: [3, 4]", "train.batch: [2, 4]"))
    place.commit("a", **behaving())
    assert place.call("a", "a", "--repeats", 1, "--only", "train.batch=4").code == 0
    ran = [item for _, given in place.calls[::2] for item in given if "label" in item or "batch" in item]
    assert ran == [
        '--only=label="full"',
        "--only=train.batch=4",
        '--only=label="other"',
        "--only=train.batch=4",
    ]


def test_rows_that_cannot_be_told_apart_are_refused(place: Place) -> None:
    place.suite.write_text(SUITE.replace("label: other", "label: full"))
    place.commit("a", **behaving())
    said = place.call("a", "a", "--repeats", 1)
    assert (said.code, place.calls) == (2, [])
    assert "demo: two rows are called 'full'; give each a label of its own" in said.err


def test_another_text_of_the_suite_is_another_comparison(place: Place) -> None:
    place.commit("a", **behaving())
    place.call("a", "a", "--repeats", 1)
    place.suite.write_text(SUITE.replace("steps: 30", "steps: 60"))
    place.call("a", "a", "--repeats", 1)
    assert len(place.calls) == 8


def test_another_machine_is_another_comparison(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.commit("a", **behaving())
    place.call("a", "a", "--repeats", 1)
    monkeypatch.setattr(
        resolution, "resolve", lambda runs, device, **reads: resolution.Plan(tuple(runs), "cpu", "cpu-2t")
    )
    place.call("a", "a", "--repeats", 1)
    assert len(place.calls) == 8
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    place.call("a", "a", "--repeats", 1)
    assert len(place.calls) == 12


def test_an_interpreter_may_be_given_for_a_side(place: Place, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "lorebench: I am another python" >&2\nexit 2\n')
    python.chmod(0o755)
    place.commit("a", **behaving())
    said = place.call("a", "a", "--repeats", 1, "--python-b", python)
    assert said.code == 2
    assert said.err.splitlines()[-1].endswith("I am another python")
    assert len(place.calls) == 1


def started(*command: Any, **more: Any) -> subprocess.Popen[str]:
    """A process in the background, where SIGINT is ignored, as in a script of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, **more)
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for(met: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < until
        time.sleep(0.02)


CALLING = """
import sys
from pathlib import Path
from harness.ab.schedule import Subprocess
from harness.engine.process.interrupts import raised
folder = Path(sys.argv[1])
code = "import os, time; print(os.getpid(), file=open('pid', 'w'), flush=True); time.sleep(600)"
with raised():
    call = Subprocess([sys.executable, "-c", code], {}, folder / "log")
    try:
        call.wait()
    except KeyboardInterrupt:
        call.stop()
        call.wait()
        sys.exit(call.last_line())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_runs_ends_with_the_command_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    root = str(ROOT)
    asked = started(
        sys.executable, "-c", CALLING, tmp_path, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}
    )
    pid = tmp_path / "pid"
    wait_for(lambda: pid.is_file() and pid.read_text().endswith("\n"))
    asked.send_signal(number)
    said = asked.communicate(timeout=PATIENCE_S)[1]
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGTERM)
    wait_for(lambda: not Path("/proc", pid.read_text().strip()).exists())
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()


def test_the_device_is_locked_by_the_name_that_a_sweep_gives_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = partial(resolution.Plan, device="cuda:0", machine="cpu", device_id="cuda-GPU-7")
    monkeypatch.setattr(resolution, "resolve", lambda runs, device, **reads: plan(tuple(runs)))
    taken: list[Path] = []
    take = Lock.take

    def seen(self: Lock) -> bool:
        taken.append(self.path)
        return take(self)

    monkeypatch.setattr(Lock, "take", seen)
    place.commit("a", **behaving())
    place.call("a", "a", "--repeats", 1)
    ours = [path for path in taken if path.name.startswith("device-")]
    with device_lock("cuda:1", cache_folder(), progress.choose(), "cuda-GPU-7") as lock:
        assert ours == [lock.path]


# -------------------------------------------------------------------------------------- bad input
def test_a_cache_that_cannot_be_made_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.commit("a", **behaving())
    monkeypatch.setenv("LOREBENCH_CACHE", "/etc/passwd/x")
    said = place.call("a", "a")
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "/etc/passwd/x/revisions: cannot be made: Not a directory" in said.err


def test_what_a_revision_refuses_is_one_line_with_its_name(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", refuse="no setting 'train.stps'; did you mean train.steps?")
    said = place.call("a", "b")
    assert said.code == 2
    assert said.err.splitlines()[-1] == (
        f"lorebench: b ({place.sha('b')[:9]}): no setting 'train.stps'; did you mean train.steps?"
    )


def test_a_record_of_other_code_is_refused(place: Place) -> None:
    place.commit("a", **behaving())
    place.commit("b", **behaving(), claims="f" * 40)
    said = place.call("a", "b")
    assert said.code == 2
    assert "its run was made by the code of fffffffff, not of" in said.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("a", "nothing"), "nothing: no revision of"),
        (("a", "a", "--repeats", 0), "--repeats 0: give a number from 1 to 1000"),
        (
            ("a", "a", "--control", "fall"),
            "--control fall: no row has this label; known: full, other, pruned",
        ),
        (("a", "a", "--only", "label=fall"), "no run matches"),
        (("a", "a", "--only", "label=pruned", "--control", "pruned"), "nothing can be timed; add --quality"),
        (("a", "a", "--python-a", "/no/python"), "/no/python: no such interpreter"),
        (("a", "a", "--deadline", "soon"), "'soon' is not a duration"),
        (("a", "a", "--set", "repeat=1"), "--set repeat=1: the runs of a row are numbered here"),
        (("a", "a", "--set", "seed=1"), "--set seed=1: give seeds by --seed"),
        (("a", "a", "--python-b", "/etc/passwd"), "/etc/passwd: cannot be started: Permission denied"),
        (("a", "a", "--results", "/etc/passwd/x"), "cannot be made: Not a directory; choose another folder"),
        (("a", "a", "--out", "/none/x.json"), "--out /none/x.json: no file can be written there"),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(place: Place, given: Sequence[Any], said: str) -> None:
    place.commit("a", **behaving())
    ended = place.call(*given)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
    assert place.calls == []
