"""Memory that runs out on a GPU is a row of the table, and a cap makes a large GPU a small one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.config import Run
from harness.engine import runner
from harness.engine.process.progress import Display
from harness.engine.run.environment import CAP
from harness.engine.run.outcome import classify
from harness.record import Record
from harness.suite import Suite

GIB = 2**30
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_an_allocation_beyond_the_cap_is_out_of_memory_with_the_bytes_asked_for() -> None:
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + GIB) / total, device)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(2 * GIB, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    outcome = classify(caught.value, "train")
    assert (outcome.status, outcome.phase, outcome.requested_bytes) == ("oom", "train", 2 * GIB)


def carried_out(folder: Path) -> Record:
    """Full training of 60M parameters in float32, 8 sequences of 256 tokens, in a worker on the GPU."""
    run = Run.model_validate(
        {
            "model": {"source": "shape", "name": "60m"},
            "data": {"source": "random", "seq_len": 256},
            "train": {"stage": "pretrain", "steps": 8, "batch": 8},
            "method": "full",
        }
    )
    settings = runner.Settings(results=folder / "results", cache=folder / "cache", device="cuda")
    done = runner.sweep(Suite("cap", "", None, (run,)), settings, Display(), lambda run: "")
    (record,) = done.records.values()
    return record


def test_a_run_that_needs_more_than_its_cap_becomes_a_row_oom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CAP, "0.5")  # the weights fit, their gradients and Adam's states do not
    record = carried_out(tmp_path)
    assert (record.outcome.status, record.outcome.phase) == ("oom", "train")
    assert record.outcome.requested_bytes
    assert record.outcome.requested_bytes < GIB


def test_a_run_under_a_cap_says_so_and_a_run_without_has_the_whole_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CAP, "24")
    capped = carried_out(tmp_path / "capped")
    monkeypatch.delenv(CAP)
    free = carried_out(tmp_path / "free")
    assert (capped.outcome.status, free.outcome.status) == ("ok", "ok")
    assert capped.memory is not None
    assert free.memory is not None
    assert capped.environment is not None
    assert (capped.memory.cap_bytes, free.memory.cap_bytes) == (24 * GIB, None)
    assert capped.environment.flags[CAP] == "24"
    for record in (capped, free):
        assert record.memory is not None
        assert record.memory.requested_bytes
        assert record.memory.meter == "cuda"
