"""Steering without gradients: the likeliest next tokens are reweighted by an attribute of the text continued by each.

`Fudge` scores each continued text; `DExperts` and `GeDi` score all tokens at once by class-conditional language models.
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
class DExperts:
    """Steering by the contrast of experts at the next token: ``model.generate(..., custom_generate=DExperts(...))``.

    ``log p'(w | x) = log p(w | x) + strength log(p_c(w | x) / sum_c' p_c'(w | x))``, normalised over the ``top`` likeliest w;
    others get probability 0. With two classes, one language model is the expert and the other the anti-expert.

    Args:
        attribute: attribute for ranking texts.
        experts: last hidden states of the steered language model (b, d) -> logits of the next token for every class,
            (b, classes, v); such as `mmgen.models.class_language_model.ClassLanguageModel.logits`.
        target: the class c.
        strength: weight of the contrast; 0 only truncates to the ``top`` tokens.
        top: number of likeliest tokens to reweight.
        streamer: receives the prompt and each token as it is drawn.

    Raises:
        UserError: strength, top or target is negative, or the attribute is not one; in use, the experts do not have the class,
            as `mmgen.conditioning.steering.sample`, or a logit is NaN.

    Source: Liu et al. 2021, DExperts, arXiv 2105.03023, there ``strength (log p_c - log p_c')``, which this becomes where the
        other class is much likelier, and a nucleus in place of the ``top`` tokens. `GeDi` also weighs the text so far.

    >>> from mmgen.conditioning.attributes import BagOfWords
    >>> from mmgen.conditioning.language_model import load_language_model
    >>> model, tokenizer = load_language_model("tiny", "fp32")
    >>> ids, bag = tokenizer(["hello"], return_tensors="pt").input_ids, BagOfWords(model, tokenizer, ["moon"])
    >>> dexperts = DExperts(bag, lambda hidden: torch.zeros(len(hidden), 2, 259), target=1)
    >>> model.generate(ids, custom_generate=dexperts, max_new_tokens=2, min_new_tokens=2, pad_token_id=0).shape
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


@dataclass(frozen=True)
class GeDi:
    """Steering by a generative discriminator (GeDi): ``model.generate(..., custom_generate=GeDi(...))``.

    ``log p'(w | x) = log p(w | x) + strength log p(c | x w)`` over all tokens w, where Bayes' rule with equal class
    probabilities gives the posterior of the class of the whole text x_1 ... x_t = x w,
    ``p(c | x_1:t) = softmax_c (alpha / t sum_i log p_c(x_i | x_<i))``; the first token, before which there is nothing to read,
    has no factor. Kept are the tokens of highest posterior that together have a share ``rho`` of p', and those whose
    posterior exceeds ``tau``.

    Args:
        attribute: attribute for ranking texts.
        experts: last hidden states of the steered language model (b, d) -> logits of the next token for every class,
            (b, classes, v); such as `mmgen.models.class_language_model.ClassLanguageModel.logits`.
        target: the class c.
        strength: weight of the log-posterior; 0 only filters.
        alpha: scale of the mean log-likelihood per token. Experts trained to classify by the sum over a text are calibrated
            where alpha is the length of those texts.
        rho: share of the probability that the filter keeps; 1 keeps all tokens.
        tau: posterior from which a token is always kept.
        streamer: receives the prompt and each token as it is drawn.

    Raises:
        UserError: a setting is out of its range, or the attribute is not one; in use, the experts do not have the class, as
            `mmgen.conditioning.steering.sample`, or a logit is NaN.

    Source: Krause et al. 2021, GeDi, arXiv 2009.06367, equations 5 to 7, with strength omega = 30, rho = 0.2, tau = 0.8 and
        alpha learned with the experts, which are a second language model that reads the class as its first token, and so the
        first token of a text has a factor there.

    >>> from mmgen.conditioning.attributes import BagOfWords
    >>> from mmgen.conditioning.language_model import load_language_model
    >>> model, tokenizer = load_language_model("tiny", "fp32")
    >>> ids, bag = tokenizer(["hello"], return_tensors="pt").input_ids, BagOfWords(model, tokenizer, ["moon"])
    >>> gedi = GeDi(bag, lambda hidden: torch.zeros(len(hidden), 2, 259), target=1)
    >>> model.generate(ids, custom_generate=gedi, max_new_tokens=2, min_new_tokens=2, pad_token_id=0).shape
    torch.Size([1, 7])
    """

    attribute: Attribute
    experts: Callable[[Tensor], Tensor]
    target: int
    strength: float = 10.0
    alpha: float = 20.0
    rho: float = 0.2
    tau: float = 0.8
    streamer: BaseStreamer | None = None

    def __post_init__(self) -> None:
        check_method(self)
        for name in ("target", "strength", "alpha"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("rho", "tau"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(name, got=getattr(self, name), expected="0 to 1", fix=f"use {getattr(GeDi, name)} for example")

    def __call__(self, model: PreTrainedModel, input_ids: Tensor, logits_processor: LogitsProcessorList, **kwargs: Any) -> Any:
        """Sample steered texts; called by `generate` instead of its own sampling."""
        return sample(_Discriminated, self, model, input_ids, logits_processor, **kwargs)


class _ByExperts(Steered):
    def __init__(self, settings: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(model, settings.attribute, **kwargs)
        self.settings = settings

    def class_log_probs(self, hidden: Tensor, own: Tensor) -> Tensor:
        """Log-probabilities (b, classes, v) of the token after hidden states (b, d), for every class."""
        experts = self.settings.experts(hidden)  # (b, classes, v)
        if self.settings.target >= experts.shape[1] or experts.shape[::2] != own.shape:
            got, expected = f"shape {tuple(experts.shape)}", f"({len(own)}, more than {self.settings.target}, {own.shape[1]})"
            raise UserError("experts", got=got, expected=expected, fix="train them on this language model, on this class")
        return experts.float().log_softmax(-1)


class _Contrasted(_ByExperts):
    @torch.no_grad()
    def steer(self, input_ids: Tensor, own: Tensor, mask: Tensor) -> Tensor:
        contrast = self.class_log_probs(self.last, own).log_softmax(1)[:, self.settings.target]  # (b, v)
        log_p, tokens = own.topk(min(self.settings.top, own.shape[1]))  # (b, k)
        weighed = log_p + self.settings.strength * contrast.gather(1, tokens)  # (b, k)
        return torch.full_like(own, -torch.inf).scatter(1, tokens, weighed).log_softmax(-1)


class _Discriminated(_ByExperts):
    def __init__(self, settings: GeDi, model: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(settings, model, **kwargs)
        self.unread: list[Tensor] = []  # hidden states (b, n, d) since the last token was drawn
        self.ahead: Any = None  # log p_c of the token after the last state read, (b, classes, v)
        self.so_far: Any = 0.0  # sum of log p_c of the tokens of each text, (b, classes)
        self.factors: Any = 0  # their number, (b, 1)

    def listen(self, module: torch.nn.Module, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        before = self.last
        super().listen(module, inputs, kwargs, output)
        if self.last is not before:
            self.unread.append(output[0])

    @torch.no_grad()
    def steer(self, input_ids: Tensor, own: Tensor, mask: Tensor) -> Tensor:
        states, self.unread = torch.cat(self.unread, 1), []  # (b, n, d)
        n = states.shape[1]
        for i in range(-n, 0):  # the last n tokens, each scored by the state before it
            if self.ahead is not None and -i <= input_ids.shape[1]:
                real = mask[:, i - 1, None]  # (b, 1), not padding before the text
                token = input_ids[:, i, None, None].expand(-1, self.ahead.shape[1], 1)
                self.so_far = self.so_far + real * self.ahead.gather(2, token)[..., 0]
                self.factors = self.factors + real
            self.ahead = self.class_log_probs(states[:, i], own)
        each = torch.as_tensor(self.so_far, device=own.device)[..., None] + self.ahead  # (b, classes, v), of the text and w
        t = torch.as_tensor(self.factors, device=own.device) + 1
        posterior = (self.settings.alpha / t[..., None] * each).log_softmax(1)[:, self.settings.target]  # (b, v)
        weighed = (own + self.settings.strength * posterior).log_softmax(-1)
        if self.settings.rho < 1:
            ascending, order = posterior.sort(-1)
            below = weighed.gather(1, order).exp().cumsum(1) < 1 - self.settings.rho
            below &= ascending < torch.tensor(self.settings.tau).log().item()
            below[:, -1] = False
            weighed = weighed.masked_fill(torch.zeros_like(below).scatter(1, order, below), -torch.inf).log_softmax(-1)
        return weighed
