"""A model folder is what its config says, or it is refused in one line before its weights are read."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from harness.config import LocalModel, ShapeModel
from harness.engine.models import check as folders
from harness.engine.models import checkpoint
from harness.engine.models.load import LoadedModel, check_model, check_tokenizer, context_of, load_model
from harness.engine.models.tokenizer import own_tokenizer
from harness.errors import UserError
from tests.support.tiny import logits, sentence, tiny_llama, tiny_tokenizer

Break = Callable[[Path], Any]
UP = "model.layers.0.mlp.up_proj.weight"
BIAS = "model.layers.0.self_attn.q_proj.bias"


def local(folder: Path) -> LocalModel:
    return LocalModel(source="local", path=str(folder))


def load(folder: Path) -> LoadedModel:
    return load_model(local(folder), dtype=torch.float32, device=torch.device("cpu"), seed=0)


def settings(file: str, **values: Any) -> Break:
    """Change values of a JSON file, which may be new."""

    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Break:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def add(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Break:
    return weights(lambda tensors: tensors.update({name: torch.zeros(shape, dtype=dtype)}))


def write(name: str, content: str | bytes = "{}") -> Break:
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def twice(name: str, key: str) -> Break:
    """Give a JSON file one of its keys a second time, last and with the same value."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text().rstrip()
        again = json.dumps({key: json.loads(text)[key]})
        (folder / name).write_text(f"{text[:-1]}, {again[1:]}")

    return change


def pipeline(**parts: Any) -> Break:
    return settings("tokenizer.json", **parts)


def added(number: int, content: str, special: bool = False) -> Break:
    """Give tokenizer.json one more added token."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        said = json.loads(path.read_text())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        said["added_tokens"].append({"id": number, "content": content, "special": special, **flags})
        path.write_text(json.dumps(said))

    return change


def shards(change: Callable[[dict[str, str]], Any]) -> Break:
    """Store the weights in parts, and change what the index says of them."""

    def store(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        tiny_llama().save_pretrained(folder, max_shard_size="40KB")
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return store


def both(*changes: Break) -> Break:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def dangling(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "nowhere")


def only_config_of_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    settings("tokenizer_config.json", tokenizer_class="LlamaTokenizer")(folder)


TOGETHER = "weights and config.json do not belong together: "
QUANTISED = "its weights are quantised"
NO_ID = "is no id of the vocabulary (0 to 63)"
REFUSED: dict[str, tuple[Break, str]] = {
    # tensors
    "one tensor under two names": (
        add("layers.0.mlp.up_proj.weight", 80, 32),
        "holds model.layers.0.mlp.up_proj.weight also as layers.0.mlp.up_proj.weight; remove one",
    ),
    "no number": (
        settings("config.json", rope_theta=math.nan),
        "config.json: it holds NaN, which is no number",
    ),
    "bias without a place": (add(BIAS, 32), f"{TOGETHER}without a place in the model {BIAS}; correct one"),
    "one layer more": (add("model.layers.2.mlp.up_proj.weight", 80, 32), f"{TOGETHER}without a place"),
    "one layer fewer": (settings("config.json", num_hidden_layers=1), f"{TOGETHER}without a place"),
    "many layers": (
        settings("config.json", num_hidden_layers=10**9),
        "says 1000000000 layers, but there are",
    ),
    "missing": (weights(lambda at: at.pop(UP)), f"{TOGETHER}missing {UP}; correct one"),
    "no head": (weights(lambda at: at.pop("lm_head.weight")), f"{TOGETHER}missing lm_head.weight"),
    "other width": (settings("config.json", intermediate_size=96), "(32, 80) instead of (32, 96)"),
    "other vocabulary": (settings("config.json", vocab_size=65), "(64, 32) instead of (65, 32)"),
    "transposed": (
        weights(lambda at: at.update({UP: at[UP].T.contiguous()})),
        f"of another shape {UP} (32, 80) instead of (80, 32)",
    ),
    "integers": (
        weights(lambda at: at.update({UP: at[UP].to(torch.int32)})),
        f"{UP} is I32; weights are F64, F32, F16, BF16",
    ),
    "a mask of two dimensions": (add("model.layers.0.attn.bias", 4, 4), f"{TOGETHER}without a place"),
    # quantised
    **{
        f"quantised {by}": (
            settings("config.json", quantization_config={"quant_method": by, "bits": 4}),
            f"{QUANTISED} ({by})",
        )
        for by in ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "made-up")
    },
    "quantised beside": (write("quantize_config.json"), f"{QUANTISED} (quantize_config.json)"),
    "quantised tensors": (add("model.layers.0.mlp.up_proj.qweight", 8, dtype=torch.int32), QUANTISED),
    "quantised nf4": (add(f"{UP}.quant_state.bitsandbytes__nf4", 8, dtype=torch.uint8), QUANTISED),
    "float8": (
        weights(lambda at: at.update({UP: at[UP].to(torch.float8_e4m3fn)})),
        f"{QUANTISED} ({UP} is F8_E4M3)",
    ),
    # files
    "adapter": (write("adapter_config.json"), "holds an adapter (adapter_config.json); merge it first"),
    "adapter weights": (write("adapter_model.safetensors", b""), "holds an adapter"),
    "two sets of weights": (
        lambda at: shutil.copy(at / "model.safetensors", at / "model.fp16.safetensors"),
        "model.fp16.safetensors is beside model.safetensors, so it is not known which weights are meant",
    ),
    "factors without a manifest": (
        lambda at: (at / "model.safetensors").rename(at / "factored.safetensors"),
        "model.safetensors is missing",
    ),
    "manifest without factors": (write("factors.json"), "factored.safetensors is missing"),
    "link to nowhere": (dangling, "link that leads nowhere"),
    "weights are a folder": (
        both(lambda at: (at / "model.safetensors").unlink(), lambda at: (at / "model.safetensors").mkdir()),
        "not a file or a link that leads nowhere",
    ),
    "pipe": (
        both(lambda at: (at / "model.safetensors").unlink(), lambda at: os.mkfifo(at / "model.safetensors")),
        "not a file or a link that leads nowhere",
    ),
    "shard gone": (
        shards(lambda index: index.update({UP: "model-00009-of-00009.safetensors"})),
        "model-00009-of-00009.safetensors is missing",
    ),
    "index names another shard": (
        shards(lambda index: index.update({UP: sorted(set(index.values()) - {index[UP]})[0]})),
        f"of {UP}, which is in model-0000",
    ),
    "index lacks a tensor": (shards(lambda index: index.pop(UP)), f"says nothing of {UP}, which is in"),
    "index is a number": (
        both(shards(dict.copy), write("model.safetensors.index.json", "7")),
        "not an index of weight files",
    ),
    "index leads out": (
        both(shards(dict.copy), write("model.safetensors.index.json", '{"weight_map": {"a": "../b"}}')),
        "../b is missing",
    ),
    # config
    "code of its own": (
        settings(
            "config.json", model_type="zork", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}
        ),
        "not a Hugging Face model folder",
    ),
    "weights elsewhere": (
        settings("config.json", transformers_weights="other.safetensors"),
        "config.json sets transformers_weights, which is not followed here",
    ),
    "kernel of the hub": (
        settings("config.json", attn_implementation="someone/kernel"),
        "kernel from the hub",
    ),
    "settings that cannot be saved": (
        settings("config.json", output_attentions=True),
        "would not write again",
    ),
    "odd heads": (settings("config.json", num_attention_heads=0), "{}"),
    "endless number": (write("config.json", '{"model_type": "llama", "vocab_size": ' + "9" * 5000), "{}"),
    "deep": (write("config.json", "[" * 100_000), "{}"),
    "no text": (write("config.json", b"\xff\xfe\x00"), "{}"),
    # a key given twice, of which transformers reads the last
    **{
        f"{key} twice in {file}": (
            both(before, twice(file, key)),
            f"{file}: {what}the key {key!r} is given twice",
        )
        for file, key, what, before in (
            ("config.json", "num_attention_heads", "", both()),
            ("generation_config.json", "eos_token_id", "not settings for generation: ", both()),
            ("tokenizer_config.json", "eos_token", "", both()),
            ("tokenizer.json", "model", "", both()),
            (
                "model.safetensors.index.json",
                "weight_map",
                "not an index of weight files: ",
                shards(dict.copy),
            ),
        )
    },
    "a key twice deep in the tokenizer": (
        write("added_tokens.json", '{"a": {"the": 7, "the": 8}}'),
        "no tokenizer can be loaded from there: added_tokens.json: the key 'the' is given twice",
    ),
    # values of the config
    **{
        f"{key} {value}": (settings("config.json", **{key: value}), f"{key} {value!r}; it must be {allowed}")
        for key, value, allowed in (
            ("rms_norm_eps", -1, "a number above 0"),
            ("rms_norm_eps", "x", "a number above 0"),
            ("max_position_embeddings", 0, "a whole number from 1"),
            ("max_position_embeddings", 10.5, "a whole number from 1"),
            ("sliding_window", -5, "a whole number from 1"),
            ("attention_dropout", 2.0, "from 0 to below 1"),
            ("attention_dropout", True, "from 0 to below 1"),
            ("rope_theta", 0, "a number above 0"),
            ("rope_theta", -1, "a number above 0"),
            ("rope_theta", math.inf, "a number above 0"),
            ("partial_rotary_factor", 1.5, "from 0 to 1"),
            ("logits_scaling", 0, "a number above 0"),
            ("attention_multiplier", math.inf, "a finite number"),
            ("initializer_range", -1, "a number from 0"),
        )
    },
    "an unknown activation": (
        settings("config.json", hidden_act="sillu"),
        "config.json: no hidden_act 'sillu'; did you mean 'silu'",
    ),
    "a factor that is text": (
        settings("config.json", rope_scaling={"rope_type": "linear", "factor": "x"}),
        "config.json: rope_scaling gives factor 'x'; it must be a number above 0",
    ),
    **{
        f"a base of {value} in {place}": (
            settings("config.json", **section),
            f"config.json: {place} gives rope_theta {value!r}; it must be a number above 0",
        )
        for value in (0, -1, math.inf, "10000")
        for place, section in (
            ("rope_parameters", {"rope_parameters": {"rope_type": "default", "rope_theta": value}}),
            ("rope_scaling", {"rope_scaling": {"rope_type": "default", "rope_theta": value}}),
            (
                "rope_parameters: full_attention",
                {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": value}}},
            ),
        )
    },
    "two bases": (
        settings("config.json", rope_theta=50.0),
        "gives rope_theta 50.0, and 10000.0 in rope_parameters; only the second would be used: remove",
    ),
    "two factors": (
        settings(
            "config.json",
            partial_rotary_factor=0.5,
            rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.25},
        ),
        "gives partial_rotary_factor 0.5, and 0.25 in rope_parameters",
    ),
    "two sections on rotary positions": (
        settings("config.json", rope_scaling={"rope_type": "linear", "factor": 4.0}),
        "gives rope_scaling and rope_parameters, which differ; remove one of them",
    ),
    "weights that Git LFS has not fetched": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "/model.safetensors: a pointer of Git LFS instead of the file; run `git lfs pull` there",
    ),
    # ids
    **{
        f"{name} {value} of {file}": (settings(file, **{name: value}), NO_ID)
        for name, value in (("pad_token_id", 64), ("pad_token_id", -1), ("eos_token_id", [2, 64]))
        for file in ("config.json", "generation_config.json")
    },
    "begin beyond": (settings("config.json", bos_token_id=10**12), NO_ID),
    "generation settings are a list": (write("generation_config.json", "[]"), "not settings for generation"),
    # tokenizer
    "added token beyond": (
        added(64, "<extra>"),
        "the tokenizer has 1 tokens beyond the model's vocabulary of 64, the first '<extra>' with id 64",
    ),
    "padding beyond": (
        both(added(64, "[PAD]", special=True), settings("tokenizer_config.json", pad_token="[PAD]")),
        f"pad_token_id 64 of the tokenizer {NO_ID}",
    ),
    **{
        f"a word made a special token by {file}": (
            settings(file, **values),
            f"tokenizer.json gives other ids than the tokenizer that transformers makes of it and of "
            f"tokenizer_config.json or another file ({words} only there); correct the added tokens",
        )
        for file, values, words in (
            ("tokenizer_config.json", {"extra_special_tokens": ["ada"]}, "'ada'"),  # a piece, with an id
            ("tokenizer_config.json", {"extra_special_tokens": ["owl", "gives"]}, "'gives', 'owl'"),  # beyond
            ("added_tokens.json", {"ada": 7}, "'ada'"),
        )
    },
    "unknown type": (pipeline(pre_tokenizer={"type": "Zork"}), "no tokenizer can be loaded"),
    "a number for a part": (pipeline(pre_tokenizer=2.5), "no tokenizer can be loaded"),
    "no model": (pipeline(model=None), "no tokenizer can be loaded"),
    "random merges": (
        lambda at: pipeline(
            model=json.loads((at / "tokenizer.json").read_text())["model"] | {"dropout": 0.1}
        )(at),
        "drops merges at random",
    ),
    "no vocabulary": (only_config_of_tokenizer, "its tokenizer has no vocabulary"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_is_not_what_its_config_says_is_refused_by_name(folder: Path, name: str) -> None:
    change, says = REFUSED[name]
    change(folder)
    with pytest.raises(UserError) as caught:
        check_model(local(folder))
    assert str(caught.value).startswith(str(folder))
    assert says.format(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


HARMLESS: dict[str, Break] = {
    "a mark that tokenizer.json lacks": settings("tokenizer_config.json", extra_special_tokens=["[MASK]"]),
    "old buffers": both(
        add("model.layers.0.self_attn.rotary_emb.inv_freq", 4),
        add("model.layers.0.attn.bias", 1, 1, 8, 8, dtype=torch.uint8),
        add("model.layers.0.attn.masked_bias"),
    ),
    "files of another system": both(
        write("._model.safetensors", b"\x00\x05"), write("._config.json", b"\xff"), write("._tokenizer.json")
    ),
    "the same weights in another format": write("consolidated.safetensors", b""),
    "pickles beside": write("pytorch_model.bin", b"\x80"),
    "shards with their index": shards(dict.copy),
    "a special token beyond the embedding": added(64, "<sentinel>", special=True),
    "settings for generation that cannot be written": settings(
        "generation_config.json", do_sample=False, temperature=0.5, bos_token_id=1
    ),
    "values that are not given": settings("config.json", sliding_window=None, attention_dropout=0),
    "one base in two places": settings("config.json", rope_theta=10000),
    "a window that is not used": settings("config.json", use_sliding_window=False, sliding_window=0),
    "rotary positions for two versions of transformers": settings(
        "config.json",
        rope_theta=10000.0,
        rope_scaling={"type": "default"},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "another type of numbers": weights(lambda at: at.update({UP: at[UP].double()})),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_is_left_alone(folder: Path, name: str) -> None:
    HARMLESS[name](folder)
    loaded = load(folder)
    assert torch.equal(logits(loaded.model), logits(tiny_llama()))
    checkpoint.save(loaded.model, loaded.tokenizer, folder.with_name("again"))
    assert torch.equal(logits(load(folder.with_name("again")).model), logits(tiny_llama()))


def test_a_folder_is_checked_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    real = folders._checked
    monkeypatch.setattr(folders, "_checked", lambda *given: read.append(given) or real(*given))
    for _ in range(3):
        check_model(local(folder))
    assert len(read) == 1
    add(BIAS, 32)(folder)
    with pytest.raises(UserError):
        check_model(local(folder))
    assert len(read) == 2


def test_a_folder_of_seven_billion_weights_is_checked_from_headers_alone(tmp_path: Path) -> None:
    from harness.engine.models.load import shape_config

    config = shape_config("7b")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    header, offset = {}, 0
    for name, tensor in folders.empty_model(config).state_dict().items():
        end = offset + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    content = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + offset)  # 13.5 GB of a hole, which takes no room
    started = time.process_time()
    folders.check(tmp_path)
    assert time.process_time() - started < 10  # about one second on a machine at rest


# ----------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(value: float, dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)
    checkpoint.refuse_not_finite(model, "model")
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.up_proj").weight[3, 4] = value  # type: ignore[operator, index]
    with pytest.raises(UserError, match=f"model: weights hold NaN or infinite values: {UP}; copy"):
        checkpoint.refuse_not_finite(model, "model")


def test_large_weights_are_finite_although_their_sum_is_not() -> None:
    model = tiny_llama().to(torch.float16)
    with torch.no_grad():
        model.get_submodule("lm_head").weight.fill_(60000)  # type: ignore[operator, union-attr]
    checkpoint.refuse_not_finite(model, "model")


# ------------------------------------------------------------------------------------------- tying
@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("own_head", [True, False])
def test_a_head_is_tied_where_the_files_hold_one_tensor(tmp_path: Path, said: bool, own_head: bool) -> None:
    checkpoint.save(tiny_llama(), None, tmp_path)
    if not own_head:
        weights(lambda at: at.update({"lm_head.weight": at["model.embed_tokens.weight"].clone()}))(tmp_path)
    settings("config.json", tie_word_embeddings=said)(tmp_path)
    truth = load_file(tmp_path / "model.safetensors")
    model: Any = load(tmp_path).model
    assert torch.equal(model.lm_head.weight, truth["lm_head.weight"])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (said and not own_head)
    assert model.config.tie_word_embeddings == (said and not own_head)


# --------------------------------------------------------------------------------------- tokenizers
def test_a_special_token_beyond_the_embedding_that_is_a_word_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    pieces = tokenizer.get_vocab()
    words = sorted(p for p in pieces if p.startswith("▁") and len(p) > 1 and p[1:] not in pieces)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<sentinel>"]})
    folders.check_vocabulary(tokenizer, 64, "here")
    tokenizer.add_special_tokens({"extra_special_tokens": [words[0][1:]]})
    with pytest.raises(UserError, match=f"1 tokens beyond .* of 64, the first '{words[0][1:]}' with id 65"):
        folders.check_vocabulary(tokenizer, 64, "here")


TEXTS = ("Ada  gives\nBen 123 owls.", "<s>a </s> b", "  ünï  ", sentence(7))


def ids(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma", "mistral", "llama", "phi3", "gpt_neox", "bloom"])
@pytest.mark.parametrize("named", [None, "PreTrainedTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer"])
def test_the_ids_are_those_of_the_folders_own_tokenizer(folder: Path, kind: str, named: str | None) -> None:
    settings("config.json", model_type=kind)(folder)
    settings("tokenizer_config.json", tokenizer_class=named)(folder)
    truth = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [truth.encode(text, add_special_tokens=False).ids for text in TEXTS]
    tokenizer = own_tokenizer(folder)
    assert ids(tokenizer) == expected
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_text_without_a_tokenizer_is_refused_before_training(folder: Path) -> None:
    check_tokenizer(local(folder))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    for model in (local(folder), ShapeModel(source="shape", name="nano")):
        with pytest.raises(UserError, match="this model has no tokenizer, and text or tasks need one"):
            check_tokenizer(model)


def test_a_shape_takes_the_marks_of_the_tokenizer_that_it_borrows(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "</s>", "<s>", None
    tokenizer.save_pretrained(tmp_path)
    shape = ShapeModel(source="shape", name="nano", tokenizer=str(tmp_path))
    model: Any = load_model(shape, dtype=torch.float32, device=torch.device("cpu"), seed=0).model
    expected = (*tokenizer.convert_tokens_to_ids(["</s>", "<s>"]), None)
    for said in (model.config, model.generation_config):
        assert (said.bos_token_id, said.eos_token_id, said.pad_token_id) == expected
    plain = load_model(
        ShapeModel(source="shape", name="nano"), dtype=torch.float32, device=torch.device("cpu"), seed=0
    )
    assert torch.equal(logits(model), logits(plain.model))


# ------------------------------------------------------------------------------- other architectures
def test_a_model_without_a_limit_of_positions_has_none(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    model: Any = load(tmp_path).model
    assert context_of(model.config) is None
    assert context_of(tiny_llama().config) == 128


def test_a_base_model_stored_without_its_prefix_is_whole(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
        )
    )
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    save_file(short, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load(tmp_path).model), logits(model))
