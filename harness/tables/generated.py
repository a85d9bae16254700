"""Keep the tables in pages equal to the records that they come from.

`python -m harness.tables.generated` writes `results/tables/` and the marked parts of PAGES from the
reference records under `results/raw/`; with `--check` it changes nothing, names what has drifted and
exits with code 1. No number in a page is typed by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import suite as suites
from harness.errors import UserError
from harness.files import ROOT
from harness.record import Record
from harness.tables.papers import errata, judge, published
from harness.tables.papers import report as paper_report
from harness.tables.papers.lookup import Sources, sources
from harness.tables.records import load
from harness.tables.report import build as report
from harness.tables.report import render
from harness.tables.report.sections import GLANCE

#: `<!-- table: SUITE -->` ... `<!-- /table -->` in a page is replaced by that suite's table at a glance.
MARKED = re.compile(r"(<!-- table: (?P<suite>[\w.-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
PAGES = ("README.md", "docs/results.md")
PAPERS = Path("results", "tables", "papers")


def expected(root: Path) -> Iterator[tuple[Path, str]]:
    """Every generated file with the text that it should have."""
    reports = dict(_reports(root / "results" / "raw"))
    for name, built in reports.items():
        for suffix, text in render.texts(built).items():
            yield root / "results" / "tables" / f"{name}.{suffix}", text
    for page in PAGES:
        path = root / page
        if path.exists():
            yield path, MARKED.sub(lambda found: _filled(found, reports), path.read_text(encoding="utf-8"))
    for name, built in _paper_reports(sources(root)):
        yield root / PAPERS / f"{name}.md", render.to_markdown(built)


def drifted(root: Path) -> dict[Path, str]:
    """Return the generated files that are not what the records say, with the text they should have."""
    return {
        path: text
        for path, text in expected(root)
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def _reports(raw: Path) -> Iterator[tuple[str, report.Report]]:
    """One report for each suite of each machine, named after the suite where only one machine has it."""
    folders = sorted({path.parent for path in raw.glob("*/*/*-s*-r*.json")})  # named by run ids
    for folder in folders:
        alone = sum(other.name == folder.name for other in folders) == 1
        name = folder.name if alone else f"{folder.name}-{folder.parent.name}"
        defined = suites.load(folder.name)
        records, notes = load(folder)
        labels = [run.name for run in defined.runs]
        records.sort(key=lambda record: _position(record, labels, defined.axes))
        built = report.build(
            records,
            baseline=defined.baseline,
            question=defined.question,
            notes=notes,
            order=list(dict.fromkeys(record.config_id for record in records)),
        )
        yield name, built


def _position(record: Record, labels: Sequence[str], axes: Sequence[str]) -> tuple[Any, ...]:
    """Rows in the order of the suite's labels, then by what the suite varies."""
    place = labels.index(record.label) if record.label in labels else len(labels)
    varied = [_setting(record.config, key) for key in axes]
    numbers = [value if isinstance(value, (int, float)) else 0 for value in varied]
    return place, numbers, str(varied), record.config_id, record.seed, record.repeat


def _setting(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _filled(found: re.Match[str], reports: dict[str, report.Report]) -> str:
    built = reports.get(found["suite"])
    chosen = [table for table in built.tables if table.title == GLANCE] if built else []
    if not chosen:
        return found[0]
    table = "\n".join(render.markdown_table(chosen[0]))
    return f"{found[1]}\n{table}\n\n{found[3]}"


def _paper_reports(found: Sources) -> Iterator[tuple[str, report.Report]]:
    """Every page by its name: a paper each, the errata, and the summary of all."""
    everything = {}
    for name in published.available(found.papers):
        paper = published.load(found.papers, name)
        everything[name] = judge.judge(name, paper, found)
        yield name, paper_report.build(name, paper, found)
    yield published.ERRATA, errata.build(errata.load(found.papers), found)
    yield "index", paper_report.summary(everything)


def main(arguments: Sequence[str]) -> int:
    """Write what has drifted, or with `--check` only say so; 2 for data that does not fit."""
    if list(arguments) not in ([], ["--check"]):
        print("usage: python -m harness.tables.generated [--check]", file=sys.stderr)
        return 2
    try:
        stale = drifted(ROOT)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for path, text in stale.items():
        print(f"drifted: {path.relative_to(ROOT)}")
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    if stale and arguments:
        print("run: nox -s tables")
        return 1
    print("written" if stale else "all tables follow from the records")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
