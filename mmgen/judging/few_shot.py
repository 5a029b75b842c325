"""Questions to a captioner after examples in its prompt: nothing is trained, pictures are read as words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.conditioning.few_shot import Episode, Example, Format, answer, read, score
from mmgen.data.cards import check_column, read_card
from mmgen.data.rows import DataSet, Rows, open_rows
from mmgen.errors import UserError
from mmgen.models.captioner import Captioner
from mmgen.ranges import AtLeast, Each

AT_ONCE = 64  # pictures encoded together


@dataclass
class Questions:
    """Questions about pictures, asked after examples.

    Args:
        card: a data card.
        support: the split that examples are taken from.
        image: the column of pictures.
        question: the column of questions; a text that ends in "?" is asked about every picture instead.
        answer: the column of answers.
        template: the column of kinds of question, which get examples of their own kind; "": all are of one kind.
        answers: the column of a question's closed set of answers; "": all answers of ``support``.
        caption: the column of true descriptions, which the text oracle reads in place of pictures; "": no oracle.
        format: how a question is written.
        shots: numbers of examples.
        supports: sets of examples for each kind; the questions of the kind are divided among them.
        queries: questions of a split, drawn at random; 0 takes all.
        open: let the language model write an answer, beside choosing one of the closed set.
        max_tokens: longest written answer.
        prior: subtract from each answer's score its score without the picture.
    """

    card: str
    support: str
    format: str
    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    template: str = ""
    answers: str = ""
    caption: str = ""
    shots: Annotated[list[int], Each(AtLeast(0))] = field(default_factory=lambda: [0, 1, 4])
    supports: Annotated[int, AtLeast(1)] = 8
    queries: Annotated[int, AtLeast(0)] = 400
    open: bool = True
    max_tokens: Annotated[int, AtLeast(1)] = 6
    prior: bool = False

    def check(self, path: str) -> None:
        """Check columns and format.

        Args:
            path: the config key of this section, for errors.

        Raises:
            UserError: one of them is wrong.
        """
        for placeholder in ("{image}", "{question}"):
            if placeholder not in self.format:
                fix = "write it as in '{image}. {question} {answer}\\n'"
                raise UserError(f"{path}.format", got=repr(self.format), expected=f"{placeholder} in it", fix=fix)
        Format(self.format).blind()
        card = read_card(self.card)
        self.image = check_column(card, f"{path}.image", self.image, "image")
        for key in ("question", "answer", "template", "answers", "caption"):
            if is_column(column := getattr(self, key)):
                check_column(card, f"{path}.{key}", column)

    def rows(self, split: str) -> Rows:
        """The rows of a split, all of whose values that are used must be there."""
        names = (self.image, self.question, self.answer, self.answers, self.template, self.caption)
        return open_rows(self.card, split, [name for name in dict.fromkeys(names) if is_column(name)])


def is_column(name: str) -> bool:
    """Tell the name of a column from "" and from a question."""
    return bool(name) and not name.endswith("?")


def values_of(rows: Rows, name: str) -> Sequence[Any]:
    """The values of a column; for each row the same where ``name`` is "" or a question."""
    return rows[name] if is_column(name) else [name] * len(rows)


def picture_words(model: Captioner, rows: Rows, column: str) -> list[Tensor]:
    """The tokens (n_i,) by which a captioner names each picture, see `Captioner.names`."""
    device = processes.device()
    if model.trained_encoder:
        pictures = DataSet(rows, {"image": column}, model.processors)
    else:
        features = model.all_features(rows[column], [rows.fingerprint, column])["features"]
        pictures = DataSet(rows, {"features": features})
    return [words for batch in pictures.batches(size=AT_ONCE, device=device) for words in model.names(batch)]


def ask(model: Captioner, part: Questions, split: str, seed: int) -> tuple[Rows, dict[str, list[str]]]:
    """Ask questions after examples of their kind.

    Args:
        model: a captioner of pictures.
        part: the questions.
        split: where they are taken from, another than ``part.support``.
        seed: of the choice of questions and examples.

    Returns:
        The rows that were asked about, and the answers to each, by ``WAY/INPUT/SHOTS``. WAY is ``closed``, chosen from the
        closed set; ``plain``, chosen without the prior; or ``open``, written. INPUT is ``seen``, ``blind`` or ``oracle``.

    Raises:
        UserError: examples of the split that is asked about, or fewer examples of a kind than shots.
    """
    random = np.random.default_rng([seed, 0])
    if split == part.support:  # a question could be its own example
        fix = "evaluate another split, or take the examples from another"
        raise UserError(f"examples for {part.card}", got=f"those of {split}", expected="those of another split", fix=fix)
    rows, pool = part.rows(split), part.rows(part.support)
    rows = rows.select(random.permutation(len(rows))[: part.queries or None].tolist())
    sets = _sets(part, rows, pool, random)
    shown = pool.select([i for support, _ in sets for i in support])
    inputs: dict[str, list[list[Tensor]] | None] = {"seen": [picture_words(model, d, part.image) for d in (shown, rows)]}
    inputs["blind"] = None
    if part.caption:
        inputs["oracle"] = [[model.language_model.tokens(t) for t in data[part.caption]] for data in (shown, rows)]
    everything = sorted(set(pool[part.answer]))
    made: dict[str, list[str]] = {}
    bar = tqdm(total=len(inputs) * len(part.shots) * len(sets), desc=f"questions of {part.card}", dynamic_ncols=True)
    for name, words in inputs.items():
        for k in part.shots:
            place = 0
            for support, asked in sets:
                shots = [_example(model, part, shown, place + i, words[0] if words else None) for i in range(k)]
                queries = [_example(model, part, rows, i, words[1] if words else None) for i in asked]
                answers = rows[part.answers][asked[0]] if part.answers else everything
                for way, said in answered(model, part, shots, queries, answers):
                    texts = made.setdefault(f"{way}/{name}/{k}", [""] * len(rows))
                    for i, text in zip(asked, said):
                        texts[i] = text
                place += len(support)
                bar.update()
    return rows, made


def answered(
    model: Captioner, part: Questions, shots: list[Example], queries: list[Example], answers: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Answers to queries after the same shots, by WAY, see `ask`."""
    lm, format = model.language_model, Format(part.format)
    blind = format.blind()
    shared = read(lm, blind if queries[0].image is None else format, Episode(shots))
    scores = score(lm, shared, queries, answers)  # (b, a)
    if part.prior and queries[0].image is not None:
        yield "plain", [answers[i] for i in scores.argmax(1).tolist()]
        unseen = read(lm, blind, Episode([Example(shot.question, shot.answer) for shot in shots]))
        scores = scores - score(lm, unseen, [Example(query.question) for query in queries], answers)
    yield "closed", [answers[i] for i in scores.argmax(1).tolist()]
    if part.open:
        yield "open", answer(lm, shared, queries, part.max_tokens)


def _sets(part: Questions, rows: Rows, pool: Rows, random: np.random.Generator) -> list[tuple[list[int], list[int]]]:
    """Sets of examples, rows of ``pool``, each with the rows that are asked about after them."""
    sets, most = [], max(part.shots)
    kinds = [*zip(values_of(rows, part.template), map(tuple, values_of(rows, part.answers)))]  # one closed set each
    for kind in dict.fromkeys(kinds):
        alike = [i for i, other in enumerate(values_of(pool, part.template)) if other == kind[0]]
        asked = [i for i, other in enumerate(kinds) if other == kind]
        if len(alike) < most:
            got, expected = f"{len(alike)} in {part.support}", f"{most}, the most shots"
            raise UserError(f"examples of {kind[0]!r}", got=got, expected=expected, fix="ask after fewer shots")
        for s in range(min(part.supports, len(asked))):
            sets.append((random.permutation(alike)[:most].tolist(), asked[s :: part.supports]))
    return sets


def _example(model: Captioner, part: Questions, rows: Rows, i: int, words: Sequence[Tensor] | None) -> Example:
    """Row i with these words as its picture, or without a picture."""
    image = None if words is None else model.language_model.embed(words[i])
    return Example(values_of(rows, part.question)[i], rows[part.answer][i], image)
