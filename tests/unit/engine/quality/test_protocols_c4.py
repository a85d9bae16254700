"""How documents of C4 are chosen, ordered, cut and batched."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from harness.config import EmbeddedData, PerplexityConfig
from harness.engine.quality import corpora, paper_protocols, protocols
from harness.engine.quality.scored_text import ScoredText
from harness.errors import UserError
from tests.support.realdata import development_data
from tests.unit.engine.quality.test_protocols import Words, build


def write_c4(path: Path, documents: Sequence[str]) -> Path:
    """Documents in the format of C4's files, compressed where the name says so."""
    rows = "".join(json.dumps({"text": text, "timestamp": "", "url": ""}) + "\n" for text in documents)
    path.write_bytes(gzip.compress(rows.encode()) if path.suffix == ".gz" else rows.encode())
    return path


def words(count: int, word: str = "a") -> str:
    return " ".join([word] * count)


def texts_of(found: ScoredText) -> list[tuple[int, ...]]:
    return [tuple(map(int, sequence)) for sequence in found.sequences]


def short(found: ScoredText) -> list[str]:
    """The warnings that a text is shorter than its protocol takes."""
    return [warning for warning in found.warnings if "the protocol takes" in warning]


# ------------------------------------------------------------------------------------------------ joined
def test_joined_documents_are_one_text_with_spaces_between_and_one_begin_mark(tmp_path: Path) -> None:
    path = write_c4(tmp_path / "c4-validation.00000-of-00008.json.gz", [words(5), words(3, "bb"), words(4)])
    found = build("c4-joined", EmbeddedData(), Words(), path, context=4)
    assert np.concatenate(found.sequences).tolist() == [1, 4, 4, 4, 4, 4, 5, 5, 5, 4, 4, 4]
    assert (found.context, found.dropped_tokens) == (4, 1)
    assert "first 3 documents joined, 13 tokens" in found.text
    assert short(found) == [
        "c4-joined(context=4): c4-validation.00000-of-00008.json.gz has 3 documents, the protocol takes 1100"
    ]


def test_joined_text_is_the_first_1100_documents_and_the_first_256_windows(tmp_path: Path) -> None:
    first = write_c4(tmp_path / "a.json", [words(1, "x" * (1 + number % 7)) for number in range(1000)])
    second = write_c4(tmp_path / "b.jsonl", [words(1, "y" * 20)] * 200)
    found = build("c4-joined", EmbeddedData(), Words(), first, second, context=3)
    stream = np.concatenate(found.sequences)
    assert len(found.sequences) == 256
    assert stream[1:8].tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert found.dropped_tokens == 1 + 1100 - 3 * 256
    assert not short(found)
    whole = np.concatenate(build("c4-joined", EmbeddedData(), Words(), first, second, context=5).sequences)
    assert len(whole) == 1100, "1101 tokens: all that fills windows of five"
    assert (whole == 23).sum() == 99


def test_joined_text_that_fills_no_window_is_refused(tmp_path: Path) -> None:
    path = write_c4(tmp_path / "few.jsonl", [words(10)])
    with pytest.raises(
        UserError, match=r"few.jsonl: 11 tokens are fewer than one window of 4096; .* context"
    ):
        build("c4-joined", EmbeddedData(), Words(), path)


# --------------------------------------------------------------------------------------------------- cut
def test_each_document_is_a_sequence_cut_to_256_tokens_that_keeps_its_end_mark(tmp_path: Path) -> None:
    path = write_c4(tmp_path / "rows.jsonl", [words(3), words(255), words(256), words(900), "", words(2)])
    found = build("c4-256", EmbeddedData(), Words(), path)
    assert [len(sequence) for sequence in found.sequences] == [4, 256, 256, 256, 1, 3]
    assert all(sequence[-1] == Words.eos_token_id for sequence in found.sequences)
    assert found.context is None
    assert found.batches == ()
    assert found.text == "rows.jsonl: 6 documents cut to 256 tokens, 776 tokens"


def test_documents_are_taken_in_order_until_there_are_tokens_enough(tmp_path: Path) -> None:
    path = write_c4(tmp_path / "rows.jsonl", [words(9, "x" * number) for number in range(1, 30)])
    for enough in (25, 30):
        found = build("c4-256", EmbeddedData(), Words(), path, tokens=enough)
        assert [sequence[0] for sequence in found.sequences] == [4, 5, 6], "10 tokens each: 20 are too few"
    assert not short(found)


def test_files_with_fewer_tokens_are_used_whole_and_it_is_said(tmp_path: Path) -> None:
    path = write_c4(tmp_path / "rows.jsonl", [words(9)] * 4)
    for name in ("c4-256", "c4-256-legacy"):
        found = build(name, EmbeddedData(), Words(), path)
        assert len(found.sequences) == 4
        assert short(found) == [f"{name}: rows.jsonl has 40 tokens in all, the protocol takes 10000000"]


def test_white_space_around_a_document_is_part_of_it(tmp_path: Path) -> None:
    path = write_c4(tmp_path / "rows.jsonl", [" a \n"])
    assert list(corpora.c4_documents([str(path)])) == [" a \n"]


# ---------------------------------------------------------------------------------------------- batches
def test_legacy_batches_are_rows_in_order_and_the_last_may_be_smaller(tmp_path: Path) -> None:
    path = write_c4(tmp_path / "rows.jsonl", [words(9)] * 8)
    assert build("c4-256-legacy", EmbeddedData(), Words(), path, batch=3).batches == ((3, 3, 2),)
    assert build("c4-256-legacy", EmbeddedData(), Words(), path, batch=4).batches == ((4, 4),)
    assert build("c4-256-legacy", EmbeddedData(), Words(), path).batches == ((8,),)


@pytest.mark.parametrize(("tokens", "batches"), [(1, 1), (30, 2), (31, 2), (59, 2), (60, 3), (61, 3)])
def test_a_legacy_batch_begins_while_no_more_than_the_limit_was_seen(
    tmp_path: Path, tokens: int, batches: int
) -> None:
    path = write_c4(tmp_path / "rows.jsonl", [words(9)] * 20)
    found = build("c4-256-legacy", EmbeddedData(), Words(), path, batch=3, tokens=tokens)
    assert found.batches == ((3,) * batches,)


def test_legacy_documents_are_shuffled_and_those_of_the_exact_protocol_are_not(tmp_path: Path) -> None:
    documents = [words(2, "x" * (1 + number)) for number in range(40)]
    path = write_c4(tmp_path / "rows.jsonl", documents)
    plain = texts_of(build("c4-256", EmbeddedData(), Words(), path))
    mixed = texts_of(build("c4-256-legacy", EmbeddedData(), Words(), path))
    assert plain == sorted(plain)
    assert mixed != plain
    assert sorted(mixed) == plain


def test_processes_read_files_of_their_own_where_these_divide_evenly(tmp_path: Path) -> None:
    paths = [write_c4(tmp_path / f"{n}.jsonl", [words(2, "x" * (1 + n))] * 6) for n in range(4)]
    found = build("c4-256-legacy", EmbeddedData(), Words(), *paths, batch=4, ranks=2)
    assert found.batches == ((4, 4, 4), (4, 4, 4))
    halves = found.sequences[:12], found.sequences[12:]
    first, second = ({int(sequence[0]) for sequence in half} for half in halves)
    assert len(first) == len(second) == 2
    assert not first & second


def test_processes_take_turns_where_files_do_not_divide_evenly(tmp_path: Path) -> None:
    paths = [write_c4(tmp_path / f"{n}.jsonl", [words(2, "x" * (1 + n))] * 7) for n in range(3)]
    one, two = (
        texts_of(build("c4-256-legacy", EmbeddedData(), Words(), *paths, ranks=ranks)) for ranks in (1, 2)
    )
    assert two == [*one[0::2], *one[1::2]]


def test_each_process_sees_its_share_of_the_tokens(tmp_path: Path) -> None:
    paths = [write_c4(tmp_path / f"{n}.jsonl", [words(9)] * 50) for n in range(2)]
    found = build("c4-256-legacy", EmbeddedData(), Words(), *paths, batch=1, ranks=2, tokens=100)
    assert [len(sizes) for sizes in found.batches] == [6, 6], "60 tokens is the first count above 50"


def test_a_process_without_documents_is_refused(tmp_path: Path) -> None:
    path = write_c4(tmp_path / "rows.jsonl", [words(9)] * 2)
    with pytest.raises(UserError, match="process 3 gets no document; give all files or fewer ranks"):
        build("c4-256-legacy", EmbeddedData(), Words(), path, ranks=3)


def test_the_buffer_draws_with_its_seed_and_ends_in_a_random_order() -> None:
    """By hand: an item that finds the buffer full takes the place of one that is drawn, which leaves."""

    def slow(items: list[str], size: int, seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        drawn: list[int] = []
        buffer, out = items[:size], []
        for item in items[size:]:
            drawn = drawn or rng.integers(0, size, size=1000).tolist()
            place = drawn.pop(0)
            out.append(buffer[place])
            buffer[place] = item
        rng.shuffle(buffer)
        return out + buffer

    items = [str(number) for number in range(2500)]
    assert list(corpora.buffer_shuffle(iter(items), 7, 3)) == slow(items, 7, 3)
    assert list(corpora.buffer_shuffle(iter(items[:5]), 7, 3)) == slow(items[:5], 7, 3)
    assert sorted(corpora.buffer_shuffle(iter(items))) == sorted(items)


def test_the_first_shuffled_document_is_one_of_the_first_thousand(tmp_path: Path) -> None:
    taken = itertools.count()
    first = next(corpora.buffer_shuffle(str(number) for number in taken))
    assert int(first) < 1000
    assert next(taken) == 1001, "no more is read than what fills the buffer and one"


# --------------------------------------------------------------------------------------- files and the hub
def test_a_file_that_is_not_in_the_format_of_c4_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "c4.txt").write_text("text")
    for name in ("c4-256", "c4-256-legacy", "c4-joined"):
        config = PerplexityConfig(protocol=name, paths=(str(tmp_path / "c4.txt"),))
        with pytest.raises(
            UserError, match=r"C4 \(text under 'text'\) comes as JSON lines; .*\.json, or \.gz"
        ):
            protocols.check(config, EmbeddedData())
    with pytest.raises(UserError, match=r"no file at .*none\.json"):
        protocols.check(PerplexityConfig(protocol="c4-256", paths=("none.json",)), EmbeddedData())


class Hub:
    """Stands for `datasets.load_dataset`: each file of the split has 30 documents; says what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, identifier: str, **options: Any) -> Iterator[dict[str, str]]:
        assert (options["split"], options["streaming"]) == ("validation", True)
        assert (identifier, options["revision"]) == corpora.C4_HUB
        file = options["data_files"]["validation"]
        self.asked.append((identifier, file))
        number = int(file.split("-of-")[0][-5:])
        return ({"text": words(2, "x" * (1 + 100 * number + row))} for row in range(30))


def test_the_hub_and_its_files_give_the_same_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub)
    names = [corpora.C4_FILE.format(number) for number in range(8)]
    paths = [
        write_c4(tmp_path / Path(name).name, [words(2, "x" * (1 + 100 * number + row)) for row in range(30)])
        for number, name in enumerate(names)
    ]
    for name, options in (
        ("c4-256", {}),
        ("c4-256-legacy", {"batch": 7}),
        ("c4-256-legacy", {"batch": 7, "ranks": 4}),
        ("c4-256-legacy", {"ranks": 3}),
        ("c4-joined", {"context": 10}),
    ):
        there, here = (build(name, EmbeddedData(), Words(), *files, **options) for files in ([], paths))
        assert texts_of(there) == texts_of(here)
        assert there.batches == here.batches
    assert {file for _, file in hub.asked} == set(names)
    assert len(corpora.C4_HUB[1]) == 40, "a commit, not a branch that moves"
    assert build("c4-256", EmbeddedData(), Words()).text.startswith("allenai/c4 en validation: 240 documents")


def test_no_file_of_the_hub_is_opened_that_the_limit_does_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_protocols, "CHUNK", 10)
    monkeypatch.setattr(datasets, "load_dataset", hub := Hub())
    build("c4-256", EmbeddedData(), Words(), tokens=80)
    assert [file for _, file in hub.asked] == [corpora.C4_FILE.format(0)]


def test_without_a_network_the_file_of_c4_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: str, **__: Any) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("c4-256", "c4-256-legacy", "c4-joined"):
        with pytest.raises(
            UserError, match=r"Couldn't reach the hub.*paths: \[c4-validation\.0000\d-of-0000"
        ):
            build(name, EmbeddedData(), Words())


# ------------------------------------------------------------------------------------------- real text
@pytest.mark.realdata
def test_documents_of_c4_by_the_llama_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(development_data("llama-tokenizer"))
    path = development_data("text", "c4-sample", "c4_train_first800.jsonl")
    each = [len(tokenizer(text)["input_ids"]) for text in corpora.c4_documents([str(path)])]
    cut = build("c4-256", EmbeddedData(), tokenizer, path)
    assert [len(sequence) for sequence in cut.sequences] == [min(length, 256) for length in each]
    assert all(sequence[0] == tokenizer.bos_token_id for sequence in cut.sequences)
    legacy = build("c4-256-legacy", EmbeddedData(), tokenizer, path)
    assert legacy.batches == ((256, 256, 256, 32),)
    assert sorted(texts_of(legacy)) == sorted(texts_of(cut))
    joined = build("c4-joined", EmbeddedData(), tokenizer, path, context=2048)
    assert len(joined.sequences) == 220
    assert math.isclose(sum(each) - 800, 220 * 2048 + joined.dropped_tokens, rel_tol=0.005)
