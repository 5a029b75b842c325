"""Shared parts of all steering methods: a first logits processor that observes the language model, and sampling with it."""

import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.generation.configuration_utils import GenerationMode

from mmgen.conditioning.attributes import Attribute, State, check_attribute
from mmgen.conditioning.language_model import CACHE, check_self_attention
from mmgen.conditioning.prefix import positions
from mmgen.errors import UserError
from mmgen.modalities.layers.packed import packed

Past = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (b, heads, t, d) each


def past_of(cache: DynamicCache) -> Past:
    """The keys and values of a cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]  # all layers attend


class Steered(LogitsProcessor):
    """Logits processor that steers a language model; subclasses define `steer`.

    Args:
        model: the language model.
        attribute: attribute to steer toward.
        cache: the cache that `generate` fills.
        attention_mask, position_ids, inputs_embeds: those of the prompt, where passed to `generate`.
    """

    def __init__(self, model: PreTrainedModel, attribute: Attribute, cache: DynamicCache, **kwargs: Any) -> None:
        self.model, self.attribute, self.cache = model, attribute, cache
        self.mask: Tensor | None = kwargs.get("attention_mask")
        self.position_ids: Tensor | None = kwargs.get("position_ids")
        self.prompt: Tensor | None = kwargs.get("inputs_embeds")
        self.start: int | None = None  # number of positions before the first new token
        self.sum: Any = None  # sum of the hidden states of the text so far (b, d)
        self.last: Any = None  # hidden state of the newest token (b, d)

    def steer(self, input_ids: Tensor, own: Tensor, mask: Tensor) -> Tensor | None:
        """Return the log-probabilities (b, v) of the steered next-token distribution, or None to leave it unsteered.

        Args:
            input_ids: (b, t) the text so far, without a prompt given as embeddings.
            own: (b, v) log-probabilities of the unsteered language model.
            mask: (b, t') 1 at all real positions so far.
        """
        raise NotImplementedError

    def listen(self, module: torch.nn.Module, inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Sum the hidden states of the tokens that `generate` itself reads into its cache; a forward hook."""
        if all(value is not self.cache for value in kwargs.values()):
            return
        hidden = output[0].float()  # (b, t, d), of the prompt or of one token
        if self.mask is not None and hidden.shape[1] > 1:
            n = self.cache.get_seq_length()
            hidden = hidden * self.mask[:, n - hidden.shape[1] : n, None]
        self.sum, self.last = hidden.sum(1) if self.sum is None else self.sum + hidden.sum(1), hidden[:, -1]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Replace the scores (b, v) by those of the steered model."""
        own = scores.float().log_softmax(-1)  # (b, v)
        if own.isnan().any():
            fix = "use bf16 or fp32 instead of fp16, or check the weights"
            raise UserError("logits", got="NaN", expected="numbers", fix=fix)
        if self.attribute.horizon is not None and self.sum is None:
            fix = "steer by a bag of words, or take a Llama, GPT-2, GPT-NeoX or Gemma"
            raise UserError("language model", got=self.model.config.model_type, expected="one whose states are seen", fix=fix)
        t = self.cache.get_seq_length()
        self.start = t if self.start is None else self.start
        mask = torch.ones(len(scores), t, dtype=torch.long, device=scores.device)
        if self.mask is not None:
            mask[:, : self.mask.shape[1]] = self.mask
        steered = self.steer(input_ids, own, mask)
        if steered is None:
            return scores
        if steered.isnan().any():
            fix = "take a smaller step_size or strength, or check the attribute"
            raise UserError("steered logits", got="NaN", expected="numbers", fix=fix)
        return steered + scores.float().logsumexp(-1, keepdim=True)  # on the scale of the logits, as later processors expect

    def newest(self, mask: Tensor) -> dict[str, Tensor]:
        """Attention mask and position id for the last position of ``mask`` (b, t)."""
        newest = positions(mask, mask.shape[1] - 1)
        if self.position_ids is not None:  # continue the caller's own numbering
            last = self.position_ids[:, -1:].expand(len(past_of(self.cache)[0][0]), 1)  # (b, 1)
            newest["position_ids"] = last.repeat_interleave(len(mask) // len(last), 0) + mask.shape[1] - (self.start or 0)
        return newest

    def likelihood(self, state: State, attribute: Attribute | None = None) -> Tensor:
        """Compute log p(a | x), (b,), of ``attribute``, by default of the one steered toward.

        Raises:
            UserError: the attribute returns another shape.
        """
        found = (attribute or self.attribute).log_prob(state)
        if found.shape != state.ids.shape[:1]:
            expected, fix = f"({len(state.ids)},), one number a text", "sum over the last dimensions"
            raise UserError("attribute", got=f"shape {tuple(found.shape)}", expected=expected, fix=fix)
        return found


def sample(
    first: Callable[..., Steered], settings: Any, model: PreTrainedModel, input_ids: Tensor, processors: LogitsProcessorList,
    generation_config: GenerationConfig, **kwargs: Any,
) -> Any:  # fmt: skip
    """Run the sampling loop of `generate` with a steering method as the first logits processor.

    Args:
        first: the class of the steering method, built as ``first(settings, model, cache=..., ...)``.
        settings: settings of the method, with ``attribute`` and ``streamer``.
        model, input_ids, processors, generation_config, kwargs: the arguments of a ``custom_generate``.

    Returns:
        The result of `generate`: (b, t) token ids, or a dict of outputs.

    Raises:
        UserError: the prompt has no token, or `generate` was called in a way that cannot be steered: with beams or another
            mode than sampling and greedy decoding, another cache than a `DynamicCache`, layers other than self-attention, or a
            text longer than a sliding window.
    """
    prompt = kwargs.get("inputs_embeds")
    cache = kwargs.get(CACHE)
    if not (input_ids.shape[1] if prompt is None else prompt.shape[1]):
        raise UserError("prompt", got="no tokens", expected="at least one", fix="begin the text, as in 'The'")
    mode = generation_config.get_generation_mode()
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        raise UserError(
            "generate", got=mode.value, expected="sampling or greedy decoding", fix="leave out beams and similar options"
        )
    if model.config.is_encoder_decoder or type(cache) is not DynamicCache:
        got = "an encoder and a decoder" if model.config.is_encoder_decoder else f"the cache {type(cache).__name__}"
        raise UserError("language model", got=got, expected="a decoder with a DynamicCache", fix="leave cache options out")
    check_self_attention(model.config)
    if cache.get_seq_length() and settings.attribute.horizon is not None:
        fix = "give the whole prompt, or steer by a bag of words"
        raise UserError("cache", got=f"{cache.get_seq_length()} positions", expected="none", fix=fix)
    windows = [layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    if windows and generation_config.max_length > min(windows):
        got, expected = f"{generation_config.max_length} tokens", f"at most {min(windows)}, the sliding window"
        raise UserError("length", got=got, expected=expected, fix="lower the length, or shorten the prompt")
    if settings.streamer is not None and prompt is None:
        settings.streamer.put(input_ids.cpu())  # as `generate` does
    steered = first(settings, model, **{**kwargs, "cache": cache})
    handle = model.get_decoder().register_forward_hook(steered.listen, with_kwargs=True)
    try:
        processors = LogitsProcessorList([steered, *processors])
        with packed(model):
            return model._sample(  # type: ignore[operator]  # transformers leaves it out of this type
                input_ids, processors, generation_config=generation_config, streamer=settings.streamer, **kwargs
            )
    finally:
        handle.remove()


def check_method(settings: Any) -> None:
    """Check that a method's attribute is one, and that its settings have their types and are finite.

    Raises:
        UserError: they do not.
    """
    check_attribute(settings.attribute)
    for name, kind in typing.get_type_hints(type(settings)).items():
        if kind not in (bool, int, float):
            continue
        value, accepted = getattr(settings, name), (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool) or not abs(value) < float("inf"):
            expected = {bool: "True or False", int: "a whole number", float: "a finite number"}[kind]
            raise UserError(name, got=repr(value), expected=expected, fix="leave it out")
