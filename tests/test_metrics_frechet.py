"""The Fréchet distance of features, against closed forms and scipy's matrix square root."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from mmgen.metrics.frechet import frechet_distance


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(n, mean, root, seed=0):
    """n points whose sample mean and covariance are exactly ``mean`` (d,) and ``root^T root``."""
    x = normal(n, len(mean), seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white @ root + mean


def test_gaussians_with_one_basis():
    basis = torch.linalg.qr(normal(4, 4)).Q
    s, t = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([2.0, 0.5, 3.0, 1.0]).double()  # standard deviations
    m, k = torch.arange(4.0).double(), torch.ones(4).double()
    real, generated = with_moments(50, m, s[:, None] * basis, 1), with_moments(80, k, t[:, None] * basis, 2)
    expected = (m - k).square().sum() + (s - t).square().sum()
    assert frechet_distance(real, generated) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("d", [1, 3, 10])
def test_is_scipys_matrix_square_root(d):
    real, generated = normal(60, d, 1) @ normal(d, d, 3), normal(90, d, 2) @ normal(d, d, 4) + 0.5
    a, b = (np.atleast_2d(np.cov(x.numpy().T)) for x in (real, generated))
    expected = (real.mean(0) - generated.mean(0)).square().sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(real, generated) == pytest.approx(float(expected), rel=1e-6)


def test_more_dimensions_than_items():
    real, generated = normal(10, 4, 1), 2 * normal(12, 4, 2) + 1
    wide = torch.linalg.qr(normal(300, 4, 3)).Q.T  # (4, 300), distances kept
    assert frechet_distance(real @ wide, generated @ wide) == pytest.approx(frechet_distance(real, generated), rel=1e-9)
    full = normal(10, 300, 4)
    assert frechet_distance(full, 3 * full) == pytest.approx(
        float(4 * full.mean(0).square().sum() + 4 * torch.cov(full.T).trace()), rel=1e-9
    )


@given(n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 8), seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_is_a_distance(n, m, d, seed):
    real, generated = normal(n, d, seed), normal(m, d, seed + 1000) + 1
    distance = frechet_distance(real, generated)
    assert distance > 0 and frechet_distance(generated, real) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(real, real[torch.randperm(n)]) == pytest.approx(0, abs=1e-9)
    turned = torch.linalg.qr(normal(d, d, seed)).Q
    assert frechet_distance(real @ turned + 5, generated @ turned + 5) == pytest.approx(distance, rel=1e-6)
    assert frechet_distance(real, real + 3) == pytest.approx(9 * d, rel=1e-9)


def test_of_float32_far_from_the_origin():
    x = normal(200, 16).float() + 1000  # E[x^2] - E[x]^2 in float32 would lose all
    assert frechet_distance(x, x + 1) == pytest.approx(16, rel=1e-3)
    assert frechet_distance(x.bfloat16(), x.bfloat16()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (torch.ones(3, 2), torch.ones(3, 4), r"got shapes \(3, 2\) and \(3, 4\)"),
        (torch.ones(3), torch.ones(3, 1), r"got shapes \(3,\)"),
        (torch.ones(3, 2), torch.ones(1, 2), r"\(1, 2\), expected"),
        (torch.ones(2, 2), torch.tensor([[1.0, 2.0], [torch.nan, 1.0]]), r"generated\[1\]: got a value that is not finite"),
        (torch.tensor([[torch.inf], [0.0]]), torch.ones(2, 1), r"real\[0\]"),
    ],
)
def test_bad_input(real, generated, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(real, generated)
