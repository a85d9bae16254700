"""Bytes by each convention: against hand formulas, and against the printed cells that it is said to fit."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.papers.calculations import evaluate
from benchmarks.papers.calculations.states import CONVENTIONS
from harness.errors import UserError
from tests.unit.benchmarks.test_calculations import beside, matrices, value

SIZES = {"60m": 128, "130m": 256, "350m": 256, "1b": 512}
#: GaLore, arXiv 2403.03507v2: Tables 6a and 6b by method, 60M to 1B (ReLoRA's cells are those of LoRA).
WEIGHTS = {
    "full": (0.12, 0.25, 0.68, 2.60),
    "galore": (0.12, 0.25, 0.68, 2.60),
    "lowrank": (0.08, 0.18, 0.36, 1.19),
    "lora": (0.20, 0.44, 1.04, 3.79),
}
STATES = {
    "full": (0.23, 0.51, 1.37, 5.20),
    "galore": (0.13, 0.28, 0.54, 1.78),
    "lowrank": (0.17, 0.37, 0.72, 2.38),
    "lora": (0.17, 0.37, 0.72, 2.38),
}


def ranked(method: str, shape: str) -> Any:
    return method if method == "full" else {method: {"rank": SIZES[shape]}}


def reckoned(method: str, part: str, convention: str, unit: str = "G") -> list[float]:
    return [
        value("state_bytes", shape=s, method=ranked(method, s), part=part, convention=convention, unit=unit)
        for s in SIZES
    ]


# -------------------------------------------------------------------------------------- hand formulas
@pytest.mark.parametrize("shape", ["60m", "1b"])
def test_elements_are_weights_and_what_adam_keeps_of_them(shape: str) -> None:
    rank, others = SIZES[shape], beside(shape)
    dense = others + sum(m * n for m, n in matrices(shape))
    projected = 2 * others + sum(min(mn) * rank + 2 * max(mn) * rank for mn in matrices(shape))
    factored = others + sum(rank * (m + n) for m, n in matrices(shape))
    of = {"shape": shape, "convention": "elements", "unit": "bytes"}
    assert value("state_bytes", part="states", **of) == 4 * dense
    assert value("state_bytes", method=ranked("galore", shape), part="states", **of) == 2 * projected
    assert value("state_bytes", method=ranked("lowrank", shape), part="total", **of) == 6 * factored
    assert value("state_bytes", method=ranked("lowrank", shape), part="training", **of) == 8 * factored
    assert value("state_bytes", part="states", state_bits=8, **of) == 2 * dense


@pytest.mark.parametrize(("convention", "width"), [("indexed64", 8), ("indexed32", 4)])
def test_indices_of_sparse_entries_count_beside_weights(convention: str, width: int) -> None:
    entries = sum(int(0.03 * m * n) for m, n in matrices("60m"))
    numbers = beside("60m") + sum(128 * (m + n) for m, n in matrices("60m")) + entries
    method = {"sltrain": {"rank": 128, "delta": 0.03}}
    found = value("state_bytes", shape="60m", method=method, convention=convention, unit="bytes")
    assert found == 6 * numbers + width * entries


def test_what_our_code_keeps_has_its_own_indices_and_precisions() -> None:
    method = {"sltrain": {"rank": 128, "delta": 0.03}}
    of = {"shape": "60m", "method": method, "unit": "bytes"}
    kept, indexed = (value("state_bytes", convention=name, **of) for name in ("kept", "indexed32"))
    assert 0 <= kept - indexed < 1000  # a few hundred bytes of rotary frequencies
    galore = {"shape": "60m", "method": {"galore": {"rank": 128}}, "part": "states", "unit": "bytes"}
    projected = sum(min(mn) * 128 + 2 * max(mn) * 128 for mn in matrices("60m"))
    kept_states = value("state_bytes", convention="kept", **galore)
    assert kept_states > value("state_bytes", convention="elements", **galore)
    assert 2 * projected < kept_states - 4 * beside("60m") <= 4 * projected


# -------------------------------------------------------------------------------------- printed cells
@pytest.mark.parametrize(("part", "printed"), [("weights", WEIGHTS), ("states", STATES)])
@pytest.mark.parametrize("method", WEIGHTS)
def test_the_nominal_convention_is_that_of_tables_6a_and_6b(
    part: str, printed: dict[str, tuple[float, ...]], method: str
) -> None:
    assert reckoned(method, part, "nominal") == pytest.approx(printed[method], abs=0.006)


def test_table_2_is_the_sum_of_the_two() -> None:
    printed = {
        "full": (0.36, 0.76, 2.06, 7.80),
        "galore": (0.24, 0.52, 1.22, 4.38),
        "lowrank": (0.26, 0.54, 1.08, 3.57),
        "lora": (0.36, 0.80, 1.76, 6.17),
    }
    for method, cells in printed.items():
        assert reckoned(method, "total", "nominal") == pytest.approx(cells, abs=0.011)


@pytest.mark.parametrize("unit", ["G", "GB", "GiB"])
def test_by_its_own_formula_galore_would_keep_more_than_it_prints(unit: str) -> None:
    found = reckoned("galore", "states", "elements", unit)
    assert all(ours > 1.08 * cell for ours, cell in zip(found, STATES["galore"], strict=True))


def test_figure_1_of_sltrain_is_elements_with_64_bit_indices_or_less() -> None:
    of = {"shape": "1b", "unit": "GB"}
    assert value("state_bytes", method="full", **of) == pytest.approx(8.05, abs=0.02)
    assert value("state_bytes", method={"galore": {"rank": 512}}, **of) == pytest.approx(4.76, abs=0.02)
    assert value("state_bytes", method={"lowrank": {"rank": 512}}, **of) == pytest.approx(3.66, abs=0.02)
    sltrain = {"sltrain": {"rank": 512, "delta": 0.03}}
    wide, narrow = (
        value("state_bytes", method=sltrain, convention=name, **of) for name in ("indexed64", "indexed32")
    )
    assert narrow < 4.09 < wide


def test_the_stated_reduction_of_optimizer_states_at_7b_follows() -> None:
    found = value(
        "state_reduction", shape="7b", method={"galore": {"rank": 1024}}, state_bits=8, than_state_bits=16
    )
    assert found == pytest.approx(82.5, abs=0.06)


def test_two_rows_of_velora_differ_by_linear_weights_at_4_bits_and_8() -> None:
    for shape, printed in (("llama-2-7b", 8.79 - 5.77), ("llama-2-13b", 15.82 - 9.91)):
        wide, narrow = (value("weight_bytes", shape=shape, bits=bits, of="targets") for bits in (8, 4))
        assert wide - narrow == pytest.approx(printed, abs=0.01)


def test_the_rank_behind_a_memory_is_found_and_there_is_none_behind_too_little() -> None:
    memory = value("state_bytes", shape="60m", method={"galore": {"rank": 200}})
    assert value("implied_rank", shape="60m", memory=memory) == pytest.approx(200)
    assert value("implied_rank", shape="60m", memory=0.21) < 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"convention": "nominel"}, "did you mean 'nominal'"),
        ({"convention": "nominal", "method": "galore"}, "one method with a rank"),
        ({"convention": "nominal", "method": {"sltrain": {"rank": 8}}}, "knows no method 'sltrain'"),
        ({"convention": "nominal", "shape": "9m"}, "no nominal size of shape '9m'"),
        ({"unit": "Gb"}, "did you mean"),
        ({"part": "weight"}, "part"),
    ],
)
def test_a_wrong_convention_or_unit_is_refused_in_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluate("state_bytes", {"shape": "60m", **arguments})


def test_every_convention_says_what_it_is() -> None:
    assert all(convention.__doc__ for convention in CONVENTIONS.values())


# -------------------------------------------------------------------------------------- saved inputs
def saved(*compressed: str, **more: Any) -> Any:
    arguments = {"shape": "llama-2-7b", "compressed": list(compressed), **more}
    if not compressed:
        arguments.pop("subtoken_size", None)
    return value("saved_inputs", **arguments)


def test_saved_inputs_are_tokens_times_widths() -> None:
    assert saved(unit="bytes") == 2 * 1024 * 32 * (4 * 4096 + 11008)
    assert saved("down", groups=32, unit="bytes") == 2 * 1024 * 32 * (4 * 4096 + 32)
    assert saved("v", subtoken_size=64, unit="bytes", tokens=10) == 2 * 10 * 32 * (3 * 4096 + 64 + 11008)


@pytest.mark.parametrize(
    ("compressed", "printed"),
    [
        ((), 1.67),
        (("q",), 1.42),
        (("k",), 1.42),
        (("v",), 1.42),
        (("down",), 1.01),
        (("q", "k"), 1.18),
        (("v", "down"), 0.76),
        (("q", "k", "down"), 0.51),
    ],
)
def test_table_6_of_velora_has_sub_tokens_of_128(compressed: tuple[str, ...], printed: float) -> None:
    assert round(saved(*compressed, subtoken_size=128), 2) == printed


def test_the_last_row_of_that_table_is_less_than_one_whole_input_and_does_not_follow() -> None:
    assert saved("q", "k", "v", "down", subtoken_size=128) > 0.25 > 0.24


@pytest.mark.parametrize(("divisor", "printed"), [(64, 865), (32, 808), (16, 779), (8, 764)])
def test_table_5b_has_sub_tokens_of_512_over_its_divisor(divisor: int, printed: int) -> None:
    assert round(saved("v", "down", subtoken_size=512 // divisor, unit="GiB/1000")) == printed


@pytest.mark.parametrize(
    ("shape", "size", "without", "printed"), [("llama-2-7b", 32, 5.77, 4.88), ("13B", 128, 9.91, 8.48)]
)
def test_table_3_is_the_row_above_less_what_sub_tokens_of_the_printed_size_spare(
    shape: str, size: int, without: float, printed: float
) -> None:
    found = saved("v", "down", shape=shape, subtoken_size=size, less_than=without)
    assert round(found, 2) == printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"compressed": ["v"]}, "give one of them"),
        ({"compressed": ["v"], "groups": 3}, "groups 3 does not divide the width 4096"),
        ({"compressed": ["v"], "subtoken_size": 100}, "subtoken_size 100 does not divide"),
        ({"compressed": ["up"], "groups": 32}, "compressed up is not counted"),
        ({"compressed": ["w"], "groups": 32}, "compressed"),
    ],
)
def test_sub_tokens_that_do_not_fit_are_refused_in_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluate("saved_inputs", {"shape": "llama-2-7b", **arguments})


# ------------------------------------------------------------------------------------------ Q-GaLore
def test_what_our_code_keeps_in_fewer_bits_has_its_grids_and_scales() -> None:
    rank, sizes, others = 128, matrices("60m"), beside("60m")
    weights, bases, coordinates = (
        sum(m * n for m, n in sizes),
        sum(min(mn) * rank for mn in sizes),
        sum(max(mn) * rank for mn in sizes),
    )
    norms = others - 2 * 32000 * 512
    of = {"shape": "60m", "method": {"qgalore": {"rank": rank}}, "convention": "kept8", "unit": "bytes"}
    stored = weights + 8 * weights // 256 + 2 * others
    found = value("state_bytes", part="weights", **of)
    assert 0 <= found - stored < 1000  # a few hundred bytes of rotary frequencies
    in_bytes = 2 * (coordinates + 2 * 32000 * 512)
    states = bases // 2 + 8 * bases // 256 + in_bytes + 4 * in_bytes // 256 + 2 * 2 * norms
    assert 0 <= value("state_bytes", part="states", **of) - states <= 4 * norms


def test_q_galores_estimates_are_int8_weights_and_galores_states_in_16_bits() -> None:
    printed = (0.18, 0.39, 0.88, 3.08)
    found = [
        value(
            "state_bytes",
            shape=s,
            method=ranked("galore", s),
            convention="nominal",
            unit="G",
            bits=8,
            state_bits=16,
        )
        for s in SIZES
    ]
    assert found == pytest.approx(printed, abs=0.013)


def test_what_is_outside_of_the_blocks_has_bytes_of_its_own() -> None:
    assert value("weight_bytes", shape="60m", bits=16, of="others", unit="bytes") == 2 * beside("60m")
