"""Multimodal VAEs against multivae 1.0.3 (the extra ``bench``), both on the very same networks, weights and data.

python -m benchmarks.multimodal_vae --json F

A step is the forward and the backward pass of MVAE's loss of 64 items, without the optimiser, which would be the same: the
bounds of all modalities, of each alone and, of three modalities or more, of one subset drawn at random. A likelihood is the
importance-weighted bound on log p of all modalities, of 2 items with 1000 draws each. All modalities are pictures of one
shape: with three of them a step's time then does not depend on which subset, a pair, is drawn. The losses and the bounds are
shown to agree before anything is timed.

``ratio_train_step_M`` of M modalities, ``ratio_train_step`` (M = 3) and ``ratio_joint_likelihood`` are multivae's time over
ours, ``growth`` and ``growth_multivae`` the time of a step of 5 modalities over that of 2; above 1 of the ratios we are
faster. ``ratio_memory`` is our peak of allocated memory in a step of three modalities over multivae's; below 1 ours is less.
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
    """The network of our decoder, which gives logits, as multivae calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.latent_dim = network, LATENT

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.network(z))


def make(modalities: int, subsets: int) -> tuple[MultimodalVAE, MVAE]:
    """Our model and multivae's on its networks, with as many random subsets."""
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
    """The same black and white pictures, multivae takes no grey, for both."""
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.rand(items, *SHAPE, generator=generator).round() for name in "abcde"[:modalities]}
    return Batch(values), MultimodalBaseDataset(values)


def losses(modalities: int, subsets: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Our loss of a batch, and multivae's."""
    ours, theirs = make(modalities, subsets)
    own, peer = data(modalities, BATCH)
    return lambda: ours.losses(own).total, lambda: theirs(peer).loss


def seeded(value: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(0)
    return value().detach()


def step(loss: Callable[[], Tensor]) -> None:
    """Forward and backward; the gradients are added up, which costs both the same."""
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
