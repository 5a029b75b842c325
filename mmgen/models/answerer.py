"""Visual question answering: a frozen language model reads a learned prompt, a picture as soft words, and a question."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from mmgen.conditioning.few_shot import Episode, Example, Format, SharedPrompt, answer, answer_tokens, read
from mmgen.conditioning.language_model import CACHE, check_room
from mmgen.conditioning.prefix import positions, token_log_prob
from mmgen.data.batch import Batch
from mmgen.errors import UserError, check_at_least
from mmgen.models.base import REST, Losses, check_generate
from mmgen.models.captioner import Captioner


class Answerer(Captioner):
    """p(answer | image, question) by a frozen language model and a captioner.

    ``log p(a | x, q) = sum_t log LM(a_t | prompt, words(x), q, a_<t)``. The prompt consists of learned keys and values
    of every layer, initialised by a few examples in words.

    Training starts without the language model: in the phase ``words`` the soft words learn the picture's caption. The
    phase ``prompt`` trains the prompt alone, on the words of the caption in place of the soft words; the phase ``train``
    trains both.

    Args:
        captioner: arguments of `Captioner`; those for the text around the soft words are not used.
        format: template of a question, see `mmgen.conditioning.few_shot.Format`; ``{image}`` before ``{question}``.
        support: examples for the initial prompt, (caption, question, answer) each; at least one.
        prompt_scale: learning rate of the prompt, relative to the soft words.

    Raises:
        UserError: a format of another form, or no example.

    Source: Li and Liang 2021, Prefix-Tuning, arXiv 2101.00190 (the prompt; there initialised by a network, not by examples);
        Tsimpoukelli et al. 2021, section 3 (the soft words).
    """

    name = "answerer"
    inside = "captioner"
    sequences = ("caption", "question", "text")

    def __init__(
        self,
        captioner: Mapping[str, Any],
        format: str = "Picture:{image}. {question} Answer: {answer}\n",
        support: Sequence[Sequence[str]] = (),
        prompt_scale: float = 20.0,
    ) -> None:
        super().__init__(**{**captioner, "before": "", "between": "", "after": ""})
        del self.text
        self.format, self.prompt_scale = Format(format), prompt_scale
        if not -1 < format.find("{image}") < format.find("{question}"):
            fix = "write it as in 'Picture:{image}. {question} Answer: {answer}\\n'"
            raise UserError("format", got=repr(format), expected="{image} before {question}", fix=fix)
        check_at_least("support", len(support), 1)
        shots = [Example(q, a, self.named(*self._tokens(caption))[0]) for caption, q, a in support]
        layers: Any = read(self.language_model, self.format, Episode(shots)).cache.layers
        self.keys = nn.ParameterList(layer.keys.float() for layer in layers)  # each (1, heads, p, d')
        self.values = nn.ParameterList(layer.values.float() for layer in layers)

    def row(self, question: str, answer: str, caption: str | None = None) -> dict[str, Tensor | None]:
        """The tensors of an item beside its picture: ``question`` and ``text``, written by the format, and ``caption``.

        Args:
            question, answer: texts about the picture.
            caption: description of the picture, if known.

        Raises:
            UserError: more tokens than the context of the language model.
        """
        lm, format = self.language_model, self.format
        *_, query = format.query(Example(question, image=self.table[:1]))  # text between picture and answer
        asked, text = lm.tokens(str(query)), answer_tokens(lm, format, answer)
        before = self.keys[0].shape[2] + self.words.n + len(lm.tokens(self._before))
        check_room(lm.model, before + len(asked) + len(text), f"prompt and question {question[:40]!r}", "shorten the question")
        return {"question": asked, "text": text, "caption": None if caption is None else self.processors["text"](caption)}

    def named(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Target soft words of the pictures with these captions: ids, mask (b, t) -> (b, n, d)."""
        return self.language_model.embed(self.targets(ids, mask))

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with the inputs of the phase; for ``words`` also with a caption."""
        needed = {"words": ["caption"], "prompt": ["caption", "question", "text"]}.get(phase, ["question", "text"])
        return {REST: batch.having(*needed), "words": batch.having("caption", *needed)}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """``answer`` and ``words``: summed over tokens, averaged over the items with the inputs of the phase.

        ``answer = -log p(a | x, q)``; in the phase ``prompt`` it stands alone, with the caption in place of x. ``words`` is
        that of `Captioner`, averaged over the items with a caption; in the phase ``words`` it stands alone.
        """
        there = self.usable(batch, phase)[REST]
        if not there.any():
            return self.zero_losses("words" if phase == "words" else "answer")
        if phase != "words":  # whose mean is over captions
            batch = batch.items(there)
        captions = (batch["caption"], batch.masks["caption"]) if "caption" in batch else None
        if captions and phase == "prompt":
            return Losses(answer=-self.text_log_prob(self.named(*captions), batch).mean())
        logits = self.words.logits(self.features(batch), self.table)  # (b, n, v)
        terms = Losses()
        if captions:
            present, weight = batch.present["caption"], 1.0 if phase == "words" else self.words_weight
            terms["words"] = weight * (self._named(logits, *captions) * present).sum() / present.sum().clamp(min=1)
        if phase != "words":
            terms["answer"] = -self.text_log_prob(self.words.mix(logits, self.table), batch).mean()
        return terms

    def generate(  # type: ignore[override]
        self,
        given: Batch,
        to: str = "text",
        n: int = 1,
        generator: torch.Generator | None = None,
        max_tokens: int = 8,
    ) -> list[str]:
        """The greedy answer to each question, ``n`` times.

        Args:
            given: pictures (or their ``features``) and ``question``, see `row`.
            to: ``text``.
            n: copies of each answer.
            generator: not used.
            max_tokens: longest answer.

        Raises:
            UserError: another ``to``, no question, or a number out of its range.
        """
        check_generate(to, n, ["text"])
        if "question" not in given:
            raise UserError("question", got="none", expected="one for each item", fix="add the rows that Answerer.row makes")
        asked = [ids[mask] for ids, mask in zip(given["question"], given.masks["question"])]
        return [text for text in self.answer(self.encode(given).mean, asked, max_tokens) for _ in range(n)]

    @torch.no_grad()
    def answer(self, words: Tensor, asked: Sequence[Tensor], max_tokens: int = 8, batch_size: int = 64) -> list[str]:
        """Answer questions about pictures given as soft words; repeated questions are answered once.

        Args:
            words: points of `encode`, (b, n, d).
            asked: b questions as token ids (q,).
            max_tokens: longest answer.
            batch_size: questions answered together.

        Returns:
            b answers.
        """
        keys = [(tuple(w.flatten().tolist()), tuple(q.tolist())) for w, q in zip(words, asked)]
        first: dict[Any, int] = {}
        for i, key in enumerate(keys):
            first.setdefault(key, i)
        queries = [Example(image=torch.cat([words[i], self.language_model.embed(asked[i])])) for i in first.values()]
        whole = Format(f"{self._before}{{image}}{self.format.lead}{{answer}}{self.format.stop}")
        shared = replace(self.shared, format=whole)
        answers = dict(zip(first, answer(self.language_model, shared, queries, max_tokens, batch_size)))
        return [answers[key] for key in keys]

    @property
    def shared(self) -> SharedPrompt:
        """The learned prompt, for questions in the format of this model."""
        return SharedPrompt(self.format, self._cache(1), (self.keys[0].shape[2],))

    def phase_parameters(self, phase: str) -> list[dict[str, Any]]:
        """The prompt has a higher learning rate and no weight decay."""
        prompt = [*self.keys, *self.values]
        if phase == "prompt":
            return [{"params": prompt, "weight_decay": 0.0, "scale": self.prompt_scale}]
        return self._groups(phase, (prompt, self.prompt_scale))

    @property
    def _before(self) -> str:
        return self.format.shot.partition("{image}")[0]

    def _tokens(self, caption: str) -> tuple[Tensor, Tensor]:
        ids = self.processors["text"](caption)[None]  # (1, t)
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def _cache(self, b: int) -> DynamicCache:
        cache, dtype = DynamicCache(config=self.language_model.model.config), self.language_model.model.dtype
        for i, (keys, values) in enumerate(zip(self.keys, self.values)):
            cache.update(keys.to(dtype).expand(b, -1, -1, -1), values.to(dtype).expand(b, -1, -1, -1), i)
        return cache

    def text_log_prob(self, words: Tensor, batch: Batch) -> Tensor:
        """Exact log p(answer | words, question) for soft words (b, n, d), (b,)."""
        lm, ids, mask = self.language_model, batch["text"], batch.masks["text"]  # (b, t)
        asked = [lm.embed(q[m]) for q, m in zip(batch["question"], batch.masks["question"])]  # each (q_i, d)
        before = [self._before] if self._before else []
        prompt = lm.prompt([[*before, w, q] for w, q in zip(words, asked)])  # (b, p, d)
        seen = torch.cat([prompt.embeddings, lm.embed(ids[:, :-1])], 1)  # (b, p + t - 1, d)
        past = self.keys[0].shape[2]
        real = F.pad(torch.cat([prompt.mask, torch.ones_like(mask[:, :-1])], 1), (past, 0), value=True)
        logits = lm.model(inputs_embeds=seen, use_cache=True, **{CACHE: self._cache(len(ids))},
                          logits_to_keep=ids.shape[1], **positions(real, past)).logits  # (b, t, v)  # fmt: skip
        return token_log_prob(logits, ids, mask).sum(1)  # (b,)
