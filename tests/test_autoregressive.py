import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mmgen.errors import UserError
from mmgen.modalities.layers.autoregressive import CausalTransformer, keep_likeliest, sample
from mmgen.modalities.layers.transformer import Cache, rotary_angles, rotate

POSITIONS = ("rotary", "learned")


def build(positions: str = "rotary", vocabulary: int = 13) -> CausalTransformer:
    torch.manual_seed(0)
    model = CausalTransformer(vocabulary, dim=16, depth=2, heads=2, length=32, positions=positions)
    for parameter in model.parameters():  # weights large enough that every token matters
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("positions", POSITIONS)
def test_no_logit_looks_ahead(positions):
    model, x = build(positions), torch.randn(1, 6, 16, dtype=torch.float64, requires_grad=True)
    prefix = torch.randn(1, 2, 16, dtype=torch.float64)
    for mask in (None, torch.ones(1, 6, dtype=torch.bool)):
        for i in range(6):
            (gradient,) = torch.autograd.grad(model(x, prefix, mask)[0, 2 + i].square().sum(), x)
            used = gradient[0].abs().sum(-1)  # (6,)
            assert (used[: i + 1] > 0).all() and (used[i + 1 :] == 0).all()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(positions, side):
    model, ids = build(positions), torch.tensor([[3, 1, 4, 1, 5]])
    padding, real = torch.tensor([[7, 7]]), torch.ones(1, 5, dtype=torch.bool)
    parts = [(padding, torch.zeros(1, 2, dtype=torch.bool)), (ids, real)]
    padded, mask = (torch.cat(part, 1) for part in zip(*(parts if side == "left" else parts[::-1])))
    prefix = torch.randn(1, 2, 16, dtype=torch.float64)
    logits = model(padded, prefix, mask)
    at = torch.cat([torch.tensor([True, True]), mask[0]])
    torch.testing.assert_close(logits[:, at], model(ids, prefix))
    plain = sample(model, ids, 6, generator=seeded())
    assert torch.equal(sample(model, padded, 6, mask=mask, generator=seeded()), plain)


@pytest.mark.parametrize("positions", POSITIONS)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([None, 1, 4]),
    top_p=st.sampled_from([None, 0.8]),
    guidance=st.sampled_from([1.0, 3.0]),
    stop=st.sampled_from([None, 2]),
    embeddings=st.booleans(),
    padded=st.booleans(),
)
def test_cached_equals_uncached_token_for_token(
    positions, seed, temperature, top_k, top_p, guidance, stop, embeddings, padded
):
    model = build(positions)
    prompt = torch.randint(0, 13, (3, 4), generator=seeded(seed))
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False, True, True, True]]) if padded else None
    prompt = model.embed(prompt).detach() if embeddings else prompt
    choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance, "stop": stop}
    drawn = [
        sample(model, prompt, 5, mask=mask, unconditional=prompt * 0, generator=seeded(seed), cached=cached, **choice)
        for cached in (True, False)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("positions", POSITIONS)
def test_cache_in_pieces_gives_the_logits_of_one_pass(positions):
    model, ids, cache = build(positions), torch.randint(0, 13, (2, 9)), Cache(9)
    with torch.no_grad():
        pieces = [model(ids[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 9))]
        torch.testing.assert_close(torch.cat(pieces, 1), model(ids))


def test_learned_positions_give_the_logits_of_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=13, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    peer, model = GPT2LMHeadModel(config).eval(), build("learned").float()
    theirs, renamed = peer.transformer.state_dict(), {}
    for ours, name in {"embed": "wte", "positions": "wpe"}.items():
        renamed[f"{ours}.weight"] = theirs[f"{name}.weight"]
    for part in ("weight", "bias"):
        renamed[f"norm.{part}"] = theirs[f"ln_f.{part}"]
        for i in range(2):
            names = {"attention_norm": "ln_1", "mlp_norm": "ln_2", "qkv": "attn.c_attn", "project": "attn.c_proj"}
            for ours, name in {**names, "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}.items():
                value = theirs[f"h.{i}.{name}.{part}"]
                renamed[f"blocks.{i}.{ours}.{part}"] = value.T if value.dim() == 2 else value
    model.load_state_dict(renamed)
    ids = torch.randint(0, 13, (2, 7))
    torch.testing.assert_close(model(ids), peer(ids).logits, atol=1e-5, rtol=1e-4)


def test_rotary_is_that_of_llama_and_only_distances_matter():
    x, positions = torch.randn(2, 3, 5, 8), torch.arange(5)[None]
    cosine, sine = rotary_angles(positions, 8, torch.float32)
    peer, _ = apply_rotary_pos_emb(x, x, *(torch.cat([a, a], -1)[:, 0] for a in (cosine, sine)))
    torch.testing.assert_close(rotate(x, cosine, sine), peer)
    near, far = (rotate(x.double(), *rotary_angles(positions + shift, 8, torch.float64)) for shift in (0, 11))
    torch.testing.assert_close(near @ near.mT, far @ far.mT, atol=1e-5, rtol=1e-5)


def test_sampling_settings_mean_what_they_say():
    model, prompt = build(), torch.tensor([[1, 2], [3, 4]])
    greedy = sample(model, prompt, 6, temperature=0)
    assert torch.equal(sample(model, prompt, 6, top_k=1), greedy)
    assert torch.equal(sample(model, prompt, 6, temperature=1e-4), greedy)
    assert torch.equal(sample(model, prompt, 6, top_p=1e-6), greedy)
    plain = sample(model, prompt, 6, generator=seeded(3))
    assert torch.equal(sample(model, prompt, 6, generator=seeded(3)), plain)
    assert not torch.equal(sample(model, prompt, 6, generator=seeded(4)), plain)
    assert torch.equal(sample(model, prompt, 6, guidance=1, unconditional=prompt * 0, generator=seeded(3)), plain)


def test_sampled_tokens_follow_the_softmax():
    model, prompt = build(vocabulary=5), torch.tensor([[1, 2]]).expand(20000, 2)
    tokens = sample(model, prompt, 1, temperature=2.0, generator=seeded())[:, 0]
    expected = (model(prompt[:1])[0, -1] / 2).softmax(-1)
    torch.testing.assert_close(tokens.bincount(minlength=5) / 20000, expected.float(), atol=0.02, rtol=0)


def test_guidance_moves_the_logits_away_from_the_unconditional():
    model, prompt = build(), torch.tensor([[1, 2]])
    conditional, free = model(prompt)[0, -1], model(prompt * 0)[0, -1]
    token = sample(model, prompt, 1, temperature=0, guidance=4.0, unconditional=prompt * 0)
    assert token.item() == (free + 4 * (conditional - free)).argmax().item()


def test_nothing_follows_the_stop():
    ids = sample(build(), torch.tensor([[1]]).expand(64, 1), 12, stop=2, pad=0, generator=seeded())
    for row in ids.tolist():
        assert set(row[row.index(2) + 1 if 2 in row else len(row) :]) <= {0}


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12, unique=True), st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set(logits, top_p):
    logits = torch.tensor([logits], dtype=torch.float64)
    probabilities, kept = logits.softmax(-1)[0], keep_likeliest(logits, top_p=top_p).isfinite()[0]
    assert probabilities[kept].sum() >= top_p - 1e-9
    assert probabilities[kept].sum() - probabilities[kept].min() < top_p + 1e-9
    assert not (~kept).any() or probabilities[kept].min() >= probabilities[~kept].max()


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.integers(1, 15))
def test_top_k_keeps_k(logits, top_k):
    kept = keep_likeliest(torch.tensor([logits]), top_k=top_k).isfinite().sum().item()
    assert kept == min(top_k, len(logits))


def test_initial_logits_are_nearly_uniform():
    torch.manual_seed(0)
    model, ids = CausalTransformer(50, 64, depth=4, heads=4), torch.randint(0, 50, (4, 16))
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(50)) < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CausalTransformer(5, 30, 1, 4), "dim: got 30, expected a multiple of 8"),
        (lambda: CausalTransformer(5, 16, 1, 2, positions="rotery"), "positions: got rotery.*'rotary'"),
        (lambda: CausalTransformer(5, 16, 1, 2, positions="learned"), "length: got None"),
        (lambda: build("learned")(torch.zeros(1, 33, dtype=torch.long)), "sequence: got 33 positions, expected <= 32"),
        (lambda: sample(build(), torch.tensor([[1]]), 2, temperature=-1), "temperature: got -1"),
        (lambda: sample(build(), torch.tensor([[1]]), 2, top_k=0), "top_k: got 0"),
        (lambda: sample(build(), torch.tensor([[1]]), 2, top_p=1.5), "top_p: got 1.5"),
        (lambda: sample(build(), torch.tensor([[1]]), 0), "length: got 0"),
        (lambda: sample(build(), torch.zeros(1, 0, dtype=torch.long), 2), "prompt: got no tokens"),
        (lambda: sample(build(), torch.tensor([[1]]), 2, guidance=3.0), "guidance=3.0: got none"),
        (
            lambda: sample(build(), torch.tensor([[1]]), 2, guidance=3.0, unconditional=torch.tensor([[1, 2]])),
            r"guidance=3.0: got shape \(1, 2\)",
        ),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()
