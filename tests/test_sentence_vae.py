import pytest
import torch
from torch.distributions import kl_divergence

from mmgen.data.batch import Batch
from mmgen.data.text import train_tokenizer
from mmgen.errors import UserError
from mmgen.latents.spaces import diagonal_normal
from mmgen.models import sentence_vae
from mmgen.models.base import load
from mmgen.models.sentence_vae import SentenceVAE

SMALL = {"dim": 16, "depth": 1, "heads": 2}
IDS = torch.tensor([[5, 6, 7, 2], [8, 2, 0, 0], [9, 5, 2, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
BATCH = Batch({"text": IDS}, {"text": MASK})


def tiny(**settings) -> SentenceVAE:
    torch.manual_seed(0)
    return SentenceVAE(vocabulary=10, length=6, latent_dim=3, encoder=SMALL, decoder=SMALL, **settings)


@pytest.fixture
def still(monkeypatch):
    """Every draw is the mean."""
    monkeypatch.setattr(sentence_vae, "rsample", lambda d, shape=(), generator=None: d.mean.expand(*shape, *d.mean.shape))


def test_the_loss_is_minus_the_elbo(still):
    model = tiny().eval()
    q = model.encode(BATCH)
    losses = model.losses(BATCH)
    torch.testing.assert_close(losses["reconstruction"], -model.decode(q.mean).log_prob(IDS, MASK).mean())
    torch.testing.assert_close(losses["kl"], kl_divergence(q, model.prior()).mean())
    torch.testing.assert_close(-losses.total, model.elbo(BATCH).mean())
    torch.testing.assert_close(model.elbo(BATCH.items(slice(1, 2))), model.elbo(BATCH)[1:2])


def test_free_bits_are_a_floor_in_each_dimension():
    model = tiny(free_bits=0.5)
    with torch.no_grad():
        model.head.linear.weight.zero_()  # q is the same for all: KL_j = mean_j^2 / 2, that is 2, 0.02 and 0
        model.head.linear.bias.copy_(torch.tensor([2.0, 0.2, 0.0, 0.0, 0.0, 0.0]))
    term = model.losses(BATCH)["kl"]
    torch.testing.assert_close(term, torch.tensor(2.0 + 0.5 + 0.5))
    (gradient,) = torch.autograd.grad(term, model.head.linear.bias)
    torch.testing.assert_close(gradient, torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    model.free_bits = 0.0
    torch.testing.assert_close(model.losses(BATCH)["kl"], torch.tensor(2.02))


def test_the_floor_is_of_the_mean_over_the_batch():
    model = tiny(free_bits=0.3)
    mean = torch.tensor([[1.5, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0]])  # KL_1 of the items: 1.125, 0.005 and 0
    model.posterior = lambda ids, mask: diagonal_normal(mean, torch.ones_like(mean))
    torch.testing.assert_close(model.losses(BATCH)["kl"], torch.tensor(1.13 / 3 + 0.3 + 0.3))


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (3, 0.3), (10, 1.0), (50, 1.0)])
def test_the_weight_of_the_kl_follows_the_step(step, weight):
    model = tiny(anneal_steps=10)
    full = model.encode(BATCH)
    model.step.fill_(step)  # as the loop does
    torch.testing.assert_close(model.losses(BATCH)["kl"], weight * kl_divergence(full, model.prior()).mean())


def test_word_dropout_hides_words_and_leaves_targets_alone(still):
    """With every word hidden, log p is that of the true words, each read from z and the number of words before."""
    model = tiny(word_dropout=1.0).train()
    p = model.decode(model.encode(BATCH).mean)
    logits = p.logits_of(p.context, torch.zeros_like(IDS), MASK)  # (b, t, v) of a decoder that has read nothing but pads
    expected = -(logits.log_softmax(-1).gather(-1, IDS[..., None])[..., 0] * MASK).sum(1)
    torch.testing.assert_close(model.losses(BATCH)["reconstruction"], expected.mean())
    whole = -p.log_prob(IDS, MASK)
    assert not torch.allclose(whole, expected)
    torch.testing.assert_close(model.eval().losses(BATCH)["reconstruction"], whole.mean())


def test_only_a_share_of_the_words_is_hidden():
    model = tiny(word_dropout=0.25)
    ids = torch.full((100, 100), 7)
    torch.manual_seed(0)
    read = model.drop_words(ids)
    assert set(read.unique().tolist()) == {0, 7} and (read == 0).double().mean() == pytest.approx(0.25, abs=0.02)
    assert (ids == 7).all()


def test_padding_is_not_read():
    model = tiny().eval()
    other = Batch({"text": IDS.masked_fill(~MASK, 4)}, {"text": MASK})
    for batch in (other, Batch({"text": IDS})):  # without a mask, what follows the stop is no text
        torch.manual_seed(0)
        first = model.losses(BATCH).total
        torch.manual_seed(0)
        torch.testing.assert_close(model.losses(batch).total, first)


def test_likelihood_is_exact_where_the_decoder_ignores_z():
    model = tiny().eval()
    torch.nn.init.zeros_(model.decoder.prefix.weight)
    for value in model.head.linear.parameters():  # q = p(z)
        torch.nn.init.zeros_(value)
    exact = model.decode(torch.zeros(3, 3)).log_prob(IDS, MASK)
    for samples in (1, 5, 300):
        torch.testing.assert_close(model.log_likelihood(BATCH, samples), exact)
    torch.testing.assert_close(model.elbo(BATCH, 2), exact)


def test_the_bound_rises_with_the_samples():
    model = tiny().eval()
    model.decoder.prefix.weight.data.mul_(300)  # z matters
    batch = Batch({"text": IDS[:1].repeat(100, 1)}, {"text": MASK[:1].repeat(100, 1)})
    torch.manual_seed(0)
    one, many = (model.log_likelihood(batch, samples).mean() for samples in (1, 16))
    elbo = model.elbo(batch, 4).mean()
    assert many > one + 0.01 and elbo == pytest.approx(one.item(), abs=0.3)


def test_interpolation_is_a_line_between_the_means():
    model = tiny().eval()
    a, b = BATCH.items(slice(0, 2)), BATCH.items(slice(1, 3))
    sentences = model.interpolate(a, b, n=3)
    assert sentences.shape == (2, 3, 6)
    ends = [model.encode(batch).mean for batch in (a, b)]
    for place, z in enumerate((ends[0], (ends[0] + ends[1]) / 2, ends[1])):
        assert torch.equal(sentences[:, place], model.decode(z).sample(temperature=0.0))


def test_generation_starts_from_the_sentence_or_from_the_prior(still):
    model = tiny().eval()
    given = Batch(BATCH.values, BATCH.masks, {"text": torch.tensor([True, False, True])})
    made = model.generate(given, n=2, temperature=0.0)
    z = torch.where(given.present["text"][:, None], model.encode(BATCH).mean, 0.0).repeat_interleave(2, 0)
    assert torch.equal(made, model.decode(z).sample(temperature=0.0))
    nothing = Batch.nothing(1)
    drawn = [model.generate(nothing, n=4, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*drawn) and drawn[0].shape == (4, 6)


def test_sentences_that_are_missing_count_nowhere():
    model = tiny().eval()
    partial = Batch(BATCH.values, BATCH.masks, {"text": torch.tensor([True, False, True])})
    kept = BATCH.items(torch.tensor([0, 2]))
    found = []
    for batch in (partial, kept):
        torch.manual_seed(0)
        found.append((model.losses(batch).total, model.log_likelihood(batch, 3)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1][1] == 0 and torch.equal(found[0][1][[0, 2]], found[1][1])
    torch.testing.assert_close(model.encode(partial).mean[[0, 2]], model.encode(kept).mean)


def test_saved_with_its_tokenizer_it_writes_text(tmp_path):
    text = train_tokenizer(["a red cat", "a blue dog"], vocab_size=270)
    torch.manual_seed(0)
    model = SentenceVAE(text.vocabulary, length=8, latent_dim=2, encoder=SMALL, decoder=SMALL, word_dropout=0.3, free_bits=0.1)
    model.processors["text"] = text
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.word_dropout == 0.3 and again.free_bits == 0.1
    batch = Batch({"text": text("a red cat")[None]})
    one, two = (m.eval().generate(batch, n=2, generator=torch.Generator().manual_seed(0)) for m in (model, again))
    assert torch.equal(one, two) and isinstance(again.processors["text"].decode(two[0]), str)
    assert torch.equal(again.log_likelihood(batch, 1).isfinite(), torch.tensor([True]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny(word_dropout=1.5), "word_dropout: got 1.5"),
        (lambda: tiny(free_bits=-1.0), "free_bits: got -1.0"),
        (lambda: tiny(anneal_steps=-1), "anneal_steps: got -1"),
        (lambda: tiny(dropped=2), "dropped: got 2, expected another token than stop"),
        (lambda: tiny(dropped=10), "dropped: got 10, expected a token, 0 to 9"),
        (lambda: tiny(stop=-1), "stop: got -1"),
        (lambda: SentenceVAE(10, encoder={"dims": 16}), "encoder.dims: got dims.*did you mean 'dim'"),
        (lambda: SentenceVAE(10, length=0), "length: got 0"),
        (lambda: tiny().encode(Batch({"image": torch.zeros(2)})), "text: got no item .*holds image"),
        (lambda: tiny().encode(Batch({"text": torch.tensor([[5, 10]])})), "text of item 0: got 10, expected token ids"),
        (lambda: tiny().encode(Batch({"text": torch.tensor([[5.0, 1.0]])})), "text: got torch.float32, expected token ids"),
        (lambda: tiny().losses(Batch({"text": torch.full((1, 7), 5)})), "sequence: got 7 tokens, expected at most 6"),
        (lambda: tiny().interpolate(BATCH, BATCH.items(slice(0, 1))), "interpolate: got 3 and 1 items"),
        (lambda: tiny().interpolate(BATCH, BATCH, n=1), "n: got 1"),
        (lambda: tiny().generate(BATCH, to="image"), "to: got image"),
        (lambda: tiny().generate(BATCH, top_p=0.0), "top_p: got 0.0"),
        (lambda: tiny().generate(BATCH, n=0), "n: got 0"),
        (lambda: tiny().log_likelihood(BATCH, 0), "samples: got 0"),
        (lambda: tiny().elbo(BATCH, 0), "samples: got 0"),
    ],
)
def test_wrong_use_says_so(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
