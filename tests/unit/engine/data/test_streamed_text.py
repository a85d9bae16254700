"""A text of any size: the same tokens as in memory, bounded memory, and shards that survive everything."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from harness.config import CalibrationConfig, DatasetsData, FilesData, PerplexityConfig
from harness.digests import Digests
from harness.engine.data import documents, encoding, parts, shards, windows
from harness.engine.data.calibration import CalibrationText
from harness.engine.data.documents import documents_of_files, read_text
from harness.engine.data.shards import Shard, Stored
from harness.engine.data.token_cache import TokenCache
from harness.engine.data.tokens import Tokens, load_tokens
from harness.engine.quality import protocols
from harness.errors import UserError
from tests.support import in_memory_text as simply
from tests.support.tiny import sentence, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> TokenCache:
    return TokenCache(tmp_path / "cache" / "tokens", said.append, Digests(tmp_path / "cache"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is cut into many pieces: reading, tokenising, shards, pages, sums."""
    for module, name, value in (
        (documents, "BLOCK", 7),
        (encoding, "TOKENISED_AT_ONCE", 3),
        (encoding, "CHARACTERS_AT_ONCE", 90),
        (shards, "SHARD_TOKENS", 40),
        (shards, "MAPPED_BYTES", 1000),
        (windows, "TOGETHER", 50),
    ):
        monkeypatch.setattr(module, name, value)


def texts(count: int) -> list[str]:
    """Documents of very unequal lengths, among them empty ones and letters that the tokenizer lacks."""
    rng = random.Random(count)
    found = [
        " \n".join(sentence(rng.randrange(1000)) for _ in range(rng.choice((0, 1, 1, 2, 9))))
        for _ in range(count)
    ]
    return [text + " \n Ж" * (number % 5 == 0) for number, text in enumerate(found)]


def text_file(folder: Path, kind: str, count: int = 40) -> dict[str, Any]:
    """Write a text and return how it is to be read."""
    if kind == "JSON lines":
        rows = [{"body": text, "n": number} for number, text in enumerate(texts(count))]
        (folder / "a.jsonl").write_text("\r\n".join(map(json.dumps, rows)), newline="")
        return {"paths": (str(folder / "a.jsonl"),), "field": "body"}
    if kind == "separator":
        (folder / "a.txt").write_text("\n\n\n".join(texts(count)), newline="\r\n")
        (folder / "b.txt").write_text("\n\n\n".join(texts(count // 2)))
        return {"paths": (str(folder / "a.txt"), str(folder / "b.txt")), "separator": "\n\n\n"}
    if kind == "instructions":
        rows = [{"instruction": f"say {n}", "input": "x" * (n % 2), "output": text or "-"}
                for n, text in enumerate(texts(count))]  # fmt: skip
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return {"paths": (str(folder / "a.jsonl"),), "template": "alpaca"}
    (folder / "a.md").write_text("\ufeff" + "\n\n".join(texts(count)))
    return {"paths": (str(folder / "a.md"),)}


def same(found: Tokens, wanted: simply.Expected) -> None:
    assert found.windows[:].tolist() == wanted.windows.tolist()
    assert found.windows[:].dtype == np.int64
    assert (found.sha256, found.documents) == (wanted.sha256, wanted.documents)
    assert found.dropped_tokens == wanted.dropped_tokens
    assert (found.real_tokens, found.dropped_rows) == (wanted.real_tokens, wanted.dropped_rows)
    assert found.warnings == wanted.warnings
    assert found.count == wanted.windows.size


# ----------------------------------------------------------------------------------- the same as in memory
KINDS = ["JSON lines", "separator", "instructions", "one document"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"holdout": 0.5, "validation": 0.3, "end_token": False},
        {"layout": "rows", "seq_len": 24},
        {"layout": "rows", "seq_len": 5, "validation": 0.01, "end_token": False},
    ],
    ids=["packed", "shares", "rows", "short rows"],
)
@pytest.mark.usefixtures("small")
def test_windows_counts_hash_warnings_and_order_are_those_of_a_text_in_memory(
    kind: str,
    settings: dict[str, Any],
    tmp_path: Path,
    cache: TokenCache,
    said: list[str],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = FilesData(source="files", **{"seq_len": 16, **text_file(tmp_path, kind), **settings})
    name = ", ".join(Path(path).name for path in config.paths)
    wanted = simply.expected(config, tokenizer, name)
    for kept in (None, cache, cache):
        found = load_tokens(config, tokenizer, 64, 0, kept)
        same(found, wanted)
        drawn = list(islice(found.batches(5, seed=3), 20))
        assert [batch.tolist() for batch in drawn] == [
            batch.tolist() for batch in simply.batches(wanted.windows, 5, 3, 20)
        ]
        assert [batch.tolist() for batch in islice(found.batches(5, seed=3, first=7), 13)] == [
            batch.tolist() for batch in drawn[7:]
        ]
        some = min(3, len(wanted.windows))
        looked_at = CalibrationText(found, CalibrationConfig(sequences=some), 2, 5, torch.device("cpu"))
        order = np.random.default_rng(5).permutation(len(wanted.windows))[:some]
        assert [row.tolist() for batch in looked_at.batches() for row in batch.labels] == [
            row.tolist() for row in wanted.windows[order]
        ]
    assert said == []
    assert len(list(next(cache.folder.iterdir()).glob("*.safetensors"))) > 3 or kind == "one document"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["heldout", "validation"])
@pytest.mark.usefixtures("small")
def test_what_is_scored_is_that_of_a_text_in_memory(
    kind: str, protocol: str, tmp_path: Path, cache: TokenCache, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = FilesData(
        source="files", seq_len=8, holdout=0.3, validation=0.3, **text_file(tmp_path, kind, 80)
    )
    trained, validation, held = simply.parts(config)
    kept = held if protocol == "heldout" else validation
    sequences = simply.encoded(kept, tokenizer, True)
    wanted = simply.packed(sequences, 8)
    again = sum(text in set(trained) for text in kept)
    for store in (None, cache, cache):
        found = protocols.build(PerplexityConfig(protocol=protocol), config, tokenizer, store)
        assert np.asarray(found.sequences).tolist() == wanted.tolist()
        assert found.dropped_tokens == sum(map(len, sequences)) - wanted.size
        repeats = [text for text in found.warnings if "word for word" in text]
        assert len(repeats) == (again / len(kept) >= 0.01)
        assert not repeats or f"{again} of {len(kept)} documents" in repeats[0]
    assert again or kind in ("instructions", "one document")


def test_a_data_set_that_streams_gives_what_its_file_gives(
    tmp_path: Path, cache: TokenCache, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "text"
    folder.mkdir()
    given = text_file(folder, "JSON lines")
    config = DatasetsData(source="datasets", id=str(folder), field="body", seq_len=16, validation=0.2)
    file = FilesData(source="files", seq_len=16, validation=0.2, **given)
    wanted = simply.expected(file, tokenizer, f"{folder}/default/train")
    for _ in range(2):
        same(load_tokens(config, tokenizer, 64, 0, cache), wanted)


def test_an_order_in_half_the_memory_is_that_of_a_permutation() -> None:
    for count in (1, 2, 255, 256, 257, 70_000):
        rngs = [np.random.default_rng(count) for _ in range(2)]
        for _ in range(2):
            assert np.array_equal(windows.shuffled(count, rngs[0]), rngs[1].permutation(count))
    assert windows.shuffled(9, np.random.default_rng(0)).itemsize == 4


# ------------------------------------------------------------------------------------------ reading in blocks
NASTY = ["a\r", "\n", "\r\n", "--", "-", "é", "\U0001d518", "ab" * 9, " ", "\ufeff", "\u2028"]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
def test_a_text_in_blocks_is_the_whole_text(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BLOCK", block)
    rng = random.Random(block)
    for number in range(60):
        whole = "x" * rng.choice((0, 40, 41)) + "".join(rng.choices(NASTY, k=rng.randrange(1, 30)))
        raw = ("\ufeff" * (number % 2) + whole).encode()
        path = tmp_path / ("a.txt.gz" if number % 3 == 0 else "a.txt")
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
        wanted = raw.decode("utf-8-sig").replace("\r\n", "\n")
        assert read_text(path) == wanted
        config = FilesData(source="files", paths=(str(path),), separator="--")
        apart = [text.strip() for text in wanted.split("--") if text.strip()]
        if apart and "--" in wanted:
            assert list(documents_of_files(config)) == apart


@pytest.mark.parametrize("block", [1, 4, 1 << 20])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("before", [0, 100])
@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (b"abcdef\xff", 6),
        (b"abcdef\xc3(", 6),
        ("abcdé".encode()[:-1], 4),
        ("é\U0001d518".encode()[:-1], 2),
        (b"\xef\xbb", 0),
        (b"abc\0", None),
    ],
)
def test_what_is_no_text_is_refused_at_the_same_byte(
    raw: bytes,
    place: int | None,
    before: int,
    mark: bytes,
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The byte of Python's own decoder, which counts from behind the mark; of NUL in the file."""
    monkeypatch.setattr(documents, "BLOCK", block)
    (tmp_path / "a.txt").write_bytes(mark + b"x" * before + raw)
    said = f"byte {before + place})" if place is not None else f"byte {before + len(mark) + 3} is NUL"
    with pytest.raises(UserError, match="not UTF-8 text") as caught:
        read_text(tmp_path / "a.txt")
    assert said in str(caught.value)


def test_json_under_the_name_of_a_long_text_shows_in_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BLOCK", 64)
    monkeypatch.setattr(documents, "SEARCHED", 300)
    path = tmp_path / "a.txt"
    path.write_text('{"text": "one"}\n' * 200)
    config = FilesData(source="files", paths=(str(path),), separator="\n")
    with pytest.raises(UserError, match=r"every line is a JSON object; name it \.jsonl"):
        list(documents_of_files(config))
    path.write_text("prose\n" * 200 + '{"text": "one"}\n' * 2)
    assert len(list(documents_of_files(config))) == 202


# ------------------------------------------------------------------------------------------------- shards
def rows_of(folder: Path, count: int = 60) -> FilesData:
    return FilesData(source="files", seq_len=8, holdout=0.1, **text_file(folder, "JSON lines", count))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of documents of each call of the tokenizer, from now on."""
    calls: list[int] = []
    honest = encoding.encode_some

    def watched(some: list[str], *others: Any) -> Iterator[np.ndarray]:
        calls.append(len(some))
        return honest(some, *others)

    monkeypatch.setattr(encoding, "encode_some", watched)
    return calls


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_killed_process_is_followed_after_its_last_whole_shard(
    at: int,
    tmp_path: Path,
    cache: TokenCache,
    said: list[str],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = rows_of(tmp_path)
    wanted = simply.expected(config, tokenizer, "a.jsonl")
    if (child := os.fork()) == 0:
        honest = Shard.written

        def last(shard: Shard, folder: Path, number: int, key: str) -> Shard:
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return honest(shard, folder, number, key)

        try:
            Shard.written = last  # type: ignore[method-assign]
            load_tokens(config, tokenizer, 64, 0, cache)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    done = list(cache.folder.glob("*/*.safetensors"))
    assert len(done) == at
    before = sum(len(shards.mapped(path, path.parent.name).ends) for path in done)
    calls = counted(monkeypatch)
    same(load_tokens(config, tokenizer, 64, 0, cache), wanted)
    assert wanted.documents - before == sum(calls), "what was done is not done again"
    calls.clear()
    same(load_tokens(config, tokenizer, 64, 0, cache), wanted)
    assert (calls, said) == ([], [])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a changed bit": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("which", ["00002-*", "index.json", "windows-*"])
def test_what_is_not_as_it_was_written_is_made_again_and_said(
    kind: str,
    which: str,
    tmp_path: Path,
    cache: TokenCache,
    said: list[str],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = rows_of(tmp_path)
    wanted = simply.expected(config, tokenizer, "a.jsonl")
    load_tokens(config, tokenizer, 64, 0, cache)
    (damaged,) = cache.folder.glob(f"*/{which}")
    DAMAGE[kind](damaged)
    same(load_tokens(config, tokenizer, 64, 0, cache), wanted)
    told = [line for line in said if "are not usable and rebuilt" in line]
    assert len(told) == len(said)
    assert len(said) == (which[0] == "0" or (which == "index.json" and kind != "gone"))
    said.clear()
    same(load_tokens(config, tokenizer, 64, 0, cache), wanted)
    assert said == []


@pytest.mark.usefixtures("small")
def test_shards_of_another_text_are_not_gone_on_from(
    tmp_path: Path, cache: TokenCache, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill while the text was changed: shards under the key of the text that was there first."""
    config = rows_of(tmp_path)
    wanted = simply.expected(config, tokenizer, "a.jsonl")
    other = [text.replace("gives", "sells") for text in simply.parts(config)[0]]
    real = parts.documents_of_files
    with monkeypatch.context() as patch:
        passes = iter([real, lambda _: iter(other)])
        patch.setattr(parts, "documents_of_files", lambda given: next(passes)(given))
        with pytest.raises(UserError, match="the text changes while it is read; wait until it is complete"):
            load_tokens(config, tokenizer, 64, 0, cache)
    assert list(cache.folder.glob("*/*.safetensors"))
    assert not list(cache.folder.glob("*/index.json"))
    same(load_tokens(config, tokenizer, 64, 0, cache), wanted)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_want_the_same_tokens_at_once_all_get_them(
    locks: bool,
    tmp_path: Path,
    cache: TokenCache,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = rows_of(tmp_path)
    wanted = simply.expected(config, tokenizer, "a.jsonl")
    monkeypatch.setattr(encoding, "POLL_S", 0.01)
    if not locks:
        monkeypatch.setattr(encoding, "fcntl", None)
    children = []
    for number in range(4):
        if (child := os.fork()) == 0:
            code = 1
            try:
                calls = counted(monkeypatch)
                same(load_tokens(config, tokenizer, 64, 0, cache), wanted)
                (tmp_path / f"calls{number}").write_text(str(sum(calls)))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    made = [int((tmp_path / f"calls{number}").read_text()) for number in range(4)]
    if locks:
        assert sum(made) == wanted.documents, "one makes them, the others wait"
    calls = counted(monkeypatch)
    same(load_tokens(config, tokenizer, 64, 0, cache), wanted)
    assert calls == []
    assert not list(cache.folder.glob("*/.*.tmp"))


@pytest.mark.usefixtures("small")
def test_a_disk_that_takes_no_more_costs_nothing_but_a_warning(
    tmp_path: Path,
    cache: TokenCache,
    said: list[str],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = rows_of(tmp_path)
    wanted, honest = simply.expected(config, tokenizer, "a.jsonl"), Shard.written

    def full(shard: Shard, folder: Path, number: int, key: str) -> Shard:
        if number >= 2:
            raise OSError(28, "No space left on device")
        return honest(shard, folder, number, key)

    with monkeypatch.context() as patch:
        patch.setattr(Shard, "written", full)
        same(load_tokens(config, tokenizer, 64, 0, cache), wanted)
    assert len(said) == 1
    assert "tokens could not be cached in" in said[0]
    calls = counted(monkeypatch)
    same(load_tokens(config, tokenizer, 64, 0, cache), wanted)
    assert 0 < sum(calls) < wanted.documents


def test_a_text_that_is_known_is_not_read_again(
    tmp_path: Path, cache: TokenCache, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rows_of(tmp_path)
    first = load_tokens(config, tokenizer, 64, 0, cache)
    scored = protocols.build(PerplexityConfig(protocol="heldout"), config, tokenizer, cache)
    monkeypatch.setattr(parts, "documents_of_files", lambda _: pytest.fail("read again"))
    assert load_tokens(config, tokenizer, 64, 0, cache).sha256 == first.sha256
    again = protocols.build(PerplexityConfig(protocol="heldout"), config, tokenizer, cache)
    assert np.array_equal(np.asarray(again.sequences), np.asarray(scored.sequences))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        load_tokens(config.model_copy(update={"field": "n"}), tokenizer, 64, 0, cache)
    Path(config.paths[0]).write_text('{"body": "ada gives ben"}\n' * 20)
    fresh = TokenCache(cache.folder, cache.warn, Digests(cache.digests.folder))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        load_tokens(config, tokenizer, 64, 0, fresh)


def test_text_on_disk_is_for_its_owner_alone(
    tmp_path: Path, cache: TokenCache, tokenizer: PreTrainedTokenizerFast
) -> None:
    load_tokens(rows_of(tmp_path), tokenizer, 64, 0, cache)
    (entry,) = cache.folder.iterdir()
    assert entry.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in entry.iterdir())


# ------------------------------------------------------------------------------------------------- windows
def test_windows_are_indexed_as_an_array() -> None:
    stored = Stored([Shard.of([np.arange(10)]), Shard.of([np.arange(10, 13), np.arange(13, 31)])])
    found, _ = windows.packed(stored, 4, "text")
    array = np.arange(28).reshape(7, 4)
    for chosen in (
        slice(None),
        slice(1, 6, 2),
        [3, 3, -1],
        np.array([6, 0], dtype=np.int32),
        np.empty(0, int),
    ):
        assert found[chosen].tolist() == array[chosen].tolist()
    assert [found[place].tolist() for place in (0, 6, -2)] == [array[place].tolist() for place in (0, 6, -2)]
    assert [row.tolist() for row in found] == array.tolist()
    assert (found.shape, found.size, len(found)) == ((7, 4), 28, 7)
    for wrong in (7, -8, [0, 7]):
        with pytest.raises(IndexError):
            found[wrong]


# -------------------------------------------------------------------------------------------------- memory
def big_file(path: Path, size: int) -> int:
    """Write about so many bytes of JSON lines; return how many documents they are."""
    body = [json.dumps({"body": f"{number} " + " ".join(map(sentence, range(40)))}) for number in range(1000)]
    block, count = "\n".join(body) + "\n", 0
    with path.open("w") as file:
        while file.tell() < size:
            file.write(block)
            count += len(body)
    return count


def held(size: int, folder: Path, tokenizer: PreTrainedTokenizerFast) -> int:
    """The most bytes that Python and numpy hold while a text of some size is tokenised and read."""
    big_file(folder / "big.jsonl", size)
    config = FilesData(source="files", paths=(str(folder / "big.jsonl"),), field="body", seq_len=64)
    cache = TokenCache(folder / "tokens", pytest.fail)
    tracemalloc.start()
    try:
        found = load_tokens(config, tokenizer, 64, 0, cache)
        for _ in islice(found.batches(8, seed=0), 50):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (documents, "BLOCK", 1 << 14),
        (encoding, "CHARACTERS_AT_ONCE", 1 << 14),
        (shards, "SHARD_TOKENS", 1 << 14),
        (windows, "TOGETHER", 1 << 14),
    ):
        monkeypatch.setattr(module, name, value)
    words = word_tokenizer()
    held(1 << 17, tmp_path, words)  # what a library makes at its first call is of no text
    small, large = (held(size, tmp_path, words) for size in (1 << 20, 1 << 22))
    assert large < small + (1 << 18), f"{small:,} bytes for 1 MiB of text, {large:,} for 4 MiB"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word: far faster than others."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for number in range(1000) for word in sentence(number).split()})
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def peak_of(size: int, folder: Path) -> None:
    """Print how the peak of the resident memory of this process grows while a text is tokenised and read."""
    tokenizer = word_tokenizer()
    small = folder / "small.jsonl"
    big_file(small, 1 << 16)
    text = FilesData(source="files", paths=(str(small),), field="body", seq_len=1024, validation=0.01)

    def work(config: FilesData) -> int:
        cache = TokenCache(folder / "tokens", print, Digests(folder))
        found = load_tokens(config, tokenizer, 1 << 16, 0, cache)
        scored = protocols.build(PerplexityConfig(protocol="heldout"), config, tokenizer, cache)
        assert sum(map(len, scored.sequences)) > 0
        for _ in islice(found.batches(16, seed=0), 2000):
            pass
        return found.count

    work(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    big_file(folder / "big.jsonl", size)
    tokens = work(text.model_copy(update={"paths": (str(folder / "big.jsonl"),)}))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"tokens": tokens, "before_kib": before, "after_kib": after}))


@pytest.mark.slow
def test_two_gigabytes_of_text_take_less_than_one_of_memory(tmp_path: Path) -> None:
    code = f"from {__name__} import *; peak_of(2 * 10**9, Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["tokens"] > 2 * 10**8
    assert found["after_kib"] - found["before_kib"] < 1 << 20
