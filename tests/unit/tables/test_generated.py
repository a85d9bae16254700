"""The table of generated pages: every page has a builder, and a check writes nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from harness.tables import generated
from tests.docs.sources import ROOT


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """Two pages of a project elsewhere, the second of which follows from the first as it is on disk."""
    first, second = tmp_path / "results" / "a.md", tmp_path / "results" / "b.md"
    wanted = {first: "one\n"}

    def build(root: Path) -> object:
        yield from wanted.items()
        yield second, f"after {first.read_text() if first.exists() else 'nothing'}"

    monkeypatch.setattr(generated, "ROOT", tmp_path)
    monkeypatch.setattr(generated, "BUILDERS", {"results/*.md": f"{__name__}:build"})
    monkeypatch.setattr(importlib.import_module(__name__), "build", build, raising=False)
    return wanted


def test_a_check_names_what_has_drifted_and_writes_nothing(
    pages: dict[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert generated.main(["--check"]) == 1
        assert capsys.readouterr().out == "drifted: results/a.md\ndrifted: results/b.md\nrun: nox -s tables\n"
        assert list(tmp_path.iterdir()) == []


def test_pages_are_written_in_order_and_then_up_to_date(
    pages: dict[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generated.main([]) == 0
    assert (tmp_path / "results" / "b.md").read_text() == "after one\n"
    assert generated.main(["--check"]) == 0
    capsys.readouterr()
    assert generated.main([]) == 0
    assert capsys.readouterr().out == "all generated pages are up to date\n"
    (tmp_path / "results" / "a.md").write_text("typed by hand")
    assert generated.main(["--check"]) == 1
    assert (tmp_path / "results" / "a.md").read_text() == "typed by hand"


def test_a_builder_that_fails_does_not_hide_what_was_written_before_it(
    pages: dict[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results" / "b.md").mkdir(parents=True)
    assert generated.main([]) == 2
    assert capsys.readouterr().out == "written: results/a.md\n"


def test_a_place_that_cannot_be_written_is_one_line_and_2(
    pages: dict[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").write_text("a file")
    assert generated.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert generated.main(["--render-only"]) == 2


@pytest.mark.parametrize("builder", generated.BUILDERS.values())
def test_every_builder_exists(builder: str) -> None:
    module, _, function = builder.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_file_among_the_tables_has_a_builder() -> None:
    """By the patterns of the table; SUITE stands for a suite with records."""
    suites = {folder.name for folder in (ROOT / "results" / "raw").glob("*/*") if folder.is_dir()}
    patterns = [pattern for pattern in generated.BUILDERS if "SUITE" not in pattern]
    for path in (ROOT / "results" / "tables").rglob("*.*"):
        place = path.relative_to(ROOT)
        assert place.stem in suites or any(map(place.match, patterns)), place
