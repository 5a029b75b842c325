"""What all ways of steering share: what they see of `generate`, and what they refuse."""

import json

import pytest
import torch
from test_gradient import Indifferent, head
from test_language_model import SIZES
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from mmgen.cli import main
from mmgen.conditioning.attributes import BagOfWords, Discriminator, State
from mmgen.conditioning.gradient import PPLM
from mmgen.conditioning.language_model import CACHE, load_language_model
from mmgen.conditioning.prefix import PrefixLanguageModel, Prompt
from mmgen.conditioning.pseudo_self_attention import PseudoSelfAttention
from mmgen.conditioning.ranking import text_log_prob
from mmgen.conditioning.reweighting import Fudge
from mmgen.errors import UserError
from mmgen.inference.steer import best, write
from mmgen.training.config import parse_overrides

TINY, TOKENIZER = load_language_model("tiny", "fp32")
BAG = BagOfWords(TINY, TOKENIZER, ["z", "q"])
IDS = TOKENIZER(["hello"], return_tensors="pt").input_ids
METHODS = (PPLM, Fudge)


class Watch:
    """An attribute without preferences that keeps the means of hidden states it is shown."""

    horizon = 0

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def log_prob(self, state: State) -> torch.Tensor:
        self.seen.append(state.hidden.detach().clone())
        return 0.0 * state.log_p.sum(1)


def run(method, model=TINY, ids=IDS, **options):
    return model.generate(
        ids, custom_generate=method, **{"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, **options}
    )


@torch.no_grad()
def test_the_mean_of_hidden_states_is_that_of_the_text():
    """Whatever else runs the language model meanwhile, as guidance does."""
    watch = Watch()
    written = run(PPLM(watch, iterations=1, kl_scale=0.0), guidance_scale=1.0000001)
    for n, mean in enumerate(watch.seen):
        text = written[:, : IDS.shape[1] + n]
        expected = TINY(text, output_hidden_states=True).hidden_states[-1].mean(1)
        torch.testing.assert_close(mean, expected, atol=1e-4, rtol=1e-4)
    assert len(watch.seen) == 3


@pytest.mark.parametrize("method", METHODS)
def test_penalties_see_logits(method):
    """A penalty of repetition divides what is above zero and multiplies what is below: log p would be another thing."""
    settings = {"step_size": 0.0} if method is PPLM else {"strength": 0.0, "top": len(TOKENIZER)}
    plain = TINY.generate(IDS, max_new_tokens=12, do_sample=False, pad_token_id=0, repetition_penalty=1.3)
    assert torch.equal(run(method(BAG, **settings), max_new_tokens=12, repetition_penalty=1.3), plain)
    same = PPLM(Indifferent(), kl_scale=0.0)
    assert torch.equal(run(same, max_new_tokens=12, repetition_penalty=1.3), plain)


@pytest.mark.parametrize("window", [0, 30])
def test_padding_has_no_part_in_the_window(window):
    def scores(*prompts: str) -> torch.Tensor:
        encoded, seen = TOKENIZER([*prompts], return_tensors="pt", padding=True, padding_side="left"), []
        run(PPLM(BAG, step_size=0.5, decay=True, window=window), ids=encoded.input_ids, max_new_tokens=1,
            attention_mask=encoded.attention_mask, logits_processor=[lambda i, s: seen.append(s) or s])  # fmt: skip
        return seen[0][-1]

    torch.testing.assert_close(scores("oh no"), scores("a much longer prompt", "oh no"), atol=1e-4, rtol=1e-4)


def test_positions_are_the_callers():
    """A condition that is prepended to the past has no place: the text still counts from 0."""
    reader = PrefixLanguageModel("tiny", "fp32")
    torch.manual_seed(0)
    psa = PseudoSelfAttention(reader.model.config, 5)
    prompt, condition = reader.prompt([["hello"]]), torch.randn(1, 3, 5)
    plain, steered = [], []
    for seen, more in ((plain, {}), (steered, {"custom_generate": PPLM(Nothing(), kl_scale=0.0, fusion=1.0)})):
        listen = [lambda ids, scores, seen=seen: seen.append(scores.log_softmax(-1)) or scores]
        options = {"max_new_tokens": 3, "do_sample": False, "logits_processor": listen}
        psa.generate(reader, condition, Prompt(*prompt), **options, **more)
    torch.testing.assert_close(torch.cat(steered), torch.cat(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steered", [PPLM(BAG, step_size=3.0, gamma=1.0, fusion=0.5), Fudge(BAG)])
def test_steered_scores_are_on_the_scale_of_the_logits(steered):
    options = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    output = TINY.generate(IDS, custom_generate=steered, max_new_tokens=3, min_new_tokens=0, pad_token_id=0, **options)
    assert not torch.allclose(output.scores[-1], output.logits[-1])  # it is steered
    for scores, logits in zip(output.scores, output.logits):
        torch.testing.assert_close(scores.logsumexp(-1), logits.logsumexp(-1), atol=1e-4, rtol=0)


class Nothing:
    """An attribute that all texts have alike, and that reads no hidden states."""

    horizon = None

    def log_prob(self, state: State) -> torch.Tensor:
        return 0.0 * state.log_p.sum(1)


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_steered(method):
    steered = method(Discriminator(head(), 1))
    with pytest.raises(UserError, match="generate: got beam_search, expected sampling"):
        run(steered, num_beams=3)
    for options in ({"use_cache": False}, {"cache_implementation": "static"}):
        with pytest.raises(UserError, match=r"language model: got the cache \w+, expected a decoder with a DynamicCache"):
            run(steered, **options)
    with torch.no_grad():
        cache = DynamicCache(config=TINY.config)
        TINY(IDS[:, :2], **{CACHE: cache})
    with pytest.raises(UserError, match="cache: got 2 positions, expected none"):
        run(steered, **{CACHE: cache})
    short = MistralForCausalLM(MistralConfig(vocab_size=len(TOKENIZER), num_key_value_heads=1, sliding_window=6, **SIZES))
    with pytest.raises(UserError, match=r"length: got \d+ tokens, expected at most 6, the sliding window"):
        run(steered, short.eval(), max_new_tokens=9)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=len(TOKENIZER), hidden_size=32, state_size=4, num_hidden_layers=1))
    with pytest.raises(UserError, match=r"language model: got a mamba model with a .*, expected self-attention in every"):
        run(steered, mamba.eval())
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(UserError, match="language model: got an encoder and a decoder"):
        run(steered, t5.eval(), decoder_start_token_id=0)


def test_another_architecture_is_steered_too():
    model = OPTForCausalLM(OPTConfig(vocab_size=len(TOKENIZER), ffn_dim=64, word_embed_proj_dim=32, **SIZES)).eval()
    watch = Watch()
    run(PPLM(watch, iterations=1), model, max_new_tokens=1)
    with torch.no_grad():
        expected = model(IDS, output_hidden_states=True).hidden_states[-1].mean(1)
    torch.testing.assert_close(watch.seen[0], expected, atol=1e-4, rtol=1e-4)


class Odd:
    """An attribute that gives what it is told to."""

    horizon = None

    def __init__(self, value) -> None:
        self.value = value

    def log_prob(self, state: State) -> torch.Tensor:
        return self.value(state.log_p)


@pytest.mark.parametrize("method", METHODS)
def test_attributes_that_are_none(method):
    with pytest.raises(UserError, match="attribute: got 'space', expected one with log_prob"):
        method("space")
    with pytest.raises(UserError, match="steered logits: got NaN"):
        run(method(Odd(lambda log_p: log_p.sum(1) * float("nan"))))
    with pytest.raises(UserError, match=r"attribute: got shape \(\d+, 1\), expected \(\d+,\), one number a text"):
        run(method(Odd(lambda log_p: log_p[:, :1])))


def test_settings_that_are_not_finite():
    for name in ("gamma", "step_size", "kl_scale"):
        with pytest.raises(UserError, match=f"{name}: got (nan|inf)"):
            PPLM(BAG, **{name: float("nan") if name == "gamma" else float("inf")})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"iterations": 1.5}, r"iterations: got 1\.5, expected a whole number"),
        ({"iterations": True}, "iterations: got True, expected a whole number"),
        ({"step_size": "0.1"}, r"step_size: got '0\.1', expected a finite number"),
        ({"decay": 1}, "decay: got 1, expected True or False"),
        ({"gamma": -1.0}, r"gamma: got -1\.0, expected a number >= 0"),
    ],
)
def test_settings_of_another_type(setting, words):
    with pytest.raises(UserError, match=words):
        PPLM(BAG, **setting)


def test_an_empty_text_is_never_the_best():
    model, tokenizer = load_language_model("tiny", "fp32")
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0.0
    ids = torch.tensor([[40, 41, 2], [40, 41, 50]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    likely, fluent = text_log_prob(model, ids, mask, 2, BAG)
    assert likely[0] == -torch.inf and fluent[0].isnan() and likely[1].isfinite()
    likely, _ = text_log_prob(model, ids, mask, 2, Discriminator(head(), 1))
    assert likely[0] == -torch.inf and likely[1].isfinite()
    assert text_log_prob(model, ids[:1], mask[:1], 2, BAG)[0].tolist() == [-torch.inf]
    assert best([{"text": "", "attribute": -torch.inf}, {"text": "a", "attribute": -9.0}])["text"] == "a"
    with pytest.raises(UserError, match="start: got 0"):
        text_log_prob(model, ids, mask, 0)


def test_every_end_of_a_text_ends_it():
    model, tokenizer = load_language_model("tiny", "fp32")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(60, 259)]
    ((row,),) = write(model, tokenizer, ["hello"], BAG, length=20, top_k=0)
    assert all(token < 60 for token in tokenizer(row["text"]).input_ids)


def test_a_text_beyond_the_context_and_other_mistakes(capsys, tmp_path):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()
    with pytest.raises(UserError, match=r"prompt and length: got 85 tokens, expected at most 64"):
        write(gpt2, TOKENIZER, ["hello"], BAG, length=80)
    with pytest.raises(UserError, match="seed: got 10000000000, expected below"):
        write(TINY, TOKENIZER, ["hello"], BAG, seed=10**10)
    with pytest.raises(UserError, match=r"text: got '\\udcff', expected text in UTF-8"):
        write(TINY, TOKENIZER, ["\udcff"], BAG)
    with pytest.raises(UserError, match=r"text: got '\\udcff', expected text in UTF-8"):
        BagOfWords(TINY, TOKENIZER, ["\udcff"])
    with pytest.raises(UserError, match="bag: got 'space', expected a list of words"):
        BagOfWords(TINY, TOKENIZER, "space")
    with pytest.raises(UserError, match="bag: got 'zzzz"):
        BagOfWords(TINY, TOKENIZER, ["z" * 60])
    with pytest.raises(UserError, match=r"threshold: got 5.0, expected 0 to 1"):
        best([{"text": "a", "attribute": 0.0}], 5.0)
    (tmp_path / "bag.txt").write_bytes("\ufeffstar\n".encode())
    arguments = ["--prompt", "a", "--bag", str(tmp_path / "bag.txt"), "--length", "2", "step_size=1e-3"]
    assert main(["steer", "tiny", *arguments, "--json", str(tmp_path / "f.json")]) == 0
    assert len(json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))) == 2
    assert parse_overrides(["a=1e-3", "b=2E5", "c=1e", "d=-3.5e+2"]) == {"a": 0.001, "b": 2e5, "c": "1e", "d": -350.0}


def test_a_next_token_counts_once_however_it_is_reached():
    bag = BagOfWords(TINY, TOKENIZER, ["b", "a b"])
    log_p = torch.full((1, len(TOKENIZER)), -torch.inf)
    log_p[:, TOKENIZER("b").input_ids] = 0.0
    assert bag.log_prob(State(TOKENIZER(" a ", return_tensors="pt").input_ids, log_p)).item() == pytest.approx(0.0, abs=1e-5)
