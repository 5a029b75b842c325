"""An attribute of texts for `mmgen steer`: a classifier of the hidden states of a frozen language model.

Beside it the experts, a language model of each class, for `mmgen steer --method dexperts` or ``gedi``.

mmgen train attribute                                                      # sentiment of SST-2, minutes on two CPU cores
mmgen train attribute data.card=my.md data.text=text data.label=kind       # any card with texts and labels
accelerate launch recipes/attribute/train.py --config recipes/attribute/gpu.yaml
"""

import sys
from collections import Counter
from dataclasses import replace

import torch

from mmgen import processes
from mmgen.cli import main
from mmgen.training.recipe import Recipe
from mmgen.training.result import Result
from mmgen.training.run import Run
from mmgen.training.stages.attribute import AttributeConfig, attribute, experts, hidden_states, sentences, states

AT_ONCE = 16  # texts that the experts read together


@torch.no_grad()
def evaluate(run: Run, config: AttributeConfig, split: str) -> Result:
    """Accuracy of the classifier, of the experts, and of the most frequent label of training."""
    device, rows = processes.device(), config.data.rows(split)
    result = Result("attribute", labels={"attribute": "classifier", "majority": "most frequent label"})
    model = run.load()
    batch = states(config, rows, hidden_states(config, rows), model.processors["hidden"]).batch(range(len(rows))).to(device)
    result["attribute"] = {"accuracy": (model.predict(batch).mode == batch["label"]).float().mean().item()}
    model, right = run.load("experts", dtype=config.dtype), 0
    items = sentences(config.data, split, model.processors["text"])
    for batch in items.batches(f"experts on {split}", AT_ONCE, device=device):
        right += (model.predict(batch).mode == batch["label"]).sum().item()
    result["experts"] = {"accuracy": right / len(items)}
    majority, _ = Counter(replace(config.data, limit=0).rows("train")[config.data.label]).most_common(1)[0]
    result["majority"] = {"accuracy": rows[config.data.label][:].count(majority) / len(rows)}
    return result


RECIPE = Recipe(
    "attribute", AttributeConfig, [attribute, experts], evaluate, main="attribute", above={"accuracy": ("accuracy_majority",)}
)

if __name__ == "__main__":
    sys.exit(main(["train", "attribute", *sys.argv[1:]]))
