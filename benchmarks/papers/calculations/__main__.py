"""List the calculations: `python -m benchmarks.papers.calculations`; `nox -s tables` evaluates them."""

import inspect

from benchmarks.papers.calculations import CALCULATIONS

if __name__ == "__main__":
    for name, function in CALCULATIONS.items():
        arguments = ", ".join(
            each.name if each.default is each.empty else f"{each.name}={each.default}"
            for each in inspect.signature(function).parameters.values()
        )
        print(f"{name}({arguments}): {(inspect.getdoc(function) or '').splitlines()[0]}")
