"""One tiny constructor and batch per name of the table MODELS: a new model joins every contract test by its entry here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mmgen.data.batch import Batch
from mmgen.models.base import Model
from mmgen.models.captioner import Captioner
from mmgen.models.classifier import Classifier


@dataclass(frozen=True)
class Tiny:
    """A model of some thousand weights, a batch for it, and what its verbs take.

    Args:
        model: builds it.
        batch: (items) -> a batch with all its modalities.
        optional: a modality that some items may lack, of floating-point values.
        to: what `generate` draws.
    """

    model: Callable[[], Model]
    batch: Callable[[int], Batch]
    optional: str
    to: str


# Names of the table whose entry is still to come: the contract fails once one has both.
PENDING: frozenset[str] = frozenset()


def tiny_models() -> dict[str, Tiny]:
    """Name in the table -> its tiny model."""
    return {
        "classifier": Tiny(
            model=lambda: Classifier("image", "image", [1, 8, 8], classes=3, encoder={"dim": 8, "width": 4}),
            batch=lambda n: Batch({"image": torch.rand(n, 1, 8, 8), "label": torch.arange(n) % 3}),
            optional="image",
            to="label",
        ),
        "captioner": Tiny(
            model=lambda: Captioner(
                language_model="tiny",
                dtype="fp32",
                encoder="test_convnext",
                weights=None,
                trained_encoder=True,
                size=32,
                stages=[3],
                grid=1,
                words=3,
                width=8,
            ),
            batch=lambda n: Batch(
                {"image": torch.rand(n, 3, 32, 32), "text": torch.randint(3, 200, (n, 4))},
                {"text": torch.arange(4) < torch.arange(n)[:, None] % 4 + 1},
            ),
            optional="image",
            to="text",
        ),
    }
