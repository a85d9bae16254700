"""List the calculations: `python -m benchmarks.papers.calculations`; `nox -s tables` evaluates them."""

import inspect

from benchmarks.papers.calculations import CALCULATIONS

if __name__ == "__main__":
    for name, function in CALCULATIONS.items():
        arguments = ", ".join(inspect.signature(function).parameters)
        print(f"{name}({arguments}): {(inspect.getdoc(function) or '').splitlines()[0]}")
