import itertools
import math
import re
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.latents.probability_flow import PATHS, solve, solve_with, transport, transport_with_volume
from mmgen.latents.spaces import FlowMatchingPrior, StandardPrior, fit_prior, rsample
from mmgen.modalities.layers.modulated import ModulatedBlock, PatchTransformer
from mmgen.modalities.layers.transformer import Block
from mmgen.models import flow_matching
from mmgen.models.base import load
from mmgen.models.flow_matching import FlowMatching
from mmgen.models.vae import VAE
from mmgen.training.prior import prior_fit

MEAN = torch.tensor([0.5, -0.3, 0.2], dtype=torch.double)
FULL = torch.tensor([[0.5, 0.2, -0.1], [0.2, 0.3, 0.1], [-0.1, 0.1, 0.8]], dtype=torch.double)
DIAGONAL = torch.diag(torch.tensor([0.5, 0.1, 2.0], dtype=torch.double))
TINY = {"dim": 8, "depth": 1, "heads": 2}


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.sqrt() @ vectors.T


class OfGaussian(nn.Module):
    """What a network that has learned N(mean, covariance) predicts: the expected target given x_t."""

    def __init__(self, path, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.path, self.mean, self.covariance = path, mean, covariance

    def marginal(self, t: float) -> tuple[Tensor, Tensor]:
        """Mean and covariance of x_t."""
        alpha, sigma = self.path.coefficients(torch.tensor(t, dtype=torch.double))
        return alpha * self.mean, alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean)).double()

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        alpha, sigma = self.path.coefficients(t[0])
        mean, covariance = self.marginal(t[0].item())
        residual = torch.linalg.solve(covariance, (x.flatten(1) - mean).T).T  # (b, d)
        return self.path.target(sigma * residual, self.mean + alpha * residual @ self.covariance).reshape(x.shape)


def of_gaussian(path: str, covariance: Tensor = FULL, mean: Tensor = MEAN) -> tuple[FlowMatching, MultivariateNormal]:
    """A model that has learned a Gaussian, and the law to which its flow carries N(0, 1): x_t - E x_t = V_t^(1/2) z."""
    model = FlowMatching("x", "vector", [len(mean)], path=path, settings=TINY).double()
    model.network = network = OfGaussian(model.path, mean, covariance)
    (m0, v0), (m1, v1) = network.marginal(0.0), network.marginal(model.path.end)
    scale = root(v1) @ torch.linalg.inv(root(v0))
    return model, MultivariateNormal(m1 - scale @ m0, scale @ scale.T)


def points(q, shape=(), generator=None) -> Tensor:
    """2 k points with the mean and covariance of a standard Gaussian."""
    k = q.event_shape[0]
    return math.sqrt(k) * torch.cat([torch.eye(k), -torch.eye(k)]).double()


def shaken(model: FlowMatching, scale: float = 0.3) -> FlowMatching:
    """Random weights, also where training starts from 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


@given(st.floats(0.01, 0.99), st.sampled_from(sorted(PATHS)))
def test_the_velocity_is_the_derivative_of_the_path(t, name):
    path, (noise, data) = PATHS[name](), torch.tensor([[0.3, -1.2], [2.0, 0.7]], dtype=torch.double)

    def at(t: Tensor) -> Tensor:
        alpha, sigma = path.coefficients(t)
        return alpha * data + sigma * noise

    time = torch.tensor(t, dtype=torch.double)
    _, rate = torch.autograd.functional.jvp(at, time, torch.ones_like(time))
    torch.testing.assert_close(path.velocity(at(time), time, path.target(noise, data)), rate)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_moments_of_samples_of_a_gaussian(path, sampler, monkeypatch):
    model, law = of_gaussian(path)
    monkeypatch.setattr(flow_matching, "rsample", points)
    errors = []
    for steps in (200, 400):
        x = model.generate(Batch.nothing(6), "x", sampler=sampler, steps=steps)
        errors.append(max((x.mean(0) - law.mean).abs().max(), (x.T.cov(correction=0) - law.covariance_matrix).abs().max()))
    order = 2 if path == "linear" and sampler == "heun" else 1  # the last step is one of Euler's; the other paths bend there
    assert errors[1] < {1: 2e-2, 2: 1e-5}[order] and errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("path", PATHS)
def test_the_flow_of_a_gaussian_is_its_closed_form(path):
    model, _ = of_gaussian(path)
    z = torch.randn(5, 3, dtype=torch.double)
    (m0, v0), (m1, v1) = model.network.marginal(0.0), model.network.marginal(model.path.end)
    expected = m1 + (z - m0) @ (root(v1) @ torch.linalg.inv(root(v0))).T
    torch.testing.assert_close(transport(model.velocity(), z, 0.0, model.path.end, 1e-9), expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(model.decode(z, "x").mean, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.encode(Batch({"x": expected})).mean, z, atol=1e-3, rtol=0)


def test_both_paths_carry_the_same_quantiles():
    z, ends = torch.randn(5, 3, dtype=torch.double), []
    for path in PATHS:
        model, _ = of_gaussian(path)
        mean, covariance = model.network.marginal(0.0)
        ends.append(transport(model.velocity(), mean + z @ root(covariance), 0.0, model.path.end, 1e-9))
    torch.testing.assert_close(ends[0], MEAN + z @ root(FULL), atol=1e-6, rtol=0)
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=0)  # the noise left at the end: 0.001


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("trace", ["exact", "signs"])
def test_likelihood_of_a_gaussian(path, trace, monkeypatch):
    model, law = of_gaussian(path, FULL if trace == "exact" else DIAGONAL)
    monkeypatch.setattr(flow_matching, "EXACT", 3 if trace == "exact" else 0)
    x = MEAN + torch.randn(4, 3, dtype=torch.double)
    batch = Batch({"x": x}, present={"x": torch.tensor([True, True, False, True])})
    found = model.log_likelihood(batch, samples=2, tolerance=1e-8)
    torch.testing.assert_close(found[[0, 1, 3]], law.log_prob(x)[[0, 1, 3]], atol=1e-5, rtol=0)
    assert found[2] == 0


def test_the_estimate_of_the_trace_is_unbiased():
    model, _ = of_gaussian("linear", FULL)
    x = MEAN + torch.randn(2, 3, dtype=torch.double)
    run = {"velocity": model.velocity(), "x": x, "start": 1.0, "end": 0.0, "tolerance": 1e-8}
    _, exact = transport_with_volume(**run)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3))).double()  # all of them
    found = torch.stack([transport_with_volume(**run, probe=e.expand_as(x))[1] for e in signs])
    torch.testing.assert_close(found.mean(0), exact, atol=1e-7, rtol=0)
    assert found.std(0).min() > 0.1  # and the estimates differ


class OfMixture(nn.Module):
    """What a network that has learned ``1/2 sum_k N(mean_k, 0.25)`` predicts."""

    def __init__(self, path, means: Tensor) -> None:
        super().__init__()
        self.parts = [OfGaussian(path, mean, 0.25 * torch.eye(len(mean)).double()) for mean in means]

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        laws = [MultivariateNormal(*part.marginal(t[0].item())) for part in self.parts]
        weights = torch.stack([law.log_prob(x.flatten(1)) for law in laws]).softmax(0)[
            ..., None, None, None
        ]  # (2, b, 1, 1, 1)
        return (weights * torch.stack([part(x, t) for part in self.parts])).sum(0)


@pytest.mark.parametrize(("d", "reach", "count"), [(1, 5.0, 201), (2, 4.0, 33)])
def test_densities_integrate_to_one(d, reach, count):
    model, means = FlowMatching("x", "vector", [d], settings=TINY).double(), torch.tensor([[-1.0, 0.5], [1.0, 0.0]]).double()
    model.network = OfMixture(model.path, means[:, :d])
    line = torch.linspace(-reach, reach, count, dtype=torch.double)
    x = torch.cartesian_prod(*[line] * d).reshape(-1, d)
    density = model.log_likelihood(Batch({"x": x}), tolerance=1e-4).exp()
    assert density.sum().item() * (2 * reach / (count - 1)) ** d == pytest.approx(1, abs=1e-3)
    parts = [MultivariateNormal(mean, 0.25 * torch.eye(d).double()) for mean in means[:, :d]]
    torch.testing.assert_close(density, sum(part.log_prob(x).exp() for part in parts) / 2, atol=1e-3, rtol=0)


def test_the_bound_on_levels_rises_to_their_probability():
    mean, scale = torch.tensor([0.2], dtype=torch.double), 0.3
    model, _ = of_gaussian("linear", torch.tensor([[scale**2]]).double(), mean)
    model.kind, model.shape, model.levels = "image", (1, 1, 1), 4  # bins of 0.5 from -1 to 1
    edges = Normal(mean, scale).cdf(torch.linspace(-1, 1, 5).double())
    expected = edges.diff().log()
    x = torch.tensor([0.0, 0.3, 0.7, 1.0]).double()[:, None, None, None]  # rounded to thirds
    torch.manual_seed(0)
    bounds = [model.log_likelihood(Batch({"x": x.repeat(400, 1, 1, 1)}), k).reshape(400, 4).mean(0) for k in (1, 8)]
    assert (bounds[0] < bounds[1]).all() and (bounds[1] < expected + 0.02).all()
    assert (expected - bounds[0]).max() > 0.5 and (expected - bounds[1]).max() < 0.1


def pictures(n: int = 4, **settings) -> tuple[FlowMatching, Batch]:
    torch.manual_seed(0)
    model = shaken(FlowMatching(shape=[1, 8, 8], classes=3, settings=TINY, **settings), 0.1)
    x = torch.randint(0, 256, (n, 1, 8, 8)) / 255
    return model, Batch({"image": x, "label": torch.arange(n) % 3})


def test_a_tighter_tolerance_moves_the_bits_little():
    (model, batch), bits = pictures(), []
    for tolerance in (1e-5, 1e-6):
        torch.manual_seed(0)
        found = model.double().log_likelihood(Batch({**batch.values, "image": batch["image"].double()}), tolerance=tolerance)
        bits.append(-found / (64 * math.log(2)))
    assert (bits[0] - bits[1]).abs().max() < 0.01


def test_guidance_combines_the_velocities():
    model, batch = pictures()
    x, t, label = torch.randn(4, 1, 8, 8), torch.tensor(0.4), batch["label"]
    conditional, free = (model.velocity(c)(x, t) for c in (label, torch.full_like(label, 3)))
    assert (conditional - free).abs().max() > 1e-3
    for guidance, expected in ((1.0, conditional), (0.0, free), (2.5, free + 2.5 * (conditional - free))):
        torch.testing.assert_close(model.velocity(label, guidance)(x, t), expected)

    def drawn(given: Batch, **options) -> Tensor:
        return model.generate(given, "image", 2, torch.Generator().manual_seed(1), steps=3, **options)

    assert torch.equal(drawn(batch.keep(["label"]), guidance=0.0), drawn(Batch.nothing(4)))
    assert not torch.equal(drawn(batch.keep(["label"])), drawn(Batch.nothing(4)))
    missing = Batch({"label": label}, present={"label": torch.tensor([True, False, True, False])})
    assert torch.equal(drawn(missing, guidance=3.0)[2:4], drawn(Batch.nothing(4))[2:4])


def test_noise_and_pictures_are_one_another():
    model, batch = pictures()
    z = model.encode(batch).mean
    assert (z - batch["image"]).abs().max() > 0.1
    torch.testing.assert_close(model.decode(z, label=batch["label"]).mean, batch["image"], atol=1e-6, rtol=0)


def test_samples_are_of_the_levels():
    model, _ = pictures(levels=4)
    x = model.generate(Batch.nothing(5), "image", steps=2)
    assert x.shape == (5, 1, 8, 8) and {round(v, 4) for v in x.unique().tolist()} == {0, 0.3333, 0.6667, 1}


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_schedulers_of_diffusers_give_the_same_pictures(sampler):
    diffusers = pytest.importorskip("diffusers", reason="pip install 'mmgen[diffusion]'")
    kinds = {"euler": diffusers.FlowMatchEulerDiscreteScheduler, "heun": diffusers.FlowMatchHeunDiscreteScheduler}
    model, batch = pictures(path="linear")
    velocity, z = model.velocity(batch["label"], 2.0), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        theirs = kinds[sampler]()  # its own grid of times
        found = solve_with(theirs, velocity, z, 7)
        times = torch.cat([1 - theirs.timesteps.unique().flip(0) / 1000, torch.ones(1)])
        rounding = {"euler": 1e-6, "heun": 1e-5}[sampler]  # the second divides by sigma, in float32
        torch.testing.assert_close(solve(velocity, z, times, sampler), found, atol=rounding, rtol=0)
    assert (found - z).abs().max() > 0.1
    given, same = batch.keep(["label"]), kinds[sampler](num_train_timesteps=6)  # six equal steps, as ours
    made = [model.generate(given, "image", 1, torch.Generator().manual_seed(0), 2.0, s, 6) for s in (sampler, same)]
    torch.testing.assert_close(made[0], made[1], atol=0.004, rtol=0)  # a level, where rounding falls on another side
    with pytest.raises(UserError, match="sampler: got DDPMScheduler, expected euler, heun or a flow-matching scheduler"):
        model.generate(given, "image", sampler=diffusers.DDPMScheduler())


def test_a_modulated_block_starts_as_the_identity_and_may_become_a_block():
    torch.manual_seed(0)
    modulated, plain, x = ModulatedBlock(8, 2), Block(8, 2), torch.randn(3, 5, 8)
    assert torch.equal(modulated(x, torch.randn(3, 8)), x)
    plain.load_state_dict(modulated.state_dict(), strict=False)
    with torch.no_grad():
        modulated.modulation.bias[16:24] = modulated.modulation.bias[40:] = 1.0  # the gates
    torch.testing.assert_close(modulated(x, torch.randn(3, 8)), plain(x, None))


def test_the_transformer_starts_at_zero_and_reads_time_label_and_place():
    torch.manual_seed(0)
    model = FlowMatching(shape=[2, 8, 4], classes=3, settings={**TINY, "patch": 2})
    x, t, label = torch.randn(4, 2, 8, 4), torch.rand(4), torch.arange(4)
    assert not model.network(x, t, label).any()
    network = shaken(model).network
    y = network(x, t, label)
    assert y.shape == x.shape
    for other in (network(x, t + 0.1, label), network(x, t, label.flip(0)), network(x.flip(2), t, label).flip(2)):
        assert (other - y).abs().max() > 1e-2


@pytest.mark.parametrize("path", PATHS)
def test_it_learns_a_density_of_each_class(path):
    torch.manual_seed(0)
    times = "uniform" if path == "vp" else "logit_normal"
    model = FlowMatching("x", "vector", [1], 2, path, times, settings={"dim": 32, "depth": 1, "heads": 2})
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)

    def batch(n: int) -> Batch:
        label = torch.arange(n) % 2
        return Batch({"x": (2.0 * label - 1 + 0.4 * torch.randn(n))[:, None], "label": label})

    for step in range(200):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 200)
        optimizer.zero_grad()
        model.losses(batch(128)).total.backward()
        optimizer.step()
    test, entropy = batch(100), math.log(0.4 * math.sqrt(2 * math.pi * math.e))
    model.eval()
    assert -model.log_likelihood(test, tolerance=1e-3).mean().item() == pytest.approx(entropy, abs=0.15)
    if path == "linear":  # the other needs more steps without a label, as few items lack one
        free = -model.log_likelihood(test.keep(["x"]), tolerance=1e-3).mean().item()
        assert free == pytest.approx(entropy + math.log(2), abs=0.2)  # the classes hardly overlap
    x = model.generate(test.keep(["label"]), "x", steps=20)[:, 0]
    assert ((x > 0).long() == test["label"]).float().mean() > 0.9


def test_labels_are_dropped_in_training_alone(monkeypatch):
    model, batch = pictures(600, condition_dropout=0.3)
    seen = []
    monkeypatch.setattr(model.network, "forward", lambda x, t, label: seen.append(label) or torch.zeros_like(x))
    model.train().losses(batch)
    model.eval().losses(batch)
    dropped = seen[0] == 3
    assert 0.2 < dropped.float().mean() < 0.4 and torch.equal(seen[0][~dropped], batch["label"][~dropped])
    assert torch.equal(seen[1], batch["label"])


@pytest.mark.parametrize("classes", [0, 3])
def test_the_unet_of_diffusers(classes, tmp_path):
    pytest.importorskip("diffusers", reason="pip install 'mmgen[diffusion]'")
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
    settings = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, **blocks}
    model = FlowMatching(shape=[1, 8, 8], classes=classes, network="unet", settings=settings)
    _, batch = pictures()
    model.losses(batch).total.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path / "model")
    made = [
        m.eval().generate(batch.keep(["label"]), "image", 1, torch.Generator().manual_seed(0), steps=2)
        for m in (model, load(tmp_path / "model"))
    ]
    assert torch.equal(*made)
    noise = model.network(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1).long() if classes else None)
    theirs = model.network.unet(torch.zeros(1, 1, 8, 8), 1000, torch.zeros(1).long() if classes else None).sample
    torch.testing.assert_close(noise, theirs)  # t = 0 is its time 1000
    for wrong, message in (
        ({"block_out_channels": [8, 8], "norm_num_group": 4}, "setting of unet: got norm_num_group"),
        ({"block_out_channels": [8] * 5}, "shape: got 8 x 8 pixels, expected multiples of 16 for 5 blocks"),
        ({**settings, "block_out_channels": [8, 8, 8]}, "settings of unet: got Must provide the same number"),
    ):
        with pytest.raises(UserError, match=message):
            FlowMatching(shape=[1, 8, 8], network="unet", settings=wrong)


def test_without_diffusers_the_unet_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"network unet: .*diffusers.*pip install 'mmgen\[diffusion\]'"):
        FlowMatching(network="unet")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "text"}, "kind: got text"),
        ({"path": "cosine"}, "path: got cosine"),
        ({"times": "normal"}, "times: got normal"),
        ({"network": "transformr"}, "network: got transformr, expected a known name; did you mean 'transformer'?"),
        ({"settings": {"dims": 8}}, "setting of transformer: got dims"),
        ({"settings": {"patch": 5}}, "patch: got 5, expected a divisor of 28 and 28"),
        ({"settings": {"dim": 6}}, "dim: got 6, expected a multiple of 4"),
        ({"shape": [28, 28]}, "shape: got [28, 28], expected 3 for image"),
        ({"kind": "vector", "shape": [3], "network": "unet"}, "network: got unet of a vector"),
        ({"levels": 1, "classes": -1}, "levels: got 1"),
        ({"condition_dropout": 1.0}, "condition_dropout: got 1.0"),
    ],
)
def test_impossible_settings(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        FlowMatching(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :, :7], "image: got shape (1, 7, 8), expected (1, 8, 8)"),
        (lambda x: x.masked_fill(x == x[1, 0, 0, 0], math.nan), "image of item 1: got nan"),
        (lambda x: x + 1.5 * (x == x[1].max()), "expected 0 to 1"),
        (lambda x: x.long(), "image: got torch.int64"),
    ],
)
def test_what_is_no_picture(change, message):
    torch.manual_seed(0)
    model, batch = FlowMatching(shape=[1, 8, 8], settings=TINY), Batch({"image": change(torch.rand(3, 1, 8, 8))})
    for verb in (model.losses, model.encode, model.log_likelihood):
        with pytest.raises(UserError, match=re.escape(message)):
            verb(batch)


def test_what_cannot_be_sampled():
    model, batch = pictures()
    given = batch.keep(["label"])
    for options, message in (
        ({"guidance": 2.0, "given": Batch.nothing(2)}, "guidance: got 2 without a label"),
        ({"guidance": math.nan}, "guidance: got nan"),
        ({"sampler": "eular"}, "sampler: got eular, expected a known name; did you mean 'euler'?"),
        ({"sampler": 3}, "sampler: got int"),
        ({"steps": 0}, "steps: got 0"),
        ({"n": 0}, "n: got 0"),
        ({"to": "text"}, "to: got text"),
        ({"given": Batch({"label": torch.tensor([0, 3])})}, "label: got 3, expected 0 to 2"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            model.generate(**{"given": given, "to": "image", **options})
    with pytest.raises(UserError, match="guidance: got 2 without a label"):
        FlowMatching(shape=[1, 8, 8], settings=TINY).generate(given, "image", guidance=2.0)
    with pytest.raises(UserError, match="samples: got 0"):
        model.log_likelihood(batch, samples=0)
    with pytest.raises(UserError, match=r"image: got no item that has it"):
        model.log_likelihood(given)
    nn.init.constant_(model.network.pixels.bias, math.nan)
    for verb in (model.encode, model.log_likelihood):
        with pytest.raises(UserError, match="velocity: got nan from the network"):
            verb(batch)


def test_the_prior_of_a_vae_finds_the_clusters_and_comes_back():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])[torch.arange(1000) % 4 // 3]  # a quarter in the second
    z = centres + 0.4 * torch.randn(1000, 2, generator=generator)
    model = VAE("x", "vector", [3], 2, prior="flow_matching", prior_settings={"hidden": 64, "steps": 1200})
    assert type(model.eval().prior()) is type(StandardPrior(2)())  # not fitted yet
    assert not any(p.requires_grad for p in model.prior.parameters())
    with torch.no_grad():
        fit_prior(model.prior, [z[:500], z[500:]])
    p = model.prior()
    entropy = 1 + math.log(2 * math.pi * 0.16) - 0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert -p.log_prob(z).mean().item() == pytest.approx(entropy, abs=0.2)
    line = torch.linspace(-5, 5, 41)
    assert p.log_prob(torch.cartesian_prod(line, line)).exp().sum().item() * 0.25**2 == pytest.approx(1, abs=5e-3)
    drawn = rsample(p, (1000,), torch.Generator().manual_seed(1))
    assert (drawn[:, 0] > 0).float().mean().item() == pytest.approx(0.25, abs=0.06)
    batch = Batch({"x": torch.randn(4, 3)})
    assert model.losses(batch).total.isfinite() and model.log_likelihood(batch, 3).isfinite().all()
    assert type(model.train().prior()) is type(StandardPrior(2)())
    again = FlowMatchingPrior(2, 64).eval()
    again.load_state_dict(model.prior.state_dict())
    torch.testing.assert_close(again().log_prob(z), p.log_prob(z))
    with pytest.raises(UserError, match="prior flow_matching: got 1 training item, expected at least 2"):
        prior_fit(model, [{"x": torch.zeros(3)}], 0)
    with pytest.raises(UserError, match=re.escape("draws: got shape (1, 2), expected (n, 2) with n at least 2")):
        model.prior.fit(z[:1])


def test_patches_need_no_square():
    assert PatchTransformer((3, 4, 6), patch=2, **TINY)(torch.zeros(2, 3, 4, 6), torch.zeros(2)).shape == (2, 3, 4, 6)
