import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from mmgen.errors import UserError
from mmgen.latents.importance import importance_bound
from mmgen.latents.spaces import diagonal_normal


def gaussian(b: int = 1, mean: float = 0.3, scale: float = 0.9):
    """x = z + noise with z ~ N(0, 1) in each of two dimensions: log p(x, z), log p(x), and a posterior that is off."""
    x = torch.tensor([1.0, -0.5], dtype=torch.double)
    prior, noise = Normal(0.0, 1.0), Normal(0.0, 0.8)
    marginal = MultivariateNormal(torch.zeros(2, dtype=torch.double), (1 + 0.64) * torch.eye(2, dtype=torch.double))
    q = diagonal_normal(torch.full((b, 2), mean, dtype=torch.double), torch.full((b, 2), scale, dtype=torch.double))
    return lambda z: (prior.log_prob(z) + noise.log_prob(x - z)).sum(-1), marginal.log_prob(x), q


@pytest.mark.parametrize("samples", [1, 3, 40])
def test_the_exact_posterior_gives_the_likelihood_at_any_k(samples):
    log_joint, log_p, _ = gaussian()
    gain = 1 / 1.64
    q = diagonal_normal(gain * torch.tensor([[1.0, -0.5]], dtype=torch.double), torch.full((1, 2), (1 - gain) ** 0.5).double())
    torch.testing.assert_close(importance_bound(q, log_joint, samples), log_p[None])


def test_it_is_the_log_mean_of_the_ratios_whatever_the_chunk():
    log_joint, _, q = gaussian(b=3)
    seen = []

    def recorded(z):
        seen.append(z)
        return log_joint(z)

    bound = importance_bound(q, recorded, samples=10, chunk=12)
    assert [len(z) for z in seen] == [4, 4, 2]  # at most 12 draws at once for 3 items
    z = torch.cat(seen)
    ratios = (log_joint(z) - q.log_prob(z)).exp()
    torch.testing.assert_close(bound, ratios.mean(0).log())
    seen.clear()
    importance_bound(q, recorded, samples=2, chunk=1)
    assert [len(z) for z in seen] == [1, 1]


def test_it_rises_with_k_from_the_elbo_to_the_likelihood():
    log_joint, log_p, q = gaussian(b=4000)
    torch.manual_seed(0)
    bounds = [importance_bound(q, log_joint, k, chunk=10**6).mean().item() for k in (1, 2, 8, 64)]
    assert bounds == sorted(bounds) and bounds[-1] < log_p < bounds[-1] + 0.05
    x = torch.tensor([1.0, -0.5], dtype=torch.double)
    likelihood = -math.log(0.8 * math.sqrt(2 * math.pi)) - ((x - 0.3) ** 2 + 0.81) / (2 * 0.64)
    divergence = 0.5 * (0.3**2 + 0.81 - 1 - math.log(0.81))
    assert bounds[0] == pytest.approx((likelihood - divergence).sum().item(), abs=0.1)


def test_no_sample():
    log_joint, _, q = gaussian()
    with pytest.raises(UserError, match="samples: got 0"):
        importance_bound(q, log_joint, 0)
