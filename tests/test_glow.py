"""Glow: its layers and densities against Jacobians, quadrature and closed forms, the start of actnorm, and wrong input."""

import itertools
import math

import numpy
import pytest
import torch
from safetensors.torch import load_file
from test_estimators import launch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from mmgen.data.batch import Batch
from mmgen.distributions import Delta
from mmgen.errors import UserError
from mmgen.modalities.layers.invertible import ActNormConvolution, AffineCoupling, Step
from mmgen.models.base import load
from mmgen.models.glow import ConditionalPrior, Glow
from mmgen.training.config import FitConfig
from mmgen.training.loop import fit

TINY = {"shape": [1, 4, 4], "scales": 2, "depth": 2, "width": 4}
DOTS = {"shape": [1, 2, 2], "levels": 2, "scales": 1, "depth": 2, "width": 4}  # 16 pictures


def shaken(module: nn.Module, by: float = 0.3) -> nn.Module:
    """In float64, every parameter moved at random, so that no coupling is the identity."""
    torch.manual_seed(0)
    module.double()
    for p in module.parameters():
        p.data += by * torch.randn_like(p)
    return module


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


def pictures(n: int = 6, shape=(1, 4, 4)) -> Batch:
    return Batch({"image": torch.rand(n, *shape)})


def jacobian(function, x: Tensor) -> Tensor:
    """d f(x) / dx of one item (c, h, w), both flattened."""
    return torch.autograd.functional.jacobian(lambda v: function(v[None]).flatten(), x).flatten(1)


LAYERS = {"mix": lambda: ActNormConvolution(4), "couple": lambda: AffineCoupling(4, 8), "step": lambda: Step(4, 8)}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_determinant_of_its_jacobian_and_an_inverse(name):
    layer, x = shaken(LAYERS[name]()), 3 * torch.randn(5, 4, 3, 2, dtype=torch.float64) + 1
    if hasattr(layer, "start"):
        layer.start(x)
    y, log_det = layer(x)
    for i in range(2):
        expected = torch.linalg.slogdet(jacobian(lambda v: layer(v)[0], x[i])).logabsdet
        torch.testing.assert_close(log_det.expand(5)[i], expected)
    torch.testing.assert_close(layer.inverse(y), x, rtol=0, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(layer.float().inverse(layer(x.float())[0]), x.float(), rtol=0, atol=1e-5)


def test_the_convolution_is_a_rotation_at_first():
    layer = ActNormConvolution(6).double()
    torch.testing.assert_close(layer.weight() @ layer.weight().T, torch.eye(6).double(), atol=1e-6, rtol=0)


def test_the_density_is_the_change_of_variables_of_the_whole_flow():
    model = shaken(Glow(**TINY, classes=2)).eval()
    y, label = torch.rand(2, 1, 4, 4, dtype=torch.float64), torch.tensor([1, 2])
    latents, log_det = model.latents(y)
    log_prior = sum(prior(label, h).log_prob(z) for prior, (z, h) in zip(model.priors, latents))
    for i in range(2):
        whole = jacobian(lambda v: torch.cat([z.flatten() for z, _ in model.latents(v)[0]]), y[i])
        expected = torch.linalg.slogdet(whole).logabsdet
        torch.testing.assert_close(log_det[i], expected)
        torch.testing.assert_close(model.log_density(y, label)[i], log_prior[i] + expected)
    torch.testing.assert_close(model.pixels(lambda number, h: latents[number][0]), y, rtol=0, atol=1e-10)


def test_it_is_inverted_in_single_precision():
    model = shaken(Glow([3, 16, 16], scales=3, depth=3, width=16), by=0.05).float()
    y = torch.rand(4, 3, 16, 16)
    model.train().losses(Batch({"image": y}))
    latents = [z for z, _ in model.latents(y)[0]]
    torch.testing.assert_close(model.pixels(lambda number, h: latents[number]), y, rtol=0, atol=1e-5)


def grid(dims: int, points: int, reach: float) -> tuple[Tensor, float]:
    """Points (n, dims) from -reach to reach, and the volume of each."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dims).reshape(-1, dims), (2 * reach / (points - 1)) ** dims


@torch.no_grad()
def test_densities_integrate_to_one():
    none, one = lambda x: torch.zeros(len(x), dtype=torch.long), shaken(ActNormConvolution(1))
    line, volume = grid(1, 2001, 20.0)
    y, log_det = one(line[:, :, None, None])
    log_p = shaken(ConditionalPrior((1, 1, 1), 1))(none(y)).log_prob(y) + log_det
    assert log_p.exp().sum().item() * volume == pytest.approx(1, abs=1e-3)

    step, top, split = (
        shaken(Step(2, 4)),
        shaken(ConditionalPrior((1, 1, 1), 1)),
        shaken(ConditionalPrior((1, 1, 1), 1, 1), 0.5),
    )
    plane, volume = grid(2, 401, 30.0)
    y, log_det = step(plane[:, :, None, None])
    h, z = y.chunk(2, 1)  # a conditional prior as of a scale that is not the last
    log_p = top(none(h)).log_prob(h) + split(none(h), h).log_prob(z) + log_det
    assert log_p.exp().sum().item() * volume == pytest.approx(1, abs=1e-3)

    model = shaken(Glow(**DOTS, classes=1), by=0.1).eval()
    space, volume = grid(4, 19, 6.0)
    log_p = model.log_density(space.reshape(-1, 1, 2, 2), torch.zeros(len(space), dtype=torch.long))
    assert log_p.exp().sum().item() * volume == pytest.approx(1, abs=1e-3)


def test_without_couplings_the_best_fit_is_the_sample_covariance():
    torch.manual_seed(0)
    x = torch.randn(200, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 2
    layer = ActNormConvolution(3).double()
    layer.start(x[:, :, None, None])
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14)
    normal = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())

    def loss() -> Tensor:
        y, log_det = layer(x[:, :, None, None])
        return -(normal.log_prob(y.flatten(1)) + log_det).mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    best = MultivariateNormal(x.mean(0), x.T.cov(correction=0)).log_prob(x).mean()
    assert -loss().item() == pytest.approx(best.item(), abs=1e-6)


def every_picture() -> Tensor:
    """All 16 pictures of 2 x 2 dots, (16, 1, 2, 2) of 0 and 1."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double().reshape(16, 1, 2, 2)


@torch.no_grad()
def exact(model: Glow) -> Tensor:
    """log P of every picture: the integral of the density over its cube, by Gauss-Legendre quadrature."""
    nodes, weights = (torch.from_numpy(a) / 2 for a in numpy.polynomial.legendre.leggauss(8))
    u = torch.cartesian_prod(*[nodes + 0.5] * 4).reshape(-1, 1, 2, 2)  # (4096, 1, 2, 2)
    log_weights = torch.cartesian_prod(*[weights.log()] * 4).sum(1)
    found = [model.log_density((i + u) / 2) + log_weights for i in every_picture()]
    return torch.stack(found).logsumexp(1) - 4 * math.log(2)


def test_the_bound_is_below_the_probability_of_the_levels_and_rises_to_it():
    model, many = shaken(Glow(**DOTS), by=0.15).eval(), Batch({"image": every_picture().repeat(60, 1, 1, 1)})
    true = exact(model)
    bounds = [model.log_likelihood(many, samples).reshape(60, 16).mean(0) for samples in (1, 8, 64)]
    gaps = [(true - bound).mean().item() for bound in bounds]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0 and gaps[2] < 0.02, gaps
    each = model.log_likelihood(Batch({"image": every_picture().repeat(400, 1, 1, 1)})).reshape(400, 16)
    assert (each.mean(0) < true + 3 * each.std(0) / 20).all()  # 20: the root of 400
    losses = torch.stack([model.losses(many)["nll"] for _ in range(20)])  # the loss is the same bound
    assert losses.mean().item() == pytest.approx(-bounds[0].mean().item(), abs=0.05)


def trained(model: Glow, batch: Batch, steps: int) -> Glow:
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-2)
    for _ in range(steps):
        model.losses(batch).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_it_learns_a_discrete_law_and_its_condition():
    """Four dots are equal; with the label 0 they are rarely on, with 1 mostly."""
    torch.manual_seed(0)
    label = torch.arange(100) % 2
    on = torch.rand(100) < torch.where(label == 0, 0.1, 0.8)
    batch = Batch({"image": on.float()[:, None, None, None].expand(100, 1, 2, 2), "label": label})
    model = trained(Glow(**{**DOTS, "depth": 3, "width": 16}, classes=2), batch, 250)
    nats = -model.log_likelihood(batch, 32).mean().item()
    shares = [on[label == k].float().mean().item() for k in (0, 1)]
    entropy = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in shares) / 2
    assert entropy - 0.01 < nats < entropy + 0.5, (nats, entropy)  # four independent dots: four times the entropy
    made = model.generate(Batch({"label": torch.tensor([0, 1])}), "image", 500, torch.Generator().manual_seed(0))
    made = made.reshape(2, 500, 4)
    assert (made.amax(2) == made.amin(2)).float().mean() > 0.75  # of independent dots: 0.53
    for k in (0, 1):
        assert made[k].mean().item() == pytest.approx(shares[k], abs=0.2)
    free = model.generate(Batch.nothing(1), "image", 500, torch.Generator().manual_seed(0)).mean().item()
    assert free == pytest.approx(on.float().mean().item(), abs=0.15)  # of dropped labels


def test_at_temperature_zero_it_decodes_the_mode():
    model = shaken(Glow(**TINY)).eval()
    made = model.generate(Batch.nothing(3), "image", temperature=0)
    assert (made == made[0]).all()
    for step in (step for steps in model.flow for step in steps):  # an affine flow: the priors' mode is that of the pictures
        nn.init.zeros_(step.couple.last.weight)
    nn.init.zeros_(model.priors[0].convolution.weight)
    label = torch.zeros(1, dtype=torch.long)
    y = model.pixels(lambda number, h: model.priors[number](label, h).mean).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.log_density(y).sum(), y)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)
    expected = (y * 256).floor().clamp(0, 255) / 255
    torch.testing.assert_close(model.generate(Batch.nothing(1), "image", temperature=0), expected)
    spread = [model.generate(Batch.nothing(1), "image", 200, temperature=t).std(0).mean() for t in (0.01, 0.1)]
    assert spread[0] < spread[1]


@pytest.mark.parametrize("levels", [2, 32, 256])
def test_a_picture_is_decoded_as_it_was(levels):
    model = shaken(Glow(**TINY, levels=levels)).float().eval()
    x = torch.randint(levels, (3, 1, 4, 4)) / (levels - 1)
    batch = Batch({"image": x}, present={"image": torch.tensor([True, False, True])})
    q = model.encode(batch)
    assert q.batch_shape == (3,) and isinstance(q["z1"], Delta) and q["z2"].event_shape == (8, 1, 1)
    torch.testing.assert_close(model.decode(q.mean).mean[[0, 2]], x[[0, 2]], rtol=0, atol=1e-6)


def test_a_changed_weight_changes_what_is_decoded():
    """The inverse of W is kept between calls without gradient."""
    model = shaken(Glow(**TINY)).eval()
    z = model.encode(Batch({"image": torch.rand(1, 1, 4, 4).double()})).mean

    def decoded(gradient: bool = False) -> Tensor:
        with torch.set_grad_enabled(gradient):
            dtype = model.flow[0][0].mix.bias.dtype
            return model.pixels(lambda number, h: z[f"z{number + 1}"].to(dtype)).detach()

    first, state = decoded(), {name: value.clone() for name, value in model.own_state().items()}
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, fused=True)
    model.log_density(torch.rand(2, 1, 4, 4).double()).sum().backward()
    for change in (lambda: (model.train(), optimizer.step(), model.eval()), model.float, model.double):
        change()
        torch.testing.assert_close(decoded(), decoded(gradient=True))
        assert not torch.allclose(decoded().double(), first, atol=1e-3)
    model.load_own_state(state)
    torch.testing.assert_close(decoded(), first)


def statistics(model: Glow) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if name.endswith((".mean", ".std"))}


def test_actnorm_starts_once_from_the_first_batch_of_training():
    model, batch = Glow(**TINY, levels=2**20), pictures(9)
    model.eval().losses(batch)
    assert not model.started
    model.train().losses(batch)
    first = model.flow[0][0].mix
    channels = nn.functional.pixel_unshuffle(batch["image"], 2).transpose(0, 1).flatten(1)  # (4, n)
    torch.testing.assert_close(first.mean, channels.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.std, channels.std(1, correction=0), atol=1e-5, rtol=0)
    h = nn.functional.pixel_unshuffle(batch["image"], 2)
    for step in model.flow[0]:
        mixed = step.mix(h)[0].transpose(0, 1).flatten(1)
        normalised = step.mix.weight().T @ mixed  # W is a rotation
        torch.testing.assert_close(normalised.var(1, correction=0), torch.ones(4), atol=1e-3, rtol=0)
        h = step(h)[0]
    before = statistics(model)
    model.losses(pictures(5))
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)


def test_a_loaded_or_resumed_flow_keeps_its_statistics(tmp_path):
    model = Glow(**TINY).train()
    model.losses(pictures())
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model").train()
    again.losses(Batch({"image": pictures()["image"] / 5}))
    assert again.started
    torch.testing.assert_close(statistics(again), statistics(model), rtol=0, atol=0)

    rows = [{"image": torch.rand(1, 4, 4)} for _ in range(12)]

    def run(folder, steps):
        torch.manual_seed(1)
        config = FitConfig(steps=steps, batch_size=4, checkpoint_every=1, schedule="constant", tracker="none", seed=3)
        return fit(Glow(**TINY), rows, config, tmp_path / folder, resume=True)

    once = statistics(run("resumed", 2))
    resumed, whole = run("resumed", 4), run("whole", 4)
    torch.testing.assert_close(statistics(resumed), once, rtol=0, atol=0)
    assert all(torch.equal(value, whole.own_state()[name]) for name, value in resumed.own_state().items())


TWO = """
import sys, torch
sys.path.insert(0, {tests!r})
from safetensors.torch import save_file
from mmgen.processes import join
from test_glow import *

join()
rank = torch.distributed.get_rank()
for name, sizes in (("both", (3, 4)), ("one", (0, 7))):
    rows = range(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    model = seeded().train()
    losses = model.losses(Batch({{"image": seven()[list(rows)]}}) if rows else Batch.nothing(2))
    assert rows or losses["nll"] == 0
    save_file(statistics(model), f"{{sys.argv[1]}}/{{name}}_{{rank}}.safetensors")
"""


def seeded() -> Glow:
    torch.manual_seed(2)
    return Glow(**TINY, levels=2**30)  # noise is too small to matter


def seven() -> Tensor:
    return torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(5))


def test_two_processes_have_the_statistics_of_one(tmp_path):
    launch(TWO, tmp_path)
    model = seeded().train()
    model.losses(Batch({"image": seven()}))
    for name, rank in itertools.product(("both", "one"), (0, 1)):
        found = load_file(tmp_path / f"{name}_{rank}.safetensors")
        torch.testing.assert_close(found, statistics(model), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, load_file(tmp_path / f"{name}_0.safetensors"), rtol=0, atol=0)


def test_a_single_picture_among_others_without_waits_for_more():
    model = Glow(**TINY).train()
    alone = Batch({"image": torch.rand(4, 1, 4, 4)}, present={"image": torch.arange(4) == 2})
    assert not model.usable(alone)["rest"].any() and model.losses(alone)["nll"] == 0 and not model.started
    model.losses(pictures())
    assert model.usable(alone)["rest"].sum() == 1 and model.losses(alone)["nll"] != 0


def test_a_step_is_that_of_normflows():
    normflows = pytest.importorskip("normflows", reason="pip install normflows")
    torch.manual_seed(0)
    theirs, mine, x = normflows.flows.GlowBlock(4, 8, scale_map="exp"), Step(4, 8), torch.randn(5, 4, 3, 3)
    coupling, mixing, norm = theirs.flows
    network = [layer for layer in coupling.flows[1].param_map.net if isinstance(layer, nn.Conv2d)]
    nn.init.normal_(network[2].weight[0::2], std=0.1)  # shifts; scales are bounded here and not there, so they stay 0
    theirs.inverse(x)  # starts the actnorm
    with torch.no_grad():
        mine.mix.mean.copy_(norm.t.flatten())
        mine.mix.std.copy_(norm.s.exp().flatten())
        mine.mix.permutation.copy_(mixing.P.argmax(1))
        mine.mix.sign.copy_(mixing.sign_S)
        mine.mix.log_diagonal.copy_(mixing.log_S)
        mine.mix.lu.copy_(mixing.L.tril(-1) + mixing.U)
        mine.couple.first.load_state_dict(network[0].state_dict())
        mine.couple.middle.load_state_dict(network[1].state_dict())
        mine.couple.last.weight[2:].copy_(-network[2].weight[0::2])
        expected, log_det = theirs.inverse(x)
        y, own = mine(x)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own, log_det, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(mine.inverse(y), theirs(expected)[0], atol=1e-5, rtol=1e-5)


NAN = torch.full((2, 1, 4, 4), 0.5)
NAN[1, 0, 2, 2] = math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Glow([1, 28, 28], scales=3), "size for 3 scales: got 28 x 28, expected multiples of 8; set scales=2"),
        (lambda: Glow([1, 5, 4], scales=1), "size for 1 scale: got 5 x 4, expected multiples of 2; choose another size"),
        (lambda: Glow([28, 28]), r"shape: got \[28, 28\], expected channels, height, width"),
        (lambda: Glow(levels=1), "levels: got 1, expected a number >= 2"),
        (lambda: Glow(condition_dropout=1.0), "condition_dropout: got 1.0"),
        (lambda: Glow(**TINY).losses(pictures(2, (1, 8, 8))), r"image: got shape \(1, 8, 8\), expected \(1, 4, 4\)"),
        (lambda: Glow(**TINY).losses(Batch({"image": NAN})), "image of item 1: got nan, expected finite numbers"),
        (lambda: Glow(**TINY).losses(Batch({"image": NAN[:1] + 1})), "image of item 0: got 1.5, expected 0 to 1"),
        (lambda: Glow(**TINY).log_likelihood(Batch({"image": NAN[:1] - 1})), "image of item 0: got -0.5, expected 0 to 1"),
        (lambda: Glow(**TINY).train().losses(pictures(1)), "first batch: got 1 picture, expected 2 or more, .*batch_size"),
        (lambda: Glow(**TINY).encode(Batch({"text": torch.zeros(2)})), "image: got no item that has it"),
        (lambda: Glow(**TINY).log_likelihood(pictures(), samples=0), "samples: got 0"),
        (
            lambda: Glow(**TINY).decode({"z1": torch.zeros(1, 2, 2, 2)}),
            r"z\['z2'\]: got no such entry, expected \(b, 8, 1, 1\)",
        ),
        (lambda: Glow(**TINY).decode({"z1": torch.zeros(1, 3, 2, 2)}), r"z\['z1'\]: got \(3, 2, 2\), expected \(b, 2, 2, 2\)"),
        (lambda: Glow(**TINY).generate(Batch.nothing(1), "text"), "to: got text"),
        (lambda: Glow(**TINY).generate(Batch.nothing(1), "image", temperature=-1.0), "temperature: got -1.0"),
        (
            lambda: Glow(**TINY, classes=3).generate(Batch({"label": torch.tensor([3])}), "image"),
            "label: got 3, expected 0 to 2",
        ),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(("name", "value"), [("levels", 32), ("scales", 1), ("depth", 3)])
def test_a_saved_flow_is_not_loaded_with_other_settings(tmp_path, name, value):
    model = Glow(**TINY)
    model.save_pretrained(tmp_path / "model")
    saved = {"levels": 256, **TINY}[name]
    with pytest.raises(UserError, match=f"{name} of .*model.safetensors: got {value}, expected {saved}, as saved"):
        load(tmp_path / "model", **{name: value})
