"""Fréchet distance between the features of real and generated items."""

import torch
from torch import Tensor

from mmgen.errors import UserError


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """The squared Fréchet (2-Wasserstein) distance between the Gaussians fitted to two sets of features.

    ``d^2 = |m_r - m_g|^2 + tr(S_r) + tr(S_g) - 2 tr((S_r S_g)^(1/2))``, the covariances with n - 1

    The distance depends on the features: name it after them, as ``fid_efficientnet_lite0``; "FID" alone means the features of
    one Inception network. Small sets bias it upwards, so compare distances over equally many items.

    Args:
        real: (n, d) finite features of real items, n at least 2.
        generated: (m, d) finite features of generated items, m at least 2; n and m may be smaller than d.

    Returns:
        The distance, 0 or above, in the features' unit squared; computed in float64 on the CPU.

    Raises:
        UserError: the shapes do not fit, a set has fewer than two items, or a value is not finite.

    Source: Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500. With ``S = A^T A``, the trace of the square root is
    the sum of the singular values of ``A_r A_g^T``: no matrix square root, which is unstable for singular covariances.

    >>> x = torch.tensor([[0.0], [2.0]])  # mean 1, variance 2
    >>> round(frechet_distance(x, 2 * x + 3), 6)  # mean 5, variance 8: 4^2 + (sqrt 8 - sqrt 2)^2
    18.0
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1] or min(len(real), len(generated)) < 2:
        got = f"{tuple(real.shape)} and {tuple(generated.shape)}"
        expected = "(n >= 2, d) and (m >= 2, d)"
        raise UserError("real and generated", got=f"shapes {got}", expected=expected, fix="flatten the features")
    for name, features in {"real": real, "generated": generated}.items():
        if not features.isfinite().all():
            bad = int((~features.isfinite()).any(dim=1).nonzero()[0])
            got = "a value that is not finite"
            raise UserError(f"{name}[{bad}]", got=got, expected="real numbers", fix="check the encoder")
    (mean_r, root_r), (mean_g, root_g) = _moments(real), _moments(generated)
    trace = torch.linalg.svdvals(root_r @ root_g.T).sum()
    distance = (mean_r - mean_g).square().sum() + root_r.square().sum() + root_g.square().sum() - 2 * trace
    return max(float(distance), 0.0)  # rounding may make it slightly negative


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) and a root R (min(n, d), d) of the covariance, ``S = R^T R``."""
    features = features.detach().cpu().double()
    mean = features.mean(dim=0)
    root = torch.linalg.qr((features - mean) / (len(features) - 1) ** 0.5, mode="r").R
    return mean, root
