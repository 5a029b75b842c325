"""Style transfer without training: copy, delete, swap or retrieve by the words that mark a style."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from sklearn.feature_extraction.text import TfidfVectorizer

from mmgen.data.text import WORD
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.models.style.ngrams import check_styles

Method = Literal["copy", "delete", "template", "retrieve"]
AT_ONCE = 256  # texts per nearest-sentence search
_WORD = re.compile(WORD)


class MarkerEditor:
    """Style transfer by markers, the n-grams that are far more frequent in one style than in the other.

    An n-gram u of up to ``longest`` words marks style v where

    ``(count(u, v) + smoothing) / (count(u, the other) + smoothing) >= threshold``

    The content of a text is what remains without the markers of its own style, the one that is not the target.

    - ``copy``: the text itself.
    - ``delete``: its content.
    - ``template``: its markers replaced by those of the nearest sentence of the target style, whose content has the highest
      TF-IDF cosine.
    - ``retrieve``: that sentence.

    Args:
        method: one of the four above.
        class_names: the two styles.
        markers: markers of each style, words joined by spaces.
        sentences: sentences of each style for ``template`` and ``retrieve``, tokens joined by spaces.

    Raises:
        UserError: an unknown method, or not two styles.

    Source: Li et al. 2018, Delete, Retrieve, Generate, arXiv 1804.06437, 3. Without its two methods that
        rewrite with a network, one of them from the output of ``delete``.

    >>> texts, labels = ["the soup was so good", "the soup was bad", "tea is cold", "tea is great"] * 9, [1, 0, 0, 1] * 9
    >>> editor = MarkerEditor.learn(texts, labels, ["bad", "good"], "template", threshold=5)
    >>> editor.restyle(["The soup was BAD.", ""], "good")
    ['the soup was so good .', '']
    """

    def __init__(
        self,
        method: Method,
        class_names: Sequence[str],
        markers: Sequence[Sequence[str]] = ((), ()),
        sentences: Sequence[Sequence[str]] = ((), ()),
    ) -> None:
        self.method = check_one_of("method", method, get_args(Method))
        if len(class_names) != 2 or len(markers) != 2 or len(sentences) != 2:
            raise UserError(
                "class_names", got=list(class_names), expected="two styles", fix="give texts of exactly two styles"
            )
        self.class_names = list(class_names)
        self.markers = [frozenset(of) for of in markers]
        self.sentences = [list(of) for of in sentences]
        self.longest = max((marker.count(" ") + 1 for of in self.markers for marker in of), default=0)
        self._index: dict[int, tuple[TfidfVectorizer, Any]] = {}  # of each style, built at first use

    @classmethod
    def learn(
        cls,
        texts: Sequence[str],
        labels: Sequence[int],
        class_names: Sequence[str],
        method: Method,
        smoothing: float = 1.0,
        threshold: float = 15.0,
        longest: int = 4,
    ) -> "MarkerEditor":
        """Build an editor with the markers of these texts.

        Args:
            texts: texts of both styles.
            labels: 0 or 1 for each.
            class_names: the two styles.
            method: see the class.
            smoothing: above 0.
            threshold: above 1.
            longest: most words of a marker.

        Raises:
            UserError: a number out of its range, a label that is neither 0 nor 1, or a style without texts.
        """
        check_at_least("longest", longest, 1)
        for name, value, low in (("smoothing", smoothing, 0), ("threshold", threshold, 1)):
            if not value > low:
                raise UserError(name, got=value, expected=f"a number above {low}", fix=f"use {name}={15 if low else 1}")
        check_styles(labels)
        split = [_WORD.findall(text.lower()) for text in texts]
        counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for words, label in zip(split, labels):
            counts[label].update(" ".join(words[i:j]) for i, j in _spans(len(words), longest))
        markers = [
            [u for u, n in own.items() if (n + smoothing) / (other[u] + smoothing) >= threshold]
            for own, other in (counts, counts[::-1])
        ]
        editor = cls(method, class_names, markers)
        if method in ("template", "retrieve"):
            for words, label in zip(split, labels):
                if any(marked for _, marked in editor.split(words, label)):
                    editor.sentences[label].append(" ".join(words))
        return editor

    def split(self, words: Sequence[str], style: int) -> list[tuple[str, bool]]:
        """Pieces of the words, each with True if it marks ``style``; longer markers first, then earlier ones."""
        taken = [0] * len(words)  # 0: content; k: first of the k words of a marker; -1: another of its words
        for i, j in sorted(_spans(len(words), self.longest), key=lambda span: (span[0] - span[1], span[0])):
            if not any(taken[i:j]) and " ".join(words[i:j]) in self.markers[style]:
                taken[i:j] = [j - i] + [-1] * (j - i - 1)
        return [(" ".join(words[i : i + max(1, k)]), k > 0) for i, k in enumerate(taken) if k >= 0]

    def restyle(self, texts: Sequence[str], target: str) -> list[str]:
        """Rewrite texts in the style ``target``, lower-cased and tokenised; blank ones and copies are unchanged.

        Raises:
            UserError: an unknown style, or nothing to retrieve.
        """
        style = self.class_names.index(check_one_of("target", target, self.class_names))
        if self.method == "copy":
            return list(texts)
        restyled = []
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            pieces = [self.split(_WORD.findall(text.lower()), 1 - style) for text in some]
            found = [""] * len(some) if self.method == "delete" else self._nearest(pieces, style)
            edited = [self._edited(own, other, style) for own, other in zip(pieces, found)]
            restyled += [new if text.strip() else text for text, new in zip(some, edited)]
        return restyled

    def save(self, folder: Path) -> None:
        """Write ``editor.json`` into an existing folder."""
        state = {"method": self.method, "class_names": self.class_names, "markers": [sorted(of) for of in self.markers]}
        (folder / "editor.json").write_text(json.dumps(state | {"sentences": self.sentences}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "MarkerEditor":
        """Load the editor that `save` wrote.

        Raises:
            UserError: there is no such file, or it is damaged.
        """
        file = folder / "editor.json"
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
            raise UserError(str(file), got=str(error), expected="what MarkerEditor.save wrote", fix="save it again") from error

    def _edited(self, pieces: list[tuple[str, bool]], found: str, style: int) -> str:
        if self.method == "retrieve":
            return found
        places = sum(marked for _, marked in pieces)
        new = [piece for piece, marked in self.split(found.split(), style) if marked]
        put = iter([*new[: places - 1], " ".join(new[places - 1 :])] if places else [])  # the last slot takes the rest
        words = [next(put, "") if marked else piece for piece, marked in pieces]
        return " ".join(word for word in words if word)

    def _nearest(self, pieces: Sequence[list[tuple[str, bool]]], style: int) -> list[str]:
        """The sentence of ``style`` with the nearest content to each text."""
        if not self.sentences[style]:
            fix = "lower the threshold, or give more texts"
            raise UserError("sentences", got="none", expected=f"some with markers of {self.class_names[style]}", fix=fix)
        if style not in self._index:
            contents = [_content(self.split(text.split(), style)) for text in self.sentences[style]]
            vectorizer = TfidfVectorizer(analyzer=str.split)
            self._index[style] = vectorizer, vectorizer.fit_transform([*contents, "the"])[:-1].T.tocsr()
        vectorizer, known = self._index[style]
        cosine = vectorizer.transform([_content(own) for own in pieces]) @ known  # (texts, sentences)
        return [self.sentences[style][at] for at in cosine.argmax(1).ravel().tolist()[0]]


def _content(pieces: list[tuple[str, bool]]) -> str:
    return " ".join(piece for piece, marked in pieces if not marked)


def _spans(length: int, longest: int) -> Iterator[tuple[int, int]]:
    return ((i, i + n) for n in range(1, longest + 1) for i in range(length - n + 1))
