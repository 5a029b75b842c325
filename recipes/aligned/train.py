"""A shared space of pictures (or sounds) and texts, for retrieval and `mmgen steer --toward`.

mmgen train aligned                                                        # openmoji, minutes on two CPU cores
mmgen train aligned --config flickr8k                                      # photographs with five captions each
accelerate launch recipes/aligned/train.py --config recipes/aligned/gpu.yaml
"""

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
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


@torch.no_grad()
def mean_words(model: Aligned, data: DataSet) -> Tensor:
    """The centred mean token embedding of each text, (p, d), the target of the baseline."""
    table = model.table.weight.cpu().float() - model.word_mean.cpu()
    return F.normalize(torch.stack([table[item["text"]].mean(0) for item in data.keep("text")]), dim=1)


def plain_features(model: Aligned, data: DataSet) -> Tensor:
    """Input of the baseline, (n, c): frozen features, or mean and standard deviation of spectrogram rows."""
    if not model.trained_encoder:
        return data.values["features"].float()
    values = [row[model.modality].float() for row in data.keep(model.modality)]
    return torch.stack([torch.cat([x.mean(-1).flatten(), x.std(-1).flatten()]) for x in values])


class Ridge:
    """The baseline: ridge regression from item features x (n, c) to mean words y (n, d).

    Its penalty has the best recall on a held-out tenth of the items.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.mean, self.std = x.mean(0), x.std(0, correction=min(1, len(x) - 1)).clamp(min=1e-3)
        held = torch.arange(len(x)) % 10 == 0
        x, best, kept = self.standard(x), -1.0, PENALTIES[0]
        square, cross = x[~held].T @ x[~held], x[~held].T @ y[~held]
        for penalty in PENALTIES:
            guess = F.normalize(x[held] @ self.solve(square, cross, penalty), dim=1)
            found = recall_at(F.normalize(y[held], dim=1) @ guess.T, torch.eye(int(held.sum()), dtype=torch.bool))[10]
            if found > best:
                best, kept = found, penalty
        self.weights = self.solve(square + x[held].T @ x[held], cross + x[held].T @ y[held], kept)  # (c, d)

    def standard(self, x: Tensor) -> Tensor:
        """Standardise features (n, c)."""
        return ((x - self.mean) / self.std).clamp(-10, 10)

    def solve(self, square: Tensor, cross: Tensor, penalty: float) -> Tensor:
        """Solve the normal equations: weights (c, d)."""
        return torch.linalg.solve(square + penalty * torch.eye(len(square)), cross)

    def __call__(self, x: Tensor) -> Tensor:
        """Predict unit vectors (n, d)."""
        return F.normalize(self.standard(x) @ self.weights, dim=1)


def recalls(scores: Tensor, right: Tensor) -> dict[str, float]:
    """Recall of items by texts (``item_``) and of texts by items (``text_``), among all and among `AMONG` items."""
    figures = {}
    for what, (some, true) in {"item": (scores.T, right.T), "text": (scores, right)}.items():
        figures |= {f"{what}_r{k}": value for k, value in recall_at(some, true).items()}
        figures |= {f"{what}_r{k}_of_{AMONG}": value for k, value in recall_at(some, true, among=AMONG).items()}
    return figures


def evaluate(run: Run, config: SpaceConfig, split: str) -> Result:
    """Recall at 1, 5 and 10 of the model, of ridge regression and of chance.

    ``sentence`` uses the sentence embedder for texts, if the model has one.
    """
    model = run.load(dtype=config.model.dtype)
    data, train_data = pairs(model, config.data, split), pairs(model, config.data, "train")
    found = points(model, data)
    x = found[model.modality]
    right = torch.arange(len(x))[:, None] == torch.tensor(data.row_of)  # (n, p)
    result = Result("aligned", labels={"sentence": "aligned, by the sentence embedder"})
    result["aligned"] = recalls(x @ found["text"].T, right)
    if "sentence" in found:
        result["sentence"] = recalls(x @ found["sentence"].T, right)
    of = torch.tensor(train_data.row_of)[:, None]
    words = mean_words(model, train_data)  # (p, d)
    each = torch.zeros(len(train_data.rows), words.shape[1]).scatter_add_(0, of.expand_as(words), words)
    ridge = Ridge(plain_features(model, train_data), each)
    result["ridge"] = recalls(ridge(plain_features(model, data)) @ mean_words(model, data).T, right)
    for what, true in {"item": right.T, "text": right}.items():
        result["chance"] |= {f"{what}_r{k}": value for k, value in chance_at(true).items()}
    result.about["scale"] = model.scale.item()
    return result


RECIPE = replace(
    SPACE,
    evaluate=evaluate,
    splits=("test", "test_compositional", "validation", "validation_compositional"),
    above={"item_r10": ("item_r10_ridge",), "text_r10": ("text_r10_ridge",)},
)

if __name__ == "__main__":
    sys.exit(main(["train", "aligned", *sys.argv[1:]]))
