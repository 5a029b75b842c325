"""Few-shot questions to a captioner: it has learned from captions only, and new tasks come as examples in its prompt.

mmgen train vqa_fewshot                                                    # captions of openmoji, two CPU cores
mmgen train vqa_fewshot words.from=RUN captioner.from=RUN                  # those that a run of `captioning` has learned
accelerate launch recipes/vqa_fewshot/train.py --config recipes/vqa_fewshot/gpu.yaml
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.cli import main
from mmgen.conditioning.channel import channel
from mmgen.conditioning.few_shot import Episode, Example, Format, answer, read, score
from mmgen.data.batch import collate
from mmgen.data.cards import check_column, read_card
from mmgen.data.episodes import FewShotEpisode, episodes
from mmgen.data.rows import Rows, open_rows
from mmgen.errors import UserError, counted
from mmgen.metrics.vqa import exact_match
from mmgen.models.base import load
from mmgen.models.captioner import Captioner
from mmgen.ranges import AtLeast, Each
from mmgen.storage import read_json
from mmgen.training.config import section
from mmgen.training.model_card import ModelCard, write_model_card
from mmgen.training.recipe import Recipe, load_recipe, run_details
from mmgen.training.report import write_report

AT_ONCE = 64  # pictures that are encoded together
WAYS = {2: "two", 5: "five"}
KINDS = {"seen": "", "blind": "_blind", "oracle": "_text_oracle"}  # what stands for a picture -> the end of the figure's name
KNOWLEDGE = {"seen": "knowledge_accuracy", "blind": "knowledge_accuracy_blind", "oracle": "knowledge_text_oracle"}


def captioning() -> ModuleType:
    """The recipe ``captioning``, whose stages train the captioner."""
    return sys.modules[load_recipe("captioning").config.__module__]


@dataclass
class Questions:
    """Questions about pictures, asked after examples.

    Args:
        card: a data card.
        support: its split that examples are taken from.
        image: the column of pictures.
        answer: the column of answers.
        question: the column of questions; one that ends in "?" is asked about every picture instead.
        template: the column that tells kinds of question apart, whose examples are of the same kind; "": all are one.
        answers: the column of a question's closed set of answers; "": all answers of ``support``.
        caption: the column of a picture's true description, read in its place by the text oracle; "": there is none.
        format: how a question is written.
        shots: numbers of examples.
        supports: sets of examples of a kind, which share its questions.
        queries: questions of a split, in an order by chance; 0 takes all.
        open: let the language model say an answer, beside choosing one of the closed set.
        max_tokens: longest answer that it says.
        prior: subtract the score that each answer has where the picture is left out.
    """

    card: str
    support: str
    format: str
    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    template: str = ""
    answers: str = ""
    caption: str = ""
    shots: Annotated[list[int], Each(AtLeast(0))] = field(default_factory=lambda: [0, 1, 4])
    supports: Annotated[int, AtLeast(1)] = 8
    queries: Annotated[int, AtLeast(0)] = 400
    open: bool = True
    max_tokens: Annotated[int, AtLeast(1)] = 6
    prior: bool = False


@dataclass
class Binding:
    """Fast binding: invented words for classes that no caption named, learned from the prompt and asked of another picture.

    Args:
        card: a data card.
        image: the column of pictures.
        label: the column of their classes; rows without a label are left out.
        words: the invented words; episodes of w ways have the first w of them.
        ways: classes of an episode.
        inner_shots: examples of a class; each without the induction sentence, the last with it too.
        repeats: how many more times the examples are shown, with the first of ``inner_shots``.
        episodes: episodes of each cell, of one query each.
        controls: episodes of the cells with repeats or the induction sentence, and episodes of every cell that are also
            answered in the order of ``format``, the word after the picture, and blind.
        format: how an example is written.
        induction: a sentence before the examples; ``{words}`` in it are the words.
        between: text between a word and its picture where the picture comes after the word.
    """

    card: str = "openmoji"
    image: str = "image"
    label: str = "base"
    words: list[str] = field(default_factory=lambda: ["dax", "blicket", "wug", "toma", "zav"])
    ways: Annotated[list[int], Each(AtLeast(2))] = field(default_factory=lambda: [2, 5])
    inner_shots: Annotated[list[int], Each(AtLeast(1))] = field(default_factory=lambda: [1, 3, 5])
    repeats: Annotated[list[int], Each(AtLeast(1), empty=True)] = field(default_factory=lambda: [1, 3, 5])
    episodes: Annotated[int, AtLeast(1)] = 600
    controls: Annotated[int, AtLeast(1)] = 120
    format: str = "{image} is a {answer}\n"
    induction: str = "Answer with {words}.\n"
    between: str = ":"


@dataclass
class Config(captioning().Config):
    """The config of ``captioning``, and the questions for the captioner.

    Args:
        vqa: questions about what a picture shows.
        knowledge: questions that take knowledge beside the picture.
        binding: fast binding of invented words to classes.
    """

    vqa: Questions = section(card="easy_vqa", support="train", format="{image}. {question} {answer}\n")
    knowledge: Questions = section(card="openmoji_facts", support="support", format="{image}. {question} {answer}\n")
    binding: Binding = section()


def check(config: Config) -> None:
    """The columns are there, and the formats are such."""
    captioning().check(config)
    for name, part in (("vqa", config.vqa), ("knowledge", config.knowledge)):
        card = read_card(part.card)
        for placeholder in ("{image}", "{question}"):
            if placeholder not in part.format:
                fix = "write it as in '{image}. {question} {answer}\\n'"
                raise UserError(f"{name}.format", got=repr(part.format), expected=f"{placeholder} in it", fix=fix)
        Format(part.format).blind()
        part.image = check_column(card, f"{name}.image", part.image, "image")
        for key in ("question", "answer", "template", "answers", "caption"):
            if (column := getattr(part, key)) and not column.endswith("?"):
                check_column(card, f"{name}.{key}", column)
    card, part = read_card(config.binding.card), config.binding
    Format(part.format).blind()
    part.image = check_column(card, "binding.image", part.image, "image")
    part.label = check_column(card, "binding.label", part.label)
    if len(set(part.words)) < len(part.words) or not all(word.strip() for word in part.words):
        raise UserError("binding.words", got=part.words, expected="different words", fix="leave the repeated ones out")
    if max(part.ways) > len(part.words):
        expected = f"at least {max(part.ways)}, the most ways"
        fix = "add words, or take fewer ways"
        raise UserError("binding.words", got=counted(len(part.words), "word"), expected=expected, fix=fix)


def read_words(model: Captioner, rows: Rows, column: str) -> list[Tensor]:
    """The tokens (n,) that each picture is named by."""
    images, device = rows[column], processes.device()
    if model.trained_encoder:
        made = [images.read(i, model.processors["image"]) for i in range(len(images))]
        given = [{"image": picture} for picture in made]
    else:
        given = [{"features": row} for row in model.all_features(images, [rows.fingerprint, column])["features"]]
    batches = [collate(given[i : i + AT_ONCE]).to(device) for i in range(0, len(given), AT_ONCE)]
    return [words for batch in batches for words in model.names(batch)]


def ask(model: Captioner, part: Questions, split: str, seed: int) -> tuple[Rows, dict[str, list[str]]]:
    """Ask questions after examples of their kind.

    Returns:
        The rows that were asked about, and the answers to each: under ``closed/KIND/SHOTS`` those chosen, under
        ``plain/KIND/SHOTS`` those chosen without the prior, under ``open/KIND/SHOTS`` those said; KIND is ``seen``,
        ``blind`` or ``oracle``.
    """
    random = np.random.default_rng([seed, 0])
    if split == part.support:  # a question could be its own example
        fix = "evaluate another split, or take the examples from another"
        raise UserError(f"examples for {part.card}", got=f"those of {split}", expected="those of another split", fix=fix)
    rows, pool = (question_rows(part, name) for name in (split, part.support))
    rows = rows.select(random.permutation(len(rows))[: part.queries or None])
    sets = []  # of each the rows of its examples and those of its questions
    kinds = [*zip(column(rows, part.template), map(tuple, column(rows, part.answers)))]  # with one closed set each
    for kind in dict.fromkeys(kinds):
        alike = [i for i, other in enumerate(column(pool, part.template)) if other == kind[0]]
        asked = [i for i, other in enumerate(kinds) if other == kind]
        if len(alike) < max(part.shots):
            got, expected = f"{len(alike)} in {part.support}", f"{max(part.shots)}, the most shots"
            raise UserError(f"examples of {kind[0]!r}", got=got, expected=expected, fix="ask after fewer shots")
        for s in range(min(part.supports, len(asked))):
            sets.append((random.permutation(alike)[: max(part.shots)].tolist(), asked[s :: part.supports]))
    shown = pool.select([i for support, _ in sets for i in support])
    pictures = {"seen": (read_words(model, shown, part.image), read_words(model, rows, part.image)), "blind": None}
    if part.caption:
        pictures["oracle"] = tuple([model.language_model.tokens(t) for t in data[part.caption]] for data in (shown, rows))
    everything = sorted(set(pool[part.answer]))
    made: dict[str, list[str]] = {}
    bar = tqdm(total=len(pictures) * len(part.shots) * len(sets), desc=f"questions of {part.card}", dynamic_ncols=True)
    for name, words in pictures.items():
        for k in part.shots:
            place = 0
            for support, asked in sets:
                shots = [example(model, part, shown, place + i, words and words[0]) for i in range(k)]
                queries = [example(model, part, rows, i, words and words[1]) for i in asked]
                answers = rows[part.answers][asked[0]] if part.answers else everything
                for way, said in answered(model, part, shots, queries, answers):
                    all_said = made.setdefault(f"{way}/{name}/{k}", [""] * len(rows))
                    for i, text in zip(asked, said):
                        all_said[i] = text
                place += len(support)
                bar.update()
    return rows, made


def question_rows(part: Questions, split: str) -> Rows:
    """The rows of a split, of which nothing that is asked by may be missing."""
    names = (part.image, part.question, part.answer, part.answers, part.template, part.caption)
    return open_rows(part.card, split, [name for name in dict.fromkeys(names) if name and not name.endswith("?")])


def column(rows: Rows, name: str) -> Sequence[Any]:
    """A column's values; without a name "" for each row, and a name that ends in "?" for each row."""
    return rows[name] if name and not name.endswith("?") else [name] * len(rows)


def example(model: Captioner, part: Questions, rows: Rows, i: int, words: Sequence[Tensor] | None) -> Example:
    """Row i, with these words as its picture or without a picture."""
    image = None if words is None else model.language_model.embed(words[i])
    return Example(column(rows, part.question)[i], rows[part.answer][i], image)


def answered(
    model: Captioner, part: Questions, shots: list[Example], queries: list[Example], answers: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """``closed`` with the answers that are chosen, ``plain`` without the prior, and ``open`` with those that are said."""
    lm, format = model.language_model, Format(part.format)
    blind = format.blind()
    shared = read(lm, blind if queries[0].image is None else format, Episode(shots))
    scores = score(lm, shared, queries, answers)  # (b, a)
    if part.prior and queries[0].image is not None:
        yield "plain", [answers[i] for i in scores.argmax(1).tolist()]
        unseen = read(lm, blind, Episode([Example(shot.question, shot.answer) for shot in shots]))
        scores = scores - score(lm, unseen, [Example(query.question) for query in queries], answers)
    yield "closed", [answers[i] for i in scores.argmax(1).tolist()]
    if part.open:
        yield "open", answer(lm, shared, queries, part.max_tokens)


def bind(model: Captioner, part: Binding, split: str, seed: int) -> dict[str, float]:
    """Accuracies of fast binding by cell, such as ``two_way_5_shots_induction`` or ``two_way_1_shots_1_repeats``."""
    rows = open_rows(part.card, split, [part.image], [part.label]).having(part.label)
    words, labels, last = read_words(model, rows, part.image), rows[part.label], part.inner_shots[-1]
    cells = [
        *((ways, k, "", 0) for ways in part.ways for k in part.inner_shots),
        *((ways, last, part.induction, 0) for ways in part.ways if part.induction),
        *((ways, part.inner_shots[0], "", repeats) for ways in part.ways for repeats in part.repeats),
    ]
    figures: dict[str, float] = {}
    for ways, k, induction, repeats in tqdm(cells, desc=f"episodes of {part.card}", dynamic_ncols=True):
        name = f"{WAYS.get(ways, ways)}_way_{k}_shots"
        name += ("_induction" if induction else "") + (f"_{repeats}_repeats" if repeats else "")
        # the same episodes whatever the shots, as `at_least` is the same: cells are compared pair by pair
        count = part.controls if induction or repeats else part.episodes
        drawn = episodes(labels, ways, k, count, seed, part.words[:ways], at_least=last + 1)
        figures |= {name + end: value for end, value in cell(model, part, drawn, words, ways, induction, repeats).items()}
    return figures


def cell(
    model: Captioner,
    part: Binding,
    drawn: list[FewShotEpisode],
    words: list[Tensor],
    ways: int,
    induction: str,
    repeats: int,
) -> dict[str, float]:
    """Accuracy of the episodes, by the likelihood of the picture's words and with its 95 % interval; the controls beside."""
    lm, names = model.language_model, part.words[:ways]
    nothing = words[0][:0]
    induction = induction.replace("{words}", " or ".join(names))
    said: dict[str, list[str]] = {}
    for end, see in (("", lambda row: words[row]), ("_blind", lambda row: nothing)):
        some = drawn[: part.controls] if end else drawn
        supports = [[(w, see(r)) for r, w in zip(e.support, e.support_words)] * (1 + repeats) for e in some]
        scores = channel(lm, supports, [see(e.query) for e in some], names, induction, part.between)  # (e, w)
        said[end] = [names[i] for i in scores.argmax(1).tolist()]
    for end, format in (("_direct", Format(part.format)), ("_direct_blind", Format(part.format).blind())):
        image = (lambda row: lm.embed(words[row])) if end == "_direct" else (lambda row: None)
        prompts = []
        for e in drawn[: part.controls]:
            shots = [Example(answer=w, image=image(r)) for r, w in zip(e.support, e.support_words)]
            written = format.shots(Episode(shots, repeats, induction))
            parts = [piece for shot in written for piece in shot] + format.query(Example(image=image(e.query)))
            prompts.append(Example(image=lm.prompt([parts]).embeddings[0]))
        shared = read(lm, Format(f"{{image}}{format.lead}{{answer}}{format.stop}"))  # each prompt is an episode of its own
        said[end] = [names[i] for i in score(lm, shared, prompts, names).argmax(1).tolist()]
        if end == "_direct":
            said["_open"] = answer(lm, shared, prompts, max_tokens=6)
    figures = {end: exact_match(made, [e.word for e in drawn[: len(made)]]) for end, made in said.items()}
    return {**figures, "_interval": wilson(figures[""], len(drawn))}


def wilson(p: float, n: int, z: float = 1.96) -> float:
    """Half the width of Wilson's interval for a share p of n.

    >>> round(wilson(0.5, 100), 3), round(wilson(1.0, 100), 3)
    (0.096, 0.018)
    """
    return z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))


@torch.no_grad()
def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """Exact match by shots, knowledge of what is shown beyond what is seen, and fast binding, each beside its controls."""
    model = load(run, dtype=config.model.dtype).to(processes.device())
    rows, made = ask(model, config.vqa, split, config.seed)
    true, pool = rows[config.vqa.answer][:], question_rows(config.vqa, config.vqa.support)[config.vqa.answer][:]
    figures: dict[str, float] = {"accuracy_majority": exact_match([Counter(pool).most_common(1)[0][0]] * len(true), true)}
    for name, said in made.items():
        way, kind, k = name.split("/")
        if way == "plain":
            continue
        chosen = "_closed" if way == "closed" and config.vqa.open else ""
        figures[f"accuracy{KINDS[kind]}_{k}{chosen}"] = exact_match(said, true)
    asked = {"vqa": [{"question": q, "reference": t} for q, t in zip(column(rows, config.vqa.question), true)]}
    for name, said in made.items():
        for row, text in zip(asked["vqa"], said):
            row[name] = text

    part = config.knowledge
    rows, made = ask(model, part, split, config.seed)
    true, last, of = rows[part.answer][:], max(part.shots), column(rows, part.template)[:]
    chosen = {kind: made[f"closed/{kind}/{last}"] for kind in KNOWLEDGE if f"closed/{kind}/{last}" in made}
    figures |= {KNOWLEDGE[kind]: exact_match(said, true) for kind, said in chosen.items()}
    if f"plain/seen/{last}" in made:
        figures["knowledge_accuracy_plain"] = exact_match(made[f"plain/seen/{last}"], true)
    figures["knowledge_gain"] = figures["knowledge_accuracy"] - figures["knowledge_accuracy_blind"]
    templates: dict[str, dict[str, float]] = {}
    for template in dict.fromkeys(of):
        which = [i for i, other in enumerate(of) if other == template]
        right = {k: exact_match([said[i] for i in which], [true[i] for i in which]) for k, said in chosen.items()}
        templates[template] = {**right, "questions": len(which)}

    figures |= bind(model, config.binding, split, config.seed)
    for ways in config.binding.ways:
        figures[f"{WAYS.get(ways, ways)}_way_accuracy"] = figures[
            f"{WAYS.get(ways, ways)}_way_{config.binding.inner_shots[-1]}_shots"
        ]
    file = run / "predictions" / f"{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"vqa": asked["vqa"], "knowledge": templates}), encoding="utf-8")
    return figures


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics and predictions that evaluations left in ``run``."""
    metrics, card, lm = read_json(run / "metrics.json"), read_card(config.data.card), config.model.language_model
    table: dict[str, dict[str, dict[str, float]]] = {}
    details = run_details(run)
    for split, figures in metrics.items():
        said = json.loads((run / "predictions" / f"{split}.json").read_text(encoding="utf-8"))
        rows: dict[str, dict[str, float]] = {}
        for k in sorted(config.vqa.shots, reverse=True):  # the model card takes the first row
            accuracy, blind = (figures[f"accuracy{end}_{k}"] for end in ("", "_blind"))
            majority = figures["accuracy_majority"]
            rows[f"{config.vqa.card}, {k} shots"] = {"accuracy": accuracy, "blind": blind, "majority": majority}
        rows[config.knowledge.card] = {
            {"seen": "accuracy", "oracle": "text oracle"}.get(name, name): figures[key]
            for name, key in KNOWLEDGE.items()
            if key in figures
        }
        for key in (key for key in figures if key.endswith("_interval")):
            name = key.removesuffix("_interval")
            names = {"accuracy": "", "interval": "_interval", "blind": "_blind", "word last": "_direct", "said": "_open"}
            rows[name.replace("_", " ")] = {n: figures[name + end] for n, end in names.items()}
        table[split] = rows
        details[f"{config.knowledge.card} by template, {split}"] = "\n".join(
            f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items())
            for name, row in said["knowledge"].items()
        )
    summary = (
        f"{lm}, frozen, reads pictures as words that it learned from captions of {card.name}; tasks are shown in its prompt. "
        "blind: the same prompts without pictures. word last: the invented word is scored after the picture, not before it."
    )
    write_report(run / "report.html", f"Few-shot questions after captions of {card.name}", table, [], details, summary)
    write_model_card(run / "README.md", ModelCard(
        name=f"fewshot-{card.name}",
        description=f"A frozen {lm} that reads pictures as soft words learned from captions of {card.name}.",
        license="apache-2.0",
        task="visual-question-answering",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture=None,
        intended_use="Research on few-shot learning by prompts of pictures and text.",
        limitations=[
            "It reads a picture as what the data card's captions name, and as nothing else.",
            "It repeats the card's wording for skin tone, gender and age, right or wrong: do not use it to describe people.",
            "The frozen language model brings the biases of its own training text.",
        ],
        tags=["few-shot", "visual-question-answering", "prefix-tuning"],
        base_model=lm if "/" in lm else None,
        evaluated=config.vqa.card,
    ))  # fmt: skip


RECIPE = Recipe(
    name="vqa_fewshot",
    config=Config,
    stages={name: captioning().RECIPE.stages[name] for name in ("words", "captioner")},
    main="captioner",
    evaluate=evaluate,
    splits=("test", "validation"),
    report=report,
    check=check,
    above={"knowledge_accuracy": ("knowledge_accuracy_blind",)},
)

if __name__ == "__main__":
    sys.exit(main(["train", "vqa_fewshot", *sys.argv[1:]]))
