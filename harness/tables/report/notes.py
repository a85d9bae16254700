"""Notes beside the numbers: how runs ended, what rows share, what differs, and what makes rows doubtful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import accumulate

from harness.errors import counted
from harness.inputs import TOKENS, WEIGHTS, Inputs, changed, described, known_inputs
from harness.record import Outcome, Record
from harness.tables.aggregate import Row
from harness.tables.format import DASH, METERS, bytes_text, first, plain
from harness.tables.report.verdicts import KINDS, PERPLEXITY
from harness.tables.report.view import View, listed
from harness.tables.statistics import ALPHA, LEAST_PERPLEXITY_CHANGE, LEAST_SEEDS

#: Beside a perplexity that is worse than that of an untrained model.
MARK = "*"
#: Characters of the names of rows in a sentence; further rows are counted.
_NAMES_WIDTH = 100
_STATUS_WIDTH = 40
_MOST_WARNINGS = 20
NOTE_WIDTH = 300
READING = (
    "± is the sample standard deviation, over seeds for quality and over runs for memory and speed; "
    "without it there is one value, or all values of the column are equal. "
    f"{DASH} was not measured. (n=…) counts values where some are missing."
)


# ---------------------------------------------------------------------------------------- outcomes
def status(records: Sequence[Record]) -> str:
    """Summarise how the runs of a row ended, e.g. `ok 2/3; diverged in train 1/3`."""
    total = len(records)
    good = sum(record.outcome.status == "ok" for record in records)
    failed = [record.outcome for record in records if record.outcome.status != "ok"]
    kinds = Counter(_ending(outcome, failed) for outcome in failed)
    parts = [f"ok {good}/{total}"] if good else []
    parts += [text if total == 1 else f"{text} {count}/{total}" for text, count in kinds.items()]
    return "; ".join(parts)


def _ending(outcome: Outcome, failed: Sequence[Outcome]) -> str:
    """Describe a failure in a few words; for memory with the largest request of the same kind."""
    text: str = outcome.status
    alike = [other for other in failed if (other.status, other.phase) == (outcome.status, outcome.phase)]
    if outcome.phase and outcome.status != "unsupported":
        text += f" in {outcome.phase}"
    asked = max((other.requested_bytes or 0 for other in alike), default=0)
    if outcome.status == "oom" and asked:
        text += f", asked {bytes_text(asked)}"
    if outcome.status in ("unsupported", "error") and alike[0].message:
        text += f": {alike[0].message}"
    return plain(text, _STATUS_WIDTH)


def failures(view: View) -> list[str]:
    """Return the full messages of failures that the status cell of their row is too short for."""
    notes: list[str] = []
    for row, name in zip(view.rows, view.names, strict=True):
        cell = status(row.records)
        for outcome in (record.outcome for record in row.records):
            message = plain(outcome.message, 300)
            if outcome.status != "ok" and message and message not in cell:
                where = f" in {outcome.phase}" if outcome.phase else ""
                notes.append(f"{name}: {outcome.status}{where}: {message}")
    return list(dict.fromkeys(notes))


def warned(view: View) -> list[str]:
    """Return the warnings of runs, each once, with the rows that it is about where these are not all."""
    rows: dict[str, list[str]] = {}
    for row, name in zip(view.rows, view.names, strict=True):
        for warning in dict.fromkeys(text for record in row.records for text in record.warnings):
            rows.setdefault(plain(warning, 300), []).append(name)
    notes = [
        f"Warning: {text}" if len(names) == len(view.rows) else f"Warning for {'; '.join(names)}: {text}"
        for text, names in rows.items()
    ]
    more = len(notes) - _MOST_WARNINGS
    return notes[:_MOST_WARNINGS] + ([f"{more} more warnings are in the records."] if more > 0 else [])


# ------------------------------------------------------------------------------------------ verdicts
def answer(view: View) -> str:
    """Answer in a sentence which rows are better or worse than the baseline; empty where nothing is known."""
    found: dict[str, list[str]] = {}
    for each, name in zip(view.verdicts, view.full_names, strict=True):
        found.setdefault(each.kind or "", []).append(name)
    said = [f"{kind}: {_names(found[kind])}" for kind in KINDS if kind in found]
    return f"Against {plain(view.baseline or '')}: {'; '.join(said)}." if said else ""


def judged(view: View) -> list[str]:
    """Return how verdicts are made, where there are any."""
    if view.headline is None or not any(each.kind for each in view.verdicts):
        return []
    name = view.headline.removeprefix(PERPLEXITY)
    return [
        f"verdict: perplexity on {name} against {plain(view.baseline or '')}, paired by seed: better or "
        f"worse where the {100 - 100 * ALPHA:g} % t interval of the mean difference of ln perplexity leaves "
        f"out 0 and the change is above {100 * LEAST_PERPLEXITY_CHANGE:g} %, from n = {LEAST_SEEDS} seeds "
        f"on; each row by itself: of {1 / ALPHA:.0f} rows that equal the baseline, about one looks different"
    ]


def harmed(view: View) -> list[str]:
    """Name the rows that are worse than an untrained one, by that row and by what may be to blame."""
    found: dict[tuple[str, bool], list[str]] = {}
    for each, name in zip(view.harmed, view.full_names, strict=True):
        if each:
            found.setdefault((_names([plain(each.start.label)]), each.removed), []).append(name)
    rate = "their learning rate may be too high"
    why = {False: rate, True: f"what is removed before training may cost more than it brings, or {rate}"}
    return [
        f"{MARK} Worse than {start} without training: {_names(names)}; {why[removed]}."
        for (start, removed), names in found.items()
    ]


def untuned(view: View, command: str) -> list[str]:
    """Name the trained rows whose learning rate no grid gave; several rates of a label are such a grid."""
    rates: dict[str, set[str]] = {}
    for row in view.rows:
        rates.setdefault(row.label, set()).add(row.settings.get("train.lr", ""))
    trained = [
        (row, name)
        for row, name in zip(view.rows, view.full_names, strict=True)
        if row.settings.get("train.stage") != "compress"
        and len(rates[row.label]) == 1
        and any(key.startswith((PERPLEXITY, "accuracy_")) for key in row.stats)
    ]
    names = [name for row, name in trained if not row.records[0].config.get("tuning")]
    if not names:
        return []
    which = "all rows that train" if len(names) == len(trained) else _names(names)
    return [f"Learning rates not tuned for this model and text: {which}: {plain(command)}"]


def _names(names: Sequence[str]) -> str:
    """List names as far as there is room, those with a comma or semicolon in quotes, and count the others."""
    quoted = [f'"{name}"' if {",", ";", ":"} & set(name) else name for name in names]
    fitting = sum(end <= _NAMES_WIDTH for end in accumulate(len(name) for name in quoted))
    return ", ".join(first(quoted, max(1, fitting), "{} more"))


# ------------------------------------------------------------------------------------------ shared
def shared(view: View) -> list[str]:
    """Name what all rows have in common, a line a section: `train: stage finetune, steps 200, …`."""
    values: dict[str, set[str]] = {}
    for trait in view.traits:
        for key, value in trait.items():
            values.setdefault(key, set()).add(value)
    groups: dict[str, list[str]] = {}
    for key, (value, *others) in values.items():
        if others or key in view.varying:
            continue
        section, dot, name = key.partition(".")
        versioned = key.removesuffix(" protocol")
        if dot and section in ("model", "data", "train", "evaluate", "tuning"):
            groups.setdefault(section, []).append(f"{name} {value}")
        elif versioned != key:
            groups.setdefault("protocol versions", []).append(f"{versioned} {value}")
        elif key == "tokens":
            groups.setdefault("train", []).append(f"tokens {value}")
        else:
            text = f"memory {METERS[value]}" if key == "meter" else f"{key} {value}"
            groups.setdefault("environment", []).append(text)
    for section, fingerprint in _fingerprints(view).items():
        groups.setdefault(section, []).append(fingerprint)
    seeds = {listed(row.seeds) for row in view.rows}
    if len(seeds) == 1:
        groups["seeds"] = [seeds.pop()]
    return [f"{section}: {', '.join(parts)}" for section, parts in groups.items()]


def _fingerprints(view: View) -> dict[str, str]:
    """Return the first digits of the hash of the model and of the data, where all runs agree on it."""
    used = [record.data for record in view.records if record.data]
    hashes = {"model": {data.model_sha256 or "" for data in used}, "data": {data.sha256 for data in used}}
    alike = {section: "".join(values) for section, values in hashes.items() if len(values) == 1}
    return {section: f"sha256 {plain(value)[:12]}" for section, value in alike.items() if value}


# ------------------------------------------------------------------------------------------ inputs
def outdated(view: View, today: Mapping[str, Inputs]) -> list[str]:
    """Name the rows that have read something else than they would now, by the hashes of each run's id."""
    notes = []
    for row, name in zip(view.rows, view.names, strict=True):
        names = [each for r in row.records for each in changed(r, today.get(r.run_id, {}))]
        if names:
            what = described(list(dict.fromkeys(names)), row.records[0].config)
            notes.append(plain(f"Older inputs: {name} ran before these changed: {what}.", NOTE_WIDTH))
    return notes


def left_out(older: Sequence[Row]) -> list[str]:
    """Count the runs that are not shown, because their configuration has run on other inputs since."""
    notes = []
    for row in older:
        count = counted(len(row.records), "run")
        notes.append(
            plain(f"Not shown: {count} of {row.label!r} on inputs that have changed since.", NOTE_WIDTH)
        )
    return list(dict.fromkeys(notes))


# ------------------------------------------------------------------------------------------ doubts
def doubts(view: View) -> list[str]:
    """Note what makes rows incomparable; empty when all is equal."""
    notes = []
    apart = [key for key in view.varying if any(key in row.environment for row in view.rows)]
    if apart:
        notes.append(
            f"Rows differ in {', '.join(apart)}: no value is relative across this difference, "
            "and absolute values are not comparable."
        )
    most = sorted({seed for row in view.rows for seed in row.seeds})
    pairs = zip(view.rows, view.names, strict=True)
    fewer = [f"{name} ({listed(row.seeds)})" for row, name in pairs if row.seeds != most]
    if fewer:
        notes.append(f"Not all rows have the seeds {listed(most)}: {'; '.join(fewer)}.")
    for what, values in _origins(view.records).items():
        if len(values) > 1:
            notes.append(f"Runs differ in {what}: {'; '.join(sorted(values))}.")
    return notes + _unequal_work(view.records)


def _origins(records: Sequence[Record]) -> dict[str, set[str]]:
    """Return the values of what else may differ between runs: code, system, Python and flags."""
    known = {id(record.environment): record.environment for record in records if record.environment}.values()
    return {
        "commit": {plain(f"{e.git_sha or 'unknown'}"[:10]) for e in known},
        "uncommitted changes": {plain(f"{e.git_dirty_sha256 or 'none'}"[:10]) for e in known},
        "system": {plain(e.system) for e in known},
        "Python": {plain(e.python) for e in known},
        "flags": {plain(", ".join(f"{k} {v}" for k, v in sorted(e.flags.items()))) or "none" for e in known},
    }


def _unequal_work(records: Sequence[Record]) -> list[str]:
    """Note equal settings with different content: other tokens, weights or texts under one name."""
    texts: dict[int, str] = {}
    seen = dict.fromkeys(each for record in records for each in _work(record, texts))
    contents = Counter((what, group) for what, group, _ in seen)
    doubtful = dict.fromkeys(what for (what, _), count in contents.items() if count > 1)
    return [plain(f"The {what} is not the same in all runs: do not compare them.") for what in doubtful]


def _work(record: Record, texts: dict[int, str]) -> Iterator[tuple[str, Hashable, Hashable]]:
    """Yield what a run has read: what it is, what its content should follow from, and a sign of its content.

    `texts` keeps the texts of sections, which many records share.
    """
    sections = [record.config.get(key) for key in ("model", "data", "evaluate")]
    for section in sections:
        if id(section) not in texts:
            texts[id(section)] = str(section)
    model, data, evaluate = (texts[id(section)] for section in sections)
    if record.data:
        yield "training data", (data, model, record.seed), record.data.sha256
        yield "base model", (model, record.seed), record.data.model_sha256
    for name, value in known_inputs(record).items():
        if name not in (WEIGHTS, TOKENS):  # as above
            yield name, (model, data, evaluate), value
    if record.quality:
        for name, score in record.quality.perplexity.items():
            yield f"text of {name}", model, (score.text, score.context, score.tokens)
        for name, task in record.quality.tasks.items():
            yield f"documents of {name}", task.version, task.documents
