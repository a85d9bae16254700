"""Which text each perplexity protocol scores, and how it is cut."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.embedded import world
from harness import registry
from harness.config import (
    DataConfig,
    DatasetsData,
    EmbeddedData,
    EvaluateConfig,
    FilesData,
    PerplexityConfig,
    RandomData,
    Run,
)
from harness.engine import worker
from harness.engine.quality import corpora, protocols
from harness.engine.quality.scored_text import ScoredText
from harness.errors import UserError
from tests.support.realdata import development_data
from tests.support.tiny import sentence, tiny_tokenizer

#: Two headed paragraphs as the raw file of WikiText-2 has them: a space before text, blank lines between.
RAW = " \n = Title = \n \n First paragraph . \n Second one . \n \n"
#: The rows that the hub has for these lines, as papers join them.
ROWS = ["", " = Title = \n", "", " First paragraph . \n", " Second one . \n", ""]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def build(name: str, source: DataConfig, tokenizer: Any, *paths: Path, **options: int) -> ScoredText:
    config = PerplexityConfig(protocol=name, paths=tuple(map(str, paths)) or None, **options)
    return protocols.build(config, source, tokenizer)


class Words:
    """A tokenizer without any training: one token per word; by itself it sets `</s>`, as that of T5 does."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, texts: str | list[str], **options: Any) -> dict[str, Any]:
        if not isinstance(texts, str):
            return {"input_ids": [self(text, **options)["input_ids"] for text in texts]}
        ids = [3 + len(word) for word in texts.split()]
        if not options.get("add_special_tokens", True):
            return {"input_ids": ids}
        room = options["max_length"] - 1 if options.get("truncation") else len(ids)
        return {"input_ids": [*ids[:room], self.eos_token_id]}


# --------------------------------------------------------------------------------------------- refused
def test_an_unknown_protocol_is_refused_with_the_nearest_name() -> None:
    assert set(protocols.KNOWN) == set(registry.PROTOCOLS)
    with pytest.raises(ValueError, match=r"no perplexity protocol 'wikitext-2048'.*'wikitext2-2048'"):
        PerplexityConfig(protocol="wikitext-2048")


@pytest.mark.parametrize("source", [EmbeddedData(), RandomData(source="random")])
def test_nothing_is_held_out_of_the_embedded_world_or_of_random_tokens(source: DataConfig) -> None:
    with pytest.raises(UserError, match=r"'heldout' needs data\.source files or datasets"):
        protocols.check(PerplexityConfig(protocol="heldout"), source)


@pytest.mark.parametrize("name", ["world-a", "heldout"])
def test_paths_are_refused_where_no_file_is_read(name: str) -> None:
    source = FilesData(source="files", paths=("text.txt",))
    with pytest.raises(
        UserError, match="takes no paths; only wikitext2-2048, wikitext2-4096, wikitext2-128, c4-256"
    ):
        protocols.check(PerplexityConfig(protocol=name, paths=("text.txt",)), source)


def test_a_missing_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    config = PerplexityConfig(protocol="wikitext2-2048", paths=(str(tmp_path / "none.raw"),))
    with pytest.raises(UserError, match=r"no file at .*none\.raw"):
        protocols.check(config, EmbeddedData())


def test_a_model_without_a_tokenizer_has_no_perplexity() -> None:
    with pytest.raises(UserError, match=r"'world-a' needs a tokenizer: set model\.tokenizer"):
        build("world-a", EmbeddedData(), None)


@pytest.mark.parametrize(
    ("name", "option", "takes"),
    [
        ("world-a", "batch", "it takes none"),
        ("wikitext2-2048", "context", "it takes none"),
        ("c4-256", "batch", "it takes tokens"),
        ("c4-256-legacy", "context", "it takes tokens, batch, ranks"),
        ("c4-joined", "tokens", "it takes context"),
    ],
)
def test_an_option_that_a_protocol_does_not_have_is_refused(name: str, option: str, takes: str) -> None:
    config = PerplexityConfig(protocol=name, **{option: 64})
    with pytest.raises(UserError, match=f"'{name}' has no option '{option}'; {takes}$"):
        protocols.check(config, EmbeddedData())


def test_no_paths_at_all_are_not_the_hub() -> None:
    with pytest.raises(UserError, match="'c4-256': paths is empty; name a file, or leave it out for the hub"):
        protocols.check(PerplexityConfig(protocol="c4-256", paths=()), EmbeddedData())


def test_options_that_are_off_are_no_part_of_the_identity_and_those_given_are_part_of_the_name() -> None:
    plain = PerplexityConfig(protocol="c4-joined")
    assert plain.model_dump() == {"protocol": "c4-joined", "paths": None}
    assert plain.name == "c4-joined"
    assert PerplexityConfig(protocol="c4-joined", context=2048).name == "c4-joined(context=2048)"
    several = PerplexityConfig(protocol="c4-256-legacy", ranks=4, batch=128)
    assert several.name == "c4-256-legacy(batch=128, ranks=4)"


@pytest.mark.parametrize("name", sorted(protocols.KNOWN))
def test_the_hub_is_reachable_for_published_texts_without_files_alone(name: str) -> None:
    def remote(**evaluate: Any) -> bool:
        run = Run(method=("full",), evaluate=EvaluateConfig(perplexity=(evaluate,)))
        return worker._names_something_remote(run)

    published = name.startswith(("wikitext2-", "c4-"))
    assert remote(protocol=name) == published
    if published:
        assert not remote(protocol=name, paths=("text.json",))


def test_what_is_known_of_protocols_loads_no_library_of_the_hub() -> None:
    """It is asked before the hub is switched off, and that library reads its switch when it is imported."""
    code = "import sys, harness.engine.quality.protocols; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -------------------------------------------------------------------------------------------- the world
@pytest.mark.parametrize("name", ["world-a", "world-b", "world-b-validation"])
def test_the_floor_is_the_perplexity_of_the_generator_over_the_same_tokens(name: str) -> None:
    found = build(name, EmbeddedData(), Words())
    _, letter, *validation = name.split("-")
    scored = world.documents(letter, "validation" if validation else "test", world.SCORED_DOCUMENTS)
    tokens = sum(len(sequence) - 1 for sequence in found.sequences)
    assert tokens == sum(len(document.text.split()) + 1 for document in scored), "words and </s>, not <s>"
    assert found.floor is not None
    nats = math.log(found.floor) * tokens
    assert nats == pytest.approx(-sum(document.log_prob for document in scored), rel=1e-12)
    assert found.floor > 1


def test_each_document_of_the_world_is_scored_whole_between_its_marks() -> None:
    found = build("world-a", EmbeddedData(), Words())
    assert len(found.sequences) == world.SCORED_DOCUMENTS
    assert all((sequence[0], sequence[-1]) == (1, 2) for sequence in found.sequences)
    assert (found.context, found.dropped_tokens) == (None, 0)


def test_the_splits_and_worlds_are_different_texts() -> None:
    def tokens(name: str) -> tuple[int, ...]:
        return tuple(int(t) for one in build(name, EmbeddedData(), Words()).sequences for t in one)

    assert len({tokens(name) for name in ("world-a", "world-b", "world-a-validation")}) == 3


# --------------------------------------------------------------------------------------------- held out
def test_heldout_scores_the_last_share_in_windows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": sentence(number)}) + "\n" for number in range(20)))
    source = FilesData(source="files", paths=(str(path),), holdout=0.2, seq_len=8)
    found = build("heldout", source, tokenizer)
    stream = [
        token
        for number in range(16, 20)
        for token in (1, *tokenizer(sentence(number), add_special_tokens=False)["input_ids"], 2)
    ]
    assert np.concatenate(found.sequences).tolist() == stream[: len(found.sequences) * 8]
    assert (found.dropped_tokens, found.context) == (len(stream) % 8, 8)
    assert found.floor is None
    assert found.text == "last 20% of rows.jsonl"


def test_too_little_text_held_out_is_refused_as_such(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": sentence(number)}) + "\n" for number in range(20)))
    source = FilesData(source="files", paths=(str(path),), holdout=0.05, seq_len=64)
    with pytest.raises(UserError, match=r"the held-out part of rows\.jsonl: \d+ tokens are fewer than"):
        build("heldout", source, tokenizer)


def test_heldout_works_for_a_data_set(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = datasets.Dataset.from_list([{"text": sentence(number)} for number in range(20)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows.to_iterable_dataset())
    source = DatasetsData(source="datasets", id="some/text", holdout=0.2, seq_len=8)
    assert build("heldout", source, tokenizer).text == "last 20% of some/text/default/train"


# ------------------------------------------------------------------------------------------- WikiText-2
def test_a_raw_file_is_joined_as_its_rows_on_the_hub_are(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(RAW)
    assert corpora.wikitext_text([str(path)]) == "\n\n".join(ROWS)


def test_the_hub_and_a_raw_file_give_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(RAW)
    asked: list[Any] = []

    def load_dataset(*place: str, **options: str) -> dict[str, list[str]]:
        asked.append((place, options))
        return {"text": ROWS}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert corpora.wikitext_text(None) == corpora.wikitext_text([str(path)])
    identifier, name, revision = corpora.WIKITEXT_HUB
    assert asked == [((identifier, name), {"split": "test", "revision": revision})]
    assert len(revision) == 40, "a commit, not a branch that moves"


def test_without_a_network_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: str, **__: str) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"Couldn't reach the hub.*paths: \[wiki.test.raw\]"):
        corpora.wikitext_text(None)


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wiki.test.raw").write_text(RAW)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = PerplexityConfig(protocol="wikitext2-2048", paths=("~/wiki.test.raw",))
    protocols.check(config, EmbeddedData())
    assert config.paths is not None
    assert corpora.wikitext_text(config.paths) == "\n\n".join(ROWS)


def test_wikitext_is_one_stream_with_one_begin_mark_cut_into_windows(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(" word \n" * 5000)
    found = build("wikitext2-2048", EmbeddedData(), Words(), path)
    stream = np.concatenate(found.sequences)
    assert [len(window) for window in found.sequences] == [2048, 2048]
    assert found.dropped_tokens == 5001 - 2 * 2048
    assert np.flatnonzero(stream == Words.bos_token_id).tolist() == [0]
    assert Words.eos_token_id not in stream
    assert len(build("wikitext2-4096", EmbeddedData(), Words(), path).sequences) == 1


def test_a_window_longer_than_the_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(" word \n" * 100)
    with pytest.raises(UserError, match="WikiText-2: 101 tokens are fewer than one window of 2048; give the"):
        build("wikitext2-2048", EmbeddedData(), Words(), path)


class Pieces(Words):
    """The same with a vocabulary of LLaMA's size, whose pieces are not LLaMA's."""

    def get_vocab(self) -> dict[str, int]:
        return {f"piece {number}": number for number in range(32_001)}


def test_another_count_of_tokens_is_refused_where_the_papers_count_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(" word \n" * 3000)
    assert len(build("wikitext2-2048", EmbeddedData(), Pieces(), path).sequences) == 1, "not LLaMA's pieces"
    known = corpora.pieces_sha256(Pieces())
    monkeypatch.setattr(corpora, "LLAMA_PIECES_SHA256", known)
    with pytest.raises(UserError, match=r"has 3,001 tokens .* 341,469 are expected: .*<unk>") as refusal:
        build("wikitext2-2048", EmbeddedData(), Pieces(), path)
    assert "\n" not in str(refusal.value)
    monkeypatch.setattr(corpora, "WIKITEXT_LLAMA_TOKENS", 3001)
    assert len(build("wikitext2-2048", EmbeddedData(), Pieces(), path).sequences) == 1


def test_a_tokenizer_is_known_by_its_pieces_in_their_order_whatever_was_added_to_them() -> None:
    class More(Pieces):
        def get_vocab(self) -> dict[str, int]:
            return dict(reversed((super().get_vocab() | {"<pad>": 40_000}).items()))

    class Swapped(Pieces):
        def get_vocab(self) -> dict[str, int]:
            return super().get_vocab() | {"piece 5": 6, "piece 6": 5}

    known = corpora.pieces_sha256(Pieces())
    assert corpora.pieces_sha256(More()) == known
    assert corpora.pieces_sha256(Swapped()) != known
    assert corpora.pieces_sha256(Words()) is None


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["tokens", "joined", "validation"])
def test_another_version_of_wikitext_2_is_refused_with_the_llama_tokenizer(name: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(development_data("llama-tokenizer"))
    raw = development_data("wikitext-2", "raw", "wiki.test.raw")
    joined = tmp_path / "joined.raw"
    joined.write_text(corpora.wikitext_text([str(raw)]), encoding="utf-8")
    other = {
        "tokens": development_data("wikitext-2", "tokens", "test.txt"),
        "joined": joined,
        "validation": development_data("wikitext-2", "raw", "wiki.valid.raw"),
    }
    with pytest.raises(UserError, match=r"has [\d,]+ tokens with LLaMA's tokenizer, 341,469 are expected"):
        build("wikitext2-2048", EmbeddedData(), tokenizer, other[name])


@pytest.mark.realdata
def test_wikitext_2_by_the_llama_tokenizer_has_the_windows_of_the_papers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(development_data("llama-tokenizer"))
    raw = development_data("wikitext-2", "raw", "wiki.test.raw")
    found = build("wikitext2-2048", EmbeddedData(), tokenizer, raw)
    assert found.text == "WikiText-2 raw test, 341469 tokens"
    assert len(found.sequences) == 166
    assert found.dropped_tokens == 1501
    assert all(len(window) == 2048 for window in found.sequences)
    assert len(build("wikitext2-4096", EmbeddedData(), tokenizer, raw).sequences) == 83
