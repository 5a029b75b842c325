"""Judges of pictures generated from texts: a classifier, a shared space, and features of a network."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from mmgen.data.cards import check_columns
from mmgen.data.image import ImageProcessor
from mmgen.data.rows import DataSet
from mmgen.errors import Mistakes, UserError
from mmgen.judging.classifier import Judge, agreement, judge_config, trained_judge
from mmgen.judging.features import check_comparison, frechet, picture_features
from mmgen.judging.shared_space import precision, space_config, trained_space
from mmgen.models.aligned import Aligned
from mmgen.models.base import Model
from mmgen.ranges import AtLeast
from mmgen.training.config import section
from mmgen.training.data_sections import PicturesWithTexts
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

    def check(self, path: str, errors: Mistakes) -> None:
        """Check that there are enough items, and that the network is known."""
        check_comparison(path, self.items, self.features, errors)


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
        data: true ``image`` of each item, and for R-precision its ``text``, the name given as ``each``.
        image: processor of the pictures.
        classifier: judge of the classes of ``label``; None: no accuracy.
        space: shared space for R-precision; None: no R-precision.
        features: packaged network for the Fréchet distance; empty: no Fréchet distance.
        among: number of texts ranked for R-precision.
        label: column of the classes, for the classifier.
        accuracy: name of the classifier's figure; by default that of the label.
    """

    data: DataSet
    image: ImageProcessor
    classifier: Judge | None = None
    space: Aligned | None = None
    features: str = ""
    among: int = 100
    label: str = "label"
    accuracy: str = ""

    def __post_init__(self) -> None:
        self.about: dict[str, float] = {}
        if self.classifier:
            self.truth = self.classifier.classes_of(self.data.raw(self.label))
            digits = self.label == "label" and self.classifier.class_names == [str(i) for i in range(10)]
            self.accuracy = self.accuracy or ("digit_accuracy" if digits else f"{self.label}_accuracy")
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
            figures["r_precision"] = precision(self.space, shown, self.data.texts, self.among)
        return figures

    def fidelity(self, pictures: Tensor) -> dict[str, float]:
        """The Fréchet distance of the features of pictures (n, c, h, w) to those of the true ones."""
        if not self.features:
            return {}
        if self._real is None:
            self._real = picture_features(self.features, self.image, list(self.data.all("image")))
        return {f"fid_{self.features}": frechet(self._real, picture_features(self.features, self.image, list(pictures)))}


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

    def check(self, errors: Mistakes) -> None:
        """Check the configs of the judges, and that a classifier has labels."""
        wrong = any(str(error).startswith("data.") for error in errors)  # by default the space reads the same columns
        with errors:
            replace(self, aligned={} if wrong else self.aligned).nested()
        if self.judge and not self.data.label:
            fix = "set data.label=label"
            raise UserError("judge", got="no data.label", expected="the column of its classes", fix=fix)
        if self.judge:
            check_columns(self.data, "data", errors, {"label": []})

    def nested(self) -> dict[str, Any]:
        """The configs of the judges, by their keys."""
        data, errors = self.data, Mistakes()
        found: dict[str, Any] = {}
        with errors:
            found |= {"judge": judge_config("judge", self.judge)} if self.judge else {}
        with errors:
            found |= {"aligned": space_config(self.aligned, data.card, data.image, data.text)} if self.aligned else {}
        errors.fail()
        return found

    def judges(self, data: DataSet, image: ImageProcessor, accuracy: str = "") -> PictureJudges:
        """The judges of this config, trained at first use, for `PictureJudges` of these arguments."""
        found, settings = self.nested(), self.evaluation
        space = trained_space(found["aligned"], image.size) if "aligned" in found else None
        classifier = trained_judge(found["judge"]) if "judge" in found else None
        return PictureJudges(data, image, classifier, space, settings.features, settings.among, self.data.label, accuracy)
