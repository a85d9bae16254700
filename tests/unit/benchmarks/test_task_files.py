"""The papers' tasks from their files: prompts and texts as the papers cut them, a line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tasks import papers
from harness.config import TaskData
from harness.engine.data.tasks import SHIPPED_TASKS, load_tasks, training_texts
from harness.errors import UserError
from tests.support.paper_files import question, write_paper_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_paper_files(tmp_path)


def refusal(dataset: str, split: str, folder: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        papers.examples(dataset, split, None if folder is None else str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------- the format
def test_the_text_is_prompt_answer_and_end_with_blank_lines_as_in_the_papers(folder: Path) -> None:
    documents = papers.load("coin_flip", "The answer is", str(folder))["test"]
    assert documents[0]["prompt"] == (
        "Below is a question that describes a task. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### \n"
        "Question: Coin 7 is up. Is it?\n"
        "\n"
        "\n"
        "### Response:\n"
        "The answer is "
    )
    assert documents[0]["text"] == documents[0]["prompt"] + "no.\n\n### End"


def test_a_passage_stands_before_its_question_and_a_question_is_written_large(folder: Path) -> None:
    prompt = papers.load("boolq", "Among True and False, the answer is", str(folder))["test"][0]["prompt"]
    asked = "Question: Is the hat of ben red? Answer Choices: (a) True (b) False\n\n\n### Response:\n"
    assert f"### \nThe hat of Ben number 3 is red.\n\n{asked}" in prompt


@pytest.mark.parametrize(
    ("dataset", "asked", "answers"),
    [
        (
            "commonsenseqa",
            "Where is thing number 4? Answer Choices: (A) thing 4 a (B) thing 4 b (C) thing 4 c "
            "(D) thing 4 d (E) thing 4 e",
            ["E", "A", "B"],
        ),
        ("svamp", "Ada has 7 hats and buys 2 more How many has she now?", ["9", "10", "11"]),
        ("coin_flip", "Coin 7 is up. Is it?", ["no", "yes", "no"]),
        (
            "object_tracking",
            "Swap 8. At the end Ada has the \nWhich choice is true ? Answer Choices: (A) red ball. "
            "(B) blue ball. (C) green ball.",
            ["C", "A"],
        ),
        ("strategyqa", "Is 7 a number?", ["no", "yes", "no"]),
    ],
)
def test_questions_and_answers_follow_the_order_of_the_file(
    folder: Path, dataset: str, asked: str, answers: list[str]
) -> None:
    found = papers.examples(dataset, "test", str(folder))
    assert found[0].question == asked
    assert [example.answer for example in found] == answers


def test_training_and_evaluation_share_no_example_and_leave_none_out(folder: Path) -> None:
    for dataset in ("svamp", "coin_flip", "object_tracking", "strategyqa"):
        train, test = (papers.examples(dataset, split, str(folder)) for split in ("train", "test"))
        assert len(train) + len(test) == 10
        assert len(train) == (8 if dataset == "object_tracking" else 7)
        assert not set(train) & set(test)


def test_equal_numbers_are_written_alike_and_the_first_one_is_taken() -> None:
    responses = [["51.0 or 3"], ["51."], ["-2.50 apples"], ["1,234"], ["none"]]
    assert papers.first_number(responses, None) == [["51"], ["51"], ["-2.5"], ["1234"], ["[invalid]"]]


# --------------------------------------------------------------------------------------- mistakes
def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    said = refusal("svamp", "test", tmp_path)
    assert said.startswith(f"no file {tmp_path / 'svamp' / 'SVAMP.json'} for task svamp")
    assert "evaluate.task_data" in said
    assert "data.folder" in said


def test_scoring_needs_no_training_file(folder: Path) -> None:
    (folder / "boolq" / "boolq_train.jsonl").unlink()
    task = load_tasks(["paper_boolq"], SHIPPED_TASKS, str(folder))["paper_boolq"]
    assert len(task.test_docs()) == 4
    with pytest.raises(UserError, match=r"no file .*boolq_train\.jsonl for task boolq"):
        training_texts(TaskData(source="task", task="paper_boolq", folder=str(folder)))


@pytest.mark.parametrize("content", ["not JSON", '{"examples": 3}', "{}", "3"])
def test_a_file_of_another_kind_is_refused_by_name(folder: Path, content: str) -> None:
    path = folder / "svamp" / "SVAMP.json"
    path.write_text(content)
    assert refusal("svamp", "train", folder).startswith(f"{path}: not the file of svamp")


@pytest.mark.parametrize("row", [{}, [], {"Body": 3, "Question": "q", "Answer": 1}, {"Body": "b"}])
def test_an_example_of_another_form_is_refused_with_its_place(folder: Path, row: Any) -> None:
    path = folder / "svamp" / "SVAMP.json"
    rows = json.loads(path.read_text())
    rows[1] = row
    path.write_text(json.dumps(rows))
    assert refusal("svamp", "train", folder).startswith(f"{path}: example 2 of split 'train' is not of svamp")


def test_a_file_too_short_for_a_split_is_refused(folder: Path) -> None:
    path = folder / "svamp" / "SVAMP.json"
    path.write_text("[]")
    assert refusal("svamp", "test", folder) == f"{path}: no example for split 'test' of svamp"


def test_an_unknown_task_to_train_on_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no task 'paper_svam' to train on; did you mean 'paper_svamp'"):
        training_texts(TaskData(source="task", task="paper_svam", folder=str(folder)))
    with pytest.raises(ValueError, match="no task 'paper_tasks' to train on"):
        training_texts(TaskData(source="task", task="paper_tasks", folder=str(folder)))


def test_a_missing_file_ends_the_loading_of_a_task_in_the_same_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_tasks(["paper_tasks"], SHIPPED_TASKS, str(tmp_path))
    assert str(caught.value).startswith("no file ")


# -------------------------------------------------------------------------------------------- the hub
@pytest.mark.parametrize("dataset", sorted(set(papers.SOURCES) - set(papers.HUB)))
def test_a_task_without_a_known_copy_asks_for_the_folder(dataset: str) -> None:
    said = refusal(dataset, "test", None)
    assert "no copy on the hub" in said
    assert papers.SOURCES[dataset].test in said


def hub_row(number: int) -> dict[str, Any]:
    """A row as the hub has it: the choices as two lists."""
    row = question(number)
    choices = row["question"]["choices"]
    lists = {key: [choice[key] for choice in choices] for key in ("label", "text")}
    return {"question": row["question"]["stem"], "choices": lists, "answerKey": row["answerKey"]}


def test_a_copy_on_the_hub_is_read_at_its_revision_and_taken_only_when_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def load_dataset(identifier: str, **options: Any) -> list[dict[str, Any]]:
        asked.append({"id": identifier, **options})
        return [hub_row(number) for number in range(4, 7)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert "does not hold the examples of the original files" in refusal("commonsenseqa", "test", None)
    expected = papers.examples("commonsenseqa", "test", str(folder))
    monkeypatch.setitem(papers.HUB["commonsenseqa"].sha256, "test", papers.fingerprint(expected))
    assert papers.examples("commonsenseqa", "test", None) == expected
    copy = papers.HUB["commonsenseqa"]
    assert asked[0] == {"id": copy.id, "split": "validation", "revision": copy.revision}
    assert len(copy.revision) == 40


def test_a_hub_that_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("offline\nfor now")

    monkeypatch.setattr("datasets.load_dataset", offline)
    said = refusal("commonsenseqa", "train", None)
    assert "cannot be loaded from the hub" in said
    assert "give the folder" in said
