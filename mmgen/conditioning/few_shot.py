"""Few-shot prompting of a frozen language model: the examples are read once and shared by any number of queries."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache

from mmgen.conditioning.language_model import CACHE, context_length
from mmgen.conditioning.prefix import PrefixLanguageModel, Prompt, positions, repeated
from mmgen.errors import UserError, check_at_least, counted, nearest

Part = Tensor | str
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
PREFIXES = ("image", "audio")  # both placeholders take prefix embeddings
ROWS = 64  # answers scored in one forward pass, each with its own copy of the preceding keys and values


@dataclass(frozen=True, eq=False)
class Example:
    """Values of the placeholders of a `Format`.

    Args:
        question: ``{question}``; "" where the format has none.
        answer: ``{answer}``; ignored in a query.
        image: ``{image}`` or ``{audio}``: prefix embeddings (n, d) of a picture or a sound; None where the format has neither.
    """

    question: str = ""
    answer: str = ""
    image: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Episode:
    """Examples that come before a query.

    Args:
        support: the shots, in order.
        repeats: number of times that the whole support is repeated; 0 shows it once.
        induction: begin with the format's induction sentence; or another sentence to use instead.

    Source: Tsimpoukelli et al. 2021, section 4, for induction, shots and repeats.
    """

    support: Sequence[Example] = ()
    repeats: int = 0
    induction: bool | str = True

    def __post_init__(self) -> None:
        check_at_least("repeats", self.repeats, 0)

    @property
    def shots(self) -> list[Example]:
        """The examples in the order they are read, including repeats."""
        return [*self.support] * (1 + self.repeats)


@dataclass(frozen=True)
class Format:
    """Template of an example; a query uses the same template up to the answer.

    A shot is tokenised in two parts, query and answer, so that answers have the same tokens in shots and in scoring. Spaces
    before ``{answer}`` belong to the answer, as in most vocabularies.

    Args:
        shot: text with one ``{answer}``, preceded by at most one ``{question}`` and one ``{image}`` or ``{audio}``. The text
            after ``{answer}`` ends an answer.
        induction: a sentence before the shots that states the task, or "".

    Raises:
        UserError: a placeholder is unknown, missing, repeated, or after ``{answer}``; or nothing precedes ``{answer}``.

    >>> format = Format("Q: {question} A: {answer}.")
    >>> format.query(Example("2 + 2?")), format.answer_text("4"), format.stop
    (['Q: 2 + 2? A:'], ' 4', '.')
    """

    shot: str = "{image}Question: {question} Answer: {answer}\n"
    induction: str = ""

    def __post_init__(self) -> None:
        known = (*PREFIXES, "question", "answer")
        for name in self._names:
            if name not in known:
                fix = nearest(name, known)
                raise UserError("format", got=f"{{{name}}} in {self.shot!r}", expected="a known placeholder", fix=fix)
        prefixes = [name for name in self._names if name in PREFIXES]
        if self._names.count("answer") != 1 or self._names[-1] != "answer":
            expected = "{answer} once, after the other placeholders"
        elif self._names.count("question") > 1 or len(prefixes) > 1:
            expected = "{question} at most once, and {image} or {audio} at most once"
        elif len(self._names) == 1 and not self._texts[0].strip(" "):
            expected = "something before {answer}"
        else:
            return
        raise UserError("format", got=repr(self.shot), expected=expected, fix=f"write it as in {Format.shot!r}")

    @property
    def stop(self) -> str:
        """The text that ends an answer; "" if only the end-of-text token does."""
        return self._texts[-1]

    @property
    def lead(self) -> str:
        """The spaces before an answer, which belong to it."""
        before = self._texts[-2]
        return before[len(before.rstrip(" ")) :]

    def blind(self) -> "Format":
        """Return the same format without pictures and sounds."""
        return replace(self, shot=self.shot.replace("{image}", "").replace("{audio}", ""))

    def answer_text(self, answer: str) -> str:
        """Format an answer as it follows a query."""
        return self.lead + answer.strip()

    def query(self, example: Example) -> list[Part]:
        """The parts before the answer: texts, and prefix embeddings at their placeholder.

        Raises:
            UserError: the example does not match the placeholders.
        """
        self._check(example)
        parts: list[Part] = []
        before = ""
        for text, name in zip(self._texts, self._names):
            before += text + (example.question if name == "question" else "")
            if name in PREFIXES and example.image is not None:
                parts += [before, example.image]
                before = ""
        parts.append(before.rstrip(" "))
        return [part for part in parts if not isinstance(part, str) or part]

    def shots(self, episode: Episode) -> list[list[Part]]:
        """The parts of the induction sentence, an empty list where there is none, then those of each shot.

        Raises:
            UserError: an example does not match the placeholders, or has no answer.
        """
        induction = self.induction if episode.induction is True else episode.induction or ""
        written: list[list[Part]] = [[induction] if induction else []]
        for example in episode.shots:
            if not example.answer.strip():
                fix = "give every shot its answer"
                raise UserError(f"answer of the shot {example.question!r}", got=repr(example.answer), expected="one", fix=fix)
            if self.stop and self.stop in example.answer.strip():
                expected = f"a text without {self.stop!r}, which ends an answer"
                raise UserError("answer of a shot", got=repr(example.answer), expected=expected, fix="shorten it")
            written.append([*self.query(example), self.answer_text(example.answer) + self.stop])
        return written

    @property
    def _texts(self) -> list[str]:
        return PLACEHOLDER.split(self.shot)[::2]

    @property
    def _names(self) -> list[str]:
        """The placeholders; each follows the text of the same index in `_texts`."""
        return PLACEHOLDER.split(self.shot)[1::2]

    def _check(self, example: Example) -> None:
        wanted, given = sum(name in PREFIXES for name in self._names), int(example.image is not None)
        if wanted != given:
            expected = f"{wanted}, as many as placeholders in {self.shot!r}"
            fix = "give every example its picture or sound" if wanted else "add {image} to the format"
            raise UserError(f"images of {example.question!r}", got=given, expected=expected, fix=fix)
        if bool(example.question.strip()) != ("question" in self._names):
            fix = "give it one" if "question" in self._names else "add {question} to the format"
            raise UserError("question", got=repr(example.question), expected=f"what {self.shot!r} has place for", fix=fix)


@dataclass(frozen=True, eq=False)
class SharedPrompt:
    """Keys and values of an episode that the language model has read; using it does not change it.

    Args:
        format: the format of the episode and of queries after it.
        cache: the keys and values of one row.
        lengths: number of tokens of the induction sentence, then of each shot.
    """

    format: Format
    cache: Cache
    lengths: tuple[int, ...]

    @property
    def length(self) -> int:
        """The total number of tokens."""
        return sum(self.lengths)


@torch.no_grad()
def read(reader: PrefixLanguageModel, format: Format, episode: Episode | None = None) -> SharedPrompt:
    """Read an episode once, for all queries after it.

    Args:
        reader: the frozen language model.
        format: the format of the examples.
        episode: the shots; None for none.

    Raises:
        UserError: an example does not match the format, or the episode is longer than the model's context.

    >>> reader = PrefixLanguageModel("tiny", "fp32")
    >>> shared = read(reader, Format("{question}={answer}\\n"), Episode([Example("1+1", "2"), Example("1+2", "3")]))
    >>> shared.lengths, score(reader, shared, [Example("2+2")], ["3", "4"]).shape
    ((0, 6, 6), torch.Size([1, 2]))
    """
    written = format.shots(episode or Episode())
    rows = [reader.prompt([parts]).embeddings if parts else None for parts in written]  # each (1, t_i, d)
    lengths = tuple(0 if row is None else row.shape[1] for row in rows)
    _check_room(reader, lengths, 0)
    cache = DynamicCache(config=reader.model.config)
    if any(lengths):
        embeddings = torch.cat([row for row in rows if row is not None], 1)  # (1, t, d)
        reader.model(inputs_embeds=embeddings, use_cache=True, **{CACHE: cache}, logits_to_keep=1)
    return SharedPrompt(format, cache, lengths)


@torch.no_grad()
def score(
    reader: PrefixLanguageModel,
    shared: SharedPrompt,
    queries: Sequence[Example],
    answers: Sequence[str],
    normalise: bool = True,
    ended: bool = False,
    prior: Tensor | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Log-probability of each answer of a closed set, ``log p(answer | shared, query)``, per token if ``normalise``.

    A query is read once for all answers; answers of one token need no further pass.

    Args:
        reader: the frozen language model that read ``shared``.
        shared: the result of `read`.
        queries: b examples; their answers are ignored.
        answers: a different texts.
        normalise: take the mean over an answer's tokens instead of the sum, so that long answers are not penalised.
        ended: include the format's stop text, or the end-of-text token where it has none, in an answer. Without it, an answer
            never has a higher sum than an answer that is its beginning.
        prior: (a,) scores of the answers (with the same ``normalise`` and ``ended``) after a query without content, such as
            "N/A"; they are subtracted.
        batch_size: number of queries in a forward pass.

    Returns:
        (b, a) float32.

    Raises:
        UserError: there are no queries; there are no answers, an empty one or two equal ones; the prior has another length; a
            prompt is too long.

    Source: Zhao et al. 2021, Calibrate Before Use, arXiv 2102.09690, for the prior, with W = diag(p_prior)^-1 and b = 0.
    """
    ids = _answer_ids(reader, shared.format, answers, ended)
    if prior is not None and prior.shape != (len(ids),):
        fix = "take score(...)[0] of one query without content"
        raise UserError("prior", got=f"shape {tuple(prior.shape)}", expected=f"({len(ids)},)", fix=fix)
    lengths = torch.tensor([len(row) for row in ids], device=ids[0].device)  # (a,)
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)  # (a, t)
    scores = torch.zeros(len(queries), len(ids), device=padded.device)  # (b, a)
    for place, prompt, cache in _batches(reader, shared, queries, int(lengths.max()), batch_size):
        past = shared.length
        logits = reader.model(inputs_embeds=prompt.embeddings[:, past:], use_cache=True, **{CACHE: cache},
                              logits_to_keep=1, **positions(prompt.mask, past)).logits[:, -1]  # (b, v)  # fmt: skip
        scores[place] = logits.float().log_softmax(-1)[:, padded[:, 0]]
        longer = (lengths > 1).nonzero()[:, 0]
        for some in longer.split(max(1, ROWS // len(place))) if len(longer) else ():
            tails = _tails(reader, prompt.mask, cache, padded[some], lengths[some])  # (b, c)
            scores[place[:, None], some] += tails
    scores = scores / lengths if normalise else scores
    return scores if prior is None else scores - prior.to(scores)


@torch.no_grad()
def answer(
    reader: PrefixLanguageModel,
    shared: SharedPrompt,
    queries: Sequence[Example],
    max_tokens: int = 16,
    batch_size: int = 16,
) -> list[str]:
    """Answer each query by greedy decoding up to the format's stop text or the end of text.

    Leading spaces and line breaks are not part of an answer: a stop text ends only an answer that is not empty.

    Args:
        reader: the frozen language model that read ``shared``.
        shared: the result of `read`.
        queries: b examples; their answers are ignored.
        max_tokens: largest number of tokens of an answer.
        batch_size: number of queries answered together.

    Returns:
        b answers, without surrounding spaces and without the stop text.

    Raises:
        UserError: there are no queries, or a prompt is too long.

    >>> reader = PrefixLanguageModel("tiny", "fp32")
    >>> len(answer(reader, read(reader, Format()), [Example("who?", image=torch.zeros(2, reader.width))], max_tokens=3))
    1
    """
    check_at_least("max_tokens", max_tokens, 1)
    format, tokenizer = shared.format, reader.tokenizer
    answers = [""] * len(queries)

    def text(ids: list[int]) -> str:
        ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).lstrip()

    def ended(ids: Tensor, scores: Tensor) -> Tensor:
        """Return (b,) bool, True for rows whose answer is complete."""
        return torch.tensor([bool(format.stop) and format.stop in text(row) for row in ids.tolist()], device=ids.device)

    for place, prompt, cache in _batches(reader, shared, queries, max_tokens, batch_size):
        ids = reader.model.generate(  # type: ignore[operator]  # transformers leaves it out of this type
            inputs_embeds=prompt.embeddings, attention_mask=prompt.mask.long(), do_sample=False, **{CACHE: cache},
            max_new_tokens=max_tokens, stopping_criteria=[ended], pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        for i, row in zip(place.tolist(), ids.tolist()):
            written = text(row)
            answers[i] = (written.partition(format.stop)[0] if format.stop else written).strip()
    return answers


def _batches(
    reader: PrefixLanguageModel, shared: SharedPrompt, queries: Sequence[Example], more: int, batch_size: int
) -> Iterator[tuple[Tensor, Prompt, Cache]]:
    """Yield for each batch the indices of its queries, their whole prompts, and the keys and values of the shared part.

    The embeddings of the shared part are zero, as its keys and values are cached. Queries are sorted by length to keep padding
    short.
    """
    if not queries:
        raise UserError("queries", got="none", expected="at least one", fix="ask something")
    check_at_least("batch_size", batch_size, 1)
    rows = [reader.prompt([shared.format.query(query)]).embeddings[0] for query in queries]  # each (t_i, d)
    lengths = torch.tensor([len(row) for row in rows])
    _check_room(reader, shared.lengths, int(lengths.max()) + more)
    past = shared.length
    for place in lengths.argsort(stable=True).split(batch_size):
        embeddings, mask = reader.prompt([[rows[i]] for i in place])  # (b, t, d), (b, t)
        whole = Prompt(F.pad(embeddings, (0, 0, past, 0)), F.pad(mask, (past, 0), value=True))
        yield place.to(mask.device), whole, repeated(shared.cache, len(place))


def _tails(reader: PrefixLanguageModel, mask: Tensor, cache: Cache, ids: Tensor, lengths: Tensor) -> Tensor:
    """Log-probability of each answer's tokens after the first, given prompts of ``mask`` (b, p): ids (c, t) -> (b, c)."""
    b, (c, t) = len(mask), ids.shape
    counted = torch.arange(1, t, device=ids.device) < lengths[:, None]  # (c, t - 1)
    # padding on the right follows all tokens that count, so only padding before the query needs a mask
    seen = F.pad(mask.repeat_interleave(c, 0), (0, t - 1), value=True)  # (b * c, p + t - 1)
    embeddings = reader.embed(ids[:, :-1]).repeat(b, 1, 1)  # (b * c, t - 1, d)
    logits = reader.model(inputs_embeds=embeddings, use_cache=True, **{CACHE: repeated(cache, c)},
                          **positions(seen, mask.shape[1])).logits  # (b * c, t - 1, v)  # fmt: skip
    log_p = logits.float().log_softmax(-1).gather(2, ids[:, 1:].repeat(b, 1)[..., None])[..., 0]  # (b * c, t - 1)
    return (log_p.unflatten(0, (b, c)) * counted).sum(-1)


def check_answers(answers: Sequence[str]) -> list[str]:
    """Return the texts of a closed set, without surrounding spaces.

    Raises:
        UserError: there are none, one is empty, or two are equal.
    """
    fix = "give different texts, as in yes,no"
    if isinstance(answers, str) or not answers:
        raise UserError("answers", got=repr(answers) if answers else "none", expected="a list of texts", fix=fix)
    texts = [text.strip() for text in answers]
    for i, text in enumerate(texts):
        if not text or text in texts[:i]:
            raise UserError("answers", got=f"{answers[i]!r}{' twice' if text else ''}", expected="different texts", fix=fix)
    return texts


def _answer_ids(reader: PrefixLanguageModel, format: Format, answers: Sequence[str], ended: bool) -> list[Tensor]:
    """The tokens of each answer as it follows a query."""
    tokens = answer_tokens if ended else (lambda reader, format, text: reader.tokens(format.answer_text(text)))
    return [tokens(reader, format, text) for text in check_answers(answers)]


def answer_tokens(reader: PrefixLanguageModel, format: Format, answer: str) -> Tensor:
    """The tokens (t,) of an answer followed by the format's stop text, or by the end-of-text token where it has none."""
    ids = reader.tokens(format.answer_text(answer) + format.stop)
    return ids if format.stop else torch.cat([ids, ids.new_tensor([reader.tokenizer.eos_token_id])])


def _check_room(reader: PrefixLanguageModel, lengths: Sequence[int], more: int) -> None:
    """Check that induction and shots of these lengths, and ``more`` tokens, fit in the model's context."""
    limit = context_length(reader.model)
    total, shots = sum(lengths) + more, len(lengths) - 1
    if limit is None or total <= limit:
        return
    fit = sum(sum(lengths[: i + 2]) + more <= limit for i in range(shots))
    got = f"{counted(total, 'token')} with {counted(shots, 'shot')}"
    expected = f"at most {limit}, the context of this language model"
    bare = lengths[0] + more > limit  # without any shot
    fix = "shorten the question, or the sentence before the shots" if bare else f"{counted(fit, 'shot')} fit, repeats counted"
    raise UserError("prompt", got=got, expected=expected, fix=fix)
