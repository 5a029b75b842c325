"""Multimodal VAEs against multivae 1.0.3 (the extra ``bench``), with the same networks, weights and data.

python -m benchmarks.multimodal_vae --json F

A step is the forward and backward pass of MVAE's loss on 64 items, without the optimiser: the bounds of all modalities, of
each alone and, with three or more modalities, of one random subset. A likelihood is the importance-weighted bound on log p of
all modalities, for 2 items with 1000 draws each. All modalities are pictures of one shape, so that with three of them the
time of a step does not depend on the subset drawn, a pair. Losses and bounds are checked to agree before timing.

``ratio_train_step_M`` for M modalities, ``ratio_train_step`` (M = 3) and ``ratio_joint_likelihood`` are multivae's time over
ours; above 1, we are faster. ``growth`` and ``growth_multivae`` are the time of a step with 5 modalities over that with 2.
``ratio_memory`` is our peak of allocated memory in a step with three modalities over multivae's; below 1, ours is lower.
"""

from collections.abc import Callable
from functools import partial

import torch
from multivae.data.datasets.base import MultimodalBaseDataset
from multivae.models import MVAE, MVAEConfig
from multivae.models.nn.base_architectures import BaseDecoder
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor, nn

from benchmarks.interleave import peak_bytes, race, ratio, report
from benchmarks.multivae_mopoe import Encoder
from mmgen.data.batch import Batch
from mmgen.models.multimodal_vae import MultimodalVAE

BATCH, LATENT, SHAPE, ITEMS, SAMPLES = 64, 20, (3, 32, 32), 2, 1000
PICTURE = {"kind": "image", "shape": list(SHAPE), "encoder": {"width": 16, "dim": 128}, "decoder": {"width": 16}}


class Decoder(BaseDecoder):
    """Our decoder's network, which returns logits, with multivae's interface."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.latent_dim = network, LATENT

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.network(z))


def make(modalities: int, subsets: int) -> tuple[MultimodalVAE, MVAE]:
    """Make our model, and multivae's with the same networks and number of random subsets."""
    torch.manual_seed(0)
    names = "abcde"[:modalities]
    ours = MultimodalVAE(dict.fromkeys(names, PICTURE), LATENT, "mvae", random_subsets=subsets)
    config = MVAEConfig(
        n_modalities=modalities,
        latent_dim=LATENT,
        input_dims=dict.fromkeys(names, SHAPE),
        decoders_dist=dict.fromkeys(names, "bernoulli"),
        k=subsets,
        warmup=0,
    )
    encoders = {name: Encoder(ours.encoders[name], ours.heads[name], LATENT) for name in names}
    return ours, MVAE(config, encoders, {name: Decoder(ours.decoders[name].deconvolution) for name in names})


def data(modalities: int, items: int) -> tuple[Batch, MultimodalBaseDataset]:
    """Make the same data for both, black and white pictures, as multivae does not accept grey."""
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.rand(items, *SHAPE, generator=generator).round() for name in "abcde"[:modalities]}
    return Batch(values), MultimodalBaseDataset(values)


def losses(modalities: int, subsets: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Compute our loss of a batch and multivae's."""
    ours, theirs = make(modalities, subsets)
    own, peer = data(modalities, BATCH)
    return lambda: ours.losses(own).total, lambda: theirs(peer).loss


def seeded(value: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(0)
    return value().detach()


def step(loss: Callable[[], Tensor]) -> None:
    """Run forward and backward passes; gradients accumulate, at the same cost for both."""
    loss().backward()


if __name__ == "__main__":
    torch.testing.assert_close(*map(seeded, losses(3, subsets=0)), rtol=1e-5, atol=0)  # the same noise
    torch.testing.assert_close(*map(seeded, losses(3, subsets=1)), rtol=0.01, atol=0)  # another pair, and other noise
    ours, theirs = make(3, subsets=0)
    own, peer = data(3, ITEMS)
    likelihoods = lambda: ours.log_likelihood(own, SAMPLES).sum(), lambda: -theirs.compute_joint_nll(peer, SAMPLES)
    torch.testing.assert_close(*map(seeded, likelihoods), rtol=1e-3, atol=0)

    steps = {}
    for modalities in range(2, 6):
        pair = losses(modalities, subsets=int(modalities > 2))
        steps |= {f"{name} step of {modalities}": partial(step, loss) for name, loss in zip(("mmgen", "multivae"), pair)}
    seconds = race(steps) | race(dict(zip(("mmgen likelihood", "multivae likelihood"), likelihoods)))
    ratios = {m: ratio(seconds, f"multivae step of {m}", f"mmgen step of {m}") for m in range(2, 6)}
    figures = {
        "ratio_train_step": ratios[3],
        "ratio_joint_likelihood": ratio(seconds, "multivae likelihood", "mmgen likelihood"),
        "ratio_memory": peak_bytes(steps["mmgen step of 3"]) / peak_bytes(steps["multivae step of 3"]),
        "growth": ratio(seconds, "mmgen step of 5", "mmgen step of 2"),
        "growth_multivae": ratio(seconds, "multivae step of 5", "multivae step of 2"),
        **{f"ratio_train_step_{m}": value for m, value in ratios.items()},
    }
    report("multimodal_vae", figures, seconds)
