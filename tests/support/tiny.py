"""Small LLaMA models, a tokenizer and batches that several tests share."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harness.engine.contract.tiny import TinyText, logits, tiny_batch, tiny_llama, train

__all__ = ["TinyText", "logits", "sentence", "tiny_batch", "tiny_llama", "tiny_tokenizer", "train"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Up to 64 pieces of lower-case words, the first `<unk>`, `<s>` and `</s>`; adds no marks by itself."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    marks = ["<unk>", "<s>", "</s>"]
    alphabet = list("abcdefghijklmnopqrstuvwxyz.=\n")
    trainer = trainers.BpeTrainer(
        vocab_size=64, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([sentence(number) for number in range(50)], trainer)
    unknown, begin, end = marks
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=unknown, bos_token=begin, eos_token=end, pad_token=unknown
    )


def sentence(number: int) -> str:
    """A sentence that depends on the number alone; different numbers below 1000 give different ones."""
    names, things = (
        ("ada", "ben", "cora", "dan", "eva", "finn", "gil", "hana", "ian", "jo"),
        ("owl", "hat", "pen"),
    )
    who, whom, third = names[number % 10], names[number // 10 % 10], names[number // 100 % 10]
    return f"{who} gives {whom} the {things[number % 3]} of {third}."
