import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.latents.spaces import LOG_SCALE_BOUND, StandardPrior, diagonal_normal, rsample
from mmgen.models import vae
from mmgen.models.base import load
from mmgen.models.vae import OBJECTIVES, VAE, Outcome
from mmgen.training.prior import prior_fit

SETTINGS = {"beta_tc": {"dataset_size": 50}}
X = torch.tensor([[0.5, -1.0, 0.2, 2.0], [1.0, 0.0, -0.3, 0.4], [-1.5, 0.7, 0.1, -0.2]], dtype=torch.double)
NOISE = 0.5


def linear_gaussian(off: float = 0.0) -> tuple[VAE, MultivariateNormal]:
    """p(z) = N(0, 1), p(x | z) = N(W z + c, 0.25), W of orthogonal columns: q is exact for ``off`` 0. And p(x)."""
    torch.manual_seed(0)
    plain = {"hidden": []}
    model = VAE("x", "vector", [4], 2, encoder={"dim": 4, **plain}, decoder={"scale": NOISE, **plain}).double()
    w = torch.linalg.qr(torch.randn(4, 2, dtype=torch.double)).Q * torch.tensor([1.5, 0.7], dtype=torch.double)
    c = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.double)
    precision = 1 + w.square().sum(0) / NOISE**2
    scale = LOG_SCALE_BOUND * torch.atanh((off - 0.5 * precision.log()) / LOG_SCALE_BOUND)
    with torch.no_grad():
        model.decoder.layers[0].weight.copy_(w)
        model.decoder.layers[0].bias.copy_(c)
        model.encoder.layers[0].weight.copy_(torch.eye(4))
        model.encoder.layers[0].bias.copy_(-c)
        model.head.linear.weight.copy_(torch.cat([(w / NOISE**2 / precision).T, torch.zeros(2, 4, dtype=torch.double)]))
        model.head.linear.bias.copy_(torch.cat([torch.full((2,), off, dtype=torch.double), scale]))
    return model, MultivariateNormal(c, w @ w.T + NOISE**2 * torch.eye(4, dtype=torch.double))


def closed_form_elbo(model: VAE, x: torch.Tensor) -> torch.Tensor:
    q, (w, c) = model.posterior(x), model.decoder.layers[0].parameters()
    squares = (x - c - q.mean @ w.T).square().sum(-1) + (q.variance @ w.square().T).sum(-1)
    likelihood = -4 * math.log(NOISE * math.sqrt(2 * math.pi)) - squares / (2 * NOISE**2)
    return likelihood - kl_divergence(q, diagonal_normal(torch.zeros_like(q.mean), torch.ones_like(q.mean)))


def sigma_points(q, shape=(), generator=None):
    """2 k points whose mean of any quadratic function is its expectation; without ``shape``, a point for each quarter of b."""
    mean, scale, k = q.mean, q.stddev, q.event_shape[0]
    points = math.sqrt(k) * torch.cat([torch.eye(k), -torch.eye(k)]).to(mean)  # (2 k, k)
    if shape:
        assert shape == (2 * k,)
        return mean + scale * points[:, None]  # (2 k, b, k)
    return mean + scale * points.repeat_interleave(len(mean) // (2 * k), 0)


@pytest.mark.parametrize("off", [0.0, 0.4])
def test_elbo_of_the_linear_gaussian_is_the_closed_form(off, monkeypatch):
    model, marginal = linear_gaussian(off)
    monkeypatch.setattr(vae, "rsample", sigma_points)
    expected = closed_form_elbo(model, X)
    torch.testing.assert_close(model.elbo(Batch({"x": X}), samples=4), expected)
    torch.testing.assert_close(model.losses(Batch({"x": X.repeat(4, 1)})).total, -expected.mean())
    gap = marginal.log_prob(X) - expected
    assert torch.allclose(gap, torch.zeros(3).double()) if off == 0 else (gap > 0.1).all()


@pytest.mark.parametrize("samples", [1, 7])
def test_iwae_of_the_exact_posterior_is_the_likelihood(samples):
    model, marginal = linear_gaussian()
    torch.testing.assert_close(model.log_likelihood(Batch({"x": X}), samples), marginal.log_prob(X))


def test_iwae_rises_from_the_elbo_to_the_likelihood():
    model, marginal = linear_gaussian(off=0.4)
    batch = Batch({"x": X[:1].repeat(2000, 1)})
    torch.manual_seed(0)
    bounds = [model.log_likelihood(batch, k).mean().item() for k in (1, 4, 32)]
    assert bounds == sorted(bounds) and bounds[-1] < marginal.log_prob(X[0]) + 0.01
    assert bounds[0] == pytest.approx(closed_form_elbo(model, X[:1]).item(), abs=0.15)
    assert bounds[-1] > marginal.log_prob(X[0]) - 0.1


def two_logits(z: torch.Tensor) -> torch.Tensor:
    return torch.stack([z.square().sum(-1), z[:, 0] * z[:, 1]], 1)


def outcome(mean=None, scale=None, step: int = 0) -> Outcome:
    mean = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.5, 0.5]], dtype=torch.double) if mean is None else mean
    scale = torch.tensor([[1.0, 0.5], [0.8, 1.0], [1.2, 0.6]], dtype=torch.double) if scale is None else scale
    noise = torch.tensor([[0.3, -0.2], [1.0, 0.1], [-0.7, 0.4]], dtype=torch.double)
    z = mean + scale * noise
    reconstruction = (z.square().sum(-1) + z.sin().sum(-1)).mean()
    prior = StandardPrior(2).double()()
    return Outcome(reconstruction, diagonal_normal(mean, scale), z, prior, torch.tensor(step), two_logits)


def by_hand(o: Outcome) -> float:
    mean, scale = o.q.mean, o.q.base_dist.scale
    return (0.5 * (mean**2 + scale**2 - 1 - 2 * scale.log())).sum(-1).mean().item()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_keeps_the_reconstruction(name):
    o = outcome()
    torch.testing.assert_close(OBJECTIVES[name](o, **SETTINGS.get(name, {}))["reconstruction"], o.reconstruction)


def test_weighted_kl():
    o = outcome()
    assert vae.vae(o)["kl"].item() == pytest.approx(by_hand(o))
    assert vae.beta(o, beta=3.0)["kl"].item() == pytest.approx(3 * by_hand(o))


def test_capacity_follows_the_step():
    for step, capacity in ((0, 0.0), (5, 4.0), (10, 8.0), (99, 8.0)):
        o = outcome(step=step)
        term = vae.annealed(o, gamma=2.0, capacity=8.0, capacity_steps=10)["kl"]
        assert term.item() == pytest.approx(2 * abs(by_hand(o) - capacity))
    model = tiny("annealed", {"gamma": 1.0, "capacity": 1000.0, "capacity_steps": 4})
    model.step.fill_(2)  # as the loop does
    kl = kl_divergence(model.encode(BATCH), model.prior()).mean()
    torch.testing.assert_close(model.losses(BATCH)["kl"], 500 - kl)


def test_total_correlation_of_beta_tc():
    """The definition in plain loops, with stratified weights: 1/N for an item itself, (N - 1) / (N (b - 1)) for another."""
    o, n, b = outcome(), 50, 3

    def density(i: int, j: int, d: int) -> float:
        mean, scale = o.q.mean[j, d], o.q.base_dist.scale[j, d]
        return math.exp(-((o.z[i, d] - mean) ** 2) / (2 * scale**2)) / (scale * math.sqrt(2 * math.pi))

    total = 0.0
    for i in range(b):
        weight = [1 / n if i == j else (n - 1) / (n * (b - 1)) for j in range(b)]
        joint = sum(w * density(i, j, 0) * density(i, j, 1) for j, w in enumerate(weight))
        marginals = [sum(w * density(i, j, d) for j, w in enumerate(weight)) for d in range(2)]
        total += (math.log(joint) - math.log(marginals[0]) - math.log(marginals[1])) / b
    losses = vae.beta_tc(o, dataset_size=n, beta=4.0)
    assert losses["total_correlation"].item() == pytest.approx(3 * total)
    assert losses["kl"].item() == pytest.approx(by_hand(o))
    assert vae.beta_tc(o, dataset_size=n, beta=1.0).total.item() == pytest.approx(vae.vae(o).total.item())


def test_total_correlation_of_factor():
    o = outcome()
    ratio = (o.z.square().sum(-1) - o.z[:, 0] * o.z[:, 1]).mean()
    losses = vae.factor(o, gamma=5.0)
    assert losses["total_correlation"].item() == pytest.approx(5 * ratio.item())
    assert losses["kl"].item() == pytest.approx(by_hand(o))


def test_covariances_of_dip():
    o = outcome()
    c = torch.cov(o.q.mean.T, correction=0)
    first = 2 * 2 * c[0, 1] ** 2 + 3 * ((c.diagonal() - 1) ** 2).sum()
    assert vae.dip_i(o, off_diagonal=2.0, diagonal=3.0)["covariance"].item() == pytest.approx(first.item())
    c = c + o.q.base_dist.scale.square().mean(0).diag()
    second = 2 * 2 * c[0, 1] ** 2 + 3 * ((c.diagonal() - 1) ** 2).sum()
    assert vae.dip_ii(o, off_diagonal=2.0, diagonal=3.0)["covariance"].item() == pytest.approx(second.item())


def test_discrepancy_of_wae():
    o, h = outcome(), 1.5
    torch.manual_seed(3)
    drawn = rsample(o.prior, (3,))
    torch.manual_seed(3)
    losses = vae.wae_mmd(o, weight=10.0, bandwidth=h)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (-(torch.cdist(x, y) ** 2) / (2 * h**2)).exp()

    apart = ~torch.eye(3, dtype=torch.bool)
    expected = kernel(o.z, o.z)[apart].mean() + kernel(drawn, drawn)[apart].mean() - 2 * kernel(o.z, drawn).mean()
    assert losses["mmd"].item() == pytest.approx(10 * expected.item()) and "kl" not in losses


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_the_objectives(name):
    def total(mean, log_scale):
        torch.manual_seed(0)  # of the prior's draws
        settings = {"wae_mmd": {"bandwidth": 1.0}, "annealed": {"gamma": 3.0}}.get(name, SETTINGS.get(name, {}))
        return OBJECTIVES[name](outcome(mean, log_scale.exp(), step=7), **settings).total

    start = outcome().q
    inputs = (start.mean.clone().requires_grad_(), start.base_dist.scale.log().requires_grad_())
    assert torch.autograd.gradcheck(total, inputs)


BATCH = Batch({"x": torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))})


def tiny(objective: str = "vae", settings=None, **more) -> VAE:
    torch.manual_seed(0)
    networks = {"encoder": {"dim": 8, "width": 4}, "decoder": {"width": 4}, "discriminator": [6]}
    return VAE("x", "image", [1, 8, 8], 2, objective, settings or SETTINGS.get(objective), **{**networks, **more})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_every_parameter(name, tmp_path):
    model = tiny(name)
    for phase in model.phases:
        model.losses(BATCH, phase).total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert model.losses(Batch({"x": torch.cat([BATCH["x"]] * 2)})).total.isfinite()
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.objective == name and again.phases == model.phases
    z = torch.randn(3, 2)
    assert torch.equal(again.decode(z, "x").mean, model.eval().decode(z, "x").mean)


@pytest.mark.parametrize(("kind", "shape"), [("audio", [16, 10]), ("vector", [5])])
def test_other_kinds_of_data(kind, shape):
    model = VAE("x", kind, shape, 2)
    batch = Batch({"x": torch.randn(3, *shape)})
    assert model.losses(batch).total.isfinite() and model.generate(batch, "x").shape == (3, *shape)


def test_an_aggregate_prior_is_fitted_to_draws_of_the_posteriors():
    model = tiny(prior="aggregate", prior_settings={"components": 1})
    batch = Batch({"x": torch.rand(500, 1, 8, 8)})
    model.fit_prior([batch.items(slice(0, 200)), batch.items(slice(200, 500))], torch.Generator().manual_seed(0))
    q = model.encode(batch)
    torch.testing.assert_close(model.prior.mean[0], q.mean.mean(0), atol=0.2, rtol=0)
    total = q.variance.mean(0) + q.mean.var(0)
    torch.testing.assert_close(model.prior.scale[0] ** 2, total, atol=0, rtol=0.2)
    draws = q.sample((20,))
    assert model.eval().prior().log_prob(draws).mean() > model.train().prior().log_prob(draws).mean()
    with pytest.raises(UserError, match="prior to fit: got StandardPrior"):
        tiny().fit_prior([batch])


def test_a_prior_that_the_data_cannot_fit_is_refused_before_training():
    data = [{"x": torch.rand(1, 8, 8)} for _ in range(5)]
    assert prior_fit(tiny(), data, 0) is None
    with pytest.raises(UserError, match="prior aggregate: got 5 training items, expected at least 6, its components"):
        prior_fit(tiny(prior="aggregate", prior_settings={"components": 6}), data, 0)
    model = tiny(prior="aggregate", prior_settings={"components": 5}).eval()
    prior_fit(model, data, 0)(model)
    assert model.prior.mean.any()


@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_learned_priors(prior):
    settings = {"mixture": {"components": 3}, "flow": {"transforms": 2, "hidden": 8}}[prior]
    model = tiny(prior=prior, prior_settings=settings)
    model.losses(BATCH).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.prior.parameters())
    torch.manual_seed(0)
    elbo, bound = model.elbo(BATCH, 200).mean(), model.log_likelihood(BATCH, 200).mean()
    assert bound > elbo - 0.5
    assert model.generate(Batch({"y": torch.zeros(2)}), "x", n=3).shape == (6, 1, 8, 8)


def test_phases_of_factor_train_their_own_parameters_only():
    model = tiny("factor")
    assert model.phases == ("train", "discriminator") and tiny().phases == ("train",)
    named = dict(model.named_parameters())
    for phase in model.phases:
        model.zero_grad(set_to_none=True)
        model.losses(BATCH, phase).total.backward()
        touched = {name for name, p in named.items() if p.grad is not None}
        own = {name for name in named if name.startswith("discriminator.") == (phase == "discriminator")}
        ids = {id(p) for group in model.phase_parameters(phase) for p in group["params"]}
        assert touched == own and ids == {id(named[name]) for name in own}


def test_total_correlation_reaches_the_encoder_through_the_discriminator():
    gradients = []
    for gamma in (0.0, 5.0):
        model = tiny("factor", {"gamma": gamma})
        torch.manual_seed(1)
        model.losses(BATCH).total.backward()
        gradients.append(model.head.linear.weight.grad)
    assert not torch.allclose(*gradients)


def test_the_discriminator_tells_one_half_from_the_permuted_other(monkeypatch):
    model = tiny("factor")
    monkeypatch.setattr(vae, "rsample", lambda q: q.mean)
    monkeypatch.setattr(vae, "permute_dims", lambda z: z.flip(1))
    mean = model.posterior(BATCH["x"]).mean
    one, other = (model.discriminator(z).log_softmax(1) for z in (mean[:3], mean[3:].flip(1)))
    expected = -0.5 * one[:, 0].mean() - 0.5 * other[:, 1].mean()
    torch.testing.assert_close(model.losses(BATCH, "discriminator").total, expected)
    with pytest.raises(UserError, match=r"batch: got 3 items, expected 4 or more"):
        model.losses(BATCH.items(slice(0, 3)), "discriminator")


def test_items_without_x_count_nowhere():
    model, x = tiny().eval(), BATCH["x"].clone()
    x[1] = math.nan
    partial = Batch({"x": x}, present={"x": torch.tensor([True, False, True, True, True, True])})
    others = BATCH.items(torch.tensor([0, 2, 3, 4, 5]))
    results = []
    for batch in (partial, others):
        torch.manual_seed(0)
        results.append((model.losses(batch).total, model.log_likelihood(batch, 5), model.elbo(batch)))
    assert torch.equal(results[0][0], results[1][0])
    for found, expected in zip(results[0][1:], results[1][1:]):
        assert found[1] == 0 and torch.equal(found[[0, 2, 3, 4, 5]], expected)
    kept = [0, 2, 3, 4, 5]
    torch.testing.assert_close(model.encode(partial).mean[kept], model.encode(BATCH).mean[kept])


def test_generation_reconstructs_what_is_given_and_else_draws_from_the_prior(monkeypatch):
    model = tiny().eval()
    monkeypatch.setattr(vae, "rsample", lambda d, shape=(), generator=None: d.mean.expand(*shape, *d.mean.shape))
    half = Batch(BATCH.values, present={"x": torch.arange(6) < 3})
    made = model.generate(half, "x", n=2)
    expected = torch.cat([model.encode(BATCH).mean[:3].repeat_interleave(2, 0), torch.zeros(6, 2)])
    torch.testing.assert_close(made, model.decode(expected, "x").mean)


def test_traversal_moves_one_latent_at_a_time():
    model, _ = linear_gaussian()
    pictures = model.traverse(Batch({"x": X}), steps=3, span=2.0)
    assert pictures.shape == (3, 2, 3, 4)
    z = model.encode(Batch({"x": X})).mean
    for latent in range(2):
        for place, value in enumerate((-2.0, 0.0, 2.0)):
            moved = z.clone()
            moved[:, latent] = value
            torch.testing.assert_close(pictures[:, latent, place], model.decode(moved, "x").mean)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VAE(kind="imag"), "kind: got imag.*did you mean 'image'"),
        (lambda: VAE(shape=[28, 28]), r"shape: got \[28, 28\], expected 3 numbers"),
        (lambda: VAE(objective="betta"), "objective: got betta.*did you mean 'beta"),
        (lambda: VAE(objective="beta", settings={"gamma": 2.0}), "setting of beta: got gamma"),
        (lambda: VAE(objective="beta", settings={"beta": -1.0}), "settings.beta: got -1.0"),
        (lambda: VAE(objective="beta", settings={"beta": math.inf}), "settings.beta: got inf, expected a finite number"),
        (lambda: VAE(objective="wae_mmd", settings={"unbiased": "no"}), "settings.unbiased: got 'no', expected true or false"),
        (lambda: VAE(objective="factor", discriminator=10), "discriminator: got 10, expected whole numbers of 1 or more"),
        (lambda: VAE(decoder={"broadcast": [0]}), r"decoder.broadcast: got \[0\], expected whole numbers"),
        (lambda: VAE(encoder={"hidden": 64}), "encoder.hidden: got 64, expected whole numbers"),
        (lambda: VAE(encoder={"shape": 3}), "encoder.shape: got shape, expected a known name"),
        (lambda: VAE(objective="beta", settings={"beta": "much"}), "settings.beta: got 'much', expected a number"),
        (lambda: VAE(objective="beta_tc"), "settings of beta_tc: got {}, expected a dataset_size"),
        (lambda: VAE(objective="beta_tc", settings={"dataset_size": 9, "sampling": "uniform"}), "sampling: got uniform"),
        (lambda: VAE(objective="annealed", settings={"capacity_steps": 0}), "settings.capacity_steps: got 0"),
        (lambda: VAE(latent_dim=0), "latent_dim: got 0"),
        (lambda: VAE(prior="vamp"), "prior: got vamp"),
        (lambda: VAE(decoder={"widht": 4}), "decoder.widht: got widht.*did you mean 'width'"),
        (lambda: tiny().encode(Batch({"y": BATCH["x"]})), r"x: got no item .*holds y"),
        (lambda: tiny().losses(Batch({"x": BATCH["x"] * math.nan})), "x of item 0: got nan, expected finite numbers"),
        (lambda: tiny().losses(Batch({"x": BATCH["x"] + 1})), r"x of item 0: got 1\.\d+, expected 0 to 1 for the likelihood"),
        (lambda: tiny().encode(Batch({"x": torch.zeros(2, 1, 9, 9)})), r"x: got shape \(1, 9, 9\), expected \(1, 8, 8\)"),
        (lambda: tiny().losses(BATCH, "discriminator"), "phase: got discriminator"),
        (lambda: tiny().decode(torch.zeros(1, 2), "y"), "to: got y"),
        (lambda: tiny().generate(BATCH, "y"), "to: got y"),
        (lambda: tiny().generate(BATCH, "x", n=0), "n: got 0"),
        (lambda: tiny().log_likelihood(BATCH, 0), "samples: got 0"),
        (lambda: tiny().elbo(BATCH, 0), "samples: got 0"),
        (lambda: tiny().traverse(BATCH, steps=1), "steps: got 1"),
        (lambda: tiny("wae_mmd").losses(BATCH.items(slice(0, 1))), r"samples: got \(1, 2\)"),
    ],
)
def test_wrong_use_says_so(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
