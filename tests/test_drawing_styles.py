"""Variations of the style of a drawing."""

import torch

from mmgen.data.drawing_styles import restyled


def drawing() -> torch.Tensor:
    """A red square with a dark outline of two pixels on white, (1, 3, 32, 32)."""
    picture = torch.ones(1, 3, 32, 32)
    picture[:, :, 8:24, 8:24] = 0.0
    picture[:, 0, 10:22, 10:22] = 1.0
    return picture


def test_the_same_seed_gives_the_same_pictures_and_another_one_others():
    pictures = drawing().expand(4, -1, -1, -1)
    one, again, other = (restyled(pictures, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.shape == pictures.shape and one.min() >= 0 and one.max() <= 1
    assert len({tuple(picture.flatten().tolist()) for picture in one}) == 4  # each picture has its own style


def test_the_width_of_lines_varies_and_what_is_drawn_stays():
    many = restyled(drawing().expand(64, -1, -1, -1), torch.Generator().manual_seed(0))
    dark = (many.amax(1) < 0.35).float().mean((1, 2))  # share of a picture that is outline
    assert dark.min() < 0.01 and dark.max() > 2 * (drawing().amax(1) < 0.35).float().mean()
    red = (many[:, 0] - many[:, 1]).amax((1, 2))
    assert (red > 0.3).all()
