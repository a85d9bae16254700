"""Read and write model folders, in Hugging Face format or with linears stored as factors.

Weights are read from safetensors alone, and code from a checkpoint is never run. A folder with
`factors.json` holds a model whose linears are factors (`harness.factored`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers  # its parts are loaded when they are first used
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from harness import factored, record
from harness.errors import UserError, one_line

FACTORS_MANIFEST = "factors.json"
FACTORED_WEIGHTS = "factored.safetensors"  # not `model.safetensors`: a plain loader must refuse, not guess
FORMS = ("dense", "factors")
#: What libraries raise for a folder or hub id that is not usable: missing files, contents, wrong settings.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)


def check(folder: Path) -> None:
    """Raise UserError for a folder that is missing, is no causal LM or has broken weight files."""
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}; give a folder in Hugging Face format or a hub id")
    causal_config(folder)
    for file in weight_files(folder):  # their headers; reading all of them would take minutes
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: corrupt safetensors file ({error}); copy or download it again"
            ) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder in order; UserError when it has none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "no weights at all"
        raise UserError(f"{folder}: no *.safetensors file ({other}); only safetensors are read")
    return files


def causal_config(folder: Path) -> Any:
    """Return the configuration of a folder; UserError unless it is a causal LM that transformers knows."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a Hugging Face model folder: it has no config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except UNREADABLE as error:
        raise UserError(f"{folder}: not a Hugging Face model folder: {one_line(error)}") from error
    if not is_causal(config):
        given = ", ".join(config.architectures or [type(config).__name__])
        raise UserError(
            f"{folder}: {given} is not a causal language model; give one such as LlamaForCausalLM"
        )
    return config


def is_causal(config: Any) -> bool:
    """Return whether a configuration describes a causal LM, by its architecture, else by its type."""
    named = config.architectures or []
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named)
    return causal or (not named and type(config) in transformers.AutoModelForCausalLM._model_mapping)


def load(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load the model of a folder, plain or factored."""
    if (folder / FACTORS_MANIFEST).exists():
        return _load_factored(folder, dtype)
    try:
        return whole(folder, dtype=dtype, local_files_only=True)
    except UNREADABLE as error:
        raise UserError(f"{folder}: cannot be loaded: {one_line(error)}") from error


def whole(source: str | Path, **options: Any) -> nn.Module:
    """Load a model; UserError when weights are missing, which transformers would fill with noise."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # refused below, with the names
        output_loading_info=True,
        **options,
    )
    wrong = sorted(str(key) for key in (*found["missing_keys"], *found["mismatched_keys"]))
    if wrong:
        raise UserError(
            f"{source}: weights are missing or of another shape than config.json says: {', '.join(wrong[:3])}"
        )
    return model


def _load_factored(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Rebuild the factored structure from its manifest, then load the weights; nothing is decomposed."""
    model = restructured(
        transformers.AutoModelForCausalLM.from_config(causal_config(folder), dtype=dtype), folder
    )
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    try:
        missing, unexpected = model.load_state_dict(load_file(folder / FACTORED_WEIGHTS), strict=False)
    except UNREADABLE as error:
        raise UserError(f"{folder}: weights do not fit the manifest: {one_line(error)}") from error
    if unexpected or set(missing) - tied:
        raise UserError(
            f"{folder}: weights do not fit the manifest: {sorted({*missing, *unexpected} - tied)[:3]}"
        )
    return model


def restructured(model: nn.Module, folder: Path) -> nn.Module:
    """Give a plain model the factored layers of a folder, empty; do nothing where the folder has none."""
    manifest = folder / FACTORS_MANIFEST
    return factored.restructure(model, _manifest_ranks(manifest)) if manifest.exists() else model


def _manifest_ranks(path: Path) -> dict[str, int]:
    """Return the rank of each factored layer by name."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        written_as, ranks = manifest["format"], dict(manifest["ranks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of factors: {one_line(error)}") from error
    if written_as != 1:
        raise UserError(f"{path}: format {written_as}, this lorebench reads 1")
    return ranks


def own_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, None when it has none."""
    return tokenizer_of(folder) if any(folder.glob("tokenizer*")) else None


def tokenizer_of(folder: Path) -> Any:
    """Return the tokenizer of a folder; UserError when it has none."""
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except UNREADABLE as error:
        raise UserError(f"{folder}: no tokenizer can be loaded from there: {one_line(error)}") from error


def save(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Save a model with its tokenizer: plain Hugging Face format, or factors with their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = factored.ranks(model)
    plain: Any = model  # a transformers model
    if ranks:
        tied = set(getattr(model, "all_tied_weights_keys", {}))
        state = {key: value.contiguous() for key, value in model.state_dict().items() if key not in tied}
        plain.config.save_pretrained(folder)
        save_file(state, folder / FACTORED_WEIGHTS, metadata={"format": "pt"})
        manifest = {"format": 1, "ranks": ranks}
        (folder / FACTORS_MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    else:
        plain.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def export_run(path: Path, folder: Path, form: str) -> None:
    """Write the model of a record as `dense` Hugging Face weights or as `factors` with their manifest.

    Factors are multiplied out for the dense form; nothing is decomposed. UserError when the run saved no
    weights, when it has no factors, or when the target is not empty.
    """
    if form not in FORMS:
        raise UserError(f"--form {form!r}: use dense or factors")
    found = record.read(path)
    weights = path.with_suffix("") / "weights"
    if not weights.is_dir():
        raise UserError(
            f"run {found.run_id} saved no weights; run it again with --set save_weights=true --retry"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder")
    check(weights)
    model = load(weights, getattr(torch, found.config["train"]["dtype"]))
    if form == "dense":
        factored.merge(model)
    elif not factored.ranks(model):
        raise UserError(f"run {found.run_id} has no factors; use --form dense")
    save(model, own_tokenizer(weights), folder)
