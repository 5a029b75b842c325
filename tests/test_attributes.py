"""Attributes: what a bag makes of words of several tokens, and sums of attributes."""

import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from mmgen.conditioning.attributes import BagOfWords, Discriminator, State, Together
from mmgen.conditioning.language_model import load_language_model
from mmgen.errors import UserError

TINY, BYTES = load_language_model("tiny", "fp32")


def state(text: str, seed: int = 0) -> State:
    ids = torch.tensor([BYTES(text).input_ids])
    return State(ids, torch.randn(1, len(BYTES), generator=torch.Generator().manual_seed(seed)).log_softmax(-1))


def token(text: str) -> int:
    (found,) = BYTES(text).input_ids
    return found


def after(text: str, following: str) -> float:
    """p(following | text), the text alone."""
    ids, n = BYTES(text + following).input_ids, len(BYTES(text).input_ids)
    with torch.no_grad():
        log_p = TINY(torch.tensor([ids])).logits[0].log_softmax(-1)
    return math.exp(sum(log_p[i - 1, ids[i]].item() for i in range(n, len(ids))))


def test_a_bag_by_hand():
    """ " ab" is three tokens: each counts as the rest is likely after it, and only what the text has begun goes on."""
    bag, at = BagOfWords(TINY, BYTES, {"ab": 2.0, "c": 1.0}), state("x")
    p = at.log_p[0].exp()
    first = max(2 * after(" ", "ab"), after(" ", "c")) * p[token(" ")]  # both begin with a space
    assert bag.log_prob(at).item() == pytest.approx(math.log(first), rel=1e-4)
    at = state("x ")
    expected = first + 2 * after(" a", "b") * p[token("a")] + p[token("c")]
    assert bag.log_prob(at).item() == pytest.approx(math.log(expected), rel=1e-4)
    at = state("x a")
    assert bag.log_prob(at).item() == pytest.approx(math.log(first + 2 * p[token("b")]), rel=1e-4)
    assert bag.tokens == {"ab": 3, "c": 2}


def test_texts_of_a_batch_are_told_apart_and_short_ones_are_no_mistake():
    bag = BagOfWords(TINY, BYTES, ["abc"])
    log_p = state("x").log_p
    ids = torch.tensor([BYTES(" a").input_ids, BYTES("xy").input_ids])
    both = bag.log_prob(State(ids, log_p.expand(2, -1)))
    assert both[0] > both[1]
    for row, alone in zip(both, ids):
        torch.testing.assert_close(bag.log_prob(State(alone[None], log_p))[0], row)
    assert bag.log_prob(State(ids[:1, :1], log_p)).isfinite().all()


def test_a_word_twice_is_one_word():
    at = state("x")
    assert torch.equal(BagOfWords(TINY, BYTES, ["a", " a "]).log_prob(at), BagOfWords(TINY, BYTES, ["a"]).log_prob(at))


def test_discriminator_and_sum_by_hand():
    head = torch.nn.Linear(4, 3)
    hidden = torch.randn(2, 4)
    one, two = Discriminator(head, 0, horizon=1), Discriminator(head, 2, horizon=3)
    log_p = head(hidden).log_softmax(-1)
    both = Together([(one, 1.0), (two, 0.5)])
    torch.testing.assert_close(both.log_prob(State(None, None, hidden)), log_p[:, 0] + 0.5 * log_p[:, 2])
    assert both.horizon == 3 and Together([(BagOfWords(TINY, BYTES, ["a"]), 1.0)]).horizon is None


def test_mistakes():
    with pytest.raises(UserError, match="bag: got no words"):
        BagOfWords(TINY, BYTES, [" ", ""])
    with pytest.raises(UserError, match=r"weight of 'a': got -1\.0, expected a number above 0"):
        BagOfWords(TINY, BYTES, {"a": -1.0})
    words = Tokenizer(WordLevel({"<unk>": 0, "cat": 1}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    with pytest.raises(UserError, match="bag: got 'dog', expected words that the tokenizer can hold"):
        BagOfWords(TINY, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), ["cat", "dog"])
    with pytest.raises(UserError, match="class: got 2, expected 0 to 1"):
        Discriminator(torch.nn.Linear(4, 2), 2).log_prob(State(None, None, torch.zeros(1, 4)))
    with pytest.raises(UserError, match="class: got -1"):
        Discriminator(torch.nn.Linear(4, 2), -1)
    with pytest.raises(UserError, match="horizon: got -1"):
        Discriminator(torch.nn.Linear(4, 2), 0, horizon=-1)
    with pytest.raises(UserError, match=r"attribute head: got one for 7 numbers, expected 4, as this language model has"):
        Discriminator(torch.nn.Linear(7, 2), 0).log_prob(State(None, None, torch.zeros(1, 4)))
    with pytest.raises(UserError, match="weight of 'cat': got '2', expected a number above 0"):
        BagOfWords(TINY, BYTES, {"cat": "2"})
    with pytest.raises(UserError, match="bag: got 3, expected words"):
        BagOfWords(TINY, BYTES, ["cat", 3])
    with pytest.raises(UserError, match="attributes: got 0"):
        Together([])
    with pytest.raises(UserError, match="attribute: got 3, expected one with log_prob"):
        Together([(3, 1.0)])
    with pytest.raises(UserError, match="weight of an attribute: got nan, expected a finite number"):
        Together([(Discriminator(torch.nn.Linear(4, 2), 0), float("nan"))])
