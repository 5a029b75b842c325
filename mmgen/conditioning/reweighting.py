"""Steering without gradients: the likeliest tokens are weighed by what an attribute makes of the text with each of them.

By a look ahead, `Fudge`, or by language models of the classes that say it of all tokens at once, `GeDi`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from mmgen.conditioning.attributes import Attribute, State, parts_of
from mmgen.conditioning.language_model import CACHE
from mmgen.conditioning.prefix import repeated
from mmgen.conditioning.steering import Steered, check_method, sample
from mmgen.errors import UserError, check_at_least


@dataclass(frozen=True)
class Fudge:
    """Weigh the likeliest tokens by a look ahead: ``model.generate(..., custom_generate=Fudge(attribute))``.

    ``log p'(w | x) = log p(w | x) + strength log p(a | x, w)``, normalised, for the ``top`` likeliest w; no other is written.
    The language model reads the text with each of them in one forward pass, and its hidden states and next-token distribution
    then tell the attribute. One that looks at the next token alone, such as a bag of words, may be there with w or after it:
    ``p(a | x, w) = p(a; w is next) + p(a | x w)``. One that reads the text alone, such as `Toward`, needs no such pass.

    Args:
        attribute: what to steer toward.
        strength: lambda; 0 leaves the likeliest tokens as they are.
        top: tokens that are weighed.
        streamer: receives the prompt and each token as it is drawn.

    Raises:
        UserError: a setting out of its range, or an attribute that is none; in use, what
            `mmgen.conditioning.steering.sample` refuses, or logits that are not numbers.

    Source: Yang and Klein 2021, FUDGE, arXiv 2104.05218. There a classifier of its own reads the text; here the language
        model does, and the classifier reads its hidden states.

    >>> from mmgen.conditioning.attributes import BagOfWords
    >>> from mmgen.conditioning.language_model import load_language_model
    >>> model, tokenizer = load_language_model("tiny", "fp32")
    >>> ids, fudge = tokenizer(["hello"], return_tensors="pt").input_ids, Fudge(BagOfWords(model, tokenizer, ["moon"]))
    >>> model.generate(ids, custom_generate=fudge, max_new_tokens=2, min_new_tokens=2, pad_token_id=0).shape
    torch.Size([1, 7])
    """

    attribute: Attribute
    strength: float = 1.0
    top: int = 20
    streamer: BaseStreamer | None = None

    def __post_init__(self) -> None:
        check_method(self)
        check_at_least("strength", self.strength, 0)
        check_at_least("top", self.top, 1)

    def __call__(self, model: PreTrainedModel, input_ids: Tensor, logits_processor: LogitsProcessorList, **kwargs: Any) -> Any:
        """What `generate` calls in place of its own sampling, which does all but the steering."""
        return sample(_Weighed, self, model, input_ids, logits_processor, **kwargs)


class _Weighed(Steered):
    def __init__(self, settings: Fudge, model: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(model, settings.attribute, **kwargs)
        self.settings = settings

    @torch.no_grad()
    def steer(self, input_ids: Tensor, own: Tensor, mask: Tensor) -> Tensor:
        log_p, tokens = own.topk(min(self.settings.top, own.shape[1]))  # (b, k)
        texts = torch.cat([input_ids.repeat_interleave(tokens.shape[1], 0), tokens.reshape(-1, 1)], 1)  # (b k, t + 1)
        parts = parts_of(self.attribute)
        read = all(getattr(part, "from_text", False) for part, _ in parts)
        ahead = State(texts, None) if read else self._ahead(texts, tokens.shape[1], mask)
        likely = reduce(torch.add, (weight * self._told(part, ahead) for part, weight in parts))  # (b k,)
        weighed = log_p + self.settings.strength * likely.unflatten(0, tokens.shape)  # (b, k)
        return torch.full_like(own, -torch.inf).scatter(1, tokens, weighed).log_softmax(-1)

    def _ahead(self, texts: Tensor, k: int, mask: Tensor) -> State:
        """What the language model makes of texts (b k, t + 1), the k candidates of each text in a row."""
        seen = torch.cat([mask, torch.ones_like(mask[:, :1])], 1).repeat_interleave(k, 0)  # (b k, t + 1)
        output = self.model(
            input_ids=texts[:, -1:], use_cache=True, **{CACHE: repeated(self.cache, k)}, output_hidden_states=True,
            **self.newest(seen),
        )  # fmt: skip
        hidden = None
        if self.attribute.horizon is not None:
            total = self.sum.repeat_interleave(k, 0) + output.hidden_states[-1][:, -1].float()
            hidden = total / seen.sum(1, keepdim=True)  # (b k, d)
        return State(texts, output.logits[:, -1].float().log_softmax(-1), hidden)

    def _told(self, part: Attribute, ahead: State) -> Tensor:
        """log p(part | texts), (b k,), by the part's own rule."""
        if getattr(part, "from_text", False):
            return self.likelihood(State(ahead.ids, None), part)
        likely = self.likelihood(ahead, part)
        if part.horizon is None:
            sure = torch.full_like(ahead.log_p, -torch.inf).scatter(1, ahead.ids[:, -1:], 0.0)  # all on the token
            likely = torch.logaddexp(likely, part.log_prob(State(ahead.ids[:, :-1], sure)))
        return likely


@dataclass(frozen=True)
class GeDi:
    """Weigh the likeliest tokens by language models of the classes: ``model.generate(..., custom_generate=GeDi(...))``.

    ``log p'(w | x) = log p(w | x) + strength log p(c | w; x)``, normalised, for the ``top`` likeliest w; no other is written.
    By Bayes' rule, with the classes equally likely before w, ``p(c | w; x) = p_c(w | x) / sum_c' p_c'(w | x)``: of two classes
    one is the expert and the other the one that it is held against.

    Args:
        attribute: what texts are ranked by.
        experts: last hidden states of the steered language model (b, d) -> logits of the next token by every class,
            (b, classes, v); such as `mmgen.models.class_language_model.ClassLanguageModel.logits`.
        target: the class c.
        strength: 0 leaves the likeliest tokens as they are.
        top: tokens that are weighed.
        streamer: receives the prompt and each token as it is drawn.

    Raises:
        UserError: a negative strength, top or target, or an attribute that is none; in use, a class that the experts have not,
            what `mmgen.conditioning.steering.sample` refuses, or logits that are not numbers.

    Source: Krause et al. 2021, GeDi, arXiv 2009.06367, section 3; there p(c | x, w) keeps what the text so far tells of the
        class. Without it, as here, the contrast is the same at every token, as in Liu et al. 2021, DExperts, arXiv 2105.03023,
        and ``strength (log p_c - log p_c')`` where the other class is much likelier.

    >>> from mmgen.conditioning.attributes import BagOfWords
    >>> from mmgen.conditioning.language_model import load_language_model
    >>> model, tokenizer = load_language_model("tiny", "fp32")
    >>> ids, bag = tokenizer(["hello"], return_tensors="pt").input_ids, BagOfWords(model, tokenizer, ["moon"])
    >>> experts = lambda hidden: torch.zeros(len(hidden), 2, 259)
    >>> model.generate(ids, custom_generate=GeDi(bag, experts, 1), max_new_tokens=2, min_new_tokens=2, pad_token_id=0).shape
    torch.Size([1, 7])
    """

    attribute: Attribute
    experts: Callable[[Tensor], Tensor]
    target: int
    strength: float = 2.0
    top: int = 20
    streamer: BaseStreamer | None = None

    def __post_init__(self) -> None:
        check_method(self)
        for name in ("target", "strength"):
            check_at_least(name, getattr(self, name), 0)
        check_at_least("top", self.top, 1)

    def __call__(self, model: PreTrainedModel, input_ids: Tensor, logits_processor: LogitsProcessorList, **kwargs: Any) -> Any:
        """What `generate` calls in place of its own sampling, which does all but the steering."""
        return sample(_Contrasted, self, model, input_ids, logits_processor, **kwargs)


class _Contrasted(Steered):
    def __init__(self, settings: GeDi, model: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(model, settings.attribute, **kwargs)
        self.settings = settings

    @torch.no_grad()
    def steer(self, input_ids: Tensor, own: Tensor, mask: Tensor) -> Tensor:
        experts = self.settings.experts(self.last)  # (b, classes, v)
        if self.settings.target >= experts.shape[1] or experts.shape[::2] != own.shape:
            got, expected = f"shape {tuple(experts.shape)}", f"({len(own)}, more than {self.settings.target}, {own.shape[1]})"
            raise UserError("experts", got=got, expected=expected, fix="train them on this language model, on this class")
        posterior = experts.float().log_softmax(-1).log_softmax(1)[:, self.settings.target]  # (b, v), log p(c | w; x)
        log_p, tokens = own.topk(min(self.settings.top, own.shape[1]))  # (b, k)
        weighed = log_p + self.settings.strength * posterior.gather(1, tokens)  # (b, k)
        return torch.full_like(own, -torch.inf).scatter(1, tokens, weighed).log_softmax(-1)
