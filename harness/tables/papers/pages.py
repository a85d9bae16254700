"""Keep the pages about published figures equal to the files that they follow from.

`python -m harness.tables.papers.pages` writes `results/tables/papers/` from `benchmarks/papers/`, the
calculations, forecasts and reference records; with `--check` it changes nothing, names what has drifted
and exits with code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import UserError
from harness.tables import report
from harness.tables.drift import ROOT
from harness.tables.papers import errata, judging, transcribed
from harness.tables.papers import report as paper_report
from harness.tables.papers.sources import Sources

FOLDER = Path("results", "tables", "papers")


def sources(root: Path, *records: Path) -> Sources:
    """The files of a checkout, with further folders of records looked at first."""
    results = root / "results"
    return Sources(transcribed.folder(), results, (*records, results / "raw"))


def reports(found: Sources) -> Iterator[tuple[str, report.Report]]:
    """Every page by its name: a paper each, the errata, and the summary of all."""
    everything = {}
    for name in transcribed.available(found.papers):
        paper = transcribed.load(found.papers, name)
        everything[name] = judging.judge(name, paper, found)
        yield name, paper_report.build(name, paper, found)
    yield transcribed.ERRATA, errata.build(errata.load(found.papers), found)
    yield "index", paper_report.summary(everything)


def expected(root: Path) -> Iterator[tuple[Path, str]]:
    """Every generated page with the text that it should have."""
    for name, built in reports(sources(root)):
        yield root / FOLDER / f"{name}.md", report.to_markdown(built)


def main(arguments: Sequence[str]) -> int:
    """Write what has drifted, or with `--check` only say so; 2 for data that does not fit."""
    if list(arguments) not in ([], ["--check"]):
        print("usage: python -m harness.tables.papers.pages [--check]", file=sys.stderr)
        return 2
    try:
        stale = [
            (path, text)
            for path, text in expected(ROOT)
            if not path.exists() or path.read_text(encoding="utf-8") != text
        ]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for path, text in stale:
        print(f"drifted: {path.relative_to(ROOT)}")
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    if stale and arguments:
        print("run: nox -s tables")
        return 1
    print("written" if stale else "all pages follow from their files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
