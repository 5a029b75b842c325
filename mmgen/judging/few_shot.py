"""Few-shot question answering by a captioner: examples in its prompt, pictures as soft words, no training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen import processes
from mmgen.conditioning.few_shot import Episode, Example, Format, answer, read, score
from mmgen.data.cards import check_columns
from mmgen.data.rows import DataSet, Rows, open_rows
from mmgen.errors import Mistakes, UserError
from mmgen.models.captioner import Captioner
from mmgen.ranges import AtLeast, Each

AT_ONCE = 64  # pictures encoded together


@dataclass
class Questions:
    """Settings of few-shot questions about pictures.

    Args:
        card: a data card.
        support: split of the examples.
        image: column of pictures.
        question: column of questions, or one question for every picture, which ends in "?".
        answer: column of answers.
        template: column of the kind of question, which examples share; "": one kind.
        answers: column of the closed set of answers to a question; "": all answers of ``support``.
        caption: column of true descriptions, which the text oracle reads instead of pictures; "": no oracle.
        format: template of a question.
        shots: numbers of examples.
        supports: sets of examples per kind, among which its questions are divided.
        queries: questions drawn at random from a split; 0 takes all.
        open: also generate an answer instead of only choosing from the closed set.
        max_tokens: longest generated answer.
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

    def check(self, path: str, errors: Mistakes) -> None:
        """Check columns and format."""
        for placeholder in ("{image}", "{question}"):
            if placeholder not in self.format:
                fix = "write it as in '{image}. {question} {answer}\\n'"
                errors.append(UserError(f"{path}.format", got=repr(self.format), expected=f"{placeholder} in it", fix=fix))
        with errors:
            Format(self.format).blind()
        keys = [key for key in ("question", "answer", "template", "answers", "caption") if is_column(getattr(self, key))]
        check_columns(self, path, errors, {"image": ["image"], **{key: [] for key in keys}})

    def rows(self, split: str) -> Rows:
        """The rows of a split, which must have all values used."""
        names = (self.image, self.question, self.answer, self.answers, self.template, self.caption)
        return open_rows(self.card, split, [name for name in dict.fromkeys(names) if is_column(name)])


def is_column(name: str) -> bool:
    """True for the name of a column, not "" or a question."""
    return bool(name) and not name.endswith("?")


def values_of(rows: Rows, name: str) -> Sequence[Any]:
    """The values of a column; ``name`` itself for each row if it is "" or a question."""
    return rows[name] if is_column(name) else [name] * len(rows)


def picture_words(model: Captioner, rows: Rows, column: str, n: int = 0) -> list[Tensor]:
    """The tokens (n_i,) that name each picture: its `Captioner.names`, or n `Captioner.keywords`."""
    pictures = _pictures(model, rows, column).batches(size=AT_ONCE, device=processes.device())
    return [words for batch in pictures for words in (model.keywords(batch, n) if n else model.names(batch))]


@torch.no_grad()
def picture_features(model: Captioner, rows: Rows, column: str) -> Tensor:
    """The features of each picture (n, c): the encoder's last layer, pooled; of a trained encoder all that is read."""
    if not model.trained_encoder:
        return model.all_features(rows[column], [rows.fingerprint, column])["pooled"].float()
    pictures = _pictures(model, rows, column).batches(size=AT_ONCE, device=processes.device())
    return torch.cat([model.features(batch) for batch in pictures]).float().cpu()


def _pictures(model: Captioner, rows: Rows, column: str) -> DataSet:
    if model.trained_encoder:
        return DataSet(rows, {"image": column}, model.processors)
    return DataSet(rows, {"features": model.all_features(rows[column], [rows.fingerprint, column])["features"]})


def ask(model: Captioner, part: Questions, split: str, seed: int) -> tuple[Rows, dict[str, list[str]]]:
    """Ask questions after examples of their kind.

    Args:
        model: a captioner of pictures.
        part: the questions.
        split: split of the questions, other than ``part.support``.
        seed: seed of the choice of questions and examples.

    Returns:
        The rows of the questions, and the answers to each, by ``WAY/INPUT/SHOTS``. WAY is ``closed``, chosen from the closed
        set; ``plain``, chosen without the prior; or ``open``, generated. INPUT is ``seen``, ``blind`` or ``oracle``.

    Raises:
        UserError: ``split`` is that of the examples, or a kind has fewer examples than shots.
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
                for way, written in answered(model, part, shots, queries, answers):
                    texts = made.setdefault(f"{way}/{name}/{k}", [""] * len(rows))
                    for i, text in zip(asked, written):
                        texts[i] = text
                place += len(support)
                bar.update()
    return rows, made


def answered(
    model: Captioner, part: Questions, shots: list[Example], queries: list[Example], answers: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Answers to queries with the same shots, by WAY, see `ask`."""
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
    """Sets of examples, rows of ``pool``, each with the rows of its questions."""
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
    """Row i with words in place of its picture, or without a picture."""
    image = None if words is None else model.language_model.embed(words[i])
    return Example(values_of(rows, part.question)[i], rows[part.answer][i], image)
