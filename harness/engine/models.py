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
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from harness import factored
from harness.config import EmbeddedModel, HubModel, LocalModel, ModelConfig, ShapeModel
from harness.engine.shapes import SHAPES
from harness.errors import UserError, nearest, one_line

FACTORS_MANIFEST = "factors.json"
FACTORED_WEIGHTS = "factored.safetensors"  # not `model.safetensors`: a plain loader must refuse, not guess
#: How a library says that a folder or a hub id holds nothing of use: files, contents, values of a setting.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)
EMBEDDED_BASE = Path(__file__).resolve().parents[2] / "benchmarks" / "embedded" / "base"


@dataclass
class Loaded:
    """A model ready for `prepare`; `tokenizer` is None for shapes and folders without one."""

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
    tokenizer = _tokenizer(folder) if any(folder.glob("tokenizer*")) else None
    return Loaded(model.to(device), tokenizer, name, sha256_of_files(_weight_files(folder)))


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
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a Hugging Face model folder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except UNREADABLE as error:
        raise UserError(f"{folder}: not a Hugging Face model folder: {one_line(error)}") from error
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
        return _whole(folder, dtype=dtype, local_files_only=True)
    except UNREADABLE as error:
        raise UserError(f"{folder}: cannot be loaded: {one_line(error)}") from error


def _whole(source: str | Path, **options: Any) -> nn.Module:
    """The model, with every weight read: transformers would fill those that are missing with noise."""
    model, found = AutoModelForCausalLM.from_pretrained(
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
    """Rebuild the factored structure from its manifest, then load the weights: no decomposition is needed."""
    model = AutoModelForCausalLM.from_config(_causal_config(folder), dtype=dtype)
    factored.restructure(model, _manifest_ranks(folder / FACTORS_MANIFEST))
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


def _manifest_ranks(path: Path) -> dict[str, int]:
    """The rank of each factored layer by its name."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        written_as, ranks = manifest["format"], dict(manifest["ranks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of factors: {one_line(error)}") from error
    if written_as != 1:
        raise UserError(f"{path}: format {written_as}, this lorebench reads 1")
    return ranks


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
        model: Any = _whole(config.id, dtype=dtype, revision=config.revision)
        tokenizer = AutoTokenizer.from_pretrained(config.id, **options)
    except UNREADABLE as error:
        raise UserError(
            f"hub model {config.id!r} at {config.revision!r} cannot be loaded: {one_line(error)}"
        ) from error
    # The library keeps each commit in a folder of its own: a branch moves, the name in the record must not.
    cached = try_to_load_from_cache(config.id, "config.json", revision=config.revision)
    if not isinstance(cached, str):
        return Loaded(model.to(device), tokenizer, f"{config.id}@{config.revision}", None)
    snapshot = Path(cached).parent
    sha256 = sha256_of_files(_weight_files(snapshot))
    return Loaded(model.to(device), tokenizer, f"{config.id}@{snapshot.name}", sha256)


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except UNREADABLE as error:
        raise UserError(f"{folder}: no tokenizer can be loaded from there: {one_line(error)}") from error
