"""Small checkpoints with one thing or several changed at random, as a damaged or careless folder has them."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from harness.config import LocalModel
from harness.engine.models import checkpoint
from harness.engine.models.load import LoadedModel, check_model, load_model
from harness.errors import UserError
from tests.support.tiny import tiny_batch

#: Values that stand where others are expected.
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 63, 64, 65, 10**5, 10**12, 2**63, 10**30, -(2**63), 0.5, -0.0,
    2.5, 1e-30, 1e308, float("nan"), float("inf"), "", "a", "64", "llama", "gpt2", "qwen2", "float16",
    "int8", "../x", "/etc/passwd", "\x00", "\u202e", "<s>", "a" * 300, [], {}, [1], [[]], [None], ["a", 1],
    {"a": 1}, {"type": "Zork"}, {"type": "BPE"}, {"rope_type": "zork"}, {"rope_type": "linear", "factor":
    0},
]  # fmt: skip
KEYS = (
    "quantization_config", "auto_map", "tie_word_embeddings", "rope_scaling", "rope_parameters",
    "pad_token_id", "layer_types", "head_dim", "num_key_value_heads", "attention_bias", "mlp_bias",
    "sliding_window", "text_config", "is_decoder", "pruned_heads", "torch_dtype", "dtype",
    "chunk_size_feed_forward", "architectures", "model_type", "attn_implementation", "_attn_implementation",
    "use_cache", "output_attentions", "return_dict", "id2label", "transformers_weights",
    "added_tokens_decoder", "extra_special_tokens", "tokenizer_class", "bos_token", "eos_token",
    "pad_token", "add_bos_token", "model_max_length", "split_special_tokens", "padding_side",
    "eos_token_id", "suppress_tokens", "max_length", "temperature", "cache_implementation", "weight_map",
    "ranks",
)  # fmt: skip
EXTRA = (
    "adapter_config.json", "adapter_model.bin", "model.safetensors.index.json", "factors.json", ".metadata",
    "factored.safetensors", "model-00001-of-00002.safetensors", "._model.safetensors", "vocab.json",
    "merges.txt", "tokenizer.model", "tokenizer.model.v3", "quantize_config.json", "spiece.model",
    "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "modeling_zork.py", "vocab.txt", "tekken.json", "preprocessor_config.json", "original",
    "consolidated.safetensors", "pytorch_model.bin",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values within a JSON value, at most a few of each list or vocabulary."""
    found = [path]
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return found
    for key, inner in items[:12]:
        found += places(inner, (*path, key))
    return found


def change_json(path: Path, rng: random.Random) -> None:
    """Replace, remove or add a value somewhere in a JSON file."""
    content = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place = rng.choice(places(content))
        if not place:
            if isinstance(content, dict) and rng.random() < 0.9:
                content[rng.choice(KEYS)] = rng.choice(ODD)
            else:
                content = rng.choice(ODD)
            continue
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        action = rng.random()
        if action < 0.6:
            parent[place[-1]] = rng.choice(ODD)
        elif action < 0.8:
            del parent[place[-1]]
        elif isinstance(parent, dict):
            parent[rng.choice(KEYS)] = parent[place[-1]]
        else:
            parent.append(rng.choice(ODD))
    path.write_text(json.dumps(content))


def change_bytes(path: Path, rng: random.Random) -> None:
    """Cut, extend or overwrite a file, often near its start, where the headers are."""
    content = bytearray(path.read_bytes())
    action, end = rng.random(), len(content)
    if action < 0.2:
        content = content[: rng.randrange(end + 1)]
    elif action < 0.3:
        content += rng.randbytes(rng.randrange(1, 50))
    else:
        for _ in range(rng.choice([1, 1, 3, 20])):
            content[rng.randrange(min(end, rng.choice([8, 300, 4000, end])))] = rng.choice(
                [0, 32, 34, 57, 255, 120]
            )
    path.write_bytes(bytes(content))


def change_header(path: Path, rng: random.Random) -> None:
    """Change the header of a safetensors file as JSON: names, types, shapes, places."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    action = rng.random()
    if action < 0.25:
        header[
            rng.choice([name + ".x", name[:-1], "lm_head.weight", "model.layers.0.self_attn.q_proj.bias"])
        ] = header.pop(name)
    elif action < 0.5:
        kinds = ["F16", "BF16", "F64", "I32", "U8", "F8_E4M3", "BOOL", "C64", "X"]
        header[name]["dtype"] = rng.choice(kinds)
    elif action < 0.75:
        shape = header[name]["shape"]
        header[name]["shape"] = rng.choice(
            [shape[::-1], [*shape, 1], [1, *shape], [], [math.prod(shape)], [-1, 2]]
        )
    elif action < 0.9:
        header[name]["data_offsets"] = [rng.randrange(9000), rng.randrange(9000)]
    else:
        header["__metadata__"] = rng.choice([{}, {"format": "tf"}, {"format": 3}, None])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def change_values(path: Path, rng: random.Random) -> None:
    """Overwrite some weights, at times by what is no number."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for _ in range(rng.choice([1, 10, 100])):
        place = start + 4 * rng.randrange((len(content) - start) // 4)
        content[place : place + 4] = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", rng.randbytes(4)])
    path.write_bytes(bytes(content))


def change_files(folder: Path, rng: random.Random) -> None:
    """Remove, add, exchange or replace files."""
    here = sorted(folder.iterdir())
    path = rng.choice(here)
    action = rng.random()
    if action < 0.2:
        path.unlink()
    elif action < 0.3:
        path.unlink()
        path.mkdir()
    elif action < 0.4:
        path.unlink()
        path.symlink_to(rng.choice([folder / "nowhere", folder, Path("/dev/null"), rng.choice(here)]))
    elif action < 0.5:
        path.write_bytes(rng.choice(here).read_bytes())
    else:
        target = folder / rng.choice(EXTRA)
        content = rng.choice([b"", b"{}", b"[]", b"{", b"\xff\xfe", path.read_bytes(), rng.randbytes(100)])
        if not target.exists():
            target.write_bytes(content)


def change(folder: Path, rng: random.Random) -> None:
    """Change one thing of a folder."""
    texts = sorted(folder.glob("*.json"))
    stores = sorted(folder.glob("*.safetensors"))
    action = rng.random()
    if action < 0.55 and texts:
        change_json(rng.choice(texts), rng)
    elif action < 0.65 and texts:
        change_bytes(rng.choice(texts), rng)
    elif action < 0.78 and stores:
        change_header(rng.choice(stores), rng)
    elif action < 0.84 and stores:
        change_bytes(rng.choice(stores), rng)
    elif action < 0.88 and stores:
        change_values(rng.choice(stores), rng)
    else:
        change_files(folder, rng)


def mutated(base: Path, folder: Path, seed: int) -> None:
    """Make a copy of a folder with one or two things changed."""
    rng = random.Random(seed)
    shutil.copytree(base, folder)
    for _ in range(rng.choice([1, 1, 2])):
        try:
            change(folder, rng)
        except (ValueError, KeyError, IndexError, TypeError, OSError, AttributeError):
            continue  # the first change left nothing that the second could work on


def outcome(folder: Path, again: Path) -> str:
    """Return what becomes of a folder: refused by the check, refused at loading, or used.

    Whatever is used has a finite loss and the same loss when it is saved and loaded again. Every other end
    is an exception of this function.
    """
    try:
        check_model(LocalModel(source="local", path=str(folder)))
    except UserError as error:
        _one_line(error)
        return "refused by the check"
    try:
        loaded = _load(folder)
        checkpoint.refuse_not_finite(loaded.model, loaded.name)
    except UserError as error:
        _one_line(error)
        return "refused at loading"
    before = _loss(loaded.model)
    checkpoint.save(loaded.model, loaded.tokenizer, again)
    if loaded.tokenizer is not None:
        loaded.tokenizer("some text", add_special_tokens=False)
    saved = load_model(
        LocalModel(source="local", path=str(again)), dtype=torch.float32, device=torch.device("cpu"), seed=0
    )
    assert _loss(saved.model) == before, "another model was saved"
    return "used"


def _load(folder: Path) -> LoadedModel:
    model = LocalModel(source="local", path=str(folder))
    return load_model(model, dtype=torch.float32, device=torch.device("cpu"), seed=0)


def _one_line(error: UserError) -> None:
    assert str(error).strip()
    assert "\n" not in str(error)
    assert len(str(error)) < 1200


@torch.no_grad()
def _loss(model: Any) -> float:
    ids = tiny_batch()
    loss = float(model(input_ids=ids, labels=ids).loss)
    assert math.isfinite(loss), f"loss {loss}"
    return loss
