"""Texts cut into sentences, and rewrites written with the spaces, capitals and spelling of the text."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mmgen.data.text import tokens_of
from mmgen.models.style.ngrams import UNKNOWN

LONGEST = 40  # words; longer sentences are cut into pieces
TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Prof")
Item = tuple[int, int, bool]  # id of a word, its position in the text or -1, True if it is new
_CLOSE = re.compile(r"n't$|'\w|[.,!?]")  # follows a word without a space
_SPACED = re.compile(r"\s(?:n't\b|'\w|[.,!?])")  # in a text split into tokens


def kept_places(text: str, offsets: Sequence[tuple[int, int]]) -> set[int]:
    """Positions of words that must not change: parts of addresses and abbreviations, and capitalised names.

    >>> text = "Mary Smith ate. Good tea at www.good.com, e.g. today."
    >>> offsets = [match.span() for match in re.finditer(r"\\w+|\\S", text)]
    >>> [text[a:b] for i, (a, b) in enumerate(offsets) if i in kept_places(text, offsets)]
    ['Mary', 'Smith', 'www', '.', 'good', '.', 'com', ',', 'e', '.', 'g', '.']
    """
    kept: set[int] = set()
    for run in re.finditer(r"\S+", text):  # text between spaces
        if re.search(r"\w[.@:/]+\w", run.group()):
            kept |= {i for i, (start, _) in enumerate(offsets) if run.start() <= start < run.end()}
    words = [text[start:end] for start, end in offsets]
    named = [word[:1].isupper() and word[1:].islower() for word in words]
    for i in range(1, len(words)):
        if words[i] == "." and words[i - 1] in TITLES:
            kept |= {i - 1, i}
        elif named[i] and (words[i - 1] not in (".", "!", "?") or i - 1 in kept):  # not the first of a sentence
            kept |= {i - 1, i} if named[i - 1] else {i}  # a capital at the start belongs to the name after it
    return kept


def pieces_of(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[Any, list[set[int]], list[tuple[int, list[Item]]]]:
    """Cut texts into sentences of at most `LONGEST` words.

    Returns:
        The tokenized texts, with ``offset_mapping``; the protected positions of each, see `kept_places`; and the pieces in
        order, each with the index of its text.
    """
    ends: Any = {tokenizer.convert_tokens_to_ids(mark) for mark in (".", "!", "?")} - {UNKNOWN}
    read = tokens_of(tokenizer, texts, add_special_tokens=False, return_offsets_mapping=True)
    kept = [kept_places(text, offsets) for text, offsets in zip(texts, read["offset_mapping"])]
    return read, kept, [(i, piece) for i, ids in enumerate(read["input_ids"]) for piece in cut(ids, ends, kept[i])]


def cut(ids: Sequence[int], ends: Collection[int], kept: Collection[int] = ()) -> Iterator[list[Item]]:
    """Cut a text into sentences of at most `LONGEST` words; positions in ``kept`` end no sentence."""
    piece: list[Item] = []
    for at, word in enumerate(ids):
        piece.append((word, at, False))
        over = word in ends and at not in kept and not (at + 1 < len(ids) and ids[at + 1] in ends)
        if over or len(piece) == LONGEST or at + 1 == len(ids):
            yield piece
            piece = []


def spell_changed(text: str, offsets: Sequence[tuple[int, int]], items: list[Item], tokenizer: PreTrainedTokenizerBase) -> str:
    """Write changed items: unchanged words letter by letter, new ones spaced and capitalised like the text."""
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
        elif at == 0:  # formerly the first word
            gap = " "
            if word not in (UNKNOWN, tokenizer.convert_tokens_to_ids("i")) and written[1:].islower():
                written = written.lower()
        pieces += [gap, written]
    return "".join(pieces) + text[offsets[-1][1] :]


def spell_piece(
    text: str, offsets: Sequence[tuple[int, int]], items: list[Item], piece: list[Item], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Write an edit ``items`` of a ``piece`` of a text by itself, see `spell_changed`."""
    first, last = piece[0][1], piece[-1][1]
    start, end = offsets[first][0], offsets[last][1]
    own = [(a - start, b - start) for a, b in offsets[first : last + 1]]
    return spell_changed(
        text[start:end], own, [(word, at if at < 0 else at - first, new) for word, at, new in items], tokenizer
    )


def spell_anew(
    text: str,
    offsets: Sequence[tuple[int, int]],
    ids: Sequence[int],
    words: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """Write ``words`` like the text: its own words letter by letter, others spaced and capitalised like it.

    Args:
        text: text with the words ``ids`` at ``offsets``.
        words: rewrite; each unknown word becomes the next unknown word of the text, or is omitted if there are no more.
    """
    positions: dict[int, list[int]] = {}  # of each word in the text
    for place, word in enumerate(ids):
        positions.setdefault(word, []).append(place)
    begins = [at == 0 or text[offsets[at - 1][0] : offsets[at - 1][1]] in (".", "!", "?") for at in range(len(ids))]
    spaced, capital, shouted = bool(_SPACED.search(text)), text.lstrip()[:1].isupper(), text.isupper() and len(text) > 1
    pieces: list[str] = []
    before = None  # position of the last written word
    for word in words:
        left = positions.get(word, [])
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
