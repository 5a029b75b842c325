"""The shared space of pictures (or sounds) and texts, trained by the recipe ``aligned``, as a judge of pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from mmgen import processes
from mmgen.data.cards import check_columns
from mmgen.data.image import ImageProcessor
from mmgen.data.rows import Column, DataSet, open_rows
from mmgen.errors import Mistakes, UserError
from mmgen.metrics.retrieval import r_precision
from mmgen.models.aligned import Aligned, inner_tokens
from mmgen.models.base import load
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.nested import nested_config
from mmgen.training.recipe import Recipe, RecipeConfig, stage
from mmgen.training.run import Run
from mmgen.training.study import cached_run

AT_ONCE = 128  # items encoded together


@dataclass
class SpaceData:
    """A data card and its columns.

    Args:
        card: the data card, by name or path.
        input: column of pictures or sounds.
        text: column of texts, one or several per item.
        size: side in pixels to which pictures are scaled first, for judging pictures of this size; 0: no scaling.
        limit: items of each split; 0 takes all.
    """

    card: str = "openmoji"
    input: str = "image"
    text: str = "caption"
    size: Annotated[int, AtLeast(0)] = 0
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class SpaceConfig(RecipeConfig):
    """The config of the recipe ``aligned``.

    Args:
        references: number of training pictures, spread over the data, saved with the model for comparisons.
    """

    renamed: ClassVar = {"data.side": "data.size"}

    data: SpaceData = section()
    model: section_of(Aligned) = section()  # type: ignore[valid-type]
    fit: FitConfig = section()
    references: Annotated[int, AtLeast(1)] = 256

    def check(self, errors: Mistakes) -> None:
        """Check that the columns exist and have the kinds that the model reads."""
        with errors:
            check_columns(self.data, "data", errors, {"input": [self.model.modality], "text": ["text"]})
        if self.data.size and self.model.modality != "image":
            raise UserError("data.size", got=f"{self.data.size} of sounds", expected="0", fix="leave data.size out")


class Reduced(Column):
    """The pictures of a column, each scaled to ``size`` pixels on access."""

    def __init__(self, column: Column, size: int) -> None:
        super().__init__(column.rows, column.name)
        self.process = ImageProcessor(size)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.process.decode(self.process(super().__getitem__(index)))


def pairs(model: Aligned, data: SpaceData, split: str) -> DataSet:
    """Inputs of the card, or their features by a frozen encoder, paired with each of their texts in order."""
    rows = open_rows(data.card, split, [data.input, data.text], limit=data.limit)
    inputs = Reduced(rows[data.input], data.size) if data.size else rows[data.input]
    given: dict[str, Sequence[Any] | Tensor] = {model.modality: inputs}
    if not model.trained_encoder:
        size = [str(data.size)] if data.size else []
        given = {"features": model.all_features(inputs, [rows.fingerprint, data.input, *size])}
    processors = {**model.processors, "text": partial(inner_tokens, model.processors["text"])}
    found = DataSet(rows, {**given, "text": data.text}, processors, each="text")
    if "sentence" not in model.towers:
        return found
    model.to(processes.device())
    return found.with_values(sentence=model.embed(found.texts).cpu())


@stage()
def aligned(run: Run, config: SpaceConfig) -> None:
    """Train both encoders on the card's training split."""
    model = Aligned(**asdict(config.model))
    data = pairs(model, config.data, "train")
    if not model.trained_encoder:
        model.standardise(torch.as_tensor(data.values["features"]))

    def remember(model: Aligned) -> None:
        n, device = len(data.rows), model.feature_mean.device
        some = range(0, n, -(-n // config.references))
        model.remember(data.without("text").batches("", AT_ONCE, some, device))

    run.fit(model, data, config.fit, finish=remember)


SPACE = Recipe("aligned", SpaceConfig, [aligned])  # its evaluation is in recipes/aligned/train.py


def space_config(values: dict[str, Any], card: str, picture: str, text: str) -> SpaceConfig:
    """The config of a space that judges pictures of a card, and must be trained on the same card.

    Args:
        values: nested config ``aligned``; card and columns default to those of the judged data.
        card, picture, text: card and columns of the judged data.

    Raises:
        UserError: it names another card, or a value is wrong.
    """
    values = {**values, "data": {"card": card, "input": picture, "text": text, **values.get("data", {})}}
    config = nested_config("aligned", SpaceConfig, values)
    if config.data.card != card:
        fix = f"set aligned.data.card={card}, and aligned.data.input and text, or leave it out by aligned=null"
        raise UserError("aligned.data.card", got=config.data.card, expected=card, fix=fix)
    return config


def trained_space(config: SpaceConfig, size: int = 0, seed: int = 0) -> Aligned:
    """The space of a config, trained at first use, then cached.

    Args:
        config: config of the space.
        size: side in pixels of the judged pictures, on which it is trained unless the config sets a size.
        seed: added to the seed of the config, for another space of the same kind.
    """
    data = replace(config.data, size=config.data.size or size)
    space: Any = load(cached_run(SPACE, replace(config, data=data, seed=config.seed + seed), "aligned"))
    return space.to(processes.device())


def precision(space: Aligned, pictures: Sequence[Any], texts: Sequence[str], among: int) -> float:
    """R-precision of raw pictures, one for each of ``texts``, in a space: see `mmgen.metrics.retrieval.r_precision`.

    A space with a sentence embedder reads the texts by it.
    """
    different = list(dict.fromkeys(texts))
    scores = (space.points(pictures, "image") @ space.points(different, space.towers[-1]).T).cpu()  # (n, m)
    return r_precision(scores, torch.tensor([different.index(text) for text in texts]), among=among)
