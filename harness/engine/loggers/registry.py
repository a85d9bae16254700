"""Which loggers there are, and what each needs to be installed. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from harness.credentials import shown
from harness.engine.loggers.logger import Logger
from harness.errors import UserError, nearest, one_line
from harness.files import ABSENT, installed

#: Each logger's class, and the packages of which one must be installed; its extra has its name.
LOGGERS = {
    "tensorboard": ("tensorboard:TensorBoard", ("tensorboard",)),
    "wandb": ("wandb:WeightsAndBiases", ("wandb",)),
    "mlflow": ("mlflow:MLflow", ("mlflow-skinny", "mlflow")),
    "trackio": ("trackio:Trackio", ("trackio",)),
}


def names(text: str) -> tuple[str, ...]:
    """Return the loggers that `--log` names; UserError for one that there is not, or is not installed."""
    found = [name.strip() for name in text.split(",")]
    for name in found:
        if name not in LOGGERS:
            raise UserError(f"--log {shown(text)}: no logger {shown(name)}; {nearest(name, LOGGERS)}")
        if found.count(name) > 1:
            raise UserError(f"--log {shown(text)}: {name} is named twice; name each once")
        packages = LOGGERS[name][1]
        if all(installed(package) == ABSENT for package in packages):
            raise UserError(f"--log {name} needs the package {packages[0]}: pip install 'lorebench[{name}]'")
    return tuple(found)


def made(wanted: Sequence[str]) -> dict[str, Logger]:
    """Return loggers by name; UserError where a package cannot be loaded or lacks what it needs."""
    found: dict[str, Logger] = {}
    for name in wanted:
        module, _, kind = LOGGERS[name][0].partition(":")
        try:
            found[name] = getattr(import_module(f"harness.engine.loggers.{module}"), kind)()
        except UserError as error:
            raise UserError(f"--log {name}: {error}") from error
        except Exception as error:  # of a library, when it is imported
            raise UserError(f"--log {name}: its package cannot be loaded: {one_line(error)}") from error
    return found
