"""Build the tokenizer and the base checkpoint: `python -m benchmarks.embedded.build [--out DIR] [--steps N]`.

The same versions of the packages on the same kind of processor write the same bytes again. The manifest has
no times and no paths for that reason. Another processor or another version of torch rounds differently, and
training amplifies that: then the bytes differ, and the measured values agree as well as those of two seeds.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.embedded.evaluate import accuracy, chance, kept_ranks, perplexity_and_floor
from benchmarks.embedded.facts import WORLDS
from benchmarks.embedded.recipe import Recipe
from benchmarks.embedded.tokenizer import train_tokenizer
from benchmarks.embedded.training import batches, new_model, train
from benchmarks.embedded.world import SKILLS, WORLD_VERSION, document_stream, documents, questions
from harness.files import sha256

BASE = Path(__file__).parent / "base"
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")
_HASHED_DOCUMENTS = 1000


def build(out: Path, recipe: Recipe, verbose: bool = False) -> dict[str, Any]:
    """Train tokenizer and model, write them with their manifest to `out`, and return the manifest."""
    texts = [document.text for document in documents("a", "train", recipe.tokenizer_documents)]
    tokenizer = train_tokenizer(texts, recipe.vocabulary, recipe.max_length)
    model = new_model(recipe, tokenizer)
    steps = batches(document_stream("a", "train"), tokenizer, recipe)
    with _threads(recipe.threads):
        train(model, tokenizer, recipe, steps, _progress(recipe) if verbose else lambda step, loss: None)
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        manifest = describe(out, recipe, model, tokenizer)
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return manifest


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with `count` threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(
    out: Path, recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    """Return the manifest of a checkpoint that is saved in `out`: recipe, origin and measured values."""
    return {
        "recipe": asdict(recipe),
        "world_version": WORLD_VERSION,
        "data_sha256": data_sha256(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "tokens_seen": recipe.tokens,
        "worlds": {world: measure_world(world, recipe, model, tokenizer) for world in WORLDS},
        "kept_ranks_at_err_0.5": kept_ranks(model, 0.5),
        "model_sha256": sha256(out / WEIGHTS),
    }


def measure_world(
    world: str, recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    """Return test perplexity, floor and their ratio, and for each skill accuracy and chance, of one world."""
    texts = documents(world, "test", recipe.test_documents)
    perplexity, floor = perplexity_and_floor(model, tokenizer, texts)
    skills = {}
    for skill in SKILLS:
        asked = questions(world, skill, "test", recipe.test_questions)
        skills[skill] = {"accuracy": accuracy(model, tokenizer, asked), "chance": chance(asked)}
    return {"test_perplexity": perplexity, "floor": floor, "ratio": perplexity / floor, "skills": skills}


def data_sha256() -> dict[str, str]:
    """Return a hash of the first documents of each world and split: it changes when the data does."""
    hashes = {}
    for world in WORLDS:
        for split in ("train", "test"):
            texts = (document.text for document in documents(world, split, _HASHED_DOCUMENTS))
            hashes[f"{world}/{split}"] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return hashes


def _progress(recipe: Recipe) -> Callable[[int, float], None]:
    """Return a report that prints mean loss and speed twenty times per training."""
    losses, start = list[float](), time.perf_counter()

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % max(1, recipe.steps // 20) == 0:
            elapsed_s = time.perf_counter() - start
            speed, mean = (step + 1) * recipe.batch * recipe.window / elapsed_s, sum(losses) / len(losses)
            numbers = f"loss {mean:.4f} nats/token, {elapsed_s:.0f} s, {speed:.0f} tokens/s"
            print(f"step {step + 1}: {numbers}", flush=True)
            losses.clear()

    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded.build", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=BASE, help="folder to write (default: the shipped base/)")
    parser.add_argument(
        "--steps", type=int, default=Recipe.steps, help=f"training steps (default: {Recipe.steps})"
    )
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps is {options.steps}: give at least 1")
    manifest = build(options.out, replace(Recipe(), steps=options.steps), verbose=True)
    print(json.dumps(manifest["worlds"], indent=2, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
