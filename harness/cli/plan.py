"""The command `lorebench plan`: forecast the memory of a suite's runs without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options, show
from harness.errors import UserError


def plan(
    suite: options.SuiteName,
    model: options.ModelOption = None,
    data: options.DataOption = None,
    settings: options.SetOption = None,
    only: options.OnlyOption = None,
    seed: options.Seeds = None,
    device: options.Device = "auto",
    results: options.Results = Path("runs"),
    device_gib: options.DeviceGib = None,
    reserve_gib: options.ReserveGib = "1",
    max_batch: Annotated[bool, typer.Option("--max-batch", help="Find the largest batch that fits.")] = False,
    max_seq: Annotated[bool, typer.Option("--max-seq", help="Find the largest length that fits.")] = False,
    ranks: options.RanksOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the plan as JSON.")
    ] = None,
) -> None:
    """Predict the memory of a suite's runs without running them or reading any weights."""
    import json

    from harness import forecast
    from harness.cli import planning
    from harness.tables.plan import plan as values
    from harness.tables.plan import tables

    sizes = options.sizes(device_gib or (), reserve_gib)
    searched = [s for s, on in zip(forecast.SETTINGS, (max_batch, max_seq), strict=True) if on]
    if searched and not device_gib:
        option = "--max-batch" if max_batch else "--max-seq"
        raise UserError(f"{option} needs the size of a device: add for example --device-gib 24")
    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise UserError(f"--json {json_file}: no file can be written there; choose another")
    chosen = options.load(suite, model, data, settings, only, seed)
    made = planning.plan(chosen, device, results, sizes, searched, ranks, options.cache_folder(), _say)
    show.show(tables.build(made))
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(values.as_dict(made), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {json_file}: cannot be written: {error.strerror}") from error


def _say(text: str) -> None:
    typer.echo(text, err=True)
