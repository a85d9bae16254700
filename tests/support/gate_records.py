"""Records for the regression gate, with what runs keep beside them; every part can be replaced."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import identity, record
from harness.record import Record

PARTS = {
    "weights_trainable_bytes": 400 << 20,
    "weights_frozen_bytes": 0,
    "gradients_bytes": 400 << 20,
    "optimizer_bytes": 800 << 20,
    "buffers_bytes": 128,
    "transient_bytes": 100 << 20,
}
PACKAGES = {"torch": "2.13.0", "transformers": "5.23.0", "lm-eval": "0.4.13", "peft": "0.21.2"}


def made(label: str = "row", seed: int = 0, repeat: int = 0, **parts: Any) -> Record:
    """A record of a run that ended well; `parts` replace whole parts, the rest is the same for all."""
    train = {"lr": 1e-3, "steps": 100}
    config = parts.pop("config", {"train": train, "method": [{"name": label, "options": {"rank": 8}}]})
    config = {**config, "seed": seed, "repeat": repeat}
    content: dict[str, Any] = {
        "run_id": identity.run_id(config),
        "config_id": identity.config_id(config),
        "suite": "demo",
        "label": label,
        "seed": seed,
        "repeat": repeat,
        "tier": "embedded",
        "config": config,
        "rerun": "lorebench run demo",
        "started_at": f"2026-11-21T10:{repeat:02d}:00+00:00",
        "outcome": {"status": "ok", "phase": "evaluate"},
        "memory": memory(),
        "environment": environment(),
    }
    return Record.model_validate({**content, **parts})


def memory(meter: str = "live", **parts: int) -> dict[str, Any]:
    """The memory of a training by component; the peak is their sum."""
    found = {**PARTS, **parts}
    window = {"window_first_step": 3, "window_last_step": 5, "refreshes_in_window": 1}
    return {"meter": meter, "train": {"peak_allocated_bytes": sum(found.values()), **found, **window}}


def environment(**values: Any) -> dict[str, Any]:
    """An environment."""
    known = {"device": "a CPU", "cpu": "a CPU", "cpu_threads": 2, "system": "Linux", "python": "3.11.7"}
    return {**known, "packages": PACKAGES, **values}


def quality(nats: Sequence[float] = (), right: Sequence[bool] = (), tokens: int = 20) -> dict[str, Any]:
    """A perplexity over windows of as many predictions, and a task, as far as they are given."""
    found: dict[str, Any] = {}
    if len(nats):
        total = math.fsum(nats)
        count = tokens * len(nats)
        scored = {"perplexity": math.exp(total / count), "nll_nats": total, "tokens": count}
        found["perplexity"] = {
            "text": {**scored, "windows": len(nats), "dropped_tokens": 0, "text": "a text"}
        }
    if len(right):
        correct, documents = int(sum(right)), len(right)
        counts = {"accuracy": correct / documents, "correct": correct, "documents": documents}
        found["tasks"] = {"quiz": {**counts, "version": "1"}}
    return found


def put(
    folder: Path, item: Record, nats: Sequence[float] = (), right: Sequence[bool] = (), tokens: int = 20
) -> Path:
    """Write a record below a folder, with windows and samples where they are given; its file."""
    place = folder / "machine" / item.suite / f"{item.run_id}.json"
    record.write(item, place)
    beside = place.with_suffix("")
    lines(beside / "windows" / "text.jsonl", [
        {"sha256": f"{number:016x}", "tokens": tokens, "nll_nats": float(value)}
        for number, value in enumerate(nats)
    ])  # fmt: skip
    lines(beside / "samples" / "quiz.jsonl", [
        {"doc_id": number, "doc_hash": f"d{number}", "prompt_hash": f"p{number}", "correct": bool(value)}
        for number, value in enumerate(right)
    ])  # fmt: skip
    return place


def lines(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """Write objects as lines, where there are any."""
    if found:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
