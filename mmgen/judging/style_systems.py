"""Rewrites by other systems than a trained model: tuned baselines, words to steer by, and published outputs."""

from collections import Counter
from typing import Any

from mmgen.data.cards import open_card, read_card
from mmgen.errors import UserError
from mmgen.judging.style import Sentences, StyleScorer, strided
from mmgen.metrics.style import tokenize
from mmgen.models.style.edit_baselines import MarkerEditor, Method

THRESHOLDS = (2.0, 3.0, 5.0, 8.0, 15.0, 30.0)  # frequency ratios of markers among which a baseline is tuned
HELD = 500  # most sentences to tune on


def restyled(model: Any, data: Sentences) -> list[str]:
    """Every sentence rewritten in the other style, in order."""
    outputs = [""] * len(data.texts)
    for label, target in enumerate(reversed(data.names)):
        indices = [i for i, own in enumerate(data.labels) if own == label]
        for i, text in zip(indices, model.restyle([data.texts[i] for i in indices], target)):
            outputs[i] = text
    return outputs


def tuned(method: Method, data: Sentences, score: StyleScorer) -> MarkerEditor:
    """A baseline learnt from ``data`` with the threshold of `THRESHOLDS` that is best on `HELD` sentences held out of it.

    The best has the highest product of strict accuracy and self-BLEU.
    """
    if method == "copy":
        return MarkerEditor(method, data.names)
    held = set(strided(len(data.texts), min(HELD, len(data.texts) // 10)))
    part, rest = data.part(len(held)), [i for i in range(len(data.texts)) if i not in held]
    texts, labels = [data.texts[i] for i in rest], [data.labels[i] for i in rest]
    judged, best = score.of(part), (-1.0, THRESHOLDS[0])
    for threshold in THRESHOLDS:
        try:
            found = judged(restyled(MarkerEditor.learn(texts, labels, data.names, method, threshold=threshold), part))
        except UserError:  # no marker reaches the threshold
            continue
        best = max(best, (found["accuracy_strict"] * found["self_bleu"], threshold))
    return MarkerEditor.learn(data.texts, data.labels, data.names, method, threshold=best[1])


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
