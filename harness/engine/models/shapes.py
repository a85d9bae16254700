"""What is known of a model without torch: LLaMA shapes by name, and the folder of its files.

The sizes from 9m to 7b are the configurations of the GaLore and SLTrain code (GaLore, arXiv
2403.03507, Table 5 and its configs); llama-2-7b, llama-2-13b and llama-2-70b are Touvron et al. 2023
(arXiv 2307.09288). `nano` is for tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.config import EmbeddedModel, HubModel, LocalModel, ModelConfig, ShapeModel
from harness.errors import UserError, nearest
from harness.files import ROOT, from_user

EMBEDDED_BASE = ROOT / "benchmarks" / "embedded" / "base"


def model_folder(model: ModelConfig) -> Path | None:
    """Return the folder of an embedded or local model, None for a shape or a hub id."""
    if isinstance(model, EmbeddedModel):
        return EMBEDDED_BASE
    return from_user(model.path) if isinstance(model, LocalModel) else None


@dataclass(frozen=True)
class Shape:
    """The sizes of a LLaMA with an untied head; `kv_heads`, of keys and values, are by default all heads."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocab: int = 32000
    context: int = 1024
    norm_eps: float = 1e-6
    kv_heads: int | None = None

    def config(self) -> dict[str, Any]:
        """Return the keyword arguments of `transformers.LlamaConfig`."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads or self.heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.norm_eps,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


SHAPES: dict[str, Shape] = {
    "nano": Shape(32, 88, 2, 4, vocab=64, context=128),
    "9m": Shape(128, 352, 4, 4),
    "20m": Shape(256, 688, 4, 4),
    "35m": Shape(384, 1024, 6, 8),
    "40m": Shape(416, 1024, 8, 8),
    "60m": Shape(512, 1376, 8, 8),
    "71m": Shape(512, 1368, 12, 8),
    "100m": Shape(640, 1708, 12, 10, vocab=32100),
    "130m": Shape(768, 2048, 12, 12),
    "250m": Shape(768, 2560, 24, 16),
    "350m": Shape(1024, 2736, 24, 16),
    "1b": Shape(2048, 5461, 24, 32),
    "3b": Shape(2560, 6848, 32, 32),
    "7b": Shape(4096, 11008, 32, 32, context=2048),
    "llama-13b": Shape(5120, 13824, 40, 40, context=2048),
    "llama-2-7b": Shape(4096, 11008, 32, 32, context=4096, norm_eps=1e-5),
    "llama-2-13b": Shape(5120, 13824, 40, 40, context=4096, norm_eps=1e-5),
    "llama-2-70b": Shape(8192, 28672, 80, 64, context=4096, norm_eps=1e-5, kv_heads=8),
}

#: The shapes of published models, so that their memory can be predicted before they are downloaded.
PUBLISHED = {
    "huggyllama/llama-7b": "7b",
    "huggyllama/llama-13b": "llama-13b",
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-13b-hf": "llama-2-13b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
}


def known_shape(model: ModelConfig) -> ModelConfig:
    """Replace the hub id of a published model by its shape; return any other model unchanged."""
    if isinstance(model, HubModel) and model.id in PUBLISHED:
        return ShapeModel(source="shape", name=PUBLISHED[model.id])
    return model


def shape_of(model: ShapeModel) -> Shape:
    """Return the named shape with the sizes that a model overrides; UserError when these do not fit."""
    if model.name not in SHAPES:
        raise UserError(f"no shape {model.name!r}; {nearest(model.name, SHAPES)}")
    given = {
        "hidden": model.hidden,
        "intermediate": model.intermediate,
        "layers": model.layers,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "vocab": model.vocab,
        "context": model.context,
    }
    sizes: dict[str, Any] = {name: size for name, size in given.items() if size is not None}
    shape = replace(SHAPES[model.name], **sizes)
    if shape.hidden % (2 * shape.heads):
        raise UserError(
            f"shape {model.name}: {shape.heads} heads do not divide the width {shape.hidden} into even parts"
            "; give another model.heads"
        )
    if shape.kv_heads and shape.heads % shape.kv_heads:
        raise UserError(
            f"shape {model.name}: {shape.kv_heads} heads of keys and values do not divide the {shape.heads} "
            "heads; give another model.kv_heads"
        )
    return shape
