"""Language models of classes, DExperts and GeDi: Bayes' rule by hand, learning, and their place in `generate`."""

import pytest
import torch
from test_language_model import DECODERS
from test_reweighting import BAG, TOKENIZER, models, scores_of  # noqa: F401

from mmgen.conditioning.attributes import Discriminator
from mmgen.conditioning.reweighting import DExperts, GeDi
from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.models.class_language_model import ClassLanguageModel
from mmgen.storage import fingerprint


def texts(*rows: list[int], labels: list[int] | None = None) -> Batch:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
    return Batch({"text": ids, **({} if labels is None else {"label": torch.tensor(labels)})}, {"text": mask})


def random_model(seed: int = 0) -> ClassLanguageModel:
    torch.manual_seed(seed)
    model = ClassLanguageModel(["bad", "fair", "good"], "tiny", "fp32", rank=4)
    for layer in model.up:
        torch.nn.init.normal_(layer.weight)
    return model.eval()


@torch.no_grad()
def test_text_log_probs_by_hand():
    """Token by token, from the language model's own hidden states, whatever is padded."""
    model, rows = random_model(), [[5, 6, 7, 8], [9, 10]]
    lm, begin = model.language_model, model.processors["text"].tokenizer.bos_token_id
    for row, found in zip(rows, model.text_log_prob(texts(*rows))):
        hidden = lm(torch.tensor([[begin, *row]]), output_hidden_states=True).hidden_states[-1][0]  # (t + 1, d)
        for c in range(3):
            moved = hidden + model.up[c](torch.nn.functional.gelu(model.down[c](hidden)))
            log_p = lm.get_output_embeddings()(moved).log_softmax(-1)
            torch.testing.assert_close(found[c], sum(log_p[i, token] for i, token in enumerate(row)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_losses_are_those_likelihoods():
    model, batch = random_model(), texts([5, 6, 7], [8, 9], labels=[2, 0])
    each = model.text_log_prob(batch)
    losses = model.losses(batch)
    torch.testing.assert_close(losses["generative"], -(each[0, 2] + each[1, 0]) / 2)
    classes = each.log_softmax(1)  # Bayes, with classes equally likely beforehand
    torch.testing.assert_close(losses["discriminative"], -10 * (classes[0, 2] + classes[1, 0]) / 2)
    torch.testing.assert_close(model.log_likelihood(batch), torch.stack([each[0, 2], each[1, 0]]))
    torch.testing.assert_close(model.predict(batch).probs, each.softmax(1))


def test_untrained_it_is_the_language_model():
    model = ClassLanguageModel(["a", "b"], "tiny", "fp32", rank=4)
    hidden = torch.randn(3, 32)
    own = model.language_model.get_output_embeddings()(hidden)
    assert torch.equal(model.logits(hidden), own[:, None].expand(-1, 2, -1))


def test_it_learns_what_its_classes_say():
    torch.manual_seed(0)
    model = ClassLanguageModel(["vowels", "others"], "tiny", "fp32", rank=8)
    before = fingerprint(model.language_model)
    a, b = (TOKENIZER(word, add_special_tokens=False).input_ids for word in ("aeiou", "bcdfg"))
    batch = texts(a, b, labels=[0, 1])
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        model.losses(batch).total.backward()
        optimiser.step()
    assert model.predict(batch).probs.diagonal().min() > 0.99
    assert model.predict(texts(TOKENIZER("uoie", add_special_tokens=False).input_ids)).mode.item() == 0
    assert fingerprint(model.language_model) == before


def linear_experts(classes: int):
    maps = torch.randn(classes, 32, len(TOKENIZER), generator=torch.Generator().manual_seed(0))
    return lambda hidden: torch.einsum("bd,cdv->bcv", hidden, maps)


@pytest.mark.parametrize("kind", ["llama", *DECODERS])
@torch.no_grad()
def test_dexperts_weigh_the_next_token(models, kind):  # noqa: F811
    model, ids, experts = models[kind], TOKENIZER(["hello "], return_tensors="pt").input_ids, linear_experts(3)
    output = model(ids, output_hidden_states=True)
    log_p, tokens = output.logits[0, -1].log_softmax(-1).topk(6)
    each = experts(output.hidden_states[-1][:, -1])[0].log_softmax(-1)[:, tokens].exp()  # (classes, k), p_c(w | x)
    expected = log_p + 0.7 * (each[1] / each.sum(0)).log()
    (found,), _ = scores_of(model, ["hello "], DExperts(BAG, experts, 1, strength=0.7, top=6))
    torch.testing.assert_close(found[0, tokens].log_softmax(0), expected.log_softmax(0), atol=1e-4, rtol=1e-4)
    assert found[0].isfinite().sum() == 6


def published(model, experts, ids, settings: GeDi):
    """Log-probabilities (v,) after a text (1, t) by equations 5 to 7 of Krause et al. 2021, every candidate read anew."""
    words = torch.arange(len(TOKENIZER))[:, None]
    texts = torch.cat([ids.expand(len(words), -1), words], 1)  # (v, t + 1)
    hidden = model(texts, output_hidden_states=True).hidden_states[-1][:, :-1]  # (v, t, d)
    log_p = experts(hidden.flatten(0, 1)).log_softmax(-1)  # (v t, classes, v)
    factors = log_p.gather(2, texts[:, 1:].reshape(-1, 1, 1).expand(-1, log_p.shape[1], 1)).view(*hidden.shape[:2], -1)
    posterior = (settings.alpha * factors.mean(1)).softmax(1)[:, settings.target]  # (v,)
    p = (model(ids).logits[0, -1].softmax(-1) * posterior**settings.strength).double()
    p, kept, share = p / p.sum(), posterior > settings.tau, 0.0
    for w in posterior.argsort(descending=True):
        if share < settings.rho:
            kept[w] = True
        share += p[w].item()
    return (p * kept / (p * kept).sum()).log().float()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        *((kind, {"rho": 1.0}) for kind in ["llama", *DECODERS]),
        ("llama", {"rho": 0.3, "tau": 0.5}),
        ("llama", {"rho": 0.9, "tau": 1.0}),
    ],
)
@torch.no_grad()
def test_gedi_weighs_the_whole_text(models, kind, more):  # noqa: F811
    settings = GeDi(BAG, linear_experts(3), 1, strength=1.5, alpha=2.5, **more)
    found, written = scores_of(models[kind], ["hello you"], settings, length=3)
    ids = TOKENIZER(["hello you"], return_tensors="pt").input_ids
    others = torch.arange(len(TOKENIZER)) != models[kind].generation_config.eos_token_id  # `scores_of` lets no text end
    for i, ours in enumerate(found):
        theirs = published(models[kind], settings.experts, torch.cat([ids, written[:, :i]], 1), settings)
        ours, theirs = ours[0][others], theirs[others]
        torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=2e-5, rtol=1e-3)
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        assert more.get("tau") != 1.0 or 0 < ours.isfinite().sum() < len(ours)


@pytest.mark.parametrize("kind", ["llama", *DECODERS])
@pytest.mark.parametrize("method", [DExperts, GeDi])
def test_a_batch_is_its_texts_alone(models, kind, method):  # noqa: F811
    settings, prompts = method(BAG, linear_experts(2), 0, strength=0.5), ["hello there", "a cat", "oh", "x"]
    together = scores_of(models[kind], prompts, settings, length=6)[1]
    assert torch.equal(together, torch.cat([scores_of(models[kind], [prompt], settings, length=6)[1] for prompt in prompts]))


def test_experts_that_agree_and_strength_0_change_nothing(models):  # noqa: F811
    vocabulary, maps = len(TOKENIZER), torch.randn(1, 32, 259)
    same, differ = (lambda h: torch.einsum("bd,cdv->bcv", h, maps.expand(2, -1, -1))), lambda h: torch.randn(len(h), 2, 259)
    plain, text = scores_of(models["llama"], ["hello there", "a"], None, length=3)
    for experts, strength in ((same, 5.0), (differ, 0.0)):
        for method in (DExperts(BAG, experts, 0, strength, vocabulary), GeDi(BAG, experts, 0, strength, rho=1.0)):
            found, steered = scores_of(models["llama"], ["hello there", "a"], method, length=3)
            assert torch.equal(text, steered)
            for ours, theirs in zip(found, plain):
                torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-5, rtol=1e-4)


def test_mistakes():
    head = Discriminator(torch.nn.Linear(32, 2), 1)
    experts = lambda hidden: torch.zeros(len(hidden), 2, 259)  # noqa: E731
    for method, field, value in (
        (DExperts, "strength", -1), (DExperts, "top", 0), (DExperts, "target", -1), (GeDi, "strength", -1),
        (GeDi, "alpha", -0.5), (GeDi, "rho", 1.5), (GeDi, "tau", -0.1), (GeDi, "target", -1),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{field}: got {value}"):
            method(head, experts, **{"target": 0, field: value})
    for method in (DExperts, GeDi):
        with pytest.raises(UserError, match=r"experts: got shape \(1, 2, 259\), expected \(1, more than 2, 259\)"):
            scores_of(random_model().language_model, ["hello"], method(head, experts, 2))
    with pytest.raises(UserError, match="classes: got 1"):
        ClassLanguageModel(["one"], "tiny", "fp32")
    with pytest.raises(UserError, match="rank: got 0"):
        ClassLanguageModel(["a", "b"], "tiny", "fp32", rank=0)
    with pytest.raises(UserError, match="label: got 3, expected 0 to 2"):
        random_model().losses(texts([5, 6], labels=[3]))
    with pytest.raises(UserError, match=r"text and label: got no item that has both \(the batch holds text\)"):
        random_model().log_likelihood(texts([5, 6]))
