"""The nearest neighbour by cosine, and recall."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.metrics import retrieval
from mmgen.metrics.retrieval import chance_at, nearest, r_precision, recall_at


def test_by_hand():
    keys = torch.tensor([[1.0, 0.0], [0.0, 100.0], [-1.0, -1.0]])
    queries = torch.tensor([[0.9, 0.1], [-0.1, 5.0], [-3.0, -2.0]])
    assert nearest(queries, keys).tolist() == [0, 1, 2]


@given(n=st.integers(1, 20), m=st.integers(1, 20), d=st.integers(1, 8), seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_is_the_argmax_of_torchs_cosine_similarity(n, m, d, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    similarity = torch.cosine_similarity(queries[:, None], keys[None], dim=2)
    index = nearest(queries, keys)
    assert index.shape == (n,)
    chosen = similarity.gather(1, index[:, None]).squeeze(1)
    assert torch.allclose(chosen, similarity.max(dim=1).values)


def test_a_vector_finds_itself_at_any_length():
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest(1e-3 * x, x), torch.arange(50))
    assert torch.equal(nearest(x.bfloat16(), x), torch.arange(50))


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(33, 8, generator=generator), torch.randn(21, 8, generator=generator)
    whole = nearest(queries, keys)
    monkeypatch.setattr(retrieval, "SIMILARITIES", 10)
    assert torch.equal(nearest(queries, keys), whole)


def test_no_query_gives_no_index():
    assert nearest(torch.empty(0, 3), torch.ones(2, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), r"got shapes \(2, 3\) and \(2, 4\)"),
        (torch.ones(3), torch.ones(2, 3), r"got shapes \(3,\)"),
        (torch.ones(2, 3), torch.empty(0, 3), r"\(0, 3\), expected"),
        (torch.tensor([[1.0], [torch.nan]]), torch.ones(2, 1), r"queries\[1\]: got a value that is not finite"),
        (torch.ones(2, 1), torch.tensor([[torch.inf]]), r"keys\[0\]"),
    ],
)
def test_bad_input(queries, keys, message):
    with pytest.raises(ValueError, match=message):
        nearest(queries, keys)


def test_recall_by_hand():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    assert recall_at(scores, torch.eye(3).bool(), at=(1, 2, 3)) == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3), 3: 1.0}
    either = torch.tensor([[False, True, True]])
    assert recall_at(scores[:1], either, at=(1, 2, 9)) == {1: 0.0, 2: 1.0, 9: 1.0}
    assert recall_at(torch.zeros(2, 2), torch.eye(2).bool(), at=(1, 2)) == {1: 0.0, 2: 1.0}  # of equals the right one is last


@pytest.mark.parametrize("among", [2, 5, 10])
def test_recall_among_fewer_is_the_mean_over_draws(among):
    generator = torch.Generator().manual_seed(0)
    scores, right = torch.randn(12, 10, generator=generator), torch.zeros(12, 10, dtype=torch.bool)
    right[:, 0] = right[:4, 1] = True
    found, draws = {1: 0.0, 2: 0.0}, 3000
    for _ in range(draws):
        for some, true in zip(scores, right):
            best, wrong = some[true].max(), some[~true]
            seen = wrong[torch.randperm(len(wrong), generator=generator)[: among - 1]]
            for k in found:
                found[k] += float((seen > best).sum() < k) / draws / len(scores)
    expected = recall_at(scores, right, at=(1, 2), among=among)
    assert found == {k: pytest.approx(value, abs=0.01) for k, value in expected.items()}


def test_recall_among_all_or_more_is_that_of_all():
    scores = torch.randn(20, 15, generator=torch.Generator().manual_seed(0))
    right = torch.eye(20, 15).bool()
    right[15:, 0] = True
    everything = recall_at(scores, right)
    assert recall_at(scores, right, among=15) == {k: pytest.approx(value) for k, value in everything.items()}
    assert recall_at(scores, right, among=500) == {k: pytest.approx(value) for k, value in everything.items()}


def test_chance_is_the_recall_of_scores_that_know_nothing():
    right = torch.zeros(2000, 20, dtype=torch.bool)
    right[:, :1] = right[:1000, :3] = True
    found = recall_at(torch.rand(right.shape, generator=torch.Generator().manual_seed(0)), right, at=(1, 5))
    assert found == {k: pytest.approx(value, abs=0.03) for k, value in chance_at(right, at=(1, 5)).items()}
    assert chance_at(torch.ones(1, 4).bool(), at=(1,)) == {1: 1.0}
    assert chance_at(torch.eye(4).bool(), at=(2, 4, 9)) == {2: 0.5, 4: 1.0, 9: 1.0}


@pytest.mark.parametrize(
    ("scores", "right", "message"),
    [
        (torch.zeros(2, 3), torch.ones(3, 2).bool(), r"got shapes \(2, 3\) and \(3, 2\), expected \(n, m\) both"),
        (torch.zeros(0, 3), torch.zeros(0, 3).bool(), r"got shapes \(0, 3\)"),
        (torch.tensor([[0.0, torch.nan]]), torch.ones(1, 2).bool(), "query 0: got a NaN"),
        (torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]), "query 1: got no right key"),
    ],
)
def test_scores_that_rank_nothing(scores, right, message):
    with pytest.raises(ValueError, match=message):
        recall_at(scores, right)


def test_r_precision_by_hand():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.1]])
    assert r_precision(scores, torch.tensor([0, 1, 0])) == pytest.approx(1 / 3)  # the last is a tie, and so wrong
    assert r_precision(scores, torch.tensor([0, 0, 1])) == pytest.approx(2 / 3)


def test_r_precision_never_draws_a_text_that_reads_the_same():
    scores = torch.tensor([[0.5, 0.9, 0.1], [0.5, 0.9, 0.1]])  # the second text is the first again, with a higher score
    assert r_precision(scores, torch.tensor([0, 1]), ["a", "a", "b"]) == 1.0
    assert r_precision(scores, torch.tensor([0, 0])) == 0.0
    assert r_precision(scores, torch.tensor([2, 2]), ["a", "a", "b"]) == 0.0


@pytest.mark.parametrize("among", [2, 5, 10])
def test_r_precision_over_seeds_is_the_expected_recall(among):
    generator = torch.Generator().manual_seed(0)
    scores, right = torch.randn(200, 40, generator=generator), torch.arange(200) % 40
    scores[torch.arange(200), right] += 1
    found = [r_precision(scores, right, among=among, seed=seed) for seed in range(200)]
    expected = recall_at(scores, right[:, None] == torch.arange(40), at=(1,), among=among)[1]
    assert sum(found) / len(found) == pytest.approx(expected, abs=0.005) and len(set(found)) > 1


def test_r_precision_draws_by_seed_and_text_alone():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 30, generator=generator)
    right = torch.randint(30, (50,), generator=generator)
    each = [r_precision(scores[i : i + 1], right[i : i + 1], among=6) for i in range(50)]
    assert r_precision(scores, right, among=6) == pytest.approx(sum(each) / 50)
    assert r_precision(scores, right, among=6, seed=1) != r_precision(scores, right, among=6, seed=2)


def test_r_precision_among_fewer_than_asked_takes_all():
    scores = torch.randn(60, 15, generator=torch.Generator().manual_seed(0))
    right = torch.arange(60) % 15
    expected = (scores.argmax(1) == right).double().mean().item()
    assert {r_precision(scores, right, seed=seed) for seed in range(5)} == {expected}
    chance = r_precision(torch.rand(20000, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20000) % 8, among=4)
    assert chance == pytest.approx(1 / 4, abs=0.02)


@pytest.mark.parametrize(
    ("scores", "right", "texts", "among", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), None, 9, r"got shapes \(3,\), \(3,\) and 0"),
        (torch.zeros(2, 3), torch.zeros(3).long(), None, 9, r"got shapes \(2, 3\), \(3,\) and 3"),
        (torch.zeros(2, 3), torch.zeros(2).long(), ["a", "b"], 9, r"\(2,\) and 2, expected"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), None, 9, r"right: got \[0, 3\], expected whole numbers from 0 to 2"),
        (torch.zeros(1, 3), torch.tensor([-1]), None, 9, r"right: got \[-1\]"),
        (torch.zeros(1, 3), torch.tensor([1.0]), None, 9, r"right: got \[1.0\]"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), torch.tensor([1, 1]), None, 9, "picture 1: got a NaN"),
        (torch.zeros(1, 2), torch.tensor([1]), ["a", "a"], 9, "texts: got 1 different ones among 9"),
        (torch.zeros(1, 2), torch.tensor([1]), None, 1, "texts: got 2 different ones among 1"),
    ],
)
def test_r_precision_of_what_ranks_nothing(scores, right, texts, among, message):
    with pytest.raises(ValueError, match=message):
        r_precision(scores, right, texts, among)
