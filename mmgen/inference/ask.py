"""Answers of a captioner to questions about pictures or sounds, after examples or without (``mmgen ask``)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmgen import processes
from mmgen.conditioning.few_shot import Episode, Example, Format, answer, check_answers, read, score
from mmgen.data.batch import Batch, collate
from mmgen.errors import UserError, counted
from mmgen.inference.generate import AT_ONCE
from mmgen.models.answerer import Answerer
from mmgen.models.base import Model
from mmgen.models.captioner import Captioner


class Conversation:
    """Questions to the language model of a captioner; a picture's soft words replace ``{image}`` in the format.

    Examples are read once and serve all later questions. An answerer has learned its prompt and format, and takes no examples.

    Args:
        model: a captioner, or an answerer, with its processors.
        format: template of the examples; None: the default of `Format`.
        answers: a closed set of answers, ranked by mean log p a token; empty: the model writes its answer.
        max_tokens: longest answer that the model writes.

    Raises:
        UserError: another model, or a format for an answerer.
    """

    def __init__(self, model: Model, format: Format | None = None, answers: Sequence[str] = (), max_tokens: int = 16) -> None:
        if not isinstance(model, Captioner):
            fix = "train one with `mmgen train captioning`"
            raise UserError("model", got=f"a {model.name}", expected="a captioner or an answerer", fix=fix)
        self.learned = isinstance(model, Answerer)
        if self.learned and format is not None:
            fix = "leave --format and --induction out"
            raise UserError("format", got=repr(format.shot), expected="the one that this answerer has learned", fix=fix)
        self.model = model.to(processes.device()).eval()
        self.format: Format = model.format if self.learned else format or Format()
        self.support: list[Example] = []
        self.answers, self.max_tokens = check_answers(answers) if answers else [], max_tokens
        self.forget()

    @torch.no_grad()
    def encode(self, files: Sequence[str]) -> list[Tensor | None]:
        """Embed each picture or sound as soft words (n, d), each file read once; None for "".

        Raises:
            UserError: a file that cannot be read.
        """
        modality, different = self.model.modality, [file for file in dict.fromkeys(files) if file]
        rows = [{modality: self.model.processors[modality](file)} for file in different]
        batches = [collate(rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)]
        words = [row for batch in batches for row in self._words(batch.to(self.model.step.device))]  # each (n, d)
        found = dict(zip(different, words))
        return [found.get(file) for file in files]

    def _words(self, batch: Batch) -> Iterable[Tensor]:
        if self.learned:  # its prompt was learned with all of them
            return self.model.encode(batch).mean
        return [self.model.language_model.embed(ids) for ids in self.model.names(batch)]

    def show(self, shots: Sequence[Sequence[str]]) -> None:
        """Add examples after those shown before.

        Args:
            shots: (file, question, answer) each; "" for a file or a question that the format lacks.

        Raises:
            UserError: shots for an answerer, or what `mmgen.conditioning.few_shot.read` refuses.
        """
        if self.learned and shots:
            fix = "leave them out, or ask a captioner"
            raise UserError("shots", got=len(shots), expected="none, as an answerer's prompt is learned", fix=fix)
        for shot in shots:
            if isinstance(shot, str) or len(shot) != 3:
                fix = "write (file, question, answer)"
                raise UserError("shot", got=repr(shot), expected="a file, a question and an answer", fix=fix)
        if not shots:
            return
        images = self.encode([file for file, _, _ in shots])
        support = [*self.support, *(Example(q, a, image) for image, (_, q, a) in zip(images, shots))]
        self.shared = read(self.model.language_model, self.format, Episode(support))  # fails before anything is kept
        self.support = support

    def forget(self) -> None:
        """Drop the examples."""
        self.support = []
        self.shared = self.model.shared if self.learned else read(self.model.language_model, self.format)

    def ask(self, queries: Sequence[Example]) -> list[dict[str, Any]]:
        """Answer: for each question a dict of ``answer`` and, with a closed set, the ``scores`` of all, log p a token."""
        reader = self.model.language_model
        if not self.answers:
            return [{"answer": text} for text in answer(reader, self.shared, queries, self.max_tokens)]
        scores = score(reader, self.shared, queries, self.answers).tolist()  # (b, a)
        named = [dict(zip(self.answers, row)) for row in scores]
        return [{"answer": max(row, key=row.__getitem__), "scores": row} for row in named]


def ask(
    model: Model,
    questions: Sequence[str],
    files: Sequence[str] = (),
    shots: Sequence[Sequence[str]] = (),
    format: Format | None = None,
    answers: Sequence[str] = (),
    max_tokens: int = 16,
) -> list[dict[str, Any]]:
    """Answer questions about pictures or sounds, after examples or without any.

    Args:
        model: a captioner or an answerer.
        questions: one for each file, or one for all.
        files: pictures or sounds, as the captioner reads; one for each question, or one for all; none if the format has no
            place for them.
        shots, format, answers, max_tokens: see `Conversation`.

    Returns:
        For each question a dict of ``question``, ``file``, ``answer`` and, with a closed set, ``scores``.

    Raises:
        UserError: numbers of questions and files that do not fit, a file that cannot be read, or what
            `mmgen.conditioning.few_shot` refuses.
    """
    questions, files = ([given] if isinstance(given, str) else given for given in (questions, files))
    if not questions:
        raise UserError("questions", got="none", expected="at least one", fix="ask something")
    n = max(len(questions), len(files))
    if len(questions) not in (1, n) or len(files) not in (0, 1, n):
        got = f"{counted(len(questions), 'question')} and {counted(len(files), 'file')}"
        raise UserError("inputs", got=got, expected="one for each, or one for all", fix="repeat each as often as the other")
    questions = [*questions] * (n // len(questions))
    files = [*files] * (n // len(files)) if files else [""] * n
    conversation = Conversation(model, format, answers, max_tokens)
    conversation.show(shots)
    made = conversation.ask([Example(question, image=image) for question, image in zip(questions, conversation.encode(files))])
    return [{"question": question, "file": file, **result} for question, file, result in zip(questions, files, made)]


def chat(conversation: Conversation, lines: Iterable[str], file: str = "") -> Iterator[str | UserError]:
    """Yield the answer to each line that is a question, or the mistake in it; other lines are commands.

    ``image PATH`` (or ``audio PATH``) sets the file that questions are about, no path for none; ``shot PATH | question |
    answer`` adds an example, ``forget`` drops all examples, ``quit`` ends. A line that ends in "?" is a question.

    Args:
        conversation: with the examples shown before.
        lines: read one by one, as the answers are taken.
        file: the first file that questions are about; "" for none.

    Raises:
        UserError: ``file`` cannot be read.
    """
    modality, (image,) = conversation.model.modality, conversation.encode([file])
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "quit" and not rest:
                return
            if command == "forget" and not rest:
                conversation.forget()
            elif command in ("image", "audio") and not rest.endswith("?"):
                (image,) = conversation.encode(files_of(conversation.model, [(command, rest.strip())]))
            elif command == "shot" and not rest.endswith("?"):
                shot = [part.strip() for part in rest.split("|")]
                if len(shot) != 3:
                    fix = f"write shot {modality.upper()} | question | answer"
                    raise UserError("shot", got=rest, expected="a file, a question and an answer", fix=fix)
                conversation.show([shot])
            elif command:
                yield conversation.ask([Example(line.strip(), image=image)])[0]["answer"]
        except UserError as error:
            yield error


def files_of(model: Model, given: Iterable[tuple[str, str]]) -> list[str]:
    """The files of pairs (modality, file), if the model reads them.

    Raises:
        UserError: the model reads another modality.
    """
    files = []
    for name, file in given:
        known = getattr(model, "modality", name)  # `Conversation` refuses a model that has none
        if name != known:
            raise UserError(name, got=file, expected=f"{known}, which this {model.name} reads", fix=f"give it as {known}")
        files.append(file)
    return files
