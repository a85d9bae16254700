"""Keep every generated page equal to the files that it comes from: records, forecasts, published tables.

`nox -s tables` rewrites what has drifted. With `--check` nothing is ever written: what has drifted is named,
and the exit code is 1. No number in a page is typed by hand.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import files, tuning
from harness import suite as suites
from harness.errors import UserError
from harness.files import ROOT
from harness.inputs import as_of
from harness.record import Record
from harness.tables.papers import errata, judge, published
from harness.tables.papers import report as paper_report
from harness.tables.papers.lookup import sources
from harness.tables.records import load
from harness.tables.report import build as report
from harness.tables.report import render
from harness.tables.report.at_scale import AtScale, of_plan
from harness.tables.report.sections import GLANCE

#: Generated files -> their builder, imported only when it is called. A builder takes the root of the
#: repository and yields each path with the text that belongs there. Pages of papers read the calculations, so
#: these come first.
BUILDERS: dict[str, str] = {
    "results/calculations.json": "benchmarks.papers.calculations.collecting:pages",
    "results/tables/SUITE.md, .csv and .tex": "harness.tables.generated:suite_pages",
    "results/tables/papers/*.md": "harness.tables.generated:paper_pages",
    "results/tables/*-loss.svg": "benchmarks.studies.curves:pages",
    "results/tables/*-front.svg": "benchmarks.studies.fronts:pages",
    "results/tables/compression-*": "benchmarks.studies.compression:pages",
    "results/tables/peers.md": "benchmarks.studies.peers.table:pages",
    "results/tables/alarms.md": "benchmarks.studies.alarms:pages",
    "results/tables/shapes-*": "benchmarks.studies.memory.table:pages",
    "results/tables/papers/claims.md": "benchmarks.studies.claims:pages",
    "results/tables/speed-forecast.md": "benchmarks.studies.speed:pages",
    "results/tables/growth.*": "benchmarks.studies.memory.growth:pages",
}
#: `<!-- table: SUITE -->` ... `<!-- /table -->` in a document is replaced by that suite's table at a glance.
MARKED = re.compile(r"(<!-- table: (?P<suite>[\w.-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
DOCUMENTS = ("README.md", "docs/results.md")

Page = tuple[Path, str]


def pages(root: Path) -> Iterator[Page]:
    """Yield every generated file with the text that it should have, built one after another."""
    for builder in BUILDERS.values():
        module, _, function = builder.partition(":")
        yield from getattr(importlib.import_module(module), function)(root)


def drifted(found: Iterable[Page]) -> Iterator[Page]:
    """Yield the pages whose file is missing or holds another text."""
    for path, text in found:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            yield path, text


def write(found: Iterable[Page]) -> list[Path]:
    """Write the pages that have drifted, each before the next is built, and return their paths."""
    written = []
    for path, text in drifted(found):
        files.replace(path, text)
        written.append(path)
    return written


# -------------------------------------------------------------------------------------- reports of suites
def suite_pages(root: Path) -> Iterator[Page]:
    """Yield the report of each suite with reference records, and the documents that show parts of it."""
    reports = dict(_reports(root / "results" / "raw"))
    for name, built in reports.items():
        for suffix, text in render.texts(built).items():
            yield root / "results" / "tables" / f"{name}.{suffix}", text
    for page in DOCUMENTS:
        path = root / page
        if path.exists():
            yield path, MARKED.sub(lambda found: _filled(found, reports), path.read_text(encoding="utf-8"))


def _reports(raw: Path) -> Iterator[tuple[str, report.Report]]:
    """Yield a report of each suite of each machine, named after the suite where only one machine has it."""
    folders = sorted({path.parent for path in files.visible(raw, "*/*/*-s*-r*.json")})  # named by run ids
    for folder in folders:
        alone = sum(other.name == folder.name for other in folders) == 1
        name = folder.name if alone else f"{folder.name}-{folder.parent.name}"
        defined = _defined(folder.name)
        records, notes = load(folder)
        rows = {run.name: run for run in defined.runs}
        records = [as_of(each, rows[each.label]) if each.label in rows else each for each in records]
        labels = [run.name for run in defined.runs]
        records.sort(key=lambda record: _position(record, labels, defined.axes))
        built = report.build(
            records,
            scale=_at_scale(defined, raw.parent / "forecasts" / "at-scale" / f"{folder.name}.json"),
            baseline=defined.baseline,
            question=defined.question,
            notes=notes,
            order=list(dict.fromkeys(record.config_id for record in records)),
            targets=defined.targets,
        )
        yield name, built


def _defined(name: str) -> suites.Suite:
    """Return the suite of a folder of records by its name: one that ships, or the trials of one."""
    of_trials = name.endswith(tuning.SUFFIX) and name not in suites.shipped_suites()
    if not of_trials:
        return suites.load(name)
    reported = suites.load(name.removesuffix(tuning.SUFFIX))
    return tuning.trials(reported, tuning.seed_for(reported))


def _at_scale(defined: suites.Suite, path: Path) -> AtScale | None:
    """Return the committed forecasts of a suite at scale; UserError where they are of other rows."""
    scaled = defined.at_scale()
    if scaled is None:
        return None
    plan = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    if {row["label"] for row in plan["rows"]} != set(scaled.names(scaled.runs).values()):
        raise UserError(f"{path}: not of the rows of suite {defined.name!r}; run: nox -s bench-at-scale")
    return of_plan(plan, scaled)


def _position(record: Record, labels: Sequence[str], axes: Sequence[str]) -> tuple[Any, ...]:
    """Return the sort key of a record: the suite's order of labels, then what the suite varies."""
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


# --------------------------------------------------------------------------------------- pages of papers
def paper_pages(root: Path) -> Iterator[Page]:
    """Yield a page for each paper, the page of errata, and the summary of all papers."""
    found, everything = sources(root), {}
    folder = root / "results" / "tables" / "papers"
    for name in published.available(found.papers):
        paper = found.paper(name)
        everything[name] = judge.judge(name, paper, found)
        yield folder / f"{name}.md", render.to_markdown(paper_report.build(name, paper, found))
    errors = errata.build(errata.load(found.papers), found)
    yield folder / f"{published.ERRATA}.md", render.to_markdown(errors)
    yield folder / "index.md", render.to_markdown(paper_report.summary(everything))


def main(arguments: Sequence[str]) -> int:
    """Write what has drifted, or with `--check` only name it: 1 on drift, 2 for files that cannot be read."""
    if list(arguments) not in ([], ["--check"]):
        print("usage: nox -s tables [-- --check]", file=sys.stderr)
        return 2
    found = 0
    try:
        for path, text in drifted(pages(ROOT)):
            if not arguments:
                files.replace(path, text)
            print(f"{'drifted' if arguments else 'written'}: {path.relative_to(ROOT)}", flush=True)
            found += 1
    except (UserError, OSError, UnicodeDecodeError) as error:
        print(error, file=sys.stderr)
        return 2
    if found and arguments:
        print("run: nox -s tables")
        return 1
    print("all generated pages are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
