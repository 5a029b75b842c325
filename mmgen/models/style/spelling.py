"""Texts cut into sentences of words, and changed words written as the text was: its spaces, capitals and spelling."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mmgen.data.text import tokens_of
from mmgen.models.style.ngrams import UNKNOWN

LONGEST = 40  # words; a longer sentence is changed piece by piece
TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Prof")
Item = tuple[int, int, bool]  # a word's id, its place among the text's words or -1, whether it is new
_CLOSE = re.compile(r"n't$|'\w|[.,!?]")  # what follows a word without a space
_SPACED = re.compile(r"\s(?:n't\b|'\w|[.,!?])")  # unless the text is split into tokens


def kept_places(text: str, offsets: Sequence[tuple[int, int]]) -> set[int]:
    """The places of words that no change may touch: in addresses and abbreviations, and names, which a capital tells.

    >>> text = "Mary Smith ate. Good tea at www.good.com, e.g. today."
    >>> offsets = [match.span() for match in re.finditer(r"\\w+|\\S", text)]
    >>> [text[a:b] for i, (a, b) in enumerate(offsets) if i in kept_places(text, offsets)]
    ['Mary', 'Smith', 'www', '.', 'good', '.', 'com', ',', 'e', '.', 'g', '.']
    """
    kept: set[int] = set()
    for run in re.finditer(r"\S+", text):  # what stands between spaces
        if re.search(r"\w[.@:/]+\w", run.group()):
            kept |= {i for i, (start, _) in enumerate(offsets) if run.start() <= start < run.end()}
    words = [text[start:end] for start, end in offsets]
    named = [word[:1].isupper() and word[1:].islower() for word in words]
    for i in range(1, len(words)):
        if words[i] == "." and words[i - 1] in TITLES:
            kept |= {i - 1, i}
        elif named[i] and (words[i - 1] not in (".", "!", "?") or i - 1 in kept):  # not the first of a sentence
            kept |= {i - 1, i} if named[i - 1] else {i}  # before a name, the first is of it
    return kept


def pieces_of(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[Any, list[set[int]], list[tuple[int, list[Item]]]]:
    """Texts cut where sentences end, and where more than `LONGEST` words have no end.

    Returns:
        What the tokenizer says of them, with ``offset_mapping``; the places of each that no change may touch; and, in order,
        whose each piece is and its words.
    """
    ends: Any = {tokenizer.convert_tokens_to_ids(mark) for mark in (".", "!", "?")} - {UNKNOWN}
    read = tokens_of(tokenizer, texts, add_special_tokens=False, return_offsets_mapping=True)
    kept = [kept_places(text, offsets) for text, offsets in zip(texts, read["offset_mapping"])]
    return read, kept, [(i, piece) for i, ids in enumerate(read["input_ids"]) for piece in cut(ids, ends, kept[i])]


def cut(ids: Sequence[int], ends: Collection[int], kept: Collection[int] = ()) -> Iterator[list[Item]]:
    """The words of a text, sentence by sentence, `LONGEST` at a time at most; what is ``kept`` ends no sentence."""
    piece: list[Item] = []
    for at, word in enumerate(ids):
        piece.append((word, at, False))
        over = word in ends and at not in kept and not (at + 1 < len(ids) and ids[at + 1] in ends)
        if over or len(piece) == LONGEST or at + 1 == len(ids):
            yield piece
            piece = []


def spell_changed(text: str, offsets: Sequence[tuple[int, int]], items: list[Item], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of changed items: what is left of the old one letter by letter, new words spaced and capitalised as it is."""
    if not any(new for _, _, new in items) and len(items) == len(offsets):
        return text
    spaced, cased = bool(_SPACED.search(text)), any(map(str.isupper, text))
    pieces: list[str] = []
    for word, at, new in items:
        start, end = offsets[at] if at >= 0 else (0, 0)
        gap = text[offsets[at - 1][1] if at > 0 else 0 : start]
        written = text[start:end]
        if new:
            old, written = written, str(tokenizer.convert_ids_to_tokens(word))
            if at < 0:
                gap = "" if not spaced and _CLOSE.match(written) else " "
            if old.isupper() and len(old) > 1:
                written = written.upper()
            elif old[:1].isupper() or (written == "i" and cased):
                written = written[:1].upper() + written[1:]
        if not pieces:
            gap = text[: offsets[0][0]]
            if text[offsets[0][0]].isupper():
                written = written[:1].upper() + written[1:]
        elif at == 0:  # it was the first, and no longer is
            gap = " "
            if word not in (UNKNOWN, tokenizer.convert_tokens_to_ids("i")) and written[1:].islower():
                written = written.lower()
        pieces += [gap, written]
    return "".join(pieces) + text[offsets[-1][1] :]


def spell_anew(
    text: str,
    offsets: Sequence[tuple[int, int]],
    ids: Sequence[int],
    words: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """``words`` written as the text is: its own words letter by letter, others spaced and capitalised as it is.

    Args:
        text: of words ``ids`` that stand at ``offsets``.
        words: what is written instead; an unknown word is the text's next unknown one, and nothing where it has no more.
    """
    places: dict[int, list[int]] = {}  # where the text has each word
    for place, word in enumerate(ids):
        places.setdefault(word, []).append(place)
    begins = [at == 0 or text[offsets[at - 1][0] : offsets[at - 1][1]] in (".", "!", "?") for at in range(len(ids))]
    spaced, capital, shouted = bool(_SPACED.search(text)), text.lstrip()[:1].isupper(), text.isupper() and len(text) > 1
    pieces: list[str] = []
    before = None  # the place of what was written last
    for word in words:
        left = places.get(word, [])
        at = (left.pop(0) if len(left) > 1 or word == UNKNOWN else left[0]) if left else None
        if at is None and word == UNKNOWN:
            continue
        written = str(tokenizer.convert_ids_to_tokens(word)) if at is None else text[offsets[at][0] : offsets[at][1]]
        if at is not None and begins[at] and written[1:].islower() and word != UNKNOWN:
            written = written.lower()
        if capital and (not pieces or pieces[-1] in (".", "!", "?")):
            written = written[:1].upper() + written[1:]
        gap = "" if not pieces or (not spaced and _CLOSE.match(written)) else " "
        if pieces and at is not None and before is not None and at == before + 1:
            gap = text[offsets[before][1] : offsets[at][0]]
        pieces += [gap, written]
        before = at
    line = "".join(pieces)
    return line.upper() if shouted else line
