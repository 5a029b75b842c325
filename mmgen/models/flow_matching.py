"""Flow matching: a velocity from noise to data, learned by regression; rectified flow, and DDPM as another path."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from mmgen.data.batch import Batch, placed
from mmgen.distributions import Delta
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.latents.probability_flow import PATHS, SOLVERS, Velocity, solve, solve_with, transport, transport_with_volume
from mmgen.latents.spaces import StandardPrior, rsample
from mmgen.modalities.image import check_pixels
from mmgen.modalities.kinds import KINDS, check_values
from mmgen.modalities.layers.modulated import PatchTransformer
from mmgen.modalities.layers.unet import UNet
from mmgen.models.base import REST, Losses, Model, check_generate, dropped, labels_of
from mmgen.ranges import AtLeast, Share, checked

NETWORKS: dict[str, Callable[..., nn.Module]] = {"transformer": PatchTransformer, "unet": UNet}
EXACT = 16  # dimensions up to which the trace of the Jacobian is exact, by a derivative each


class FlowMatching(Model):
    """p(x) of pictures or vectors, N(0, 1) carried along the velocity v(x, t, c) from t = 0 to 1, c a label.

    A path ``x_t = alpha_t x_1 + sigma_t x_0`` joins noise x_0 ~ N(0, 1) and data x_1. The loss, summed over dimensions, is

    - "linear": ``E|v(x_t, t, c) - (x_1 - x_0)|^2``, rectified flow;
    - "vp": ``E|e(x_t, t, c) - x_0|^2``, the loss of DDPM, whose velocity follows from the noise e, see
      `mmgen.latents.probability_flow.VariancePreservingPath`.

    A picture stands for integers i = round(x (levels - 1)); x_1 = 2 y - 1 with y = (i + u) / levels, u uniform on [0, 1].
    Items without x are ignored, and items without a label are unconditional.

    Args:
        modality: name of x in a batch.
        kind: "image", values in [0, 1], or "vector".
        shape: (c, h, w) of a picture, (d,) of a vector.
        classes: number of classes of ``label`` (b,); 0: the model is unconditional.
        path: "linear" or "vp".
        times: distribution of t in training, "uniform" or "logit_normal", which favours the middle.
        network: "transformer" (adaLN-zero, see `PatchTransformer`; a vector is one token) or "unet" (pictures only, needs
            diffusers).
        settings: settings of the network, such as ``{"patch": 4, "dim": 256}``.
        condition_dropout: share of labels left out in training, for guidance.
        levels: number of levels of a pixel.

    Raises:
        UserError: an unknown name, or a setting that does not fit; in use, values that are no picture or vector, a label out
            of range, or guidance without a label.

    Source: Lipman et al. 2022, Flow Matching, arXiv 2210.02747; Liu et al. 2022, Rectified Flow, arXiv 2209.03003; times by
        Esser et al. 2024, arXiv 2403.03206; guidance by Ho and Salimans 2022, arXiv 2207.12598.

    >>> model = FlowMatching(shape=(1, 8, 8), classes=3, settings={"dim": 16, "depth": 1, "heads": 2})
    >>> batch = Batch({"image": torch.rand(2, 1, 8, 8), "label": torch.tensor([0, 2])})
    >>> sorted(model.losses(batch)), model.generate(batch.without("image"), "image", steps=3, guidance=2.0).shape
    (['velocity'], torch.Size([2, 1, 8, 8]))
    """

    name = "flow_matching"
    from_prior = True

    @checked
    def __init__(
        self,
        modality: str = "image",
        kind: Literal["image", "vector"] = "image",
        shape: Sequence[int] = (1, 28, 28),
        classes: Annotated[int, AtLeast(0)] = 0,
        path: Literal["linear", "vp"] = "linear",
        times: Literal["uniform", "logit_normal"] = "logit_normal",
        network: Literal["transformer", "unet"] = "transformer",
        settings: dict[str, Any] | None = None,
        condition_dropout: Annotated[float, Share(0.1)] = 0.1,
        levels: Annotated[int, AtLeast(2)] = 256,
    ) -> None:
        super().__init__()
        check_one_of("kind", kind, ("image", "vector"))
        if len(shape) != len(KINDS[kind].axes):
            expected, fix = f"{len(KINDS[kind].axes)} for {kind}", f"give {', '.join(KINDS[kind].axes)}"
            raise UserError("shape", got=list(shape), expected=expected, fix=fix)
        if kind == "vector" and network == "unet":
            raise UserError("network", got="unet of a vector", expected="transformer", fix="set network=transformer")
        self.modality, self.kind, self.shape, self.levels = modality, kind, tuple(shape), levels
        self.classes, self.condition_dropout = classes, condition_dropout
        self.path = PATHS[check_one_of("path", path, PATHS)]()
        self.times = check_one_of("times", times, ("uniform", "logit_normal"))
        settings = {"patch": 1, **(settings or {})} if kind == "vector" else settings or {}
        grid = self.shape if kind == "image" else (*self.shape, 1, 1)
        self.network = make_network(network, grid, classes, settings)
        self.noise = StandardPrior(math.prod(self.shape))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The condition."""
        return ("label",) if self.classes else ()

    @property
    def encoded(self) -> tuple[str, ...]:
        """The modality of x."""
        return (self.modality,)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items that have x."""
        return {REST: batch.having(self.modality)}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The squared error of the velocity or the noise, over the items that have x."""
        if not self.usable(batch)[REST].any():
            return self.zero_losses(self.path.predicts)
        x, observed = self._observed(batch)
        data = self._scaled(x, torch.rand_like(x))  # (b', *shape)
        noise, t = torch.randn_like(data), self.path.end * self._times(data)  # (b', *shape), (b',)
        alpha, sigma = (value.reshape(-1, *[1] * len(self.shape)) for value in self.path.coefficients(t))
        label = self._labels(batch, observed)
        if label is not None and self.training:
            label = dropped(label, self.classes, self.condition_dropout)
        error = self._predict(alpha * data + sigma * noise, t, label) - self.path.target(noise, data)
        return Losses({self.path.predicts: error.square().flatten(1).sum(1).mean()})

    def velocity(self, label: Tensor | None = None, guidance: float = 1.0) -> Velocity:
        """v(x, t, c) = v_u + guidance (v_c - v_u), v_c with the label and v_u without.

        Args:
            label: (b,) int64, the number of classes for none; None for a model without classes.
            guidance: classifier-free guidance scale; 1: v_c, 0: v_u.

        Returns:
            The function (x (b, *shape), t ()) -> dx/dt, (b, *shape).
        """

        def at(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            return self.path.velocity(x, t, self._predict(x, t.expand(len(x)), label).to(x.dtype))

        if label is None or guidance == 1:
            return lambda x, t: at(x, t, label)
        nothing = torch.full_like(label, self.classes)
        if guidance == 0:
            return lambda x, t: at(x, t, nothing)

        def guided(x: Tensor, t: Tensor) -> Tensor:
            conditional, free = at(x.repeat(2, *[1] * len(self.shape)), t, torch.cat([label, nothing])).chunk(2)
            return free + guidance * (conditional - free)

        return guided

    def encode(self, batch: Batch) -> Delta:
        """The noise that becomes x, a point (b, *shape): the flow backwards from x, of a picture from the middles of its bins.

        It is solved to 1e-5 and has no gradient; undefined where x is missing.
        """
        x, observed = self._observed(batch)
        data = self._scaled(self._rounded(x), 0.5)
        z = transport(self.velocity(self._labels(batch, observed)), data, self.path.end, 0.0)
        return Delta(placed(z, observed), len(self.shape))

    def decode(self, z: Tensor, to: str = "image", label: Tensor | None = None) -> Delta:
        """The x that noise z (b, *shape) becomes, a point; of ``label`` (b,), or unconditional without."""
        check_one_of("to", to, [self.modality])
        batch = Batch.nothing(len(z), z.device) if label is None else Batch({"label": label})
        x = transport(self.velocity(self._labels(batch, batch.rows)), z, 0.0, self.path.end)
        return Delta(self._values(x), len(self.shape))

    @torch.no_grad()
    def generate(
        self,
        given: Batch,
        to: str,
        n: int = 1,
        generator: torch.Generator | None = None,
        guidance: float = 1.0,
        sampler: object = "heun",
        steps: int = 25,
    ) -> Tensor:
        """``n`` draws of x for each item, of its label where it has one.

        Args:
            given: ``label`` (b,), or none for unconditional draws.
            to: the modality of x.
            n: draws per item.
            generator: makes the draws reproducible.
            guidance: classifier-free guidance scale; 1 disables it, 0 ignores the label.
            sampler: "euler", "heun", or a flow-matching scheduler of diffusers, see `solve_with`.
            steps: steps from noise to data; the network is evaluated once for each, with Heun's method twice.

        Returns:
            (b * n, *shape), grouped by item; pictures in [0, 1], of the levels of the model.

        Raises:
            UserError: guidance without a label, an unknown sampler, or a number out of range.
        """
        check_generate(to, n, [self.modality])
        check_at_least("steps", steps, 1)
        AtLeast(0).check("guidance", guidance)
        if guidance != 1 and not (self.classes and given.having("label").any()):
            got, fix = f"{guidance:g} without a label", "give a label, or leave it out"
            raise UserError("guidance", got=got, expected="a label to follow", fix=fix)
        label = self._labels(given, given.rows)
        velocity = self.velocity(None if label is None else label.repeat_interleave(n), guidance)
        x = rsample(self.noise(), (given.size * n,), generator).unflatten(1, self.shape)  # (b n, *shape)
        if isinstance(sampler, str):
            check_one_of("sampler", sampler, SOLVERS)
            times = torch.linspace(0, self.path.end, steps + 1, dtype=x.dtype, device=x.device)
            return self._values(solve(velocity, x, times, sampler))
        return self._values(solve_with(sampler, velocity, x, steps))

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, samples: int = 1, tolerance: float = 1e-5) -> Tensor:
        """log p(x | label) by the change of variables along the flow: for vectors itself, for pictures a bound on log P(i).

        ``log p_1(x) = log p_0(x_0) - int_0^1 div v dt``, from data to noise by an adaptive solver. With u uniform,
        ``log P(i) >= E_u[log p(y)] - D log levels``. Up to D = `EXACT` dimensions the divergence is exact, and K samples of u
        tighten the bound, ``log 1/K sum_k p(y_k)``. Above, it is estimated without bias by a random sign for each dimension,
        and the terms of K samples are averaged, as the mean of exp of an estimate would be no bound.

        Args:
            batch: items with x, and their labels.
            samples: K.
            tolerance: absolute and relative tolerance of the solver.

        Returns:
            (b,) in nats; 0 for items that lack x.
        """
        check_at_least("samples", samples, 1)
        x, observed = self._observed(batch)
        velocity, exact = self.velocity(self._labels(batch, observed)), x[0].numel() <= EXACT
        pixels = self.kind == "image"
        terms = []
        for _ in range(samples if pixels or not exact else 1):
            data = self._scaled(self._rounded(x), torch.rand_like(x))
            probe = None if exact else torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2 - 1
            z, volume = transport_with_volume(velocity, data, self.path.end, 0.0, probe, tolerance)
            terms.append(self.noise().log_prob(z.flatten(1)) + volume)  # (b',) log p of x_1
        found = torch.stack(terms)  # (K, b')
        found = found.logsumexp(0) - math.log(len(terms)) if exact else found.mean(0)
        if pixels:  # a bin is 2 / levels wide
            found = found + x[0].numel() * math.log(2 / self.levels)
        return placed(found, observed)

    def _predict(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        grid = x if self.kind == "image" else x[:, :, None, None]
        return self.network(grid, t, label).reshape(x.shape)

    def _times(self, x: Tensor) -> Tensor:
        """Times of training from 0 to 1, (b,)."""
        if self.times == "uniform":
            return torch.rand(len(x), dtype=x.dtype, device=x.device)
        return torch.randn(len(x), dtype=x.dtype, device=x.device).sigmoid()

    def _labels(self, batch: Batch, rows: Tensor) -> Tensor | None:
        """The class of each item of ``rows``, the number of classes for none; None for a model without classes."""
        return labels_of(batch, self.classes)[rows] if self.classes else None

    def _scaled(self, x: Tensor, offset: Tensor | float) -> Tensor:
        """Pictures in [0, 1] to [-1, 1], each level a bin, at ``offset`` from 0 to 1 in it; vectors as they are."""
        return x if self.kind == "vector" else (x * (self.levels - 1) + offset) * (2 / self.levels) - 1

    def _rounded(self, x: Tensor) -> Tensor:
        return x if self.kind == "vector" else (x * (self.levels - 1)).round() / (self.levels - 1)

    def _values(self, data: Tensor) -> Tensor:
        """The inverse of `_scaled`, whatever the offset."""
        if self.kind == "vector":
            return data
        return ((data + 1) * (self.levels / 2)).floor().clamp(0, self.levels - 1) / (self.levels - 1)

    def _observed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """x of the items that have it, (b', *shape), and their mask (b,)."""
        observed = batch.observed(self.modality)
        x = batch[self.modality][observed]
        if self.kind == "image":
            check_pixels(self.modality, x, self.shape)
        else:
            check_values(self.modality, x, self.kind, self.shape)
        return x, observed


def make_network(name: str, shape: Sequence[int], classes: int, settings: dict[str, Any]) -> nn.Module:
    """The network of a name: (x (b, c, h, w), t (b,), label (b,) or None) -> a tensor like x.

    Args:
        name: "transformer" or "unet".
        shape: (c, h, w).
        classes: number of classes; 0: without.
        settings: other arguments of the network.

    Raises:
        UserError: an unknown name or setting, or values that do not fit.
    """
    make = NETWORKS[check_one_of("network", name, NETWORKS)]
    known = inspect.signature(make).parameters
    for key in settings if "settings" not in known else ():  # UNet checks its own
        check_one_of(f"setting of {name}", key, [*known][2:])
    return make(tuple(shape), classes, **settings)
