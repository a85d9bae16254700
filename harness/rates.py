"""The file of tuned learning rates, which `lorebench tune` writes and `--rates` takes. No torch."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, model_validator

from harness import files, identity, strict_yaml
from harness.config import LARGEST_SEED, DataConfig, MethodChoice, ModelConfig, Run, Strict
from harness.credentials import shown
from harness.errors import UserError, listed
from harness.suite import Override, Suite, check_each_once, fits
from harness.tuning import LR, best
from harness.validation import validate

Rate = Annotated[float, Field(gt=0)]
#: Settings that a file of rates gives.
GIVEN = (LR, "tuning")
#: Settings and labels in a message; more of them do not tell more.
MOST_SHOWN, MOST_LABELS = 4, 20
#: Settings of training that a rate may be used with other values of: a run may be longer than its trials.
FREE = {"lr", "steps", "activation_checkpointing"}
_WAY_OUT = "run `lorebench tune` again, or give a rate of your own by --set train.lr=RATE in place of --rates"


class Row(Strict):
    """A row with its best rate and all that were tried; None is the perplexity of a trial that failed.

    `only` are conditions beside the label, where several rows have it. `method` is the stack as the suite
    writes it; older files do not know it. `lr` is None where all trials failed. A rate of one's own, which no
    trial found best, has no place here: a run at the `lr` of a file says that it was tuned.
    """

    label: str
    only: tuple[str, ...] = ()
    method: tuple[MethodChoice, ...] = ()
    lr: Rate | None
    rates: tuple[Rate, ...] = Field(min_length=1)
    perplexities: tuple[Annotated[float, Field(ge=1)] | None, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.rates) != len(self.perplexities):
            raise ValueError(f"row {shown(self.label)}: give as many perplexities as rates")
        ((most, times),) = Counter(self.rates).most_common(1)
        if times > 1:
            raise ValueError(
                f"row {shown(self.label)}: rate {most:g} is given twice; leave one, with its perplexity"
            )
        if self.lr is not None and self.lr not in self.rates:
            raise ValueError(f"row {shown(self.label)}: lr {self.lr:g} is none of its rates; {_WAY_OUT}")
        tried = {rate: math.inf if each is None else each for rate, each in self.tried}
        right = best(tried)
        if self.lr != right and (self.lr is None or right is None or tried[self.lr] > tried[right]):
            given = "null" if self.lr is None else f"{self.lr:g}"
            allowed = "null, as every trial failed" if right is None else f"{right:g}"
            said = f"lr {given} is not the best by its perplexities, {allowed}"
            raise ValueError(f"row {shown(self.label)}: {said}; {_WAY_OUT}")
        return self

    @property
    def tried(self) -> set[tuple[float, float | None]]:
        """Rates with their perplexities."""
        return set(zip(self.rates, self.perplexities, strict=True))

    @property
    def varying(self) -> list[str]:
        """The settings that tell it from other rows of its label."""
        return [condition.partition("=")[0] for condition in self.only]


class TunedOn(Strict):
    """Rows tuned on one model and one text: sections of the config, and hashes of what these name.

    `train` has the settings that rates depend on; older files do not know it.
    """

    model: ModelConfig
    data: DataConfig
    train: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str]
    rows: tuple[Row, ...] = Field(min_length=1)

    def replaces(self, old: TunedOn) -> bool:
        """Return whether the only row of this takes the place of another's: none is told from it any more."""
        own, other = self.rows[0], old.rows[0]
        told_apart = own.only != other.only and own.varying == other.varying
        return own.label == other.label and not told_apart and not _differences(old, self)

    def repeats(self, old: TunedOn) -> bool:
        """Return whether all that was tried for the only row of this is among what another has tried."""
        own, other = self.rows[0], old.rows[0]
        return own.only == other.only and self.inputs == old.inputs and own.tried <= other.tried


class Rates(Strict):
    """The contents of the file: `trials` is the suite of the records, `seed` theirs."""

    suite: str
    trials: str
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]
    tuned: tuple[TunedOn, ...] = Field(min_length=1)

    @classmethod
    def of(cls, suite: str, trials: str, seed: int, rows: Iterable[TunedOn]) -> Rates:
        """Return a file of rows with what each was tuned on; rows tuned on the same are put together."""
        found: list[TunedOn] = []
        for each in rows:
            same = [
                n for n, other in enumerate(found) if other.model_copy(update={"rows": each.rows}) == each
            ]
            if same:
                found[same[0]] = each.model_copy(update={"rows": (*found[same[0]].rows, *each.rows)})
            else:
                found.append(each)
        return cls(suite=suite, trials=trials, seed=seed, tuned=tuple(found))

    @property
    def rows(self) -> list[TunedOn]:
        """Each row with what it was tuned on."""
        return [each.model_copy(update={"rows": (row,)}) for each in self.tuned for row in each.rows]

    def after(self, earlier: Rates) -> Rates:
        """Return the rates with those of earlier rows that are not among them.

        The earlier ones of a row stay, too, where all that was tried now is among them: a trial was repeated.
        """
        if (earlier.suite, earlier.trials, earlier.seed) != (self.suite, self.trials, self.seed):
            return self
        found = self.rows
        for old in earlier.rows:
            newer = [place for place, row in enumerate(found) if row.replaces(old)]
            if not newer:
                found.append(old)
            elif found[newer[0]].repeats(old):
                found[newer[0]] = old
        return self.of(self.suite, self.trials, self.seed, found)

    def write(self, path: Path) -> None:
        """Write the file; OSError where that fails."""
        content = self.model_dump(mode="json")
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110, default_flow_style=None)
        files.replace(path, f"# Learning rates by `lorebench tune {self.suite}`; for --rates.\n{text}")

    def overrides(self, run: Run, where: str) -> list[Override]:
        """Return what gives a run its rate; UserError where the file has none for it."""
        if run.train.stage == "compress":
            return []
        if run.seed == self.seed:
            raise UserError(f"{where}: seed {run.seed} is that of its trials; report others: --seed")
        found = [
            each.model_copy(update={"rows": (row,)})
            for each in self.tuned
            for row in each.rows
            if _is_of(row, run)
        ]
        if not found:
            labels = dict.fromkeys(row.label for each in self.tuned for row in each.rows)
            more = f" and {len(labels) - MOST_LABELS} more" if len(labels) > MOST_LABELS else ""
            has = listed(list(labels)[:MOST_LABELS]) + more
            raise UserError(f"{where}: no rate for row {shown(run.name)}; it has {has}: tune that row, too")
        fitting = [each for each in found if not _differences(each, run)]
        if not fitting:
            was, now = _differences(found[0], run)
            raise UserError(
                f"{where}: row {shown(run.name)} was tuned with {was}, but this is {now}; run "
                f"`lorebench tune {self.suite}` with the same --model, --data and --set, or leave --rates out"
            )
        each, (row,) = fitting[0], fitting[0].rows
        if len(fitting) > 1:
            raise UserError(
                f"{where}: {len(fitting)} rates for row {shown(run.name)}; leave one of them there"
            )
        if row.lr is None:
            raise UserError(
                f"{where}: all {len(row.rates)} trials of row {shown(run.name)} failed, so there is no rate; "
                "tune it with other --rates"
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
    refuse_given(overrides, where)
    found = read(path)
    if found.suite != suite.name:
        raise UserError(
            f"{where}: its rates were tuned for suite {shown(found.suite)}, not for {shown(suite.name)}; run "
            f"`lorebench tune` for this suite, or name the other"
        )
    return suite.with_overrides(lambda run: found.overrides(run, where))


def refuse_given(overrides: Sequence[Override], where: str) -> None:
    """Raise UserError for options that give what rates give, too."""
    check_each_once([*overrides, *(Override.of(key, None, where) for key in GIVEN)])


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
    """Return the settings of a run, or of an only row, by dotted key, with names of texts in place of paths.

    Where files are is no difference, as hashes of their content are compared.
    """
    found = {}
    for section, settings in of.model_dump(mode="json", include={"model", "data", "train"}).items():
        for key, item in settings.items():
            if key in identity.PATHS:
                item = ", ".join(Path(path).name for path in item) if key == "paths" else None
            if item is not None and (section, key) != ("data", "validation") and key not in FREE:
                found[f"{section}.{key}"] = _text(item)
    stack = of.method if isinstance(of, Run) else of.rows[0].method
    if stack:
        found["method"] = ", ".join(choice.name for choice in stack)
    for choice in stack:
        found |= {f"method.{choice.name}.{key}": _text(item) for key, item in choice.options.items()}
    return found


def _text(item: Any) -> Any:
    """Return a value, a list or section as text that can be shown."""
    return json.dumps(item) if isinstance(item, dict | list) else item


def _differences(old: TunedOn, new: TunedOn | Run) -> list[str]:
    """Return in words what each has that the other has not, empty where they are alike.

    Sections that the old one does not know contradict nothing.
    """
    was, now = _named(old), _named(new)
    known = {key.partition(".")[0] for key in was}
    now = {key: item for key, item in now.items() if key.partition(".")[0] in known}
    found = []
    for one, other in ((was, now), (now, was)) if was != now else ():
        own = [f"{key} {shown(item)}" for key, item in one.items() if item != other.get(key)]
        own = own or [f"no {key}" for key in other if key not in one]
        found.append(", ".join(own[:MOST_SHOWN]))
    return found
