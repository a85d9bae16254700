"""The command `lorebench devices`: list the device profiles of speed forecasts, or measure this machine's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from harness import files
from harness.cli import options, show
from harness.errors import UserError

#: The fields of a profile that are curves, and those that hold several by name.
CURVES = ("bandwidth", "new_memory")
BY_NAME = ("products", "attention", "attention_backward", "decompositions")
LONGEST_S = 3600.0


def devices(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine, about a minute, and write its profile.")
    ] = False,
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write the profile; by default MACHINE.yaml in this folder."
        ),
    ] = None,
) -> None:
    """List the devices that `plan --on` knows, or measure this one."""
    if not calibrate:
        if out is not None:
            raise UserError("--out goes with --calibrate; add it")
        show.table(*_listed())
        return
    if out is not None:
        options.check_yaml(out)
    answer = _calibrated(device)
    path = out or Path(f"{answer['machine']}.yaml")
    files.replace(path, as_yaml(answer["profile"]))
    typer.echo(f"profile: {path}; use it: lorebench plan SUITE --on {path}")


def _listed() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the head and the rows of the list."""
    from harness.devices import names, profile

    rows = []
    for name in names():
        found = profile(name)
        peaks = [
            f"{found.peak[dtype]:.0f}" if dtype in found.peak else "-" for dtype in ("bfloat16", "float32")
        ]
        rows.append(
            (name, found.title, f"{found.memory_gib:g}", *peaks, f"{max(v for _, v in found.bandwidth):.0f}")
        )
    return ("name", "device", "GiB", "bfloat16 TFLOP/s", "float32 TFLOP/s", "GB/s"), rows


def _calibrated(device: str) -> Mapping[str, Any]:
    """Return what a worker measured; it says on standard error what it is at."""
    from harness.engine.process import child

    found: dict[str, Any] = {}

    def on_event(event: Mapping[str, Any]) -> None:
        found.update(event)
        if "measuring" in event:
            show.say(f"measuring {event['measuring']}")

    said = child.ask("calibrate", {"device": device}, on_event, LONGEST_S)
    if "profile" not in found:
        raise UserError(str(found.get("error") or said))
    return found


def as_yaml(profile: Mapping[str, Any]) -> str:
    """Return a profile as YAML, each curve on one line."""
    import yaml

    def curve(points: Any) -> Any:
        return [[size, float(f"{rate:.4g}")] for size, rate in points]

    rounded = {
        key: {name: curve(points) for name, points in value.items()}
        if key in BY_NAME
        else curve(value)
        if key in CURVES
        else value
        for key, value in profile.items()
    }
    return str(
        yaml.safe_dump(rounded, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    )
