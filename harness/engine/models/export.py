"""From a run's saved weights to a folder that other programs load."""

from __future__ import annotations

from pathlib import Path

import torch

from harness import factored, record
from harness.config import LocalModel
from harness.engine.models import checkpoint
from harness.engine.models.load import load_model
from harness.errors import UserError

FORMS = ("dense", "factors")


def export_run(path: Path, folder: Path, form: str) -> None:
    """Write the model of a record as `dense` Hugging Face weights or as `factors` with their manifest.

    Factors are multiplied out for the dense form; nothing is ever decomposed here. UserError when the
    run kept no weights, when it has no factors to give, or when the target holds something already.
    """
    if form not in FORMS:
        raise UserError(f"--form {form!r}: use dense or factors")
    found = record.read(path)
    weights = path.with_suffix("") / "weights"
    if not weights.is_dir():
        raise UserError(
            f"run {found.run_id} kept no weights; run it again with --set save_weights=true --retry"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder")
    dtype = getattr(torch, found.config["train"]["dtype"])
    loaded = load_model(
        LocalModel(source="local", path=str(weights)), dtype=dtype, device=torch.device("cpu"), seed=0
    )
    if form == "dense":
        factored.merge(loaded.model)
    elif not factored.ranks(loaded.model):
        raise UserError(f"run {found.run_id} has no factors; use --form dense")
    checkpoint.save(loaded.model, loaded.tokenizer, folder)
