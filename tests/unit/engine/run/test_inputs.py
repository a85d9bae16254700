"""The hashes of what a run reads: each input alone changes its own, and nothing else changes any."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from harness.config import Run
from harness.digests import Digests
from harness.engine import worker
from harness.engine.process.job import Job
from harness.engine.run import record_writer
from harness.engine.run.inputs import InputHashes, verify
from harness.errors import UserError
from harness.record import read
from tests.support.tiny import tiny_llama, tiny_tokenizer

TASK = {
    "task": "mine",
    "include": "_base",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    tiny_llama(layers=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, texts, a task and a plug-in, in which the run stands."""
    shutil.copytree(model, tmp_path / "D")
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    (tmp_path / "wiki.raw").write_text("= Title =\n")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "mine.yaml").write_text(yaml.safe_dump(TASK) + "doc_to_text: !function code.text\n")
    (tasks / "_base").write_text("output_type: multiple_choice\n")
    (tasks / "other.yaml").write_text("task: other\n")
    (tasks / "group.yaml").write_text("group: all_of_mine\ntask: [mine]\n")
    (tasks / "code.py").write_text("def text(row): return row\n")
    (tasks / "questions.jsonl").write_text("{}\n")
    (tasks / "results.json").write_text("{}")
    (tmp_path / "my_methods.py").write_text("from my_helper import x\n")
    (tmp_path / "my_helper.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(**changes: Any) -> Run:
    content = {
        "model": {"source": "local", "path": "./D"},
        "data": {"source": "files", "paths": ["a.jsonl", "b.jsonl"]},
        "evaluate": {
            "perplexity": ["heldout", {"protocol": "wikitext2-2048", "paths": ["wiki.raw"]}],
            "tasks": ["mine"],
            "task_paths": ["tasks"],
        },
        "method": "my_methods:Mine",
    }
    return Run.model_validate({**content, **changes})


def hashes(**changes: Any) -> dict[str, str]:
    return InputHashes(Digests()).of(run(**changes))


def edit(path: str, change: Callable[[str], str] = lambda text: text + "\n") -> Callable[[Path], object]:
    return lambda place: (place / path).write_text(change((place / path).read_text()))


def replace_weights(place: Path) -> None:
    path = place / "D/model.safetensors"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    weights = load_file(path)
    name = next(iter(weights))
    weights[name] = torch.zeros_like(weights[name])
    save_file(weights, path, metadata={"format": "pt"})
    os.utime(path, ns=times)


def swap_texts(place: Path) -> None:
    (place / "a.jsonl").rename(place / "c")
    (place / "b.jsonl").rename(place / "a.jsonl")
    (place / "c").rename(place / "b.jsonl")


def rope(text: str) -> str:
    content = json.loads(text)
    content["rope_parameters"] = {**content.get("rope_parameters", {}), "rope_theta": 5e5}
    return json.dumps(content)


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "weights, with their time put back": (replace_weights, {"weights"}),
    "rope theta": (edit("D/config.json", rope), {"config"}),
    "sampling of answers": (edit("D/generation_config.json"), {"config"}),
    "tokenizer": (edit("D/tokenizer.json"), {"tokenizer"}),
    "a file added to the tokenizer": (lambda p: (p / "D/vocab.txt").write_text("a"), {"tokenizer"}),
    "one text": (edit("b.jsonl"), {"text b.jsonl"}),
    "texts swapped": (swap_texts, {"text a.jsonl", "text b.jsonl"}),
    "text of a protocol": (edit("wiki.raw"), {"text wiki.raw"}),
    "YAML of the task": (edit("tasks/mine.yaml"), {"task mine"}),
    "what the task includes": (edit("tasks/_base"), {"task mine"}),
    "code of the task": (edit("tasks/code.py"), {"task mine"}),
    "data of the task": (edit("tasks/questions.jsonl"), {"task mine"}),
    "plug-in": (edit("my_methods.py"), {"plug-in my_methods"}),
    "helper of the plug-in": (edit("my_helper.py"), {"plug-in my_methods"}),
    "another task": (edit("tasks/other.yaml"), set()),
    "results beside the task": (edit("tasks/results.json"), set()),
    "a page about the model": (lambda p: (p / "D/README.md").write_text("x"), set()),
    "what macOS leaves": (lambda p: (p / "D/._model.safetensors").write_bytes(b"x"), set()),
    "a cache of Python": (lambda p: (p / "__pycache__").mkdir(), set()),
    "times alone": (lambda p: [os.utime(f, (1, 1)) for f in p.rglob("*") if f.is_file()], set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_is_named(name: str, place: Path) -> None:
    change, names = CHANGES[name]
    before = hashes()
    change(place)
    after = hashes()
    assert before.keys() == after.keys()
    assert {key for key in before if before[key] != after[key]} == names


def test_hashes_are_those_of_other_programs(place: Path) -> None:
    found = hashes()
    assert set(found) == {
        *("weights", "config", "tokenizer", "text a.jsonl", "text b.jsonl", "text wiki.raw"),
        *("task mine", "plug-in my_methods"),
    }
    for name, path in (("weights", "D/model.safetensors"), ("text a.jsonl", "a.jsonl")):
        assert found[name] == hashlib.sha256((place / path).read_bytes()).hexdigest()
    parts = {name: place / f"{name}.py" for name in ("my_methods", "my_helper")}
    lines = [f"{n}\0{hashlib.sha256(p.read_bytes()).hexdigest()}\n" for n, p in sorted(parts.items())]
    assert found["plug-in my_methods"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert str(place) not in json.dumps(found)


@pytest.mark.parametrize("name", ["my_methods:Any", "my_methods.py:Any", "./my_methods.py:Any"])
def test_a_class_that_an_option_names_is_hashed_like_a_method(place: Path, name: str) -> None:
    found = hashes(method={"optim": {"type": name}})
    assert found == hashes()


def test_of_a_class_of_a_package_the_version_counts(place: Path) -> None:
    """But for packages whose version a record holds anyway."""
    found = hashes(
        method=[{"optim": {"type": "galore_torch:GaLoreAdamW"}}, {"optim": {"type": "torch.optim:SGD"}}]
    )
    assert {key: value for key, value in found.items() if "package" in key} == {
        "package galore-torch": version("galore-torch")
    }
    assert "plug-in my_methods" not in found


def test_weights_in_parts_have_the_hash_of_all_parts_in_order(place: Path) -> None:
    whole = (place / "D/model.safetensors").read_bytes()
    (place / "D/model.safetensors").unlink()
    (place / "D/model-2.safetensors").write_bytes(whole[1000:])
    (place / "D/model-1.safetensors").write_bytes(whole[:1000])
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (place / "D/model.safetensors.index.json").write_text(json.dumps(index))
    assert hashes()["weights"] == hashlib.sha256(whole).hexdigest()


def test_weights_that_are_not_read_do_not_count(place: Path) -> None:
    assert "weights" not in hashes(train={"stage": "pretrain"})


@pytest.mark.parametrize("spelling", ["D", "./D/", "tasks/../D", "LINK", "ABSOLUTE"])
def test_another_spelling_of_a_path_has_the_same_hashes(spelling: str, place: Path) -> None:
    (place / "LINK").symlink_to("D")
    path = str(place / "D") if spelling == "ABSOLUTE" else spelling
    assert hashes(model={"source": "local", "path": path}) == hashes()


def test_two_texts_of_one_name_are_two_inputs(place: Path) -> None:
    (place / "sub").mkdir()
    (place / "sub/a.jsonl").write_text("other")
    found = hashes(data={"source": "files", "paths": ["a.jsonl", "sub/a.jsonl"]})
    assert found["text a.jsonl"] != found["text a.jsonl #2"]


def test_what_is_missing_has_no_hash(place: Path) -> None:
    (place / "a.jsonl").unlink()
    data = {"source": "files", "paths": ["a.jsonl", "~nosuchuser/b.jsonl"]}
    assert not {name for name in hashes(data=data) if "text a" in name or "text b" in name}


def test_a_group_of_tasks_has_the_files_of_its_tasks(place: Path) -> None:
    def of_group() -> str:
        evaluate = {"tasks": ["all_of_mine"], "task_paths": ["tasks"]}
        return hashes(evaluate=evaluate)["task all_of_mine"]

    before = of_group()
    edit("tasks/code.py")(place)
    assert of_group() != before


def test_original_files_of_a_papers_task_count_and_those_of_another_do_not(place: Path) -> None:
    for name in ("boolq/boolq_dev.jsonl", "svamp/SVAMP.json"):
        (place / "originals" / name).parent.mkdir(parents=True)
        (place / "originals" / name).write_text("{}")

    def both() -> tuple[dict[str, str], dict[str, str]]:
        scored = hashes(evaluate={"tasks": ["paper_boolq"], "task_data": "originals"})
        return scored, hashes(data={"source": "task", "task": "paper_boolq", "folder": "originals"})

    before = both()
    assert all("data of task boolq" in found for found in before)
    edit("originals/svamp/SVAMP.json")(place)
    assert both() == before
    edit("originals/boolq/boolq_dev.jsonl")(place)
    name = "data of task boolq"
    assert all(new[name] != old[name] for new, old in zip(both(), before, strict=True))


def test_a_revision_that_is_a_commit_needs_no_network(place: Path) -> None:
    commit = "a" * 40
    assert hashes(model={"source": "hub", "id": "who/what", "revision": commit})["model"] == commit
    data = {"source": "datasets", "id": "who/what", "revision": commit}
    assert hashes(data=data)["text who/what"] == commit


def test_the_branch_of_a_hub_model_is_the_commit_in_the_cache(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    at = "b" * 40
    cached = place / "models--who--what" / "snapshots" / at / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: str(cached))
    assert hashes(model={"source": "hub", "id": "who/what"})["model"] == at


@pytest.mark.parametrize("changed", [False, True])
def test_a_run_refuses_what_is_not_what_the_sweep_saw_and_records_what_is(
    changed: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_writer, "take_stdout", io.StringIO)
    asked = Run.model_validate(
        {
            "model": {"source": "local", "path": "./D"},
            "data": {"source": "random", "seq_len": 8},
            "train": {"steps": 1, "batch": 1},
            "method": "full",
        }
    )
    seen = InputHashes(Digests()).of(asked)
    if changed:
        replace_weights(place)
    job = Job(asked, "s", place / "run", "cpu", place / "cache", "lorebench run", seen)
    job.folder.mkdir()
    job.write()
    code, record = worker.run_job(job.file), read(job.record)
    assert record.inputs == seen
    if changed:
        assert (code, record.outcome.status) == (2, "interrupted")
        assert record.outcome.message.startswith("weights: changed while the run was starting")
    else:
        assert (code, record.outcome.status) == (0, "ok"), record.outcome
        assert record.data is not None
        assert record.data.model_sha256 == seen["weights"]


def test_what_changed_between_the_look_and_the_load_is_refused(place: Path) -> None:
    expected = hashes()
    assert verify(run(), expected, Digests()) == expected
    edit("b.jsonl")(place)
    with pytest.raises(UserError, match=r"^text b\.jsonl: changed while the run was starting; .*run again"):
        verify(run(), expected, Digests())
