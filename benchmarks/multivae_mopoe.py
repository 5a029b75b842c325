"""MoPoE of multivae 1.0.3 (the extra ``bench``) on the networks, data, steps and optimiser of the recipe multimodal_vae.

python -m benchmarks.multivae_mopoe --out runs/multivae     # then: mmgen evaluate runs/multivae

Loss and sampling of subsets are multivae's. As the networks are those of our `MultimodalVAE` with the standard prior, the
weights are saved as such a model, and one evaluation gives coherence and Fréchet distance of both. A text decoder needs the
text to score, which multivae does not pass to decoders: the decoder returns z, and the likelihood decodes it.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from mmgen.recipes.multimodal_vae.train import Config, build
from multivae.data.datasets.base import MultimodalBaseDataset
from multivae.models import MoPoE, MoPoEConfig
from multivae.models.nn.base_architectures import BaseDecoder, BaseEncoder
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor, nn

from mmgen.data.batch import Batch
from mmgen.models.base import Losses
from mmgen.models.multimodal_vae import MultimodalVAE
from mmgen.training.recipe import load_recipe, recipe_config, stage
from mmgen.training.run import Run
from mmgen.training.study import train


class Encoder(BaseEncoder):
    """Our encoder and head with multivae's interface."""

    def __init__(self, encoder: nn.Module, head: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder, self.head, self.latent_dim = encoder, head, latent_dim

    def forward(self, x: Tensor) -> ModelOutput:
        normal = self.head(self.encoder(x)).base_dist
        return ModelOutput(embedding=normal.loc, log_covariance=2 * normal.scale.log())


class Decoder(BaseDecoder):
    """Identity decoder that returns z, for the likelihood to decode."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=z)


class PeerTrained(MultimodalVAE):
    """Our networks with multivae's loss."""

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """Compute multivae's loss of complete items."""
        if not hasattr(self, "peer"):
            object.__setattr__(self, "peer", self._peer())  # not a submodule: its parameters are ours
        return Losses(loss=self.peer(MultimodalBaseDataset(dict(batch.values))).loss)

    def _peer(self) -> MoPoE:
        k = self.heads[self.inputs[0]].linear.out_features // 2
        dims = {name: tuple(values["shape"]) for name, values in self.modalities.items()}
        encoders = {name: Encoder(self.encoders[name], self.heads[name], k) for name in dims}
        config = MoPoEConfig(n_modalities=len(dims), latent_dim=k, input_dims=dims, beta=self.beta)
        peer = MoPoE(config, encoders, {name: Decoder(k) for name in dims})
        for name in dims:
            peer.recon_log_probs[name] = lambda z, x, decoder=self.decoders[name]: decoder(z).log_prob(x)[:, None]
        peer.rescale_factors = dict(self.weights)
        return peer.train()


def main() -> int:
    """Train the model and save it as a run folder of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    options, values = parser.parse_known_args()
    recipe = load_recipe("multimodal_vae")
    config = recipe_config(recipe, options.config, [*values, "model.objective=mopoe", "model.prior=standard"])
    train(replace(recipe, stages=[vae]), config, options.out, options.resume)
    return 0


@stage()
def vae(run: Run, config: Config) -> None:
    """Train our networks under multivae's loss."""
    model = build(config)
    model.__class__ = PeerTrained
    run.fit(model, config.data.items(model.processors, "train", config.data.limit), config.fit)


if __name__ == "__main__":
    sys.exit(main())
