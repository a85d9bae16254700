"""No setting is accepted and ignored: each one is read by code that acts on it."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache

import pytest
import yaml

from harness import config
from harness.config import Strict
from harness.plugins import find
from harness.registry import REGISTRY
from tests.docs.sources import document, modules, of

#: What variables and attributes that hold a section are called: `run.train.lr` is read from `train`.
HOLDERS = {
    "Model": {"config", "model"},
    "Data": {"config", "data", "source"},
    "OptimConfig": {"optim", "config", "train"},
    "TrainConfig": {"config", "train"},
    "PerplexityConfig": {"config", "item", "protocol"},
    "EvaluateConfig": {"wanted", "evaluate"},
    "CheckpointConfig": {"config"},
    "DuringConfig": {"during"},
    "CalibrationConfig": {"wanted", "calibration"},
    "TuningConfig": {"tuning"},
    "MethodChoice": {"choice"},
    "Run": {"run"},
}
SECTIONS = [
    value
    for value in vars(config).values()
    if inspect.isclass(value) and issubclass(value, Strict) and value is not Strict
]
#: Without the tags by which a class is chosen, and without the label, which the property `name` reads.
SETTINGS = [
    (section.__name__, name)
    for section in SECTIONS
    for name in section.__annotations__
    if name != "source" and not name.startswith("_") and (section.__name__, name) != ("Run", "label")
]
METHODS = [(name, option) for name in sorted(REGISTRY) for option in find(name).Config.model_fields]
ELSEWHERE = [module for module in of("harness", "methods") if module.name != "harness.config"]


@cache
def reads(module: str) -> set[tuple[str, str]]:
    """The attributes that a module reads, each after the last name of what it is read from."""
    found = set()
    for node in ast.walk(modules()[module].tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            holder, name = node.value, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            holder, name = node.args[0], str(getattr(node.args[1], "value", ""))
        else:
            continue
        found.add((ast.unparse(holder).rpartition(".")[2], name))
    return found


@pytest.mark.parametrize(("section", "name"), SETTINGS)
def test_every_setting_is_read(section: str, name: str) -> None:
    kind = next(kind for kind in HOLDERS if section.endswith(kind))
    wanted = {(holder, name) for holder in HOLDERS[kind]}
    assert any(wanted & reads(module.name) for module in ELSEWHERE)


@pytest.mark.parametrize(("method", "option"), METHODS)
def test_every_option_of_a_method_is_read(method: str, option: str) -> None:
    classes = {cls.__module__ for cls in find(method).__mro__}
    assert any(("config", option) in reads(module.name) for module in of("methods") if module.name in classes)


def described() -> dict[str, list[tuple[str, str]]]:
    """The settings of docs/settings.md by the heading above them: name without its section, and default."""
    found: dict[str, list[tuple[str, str]]] = {}
    heading = ""
    for line in document("docs/settings.md").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").replace("`", "")
        elif row := re.match(r"\| `([\w.]+)` \| (?:`(.*?)`|required) \| .*\w.* \|$", line):
            found.setdefault(heading, []).append((row[1].rpartition(".")[2], row[2] or "required"))
    return found


def defaults(section: type[Strict]) -> list[tuple[str, str]]:
    """The settings of a section with their defaults as YAML."""
    return [
        (name, "required" if field.is_required() else as_yaml(field.default))
        for name, field in section.model_fields.items()
        if name not in SECTION_NAMES or field.default is None
    ]


def as_yaml(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).partition("\n")[0]


SECTION_NAMES = {"source", "model", "data", "train", "evaluate"}
SOURCES = {
    f"{kind}.source: {section.model_fields['source'].annotation.__args__[0]}": section
    for kind in ("model", "data")
    for section in SECTIONS
    if section.__name__.lower().endswith(kind) and len(section.model_fields) > 1
}
PLACES = {
    "Run": config.Run,
    "Training": config.TrainConfig,
    "Checkpoints": config.CheckpointConfig,
    "Calibration": config.CalibrationConfig,
    "Evaluation": config.EvaluateConfig,
    "In the middle of a training": config.DuringConfig,
    "Protocol options": config.PerplexityConfig,
    **SOURCES,
}


def test_the_page_on_settings_has_a_table_for_every_section() -> None:
    assert described().keys() == PLACES.keys()


@pytest.mark.parametrize("place", PLACES)
def test_the_page_on_settings_lists_every_setting_with_its_default(place: str) -> None:
    assert sorted(described()[place]) == sorted(defaults(PLACES[place]))
