"""Load the tokenizer of a folder so that it gives the ids that the folder's own files say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers  # its parts are loaded when they are first used
from tokenizers import Tokenizer

from harness import strict_json
from harness.credentials import shown
from harness.engine.models.quiet import quietly, without_panics
from harness.errors import UserError, one_line, refusing
from harness.files import visible

#: Files of JSON that transformers reads for a tokenizer, of a key given twice the last alone.
SETTINGS = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
#: Files that show that a folder has a tokenizer, whatever its class.
SIGNS = ("tokenizer*", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece*.model", "*.tiktoken")
#: What of a tokenizer.json decides the ids of plain text. Truncation and padding are set by each call.
PIPELINE = ("normalizer", "pre_tokenizer", "model")
#: Text that pipelines take apart in different ways; it holds no marks of a usual vocabulary.
PROBES = (
    "Hello world,  how\tare you?\n\nFine: it's 12345.678 (3/4)!\r\n  indented   twice\n",
    " leading and trailing ",
    "I'll we've THEY'RE camelCase snake_case http://a.b/c?d=e&f",
    "ﬁne Ünïcödé e\u0301 é 漢字かな 한국어 עברית हिन्दी 🙂👩‍👩‍👧 \u200b\u00a0\ufeff½²",
    "1 12 123 1234 12345678901234567890 0x1F -1.5e-10",
    "▁x ĠGx \x00\x7f [a] {b} <c>",
)
#: What tokens look like that stand in no text: published folders name some in tokenizer_config.json alone.
BRACKETED = re.compile(r"<.*>|\[.*\]|\{.*\}|\|.*\|", re.DOTALL)
MARKS = ("bos_token", "eos_token", "pad_token", "unk_token")


def own_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, None when it has none."""
    return tokenizer_of(folder) if has_tokenizer(folder) else None


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds files of a tokenizer."""
    return any(visible(folder, sign) for sign in SIGNS)


def tokenizer_of(folder: Path) -> Any:
    """Return the tokenizer of a folder; UserError when it has none or its files do not agree.

    For some architectures transformers replaces parts of what tokenizer.json says. The ids of text would
    then be others than those that the model was trained on, so here the file decides.
    """
    refused = f"{folder}: no tokenizer can be loaded from there"
    for path in visible(folder, *SETTINGS):
        with refusing(f"{refused}: {path.name}"):
            strict_json.read(path)
    with refusing(refused), quietly(), without_panics():
        loaded = _load(transformers.AutoTokenizer, folder)
        probed = [*loaded("a")["input_ids"], *loaded.get_vocab().values()]
        if not all(isinstance(number, int) and number >= 0 for number in probed):
            raise ValueError("it gives ids that are no numbers")
    _need_vocabulary(loaded, folder)
    file = folder / "tokenizer.json"
    if not file.is_file():
        return loaded
    with refusing(refused), quietly(), without_panics():
        truth = Tokenizer.from_file(str(file))
        written = truth.to_str()
        pipeline = json.loads(written)
        if pipeline["model"].get("dropout"):
            raise ValueError("tokenizer.json drops merges at random; set model.dropout to null there")
        Tokenizer.from_str(written)  # else the weights of a run would be saved with one that cannot be read
        if _same(loaded, truth, pipeline):
            return loaded
        plain = _load(transformers.PreTrainedTokenizerFast, folder)
        if _same(plain, truth, pipeline):
            return plain
    more = sorted({*map(str, plain.added_tokens_decoder.values())} - {*_added(pipeline)})
    named = f" ({', '.join(map(shown, more[:3]))} only there)" if more else ""
    raise UserError(
        f"{folder}: tokenizer.json gives other ids than the tokenizer that transformers makes of it and of "
        f"tokenizer_config.json or another file{named}; correct the added tokens of one of them"
    )


def other_for_transformers(folder: Path, tokenizer: Any) -> str:
    """Return in words what transformers alone makes of a tokenizer that was saved, empty where ids agree.

    For some architectures it puts parts of its own in place whatever tokenizer_config.json says.
    """
    try:
        with quietly(), without_panics():
            other = _load(transformers.AutoTokenizer, folder)
            if all(other(text)["input_ids"] == tokenizer(text)["input_ids"] for text in PROBES):
                return ""
        found = f"makes a {type(other).__name__} of it, with other ids"
    except Exception as error:
        found = f"cannot load it ({one_line(error)})"
    return f"{folder}: AutoTokenizer {found}; use transformers.PreTrainedTokenizerFast.from_pretrained there"


def marks(tokenizer: Any) -> dict[str, int | None]:
    """Return the ids of the tokens for begin, end, padding and unknown by the name of their setting."""
    return {f"{mark}_id": getattr(tokenizer, f"{mark}_id", None) for mark in MARKS}


def _load(kind: Any, folder: Path) -> Any:
    loaded = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for name in ("auto_map", "local_files_only", "is_local"):  # said of this folder, not of one saved from it
        loaded.init_kwargs.pop(name, None)
    return loaded


def _need_vocabulary(loaded: Any, folder: Path) -> None:
    """Raise UserError where transformers made up a vocabulary, or merges, that no file gives."""
    if (folder / "tokenizer.json").is_file():
        return
    names = getattr(loaded, "vocab_files_names", {})
    here = {kind for kind, name in names.items() if (folder / name).is_file()}
    there = (
        here or visible(folder, "*.tiktoken") or visible(folder, "*.model") or visible(folder, "tek*.json")
    )
    if not there:
        known = " or ".join(sorted(set(names.values()))) or "tokenizer.json"
        raise UserError(f"{folder}: its tokenizer has no vocabulary; {known} is missing")
    pair = {"vocab_file", "merges_file"}
    if pair <= set(names) and len(here & pair) == 1:
        raise UserError(f"{folder}: its tokenizer is incomplete; {names[(pair - here).pop()]} is missing")


def _same(loaded: Any, truth: Tokenizer, given: Mapping[str, Any]) -> bool:
    """Return whether a loaded tokenizer takes text apart like the file's, and gives its added tokens' ids."""
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        return False
    own = json.loads(backend.to_str())
    if any(own[part] != given[part] for part in PIPELINE):
        return False
    return all(
        loaded(text, add_special_tokens=False, verbose=False)["input_ids"] == _ids(truth, text)
        for text in (*PROBES, _around({*_added(given), *_own_words(loaded)}))
    )


def _own_words(loaded: Any) -> list[str]:
    """Return the added tokens of a loaded tokenizer that may stand in a text: `[PAD]` or `<pad>` may not."""
    tokens = map(str, loaded.added_tokens_decoder.values())
    return [token for token in tokens if not BRACKETED.fullmatch(token)]


def _ids(truth: Tokenizer, text: str) -> list[int]:
    truth.no_truncation()
    truth.no_padding()
    return list(truth.encode(text, add_special_tokens=False).ids)


def _added(pipeline: Mapping[str, Any]) -> list[str]:
    """Return the added tokens of a tokenizer.json."""
    return [token["content"] for token in pipeline.get("added_tokens") or ()]


def _around(tokens: Iterable[str]) -> str:
    """Return a text with each of some added tokens, since each has rules on the spaces around it."""
    return "".join(f"a {token} b{token}c" for token in sorted(tokens))
