"""The two stages that train a captioner, with the data and the config that its recipes share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from mmgen.conditioning.language_model import load_language_model
from mmgen.data.cards import check_columns, read_card
from mmgen.data.processors import read_bytes
from mmgen.data.rows import DataSet, Rows, open_rows, texts_of
from mmgen.data.text import tokens_of
from mmgen.errors import Mistakes, UserError
from mmgen.metrics.captioning import tokenize
from mmgen.models.captioner import Captioner
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.model_card import contact_sheet
from mmgen.training.recipe import RecipeConfig, Stage, stage
from mmgen.training.report import Sample
from mmgen.training.run import Run

PREFIXES = 128  # read by the language model at once where nothing is trained
SHOWN = 16  # validation items captioned during training


@dataclass
class CaptionData:
    """A data card of pictures or sounds with captions.

    Args:
        card: the data card, by name or path.
        input: the column of pictures or sounds.
        text: the column of captions, one or several an item.
        limit: items of each split; 0 takes all.
        views: of each picture from which the soft words are learned: itself, and the others with colours, line width and scale
            varied, see `mmgen.data.drawing_styles.restyled`, so that they learn more than one style of drawing.
    """

    card: str = "openmoji"
    input: str = "image"
    text: str = "caption"
    limit: Annotated[int, AtLeast(0)] = 0
    views: Annotated[int, AtLeast(1)] = 1

    def items(self, model: Captioner, split: str, views: int = 1) -> DataSet:
        """Make one item per caption, in the order of the rows, with the input or, for a frozen encoder, its features.

        Args:
            model: its processors and its frozen encoder read the data.
            split: of the card.
            views: of each picture; those after the first come after all rows.

        Raises:
            UserError: a value is missing or cannot be read; the message names the card, the split, the row and the column.
        """
        return self.items_of(open_rows(self.card, split, [self.input, self.text], limit=self.limit), model, views)

    def items_of(self, rows: Rows, model: Captioner, views: int = 1) -> DataSet:
        """Make the items of some rows, see `items`."""
        given: Mapping[str, str | Tensor] = {model.modality: self.input}
        if not model.trained_encoder:
            seen = [model.all_features(rows[self.input], [rows.fingerprint, self.input], view) for view in range(views)]
            given = seen[0] if views == 1 else {name: torch.cat([each[name] for each in seen]) for name in seen[0]}
            rows = rows.select([*range(len(rows))] * views)
        return DataSet(rows, {**given, "text": self.text}, model.processors, each="text").without("pooled")

    def references(self, rows: Rows) -> list[list[str]]:
        """Reference captions of each row, checked for words.

        Raises:
            UserError: a row has none, or one without a word.
        """
        references = rows[self.text].texts()
        for i, captions in enumerate(references):
            if not captions or not all(tokenize(caption) for caption in captions):
                what, expected = rows.place(i, self.text), "captions of at least one word each"
                raise UserError(what, got=captions, expected=expected, fix="drop the row, or fill it in")
        return references


@dataclass
class Decoding:
    """Options of `Captioner.generate` in evaluation.

    Args:
        beams: width of the beam search; 1 is greedy.
        length_penalty: exponent of the length that a beam's score is divided by.
        max_tokens: longest caption.
        candidates: captions written for each item, of which one is chosen.
        neighbours: captions of training items that take part in the choice, see `Captioner.neighbours`.
    """

    beams: Annotated[int, AtLeast(1)] = 1
    length_penalty: float = 1.0
    max_tokens: Annotated[int, AtLeast(1)] = 24
    candidates: Annotated[int, AtLeast(1)] = 1
    neighbours: Annotated[int, AtLeast(0)] = 0


@dataclass
class CaptionerConfig(RecipeConfig):
    """The config of a recipe that trains a captioner.

    Args:
        fit_words: training of the soft words, without the language model.
        fit: training through the language model.
    """

    renamed: ClassVar = {"words": "fit_words"}

    data: CaptionData = section()
    model: section_of(Captioner) = section()  # type: ignore[valid-type]
    fit_words: FitConfig = section()
    fit: FitConfig = section()
    decoding: Decoding = section()

    def check(self, errors: Mistakes) -> None:
        """Check that the columns exist and are of the kind that the captioner reads, and that an encoder can take views."""
        check_columns(self.data, "data", errors, {"input": [self.model.modality], "text": ["text"]})
        if self.data.views > 1 and (self.model.trained_encoder or self.model.modality != "image"):
            expected, fix = "1: only pictures of a frozen encoder have several", "set data.views=1"
            errors.append(UserError("data.views", got=self.data.views, expected=expected, fix=fix))


def caption_vocabulary(language_model: str, dtype: str, texts: Sequence[str]) -> list[int]:
    """Sorted token ids in training captions; soft words are mixtures of these.

    Args:
        language_model, dtype: of the captioner.
        texts: the captions.
    """
    _, tokenizer = load_language_model(language_model, dtype)
    return sorted({token for ids in tokens_of(tokenizer, texts, add_special_tokens=False)["input_ids"] for token in ids})


@stage()
def words(run: Run, config: CaptionerConfig, blind: bool = False) -> None:
    """Train the soft words to name the caption's tokens, without the language model's forward pass."""
    values, data = asdict(config.model), config.data
    for split in ("train", *(["validation"] if _shows_samples(config) else [])):  # mistakes are reported before training
        open_rows(data.card, split, [data.input, data.text], limit=data.limit)
    if not values["vocabulary"]:
        texts = texts_of(data.card, data.text, limit=data.limit)
        values["vocabulary"] = caption_vocabulary(config.model.language_model, config.model.dtype, texts)
    model = Captioner(**values)
    if blind:  # the encoder is unused and would get no gradient
        model.encoder.requires_grad_(False)
    items = data.items(model, "train", data.views)
    if not model.trained_encoder:
        model.words.standardise(torch.as_tensor(items.values["features"]))
    run.fit(model, items.keep("text") if blind else items, config.fit_words, phases=("words",))


Reader = Callable[[CaptionerConfig, Captioner], Captioner]


@stage()
def captioner(run: Run, config: CaptionerConfig, blind: bool = False, reader: Reader = lambda config, model: model) -> None:
    """Train the captioner through the frozen language model.

    Args:
        run, config: of the recipe.
        blind: leave the input out.
        reader: ``reader(config, model)`` makes the model to train from the one whose soft words are trained.
    """
    model = reader(config, run.load("blind_words" if blind else "words", dtype=config.model.dtype))
    data = config.data.items(model, "train")
    if blind:
        model.encoder.requires_grad_(False)
        run.fit(model, data.keep("text"), config.fit)  # without input no item has neighbours
        return
    samples = None
    if _shows_samples(config):
        shown = replace(config.data, limit=SHOWN).items(model, "validation")
        options = {**asdict(config.decoding), "neighbours": 0}  # captions are remembered at the end of training

        def samples(model: Captioner) -> Image.Image | str:
            batches = shown.without("text").batches(size=PREFIXES, device=model.step.device)
            captions = [caption for batch in batches for caption in model.generate(batch, **options)]
            return captions_shown(shown.rows[config.data.input] if model.modality == "image" else None, captions)

    def remember(model: Captioner) -> None:
        model.remember(data.batches(size=PREFIXES, device=model.step.device))

    run.fit(model, data, config.fit, samples=samples, finish=remember)


def captions_shown(pictures: Sequence[Any] | None, captions: Sequence[str]) -> Image.Image | str:
    """A sheet of the first raw pictures with these captions; without pictures, as of sounds, one caption per line."""
    if pictures is None:
        return "\n".join(captions) + "\n"
    cards = [Sample(read_bytes(pictures[i], "image")[1], {"captioner": caption}) for i, caption in enumerate(captions)]
    return contact_sheet(cards)


def _shows_samples(config: CaptionerConfig) -> bool:
    return config.fit.sample_every > 0 and "validation" in read_card(config.data.card).splits


def captioner_stages(**options: Any) -> list[Stage]:
    """The stages of a captioner and of its blind baseline.

    Args:
        options: of `captioner`, such as ``reader``.
    """
    both = words, captioner.named("captioner", **options)
    return [*both, words.named("blind_words", blind=True), captioner.named("blind", blind=True, **options)]
