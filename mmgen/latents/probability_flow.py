"""Flows from noise to data along a velocity: paths between them, solvers of the ODE, and its exact change of variables."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from zuko.utils import odeint

from mmgen.errors import UserError

#: (x (b, *event), t ()) -> dx/dt, (b, *event)
Velocity = Callable[[Tensor, Tensor], Tensor]


class LinearPath:
    """x_t = t x_1 + (1 - t) x_0, a straight line from noise x_0 to data x_1; the network predicts dx_t/dt = x_1 - x_0.

    Source: Liu et al. 2022, Rectified Flow, arXiv 2209.03003; Lipman et al. 2022, Flow Matching, arXiv 2210.02747.

    >>> LinearPath().coefficients(torch.tensor(0.25))
    (tensor(0.2500), tensor(0.7500))
    """

    predicts = "velocity"
    end = 1.0  # time of the data

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The factors (alpha_t, sigma_t) of data and noise in x_t."""
        return t, 1 - t

    def target(self, noise: Tensor, data: Tensor) -> Tensor:
        """The quantity that the network predicts from x_t."""
        return data - noise

    def velocity(self, x: Tensor, t: Tensor, predicted: Tensor) -> Tensor:
        """dx/dt at x_t (b, *event), by what the network predicts there."""
        return predicted


class VariancePreservingPath:
    """x_t = alpha_t x_1 + sigma_t x_0 with alpha_t^2 + sigma_t^2 = 1, the diffusion of DDPM; the network predicts the noise.

    With s = 1 - t and beta(s) = b_0 + (b_1 - b_0) s, ``log alpha_t = -1/2 int_0^s beta``. The probability flow
    ``dx/dt = alpha'/alpha x + (sigma' - sigma alpha'/alpha) x_0`` is ``beta(s)/2 (x - x_0 / sigma_t)``. It is singular at
    t = 1, so it ends at 1 - 1e-5, where sigma is 0.001; at t = 0 a share alpha = 0.0066 of the data is left.

    Source: Ho et al. 2020, DDPM, arXiv 2006.11239; in continuous time Song et al. 2021, arXiv 2011.13456, equations 11 and 13.

    >>> alpha, sigma = VariancePreservingPath().coefficients(torch.tensor(0.3))
    >>> round((alpha**2 + sigma**2).item(), 6)
    1.0
    """

    predicts = "noise"
    end = 1 - 1e-5
    first, last = 0.1, 20.0  # b_0 and b_1: a thousand times the variances of DDPM's first and last steps

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The factors (alpha_t, sigma_t) of data and noise in x_t."""
        s = 1 - t
        log_alpha = -s / 2 * (self.first + (self.last - self.first) * s / 2)
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def target(self, noise: Tensor, data: Tensor) -> Tensor:
        """The quantity that the network predicts from x_t."""
        return noise

    def velocity(self, x: Tensor, t: Tensor, predicted: Tensor) -> Tensor:
        """dx/dt at x_t (b, *event), by what the network predicts there."""
        beta = self.first + (self.last - self.first) * (1 - t)
        return beta / 2 * (x - predicted / self.coefficients(t)[1])


PATHS: dict[str, Callable[[], LinearPath | VariancePreservingPath]] = {"linear": LinearPath, "vp": VariancePreservingPath}
SOLVERS = ("euler", "heun")


def solve(velocity: Velocity, x: Tensor, times: Tensor, solver: str = "euler") -> Tensor:
    """Integrate dx/dt over a grid of times by Euler's or Heun's method.

    Args:
        velocity: dx/dt.
        x: (b, *event) at the first time.
        times: (n + 1,) in either order.
        solver: "euler", n evaluations; or "heun", 2 n - 1, as its last step is one of Euler's.

    Returns:
        x at the last time.

    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 1.

    >>> solve(lambda x, t: -x, torch.ones(1), torch.linspace(0, 1, 3))
    tensor([0.2500])
    """
    for step, (t, after) in enumerate(pairwise(times), start=2):
        rate = velocity(x, t)
        if solver == "heun" and step < len(times):
            rate = (rate + velocity(x + (after - t) * rate, after)) / 2
        x = x + (after - t) * rate
    return x


def solve_with(scheduler: Any, velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Integrate dx/dt from t = 0 to 1 by a scheduler of diffusers such as ``FlowMatchEulerDiscreteScheduler``.

    Its model output is the velocity towards the noise, -dx/dt, and its time runs from ``num_train_timesteps`` to 0.

    Raises:
        UserError: it is no scheduler, or one of another process than flow matching.
    """
    flow = all(hasattr(scheduler, name) for name in ("set_timesteps", "step", "sigmas", "config"))
    if not flow or hasattr(scheduler, "alphas_cumprod"):
        expected, fix = f"{', '.join(SOLVERS)} or a flow-matching scheduler of diffusers", "use sampler='euler'"
        raise UserError("sampler", got=type(scheduler).__name__, expected=expected, fix=fix)
    scheduler.set_timesteps(steps, device=x.device)
    for timestep in scheduler.timesteps:
        t = 1 - timestep.to(x.dtype) / scheduler.config.num_train_timesteps
        x = scheduler.step(-velocity(x, t), timestep, x).prev_sample
    return x


def transport(velocity: Velocity, x: Tensor, start: float, end: float, tolerance: float = 1e-5) -> Tensor:
    """Integrate dx/dt from ``start`` to ``end`` by an adaptive Dormand-Prince solver, forwards or backwards in time.

    Args:
        velocity: dx/dt.
        x: (b, *event) at ``start``.
        start, end: times.
        tolerance: absolute and relative tolerance of each step.

    Returns:
        x at ``end``, without gradient.

    Raises:
        UserError: the velocity is not finite.
    """
    with torch.no_grad():
        return odeint(lambda t, x: _finite(velocity(x, t)), x, start, end, atol=tolerance, rtol=tolerance)


def transport_with_volume(
    velocity: Velocity, x: Tensor, start: float, end: float, probe: Tensor | None = None, tolerance: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """`transport`, with the logarithm of the change of volume: ``int div v dt`` along the way.

    By the instantaneous change of variables, ``log p_start(x_start) = log p_end(x_end) + int_start^end div v dt``.

    Args:
        velocity: dx/dt.
        x: (b, *event) at ``start``.
        start, end: times.
        probe: (b, *event) of independent signs e: the trace of the Jacobian J is estimated by e^T J e, which has mean tr J
            and no variance from the diagonal of J; without it the trace is exact, by a derivative for each dimension.
        tolerance: absolute and relative tolerance of each step, of the volume in nats a dimension.

    Returns:
        x at ``end`` (b, *event), and the integral (b,), without gradient.

    Raises:
        UserError: the velocity is not finite.

    Source: Chen et al. 2018, Neural ODEs, arXiv 1806.07366; Grathwohl et al. 2019, FFJORD, arXiv 1810.01367, whose probes may
        be Gaussian, which adds a variance of 2 J_ii^2 for each dimension.
    """
    size = x[0].numel()

    def augmented(t: Tensor, x: Tensor, volume: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            rate = _finite(velocity(x, t))
        return rate.detach(), (_trace(rate, x) if probe is None else _product(rate, x, probe, False)) / size

    with torch.no_grad():
        start_volume = x.new_zeros(len(x))  # (b,)
        x, volume = odeint(augmented, (x, start_volume), start, end, atol=tolerance, rtol=tolerance)
    return x, volume * size


def _trace(rate: Tensor, x: Tensor) -> Tensor:
    """The trace of d rate / d x of each item, (b,)."""
    unit = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, *x.shape[1:])  # (d, *event)
    return torch.stack([_product(rate, x, direction.expand_as(x), True) for direction in unit]).sum(0)


def _product(rate: Tensor, x: Tensor, direction: Tensor, again: bool) -> Tensor:
    """e^T (d rate / d x) e of each item for a direction e (b, *event), (b,)."""
    (gradient,) = torch.autograd.grad(rate, x, direction, retain_graph=again)
    return (gradient * direction).flatten(1).sum(1)


def _finite(rate: Tensor) -> Tensor:
    if not rate.isfinite().all():  # the solver would shrink its step for ever
        got = f"{rate[~rate.isfinite()][0].item()} from the network"
        raise UserError(
            "velocity", got=got, expected="finite numbers", fix="train with a lower learning rate, or load another run"
        )
    return rate
