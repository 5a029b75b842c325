"""A classifier of one modality: p(label | x) = Categorical(softmax(W f(x) + b)), f the modality's encoder.

Trained apart by the recipe `judge`, it tells what a generated picture, sound or text shows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from mmgen.data.batch import Batch
from mmgen.distributions import draw
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.modalities.kinds import build_encoder
from mmgen.models.base import Losses, Model


class Classifier(Model):
    """p(label | x) for one modality x.

    Items without x or without a label count nowhere: the loss is the mean over the others.

    Args:
        modality: name of x in a batch; the labels are ``batch["label"]``, (b,) int64.
        kind: what x is: "image", "text", "audio" or "vector".
        shape: of one x: image (c, h, w), audio (mels, frames), vector (d,), text (number of tokens in the vocabulary,).
        classes: number of labels.
        encoder: settings of the kind's encoder, such as ``{"dim": 64}``; for an image, a ``"backbone"`` takes that of timm.
        class_names: what the labels are called, in order.
        shift: pixels by which each picture is moved at random in training, up, down and sideways; its edge is repeated.

    Raises:
        UserError: an unknown kind, a shift of what is no picture, or a count that does not fit; in use, no item with x, or a
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
        shift: int = 0,
    ) -> None:
        super().__init__()
        check_at_least("classes", classes, 2)
        if check_at_least("shift", shift, 0) and kind != "image":
            raise UserError("shift", got=f"{shift} of {kind}", expected="0 of what is no image", fix="set shift=0")
        if class_names is not None and len(class_names) != classes:
            raise UserError("class_names", got=class_names, expected=f"{classes} names", fix=f"set classes={len(class_names)}")
        self.modality, self.classes, self.class_names, self.shift = modality, classes, class_names, shift
        self.sequences = (modality,) if kind == "text" else ()
        self.encoder = build_encoder(kind, shape, encoder or {})
        self.head = nn.Linear(self.encoder.dim, classes)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality it reads."""
        return (self.modality,)

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The cross-entropy, -log p(label | x), mean over the items that have both."""
        return Losses(cross_entropy=-self._log_likelihood(batch.items(self._observed(batch))).mean())

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """log p(label | x), exact, (b,); 0 for items that lack either."""
        observed = self._observed(batch)
        found = self._log_likelihood(batch.items(observed))  # (items that have both,)
        return found.new_zeros(batch.size).masked_scatter(observed, found)

    def predict(self, batch: Batch) -> Categorical:
        """p(label | x), one distribution an item; without meaning where x is missing."""
        return Categorical(logits=self.head(self.features(batch)).float())

    def features(self, batch: Batch) -> Tensor:
        """f(x), (b, d): what the last layer reads; without meaning where x is missing."""
        if self.modality not in batch or not batch.present[self.modality].any():
            raise self._missing(self.modality, batch)
        mask = (batch.masks[self.modality],) if self.modality in batch.masks else ()
        x = batch[self.modality]
        return self.encoder(moved(x, self.shift) if self.training and self.shift else x, *mask)

    def generate(self, given: Batch, to: str = "label", n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """``n`` labels drawn from p(label | x) for each item in order: (b * n,). The likeliest is ``predict(given).mode``.

        Raises:
            UserError: ``to`` is not "label", or ``n`` below 1.
        """
        check_one_of("to", to, ["label"])
        check_at_least("n", n, 1)
        with torch.no_grad():
            return draw(self.predict(given).probs, n, generator).flatten()

    def _log_likelihood(self, batch: Batch) -> Tensor:
        labels = batch["label"]
        wrong = labels[(labels < 0) | (labels >= self.classes)]
        if len(wrong):
            fix = "check the number of classes"
            raise UserError("label", got=wrong[0].item(), expected=f"0 to {self.classes - 1}", fix=fix)
        return self.predict(batch).log_prob(labels)

    def _observed(self, batch: Batch) -> Tensor:
        both = f"{self.modality} and label"
        if "label" not in batch or self.modality not in batch:
            raise self._missing(both, batch)
        observed = batch.present["label"] & batch.present[self.modality]  # (b,)
        if not observed.any():
            raise self._missing(both, batch)
        return observed

    def _missing(self, what: str, batch: Batch) -> UserError:
        found = [name for name in batch.values if batch.present[name].any()]
        got = f"no item that has it (the batch holds {', '.join(found) or 'nothing'})"
        return UserError(what, got=got, expected="at least one item", fix="check the names of the columns")


def moved(x: Tensor, most: int) -> Tensor:
    """Each picture of x (b, c, h, w) moved by up to ``most`` pixels each way, its edge repeated."""
    b, _, h, w = x.shape
    down, across = torch.randint(2 * most + 1, (2, b, 1), device=x.device)  # (b, 1) each
    padded = nn.functional.pad(x, (most,) * 4, mode="replicate")
    rows, columns = down + torch.arange(h, device=x.device), across + torch.arange(w, device=x.device)  # (b, h), (b, w)
    each = torch.arange(b, device=x.device)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
