"""Many records as runs leave them, made from a committed one: for tests of what grows with their number."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import strict_json
from harness.config import Run

ROOT = Path(__file__).resolve().parents[2]
#: The suite and the row to take: it has perplexities, tasks and ranks.
SUITE, LABEL = "welore", "welore 50 %"


def template() -> dict[str, Any]:
    """The content of a record in today's form: summaries, and no value per update."""
    paths = sorted((ROOT / "results" / "raw").glob(f"cpu-*/{SUITE}/*.json"))
    records = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    content = next(record for record in records if record["label"] == LABEL)
    for name in ("loss", "lr", "grad_norm", "rank_moves"):
        content["training"].pop(name, None)
    for name in ("step_s", "refresh_step"):
        content["time"].pop(name, None)
    steps = {"count": 300, "median_s": 0.1, "p05_s": 0.09, "p95_s": 0.12}
    content["time"]["plain_steps"] = steps
    content["training"] |= {"first_loss": 4.0, "last_loss": 2.0, "lowest_loss": 1.9, "rank_updates": 2}
    return content


def write(
    folder: Path, suite: str, runs: list[Run], commits: int = 1, machine: str = "cpu-2t"
) -> Iterator[Path]:
    """Write a record of each run, below a folder per commit where there are several; yield their paths."""
    dice = random.Random(0)
    content = template()
    for number, run in enumerate(runs):
        commit = number % commits
        content |= {"run_id": run.run_id, "config_id": run.config_id, "suite": suite, "label": run.name}
        content |= {"seed": run.seed, "repeat": run.repeat, "tier": run.tier}
        content["config"] = run.model_dump(mode="json", exclude={"label"})
        content["started_at"] = (
            f"2026-{1 + commit // 28 % 12:02d}-{1 + commit % 28:02d}T10:{number % 60:02d}:00+00:00"
        )
        content["environment"]["git_sha"] = f"{commit:040x}"
        content["time"] |= {"tokens_per_s": dice.gauss(5000, 50), "wall_s": dice.gauss(60, 1)}
        for scored in content["quality"]["perplexity"].values():
            scored["perplexity"] = dice.gauss(10, 0.1)
        content["series"] = {
            "file": f"{run.run_id}.series.{number:08x}.parquet",
            "sha256": f"{number:064x}",
            "updates": content["training"]["steps"],
        }
        place = folder if commits == 1 else folder / f"{commit:04d}"
        path = place / machine / suite / f"{run.run_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(strict_json.text(content, indent=1), encoding="utf-8")
        yield path
