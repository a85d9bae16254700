"""What a run keeps of each scored sequence pairs it with another run of the same text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from harness.engine.quality import perplexity, scored_text
from harness.engine.quality.scored_text import ScoredText
from harness.tables.compare.judge import compare
from harness.tables.compare.pairing import load
from tests.support.gate_records import made, put
from tests.support.tiny import tiny_llama

TEXT = ScoredText("a text", [np.random.default_rng(n).integers(64, size=5 + n % 7) for n in range(40)])


def kept(path: Path, text: ScoredText, seed: int = 0, batch: int = 8) -> perplexity.Scored:
    scored = perplexity.score(tiny_llama(seed=seed), text.sequences, batch, torch.device("cpu"))
    scored_text.write_sequences(path, text, scored)
    return scored


def test_each_line_is_one_sequence_and_all_add_up(tmp_path: Path) -> None:
    scored = kept(tmp_path / "windows" / "text.jsonl", TEXT)
    lines = [json.loads(line) for line in (tmp_path / "windows" / "text.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [len(sequence) - 1 for sequence in TEXT.sequences]
    assert [line["nll_nats"] for line in lines] == scored.sequence_nll_nats
    assert len({line["sha256"] for line in lines}) == len(lines)


def test_equal_tokens_have_equal_marks_whatever_they_are_kept_as(tmp_path: Path) -> None:
    small = ScoredText("a text", [sequence.astype(np.uint16)[::1] for sequence in TEXT.sequences])
    other = ScoredText("a text", [sequence[::-1] for sequence in TEXT.sequences])
    marks = []
    for number, text in enumerate((TEXT, small, other)):
        kept(tmp_path / f"{number}.jsonl", text)
        lines = (tmp_path / f"{number}.jsonl").read_text().splitlines()
        marks.append([json.loads(line)["sha256"] for line in lines])
    assert marks[0] == marks[1]
    assert marks[0] != marks[2]


def test_the_gate_reads_what_a_run_wrote(tmp_path: Path) -> None:
    """A model with other weights is another model on every window: the gate sees which way."""
    found = []
    for name, seed in (("a", 0), ("b", 1)):
        scored = kept(tmp_path / "scratch.jsonl", TEXT, seed)
        count = {
            "tokens": scored.tokens,
            "windows": len(TEXT.sequences),
            "dropped_tokens": 0,
            "text": "a text",
        }
        figures = {"perplexity": scored.perplexity, "nll_nats": scored.nll_nats, **count}
        place = put(tmp_path / name, made(quality={"perplexity": {"text": figures}}))
        kept(place.with_suffix("") / "windows" / "text.jsonl", TEXT, seed)
        found.append(scored.perplexity)
    cell = next(c for c in compare(load(tmp_path / "a"), load(tmp_path / "b")).cells if "text" in c.quantity)
    assert "95 % interval" in cell.cause
    assert f"{100 * (found[1] / found[0] - 1):+.2f} %" in cell.cause
