"""The papers' tasks from end to end: known answers give known figures, any method trains and is scored."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.tasks import papers
from harness.config import Run, TaskData
from harness.engine.data.tasks import SHIPPED_TASKS, load_tasks, training_texts
from harness.engine.process.job import Job
from harness.engine.quality.tasks import evaluate_tasks
from harness.record import Record, read
from tests.support import forked
from tests.support.paper_files import write_paper_files
from tests.support.realdata import development_data

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
NAMES = [f"paper_{name}" for name in papers.SOURCES]
#: Examples to train on and to score, by the papers' code.
SIZES = {
    "commonsenseqa": (9741, 1221),
    "svamp": (700, 300),
    "boolq": (None, 3270),  # the training file is not among the development data
    "coin_flip": (350, 150),
    "object_tracking": (600, 150),
    "strategyqa": (1603, 687),
}


# ------------------------------------------------------------------------------------ known answers
def scored(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, says: list[str], samples: Path | None = None
) -> Any:
    """What a model that says this gets, document by document; what it is asked is checked on the way."""

    class Speaker:
        """Enough of a language model for lm-eval: it knows what it will say."""

        rank, world_size, chat_template, tokenizer_name = 0, 1, None, ""

        def generate_until(self, requests: list[Any]) -> list[str]:
            for request in requests:
                prompt, settings = request.args
                assert prompt.endswith(" is ")
                assert (settings["do_sample"], settings["max_gen_toks"]) == (False, 8)
            return [says[request.doc_id] for request in requests]

    monkeypatch.setattr("harness.engine.quality.tasks._language_model", lambda *_: speaker(Speaker))
    monkeypatch.setattr("harness.engine.quality.tasks._able_to_pad", lambda tokenizer: tokenizer)
    monkeypatch.setattr("harness.engine.quality.tasks._doubted", lambda honest, *_: honest)
    tasks = load_tasks([name], SHIPPED_TASKS, str(folder))
    options = {"limit": None, "batch": 1, "device": CPU, "max_length": 64, "samples_to": samples}
    return evaluate_tasks(torch.nn.Linear(1, 1), None, tasks, **options)[name]


def speaker(kind: type) -> Any:
    from lm_eval.api.model import LM

    return type("Speaking", (kind, LM), dict.fromkeys(["loglikelihood", "loglikelihood_rolling"]))()


@pytest.mark.parametrize(
    ("name", "says", "figures"),
    [
        # the answers wanted are E, A, B: correct, unparsable, readable by the script, right by the script
        ("commonsenseqa", [" E.\n\n### End", "(A)", "B"], (3, 0, 3, 3)),
        ("commonsenseqa", ["none\n\n### End", "I do not know", "Banana"], (0, 3, 2, 2)),
        ("commonsenseqa", ["e", "a", "b"], (0, 3, 0, 0)),
        # C, A
        ("object_tracking", ["Claire has C.", "no"], (1, 1, 1, 1)),
        ("object_tracking", ["Alice has C.", "A"], (2, 0, 2, 1)),
        # 9, 10, 11
        ("svamp", ["9.0.", "is 10 or 11", "eleven"], (2, 1, 2, 2)),
        # 4 to 7 in the file: False, True, False, True
        ("boolq", ["False.", "true", "False or True", "False"], (2, 1, 3, 2)),
        # no, yes, no
        ("coin_flip", ["No.", "yes", "unknown"], (2, 1, 2, 2)),
        ("strategyqa", ["nobody", "No, yes", "NO"], (1, 1, 2, 1)),
    ],
)
def test_known_answers_give_our_figure_and_the_published_scripts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    says: list[str],
    figures: tuple[int, int, int, int],
) -> None:
    correct, unparsable, readable, right = figures
    found = scored(monkeypatch, write_paper_files(tmp_path), f"paper_{name}", says)
    assert (found.correct, found.documents, found.unparsable) == (correct, len(says), unparsable)
    assert found.accuracy == correct / len(says)
    assert found.legacy_documents == readable
    assert found.legacy_accuracy == (right / readable if readable else None)


def test_what_was_said_is_kept_by_our_reading_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_paper_files(tmp_path)
    scored(monkeypatch, folder, "paper_commonsenseqa", ["E", "none\n\n### End", "B"], tmp_path / "samples")
    lines = (tmp_path / "samples" / "paper_commonsenseqa.jsonl").read_text().splitlines()
    assert [json.loads(line)["responses"] for line in lines] == [["E"], ["[invalid]"], ["B"]]


# --------------------------------------------------------------------------------------- the real files
@pytest.fixture
def real() -> str:
    return str(development_data("downstream"))


@pytest.mark.realdata
@pytest.mark.parametrize("dataset", papers.SOURCES)
def test_the_papers_files_have_the_papers_sizes(real: str, dataset: str) -> None:
    train, test = SIZES[dataset]
    assert len(papers.examples(dataset, "test", real)) == test
    if train is not None:
        assert len(papers.examples(dataset, "train", real)) == train


@pytest.mark.realdata
def test_chance_is_that_of_the_most_frequent_answer_or_of_as_many_choices(real: str) -> None:
    choices = {"commonsenseqa": 5, "object_tracking": 3}
    tasks = load_tasks(["paper_tasks"], SHIPPED_TASKS, real)
    assert sorted(tasks) == sorted(NAMES)
    for dataset in papers.SOURCES:
        found = [example.answer for example in papers.examples(dataset, "test", real)]
        frequent = Counter(found).most_common(1)[0][1] / len(found)
        metadata = tasks[f"paper_{dataset}"].get_config("metadata")
        expected = 1 / choices[dataset] if dataset in choices else frequent
        assert metadata["chance"] == pytest.approx(expected, abs=5e-5), dataset
        assert metadata["version"] == 1


@pytest.mark.realdata
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_hash_of_the_copy_on_the_hub_is_that_of_the_original_files(real: str, split: str) -> None:
    for dataset, copy in papers.HUB.items():
        assert papers.fingerprint(papers.examples(dataset, split, real)) == copy.sha256[split]


# ----------------------------------------------------------------------------------------- end to end
def carried_out(tmp_path: Path, folder: str, method: Any, task: str, limit: int, **data: Any) -> Record:
    """The record of a run that trains the embedded model on a task and is scored on it."""
    run = Run.model_validate(
        {
            "method": method,
            "data": {"source": "task", "task": task, "folder": folder, **data},
            "train": {"stage": "finetune", "steps": 3, "batch": 2, "grad_accum": 2, "lr": 1e-3},
            "evaluate": {"tasks": [task], "task_data": folder, "limit": limit, "batch": 2},
        }
    )
    job = Job(run, "tasks", tmp_path / "run", "cpu", tmp_path / "cache", "lorebench run")
    job.folder.mkdir()
    job.write()
    command = [*forked.command("harness.engine.worker"), "run", str(job.file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 300}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, **options)
    assert ended.returncode == 0, ended.stderr
    return read(job.record)


def check(record: Record, limit: int, task: str) -> None:
    assert record.outcome.status == "ok", record.outcome
    assert record.quality is not None
    assert record.training is not None
    assert record.data is not None
    found = record.quality.tasks[task]
    assert found.documents == limit
    assert found.accuracy * limit == pytest.approx(found.correct, abs=1e-9)
    assert found.unparsable is not None
    assert found.legacy_documents is not None
    assert 0 <= found.unparsable <= limit
    training, read_data = record.training, record.data
    assert training.tokens == 3 * 4 * record.config["data"]["seq_len"]
    assert training.real_tokens is not None
    assert read_data.real_tokens is not None
    assert 0 < training.real_tokens < training.tokens
    assert read_data.dropped_rows == 0
    assert 0 < read_data.real_tokens < read_data.tokens
    assert training.last_loss is not None
    assert training.first_loss is not None
    assert training.last_loss < training.first_loss


@pytest.mark.parametrize(
    "method", ["full", [{"welore": {"err": 0.3, "train": "none"}}, {"lora": {"rank": 4}}]]
)
def test_a_run_trains_on_a_task_and_is_scored_on_it(tmp_path: Path, method: Any) -> None:
    folder = str(write_paper_files(tmp_path / "files"))
    record = carried_out(tmp_path, folder, method, "paper_svamp", limit=2, seq_len=320)
    check(record, 2, "paper_svamp")
    assert record.data is not None
    assert (record.data.name, record.data.documents, record.data.revision) == ("paper_svamp/train", 7, "1")


@pytest.mark.realdata
def test_a_run_trains_on_a_papers_task_and_is_scored_on_it(tmp_path: Path, real: str) -> None:
    record = carried_out(tmp_path, real, "full", "paper_strategyqa", limit=4, seq_len=512)
    check(record, 4, "paper_strategyqa")
    assert record.data is not None
    assert record.data.documents == 1603
    texts = training_texts(TaskData(source="task", task="paper_strategyqa", folder=real))[0]
    assert len(texts) == 1603
