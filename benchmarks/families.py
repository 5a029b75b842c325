"""Generative models: cached sampling of PixelCNN, Glow against normflows, a step of flow matching against that of diffusers.

python -m benchmarks.families --json F --csv benchmarks/results/families.csv
Float32, one thread, processor time, interleaved. Peers: pip install 'mmgen[bench,diffusion]'.

- ``ratio_pixel_cached``: 4 pictures drawn by one pass of the network a pixel, over the time from stored maps (gated, width 32,
  depth 6, 1 x 32 x 32 pixels, 16 levels); ``ratio_pixel_cached_1``: one picture. The naive sampler draws the first two rows,
  and its time is multiplied by 16. The benchmark fails unless both draw the same rows.
- ``ratio_glow_train``, ``_log_prob``, ``_sample_16``, ``_sample_1``: normflows' time over ours (3
  scales of 8 steps, width 64, 3 x 32 x 32). normflows' split priors are unconditional.
- ``ratio_flow_step``: our time over that of diffusers' training loop, of a step of one UNet2DModel.
"""

import copy
import math
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.interleave import race, ratio, report
from mmgen.data.batch import Batch
from mmgen.modalities.layers.autoregressive import choose
from mmgen.models.flow_matching import FlowMatching
from mmgen.models.glow import Glow
from mmgen.models.pixel_cnn import PixelCNN

SIDE, LEVELS, ROWS, PICTURES = 32, 16, 2, 4
SCALES, DEPTH, WIDTH, SHAPE, BATCH = 3, 8, 64, (3, 32, 32), 16
UNET = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
}

Runs = dict[str, Callable[[], object]]
Drawn = dict[tuple[str, int], Tensor]


@torch.no_grad()
def naive(model: PixelCNN, n: int, drawn: Drawn) -> None:
    """The first rows of ``n`` pictures, by one pass of the network a pixel."""
    x, label = torch.zeros(n, *model.shape, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    for place in range(ROWS * SIDE):
        row, column = divmod(place, SIDE)
        features = model.features(x, label)[..., row, column]  # (n, width)
        x[:, 0, row, column] = choose(model.head.logits(features, x[:, :0, row, column]), 1.0, None, None, generator)
    drawn["naive", n] = x[:, :, :ROWS]


def cached(model: PixelCNN, n: int, drawn: Drawn) -> None:
    """``n`` whole pictures, from stored maps."""
    pictures = model.generate(Batch.nothing(n), generator=torch.Generator().manual_seed(0))
    drawn["cached", n] = (pictures[:, :, :ROWS] * (LEVELS - 1)).round().long()


def glows() -> Runs:
    """Ours and normflows', of the same size."""
    import normflows as nf

    def ours() -> Glow:
        torch.manual_seed(0)
        model = Glow(SHAPE, scales=SCALES, depth=DEPTH, width=WIDTH).train()
        model.losses(Batch({"image": torch.rand(BATCH, *SHAPE)}))  # starts the actnorms
        return model

    torch.manual_seed(0)
    priors, merges, flows = [], [], []
    for i in range(SCALES):
        channels, side = SHAPE[0] * 2 ** (SCALES + 1 - i), SHAPE[1] // 2 ** (SCALES - i)
        blocks = [nf.flows.GlowBlock(channels, WIDTH, split_mode="channel", scale=True) for _ in range(DEPTH)]
        flows.append([*blocks, nf.flows.Squeeze()])
        merges += [nf.flows.Merge()] if i else []
        priors.append(nf.distributions.DiagGaussian((channels // 2 if i else channels, side, side)))
    peer = nf.MultiscaleFlow(priors, flows, merges, class_cond=False)
    x = torch.rand(BATCH, *SHAPE)
    peer.log_prob(x, None)  # starts the actnorms
    mine, trained, batch, volume = ours().eval(), ours(), Batch({"image": x}), math.prod(SHAPE) * math.log(256)
    adam = [torch.optim.AdamW(model.parameters(), 1e-5, fused=True) for model in (trained, peer)]

    def my_step() -> None:
        trained.losses(batch).total.backward()
        adam[0].step()
        adam[0].zero_grad()

    def peer_step() -> None:
        (volume - peer.log_prob(((x * 255).round() + torch.rand_like(x)) / 256, None).mean()).backward()
        adam[1].step()
        adam[1].zero_grad()

    return {
        "glow train": my_step,
        "normflows train": peer_step,
        "glow log_prob": torch.no_grad()(lambda: mine.log_density(x)),
        "normflows log_prob": torch.no_grad()(lambda: peer.log_prob(x, None)),
        "glow sample_16": lambda: mine.generate(Batch.nothing(16), "image"),
        "normflows sample_16": torch.no_grad()(lambda: peer.sample(16)),
        "glow sample_1": lambda: mine.generate(Batch.nothing(1), "image"),
        "normflows sample_1": torch.no_grad()(lambda: peer.sample(1)),
    }


def flow_steps() -> Runs:
    """A training step of one U-Net by `FlowMatching`, and as diffusers' scripts take it."""
    torch.manual_seed(0)
    model = FlowMatching(shape=list(SHAPE), network="unet", settings=UNET).train()
    unet = copy.deepcopy(model.network.unet)
    adam = [torch.optim.AdamW(network.parameters(), 1e-4) for network in (model, unet)]
    pictures = torch.randint(0, 256, (BATCH, *SHAPE)) / 255
    batch = Batch({"image": pictures})

    def my_step() -> None:
        model.losses(batch).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam[0].step()
        adam[0].zero_grad()

    def peer_step() -> None:  # train_unconditional.py with the target of its script for Stable Diffusion 3
        clean = pictures * 2 - 1
        noise, sigma = torch.randn(clean.shape), torch.rand(len(clean))
        weight = sigma[:, None, None, None]
        predicted = unet((1 - weight) * clean + weight * noise, 1000 * sigma).sample
        F.mse_loss(predicted, noise - clean).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        adam[1].step()
        adam[1].zero_grad()

    return {"flow step": my_step, "diffusers step": peer_step}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, drawn = PixelCNN((1, SIDE, SIDE), LEVELS, "gated", width=32, depth=6).eval(), Drawn()
    samplers = {f"{run.__name__} {n}": partial(run, model, n, drawn) for n in (1, PICTURES) for run in (naive, cached)}
    seconds = race(samplers, 3, clock=time.process_time) | race(glows() | flow_steps(), clock=time.process_time)
    for n in (1, PICTURES):
        if not torch.equal(drawn["naive", n], drawn["cached", n]):
            raise SystemExit("families: with and without stored maps the pictures differ")
        seconds[f"naive {n}"] = [t * SIDE / ROWS for t in seconds[f"naive {n}"]]
    figures = {
        "ratio_pixel_cached": ratio(seconds, f"naive {PICTURES}", f"cached {PICTURES}"),
        "ratio_pixel_cached_1": ratio(seconds, "naive 1", "cached 1"),
        **{
            f"ratio_glow_{name}": ratio(seconds, f"normflows {name}", f"glow {name}")
            for name in ("train", "log_prob", "sample_16", "sample_1")
        },
        "ratio_flow_step": ratio(seconds, "flow step", "diffusers step"),
    }
    report("families", figures, seconds)
