"""Evaluation of steering a frozen language model by PPLM, FUDGE, DExperts and GeDi, toward sentiments and topics.

mmgen train steering                                          # the classifier and the experts of the recipe attribute
mmgen train steering attribute.from=runs/attribute experts.from=runs/attribute       # or take them from there
mmgen evaluate runs/steering                                  # writes the texts and judges them; goes on where it was stopped
accelerate launch recipes/steering/train.py --config recipes/steering/gpu.yaml
"""

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated, Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmgen import processes
from mmgen.cli import main
from mmgen.conditioning.language_model import load_language_model
from mmgen.data.cards import open_card
from mmgen.errors import Mistakes, check_at_least, check_one_of
from mmgen.inference import steer, targets
from mmgen.judging.classifier import Judge, JudgeConfig, judge_config, trained_judge
from mmgen.judging.perplexity import Reader
from mmgen.metrics.diversity import distinct, share_with
from mmgen.ranges import AtLeast, Between
from mmgen.storage import read_json, write_json
from mmgen.training.config import section
from mmgen.training.recipe import Recipe
from mmgen.training.report import scatter
from mmgen.training.result import Figures, Result
from mmgen.training.run import Run
from mmgen.training.stages.attribute import AttributeConfig, attribute, experts

UNSTEERED = "unsteered"
FLUENT = 1.3  # a method can be the best one if the perplexity of its texts is at most this times that of unsteered texts

Rows = Sequence[Mapping[str, Any]]  # texts, as `mmgen.inference.steer.write` returns them
Written = dict[str, dict[str, list[Rows]]]  # method -> attribute -> the candidates for each text


@dataclass
class Texts:
    """The texts that are written toward the attributes of one kind.

    Args:
        attributes: classes of ``data.label``, or topics whose bags come with mmgen.
        prompts: split -> the beginnings of the texts.
        samples: texts a prompt and attribute.
        candidates: r, candidates for each text; the likeliest by the attribute is BR or BCR, the first B or BC.
        methods: a key of `mmgen.inference.steer.METHODS` -> its settings.
    """

    attributes: list[str] = field(default_factory=list)
    prompts: dict[str, list[str]] = field(default_factory=dict)
    samples: Annotated[int, AtLeast(1)] = 3
    candidates: Annotated[int, AtLeast(1)] = 10
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Config(AttributeConfig):
    """The config of the recipe ``steering``: that of the recipe ``attribute``, the texts and their judges.

    Args:
        length: tokens of a text.
        top_k: sample from the k likeliest tokens.
        threshold: mean dist-1, -2, -3 that the best of several candidates must have, see `mmgen.inference.steer.best`.
        judge: config of the recipe ``judge``: a classifier of other data, of classes of the same names or numbers.
        fluency: the language model that measures perplexity.
        sentiment: texts toward classes.
        topic: texts toward topics.
    """

    length: Annotated[int, AtLeast(1)] = 50
    top_k: Annotated[int, AtLeast(1)] = 10
    threshold: Annotated[float, Between(0, 1)] = 0.0
    judge: dict[str, Any] = field(default_factory=dict)
    fluency: str = "gemma3-270m"
    sentiment: Texts = section()
    topic: Texts = section()

    def nested(self) -> dict[str, JudgeConfig]:
        """The judge of the sentiment."""
        return {"judge": judge_config("judge", self.judge)}

    def check(self, errors: Mistakes) -> None:
        """Check that data, judge, classes, topics and methods are there, and their settings in range."""
        with errors:
            self.nested()
        check_texts("topic", self.topic, [method for method in steer.METHODS if method not in steer.BY_EXPERTS], errors)
        check_texts("sentiment", self.sentiment, list(steer.METHODS), errors)
        errors.check_each("topic.attributes", self.topic.attributes, targets.topics())
        errors.check_each("sentiment.attributes", self.sentiment.attributes, self.data.class_names)


def check_texts(key: str, texts: Texts, methods: Sequence[str], errors: Mistakes) -> None:
    """Check that there are prompts, methods are known, and settings in range."""
    for split in RECIPE.splits if texts.attributes else ():
        with errors:
            check_at_least(f"prompts of {key}.prompts.{split}", len(texts.prompts.get(split, ())), 1)
    for method, settings in texts.methods.items():
        with errors:
            steer.settings(settings, check_one_of(f"{key}.methods", method, methods))


def write(run: Run, config: Config, split: str, kind: str) -> Written:
    """The texts toward the attributes of one kind; ``RUN/texts`` keeps them, and only missing ones are written."""
    texts: Texts = getattr(config, kind)
    prompts, made = texts.prompts[split], {}
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    together = max(1, steer.AT_ONCE // (texts.samples * texts.candidates))  # prompts
    count = (1 + len(texts.methods)) * len(texts.attributes) * len(prompts)
    bar = tqdm(total=count, desc=f"{kind} of {split}", unit="prompt", dynamic_ncols=True)
    for method, settings in {UNSTEERED: {}, **texts.methods}.items():
        for name in texts.attributes:
            file = run.folder / "texts" / split / f"{method}-{name}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            done = read_json(file) if file.is_file() else {}
            if any(prompt not in done for prompt in prompts):
                loaded = loaded or load_language_model(config.language_model, config.dtype)
                model = loaded[0].to(processes.device())
                # a class by the classifier of the run, or a topic by its bag
                toward = targets.bag(name, *loaded) if kind == "topic" else targets.attribute(name, str(run.folder), model)
                more = targets.experts(name, str(run.stage_folder("experts")), model) if method in steer.BY_EXPERTS else {}
                steered = None if method == UNSTEERED else steer.METHODS[method](toward, **settings, **more)
            for at in range(0, len(prompts), together):
                some = prompts[at : at + together]
                if any(prompt not in done for prompt in some):
                    began = time.process_time()
                    rivals = steer.write(
                        model, loaded[1], some, toward, steered, n=texts.samples, candidates=texts.candidates,
                        length=config.length, seed=config.seed * len(prompts) + at, top_k=config.top_k,
                    )  # fmt: skip
                    seconds = (time.process_time() - began) / len(some)
                    for i, prompt in enumerate(some):
                        own = rivals[i * texts.samples : (i + 1) * texts.samples]
                        done[prompt] = {"seconds": seconds, "texts": own}
                    write_json(file, done)
                bar.update(len(some))
            made.setdefault(method, {})[name] = [rivals for prompt in prompts for rivals in done[prompt]["texts"]]
    bar.close()
    return made


def speeds(run: Run, config: Config, split: str) -> dict[str, float]:
    """Tokens a second of each method toward a sentiment: all candidates and their ranking, by processor time."""
    texts, found = config.sentiment, {}
    for method in (UNSTEERED, *texts.methods):
        files = [run.folder / "texts" / split / f"{method}-{name}.json" for name in texts.attributes]
        seconds = sum(prompt["seconds"] for file in files for prompt in read_json(file).values())
        found[method] = len(files) * len(texts.prompts[split]) * texts.samples * texts.candidates * config.length / seconds
    return found


def arms(made: Written, threshold: float) -> dict[str, dict[str, Rows]]:
    """B, BR and each method's BC and BCR -> attribute -> its texts."""
    chosen = {}
    for method, by_name in made.items():
        first, ranked = ("b", "br") if method == UNSTEERED else (f"{method}_bc", f"{method}_bcr")
        chosen[first] = {name: [rivals[0] for rivals in texts] for name, texts in by_name.items()}
        if any(len(rivals) > 1 for texts in by_name.values() for rivals in texts):
            chosen[ranked] = {name: [steer.best(rivals, threshold) for rivals in texts] for name, texts in by_name.items()}
    return chosen


def as_reviews(text: str) -> str:
    """Lower-cased, punctuation and clitics apart, as the judge's sentences are."""
    text = re.sub(r"n't\b", " n't", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return " ".join(re.sub(r"(?<=\w)('(?:s|ve|re|ll|d|m)\b)", r" \1", re.sub(r"([.,!?;:()\"])", r" \1 ", text)).split())


def sentiment_figures(judge: Judge, by_name: Mapping[str, Rows], names: Sequence[str]) -> Figures:
    """``success``, the share of texts in which the judge reads the intended sentiment, overall and per class."""
    known, found = judge.class_names, {}  # names, or numbers where the judge's card has no names
    for name, rows in by_name.items():
        label = check_one_of(f"class {name} of the judge", name if name in known else str(names.index(name)), known)
        read = judge.reads_raw([as_reviews(row["prompt"] + row["text"]) for row in rows])
        found[f"success_{name}"] = (read == known.index(label)).float().mean().item()
    return {**found, "success": fmean(found.values())}


def topic_figures(by_name: Mapping[str, Rows]) -> Figures:
    """The share of texts with a word of the bag, and with another word of the topic, which no bag holds."""
    found = {}
    for metric, part in (("topic_words", "train"), ("held_out_words", "held_out")):
        bags = {name: open_card(f"{targets.BAG}{name}", part)["word"][:] for name in by_name}
        found[metric] = fmean(share_with([row["text"] for row in rows], bags[name]) for name, rows in by_name.items())
    return found


def arm_figures(kind: str, chosen: Mapping[str, Mapping[str, Rows]], config: Config, judge: Judge, reader: Reader
) -> dict[str, Figures]:  # fmt: skip
    """Success or topic words, perplexity and dist-3 of every arm of `arms`, toward the attributes of one kind."""
    found, end = {}, "" if kind == "sentiment" else "topic_"
    for arm, by_name in chosen.items():
        success = sentiment_figures(judge, by_name, config.data.class_names) if kind == "sentiment" else topic_figures(by_name)
        rows = [row for some in by_name.values() for row in some]
        perplexity = reader.perplexity([row["text"] for row in rows], [row["prompt"] for row in rows])
        dist3 = fmean(distinct([row["text"] for row in some], 3) for some in by_name.values())
        found[arm] = {**success, f"{end}perplexity": perplexity, f"{end}dist3": dist3}
    for figures in found.values():
        figures[f"{end}perplexity_ratio"] = figures[f"{end}perplexity"] / found["b"][f"{end}perplexity"]
    return found


def evaluate(run: Run, config: Config, split: str) -> Result:
    """Success or topic words, perplexity and dist-3 of every arm, and the gains of the method that is best on validation."""
    judging = config.nested()["judge"]
    judge, reader = trained_judge(judging), Reader(config.fluency)
    about = {"judge_accuracy": judge.accuracy, "judge_disjoint": judging.data.card != config.data.card}
    names = {"b": "unsteered (B)", "br": "unsteered, ranked (BR)"}
    for method in {**config.sentiment.methods, **config.topic.methods}:
        names |= {f"{method}_bc": f"{method} (BC)", f"{method}_bcr": f"{method}, ranked (BCR)"}
    result = Result("steering", labels=names)
    figures: dict[str, Figures] = {arm: {} for arm in sorted(names, key=lambda arm: arm in ("b", "br"))}  # steered first
    for kind in ("sentiment", "topic"):
        if not getattr(config, kind).attributes:
            continue
        made = write(run, config, split, kind)
        for arm, found in arm_figures(kind, arms(made, config.threshold), config, judge, reader).items():
            figures[arm] |= found
        for method, by_name in made.items():
            for name, texts in by_name.items():
                first = [rivals[0] for rivals in texts[:: getattr(config, kind).samples]]  # of each prompt
                result.texts[f"{method}, {name}"] = "\n\n".join(row["prompt"] + row["text"] for row in first)
    result.update(figures)
    if config.sentiment.attributes:
        speed = speeds(run, config, split)
        about |= {f"tokens_per_s_{method}": value for method, value in speed.items()}
        points = {m: (x, figures["b" if m == UNSTEERED else f"{m}_bc"]["success"]) for m, x in speed.items()}
        plot = scatter(points, "tokens/s of a processor core", "success of one text")
        result.show(plot, {"success": "against speed"}, wide=True, name="speed")
        if config.sentiment.candidates > 1:
            validation = arms(write(run, config, "validation", "sentiment"), config.threshold)
            chosen_by = arm_figures("sentiment", validation, config, judge, reader)
            about |= gains(result, chosen_by, list(config.sentiment.methods))
    result.about = about
    return result


def gains(systems: Mapping[str, Figures], validation: Mapping[str, Figures], methods: Sequence[str]) -> Figures:
    """The gains over B and BR of the method with the best BCR on validation among those `FLUENT` there; empty if none is."""
    fluent = [method for method in methods
              if max(validation[f"{method}_{arm}"]["perplexity_ratio"] for arm in ("bc", "bcr")) <= FLUENT]  # fmt: skip
    if not fluent:
        return {}
    best = max(fluent, key=lambda method: validation[f"{method}_bcr"]["success"])
    b, br, bc, bcr = (systems[arm]["success"] for arm in ("b", "br", f"{best}_bc", f"{best}_bcr"))
    return {"gain_bc": bc - b, "gain_bcr": bcr - b, "gain_bcr_over_br": bcr - br}


RECIPE = Recipe("steering", Config, [attribute, experts], evaluate, main="attribute")

if __name__ == "__main__":
    sys.exit(main(["train", "steering", *sys.argv[1:]]))
