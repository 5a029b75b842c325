"""FUDGE: every candidate read anew by hand, batches against single texts, and its place in `generate`."""

import pytest
import torch
from test_gradient import Indifferent, head
from test_language_model import DECODERS
from transformers import LogitsProcessorList

from mmgen.conditioning.attributes import BagOfWords, Discriminator, State, Together
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.reweighting import Fudge
from mmgen.errors import UserError
from mmgen.storage import fingerprint

TINY, TOKENIZER = load_language_model("tiny", "fp32")
BAG = BagOfWords(TINY, TOKENIZER, ["z", "q"])


@pytest.fixture(scope="module")
def models():
    made = {"llama": TINY}
    for name, build in DECODERS.items():
        torch.manual_seed(0)
        made[name] = build(len(TOKENIZER)).eval()
    return made


def scores_of(model, prompts, fudge, length=1):
    """Steered scores (b, v) of each step, and the tokens that greedy decoding writes."""
    seen = []
    encoded = TOKENIZER(prompts, return_tensors="pt", padding=True, padding_side="left")
    listen = LogitsProcessorList([lambda ids, scores: seen.append(scores.clone()) or scores])
    ids = model.generate(
        encoded.input_ids, attention_mask=encoded.attention_mask, max_new_tokens=length, min_new_tokens=length,
        do_sample=False, pad_token_id=0, logits_processor=listen, **({"custom_generate": fudge} if fudge else {}),
    )  # fmt: skip
    return seen, ids[:, encoded.input_ids.shape[1] :]


@pytest.mark.parametrize("kind", ["llama", *DECODERS])
@torch.no_grad()
def test_every_candidate_read_anew(models, kind):
    model, made = models[kind], Discriminator(head(), 1)
    ids = TOKENIZER(["hello "], return_tensors="pt").input_ids
    own = model(ids).logits[0, -1].log_softmax(-1)
    log_p, tokens = own.topk(5)
    of_head, of_bag = log_p.clone(), log_p.clone()
    for i, token in enumerate(tokens):
        text = torch.cat([ids, token[None, None]], 1)
        output = model(text, output_hidden_states=True)
        after = output.logits[:, -1].log_softmax(-1)
        of_head[i] += 0.7 * made.log_prob(State(text, after, output.hidden_states[-1].mean(1)))[0]
        sure = torch.full_like(after, -torch.inf).index_fill(1, token[None], 0.0)
        there = BAG.log_prob(State(ids, sure)).exp() + BAG.log_prob(State(text, after)).exp()
        of_bag[i] += 0.7 * there.log()[0]
    for attribute, expected in ((made, of_head), (BAG, of_bag)):
        (found,), _ = scores_of(model, ["hello "], Fudge(attribute, 0.7, top=5))
        torch.testing.assert_close(found[0, tokens].log_softmax(0), expected.log_softmax(0), atol=1e-4, rtol=1e-4)
        assert found[0].isfinite().sum() == 5


def test_several_attributes_weigh_as_each_alone():
    """The steered scores are the sum of those of each, whatever they read."""
    ids, log_p = TOKENIZER(["hello "], return_tensors="pt").input_ids, []
    other, made = BagOfWords(TINY, TOKENIZER, ["moon"]), Discriminator(head(), 1)
    for attribute in (BAG, other, made, Together([(BAG, 2.0), (other, 0.5), (made, 1.0)])):
        (found,), _ = scores_of(TINY, ["hello "], Fudge(attribute, 0.7, top=9))
        log_p.append(found[0])
    own = TINY(ids).logits[0, -1].log_softmax(-1).detach()
    kept = own.topk(9).indices
    bag, moon, sure, both = (scores[kept] - own[kept] for scores in log_p)
    torch.testing.assert_close((2 * bag + 0.5 * moon + sure).log_softmax(0), both.log_softmax(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", *DECODERS])
def test_what_weighs_nothing_changes_nothing(models, kind):
    vocabulary = len(TOKENIZER)
    plain, text = scores_of(models[kind], ["hello there", "a"], None, length=3)
    for fudge in (Fudge(Indifferent(), top=vocabulary), Fudge(BAG, strength=0.0, top=vocabulary)):
        found, steered = scores_of(models[kind], ["hello there", "a"], fudge, length=3)
        assert torch.equal(text, steered)
        for ours, theirs in zip(found, plain):
            assert torch.equal(ours.isfinite(), theirs.isfinite())  # the end of the text may not be said yet
            torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", *DECODERS])
def test_a_batch_is_its_texts_alone(models, kind):
    both = Fudge(Together([(BAG, 1.0), (Discriminator(head(), 1), 0.5)]), 3.0)
    prompts = ["hello there", "a cat", "oh", "x"]
    together = scores_of(models[kind], prompts, both, length=6)[1]
    alone = [scores_of(models[kind], [prompt], both, length=6)[1] for prompt in prompts]
    assert torch.equal(together, torch.cat(alone))


def test_the_attribute_becomes_likelier_and_the_language_model_stays():
    before, ids = fingerprint(TINY), TOKENIZER(["hello"], return_tensors="pt").input_ids
    shares = []
    for strength in (0.0, 1.0, 3.0):
        (found,), _ = scores_of(TINY, ["hello"], Fudge(BAG, strength, top=len(TOKENIZER)))
        shares.append(BAG.log_prob(State(ids, found.log_softmax(-1))).item())
    assert shares[0] < shares[1] < shares[2]
    assert fingerprint(TINY) == before and not TINY.base_model._forward_hooks


def test_mistakes():
    with pytest.raises(UserError, match=r"strength: got -1, expected a number >= 0"):
        Fudge(BAG, strength=-1)
    with pytest.raises(UserError, match="top: got 0"):
        Fudge(BAG, top=0)
    with pytest.raises(UserError, match="prompt: got no tokens"):
        TINY.generate(inputs_embeds=torch.zeros(1, 0, 32), custom_generate=Fudge(BAG), max_new_tokens=2, pad_token_id=0)
