"""PixelCNN: the exact likelihood of pictures, pixel by pixel in raster order, its network and its likelihood by name."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.data.batch import Batch, placed
from mmgen.data.image import upper_part
from mmgen.data.processors import Source
from mmgen.errors import UserError, check_one_of
from mmgen.modalities.image import levels_of
from mmgen.modalities.layers.autoregressive import check_guidance, check_sampling, choose
from mmgen.modalities.layers.levels import CategoricalHead, MixtureHead
from mmgen.modalities.layers.masked import NETWORKS, Place
from mmgen.models.base import REST, Losses, Model, check_generate, dropped, labels_of
from mmgen.ranges import AtLeast, Between, Share, checked


class PixelCNN(Model):
    """p(x) = prod_i p(x_i | x_1, ..., x_{i-1}, label) over the pixels of a picture in raster order, x_i one vector of levels.

    A network of masked convolutions sees the earlier pixels; in a pixel, each channel is given those before it. The
    likelihood is exact, and sampling takes one step a pixel. Items without a picture are ignored; an item without a label is
    modelled by p(x), which training also learns from labels dropped at random.

    Args:
        shape: (c, h, w) of a picture, values in [0, 1].
        levels: number L of values of a channel: a picture stands for the whole numbers round((L - 1) x).
        network: "pixelcnn" (masks, with a blind spot), "gated" (a vertical and a horizontal stack) or "plus_plus"
            (PixelCNN++), see `mmgen.modalities.layers.masked`.
        likelihood: "categorical" (a softmax over the levels) or "logistic_mixture" (neighbouring levels are alike).
        width: number of channels of the features.
        depth: number of blocks; the field grows by kernel // 2 with each, with "plus_plus" twice that.
        kernel: odd side of the blocks' windows.
        components: number of logistic distributions of the mixture.
        classes: number of classes of ``batch["label"]``, (b,) int64; 0: unconditional.
        condition_dropout: share of labels dropped in training, for `generate` with guidance.

    Raises:
        UserError: a setting out of range; in use, no item with a picture, a picture of another size, values that are not
            finite or outside [0, 1], or a label that is no class.

    Source: van den Oord et al. 2016, arXiv 1601.06759 and 1606.05328, and Salimans et al. 2017, PixelCNN++, arXiv 1701.05517.
        Differences: the order of the channels is modelled after the network, as in PixelCNN++, not by groups of its features;
        its input has a channel of ones, which tells the border from black.

    >>> model = PixelCNN((1, 4, 4), levels=2, width=8, depth=2)
    >>> batch = Batch({"image": torch.rand(3, 1, 4, 4)})
    >>> sorted(model.losses(batch)), model.log_likelihood(batch).shape
    (['nll'], torch.Size([3]))
    >>> model.generate(batch, "image", n=2, keep="upper").shape
    torch.Size([6, 1, 4, 4])
    """

    name = "pixel_cnn"
    from_prior = True

    @checked
    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        levels: Annotated[int, Between(2, 65536)] = 256,
        network: Literal["pixelcnn", "gated", "plus_plus"] = "gated",
        likelihood: Literal["categorical", "logistic_mixture"] = "categorical",
        width: Annotated[int, AtLeast(1)] = 64,
        depth: Annotated[int, AtLeast(1)] = 8,
        kernel: Annotated[int, AtLeast(3)] = 3,
        components: Annotated[int, AtLeast(1)] = 10,
        classes: Annotated[int, AtLeast(0)] = 0,
        condition_dropout: Annotated[float, Share(0.1)] = 0.1,
    ) -> None:
        super().__init__()
        check_one_of("likelihood", likelihood, ("categorical", "logistic_mixture"))
        if kernel % 2 == 0:
            raise UserError("kernel", got=kernel, expected="an odd number", fix=f"set kernel={kernel + 1}")
        self.shape, self.levels, self.classes, self.condition_dropout = tuple(shape), levels, classes, condition_dropout
        channels, condition = self.shape[0], width if classes else 0
        self.network = NETWORKS[check_one_of("network", network, NETWORKS)](channels + 1, width, depth, kernel, condition)
        if classes:
            self.label = nn.Embedding(classes + 1, width)  # the last for no label
        self.head: CategoricalHead | MixtureHead = (
            CategoricalHead(width, channels, levels)
            if likelihood == "categorical"
            else MixtureHead(width, channels, levels, components)
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of `generate`: a picture to complete, and a label."""
        return ("image", "label") if self.classes else ("image",)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items that have a picture."""
        return {REST: batch.having("image")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """-log p(x | label) in nats, over the items that have a picture."""
        there = self.usable(batch)[REST]
        if not there.any():
            return self.zero_losses("nll")
        batch = batch.items(there)
        labels = labels_of(batch, self.classes)  # (b',)
        if self.training and self.classes:
            labels = dropped(labels, self.classes, self.condition_dropout)
        return Losses(nll=-self._log_probs(self.quantise(batch["image"]), labels).sum((1, 2)).mean())

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """Exact log P(x | label), or log P(x) for an item without a label, of the picture's whole numbers.

        Returns:
            (b,) in nats; 0 for items that lack a picture.
        """
        return self.pixel_log_likelihood(batch).sum((1, 2))

    @torch.no_grad()
    def pixel_log_likelihood(self, batch: Batch) -> Tensor:
        """log p of each pixel given the earlier ones, (b, h, w) in nats; their sum is `log_likelihood`."""
        there = batch.observed("image")
        batch = batch.items(there)
        return placed(self._log_probs(self.quantise(batch["image"]), labels_of(batch, self.classes)), there)

    @torch.no_grad()
    def generate(
        self,
        given: Batch,
        to: str = "image",
        n: int = 1,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        guidance: float = 1.0,
        keep: str | Tensor = "",
    ) -> Tensor:
        """Pictures, of a label if given, and completions of given pictures, whose known pixels are returned bit for bit.

        Pixels are drawn in raster order from p(x_i | x_1, ..., x_{i-1}, label). So the known pixels of a picture are those
        before a certain one: a whole number of rows from above, and any part of the next row from its left.

        Args:
            given: ``label`` (b,), or none for unconditional pictures; ``image`` to complete: the upper rows alone,
                (b, c, h0, w) with h0 < h, or (b, c, h, w) with ``keep``.
            to: "image".
            n: pictures an item.
            generator: makes the draws reproducible.
            temperature: divides the logits of each channel; 0 takes the likeliest level.
            guidance: classifier-free guidance scale of the label; 1 disables it.
            keep: known pixels of whole pictures: "upper" for the upper half, or bool (h, w) or (b, h, w), True where known.

        Returns:
            (b n, c, h, w) in [0, 1], grouped by item.

        Raises:
            UserError: another ``to``, an option out of range, guidance without a label, or known pixels that do not precede
                all others.
        """
        check_generate(to, n, ["image"])
        check_sampling(temperature, None, None)
        check_guidance(guidance)
        if isinstance(keep, str) and keep:
            check_one_of("keep", keep, ["upper"])
        if guidance != 1.0 and not (self.classes and given.having("label").any()):
            expected = "a label to follow" if self.classes else "a model of labels"
            fix = "give a label, or set guidance=1" if self.classes else "train with classes=N, or set guidance=1"
            raise UserError("guidance", got=f"{guidance:g} without a label", expected=expected, fix=fix)
        pictures, known = self._known(given, keep)  # (b, c, h, w), (b, h, w)
        pictures, known = pictures.repeat_interleave(n, 0), known.repeat_interleave(n, 0)
        labels = labels_of(given, self.classes).repeat_interleave(n, 0)  # (b n,)
        levels = self._sample(self.quantise(pictures), known, labels, temperature, guidance, generator)
        return torch.where(known[:, None], pictures, levels.to(pictures.dtype) / (self.levels - 1))

    def upper_part(self, source: Source) -> Tensor:
        """The upper rows of a picture, to be completed: (c, h0, w).

        Raises:
            UserError: its width is not that of the model, or its height not smaller.
        """
        return upper_part(source, self.processors["image"], self.shape)

    def _sample(
        self,
        x: Tensor,
        known: Tensor,
        labels: Tensor,
        temperature: float,
        guidance: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw the levels x (b, c, h, w) of the pixels that are not known (b, h, w), pixel by pixel.

        A row's `PixelNetwork.rows` and a pixel's `PixelNetwork.pixels` are computed once, from stored maps.
        """
        c, h, w = self.shape
        copies = 1 if guidance == 1.0 else 2
        if copies == 2:  # the second half is without labels
            labels = torch.cat([labels, torch.full_like(labels, self.classes)])
        condition, maps = self._condition(labels), dict[nn.Module, Tensor]()
        seen = self._signal(x).repeat(copies, 1, 1, 1)  # (b', c + 1, h, w), filled in
        complete = known.all(0).tolist()  # (h, w)
        for row in range(h):
            place = Place((h, w), row, None, maps)
            above = self.network.rows(seen, condition, place)  # (b', d, 1, w) each
            if all(complete[row]):
                self.network.pixels(seen, above, condition, place)  # only stores maps
                continue
            for column in range(w):
                links = [link[..., column : column + 1] for link in above]
                place = Place((h, w), row, column, maps)
                features = self.network.pixels(seen, links, condition, place).flatten(1)  # (b', width)
                if complete[row][column]:
                    continue
                for channel in range(c):
                    earlier = x[:, :channel, row, column].repeat(copies, 1)  # (b', channel)
                    logits = self.head.logits(features, earlier)  # (b', L)
                    if guidance != 1.0:
                        conditional, free = logits.log_softmax(-1).chunk(2)
                        logits = free + guidance * (conditional - free)  # (b, L)
                    drawn = choose(logits, temperature, None, None, generator)  # (b,)
                    x[:, channel, row, column] = torch.where(known[:, row, column], x[:, channel, row, column], drawn)
                seen[:, :c, row, column] = self._scaled(x[:, :, row, column]).repeat(copies, 1)
        return x

    def features(self, x: Tensor, labels: Tensor) -> Tensor:
        """The network's features of all pixels: levels x (b, c, h, w), labels (b,) -> (b, width, h, w).

        Args:
            x: whole numbers, see `quantise`.
            labels: numbers of classes; the number of classes itself for no label.
        """
        return self.network(self._signal(x), self._condition(labels))

    def _log_probs(self, x: Tensor, labels: Tensor) -> Tensor:
        """log p of each pixel given the earlier ones: levels (b, c, h, w), labels (b,) -> (b, h, w)."""
        features = self.features(x, labels).movedim(1, -1).flatten(0, 2)  # (b h w, width)
        return self.head.log_prob(features, x.movedim(1, -1).flatten(0, 2)).unflatten(0, (len(x), *self.shape[1:]))

    def _signal(self, x: Tensor) -> Tensor:
        """The network's input: levels (b, c, h, w) -> (b, c + 1, h, w), in [-1, 1] and a channel of ones."""
        scaled = self._scaled(x)
        return torch.cat([scaled, torch.ones_like(scaled[:, :1])], 1)

    def _scaled(self, x: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        return 2 * x.to(dtype) / (self.levels - 1) - 1

    def _condition(self, labels: Tensor) -> Tensor | None:
        return self.label(labels) if self.classes else None

    def quantise(self, x: Tensor) -> Tensor:
        """The whole numbers round((L - 1) x), 0 to L - 1, of pictures x (b, c, h, w) in [0, 1], int64.

        Raises:
            UserError: another size, or values that are not finite or outside [0, 1].
        """
        return levels_of("image", x, self.shape, self.levels).long()

    def _known(self, given: Batch, keep: str | Tensor) -> tuple[Tensor, Tensor]:
        """The given pictures (b, c, h, w), 0 where there is none, and their known pixels (b, h, w)."""
        c, h, w = self.shape
        device, there = self.step.device, given.having("image")
        known = torch.zeros(given.size, h, w, dtype=torch.bool, device=device)
        if not there.any():
            if not isinstance(keep, str) or keep:
                raise given.lacks("image")
            return torch.zeros(given.size, c, h, w, device=device), known
        pictures = given["image"]
        rows = pictures.shape[2] if pictures.ndim == 4 else 0
        upper = isinstance(keep, str) and not keep
        expected, fix = f"{self.shape}", "use the model's own processor"
        if upper:
            expected, fix = f"({c}, 1 to {h - 1}, {w})", 'give upper rows, or a whole picture with keep="upper"'
        if tuple(pictures.shape[1:]) != (c, rows, w) or not (0 < rows < h if upper else rows == h):
            raise UserError("image", got=f"shape {tuple(pictures.shape[1:])}", expected=expected, fix=fix)
        pictures = F.pad(pictures, (0, 0, 0, h - rows))
        if isinstance(keep, str):
            known[:, : rows if upper else h // 2] = True
        else:
            if keep.dtype != torch.bool or tuple(keep.shape) not in ((h, w), tuple(known.shape)):
                got = f"{keep.dtype} of shape {tuple(keep.shape)}"
                expected = f"torch.bool of shape {(h, w)} or {tuple(known.shape)}"
                raise UserError("keep", got=got, expected=expected, fix="give True at known pixels")
            known |= keep.to(device)
        known &= there[:, None, None]
        check_order(known)
        return pictures.masked_fill(~known[:, None], 0), known  # other pixels are not read


def check_order(known: Tensor) -> None:
    """Fail unless the known pixels (b, h, w) of each picture precede all others in raster order.

    Later ones could not be taken into account: p(x_i | x_1, ..., x_{i-1}) does not depend on them.

    Raises:
        UserError: one does not.
    """
    flat = known.flatten(1)
    wrong = flat & ~flat.cummin(1).values
    if wrong.any():
        item, place = wrong.nonzero()[0].tolist()
        row, column = divmod(place, known.shape[2])
        raise UserError(
            f"keep of item {item}",
            got=f"a known pixel after an unknown one, at row {row}, column {column}",
            expected="known pixels before all others in raster order (rows from above, each from its left)",
            fix="keep upper rows, or turn or mirror the pictures of training and completion",
        )
