"""Charts of quality against memory at scale, from the tables of suites."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies import fronts
from harness.errors import UserError
from tests.docs.sources import ROOT

HEAD = "method,perplexity_world-b_mean,at_scale_peak_bytes\n"


def table(folder: Path, *lines: str) -> Path:
    path = folder / "made.csv"
    path.write_text(HEAD + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_a_point_is_a_row_with_both_values(tmp_path: Path) -> None:
    path = table(tmp_path, f"full,1.5,{3 << 30}", "untrained,4,", f'"a, b",2,{1 << 29}', f"failed,,{1 << 30}")
    assert fronts.points_of(path, "world-b") == {"full": (3.0, 1.5), "a, b": (0.5, 2.0)}


def test_a_table_without_points_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row has both at_scale_peak_bytes and perplexity_world-b_mean"):
        fronts.points_of(table(tmp_path, "full,1.5,"), "world-b")


@pytest.mark.parametrize("name", fronts.SUITES)
def test_each_row_that_trains_is_in_the_chart_of_its_suite(name: str) -> None:
    points = fronts.points_of(ROOT / "results" / "tables" / f"{name}.csv", fronts.SUITES[name])
    text = fronts.path_of(ROOT, name).read_text(encoding="utf-8")
    assert len(points) > 10
    for place, label in enumerate(points):
        assert f"<!-- {place + 1}  {label} -->" in text
