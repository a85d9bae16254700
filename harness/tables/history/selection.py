"""Which records and quantities of a history a person asked for: `--only KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness import suite as suites
from harness.record import Record
from harness.tables.history.series import Quantity

OWN = ("label", "seed", "repeat", "config_id", "run_id", "tier")
QUANTITY = "quantity"


@dataclass(frozen=True)
class Selection:
    """Conditions by key: of several on one key any suffices, all keys must be met."""

    wanted: dict[str, list[Any]]

    @classmethod
    def of(cls, conditions: Sequence[str]) -> Selection:
        """Read conditions; UserError where one is no KEY=VALUE."""
        wanted: dict[str, list[Any]] = {}
        for text in conditions:
            key, value = suites.parse_override(text, option="--only")
            if key in ("label", QUANTITY) and not isinstance(value, str):  # a name that happens to be YAML
                value = text.partition("=")[2].strip()
            wanted.setdefault(key, []).append(value)
        return cls(wanted)

    @property
    def quantity(self) -> str:
        """The quantities asked for, as text."""
        return " ".join(map(str, self.wanted.get(QUANTITY, ())))

    def takes(self, record: Record) -> bool:
        """Whether a record meets all conditions but those on the quantity."""
        return all(_holds(record, key, values) for key, values in self.wanted.items() if key != QUANTITY)

    def shows(self, quantity: Quantity) -> bool:
        """Whether a quantity is asked for: by its name, its key, its kind, or without any condition."""
        names = {quantity.name, quantity.key, quantity.kind}
        return QUANTITY not in self.wanted or not names.isdisjoint(map(str, self.wanted[QUANTITY]))


def _holds(record: Record, key: str, values: Sequence[Any]) -> bool:
    if key in OWN:
        return getattr(record, key) in values
    if key == "method":
        return record.label in values or not _methods(record).isdisjoint(map(str, values))
    value: Any = record.config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return value in values


def _methods(record: Record) -> set[str]:
    stack = record.config.get("method")
    parts = stack if isinstance(stack, list) else []
    return {str(part.get("name")) for part in parts if isinstance(part, dict)}
