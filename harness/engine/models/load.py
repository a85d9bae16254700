"""Load the model that a configuration names: the embedded one, a shape, a local folder or a hub id.

What a folder holds is read by `checkpoint.py`; this module decides which weights a run starts from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers  # its parts are loaded when they are first used
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError
from torch import nn

from harness import files
from harness.config import EmbeddedModel, HubModel, ModelConfig, ShapeModel
from harness.engine.models import checkpoint
from harness.engine.models.shapes import known_shape, model_folder, shape_of
from harness.errors import UserError, one_line
from harness.files import from_user
from harness.spectrum import like_llama

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class LoadedModel:
    """A model ready for `prepare`; `tokenizer` is None for shapes and folders without one."""

    model: nn.Module
    tokenizer: Any
    name: str
    sha256: str | None


def check_model(config: ModelConfig) -> None:
    """Raise UserError when a model cannot be loaded, as far as that shows without loading its weights."""
    if isinstance(config, ShapeModel):
        shape_of(config)
    folder = model_folder(config)
    if folder is not None and not isinstance(config, EmbeddedModel):  # that one is valid, and takes seconds
        checkpoint.check(folder)


def load_model(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, seed: int, scratch: bool = False
) -> LoadedModel:
    """Load a causal LM onto `device`; a shape, or any model from `scratch`, is initialised from `seed`."""
    check_model(config)
    if scratch or isinstance(config, ShapeModel):
        loaded = _load_random(config, dtype, device, seed)
        if isinstance(config, ShapeModel) and config.spectrum:
            apply_spectrum(loaded.model, seed)
        return loaded
    if isinstance(config, HubModel):
        return _load_hub(config, dtype, device)
    folder = model_folder(config)
    assert folder is not None
    model = checkpoint.load(folder, dtype).to(device)
    sha256 = files.sha256(*checkpoint.weight_files(folder))
    return LoadedModel(model, checkpoint.own_tokenizer(folder), _name(config, folder), sha256)


def build_empty(config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """Build the structure of a model without reading its weights; the values are arbitrary.

    Meant for fake tensors, which hold no values: elsewhere it takes as much memory as the model.
    """
    config = known_shape(config)
    if isinstance(config, ShapeModel):
        config = config.model_copy(update={"tokenizer": None})  # it need not be here yet
    check_model(config)
    model = _load_random(config, dtype, torch.device("cpu"), seed=0).model
    folder = model_folder(config)
    return model if folder is None else checkpoint.restructured(model, folder)


def shape_config(model: ShapeModel | str) -> transformers.LlamaConfig:
    """Return the transformers configuration of a shape, given as such or by name."""
    if isinstance(model, str):
        model = ShapeModel(source="shape", name=model)
    return transformers.LlamaConfig(**shape_of(model).config(), use_cache=False)


@torch.no_grad()
def apply_spectrum(model: nn.Module, seed: int) -> None:
    """Replace every linear weight by U diag(s) V^T: U and V random, s as in LLaMA, the norm unchanged.

    The output head keeps its weights, like the embedding. Works in float32 on the device of each weight.
    Source of s: `harness.spectrum`.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    }
    generators: dict[torch.device, torch.Generator] = {}
    for name, layer in layers.items():
        weight, device = layer.weight, layer.weight.device
        size = min(weight.shape)
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        left, right = (
            torch.linalg.qr(torch.randn(long, size, generator=generator, device=device)).Q
            for long in weight.shape
        )
        values = torch.tensor(like_llama(size, name, layers), device=device)
        values *= weight.float().norm() / values.norm()
        weight.copy_((left * values) @ right.T)


def _load_random(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int) -> LoadedModel:
    """Initialise the architecture of a shape, or of a model whose weights are not read, at random."""
    described = architecture(config)
    if isinstance(config, ShapeModel):
        tokenizer, name = _borrowed_tokenizer(config.tokenizer) if config.tokenizer else None, config.name
    elif isinstance(config, HubModel):
        tokenizer = _from_hub(transformers.AutoTokenizer, config)
        name = f"{config.id}@{config.revision}, random weights"
    else:
        folder = model_folder(config)
        assert folder is not None
        tokenizer, name = checkpoint.own_tokenizer(folder), f"{_name(config, folder)}, random weights"
    torch.manual_seed(seed)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(described, dtype=dtype)
    return LoadedModel(model, tokenizer, name, None)


def _borrowed_tokenizer(place: str) -> Any:
    folder = from_user(place)
    if not folder.is_dir():
        raise UserError(
            f"no folder {place!r} with a tokenizer: put its files there, or give another: "
            "--set model.tokenizer=FOLDER"
        )
    return checkpoint.tokenizer_of(folder)


def architecture(config: ModelConfig) -> Any:
    """Return the transformers configuration of a model; UserError unless it is a readable causal LM."""
    if isinstance(config, ShapeModel):
        return shape_config(config)
    if not isinstance(config, HubModel):
        folder = model_folder(config)
        assert folder is not None
        return checkpoint.causal_config(folder)
    described = _from_hub(transformers.AutoConfig, config)
    if not checkpoint.is_causal(described):
        raise UserError(f"hub model {config.id!r} is not a causal language model")
    return described


def _from_hub(kind: Any, config: HubModel) -> Any:
    try:
        return kind.from_pretrained(config.id, revision=config.revision, trust_remote_code=False)
    except checkpoint.UNREADABLE as error:
        raise _hub_error(config, error) from error


def _hub_error(config: HubModel, error: BaseException) -> UserError:
    """Explain why a hub id cannot be loaded and what to do; for a gated one, where to request access."""
    name = f"hub model {config.id!r} at {config.revision!r}"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, GatedRepoError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return UserError(
            f"{name} is gated and you have no access here: ask for it at https://huggingface.co/{config.id} "
            "and log in with `hf auth login`, or give a folder with the weights: --model FOLDER"
        )
    return UserError(f"{name} cannot be loaded: {one_line(error)}; a folder will do, too: --model FOLDER")


def _load_hub(config: HubModel, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    architecture(config)
    tokenizer = _from_hub(transformers.AutoTokenizer, config)
    try:
        model: Any = checkpoint.whole(config.id, dtype=dtype, revision=config.revision)
    except checkpoint.UNREADABLE as error:
        raise _hub_error(config, error) from error
    # The library stores each commit in its own folder: a branch moves, the name in the record must not.
    cached = try_to_load_from_cache(config.id, "config.json", revision=config.revision)
    if not isinstance(cached, str):
        return LoadedModel(model.to(device), tokenizer, f"{config.id}@{config.revision}", None)
    snapshot = Path(cached).parent
    sha256 = files.sha256(*checkpoint.weight_files(snapshot))
    return LoadedModel(model.to(device), tokenizer, f"{config.id}@{snapshot.name}", sha256)


def _name(config: ModelConfig, folder: Path) -> str:
    return "embedded" if isinstance(config, EmbeddedModel) else folder.resolve().name
