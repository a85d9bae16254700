"""The section `calibration` of a run: part of its id where it is given, refused where nothing reads it."""

from __future__ import annotations

from typing import Any

import pytest

from harness import identity
from harness.config import Run
from harness.engine.run import checks
from harness.errors import UserError


def run(method: Any = "full", **settings: Any) -> Run:
    return Run.model_validate({"method": method, "train": {"stage": "compress"}, **settings})


def test_a_run_without_the_section_keeps_the_id_that_it_had() -> None:
    assert "calibration" not in run().canonical
    assert run().config_id == identity.config_id(run().canonical)


@pytest.mark.parametrize(
    "section", [{}, {"sequences": 64}, {"data": {"world": "a"}}, {"seed": 3}, {"validation": 8}], ids=str
)
def test_the_section_is_part_of_the_id_as_a_record_tells_it(section: dict[str, Any]) -> None:
    given = run(calibration=section)
    assert given.config_id == identity.config_id(given.canonical) != run().config_id
    assert Run.model_validate(given.canonical).config_id == given.config_id


def test_each_of_its_settings_gives_another_id() -> None:
    sections = [{}, {"sequences": 64}, {"data": {"world": "a"}}, {"seed": 3}, {"validation": 8}]
    assert len({run(calibration=section).config_id for section in sections}) == len(sections)


def test_it_is_refused_where_no_method_of_the_rows_looks_at_text() -> None:
    given = {"sequences": 64}
    svd = run({"compress": {"factoriser": "svd"}}, calibration=given)
    with pytest.raises(
        UserError, match=r"^calibration: no method of these rows looks at text .* leave it out$"
    ):
        checks.resolve([run(calibration=given), svd])
    checks.resolve([svd, run({"compress": {}}, calibration=given)])


@pytest.mark.parametrize(
    ("method", "reads"),
    [
        ({"compress": {"factoriser": "svd"}}, False),
        ({"compress": {"factoriser": "asvd"}}, True),
        ({"owlore": {"sampling": "uniform"}}, False),
        ({"owlore": {}}, True),
        ({"lqlora": {}}, False),
        ({"lqlora": {"fisher": 8}}, True),
    ],
    ids=str,
)
def test_methods_say_whether_they_look_at_text(method: Any, reads: bool) -> None:
    assert checks.stack(run(method))[0].caps.reads_text == reads
