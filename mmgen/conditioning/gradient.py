"""PPLM: steers a frozen language model by the gradient of an attribute with respect to its past keys and values."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmgen.conditioning.attributes import Attribute, State
from mmgen.conditioning.language_model import CACHE
from mmgen.conditioning.steering import Past, Steered, check_method, past_of, sample
from mmgen.errors import UserError, check_at_least


@dataclass(frozen=True)
class PPLM:
    """Steering toward an attribute by gradients (PPLM): ``model.generate(..., custom_generate=PPLM(attribute))``.

    Before each token, the keys and values H of all tokens but the last are shifted by D, updated ``iterations`` times:

    ``D <- D - step_size g / |g|^gamma``, g the gradient in D of ``-log p(a | x) + kl_scale KL(p_D || p)``,

    where p is the language model's next-token distribution, and p_D the one given the past H + D. The token is drawn from
    ``p_D^fusion p^(1 - fusion)``, normalised, with the sampling options of `generate`; H + D becomes the past.

    Each text of a batch has its own past, gradient and norm, so the result does not depend on the other texts.

    A class, a property of the whole text, needs larger steps than a bag of words: ``step_size=0.1, gamma=1.0`` for example.
    `generate` does not pass ``stop_strings`` to a ``custom_generate``; use
    ``stopping_criteria=[StopStringCriteria(tokenizer, ["."])]`` instead.

    Args:
        attribute: attribute to steer toward.
        iterations: gradient steps for a token; 0 disables steering.
        step_size: length of the steps of D; 0 disables steering.
        gamma: exponent, >= 0, of the norm, which is taken over all keys and values of a layer. With gamma above 1, steps are
            longer the less the attribute depends on the text.
        kl_scale: weight of the KL divergence from the unsteered distribution.
        fusion: weight of p_D, 0 to 1.
        window: number of newest tokens whose keys and values are shifted; 0: all.
        decay: shift older tokens less, linearly over the window.
        running_norm: divide by the largest norm so far instead of that of this step, so that steps become small once the text
            has the attribute.
        streamer: receives the prompt and each token as it is drawn. (A streamer given to `generate` itself would never end.)

    Raises:
        UserError: a setting is out of its range, or the attribute is not one; in use, as `mmgen.conditioning.steering.sample`,
            or the attribute has no gradient, a logit is NaN, or `torch.inference_mode` is on.

    Source: Dathathri et al. 2020, arXiv 1912.02164, section 3. In their code, the window covers the oldest tokens (a mistake),
        only bags of words use the running norm, and a classifier's gradient flows only through the expected next tokens, not
        through the newest hidden state.

    >>> from mmgen.conditioning.attributes import BagOfWords
    >>> from mmgen.conditioning.language_model import load_language_model
    >>> model, tokenizer = load_language_model("tiny", "fp32")
    >>> ids, pplm = tokenizer(["hello"], return_tensors="pt").input_ids, PPLM(BagOfWords(model, tokenizer, ["moon"]))
    >>> model.generate(ids, custom_generate=pplm, max_new_tokens=2, min_new_tokens=2, pad_token_id=0).shape
    torch.Size([1, 7])
    """

    attribute: Attribute
    iterations: int = 3
    step_size: float = 0.02
    gamma: float = 1.5
    kl_scale: float = 0.01
    fusion: float = 0.9
    window: int = 0
    decay: bool = False
    running_norm: bool = True
    streamer: BaseStreamer | None = None

    def __post_init__(self) -> None:
        check_method(self)
        for name in ("iterations", "step_size", "gamma", "kl_scale", "window"):
            check_at_least(name, getattr(self, name), 0)
        if not 0 <= self.fusion <= 1:
            raise UserError("fusion", got=self.fusion, expected="0 to 1", fix="use 0.9 for example")

    def __call__(self, model: PreTrainedModel, input_ids: Tensor, logits_processor: LogitsProcessorList, **kwargs: Any) -> Any:
        """Sample steered texts; called by `generate` instead of its own sampling."""
        if torch.is_inference_mode_enabled():
            raise UserError("torch.inference_mode", got="on", expected="off, for gradients", fix="use torch.no_grad()")
        return sample(Moved, self, model, input_ids, logits_processor, **kwargs)


class _Output(NamedTuple):
    """Output of the language model after one token: log p of the next (b, v), last hidden state (b, d), the new past."""

    log_p: Tensor
    hidden: Tensor
    past: Past


class Moved(Steered):
    """Generation of some texts whose past is shifted by the gradient, token by token; see `PPLM`."""

    def __init__(self, settings: PPLM, model: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(model, settings.attribute, **kwargs)
        self.settings = settings
        self.past: Past | None = None  # the steered past; `cache` holds the unsteered one
        self.norms: list[Tensor] = []

    def steer(self, input_ids: Tensor, own: Tensor, mask: Tensor) -> Tensor | None:
        """Compute the steered log-probabilities of the next token; None leaves them as they are."""
        if mask.shape[1] < 2 or not (self.settings.iterations and self.settings.step_size):
            return None  # a single token has no past
        if self.past is None:
            self.past = [(keys[:, :, :-1].float(), values[:, :, :-1].float()) for keys, values in past_of(self.cache)]
        moved = self.moved_past(self.past, input_ids, own, mask)
        with torch.no_grad():
            output = self._run(moved, self._last(input_ids), mask)
        self.past = [(keys.float(), values.float()) for keys, values in output.past]
        return (self.settings.fusion * output.log_p + (1 - self.settings.fusion) * own).log_softmax(-1)

    def moved_past(self, moved: Past, input_ids: Tensor, own: Tensor, mask: Tensor) -> Past:
        """Compute the shifted past H + D."""
        settings, weights = self.settings, self._weights(mask[:, :-1])  # (b, 1, t - 1, 1)
        last, whole = self._last(input_ids), bool((weights == 1).all())
        for _ in range(settings.iterations):
            moved = [(keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in moved]
            with torch.enable_grad():
                output = self._run(moved, last, mask)
                state = State(input_ids, output.log_p, self._mean(output, mask))
                kl = (output.log_p.exp() * (output.log_p - own)).sum(-1)  # (b,)
                likely = self.likelihood(state)
                if not likely.requires_grad:
                    fix = "compute it from `state.log_p` or `state.hidden`, or steer by Fudge, which needs none"
                    raise UserError("attribute", got="no gradient", expected="one in the language model's states", fix=fix)
                loss = settings.kl_scale * kl - likely
                gradients = torch.autograd.grad(loss.sum(), [x for layer in moved for x in layer])
            if not whole:
                gradients = tuple(gradient * weights for gradient in gradients)
            norms = [vector_norm(gradient, dim=(1, 2, 3)) for gradient in gradients]  # (b,) each
            norms = [torch.hypot(k, v) for k, v in zip(norms[::2], norms[1::2])]  # of each layer
            if settings.running_norm:
                norms = [torch.maximum(*both) for both in zip(norms, self.norms)] if self.norms else norms
                self.norms = norms
            steps = [settings.step_size / norm.clamp(min=1e-10).pow(settings.gamma)[:, None, None, None] for norm in norms]
            moved = [
                (keys.detach().addcmul(step, k, value=-1), values.detach().addcmul(step, v, value=-1))
                for (keys, values), k, v, step in zip(moved, gradients[::2], gradients[1::2], steps)
            ]
        return moved

    def _weights(self, mask: Tensor) -> Tensor:
        """Weights (b, 1, t, 1), 0 to 1, of the shift of each position of the past (b, t); 0 outside the window."""
        n = mask.sum(1, keepdim=True).clamp(min=1)  # (b, 1)
        n = n.clamp(max=self.settings.window) if self.settings.window else n
        age = torch.arange(mask.shape[1] - 1, -1, -1, device=mask.device)  # (t,), 0 the newest
        weights = (1 - age / n).clamp(min=0) if self.settings.decay else (age < n).float()
        return weights[:, None, :, None]

    def _mean(self, output: _Output, mask: Tensor) -> Tensor | None:
        """Mean hidden state (b, d) of the text, with its last token's steered state, and of the expected next tokens."""
        horizon, dtype = self.settings.attribute.horizon, self.model.dtype
        if horizon is None:
            return None
        total, log_p = self.sum - self.last + output.hidden, output.log_p
        past = past_of(self.cache)  # unsteered
        table = self.model.get_input_embeddings()
        for _ in range(horizon):
            expected = log_p.exp().to(dtype) @ table.get_parameter("weight") * getattr(table, "embed_scale", 1.0)  # (b, d)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            ahead = self._run(past, expected[:, None], mask)
            total, log_p, past = total + ahead.hidden, ahead.log_p, ahead.past
        return total / mask.sum(1, keepdim=True)

    def _last(self, input_ids: Tensor) -> Tensor:
        """The embedding of the last token (b, 1, d)."""
        if self.prompt is not None and input_ids.shape[1] == 0:  # the prompt was given as embeddings
            return self.prompt[:, -1:]
        with torch.no_grad():
            return self.model.get_input_embeddings()(input_ids[:, -1:])

    def _run(self, past: Past, embeddings: Tensor, mask: Tensor) -> _Output:
        cache, dtype = DynamicCache(), self.model.dtype
        for i, (keys, values) in enumerate(past):
            cache.update(keys[:, :, :0].to(dtype), values[:, :, :0].to(dtype), i)  # empty: whole tensors would be copied
            cache.layers[i].keys, cache.layers[i].values = keys.to(dtype), values.to(dtype)  # type: ignore[union-attr]
        with _attention_in_float32(self.model):
            output = self.model(
                inputs_embeds=embeddings, use_cache=True, **{CACHE: cache}, output_hidden_states=True,
                **self.newest(mask),
            )  # fmt: skip
        log_p = output.logits[:, -1].float().log_softmax(-1)
        return _Output(log_p, output.hidden_states[-1][:, -1].float(), past_of(cache))


@contextmanager
def _attention_in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Compute torch's own attention in float32 when a model of 16 bits runs on a CPU.

    In 16 bits, attention to a hundred tokens and its gradient take as long as the rest of the pass.
    """
    config = model.config.get_text_config(decoder=True)
    torchs_own = config._attn_implementation == "sdpa" and model._supports_attention_backend
    if model.device.type != "cpu" or model.dtype.itemsize != 2 or not torchs_own:
        yield
        return
    config._attn_implementation = _FLOAT
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _in_float32(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return output.to(query.dtype), None


_FLOAT = "mmgen_sdpa_float32"  # name registered with transformers
AttentionInterface.register(_FLOAT, _in_float32)
AttentionMaskInterface.register(_FLOAT, sdpa_mask)
