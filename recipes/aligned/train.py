"""A shared space of pictures (or sounds) and texts, for retrieval and `mmgen steer --toward`.

mmgen train aligned                                                        # openmoji, minutes on two CPU cores
mmgen train aligned --config flickr8k                                      # photographs with five captions each
accelerate launch recipes/aligned/train.py --config recipes/aligned/gpu.yaml
"""

import sys
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

from mmgen.cli import main
from mmgen.data.rows import DataSet
from mmgen.judging.shared_space import AT_ONCE, SPACE, SpaceConfig, pairs
from mmgen.metrics.retrieval import chance_at, recall_at
from mmgen.models.aligned import Aligned
from mmgen.training.result import Result
from mmgen.training.run import Run

AMONG = 100  # items for the second recall, beside that among the whole split
PENALTIES = (10.0, 100.0, 1000.0, 10000.0)  # candidates for the ridge regression


@torch.no_grad()
def points(model: Aligned, data: DataSet) -> dict[str, Tensor]:
    """Embeddings of all items (n, s), and of all texts (p, s) by each text encoder."""
    found: dict[str, list[Tensor]] = {tower: [] for tower in model.towers}
    for part in (data.without("text"), data.keep("text", "sentence")):
        for batch in part.batches(size=AT_ONCE, device=model.feature_mean.device):
            for tower, some in model.encode(batch).mean.items():
                found[tower].append(some.cpu())
    return {tower: torch.cat(parts) for tower, parts in found.items()}


class Pairs(NamedTuple):
    """Input of the baseline: features of items (n, c), unit vectors of texts (p, d), and the item of each text (p,)."""

    features: Tensor
    texts: Tensor
    item: Tensor

    @property
    def right(self) -> Tensor:
        """Mask (n, p) of the texts of each item."""
        return torch.arange(len(self.features))[:, None] == self.item

    def some(self, kept: Tensor) -> "Pairs":
        """The items of a mask (n,) with their texts."""
        of_kept = kept[self.item]
        return Pairs(self.features[kept], self.texts[of_kept], (kept.cumsum(0) - 1)[self.item[of_kept]])


@torch.no_grad()
def plain_pairs(model: Aligned, data: DataSet, tower: str = "text") -> Pairs:
    """Frozen features, or mean and standard deviation of spectrogram rows, and a vector of each text.

    The vector is the mean token embedding, or for the tower ``sentence`` the frozen sentence embedding.
    """
    if model.trained_encoder:
        values = [row[model.modality].float() for row in data.keep(model.modality)]
        features = torch.stack([torch.cat([x.mean(-1).flatten(), x.std(-1).flatten()]) for x in values])
    else:
        features = torch.as_tensor(data.values["features"]).float()
    if tower == "sentence":
        texts = torch.as_tensor(data.values["sentence"]).float()
    else:
        table = model.table.weight.cpu().float() - model.word_mean.cpu()
        texts = torch.stack([table[item["text"]].mean(0) for item in data.keep("text")])
    return Pairs(features, F.normalize(texts, dim=1), torch.tensor(data.row_of))


def ridge_scores(train: Pairs, test: Pairs, penalty: float) -> dict[bool, Tensor]:
    """Cosines (n, p) of texts with the ridge regression of text vectors on features: plain (False) and centred (True).

    Args:
        train: pairs for the fit; the target of an item is the mean over its texts.
        test: pairs to score.
        penalty: weight of the squared norm of the coefficients; the intercept has none.
    """
    mean, std = train.features.mean(0), train.features.std(0, correction=min(1, len(train.features) - 1)).clamp(min=1e-3)
    fitted, new = (((pairs.features - mean) / std).clamp(-10, 10).numpy() for pairs in (train, test))
    n_texts = train.right.sum(1, keepdim=True)  # (n, 1)
    targets = torch.zeros(len(fitted), train.texts.shape[1]).index_add_(0, train.item, train.texts) / n_texts  # (n, d)
    predicted = torch.from_numpy(Ridge(penalty).fit(fitted, targets.numpy()).predict(new)).view(len(new), -1)
    centre = targets.mean(0)
    return {
        False: F.normalize(predicted, dim=1) @ test.texts.T,
        True: F.normalize(predicted - centre, dim=1) @ F.normalize(test.texts - centre, dim=1).T,
    }


def best_ridge_scores(train: Pairs, test: Pairs) -> tuple[Tensor, Tensor]:
    """Scores (n, p) for retrieving items by texts, and for retrieving texts by items.

    Penalty and centring have the best recall at 1 on a held-out tenth of the training items, in each direction by itself.
    """
    held = torch.arange(len(train.features)) % 10 == 0
    fitted, judged = train.some(~held) if len(held) > 1 else train, train.some(held)
    tried = {(penalty, centred): scores for penalty in PENALTIES
             for centred, scores in ridge_scores(fitted, judged, penalty).items()}  # fmt: skip
    by_text = max(tried, key=lambda setting: recall_at(tried[setting].T, judged.right.T)[1])
    by_item = max(tried, key=lambda setting: recall_at(tried[setting], judged.right)[1])
    return tuple(ridge_scores(train, test, penalty)[centred] for penalty, centred in (by_text, by_item))


def recalls(by_text: Tensor, by_item: Tensor, right: Tensor) -> dict[str, float]:
    """Recall of items by texts (``recall_``) and of texts by items (``text_recall_``), among all and among `AMONG`.

    Args:
        by_text, by_item: scores (n, p) for either direction.
        right: (n, p) True for the texts of an item.
    """
    figures = {}
    for what, (scores, true) in {"recall": (by_text.T, right.T), "text_recall": (by_item, right)}.items():
        figures |= {f"{what}_{k}": value for k, value in recall_at(scores, true).items()}
        figures |= {f"{what}_{k}_of_{AMONG}": value for k, value in recall_at(scores, true, among=AMONG).items()}
    return figures


def evaluate(run: Run, config: SpaceConfig, split: str) -> Result:
    """Recall at 1, 5 and 10 of the model, of ridge regression and of chance.

    ``sentence`` and ``ridge_sentence`` read texts by the sentence embedder, if the model has one.
    """
    model = run.load(dtype=config.model.dtype)
    data, train = pairs(model, config.data, split), pairs(model, config.data, "train")
    found, right = points(model, data), torch.arange(len(data.rows))[:, None] == torch.tensor(data.row_of)  # (n, p)
    labels = {"sentence": "aligned, by the sentence embedder", "ridge_sentence": "ridge, by the sentence embedder"}
    result = Result("aligned", labels=labels)
    for tower, system, ridge in (("text", "aligned", "ridge"), ("sentence", "sentence", "ridge_sentence")):
        if tower in found:
            scores = found[model.modality] @ found[tower].T  # (n, p)
            result[system] = recalls(scores, scores, right)
            result[ridge] = recalls(*best_ridge_scores(*(plain_pairs(model, rows, tower) for rows in (train, data))), right)
    for what, true in {"recall": right.T, "text_recall": right}.items():
        result["chance"] |= {f"{what}_{k}": value for k, value in chance_at(true).items()}
    result.about["scale"] = model.scale.item()
    return result


RECIPE = replace(
    SPACE,
    evaluate=evaluate,
    splits=("test", "test_compositional", "validation", "validation_compositional"),
    above={
        "recall_1": ("recall_1_ridge",),
        "recall_10": ("recall_10_ridge",),
        "text_recall_1": ("text_recall_1_ridge",),
        "recall_1_sentence": ("recall_1_ridge_sentence",),
        "recall_10_sentence": ("recall_10_ridge_sentence",),
    },
)

if __name__ == "__main__":
    sys.exit(main(["train", "aligned", *sys.argv[1:]]))
