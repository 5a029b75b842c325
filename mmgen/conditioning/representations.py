"""Text representations: mean hidden states of a frozen language model."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmgen.data.text import tokens_of
from mmgen.errors import UserError


@torch.no_grad()
def representation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, layers: Sequence[int]) -> Tensor:
    """Mean over the tokens of ``text`` of the hidden states after each of ``layers``, concatenated.

    Args:
        model, tokenizer: see `mmgen.conditioning.language_model.load_language_model`.
        text: a text of at least one token.
        layers: 0, the embeddings, up to the number of layers; middle layers encode the meaning best, the last the next token.

    Returns:
        (len(layers) * d,) float32.

    Raises:
        UserError: the model does not have a layer, or the text has no token.

    >>> from mmgen.conditioning.language_model import load_language_model
    >>> representation(*load_language_model("tiny", "fp32"), "hello", layers=[1, 2]).shape
    torch.Size([64])
    """
    count = model.config.num_hidden_layers
    for layer in layers:
        if not 0 <= layer <= count:
            raise UserError("layers", got=layer, expected=f"numbers from 0 to {count}", fix="leave it out")
    ids = tokens_of(tokenizer, text, return_tensors="pt").input_ids.to(model.device)  # (1, t)
    if not ids.numel():
        raise UserError("text", got=repr(text), expected="at least one token", fix="leave the item out")
    states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states  # each (1, t, d)
    return torch.cat([states[layer][0].float().mean(0) for layer in layers])


def mean_state(states: Tensor, mask: Tensor) -> Tensor:
    """Mean hidden state over the real tokens of each text.

    Args:
        states: (b, t, d), of any dtype.
        mask: (b, t) True at real tokens.

    Returns:
        (b, d) float32.

    >>> mean_state(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    return (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
