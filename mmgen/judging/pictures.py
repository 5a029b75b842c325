"""Judges of pictures drawn from texts: a classifier, a shared space, features of a network, and the training pictures."""

from dataclasses import dataclass

from torch import Tensor

from mmgen.data.image import ImageProcessor
from mmgen.data.pairs import Pairs
from mmgen.judging.classifier import JudgeConfig, agreement, trained_judge
from mmgen.judging.features import frechet, picture_features
from mmgen.judging.shared_space import SpaceConfig, precision, trained_space
from mmgen.models.aligned import Aligned


@dataclass
class PictureJudges:
    """Figures of pictures that were drawn from the texts of a data set, one for each.

    Args:
        data: the texts and their true pictures.
        image: the processor of the pictures.
        judge: config of a classifier of the pictures' labels; None: no accuracy.
        space: config of a space of pictures and texts; None: no R-precision.
        label: the column of the labels.
        accuracy: name of the figure of the classifier.
        among: texts that R-precision chooses from.
        features: the packaged network of the Fréchet distance; empty: none.
    """

    data: Pairs
    image: ImageProcessor
    judge: JudgeConfig | None = None
    space: SpaceConfig | None = None
    label: str = "label"
    accuracy: str = ""
    among: int = 100
    features: str = ""

    def __post_init__(self) -> None:
        self.about: dict[str, float] = {}
        self.aligned: Aligned | None = trained_space(self.space, self.image.size) if self.space else None
        if self.judge:
            self.classifier = trained_judge(self.judge)
            labels = self.data.rows[self.label]
            self.truth = self.classifier.classes_of([labels[row] for row in self.data.items])
            digits = self.label == "label" and self.classifier.class_names == [str(i) for i in range(10)]
            self.accuracy = self.accuracy or ("digit_accuracy" if digits else f"{self.label}_accuracy")
            self.about = self.classifier.about()
            self.about["judge_disjoint"] = self.classifier.split not in ("train", self.data.rows.split)
        self._real: Tensor | None = None

    def of_texts(self, pictures: Tensor) -> dict[str, float]:
        """Whether pictures (n, c, h, w) show their texts: accuracy of the classifier, R-precision."""
        figures = {}
        if self.judge:
            figures[self.accuracy] = agreement(self.classifier.reads(self.image, pictures), self.truth)
        if self.aligned is not None:
            shown = [self.image.decode(x) for x in pictures]
            figures["r_precision"] = precision(self.aligned, shown, self.data.texts, self.among)
        return figures

    def fidelity(self, pictures: Tensor) -> dict[str, float]:
        """The Fréchet distance of the features of pictures (n, c, h, w) to those of the true ones."""
        if not self.features:
            return {}
        if self._real is None:
            self._real = picture_features(self.features, self.image, list(self.data.all()))
        return {f"fid_{self.features}": frechet(self._real, picture_features(self.features, self.image, list(pictures)))}
