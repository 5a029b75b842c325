"""A joint code of vision and touch, self-supervised by the effects of a robot's actions: flow, contact, motion, pairing."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent

from mmgen.data.batch import Batch, masked_mean
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.latents.divergences import kl
from mmgen.latents.fusion import known, product_of_experts, stack_experts
from mmgen.latents.spaces import GaussianHead, StandardPrior, diagonal_normal, rsample
from mmgen.modalities.flow import Flow, FlowDecoder
from mmgen.modalities.image import ImageDecoder, PyramidEncoder
from mmgen.modalities.kinds import check_values
from mmgen.modalities.touch import SLOPE, ForceEncoder, StateEncoder
from mmgen.models.base import REST, Losses, Model
from mmgen.ranges import AtLeast, Share, checked

VISION, TOUCH = ("image", "depth"), ("force", "proprioception")
SENSES = (*VISION, *TOUCH)
NEGATIVES = ("far", "near")  # touch at another place, and touch or force at another time of the same episode
FINEST = 32  # side of the finest flow, in its own pixels
COARSE = 16  # side of the relief
WEIGHTS = {"flow": 10.0, "mask": 1.0, "contact": 1.0, "displacement": 1.0, "relief": 1e-2, "pairing": 3.0, "kl": 1e-4}


class Prediction(NamedTuple):
    """Predicted effects of an action, and the pairing of vision and touch; None without such a head.

    Args:
        contact: p(contact during the next step).
        displacement: p(standardised change of the pose), (b, 4), unit variance.
        flow: optical flow at each scale, in pixels of the input picture; ``flow.finest`` (b, 2, h, w).
        pairing: p(all senses are of the same time).
    """

    contact: Bernoulli
    displacement: Independent
    flow: Flow | None
    pairing: Bernoulli | None


class VisionTouch(Model):
    """q(z | senses), trained to predict the next time step from z and the action a.

    ``q(z | x) ∝ p(z) prod_i q(z | x_i)`` over the senses present, p(z) = N(0, 1), and h = f(z, a). The loss is the weighted
    sum of

    - ``flow``: ``|flow - flow_hat|``, the end-point error in pixels, averaged over pixels and scales of the decoder,
    - ``mask``: the binary cross-entropy of the mask of non-zero flow,
    - ``contact``: ``-log Bernoulli(c | h)``, contact in the next step,
    - ``displacement``: ``-log N(d | g(h), 1)``, d the change of the pose,
    - ``relief``: ``-log N(r | u(z), 1 cm)``, r the depth minus its mean at 16 x 16 pixels, without which z need not encode
      the position of things that the hand does not touch,
    - ``pairing``: ``-1/2 log p(paired | z) - 1/2 log(1 - p(paired | z'))``, z' of the same vision and other touch; without
      vision, only inconsistent senses of touch reveal a wrong pair,
    - ``kl``: ``KL(q || p)``.

    A batch holds senses: ``image`` (b, 3, s, s) in 0 to 1, ``depth`` (b, 1, s, s) in metres and 0 where unknown, ``force``
    (b, 6, r) and ``proprioception`` (b, 8) and the ``action`` (b, 4), standardised; and targets: ``flow`` (b, 2, s, s)
    in pixels, ``contact`` (b,), ``displacement`` (b, 4), and other touch as ``far_force``, ``far_proprioception`` at another
    place and ``near_...``, both or the force alone, at another time of the same episode. Any may be missing; a term is
    averaged over the items with its inputs.

    Args:
        senses: inputs among image, depth, force and proprioception; others in a batch are ignored.
        size: s, a power of two from 4 to 128.
        latent_dim: size k of z.
        variational: fuse by the product of experts; otherwise q is a point, a perceptron of the concatenated features.
        drop: probability of dropping each sense of each item in training, so that any may be missing later.
        readings: readings r of the force sensor per step, a power of two.
        weights: weights of the terms, in place of those of `WEIGHTS`.

    Raises:
        UserError: an unknown sense or term, a size out of range; in use, values that are not finite or of another shape, a
            prediction without an action.

    Source: Lee et al. 2019, Making Sense of Vision and Touch, arXiv 1810.10191, and its code. Differences: near negatives
        (there only far ones, recognisable by their place), pairs classified by a perceptron instead of a linear layer,
        displacement instead of the next pose, relief, bounded scales (`GaussianHead`), dropout of senses, and a KL weight of
        1e-4: 0.05 times a sum over dimensions makes the posterior collapse.

    >>> model = VisionTouch(["force", "proprioception"], latent_dim=5)
    >>> batch = Batch({"force": torch.zeros(2, 6, 32), "action": torch.zeros(2, 4)})
    >>> model.predict(batch).contact.probs.shape, model.encode(batch).event_shape
    (torch.Size([2]), torch.Size([5]))
    """

    name = "vision_touch"

    @checked
    def __init__(
        self,
        senses: Sequence[str] = SENSES,
        size: Annotated[int, AtLeast(1)] = 64,
        latent_dim: Annotated[int, AtLeast(1)] = 128,
        variational: bool = True,
        drop: Annotated[float, Share()] = 0.1,
        readings: Annotated[int, AtLeast(1)] = 32,
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        for sense in senses:
            check_one_of("senses", sense, SENSES)
        self.senses = tuple(sense for sense in SENSES if sense in senses)
        if not self.senses:
            raise UserError("senses", got="none", expected=f"one or more of {', '.join(SENSES)}", fix="leave it out for all")
        for term, weight in (weights or {}).items():
            check_at_least(f"weights.{check_one_of('weights', term, WEIGHTS)}", weight, 0)
        self.drop, self.variational, self.weights = drop, variational, {**WEIGHTS, **(weights or {})}
        self.shapes = {
            "image": (3, size, size), "depth": (1, size, size), "force": (6, readings), "proprioception": (8,),
            "action": (4,), "flow": (2, size, size), "contact": (), "displacement": (4,),
        }  # fmt: skip
        k = latent_dim
        of_sense = {
            "image": lambda: PyramidEncoder(3, size, last=k),
            "depth": lambda: PyramidEncoder(1, size, (32, 64, 64, 64, 128), (3, 3, 4, 3, 3, 3), last=k),
            "force": lambda: ForceEncoder(2 * k, readings),
            "proprioception": lambda: StateEncoder([8, 32, 64, 128, 2 * k]),
        }
        encoders: dict[str, Any] = {sense: of_sense[sense]() for sense in self.senses}
        self.encoders = nn.ModuleDict(encoders)
        dims = {sense: encoder.dim for sense, encoder in encoders.items()}
        if variational:
            self.heads = nn.ModuleDict({sense: GaussianHead(dim, k) for sense, dim in dims.items()})
            self.prior = StandardPrior(k)
        else:
            wide = sum(dims.values()) + len(dims)
            self.fuse = nn.Sequential(nn.Linear(wide, 128), nn.LeakyReLU(SLOPE), nn.Linear(128, k))
        self.of_action = StateEncoder([4, 32, 32])
        self.given_action = StateEncoder([32 + k, 128, k])
        self.contact = nn.Linear(k, 1)
        self.displacement = nn.Sequential(StateEncoder([k, 128, 64, 32]), nn.Linear(32, 4))
        if "image" in self.senses:
            map_dims = encoders["image"].map_dims
            self.scales = [i for i in range(len(map_dims)) if size >> (i + 1) <= FINEST][::-1]
            self.flow = FlowDecoder(k, [map_dims[i] for i in self.scales])
        if "depth" in self.senses:
            self.relief = ImageDecoder(k, (1, min(COARSE, size), min(COARSE, size)), "normal", scale=0.01)  # m
        if self._feels:
            self.pairing = nn.Sequential(StateEncoder([k, 128]), nn.Linear(128, 1))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The senses and the action."""
        return (*self.senses, "action")

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with the inputs of each term, before senses are dropped; for the pairing, of the true pairs."""
        flow = batch.having("action", "flow", "image")
        views = [s for s in self.senses if s in VISION]
        felt = batch.having_any(*(s for s in self.senses if s in TOUCH))
        return {
            REST: batch.rows,
            "contact": batch.having("action", "contact"),
            "displacement": batch.having("action", "displacement"),
            "flow": flow,
            "mask": flow,
            "relief": batch.having("depth"),
            "pairing": felt & batch.having_any(*views) if views else felt,
        }

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The weighted terms listed in the class, for the heads of this model."""
        features, present = self._read(batch)
        if self.training and self.drop:
            present = {s: there & (torch.rand(there.shape, device=there.device) >= self.drop) for s, there in present.items()}
        q = self._fused(features, present)
        z = rsample(q)  # (b, k)
        h, acts = self._given_action(batch, z)
        terms = {}
        for name in ("contact", "displacement"):
            target = self._target(batch, name)
            terms[name] = masked_mean(-self._after(h, name).log_prob(target), acts & batch.having(name))
        if "image" in self.senses:
            rows = acts & batch.having("flow") & present["image"]
            flow = self._flow(h, features["image"], present["image"])
            terms["flow"], terms["mask"] = _flow_losses(flow, self._target(batch, "flow"), rows)
        if "depth" in self.senses:
            rows = batch.having("depth") & torch.stack([present[s] for s in self.senses if s in VISION]).any(0)
            true = relief(_near(self._target(batch, "depth")))  # (b, 1, h, w)
            terms["relief"] = masked_mean(-self.relief(z).log_prob(true), rows)
        if self._feels:
            terms["pairing"] = self._pairing_loss(batch, features, present, z)
        if self.variational:
            terms["kl"] = kl(q, self.prior()).mean()
        return Losses({name: self.weights[name] * term for name, term in terms.items()})

    def encode(self, batch: Batch) -> Independent:
        """q(z | senses present), batch shape (b,), event (k,); the prior without any; a point has scale 0."""
        return self._fused(*self._read(batch))

    def decode(self, z: Tensor, to: str, action: Tensor | None = None) -> Bernoulli | Independent:
        """p(contact | z, action), p(displacement | z, action), p(pairing | z) or p(relief | z), z (b, k), action (b, 4).

        Raises:
            UserError: ``to`` is none of these, or the action is missing. Flow needs the picture too: see `predict`.
        """
        more = {"pairing": self._feels, "relief": "depth" in self.senses}
        check_one_of("to", to, ["contact", "displacement", *(name for name, there in more.items() if there)])
        if to == "relief":
            return self.relief(z)
        if to == "pairing":
            return _bernoulli(self.pairing(z))
        if action is None:
            raise UserError("action", got="none", expected="(b, 4) numbers", fix="give the action to predict")
        return self._after(self.given_action(torch.cat([self.of_action(action), z], 1)), to)

    def predict(self, batch: Batch) -> Prediction:
        """Predict the effects of ``batch["action"]``, and the pairing, from the mean of q(z | senses).

        Raises:
            UserError: the batch has no action.
        """
        if not batch.having("action").all():
            raise UserError("action", got="none", expected="one for every item", fix="give the action to predict")
        features, present = self._read(batch)
        z = self._fused(features, present).mean  # (b, k)
        h, _ = self._given_action(batch, z)
        flow = self._flow(h, features["image"], present["image"]) if "image" in self.senses else None
        pairing = _bernoulli(self.pairing(z)) if self._feels else None
        return Prediction(_bernoulli(self.contact(h)), _moved(self.displacement(h)), flow, pairing)

    @property
    def _feels(self) -> bool:
        return any(s in TOUCH for s in self.senses)

    def _read(self, batch: Batch, other: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Features of each sense, maps for an image, and presence masks; ``other`` prefixes the names of touch."""
        senses = [sense for sense in self.senses if sense in TOUCH] if other else self.senses
        names = {sense: f"{other}_{sense}" if other else sense for sense in senses}
        features, present = {}, {}
        for sense, name in names.items():
            x, there = self._target(batch, name, sense), batch.having(name)
            x = _near(x) if sense == "depth" else x
            encoder: Any = self.encoders[sense]
            features[sense] = encoder.maps(x) if sense == "image" else encoder(x)
            present[sense] = there
        return features, present

    def _target(self, batch: Batch, name: str, like: str = "") -> Tensor:
        """The values of ``name`` (b, ...), 0 where missing."""
        shape = self.shapes[like or name]
        if name not in batch:
            return next(self.parameters()).new_zeros(batch.size, *shape)
        x = batch[name]
        x = torch.where(batch.present[name].reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        check_values(name, x, "vector", shape)
        return x

    def _fused(self, features: dict[str, Any], present: dict[str, Tensor]) -> Independent:
        flat = {sense: x[-1].flatten(1) if isinstance(x, list) else x for sense, x in features.items()}
        there = torch.stack([present[sense] for sense in flat])  # (m, b)
        if self.variational:
            experts = stack_experts([self.heads[sense](x) for sense, x in flat.items()])
            return product_of_experts(experts, there)
        z = _wide(self.fuse(known(list(flat.values()), there)))  # (b, k)
        return diagonal_normal(z, torch.zeros_like(z))

    def _given_action(self, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor]:
        """h (b, k), and the presence mask of the action."""
        of_action = self.of_action(self._target(batch, "action"))  # (b, 32)
        return self.given_action(torch.cat([of_action, z.to(of_action.dtype)], 1)), batch.having("action")

    def _after(self, h: Tensor, name: str) -> Bernoulli | Independent:
        return _bernoulli(self.contact(h)) if name == "contact" else _moved(self.displacement(h))

    def _flow(self, h: Tensor, maps: list[Tensor], there: Tensor) -> Flow:
        """Flow from h and the picture's maps, 0 where it is missing."""
        return self.flow(h, [torch.where(there[:, None, None, None], maps[i], 0.0) for i in self.scales])

    def _pairing_loss(self, batch: Batch, features: dict, present: dict[str, Tensor], z: Tensor) -> Tensor:
        """Half the cross-entropy of pairs and half that of wrong pairs, equal for each kind of them."""
        views = [present[s] for s in features if s in VISION]
        seen = torch.stack(views).any(0) if views else torch.ones_like(z[:, 0], dtype=torch.bool)  # (b,)
        felt = torch.stack([present[s] for s in features if s in TOUCH]).any(0)
        together = masked_mean(-self.decode(z, "pairing").log_prob(torch.ones_like(z[:, 0])), seen & felt)
        apart = []
        for other in NEGATIVES:
            touch, there = self._read(batch, other)
            if not torch.stack(list(there.values())).any():
                continue
            there = {s: t & present[s] for s, t in there.items()}  # dropped senses stay dropped
            q = self._fused(features | touch, present | there)
            p = self.decode(rsample(q), "pairing")
            # if only the force was swapped and it is dropped, the rest is a true pair
            swapped = {s: (self._target(batch, f"{other}_{s}", s) != self._target(batch, s)).flatten(1).any(1) for s in there}
            differs = torch.stack([t & swapped[s] for s, t in there.items()]).any(0)  # (b,)
            apart.append(masked_mean(-p.log_prob(torch.zeros_like(z[:, 0])), seen & differs))
        return together / 2 + sum(apart) / max(1, len(apart)) / 2


def relief(depth: Tensor) -> Tensor:
    """Depth (b, 1, s, s) at most `COARSE` pixels a side, minus its mean over the picture.

    >>> [round(x, 2) for x in relief(torch.tensor([[[[0.2, 0.2], [0.4, 0.4]]]]))[0, 0, :, 0].tolist()]
    [-0.1, 0.1]
    """
    coarse = nn.functional.adaptive_avg_pool2d(depth, min(COARSE, depth.shape[-1]))
    return coarse - coarse.mean((2, 3), keepdim=True)


def end_point_error(flow: Tensor, true: Tensor) -> Tensor:
    """``|flow - true|``, the length of the difference at each pixel: (b, 2, h, w) each -> (b, h, w).

    >>> end_point_error(torch.zeros(1, 2, 1, 1), torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).item()
    5.0
    """
    return (flow - true).square().sum(1).clamp(min=1e-12).sqrt()  # the root has no gradient at 0


def _bernoulli(logits: Tensor) -> Bernoulli:
    """The distribution of logits (b, 1), batch shape (b,)."""
    return Bernoulli(logits=_wide(logits).squeeze(-1), validate_args=False)


def _moved(mean: Tensor) -> Independent:
    """The distribution of displacements around a mean (b, 4)."""
    return diagonal_normal(_wide(mean), torch.ones_like(_wide(mean)))


def _flow_losses(flow: Flow, true: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """End-point error over pixels and scales, and cross-entropy of the mask, averaged over ``rows``."""
    moved = (true != 0).any(1, keepdim=True).to(true.dtype)  # (b, 1, s, s)
    scales = [*flow.scales[:-1], flow.finest]
    errors = [end_point_error(f, nn.functional.adaptive_avg_pool2d(true, f.shape[-1])).mean((1, 2)) for f in scales]  # (b,)
    share = nn.functional.adaptive_avg_pool2d(moved, flow.mask_logits.shape[-1])  # (b, 1, s', s')
    mask = nn.functional.binary_cross_entropy_with_logits(_wide(flow.mask_logits), share, reduction="none").mean((1, 2, 3))
    return masked_mean(torch.stack(errors).mean(0), rows), masked_mean(mask, rows)


def _near(depth: Tensor) -> Tensor:
    """Depth, with 0 beyond the range of the task, 2 m."""
    return torch.where((depth > 1e-7) & (depth < 2), depth, 0.0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))  # half precision is too coarse for log-probabilities
