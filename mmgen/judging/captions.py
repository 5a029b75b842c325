"""Scores of captions against references, with two baselines: nearest training captions, and a captioner without input."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mmgen.data.batch import Batch
from mmgen.data.processors import read_bytes
from mmgen.metrics.captioning import caption_scores, cider
from mmgen.metrics.retrieval import nearest
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.stages.captioner import PREFIXES, CaptionerConfig

SHOWN = 24  # items of a split in the report


@torch.no_grad()
def judge_captioner(run: Run, config: CaptionerConfig, split: str) -> Result:
    """Score a captioner, its blind baseline and the nearest training captions by CIDEr, BLEU-4, ROUGE-L and exact match.

    Args:
        run, config: run and config of a recipe with the stages of `mmgen.training.stages.captioner`.
        split: split of the data card.

    Returns:
        The systems ``captioner``, ``blind`` and ``nearest``.
    """
    model, blind = (run.load(stage, dtype=config.model.dtype) for stage in ("", "blind"))
    training, data = (config.data.items(model, name) for name in ("train", split))
    device, references = model.step.device, config.data.references(data.rows)
    options = {**asdict(config.decoding), "generator": torch.Generator().manual_seed(config.seed)}
    at_once = max(1, PREFIXES // config.decoding.candidates)
    batches = data.without("text").batches(f"captions of {split}", at_once, device=device)
    generated = {"captioner": [caption for batch in batches for caption in model.generate(batch, **options)]}
    # every blind item is the same prompt, so one caption serves all
    generated["blind"] = blind.generate(Batch.nothing(1, device), **{**options, "neighbours": 0}) * len(references)

    pictures = data.rows[config.data.input] if model.modality == "image" else None
    result = Result("captioner", words={
        "encoder": config.model.encoder if model.modality == "image" else "an audio encoder",
        "task": "image-to-text" if model.modality == "image" else "automatic-speech-recognition",
    })  # fmt: skip
    for system, captions in generated.items():
        result[system] = caption_scores(captions, references)
    features: dict[str, list[Any]] = {}
    if not model.trained_encoder:
        features["encoder"] = [d.values["pooled"] for d in (training, data)]
    inputs = [d.without("text").batches(size=PREFIXES, device=device) for d in (training, data)]
    features["own"] = [torch.cat([model.encode(b).mean.flatten(1).cpu() for b in batches]) for batches in inputs]
    candidates = training.rows[config.data.text].texts()
    for name, (keys, queries) in features.items():
        scores, captions = nearest_captions(keys, queries, candidates, references)
        result.about[f"cider_nearest_{name}"] = scores["cider"]
        if not result["nearest"] or scores["cider"] > result["nearest"]["cider"]:  # keeps the better features
            result["nearest"], generated["nearest"] = scores, captions
    result.outputs = {**generated, "references": references, "cider": cider(generated["captioner"], references)[1].tolist()}
    show_captions(result, pictures)
    return result


def nearest_captions(
    keys: Tensor, queries: Tensor, captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> tuple[Mapping[str, float], list[str]]:
    """Score the captions of the training item nearest to each query by cosine.

    Args:
        keys: (n, d), features of the training items.
        queries: (m, d), features of the items to caption.
        captions: captions of the n training items, equally many each.
        references: references of the m queries.

    Returns:
        The mean of each score over the captions of an item, and the first caption of each nearest item.

    >>> captions, references = [["a cat"], ["a dog"]], [["a dog"], ["a dog"]]
    >>> scores, shown = nearest_captions(torch.eye(2), torch.tensor([[0.1, 0.9], [0.0, 2.0]]), captions, references)
    >>> shown, scores["exact_match"]
    (['a dog', 'a dog'], 1.0)
    """
    found = [captions[i] for i in nearest(queries.float(), keys.float())]
    scores = [caption_scores(list(column), references) for column in zip(*found)]
    return {key: sum(score[key] for score in scores) / len(scores) for key in scores[0]}, [some[0] for some in found]


def show_captions(result: Result, pictures: Sequence[Any] | None, count: int = SHOWN) -> None:
    """Add captions to the report, beside pictures at equal distances in the split, or as text.

    Args:
        result: with the ``outputs`` of `judge_captioner`.
        pictures: raw, of all rows; None for sounds.
        count: pictures shown.
    """
    systems, references, score = ("captioner", "blind", "nearest"), result.outputs["references"], result.outputs["cider"]
    if pictures is None:
        lines = (f"{c} (reference: {' | '.join(r)})" for c, r in zip(result.outputs["captioner"], references))
        result.texts["captions"] = "\n".join(lines)
        return
    for i in range(0, len(references), max(1, len(references) // count))[:count]:
        text = {system: result.outputs[system][i] for system in systems} | {"reference": "\n".join(references[i])}
        result.show(read_bytes(pictures[i], "image")[1], text, f"CIDEr {score[i]:.1f}")
