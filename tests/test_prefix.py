"""The prefix: what a frozen language model reads in place of words."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmgen.conditioning.prefix import PrefixLanguageModel, Prompt, SoftWords
from mmgen.errors import UserError

READER = PrefixLanguageModel("tiny", "fp32")


def ids_of(text: str) -> torch.Tensor:
    return READER.tokenizer(text, return_tensors="pt").input_ids[0]


def log_prob(prompt: Prompt, *texts: str) -> torch.Tensor:
    rows = [ids_of(text) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return READER.log_prob(prompt, ids, mask)


def test_log_prob_is_that_of_the_language_model():
    ids = ids_of("abcdef")
    logits = READER.model(input_ids=ids[None]).logits[0].log_softmax(-1)
    expected = logits[1:-1].gather(1, ids[2:, None])[:, 0]
    prompt = READER.prompt([["ab"]])
    torch.testing.assert_close(log_prob(prompt, "cdef")[0], expected)


@given(st.lists(st.text("abcdef ", min_size=1, max_size=6), min_size=2, max_size=4), st.integers(0, 3))
def test_padding_changes_nothing(texts, n):
    prefix = torch.randn(n, READER.width, generator=torch.Generator().manual_seed(0))
    items = [[prefix, text] if i % 2 else [text] for i, text in enumerate(texts)]
    together = log_prob(READER.prompt(items), *texts)
    for i, item in enumerate(items):
        alone = log_prob(READER.prompt([item]), texts[i])
        torch.testing.assert_close(together[i, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-4)
        assert (together[i, alone.shape[1] :] == 0).all()


def test_interleaving_keeps_the_order():
    first, second = torch.randn(2, READER.width), torch.randn(1, READER.width)
    prompt = READER.prompt([[first, "ab", second, "c"]])
    expected = torch.cat([first, READER.embed(ids_of("ab")), second, READER.embed(ids_of("c"))])
    assert torch.equal(prompt.embeddings[0], expected) and prompt.mask.all()


def test_generation_does_not_depend_on_the_batch():
    items = [["hello there"], [torch.randn(4, READER.width), "a"], ["x"]]
    together = READER.generate(READER.prompt(items), max_new_tokens=8, do_sample=False)
    alone = [READER.generate(READER.prompt([item]), max_new_tokens=8, do_sample=False)[0] for item in items]
    assert together == alone


def test_short_texts_do_not_wait_for_long_ones():
    reader = PrefixLanguageModel("tiny", "fp32")
    prompt = reader.prompt([[torch.randn(4, reader.width, generator=torch.Generator().manual_seed(i))] for i in range(6)])
    said = reader.continued(prompt, max_new_tokens=20, do_sample=False)  # (6, 20), none ends
    end = said[0, 3].item()  # what the first says soon becomes the token that ends a text
    reader.tokenizer.eos_token = reader.tokenizer.convert_ids_to_tokens(end)
    whole = reader.continued(prompt, max_new_tokens=20, do_sample=False)
    ended = (whole[:, :8] == end).any(1)
    assert ended.any() and not ended.all()
    rows = []
    continued = reader.continued
    reader.continued = lambda prompt, **options: rows.append((len(prompt.mask), options)) or continued(prompt, **options)
    assert reader.generate(prompt, max_new_tokens=20, do_sample=False) == reader.texts(whole)
    assert [(n, options["max_new_tokens"]) for n, options in rows] == [(6, 8), (int((~ended).sum()), 20)]
    reader.model.generation_config.do_sample = True  # what a model samples by default is drawn once
    rows.clear()
    reader.generate(prompt, max_new_tokens=20)
    assert [(n, options["max_new_tokens"]) for n, options in rows] == [(6, 20)]


def test_the_gradient_reaches_the_prefix_and_not_the_model():
    prefix = torch.randn(2, 3, READER.width, requires_grad=True)
    prompt = Prompt(prefix, torch.ones(2, 3, dtype=torch.bool))
    log_prob(prompt, "hello", "hi").sum().backward()
    assert (prefix.grad.abs().sum((1, 2)) > 0).all()
    assert all(p.grad is None for p in READER.model.parameters())


def test_a_prefix_of_the_wrong_width():
    with pytest.raises(UserError, match=r"prefix: got shape \(2, 5\), expected \(n, 32\)"):
        READER.prompt([[torch.zeros(2, 5)]])


def test_soft_words_are_mixtures_of_words():
    table = READER.embed(torch.arange(20, 40))
    words = SoftWords(features=12, n=3, embedding=READER.width, width=16).eval()
    features = torch.randn(5, 12)
    probabilities = words.logits(features, table).softmax(-1)  # (b, n, v)
    expected = torch.einsum("bnv,vd->bnd", probabilities, table)
    torch.testing.assert_close(words(features, table), expected)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5, 3))


def test_a_soft_word_that_is_sure_is_a_word():
    """With h_i = E_w the mixture is E_w to within what the temperature leaves to the others."""
    words = SoftWords(features=2, n=1, embedding=READER.width, width=4).eval()
    words.temperature = 1e3
    table = READER.embed(torch.arange(20, 40)).detach()
    nn.init.zeros_(words.members[0][-1].weight)
    words.members[0][-1].bias.data = table[7].clone()
    torch.testing.assert_close(words(torch.randn(2, 2), table), table[7].expand(2, 1, -1))


def test_members_share_a_batch_and_agree_on_the_mean():
    words = SoftWords(features=12, n=3, embedding=READER.width, width=16, dropout=0.0, members=2)
    table, features = READER.embedding_table.detach(), torch.randn(5, 12)
    alone = []
    for member in words.members:
        one = SoftWords(features=12, n=3, embedding=READER.width, width=16, dropout=0.0)
        one.members[0].load_state_dict(member.state_dict())
        alone.append(one.logits(features, table))
    torch.testing.assert_close(words.logits(features, table), torch.cat([alone[0][:3], alone[1][3:]]))
    torch.testing.assert_close(words.eval().logits(features, table), (alone[0] + alone[1]) / 2)
    with pytest.raises(UserError, match="members: got 0, expected a number >= 1"):
        SoftWords(features=12, n=3, embedding=8, members=0)


def test_soft_words_read_every_feature():
    words = SoftWords(features=12, n=3, embedding=READER.width, width=16).eval()
    features = torch.randn(1, 12, requires_grad=True)
    words(features, READER.embedding_table.detach()).square().sum().backward()
    assert (features.grad != 0).all()


def test_features_are_standardised():
    words = SoftWords(features=3, n=1, embedding=4)
    features = torch.randn(2500, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5  # in three pieces
    words.standardise(features)
    torch.testing.assert_close(words.mean, features.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(words.std, features.std(0, correction=0), rtol=1e-4, atol=1e-4)


def test_a_feature_that_was_constant_in_training_does_not_drown_the_others():
    words = SoftWords(features=2, n=1, embedding=READER.width).eval()
    words.standardise(torch.tensor([[0.0, -1.0], [0.0, 1.0]]))
    table = READER.embedding_table.detach()
    near, far = (words.logits(torch.tensor([[value, 0.5]]), table) for value in (0.1, 1e4))
    torch.testing.assert_close(near, far)


@pytest.mark.parametrize(("m", "members"), [(3, 2), (5, 3), (2, 3)])
def test_what_is_drawn_for_an_item_does_not_depend_on_the_others(m, members):
    words, table = SoftWords(5, n=2, embedding=16, width=8, dropout=0.5, members=members).eval(), torch.randn(9, 16)
    features = torch.randn(6, 5)
    torch.manual_seed(7)
    together = words.drawn(features, table, m)  # (m, b, n, d)
    assert together.shape == (m, 6, 2, 16) and len(together.unique(dim=0)) == m
    for i in range(6):
        torch.manual_seed(7)
        torch.testing.assert_close(words.drawn(features[i : i + 1], table, m)[:, 0], together[:, i])


def test_a_network_that_is_drawn_is_one_of_training():
    """With both dropped units known: those of the first layer scale the features, those of the second the hidden layer."""
    words, table = SoftWords(5, n=2, embedding=16, width=8, dropout=0.5).eval(), torch.randn(9, 16)
    features = torch.randn(4, 5)
    torch.manual_seed(7)
    drawn = words.drawn(features, table, 1)[0]
    torch.manual_seed(7)
    first, second = (torch.nn.functional.dropout(torch.ones(1, 1, size), 0.5)[0] for size in (5, 8))
    _, linear, norm, gelu, _, last = words.members[0]
    h = torch.nn.functional.normalize(last(second * gelu(norm(linear(first * features)))).unflatten(1, (2, 16)), dim=-1)
    torch.testing.assert_close(drawn, words.mix(20 * h @ torch.nn.functional.normalize(table, dim=-1).T, table))
