"""Train a small tokenizer on a suite's training text, for models too small for 32,000 pieces.

    python -m benchmarks.bpe pretrain_small [--set KEY=VALUE]

learns as many pieces as the suite's shape has (`model.vocab`) from the text that its runs train on, without
the held-out part, and saves them to the folder that the suite names (`model.tokenizer`). Byte-level byte-pair
encoding (Sennrich et al. 2016, arXiv 1508.07909) by the `tokenizers` library, with LLaMA's marks `<s>` (1)
and `</s>` (2). The same text and size give the same tokenizer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import suite as suites
from harness.config import FilesData, ShapeModel
from harness.engine.data.parts import Documents, documents_of
from harness.engine.models.shapes import shape_of
from harness.errors import UserError

MARKS = ("<unk>", "<s>", "</s>")
SMALLEST, LARGEST = 512, 1 << 17


def train(documents: Sequence[str] | Documents, pieces: int, folder: Path) -> None:
    """Learn `pieces` pieces from the documents and save the tokenizer in `folder`.

    UserError for a size out of range and for text too short to yield that many.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not SMALLEST <= pieces <= LARGEST:
        raise UserError(f"model.vocab {pieces}: a tokenizer has from {SMALLEST} to {LARGEST} pieces here")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if (found := tokenizer.get_vocab_size()) < pieces:
        raise UserError(
            f"the text yields only {found} of {pieces} pieces; give more text or --set model.vocab={found}"
        )
    unknown, first, last = MARKS
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, bos_token=first, eos_token=last
    ).save_pretrained(folder)


def for_suite(name: str, overrides: Sequence[suites.Override] = ()) -> str:
    """Train the tokenizer of a suite's runs and return a summary.

    UserError where the suite is not about a shape with a tokenizer folder and text files.
    """
    run = suites.load(name, overrides).runs[0]
    if not isinstance(run.model, ShapeModel) or run.model.tokenizer is None:
        raise UserError(
            f"suite {name!r} has no shape with model.tokenizer, the folder a tokenizer would go to"
        )
    if not isinstance(run.data, FilesData):
        raise UserError(f"suite {name!r} has data.source {run.data.source}; a tokenizer is learnt from files")
    documents = documents_of(run.data)[0].divided(run.data.holdout)[0]
    pieces = shape_of(run.model).vocab
    train(documents, pieces, Path(run.model.tokenizer).expanduser())
    return f"{run.model.tokenizer}: {pieces} pieces from {len(documents)} documents"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake prints one line and returns 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bpe", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("suite", help="a suite that ships, by name, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    given = parser.parse_args(arguments)
    try:
        print(for_suite(given.suite, [suites.parse_override(text) for text in given.set]))
    except UserError as error:
        print(f"benchmarks.bpe: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
