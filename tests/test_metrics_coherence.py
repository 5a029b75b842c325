"""Coherence by the labels of judges."""

import pytest
import torch

from mmgen.metrics.coherence import conditional_coherence, joint_coherence


def test_conditional():
    labels = torch.tensor([0, 1, 2, 3, 4])
    assert conditional_coherence(labels, labels) == 1
    assert conditional_coherence((labels + 1) % 5, labels) == 0
    assert conditional_coherence(torch.tensor([0, 1, 2, 0, 0]), labels) == 0.6


def test_joint():
    image, audio, text = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0]), torch.tensor([1, 2, 0, 0])
    assert joint_coherence({"image": image, "audio": audio}) == 0.75
    assert joint_coherence({"image": image, "audio": audio, "text": text}) == 0.5  # agreement of all, not of pairs
    assert joint_coherence({"text": text, "image": image, "audio": audio}) == 0.5


def test_chance():
    rng = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(10, (100_000,), generator=rng) for _ in range(3))
    assert conditional_coherence(a, b) == pytest.approx(1 / 10, abs=0.005)
    assert joint_coherence({"a": a, "b": b, "c": c}) == pytest.approx(1 / 100, abs=0.002)


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ({}, r"judged: got nothing, expected two"),
        ({"image": torch.tensor([1])}, r"judged: got image, expected two"),
        ({"image": torch.tensor([1]), "text": torch.tensor([1, 2])}, r"'text': \(2,\)"),
        ({"image": torch.ones(3, 2).long(), "text": torch.ones(3, 2).long()}, r"\(3, 2\)"),
        ({"image": torch.tensor([]).long(), "text": torch.tensor([]).long()}, r"\(0,\)"),
        ({"image": torch.tensor([1]), "text": torch.tensor([0.7])}, r"text: got torch.float32.*argmax"),
    ],
)
def test_bad_input(judged, message):
    with pytest.raises(ValueError, match=message):
        joint_coherence(judged)


def test_bad_input_of_the_conditional():
    with pytest.raises(ValueError, match=r"'judged': \(2,\), 'labels': \(3,\)"):
        conditional_coherence(torch.zeros(2).long(), torch.zeros(3).long())
