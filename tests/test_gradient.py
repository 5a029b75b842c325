"""PPLM: its steps against the algorithm written out, batches against single texts, and its place in `generate`."""

import copy
from types import SimpleNamespace

import pytest
import torch
from test_language_model import DECODERS
from transformers import (
    DogeConfig,
    DogeForCausalLM,
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MiniCPM3Config,
    MiniCPM3ForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    StopStringCriteria,
    TextIteratorStreamer,
)

from mmgen.conditioning import gradient
from mmgen.conditioning.attributes import BagOfWords, Discriminator, State, Together
from mmgen.conditioning.gradient import PPLM
from mmgen.conditioning.language_model import CACHE, load_language_model
from mmgen.errors import UserError
from mmgen.storage import fingerprint

TINY, TOKENIZER = load_language_model("tiny", "fp32")


@pytest.fixture(scope="module")
def models():
    made = {"llama": load_language_model("tiny", "fp32")[0]}
    for name, build in DECODERS.items():
        torch.manual_seed(0)
        made[name] = build(len(TOKENIZER)).eval()
    return made


def write(model, prompts, attribute, length=6, **settings):
    """Greedy continuations (b, length) of prompts of any lengths, padded on the left."""
    encoded = TOKENIZER(prompts, return_tensors="pt", padding=True, padding_side="left")
    options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": TOKENIZER.pad_token_id}
    steered = {"custom_generate": PPLM(attribute, **settings)} if attribute else {}
    ids = model.generate(encoded.input_ids, attention_mask=encoded.attention_mask, **options, **steered)
    return ids[:, encoded.input_ids.shape[1] :]


class Indifferent:
    """An attribute that all texts have alike: it moves nothing, but everything runs."""

    horizon = 1

    def log_prob(self, state: State) -> torch.Tensor:
        return 0.0 * (state.log_p.sum(1) + state.hidden.sum(1))


def head(width: int = 32) -> torch.nn.Linear:
    torch.manual_seed(5)
    return torch.nn.Linear(width, 2)


@pytest.mark.parametrize("kind", ["llama", *DECODERS])
def test_what_moves_nothing_changes_nothing(models, kind):
    prompts = ["hello there", "a"]
    plain = write(models[kind], prompts, None)
    assert torch.equal(plain, write(models[kind], prompts, Indifferent(), kl_scale=0.0))
    bag = BagOfWords(TINY, TOKENIZER, ["z"])
    for settings in ({"step_size": 0.0}, {"iterations": 0}):
        assert torch.equal(plain, write(models[kind], prompts, bag, **settings))
    assert not torch.equal(plain, write(models[kind], prompts, bag, step_size=2.0))


def test_no_step_is_plain_sampling_token_for_token(models):
    ids = TOKENIZER(["hello"], return_tensors="pt").input_ids
    made = []
    for settings in ({}, {"custom_generate": PPLM(BagOfWords(TINY, TOKENIZER, ["z"]), step_size=0.0)}):
        torch.manual_seed(3)
        made.append(models["llama"].generate(ids, do_sample=True, top_k=50, max_new_tokens=30, pad_token_id=0, **settings))
    assert torch.equal(*made)


@pytest.mark.parametrize("kind", ["llama", *DECODERS])
@pytest.mark.parametrize("settings", [{}, {"window": 2, "decay": True, "running_norm": False}], ids=str)
def test_a_batch_is_its_texts_alone(models, kind, settings):
    bag, other = BagOfWords(TINY, TOKENIZER, ["z", "q"]), Discriminator(head(), 1, horizon=2)
    both = Together([(bag, 1.0), (other, 0.5)])
    prompts = ["hello there", "a cat", "some things", "oh", "x y z"]
    together = write(models[kind], prompts, both, step_size=0.3, **settings)
    alone = [write(models[kind], [prompt], both, step_size=0.3, **settings) for prompt in prompts]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("attribute", ["bag", "head"])
@pytest.mark.parametrize("running", [True, False])
def test_the_algorithm_written_out(models, attribute, running):
    """Two tokens: the past is read anew, moved by hand, and what was moved stays moved."""
    model, layers = models["gpt2"], 2
    made = BagOfWords(TINY, TOKENIZER, ["z"]) if attribute == "bag" else Discriminator(head(), 1)
    ids = TOKENIZER(["hello"], return_tensors="pt").input_ids
    steered = PPLM(made, step_size=0.5, gamma=0.9, kl_scale=0.3, fusion=0.8, iterations=2, running_norm=running)
    seen: list[torch.Tensor] = []

    def listen(input_ids, scores):
        seen.append(scores.clone())
        return scores

    model.generate(ids, custom_generate=steered, do_sample=False, max_new_tokens=2, min_new_tokens=2, pad_token_id=0,
                   logits_processor=LogitsProcessorList([listen]))  # fmt: skip

    with torch.no_grad():
        read = model(ids[:, :-1]).past_key_values.layers
    past, norms = [(layer.keys, layer.values) for layer in read], [0.0] * layers
    for step in range(2):
        with torch.no_grad():
            output = model(ids, output_hidden_states=True)
        own, states = output.logits[:, -1].log_softmax(-1), output.hidden_states[-1]

        def forward(moved, last=ids[:, -1:]):
            cache = DynamicCache()
            for i, (keys, values) in enumerate(moved):
                cache.update(keys, values, i)
            return model(last, output_hidden_states=True, **{CACHE: cache})

        change = [(torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in past]
        for _ in range(2):
            leaves = [(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in change]
            said = forward([(keys + a, values + b) for (keys, values), (a, b) in zip(past, leaves)])
            log_p = said.logits[:, -1].log_softmax(-1)
            if attribute == "bag":
                space, z = TOKENIZER(" z").input_ids
                with torch.no_grad():  # how likely z is after a space alone
                    rest = TINY(torch.tensor([[space]])).logits[0, 0].log_softmax(-1)[z]
                terms = [log_p[:, space] + rest]
                terms += [log_p[:, z]] if ids[0, -1] == space else []
                loss = -torch.stack(terms).logsumexp(0)
            else:
                expected = log_p.exp() @ model.get_input_embeddings().weight
                with_cache = model(ids).past_key_values
                ahead = model(inputs_embeds=expected[:, None], past_key_values=with_cache, output_hidden_states=True)
                total = states[:, :-1].sum(1) + said.hidden_states[-1][:, -1] + ahead.hidden_states[-1][:, -1]
                loss = -made.head(total / (ids.shape[1] + 1)).log_softmax(-1)[:, 1]
            loss = loss + 0.3 * (log_p.exp() * (log_p - own)).sum(-1)
            loss.sum().backward()
            for i, (k, v) in enumerate(leaves):
                norm = torch.cat([k.grad.flatten(), v.grad.flatten()]).norm().item()
                norms[i] = max(norm, norms[i]) if running else norm
                change[i] = tuple(d - 0.5 * leaf.grad / norms[i] ** 0.9 for d, leaf in zip(change[i], (k, v)))
        with torch.no_grad():
            said = forward([(keys + a, values + b) for (keys, values), (a, b) in zip(past, change)])
        fused = 0.8 * said.logits[:, -1].log_softmax(-1) + 0.2 * own
        torch.testing.assert_close(seen[step].log_softmax(-1), fused.log_softmax(-1), atol=2e-4, rtol=1e-4)
        past = [(layer.keys, layer.values) for layer in said.past_key_values.layers]
        ids = torch.cat([ids, fused.argmax(-1, keepdim=True)], 1)


class Likes:
    """An attribute that one token is said next."""

    horizon = None

    def log_prob(self, state: State) -> torch.Tensor:
        return state.log_p[:, 90]


def moved(model, **settings) -> torch.Tensor:
    """How far the keys of the first layer are moved, of each position before the last."""
    ids, far, plain = TOKENIZER(["hello"], return_tensors="pt").input_ids, [], gradient.Moved.moved_past

    def noted(self, *arguments):
        before, after = self.past, plain(self, *arguments)
        far.append((after[0][0] - before[0][0]).square().sum((0, 1, 3)).sqrt())
        return after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient.Moved, "moved_past", noted)
        model.generate(ids, custom_generate=PPLM(Likes(), iterations=1, **settings), max_new_tokens=1, pad_token_id=0)
    return far[0]


def test_the_window_covers_the_newest(models):
    everything = moved(models["llama"])
    assert (everything > 0).all()
    newest = moved(models["llama"], window=2, gamma=0.0)
    assert (newest[:-2] == 0).all() and (newest[-2:] > 0).all()
    fading = moved(models["llama"], window=2, decay=True, gamma=0.0)
    torch.testing.assert_close(
        fading / newest, torch.tensor([float("nan")] * 2 + [0.5, 1.0]), equal_nan=True, atol=2e-3, rtol=0
    )
    assert torch.equal(moved(models["llama"], window=99, gamma=0.0), moved(models["llama"], gamma=0.0))


def test_the_attribute_becomes_likelier_and_the_language_model_stays(models):
    model, before = models["llama"], fingerprint(models["llama"])
    bag = BagOfWords(TINY, TOKENIZER, ["z"])
    ids = TOKENIZER(["hello", "there"], return_tensors="pt").input_ids
    found = []
    for step_size in (0.0, 0.05, 0.2):
        seen = []
        listen = LogitsProcessorList([lambda i, scores: seen.append(scores.log_softmax(-1)) or scores])  # noqa: B023
        model.generate(ids, custom_generate=PPLM(bag, step_size=step_size, kl_scale=0.0), logits_processor=listen,
                       max_new_tokens=1, pad_token_id=0)  # fmt: skip
        found.append(bag.log_prob(State(ids, seen[0])))
    assert (found[0] < found[1]).all() and (found[1] < found[2]).all()
    assert fingerprint(model) == before and not any(p.grad is not None for p in model.parameters())
    assert not model.base_model._forward_hooks


def test_all_that_generate_offers(models):
    """Several samples, top-p, a string that ends the text, streaming, scores, and prompts of embeddings."""
    model, bag = models["llama"], BagOfWords(TINY, TOKENIZER, ["z"])
    ids = TOKENIZER(["hello"], return_tensors="pt").input_ids
    options = {"custom_generate": PPLM(bag), "pad_token_id": 0}
    made = model.generate(ids, do_sample=True, top_p=0.9, temperature=1.3, num_return_sequences=3, max_new_tokens=4,
                          output_scores=True, return_dict_in_generate=True, **options)  # fmt: skip
    assert made.sequences.shape[0] == 3 and len(made.scores) == made.sequences.shape[1] - ids.shape[1]
    by_ids = model.generate(ids, do_sample=False, max_new_tokens=4, **options)[:, ids.shape[1] :]
    letters = {
        "suppress_tokens": [i for i in range(len(TOKENIZER)) if not (text := TOKENIZER.decode([i])).isascii() or not text]
    }
    said = model.generate(ids, do_sample=False, max_new_tokens=4, **letters, **options)[0, ids.shape[1] :]
    end = [StopStringCriteria(TOKENIZER, [TOKENIZER.decode(said[1:2])])]
    stopped = model.generate(ids, do_sample=False, max_new_tokens=4, stopping_criteria=end, **letters, **options)
    assert said[0] != said[1] and torch.equal(stopped[0, ids.shape[1] :], said[:2])
    streamer = TextIteratorStreamer(TOKENIZER, timeout=1)
    options["custom_generate"] = PPLM(bag, streamer=streamer)
    model.generate(ids, do_sample=False, max_new_tokens=4, **options)
    assert "".join(streamer) == "hello" + TOKENIZER.decode(by_ids[0])
    options["custom_generate"] = PPLM(bag)
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeddings, do_sample=False, max_new_tokens=4, **options), by_ids)


def test_bfloat16_and_a_prompt_of_one_token(models):
    model = load_language_model("tiny", "bf16")[0]
    made = write(model, ["a"], Together([(BagOfWords(TINY, TOKENIZER, ["z"]), 1.0), (Discriminator(head(), 0), 1.0)]))
    assert made.shape == (1, 6)


@pytest.mark.parametrize("kind", ["llama", *DECODERS])
def test_bfloat16_attends_in_float32(models, kind, monkeypatch):
    """On a CPU, and only where texts are steered; the scores are those of attention written out in float32 throughout."""
    model, bag = copy.deepcopy(models[kind]).bfloat16(), BagOfWords(TINY, TOKENIZER, ["z"])
    exact, seen, plain = copy.deepcopy(model).float(), [], gradient.sdpa_attention_forward
    exact.set_attn_implementation("eager")

    def noted(module, query, keys, values, mask, **kwargs):
        seen.append((query.dtype, keys.dtype, values.dtype))
        return plain(module, query, keys, values, mask, **kwargs)

    monkeypatch.setattr(gradient, "sdpa_attention_forward", noted)
    ids = TOKENIZER(["hello there", "a"], return_tensors="pt", padding=True, padding_side="left")
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "pad_token_id": 0, "do_sample": False}
    scores = [
        m.generate(**ids, custom_generate=PPLM(bag), output_scores=True, return_dict_in_generate=True, **options).scores[0]
        for m in (model, exact)
    ]
    torch.testing.assert_close(*(s.float().log_softmax(-1) for s in scores), atol=0.05, rtol=0.02)
    assert len(seen) == 2 * 2 * (3 + 1)  # layers, tokens, passes; none of `generate` itself, none of the second model
    assert set(seen) == {(torch.float32,) * 3}
    assert model.config._attn_implementation == "sdpa" and exact.config._attn_implementation == "eager"

    def broken(*arguments, **kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(gradient, "sdpa_attention_forward", broken)
    with pytest.raises(RuntimeError, match="broken"):
        model.generate(**ids, custom_generate=PPLM(bag), **options)
    assert model.config._attn_implementation == "sdpa"


SMALL = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "head_dim": 8}
OTHERS = {  # and whether their attention is torch's own, called as transformers calls it
    "eager": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, attn_implementation="eager")), False),
    "falcon": (lambda: FalconForCausalLM(FalconConfig(**SMALL)), False),
    "latent": (lambda: MiniCPM3ForCausalLM(MiniCPM3Config(**SMALL, **LATENT)), True),  # multiplies what it cached
    "doge": (lambda: DogeForCausalLM(DogeConfig(**SMALL)), True),  # a mask of 16-bit numbers, by keyword
    "modernbert": (  # its decoder has no config
        lambda: ModernBertDecoderForCausalLM(ModernBertDecoderConfig(**SMALL, cls_token_id=1, sep_token_id=2)),
        True,
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", OTHERS)
def test_attention_of_other_kinds(kind, dtype, monkeypatch):
    build, expected = OTHERS[kind]
    torch.manual_seed(0)
    model, seen, plain = build().eval().to(dtype), [], gradient.sdpa_attention_forward
    exact = copy.deepcopy(model).float()
    monkeypatch.setattr(gradient, "sdpa_attention_forward", lambda *a, **k: seen.append(1) or plain(*a, **k))
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "pad_token_id": 0, "do_sample": False}
    ids, mask = torch.tensor([[0, 5, 6, 7], [8, 9, 10, 11]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    scores = [
        m.generate(ids, attention_mask=mask, custom_generate=PPLM(Likes()), output_scores=True, return_dict_in_generate=True,
                   **options).scores[0].float().log_softmax(-1)
        for m in (model, exact)
    ]  # fmt: skip
    torch.testing.assert_close(*scores, atol=0.05, rtol=0.02)
    assert bool(seen) == (expected and dtype == torch.bfloat16)


def test_mistakes(models):
    bag = BagOfWords(TINY, TOKENIZER, ["z"])
    for setting, value in {"iterations": -1, "step_size": -0.1, "kl_scale": -1, "window": -2}.items():
        with pytest.raises(UserError, match=f"{setting}: got {value}, expected a number >= 0"):
            PPLM(bag, **{setting: value})
    with pytest.raises(UserError, match=r"fusion: got 1\.5, expected 0 to 1"):
        PPLM(bag, fusion=1.5)
    model = load_language_model("tiny", "fp32")[0]
    with pytest.raises(UserError, match="prompt: got no tokens"):
        model.generate(inputs_embeds=torch.zeros(1, 0, 32), custom_generate=PPLM(bag), max_new_tokens=2, pad_token_id=0)
    ids = TOKENIZER(["hello"], return_tensors="pt").input_ids
    with torch.inference_mode(), pytest.raises(UserError, match=r"inference_mode: got on, expected off.*no_grad"):
        model.generate(ids, custom_generate=PPLM(bag), max_new_tokens=2, pad_token_id=0)
    fixed = SimpleNamespace(horizon=None, log_prob=lambda state: torch.zeros(len(state.ids)))
    with pytest.raises(UserError, match="attribute: got no gradient, expected one in the language model's states"):
        model.generate(ids, custom_generate=PPLM(fixed), max_new_tokens=2, pad_token_id=0)
    for what in (BagOfWords, SimpleNamespace(log_prob=len)):
        with pytest.raises(UserError, match=r"attribute: got .*, expected one with log_prob and horizon"):
            PPLM(what)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(UserError, match="logits: got NaN"):
        write(model, ["hello"], bag)
