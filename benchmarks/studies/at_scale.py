"""Forecast the rows of every suite on the large model of its section `at_scale`: `nox -s bench-at-scale`.

Each plan is that of `lorebench plan SUITE --at-scale --on h200 --out FILE`, stored as
`results/forecasts/at-scale/SUITE.json`; the tables of suites follow from it and from records.
"""

from __future__ import annotations

import sys

from harness import files
from harness import suite as suites
from harness.cli.plan import plan_suite
from harness.devices import profile
from harness.files import ROOT
from harness.tables.plan.plan import as_json
from harness.tables.report.at_scale import DEVICE

FOLDER = "results/forecasts/at-scale"


def main() -> int:
    """Write the plan of every suite that has the section; 1 where a row has no forecast."""
    missing = 0
    for name in suites.shipped_suites():
        scaled = suites.load(name).at_scale()
        if scaled is None:
            continue
        made = plan_suite(scaled, "cpu", profiles=[profile(DEVICE)], notify=print)
        for row in made.rows:
            if row.report is None:
                print(f"{name}: {row.label}: no forecast: {row.forecast}")
                missing += 1
        files.replace(ROOT / FOLDER / f"{name}.json", as_json(made))
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
