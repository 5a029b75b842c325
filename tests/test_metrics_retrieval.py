"""The nearest neighbour by cosine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgen.metrics import retrieval
from mmgen.metrics.retrieval import nearest


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
    monkeypatch.setattr(retrieval, "_SIMILARITIES", 10)
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
