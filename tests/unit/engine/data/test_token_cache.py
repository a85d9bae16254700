"""Kept tokens: found again only where nothing that shapes them has changed, and never trusted blindly."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AddedToken, PreTrainedTokenizerFast

from harness.config import DatasetsData, EmbeddedData, FilesData, PerplexityConfig
from harness.engine.data import encoding, parts, token_cache, tokens
from harness.engine.data.parts import Documents
from harness.engine.data.token_cache import Blocks, Recipe, TokenCache, text_sha256, tokenizer_sha256
from harness.engine.quality import corpora, protocols
from tests.support.tiny import sentence, tiny_tokenizer

RECIPE = Recipe("text", "tokenizer", "documents", (1, 2), 256, (10, None), "code")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "tokens", pytest.fail)


def some() -> Blocks:
    return Blocks.of([np.asarray([1, 70_000, 2]), np.asarray([], dtype=np.int64), np.asarray([5])], [2, 1])


def refuse() -> Blocks:
    raise AssertionError("made again")


def listed(blocks: Blocks) -> list[list[int]]:
    return [sequence.tolist() for sequence in blocks.sequences]


# ---------------------------------------------------------------------------------------------- entries
def test_sequences_come_back_as_they_were(cache: TokenCache) -> None:
    made = cache.get(RECIPE, some)
    again = cache.get(RECIPE, refuse)
    assert listed(again) == listed(made) == [[1, 70_000, 2], [], [5]]
    assert again.parts.tolist() == [2, 1]
    assert {again.tokens.dtype, again.lengths.dtype, again.parts.dtype} == {np.dtype(np.int64)}


def test_a_small_vocabulary_takes_two_bytes_a_token(cache: TokenCache) -> None:
    for widest, size in ((65_535, 2), (65_536, 4)):
        recipe = replace(RECIPE, text=str(widest))
        cache.get(recipe, lambda widest=widest: Blocks.of([np.full(10_000, widest)]))
        bytes_ = (cache.folder / f"{recipe.key}.safetensors").stat().st_size
        assert 10_000 * size < bytes_ < 10_000 * size + 1000
        assert cache.get(recipe, refuse).tokens[0] == widest


def test_nothing_at_all_can_be_kept(cache: TokenCache) -> None:
    assert listed(cache.get(RECIPE, lambda: Blocks.of([]))) == []
    assert listed(cache.get(RECIPE, refuse)) == []


OTHER: dict[str, Any] = {
    "text": "another text",
    "tokenizer": "another tokenizer",
    "layout": "one stream",
    "marks": (1, None),
    "length": None,
    "limits": (11, None),
    "code": "other code",
}


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_each_ingredient_of_the_recipe_is_part_of_the_key(name: str, cache: TokenCache) -> None:
    cache.get(RECIPE, some)
    other = replace(RECIPE, **{name: OTHER[name]})
    assert other.key != RECIPE.key
    assert listed(cache.get(other, lambda: Blocks.of([np.asarray([9])]))) == [[9]]


def damage_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def another_entry(path: Path) -> None:
    other = replace(RECIPE, text="another")
    TokenCache(path.parent, pytest.fail).get(other, some)
    path.write_bytes(path.with_name(f"{other.key}.safetensors").read_bytes())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "a changed bit": damage_bits,
    "another program's": lambda path: path.write_bytes(b"PK tokens of somebody else"),
    "of another key": another_entry,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_is_not_as_it_was_written_is_made_again_and_said(kind: str, tmp_path: Path) -> None:
    said: list[str] = []
    cache = TokenCache(tmp_path, said.append)
    cache.get(RECIPE, some)
    DAMAGE[kind](tmp_path / f"{RECIPE.key}.safetensors")
    assert listed(cache.get(RECIPE, some)) == [[1, 70_000, 2], [], [5]]
    assert f"cached tokens {RECIPE.key}.safetensors are not usable and rebuilt" in said[0]
    assert all("\n" not in line for line in said)
    if kind != "a folder":
        assert listed(cache.get(RECIPE, refuse)) == [[1, 70_000, 2], [], [5]]
        assert len(said) == 1


def test_a_folder_that_cannot_be_written_costs_nothing_but_a_warning(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a file in the way")
    said: list[str] = []
    assert listed(TokenCache(tmp_path / "tokens", said.append).get(RECIPE, some))
    assert any("tokens could not be cached in" in line for line in said)


def test_half_an_entry_is_never_seen(cache: TokenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(arrays: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            cache.get(RECIPE, some)
    assert list(cache.folder.iterdir()) == []
    assert listed(cache.get(RECIPE, some)), "and no warning"


# ------------------------------------------------------------------------------------------ ingredients
def test_the_hash_of_a_text_knows_where_documents_end() -> None:
    assert text_sha256(["ab", "c"]) == text_sha256(iter(["ab", "c"]))
    different = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c", ""], ["ab", "C"]]
    assert len({text_sha256(documents) for documents in different}) == len(different)


class Renamed(PreTrainedTokenizerFast):
    """The same pipeline in another class."""


def with_pipeline(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> PreTrainedTokenizerFast:
    """A copy whose serialised pipeline has these parts changed."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str()) | changes
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), **tokenizer.special_tokens_map
    )


def changed(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    other = copy.deepcopy(tokenizer)
    if name == "a mark":
        other.bos_token = other.eos_token
    elif name == "an added token":
        other.add_tokens([AddedToken("<new>")])
    elif name == "the class":
        other.__class__ = Renamed
    elif name == "the side that is cut":
        other.truncation_side = "left"
    elif name == "the normalizer":
        return with_pipeline(tokenizer, normalizer={"type": "Lowercase"})
    elif name == "what it sets itself":
        template = {"type": "RobertaProcessing", "sep": ["a", 1], "cls": ["a", 1]}
        return with_pipeline(
            tokenizer, post_processor=template | {"trim_offsets": True, "add_prefix_space": True}
        )
    return other


def test_an_equal_tokenizer_has_an_equal_hash_however_it_was_used_before(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    known = tokenizer_sha256(tokenizer)
    other = copy.deepcopy(tokenizer)
    other.name_or_path = "/another/folder"
    other(["a b c"], truncation=True, max_length=2)
    assert other.backend_tokenizer.truncation is not None
    assert tokenizer_sha256(other) == known == tokenizer_sha256(with_pipeline(tokenizer)) is not None


@pytest.mark.parametrize(
    "name",
    [
        "a mark",
        "an added token",
        "the class",
        "the side that is cut",
        "the normalizer",
        "what it sets itself",
    ],
)
def test_another_tokenizer_has_another_hash(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer_sha256(changed(name, tokenizer)) != tokenizer_sha256(tokenizer)


def test_a_tokenizer_that_cannot_be_serialised_is_never_kept(cache: TokenCache) -> None:
    class Plain:
        bos_token_id = eos_token_id = None

        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {"input_ids": [[len(text)] for text in texts]}

    assert tokenizer_sha256(Plain()) is None
    found = encoding.stored(Documents.of(["abc"]), Plain(), True, cache)
    assert [shard.tokens.tolist() for shard in found.shards] == [[3]]
    assert not cache.folder.exists()


def test_other_code_has_another_version() -> None:
    known = token_cache.code_version([encoding.encode_each])
    assert token_cache.code_version([encoding.encode_each, encoding.encode]) == known, "one file"
    assert token_cache.code_version([encoding.encode_each, protocols.build]) != known


def test_a_file_of_code_that_changes_has_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "code.py"
    monkeypatch.setattr(token_cache.inspect, "getfile", lambda _: str(file))
    versions = set()
    for source in ("x = 1", "x = 2"):
        file.write_text(source)
        versions.add(token_cache.code_version([encoding.encode_each]))
    assert len(versions) == 2


@pytest.mark.parametrize("package", ["tokenizers", "transformers", "numpy"])
def test_another_library_has_another_version(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known, installed = token_cache.code_version([encoding.encode_each]), token_cache.installed
    monkeypatch.setattr(token_cache, "installed", lambda name: name if name == package else installed(name))
    assert token_cache.code_version([encoding.encode_each]) != known


# ------------------------------------------------------------------------------------------- what is kept
def file_of(folder: Path, count: int = 20) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": sentence(number)}) + "\n" for number in range(count)))
    return path


def load(config: Any, tokenizer: Any, cache: TokenCache | None) -> tokens.Tokens:
    return tokens.load_tokens(config, tokenizer, 64, 0, cache)


def test_a_file_is_tokenised_once(
    tmp_path: Path,
    cache: TokenCache,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = FilesData(source="files", paths=(str(file_of(tmp_path)),), seq_len=16)
    direct, cold = load(config, tokenizer, None), load(config, tokenizer, cache)
    assert len(list(cache.folder.iterdir())) == 1
    monkeypatch.setattr(encoding, "encode_some", lambda *_: pytest.fail("made again"))
    kept = load(config, tokenizer, cache)
    assert direct.sha256 == cold.sha256 == kept.sha256
    longer = load(config.model_copy(update={"seq_len": 32}), tokenizer, cache)
    assert longer.windows.shape[1] == 32, "windows are cut from what is kept, so their length needs no entry"


def test_another_text_mark_or_share_is_tokenised_anew(
    tmp_path: Path, cache: TokenCache, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = FilesData(source="files", paths=(str(file_of(tmp_path)),), seq_len=16)
    for count, change in enumerate(({}, {"end_token": False}, {"holdout": 0.5}), start=1):
        one = config.model_copy(update=change)
        assert load(one, tokenizer, cache).sha256 == load(one, tokenizer, None).sha256
        assert len(list(cache.folder.iterdir())) == count
    file_of(tmp_path, 21)
    assert load(config, tokenizer, cache).sha256 == load(config, tokenizer, None).sha256
    assert len(list(cache.folder.iterdir())) == 4


def test_the_embedded_world_is_not_kept(cache: TokenCache, tokenizer: PreTrainedTokenizerFast) -> None:
    load(EmbeddedData(documents=5, seq_len=16), tokenizer, cache)
    protocols.build(PerplexityConfig(protocol="world-a"), EmbeddedData(), tokenizer, cache)
    assert not cache.folder.exists()


def test_a_data_set_and_a_file_with_the_same_documents_share_an_entry(
    tmp_path: Path,
    cache: TokenCache,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(FilesData(source="files", paths=(str(file_of(tmp_path)),), seq_len=16), tokenizer, cache)
    monkeypatch.setattr(parts, "documents_of_dataset", lambda _: [sentence(number) for number in range(20)])
    load(DatasetsData(source="datasets", id="some/text", seq_len=8), tokenizer, cache)
    assert len(list(cache.folder.iterdir())) == 1


CONFIGS: list[dict[str, Any]] = [
    {"protocol": "c4-256"},
    {"protocol": "c4-256", "tokens": 40},
    {"protocol": "c4-256-legacy"},
    {"protocol": "c4-256-legacy", "batch": 2, "tokens": 40},
    {"protocol": "c4-256-legacy", "batch": 3, "tokens": 40},
    {"protocol": "c4-256-legacy", "ranks": 2},
    {"protocol": "c4-joined", "context": 8},
]


def test_protocols_of_files_are_kept_apart_and_give_what_they_give_without(
    tmp_path: Path,
    cache: TokenCache,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = file_of(tmp_path)

    def built(kept: TokenCache | None) -> list[tuple[Any, ...]]:
        texts = [
            protocols.build(PerplexityConfig(paths=(str(path),), **one), EmbeddedData(), tokenizer, kept)
            for one in CONFIGS
        ]
        return [(t.text, t.batches, t.warnings, [s.tolist() for s in t.sequences]) for t in texts]

    direct, cold = built(None), built(cache)
    assert len(list(cache.folder.iterdir())) == len(CONFIGS)
    monkeypatch.setattr(Blocks, "of", lambda *_: pytest.fail("made again"))
    assert direct == cold == built(cache)


def test_what_came_from_the_hub_is_not_fetched_again(
    cache: TokenCache, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: ({"text": sentence(number)} for number in range(9))
    )
    config = PerplexityConfig(protocol="c4-256-legacy")
    first = protocols.build(config, EmbeddedData(), tokenizer, cache)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("fetched again"))
    assert len(protocols.build(config, EmbeddedData(), tokenizer, cache).sequences) == len(first.sequences)
    monkeypatch.setattr(corpora, "C4_HUB", ("allenai/c4", "0" * 40))
    with pytest.raises(pytest.fail.Exception, match="fetched again"):
        protocols.build(config, EmbeddedData(), tokenizer, cache)
