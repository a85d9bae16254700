"""Read a suite from YAML, validate it and expand it into runs. No torch."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, field_validator

from harness import no_effect, strict_yaml
from harness.config import LARGEST_SEED, Positive, Run, Strict
from harness.credentials import shown
from harness.errors import UserError, did_you_mean, listed, nearest
from harness.files import ROOT, visible
from harness.merging import (
    MOST_RUNS,
    combinations,
    names_source,
    refuse_twice,
    settings_of,
    together,
    with_setting,
)
from harness.strict_yaml import Written
from harness.validation import Validator, settings_named, validate

#: The folder of suites that need weights or text that cannot ship.
WEIGHTS = "llama2"
MOST_SHOWN = 40
_PLAIN = TypeAdapter(Any)
#: Values of a run that its config does not follow from.
_NUMBERS = {"seed", "repeat"}
#: Sections that a learning rate is tuned for: it is not tuned for what an option makes of them.
_TUNED_FOR = ("model", "data", "method")
#: In place of a method where only another section is validated.
_ANY_METHOD = "module:Class"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: Keys of `--only` whose values are names: taken by the letter, though a name may happen to be YAML.
NAMES = ("label", "method", "run_id", "config_id", "tier", "quantity")


@dataclass(frozen=True)
class Override:
    """A value from the command line for a dotted setting; it wins over the file.

    Another option may give the setting, too, where this one only follows from an option: `yields`.
    """

    key: str
    value: Written
    yields: bool = False

    @classmethod
    def of(cls, key: str, value: Any, option: str, yields: bool = False) -> Override:
        """Return an override by a plain value."""
        return cls(key, strict_yaml.lift(value, option), yields)


class AtScale(Strict):
    """The same rows on a model that is only simulated, for memory and speed at the scale of real use.

    Settings are merged over those of each row, those of a label over these: ranks for a wider model, say.
    """

    base: dict[str, Any]
    labels: dict[str, dict[str, Any]] = Field(default_factory=dict)


class SuiteFile(Strict):
    """The contents of a YAML file: rows are crossed with the matrix, and values of a row win.

    An axis of the matrix is a setting, or several that move together: `data.task + evaluate.tasks`.
    `threads` are those of the CPU that a run computes on, by default one for each core. `targets` are
    perplexities by protocol: a report says when rows reached them in training.
    """

    suite: str
    question: str = ""
    baseline: str | None = None
    base: dict[str, Any] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    rows: list[dict[str, Any]] = Field(default_factory=lambda: [dict[str, Any]()])
    at_scale: AtScale | None = None
    threads: Positive | None = None
    targets: dict[str, Annotated[float, Field(ge=1)]] = Field(default_factory=dict)

    @field_validator("suite")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"suite name {shown(name)} names a folder: use letters, digits, '.', '_' and '-', at most 100"
            )
        return name


@dataclass(frozen=True)
class Suite:
    """A named list of runs with the question that they answer; ratios are relative to the label `baseline`.

    `axes` are the dotted settings that vary from run to run, beside label and seed. `scale` is what the file
    says under `at_scale`, `threads` what it says of the threads of its own model. `other_model` tells that an
    option gave another one. `targets` are perplexities to reach, by protocol.
    """

    name: str
    question: str
    baseline: str | None
    runs: tuple[Run, ...]
    axes: tuple[str, ...] = ()
    scale: Written | None = None
    threads: int | None = None
    other_model: bool = False
    targets: Mapping[str, float] = field(default_factory=dict)

    def at_scale(self, overrides: Sequence[Override] = ()) -> Suite | None:
        """Return the rows on the model of `at_scale`, a run for each with one seed; None without the section.

        Rows of one label that are equal there are one. `overrides` win over the section; those that the suite
        was read with do not.
        """
        if self.scale is None:
            return None
        made = _Runs(self.scale.where)
        firsts: dict[tuple[str, str], Run] = {}
        for run in self.runs:
            firsts.setdefault((run.name, run.config_id), run)
        scaled: dict[tuple[str, str], Run] = {}
        for first in firsts.values():
            run = _overridden(_scaled(first, self.scale), overrides, made)
            if run.misfit is not None:
                raise run.misfit
            scaled.setdefault((run.name, run.config_id), run)
        return Suite(self.name, self.question, self.baseline, tuple(scaled.values()), self.axes)

    def with_seeds(self, seeds: Sequence[int]) -> Suite:
        """Return the same runs with other seeds; without any, the suite as it is."""
        if not seeds:
            return self
        for seed in seeds:
            if not 0 <= seed <= LARGEST_SEED:
                raise UserError(f"--seed {shown(seed)}: give a whole number from 0 to {LARGEST_SEED}")
            if seeds.count(seed) > 1:
                raise UserError(f"--seed {seed} is given twice; name each seed once")
        runs = _merged([_with_seed(run, seed) for run in self.runs for seed in seeds])
        if len(runs) > MOST_RUNS:
            raise UserError(
                f"--seed: {len(runs):,} runs in one suite; at most {MOST_RUNS:,}: name fewer seeds"
            )
        return replace(self, runs=runs)

    def with_overrides(self, of: Callable[[Run], Sequence[Override]]) -> Suite:
        """Return the suite with overrides of each run's own, which note what does not fit as `expand` does.

        A UserError of `of` is noted, too. Runs that become one run under one label are that run.
        """
        made, runs = _Runs(self.name), []
        for run in self.runs:
            try:
                changed = _overridden(run.written or Written({}, self.name), of(run), made)
            except UserError as error:
                changed = run.written_as(run.written, misfit=error)
            runs.append(changed if run.misfit is None else run)
        return replace(self, runs=_merged(runs))

    def checked(self) -> Suite:
        """Return the suite; UserError for an option that does not fit, and for one run under two labels.

        Options are checked against the runs that are left once some were selected. Two labels of one run
        would share a record, and one of them would be missing from every table.
        """
        for run in self.runs:
            if run.misfit is not None:
                alone = all(each.misfit is not None for each in self.runs)
                which = "" if alone else f" (row {shown(run.name)}; select others by --only)"
                raise UserError(f"{run.misfit}{which}", run.misfit.path) from run.misfit
        no_effect.refuse_shared(self.runs, of_options=True)
        known: dict[str, Run] = {}
        for run in self.runs:
            other = known.setdefault(run.run_id, run)
            if other.name == run.name:
                continue
            first, second = (f"{shown(each.name)} ({_line(each)})" for each in (other, run))
            if options := list(dict.fromkeys(run.written.options() if run.written else ())):
                raise UserError(
                    f"{' '.join(options)}: the rows {first} and {second} become one run; select one of them, "
                    f"as by --only {shlex.quote(f'label={run.name}')}"
                )
            raise UserError(
                f"the rows {first} and {second} are one run under two labels; change a setting that matters "
                "to the run in one of them, or leave it out"
            )
        return self

    def only(self, conditions: Sequence[str]) -> Suite:
        """Return the runs that match one of the conditions on each key; UserError where none does."""
        wanted: dict[str, list[Any]] = {}
        parsed = [parse_condition(text) for text in conditions]
        for key, value in parsed:
            wanted.setdefault(key, []).append(value)
        found = list(self.runs)
        for key, values in wanted.items():
            left = [run for run in found if _matches(run, key, values)]
            if not left:
                raise UserError(
                    f"--only {shown(' '.join(conditions))}: no run matches; {_values(found, key)}"
                )
            found = left
        for text, (key, value) in zip(conditions, parsed, strict=True):
            if not any(_matches(run, key, [value]) for run in found):
                raise UserError(
                    f"--only {shown(text)}: no run matches it and the other conditions; {_values(found, key)}"
                )
        return replace(self, runs=tuple(found))

    def selector(self, run: Run) -> list[str]:
        """Return conditions for `only` that single out one run."""
        axes = [f"{key}={_quoted(_value(run, key))}" for key in self.axes]
        return [f"label={_quoted(run.name)}", f"seed={run.seed}", *axes]

    def names(self, runs: Sequence[Run]) -> dict[tuple[str, str], str]:
        """Return the names of runs by label and config, each another.

        They are the labels, with what varies where several have one, and the start of the config's id where
        that does not tell them apart.
        """
        configs: dict[str, dict[str, Run]] = {}
        for run in runs:
            configs.setdefault(run.name, {})[run.config_id] = run
        found = {}
        for label, alike in configs.items():
            for config_id, run in alike.items():
                varies = self.selector(run)[2:] if len(alike) > 1 else []
                found[label, config_id] = " ".join([label, *varies])
        repeated = Counter(found.values())
        return {key: f"{name} [{key[1][:6]}]" if repeated[name] > 1 else name for key, name in found.items()}


def load(path: str | Path, overrides: Sequence[Override] = ()) -> Suite:
    """Read a suite; `overrides` win over the file and fit every run. UserError for an invalid one."""
    return expand(path, overrides).checked()


def expand(path: str | Path, overrides: Sequence[Override] = ()) -> Suite:
    """Read a suite; `overrides` of dotted keys win over the file. UserError for an invalid file.

    Sections are merged key by key: base, matrix, row, overrides. A mistake is blamed on the line of the file,
    or on the option of the command line, that it came from. Equal runs of one label are one run: a row may
    fix what the matrix varies. `Suite.checked` refuses what overrides make of the runs that are selected.
    With another model, text or method no rate counts as tuned; with another model `threads` do not hold.
    """
    check_each_once(overrides)
    other = [each.value.where for each in overrides if each.key.partition(".")[0] in _TUNED_FOR]
    if other and not any(each.key.partition(".")[0] == "tuning" for each in overrides):
        overrides = [*overrides, Override.of("tuning", None, other[0])]
    overrides = sorted(overrides, key=lambda each: not names_source(each.key, each.value))
    file = find(Path(path))
    content = strict_yaml.read(file)
    written = validate(SuiteFile, content, where=str(file))
    made = _Runs(str(file))
    runs = _merged([_overridden(settings, overrides, made) for settings in combinations(content)])
    if not runs:
        raise UserError(f"{file}: the suite has no runs; give `matrix` or `rows` at least one entry")
    no_effect.refuse_shared(runs)
    if all(override.key != "method" for override in overrides):  # else with labels of their own
        _check_baseline(written, content, runs)
        _check_scaled_labels(content, runs)
    if not any(each.key.partition(".")[0] in ("data", "evaluate") for each in overrides):
        _check_targets(content, runs)
    varied = [key for axis in written.matrix for key in settings_of(axis)]
    varied += [key for row in written.rows for key in row]
    # Where a rate comes from is no part of what is run.
    others = ("label", "method", "seed", "tuning", "tuning.suite", "tuning.grid")
    axes = tuple(key for key in dict.fromkeys(varied) if key not in others)
    other_model = any(each.key.partition(".")[0] == "model" for each in overrides)
    suite = Suite(
        name=written.suite,
        question=written.question,
        baseline=written.baseline,
        runs=runs,
        axes=axes,
        scale=_scale_of(content),
        threads=None if other_model else written.threads,
        other_model=other_model,
        targets=written.targets,
    )
    suite.at_scale()  # refuses what is wrong with it
    return suite


def _scale_of(content: Written) -> Written | None:
    """Return the section `at_scale`, None where there is none."""
    scale = content.value.get("at_scale")
    return None if scale is None or scale.value is None else scale


def _check_scaled_labels(content: Written, runs: Sequence[Run]) -> None:
    """Raise UserError for a label in the section `at_scale` that no row bears."""
    scale = _scale_of(content)
    labels = Written({}, "") if scale is None else scale.value.get("labels", Written({}, scale.where))
    for label in labels.value:
        if label not in {run.name for run in runs}:
            raise UserError(
                f"{labels.keys[label]}: at_scale: {shown(label)} names no row; {_values(runs, 'label')}"
            )


def _scaled(run: Run, scale: Written) -> Written:
    """Return the settings of a run at the scale of a section `at_scale`; nothing is scored there.

    A model that names its source there has nothing of the run's own, such as the sizes of another shape.
    """
    nothing = Written({}, scale.where)
    own = scale.value.get("labels", nothing).value.get(run.name, nothing)
    settings = run.written or nothing
    for section in (scale.value["base"], own):
        model = section.value.get("model")
        if model is not None and names_source("model", model):
            section = replace(section, value={**section.value, "model": replace(model, replaces=True)})
        settings = together(settings, section)
    empty = strict_yaml.lift({"perplexity": [], "tasks": []}, scale.where)
    settings = with_setting(settings, "evaluate", replace(empty, replaces=True), scale.where)
    return with_setting(settings, "label", Written(run.name, scale.where), scale.where)


def check_each_once(overrides: Sequence[Override]) -> None:
    """Raise UserError for a setting that two options give, or that one gives beside all of its section."""
    refuse_twice(
        (each.value.where, each.value.where, [each.value], each.key) for each in overrides if not each.yields
    )


def _overridden(settings: Written, overrides: Sequence[Override], runs: _Runs) -> Run:
    """Return a run of the file with its overrides, without those that do not fit it: it notes the mistake."""
    changed = settings
    try:
        for override in overrides:
            changed = with_setting(changed, override.key, override.value, override.value.where)
        run = runs.of(changed)
        _check_label(run, settings, overrides)
        return run
    except UserError as error:
        run = runs.of(settings)
        for override in overrides:
            with suppress(UserError):
                changed = with_setting(settings, override.key, override.value, override.value.where)
                run, settings = runs.of(changed), changed
        return run.written_as(settings, misfit=error)


def _check_label(run: Run, settings: Written, overrides: Sequence[Override]) -> None:
    """Raise UserError where an override of the method would stand under the label of the file's method."""
    given = {override.key: override.value for override in overrides}
    method, old = given.get("method"), settings.value.get("method")
    if run.label is None or method is None or old is None or "label" in given:
        return
    if old.plain() != method.plain():
        raise UserError(
            f"{method.where}: another method under the label {shown(run.label)}; give a label, too: "
            "--set label=NAME"
        )


class _Runs:
    """Makes runs of settings; those that differ in seed and repeat alone are checked once and share parts."""

    def __init__(self, where: str) -> None:
        self._validator = Validator(Run, {"method": _ANY_METHOD}, where)
        self._known: dict[tuple[tuple[str, Written | None], ...], Run] = {}

    def of(self, settings: Written) -> Run:
        """Return a run; UserError for what is wrong with its settings."""
        written = settings.value
        try:
            numbers = {name: self._validator.field(name, written[name]) for name in _NUMBERS & written.keys()}
        except UserError:
            return self._validator.validate(settings)  # refuses it, and knows the line
        rest = tuple((name, None if name in _NUMBERS else item) for name, item in written.items())
        if (known := self._known.get(rest)) is not None:
            return known.written_as(settings, **numbers)
        run = self._validator.validate(settings).written_as(settings)
        _check_rate(run, settings)
        no_effect.refuse_in_row(run)
        return self._known.setdefault(rest, run)


def _merged(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs without those that repeat another of the same label."""
    known: dict[tuple[str, str], Run] = {}
    for run in runs:
        known.setdefault((run.run_id, run.name), run)
    return tuple(known.values())


def _line(run: Run) -> str | None:
    """Return the place of a run's label, else of its method."""
    labelled = run.written is not None and "label" in run.written.value
    return run.place(["label" if labelled else "method"])


def _with_seed(run: Run, seed: int) -> Run:
    where = f"--seed {seed}"
    written = run.written and with_setting(run.written, "seed", Written(seed, where), where)
    return run.written_as(written, run.misfit, seed=seed)


def _check_baseline(written: SuiteFile, content: Written, runs: Sequence[Run]) -> None:
    """Raise UserError for a baseline that no row bears."""
    if written.baseline is not None and written.baseline not in {run.name for run in runs}:
        raise UserError(
            f"{content.place(['baseline'])}: baseline {shown(written.baseline)} names no row; "
            f"{_values(runs, 'label')}"
        )


def _check_targets(content: Written, runs: Sequence[Run]) -> None:
    """Raise UserError for a target by a protocol that no row scores in training."""
    targets = content.value.get("targets")
    scored = dict.fromkeys(name for run in runs for name in run.evaluate.in_training)
    for protocol in {} if targets is None else targets.value or {}:
        if protocol not in scored:
            known = f"scored are: {', '.join(scored)}" if scored else "set evaluate.during"
            raise UserError(
                f"{targets.keys[protocol]}: targets: no row scores {shown(protocol)} in training; {known}"
            )


def _check_rate(run: Run, written: Written) -> None:
    """Raise UserError for a learning rate that is not in the grid that it claims to be tuned on."""
    tuning = run.tuning
    if tuning is None or run.train.stage == "compress" or run.train.lr in tuning.grid:
        return
    place = written.place(["train", "lr"])
    tried = ", ".join(f"{rate:g}" for rate in tuning.grid)
    raise UserError(
        f"{place}: {run.name}: train.lr {run.train.lr:g} is none of those that suite {tuning.suite!r} tried "
        f"({tried}); choose one of them, or say that it was not tuned: --set tuning=null"
    )


def suites_folder() -> Path:
    """Return the folder of the suites that ship."""
    return ROOT / "benchmarks" / "suites"


def shipped_suites() -> dict[str, Path]:
    """Return the suites that ship by name, which is their path below the folder of suites."""
    place = suites_folder()
    files = visible(place, "*.yaml", f"{WEIGHTS}/*.yaml")
    return {file.relative_to(place).with_suffix("").as_posix(): file for file in files}


def find(path: Path) -> Path:
    """Return the file of a suite by its path or the name of one that ships; UserError for anything else."""
    if path.is_file():
        return path
    if path.exists():
        raise UserError(f"no suite {shown(str(path))}: it is there, but is no file; give a YAML file")
    shipped = shipped_suites()
    name = str(path).removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    known = nearest(name, shipped)
    raise UserError(f"no suite {shown(str(path))}: neither a file nor a suite that ships; {known}")


def read_yaml(path: Path) -> Any:
    """Return the plain values of a YAML file; UserError names file and line."""
    return strict_yaml.read(path).plain()


# ------------------------------------------------------------------------------------- what selects runs
def _matches(run: Run, key: str, values: list[Any]) -> bool:
    held = [choice.name for choice in run.method] + [run.name] if key == "method" else [_value(run, key)]
    return any(
        one == other and isinstance(one, bool) == isinstance(other, bool) for one in held for other in values
    )


def fits(run: Run, conditions: Sequence[str]) -> bool:
    """Return whether a run meets conditions as of `--only`; it does not where it has no such setting."""
    try:
        return all(_matches(run, key, [value]) for key, value in map(parse_condition, conditions))
    except UserError:
        return False


def _values(runs: Sequence[Run], key: str) -> str:
    """Return in words which values of a key there are to select by."""
    if key == "method":
        held = [choice.name for run in runs for choice in run.method]
    else:
        held = [_value(run, key) for run in runs]
    named = all(isinstance(value, str) for value in held)
    found = {value if isinstance(value, str) else json.dumps(value) for value in held}
    shortest = sorted(found)[:MOST_SHOWN]
    more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    what = "the labels are" if key == "label" else f"the values of {key} are"
    return f"{what}: {listed(shortest) if named else ', '.join(shortest)}{more}"


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _value(run: Run, key: str) -> Any:
    """Return the value of a dotted setting, of `label` or of an id; UserError for an unknown key."""
    if key in ("label", "run_id", "config_id", "tier"):
        return run.name if key == "label" else getattr(run, key)
    value: Any = run
    for part in key.split("."):  # attributes, not a dump: that leaves out options that are off
        held = value if isinstance(value, dict) else dict(value) if isinstance(value, Strict) else {}
        if part not in held:
            elsewhere = settings_named(key, Run)
            hint = did_you_mean(elsewhere) if elsewhere else "try label, method, seed or e.g. train.lr"
            raise UserError(f"no setting {key!r} to select by; {hint}")
        value = held[part]
    return _PLAIN.dump_python(value, mode="json")


def parse_override(text: str, option: str = "--set") -> Override:
    """Read `key=value` from the command line; the value is YAML, so `3`, `1e-3` and `[a, b]` are values."""
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise UserError(f"{option} {shown(text)}: write KEY=VALUE, for example train.steps=100")
    return Override(key.strip(), strict_yaml.parse(value, f"{option} {shown(text)}"))


def parse_condition(text: str) -> tuple[str, Any]:
    """Read a condition of `--only`: as an override, but names are taken by the letter unless quoted."""
    key, given, raw = text.partition("=")
    if key.strip() not in NAMES or not given:
        override = parse_override(text, option="--only")
        return override.key, override.value.plain()
    try:
        value = parse_override(text, option="--only").value.value
    except UserError:
        value = None
    return key.strip(), value if isinstance(value, str) else raw.strip()
