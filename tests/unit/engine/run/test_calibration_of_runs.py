"""The text that a compression looks at: in the record, told from scored text, and wrong in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from harness.config import Run
from harness.digests import Digests
from harness.engine import worker
from harness.engine.process.job import Job
from harness.engine.run import checks, record_writer
from harness.engine.run.inputs import InputHashes
from harness.errors import UserError
from harness.record import Record, read
from harness.validation import validate
from tests.support.tiny import sentence, tiny_llama, tiny_tokenizer

COMPRESS = {"compress": {"reduction": 0.3}}
FILES = {"source": "files", "paths": ["a.jsonl"], "seq_len": 16}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and two texts, in which the run stands."""
    tiny_llama().save_pretrained(tmp_path / "D")
    tiny_tokenizer().save_pretrained(tmp_path / "D")
    for name, first in (("a", 0), ("b", 500)):
        rows = [json.dumps({"text": sentence(number)}) for number in range(first, first + 300)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record_writer, "take_stdout", io.StringIO)
    return tmp_path


def run(**changes: Any) -> Run:
    content = {
        "model": {"source": "local", "path": "./D"},
        "data": FILES,
        "train": {"stage": "compress", "batch": 4},
        "calibration": {"sequences": 24},
        "method": COMPRESS,
    }
    return validate(Run, {**content, **changes}, "test")


def ended(place: Path, asked: Run) -> tuple[int, Record]:
    inputs = InputHashes(Digests()).of(asked)
    job = Job(asked, "s", place / "run", "cpu", place / "cache", "lorebench run", inputs)
    job.folder.mkdir()
    job.write()
    return worker.run_job(job.file), read(job.record)


def test_31_the_record_holds_target_definition_ratios_and_the_text(place: Path) -> None:
    code, record = ended(place, run(save_weights=True))
    assert (code, record.outcome.status) == (0, "ok"), record.outcome
    assert record.parameters is not None
    assert record.data is not None
    facts = record.parameters.facts["compress"]
    stored = load_file(place / "run" / "weights" / "factored.safetensors")
    dense = dict(LlamaForCausalLM.from_pretrained(place / "D").named_parameters())
    linears = [name for name in dense if name.endswith("_proj.weight")]
    kept = sum(tensor.numel() for name, tensor in stored.items() if "_proj." in name)
    whole = sum(dense[name].numel() for name in linears)
    assert (facts["target_reduction"], facts["counted"]) == (0.3, "linears")
    assert facts["measured_reduction"]["linears"] == pytest.approx(1 - kept / whole, abs=1e-12)
    everything = sum(tensor.numel() for tensor in dense.values())
    assert facts["measured_reduction"]["all"] == pytest.approx((whole - kept) / everything, abs=1e-12)
    assert facts["parameter_ratio"] == pytest.approx(sum(t.numel() for t in stored.values()) / everything)
    ranks = {name: stored[f"{name}.down.weight"].shape[0] for name in record.parameters.ranks}
    assert record.parameters.ranks == ranks
    full = sum(min(dense[name].shape) for name in linears)
    assert facts["measured_reduction"]["ranks"] == pytest.approx(1 - sum(ranks.values()) / full)
    found = record.data.calibration
    assert found is not None
    assert (found.name, found.seed, found.length) == (record.data.name, 0, 16)
    assert found.counts == {"sequences": 24}
    assert set(found.sha256) == {"sequences"}
    assert len(found.sha256["sequences"]) == 64


@pytest.mark.parametrize("scored", [False, True])
def test_31_calibrating_on_the_text_that_is_scored_is_warned_about(place: Path, scored: bool) -> None:
    """What `heldout` scores of the run's own text is not in the windows; in another file it may be."""
    rows = (place / "a.jsonl").read_text().splitlines()
    (place / "copy.jsonl").write_text("\n".join(rows[270:]))
    calibration: dict[str, Any] = {"sequences": 20}
    if scored:
        calibration["data"] = {**FILES, "paths": ["copy.jsonl"], "holdout": 0.01}
    _, record = ended(place, run(calibration=calibration, evaluate={"perplexity": ["heldout"]}))
    assert record.outcome.status == "ok", record.outcome
    found = [text for text in record.warnings if "sequences occur in the text of heldout" in text]
    assert len(found) == scored, record.warnings


def test_random_tokens_calibrate_a_model_of_random_weights(place: Path) -> None:
    asked = run(
        model={"source": "shape", "name": "nano"},
        data={"source": "random", "seq_len": 16},
        calibration=None,
    )
    code, record = ended(place, asked)
    assert (code, record.outcome.status) == (0, "ok"), record.outcome
    assert record.data is not None
    assert record.data.calibration is not None
    assert (record.data.calibration.name, record.data.calibration.counts) == ("random", {"sequences": 128})


@pytest.mark.parametrize("own", [False, True])
def test_random_tokens_are_doubtful_where_text_is_scored(place: Path, own: bool) -> None:
    (place / "a.txt").write_text("\n".join(map(sentence, range(300))))
    calibration = {"sequences": 20, **({"data": {**FILES, "paths": ["b.jsonl"]}} if own else {})}
    asked = run(
        data={"source": "random", "seq_len": 16},
        calibration=calibration,
        evaluate={"perplexity": [{"protocol": "wikitext2-2048", "paths": ["a.txt"]}]},
    )
    _, record = ended(place, asked)
    assert record.outcome.status == "ok", record.outcome
    found = [text for text in record.warnings if text.startswith("calibration: random tokens say nothing")]
    assert len(found) == (not own), record.warnings


def test_the_text_is_an_input_whose_change_makes_another_run(place: Path) -> None:
    asked = run(calibration={"sequences": 24, "data": {**FILES, "paths": ["b.jsonl"]}})
    before = InputHashes(Digests()).of(asked)
    with (place / "b.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"text": "one more sentence."}))
    after = InputHashes(Digests()).of(asked)
    assert {name for name in before if before[name] != after[name]} == {"text b.jsonl"}
    assert asked.config_id != run().config_id
    assert run(calibration={"sequences": 25}).config_id != run().config_id


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"sequencs": 3}, "sequencs"),
        ({"sequences": 0}, "sequences"),
        ({"data": {"source": "files", "paths": ["none.jsonl"]}}, r"none\.jsonl"),
        ({"data": {"source": "files"}}, "paths"),
        ({"seed": -1}, "seed"),
        ("b.jsonl", "calibration"),
    ],
    ids=str,
)
def test_a_wrong_calibration_is_refused_before_a_run_starts(place: Path, calibration: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        checks.resolve([run(calibration=calibration)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", [{"sequences": 10**6}])
def test_too_few_sequences_end_the_run_before_anything_trains(place: Path, wanted: dict[str, int]) -> None:
    code, record = ended(place, run(calibration=wanted))
    assert (code, record.outcome.status, record.training) == (2, "interrupted", None)
    assert record.outcome.message is not None
    assert "fewer than 1,000,000; ask for fewer (calibration.sequences" in record.outcome.message
