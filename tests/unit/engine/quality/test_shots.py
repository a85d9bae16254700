"""Solved examples before a question: as many as a run asks for, never the question itself."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.model import LM

from harness.engine.data.tasks import load_tasks
from harness.engine.quality.tasks import evaluate_tasks
from harness.errors import UserError

WORDS = ["owl", "hat", "pen", "cup"]
DATA = """
import datasets

def load(**unused):
    split = lambda *words: datasets.Dataset.from_list([{"word": word} for word in words])
    return {"apart": split("oak", "elm"), "scored": split("owl", "hat", "pen", "cup")}
"""
TASK = """
task: local_shots
custom_dataset: !function data.load
output_type: multiple_choice
doc_to_text: "{{word}}?"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{metric: acc}]
metadata: {version: 1}
"""


class Listener(LM):
    """A model that notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: dict[str, str] = {}

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        self.prompts |= {request.doc["word"]: request.args[0] for request in requests}
        return [(0.0, False) for _ in requests]

    loglikelihood_rolling = generate_until = loglikelihood  # type: ignore[assignment]


def prompts(
    monkeypatch: pytest.MonkeyPatch, folder: Path, splits: str, shots: int | None
) -> dict[str, list[str]]:
    """The examples before each question by its word, once the task was loaded and scored."""
    (folder / "data.py").write_text(DATA)
    (folder / "task.yaml").write_text(textwrap.dedent(TASK + splits))
    listener = Listener()
    monkeypatch.setattr("harness.engine.quality.tasks._language_model", lambda *_: listener)
    monkeypatch.setattr("harness.engine.quality.tasks._able_to_pad", lambda tokenizer: tokenizer)
    monkeypatch.setattr("harness.engine.quality.tasks._doubted", lambda honest, *_: honest)
    tasks = load_tasks(["local_shots"], [folder], None, shots)
    given: dict[str, Any] = {"limit": None, "batch": 1, "max_length": 64, "samples_to": None}
    found = evaluate_tasks(torch.nn.Linear(1, 1), None, tasks, device=torch.device("cpu"), **given)
    assert found["local_shots"].documents == len(WORDS)
    before = {word: prompt.removesuffix(f"{word}?") for word, prompt in listener.prompts.items()}
    return {word: [part for part in text.split("\n\n") if part] for word, text in before.items()}


@pytest.mark.parametrize("said", ["", "num_fewshot: 0", "num_fewshot: 1"])
def test_a_run_that_asks_for_shots_gets_them_whatever_the_task_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str
) -> None:
    splits = f"training_split: apart\ntest_split: scored\n{said}\n"
    found = prompts(monkeypatch, tmp_path, splits, 2)
    assert found.keys() == set(WORDS)
    assert all(sorted(examples) == ["elm? yes", "oak? yes"] for examples in found.values())


@pytest.mark.parametrize(("said", "count"), [("", 0), ("num_fewshot: 0", 0), ("num_fewshot: 1", 1)])
def test_a_run_that_says_nothing_leaves_the_task_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, count: int
) -> None:
    splits = f"training_split: apart\ntest_split: scored\n{said}\n"
    assert {len(examples) for examples in prompts(monkeypatch, tmp_path, splits, None).values()} == {count}


def test_a_run_can_ask_for_no_shots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    splits = "training_split: apart\ntest_split: scored\nnum_fewshot: 2\n"
    assert not any(prompts(monkeypatch, tmp_path, splits, 0).values())


@pytest.mark.parametrize(
    "splits",
    [
        "test_split: scored\n",
        "validation_split: scored\n",
        "validation_split: scored\nfewshot_split: scored\n",
    ],
)
def test_a_question_is_never_among_its_own_examples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, splits: str
) -> None:
    for word, examples in prompts(monkeypatch, tmp_path, splits, 3).items():
        assert sorted(examples) == sorted(f"{other}? yes" for other in WORDS if other != word)


@pytest.mark.parametrize(
    ("splits", "shots", "has"),
    [("test_split: scored\n", 4, 3), ("training_split: apart\ntest_split: scored\n", 3, 2)],
)
def test_more_shots_than_there_are_examples_are_refused_before_anything_is_scored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, splits: str, shots: int, has: int
) -> None:
    with pytest.raises(
        UserError, match=rf"'local_shots': {shots} shots requested, it has {has} examples beside"
    ):
        prompts(monkeypatch, tmp_path, splits, shots)
