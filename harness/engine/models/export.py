"""Write the trained model of a finished run for other programs."""

from __future__ import annotations

from pathlib import Path

from harness import record
from harness.errors import UserError, refusing

FORMS = ("dense", "factors")


def export_run(path: Path, folder: Path, form: str) -> str:
    """Write the model of a record as `dense` Hugging Face weights or as `factors` with their manifest.

    Returns a warning where the model that was measured had more than its weights, and where transformers
    alone reads text with other ids than the run did, else no text.
    Factors are multiplied out for the dense form; nothing is decomposed. UserError when the run saved no
    weights, when they are damaged, when it has no factors, or when the target is not empty.
    """
    if form not in FORMS:
        raise UserError(f"--format {form!r}: use dense or factors")
    found = record.read(path)
    weights = path.with_suffix("") / "weights"
    if not weights.is_dir():
        raise UserError(
            f"run {found.run_id} saved no weights; run it again with --set save_weights=true --retry"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder")
    import torch  # takes longer than all that may be refused above

    from harness import factored
    from harness.engine.models.check import check
    from harness.engine.models.checkpoint import NOT_WHOLE, load, save
    from harness.engine.models.tokenizer import other_for_transformers, own_tokenizer

    check(weights)
    model = load(weights, getattr(torch, found.config["train"]["dtype"]))
    if form == "dense":
        factored.merge(model)
    elif not factored.ranks(model):
        raise UserError(f"run {found.run_id} has no factors; use --format dense")
    with refusing(f"{folder}: the model could not be written there"):
        save(model, tokenizer := own_tokenizer(weights), folder)
    warnings = [warning for warning in found.warnings if warning.startswith(NOT_WHOLE)]
    if tokenizer is not None:
        warnings.append(other_for_transformers(folder, tokenizer))
    return "; ".join(filter(None, warnings))
