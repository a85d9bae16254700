"""Read the papers' downstream tasks from their original files: prompts, answers, and texts to train on.

Source: WeLore (arXiv 2407.11239), its released code, which took its questions from the data of zero-shot
chain of thought (Kojima et al. 2022, arXiv 2205.11916). Splits are by order in the file, nothing is shuffled.

lm-eval loads this file by its path, from any working directory, without the repository being importable. That
is why it puts the repository's root on the module path by itself.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

_ROOT = Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:
    sys.path.append(str(_ROOT))

from harness.errors import UserError, one_line  # noqa: E402  (needs the path above)
from harness.files import from_user  # noqa: E402

BLURB = (
    "Below is a question that describes a task. Write a response that appropriately completes the request."
)
FOLDER = "folder (evaluate.task_data to score, data.folder to train)"
UNPARSABLE = "[invalid]"  # the result of lm-eval's own regex filter where nothing matches
#: A number as the released code looks for it; thousands are written without commas.
NUMBER = re.compile(r"-?\d+\.?\d*")


class Example(NamedTuple):
    """A question with its answer, and the passage that it is about, if any."""

    question: str
    answer: str
    context: str = ""


# ------------------------------------------------------------------------- one example of each file
def commonsenseqa(row: dict[str, Any]) -> Example:
    """Read a stem and five choices; the answer is a letter."""
    choices = {choice["label"]: choice["text"] for choice in row["question"]["choices"]}
    return Example(f"{row['question']['stem'].strip()} {_choices(choices)}", row["answerKey"])


def svamp(row: dict[str, Any]) -> Example:
    """Read a word problem; the answer is a number, whole where possible."""
    return Example(f"{row['Body'].strip()} {row['Question'].strip()}", number(str(row["Answer"])))


def boolq(row: dict[str, Any]) -> Example:
    """Read a question about a passage; the answer is True or False."""
    question = f"{row['question'].strip().capitalize()}? Answer Choices: (a) True (b) False"
    return Example(question, str(bool(row["answer"])), row["passage"].strip())


def coin_flip(row: dict[str, Any]) -> Example:
    """Read who flips a coin; the answer is yes or no."""
    return Example(row["question"].strip(), row["answer"])


def object_tracking(row: dict[str, Any]) -> Example:
    """Read a sentence to complete by one of three choices; the answer is a letter in file order."""
    scores: dict[str, int] = row["target_scores"]
    letters = dict(zip("ABC", scores, strict=True))
    asked = f"{row['input'].strip()} \nWhich choice is true ? {_choices(letters)}"
    return Example(asked, next(letter for letter, choice in letters.items() if scores[choice] == 1))


def strategyqa(row: dict[str, Any]) -> Example:
    """Read a question that needs intermediate steps; the answer is yes or no."""
    return Example(row["input"].strip(), "yes" if row["target_scores"]["Yes"] == 1 else "no")


def _choices(choices: dict[str, str]) -> str:
    return "Answer Choices: " + " ".join(f"({letter}) {text}" for letter, text in choices.items())


class Source(NamedTuple):
    """The files of a task by split; where both are one file, its first `train_percent` are for training."""

    read: Callable[[dict[str, Any]], Example]
    train: str
    test: str
    train_percent: int | None = None


SOURCES = {
    "commonsenseqa": Source(
        commonsenseqa, "commonsenseqa/train_rand_split.jsonl", "commonsenseqa/dev_rand_split.jsonl"
    ),
    "svamp": Source(svamp, "svamp/SVAMP.json", "svamp/SVAMP.json", 70),
    "boolq": Source(boolq, "boolq/boolq_train.jsonl", "boolq/boolq_dev.jsonl"),
    "coin_flip": Source(coin_flip, "coin_flip/coin_flip.json", "coin_flip/coin_flip.json", 70),
    "object_tracking": Source(
        object_tracking, "bigbench_object_tracking/task.json", "bigbench_object_tracking/task.json", 80
    ),
    "strategyqa": Source(strategyqa, "strategyqa/task.json", "strategyqa/task.json", 70),
}


class HubCopy(NamedTuple):
    """A copy on the hub: its revision, the names of its splits, and the hash of the texts of each."""

    id: str
    revision: str
    splits: dict[str, str]
    sha256: dict[str, str]


#: Copies used when no folder is given. This one could not be reached when it was added: its revision is that
#: of the hub's page, and every load is compared with the hash of the original files' examples. No copy of
#: BoolQ, SVAMP, CoinFlip, object tracking or StrategyQA is known to have the same examples in the same order.
HUB = {
    "commonsenseqa": HubCopy(
        "tau/commonsense_qa",
        "94630fe30dad47192a8546eb75f094926d47e155",
        {"train": "train", "test": "validation"},
        {
            "train": "e52dac04c0a766d2008f08b144e44af8b51fb01541a58526446d78a272d46134",
            "test": "ab440ba016a9989a761011d376b6db0cfacb21d98e74c559e3681b5f7b6dcc1c",
        },
    )
}


# ------------------------------------------------------------------------------------- for lm-eval
class Splits(dict[str, datasets.Dataset]):
    """The splits `train` and `test`, each read on first access: scoring needs no training file."""

    def __init__(self, dataset: str, trigger: str, folder: str | None) -> None:
        super().__init__()
        self._dataset, self._trigger, self._folder = dataset, trigger, folder

    def __missing__(self, split: str) -> datasets.Dataset:
        found = examples(self._dataset, split, self._folder)
        self[split] = datasets.Dataset.from_list([_document(example, self._trigger) for example in found])
        return self[split]


def load(dataset: str, trigger: str, task_data: str | None = None, **_unused: Any) -> Splits:
    """Return splits with `prompt`, `answer` and `text`; lm-eval also passes the task's metadata, unused."""
    return Splits(dataset, trigger, task_data)


def first_number(responses: Iterable[Sequence[str]], _documents: Any) -> list[list[str]]:
    """Filter for lm-eval: return the first number of each response, equal numbers written alike."""

    def found(response: str) -> str:
        match = NUMBER.search(response.replace(",", ""))
        return number(match.group()) if match else UNPARSABLE

    return [[found(response) for response in several] for several in responses]


def number(text: str) -> str:
    """Return a number as text, without decimals where it is whole."""
    value = float(text)
    return str(int(value)) if value.is_integer() else str(value)


def _document(example: Example, trigger: str) -> dict[str, str]:
    """Build a document; its prompt ends in a space after the trigger, as in the released code."""
    passage = f"{example.context}\n\n" if len(example.context) > 1 else ""
    question = f"### \n{passage}Question: {example.question}\n"
    prompt = f"{BLURB}\n\n{question}\n\n### Response:\n{trigger} "
    return {
        "prompt": prompt,
        "answer": example.answer,
        "text": f"{prompt}{example.answer.strip()}.\n\n### End",
    }


# ---------------------------------------------------------------------------------- from file or hub
def examples(dataset: str, split: str, folder: str | None) -> list[Example]:
    """Return all examples of a split in file order; UserError for a file that is missing or malformed."""
    source = SOURCES[dataset]
    if folder is None:
        return _from_hub(dataset, split)
    path = from_user(folder) / (source.train if split == "train" else source.test)
    rows = _rows(path, dataset)
    if source.train_percent is not None:
        cut = len(rows) * source.train_percent // 100
        rows = rows[:cut] if split == "train" else rows[cut:]
    found = []
    for position, row in enumerate(rows, start=1):
        try:
            found.append(source.read(row))
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
            why = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(
                f"{path}: example {position} of split {split!r} is not of {dataset}: {why}"
            ) from error
    if not found:
        raise UserError(f"{path}: no example for split {split!r} of {dataset}")
    return found


def _rows(path: Path, dataset: str) -> list[Any]:
    """Return the rows of JSON lines, of a list, or of the list `examples` of an object."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"no file {path} for task {dataset}: put the original file there, or name another {FOLDER}"
        ) from error
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        content = json.loads(text)
        return list(content["examples"] if isinstance(content, dict) else content)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the file of {dataset}: {one_line(error)}") from error


def _from_hub(dataset: str, split: str) -> list[Example]:
    instead = f"give the {FOLDER} with the original {SOURCES[dataset].test}"
    if dataset not in HUB:
        raise UserError(f"task {dataset} has no copy on the hub that is known to be the same: {instead}")
    copy = HUB[dataset]
    try:
        rows = datasets.load_dataset(copy.id, split=copy.splits[split], revision=copy.revision)
    except Exception as error:  # the library raises many kinds; without a network each means the same
        raise UserError(f"{copy.id} cannot be loaded from the hub ({one_line(error)}); {instead}") from error
    found = [SOURCES[dataset].read(_as_original(row)) for row in rows]
    if fingerprint(found) != copy.sha256[split]:
        raise UserError(
            f"{copy.id} at {copy.revision} does not hold the examples of the original files: {instead}"
        )
    return found


def _as_original(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row of the hub's CommonsenseQA to the form of the original file."""
    pairs = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    choices = [{"label": label, "text": text} for label, text in pairs]
    return {"question": {"stem": row["question"], "choices": choices}, "answerKey": row["answerKey"]}


def fingerprint(found: Sequence[Example]) -> str:
    """Return the hash of examples in order."""
    return hashlib.sha256(json.dumps([list(example) for example in found]).encode()).hexdigest()
