"""Singular values: what a record keeps of a spectrum, who says it, and how the page shows it."""

import itertools
import json

import pytest
import torch

from harness import record, spectrum
from harness.config import Run
from harness.engine.run import prepare
from harness.method import Context, Simulated
from harness.plugins import build
from harness.spectrum import SPECTRUM_POINTS, thinned_spectrum
from harness.tables.page import spectra as page_spectra
from tests.support.tiny import tiny_llama
from tests.unit.tables.page.test_page import charts, made, view
from tests.unit.tables.report.test_report import fabricate

LAYERS = [f"model.layers.{layer}.self_attn.{kind}_proj" for layer in range(3) for kind in "qk"]


def spectra(tail=0.01, names=LAYERS):
    return {name: [1.0, 0.5, tail * (1 + place)] for place, name in enumerate(names)}


def with_spectra(label, found, sha256="e" * 64):
    made_up = fabricate(label)
    made_up.parameters.spectra = found
    made_up.data.model_sha256 = sha256
    return made_up


# -------------------------------------------------------------------------------------- what is kept
def test_a_spectrum_is_kept_at_evenly_spaced_places_with_both_ends() -> None:
    values = [float(number) for number in range(1, 4097)]
    kept = thinned_spectrum(reversed(values))
    assert kept == thinned_spectrum(values)
    assert len(kept) == SPECTRUM_POINTS
    assert kept[0] == 1.0
    assert kept[-1] == float(f"{1 / 4096:.4g}")
    steps = [first - second for first, second in itertools.pairwise(kept)]
    assert max(steps) - min(steps) < 2e-3


@pytest.mark.parametrize("values", [[], [2.0], [0.0, 0.0], [3.0, 1.5, 0.0]])
def test_a_short_spectrum_is_kept_whole(values) -> None:
    largest = max(values, default=0.0) or 1.0
    assert thinned_spectrum(values) == [value / largest for value in values]


def test_spectra_of_a_model_of_seven_billion_parameters_take_about_a_hundred_kilobytes(tmp_path) -> None:
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = [f"model.layers.{layer}.mlp.{kind}" for layer in range(32) for kind in kinds]
    plain, large = fabricate(), fabricate()
    for name in names:
        large.parameters.spectra[name] = thinned_spectrum(spectrum.like_llama(4096, name, names))
    for file, written in (("plain", plain), ("large", large)):
        record.write(written, tmp_path / file)
    assert (tmp_path / "large").stat().st_size - (tmp_path / "plain").stat().st_size < 120_000
    assert len(made([large])) < len(made([plain])) + 160_000


# -------------------------------------------------------------------------------------- who says it
def test_a_method_says_the_singular_values_of_the_weights_it_was_given() -> None:
    model, context = tiny_llama(), Context()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    build("welore", {"err": 0.5}).prepare(model, context)
    assert len(context.spectra) == 7 * len(model.model.layers)
    for name, kept in context.spectra.items():
        truth = torch.linalg.svdvals(weights[f"{name}.weight"])
        truth = truth / truth[0]
        assert kept[0] == 1.0
        assert kept[-1] == pytest.approx(float(truth[-1]), rel=1e-3, abs=1e-6)
        assert len(kept) == min(len(truth), SPECTRUM_POINTS)


def test_a_simulation_says_no_singular_values() -> None:
    context = Context(simulated=Simulated())
    build("welore", {"err": 0.5}).prepare(tiny_llama(), context)
    assert context.ranks
    assert context.spectra == {}


def test_the_record_has_what_the_first_method_of_a_stack_was_given() -> None:
    run = Run.model_validate({"method": ["welore", "lora"], "train": {"steps": 6}})
    contexts = {"welore": Context(spectra={"a": [1.0]}), "lora": Context(spectra={"a": [0.5], "b": [1.0]})}
    methods = [build("full", {})] * 2
    parameters = prepare.prepare(run, methods, tiny_llama(), lambda key, method: contexts[key]).parameters
    assert parameters.spectra == {"a": [1.0], "b": [1.0]}


def test_a_record_without_spectra_is_read_as_one_that_measured_none(tmp_path) -> None:
    record.write(fabricate(), tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    del content["parameters"]["spectra"]
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    assert record.read(tmp_path / "a.json").parameters.spectra == {}


# -------------------------------------------------------------------------------------- the page
def test_each_kind_has_a_chart_with_a_line_per_layer_of_the_values_of_the_record() -> None:
    found, said = page_spectra.spectra(view([with_spectra("one", spectra())]))
    assert [chart.title for chart in found] == ["q_proj", "k_proj"]
    for chart, kind in zip(found, "qk", strict=True):
        lines = [trace for trace in chart.content["data"] if trace["mode"] == "lines"]
        wanted = [spectra()[f"model.layers.{layer}.self_attn.{kind}_proj"] for layer in range(3)]
        assert [line["y"] for line in lines] == wanted
        assert all((line["x0"], line["dx"]) == (0, 0.5) for line in lines)
        assert len({line["line"]["color"] for line in lines}) == 3
        assert [line["hovertemplate"].split(",")[0] for line in lines] == ["layer 0", "layer 1", "layer 2"]
        assert chart.content["layout"]["yaxis"]["type"] == "log"
        assert "share of the index" in chart.content["layout"]["xaxis"]["title"]["text"]
    assert said == ["embedded, before training: one"]


def test_rows_with_the_same_weights_share_their_charts_and_others_have_their_own() -> None:
    rows = [
        with_spectra("one", spectra()),
        with_spectra("two", spectra(names=LAYERS[:2])),
        with_spectra("other", spectra(0.2), "f" * 64),
        fabricate("none"),
    ]
    found, said = page_spectra.spectra(view(rows))
    assert len(found) == 4
    assert said == ["embedded, before training: one, two", "embedded, before training: other"]
    assert len({chart.name for chart in found}) == 4


def test_weights_without_a_hash_are_the_same_where_their_spectra_are() -> None:
    rows = [with_spectra(name, spectra(tail), None) for name, tail in (("a", 0.1), ("b", 0.1), ("c", 0.2))]
    _, said = page_spectra.spectra(view(rows))
    assert said == ["embedded, before training: a, b", "embedded, before training: c"]


def test_a_singular_value_of_0_is_a_gap_and_no_error_of_the_axis() -> None:
    rows = [with_spectra("flat", {"layers.0.q": [1.0, 0.0], "layers.1.q": [0.0, 0.0], "head": [1.0]})]
    (chart,), (said,) = page_spectra.spectra(view(rows))
    assert [trace["y"] for trace in chart.content["data"][:2]] == [[1.0, None], [None, None]]
    assert "values of 0 are not drawn" in chart.caption
    assert said.endswith("not drawn: 1 outside numbered layers")


def test_the_page_has_the_section_where_records_hold_spectra_and_else_not() -> None:
    assert 'id="spectra"' in made([with_spectra("one", spectra())])
    assert "spectra-1" in charts(made([with_spectra("one", spectra())]))
    assert 'id="spectra"' not in made()
