"""The flow on vectors: densities against quadrature, Jacobians and closed forms, its condition, and wrong input."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.models.flow import Flow

SMALL = {"transforms": 3, "hidden": 16, "bins": 4}


def moved(**settings) -> Flow:
    """In float64, with weights away from those of a new flow."""
    torch.manual_seed(0)
    model = Flow(**SMALL, **settings).double().eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model


def batch(x: Tensor, label: int | None = None) -> Batch:
    return Batch({"vector": x} | ({} if label is None else {"label": torch.full((len(x),), label)}))


@pytest.mark.parametrize("label", [None, 0, 1])
@pytest.mark.parametrize("dims", [1, 2])
def test_the_density_integrates_to_one(dims, label):
    model, points = moved(shape=[dims], classes=2), 2001 if dims == 1 else 241
    axis = torch.linspace(-8, 8, points, dtype=torch.float64)
    x = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    total = model.log_likelihood(batch(x, label)).exp().sum() * (16 / (points - 1)) ** dims
    assert total.item() == pytest.approx(1, abs=1e-3)


def test_the_density_is_the_change_of_variables():
    model, x = moved(shape=[3], classes=2), 2 * torch.randn(4, 3, dtype=torch.float64)
    z = model.encode(batch(x, 1)).mean
    for i in range(4):
        slopes = torch.autograd.functional.jacobian(lambda v: model.encode(batch(v[None], 1)).mean[0], x[i])
        expected = Normal(0, 1).log_prob(z[i]).sum() + torch.linalg.slogdet(slopes).logabsdet
        torch.testing.assert_close(model.log_likelihood(batch(x, 1))[i], expected.detach())
    again = model.decode(z, "vector", torch.ones(4, dtype=torch.long)).mean
    torch.testing.assert_close(again, x, atol=1e-9, rtol=0)
    assert not torch.allclose(model.decode(z, "vector").mean, x, atol=1e-3)  # of items without a label


def test_it_learns_gaussians_by_their_label():
    torch.manual_seed(0)
    means, root = torch.tensor([[1.5, 0.0], [-1.5, 0.0]]), torch.tensor([[0.5, 0.0], [0.4, 0.3]])
    label = torch.arange(300) % 2
    x = means[label] + torch.randn(300, 2) @ root.T
    model, data = Flow(**SMALL, classes=2).train(), Batch({"vector": x, "label": label})
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        model.losses(data).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    best = MultivariateNormal(means[label], root @ root.T).log_prob(x).mean().item()
    assert model.log_likelihood(data).mean().item() == pytest.approx(best, abs=0.15)
    given = Batch({"label": torch.tensor([0, 1, 0])}, present={"label": torch.tensor([True, True, False])})
    made = model.generate(given, "vector", 400, torch.Generator().manual_seed(0)).reshape(3, 400, 2)
    torch.testing.assert_close(made[:2].mean(1), means, atol=0.2, rtol=0)
    assert (made[2, :, 0] > 0).float().mean().item() == pytest.approx(0.5, abs=0.12)  # of both
    assert made[2, :, 0].std() > 1.2


def test_at_temperature_zero_it_decodes_the_mode():
    model = moved(shape=[2])
    made = model.generate(Batch.nothing(3), "vector", temperature=0)
    torch.testing.assert_close(made, model.decode(torch.zeros(3, 2).double(), "vector").mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Flow(shape=[2, 3]), r"shape: got \[2, 3\], expected the length of a vector"),
        (lambda: Flow(bins=1), "bins: got 1"),
        (lambda: Flow(hidden=0), "hidden: got 0"),
        (lambda: Flow().losses(batch(torch.zeros(2, 3))), r"vector: got shape \(3,\), expected \(2,\)"),
        (lambda: Flow().losses(batch(torch.tensor([[0.0, math.nan]]))), "vector of item 0: got nan"),
        (lambda: Flow().log_likelihood(Batch({"text": torch.zeros(2)})), "vector: got no item that has it"),
        (lambda: Flow(classes=2).losses(batch(torch.zeros(1, 2), 2)), "label: got 2, expected 0 to 1"),
        (lambda: Flow().generate(Batch.nothing(1), "image"), "to: got image"),
        (lambda: Flow().generate(Batch.nothing(1), "vector", temperature=-1.0), "temperature: got -1.0"),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()
