"""Representations of texts by a frozen language model."""

import pytest
import torch

from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.representations import representation
from mmgen.errors import UserError

MODEL, TOKENIZER = load_language_model("tiny", "fp32")


def test_layer_0_is_the_mean_of_the_embeddings():
    ids = TOKENIZER("hello").input_ids
    expected = MODEL.get_input_embeddings().weight[ids].mean(0)
    torch.testing.assert_close(representation(MODEL, TOKENIZER, "hello", [0]), expected)


def test_layers_stand_in_the_order_they_are_asked_for():
    one, two, both = (representation(MODEL, TOKENIZER, "a cat", layers) for layers in ([1], [2], [2, 1]))
    assert torch.equal(both, torch.cat([two, one])) and not both.requires_grad


@pytest.mark.parametrize(("text", "layers", "message"), [("a", [3], "layers: got 3, expected numbers from 0 to 2"),
                                                         ("", [1], "text: got '', expected at least one token")])  # fmt: skip
def test_what_cannot_be_read(text, layers, message):
    with pytest.raises(UserError, match=message):
        representation(MODEL, TOKENIZER, text, layers)
