"""The papers' downstream tasks as small files in the original formats, written by hand; nothing is quoted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Examples per file: training and evaluation where they are apart, else both.
SIZES = {"commonsenseqa": (4, 3), "svamp": 10, "boolq": (3, 4), "coin_flip": 10, "strategyqa": 10}
TRACKED = 10


def question(number: int) -> dict[str, Any]:
    """One line of CommonsenseQA."""
    choices = [{"label": label, "text": f"thing {number} {label.lower()}"} for label in "ABCDE"]
    asked = {"question_concept": "thing", "choices": choices, "stem": f"Where is thing number {number}?"}
    return {"answerKey": "ABCDE"[number % 5], "id": str(number), "question": asked}


def problem(number: int) -> dict[str, Any]:
    """One problem of SVAMP."""
    body = f"Ada has {number} hats and buys 2 more"
    answer = float(number + 2) if number else 2.5
    return {"ID": f"chal-{number}", "Body": body, "Question": "How many has she now?", "Answer": answer}


def passage(number: int) -> dict[str, Any]:
    """One line of BoolQ."""
    text = f" The hat of Ben number {number} is red."
    return {"question": "is the hat of Ben red", "title": "Hats", "answer": number % 2 == 0, "passage": text}


def write_paper_files(folder: Path) -> Path:
    """All files of all six tasks below `folder`."""
    both = [{"Yes": 1, "No": 0}, {"Yes": 0, "No": 1}]
    coins = [{"question": f"Coin {n} is up. Is it?", "answer": ("yes", "no")[n % 2]} for n in range(10)]
    asked = [{"input": f"Is {n} a number?", "target": "", "target_scores": both[n % 2]} for n in range(10)]
    balls = ["red ball.", "blue ball.", "green ball."]
    tracked = [
        {
            "input": f"Swap {n}. At the end Ada has the ",
            "target_scores": {ball: int(place == n % 3) for place, ball in enumerate(balls)},
        }
        for n in range(TRACKED)
    ]
    contents: dict[str, Any] = {
        "commonsenseqa/train_rand_split.jsonl": [question(n) for n in range(4)],
        "commonsenseqa/dev_rand_split.jsonl": [question(n) for n in range(4, 7)],
        "svamp/SVAMP.json": [problem(n) for n in range(10)],
        "boolq/boolq_train.jsonl": [passage(n) for n in range(3)],
        "boolq/boolq_dev.jsonl": [passage(n) for n in range(3, 7)],
        "coin_flip/coin_flip.json": {"examples": coins},
        "bigbench_object_tracking/task.json": {"name": "three_objects", "examples": tracked},
        "strategyqa/task.json": {"name": "strategyqa", "examples": asked},
    }
    for place, content in contents.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "\n".join(map(json.dumps, content)) + "\n" if path.suffix == ".jsonl" else json.dumps(content)
        path.write_text(lines, encoding="utf-8")
    return folder
