"""What a trained model scores without a finite loss has diverged; of an untrained model it is said."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest

from harness.config import Run
from harness.engine import worker
from harness.engine.process.job import Job
from harness.engine.run import record_writer
from harness.record import Record, read
from tests.support.tiny import tiny_llama, tiny_tokenizer

BROKEN = """
import torch

from harness.method import Method


class Broken(Method):
    source = "none"

    def prepare(self, model, context):
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))
        return model
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_llama(layers=1).save_pretrained(tmp_path / "D")
    tiny_tokenizer().save_pretrained(tmp_path / "D")
    (tmp_path / "a.txt").write_text("\n\n".join("wake up little one " * 4 for _ in range(20)))
    (tmp_path / "broken_method.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record_writer, "take_stdout", io.StringIO)
    return tmp_path


def carried_out(place: Path, **changes: Any) -> Record:
    content: dict[str, Any] = {
        "model": {"source": "local", "path": "./D"},
        "data": {"source": "files", "paths": ["a.txt"], "separator": "\n\n", "seq_len": 8},
        "evaluate": {"perplexity": ["heldout"]},
        "method": "full",
        "save_weights": True,
    }
    run = Run.model_validate(content | changes)
    job = Job(run, "s", place / "run", "cpu", place / "cache", "lorebench run", {})
    job.folder.mkdir()
    job.write()
    assert worker.run_job(job.file) == 0
    return read(job.record)


SAYS = "the loss of heldout is not finite, so its perplexity says nothing"


def test_a_trained_model_whose_scores_are_not_finite_has_diverged(place: Path) -> None:
    """The one update breaks the weights after its loss, which is finite, was read."""
    record = carried_out(place, train={"steps": 1, "batch": 1, "lr": 1e38})
    assert record.training is not None
    assert record.training.last_loss is not None
    assert math.isfinite(record.training.last_loss)
    outcome = record.outcome
    assert (outcome.status, outcome.phase, outcome.message) == ("diverged", "evaluate", SAYS)
    assert record.quality is not None
    assert not math.isfinite(record.quality.perplexity["heldout"].perplexity)
    assert list((place / "run" / "weights").glob("*.safetensors")), "what was trained is kept"


def test_an_untrained_model_whose_scores_are_not_finite_is_said(place: Path) -> None:
    record = carried_out(place, method="broken_method:Broken", train={"stage": "compress"})
    assert record.outcome.status == "ok", record.outcome
    assert SAYS in record.warnings


def test_finite_scores_are_taken_without_a_word(place: Path) -> None:
    record = carried_out(place, train={"steps": 1, "batch": 1, "lr": 1e-3})
    assert record.outcome.status == "ok", record.outcome
    assert not [text for text in record.warnings if "finite" in text]
