"""Supervised visual question answering: a frozen language model is asked about pictures that it reads as soft words.

mmgen train vqa_supervised                                                 # easy_vqa, two CPU cores
mmgen train vqa_supervised prompt.steps=400 seed=1                         # any key of the config
accelerate launch recipes/vqa_supervised/train.py --config recipes/vqa_supervised/gpu.yaml
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from mmgen import processes
from mmgen.cli import main
from mmgen.conditioning.few_shot import Format
from mmgen.conditioning.language_model import load_language_model
from mmgen.data.batch import Batch, collate
from mmgen.data.cards import check_column, read_card
from mmgen.data.processors import read_bytes
from mmgen.data.rows import DataSet, open_rows
from mmgen.data.text import tokens_of
from mmgen.errors import UserError
from mmgen.metrics.vqa import exact_match
from mmgen.models.answerer import Answerer
from mmgen.models.base import load
from mmgen.models.captioner import Captioner
from mmgen.ranges import AtLeast
from mmgen.storage import read_json
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.loop import fit
from mmgen.training.model_card import ModelCard, write_model_card
from mmgen.training.recipe import Recipe, run_details, stage_folder
from mmgen.training.report import Sample, write_report

AT_ONCE = 128  # pictures that are encoded together in evaluation


@dataclass
class Data:
    """A data card and its columns.

    Args:
        card: name or path.
        image: the column of pictures.
        question: the column of questions; one that ends in "?" is asked about every picture instead.
        answer: the column of answers.
        picture: the column that tells pictures apart where several rows share one; "": each row has its own.
        names: groups of answers, such as colours and shapes. A picture's caption is the one word of each group that its
            open questions and answers hold, in the order of the groups; it has none where one is missing.
        limit: rows of a split that are read; 0 takes all.
    """

    card: str = "easy_vqa"
    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    picture: str = "image_id"
    names: list[list[str]] = field(default_factory=list)
    limit: Annotated[int, AtLeast(0)] = 0


@dataclass
class Config:
    """The config of the recipe ``vqa_supervised``.

    Args:
        words: training of the soft words, without the language model.
        prompt: training of the prompt, with captions in place of pictures.
        fit: training of both.
        blind: training of the baseline without pictures.
        format: how a question is written.
        support: training questions that the prompt starts from.
    """

    data: Data = section()
    model: section_of(Captioner) = section()
    words: FitConfig = section()
    prompt: FitConfig = section()
    fit: FitConfig = section()
    blind: FitConfig = section()
    format: str = "Picture:{image}. {question} Answer: {answer}\n"
    support: Annotated[int, AtLeast(1)] = 8
    seed: int = 0
    seeds: int = 1


class Questions:
    """The questions of a split, and for each picture its number and, where all of it is known, its caption.

    Args:
        data: the card and its columns.
        split: of the card.
    """

    def __init__(self, data: Data, split: str) -> None:
        fixed = data.question.endswith("?")
        needs = [data.image, data.answer, *([] if fixed else [data.question])]
        self.rows = open_rows(data.card, split, needs, limit=data.limit)
        n = len(self.rows)
        self.questions = [data.question] * n if fixed else self.rows[data.question][:]
        self.answers = self.rows[data.answer][:]
        ids = self.rows[data.picture][:] if data.picture else range(n)
        self.numbers = {name: i for i, name in enumerate(dict.fromkeys(ids))}
        self.pictures = [self.numbers[name] for name in ids]  # of each question
        first = {number: row for row, number in reversed([*enumerate(self.pictures)])}
        self.first = [first[number] for number in range(len(first))]  # a row of each picture
        self.captions = captions(self.pictures, self.questions, self.answers, data.names)


def captions(
    pictures: Sequence[int], questions: Sequence[str], answers: Sequence[str], names: Sequence[Sequence[str]]
) -> dict[int, str]:
    """The words that are true of each picture by its open questions, where there is one of each group.

    A question whose answer is in a group is open; what it takes for granted is true of the picture, as is its answer.

    >>> groups = [["circle"], ["red", "blue"]]
    >>> captions([0, 0, 1], ["what color is the circle?", "is it blue?", "what is it?"], ["red", "no", "circle"], groups)
    {0: ' circle red'}
    """
    group = {word: g for g, words in enumerate(names) for word in words}
    known: dict[int, dict[int, str]] = {}
    for picture, question, answer in zip(pictures, questions, answers):
        if answer in group:
            true = [*question.rstrip("?").split(), answer]
            known.setdefault(picture, {}).update({group[word]: word for word in true if word in group})
    whole = {picture: words for picture, words in known.items() if len(words) == len(names)}
    return {picture: "".join(f" {words[g]}" for g in range(len(names))) for picture, words in whole.items()}


def pictures(model: Answerer, data: Data, questions: Questions) -> DataSet:
    """The pictures of a split by their numbers, or their features by a frozen encoder."""
    rows = questions.rows.select(questions.first)
    if model.trained_encoder:
        return DataSet(rows, {"image": data.image}, model.processors)
    key = [questions.rows.fingerprint, data.image, data.picture]
    return DataSet(rows, {"features": model.all_features(rows[data.image], key)["features"]})


class Asked(Sequence):
    """Questions as an `Answerer` learns them.

    Args:
        model: writes them.
        questions: of one split.
        pictures: of the same split; None leaves pictures and captions out.
        known: leave out the questions about a picture without a caption.
    """

    def __init__(self, model: Answerer, questions: Questions, pictures: DataSet | None, known: bool = False) -> None:
        self.model, self.questions, self.pictures = model, questions, pictures
        self.items = [i for i, p in enumerate(questions.pictures) if p in questions.captions or not known]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor | None]:
        i, known = self.items[index], self.questions
        if self.pictures is None:
            return self.model.row(known.questions[i], known.answers[i], None)
        picture = known.pictures[i]
        row = self.model.row(known.questions[i], known.answers[i], known.captions.get(picture))
        return {**self.pictures[picture], **row}


def check(config: Config) -> None:
    """The columns are there, captions can be made, and the format is one."""
    card, data = read_card(config.data.card), config.data
    data.image = check_column(card, "data.image", data.image, "image")
    data.answer = check_column(card, "data.answer", data.answer, "text")
    if not data.question.endswith("?"):
        data.question = check_column(card, "data.question", data.question, "text")
    if data.picture:
        data.picture = check_column(card, "data.picture", data.picture)
    if not data.names or not all(data.names):
        fix = "list the words that tell pictures apart, as [[circle, square], [red, blue]]"
        raise UserError("data.names", got=data.names, expected="one or more groups of answers", fix=fix)
    Format(config.format)


def train_words(config: Config, run: Path, resume: bool) -> None:
    """Teach the soft words to say what pictures show, without the language model's forward pass."""
    torch.manual_seed(config.seed)
    questions = Questions(config.data, "train")
    model = new_answerer(config, questions)
    seen = pictures(model, config.data, questions)
    if not model.trained_encoder:
        model.words.standardise(seen.values["features"])
    data = Asked(model, questions, seen, known=True)
    folder = stage_folder(RECIPE, run, "words")
    fit(model, data, replace(config.words, seed=config.seed), folder, resume=resume, phases=("words",))


def train_prompt(config: Config, run: Path, resume: bool) -> None:
    """Train the prompt on questions about captions: with them it is the text oracle."""
    model = load(stage_folder(RECIPE, run, "words"), dtype=config.model.dtype)
    questions = Questions(config.data, "train")
    data = Asked(model, questions, pictures(model, config.data, questions), known=True)
    folder = stage_folder(RECIPE, run, "prompt")
    fit(model, data, replace(config.prompt, seed=config.seed), folder, resume=resume, phases=("prompt",))


def train(config: Config, run: Path, resume: bool) -> None:
    """Train soft words and prompt together through the frozen language model."""
    model = load(stage_folder(RECIPE, run, "prompt"), dtype=config.model.dtype)
    questions = Questions(config.data, "train")
    data = Asked(model, questions, pictures(model, config.data, questions))
    fit(model, data, replace(config.fit, seed=config.seed), run, resume=resume)


def train_blind(config: Config, run: Path, resume: bool) -> None:
    """Train the same without pictures: one prompt, learned for all."""
    torch.manual_seed(config.seed)
    questions = Questions(config.data, "train")
    model = new_answerer(config, questions)
    model.encoder.requires_grad_(False)  # what nothing reads has no gradient
    data = Asked(model, questions, None)
    folder = stage_folder(RECIPE, run, "blind")
    fit(model, data, replace(config.blind, seed=config.seed), folder, resume=resume)


def new_answerer(config: Config, questions: Questions) -> Answerer:
    """One whose soft words are made of the captions' tokens, and whose prompt starts from training questions at random."""
    said = sorted(set(questions.captions.values()))
    if not said:
        fix = "give names that its open questions hold"
        raise UserError("data.names", got=config.data.names, expected=f"captions of pictures in {config.data.card}", fix=fix)
    _, tokenizer = load_language_model(config.model.language_model, config.model.dtype)
    tokens = sorted({token for ids in tokens_of(tokenizer, said, add_special_tokens=False)["input_ids"] for token in ids})
    known = [i for i, picture in enumerate(questions.pictures) if picture in questions.captions]
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(config.seed))[: config.support]
    shots = [
        [questions.captions[questions.pictures[i]], questions.questions[i], questions.answers[i]]
        for i in (known[place] for place in order.tolist())
    ]
    values = asdict(config.model)
    return Answerer({**values, "vocabulary": values["vocabulary"] or tokens}, config.format, shots)


@torch.no_grad()
def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """Exact match of the answers after the VQA normalisation, and of four baselines, on ``split``."""
    device = processes.device()
    folders = (stage_folder(RECIPE, run, name) for name in ("answerer", "prompt", "blind"))
    model, oracle, blind = (load(folder, dtype=config.model.dtype).to(device) for folder in folders)
    known, training = Questions(config.data, split), Questions(config.data, "train")
    asked = [model.row(question, "?")["question"].to(device) for question in known.questions]
    batches = pictures(model, config.data, known).batches(f"pictures of {split}", AT_ONCE, device=device)
    words = torch.cat([model.encode(batch) for batch in batches])  # (p, n, d)
    said = model.answer(words[torch.tensor(known.pictures)], asked)

    described = [i for i, picture in enumerate(known.pictures) if picture in known.captions]
    told = collate([model.row("?", "?", known.captions[known.pictures[i]]) for i in described], model.sequences).to(device)
    by_words = oracle.answer(oracle.named(told["caption"], told.masks["caption"]), [asked[i] for i in described])
    nothing = Batch({"features": model.words.mean[None]}, present={"features": torch.tensor([False], device=device)})
    unseen = blind.answer(blind.encode(nothing).expand(len(asked), -1, -1), asked)

    most = Counter(training.answers).most_common(1)[0][0]
    counts: dict[str, Counter[str]] = {}
    for question, answer in zip(training.questions, training.answers):
        counts.setdefault(question, Counter())[answer] += 1
    likeliest = [counts[q].most_common(1)[0][0] if q in counts else most for q in known.questions]
    true = [known.answers[i] for i in described]
    file = run / "predictions" / f"{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"answerer": said, "blind": unseen}), encoding="utf-8")
    return {
        "accuracy": exact_match(said, known.answers),
        "accuracy_blind": exact_match(unseen, known.answers),
        "accuracy_text_oracle": exact_match(by_words, true),
        "accuracy_described": exact_match([said[i] for i in described], true),
        "accuracy_majority": exact_match([most] * len(said), known.answers),
        "accuracy_majority_by_question": exact_match(likeliest, known.answers),
    }


def report(run: Path, config: Config) -> None:
    """Write ``report.html`` and ``README.md`` from the metrics and predictions that evaluations left in ``run``."""
    card, names = read_card(config.data.card), ("", "_blind", "_text_oracle", "_majority", "_majority_by_question")
    table, samples = {}, []
    for split, figures in read_json(run / "metrics.json").items():
        table[split] = {(n[1:] or "answerer").replace("_", " "): {"accuracy": figures[f"accuracy{n}"]} for n in names}
        said, known = (
            json.loads((run / "predictions" / f"{split}.json").read_text(encoding="utf-8")),
            Questions(config.data, split),
        )
        for i in range(0, len(known.answers), max(1, len(known.answers) // 24)):
            text = {"question": known.questions[i], **{name: said[name][i] for name in ("answerer", "blind")}}
            image = read_bytes(known.rows[config.data.image][i], "image")[1]
            samples.append(Sample(image, {**text, "reference": known.answers[i]}, group=split))
    lm = config.model.language_model
    summary = (
        f"{lm}, frozen, is asked about pictures of {card.name} that it reads as {config.model.words} soft words. blind: the "
        "same training without pictures. text oracle: true captions in place of pictures, with a prompt trained on such. "
        "majority: the most frequent answer of training, to all questions or to each."
    )
    details = run_details(run)
    write_report(run / "report.html", f"Questions about {card.name}", table, samples[:24], details, summary)
    write_model_card(run / "README.md", ModelCard(
        name=f"vqa-{card.name}",
        description=f"Answers about {card.name} by a frozen {lm} that reads soft words after a learned prompt.",
        license="apache-2.0",
        task="visual-question-answering",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture=None,
        intended_use="Research on prefixes and prompts for frozen language models.",
        limitations=[
            "It answers the kinds of question that it was trained on, about pictures like those of the data card.",
            "The frozen language model brings the biases of its own training text.",
        ],
        tags=["visual-question-answering", "prefix-tuning"],
        base_model=lm if "/" in lm else None,
    ))  # fmt: skip


RECIPE = Recipe(
    name="vqa_supervised",
    config=Config,
    stages={"words": train_words, "prompt": train_prompt, "answerer": train, "blind": train_blind},
    main="answerer",
    evaluate=evaluate,
    splits=("test", "validation"),
    report=report,
    check=check,
    above={"accuracy": ("accuracy_blind",)},
)

if __name__ == "__main__":
    sys.exit(main(["train", "vqa_supervised", *sys.argv[1:]]))
