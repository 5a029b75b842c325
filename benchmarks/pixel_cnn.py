"""Sampling of PixelCNN from stored maps, against one pass of the whole network a pixel.

python -m benchmarks.pixel_cnn --json F --csv benchmarks/results/pixel_cnn.csv
Gated, width 32, depth 6, pictures of 1 x 32 x 32 pixels and 16 levels, float32, one thread, processor time. The benchmark
fails unless the pictures drawn with and without stored maps are equal.
"""

import time

import torch
from torch import Tensor

from benchmarks.interleave import race, ratio, report
from mmgen.data.batch import Batch
from mmgen.modalities.layers.autoregressive import choose
from mmgen.models.pixel_cnn import PixelCNN

SIDE, LEVELS, ROUNDS = 32, 16, 3


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def naive(model: PixelCNN) -> Tensor:
    """A picture of levels (1, 1, h, w), by one pass of the network a pixel."""
    x, label, draws = torch.zeros(1, *model.shape, dtype=torch.long), torch.zeros(1, dtype=torch.long), generator()
    for place in range(SIDE * SIDE):
        row, column = divmod(place, SIDE)
        features = model.features(x, label)[..., row, column]  # (1, width)
        x[:, 0, row, column] = choose(model.head.logits(features, x[:, :0, row, column]), 1.0, None, None, draws)
    return x


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = PixelCNN((1, SIDE, SIDE), LEVELS, "gated", width=32, depth=6).eval()
    drawn: dict[str, Tensor] = {}
    contenders = {
        "naive": lambda: drawn.update(naive=naive(model)),
        "cached": lambda: drawn.update(cached=model.generate(Batch.nothing(1), generator=generator())),
    }
    seconds = race(contenders, ROUNDS, warm=False, clock=time.process_time)
    if not torch.equal((drawn["cached"] * (LEVELS - 1)).round().long(), drawn["naive"]):
        raise SystemExit("pixel_cnn: with and without stored maps the pictures differ")
    report("pixel_cnn", {"ratio_pixel_cached": ratio(seconds, "naive", "cached")}, seconds)
