"""Load and save model folders, in Hugging Face format or with linears stored as factors.

Weights are read from safetensors alone, and code from a checkpoint is never run. A folder with
`factors.json` holds a model whose linears are factors (`harness.factored`). What a folder must be like to be
loaded is decided by `check.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers  # its parts are loaded when they are first used
from safetensors.torch import load_file, save_file
from torch import nn

from harness import factored, strict_json
from harness.engine.models import check as folders
from harness.engine.models.quiet import quietly
from harness.engine.models.weights import FACTORED_WEIGHTS, FACTORS_MANIFEST, opened
from harness.errors import UserError, refusing

#: Names of tensors that a message lists.
SHOWN = 3
#: How a warning begins about a model of which `save` cannot write all.
NOT_WHOLE = "the saved weights are not the whole model"


def load(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load the model of a folder, plain or factored; UserError for a folder that `check` refuses."""
    config = folders.check(folder)
    with refusing(f"{folder}: cannot be loaded"):
        if (folder / FACTORS_MANIFEST).exists():
            model = _load_factored(folder, config, dtype)
        else:
            with quietly(), opened(folder) as stored:
                tensors = {
                    name: tensor
                    for name, tensor in stored.items()
                    if not folders.harmless(name, tensor.get_shape())
                }
                model, report = folders.assembled(config, tensors, dtype)
            folders.refuse_report(folder, report)
        if (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    model.config.name_or_path = str(folder)
    return model


def _load_factored(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """Rebuild the factored structure from its manifest, then load the weights; nothing is decomposed."""
    model = folders.restructured(
        transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False), folder
    )
    state = load_file(folder / FACTORED_WEIGHTS)
    folders.check_state(folder, model, state)
    model.load_state_dict(state, strict=False)  # a tied head has no tensor of its own
    return model.eval()


@torch.no_grad()
def refuse_not_finite(model: nn.Module, name: str) -> None:
    """Raise UserError that names the weights which hold NaN or infinite values; takes no memory."""
    tensors = dict(model.named_parameters())
    # The largest magnitude is NaN or infinite exactly where a value is, in every dtype, unlike a sum.
    largest = [torch.linalg.vector_norm(tensor, ord=float("inf")) for tensor in tensors.values()]
    wrong = [key for key, value in zip(tensors, largest, strict=True) if not value.isfinite()]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(
            f"{name}: weights hold NaN or infinite values: {', '.join(wrong[:SHOWN])}{more}; "
            "copy or download the model again, or give an earlier checkpoint"
        )


def saved_bytes(model: nn.Module) -> int:
    """Return the bytes of the weights of a model as `save` writes them, before any are factored."""
    return sum(tensor.nbytes for tensor in folders.stored_state(model).values())


def not_saved(model: nn.Module, code: bool = True) -> str:
    """Return what a model has beyond its weights and config, which `save` leaves out; empty for none.

    Compares with the empty model of its config, factored layers as in the model. Only what runs forward
    counts; hooks of transformers, by which it collects hidden states, change nothing. Without `code`, hooks
    and replaced functions are passed over: they may only observe.
    """
    structure = factored.ranks(model), factored.biased(model)
    plain = factored.restructure(folders.empty_model(model.config), *structure)
    kinds, mine = (dict(each.named_modules(remove_duplicate=False)) for each in (plain, model))
    for name, layer in mine.items():
        where = name or "the model itself"
        hooks = [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]
        own = [hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith("transformers.")]
        if code and own:
            return f"a forward hook at {where}"
        if code and "forward" in vars(layer):
            return f"a replaced forward at {where}"
        if type(layer) is not type(kinds.get(name)):
            wanted = f"a {type(kinds[name]).__name__} belongs" if name in kinds else "nothing belongs"
            return f"a {type(layer).__name__} at {where}, where {wanted}"
    shapes, found = ({key: t.shape for key, t in each.state_dict().items()} for each in (plain, model))
    other = sorted(name for name in shapes | found if shapes.get(name) != found.get(name))
    return f"other tensors than its config says, such as {other[0]}" if other else ""


def reloaded(model: Any) -> Any:
    """Return what `save` and `load` make of a plain model, without writing it."""
    _settle_tying(model)
    config = type(model.config).from_dict(model.config.to_dict())
    with quietly():
        return folders.assembled(config, folders.stored_state(model), model.dtype)[0]


def save(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Save a model with its tokenizer: plain Hugging Face format, or factors with their manifest.

    The folder is there when all of it is written, or as before after an error (OSError, SafetensorError).
    """
    plain: Any = model  # a transformers model
    _settle_tying(plain)
    with _complete(folder) as temporary:
        ranks, biased = factored.ranks(model), factored.biased(model)
        if ranks:
            state = {key: value.contiguous() for key, value in folders.stored_state(model).items()}
            plain.config.save_pretrained(temporary)
            save_file(state, temporary / FACTORED_WEIGHTS, metadata={"format": "pt"})
            manifest = {"format": 1, "ranks": ranks, **({"biased": biased} if biased else {})}
            (temporary / FACTORS_MANIFEST).write_text(strict_json.text(manifest, indent=1))
            if getattr(plain, "generation_config", None) is not None:
                plain.generation_config.to_json_file(temporary / "generation_config.json")
        else:
            _save_plain(plain, temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)


def _settle_tying(model: Any) -> None:
    """Say in the config whether head and embedding are one tensor, as it is now, not as it was said."""
    head, embedding = (getattr(model, f"get_{end}put_embeddings", lambda: None)() for end in ("out", "in"))
    weights = [getattr(layer, "weight", None) for layer in (head, embedding)]
    if None in (head, embedding):
        return
    folders.tie(model.config, weights[0] is not None and weights[0] is weights[1])


def _save_plain(model: Any, folder: Path) -> None:
    """Save in plain format, even with settings for generation that transformers would not write."""
    given = getattr(model, "generation_config", None)
    try:
        if given is not None:
            given.validate(strict=True)
    except ValueError:
        model.generation_config = transformers.GenerationConfig()
    model.save_pretrained(folder)
    if given is not None and given is not model.generation_config:
        given.to_json_file(folder / "generation_config.json")
        model.generation_config = given


@contextmanager
def _complete(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` that takes its place when the block has ended without an error."""
    temporary, old = (folder.with_name(f".{folder.name}.{what}") for what in ("unfinished", "replaced"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if old.is_dir():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
