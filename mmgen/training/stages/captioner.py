"""The two stages that train a captioner, with the data and the config that its recipes share."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from mmgen.conditioning.language_model import load_language_model
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, read_card
from mmgen.data.pairs import texts_of
from mmgen.data.processors import read_bytes
from mmgen.data.rows import open_rows
from mmgen.data.text import tokens_of
from mmgen.errors import UserError
from mmgen.metrics.captioning import tokenize
from mmgen.models.captioner import Captioner
from mmgen.training.config import FitConfig, section_of
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
        card: name or path.
        input: the column of pictures or sounds.
        text: the column of captions, one or several an item.
        limit: items of each split; 0 takes all.
    """

    card: str = "openmoji"
    input: str = "image"
    text: str = "caption"
    limit: int = 0


@dataclass
class Decoding:
    """Options of `Captioner.generate` in evaluation."""

    beams: int = 1
    length_penalty: float = 1.0
    max_tokens: int = 24
    candidates: int = 1
    neighbours: int = 0


@dataclass
class CaptionerConfig(RecipeConfig):
    """The config of a recipe that trains a captioner.

    Args:
        fit_words: training of the soft words, without the language model.
        fit: training through the language model.
    """

    renamed: ClassVar = {"words": "fit_words"}

    data: CaptionData = field(default_factory=CaptionData)
    model: section_of(Captioner) = field(default_factory=section_of(Captioner))
    fit_words: FitConfig = field(default_factory=FitConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    decoding: Decoding = field(default_factory=Decoding)

    def check(self) -> None:
        """The columns exist and are of the kind that the captioner reads."""
        card, data = read_card(self.data.card), self.data
        data.input = check_column(card, "data.input", data.input, self.model.modality)
        data.text = check_column(card, "data.text", data.text, "text")


class Captions(Sequence):
    """Items of a picture or sound with one of its captions: all captions of the first row, then those of the next.

    Args:
        model: its processors and its frozen encoder read the data.
        data: the card and its columns.
        split: of the card.
        blind: leave the input out.

    Raises:
        UserError: a value is missing or cannot be read; the message names the card, the split, the row from 0, and the column.
    """

    def __init__(self, model: Captioner, data: CaptionData, split: str, blind: bool = False) -> None:
        self.rows, self.text = open_rows(data.card, split, [data.input, data.text], limit=data.limit), data.text
        self.modality, self.blind = model.modality, blind
        self.inputs, self.process = self.rows[data.input], model.processors[model.modality]
        self.references = self.rows[data.text].texts()
        self.pairs: list[tuple[int, Tensor]] = []
        for i, captions in enumerate(self.references):
            with self.rows.at(i, data.text):
                self.pairs += [(i, model.processors["text"](caption)) for caption in captions]
        self.features: dict[str, Tensor] = {}
        if not model.trained_encoder:
            self.features = model.all_features(self.inputs, [self.rows.fingerprint, data.input])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item, ids = self.pairs[index]
        return {"text": ids} if self.blind else {**self.given(item), "text": ids}

    def given(self, item: int) -> dict[str, Tensor]:
        """The captioner's input of one row."""
        if self.features:
            return {"features": self.features["features"][item]}
        return {self.modality: self.inputs.read(item, self.process)}

    def batches(self, size: int = PREFIXES) -> list[Batch]:
        """The inputs of all rows in order, without captions."""
        items = range(len(self.references))
        return [collate([self.given(i) for i in items[start : start + size]]) for start in items[::size]]

    def check_references(self) -> None:
        """Fail unless every row has captions that can be scored.

        Raises:
            UserError: one has none, or one without a word.
        """
        for i, captions in enumerate(self.references):
            if not captions or not all(tokenize(caption) for caption in captions):
                what, expected = self.rows.place(i, self.text), "captions of at least one word each"
                raise UserError(what, got=captions, expected=expected, fix="drop the row, or fill it in")


def caption_vocabulary(language_model: str, dtype: str, texts: Sequence[str]) -> list[int]:
    """The tokens of training captions, ascending: all that soft words can be made of.

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
    if blind:  # what nothing reads has no gradient
        model.encoder.requires_grad_(False)
    captions = Captions(model, data, "train", blind)
    if captions.features:
        model.words.standardise(captions.features["features"])
    run.fit(model, captions, config.fit_words, phases=("words",))


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
    if blind:
        model.encoder.requires_grad_(False)
        run.fit(model, Captions(model, config.data, "train", blind), config.fit)  # without input no item has neighbours
        return
    data, samples = Captions(model, config.data, "train"), None
    if _shows_samples(config):
        shown = Captions(model, replace(config.data, limit=SHOWN), "validation")
        options = {**asdict(config.decoding), "neighbours": 0}  # captions are remembered at the end of training

        def samples(model: Captioner) -> Image.Image | str:
            said = [c for batch in shown.batches() for c in model.generate(batch.to(model.step.device), **options)]
            return captions_shown(shown, said)

    def remember(model: Captioner) -> None:
        rows = range(len(data))
        batches = (collate([data[i] for i in rows[at : at + PREFIXES]], model.sequences) for at in rows[::PREFIXES])
        model.remember(batch.to(model.step.device) for batch in batches)

    run.fit(model, data, config.fit, samples=samples, finish=remember)


def captions_shown(data: Captions, captions: Sequence[str]) -> Image.Image | str:
    """The first rows of ``data`` with these captions: a sheet of pictures, or for sounds a text of a line each."""
    if data.modality != "image":
        return "\n".join(captions) + "\n"
    pictures = [read_bytes(data.inputs[i], "image")[1] for i in range(len(captions))]
    return contact_sheet([Sample(picture, {"captioner": caption}) for picture, caption in zip(pictures, captions)])


def _shows_samples(config: CaptionerConfig) -> bool:
    return config.fit.sample_every > 0 and "validation" in read_card(config.data.card).splits


def captioner_stages(**options: Any) -> list[Stage]:
    """The stages of a captioner and of its blind baseline.

    Args:
        options: of `captioner`, such as ``reader``.
    """
    both = words, captioner.named("captioner", **options)
    return [*both, words.named("blind_words", blind=True), captioner.named("blind", blind=True, **options)]
