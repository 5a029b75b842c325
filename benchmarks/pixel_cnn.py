"""Sampling of PixelCNN from stored maps, against one pass of the whole network a pixel.

python -m benchmarks.pixel_cnn --json F --csv benchmarks/results/pixel_cnn.csv
Gated, width 32, depth 6, pictures of 1 x 32 x 32 pixels and 16 levels, float32, one thread, processor time. The naive sampler
draws the first two rows, and its time is multiplied by 16, since all pixels cost the same. The benchmark fails unless the rows
drawn with and without stored maps are equal.
"""

import time
from functools import partial

import torch
from torch import Tensor

from benchmarks.interleave import race, ratio, report
from mmgen.data.batch import Batch
from mmgen.modalities.layers.autoregressive import choose
from mmgen.models.pixel_cnn import PixelCNN

SIDE, LEVELS, ROWS, PICTURES, ROUNDS = 32, 16, 2, 4, 3

Drawn = dict[tuple[str, int], Tensor]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def naive(model: PixelCNN, n: int, drawn: Drawn) -> None:
    """The first rows of ``n`` pictures, by one pass of the network a pixel."""
    x, label, draws = torch.zeros(n, *model.shape, dtype=torch.long), torch.zeros(n, dtype=torch.long), generator()
    for place in range(ROWS * SIDE):
        row, column = divmod(place, SIDE)
        features = model.features(x, label)[..., row, column]  # (n, width)
        x[:, 0, row, column] = choose(model.head.logits(features, x[:, :0, row, column]), 1.0, None, None, draws)
    drawn["naive", n] = x[:, :, :ROWS]


def cached(model: PixelCNN, n: int, drawn: Drawn) -> None:
    """``n`` whole pictures, from stored maps."""
    pictures = model.generate(Batch.nothing(n), generator=generator())
    drawn["cached", n] = (pictures[:, :, :ROWS] * (LEVELS - 1)).round().long()


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, drawn = PixelCNN((1, SIDE, SIDE), LEVELS, "gated", width=32, depth=6).eval(), Drawn()
    contenders = {f"{run.__name__}, {n}": partial(run, model, n, drawn) for n in (1, PICTURES) for run in (naive, cached)}
    seconds = race(contenders, ROUNDS, clock=time.process_time)
    for n in (1, PICTURES):
        if not torch.equal(drawn["naive", n], drawn["cached", n]):
            raise SystemExit("pixel_cnn: with and without stored maps the pictures differ")
        seconds[f"naive, {n}"] = [t * SIDE / ROWS for t in seconds[f"naive, {n}"]]
    figures = {
        "ratio_pixel_cached": ratio(seconds, f"naive, {PICTURES}", f"cached, {PICTURES}"),
        "ratio_pixel_cached_batch_1": ratio(seconds, "naive, 1", "cached, 1"),
    }
    report("pixel_cnn", figures, seconds)
