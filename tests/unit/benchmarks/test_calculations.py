"""Counts that need no weights, calls by name, and the file that they are kept in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.papers.calculations import CALCULATIONS, collecting, evaluate
from benchmarks.papers.calculations.calling import _schema
from harness.errors import UserError

SIZES = ("60m", "130m", "350m", "1b", "7b")
RANKS = (128, 256, 256, 512, 1024)
DELTAS = (0.03, 0.03, 0.03, 0.03, 0.05)
#: (hidden, intermediate, layers) of the papers' configurations, for counts by hand.
WIDTHS = {"60m": (512, 1376, 8), "1b": (2048, 5461, 24)}


def value(name: str, **arguments: Any) -> Any:
    return evaluate(name, arguments).value


def matrices(shape: str) -> list[tuple[int, int]]:
    """(out, in) of every attention and feed-forward matrix."""
    hidden, intermediate, layers = WIDTHS[shape]
    attention, narrow, wide = (hidden, hidden), (intermediate, hidden), (hidden, intermediate)
    return [attention] * 4 * layers + [narrow] * 2 * layers + [wide] * layers


def beside(shape: str) -> int:
    """Embedding, head and norms."""
    hidden, _, layers = WIDTHS[shape]
    return 2 * 32000 * hidden + (2 * layers + 1) * hidden


def test_bits_with_adapters_are_those_of_every_weight_and_its_share_of_them() -> None:
    """LLaMA-2 70B: keys and values have 8 heads of 64."""
    hidden, wide, kept = 8192, 28672, 1024
    targets = 2 * hidden * hidden + 2 * hidden * kept + 3 * hidden * wide
    adapters = 64 * (2 * 2 * hidden + 2 * (hidden + kept) + 3 * (hidden + wide))
    for bits, wanted in ((8, 2.85), (16, 2.94)):
        found = value("bits_with_adapters", shape="llama-2-70b", bits=2.75, rank=64, adapter_bits=bits)
        assert found == pytest.approx(2.75 + bits * adapters / targets)
        assert round(found, 2) == wanted


# ------------------------------------------------------------------------------------------- counts
@pytest.mark.parametrize(
    ("method", "printed"),
    [
        (lambda rank, delta: "full", (58.07, 134.11, 367.97, 1339.08, 6738.42)),
        (
            lambda rank, delta: {"sltrain": {"rank": rank, "delta": delta}},
            (43.53, 96.55, 194.29, 645.55, 3144.74),
        ),
        (lambda rank, delta: {"lowrank": {"rank": rank}}, (42.77, 94.00, 185.22, 609.31, 2820.94)),
    ],
    ids=["full", "sltrain", "lowrank"],
)
def test_parameters_are_the_known_digits(method: Any, printed: tuple[float, ...]) -> None:
    found = [
        value("parameters", shape=shape, method=method(rank, delta))
        for shape, rank, delta in zip(SIZES, RANKS, DELTAS, strict=True)
    ]
    assert tuple(round(million, 2) for million in found) == printed


def test_llama_2_13b_has_its_parameters() -> None:
    assert round(value("parameters", shape="LLaMA-2 13B"), 2) == 13015.86


def test_counts_split_a_model_as_the_shapes_of_its_matrices_say() -> None:
    rank, of = 512, {"shape": "1b", "unit": "elements"}
    dense = sum(m * n for m, n in matrices("1b"))
    factors = sum(rank * (m + n) for m, n in matrices("1b"))
    entries = sum(int(0.03 * m * n) for m, n in matrices("1b"))
    lora, sltrain = {"lora": {"rank": rank}}, {"sltrain": {"rank": rank, "delta": 0.03}}
    assert value("parameters", count="targets", **of) == dense
    assert value("parameters", count="others", **of) == beside("1b")
    assert value("parameters", method=lora, count="adapters", **of) == factors
    assert value("parameters", method=lora, count="trainable", **of) == factors
    assert value("parameters", method=lora, count="frozen", **of) == dense + beside("1b")
    assert value("parameters", method=sltrain, count="support", **of) == entries
    assert value("parameters", method=sltrain, count="targets", **of) == factors + entries
    assert value("parameter_ratio", shape="1b", method=sltrain) == pytest.approx(
        (factors + entries + beside("1b")) / (dense + beside("1b")), rel=1e-11
    )


def test_the_adaptors_of_60m_and_its_embeddings_are_what_the_issue_says() -> None:
    lora = {"lora": {"rank": 128}}
    assert round(value("parameters", shape="60M", method=lora, count="adapters"), 2) == 9.99


def test_a_low_rank_model_is_split_into_factored_and_dense_targets() -> None:
    of = {"shape": "20m", "method": {"welore": {"err": 0.5}}, "unit": "elements"}
    targets, factored, dense = (
        value("parameters", count=count, **of) for count in ("targets", "factored", "dense_targets")
    )
    assert targets == factored + dense
    assert 0 < factored < dense + factored
    assert "no weights are read: spectra shaped so" in evaluate("parameters", of).how


def test_ranks_of_all_matrices_add_up_to_the_known_denominators() -> None:
    assert value("rank_reduction_total", shape="llama-2-7b") == 917_504
    assert value("rank_reduction_total", shape="13B") == 1_433_600


@pytest.mark.parametrize(("m", "n"), [(4096, 4096), (11008, 4096), (13824, 5120), (3, 6)])
def test_break_even_is_the_last_rank_that_saves(m: int, n: int) -> None:
    rank = value("break_even_rank", m=m, n=n)
    assert rank * (m + n) < m * n <= (rank + 1) * (m + n)


def test_sizes_are_read_from_our_shapes() -> None:
    assert value("size", shape="llama_1b", what="heads") == 32
    assert value("rank_over_width", shape="60M", rank=128) == "128 / 512"


# ------------------------------------------------------------------------------- one matrix, formulas
@pytest.mark.parametrize(
    ("formula", "method", "quantity", "holds"),
    [
        ("m*n", "galore", "weights", True),
        ("m*r + 2*n*r", "galore", "states", True),
        ("2*m*r + n*r", "galore", "states", False),
        ("m*n + m*r + 2*n*r", "galore", "total", True),
        ("m*n + m*r + n*r", "lora", "weights", True),
        ("2*m*r + 2*n*r", "lora", "states", True),
        ("2*m*r + 2*n*r", "galore", "states", False),
        ("2*m*n", "full", "states", True),
        ("r*(m + n)", "lowrank", "weights", True),
    ],
)
def test_formulas_of_storage_hold_where_the_code_keeps_that_much(
    formula: str, method: str, quantity: str, holds: bool
) -> None:
    assert value("formula_holds", formula=formula, method=method, quantity=quantity) is holds


def test_elements_of_one_matrix_are_those_of_its_formula() -> None:
    found = value("matrix_elements", method="galore", quantity="states", m=40, n=96, rank=8)
    assert found == 40 * 8 + 2 * 96 * 8


@pytest.mark.parametrize("formula", ["m**n", "m / n", "k*m", "m*", "m*1.5", "__import__('os')"])
def test_a_formula_of_anything_else_is_refused_in_one_line(formula: str) -> None:
    with pytest.raises(UserError, match="whole numbers and m, n, r"):
        evaluate("formula_holds", {"formula": formula, "method": "galore", "quantity": "states"})


def test_a_formula_of_published_numbers_may_divide() -> None:
    bits = {"b": 4, "b0": 8, "b1": 32, "B0": 64, "B1": 256}
    found = value("formula_value", formula="b + b0 / B0 + b1 / (B0 * B1)", values=bits)
    assert found == pytest.approx(4.126953125)
    assert value("formula_value", formula="1.5 * n - 2", values={"n": 4}) == 4


@pytest.mark.parametrize(
    "formula", ["n**2", "k * n", "n *", "n / 0", "n / (n - n)", "__import__('os')", "True * n"]
)
def test_a_formula_of_numbers_that_has_no_value_is_refused_in_one_line(formula: str) -> None:
    with pytest.raises(UserError, match="without a division by 0, and n"):
        evaluate("formula_value", {"formula": formula, "values": {"n": 3}})


@pytest.mark.parametrize(("rank", "printed"), [(1, 3096), (8, 15360), (16, 32256), (32, 75264)])
def test_lotr_at_q_and_v_is_one_group_of_24_and_a_classifier_beside(rank: int, printed: int) -> None:
    of = {"shape": "130m", "count": "trainable", "unit": "elements", "beside": 1536}
    lotr = {"rank": rank, "targets": ["q_proj", "v_proj"], "share": "shape"}
    assert value("parameters", method={"lotr": lotr}, **of) == printed == 1536 * rank + 24 * rank**2 + 1536


def test_abilities_follow_from_what_methods_say_of_themselves() -> None:
    assert value("abilities", method={"galore": {"rank": 8}}) == "yes / yes / yes"
    assert value("abilities", method="sltrain") == "no / yes / no"
    assert value("default", method="galore", option="period") == 200


# --------------------------------------------------------------------------------------------- calls
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("parameter", {}, "did you mean 'parameters'"),
        ("parameters", {"shap": "1b"}, "unknown key 'shap'; did you mean 'shape'"),
        ("parameters", {}, "shape is required"),
        ("parameters", {"shape": "2b"}, "no shape '2b'"),
        ("parameters", {"shape": "60m", "unit": "millions"}, "did you mean 'million'"),
        ("parameters", {"shape": "60m", "count": "all"}, "count"),
        ("parameters", {"shape": "60m", "method": "galor"}, "did you mean 'galore'"),
        ("default", {"method": "galore", "option": "rang"}, "did you mean 'rank'"),
        ("mean", {"values": []}, "values"),
        ("ratio", {"numerator": 1, "denominator": 0}, "denominator"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refusal:
        evaluate(name, arguments)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", CALCULATIONS)
def test_every_calculation_says_what_it_does_and_checks_its_arguments(name: str) -> None:
    assert CALCULATIONS[name].__doc__
    assert _schema(name).model_config["extra"] == "forbid"


# ------------------------------------------------------------------------------------------ the file
@pytest.fixture
def papers(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmarks" / "papers"
    folder.mkdir(parents=True)
    (folder / "claims.yaml").write_text(
        "claims:\n"
        "- {of: {calculation: mean, with: {values: [1, 2]}}}\n"
        "- {of: {calculation: ratio, with: {numerator: 1, denominator: 4}}}\n"
        "- {of: {calculation: mean, with: {values: [1, 2]}}}\n",
        encoding="utf-8",
    )
    return tmp_path


def evaluated(root: Path) -> list[dict[str, Any]]:
    ((path, text),) = collecting.pages(root)
    assert path == root / "results" / "calculations.json"
    found: list[dict[str, Any]] = json.loads(text)
    return found


def test_every_call_is_evaluated_once_and_in_order(papers: Path) -> None:
    found = evaluated(papers)
    assert [(each["calculation"], each["value"]) for each in found] == [("mean", 1.5), ("ratio", 0.25)]
    assert set(found[0]) == {"calculation", "with", "value", "unit", "how"}


def test_a_wrong_call_in_a_file_is_named_with_its_file(papers: Path) -> None:
    claims = papers / "benchmarks" / "papers" / "claims.yaml"
    claims.write_text("of: {calculation: meen}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^claims.yaml: no calculation 'meen'; did you mean 'mean'"):
        evaluated(papers)


def test_the_list_has_every_calculation_with_its_arguments() -> None:
    command = [sys.executable, "-m", "benchmarks.papers.calculations"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.partition("(")[0] for line in lines] == list(CALCULATIONS)
    assert any(line.startswith("weight_bytes(shape, bits, of=model, unit=GiB): ") for line in lines)


def test_importing_the_calculations_loads_no_torch() -> None:
    code = "import sys, benchmarks.papers.calculations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
