"""NormalFloat beside plain loops, what it stores, and adapters that train beside it."""

from __future__ import annotations

import copy
import io
import math
from statistics import NormalDist
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.config import OptimConfig
from harness.errors import UnsupportedError, UserError
from harness.method import Context
from harness.plugins import build
from methods.parts.quantisation.normal_float import Layout, NormalFloats, normal_floats, points
from methods.parts.quantisation.packing import codes_together, packed, unpacked
from tests.support.tiny import logits, tiny_batch, tiny_llama, train

SIGMA = 0.02
LAYOUTS = [
    Layout(),
    Layout(bits=3),
    Layout(bits=2, scale_bits=4, scale_dtype="float16", block=16, superblock=16),
    Layout(bits=8, scale_bits=2, scale_dtype="bfloat16", block=32, superblock=64),
    Layout(bits=3, scale_bits=3, block=64, superblock=3),
]
BITS = (2, 3, 4, 8)


def weights(out: int = 64, inputs: int = 96, seed: int = 0) -> Tensor:
    """Numbers as weights have them, N(0, 0.02)."""
    return SIGMA * torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed))


def by_a_loop(values: Tensor, layout: Layout) -> Tensor:
    """NormalFloat by its definition, number after number, in float64 where storage does not say otherwise."""
    half, last = 2 ** (layout.bits - 1), 0.9677083

    def quantiles(count: int) -> list[float]:
        return [NormalDist().inv_cdf(last + (0.5 - last) * i / count) for i in range(count)]

    codebook = [*quantiles(half), 0.0, *(-value for value in quantiles(half - 1))]
    codebook = [value / max(codebook) for value in codebook]
    flat = values.double().flatten().tolist()
    blocks = [flat[i : i + layout.block] for i in range(0, len(flat), layout.block)]
    peaks = [max(map(abs, block)) for block in blocks]
    smallest = torch.tensor(min(peaks)).float().item()
    found: list[float] = []
    for start in range(0, len(blocks), layout.superblock):
        above = [max(peak - smallest, 0.0) for peak in peaks[start : start + layout.superblock]]
        largest = torch.tensor(max(above)).to(getattr(torch, layout.scale_dtype)).item()
        for block, more in zip(blocks[start : start + layout.superblock], above, strict=True):
            levels = 2**layout.scale_bits - 1
            place = min(round(more / largest * levels), levels) if largest else 0
            scale = smallest + place / levels * largest
            found += [scale * min(codebook, key=lambda point: abs(point * scale - value)) for value in block]
    return torch.tensor(found, dtype=torch.float64).view(values.shape)


# --------------------------------------------------------------------------------------- the numbers
@pytest.mark.parametrize("bits", BITS)
def test_invariant_5_the_codebook_rises_from_minus_one_to_one_and_holds_zero(bits: int) -> None:
    codebook = points(bits)
    assert len(codebook) == 2**bits
    assert list(codebook) == sorted(set(codebook))
    assert 0.0 in codebook
    assert codebook[-1] == 1.0
    assert codebook[0] == pytest.approx(-1.0, abs=1e-3)


def test_the_codebook_of_four_bits_is_that_of_bitsandbytes() -> None:
    theirs = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    torch.testing.assert_close(torch.tensor(points(4)), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_number_is_stored_as_by_its_definition(layout: Layout) -> None:
    values = weights()
    torch.testing.assert_close(
        normal_floats(values, layout).floats(torch.float64), by_a_loop(values, layout), atol=1e-8, rtol=1e-5
    )


@pytest.mark.parametrize("bits", BITS)
def test_invariant_5_points_of_the_grid_come_back_and_others_move_by_half_a_gap_at_most(bits: int) -> None:
    codebook = torch.tensor(points(bits), dtype=torch.float64)
    on_grid = 0.3 * codebook.repeat(-(-16 // len(codebook)))[None].repeat(8, 1)
    layout = Layout(bits=bits, block=on_grid.shape[1])
    back = normal_floats(on_grid, layout).floats(torch.float64)
    torch.testing.assert_close(back, on_grid, atol=1e-7, rtol=0)
    values, layout = weights(), Layout(bits=bits)
    blocks = values.view(-1, layout.block)
    peaks = blocks.abs().amax(1, keepdim=True)
    rounded = 0.5 * (peaks.max() - peaks.min()) / 255  # scales are rounded, too, to one of 256
    moved = (normal_floats(values, layout).floats(torch.float32).view_as(blocks) - blocks).abs()
    widest = codebook.diff().max()
    assert (moved.amax(1, keepdim=True) <= 0.5 * widest * (peaks + rounded) + rounded + 1e-7).all()


@pytest.mark.parametrize("bits", BITS)
def test_codes_of_all_bits_are_packed_and_come_back(bits: int) -> None:
    count = 5 * codes_together(bits)
    codes = torch.randint(2**bits, (3, count), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    data = packed(codes, bits)
    assert data.shape == (3, count * bits // 8)
    assert data.dtype == torch.uint8
    assert unpacked(data, bits).equal(codes)
    written = "".join(f"{int(code):0{bits}b}" for code in reversed(codes[0].tolist()))
    assert int(written, 2) == int.from_bytes(bytes(data[0].tolist()), "little")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(64, 96), (64, 65)])
def test_invariant_6_what_is_stored_has_the_bits_that_were_said(
    layout: Layout, shape: tuple[int, int]
) -> None:
    stored = normal_floats(weights(*shape), layout)
    assert 8 * stored.stored_bytes == layout.stored_bits(math.prod(shape))


def test_invariant_6_bits_per_weight_are_those_of_the_paper() -> None:
    assert Layout().bits_per_weight == pytest.approx(4.127, abs=5e-4)
    assert Layout(bits=3).bits_per_weight == pytest.approx(3.127, abs=5e-4)
    large = 4096 * 11008
    assert Layout(bits=3).stored_bits(large) / large == pytest.approx(3.127, abs=5e-4)


def test_blocks_of_zeros_and_of_one_value_are_exact() -> None:
    assert normal_floats(torch.zeros(4, 64), Layout()).floats(torch.float32).equal(torch.zeros(4, 64))
    ones = torch.full((4, 64), 0.25)
    torch.testing.assert_close(normal_floats(ones, Layout()).floats(torch.float32), ones)
    mixed = torch.cat([torch.zeros(1, 64), weights(3, 64)])
    assert normal_floats(mixed, Layout()).floats(torch.float32)[0].equal(torch.zeros(64))


def test_it_keeps_the_dtype_of_the_weight_and_computes_in_float32() -> None:
    stored = normal_floats(weights().bfloat16(), Layout())
    assert stored.dtype == torch.bfloat16
    assert stored.floats(torch.bfloat16).equal(stored.floats(torch.float32).bfloat16())


# ------------------------------------------------------------------------------------- as a tensor
def test_it_is_copied_saved_and_loaded_as_it_is() -> None:
    stored = normal_floats(weights(), LAYOUTS[2])
    file = io.BytesIO()
    torch.save(stored, file)
    file.seek(0)
    for again in (copy.deepcopy(stored), stored.detach().clone(), torch.load(file, weights_only=True)):
        assert isinstance(again, NormalFloats)
        assert again.form == stored.form
        assert all(mine.equal(theirs) for mine, theirs in zip(again.parts(), stored.parts(), strict=True))


def test_products_and_gradients_are_those_of_its_values() -> None:
    stored, x = normal_floats(weights(), Layout()), torch.randn(5, 96, requires_grad=True)
    plain = x.detach().clone().requires_grad_(True)
    ours, theirs = F.linear(x, stored), F.linear(plain, stored.floats(torch.float32))
    assert ours.equal(theirs)
    for result in (ours, theirs):
        result.square().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_changing_it_is_refused() -> None:
    stored = normal_floats(weights(), Layout())
    with pytest.raises(UnsupportedError, match="stored as NormalFloat do not train"):
        stored.add_(1.0)


# ------------------------------------------------------------------------------------- as a method
def prepared(context: Context | None = None, **options: Any) -> tuple[Any, Any, Any]:
    method = build("qlora", {"rank": 4, **options})
    model = method.prepare(tiny_llama(), context or Context(seed=1))
    return method, model, method.stepper(model, OptimConfig(lr=1e-2))


def stored_weights(model: Any) -> dict[str, NormalFloats]:
    return {name: p.data for name, p in model.named_parameters() if isinstance(p.data, NormalFloats)}


def test_it_begins_as_the_rounded_model_and_the_stored_weights_stay() -> None:
    method, model, stepper = prepared()
    rounded: Any = tiny_llama()
    for name, parameter in rounded.named_parameters():
        if "_proj" in name:
            parameter.data = normal_floats(parameter.data, Layout()).floats(torch.float32)
    torch.testing.assert_close(logits(model), logits(rounded))
    before = {name: copy.deepcopy(stored) for name, stored in stored_weights(model).items()}
    assert len(before) == 14
    losses = [train(model, stepper, 0, 1)[0] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.05
    for name, stored in stored_weights(model).items():
        assert all(a.equal(b) for a, b in zip(stored.parts(), before[name].parts(), strict=True))
    wanted = logits(model)
    torch.testing.assert_close(logits(method.export(model)), wanted, atol=1e-5, rtol=1e-5)


def test_bits_are_said_with_adapters_and_without() -> None:
    context = Context(seed=1)
    _, model, _ = prepared(context)
    stored = stored_weights(model).values()
    elements = sum(each.numel() for each in stored)
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    alone = 8 * sum(each.stored_bytes for each in stored) / elements
    assert context.facts["bits_per_weight"] == pytest.approx(alone, abs=1e-4)
    assert context.facts["bits_with_adapters"] == pytest.approx(alone + 32 * adapters / elements, abs=1e-4)


def test_the_backward_pass_saves_no_float_weight() -> None:
    _, model, _ = prepared()
    shapes = {each.shape for each in stored_weights(model).values()}
    saved: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, NormalFloats) and tensor.shape in shapes:
            saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=tiny_batch(1)).logits.sum().backward()
    assert not saved


@pytest.mark.parametrize(
    "options", [{"bits": 5}, {"block": 0}, {"scale_dtype": "float64"}, {"superblock": -1}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        build("qlora", options)


def test_blocks_that_do_not_divide_a_matrix_are_refused_with_those_that_do() -> None:
    with pytest.raises(UserError, match=r"block 100 does not divide the 1024 elements .* such as 64"):
        prepared(block=100)


def test_weights_that_are_quantised_already_are_refused() -> None:
    model = build("int8", {}).prepare(tiny_llama(), Context())
    with pytest.raises(UserError, match="is quantised already"):
        build("qlora", {}).prepare(model, Context())
