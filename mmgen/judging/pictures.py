"""Judges of pictures generated from texts: a classifier, a shared space, and features of a network."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from mmgen.data.cards import check_column, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.rows import DataSet
from mmgen.errors import UserError, check_one_of
from mmgen.judging.classifier import Judge, JudgeConfig, agreement, trained_judge
from mmgen.judging.features import frechet, picture_features
from mmgen.judging.shared_space import precision, space_config, trained_space
from mmgen.modalities.image import PACKAGES
from mmgen.models.aligned import Aligned
from mmgen.models.base import Model
from mmgen.ranges import AtLeast
from mmgen.training.config import section
from mmgen.training.data_sections import PicturesWithTexts
from mmgen.training.nested import nested_config
from mmgen.training.recipe import RecipeConfig


@dataclass
class PictureEvaluation:
    """Settings of the evaluation of one picture for each of the first ``items`` of a split.

    Args:
        items: number of items; 0 takes all.
        among: number of texts ranked for R-precision.
        features: packaged network for the Fréchet distance; empty: no Fréchet distance.
    """

    items: Annotated[int, AtLeast(0)] = 0
    among: Annotated[int, AtLeast(2)] = 100
    features: str = "efficientnet_lite0"

    def check(self, path: str) -> None:
        """Check that there are enough items, and that the network is known."""
        if self.items == 1:
            raise UserError(f"{path}.items", got=1, expected="two or more, or 0 for all", fix=f"set {path}.items=200")
        if self.features:
            check_one_of(f"{path}.features", self.features, PACKAGES)


@dataclass
class PictureConfig(RecipeConfig):
    """The config of a recipe that draws pictures of texts.

    Args:
        judge: config of a classifier of ``data.label``, see the recipe ``judge``; empty: no accuracy.
        aligned: config of the shared space for R-precision, see the recipe ``aligned``; empty: no R-precision.
    """

    data: PicturesWithTexts = section()
    evaluation: PictureEvaluation = section()
    judge: dict[str, Any] = field(default_factory=dict)
    aligned: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Check the configs of the judges, and that a classifier has labels."""
        if self.judge and not self.data.label:
            fix = "set data.label=label"
            raise UserError("judge", got="no data.label", expected="the column of its classes", fix=fix)
        if self.judge:
            self.data.label = check_column(read_card(self.data.card), "data.label", self.data.label)
        self.nested()

    def nested(self) -> dict[str, Any]:
        """The configs of the judges, by their keys."""
        data = self.data
        found: dict[str, Any] = {}
        if self.judge:
            found["judge"] = nested_config("judge", JudgeConfig, self.judge)
        if self.aligned:
            found["aligned"] = space_config(self.aligned, data.card, data.image, data.text)
        return found


@torch.no_grad()
def draw_all(model: Model, data: DataSet, seed: int, **options: Any) -> Tensor:
    """A picture of each text of a data set, (n, c, h, w).

    Args:
        model: generates pictures from texts.
        data: data set with the texts.
        seed: seed of the draws.
        options: options of the model's ``generate``.
    """
    generator, texts = torch.Generator().manual_seed(seed), data.keep("text").batches("drawing", device=model.step.device)
    return torch.cat([model.generate(given, "image", generator=generator, **options).cpu() for given in texts])


@dataclass
class PictureJudges:
    """Figures of pictures generated from the texts of a data set, one for each.

    Args:
        config: config of the recipe.
        data: texts and their true pictures.
        image: processor of the pictures.
        accuracy: name of the classifier's figure.
    """

    config: PictureConfig
    data: DataSet
    image: ImageProcessor
    accuracy: str = ""

    def __post_init__(self) -> None:
        nested, label = self.config.nested(), self.config.data.label
        self.about: dict[str, float] = {}
        self.space: Aligned | None = trained_space(nested["aligned"], self.image.size) if "aligned" in nested else None
        self.classifier: Judge | None = trained_judge(nested["judge"]) if "judge" in nested else None
        if self.classifier:
            self.truth = self.classifier.classes_of(self.data.raw(label))
            digits = label == "label" and self.classifier.class_names == [str(i) for i in range(10)]
            self.accuracy = self.accuracy or ("digit_accuracy" if digits else f"{label}_accuracy")
            self.about = self.classifier.about()
            self.about["judge_disjoint"] = self.classifier.split not in ("train", self.data.rows.split)
        self._real: Tensor | None = None

    def of_texts(self, pictures: Tensor) -> dict[str, float]:
        """Agreement of pictures (n, c, h, w) with their texts: accuracy of the classifier, R-precision."""
        figures = {}
        if self.classifier:
            figures[self.accuracy] = agreement(self.classifier.reads(self.image, pictures), self.truth)
        if self.space is not None:
            shown = [self.image.decode(x) for x in pictures]
            figures["r_precision"] = precision(self.space, shown, self.data.texts, self.config.evaluation.among)
        return figures

    def fidelity(self, pictures: Tensor) -> dict[str, float]:
        """The Fréchet distance of the features of pictures (n, c, h, w) to those of the true ones."""
        network = self.config.evaluation.features
        if not network:
            return {}
        if self._real is None:
            self._real = picture_features(network, self.image, list(self.data.all("image")))
        return {f"fid_{network}": frechet(self._real, picture_features(network, self.image, list(pictures)))}
