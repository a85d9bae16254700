"""Where a model comes from: the embedded checkpoint, a shape, a local folder or a hub id.

Weights are read from safetensors alone, and code from a checkpoint is never run. A folder with
`factors.json` holds a model whose linears are stored as factors (harness.factored).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from harness import factored
from harness.config import EmbeddedModel, HubModel, LocalModel, ModelConfig, ShapeModel
from harness.engine.shapes import SHAPES
from harness.errors import UserError, nearest

FACTORS_MANIFEST = "factors.json"
FACTORED_WEIGHTS = "factored.safetensors"  # not `model.safetensors`: a plain loader must refuse, not guess
EMBEDDED_BASE = Path(__file__).resolve().parents[2] / "benchmarks" / "embedded" / "base"


@dataclass
class Loaded:
    """A model ready for `prepare`; `tokenizer` is None for shapes without one."""

    model: nn.Module
    tokenizer: Any
    name: str
    sha256: str | None


def check(config: ModelConfig) -> None:
    """Raise UserError when a model cannot be loaded, as far as that shows without loading its weights."""
    if isinstance(config, ShapeModel) and config.name not in SHAPES:
        raise UserError(f"no shape {config.name!r}; {nearest(config.name, SHAPES)}")
    folder = _folder(config)
    if folder is None:
        return
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}; give a folder in Hugging Face format or a hub id")
    _causal_config(folder)
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: corrupt safetensors file ({error}); copy or download it again"
            ) from error


def load(config: ModelConfig, *, dtype: torch.dtype, device: torch.device, seed: int) -> Loaded:
    """Load a causal LM onto `device`; random shapes are initialised from `seed`."""
    check(config)
    if isinstance(config, ShapeModel):
        return _load_shape(config, dtype, device, seed)
    if isinstance(config, HubModel):
        return _load_hub(config, dtype, device)
    folder = _folder(config)
    assert folder is not None
    model = (
        _load_factored(folder, dtype) if (folder / FACTORS_MANIFEST).exists() else _load_plain(folder, dtype)
    )
    name = "embedded" if isinstance(config, EmbeddedModel) else folder.resolve().name
    return Loaded(model.to(device), _tokenizer(folder), name, sha256_of_files(_weight_files(folder)))


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


def shape_config(name: str) -> LlamaConfig:
    """The transformers configuration of a named shape."""
    return LlamaConfig(**SHAPES[name].config(), use_cache=False)


def sha256_of_files(files: list[Path]) -> str:
    """One hash over the contents of several files in the given order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _folder(config: ModelConfig) -> Path | None:
    if isinstance(config, EmbeddedModel):
        return EMBEDDED_BASE
    return Path(config.path).expanduser() if isinstance(config, LocalModel) else None


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "no weights at all"
        raise UserError(f"{folder}: no *.safetensors file ({other}); only safetensors are read")
    return files


def _causal_config(folder: Path) -> Any:
    """The folder's configuration; UserError unless it is a causal LM that transformers knows."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{folder}: not a Hugging Face model folder: {reason}") from error
    if not is_causal(config):
        given = ", ".join(config.architectures or [type(config).__name__])
        raise UserError(
            f"{folder}: {given} is not a causal language model; give one such as LlamaForCausalLM"
        )
    return config


def is_causal(config: Any) -> bool:
    """Whether a configuration describes a causal LM: by its named architecture, else by its type."""
    named = config.architectures or []
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named)
    return causal or (not named and type(config) in AutoModelForCausalLM._model_mapping)


def _load_plain(folder: Path, dtype: torch.dtype) -> nn.Module:
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded: {str(error).strip().splitlines()[0][:300]}") from error


def _load_factored(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Rebuild the factored structure from its manifest, then load the weights: no decomposition is needed."""
    manifest = json.loads((folder / FACTORS_MANIFEST).read_text())
    if manifest.get("format") != 1:
        raise UserError(
            f"{folder / FACTORS_MANIFEST}: format {manifest.get('format')}, this lorebench reads 1"
        )
    model = AutoModelForCausalLM.from_config(_causal_config(folder), dtype=dtype)
    factored.restructure(model, manifest["ranks"])
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    missing, unexpected = model.load_state_dict(load_file(folder / FACTORED_WEIGHTS), strict=False)
    if unexpected or set(missing) - tied:
        raise UserError(
            f"{folder}: weights do not fit the manifest: {sorted({*missing, *unexpected} - tied)[:3]}"
        )
    return model


def _load_shape(config: ShapeModel, dtype: torch.dtype, device: torch.device, seed: int) -> Loaded:
    torch.manual_seed(seed)
    with device:
        model = LlamaForCausalLM(shape_config(config.name)).to(dtype)
    tokenizer = _tokenizer(Path(config.tokenizer)) if config.tokenizer else None
    return Loaded(model, tokenizer, config.name, None)


def _load_hub(config: HubModel, dtype: torch.dtype, device: torch.device) -> Loaded:
    options = {"revision": config.revision, "trust_remote_code": False}
    try:
        described = AutoConfig.from_pretrained(config.id, **options)
        if not is_causal(described):
            raise UserError(f"hub model {config.id!r} is not a causal language model")
        model = AutoModelForCausalLM.from_pretrained(config.id, dtype=dtype, use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(config.id, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise UserError(
            f"hub model {config.id!r} at {config.revision!r} cannot be loaded: {reason}"
        ) from error
    commit = getattr(model.config, "_commit_hash", None) or config.revision
    return Loaded(model.to(device), tokenizer, f"{config.id}@{commit}", None)


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{folder}: no tokenizer can be loaded from there: {reason}") from error
