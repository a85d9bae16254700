"""The tokenizer of the embedded benchmark: byte-level BPE, trained on documents of world "a".

Decisions that others rely on:

* It adds `<s>` by itself (a post-processor does), so `tokenizer(text)` starts with exactly one `<s>`. lm-eval
  leaves that to the tokenizer by default, so a model in memory and a saved folder on the command
  line both score `<s>` + context + continuation, without any flag. A training document is `tokenizer(text)`
  plus `</s>`.
* A space belongs to the word that follows it. So " answer" has the same tokens alone and after a prompt. A
  text that starts without a space is given one, so a name is the same token at the start of a document and
  within it.
* World "b" has the same words, and there are so few that every word is one token.
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, UNKNOWN, PAD = "<s>", "</s>", "<unk>", "<pad>"


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer with at most `vocabulary` pieces; `max_length` is the longest input in tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, UNKNOWN, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Return for each text the token ids `<s>` + text + `</s>`."""
    if not texts:
        return []
    end = tokenizer.eos_token_id
    return [[*ids, end] for ids in tokenizer(list(texts), return_attention_mask=False)["input_ids"]]
