"""Few-shot questions to a captioner: it has learned from captions only, and new tasks come as examples in its prompt.

mmgen train vqa_fewshot                                                    # captions of openmoji, two CPU cores
mmgen train vqa_fewshot words.from=RUN captioner.from=RUN                  # those that a run of `captioning` has learned
accelerate launch recipes/vqa_fewshot/train.py --config recipes/vqa_fewshot/gpu.yaml
"""

import sys
from collections import Counter
from dataclasses import dataclass

import torch

from mmgen.cli import main
from mmgen.judging.binding import BASELINES, WAYS, Binding, bind
from mmgen.judging.few_shot import Questions, ask, values_of
from mmgen.metrics.vqa import exact_match
from mmgen.models.captioner import Captioner
from mmgen.training.config import section
from mmgen.training.recipe import Recipe
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.stages.captioner import CaptionerConfig, captioner, words

INPUTS = {"seen": "", "blind": "_blind", "oracle": "_text_oracle"}  # what stands for a picture -> part of the figure's name
KNOWLEDGE = {"seen": "knowledge_accuracy", "blind": "knowledge_accuracy_blind", "oracle": "knowledge_text_oracle"}
SYSTEMS = {"seen": "accuracy", "blind": "blind", "oracle": "text oracle"}
BOUND = {
    "accuracy": "", "interval": "_interval", "prototype": "_prototype", "jaccard": "_jaccard",
    "one prompt": "_together", "blind": "_blind", "word after picture": "_direct", "generated": "_open",
}  # fmt: skip


@dataclass
class Config(CaptionerConfig):
    """The config of ``captioning``, and the tasks given to the captioner.

    Args:
        vqa: questions about what a picture shows.
        knowledge: questions that take knowledge beside the picture.
        binding: fast binding of invented words to classes.
    """

    vqa: Questions = section(card="easy_vqa", support="train", format="{image}. {question} {answer}\n")
    knowledge: Questions = section(card="openmoji_facts", support="support", format="{image}. {question} {answer}\n")
    binding: Binding = section()


@torch.no_grad()
def evaluate(run: Run, config: Config, split: str) -> Result:
    """Measure answers by shots, knowledge of what is shown beyond what is seen, and fast binding, each beside its controls."""
    model = run.load(dtype=config.model.dtype)
    result = Result("captioner", outputs={})
    judge_answers(result, model, config.vqa, split, config.seed)
    judge_knowledge(result, model, config.knowledge, split, config.seed)
    for name, figures in bind(model, config.binding, split, config.seed).items():
        result.about |= {name + end: value for end, value in figures.items()}
        result.table[name.replace("_", " ")] = {label: figures[end] for label, end in BOUND.items()}
    for ways in config.binding.ways:
        name = f"{WAYS.get(ways, ways)}_way"
        for end in ("", *BASELINES):
            result.about[f"{name}_accuracy{end}"] = result.about[f"{name}_{config.binding.inner_shots[-1]}_shots{end}"]
    return result


def judge_answers(result: Result, model: Captioner, part: Questions, split: str, seed: int) -> None:
    """Add exact match by shots, of written answers and of those chosen from the closed set."""
    rows, made = ask(model, part, split, seed)
    true, pool = rows[part.answer][:], part.rows(part.support)[part.answer][:]
    majority = exact_match([Counter(pool).most_common(1)[0][0]] * len(true), true)
    figures = {"accuracy_majority": majority}
    for name, answers in made.items():
        way, given, k = name.split("/")
        if way != "plain":
            chosen = "_closed" if way == "closed" and part.open else ""
            figures[f"accuracy{INPUTS[given]}_{k}{chosen}"] = exact_match(answers, true)
    for k in sorted(part.shots, reverse=True):  # the model card takes the first row
        row = {"accuracy": figures[f"accuracy_{k}"], "blind": figures[f"accuracy_blind_{k}"], "majority": majority}
        result.table[f"{part.card}, {k} shots"] = row
    result.about |= figures
    result.outputs["vqa"] = [
        {"question": question, "reference": reference} | {name: answers[i] for name, answers in made.items()}
        for i, (question, reference) in enumerate(zip(values_of(rows, part.question), true))
    ]


def judge_knowledge(result: Result, model: Captioner, part: Questions, split: str, seed: int) -> None:
    """Add exact match of answers that no picture shows, chosen from the closed set after the most shots."""
    rows, made = ask(model, part, split, seed)
    true, last, templates = rows[part.answer][:], max(part.shots), values_of(rows, part.template)[:]
    chosen = {given: made[f"closed/{given}/{last}"] for given in KNOWLEDGE if f"closed/{given}/{last}" in made}
    figures = {KNOWLEDGE[given]: exact_match(answers, true) for given, answers in chosen.items()}
    if f"plain/seen/{last}" in made:
        figures["knowledge_accuracy_plain"] = exact_match(made[f"plain/seen/{last}"], true)
    figures["knowledge_gain"] = figures["knowledge_accuracy"] - figures["knowledge_accuracy_blind"]
    result.about |= figures
    result.table[part.card] = {SYSTEMS[given]: figures[KNOWLEDGE[given]] for given in chosen}
    by_template: dict[str, dict[str, float]] = {}
    for template in dict.fromkeys(templates):
        which = [i for i, other in enumerate(templates) if other == template]
        right = {given: exact_match([texts[i] for i in which], [true[i] for i in which]) for given, texts in chosen.items()}
        by_template[template] = {**right, "questions": len(which)}
    result.outputs["knowledge"] = by_template
    result.texts[f"{part.card} by template"] = "\n".join(
        f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()) for name, row in by_template.items()
    )


ABOVE = {f"{ways}_way_accuracy": [f"{ways}_way_accuracy{end}" for end in BASELINES] for ways in WAYS.values()}
RECIPE = Recipe(
    "vqa_fewshot", Config, [words, captioner], evaluate,
    above={"knowledge_accuracy": ["knowledge_accuracy_blind"], **ABOVE},
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(["train", "vqa_fewshot", *sys.argv[1:]]))
