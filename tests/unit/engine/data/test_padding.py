"""One document a row: where padding goes, what it costs, and that it teaches nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config import CalibrationConfig, DatasetsData, FilesData, RandomData, Run, TaskData, TrainConfig
from harness.engine import worker
from harness.engine.data import tokens, windows
from harness.engine.data.calibration import CalibrationText
from harness.engine.data.parts import documents_of
from harness.engine.data.shards import Stored
from harness.engine.data.tasks import training_texts
from harness.engine.data.windows import PAD
from harness.engine.forecast.dry_run import simulate
from harness.engine.measure.peak import LiveMeter
from harness.engine.measure.speed import StepClock
from harness.engine.models.load import load_model
from harness.engine.run import checks, prepare
from harness.engine.run.train import Trainer, TrainResult
from harness.errors import UserError
from harness.method import Context
from harness.plugins import build
from harness.record import TrainMemory
from tests.support.paper_files import write_paper_files
from tests.support.tiny import sentence, tiny_llama, tiny_tokenizer

CPU = torch.device("cpu")
BEGIN, END = 1, 2


# ------------------------------------------------------------------------------------------ laying rows
def laid(documents: list[list[int]], seq_len: int, **settings: bool) -> windows.PaddedRows:
    return windows.pad(Stored.of([np.asarray(ids) for ids in documents]), seq_len, "text", **settings)


def test_a_document_shorter_than_a_row_is_padded_on_the_right_and_a_longer_one_is_cut() -> None:
    found = laid([[1, 5, 6], [1, 7, 8, 9, 10, 11]], 4)
    assert found.windows[:].tolist() == [[1, 5, 6, PAD], [1, 7, 8, 9]]
    assert (found.real_tokens, found.dropped_tokens, found.dropped_rows) == (7, 2, 0)
    kept = laid([[1, 5, 6, 2], [1, 7, 8, 9, 2]], 4, keep_last=True)
    assert kept.windows[:].tolist() == [[1, 5, 6, 2], [1, 7, 8, 2]]
    assert (kept.real_tokens, kept.dropped_tokens) == (8, 1)


def test_a_text_that_does_not_end_before_its_row_does_can_be_left_out_instead() -> None:
    found = laid([[1, 5, 6], [1, 7, 8, 9], [1, 7, 8, 9, 10]], 4, drop=True)
    assert found.windows[:].tolist() == [[1, 5, 6, PAD]]
    assert (found.real_tokens, found.dropped_tokens, found.dropped_rows) == (3, 9, 2)


def test_a_text_of_one_token_asks_nothing_and_is_left_out() -> None:
    found = laid([[1], [1, 5]], 4)
    assert (len(found.windows), found.dropped_rows, found.dropped_tokens) == (1, 1, 1)
    assert found.windows[:].tolist() == [[1, 5, PAD, PAD]]


@pytest.mark.parametrize(("encoded", "seq_len"), [([[1, 2, 3]], 3), ([[1]], 8), ([], 8), ([[1, 2]], 1)])
def test_texts_that_fill_no_row_are_refused(encoded: list[list[int]], seq_len: int) -> None:
    with pytest.raises(UserError, match=r"text: none of [01] texts .* a row of \d"):
        laid(encoded, seq_len, drop=True)


def test_a_model_reads_a_token_where_there_is_padding() -> None:
    assert windows.token_ids(np.array([[1, 5, PAD], [1, PAD, PAD]])).tolist() == [[1, 5, 0], [1, 0, 0]]


# -------------------------------------------------------------------------------------------- loading
@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [sentence(number) * (1 + number % 3) for number in range(20)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def files(path: Path, **settings: Any) -> FilesData:
    return FilesData(source="files", paths=(str(path),), **settings)


def test_each_document_of_a_file_gets_a_row_of_its_own(lines: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = files(lines, layout="rows", seq_len=24, holdout=0.2)
    found = tokens.load_tokens(config, tokenizer, 64, seed=0)
    texts = list(documents_of(config)[0])[:16]
    expected = [[BEGIN, *tokenizer(text, add_special_tokens=False)["input_ids"], END] for text in texts]
    for row, ids in zip(found.windows[:].tolist(), expected, strict=True):
        cut = [*ids[:23], END] if len(ids) > 24 else ids  # what is cut keeps its end mark
        assert row == cut + [PAD] * (24 - len(cut))
    unmarked = tokens.load_tokens(config.model_copy(update={"end_token": False}), tokenizer, 64, seed=0)
    assert not (unmarked.windows[:] == END).any()
    assert found.count == 16 * 24
    assert found.real_tokens == sum(min(len(ids), 24) for ids in expected) < found.count
    assert found.dropped_tokens == sum(max(len(ids) - 24, 0) for ids in expected) > 0
    assert (found.documents, found.dropped_rows, found.padded) == (16, 0, True)


def test_packed_windows_hold_no_padding_and_say_so(lines: Path) -> None:
    found = tokens.load_tokens(files(lines, seq_len=24), tiny_tokenizer(), 64, seed=0)
    assert (found.windows[:] >= 0).all()
    assert (found.padded, found.real_tokens, found.dropped_rows) == (False, None, None)


def test_what_a_method_calibrates_on_says_what_is_padding(lines: Path) -> None:
    found = tokens.load_tokens(files(lines, layout="rows", seq_len=64), tiny_tokenizer(), 64, seed=0)
    text = CalibrationText(found, CalibrationConfig(sequences=8), 8, 0, CPU)
    trained, (ids, labels) = next(found.batches(8, seed=0)), next(text.batches())
    assert (trained == PAD).any()
    assert labels.tolist() == trained.tolist()
    assert (ids >= 0).all()
    assert torch.equal(ids[labels >= 0], labels[labels >= 0])


def test_a_tokenizer_of_another_vocabulary_is_refused_for_rows_too(lines: Path) -> None:
    with pytest.raises(UserError, match="the model has a vocabulary of 32"):
        tokens.load_tokens(files(lines, layout="rows", seq_len=64), tiny_tokenizer(), 32, seed=0)


def task(folder: Path, **settings: Any) -> TaskData:
    given = {"task": "paper_svamp", "folder": str(write_paper_files(folder)), **settings}
    return TaskData(source="task", **given)


def test_a_task_is_trained_on_its_whole_texts_with_a_begin_and_without_an_end(tmp_path: Path) -> None:
    config, tokenizer = task(tmp_path, seq_len=512), tiny_tokenizer()
    found = tokens.load_tokens(config, tokenizer, 64, seed=0)
    texts, name, version = training_texts(config)
    assert (len(texts), found.name, found.revision) == (7, name, version) == (7, "paper_svamp/train", "1")
    first = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    assert found.windows[0].tolist() == [BEGIN, *first, *[PAD] * (511 - len(first))]
    assert texts[0].endswith("The answer (arabic numerals) is 2.5.\n\n### End")


def test_examples_that_fill_a_row_are_dropped_and_counted_or_cut_where_that_is_asked(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    lengths = [
        1 + len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in training_texts(task(tmp_path))[0]
    ]
    assert len(set(lengths)) > 1
    row = max(lengths)
    dropped = tokens.load_tokens(task(tmp_path, seq_len=row), tokenizer, 64, seed=0)
    assert dropped.dropped_rows == lengths.count(row) > 0
    assert len(dropped.windows) == 7 - lengths.count(row)
    cut = tokens.load_tokens(task(tmp_path, seq_len=row, too_long="cut"), tokenizer, 64, seed=0)
    assert (len(cut.windows), cut.dropped_rows) == (7, 0)


# ------------------------------------------------------------------------------------------- identity
def test_what_is_off_is_no_part_of_a_runs_identity() -> None:
    def identity(**section: Any) -> str:
        return Run.model_validate({"method": "full", **section}).config_id

    text = {"source": "files", "paths": ["text.jsonl"]}
    plain = identity(data=text)
    assert plain == "c0844b9dec95", "the id from before there were layouts and templates"
    hub = {"source": "datasets", "id": "someone/some-text"}
    assert identity(data=hub) == "7ed2619e2220"
    assert identity(evaluate={"tasks": ["embedded"]}) == "7ccf46771bce"
    assert identity(data={**text, "layout": "packed", "template": None}) == plain
    others = [identity(data={**text, "layout": "rows"}), identity(data={**text, "template": "alpaca"})]
    assert len({plain, *others}) == 3
    asked = {"tasks": ["paper_svamp"]}
    assert identity(evaluate={**asked, "task_data": None}) == identity(evaluate=asked)
    assert identity(evaluate={**asked, "task_data": "here"}) != identity(evaluate=asked)


@pytest.mark.parametrize(
    ("section", "remote"),
    [
        ({"data": {"source": "task", "task": "paper_svamp", "folder": "here"}}, False),
        ({"data": {"source": "task", "task": "paper_svamp"}}, True),
        ({"evaluate": {"tasks": ["paper_svamp", "embedded_b"], "task_data": "here"}}, False),
        ({"evaluate": {"tasks": ["paper_svamp"]}}, True),
        ({"evaluate": {"tasks": ["arc_easy"], "task_data": "here"}}, True),
    ],
)
def test_a_task_without_its_folder_may_go_to_the_hub(section: dict[str, Any], remote: bool) -> None:
    assert worker._names_something_remote(Run.model_validate({"method": "full", **section})) is remote


def test_the_files_of_a_task_are_looked_for_before_anything_starts(tmp_path: Path) -> None:
    section = {"source": "task", "task": "paper_svamp", "folder": str(tmp_path)}
    with pytest.raises(UserError, match=r"no file .*SVAMP\.json for task svamp"):
        checks.resolve([Run.model_validate({"method": "full", "data": section})])


# ---------------------------------------------------------------------------------------- instructions
INSTRUCTED = [
    {"instruction": "Name a hat.", "input": "", "output": "Bowler."},
    {"instruction": "Name its colour.", "input": "A red hat.", "output": "Red."},
    {"instruction": "Name a pen.", "output": "Quill."},
]


def instructed(path: Path, found: list[dict[str, Any]]) -> FilesData:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return files(path, template="alpaca")


def test_an_instruction_with_and_without_input_becomes_one_text(tmp_path: Path) -> None:
    found = list(documents_of(instructed(tmp_path / "rows.jsonl", INSTRUCTED))[0])
    assert found[0] == found[2].replace("a pen", "a hat").replace("Quill", "Bowler")
    assert found[0].endswith(
        "appropriately completes the request.\n\n### Instruction:\nName a hat.\n\n### Response:\nBowler."
    )
    assert "### Input" not in found[0]
    assert "### Instruction:\nName its colour.\n\n### Input:\nA red hat.\n\n### Response:\nRed." in found[1]


def test_braces_in_an_instruction_are_text(tmp_path: Path) -> None:
    row = {"instruction": "Say {input}.", "output": "{output}"}
    (found,) = documents_of(instructed(tmp_path / "rows.jsonl", [row]))[0]
    assert found.endswith("Say {input}.\n\n### Response:\n{output}")


@pytest.mark.parametrize("row", [{"instruction": "a"}, {"text": "a"}, {"instruction": 3, "output": "a"}])
def test_a_row_without_its_parts_is_refused_with_its_place(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(UserError, match=r"rows\.jsonl:2: template 'alpaca' needs text under '.*there is: "):
        documents_of(instructed(path, [INSTRUCTED[0], row]))


def test_a_template_for_plain_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some text")
    with pytest.raises(UserError, match=r"text\.txt: template 'alpaca' needs the rows of a \.jsonl file"):
        documents_of(files(path, template="alpaca"))


def test_a_data_set_of_the_hub_takes_the_template_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    loaded = datasets.Dataset.from_list(INSTRUCTED[:2]).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    config = DatasetsData(source="datasets", id="someone/instructions", template="alpaca")
    assert list(documents_of(config)[0])[1].endswith("### Response:\nRed.")


# --------------------------------------------------------------------------------------------- training
def ragged(count: int, seq_len: int, seed: int = 5) -> np.ndarray:
    """Rows of very unequal lengths, from 2 tokens to all."""
    rng = np.random.default_rng(seed)
    found = np.full((count, seq_len), PAD, dtype=np.int64)
    for place, row in enumerate(found):
        length = 2 + (place * 7 + int(rng.integers(3))) % (seq_len - 1)
        row[:length] = rng.integers(0, 64, length)
    return found


def trainer(
    batches: Iterator[np.ndarray], dtype: torch.dtype = torch.float64, padded: bool = True, **settings: Any
) -> Trainer:
    model = tiny_llama().to(dtype)
    config = TrainConfig(**{"lr": 1e-2, **settings})
    stepper = build("full", {}).stepper(model, config)
    assert stepper is not None
    options = {"device": CPU, "meter": LiveMeter(CPU), "clock": StepClock(CPU), "padded": padded}
    return Trainer(model, stepper, batches, config, **options)


def course(found: np.ndarray, batch: int, grad_accum: int) -> tuple[TrainResult, dict[str, Tensor]]:
    """Train on these rows in their order."""
    parts = (found[first : first + batch] for first in itertools.count(0, batch))
    made = trainer(parts, steps=len(found) // (batch * grad_accum), batch=batch, grad_accum=grad_accum)
    return made.run(lambda event: None), made.model.state_dict()


def test_accumulating_unequal_rows_is_one_batch_of_all_of_them() -> None:
    found = ragged(48, 12)
    whole, weights = course(found, batch=8, grad_accum=1)
    parts, accumulated = course(found, batch=2, grad_accum=4)
    assert len(whole.loss) == len(parts.loss) == 6
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(accumulated[name], weight, rtol=1e-5, atol=1e-6)
    assert whole.real_tokens == parts.real_tokens
    assert sum(whole.real_tokens) == int((found != PAD).sum())


def test_the_loss_is_the_mean_over_all_tokens_that_are_predicted_each_row_read_alone() -> None:
    found = ragged(8, 12)
    model = tiny_llama().double()
    nll, count = 0.0, 0
    for row in found:
        ids = torch.from_numpy(row[row != PAD])
        nll += F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum").item()
        count += len(ids) - 1
    trained, _ = course(found, batch=4, grad_accum=2)
    assert trained.loss[0] == pytest.approx(nll / count, rel=1e-6)


def test_more_padding_changes_neither_loss_nor_weights() -> None:
    found = ragged(24, 12)
    wider = np.concatenate([found, np.full((24, 9), PAD)], axis=1)
    narrow, weights = course(found, batch=4, grad_accum=1)
    wide, same = course(wider, batch=4, grad_accum=1)
    assert wide.loss == pytest.approx(narrow.loss, rel=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(same[name], weight, rtol=1e-5, atol=1e-6)


def test_rows_without_padding_train_as_windows_do() -> None:
    found = np.random.default_rng(5).integers(0, 64, (24, 12))

    def losses(padded: bool) -> list[float]:
        batches = (found[first : first + 2] for first in itertools.count(0, 2))
        made = trainer(batches, padded=padded, steps=6, batch=2, grad_accum=2)
        return made.run(lambda event: None).loss

    assert losses(True) == pytest.approx(losses(False), rel=1e-6)


class Listener(nn.Module):
    """Passes on what a model is asked, and keeps it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, list[dict[str, Any]]()

    def forward(self, **asked: Any) -> Any:
        self.asked.append(asked)
        return self.model(**asked)


def test_windows_without_padding_need_no_labels_of_their_own() -> None:
    made = trainer(itertools.repeat(ragged(2, 8) * 0 + 3), padded=False, steps=1, batch=2)
    made.model = listener = Listener(made.model)
    made.run(lambda event: None)
    (asked,) = listener.asked
    assert asked["labels"] is asked["input_ids"]
    assert set(asked) == {"labels", "input_ids"}


# -------------------------------------------------------------------------------------------- simulation
def padded_run(stack: list[Any], **train: Any) -> Run:
    section = {"source": "task", "task": "paper_svamp", "folder": "nowhere", "seq_len": 24}
    shape = {"source": "shape", "name": "nano"}
    return Run.model_validate(
        {"model": shape, "data": section, "method": stack, "train": {"batch": 3, **train}}
    )


def watched(run: Run) -> TrainMemory | None:
    """What the live meter sees of a few updates on padded rows."""
    methods, _ = prepare.load_stack(run)
    meter = LiveMeter(CPU)
    with meter.window() as before:
        torch.empty(0)
    model: Any = load_model(run.model, dtype=torch.float32, device=CPU, seed=0).model
    batches = (ragged(3, 24, seed) for seed in itertools.count())
    made = prepare.assemble(run, methods, model, lambda key, method: Context(), batches, meter)
    assert made.trainer is not None
    seen = made.trainer.measure_memory(3).memory
    seen.peak_bytes -= before.peak_allocated_bytes
    return seen.summary()


@pytest.mark.parametrize("stack", [["full"], [{"lora": {"rank": 2}}]], ids=["full", "lora"])
@pytest.mark.parametrize("grad_accum", [1, 2])
def test_the_simulated_peak_of_padded_rows_is_the_live_one_to_the_byte(
    stack: list[Any], grad_accum: int
) -> None:
    run = padded_run(stack, grad_accum=grad_accum)
    watched(run)  # what a library makes at its first call is not of a run
    report, expected = simulate(run, granularity=1), watched(run)
    assert report.train is not None
    assert expected is not None
    same = {name for name in TrainMemory.model_fields if name.endswith("_bytes")}
    assert report.train.model_dump(include=same) == expected.model_dump(include=same)


def test_labels_of_their_own_take_memory_where_the_embedding_keeps_what_was_read() -> None:
    run = padded_run(["full"])
    packed = run.model_copy(update={"data": RandomData(source="random", seq_len=24)})
    more = simulate(run, granularity=1).peak_allocated_bytes
    assert more == simulate(packed, granularity=1).peak_allocated_bytes + 3 * 24 * 8
