"""The file of tuned learning rates, which `lorebench tune` writes and `--rates` takes. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, model_validator

from harness import files, identity, strict_yaml
from harness.config import Run, Strict
from harness.credentials import shown
from harness.errors import UserError, listed
from harness.suite import Override, Suite, check_each_once, fits
from harness.tuning import LR
from harness.validation import validate

Rate = Annotated[float, Field(gt=0)]
#: Settings in a message; more of them do not tell more.
MOST_SHOWN = 4


class Row(Strict):
    """A row with its best rate and all that were tried; None is the perplexity of a trial that failed.

    `only` are conditions beside the label, where several rows have it. `lr` is None where all trials failed.
    """

    label: str
    only: tuple[str, ...] = ()
    lr: Rate | None
    rates: tuple[Rate, ...] = Field(min_length=1)
    perplexities: tuple[Annotated[float, Field(ge=1)] | None, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.rates) != len(self.perplexities):
            raise ValueError(f"row {shown(self.label)}: give as many perplexities as rates")
        if self.lr is not None and self.lr not in self.rates:
            raise ValueError(f"row {shown(self.label)}: lr {self.lr:g} is none of its rates")
        return self


class TunedOn(Strict):
    """Rows tuned on one model and one text: sections of the config, and hashes of what these name."""

    model: dict[str, Any]
    data: dict[str, Any]
    inputs: dict[str, str]
    rows: tuple[Row, ...]


class Rates(Strict):
    """The contents of the file: `trials` is the suite of the records, `seed` theirs."""

    suite: str
    trials: str
    seed: int
    tuned: tuple[TunedOn, ...]

    def write(self, path: Path) -> None:
        """Write the file; OSError where that fails."""
        content = self.model_dump(mode="json")
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110, default_flow_style=None)
        files.replace(path, f"# Learning rates by `lorebench tune {self.suite}`; for --rates.\n{text}")

    def overrides(self, run: Run, where: str) -> list[Override]:
        """Return what gives a run its rate; UserError where the file has none for it."""
        if run.train.stage == "compress":
            return []
        found = [(each, row) for each in self.tuned for row in each.rows if _is_of(row, run)]
        if not found:
            labels = dict.fromkeys(row.label for each in self.tuned for row in each.rows)
            raise UserError(
                f"{where}: no rate for row {shown(run.name)}; it has {listed(labels)}: tune that row, too, "
                "or select others by --only"
            )
        fitting = [(each, row) for each, row in found if _named(each) == _named(run)]
        if not fitting:
            was, now = _differences(_named(found[0][0]), _named(run))
            raise UserError(
                f"{where}: tuned with {was}, but this is {now}; run `lorebench tune {self.suite}` with the "
                "same --model, --data and --set, or leave --rates out"
            )
        each, row = fitting[0]
        if row.lr is None:
            raise UserError(
                f"{where}: all {len(row.rates)} trials of row {shown(run.name)} failed, so there is no rate; "
                "select other rows by --only"
            )
        tuning = strict_yaml.lift(
            {"suite": self.trials, "grid": list(row.rates), "inputs": each.inputs or None}, where
        )
        return [Override.of(LR, row.lr, where), Override("tuning", tuning)]


def applied(suite: Suite, path: Path, overrides: Sequence[Override]) -> Suite:
    """Return a suite whose rows train at the rates of a file; `overrides` are those it was read with.

    A row without a rate notes the mistake, as `expand` does. UserError for a file that is not one, that is of
    another suite, and for options that give a rate, too.
    """
    where = f"--rates {path}"
    check_each_once([*overrides, *(Override.of(key, None, where) for key in (LR, "tuning"))])
    found = read(path)
    if found.suite != suite.name:
        raise UserError(
            f"{where}: its rates were tuned for suite {shown(found.suite)}, not for {shown(suite.name)}; run "
            f"`lorebench tune` for this suite, or name the other"
        )
    return suite.with_overrides(lambda run: found.overrides(run, where))


def read(path: Path) -> Rates:
    """Read a file; UserError names the line of a mistake."""
    if not path.is_file():
        raise UserError(f"--rates {path}: no such file; `lorebench tune SUITE` writes one")
    return validate(Rates, strict_yaml.read(path), where=str(path))


class _Dumper(yaml.SafeDumper):
    """YAML 1.1, with quotes around text that YAML 1.2 could take for a number: a label such as 1e-3."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z_ +/.-]*", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if plain else '"')


_Dumper.add_representer(str, _quoted)


def _is_of(row: Row, run: Run) -> bool:
    return row.label == run.name and fits(run, row.only)


def _named(of: TunedOn | Run) -> dict[str, Any]:
    """Return the settings of model and text by dotted key, with the names of texts in place of paths.

    Where files are is no difference, as hashes of their content are compared.
    """
    found = {}
    for section, settings in of.model_dump(mode="json", include={"model", "data"}).items():
        for key, item in settings.items():
            if key in identity.PATHS:
                item = ", ".join(Path(path).name for path in item) if key == "paths" else None
            if item is not None and (section, key) != ("data", "validation"):
                found[f"{section}.{key}"] = item
    return found


def _differences(*both: Mapping[str, Any]) -> list[str]:
    """Return in words what each of two configs has that the other has not."""
    first, second = both
    return [
        ", ".join(
            [f"{key} {shown(item)}" for key, item in one.items() if item != other.get(key)][:MOST_SHOWN]
        )
        for one, other in ((first, second), (second, first))
    ]
