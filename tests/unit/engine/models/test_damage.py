"""Whatever is wrong with a folder, it is refused in one line or it is a model with a finite loss."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from harness.engine.models import checkpoint
from tests.support.checkpoints import mutated, outcome
from tests.support.tiny import tiny_llama, tiny_tokenizer
from tests.unit.engine.models.test_models import factor_some

COUNT = 25


@pytest.mark.parametrize("kind", ["plain", "shards", "factors"])
def test_a_damaged_folder_is_refused_in_one_line_or_used(tmp_path: Path, kind: str) -> None:
    base, changed, again = tmp_path / "base", tmp_path / "changed", tmp_path / "again"
    if kind == "shards":
        tiny_llama().save_pretrained(base, max_shard_size="40KB")
        tiny_tokenizer().save_pretrained(base)
    else:
        model = tiny_llama(tie=True, kv_heads=2)
        checkpoint.save(factor_some(model) if kind == "factors" else model, tiny_tokenizer(), base)
    (base / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    ends: Counter[str] = Counter()
    for seed in range(COUNT):
        mutated(base, changed, seed)
        ends[outcome(changed, again)] += 1
        for folder in (changed, again):
            shutil.rmtree(folder, ignore_errors=True)
    assert ends["refused by the check"] > COUNT // 4
    assert ends["used"] > COUNT // 10
