"""Supervised visual question answering: a frozen language model is asked about pictures that it reads as soft words.

mmgen train vqa_supervised                                                 # easy_vqa, two CPU cores
mmgen train vqa_supervised fit_prompt.steps=400 seed=1                     # any key of the config
accelerate launch recipes/vqa_supervised/train.py --config recipes/vqa_supervised/gpu.yaml
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from mmgen.cli import main
from mmgen.conditioning.few_shot import Format
from mmgen.data.batch import Batch, collate
from mmgen.data.processors import read_bytes
from mmgen.data.questions import QuestionData, Questions
from mmgen.data.rows import DataSet
from mmgen.errors import Mistakes, UserError
from mmgen.metrics.vqa import exact_match
from mmgen.models.answerer import Answerer
from mmgen.models.captioner import Captioner
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.recipe import Recipe, RecipeConfig, stage
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.stages.captioner import caption_vocabulary

AT_ONCE = 128  # pictures encoded together in evaluation
SHOWN = 24  # questions of a split in the report


@dataclass
class Config(RecipeConfig):
    """The config of the recipe ``vqa_supervised``.

    Args:
        fit_words: training of the soft words, without the language model.
        fit_prompt: training of the prompt, with captions in place of pictures.
        fit: training of both.
        fit_blind: training of the baseline without pictures.
        format: how a question is written.
        support: training questions that the prompt starts from.
    """

    renamed: ClassVar = {"words": "fit_words", "prompt": "fit_prompt", "blind": "fit_blind"}

    data: QuestionData = section()
    model: section_of(Captioner) = section()
    fit_words: FitConfig = section()
    fit_prompt: FitConfig = section()
    fit: FitConfig = section()
    fit_blind: FitConfig = section()
    format: str = "Picture:{image}. {question} Answer: {answer}\n"
    support: Annotated[int, AtLeast(1)] = 8

    def check(self, errors: Mistakes) -> None:
        """Check the format of questions."""
        Format(self.format)


class Answers(Sequence):
    """Questions with their answers, as an `Answerer` learns them.

    ``known`` leaves out the questions about a picture without a caption; without ``pictures`` all captions are left out too.
    """

    def __init__(self, model: Answerer, questions: Questions, pictures: DataSet | None, known: bool = False) -> None:
        self.model, self.questions, self.pictures = model, questions, pictures
        self.items = [i for i, p in enumerate(questions.pictures) if p in questions.captions or not known]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor | None]:
        i, known = self.items[index], self.questions
        if self.pictures is None:
            return self.model.row(known.questions[i], known.answers[i])
        picture = known.pictures[i]
        row = self.model.row(known.questions[i], known.answers[i], known.captions.get(picture))
        return {**self.pictures[picture], **row}


def pictures_of(model: Answerer, data: QuestionData, questions: Questions) -> DataSet:
    """The pictures of a split by their numbers, or their features by a frozen encoder."""
    rows = questions.rows.select(questions.first)
    if model.trained_encoder:
        return DataSet(rows, {"image": data.image}, model.processors)
    key = [questions.rows.fingerprint, data.image, data.picture]
    return DataSet(rows, {"features": model.all_features(rows[data.image], key)["features"]})


@stage()
def words(run: Run, config: Config) -> None:
    """Train the soft words to say what pictures show, without the language model's forward pass."""
    questions = Questions(config.data, "train")
    model = new_answerer(config, questions)
    pictures = pictures_of(model, config.data, questions)
    if not model.trained_encoder:
        model.words.standardise(pictures.values["features"])
    run.fit(model, Answers(model, questions, pictures, known=True), config.fit_words, phases=("words",))


@stage()
def prompt(run: Run, config: Config) -> None:
    """Train the prompt on questions about captions: with them it is the text oracle."""
    model = run.load("words", dtype=config.model.dtype)
    questions = Questions(config.data, "train")
    data = Answers(model, questions, pictures_of(model, config.data, questions), known=True)
    run.fit(model, data, config.fit_prompt, phases=("prompt",))


@stage()
def answerer(run: Run, config: Config) -> None:
    """Train soft words and prompt together through the frozen language model."""
    model = run.load("prompt", dtype=config.model.dtype)
    questions = Questions(config.data, "train")
    run.fit(model, Answers(model, questions, pictures_of(model, config.data, questions)), config.fit)


@stage()
def blind(run: Run, config: Config) -> None:
    """Train the same without pictures: one prompt, learned for all."""
    questions = Questions(config.data, "train")
    model = new_answerer(config, questions)
    model.encoder.requires_grad_(False)  # unused, so without a gradient
    run.fit(model, Answers(model, questions, None), config.fit_blind)


def new_answerer(config: Config, questions: Questions) -> Answerer:
    """Make an answerer whose soft words are captions' tokens and whose prompt starts from random training questions."""
    captions, values = sorted(set(questions.captions.values())), asdict(config.model)
    if not captions:
        fix = "give names that its open questions hold"
        raise UserError("data.names", got=config.data.names, expected=f"captions of pictures in {config.data.card}", fix=fix)
    values["vocabulary"] = values["vocabulary"] or caption_vocabulary(values["language_model"], values["dtype"], captions)
    known = [i for i, picture in enumerate(questions.pictures) if picture in questions.captions]
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(config.seed))[: config.support]
    shots = [known[place] for place in order.tolist()]
    examples = [[questions.captions[questions.pictures[i]], questions.questions[i], questions.answers[i]] for i in shots]
    return Answerer(values, config.format, examples)


@torch.no_grad()
def evaluate(run: Run, config: Config, split: str) -> Result:
    """Measure exact match after the VQA normalisation, of the answerer and of four baselines, on ``split``."""
    model, oracle, blind = (run.load(name, dtype=config.model.dtype) for name in ("answerer", "prompt", "blind"))
    device, known, training = model.step.device, Questions(config.data, split), Questions(config.data, "train")
    true = known.answers
    asked = [model.row(question, "?")["question"].to(device) for question in known.questions]
    batches = pictures_of(model, config.data, known).batches(f"pictures of {split}", AT_ONCE, device=device)
    read = torch.cat([model.encode(batch).mean for batch in batches])  # (p, n, d)
    answered = model.answer(read[torch.tensor(known.pictures)], asked)

    described = [i for i, picture in enumerate(known.pictures) if picture in known.captions]
    rows = [model.row("?", "?", known.captions[known.pictures[i]]) for i in described]
    given = collate(rows, model.sequences).to(device)
    by_words = oracle.answer(oracle.named(given["caption"], given.masks["caption"]), [asked[i] for i in described])
    unseen = blind.answer(blind.encode(Batch.nothing(1, device)).mean.expand(len(asked), -1, -1), asked)

    most = Counter(training.answers).most_common(1)[0][0]
    common = Counter(zip(training.questions, training.answers)).most_common()
    likeliest = {question: answer for (question, answer), _ in reversed(common)}
    systems = {
        "answerer": (answered, true),
        "blind": (unseen, true),
        "text_oracle": (by_words, [true[i] for i in described]),
        "majority": ([most] * len(true), true),
        "majority_by_question": ([likeliest.get(question, most) for question in known.questions], true),
    }
    result = Result("answerer", labels={name: name.replace("_", " ") for name in systems})
    for system, answers in systems.items():
        result[system] = {"accuracy": exact_match(*answers)}
    result.about["accuracy_described"] = exact_match([answered[i] for i in described], [true[i] for i in described])
    result.outputs = {"answerer": answered, "blind": unseen}
    for i in range(0, len(true), max(1, len(true) // SHOWN))[:SHOWN]:
        image = read_bytes(known.rows[config.data.image][i], "image")[1]
        text = {"question": known.questions[i], "answerer": answered[i], "blind": unseen[i], "reference": true[i]}
        result.show(image, text)
    return result


STAGES = [words, prompt, answerer, blind]
RECIPE = Recipe("vqa_supervised", Config, STAGES, evaluate, main="answerer", above={"accuracy": ["accuracy_blind"]})

if __name__ == "__main__":
    sys.exit(main(["train", "vqa_supervised", *sys.argv[1:]]))
