"""The cache of singular values: it saves work and is never trusted blindly."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from harness import factored
from harness.method import Context, build
from methods.parts.factors import svd_cache
from tests.support.tiny import tiny_llama


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of all matrices whose singular values are computed from now on."""
    shapes: list[torch.Size] = []
    svdvals = torch.linalg.svdvals

    def counted(matrix: torch.Tensor) -> object:
        shapes.append(matrix.shape)
        return svdvals(matrix)

    monkeypatch.setattr(torch.linalg, "svdvals", counted)
    return shapes


def compress(
    cache: Path | None, err: float = 0.5, model: nn.Module | None = None
) -> tuple[nn.Module, Context]:
    context = Context(cache=cache)
    return build("welore", {"err": err}).prepare(model or tiny_llama(), context), context


def equal(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(states[0][k].equal(states[1][k]) for k in states[0])


def test_the_second_run_on_a_checkpoint_computes_no_values_and_gives_the_same_bits(
    tmp_path: Path, decompositions: list[torch.Size]
) -> None:
    uncached, _ = compress(None)
    first, _ = compress(tmp_path / "new" / "folder")
    assert len(decompositions) == 28
    second, context = compress(tmp_path / "new" / "folder")
    assert len(decompositions) == 28
    assert equal(uncached, first)
    assert equal(first, second)
    assert not context.warnings


def test_other_options_share_the_values(tmp_path: Path, decompositions: list[torch.Size]) -> None:
    compress(tmp_path)
    compress(tmp_path, err=0.3)
    build("welore", {"min_ratio": 0.0}).prepare(tiny_llama(), Context(cache=tmp_path))
    assert len(decompositions) == 14


def test_a_method_that_needs_no_values_asks_for_none(
    tmp_path: Path, decompositions: list[torch.Size]
) -> None:
    build("uniform", {}).prepare(tiny_llama(), Context(cache=tmp_path))
    assert not decompositions
    assert not list(tmp_path.iterdir())


def test_only_layers_that_become_factors_are_decomposed_with_their_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole: list[torch.Size] = []
    svd = torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda matrix, **options: (whole.append(matrix.shape), svd(matrix, **options))[1]
    )
    _, context = compress(None)
    assert 0 < len(whole) == len(context.ranks) < 14


def test_one_changed_weight_is_another_checkpoint(tmp_path: Path, decompositions: list[torch.Size]) -> None:
    compress(tmp_path)
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1e-6
    build("welore", {}).prepare(model, Context(cache=tmp_path))
    assert len(decompositions) == 28
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_weights_that_take_no_part_do_not_matter(tmp_path: Path, decompositions: list[torch.Size]) -> None:
    compress(tmp_path)
    model = tiny_llama()
    model.lm_head.weight.data += 1
    build("welore", {}).prepare(model, Context(cache=tmp_path))
    assert len(decompositions) == 14


def flip_a_bit(data: Path, manifest: Path) -> None:
    content = bytearray(data.read_bytes())
    content[-5] ^= 1
    data.write_bytes(content)


def cut_short(data: Path, manifest: Path) -> None:
    data.write_bytes(data.read_bytes()[:-100])


def empty_data(data: Path, manifest: Path) -> None:
    data.write_bytes(b"")


def remove_data(data: Path, manifest: Path) -> None:
    data.unlink()


def break_manifest(data: Path, manifest: Path) -> None:
    manifest.write_text('{"weights_sha')


def manifest_of_another_type(data: Path, manifest: Path) -> None:
    manifest.write_text("[1, 2]")


def manifest_of_other_weights(data: Path, manifest: Path) -> None:
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "weights_sha256": "0" * 64}))


def manifest_without_a_key(data: Path, manifest: Path) -> None:
    manifest.write_text("{}")


def manifest_with_binary(data: Path, manifest: Path) -> None:
    manifest.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut_short,
        empty_data,
        remove_data,
        break_manifest,
        manifest_of_another_type,
        manifest_of_other_weights,
        manifest_without_a_key,
        manifest_with_binary,
    ],
)
def test_a_damaged_entry_is_computed_again_with_a_warning_and_repaired(
    tmp_path: Path, decompositions: list[torch.Size], damage: Callable[[Path, Path], None]
) -> None:
    wanted, _ = compress(tmp_path)
    damage(next(tmp_path.glob("*.safetensors")), next(tmp_path.glob("*.json")))
    model, context = compress(tmp_path)
    assert equal(model, wanted)
    assert len(decompositions) == 28
    assert any("computed again" in warning for warning in context.warnings)
    again, context = compress(tmp_path)
    assert equal(again, wanted)
    assert len(decompositions) == 28
    assert not context.warnings


def test_an_entry_with_the_right_hashes_but_the_wrong_matrices_is_refused(
    tmp_path: Path, decompositions: list[torch.Size]
) -> None:
    """Two checkpoints whose manifests were swapped by hand, keys included."""
    compress(tmp_path)
    mine = next(tmp_path.glob("*.json"))
    build("welore", {"targets": ["q_proj"]}).prepare(tiny_llama(), Context(cache=tmp_path))
    other = next(path for path in tmp_path.glob("*.json") if path != mine)
    mine.write_text(
        other.read_text().replace(other.stem.removeprefix("svd-"), mine.stem.removeprefix("svd-"))
    )
    _, context = compress(tmp_path)
    assert len(decompositions) == 14 + 2 + 14
    assert any("computed again" in warning for warning in context.warnings)


def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    model, context = compress(blocked)
    assert factored.ranks(model) == context.ranks
    assert any("could not be cached" in warning for warning in context.warnings)


def test_nothing_but_a_manifest_and_its_data_is_left_behind(tmp_path: Path) -> None:
    compress(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_write_that_breaks_off_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(tensors: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(svd_cache, "save_file", full_disk)
    _, context = compress(tmp_path)
    assert not list(tmp_path.iterdir())
    assert any("no space left" in warning for warning in context.warnings)


def test_several_writers_at_once_agree(tmp_path: Path) -> None:
    wanted, _ = compress(None)
    results: list[tuple[nn.Module, Context]] = []

    def write(model: nn.Module) -> None:
        results.append(compress(tmp_path, model=model))

    models = [tiny_llama() for _ in range(4)]  # here, because threads share the random state
    threads = [threading.Thread(target=write, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(equal(model, wanted) and not context.warnings for model, context in results)
    assert len(list(tmp_path.iterdir())) == 2
