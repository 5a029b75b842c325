"""Multimodal VAEs against linear-Gaussian models, whose posteriors and likelihoods are known; what is missing; parity."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import mmgen.models.multimodal_vae as module
from mmgen.data.audio import AudioProcessor
from mmgen.data.batch import Batch
from mmgen.data.image import ImageProcessor
from mmgen.data.text import train_tokenizer
from mmgen.distributions import draw
from mmgen.errors import UserError
from mmgen.inference.files import generate_files
from mmgen.latents.fusion import subsets
from mmgen.latents.spaces import LOG_SCALE_BOUND, make_prior
from mmgen.models.multimodal_vae import OBJECTIVES, MultimodalVAE

SIZES, K = {"a": 4, "b": 5, "c": 6}, 3
PAIRS = {"random_subsets": 3}  # all the pairs of three modalities


class LinearGaussian:
    """x_i = A_i z + c_i + noise of deviation s_i: with orthogonal columns of A_i, every posterior is a diagonal Gaussian."""

    def __init__(self, objective: str = "mvae", experts: str = "likelihood", names: str = "ab", **options):
        torch.manual_seed(0)
        self.names = list(names)
        self.model = MultimodalVAE(
            {
                n: {
                    "kind": "vector",
                    "shape": [SIZES[n]],
                    "encoder": {"dim": SIZES[n], "hidden": []},
                    "decoder": {"hidden": [], "scale": 0.5 + 0.25 * i},
                }
                for i, n in enumerate(self.names)
            },
            latent_dim=K,
            objective=objective,
            **options,
        ).double()
        self.a, self.c, self.s, self.expert = {}, {}, {}, {}
        for i, n in enumerate(self.names):
            a = torch.linalg.qr(torch.randn(SIZES[n], K).double()).Q * (0.5 + torch.rand(K).double())  # (d, k)
            self.a[n], self.c[n], self.s[n] = a, torch.randn(SIZES[n]).double(), 0.5 + 0.25 * i
            precision = a.square().sum(0) / self.s[n] ** 2  # (k,) of the likelihood as a function of z
            if experts == "posterior":  # p(z | x_i), its prior included
                precision = precision + 1
            slope = a.T / self.s[n] ** 2 / precision[:, None]  # (k, d)
            shift, log_scale = -slope @ self.c[n], -0.5 * precision.log()
            if experts == "wrong":
                slope, shift, log_scale = 0.5 * slope, shift + 0.3, log_scale + 0.4
            self.expert[n] = slope, shift, log_scale
            self._write(n)

    @torch.no_grad()
    def _write(self, n: str) -> None:
        slope, shift, log_scale = self.expert[n]
        encoder, head, decoder = self.model.encoders[n].layers[0], self.model.heads[n].linear, self.model.decoders[n].layers[0]
        encoder.weight.copy_(torch.eye(SIZES[n]))
        encoder.bias.zero_()
        head.weight.copy_(torch.cat([slope, torch.zeros_like(slope)]))
        head.bias.copy_(torch.cat([shift, LOG_SCALE_BOUND * torch.atanh(log_scale / LOG_SCALE_BOUND)]))
        decoder.weight.copy_(self.a[n])
        decoder.bias.copy_(self.c[n])

    def batch(self, n: int) -> Batch:
        z = torch.randn(n, K).double()
        values = {m: z @ self.a[m].T + self.c[m] + self.s[m] * torch.randn(n, SIZES[m]).double() for m in self.names}
        return Batch(values)

    def log_p(self, batch: Batch, names: str) -> Tensor:
        """log p of the modalities named, (b,)."""
        a, c = torch.cat([self.a[n] for n in names]), torch.cat([self.c[n] for n in names])
        noise = torch.cat([torch.full((SIZES[n],), self.s[n] ** 2) for n in names]).double()
        return MultivariateNormal(c, a @ a.T + noise.diag()).log_prob(torch.cat([batch[n] for n in names], 1))

    def product(self, batch: Batch, names: str, prior: bool = True) -> tuple[Tensor, Tensor]:
        """Mean (b, k) and variance (k,) of the product of experts."""
        precision, moment = torch.full((K,), float(prior)).double(), 0.0
        for n in names:
            slope, shift, log_scale = self.expert[n]
            precision = precision + (-2 * log_scale).exp()
            moment = moment + (-2 * log_scale).exp() * (batch[n] @ slope.T + shift)
        return moment / precision, 1 / precision

    def reconstruction(self, batch: Batch, names: str, mean: Tensor, variance: Tensor) -> Tensor:
        """E_q[sum_i log p(x_i | z)], (b,)."""
        total = 0.0
        for n in names:
            error = (batch[n] - mean @ self.a[n].T - self.c[n]).square().sum(1) + (self.a[n].square() * variance).sum()
            total = total - error / (2 * self.s[n] ** 2) - SIZES[n] * math.log(self.s[n] * math.sqrt(2 * math.pi))
        return total

    def elbo(self, batch: Batch, names: str, prior: bool = True) -> Tensor:
        mean, variance = self.product(batch, names, prior)
        return self.reconstruction(batch, names, mean, variance) - divergence(mean, variance, 0.0, torch.ones(K).double())


def divergence(mean: Tensor, variance: Tensor, mean_p: Tensor | float, variance_p: Tensor) -> Tensor:
    """KL between diagonal Gaussians, (b,)."""
    ratio = variance / variance_p
    return 0.5 * (ratio - 1 - ratio.log() + (mean - mean_p).square() / variance_p).sum(-1)


@pytest.fixture
def cubature(monkeypatch):
    """Draws of which every 2 K items in a row have noise of mean 0 and covariance 1: means of quadratics over them are exact.

    Of a mixture of s components, 2 K items in a row draw from the first, the next from the second, and so on.
    """
    noise = math.sqrt(K) * torch.cat([torch.eye(K), -torch.eye(K)]).double()  # (2 k, k)

    def points(q, shape=(), generator=None):
        normal = getattr(q, "component_distribution", q).base_dist
        mean, scale = normal.loc, normal.scale
        if hasattr(q, "component_distribution"):
            b, s = mean.shape[:2]
            chosen = torch.arange(b) // (2 * K) % s
            mean, scale = mean[torch.arange(b), chosen], scale[torch.arange(b), chosen]
        return mean + scale * noise.repeat(mean.shape[-2] // (2 * K), 1)

    monkeypatch.setattr(module, "rsample", points)


@pytest.mark.parametrize(("objective", "prior"), [("mvae", True), ("mvtcae", False)])
@pytest.mark.parametrize("names", ["a", "b", "ab"])
def test_the_fused_posterior(objective, prior, names):
    world = LinearGaussian(objective)
    batch = world.batch(5)
    q, (mean, variance) = world.model.encode(batch.keep(list(names))), world.product(batch, names, prior)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.variance, variance.expand(5, K))


@pytest.mark.parametrize("names", ["a", "b", "ab"])
def test_log_likelihood_is_exact_where_the_posterior_is(names):
    world = LinearGaussian("mvae")  # prior times likelihoods: the product of experts is the posterior
    batch = world.batch(5).keep(list(names))
    for samples in (1, 7):
        torch.testing.assert_close(world.model.log_likelihood(batch, samples), world.log_p(batch, names))


def test_log_likelihood_of_items_that_lack_different_things():
    world = LinearGaussian("mvae")
    batch = world.batch(2)
    batch = Batch(batch.values, present={"a": torch.tensor([True, False])})
    expected = torch.stack([world.log_p(batch, "ab")[0], world.log_p(batch, "b")[1]])
    torch.testing.assert_close(world.model.log_likelihood(batch), expected)


@pytest.mark.parametrize("objective", ["mmvae", "mopoe"])
def test_mixtures_of_one_expert_are_exact_too(objective):
    world = LinearGaussian(objective, experts="posterior")
    batch = world.batch(5)
    torch.testing.assert_close(world.model.log_likelihood(batch.without("b")), world.log_p(batch, "a"))


@pytest.mark.parametrize("samples", [1, 4])
def test_mmvae_with_one_modality_present_is_the_likelihood_itself(samples):
    world = LinearGaussian("mmvae", experts="posterior", samples=samples)
    batch = world.batch(5)
    torch.testing.assert_close(world.model.losses(batch.without("a")).total, -world.log_p(batch, "b").mean())


def test_mvae_is_the_sum_of_its_elbos(cubature):
    world = LinearGaussian("mvae", experts="wrong", names="abc", **PAIRS)
    batch = world.batch(4)
    expected = sum(world.elbo(batch, names).mean() for names in ("abc", "a", "b", "c", "ab", "ac", "bc"))
    torch.testing.assert_close(world.model.losses(batch.repeat(2 * K)).total, -expected)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_mvtcae_in_closed_form(cubature, names):
    world = LinearGaussian("mvtcae", experts="wrong", alpha=0.7, beta=2.0)
    batch = world.batch(4)
    mean, variance = world.product(batch, names, prior=False)
    conditional = sum(divergence(mean, variance, *world.product(batch, n, prior=False)) for n in names)
    terms = 0.3 * divergence(mean, variance, 0.0, torch.ones(K).double()) + 0.35 * conditional
    expected = 1.3 / 2 * world.reconstruction(batch, names, mean, variance) - 2 * terms
    torch.testing.assert_close(world.model.losses(batch.repeat(2 * K).keep(list(names))).total, -expected.mean())


def test_mopoe_is_the_mean_over_its_subsets(cubature):
    world = LinearGaussian("mopoe", experts="wrong")
    batch = world.batch(4)
    expected = 0.0
    for names in ("a", "b", "ab"):
        mean, variance = world.product(batch, names, prior=False)
        expected = expected + world.reconstruction(batch, "ab", mean, variance) / 3
        expected = expected - divergence(mean, variance, 0.0, torch.ones(K).double()) / 3
    torch.testing.assert_close(world.model.losses(batch.repeat(2 * K * 3)).total, -expected.mean())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_aggregate_prior_is_fitted_to_the_product_of_what_each_item_has(objective):
    world = LinearGaussian(objective, names="ab", prior="aggregate", prior_settings={"components": 1})
    batch, model = world.batch(3000), world.model
    half = Batch(batch.values, present={"a": torch.arange(3000) % 2 == 0, "b": torch.ones(3000, dtype=torch.bool)})
    model.fit_prior([half.items(slice(0, 1000)), half.items(slice(1000, None))], torch.Generator().manual_seed(0))
    both, alone = (world.product(batch, names, prior=objective == "mvae") for names in ("ab", "b"))  # (mean, variance) each
    mean, variance = (
        torch.cat([x[::2].expand(1500, K), y[1::2].expand(1500, K)])
        for x, y in zip(*[[m.expand(3000, K) for m in pair] for pair in (both, alone)])
    )
    torch.testing.assert_close(model.prior.mean[0], mean.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(model.prior.scale[0] ** 2, (mean.var(0) + variance.mean(0)), atol=0, rtol=0.1)
    draws = mean + variance.sqrt() * torch.randn_like(mean)
    # of MVAE the product is the exact posterior, so that the mean of all is N(0, 1) already
    assert model.eval().prior().log_prob(draws).mean() > model.train().prior().log_prob(draws).mean() - 0.01


def test_another_prior_is_not_fitted():
    world = LinearGaussian("mopoe", names="ab")
    with pytest.raises(UserError, match="prior to fit: got StandardPrior, expected AggregatePrior"):
        world.model.fit_prior([world.batch(3)])


@pytest.mark.parametrize("objective", ["mmvae", "mopoe", "mvtcae"])
def test_a_learned_prior_is_in_the_objective_and_in_the_likelihood(objective):
    """A mixture of one Gaussian is that Gaussian: with it at N(0, 1) nothing changes but the gradient."""
    plain = LinearGaussian(objective, names="ab")
    batch, learned = plain.batch(20), copy.deepcopy(plain)
    learned.model.prior = make_prior("mixture", K, components=1, spread=0.0).double()
    many = Batch({n: x.repeat(3000, 1) for n, x in batch.values.items()})
    before, after = (lg.model.losses(many).total for lg in (plain, learned))
    torch.testing.assert_close(after, before, rtol=0.01, atol=0)
    after.backward()
    assert learned.model.prior.mean.grad.abs().sum() > 0
    for lg in (plain, learned):
        torch.manual_seed(0)
        lg.bound = lg.model.log_likelihood(batch, 50)
    torch.testing.assert_close(learned.bound, plain.bound)


def test_mopoe_with_one_modality_present_is_the_plain_vae(cubature):
    world = LinearGaussian("mopoe", experts="wrong")
    batch = world.batch(4)
    repeated = batch.repeat(2 * K * 3)
    absent = Batch(repeated.values, present={"b": torch.zeros(repeated.size, dtype=torch.bool)})
    for incomplete in (absent, repeated.without("b")):
        torch.testing.assert_close(world.model.losses(incomplete).total, -world.elbo(batch, "a", prior=False).mean())


def test_the_bound_rises_with_its_samples():
    world = LinearGaussian("mopoe", experts="wrong")
    batch = world.batch(250)
    bounds = [world.model.log_likelihood(batch, samples).mean().item() for samples in (1, 5, 50)]
    exact = world.log_p(batch, "ab").mean().item()
    assert bounds[0] + 0.1 < bounds[1] < bounds[2] - 0.02
    assert bounds[2] < exact + 0.02 and exact - bounds[2] < 0.6


def test_weights_of_the_modalities():
    world = LinearGaussian("mvtcae", rescale=True)
    plain = LinearGaussian("mvtcae")
    batch = world.batch(3)
    torch.manual_seed(1)
    losses = world.model.losses(batch)
    torch.manual_seed(1)
    unweighted = plain.model.losses(batch)
    assert losses["reconstruction_a"].item() == pytest.approx(unweighted["reconstruction_a"].item() * 5 / 4)
    assert losses["reconstruction_b"].item() == unweighted["reconstruction_b"].item()
    own = MultimodalVAE(
        {"a": {"kind": "vector", "shape": [4], "weight": 3.0}, "b": {"kind": "vector", "shape": [8]}}, rescale=True
    )
    assert own.weights == {"a": 3.0, "b": 1.0}


def networks(objective: str, **options) -> MultimodalVAE:
    torch.manual_seed(0)
    text = {"dim": 8, "depth": 1, "heads": 2}
    modalities = {
        "image": {"kind": "image", "shape": [1, 8, 8], "encoder": {"width": 4, "dim": 8}, "decoder": {"width": 4}},
        "text": {"kind": "text", "shape": [9, 5], "encoder": text, "decoder": {**text, "stop": 2}},
        "audio": {"kind": "audio", "shape": [8, 6], "encoder": {"width": 4, "dim": 8}, "decoder": {"width": 4}},
    }
    return MultimodalVAE(modalities, 4, objective, **options)


def full_batch(n: int = 4) -> Batch:
    torch.manual_seed(1)
    values = {"image": torch.rand(n, 1, 8, 8), "text": torch.randint(3, 9, (n, 5)), "audio": torch.randn(n, 8, 6)}
    return Batch(values, {"text": torch.arange(5) < torch.arange(1, n + 1)[:, None]})


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("missing", ["image", "text", "audio"])
def test_missing_by_key_is_missing_by_mask(objective, missing):
    model, batch = networks(objective), full_batch()
    nobody = Batch(batch.values, batch.masks, {missing: torch.zeros(4, dtype=torch.bool)})
    results = []
    for incomplete in (batch.without(missing), nobody):
        model.zero_grad()
        torch.manual_seed(2)
        loss = model.losses(incomplete).total
        loss.backward()
        torch.manual_seed(2)
        likelihood = model.log_likelihood(incomplete, samples=3)
        results.append(
            (loss.item(), likelihood.tolist(), [None if p.grad is None else p.grad.tolist() for p in model.parameters()])
        )
    assert results[0] == results[1]
    parts = (model.encoders, model.heads, model.decoders)
    assert all(p.grad is None or not p.grad.any() for part in parts for p in part[missing].parameters())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("missing", ["image", "audio"])
def test_what_an_item_lacks_is_never_read(objective, missing):
    model, batch = networks(objective), full_batch()
    present = {missing: torch.tensor([False, True, True, True])}
    losses = []
    for garbage in (0.0, torch.nan, torch.inf):
        x = batch[missing].clone()
        x[0] = garbage
        x.requires_grad_()
        model.zero_grad()
        torch.manual_seed(2)
        loss = model.losses(Batch({**batch.values, missing: x}, batch.masks, present)).total
        loss.backward()
        losses.append(loss.item())
        assert (x.grad[0] == 0).all() and (x.grad[1:] != 0).any()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert losses[0] == losses[1] == losses[2] and math.isfinite(losses[0])


def calls(modules: nn.ModuleDict) -> dict[str, int]:
    """Counts the calls of each from now on."""
    counts = dict.fromkeys(modules, 0)

    def count(name: str) -> None:
        counts[name] += 1

    for name, part in modules.items():
        part.register_forward_hook(lambda *_, name=name: count(name))
    return counts


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_modality_is_encoded_and_decoded_once_a_step(objective):
    model, batch = networks(objective, **({"random_subsets": 2} if objective == "mvae" else {})), full_batch()
    encoded, decoded = calls(model.encoders), calls(model.decoders)
    model.losses(batch)
    once = {"image": 1, "text": 1, "audio": 1}
    assert encoded == once and decoded == once
    encoded = calls(model.encoders)
    model.log_likelihood(batch, samples=128 // batch.size + 1)  # two chunks
    assert encoded == once and decoded == {name: 3 for name in once}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("given", [(), ("image",), ("text", "audio"), ("image", "text", "audio")])
def test_generation_from_any_subset(objective, given):
    model, batch = networks(objective), full_batch(2)
    batch = (
        batch.keep(given) if given else Batch({"audio": torch.zeros(2)}, present={"audio": torch.zeros(2, dtype=torch.bool)})
    )
    made = [model.generate(batch, "image, text,audio", n=3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert {name: tuple(x.shape) for name, x in made[0].items()} == {"image": (6, 1, 8, 8), "text": (6, 5), "audio": (6, 8, 6)}
    assert all(torch.equal(x, made[1][name]) for name, x in made[0].items())
    alone = model.generate(batch, "image", n=3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(alone, made[0]["image"])
    assert not torch.equal(alone[0], alone[1])


def test_several_modalities_come_from_one_z_and_the_right_item():
    world = LinearGaussian("mvae")
    batch = world.batch(2)
    batch = Batch(batch.values, present={n: torch.tensor([True, False]) for n in "ab"})
    made = world.model.generate(batch, "a,b", n=4000, generator=torch.Generator().manual_seed(0))
    z = [(made[n] - world.c[n]) @ torch.linalg.pinv(world.a[n]).T for n in "ab"]  # (8000, k) each
    torch.testing.assert_close(z[0], z[1])
    mean, variance = world.product(batch, "ab")
    torch.testing.assert_close(z[0][:4000].mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z[0][:4000].var(0), variance, atol=0, rtol=0.1)
    torch.testing.assert_close(z[0][4000:].mean(0), torch.zeros(K).double(), atol=0.06, rtol=0)  # the prior
    torch.testing.assert_close(z[0][4000:].var(0), torch.ones(K).double(), atol=0, rtol=0.1)


def test_generation_from_nothing_writes_files(tmp_path):
    model = networks("mopoe")
    words = train_tokenizer(["one", "two"], 262, max_length=5)
    audio = AudioProcessor(rate=8000, n_fft=64, hop=32, mels=8, frames=6)
    model.processors = {"image": ImageProcessor(8, channels=1), "text": words, "audio": audio}
    made = generate_files(model, {}, "image,text,audio", n=2, out=tmp_path)
    assert len(made) == 1 and len(made[0]) == 2
    for i, together in enumerate(made[0]):
        assert together["image"] == str(tmp_path / f"{i:04d}_image.png")
        assert ImageProcessor(8, channels=1)(together["image"]).shape == (1, 8, 8)
        assert audio(together["audio"]).shape == (8, 6)
        assert isinstance(together["text"], str)
    sound = made[0][0]["audio"]
    assert generate_files(model, {"audio": [sound, sound]}, "image", out=tmp_path) == [
        [str(tmp_path / "0000.png")],
        [str(tmp_path / "0001.png")],
    ]


def changed(batch: Batch, name: str, at: tuple[int, ...], value: float) -> Batch:
    x = batch[name].clone()
    x[at] = value
    return Batch({**batch.values, name: x}, batch.masks, batch.present)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: Batch(b.values, b.masks, dict.fromkeys(b.values, torch.arange(4) != 2)), "modalities: got none for item 2"),
        (lambda b: changed(b, "audio", (3, 0, 0), math.nan), "audio of item 3: got nan, expected finite numbers"),
        (lambda b: changed(b, "image", (1, 0, 0, 0), 1.5), "image of item 1: got 1.5, expected 0 to 1"),
        (lambda b: changed(b, "text", (1, 0), 9), "text of item 1: got 9, expected token ids from 0 to 8"),
        (lambda b: Batch({**b.values, "label": torch.zeros(4)}), "modality: got label, expected a known name"),
        (lambda b: Batch({"audio": torch.zeros(4, 8, 7)}), "audio: got shape (8, 7), expected (8, 6)"),
    ],
)
def test_batches_that_cannot_be_used(make, message):
    with pytest.raises(UserError) as error:
        networks("mopoe").losses(make(full_batch()))
    assert message in str(error.value)


A = {"kind": "vector", "shape": [4]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "modalities: got none"),
        ({"modalities": {"a": {**A, "kind": "video"}}}, "modalities.a.kind: got video"),
        ({"modalities": {"a": {**A, "shape": [1, 4]}}}, "modalities.a.shape: got [1, 4], expected 1 number for vector"),
        ({"modalities": {"a": {**A, "wieght": 2}}}, "did you mean 'weight'?"),
        ({"modalities": {"a": {**A, "weight": -2}}}, "modalities.a.weight: got -2"),
        ({"modalities": {"a": {**A, "decoder": {"lielihood": "normal"}}}}, "did you mean 'likelihood'?"),
        ({"modalities": {"a": {"kind": "text", "shape": [9, 4]}}}, "expected the token that ends a text as stop"),
        ({"modalities": {"a": A}, "objective": "movae"}, "objective: got movae"),
        ({"modalities": {"a": A, "b": A}, "random_subsets": 1}, "random_subsets: got 1, expected 0 to 0 with 2 modalities"),
        ({"modalities": {"a": A}, "alpha": 1.5}, "alpha: got 1.5"),
        ({"modalities": {"a": A}, "beta": -1.0}, "beta: got -1.0"),
        ({"modalities": {"a": A}, "samples": 0}, "samples: got 0"),
        ({"modalities": {"a": A}, "objective": "mvae", "prior": "mixture"}, "prior: got mixture, expected standard"),
        ({"modalities": {"a": A}, "prior_settings": {"components": 2}}, "prior.components: got components"),
    ],
)
def test_configs_that_cannot_be_used(arguments, message):
    with pytest.raises(UserError) as error:
        MultimodalVAE(**arguments)
    assert message in str(error.value)


def test_generation_of_a_modality_the_model_has_not():
    with pytest.raises(UserError, match="to: got video, expected a known name"):
        networks("mvae").generate(full_batch(), "image,video")


def peer_of(model: MultimodalVAE, peers, name: str, **options):
    """multivae's model of this name on the networks of ``model``."""
    from multivae.models.nn.base_architectures import BaseDecoder, BaseEncoder
    from pythae.models.base.base_utils import ModelOutput

    class Encoder(BaseEncoder):
        def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
            super().__init__()
            self.encoder, self.head, self.latent_dim = encoder, head, K

        def forward(self, x: Tensor) -> ModelOutput:
            normal = self.head(self.encoder(x)).base_dist
            return ModelOutput(embedding=normal.loc, log_covariance=2 * normal.scale.log())

    class Decoder(BaseDecoder):
        def __init__(self, decoder: nn.Module) -> None:
            super().__init__()
            self.decoder, self.latent_dim = decoder, K

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.decoder(z).mean)

    dims = {n: tuple(values["shape"]) for n, values in model.modalities.items()}
    scales = {n: {"scale": values["decoder"]["scale"]} for n, values in model.modalities.items()}
    config = getattr(peers, f"{name}Config")(
        n_modalities=len(dims),
        latent_dim=K,
        input_dims=dims,
        decoder_dist_params=scales,
        uses_likelihood_rescaling=True,
        **options,
    )
    encoders = {n: Encoder(model.encoders[n], model.heads[n]) for n in dims}
    return getattr(peers, name)(config, encoders, {n: Decoder(model.decoders[n]) for n in dims}).double().train()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.filterwarnings("ignore")
def test_parity_with_multivae(objective, monkeypatch):
    """The same loss as multivae 1.0.3 on the same weights and noise, where its definitions are ours.

    They differ in this: its MMVAE is summed over the batch, ours the mean; it draws MoPoE's subsets in blocks of the batch and
    adds the prior to the product of all modalities, ours draws one an item and follows the paper; of incomplete data, its MVAE
    takes the mean over the items that have something of a subset, ours over all.
    """
    peers = pytest.importorskip("multivae.models")
    options = {"mvae": PAIRS, "mmvae": {"samples": 4}, "mopoe": {"beta": 2.0}, "mvtcae": {"beta": 2.0, "alpha": 0.7}}[
        objective
    ]
    world = LinearGaussian(objective, experts="wrong", names="abc", rescale=True, **options)
    batch = world.batch(16)  # 16 x 3 numbers a draw: several draws at once are then the same as one after another
    theirs = {
        "mvae": ("MVAE", {"k": 3, "warmup": 0}),
        "mmvae": ("MMVAE", {"K": 4, "prior_and_posterior_dist": "normal", "learn_prior": False, "loss": "iwae_looser"}),
        "mopoe": ("MoPoE", {"beta": 2.0}),
        "mvtcae": ("MVTCAE", {"beta": 2.0, "alpha": 0.7}),
    }
    name, settings = theirs[objective]
    peer = peer_of(world.model, peers, name, **settings)
    if objective == "mvae":  # the same order of the pairs
        ours = world.model.step_subsets()[4:]
        monkeypatch.setattr(world.model, "step_subsets", lambda: [("a", "b", "c"), ("a",), ("b",), ("c",), *ours])
        monkeypatch.setattr(peer, "subsets", ours)
        monkeypatch.setattr("multivae.models.mvae.mvae_model.choice", lambda numbers, size, replace: numbers)
    if objective == "mmvae":  # ours draws all experts of a sample together, so give both the same noise
        noise = torch.randn(3, 4, 16, K).double()  # (m, K, b, k)
        monkeypatch.setattr(
            module, "rsample", lambda q, shape: q.base_dist.loc + q.base_dist.scale * noise.permute(1, 2, 0, 3)
        )
        draws = iter(noise)
        monkeypatch.setattr(torch.distributions.Normal, "rsample", lambda q, shape=(): q.loc + q.scale * next(draws))
    if objective == "mopoe":
        poe = pytest.importorskip("multivae.models.base.base_utils").poe
        monkeypatch.setattr(peer, "_poe_fusion", poe)

        def chosen(mus, logvars, weights):
            drawn = draw(torch.full((16, 7), 1 / 7).double(), 1, None)[:, 0]
            order = [
                list(peer.subsets.values())[1:].index([n for n, inside in zip("abc", row) if inside]) for row in subsets(3)
            ]
            component = torch.tensor(order)[drawn]
            return mus[component, torch.arange(16)], logvars[component, torch.arange(16)]

        monkeypatch.setattr(peer, "deterministic_mixture_component_selection", chosen)
    torch.manual_seed(3)
    ours = world.model.losses(batch).total
    from multivae.data.datasets.base import MultimodalBaseDataset

    torch.manual_seed(3)
    expected = peer(MultimodalBaseDataset(dict(batch.values))).loss
    torch.testing.assert_close(ours, expected / (16 if objective == "mmvae" else 1), rtol=1e-6, atol=0)
