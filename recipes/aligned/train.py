"""A shared space of pictures (or sounds) and texts, for retrieval and for `mmgen steer --toward` to steer by.

mmgen train aligned                                                        # openmoji, minutes on two CPU cores
mmgen train aligned --config flickr8k                                      # photographs with five captions each
accelerate launch recipes/aligned/train.py --config recipes/aligned/gpu.yaml
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmgen import processes
from mmgen.cli import main
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, read_card
from mmgen.data.image import ImageProcessor
from mmgen.data.rows import Column, open_rows
from mmgen.errors import UserError
from mmgen.metrics.retrieval import chance_at, r_precision, recall_at
from mmgen.models.aligned import Aligned
from mmgen.models.base import load
from mmgen.ranges import AtLeast
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.loop import fit
from mmgen.training.nested import nested_config
from mmgen.training.recipe import Recipe, cached_run

AT_ONCE = 128  # items that are read at once in evaluation
AMONG = 100  # of so many, beside the whole split
PENALTIES = (10.0, 100.0, 1000.0, 10000.0)  # of the ridge regression, one of which is chosen


@dataclass
class Data:
    """A data card and its columns.

    Args:
        card: name or path.
        input: the column of pictures or sounds.
        text: the column of texts, one or several an item.
        side: in pixels, to which pictures are reduced before they are read, for a space that will see such; 0: as they are.
        limit: items of each split; 0 takes all.
    """

    card: str = "openmoji"
    input: str = "image"
    text: str = "caption"
    side: Annotated[int, AtLeast(0)] = 0
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class Config:
    """The config of the recipe ``aligned``.

    Args:
        references: pictures of the training set, spread over it, that are kept with the model for others to be compared with.
    """

    data: Data = section()
    model: section_of(Aligned) = section()
    fit: FitConfig = section()
    references: Annotated[int, AtLeast(1)] = 256
    seed: int = 0
    seeds: int = 1


class Reduced(Column):
    """The pictures of a column at ``side`` pixels, each reduced when it is read."""

    def __init__(self, column: Column, side: int) -> None:
        super().__init__(column.rows, column.name)
        self.process = ImageProcessor(side)

    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.process.decode(self.process(super().__getitem__(index)))


class Pairs(Sequence):
    """Pairs of an item of the card and one of its texts, in order.

    Raises:
        UserError: a value that is missing or cannot be read; the message names the card, the split, the row from 0, and the
            column.
    """

    def __init__(self, model: Aligned, data: Data, split: str) -> None:
        rows = open_rows(data.card, split, [data.input, data.text], limit=data.limit)
        self.inputs, self.modality, self.process = rows[data.input], model.modality, model.processors[model.modality]
        if data.side:
            self.inputs = Reduced(self.inputs, data.side)
        self.pairs: list[tuple[int, Tensor]] = []
        said: list[str] = []
        for i, texts in enumerate(rows[data.text].texts()):
            with rows.at(i, data.text):
                self.pairs += [(i, model.tokens(text)) for text in texts]
            said += texts
        self.features: Tensor | None = None
        if not model.trained_encoder:
            side = [str(data.side)] if data.side else []
            self.features = model.all_features(self.inputs, [rows.fingerprint, data.input, *side])
        self.sentences: Tensor | None = None
        if "sentence" in model.towers:
            model.to(processes.device())
            self.sentences = model.embed(said).cpu()  # (p, e)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item, ids = self.pairs[index]
        return {**self.given(item), "text": ids} | self.said(index)

    def said(self, index: int) -> dict[str, Tensor]:
        """What the sentence embedder makes of the text of one pair, where there is one."""
        return {} if self.sentences is None else {"sentence": self.sentences[index]}

    def given(self, item: int) -> dict[str, Tensor]:
        """The picture or sound of one item of the card."""
        if self.features is not None:
            return {"features": self.features[item]}
        return {self.modality: self.inputs.read(item, self.process)}

    def batches(self, items: Sequence[int]) -> Iterator[Batch]:
        """Items of the card without their texts."""
        return (collate([self.given(i) for i in items[at : at + AT_ONCE]]) for at in range(0, len(items), AT_ONCE))

    def texts(self) -> Iterator[Batch]:
        """All texts without their items."""
        texts = [{"text": ids} | self.said(i) for i, (_, ids) in enumerate(self.pairs)]
        return (collate(texts[at : at + AT_ONCE], ["text"]) for at in range(0, len(texts), AT_ONCE))

    def plain(self) -> Tensor:
        """What the baseline reads of each item: the frozen features, or mean and deviation of each row of a spectrogram."""
        if self.features is not None:
            return self.features.float()
        values = [self.given(i)[self.modality].float() for i in range(len(self.inputs))]
        return torch.stack([torch.cat([x.mean(-1).flatten(), x.std(-1).flatten()]) for x in values])


def check(config: Config) -> None:
    """The columns are there, and of the kinds that the model reads."""
    card = read_card(config.data.card)
    config.data.input = check_column(card, "data.input", config.data.input, config.model.modality)
    config.data.text = check_column(card, "data.text", config.data.text, "text")
    if config.data.side and config.model.modality != "image":
        raise UserError("data.side", got=f"{config.data.side} of sounds", expected="0", fix="leave data.side out")


def train(config: Config, run: Path, resume: bool) -> None:
    """Train both encoders on the card's training split."""
    torch.manual_seed(config.seed)
    model = Aligned(**asdict(config.model))
    data = Pairs(model, config.data, "train")
    if data.features is not None:
        model.standardise(data.features)

    def remember(model: Aligned) -> None:
        device, n = model.feature_mean.device, len(data.inputs)
        model.remember(batch.to(device) for batch in data.batches(range(0, n, -(-n // config.references))))

    fit(model, data, replace(config.fit, seed=config.seed), run, resume=resume, finish=remember)


@torch.no_grad()
def points(model: Aligned, data: Pairs) -> dict[str, Tensor]:
    """The points of all items (n, s), and by each of the model's other towers those of all texts (p, s)."""
    device, found = model.feature_mean.device, {tower: [] for tower in model.towers}
    for batches in (data.batches(range(len(data.inputs))), data.texts()):
        for batch in batches:
            for tower, some in model.encode(batch.to(device)).mean.items():
                found[tower].append(some.cpu())
    return {tower: torch.cat(parts) for tower, parts in found.items()}


@torch.no_grad()
def mean_words(model: Aligned, data: Pairs) -> Tensor:
    """The mean token embedding of each text, less that of the table: what the baseline makes of a text, (p, d)."""
    table = model.table.weight.cpu().float() - model.word_mean.cpu()
    return F.normalize(torch.stack([table[ids].mean(0) for _, ids in data.pairs]), dim=1)


class Ridge:
    """A linear map from the features of an item to the mean word of its texts, the baseline: x (n, c), y (n, d).

    Of the `PENALTIES` it takes the one with which a tenth of the items, left out, is found best by the other nine.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.mean, self.std = x.mean(0), x.std(0, correction=min(1, len(x) - 1)).clamp(min=1e-3)
        held = torch.arange(len(x)) % 10 == 0
        x, best, kept = self.standard(x), -1.0, PENALTIES[0]
        square, cross = x[~held].T @ x[~held], x[~held].T @ y[~held]
        for penalty in PENALTIES:
            guess = F.normalize(x[held] @ self.solve(square, cross, penalty), dim=1)
            found = recall_at(F.normalize(y[held], dim=1) @ guess.T, torch.eye(int(held.sum()), dtype=torch.bool))[10]
            if found > best:
                best, kept = found, penalty
        self.weights = self.solve(square + x[held].T @ x[held], cross + x[held].T @ y[held], kept)  # (c, d)

    def standard(self, x: Tensor) -> Tensor:
        """Standardise features (n, c)."""
        return ((x - self.mean) / self.std).clamp(-10, 10)

    def solve(self, square: Tensor, cross: Tensor, penalty: float) -> Tensor:
        """Solve the normal equations: weights (c, d)."""
        return torch.linalg.solve(square + penalty * torch.eye(len(square)), cross)

    def __call__(self, x: Tensor) -> Tensor:
        """Predict normalised points (n, d)."""
        return F.normalize(self.standard(x) @ self.weights, dim=1)


def recalls(scores: Tensor, right: Tensor, end: str = "") -> dict[str, float]:
    """Recall of items by texts (``item_``) and of texts by items (``text_``), among all and among `AMONG`."""
    figures = {}
    for what, (some, true) in {"item": (scores.T, right.T), "text": (scores, right)}.items():
        figures |= {f"{what}_r{k}{end}": value for k, value in recall_at(some, true).items()}
        figures |= {f"{what}_r{k}_of_{AMONG}{end}": value for k, value in recall_at(some, true, among=AMONG).items()}
    return figures


def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """Recall at 1, 5 and 10 of the model, of ridge regression (``_ridge``) and of chance (``_chance``).

    ``_sentence`` is of texts as the sentence embedder reads them, where the model has one.
    """
    model = load(run, dtype=config.model.dtype).to(processes.device())
    data, train_data = Pairs(model, config.data, split), Pairs(model, config.data, "train")
    found = points(model, data)
    x = found[model.modality]
    items = torch.tensor([i for i, _ in data.pairs])  # (p,)
    right = torch.arange(len(x))[:, None] == items  # (n, p)
    figures = recalls(x @ found["text"].T, right)
    if "sentence" in found:
        figures |= recalls(x @ found["sentence"].T, right, "_sentence")
    of = torch.tensor([i for i, _ in train_data.pairs])[:, None]
    words = mean_words(model, train_data)  # (p, d)
    each = torch.zeros(len(train_data.inputs), words.shape[1]).scatter_add_(0, of.expand_as(words), words)
    figures |= recalls(Ridge(train_data.plain(), each)(data.plain()) @ mean_words(model, data).T, right, "_ridge")
    for what, true in {"item": right.T, "text": right}.items():
        figures |= {f"{what}_r{k}_chance": value for k, value in chance_at(true).items()}
    return figures | {"scale": model.scale.item()}


def report(run: Path, config: Config) -> None:
    """Write the run's ``README.md``."""
    lines = [f"# {config.data.input} and {config.data.text} of {read_card(config.data.card).name} in one space"]
    for split, figures in read_json(run / "metrics.json").items():
        lines += ["", f"## {split}", "", "| | R@1 | R@5 | R@10 |", "| --- | ---: | ---: | ---: |"]
        for what, way in {"item": f"text to {config.model.modality}", "text": f"{config.model.modality} to text"}.items():
            ends = {"": "", "_sentence": ", by the sentence embedder", "_ridge": ", ridge", "_chance": ", chance"}
            for end, name in ends.items():
                if f"{what}_r1{end}" not in figures:
                    continue
                shown = " | ".join(f"{figures[f'{what}_r{k}{end}']:.3f}" for k in (1, 5, 10))
                lines.append(f"| {way}{name} | {shown} |")
    (run / "README.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def space_config(values: dict[str, Any], card: str, picture: str, text: str) -> Config:
    """The config of a space that judges pictures of a card: it was trained on the same card.

    Args:
        values: the config; where it names no card and columns, they are those that are judged.
        card, picture, text: what is judged, a card and its columns.

    Raises:
        UserError: it names another card, or what `check` refuses.
    """
    values = {**values, "data": {"card": card, "input": picture, "text": text, **values.get("data", {})}}
    config = nested_config("aligned", "aligned", values)
    if config.data.card != card:
        fix = f"set aligned.data.card={card}, and aligned.data.input and text, or leave it out by aligned=null"
        raise UserError("aligned.data.card", got=config.data.card, expected=card, fix=fix)
    return config


def precision(space: Aligned, pictures: Sequence[Any], texts: Sequence[str], among: int) -> float:
    """R-precision of raw pictures, one for each of ``texts``, in a space: see `mmgen.metrics.retrieval.r_precision`."""
    different = list(dict.fromkeys(texts))
    scores = (space.points(pictures, "image") @ space.points(different, "text").T).cpu()  # (n, m)
    return r_precision(scores, torch.tensor([different.index(text) for text in texts]), among=among)


def judging_space(config: Config, side: int, more: int = 0) -> Aligned:
    """A space to judge pictures of ``side`` pixels by: of a `space_config`, its seed raised by ``more``.

    It is trained on pictures of that size, where the config names none: it sees what is judged, and no finer.
    """
    data = replace(config.data, side=config.data.side or side)
    return shared_space(replace(config, data=data, seed=config.seed + more)).to(processes.device())


def shared_space(config: Config) -> Aligned:
    """The model of this config, trained at first use and then taken from the cache."""
    return load(cached_run(RECIPE, config, "aligned"))


RECIPE = Recipe(
    name="aligned",
    config=Config,
    stages={"aligned": train},
    main="aligned",
    evaluate=evaluate,
    splits=("test", "test_compositional", "validation", "validation_compositional"),
    report=report,
    check=check,
    above={"item_r10": ("item_r10_ridge",), "text_r10": ("text_r10_ridge",)},
)

if __name__ == "__main__":
    sys.exit(main(["train", "aligned", *sys.argv[1:]]))
