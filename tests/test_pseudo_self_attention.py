"""Pseudo self-attention: its equation written out, real tokens in place of a condition, masks, batches, gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_language_model import DECODERS, SIZES
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    MistralForCausalLM,
)

from mmgen.conditioning.prefix import PrefixLanguageModel, Prompt
from mmgen.conditioning.pseudo_self_attention import PseudoSelfAttention
from mmgen.errors import UserError
from mmgen.modalities.frozen import freeze
from mmgen.modalities.layers.transformer import rotary_angles, rotate
from mmgen.storage import fingerprint

C = 5  # width of the condition
KINDS = ["llama", *DECODERS]


def made(kind: str) -> tuple[PrefixLanguageModel, PseudoSelfAttention]:
    """A frozen model and an attention whose keys and values are as large as the text's."""
    torch.manual_seed(0)
    reader = PrefixLanguageModel("tiny", "fp32")
    if kind != "llama":
        reader.model = freeze(DECODERS[kind](len(reader.tokenizer)))
    attention = PseudoSelfAttention(reader.model.config, C)
    with torch.no_grad():
        for weight in attention.parameters():
            weight.mul_(50)
    return reader, attention


@pytest.fixture(params=KINDS)
def pair(request):
    return made(request.param)


@pytest.fixture
def llama():
    return made("llama")


def prompt_of(reader: PrefixLanguageModel, *texts: str) -> Prompt:
    return reader.prompt([[text] for text in texts])


def real(ids: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(ids, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_equation_written_out(kind):
    torch.manual_seed(0)
    heads, d, s, t = 4, 8, 3, 5
    if kind == "gpt2":
        model, kv_heads = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=heads)), heads
    else:
        config = LlamaConfig(
            **{**SIZES, "num_hidden_layers": 1, "num_attention_heads": heads}, vocab_size=50, num_key_value_heads=2
        )
        model, kv_heads = LlamaForCausalLM(config), 2
    model = model.double().eval()
    attention = PseudoSelfAttention(model.config, C).double()
    for weight in attention.parameters():
        torch.nn.init.normal_(weight)
    x, ids = torch.randn(2, s, C).double(), torch.randint(50, (2, t))

    if kind == "gpt2":
        block = model.transformer.h[0]
        y = model.transformer.wte(ids) + model.transformer.wpe.weight[:t]  # (b, t, 32)
        queries, keys, values = block.attn.c_attn(block.ln_1(y)).split(32, -1)
    else:
        block = model.model.layers[0]
        y = model.model.embed_tokens(ids)  # (b, t, 32)
        normed = block.input_layernorm(y)
        queries, keys, values = (getattr(block.self_attn, f"{name}_proj")(normed) for name in "qkv")
    queries, keys, values = (part.unflatten(2, (-1, d)).transpose(1, 2) for part in (queries, keys, values))  # (b, h, t, d)
    if kind == "llama":
        angles = rotary_angles(torch.arange(t)[None], d, torch.float64)
        queries, keys = rotate(queries, *angles), rotate(keys, *angles)
    source_keys = (x @ attention.keys[0].weight.T).unflatten(2, (-1, d)).transpose(1, 2)  # (b, h, s, d)
    source_values = (x @ attention.values[0].weight.T).unflatten(2, (-1, d)).transpose(1, 2)
    keys, values = torch.cat([source_keys, keys], 2), torch.cat([source_values, values], 2)  # (b, h, s + t, d)
    keys, values = (part.repeat_interleave(heads // kv_heads, 1) for part in (keys, values))
    scores = queries @ keys.transpose(2, 3) / math.sqrt(d)  # (b, h, t, s + t)
    visible = torch.cat([torch.ones(t, s), torch.ones(t, t).tril()], 1).bool()
    mixed = (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ values).transpose(1, 2).flatten(2)  # (b, t, 32)
    if kind == "gpt2":
        y = y + block.attn.c_proj(mixed)
        y = model.transformer.ln_f(y + block.mlp(block.ln_2(y)))
    else:
        y = y + block.self_attn.o_proj(mixed)
        y = model.model.norm(y + block.mlp(block.post_attention_layernorm(y)))

    logits = model(input_ids=ids, **attention.past(x, None, real(ids))).logits
    torch.testing.assert_close(logits, model.lm_head(y))
    without = model(input_ids=ids).logits
    assert (logits - without).abs().max() > 0.01


def test_keys_and_values_of_real_tokens_are_read_as_these_tokens(pair):
    reader, _ = pair
    read, ids = torch.tensor([[9, 8, 7]]), torch.tensor([[5, 6, 7, 8]])
    # a condition has no position of its own: give the real tokens any
    places = torch.tensor([[20, 21, 22, 0, 1, 2, 3]])
    whole = torch.cat([read, ids], 1)
    together = reader.model(input_ids=whole, position_ids=places, attention_mask=torch.ones_like(whole)).logits[:, 3:]
    layers = reader.model(input_ids=read, position_ids=places[:, :3], use_cache=True).past_key_values.layers
    attention = PseudoSelfAttention(reader.model.config, 3)
    with torch.no_grad():  # X = 1, so U is the keys and values
        for i, layer in enumerate(layers):
            attention.keys[i].weight.copy_(layer.keys[0].transpose(0, 1).flatten(1).T)
            attention.values[i].weight.copy_(layer.values[0].transpose(0, 1).flatten(1).T)
    logits = reader.model(input_ids=ids, **attention.past(torch.eye(3)[None], None, real(ids))).logits
    torch.testing.assert_close(logits, together, atol=1e-5, rtol=1e-5)


def test_a_batch_of_any_lengths_is_each_item_alone(pair):
    reader, attention = pair
    condition = torch.randn(3, 4, C)
    condition_mask = torch.tensor([[True] * 4, [False, True, False, True], [True, False, False, False]])
    condition[~condition_mask] = torch.nan  # of no account
    prompt = prompt_of(reader, "a", "ab c", "abcdef")
    ids = torch.randint(3, 250, (3, 5))
    mask = torch.arange(5) < torch.tensor([[5], [2], [4]])
    log_prob = attention.log_prob(reader, condition, prompt, ids, mask, condition_mask)
    assert log_prob[~mask].tolist() == [0.0] * 4
    for i, text in enumerate(["a", "ab c", "abcdef"]):
        one, x = ids[i : i + 1, mask[i]], condition[i : i + 1, condition_mask[i]]
        alone = attention.log_prob(reader, x, prompt_of(reader, text), one, real(one))
        torch.testing.assert_close(log_prob[i, mask[i]], alone[0], atol=2e-6, rtol=1e-5)


def test_log_prob_is_that_of_the_logits_and_moves_with_the_condition(pair):
    reader, attention = pair
    condition, prompt, ids = torch.randn(2, 3, C), prompt_of(reader, "ab", "ab"), torch.tensor([[9, 8, 7]] * 2)
    log_prob = attention.log_prob(reader, condition, prompt, ids, real(ids))
    whole = torch.cat([torch.stack([reader.tokens("ab")] * 2), ids], 1)  # (b, p + t)
    p = whole.shape[1] - 3
    logits = reader.model(input_ids=whole, **attention.past(condition, None, real(whole))).logits[:, p - 1 : -1]
    torch.testing.assert_close(log_prob, logits.log_softmax(-1).gather(2, ids[..., None])[..., 0], atol=1e-5, rtol=1e-5)
    assert (log_prob[0] - log_prob[1]).abs().min() > 1e-4


def test_the_text_is_causal_and_every_token_sees_the_whole_condition(pair):
    reader, attention = pair
    condition = torch.randn(1, 3, C, requires_grad=True)
    embeddings = reader.embed(torch.tensor([[5, 6, 7, 8]])).detach().requires_grad_()
    logits = reader.model(inputs_embeds=embeddings, **attention.past(condition, None, torch.ones(1, 4).bool())).logits
    for i in range(4):
        chosen = logits[0, i, 11]
        to_text, to_condition = torch.autograd.grad(chosen, [embeddings, condition], retain_graph=True)
        assert (to_text[0].abs().sum(-1) > 0).tolist() == [j <= i for j in range(4)]
        assert (to_condition[0].abs().sum(-1) > 0).all()


def test_a_condition_has_no_order(pair):
    reader, attention = pair
    condition, prompt, ids = torch.randn(1, 4, C), prompt_of(reader, "ab"), torch.tensor([[9, 8, 7]])
    forwards, backwards = (attention.log_prob(reader, x, prompt, ids, real(ids)) for x in (condition, condition.flip(1)))
    torch.testing.assert_close(forwards, backwards, atol=2e-6, rtol=1e-5)


def test_training_moves_every_layer_and_never_the_language_model(pair):
    reader, _ = pair
    attention = PseudoSelfAttention(reader.model.config, C)  # as it starts
    before = fingerprint(reader.model)
    condition = torch.eye(2, C)[:, None].requires_grad_()
    prompt, ids = prompt_of(reader, "a", "a"), torch.tensor([[9, 8, 7], [30, 31, 32]])
    optimiser = torch.optim.Adam(attention.parameters(), lr=0.1)
    losses = []
    for step in range(12):
        loss = -attention.log_prob(reader, condition, prompt, ids, real(ids)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            assert all(weight.grad.abs().max() > 0 for weight in attention.parameters())
            assert (condition.grad[..., :2].abs() > 0).all()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    swapped = -attention.log_prob(reader, condition.flip(0), prompt, ids, real(ids)).sum(1).mean()
    assert swapped > losses[-1] + 0.2  # what was learned is the condition, not the texts
    assert fingerprint(reader.model) == before
    layers, kv_width = 2, attention.keys[0].out_features
    assert sum(weight.numel() for weight in attention.parameters()) == 2 * layers * C * kv_width  # and no other weights


def test_a_language_model_may_be_trained_along():
    reader = PrefixLanguageModel("tiny", "fp32", weights="trained")
    attention = PseudoSelfAttention(reader.model.config, C)
    ids = torch.tensor([[9, 8]])
    attention.log_prob(reader, torch.randn(1, 2, C), prompt_of(reader, "a"), ids, real(ids)).sum().backward()
    assert all(weight.grad is not None for weight in reader.model.parameters())


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": False, "num_beams": 3}], ids=["greedy", "beams"])
def test_a_batch_is_generated_as_one_by_one(pair, options):
    reader, attention = pair
    texts = ["a", "the sea", "abc"]
    condition, condition_mask = 3 * torch.randn(3, 4, C), torch.arange(4) < torch.tensor([[4], [1], [2]])
    said = attention.generate(reader, condition, prompt_of(reader, *texts), condition_mask, max_new_tokens=6, **options)
    for i, text in enumerate(texts):
        x = condition[i : i + 1, condition_mask[i]]
        assert attention.generate(reader, x, prompt_of(reader, text), max_new_tokens=6, **options) == [said[i]]


def test_what_is_generated_is_the_likeliest_next_token_again_and_again(pair):
    reader, attention = pair
    condition, mask = 3 * torch.randn(2, 3, C), torch.tensor([[True] * 3, [True, False, True]])
    prompt, ids = prompt_of(reader, "ab c", "d"), torch.zeros(2, 0, dtype=torch.long)
    for _ in range(5):  # nothing cached but the condition
        seen = torch.cat([prompt.embeddings, reader.embed(ids)], 1)
        text = F.pad(prompt.mask, (0, ids.shape[1]), value=True)
        logits = reader.model(inputs_embeds=seen, **attention.past(condition, mask, text)).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert reader.tokenizer.eos_token_id not in ids
    expected = [text.strip() for text in reader.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert attention.generate(reader, condition, prompt, mask, max_new_tokens=5, do_sample=False) == expected
    tokens = torch.tensor([[5, 6], [7, 8]])  # and without a prompt of embeddings
    past = attention.past(condition, mask, real(tokens))
    plain = reader.model.generate(input_ids=tokens, max_new_tokens=1, do_sample=False, pad_token_id=0, **past)
    logits = reader.model(input_ids=tokens, **attention.past(condition, mask, real(tokens))).logits
    assert plain[:, 2].equal(logits[:, -1].argmax(-1))


def test_several_samples_an_item_each_follow_its_condition(llama):
    reader, attention = llama
    condition, prompt = 3 * torch.randn(2, 3, C), prompt_of(reader, "ab", "ab")
    options = {"max_new_tokens": 4, "do_sample": True, "top_k": 1}
    single = attention.generate(reader, condition, prompt, **options)
    assert single[0] != single[1]
    several = attention.generate(reader, condition, prompt, num_return_sequences=2, **options)
    assert several == [single[0], single[0], single[1], single[1]]


def test_keys_and_values_start_small():
    reader = PrefixLanguageModel("tiny", "fp32")
    torch.manual_seed(0)
    attention = PseudoSelfAttention(reader.model.config, 256)
    for layer in attention.cache(torch.randn(8, 32, 256)).layers:
        for part in (layer.keys, layer.values):
            assert part.std().item() == pytest.approx(0.02, rel=0.1) and abs(part.mean().item()) < 0.002


def test_a_language_model_in_half_precision():
    reader = PrefixLanguageModel("tiny", "bf16")
    attention = PseudoSelfAttention(reader.model.config, C)
    ids = torch.tensor([[9, 8]])
    log_prob = attention.log_prob(reader, torch.randn(1, 3, C), prompt_of(reader, "a"), ids, real(ids))
    log_prob.sum().backward()
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
    assert all(weight.grad.isfinite().all() and weight.dtype == torch.float32 for weight in attention.parameters())


def test_a_sliding_window_never_hides_the_condition():
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SIZES, vocab_size=50, num_key_value_heads=1, sliding_window=8)).eval()
    attention = PseudoSelfAttention(model.config, C)
    condition = torch.randn(1, 3, C, requires_grad=True)
    ids = torch.randint(50, (1, 6))
    logits = model(input_ids=ids[:, :5], **attention.past(condition, None, real(ids[:, :5]))).logits
    logits[0, -1, 7].backward()
    assert (condition.grad[0].abs().sum(-1) > 0).all()
    with pytest.raises(
        UserError, match="positions of condition and text: got 9, expected at most 8, the model's sliding window"
    ):
        attention.past(condition, None, real(ids))
    with pytest.raises(UserError, match="got 9, expected at most 8"):
        attention.past(condition, None, real(ids[:, :5]), more=1)


def test_a_model_with_other_layers():
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1)
    with pytest.raises(
        UserError, match="language model: got a mamba model with a LinearAttentionLayer, expected self-attention"
    ):
        PseudoSelfAttention(config, C)


def test_a_model_that_would_drop_its_past():
    reader = PrefixLanguageModel("tiny", "fp32")
    reader.model = AutoModelForCausalLM.from_config(reader.model.config).train()
    reader.model.gradient_checkpointing_enable()
    attention, ids = PseudoSelfAttention(reader.model.config, C), torch.tensor([[9]])
    with pytest.raises(UserError, match="got gradient checkpointing, expected a model that reads a cache"):
        attention.log_prob(reader, torch.zeros(1, 2, C), prompt_of(reader, "a"), ids, real(ids))


@pytest.mark.parametrize(
    ("condition", "mask", "message"),
    [
        (torch.zeros(1, 3, 4), None, r"condition: got shape \(1, 3, 4\), expected \(b, s, 5\)"),
        (torch.zeros(1, C), None, r"condition: got shape \(1, 5\), expected \(b, s, 5\)"),
        (torch.zeros(2, 3, C), None, "condition: got 2 items, expected 1, one for each text"),
        (torch.zeros(1, 0, C), None, r"positions of the condition: got none in shape \(1, 0, 5\)"),
        (torch.zeros(2, 2, C), torch.tensor([[True] * 2, [False] * 2]), "positions of the condition: got none in item 1"),
        (torch.zeros(1, 3, C), torch.ones(1, 2).bool(), r"mask of the condition: got .*\(1, 2\), expected .*\(1, 3\)"),
        (torch.zeros(1, 3, C), torch.ones(1, 3), "mask of the condition: got torch.float32 of shape"),
    ],
)  # fmt: skip
def test_conditions_that_cannot_be_read(llama, condition, mask, message):
    reader, attention = llama
    ids = torch.tensor([[9, 8]])
    with pytest.raises(UserError, match=message):
        attention.log_prob(reader, condition, prompt_of(reader, "a"), ids, real(ids), mask)
    with pytest.raises(UserError, match=message):
        attention.generate(reader, condition, prompt_of(reader, "a"), mask)


@pytest.mark.parametrize(
    "mask", [torch.ones(1, 0).bool(), torch.tensor([[True, False]])], ids=["empty", "padded on the right"]
)
def test_a_prompt_without_a_last_token(llama, mask):
    reader, attention = llama
    prompt, ids = Prompt(torch.zeros(*mask.shape, reader.width), mask), torch.tensor([[9]])
    message = rf"tokens of the prompt: got none at the end of a mask of shape \(1, {mask.shape[1]}\)"
    with pytest.raises(UserError, match=message):
        attention.log_prob(reader, torch.zeros(1, 2, C), prompt, ids, real(ids))
    with pytest.raises(UserError, match=message):
        attention.generate(reader, torch.zeros(1, 2, C), prompt)


def test_no_features(llama):
    with pytest.raises(UserError, match="features: got 0, expected a number >= 1"):
        PseudoSelfAttention(llama[0].model.config, 0)
