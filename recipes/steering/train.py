"""How well a frozen language model is steered: PPLM, FUDGE and GeDi toward a sentiment, and PPLM and FUDGE toward a topic.

mmgen train steering                                          # the classifier and the experts of the recipe attribute
mmgen train steering attribute.from=runs/attribute experts.from=runs/attribute       # or take them from there
mmgen evaluate runs/steering                                  # writes the texts and judges them; goes on where it was stopped
accelerate launch recipes/steering/train.py --config recipes/steering/gpu.yaml
"""

import json
import math
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmgen import processes
from mmgen.cli import main
from mmgen.conditioning.attributes import Attribute
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.ranking import text_log_prob
from mmgen.data.batch import collate
from mmgen.data.cards import class_names, open_card, read_card
from mmgen.data.text import tokens_of
from mmgen.errors import check_at_least, check_one_of
from mmgen.inference import steer, targets
from mmgen.metrics.diversity import distinct
from mmgen.models.classifier import Classifier
from mmgen.ranges import AtLeast, Between
from mmgen.storage import read_json
from mmgen.training.config import build_config, section
from mmgen.training.model_card import ModelCard, write_model_card
from mmgen.training.nested import nested_config
from mmgen.training.recipe import Recipe, load_recipe, run_details, stage_folder
from mmgen.training.report import Sample, scatter, write_report

ATTRIBUTE = load_recipe("attribute")
JUDGE = sys.modules[load_recipe("judge").config.__module__]
UNSTEERED = "unsteered"
FLUENT = 1.3  # the most that the perplexity of steered texts may be over that of unsteered ones, to count as the best method
AT_ONCE = 64  # texts that the judge reads together


@dataclass
class Texts:
    """Texts written toward the attributes of one kind.

    Args:
        attributes: classes of ``data.label``, or topics whose bags come with mmgen.
        prompts: split -> how the texts begin.
        samples: texts of each prompt and attribute.
        candidates: r, candidates for each text; the likeliest by the attribute is BR or BCR, the first B or BC.
        methods: a key of `mmgen.inference.steer.METHODS` -> its settings.
    """

    attributes: list[str] = field(default_factory=list)
    prompts: dict[str, list[str]] = field(default_factory=dict)
    samples: Annotated[int, AtLeast(1)] = 3
    candidates: Annotated[int, AtLeast(1)] = 10
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Config(ATTRIBUTE.config):
    """The config of the recipe ``steering``: that of the recipe ``attribute``, and what is written and judged.

    Args:
        length: tokens of a text.
        top_k: sample from the k likeliest tokens.
        threshold: mean dist-1, -2, -3 that the best of several candidates must have, see `mmgen.inference.steer.best`.
        judge: config of the recipe ``judge``: a classifier of other data, of classes of the same names or numbers.
        fluency: the language model whose perplexity is reported.
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


def nested(config: Config) -> dict[str, Any]:
    """The config of the judge, by the key that holds it."""
    return {"judge": nested_config("judge", "judge", config.judge)}


def check(config: Config) -> None:
    """Data, judge, classes, topics, methods and their settings are there."""
    ATTRIBUTE.check(config)
    nested(config)
    names = class_names(read_card(config.data.card), config.data.label)
    for kind, known in (("sentiment", names), ("topic", targets.topics())):
        texts: Texts = getattr(config, kind)
        for name in texts.attributes:
            check_one_of(f"{kind}.attributes", name, known)
        for split in ("test", "validation") if texts.attributes else ():
            check_at_least(f"prompts of {kind}.prompts.{split}", len(texts.prompts.get(split, ())), 1)
        for method, settings in texts.methods.items():
            check_one_of(f"{kind}.methods", method, [m for m in steer.METHODS if kind == "sentiment" or m != "gedi"])
            steer.settings(settings, method)


def write(run: Path, config: Config, split: str, kind: str) -> dict[str, dict[str, list[list[dict[str, Any]]]]]:
    """Method -> attribute -> for each prompt and sample its candidates; what ``run/texts`` holds is not written anew."""
    texts: Texts = getattr(config, kind)
    prompts = texts.prompts[split]
    folder = run / "texts" / split
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, dict[str, list[list[dict[str, Any]]]]] = {}
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    methods = {UNSTEERED: {}, **texts.methods}
    together = max(1, steer.AT_ONCE // (texts.samples * texts.candidates))  # prompts
    bar = tqdm(total=len(methods) * len(texts.attributes) * len(prompts), desc=f"{kind} of {split}", unit="prompt",
               dynamic_ncols=True)  # fmt: skip
    for method, settings in methods.items():
        for name in texts.attributes:
            file = folder / f"{method}-{name}.json"
            done = read_json(file) if file.is_file() else {}
            if any(prompt not in done for prompt in prompts):
                loaded = loaded or load_language_model(config.language_model, config.dtype)
                model = loaded[0].to(processes.device())
                toward = attribute(run, kind, name, model, loaded[1])
                steered = steered_by(run, method, settings, toward, name, model)
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
                    partial = file.with_suffix(".partial")
                    partial.write_text(json.dumps(done, indent=1), encoding="utf-8")
                    partial.replace(file)
                bar.update(len(some))
            made.setdefault(method, {})[name] = [rivals for prompt in prompts for rivals in done[prompt]["texts"]]
    bar.close()
    return made


def speeds(run: Path, config: Config, split: str) -> dict[str, float]:
    """``tokens_per_s_METHOD``: tokens toward a sentiment, of all candidates and with their ranking, by processor time."""
    texts, found = config.sentiment, {}
    for method in (UNSTEERED, *texts.methods):
        files = [run / "texts" / split / f"{method}-{name}.json" for name in texts.attributes]
        seconds = sum(prompt["seconds"] for file in files for prompt in read_json(file).values())
        count = len(files) * len(texts.prompts[split]) * texts.samples * texts.candidates
        found[f"tokens_per_s_{method}"] = count * config.length / seconds
    return found


def attribute(run: Path, kind: str, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Attribute:
    """A class by the classifier of the run, or a topic by its bag."""
    return targets.bag(name, model, tokenizer) if kind == "topic" else targets.attribute(name, str(run), model)


def steered_by(run: Path, method: str, settings: dict[str, Any], toward: Attribute, name: str, model: PreTrainedModel) -> Any:
    """The method with its settings; None for no steering."""
    if method == UNSTEERED:
        return None
    more = targets.experts(name, str(stage_folder(RECIPE, run, "experts")), model) if method == "gedi" else {}
    return steer.METHODS[method](toward, **settings, **more)


def arms(made: Mapping[str, Mapping[str, Sequence]], threshold: float) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """B, BR and each method's BC and BCR -> attribute -> its texts."""
    chosen = {}
    for method, by_name in made.items():
        first, ranked = ("b", "br") if method == UNSTEERED else (f"{method}_bc", f"{method}_bcr")
        chosen[first] = {name: [rivals[0] for rivals in texts] for name, texts in by_name.items()}
        if any(len(rivals) > 1 for texts in by_name.values() for rivals in texts):
            chosen[ranked] = {name: [steer.best(rivals, threshold) for rivals in texts] for name, texts in by_name.items()}
    return chosen


def whole(row: Mapping[str, Any]) -> str:
    """The prompt and what follows it."""
    return row["prompt"] + row["text"]


@torch.no_grad()
def judged(model: Classifier, texts: Sequence[str]) -> torch.Tensor:
    """The number of the class that the judge sees in each text, (n,)."""
    process, seen = model.processors[model.modality], []
    for at in range(0, len(texts), AT_ONCE):
        rows = [{model.modality: process(as_reviews(text))} for text in texts[at : at + AT_ONCE]]
        seen.append(model.predict(collate(rows, model.sequences)).mode)
    return torch.cat(seen)


def as_reviews(text: str) -> str:
    """Lower-cased, punctuation and clitics apart, as the judge's sentences are."""
    text = re.sub(r"n't\b", " n't", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return " ".join(re.sub(r"(?<=\w)('(?:s|ve|re|ll|d|m)\b)", r" \1", re.sub(r"([.,!?;:()\"])", r" \1 ", text)).split())


def perplexity(reader: tuple[PreTrainedModel, PreTrainedTokenizerBase], rows: Sequence[Mapping[str, Any]]) -> float:
    """exp of the mean over texts of -log p of a token after the prompt; a text without any is left out."""
    model, tokenizer = reader
    found = []
    rows = {whole(row): row for row in rows}.values()  # B is the same for every attribute
    for row in tqdm(rows, desc="perplexity", unit="text", leave=False, dynamic_ncols=True):
        before = tokens_of(tokenizer, row["prompt"]).input_ids
        if tokenizer.bos_token_id is not None and before[:1] != [tokenizer.bos_token_id]:
            before = [tokenizer.bos_token_id, *before]
        after = tokens_of(tokenizer, row["text"], add_special_tokens=False).input_ids
        if after:
            ids = torch.tensor([[*before, *after]], device=model.device)  # (1, t)
            _, mean = text_log_prob(model, ids, torch.ones_like(ids).bool(), len(before))
            found.append(-mean.item())
    return math.exp(statistics.fmean(found))


def share_with(rows: Sequence[Mapping[str, Any]], words: Sequence[str]) -> float:
    """The share of texts after the prompt that hold any of ``words``, or its plural."""
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})(?:s|es)?\b", re.IGNORECASE)
    return statistics.fmean(bool(pattern.search(row["text"])) for row in rows)


def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """Success, perplexity and dist-3 of every arm.

    ``success_ARM`` is the share of texts in which the judge sees the sentiment, ``topic_words_ARM`` and ``held_out_words_ARM``
    those with a word of the bag, and with one of the topic's other words. ``perplexity_ratio_ARM`` is over that of B. Of the
    method whose BCR succeeds most while neither its BC nor its BCR exceeds `FLUENT`: ``gain_bc`` and ``gain_bcr`` over B, and
    ``gain_bcr_over_br``.
    """
    judging = build_config(JUDGE.Config, config.judge)
    judge, accuracy = JUDGE.judge(judging)
    reader = load_language_model(config.fluency, "fp32")
    reader[0].to(processes.device())
    names = class_names(read_card(config.data.card), config.data.label)
    known = judge.class_names  # names, or numbers where the judge's card has no names
    seen_as = {name: known.index(name if name in known else str(i)) for i, name in enumerate(names)}
    figures: dict[str, float] = {}
    for kind in ("sentiment", "topic"):
        texts: Texts = getattr(config, kind)
        if not texts.attributes:
            continue
        end = "" if kind == "sentiment" else "topic_"
        chosen = arms(write(run, config, split, kind), config.threshold)
        fluent = {}
        for arm, by_name in chosen.items():
            if kind == "sentiment":
                right = [
                    (judged(judge, [whole(row) for row in rows]) == seen_as[name]).float().mean().item()
                    for name, rows in by_name.items()
                ]
                figures |= {f"success_{name}_{arm}": value for name, value in zip(by_name, right)}
                figures[f"success_{arm}"] = statistics.fmean(right)
            else:
                for figure, part in (("topic_words", "train"), ("held_out_words", "held_out")):
                    bags = {name: open_card(f"{targets.BAG}{name}", part)["word"][:] for name in by_name}
                    figures[f"{figure}_{arm}"] = statistics.fmean(share_with(by_name[name], bags[name]) for name in by_name)
            rows = [row for some in by_name.values() for row in some]
            fluent[arm] = perplexity(reader, rows)
            figures[f"{end}dist3_{arm}"] = statistics.fmean(
                distinct([row["text"] for row in some], 3) for some in by_name.values()
            )
        if kind == "sentiment":
            figures |= speeds(run, config, split)
        figures |= {f"{end}perplexity_{arm}": value for arm, value in fluent.items()}
        figures |= {f"{end}perplexity_ratio_{arm}": value / fluent["b"] for arm, value in fluent.items()}
    figures |= gains(figures, config.sentiment.methods)
    return figures | {"judge_accuracy": accuracy, "judge_disjoint": judging.data.card != config.data.card}


def gains(figures: Mapping[str, float], methods: Sequence[str]) -> dict[str, float]:
    """Of the best method that stays fluent, what it gains over B and BR; nothing where none stays so."""
    fluent = [m for m in methods if f"success_{m}_bcr" in figures
              and max(figures[f"perplexity_ratio_{m}_{arm}"] for arm in ("bc", "bcr")) <= FLUENT]  # fmt: skip
    if not fluent:
        return {}
    best = max(fluent, key=lambda m: figures[f"success_{m}_bcr"])
    bc, bcr = (figures[f"success_{best}_{arm}"] for arm in ("bc", "bcr"))
    return {
        "gain_bc": bc - figures["success_b"],
        "gain_bcr": bcr - figures["success_b"],
        "gain_bcr_over_br": bcr - figures["success_br"],
    }


def report(run: Path, config: Config) -> None:
    """Write the run's ``report.html`` and ``README.md``: a row for each arm, and what was written."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    keys = ("success", "perplexity_ratio", "dist3", "topic_words", "held_out_words", "topic_perplexity_ratio", "topic_dist3")
    for split, figures in read_json(run / "metrics.json").items():
        rows = [key.removeprefix("dist3_") for key in figures if key.startswith("dist3_")]
        rows += [key.removeprefix("topic_dist3_") for key in figures if key.startswith("topic_dist3_")]
        table[split] = {
            arm: {key: figures[f"{key}_{arm}"] for key in keys if f"{key}_{arm}" in figures}
            for arm in sorted(dict.fromkeys(rows), key=lambda arm: arm in ("b", "br"))  # what is steered first
        }
    details = run_details(run)
    for file in sorted((run / "texts").glob("*/*.json")):
        first = [prompt["texts"][0][0] for prompt in read_json(file).values()]
        details[f"{file.parent.name}: {file.stem}"] = "\n\n".join(whole(row) for row in first)
    card = build_config(JUDGE.Config, config.judge).data.card
    summary = (
        f"{config.language_model}, frozen. B: unsteered; BR: the likeliest of several; BC: steered; BCR: the likeliest of "
        f"several steered ones. Judged by a classifier of {card}; perplexity by {config.fluency}, over that of B."
    )
    samples = []
    for split, figures in read_json(run / "metrics.json").items():
        ends = {method: "_b" if method == UNSTEERED else f"_{method}_bc" for method in (UNSTEERED, *config.sentiment.methods)}
        points = {
            m: (figures[f"tokens_per_s_{m}"], figures[f"success{end}"])
            for m, end in ends.items()
            if config.sentiment.attributes
        }
        if points:
            plot = scatter(points, "tokens/s of a processor core", "success of one text")
            samples.append(Sample(plot, {"success": "against speed"}, group=split, wide=True))
            (run / "samples").mkdir(exist_ok=True)
            plot.save(run / "samples" / f"{split}.png")
    write_report(run / "report.html", "Steering", table, samples, details, summary)
    card = read_card(config.data.card)
    write_model_card(run / "README.md", ModelCard(
        name=f"steering-{card.name}",
        description=f"A classifier of the hidden states of {config.language_model} and language models of its classes.",
        license="apache-2.0",
        task="text-generation",
        data=card.name,
        data_license=card.license,
        table=table,
        command=details["command"],
        picture=None,
        intended_use="Research on steering frozen language models.",
        limitations=[
            "A steered text is as little true as an unsteered one, and less fluent.",
            "What the classes mean is what the data card's labels mean: opinions of films, if not set otherwise.",
            "Steering toward a class also brings what goes with it in the training data.",
        ],
        tags=["controlled-generation"],
        base_model=config.language_model if "/" in config.language_model else None,
    ))  # fmt: skip


RECIPE = Recipe(
    name="steering",
    config=Config,
    stages=ATTRIBUTE.stages,
    main="attribute",
    evaluate=evaluate,
    splits=("test", "validation"),
    report=report,
    check=check,
    nested=nested,
)

if __name__ == "__main__":
    sys.exit(main(["train", "steering", *sys.argv[1:]]))
