"""Fast binding: a captioner learns invented words for new classes from its prompt, and names another picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from mmgen.conditioning.channel import channel
from mmgen.conditioning.few_shot import Episode, Example, Format, answer, read, score
from mmgen.data.cards import check_columns
from mmgen.data.episodes import FewShotEpisode, episodes
from mmgen.data.rows import open_rows
from mmgen.errors import Mistakes, UserError, counted
from mmgen.judging.few_shot import picture_features, picture_words
from mmgen.metrics.significance import clustered, wilson
from mmgen.metrics.vqa import exact_match
from mmgen.models.captioner import Captioner
from mmgen.ranges import AtLeast, Each

WAYS = {2: "two", 5: "five"}
BASELINES = ("_prototype", "_jaccard")  # without a language model


@dataclass
class Binding:
    """Settings of fast binding: invented words for classes in no caption.

    Args:
        card: a data card.
        image: column of pictures.
        label: column of classes; rows without a label are ignored.
        tokens: number of `Captioner.keywords` in place of a picture; 0: its `Captioner.names`.
        words: invented words; episodes of w ways use the first w.
        ways: numbers of classes per episode.
        inner_shots: numbers of examples per class, without the induction sentence; the last also with it.
        repeats: extra repetitions of the examples, for the first of ``inner_shots``.
        episodes: episodes per cell, with one query each.
        controls: episodes per cell with repeats or the induction sentence, and for the controls of every cell.
        format: template of an example of the controls, the word after the picture.
        induction: sentence before the examples; ``{words}`` stands for the words.
        between: text between a word and the picture after it.
    """

    card: str = "openmoji"
    image: str = "image"
    label: str = "base"
    tokens: Annotated[int, AtLeast(0)] = 16
    words: list[str] = field(default_factory=lambda: ["dax", "blicket", "wug", "toma", "zav"])
    ways: Annotated[list[int], Each(AtLeast(2))] = field(default_factory=lambda: [2, 5])
    inner_shots: Annotated[list[int], Each(AtLeast(1))] = field(default_factory=lambda: [1, 3, 5])
    repeats: Annotated[list[int], Each(AtLeast(1), empty=True)] = field(default_factory=lambda: [1, 3, 5])
    episodes: Annotated[int, AtLeast(1)] = 600
    controls: Annotated[int, AtLeast(1)] = 120
    format: str = "{image} is a {answer}\n"
    induction: str = "Answer with {words}.\n"
    between: str = ":"

    def check(self, path: str, errors: Mistakes) -> None:
        """Check columns, format and words."""
        with errors:
            Format(self.format).blind()
        with errors:
            check_columns(self, path, errors, {"image": ["image"], "label": []})
        if len(set(self.words)) < len(self.words) or not all(word.strip() for word in self.words):
            fix = "leave the repeated ones out"
            errors.append(UserError(f"{path}.words", got=self.words, expected="different words", fix=fix))
        if (most := max(self.ways)) > len(self.words):
            got, expected = counted(len(self.words), "word"), f"at least {most}, the most ways"
            raise UserError(f"{path}.words", got=got, expected=expected, fix="add words, or take fewer ways")


@dataclass(frozen=True)
class Pictures:
    """The pictures that episodes are drawn from.

    Args:
        labels: (n,) the class of each.
        words: for each, the tokens that the language model reads in its place.
        features: (n, c), of the captioner's encoder.
    """

    labels: Sequence[str]
    words: Sequence[Tensor]
    features: Tensor


def bind(model: Captioner, part: Binding, split: str, seed: int) -> dict[str, dict[str, float]]:
    """Measure fast binding.

    Args:
        model: a captioner of pictures.
        part: the episodes.
        split: of the card.
        seed: of the episodes.

    Returns:
        The figures of `bind_cell` by cell, such as ``two_way_5_shots_induction`` or ``two_way_1_shots_1_repeats``.
    """
    rows = open_rows(part.card, split, [part.image], [part.label]).having(part.label)
    words, features = picture_words(model, rows, part.image, part.tokens), picture_features(model, rows, part.image)
    pictures, last = Pictures(list(rows[part.label]), words, features), part.inner_shots[-1]
    cells = [
        *((ways, k, "", 0) for ways in part.ways for k in part.inner_shots),
        *((ways, last, part.induction, 0) for ways in part.ways if part.induction),
        *((ways, part.inner_shots[0], "", repeats) for ways in part.ways for repeats in part.repeats),
    ]
    figures: dict[str, dict[str, float]] = {}
    for ways, k, induction, repeats in tqdm(cells, desc=f"episodes of {part.card}", dynamic_ncols=True):
        name = f"{WAYS.get(ways, ways)}_way_{k}_shots"
        name += ("_induction" if induction else "") + (f"_{repeats}_repeats" if repeats else "")
        # the same episodes for all numbers of shots (same `at_least`), for paired comparisons of cells
        count = part.controls if induction or repeats else part.episodes
        drawn = episodes(pictures.labels, ways, k, count, seed, part.words[:ways], at_least=last + 1)
        figures[name] = bind_cell(model, part, drawn, pictures, ways, induction, repeats)
    return figures


def bind_cell(
    model: Captioner,
    part: Binding,
    drawn: Sequence[FewShotEpisode],
    pictures: Pictures,
    ways: int,
    induction: str,
    repeats: int,
) -> dict[str, float]:
    """Accuracy of episodes of one kind, with controls on the first ``part.controls`` of them.

    Args:
        model: a captioner of pictures.
        part: formats of the examples.
        drawn: the episodes.
        pictures: of the rows.
        ways: classes of an episode.
        induction: a sentence before the examples, or "".
        repeats: extra repetitions of the examples.

    Returns:
        ``""``: the accuracy by the likelihood of the picture's words after each invented word; ``_prototype`` and
        ``_jaccard``: of the baselines without a language model; ``_interval``, ...: half the width of the 95 % interval of
        these three; ``_blind``: without pictures; ``_direct`` and ``_direct_blind``: by the likelihood of the invented word
        after the picture; ``_open``: of the word written after the picture.
    """
    lm, names, words = model.language_model, part.words[:ways], pictures.words
    induction = induction.replace("{words}", " or ".join(names))
    chosen: dict[str, list[str]] = {}
    ways_to_read = {"": (True, True), "_together": (True, False), "_blind": (False, True)}  # pictures shown, shots apart
    for end, (seen, apart) in ways_to_read.items():
        some = drawn[: part.controls] if end else drawn
        shown = words if seen else [words[0][:0]] * len(words)
        supports = [[(w, shown[r]) for r, w in zip(e.support, e.support_words)] for e in some]
        queries = [shown[e.query] for e in some]
        scores = channel(lm, supports, queries, names, induction, part.between, apart=apart, repeats=repeats)  # (e, w)
        chosen[end] = [names[i] for i in scores.argmax(1).tolist()]
    for end, format in (("_direct", Format(part.format)), ("_direct_blind", Format(part.format).blind())):
        image = (lambda row: lm.embed(words[row])) if end == "_direct" else (lambda row: None)
        prompts = []
        for e in drawn[: part.controls]:
            shots = [Example(answer=w, image=image(r)) for r, w in zip(e.support, e.support_words)]
            written = format.shots(Episode(shots, repeats, induction))
            parts = [piece for shot in written for piece in shot] + format.query(Example(image=image(e.query)))
            prompts.append(Example(image=lm.prompt([parts]).embeddings[0]))
        shared = read(lm, Format(f"{{image}}{format.lead}{{answer}}{format.stop}"))  # each prompt is one episode
        chosen[end] = [names[i] for i in score(lm, shared, prompts, names).argmax(1).tolist()]
        if end == "_direct":
            chosen["_open"] = answer(lm, shared, prompts, max_tokens=6)
    sets = [set(tokens.tolist()) for tokens in words]
    chosen["_prototype"] = [nearest_prototype(e, pictures.features) for e in drawn]
    chosen["_jaccard"] = [nearest_sets(e, sets) for e in drawn]
    figures = {end: exact_match(made, [e.word for e in drawn[: len(made)]]) for end, made in chosen.items()}
    return figures | {f"{end}_interval": interval(chosen[end], drawn, pictures.labels) for end in ("", *BASELINES)}


def nearest_prototype(episode: FewShotEpisode, features: Tensor) -> str:
    """The word whose examples' mean features have the largest cosine with those of the query.

    Args:
        episode: of the rows of ``features``.
        features: (n, c).

    Source: Snell et al. 2017, Prototypical Networks for Few-shot Learning, with features that are not trained for it.
    """
    query = features[episode.query]
    means = {word: features[rows].mean(0) for word, rows in examples(episode).items()}
    return max(means, key=lambda word: float(F.cosine_similarity(query, means[word], dim=0)))


def nearest_sets(episode: FewShotEpisode, sets: Sequence[set[int]]) -> str:
    """The word whose examples' sets of tokens have the largest mean Jaccard similarity ``|a & b| / |a | b|`` with the query's.

    Args:
        episode: of the rows of ``sets``.
        sets: the tokens that name each picture.
    """
    query = sets[episode.query]

    def likeness(word: str) -> float:
        return float(np.mean([len(query & sets[r]) / max(1, len(query | sets[r])) for r in examples(episode)[word]]))

    return max(episode.words, key=likeness)


def examples(episode: FewShotEpisode) -> dict[str, list[int]]:
    """The rows shown for each word, the words in the random order of ``episode.words``: a tie is broken by chance."""
    shown = list(zip(episode.support, episode.support_words))
    return {word: [row for row, of in shown if of == word] for word in episode.words}


def interval(made: Sequence[str], drawn: Sequence[FewShotEpisode], labels: Sequence[str]) -> float:
    """Half the width of the 95 % interval of an accuracy, clustered by classes, and at least that of independent episodes.

    Args:
        made: the word chosen in each episode.
        drawn: the episodes.
        labels: the class of each row.
    """
    right = [float(word == e.word) for word, e in zip(made, drawn)]
    classes = [sorted({labels[row] for row in e.support}) for e in drawn]
    return max(clustered(right, classes), wilson(sum(right) / len(right), len(right)))
