"""Classifier of one modality: p(label | x) = Categorical(softmax(W f(x) + b)), f the modality's encoder.

The recipe `judge` trains it to classify generated pictures, sounds or texts.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from mmgen.data.batch import Batch, placed
from mmgen.errors import UserError, check_at_least
from mmgen.modalities.kinds import KINDS, build_encoder
from mmgen.models.base import REST, LabelModel, Losses, check_class_names, check_labels


class Classifier(LabelModel):
    """p(label | x) for one modality x.

    Items without x or label are ignored: the loss is the mean over the others.

    Args:
        modality: name of x in a batch; the labels are ``batch["label"]``, (b,) int64.
        kind: key of `KINDS`.
        shape: shape of one x, such as image (c, h, w), audio (mels, frames), vector (d,), text (tokens in the vocabulary,).
        classes: number of classes.
        encoder: settings of the kind's encoder, such as ``{"dim": 64}``; for an image, ``"backbone"`` names one of timm.
        class_names: names of the classes, in order.
        distort: augmentation d, 0 to below 1: in training each picture is rotated by up to 100 d degrees, scaled by 1 - d to
            1 + d, and shifted by up to d of half its side in each direction.

    Raises:
        UserError: an unknown kind, ``distort`` for another modality than pictures, or a number of names other than
            ``classes``; in use, no item with x, or a label out of range.

    >>> model = Classifier("image", "image", [1, 8, 8], classes=10, encoder={"width": 8})
    >>> model.predict(Batch({"image": torch.zeros(2, 1, 8, 8)})).probs.shape
    torch.Size([2, 10])
    """

    name = "classifier"

    def __init__(
        self,
        modality: str,
        kind: str,
        shape: list[int],
        classes: int,
        encoder: dict[str, Any] | None = None,
        class_names: list[str] | None = None,
        distort: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least("classes", classes, 2)
        if not 0 <= distort < 1 or (distort and kind != "image"):
            expected = "0 to below 1, and 0 for kinds other than image"
            raise UserError("distort", got=f"{distort} of {kind}", expected=expected, fix="set distort=0")
        self.modality, self.classes, self.distort = modality, classes, distort
        self.class_names = check_class_names(class_names, classes)
        self.encoder = build_encoder(kind, shape, encoder or {})
        self.sequences = (modality,) if KINDS[kind].tokens else ()
        self.head = nn.Linear(self.encoder.dim, classes)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that it classifies."""
        return (self.modality,)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with both."""
        return {REST: batch.having(self.modality, "label")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The cross-entropy, -log p(label | x), averaged over the items with both."""
        observed = self.usable(batch)[REST]
        if not observed.any():
            return self.zero_losses("cross_entropy")
        return Losses(cross_entropy=-self._log_likelihood(batch.items(observed)).mean())

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """Exact log p(label | x), (b,); 0 for items without both."""
        observed = batch.observed(self.modality, "label")
        return placed(self._log_likelihood(batch.items(observed)), observed)

    def predict(self, batch: Batch) -> Categorical:
        """p(label | x), one distribution per item; undefined where x is missing."""
        return Categorical(logits=self.head(self.features(batch)).float())

    def features(self, batch: Batch) -> Tensor:
        """f(x), the input (b, d) of the last layer; undefined where x is missing."""
        batch.observed(self.modality)  # raises if no item has it
        mask = (batch.masks[self.modality],) if self.modality in batch.masks else ()
        x = batch[self.modality]
        return self.encoder(distorted(x, self.distort) if self.training and self.distort else x, *mask)

    def _log_likelihood(self, batch: Batch) -> Tensor:
        labels = check_labels(batch["label"], self.classes)
        return self.predict(batch).log_prob(labels)


def distorted(x: Tensor, most: float) -> Tensor:
    """Pictures (b, c, h, w) rotated, scaled and shifted at random, see `Classifier`; edge pixels are repeated."""
    turn, scale, down, across = (2 * torch.rand(4, len(x), device=x.device) - 1) * most  # (b,) each
    angle, size = turn * math.radians(100), 1 + scale
    cosine, sine = angle.cos() / size, angle.sin() / size
    place = torch.stack([cosine, -sine, across, sine, cosine, down], 1).unflatten(1, (2, 3))  # (b, 2, 3)
    grid = nn.functional.affine_grid(place, list(x.shape), align_corners=False).to(x.dtype)
    return nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
