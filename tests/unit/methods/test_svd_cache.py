"""The cache of singular values: it saves work and is never trusted blindly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from harness import factored
from harness.method import Context
from harness.plugins import build
from methods.parts.factors.svd_cache import singular_values
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
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_that_take_no_part_do_not_matter(tmp_path: Path, decompositions: list[torch.Size]) -> None:
    compress(tmp_path)
    model = tiny_llama()
    model.lm_head.weight.data += 1
    build("welore", {}).prepare(model, Context(cache=tmp_path))
    assert len(decompositions) == 14


def flip_a_bit(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[-5] ^= 1
    entry.write_bytes(content)


def flip_a_bit_of_the_checksum(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[3] ^= 1
    entry.write_bytes(content)


def cut_short(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-100])


def empty(entry: Path) -> None:
    entry.write_bytes(b"")


def replace_by_text(entry: Path) -> None:
    entry.write_text("not an entry at all, " * 10)


def replace_by_a_folder(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()


@pytest.mark.parametrize(
    "damage", [flip_a_bit, flip_a_bit_of_the_checksum, cut_short, empty, replace_by_text]
)
def test_a_damaged_entry_is_computed_again_with_a_warning_and_repaired(
    tmp_path: Path, decompositions: list[torch.Size], damage: Callable[[Path], None]
) -> None:
    wanted, _ = compress(tmp_path)
    damage(next(tmp_path.iterdir()))
    model, context = compress(tmp_path)
    assert equal(model, wanted)
    assert len(decompositions) == 28
    assert any("computed again" in warning for warning in context.warnings)
    again, context = compress(tmp_path)
    assert equal(again, wanted)
    assert len(decompositions) == 28
    assert not context.warnings


def test_an_entry_of_other_weights_is_refused(tmp_path: Path, decompositions: list[torch.Size]) -> None:
    """Two entries, of which one was given the name of the other by hand."""
    compress(tmp_path)
    mine = next(tmp_path.iterdir())
    build("welore", {"targets": ["q_proj"]}).prepare(tiny_llama(), Context(cache=tmp_path))
    next(path for path in tmp_path.iterdir() if path != mine).replace(mine)
    _, context = compress(tmp_path)
    assert len(decompositions) == 14 + 2 + 14
    assert any("computed again" in warning for warning in context.warnings)


def test_an_entry_that_cannot_be_read_costs_two_warnings_only(tmp_path: Path) -> None:
    wanted, _ = compress(tmp_path)
    replace_by_a_folder(next(tmp_path.iterdir()))
    model, context = compress(tmp_path)
    assert equal(model, wanted)
    assert ["computed again" in warning for warning in context.warnings] == [True, False]
    assert "could not be cached" in context.warnings[1]


def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    model, context = compress(blocked)
    assert factored.ranks(model) == context.ranks
    assert any("could not be cached" in warning for warning in context.warnings)


def test_nothing_but_the_entry_is_left_behind(tmp_path: Path) -> None:
    compress(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".bin"]


def test_a_write_that_breaks_off_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
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
    assert len(list(tmp_path.iterdir())) == 1


def test_cached_values_have_the_order_of_the_layers(tmp_path: Path) -> None:
    """Facts and ranks of a record follow this order, and a file of tensors has none."""
    layers = {f"layer{number}": nn.Linear(8, 8, bias=False) for number in range(40)}
    first = singular_values(layers, Context(cache=tmp_path))
    cached = singular_values(layers, Context(cache=tmp_path))
    assert list(cached) == list(first) == list(layers)
