"""What a language model can hold, checked when it is loaded: its context, its tokens, its layers; for every use."""

import json

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from mmgen.conditioning.attributes import BagOfWords
from mmgen.conditioning.few_shot import Example, Format, answer, read
from mmgen.conditioning.gradient import PPLM
from mmgen.conditioning.language_model import CACHE, context_length, load_language_model
from mmgen.conditioning.prefix import PrefixLanguageModel
from mmgen.conditioning.pseudo_self_attention import PseudoSelfAttention
from mmgen.conditioning.ranking import text_log_prob
from mmgen.conditioning.representations import representation
from mmgen.conditioning.text_encoder import embed_sentences, load_text_encoder
from mmgen.data.batch import collate
from mmgen.data.text import TextProcessor, train_tokenizer
from mmgen.errors import UserError
from mmgen.inference.steer import steer
from mmgen.models.answerer import Answerer
from mmgen.models.captioner import Captioner
from mmgen.models.class_language_model import ClassLanguageModel
from mmgen.models.psa_captioner import PseudoSelfAttentionCaptioner
from tests.tiny import TINY_CAPTIONER

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GPT2_SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 48}
MANY = {"max_position_embeddings": 48, **SIZES}
ANY_LENGTH = 60 * "a"

# positions that are learned, rotary, and none
LEARNED_OR_ROTARY = {
    "gpt2": lambda v: GPT2LMHeadModel(GPT2Config(vocab_size=v, **GPT2_SIZES)),
    "opt": lambda v: OPTForCausalLM(OPTConfig(vocab_size=v, ffn_dim=32, word_embed_proj_dim=16, **MANY)),
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, **MANY)),
    "mpt": lambda v: MptForCausalLM(MptConfig(vocab_size=v, d_model=16, n_heads=2, n_layers=2, max_seq_len=48)),
    "gpt_neox": lambda v: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=v, **MANY)),
}
NO_SELF_ATTENTION = {
    "mamba": lambda v: MambaForCausalLM(MambaConfig(vocab_size=v, hidden_size=16, num_hidden_layers=2, state_size=4)),
    "jamba": lambda v: JambaForCausalLM(
        JambaConfig(vocab_size=v, num_key_value_heads=2, num_experts=2, mamba_d_state=4, use_mamba_kernels=False, **SIZES)
    ),
    "rwkv": lambda v: RwkvForCausalLM(
        RwkvConfig(vocab_size=v, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2, context_length=48)
    ),
    "openai-gpt": lambda v: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=v, **GPT2_SIZES)),  # keeps nothing
}


def save(model, folder, vocabulary: int = 259) -> str:
    texts = [f"word{i} number{i}" for i in range(vocabulary)]
    model.save_pretrained(folder)
    train_tokenizer(texts, vocabulary).tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=LEARNED_OR_ROTARY)
def folder(request, tmp_path):
    return save(LEARNED_OR_ROTARY[request.param](259), tmp_path / request.param)


def test_no_forward_pass_reads_beyond_the_context(folder):
    model, _ = load_language_model(folder, "fp32")
    assert context_length(model) == 48
    model(input_ids=torch.full((2, 48), 7))
    cache = model(input_ids=torch.full((1, 48), 7), use_cache=True).past_key_values
    beyond = {
        "ids": lambda: model(input_ids=torch.full((1, 49), 7)),
        "embeddings": lambda: model(inputs_embeds=torch.zeros(1, 49, 16)),
        "a cache": lambda: model(input_ids=torch.full((1, 1), 7), **{CACHE: cache}),
        "the layers below the head": lambda: model.get_decoder()(input_ids=torch.full((1, 49), 7)),
        "positions": lambda: model(input_ids=torch.full((1, 49), 7), position_ids=torch.arange(49)[None]),
    }
    for call in beyond.values():
        with pytest.raises(UserError, match="text for the language model: got 49 tokens, expected at most 48, the context"):
            call()


def test_padding_takes_no_place(tmp_path):
    model, _ = load_language_model(save(LEARNED_OR_ROTARY["gpt2"](259), tmp_path), "fp32")
    mask = torch.arange(60)[None] >= 20
    places = (mask.long().cumsum(1) - 1).clamp(min=0)
    padded = model(input_ids=torch.full((1, 60), 7), attention_mask=mask.long(), position_ids=places).logits[:, 20:]
    torch.testing.assert_close(padded, model(input_ids=torch.full((1, 40), 7)).logits)


@pytest.mark.parametrize("kind", [Captioner, PseudoSelfAttentionCaptioner])
def test_a_caption_longer_than_the_context(kind, folder):
    settings = {**TINY_CAPTIONER, "language_model": folder, "before": "", "after": ""}
    model = kind(**settings) if kind is Captioner else kind(settings)
    text = model.processors["text"]
    with pytest.raises(UserError, match=r"text 'aaa.*: got 61 tokens, expected at most .*shorten it"):
        text(ANY_LENGTH)
    longest = text("a" * (text.room - 1))
    batch = collate([{"image": torch.zeros(3, 32, 32), "text": longest}], ["text"])
    assert model.losses(batch).total.isfinite()  # what is let in can be read
    with pytest.raises(UserError, match=r"prompt and max_tokens: got \d+ tokens, expected at most 48"):
        model.generate(batch.without("text"), max_tokens=48)
    assert len(model.generate(batch.without("text"), max_tokens=4)) == 1


def test_a_prompt_that_leaves_no_room_for_a_caption(folder):
    with pytest.raises(UserError, match=r"words, before, between, after and a caption: got \d+ tokens, expected at most 48"):
        Captioner(**{**TINY_CAPTIONER, "language_model": folder, "words": 60})


def test_a_question_longer_than_the_context(folder):
    model = Answerer({**TINY_CAPTIONER, "language_model": folder}, "{image}{question}:{answer}\n", [("a", "b?", "c")])
    with pytest.raises(UserError, match=r"prompt and question 'aaa.*got .* tokens, expected at most 48.*shorten the question"):
        model.row(ANY_LENGTH, "yes")
    reader = model.language_model
    with pytest.raises(UserError, match=r"prompt: got .* tokens with 0 shots, expected at most 48"):
        answer(reader, read(reader, Format("{question}:{answer}\n")), [Example(ANY_LENGTH)])


def test_other_uses(folder):
    model, tokenizer = load_language_model(folder, "fp32")
    reader = PrefixLanguageModel(folder, "fp32")
    ids = torch.full((1, 49), 7)
    prompt = reader.prompt([["a"]])
    pplm = PPLM(BagOfWords(model, tokenizer, ["a"]))
    uses = {
        "a class's language model": lambda: ClassLanguageModel(["a", "b"], folder, "fp32", max_tokens=49),
        "a text read as features": lambda: representation(model, tokenizer, ANY_LENGTH, [1]),
        "the perplexity of a text": lambda: text_log_prob(model, ids, torch.ones_like(ids).bool(), 1),
        "a prompt that is steered": lambda: steer(model, tokenizer, [ANY_LENGTH], pplm),
        "a condition of every layer": lambda: PseudoSelfAttention(model.config, 3).log_prob(
            reader, torch.zeros(1, 2, 3), prompt, ids, torch.ones_like(ids).bool()
        ),
    }
    for call in uses.values():
        with pytest.raises(UserError, match=r"got \d+ tokens, expected at most 48, the context of this language model"):
            call()


def test_a_model_that_says_no_length_reads_any(tmp_path):
    config = BloomConfig(vocab_size=259, hidden_size=16, n_layer=2, n_head=2)
    model, _ = load_language_model(save(BloomForCausalLM(config), tmp_path), "fp32")
    assert context_length(model) is None
    model(input_ids=torch.full((1, 99), 7))


@pytest.mark.parametrize("name", ["n_positions", "max_seq_len", "n_ctx", "seq_length"])
def test_whatever_a_config_calls_its_length(name):
    model = BloomForCausalLM(BloomConfig(vocab_size=259, hidden_size=16, n_layer=1, n_head=2, **{name: 48}))
    assert context_length(model) == 48


@pytest.mark.parametrize("kind", NO_SELF_ATTENTION)
def test_a_model_that_keeps_no_keys_and_values(kind, tmp_path):
    with pytest.raises(
        UserError, match=rf"language model {tmp_path}: got a {kind} model.*, expected self-attention in every layer"
    ):
        load_language_model(save(NO_SELF_ATTENTION[kind](259), tmp_path), "fp32")


def test_a_tokenizer_larger_than_the_embeddings(tmp_path):
    folder = save(LEARNED_OR_ROTARY["llama"](300), tmp_path / "a", vocabulary=310)
    got = "language model .*: got a tokenizer of 310 tokens, expected at most 300, as many as the model has embeddings"
    with pytest.raises(UserError, match=got):
        load_language_model(folder, "fp32")
    with pytest.raises(UserError, match=got.replace("language model", "text encoder")):
        load_text_encoder(folder)
    load_language_model(save(LEARNED_OR_ROTARY["llama"](310), tmp_path / "b", vocabulary=300), "fp32")  # rows left over


def test_special_tokens_beyond_the_embeddings(tmp_path):
    """Of pictures, as Gemma 3 has: no text is turned into one. The end of a text is another matter."""
    folder = save(LEARNED_OR_ROTARY["llama"](259), tmp_path)
    tokenizer = TextProcessor.from_pretrained(folder).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    _, again = load_language_model(folder, "fp32")
    assert again.convert_tokens_to_ids("<image>") == 259
    again.eos_token = "<image>"
    again.save_pretrained(folder)
    with pytest.raises(UserError, match="got a tokenizer of 260 tokens, expected at most 259"):
        load_language_model(folder, "fp32")


def test_a_vocabulary_of_few_tokens(tmp_path):
    folder = save(LEARNED_OR_ROTARY["llama"](259), tmp_path / "a")
    LlamaForCausalLM(LlamaConfig(vocab_size=4, bos_token_id=1, eos_token_id=2, **MANY)).save_pretrained(folder)
    with pytest.raises(UserError, match="got a tokenizer of 259 tokens, expected at most 4"):
        load_language_model(folder, "fp32")


def test_a_damaged_tokenizer(tmp_path):
    folder = save(LEARNED_OR_ROTARY["llama"](259), tmp_path)
    for text in (json.dumps({"version": "1.0", "model": 3}), json.dumps({"added_tokens": []}), "{"):
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=f"{tmp_path}: got .*, expected .*a causal model of transformers"):
            load_language_model(folder, "fp32")


def test_a_text_encoder_whose_positions_begin_after_padding(tmp_path):
    config = RobertaConfig(vocab_size=259, pad_token_id=1, **{**MANY, "max_position_embeddings": 22})
    folder = save(RobertaModel(config), tmp_path)
    model, tokenizer = load_text_encoder(folder)
    assert context_length(model) == 20
    assert embed_sentences(model, tokenizer, [ANY_LENGTH, "a"]).shape == (2, 16)
