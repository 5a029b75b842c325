"""A classifier of one modality: p(label | x) = Categorical(softmax(W f(x) + b)), f the modality's encoder.

Trained apart by the recipe `judge`, it tells what a generated picture, sound or text shows.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from mmgen.data.batch import Batch, placed
from mmgen.errors import UserError, check_at_least
from mmgen.modalities.kinds import KINDS, build_encoder
from mmgen.models.base import LabelModel, Losses, check_class_names, check_labels


class Classifier(LabelModel):
    """p(label | x) for one modality x.

    Items without x or without a label count nowhere: the loss is the mean over the others.

    Args:
        modality: name of x in a batch; the labels are ``batch["label"]``, (b,) int64.
        kind: key of `KINDS`.
        shape: of one x, such as image (c, h, w), audio (mels, frames), vector (d,), text (tokens in the vocabulary,).
        classes: number of labels.
        encoder: settings of the kind's encoder, such as ``{"dim": 64}``; for an image, a ``"backbone"`` takes that of timm.
        class_names: what the labels are called, in order.
        distort: d, 0 to below 1: in training each picture is turned by up to 100 d degrees, scaled by 1 - d to 1 + d, and
            moved by up to d of half its side, up, down and sideways.

    Raises:
        UserError: an unknown kind, distorting what is no picture, or a count that does not fit; in use, no item with x, or a
            label out of range.

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
            expected = "0 or more and below 1, and 0 of what is no image"
            raise UserError("distort", got=f"{distort} of {kind}", expected=expected, fix="set distort=0")
        self.modality, self.classes, self.distort = modality, classes, distort
        self.class_names = check_class_names(class_names, classes)
        self.encoder = build_encoder(kind, shape, encoder or {})
        self.sequences = (modality,) if KINDS[kind].tokens else ()
        self.head = nn.Linear(self.encoder.dim, classes)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality it reads."""
        return (self.modality,)

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The cross-entropy, -log p(label | x), mean over the items that have both."""
        observed = batch.having(self.modality, "label")
        if not observed.any():
            return self.zero_losses("cross_entropy")
        return Losses(cross_entropy=-self._log_likelihood(batch.items(observed)).mean())

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """log p(label | x), exact, (b,); 0 for items that lack either."""
        observed = batch.observed(self.modality, "label")
        return placed(self._log_likelihood(batch.items(observed)), observed)

    def predict(self, batch: Batch) -> Categorical:
        """p(label | x), one distribution an item; without meaning where x is missing."""
        return Categorical(logits=self.head(self.features(batch)).float())

    def features(self, batch: Batch) -> Tensor:
        """f(x), (b, d): what the last layer reads; without meaning where x is missing."""
        batch.observed(self.modality)  # there is something to read
        mask = (batch.masks[self.modality],) if self.modality in batch.masks else ()
        x = batch[self.modality]
        return self.encoder(distorted(x, self.distort) if self.training and self.distort else x, *mask)

    def _log_likelihood(self, batch: Batch) -> Tensor:
        labels = check_labels(batch["label"], self.classes)
        return self.predict(batch).log_prob(labels)


def distorted(x: Tensor, most: float) -> Tensor:
    """Each picture of x (b, c, h, w) turned, scaled and moved at random, see `Classifier`; its edge is repeated."""
    turn, scale, down, across = (2 * torch.rand(4, len(x), device=x.device) - 1) * most  # (b,) each
    angle, size = turn * math.radians(100), 1 + scale
    cosine, sine = angle.cos() / size, angle.sin() / size
    place = torch.stack([cosine, -sine, across, sine, cosine, down], 1).unflatten(1, (2, 3))  # (b, 2, 3)
    grid = nn.functional.affine_grid(place, list(x.shape), align_corners=False).to(x.dtype)
    return nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
