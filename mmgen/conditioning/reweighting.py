"""Steering without gradients: the likeliest next tokens are reweighted by an attribute of the text continued by each.

`Fudge` scores each continued text; `GeDi` scores all tokens at once by class-conditional language models.
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
    """Steering by looking one token ahead (FUDGE): ``model.generate(..., custom_generate=Fudge(attribute))``.

    ``log p'(w | x) = log p(w | x) + strength log p(a | x, w)``, normalised over the ``top`` likeliest w; others get
    probability 0. The language model reads the text continued by each of them in one forward pass; the attribute is scored on
    its hidden states and next-token distribution. An attribute of the next token, such as a bag of words, may occur at w or
    after it: ``p(a | x, w) = p(a; w is next) + p(a | x w)``. An attribute of the text alone, such as `Toward`, needs no such
    pass.

    Args:
        attribute: attribute to steer toward.
        strength: weight of the attribute's log-probability; 0 only truncates to the ``top`` tokens.
        top: number of likeliest tokens to reweight.
        streamer: receives the prompt and each token as it is drawn.

    Raises:
        UserError: a setting is out of its range, or the attribute is not one; in use, as
            `mmgen.conditioning.steering.sample`, or a logit is NaN.

    Source: Yang and Klein 2021, FUDGE, arXiv 2104.05218. Their classifier reads the text itself; here, it reads the language
        model's hidden states.

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
        """Sample steered texts; called by `generate` instead of its own sampling."""
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
        likely = reduce(torch.add, (weight * self._log_prob(part, ahead) for part, weight in parts))  # (b k,)
        weighed = log_p + self.settings.strength * likely.unflatten(0, tokens.shape)  # (b, k)
        return torch.full_like(own, -torch.inf).scatter(1, tokens, weighed).log_softmax(-1)

    def _ahead(self, texts: Tensor, k: int, mask: Tensor) -> State:
        """Read texts (b k, t + 1), the k candidates of each text one after another, with the language model."""
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

    def _log_prob(self, part: Attribute, ahead: State) -> Tensor:
        """Compute log p(part | texts), (b k,), by the rule for the kind of attribute."""
        if getattr(part, "from_text", False):
            return self.likelihood(State(ahead.ids, None), part)
        likely = self.likelihood(ahead, part)
        if part.horizon is None:
            sure = torch.full_like(ahead.log_p, -torch.inf).scatter(
                1, ahead.ids[:, -1:], 0.0
            )  # all probability on the candidate
            likely = torch.logaddexp(likely, part.log_prob(State(ahead.ids[:, :-1], sure)))
        return likely


@dataclass(frozen=True)
class GeDi:
    """Steering by class-conditional language models (GeDi): ``model.generate(..., custom_generate=GeDi(...))``.

    ``log p'(w | x) = log p(w | x) + strength log p(c | w; x)``, normalised over the ``top`` likeliest w; others get
    probability 0. By Bayes' rule, with equal class probabilities before w, ``p(c | w; x) = p_c(w | x) / sum_c' p_c'(w | x)``:
    with two classes, one language model is the expert and the other the anti-expert.

    Args:
        attribute: attribute for ranking texts.
        experts: last hidden states of the steered language model (b, d) -> logits of the next token for every class,
            (b, classes, v); such as `mmgen.models.class_language_model.ClassLanguageModel.logits`.
        target: the class c.
        strength: weight of the class log-probability; 0 only truncates to the ``top`` tokens.
        top: number of likeliest tokens to reweight.
        streamer: receives the prompt and each token as it is drawn.

    Raises:
        UserError: strength, top or target is negative, or the attribute is not one; in use, the experts do not have the class,
            as `mmgen.conditioning.steering.sample`, or a logit is NaN.

    Source: Krause et al. 2021, GeDi, arXiv 2009.06367, section 3, whose p(c | x, w) accumulates evidence over the text so far.
        Without it, as here, the contrast is the same at every token, as in Liu et al. 2021, DExperts, arXiv 2105.03023, and
        becomes ``strength (log p_c - log p_c')`` where the other class is much likelier.

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
        """Sample steered texts; called by `generate` instead of its own sampling."""
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
