"""What all ways of steering share: a logits processor that comes first, and sees what the language model has read."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from mmgen.errors import UserError


class Steered(LogitsProcessor):
    """Turns the logits of a language model into other ones; subclasses define `steer`.

    Args:
        model: the language model.
        past_key_values: that `generate` fills.
        attention_mask, inputs_embeds: of the prompt, where `generate` was given them.
    """

    def __init__(self, model: PreTrainedModel, past_key_values: Cache, **kwargs: Any) -> None:
        self.model, self.cache = model, past_key_values
        self.mask: Tensor | None = kwargs.get("attention_mask")
        self.prompt: Tensor | None = kwargs.get("inputs_embeds")
        self.own = True  # whether the language model runs for `generate`
        self.sum: Tensor | float = 0.0  # of its hidden states over the text so far (b, d)
        self.last: Tensor | float = 0.0  # that of the newest token (b, d)

    def steer(self, input_ids: Tensor, own: Tensor, mask: Tensor) -> Tensor:
        """The steered scores (b, v) of the next token.

        Args:
            input_ids: (b, t) the text so far; without the prompt if that was given as embeddings.
            own: (b, v) log p of the unsteered language model.
            mask: (b, t') 1 at all real positions so far.
        """
        raise NotImplementedError

    def listen(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        """Add up the hidden states of what `generate` reads."""
        if self.own:
            hidden = output[0].float()  # (b, t, d), of the prompt or of one token
            if self.mask is not None and hidden.shape[1] == self.mask.shape[1]:
                hidden = hidden * self.mask[..., None]
            self.sum, self.last = self.sum + hidden.sum(1), hidden[:, -1]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        own = scores.float().log_softmax(-1)  # (b, v)
        if own.isnan().any():
            fix = "use bf16 or fp32 instead of fp16, or check the weights"
            raise UserError("logits", got="NaN", expected="numbers", fix=fix)
        mask = torch.ones(len(scores), self.cache.get_seq_length(), dtype=torch.long, device=scores.device)
        if self.mask is not None:
            mask[:, : self.mask.shape[1]] = self.mask
        self.own = False
        try:
            return self.steer(input_ids, own, mask)
        finally:
            self.own = True


def sample(
    model: PreTrainedModel, input_ids: Tensor, processors: LogitsProcessorList, steered: type[Steered], settings: Any,
    streamer: BaseStreamer | None, **kwargs: Any,
) -> Any:  # fmt: skip
    """`generate`'s own sampling of what ``steered(settings, model, **kwargs)`` makes of the logits, before all ``processors``.

    Raises:
        UserError: the prompt has no token.
    """
    prompt = kwargs.get("inputs_embeds")
    if not (input_ids.shape[1] if prompt is None else prompt.shape[1]):
        raise UserError("prompt", got="no tokens", expected="at least one", fix="begin the text, as in 'The'")
    first = steered(settings, model, **kwargs)
    handle = model.base_model.register_forward_hook(first.listen)
    try:
        return model._sample(input_ids, LogitsProcessorList([first, *processors]), streamer=streamer, **kwargs)
    finally:
        handle.remove()
