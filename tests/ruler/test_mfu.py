"""Model FLOPs utilisation against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from harness.engine.measure.components import requested_bytes
from harness.engine.measure.speed import PEAK_FLOPS, flops_per_token, peak_flops, utilisation
from harness.engine.models.load import shape_config
from harness.factored import restructure
from harness.method import Context
from harness.plugins import build
from tests.support.tiny import tiny_llama


def on_meta(shape: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(shape_config(shape))
    return model


def test_llama_2_7b_takes_the_flops_that_a_person_computes() -> None:
    per_layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    weights = 32 * per_layer + 32000 * 4096
    assert weights == 6_607_077_376
    # 12 L H Q T: 32 layers of 32 heads of width 128, 2048 tokens
    assert 12 * 32 * 32 * 128 * 2048 == 3_221_225_472
    assert flops_per_token(on_meta("llama-2-7b"), 2048) == 42_863_689_728
    assert flops_per_token(on_meta("llama-2-7b"), 1) == 6 * weights + 12 * 32 * 4096


def test_utilisation_is_the_share_of_the_peak() -> None:
    # 10,000 tokens/s of 42.86 GFLOP each are 428.6 TFLOP/s, of 989.5
    found = utilisation(10_000.0, 42_863_689_728, peak_flops("NVIDIA H200", "bfloat16"))
    assert found == pytest.approx(0.43318, abs=1e-5)


def test_tied_heads_and_grouped_queries_count_what_is_multiplied() -> None:
    plain = flops_per_token(tiny_llama(), 8)
    assert flops_per_token(tiny_llama(tie=True), 8) == plain
    # two of four key and value heads are gone: 2 layers, 2 matrices, half of 32 x 32
    assert plain - flops_per_token(tiny_llama(kv_heads=2), 8) == 6 * 2 * 2 * 16 * 32


def test_a_factored_layer_counts_as_the_dense_one_that_it_stands_for() -> None:
    plain = tiny_llama()
    factored = restructure(
        tiny_llama(), {"model.layers.0.mlp.up_proj": 3, "model.layers.1.self_attn.q_proj": 5}
    )
    assert flops_per_token(factored, 8) == flops_per_token(plain, 8)


def test_adapters_beside_a_layer_would_count_so_a_run_counts_before_it_prepares() -> None:
    model = tiny_llama()
    before = flops_per_token(model, 8)
    prepared = build("lora", {"rank": 4}).prepare(model, Context())
    assert flops_per_token(prepared, 8) > before


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("AMD EPYC", "bfloat16"),
        ("NVIDIA H200 MIG 1g.18gb", "bfloat16"),
        ("NVIDIA GeForce RTX 4090", "bfloat16"),
        ("NVIDIA H200", "float32"),
        ("", "bfloat16"),
    ],
)
def test_a_peak_that_is_not_known_is_absent_and_so_is_the_share_of_it(device: str, dtype: str) -> None:
    assert peak_flops(device, dtype) is None
    assert utilisation(10_000.0, 1e9, peak_flops(device, dtype)) is None


def test_no_throughput_has_no_utilisation() -> None:
    assert utilisation(None, 1e9, 1e12) is None


def test_the_peaks_are_those_of_dense_products() -> None:
    """The data sheets print twice as much for H100 and H200, with sparsity."""
    assert (
        peak_flops("NVIDIA H200", "bfloat16") == peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989.5e12
    )
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756.5e12
    assert {peak for name, peak in PEAK_FLOPS.items() if "A100" in name} == {312e12}


def test_a_cpu_has_no_allocator_that_counts_requests() -> None:
    assert requested_bytes(torch.device("cpu")) is None
