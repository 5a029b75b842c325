"""The GAN: games with tabular discriminators in closed form, penalties, phases, labels, learning, and wrong input."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.inference.generate import generate
from mmgen.metrics.two_sample import jensen_shannon_on_grid
from mmgen.models.gan import GAMES, GAN
from mmgen.training.config import FitConfig
from mmgen.training.loop import fit

SMALL = {"shape": (1, 4, 4), "noise": 3, "width": 4, "depth": 1}
BATCH = Batch({"image": torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), "label": torch.arange(6) % 3})
PHASES = ("discriminator", "generator")


def build(**settings) -> GAN:
    torch.manual_seed(0)
    return GAN(**{**SMALL, **settings})


def probabilities(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.double).softmax(0)


def best_response(objective: str, p: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The logits (n,) of the best tabular discriminator of p and q, and its mean loss over all pairs."""
    logits = torch.zeros(len(p), dtype=torch.double, requires_grad=True)
    pairs = p[:, None] * q  # (n, n)
    tight = {"max_iter": 500, "tolerance_grad": 1e-12, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([logits], **tight)

    def loss() -> torch.Tensor:
        return (pairs * GAMES[objective].discriminator(logits[:, None], logits[None])).sum()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach(), loss().item()


@pytest.mark.parametrize("objective", ["minimax", "non_saturating"])
def test_the_best_discriminator_is_the_density_ratio_and_its_value_the_divergence(objective):
    p, q = probabilities(6, 1), probabilities(6, 2)
    logits, loss = best_response(objective, p, q)
    torch.testing.assert_close(logits.sigmoid(), p / (p + q), atol=1e-6, rtol=0)  # D* = p / (p + q)
    value = -loss  # V(D*, G)
    assert value == pytest.approx(2 * jensen_shannon_on_grid(p.log(), q.log(), 1.0) - math.log(4), abs=1e-9)


def test_the_best_relativistic_discriminator_is_the_density_ratio_of_pairs():
    """It classifies the order of a pair: its loss is log 2 - JSD(p x q, q x p)."""
    p, q = probabilities(6, 1), probabilities(6, 2)
    logits, loss = best_response("relativistic", p, q)
    ratio = p.log() - q.log()
    torch.testing.assert_close(logits - logits.mean(), ratio - ratio.mean(), atol=1e-6, rtol=0)
    pairs = (p[:, None] * q).log()
    assert loss == pytest.approx(math.log(2) - jensen_shannon_on_grid(pairs, pairs.T, 1.0), abs=1e-9)


@pytest.mark.parametrize("objective", GAMES)
def test_nobody_gains_where_the_generator_is_right(objective):
    p = probabilities(6, 1)
    logits, loss = best_response(objective, p, p)
    torch.testing.assert_close(logits, logits[:1].expand(6), atol=1e-6, rtol=0)
    assert loss == pytest.approx(math.log(2 if objective == "relativistic" else 4))


@pytest.mark.parametrize(("objective", "vanishes"), [("minimax", True), ("non_saturating", False), ("relativistic", False)])
def test_on_disjoint_supports_only_the_minimax_gradient_vanishes(objective, vanishes):
    """p = N(0, 0.1), q = N(place, 0.1), and the best discriminator, log p / q."""
    place = torch.tensor(10.0, dtype=torch.double, requires_grad=True)
    p, q = Normal(torch.zeros((), dtype=torch.double), 0.1), Normal(place.detach(), 0.1)
    noise = torch.randn(50, dtype=torch.double, generator=torch.Generator().manual_seed(0)) / 10
    d, d_fake = (p.log_prob(x) - q.log_prob(x) for x in (noise, place + noise))
    (gradient,) = torch.autograd.grad(GAMES[objective].generator(d, d_fake).mean(), place)
    grid = torch.linspace(-2, 12, 20_001, dtype=torch.double)
    assert jensen_shannon_on_grid(p.log_prob(grid), q.log_prob(grid), 14 / 20_000) == pytest.approx(math.log(2), abs=1e-6)
    assert (gradient == 0) if vanishes else (gradient > 100)  # moves q towards p


class Linear(nn.Module):
    """The logit w . x + label / 10."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 2, 16))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.w + labels / 10


def test_the_penalties_of_a_linear_discriminator():
    model = build(r1=0.7, r2=3.0)
    model.discriminator = Linear()
    terms = model.losses(BATCH, "discriminator")
    w = model.discriminator.w
    for name, weight in (("r1", 0.7), ("r2", 3.0)):
        torch.testing.assert_close(terms[name], weight / 2 * w.square().sum())
        (gradient,) = torch.autograd.grad(terms[name], w, retain_graph=True)
        torch.testing.assert_close(gradient, weight * w)  # not detached


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_the_penalties_have_the_gradient_of_finite_differences(name):
    model = build(classes=3).double().eval()
    for p in model.discriminator.parameters():  # the last convolution of each block begins at 0
        torch.nn.init.normal_(p, std=0.3)
    batch = Batch({"image": BATCH["image"].double(), "label": BATCH["label"]})

    def penalty() -> torch.Tensor:
        torch.manual_seed(1)
        return model.losses(batch, "discriminator")[name]

    weight = model.discriminator.head.weight
    (gradient,) = torch.autograd.grad(penalty(), weight)
    moved, step = [], 1e-6
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * step
        moved.append(penalty().item())
        with torch.no_grad():
            weight[0, 0] -= sign * step
    assert gradient[0, 0].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-5) and gradient[0, 0] != 0


def test_without_weight_there_is_no_penalty():
    assert [*build(r1=0.0, r2=0.0).losses(BATCH, "discriminator")] == ["adversarial"]
    assert [*build(r1=0.0).losses(BATCH, "discriminator")] == ["adversarial", "r2"]
    assert [*build().losses(BATCH, "generator")] == ["adversarial"]


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_leaves_the_weights_of_the_other_bitwise(tmp_path, phase):
    model = build(classes=3)
    before = {name: value.clone() for name, value in model.own_state().items()}
    rows = [{"image": x, "label": y} for x, y in zip(BATCH["image"], BATCH["label"])]
    config = FitConfig(steps=2, batch_size=4, tracker="none", weight_decay=0.1)
    changed = {name.partition(".")[0] for name, value in fit(model, rows, config, tmp_path, phases=[phase]).own_state().items()
               if not torch.equal(value, before[name])}  # fmt: skip
    assert changed == {phase}


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_gives_no_gradient_to_the_other(phase):
    model = build(classes=3)
    model.losses(BATCH, phase).total.backward()
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {phase}


@pytest.mark.parametrize("sides", [(1, 1), (4, 4), (7, 5), (28, 28)])
def test_pictures_of_any_size(sides):
    model = build(shape=(2, *sides))
    made = model.generate(Batch.nothing(2), "image", 2)
    assert made.shape == (4, 2, *sides) and made.min() >= 0 and made.max() <= 1
    assert model.losses(Batch({"image": made})).total.isfinite()


def test_labels_reach_both_networks_and_hidden_ones_are_those_of_nobody(monkeypatch):
    model, seen = build(classes=3, condition_dropout=0.5), []
    monkeypatch.setattr(model, "generator_terms", lambda x, labels: seen.append(labels) or model.zero_losses("adversarial"))
    present = {"label": torch.tensor([True, True, True, False, True, True])}
    model.eval().losses(Batch(BATCH.values, present=present), "generator")
    assert seen.pop().tolist() == [0, 1, 2, 3, 1, 2]
    model.train()
    for _ in range(100):
        model.losses(BATCH, "generator")
    labels = torch.stack(seen)  # (100, 6)
    assert ((labels == BATCH["label"]) | (labels == 3)).all()
    assert 0.4 < (labels == 3).double().mean() < 0.6
    for network, given in ((model.generator, torch.randn(1, 3)), (model.discriminator, BATCH["image"][:1])):
        torch.nn.init.normal_(network.label.weight)
        outcomes = torch.stack([network(given, torch.tensor([y])).flatten() for y in range(4)])
        assert torch.cdist(outcomes, outcomes).fill_diagonal_(1).min() > 1e-4


def test_an_item_without_a_label_is_drawn_as_one_of_none():
    model = build(classes=3).eval()
    some = Batch({"label": torch.tensor([1, 0])}, present={"label": torch.tensor([True, False])})
    seed = [torch.Generator().manual_seed(0) for _ in range(3)]
    drawn, of_one, of_none = (
        model.generate(given, "image", 2, generator)
        for given, generator in zip((some, Batch({"label": torch.tensor([1, 1])}), Batch.nothing(2)), seed)
    )
    assert torch.equal(drawn, torch.cat([of_one[:2], of_none[2:]])) and not torch.equal(of_one[2:], of_none[2:])


def four_pictures() -> torch.Tensor:
    x = torch.zeros(4, 1, 4, 4)
    x[0, :, :2], x[1, :, 2:], x[2, :, :, :2], x[3, :, :, 2:] = 1, 1, 1, 1
    return x


@pytest.mark.parametrize("objective", ["relativistic", "non_saturating"])
def test_it_learns_four_pictures_by_their_labels(objective):
    x, labels = four_pictures(), torch.arange(4)
    model = build(objective=objective, classes=4, noise=4, width=16, r1=0.1, r2=0.1).train()
    optimizers = {
        phase: torch.optim.Adam([p for group in model.phase_parameters(phase) for p in group["params"]], 5e-3, (0.0, 0.9))
        for phase in model.phases
    }
    average = {name: value.clone() for name, value in model.state_dict().items()}
    batch = Batch({"image": x.repeat(4, 1, 1, 1), "label": labels.repeat(4)})
    for _ in range(150):
        for phase, optimizer in optimizers.items():
            optimizer.zero_grad()
            model.losses(batch, phase).total.backward()
            optimizer.step()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 0.05)
    model.load_state_dict(average)
    made = model.eval().generate(Batch({"label": labels}), "image", 8, torch.Generator().manual_seed(0))  # (32, 1, 4, 4)
    assert (made - x.repeat_interleave(8, 0)).abs().mean() < 0.15
    assert torch.equal(torch.cdist(made.flatten(1), x.flatten(1)).argmin(1), labels.repeat_interleave(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(objective="minmax"), "objective: got minmax, expected a known name; did you mean 'minimax'"),
        (lambda: build(shape=(8, 8)), r"shape: got \[8, 8\], expected 3 numbers"),
        (lambda: build(shape=(1, 0, 8)), r"shape: got \[1, 0, 8\]"),
        (lambda: build(r1=-1.0), "r1: got -1.0"),
        (lambda: build(condition_dropout=1.0), "condition_dropout: got 1.0"),
        (lambda: build().losses(Batch({"image": torch.zeros(1, 1, 8, 8)})), r"image: got shape \(1, 8, 8\)"),
        (lambda: build().losses(Batch({"image": torch.full((1, 1, 4, 4), math.nan)})), "image of item 0: got nan"),
        (lambda: build().losses(Batch({"image": torch.full((1, 1, 4, 4), -0.5)})), "image of item 0: got -0.5, expected 0 to"),
        (lambda: build().losses(BATCH, "critic"), "phase: got critic"),
        (lambda: build(classes=2).losses(BATCH), "label: got 2, expected 0 to 1"),
        (lambda: build(classes=2).generate(BATCH), "label: got 2, expected 0 to 1"),
        (lambda: build().generate(Batch.nothing(1), "text"), "to: got text"),
        (lambda: build().generate(Batch.nothing(1), "image", 0), "n: got 0"),
        (lambda: generate(build(), {}, "image", guidance=2.0), "option of gan: got guidance"),
        (lambda: generate(build(), {"label": "3"}, "image"), "input modality: got label"),
        (lambda: build().encode(BATCH), "expected one of losses, generate; gan does not define encode"),
        (lambda: build().log_likelihood(BATCH), "gan does not define log_likelihood"),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()
