"""Questions about the pictures of a data card, with captions made of their answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from mmgen.data.cards import check_columns
from mmgen.data.rows import open_rows
from mmgen.errors import Mistakes, UserError
from mmgen.ranges import AtLeast


@dataclass
class QuestionData:
    """A data card and its columns.

    Args:
        card: the data card, by name or path.
        image: the column of pictures.
        question: the column of questions; a text that ends in "?" is asked about every picture instead.
        answer: the column of answers.
        picture: the column that identifies pictures where several rows share one; "": each row has its own.
        names: groups of answers, such as shapes and colours. A picture's caption is the one word of each group found in its
            open questions and answers, in the order of the groups; it has none where a group is missing.
        limit: rows of a split that are read; 0 takes all.
    """

    card: str = "easy_vqa"
    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    picture: str = "image_id"
    names: list[list[str]] = field(default_factory=list)
    limit: Annotated[int, AtLeast(0)] = 0

    def check(self, path: str, errors: Mistakes) -> None:
        """Check the columns and the groups of answers."""
        kinds = {"image": ["image"], "answer": ["text"]}
        kinds |= {} if self.question.endswith("?") else {"question": ["text"]}
        kinds |= {"picture": []} if self.picture else {}
        with errors:
            check_columns(self, path, errors, kinds)
        if not self.names or not all(self.names):
            fix = "list the words that tell pictures apart, as [[circle, square], [red, blue]]"
            raise UserError(f"{path}.names", got=self.names, expected="one or more groups of answers", fix=fix)


class Questions:
    """The questions of a split; for each the number of its picture, and for each picture a row and, if known, its caption.

    Args:
        data: the card and its columns.
        split: of the card.

    Raises:
        UserError: a picture, a question or an answer is missing; the message names its row.

    >>> names = [["zero", "one", "two"]]
    >>> data = QuestionData("digits", question="which?", answer="word", picture="word", names=names, limit=20)
    >>> known = Questions(data, "train")
    >>> known.answers[12], known.pictures[12], known.first[2], known.captions[2]
    ('five', 4, 2, ' two')
    """

    def __init__(self, data: QuestionData, split: str) -> None:
        fixed = data.question.endswith("?")
        needs = [data.image, data.answer, *([] if fixed else [data.question])]
        self.rows = open_rows(data.card, split, needs, limit=data.limit)
        n = len(self.rows)
        self.questions = [data.question] * n if fixed else self.rows[data.question][:]
        self.answers = self.rows[data.answer][:]
        ids = self.rows[data.picture][:] if data.picture else range(n)
        numbers = {name: i for i, name in enumerate(dict.fromkeys(ids))}
        self.pictures = [numbers[name] for name in ids]  # of each question
        self.first = np.unique(self.pictures, return_index=True)[1].tolist()  # a row of each picture
        self.captions = captions_of_answers(self.pictures, self.questions, self.answers, data.names)


def captions_of_answers(
    pictures: Sequence[int], questions: Sequence[str], answers: Sequence[str], names: Sequence[Sequence[str]]
) -> dict[int, str]:
    """Caption pictures with the words that their open questions say are true of them.

    A question whose answer is in a group is open; the words that it presupposes are true of the picture, as is its answer.

    Args:
        pictures, questions, answers: n of each; the number of a question's picture, the question, and its answer.
        names: groups of words; a caption has one word of each, in this order.

    Returns:
        Number of a picture -> its caption, where a word of each group is known.

    >>> asked = ["what color is the circle?", "is it blue?", "what is it?"]
    >>> captions_of_answers([0, 0, 1], asked, ["red", "no", "circle"], [["circle"], ["red", "blue"]])
    {0: ' circle red'}
    """
    group = {word: g for g, words in enumerate(names) for word in words}
    known: dict[int, dict[int, str]] = {}
    for picture, question, answer in zip(pictures, questions, answers):
        if answer in group:
            true = [*question.rstrip("?").split(), answer]
            known.setdefault(picture, {}).update({group[word]: word for word in true if word in group})
    whole = {picture: words for picture, words in known.items() if len(words) == len(names)}
    return {picture: "".join(f" {words[g]}" for g in range(len(names))) for picture, words in whole.items()}
