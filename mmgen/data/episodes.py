"""Open-ended few-shot episodes: invented words for the classes of labelled data, and a query to name."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mmgen.errors import UserError, check_at_least, counted

NONSENSE = ("dax", "blicket", "wug", "toma", "zav", "gorp", "fep", "koba", "nef", "vash", "pilk", "lorp")


@dataclass(frozen=True)
class FewShotEpisode:
    """Rows shown with their words, and a row to name.

    Args:
        support: (ways * inner_shots,) row numbers, in the order of the prompt.
        support_words: (ways * inner_shots,) the word of each row.
        query: the row number to name; not in `support`.
        word: the right word for the query.
        words: (ways,) the episode's words in random order: the closed set of answers.
    """

    support: tuple[int, ...]
    support_words: tuple[str, ...]
    query: int
    word: str
    words: tuple[str, ...]


def episodes(
    labels: Iterable[Hashable],
    ways: int,
    inner_shots: int,
    n: int,
    seed: int,
    words: Sequence[str] = NONSENSE,
    at_least: int | None = None,
) -> list[FewShotEpisode]:
    """Draw few-shot classification episodes from a column of labels, without reading the rows.

    Each episode draws its classes, words and query uniformly. The support consists of rounds that show each class once, in
    random order, so that no class is always last before the query. With the same seed and `at_least`, the classes, words and
    query do not depend on `inner_shots`, and a longer support begins with the shorter one: accuracies at different numbers of
    inner shots are paired.

    Args:
        labels: the class of each row, as ``rows["label"]`` or ``rows["base"]``; rows with ``""`` or None are ignored.
        ways: number of classes of an episode, from 2 to the number of words.
        inner_shots: number of different examples of a class, >= 1.
        n: number of episodes, >= 1.
        seed: seed of all draws, >= 0.
        words: the invented words, all different.
        at_least: smallest number of rows of a class to be used; None: ``inner_shots + 1``, the smallest possible.

    Returns:
        The n episodes.

    Raises:
        UserError: a number is out of its range, words repeat or are fewer than `ways`, or too few classes have enough rows.

    Source: Tsimpoukelli et al. 2021, Multimodal Few-Shot Learning with Frozen Language Models, arXiv 2106.13884, on fast
    concept binding (open-ended miniImageNet). There is no public code; the order of the support is our choice.

    >>> episode = episodes(["cat", "dog", "cat", "dog", "dog"], ways=2, inner_shots=1, n=1, seed=0)[0]
    >>> len(episode.support), episode.query in episode.support, episode.word in episode.words
    (2, False, True)
    """
    check_at_least("ways", ways, 2)
    check_at_least("inner_shots", inner_shots, 1)
    check_at_least("n", n, 1)
    check_at_least("seed", seed, 0)
    least = check_at_least("at_least", inner_shots + 1 if at_least is None else at_least, inner_shots + 1)
    repeated = sorted({word for word in words if list(words).count(word) > 1})
    if repeated:
        raise UserError("words", got=", ".join(repeated), expected="distinct words", fix="leave the repeated ones out")
    if ways > len(words):
        fix = "give more words, or fewer ways"
        raise UserError("ways", got=ways, expected=f"at most {len(words)}, the number of words", fix=fix)
    rows: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        if label is not None and label != "":
            rows.setdefault(label, []).append(i)
    classes = [np.array(of) for of in rows.values() if len(of) >= least]
    if ways > len(classes):
        got = f"{counted(len(classes), 'class')} of {least} or more rows"
        fix = "take fewer ways or inner shots, or another split"
        raise UserError("labels", got=got, expected=f"at least {ways}, the number of ways", fix=fix)
    return [_episode(classes, ways, inner_shots, words, np.random.default_rng([seed, i])) for i in range(n)]


def _episode(
    classes: list[np.ndarray], ways: int, inner_shots: int, words: Sequence[str], rng: np.random.Generator
) -> FewShotEpisode:
    # draws that do not depend on inner_shots come first, then the support round by round
    shuffled = [rng.permutation(classes[i]) for i in rng.choice(len(classes), ways, replace=False)]
    bound = [words[i] for i in rng.choice(len(words), ways, replace=False)]
    asked = int(rng.integers(ways))
    order = [(way, shot) for shot in range(1, inner_shots + 1) for way in rng.permutation(ways).tolist()]
    return FewShotEpisode(
        support=tuple(int(shuffled[way][shot]) for way, shot in order),
        support_words=tuple(bound[way] for way, _ in order),
        query=int(shuffled[asked][0]),
        word=bound[asked],
        words=tuple(bound),
    )
