"""Check a model folder against its own config before anything starts: nothing is guessed, nothing left out.

Only headers of weight files are read, so that the folder of a large model takes about a second. What shows in
the values alone (not a number, infinite) is checked when they have been loaded.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers  # its parts are loaded when they are first used
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from harness import factored, strict_json
from harness.engine.models import tokenizer as tokenizers
from harness.engine.models.config_values import refuse_values
from harness.engine.models.quiet import quietly
from harness.engine.models.weights import FACTORS_MANIFEST, Header, headers, opened, weight_files
from harness.errors import UserError, refusing
from harness.files import LFS_POINTER, visible

#: Types of tensors that a model is trained from, in the words of safetensors.
FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: Buffers that older versions of transformers stored, and that follow from the config, with their dimensions.
HARMLESS = {
    re.compile(r"\brotary_emb\.inv_freq$"): (1,),
    re.compile(r"\b(attn|attention)\.bias$"): (4,),  # a causal mask; a bias of a layer has one dimension
    re.compile(r"\b(attn|attention)\.masked_bias$"): (0, 1),
}
#: Files that say that weights are quantised, beside `quantization_config` in config.json.
QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
#: What quantised tensors are called by the libraries that write them.
QUANTISED_NAMES = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale(_inv)?|weight_zero_point|absmax|quant_map"
    r"|SCB|weight_format|weight\.(absmax|quant_map|nested_absmax|quant_state\..*))$"
)
#: Settings of config.json that would make transformers read other files or fetch code.
NOT_FOLLOWED = ("transformers_weights", "fusion_config", "distributed_config")
COMPARED_ROWS = 4096
#: The most bytes of a file that may be a pointer to another.
LARGEST_POINTER = 1024
_known: dict[tuple[Any, ...], Any] = {}


def check(folder: Path) -> Any:
    """Return the config of a folder, settled by its tensors; UserError for what cannot be trained as it is.

    An output head of its own makes the model untied, whatever `tie_word_embeddings` says. A folder that has
    not changed is read once.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the folder that holds it")
    if not folder.is_dir():
        raise UserError(f"no model folder at {folder}; give a folder in Hugging Face format or a hub id")
    _refuse_adapters(folder)
    _refuse_pointers(folder)
    config = causal_config(folder)
    files = weight_files(folder)
    key = (folder.resolve(), *((path.name, *_stamp(path)) for path in [*visible(folder, "*"), *files]))
    if key not in _known:
        # a forecast calls this among tensors without values; here some are read
        with refusing(f"{folder}: not a model folder that can be used"), _disable_current_modes():
            _known[key] = _checked(folder, config)
    return copy.deepcopy(_known[key])


def _stamp(path: Path) -> tuple[int, ...]:
    with refusing(f"{path}: not readable, or a link that leads nowhere; copy or download it again"):
        found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def causal_config(folder: Path) -> Any:
    """Return the configuration of a folder; UserError unless it is a causal LM that transformers knows."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a Hugging Face model folder: it has no config.json")
    with refusing(f"{folder}: not a Hugging Face model folder: config.json"):
        said = strict_json.read(path, _number)
    with refusing(f"{folder}: not a Hugging Face model folder"), quietly():
        if not isinstance(said, dict):
            raise ValueError("config.json must hold an object")
        _refuse_settings(folder, said)
        refuse_values(folder, said)
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        causal, given = is_causal(config), ", ".join(config.architectures or [type(config).__name__])
    config.__dict__.pop("auto_map", None)  # code that is not run should not be named in what is saved
    if not causal:
        raise UserError(
            f"{folder}: {given} is not a causal language model; give one such as LlamaForCausalLM"
        )
    return config


def _number(constant: str) -> float:
    """Return an infinity, which some models are described by; ValueError for NaN."""
    if constant == "NaN":
        raise ValueError("it holds NaN, which is no number; correct it")
    return float(constant)


def is_causal(config: Any) -> bool:
    """Return whether a configuration describes a causal LM, by its architecture, else by its type."""
    named = config.architectures or []
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named)
    return causal or (not named and type(config) in transformers.AutoModelForCausalLM._model_mapping)


def _refuse_pointers(folder: Path) -> None:
    """Raise UserError for a file that Git LFS has not fetched."""
    for path in visible(folder, "*"):
        with refusing(f"{path}: cannot be read; copy or download it again"):
            if not path.is_file() or path.stat().st_size > LARGEST_POINTER:
                continue
            with path.open("rb") as file:
                pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        if pointer:
            raise UserError(f"{path}: a pointer of Git LFS instead of the file; run `git lfs pull` there")


def _refuse_settings(folder: Path, said: Mapping[str, Any]) -> None:
    """Raise UserError for quantised weights, and for settings that lead out of the folder."""
    quantised = said.get("quantization_config") or said.get("compression_config")
    files = [name for name in QUANTISED_FILES if (folder / name).is_file()]
    if quantised or files:
        by = quantised.get("quant_method") if isinstance(quantised, dict) else None
        _refuse_quantised(folder, str(by or (files[0] if files else "quantization_config")))
    for name in NOT_FOLLOWED:
        if said.get(name):
            raise UserError(f"{folder}: config.json sets {name}, which is not followed here; remove it")
    kernels = [said.get(name) for name in ("attn_implementation", "experts_implementation")]
    if any("/" in str(name) for name in kernels):
        raise UserError(
            f"{folder}: config.json asks for a kernel from the hub, which is never run; remove it"
        )


def _refuse_quantised(folder: Path, by: str) -> None:
    raise UserError(
        f"{folder}: its weights are quantised ({by}), and only floating-point weights can be trained and "
        "compressed; give the original model, or write one with transformers: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).dequantize().save_pretrained(NEW)"
    )


def _refuse_adapters(folder: Path) -> None:
    """Raise UserError for an adapter in the folder: a model is loaded whole or not at all."""
    found = [*visible(folder, "adapter_config.json"), *visible(folder, "adapter_model*")]
    if found:
        raise UserError(
            f"{folder}: holds an adapter ({found[0].name}); merge it first, with peft: "
            "model.merge_and_unload().save_pretrained(NEW), or move it into another folder"
        )


def _checked(folder: Path, config: Any) -> Any:
    """Check tensors, ids and tokenizer; return the settled config."""
    found = {name: header for name, header in headers(folder).items() if not harmless(name, header.shape)}
    _check_types(folder, found)
    _check_layers(folder, config, found)
    _check_ids(folder, config)
    with refusing(f"{folder}: config.json describes no model that can be built"), quietly():
        empty = empty_model(config)
    tie(config, _is_tied(folder, empty, found))
    with (
        refusing(f"{folder}: config.json holds what transformers would not write again"),
        quietly(),
        tempfile.TemporaryDirectory() as elsewhere,
    ):
        copy.deepcopy(config).save_pretrained(elsewhere)  # else a run would train, and fail to save
    _check_names(folder, config, found)
    tokenizer = tokenizers.own_tokenizer(folder)
    if tokenizer is not None:
        size = text_config(config).vocab_size
        check_vocabulary(tokenizer, size, str(folder))
        check_marks(tokenizers.marks(tokenizer), size, str(folder), "the tokenizer")
    return config


def text_config(config: Any) -> Any:
    """Return the part of a config that describes the language model."""
    return config.get_text_config()


def empty_model(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return the structure of a model without values, on torch's meta device."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def tie(config: Any, tied: bool) -> None:
    """Say in a config whether the output head is the embedding."""
    for part in (config, text_config(config)):
        if getattr(part, "tie_word_embeddings", None) is not None or part is config:
            part.tie_word_embeddings = tied


# ------------------------------------------------------------------------------------------ tensors
def harmless(name: str, shape: Sequence[int]) -> bool:
    """Return whether a stored tensor is a buffer that models of today compute from their config."""
    return any(named.search(name) and len(shape) in sizes for named, sizes in HARMLESS.items())


def _check_types(folder: Path, found: Mapping[str, Header]) -> None:
    """Raise UserError for tensors that are quantised or no floating-point numbers."""
    quantised = sorted(name for name in found if QUANTISED_NAMES.search(name))
    if quantised:
        _refuse_quantised(folder, quantised[0])
    for name, header in sorted(found.items()):
        if header.dtype not in FLOATING:
            if header.dtype.startswith("F"):
                _refuse_quantised(folder, f"{name} is {header.dtype}")
            raise UserError(
                f"{folder}: {name} is {header.dtype}; weights are {', '.join(FLOATING)}; give the original"
            )


def _check_layers(folder: Path, config: Any, found: Mapping[str, Header]) -> None:
    """Raise UserError for a config with more layers than tensors, which would take for ever to build."""
    layers = getattr(text_config(config), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > len(found):
        raise UserError(
            f"{folder}: config.json says {layers} layers, but there are {len(found)} tensors; "
            "weights and config.json do not belong together"
        )


def _is_tied(folder: Path, empty: Any, found: Mapping[str, Header]) -> bool:
    """Return whether head and embedding are one tensor: not where the files hold two that differ."""
    tied = dict(getattr(empty, "all_tied_weights_keys", {}) or {})
    if not tied:
        return bool(getattr(empty.config, "tie_word_embeddings", False))
    for pair in tied.items():
        stored = [_stored(name, found) for name in pair]
        if None not in stored and not _equal(folder, *map(str, stored)):
            return False
    return True


def _stored(name: str, found: Mapping[str, Header]) -> str | None:
    """Return the name of a tensor in the files: base models are stored without the first part."""
    short = name.split(".", 1)[-1]
    return next((key for key in (name, short) if key in found), None)


def _equal(folder: Path, one: str, other: str) -> bool:
    """Return whether two stored tensors are equal; reads until they differ."""
    with opened(folder) as tensors:
        pair = [tensors[name] for name in (one, other)]
        shapes = [tuple(tensor.get_shape()) for tensor in pair]
        if shapes[0] != shapes[1] or not shapes[0]:
            return False
        for start in range(0, shapes[0][0], COMPARED_ROWS):
            first, second = (tensor[start : start + COMPARED_ROWS] for tensor in pair)
            if not torch.equal(first, second.to(first.dtype)):
                return False
    return True


def _check_names(folder: Path, config: Any, found: Mapping[str, Header]) -> None:
    """Raise UserError unless the files hold exactly the tensors that the config has a place for."""
    twice = [name for name in found if "." in name and name.split(".", 1)[1] in found]
    if twice:  # transformers takes either, and says nothing
        short = twice[0].split(".", 1)[1]
        raise UserError(f"{folder}: holds {twice[0]} also as {short}; remove one of them from the files")
    tensors = {
        name: torch.empty(header.shape, dtype=FLOATING[header.dtype], device="meta")
        for name, header in found.items()
    }
    if (folder / FACTORS_MANIFEST).exists():
        with refusing(f"{folder}: config.json describes no model that can be built"):
            empty = empty_model(config)
        check_state(folder, restructured(empty, folder), tensors)
        return
    with refusing(f"{folder}: weights and config.json do not belong together"), quietly():
        _, report = assembled(config, tensors, torch.float32, device_map={"": "meta"})
    refuse_report(folder, report)


def assembled(
    config: Any, tensors: Mapping[str, Any], dtype: torch.dtype, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Build a model from tensors by name, as stored, and return it with the report of transformers."""
    kind = type(empty_model(config))
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=dtype,
        ignore_mismatched_sizes=True,  # refused by the caller, with the names
        output_loading_info=True,
        **options,
    )
    return model, report


def refuse_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Raise UserError for tensors that are missing, of another shape or without a place."""
    missing, unexpected, mismatched = (
        report[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")
    )
    shapes = [f"{name} {tuple(stored)} instead of {tuple(wanted)}" for name, stored, wanted in mismatched]
    what = "weights and config.json do not belong together"
    refuse_differences(f"{folder}: {what}", missing, unexpected, shapes, report.get("error_msgs") or ())


def refuse_differences(
    what: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    shapes: Iterable[str],
    other: Iterable[str] = (),
) -> None:
    """Raise UserError that begins with `what` and names the tensors, if there are any."""
    kinds = {
        "missing": missing,
        "without a place in the model": unexpected,
        "of another shape": shapes,
        "not readable": other,
    }
    wrong = []
    for kind, names in kinds.items():
        known = sorted(map(str, names))
        if known:
            more = f" and {len(known) - 3} more" if len(known) > 3 else ""
            wrong.append(f"{kind} {', '.join(known[:3])}{more}")
    if wrong:
        raise UserError(f"{what}: {'; '.join(wrong)}; correct one of them")


# ------------------------------------------------------------------------------------------ factors
def restructured(model: nn.Module, folder: Path) -> nn.Module:
    """Give a plain model the factored layers of a folder, empty; do nothing where the folder has none."""
    manifest = folder / FACTORS_MANIFEST
    if not manifest.exists():
        return model
    ranks, biased = _structure(manifest)
    with refusing(f"{manifest}: not a manifest of factors"):
        return factored.restructure(model, ranks, biased)


def _structure(path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the rank of each factored layer by name, and which layers have a bias that their model lacks."""
    with refusing(f"{path}: not a manifest of factors"):
        manifest = strict_json.read(path)
        written_as, ranks, biased = manifest["format"], dict(manifest["ranks"]), manifest.get("biased", [])
        if not isinstance(biased, list) or not set(biased) <= ranks.keys():
            raise ValueError("biased must list layers of ranks")
    if written_as != 1:
        raise UserError(f"{path}: format {written_as}, this lorebench reads 1")
    return ranks, biased


def check_state(folder: Path, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError unless tensors are exactly those of a model with factors, by name and shape."""
    wanted = stored_state(model)
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    missing, unexpected = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    refuse_differences(f"{folder}: weights do not fit the manifest", missing, unexpected, shapes)


def stored_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model by name, one that has several names under its first alone."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach()
    return state


# ----------------------------------------------------------------------------------------------- ids
def _check_ids(folder: Path, config: Any) -> None:
    """Raise UserError for special ids that are no ids of the vocabulary."""
    size = text_config(config).vocab_size
    said = {"config.json": _ids_of(config), "config.json (text)": _ids_of(text_config(config))}
    path = folder / "generation_config.json"
    if path.is_file():
        with refusing(f"{path}: not settings for generation"), quietly():
            strict_json.read(path)
            said[path.name] = _ids_of(transformers.GenerationConfig.from_pretrained(folder))
    for place, ids in said.items():
        check_marks(ids, size, str(folder), place)


def check_marks(ids: Mapping[str, Any], size: int, where: str, place: str) -> None:
    """Raise UserError for an id of a mark that a vocabulary of `size` does not have."""
    for name, value in ids.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if number is not None and not (type(number) is int and 0 <= number < size):
                raise UserError(
                    f"{where}: {name} {str(number)[:40]} of {place} is no id of the vocabulary "
                    f"(0 to {size - 1}); correct it, or set it to null where the model has no such token"
                )


def _ids_of(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def check_vocabulary(tokenizer: Any, size: int, where: str) -> None:
    """Raise UserError for a tokenizer with tokens of text that a vocabulary of `size` has no place for.

    Special tokens beyond it are common and do no harm unless a text holds them, which is checked there; one
    that is a word of the vocabulary is in most texts.
    """
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    special |= {
        str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special
    }
    vocabulary = tokenizer.get_vocab().items()
    special -= {token.lstrip("Ġ▁ ") for token, number in vocabulary if number < size}
    beyond = {number: token for token, number in vocabulary if number >= size}
    ordinary = sorted((number, token) for number, token in beyond.items() if token not in special)
    if ordinary:
        number, token = ordinary[0]
        raise UserError(
            f"{where}: the tokenizer has {len(ordinary)} tokens beyond the model's vocabulary of {size}, the "
            f"first {token!r} with id {number}; use the tokenizer that belongs to the model, or enlarge "
            "the model first with resize_token_embeddings"
        )
