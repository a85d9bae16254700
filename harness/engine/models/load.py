"""Load the model that a configuration names: the embedded one, a shape, a local folder or a hub id.

What a folder holds is read by `checkpoint.py`; this module decides which weights a run starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers  # its parts are loaded when they are first used
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError
from torch import nn

from harness import files
from harness.config import EmbeddedModel, HubModel, LocalModel, ModelConfig, ShapeModel
from harness.engine.models import check as folders
from harness.engine.models import checkpoint
from harness.engine.models.quiet import quietly
from harness.engine.models.shapes import Shape, known_shape, model_folder, shape_of
from harness.engine.models.tokenizer import has_tokenizer, marks, own_tokenizer, tokenizer_of
from harness.engine.models.weights import weight_files
from harness.errors import UserError, is_out_of_memory, one_line
from harness.files import from_user
from harness.spectrum import like_llama

#: Files of a hub model that are read. Folders hold other formats, `consolidated` the weights once more.
READ = ("*.json", "*.safetensors", "*.model", "*.txt", "*.tiktoken")
NOT_READ = ("*/*", "consolidated*", "adapter_model*")
NO_TOKENIZER = (
    "this model has no tokenizer, and text or tasks need one: put its files into the model's folder, set "
    "model.tokenizer of a shape, or train on data.source random without evaluation"
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class LoadedModel:
    """A model ready for `prepare`; `tokenizer` is None for shapes and folders without one."""

    model: nn.Module
    tokenizer: Any
    name: str
    sha256: str | None


def check_model(config: ModelConfig) -> None:
    """Raise UserError when a model cannot be loaded, as far as that shows without loading its weights.

    A hub model is checked when its files are here, at loading.
    """
    if isinstance(config, ShapeModel):
        shape_of(config)
    folder = model_folder(config)
    if folder is not None and not isinstance(config, EmbeddedModel):  # that one is valid, and takes seconds
        folders.check(folder)


def check_tokenizer(config: ModelConfig) -> None:
    """Raise UserError when a model has no tokenizer for text; what the hub has shows at loading."""
    folder = model_folder(config)
    if isinstance(config, ShapeModel) and config.tokenizer:
        _borrowed_tokenizer(config.tokenizer, shape_of(config))
    elif isinstance(config, ShapeModel) or (folder is not None and not has_tokenizer(folder)):
        raise UserError(NO_TOKENIZER)


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
    return _load_folder(folder, _name(config, folder), dtype, device)


def _load_folder(folder: Path, name: str, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    model = checkpoint.load(folder, dtype).to(device)
    sha256 = files.sha256(*weight_files(folder))
    return LoadedModel(model, own_tokenizer(folder), name, sha256)


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
    return model if folder is None else folders.restructured(model, folder)


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
    described = _settled(config)
    if isinstance(config, ShapeModel):
        tokenizer, name = None, config.name
        if config.tokenizer:
            tokenizer = _borrowed_tokenizer(config.tokenizer, shape_of(config))
    elif isinstance(config, HubModel):
        tokenizer = _from_hub(transformers.AutoTokenizer, config)
        name = f"{config.id}@{config.revision}, random weights"
    else:
        folder = model_folder(config)
        assert folder is not None
        tokenizer, name = own_tokenizer(folder), f"{_name(config, folder)}, random weights"
    torch.manual_seed(seed)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(described, dtype=dtype, trust_remote_code=False)
    if isinstance(config, ShapeModel) and tokenizer is not None:
        _take_marks(model, tokenizer)
    return LoadedModel(model, tokenizer, name, None)


def _settled(config: ModelConfig) -> Any:
    """Return the configuration of a model, that of a user's folder as its tensors make it."""
    folder = model_folder(config)
    return folders.check(folder) if folder and isinstance(config, LocalModel) else architecture(config)


def _take_marks(model: Any, tokenizer: Any) -> None:
    """Name the marks of its tokenizer in the settings of a shape, where LLaMA's ids stood.

    This comes after the model was made: its embedding would not learn a row that was named as padding then.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for settings in (model.config, model.generation_config):
            setattr(settings, name, getattr(tokenizer, name))


def _borrowed_tokenizer(place: str, shape: Shape) -> Any:
    """Return the tokenizer that a shape borrows; UserError unless its ids fit the shape's vocabulary."""
    folder = from_user(place)
    if not folder.is_dir():
        raise UserError(
            f"no folder {place!r} with a tokenizer: put its files there, or give another: "
            "--set model.tokenizer=FOLDER"
        )
    tokenizer = tokenizer_of(folder)
    folders.check_vocabulary(tokenizer, shape.vocab, f"model.tokenizer {place}")
    folders.check_marks(marks(tokenizer), shape.vocab, f"model.tokenizer {place}", "the tokenizer")
    return tokenizer


def architecture(config: ModelConfig) -> Any:
    """Return the transformers configuration of a model; UserError unless it is a readable causal LM."""
    if isinstance(config, ShapeModel):
        return shape_config(config)
    if not isinstance(config, HubModel):
        folder = model_folder(config)
        assert folder is not None
        return folders.causal_config(folder)
    described = _from_hub(transformers.AutoConfig, config)
    if not folders.is_causal(described):
        raise UserError(f"hub model {config.id!r} is not a causal language model")
    return described


def context_of(config: Any) -> int | None:
    """Return the number of positions of a transformers configuration, None where it sets no limit."""
    for name in ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length"):
        found = getattr(config.get_text_config(), name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


def _from_hub(kind: Any, config: HubModel) -> Any:
    with _from_the_hub(config):
        return kind.from_pretrained(config.id, revision=config.revision, trust_remote_code=False)


@contextmanager
def _from_the_hub(config: HubModel) -> Iterator[None]:
    """Explain what goes wrong while something is read from the hub."""
    try:
        with quietly():
            yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            raise
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
    # An id without an owner is more often a mistyped folder than one of the few models that have such an id.
    here = "" if "/" in config.id else f"there is no folder {config.id!r} here, and "
    return UserError(f"{here}{name} cannot be loaded: {one_line(error)}; a folder will do: --model FOLDER")


def _load_hub(config: HubModel, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Load a hub model through the folder that the hub's library keeps of each commit.

    A branch moves, so the name in the record is the commit's.
    """
    architecture(config)
    with _from_the_hub(config):
        snapshot = Path(
            snapshot_download(
                config.id, revision=config.revision, allow_patterns=list(READ), ignore_patterns=list(NOT_READ)
            )
        )
        folders.check(snapshot)
    return _load_folder(snapshot, f"{config.id}@{snapshot.name}", dtype, device)


def _name(config: ModelConfig, folder: Path) -> str:
    return "embedded" if isinstance(config, EmbeddedModel) else folder.resolve().name
