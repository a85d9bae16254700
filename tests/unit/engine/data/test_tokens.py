"""Text in, windows out: every way that a user's text can be wrong, and where each token goes."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from harness.config import DatasetsData, EmbeddedData, FilesData, PerplexityConfig, RandomData
from harness.engine.data import encoding, parts, tokens, windows
from harness.engine.data.documents import documents_of_files
from harness.engine.data.parts import Documents
from harness.engine.data.tokens import Tokens, load_tokens
from harness.engine.data.windows import sha256_and_counts
from harness.engine.quality import protocols
from harness.errors import UserError
from tests.support.tiny import sentence, tiny_tokenizer

BEGIN, END = 1, 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def files(*paths: Path, **settings: Any) -> FilesData:
    return FilesData(source="files", paths=tuple(map(str, paths)), **settings)


def text_file(folder: Path, content: str | bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines_file(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    return text_file(folder, "\n".join(json.dumps(row) for row in rows) + "\n", name)


def documents(*paths: Path, **settings: Any) -> list[str]:
    return list(documents_of_files(files(*paths, **settings)))


def refusal(config: FilesData | DatasetsData) -> str:
    """The one line with which the text is refused."""
    with pytest.raises(UserError) as caught:
        parts.documents_of(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- packing
def test_documents_are_joined_with_their_marks_and_cut_into_full_windows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = lines_file(tmp_path, [{"text": sentence(number)} for number in range(10)])
    found = load_tokens(files(path, seq_len=16, holdout=0.2), tokenizer, 64, seed=0)
    expected = [
        token
        for number in range(8)
        for token in (BEGIN, *tokenizer(sentence(number), add_special_tokens=False)["input_ids"], END)
    ]
    assert found.windows.shape == (len(expected) // 16, 16)
    assert found.windows[:].reshape(-1).tolist() == expected[: found.count]
    assert found.dropped_tokens == len(expected) % 16
    assert (found.documents, found.name, found.windows.dtype) == (8, "rows.jsonl", np.int64)


def test_packing_drops_only_what_fills_no_window() -> None:
    cut, dropped = windows.pack(np.arange(11), 4, "text")
    assert cut.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert dropped == 3
    assert windows.pack(np.arange(8), 4, "text")[1] == 0


def test_a_text_shorter_than_one_window_is_refused_with_both_lengths() -> None:
    with pytest.raises(UserError, match=r"novel\.txt: 7 tokens are fewer than one window of 8"):
        windows.pack(np.arange(7), 8, "novel.txt")


def test_an_end_mark_is_left_out_where_it_is_not_wanted(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encoding.encode(["ada", "ben"], tokenizer)[-1] == END
    without = encoding.encode(["ada", "ben"], tokenizer, end=False).tolist()
    assert END not in without
    assert without.count(BEGIN) == 2


def test_documents_are_tokenised_a_few_at_a_time_and_the_tokens_are_the_same(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, asked = ["ada", "ben gives", "ada gives ben", "", "ben"], []

    class Watched:
        bos_token_id, eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id

        def __call__(self, some: list[str], **options: bool) -> Any:
            asked.append(len(some))
            return tokenizer(some, **options)

    whole = [ids.tolist() for ids in encoding.encode_each(documents, tokenizer)]
    monkeypatch.setattr(encoding, "TOKENISED_AT_ONCE", 2)
    assert [ids.tolist() for ids in encoding.encode_each(documents, Watched())] == whole
    assert asked == [2, 2, 1]


def test_a_tokenizer_without_marks_adds_none() -> None:
    bare = tiny_tokenizer()
    marked = encoding.encode(["ada gives"], bare).tolist()
    bare.bos_token = bare.eos_token = None
    assert encoding.encode(["ada gives"], bare).tolist() == marked[1:-1]


def test_the_marks_of_a_tokenizer_that_adds_its_own_are_not_doubled() -> None:
    from benchmarks.embedded.tokenizer import train_tokenizer

    own = train_tokenizer(["ada gives ben"], 300, 128)
    assert own("ada")["input_ids"][0] == own.bos_token_id
    assert encoding.encode(["ada"], own).tolist().count(own.bos_token_id) == 1


def test_text_without_a_tokenizer_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = text_file(tmp_path, "ada gives ben")
    with pytest.raises(UserError, match=r"no tokenizer: .*, or data\.source to random"):
        load_tokens(files(path), None, 64, seed=0)


def test_a_tokenizer_of_another_vocabulary_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = text_file(tmp_path, sentence(1) * 5)
    with pytest.raises(UserError, match=r"ids up to 6[0-9], but the model has a vocabulary of 32"):
        load_tokens(files(path, seq_len=8), tokenizer, 32, seed=0)


# -------------------------------------------------------------------------------------------- identity
def test_the_hash_changes_with_text_tokenizer_and_window_and_with_nothing_else(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"text": sentence(number)} for number in range(20)]
    path = lines_file(tmp_path, rows)
    copy = lines_file(tmp_path, rows, "copy.jsonl")
    other = lines_file(tmp_path, [{"text": sentence(19 - number)} for number in range(20)], "other.jsonl")
    swapped = tiny_tokenizer()
    swapped.bos_token, swapped.eos_token = "</s>", "<s>"

    def sha256(file: Path, with_tokenizer: Any = tokenizer, seq_len: int = 16, seed: int = 0) -> str:
        return load_tokens(files(file, seq_len=seq_len), with_tokenizer, 64, seed).sha256

    assert sha256(path) == sha256(copy) == sha256(path, seed=1)
    assert len({sha256(path), sha256(other), sha256(path, swapped), sha256(path, seq_len=8)}) == 4


def test_the_hash_tells_windows_of_the_same_tokens_in_another_shape_apart() -> None:
    first, other = (sha256_and_counts(np.zeros(shape, dtype=np.int64)) for shape in ((2, 8), (4, 4)))
    assert first[0] != other[0]
    assert first[1].tolist() == other[1].tolist() == [16]


def test_random_tokens_depend_on_the_seed_and_fill_the_vocabulary() -> None:
    config = RandomData(source="random", seq_len=32)
    found = load_tokens(config, None, 50, seed=1)
    assert found.windows.shape == (tokens.RANDOM_WINDOWS, 32)
    assert set(np.unique(found.windows)) == set(range(50))
    assert found.sha256 == load_tokens(config, None, 50, seed=1).sha256
    assert found.sha256 != load_tokens(config, None, 50, seed=2).sha256


def test_the_embedded_world_gives_the_number_of_documents_asked_for(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = load_tokens(EmbeddedData(world="a", documents=30, seq_len=32), tokenizer, 64, seed=0)
    assert (found.documents, found.name) == (30, "world-a")
    other = load_tokens(EmbeddedData(world="b", documents=30, seq_len=32), tokenizer, 64, seed=0)
    assert other.sha256 != found.sha256


# --------------------------------------------------------------------------------------------- batches
def test_every_epoch_visits_each_window_once_in_an_order_of_its_own() -> None:
    tokens = Tokens(np.arange(10)[:, None], "ten", "")
    drawn = np.concatenate(list(islice(tokens.batches(4, seed=0), 15))).reshape(6, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in drawn.tolist())
    assert len({tuple(epoch) for epoch in drawn.tolist()}) == 6


def test_a_batch_larger_than_the_data_draws_from_several_epochs() -> None:
    tokens = Tokens(np.arange(3)[:, None], "three", "")
    batch = next(tokens.batches(7, seed=0)).reshape(-1)
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]
    assert len(batch) == 7


def test_batches_repeat_for_a_seed_and_differ_between_seeds() -> None:
    tokens = Tokens(np.arange(40)[:, None], "forty", "")
    first, again, other = (
        np.concatenate(list(islice(tokens.batches(8, seed), 5))).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


# --------------------------------------------------------------------------------------------- holdout
def test_what_is_held_out_is_never_trained_on(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    everything = [sentence(number) for number in range(40)]
    path = lines_file(tmp_path, [{"text": text} for text in everything])
    config = files(path, seq_len=8, holdout=0.25)

    def sentences_in(windows: Any) -> set[str]:
        stream = [int(token) for window in windows for token in window]
        decoded = tokenizer.decode(stream, skip_special_tokens=False)
        whole = decoded.split("<s>")[1:-1]  # the last one may be cut
        return {text.removesuffix("</s>").strip() for text in whole}

    trained = sentences_in(load_tokens(config, tokenizer, 64, seed=0).windows)
    scored = sentences_in(protocols.build(PerplexityConfig(protocol="heldout"), config, tokenizer).sequences)
    assert trained <= set(everything[:30])
    assert scored <= set(everything[30:])
    assert len(trained) >= 28
    assert len(scored) >= 8


@pytest.mark.parametrize(
    ("count", "holdout", "held"), [(10, 0.1, 1), (10, 0.01, 1), (2, 0.9, 1), (7, 0.5, 3)]
)
def test_of_several_documents_at_least_one_is_on_each_side(count: int, holdout: float, held: int) -> None:
    everything = [sentence(number) for number in range(count)]
    kept, out = map(list, Documents.of(everything).divided(holdout))
    assert kept + out == everything
    assert len(out) == held
    assert kept


def test_a_single_document_is_cut_at_a_line_end_near_the_share() -> None:
    lines = [sentence(number) for number in range(100)]
    kept, out = map(list, Documents.of(["\n".join(lines)]).divided(0.1))
    assert len(kept) == len(out) == 1
    assert kept[0].split("\n") + out[0].split("\n") == lines
    assert 8 <= len(out[0].split("\n")) <= 10


def test_a_single_line_is_cut_within() -> None:
    kept, out = map(list, Documents.of(["x" * 90 + "y" * 10]).divided(0.1))
    assert (kept, out) == (["x" * 90], ["y" * 10])


def texts_of(config: FilesData) -> list[list[str]]:
    found = parts.parts_of(config)
    assert [len(part) for part in found[:3]] == [len(list(part)) for part in found[:3]]
    return [list(found.trained), list(found.validation), list(found.heldout)]


def by_hand(everything: list[str], holdout: float, validation: float) -> list[list[str]]:
    """Which document goes where: of the counts that leave one on each side, that nearest to the share."""
    left, aside = list(everything), []
    for share in (holdout, validation):
        kept = min(range(len(left) - 1, 0, -1), key=lambda count: abs(count - len(left) * (1 - share)))
        left, last = left[:kept], left[kept:]
        aside.append(last)
    return [left, aside[1], aside[0]]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["rows", "separator", "several files"])
@pytest.mark.parametrize("count", [3, 4, 7, 20, 101])
def test_trained_validation_and_heldout_have_each_document_once(
    tmp_path: Path, count: int, kind: str, share: float
) -> None:
    everything = [f"{number} {sentence(number)}" for number in range(count)]
    if kind == "rows":
        config = files(lines_file(tmp_path, [{"text": text} for text in everything]), validation=share)
    elif kind == "separator":
        config = files(text_file(tmp_path, "\n--\n".join(everything)), separator="--", validation=share)
    else:
        paths = [text_file(tmp_path, text, f"{number:03}.txt") for number, text in enumerate(everything)]
        config = files(*paths, validation=share)
    found = texts_of(config)
    assert found == by_hand(everything, 0.1, share)
    without = texts_of(config.model_copy(update={"validation": None}))
    assert without[2] == found[2], "what is reported does not depend on what tunes"
    assert without[0] == found[0] + found[1]


@pytest.mark.parametrize("count", [1, 2])
def test_of_one_document_or_two_lines_become_validation(tmp_path: Path, count: int) -> None:
    """A single document to train on is cut at a line end, as where a single one is held out."""
    lines = [sentence(number) for number in range(200)]
    rows = [{"text": "\n".join(lines)}, {"text": "held out"}][:count]
    trained, validation, heldout = texts_of(files(lines_file(tmp_path, rows), validation=0.1))
    apart = [trained, validation, *([heldout] if count == 1 else [])]
    assert all(len(part) == 1 for part in apart)
    assert [line for (text,) in apart for line in text.split("\n")] == lines
    assert 10 <= len(validation[0].split("\n")) <= 21
    assert count == 1 or heldout == ["held out"]


def test_what_tunes_is_neither_trained_on_nor_reported(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    everything = [sentence(number) for number in range(40)]
    path = lines_file(tmp_path, [{"text": text} for text in everything])
    config = files(path, seq_len=8, holdout=0.25, validation=0.2)

    def ids(some: list[str]) -> list[int]:
        each = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in some)
        return [token for one in each for token in (BEGIN, *one, END)]

    def scored(protocol: str) -> list[int]:
        built = protocols.build(PerplexityConfig(protocol=protocol), config, tokenizer)
        return [int(token) for one in built.sequences for token in one]

    trained = load_tokens(config, tokenizer, 64, seed=0).windows[:].reshape(-1).tolist()
    assert trained == ids(everything[:24])[: len(trained)]
    assert scored("validation") == ids(everything[24:30])[: len(scored("validation"))]
    assert scored("heldout") == ids(everything[30:])[: len(scored("heldout"))]
    assert min(map(len, (trained, scored("validation"), scored("heldout")))) > 24


@pytest.mark.parametrize("source", [EmbeddedData(), RandomData(source="random"), files(Path("a.txt"))])
def test_a_validation_share_that_is_not_set_aside_is_not_scored(source: Any) -> None:
    with pytest.raises(UserError, match=r"needs data\.validation, a share of the documents .* as 0\.1"):
        protocols.check(PerplexityConfig(protocol="validation"), source)


# ---------------------------------------------------------------------------------------------- files
def test_a_text_file_is_one_document_unless_a_separator_is_given(tmp_path: Path) -> None:
    path = text_file(tmp_path, "one\ntwo\n\nthree\n\n\n\n")
    assert documents(path) == ["one\ntwo\n\nthree"]
    assert documents(path, separator="\n\n") == ["one\ntwo", "three"]


def test_several_files_come_in_the_order_given(tmp_path: Path) -> None:
    first, second = text_file(tmp_path, "b", "b.txt"), lines_file(tmp_path, [{"text": "a"}], "a.jsonl")
    assert documents(first, second) == ["b", "a"]
    found, name, revision = parts.documents_of(files(first, second))
    assert (list(found), name, revision) == (["b", "a"], "b.txt, a.jsonl", None)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_text(tmp_path: Path) -> None:
    path = text_file(tmp_path, b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    assert documents(path, separator="\n\n") == ["one", "two"]
    rows = text_file(tmp_path, b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n', "rows.jsonl")
    assert documents(rows) == ["one", "two"]


def test_gzip_is_read_by_its_ending(tmp_path: Path) -> None:
    text = text_file(tmp_path, gzip.compress(b"one"), "text.txt.gz")
    rows = text_file(tmp_path, gzip.compress(b'{"text": "two"}\n'), "rows.jsonl.gz")
    assert documents(text, rows) == ["one", "two"]


def test_a_broken_gzip_file_is_refused_however_it_is_broken(tmp_path: Path) -> None:
    whole = gzip.compress(b"some text " * 100)
    flipped = bytearray(whole)
    flipped[15] ^= 0xFF
    for content in (b"no gzip at all", whole[:-12], bytes(flipped)):
        path = text_file(tmp_path, content, "text.txt.gz")
        assert f"{path}: not a whole gzip file" in refusal(files(path))


def test_the_field_of_the_text_can_be_chosen(tmp_path: Path) -> None:
    assert documents(lines_file(tmp_path, [{"body": "one", "text": "no"}]), field="body") == ["one"]


def test_empty_lines_and_empty_texts_are_skipped(tmp_path: Path) -> None:
    path = text_file(tmp_path, '\n{"text": "one"}\n\n{"text": "  "}\n', "rows.jsonl")
    assert documents(path) == ["one"]


def test_malformed_json_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = text_file(tmp_path, '{"text": "one"}\n{"text": "two"\n', "rows.jsonl")
    assert refusal(files(path)).startswith(f"{path}:2: not valid JSON")


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5000])
def test_json_that_the_reader_cannot_hold_is_refused_too(tmp_path: Path, line: str) -> None:
    path = text_file(tmp_path, line, "rows.jsonl")
    assert refusal(files(path)).startswith(f"{path}:1: ")


def test_a_missing_field_is_refused_with_the_keys_that_are_there(tmp_path: Path) -> None:
    path = lines_file(tmp_path, [{"text": "one"}, {"url": "u", "content": "c"}])
    said = f"{path}:2: no text under 'text'; the line has: content, url"
    assert refusal(files(path)) == said


NO_TEXT = [({"text": 3}, "'text' holds a number"), ({"text": None}, "'text' holds null")]


@pytest.mark.parametrize(
    ("row", "says"), [*NO_TEXT, (["one"], "no text under 'text'"), ("one", "no text under 'text'")]
)
def test_a_row_that_holds_no_text_is_refused(tmp_path: Path, row: Any, says: str) -> None:
    path = lines_file(tmp_path, [row])
    assert refusal(files(path)).startswith(f"{path}:1: {says}")


def test_text_that_is_no_unicode_is_refused_with_file_and_place(tmp_path: Path) -> None:
    path = text_file(tmp_path, b"cafe " + "é".encode("latin-1"))
    assert refusal(files(path)).startswith(f"{path}: not UTF-8 text (byte 5)")


def test_half_a_character_in_json_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = text_file(tmp_path, '{"text": "one"}\n{"text": "\\ud83d"}\n', "rows.jsonl")
    assert refusal(files(path)).startswith(f"{path}:2: ")


def test_an_empty_file_is_refused_by_name(tmp_path: Path) -> None:
    path = text_file(tmp_path, " \n\n")
    assert str(path) in refusal(files(path))
    assert "empty" in refusal(files(path))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    assert refusal(files(tmp_path / "none.txt")).startswith(f"no file at {tmp_path / 'none.txt'}")


# ------------------------------------------------------------------------------------------- data sets
def data_set(**settings: Any) -> DatasetsData:
    return DatasetsData(source="datasets", **{"id": "someone/some-text", **settings})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that has one data set of four rows; the list notes what was asked for."""
    asked: list[dict[str, Any]] = []

    def load_dataset(path: str, name: str | None, **options: Any) -> datasets.IterableDataset:
        asked.append({"path": path, "name": name, **options})
        if path == "silent":
            raise ConnectionError
        if path != "someone/some-text":
            raise FileNotFoundError(f"Couldn't find {path}\non the hub")
        rows = [{"text": sentence(number), "id": number} for number in range(3)]
        return datasets.Dataset.from_list([*rows, {"text": None, "id": 3}]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_data_set_is_read_at_its_revision(hub: list[dict[str, Any]]) -> None:
    found, name, revision = parts.documents_of(data_set(name="en", revision="abc", split="validation"))
    assert list(found) == [sentence(number) for number in range(3)], "a row without text is no document"
    assert (name, revision) == ("someone/some-text/en/validation", "abc")
    assert hub[0] == hub[1], "once to count its documents, once for them"
    assert hub[1:] == [
        {
            "path": "someone/some-text",
            "name": "en",
            "split": "validation",
            "revision": "abc",
            "streaming": True,
        }
    ]


def test_a_limit_takes_the_first_rows_of_a_data_set(hub: list[dict[str, Any]]) -> None:
    assert list(parts.documents_of(data_set(limit=2))[0]) == [sentence(0), sentence(1)]


def test_an_unknown_field_of_a_data_set_is_refused_with_its_fields(hub: list[dict[str, Any]]) -> None:
    assert refusal(data_set(field="body")).endswith("no field 'body': set data.field to one of id, text")


def test_a_field_that_holds_no_text_is_refused_with_what_it_holds(hub: list[dict[str, Any]]) -> None:
    assert "'id' holds int, not text" in refusal(data_set(field="id"))


def test_a_data_set_that_does_not_exist_is_refused_in_one_line(hub: list[dict[str, Any]]) -> None:
    assert "'nobody/none' at 'main' cannot be loaded: Couldn't find" in refusal(data_set(id="nobody/none"))
    assert "cannot be loaded: ConnectionError" in refusal(data_set(id="silent"))


def test_a_local_folder_is_a_data_set_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "texts"
    folder.mkdir()
    lines_file(folder, [{"text": sentence(number)} for number in range(20)], "train.jsonl")
    found = load_tokens(data_set(id=str(folder), seq_len=16, holdout=0.2), tokenizer, 64, seed=0)
    assert found.documents == 16
    direct = load_tokens(files(folder / "train.jsonl", seq_len=16, holdout=0.2), tokenizer, 64, seed=0)
    assert found.sha256 == direct.sha256
