"""A report that matches nothing says what is there, as the options that would ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import record as records
from harness.config import Run
from harness.engine.process.job import Job
from harness.inputs import by_run
from harness.record import Record
from harness.tables.report import other_settings as module
from harness.tables.report.other_settings import other_settings


def run(**changes: Any) -> Run:
    return Run.model_validate({"method": "full", "label": "full", **changes})


def record(asked: Run) -> Record:
    return Job(asked, "s", Path("f"), "cpu", Path("c"), "lorebench run").blank()


LOCAL = {"source": "local", "path": "./my-llama"}
TEXT = {"source": "files", "paths": ["a.jsonl", "b.txt"]}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"model": LOCAL}, "--model ./my-llama"),
        ({"model": {"source": "hub", "id": "who/what"}}, "--model who/what@main"),
        ({"data": TEXT, "evaluate": {"perplexity": ["heldout"]}}, "--data a.jsonl --data b.txt"),
        ({"model": LOCAL, "data": TEXT}, "--model ./my-llama --data a.jsonl --data b.txt"),
        ({"train": {"steps": 7}}, "--set train.steps=7"),
        ({"train": {"steps": 7, "checkpoint": {"every": 5}}}, "--set train.steps=7"),
        ({"data": {"seq_len": 32}}, "--set data.seq_len=32"),
        ({"seed": 3}, "--seed 3"),
        ({"method": {"lora": {"rank": 4}}}, "method lora"),
        ({"method": {"full": {"x": 1}}}, "other options of full"),
    ],
)
def test_what_differs_is_an_option(made: dict[str, Any], said: str) -> None:
    assert other_settings([run()], [record(run(**made))]) == f"1 record has {said}"


def test_how_a_training_is_saved_is_no_difference() -> None:
    asked = run(train={"steps": 7, "checkpoint": {"every": 5}})
    assert other_settings([asked], [record(run())]) == "1 record has --set train.steps=100"


def test_the_other_way_round_the_suites_own_is_named() -> None:
    asked = run(model=LOCAL, data=TEXT, evaluate={"perplexity": ["heldout"]})
    assert other_settings([asked], [record(run())]) == "1 record has no --model no --data"


def test_records_are_compared_with_the_nearest_run_and_counted() -> None:
    asked = [run(train={"steps": steps}) for steps in (5, 6, 7)]
    found = [record(run(model=LOCAL, train={"steps": steps})) for steps in (5, 6, 7, 7)]
    found += [record(run(seed=9, train={"steps": 5}))]
    assert other_settings(asked, found) == "4 records have --model ./my-llama; 1 record has --seed 9"


def test_nothing_is_said_of_nothing() -> None:
    assert other_settings([run()], []) == ""


# ------------------------------------------------------------------------ other spellings of a path
@pytest.mark.parametrize("spelling", ["D", "./D/", "x/../D", "LINK", "ABSOLUTE", "~/D"])
def test_a_record_under_another_spelling_of_a_path_belongs_to_the_run(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("D", "E", "x"):
        (tmp_path / name).mkdir()
    (tmp_path / "LINK").symlink_to("D")
    path = str(tmp_path / "D") if spelling == "ABSOLUTE" else spelling
    asked, made = (run(model={"source": "local", "path": each}) for each in ("./D", path))
    other = run(model={"source": "local", "path": "E"})
    found = by_run([asked], [record(other), record(made)])
    assert found.keys() == {asked.run_id}
    assert found[asked.run_id].run_id == asked.run_id
    records.validated(found[asked.run_id], "here")
    assert by_run([asked], [record(other)]) == {}


def test_the_same_content_elsewhere_belongs_to_the_run_and_other_content_does_not() -> None:
    here, there = (run(model={"source": "local", "path": path}) for path in ("/a/D", "/b/D"))
    hashes = {"weights": "1", "config": "2"}
    measured = record(there).model_copy(update={"inputs": hashes})
    assert by_run([here], [measured], {here.run_id: hashes}).keys() == {here.run_id}
    assert by_run([here], [measured], {here.run_id: hashes | {"config": "3"}}) == {}
    assert by_run([here], [record(there)], {here.run_id: hashes}) == {}
    assert by_run([here], [record(there)], {}) == {}


SCORED = {"protocol": "c4-joined", "context": 64}


@pytest.mark.parametrize("trained", [("x.jsonl", "y.jsonl"), ("y.jsonl", "x.jsonl")])
@pytest.mark.parametrize("twice", [False, True])
def test_the_same_texts_with_other_purposes_are_another_run(trained: tuple[str, str], twice: bool) -> None:
    """One is trained on and the other scored, or the one that comes last is held out."""

    def of(folder: str, first: str, second: str) -> Run:
        paths = [f"{folder}/{first}", *([f"{folder}/{second}"] if twice else [])]
        scored = [] if twice else [SCORED | {"paths": [f"{folder}/{second}"]}]
        return run(data={"source": "files", "paths": paths}, evaluate={"perplexity": scored})

    here, there = of("a", "x.jsonl", "y.jsonl"), of("b", *trained)
    hashes = {"text x.jsonl": "1", "text y.jsonl": "2"}
    measured = record(there).model_copy(update={"inputs": hashes})
    found = by_run([here], [measured], {here.run_id: hashes})
    assert bool(found) == (trained == ("x.jsonl", "y.jsonl"))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"train": {"steps": 3}}, {"method": "lora"}])
def test_another_setting_is_another_run(changes: dict[str, Any]) -> None:
    here = run(model={"source": "local", "path": "/a/D"})
    there = run(model={"source": "local", "path": "/a/./D"}, **changes)
    assert by_run([here], [record(there)]) == {}


def test_what_differs_in_seeds_alone_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = module._options
    monkeypatch.setattr(module, "_options", lambda *pair: calls.append(pair) or original(*pair))  # type: ignore[func-returns-value]
    wanted = [run(seed=seed, train={"steps": steps}) for seed in range(20) for steps in (3, 4)]
    found = [record(run(seed=seed, train={"steps": 5})) for seed in range(10, 30)]
    assert other_settings(wanted, found) == (
        "10 records have --set train.steps=5; "
        + "; ".join(f"1 record has --set train.steps=5 --seed {seed}" for seed in (20, 21))
        + "; others differ in 8 more ways"
    )
    assert len(calls) == 2
    calls.clear()
    monkeypatch.setattr(module, "MOST_PAIRS", 1)
    other_settings(wanted, found)
    assert len(calls) == 1
