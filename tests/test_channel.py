"""The noisy channel's scores: those of the language model that reads each text from its start."""

import pytest
import torch

from mmgen.conditioning.channel import channel
from mmgen.conditioning.prefix import PrefixLanguageModel
from mmgen.errors import UserError

READER = PrefixLanguageModel("tiny", "fp32")
ANSWERS = ["dax", "blicket"]


def words(text: str) -> torch.Tensor:
    return READER.tokens(text)


def tokens_by_hand(before: str, picture: str) -> torch.Tensor:
    """log p (t,) of each of a picture's words and the line's end after a text."""
    ids, n = words(before + picture + "\n"), len(words(before))
    logits = READER.model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return logits[n - 1 : -1].gather(1, ids[n:, None])[:, 0]


def by_hand(before: str, picture: str) -> torch.Tensor:
    return tokens_by_hand(before, picture).sum()


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_scores_are_those_of_whole_texts(batch_size):
    shots = [[("dax", " a cat"), ("blicket", " dog")], [("blicket", " an old house")], []]
    pictures = [" a small cat", "", " hut"]
    supports = [[(answer, words(picture)) for answer, picture in support] for support in shots]
    scores = channel(READER, supports, [*map(words, pictures)], ANSWERS, "Two words.\n", batch_size=batch_size)
    for support, picture, row in zip(shots, pictures, scores):
        before = "Two words.\n" + "".join(f"{answer}:{shown}\n" for answer, shown in support)
        expected = torch.stack([by_hand(f"{before}{answer}:", picture) for answer in ANSWERS])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("apart", [False, True])
def test_repeated_shots_are_those_shown_more_than_once(apart):
    once, query = [("dax", words(" a cat"))], [words(" hut")]
    expected = channel(READER, [once * 3], query, ["dax"])
    torch.testing.assert_close(channel(READER, [once], query, ["dax"], apart=apart, repeats=2), expected)


def test_nothing_before_the_query():
    scores = channel(READER, [[], []], [words("cat"), words("x")], ANSWERS, between=" is")
    expected = torch.stack([torch.stack([by_hand(f"{a} is", picture) for a in ANSWERS]) for picture in ("cat", "x")])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_shots_apart_are_averaged_word_by_word_over_prompts_of_one_shot(batch_size):
    shots = [("dax", " a cat"), ("blicket", " dog"), ("dax", " an old house")]
    supports = [[(answer, words(shown)) for answer, shown in some] for some in (shots, shots[:1])]
    pictures = [" a small cat", " hut"]
    scores = channel(READER, supports, [*map(words, pictures)], ANSWERS, "Say.\n", apart=True, batch_size=batch_size)
    for some, picture, row in zip((shots, shots[:1]), pictures, scores):
        for answer, score in zip(ANSWERS, row):
            own = [f"{answer}:{shown}\n" for of, shown in some if of == answer] or [""]  # a word without shots: none before it
            alone = torch.stack([tokens_by_hand(f"Say.\n{line}{answer}:", picture) for line in own])  # (k, t)
            torch.testing.assert_close(score, alone.exp().mean(0).log().sum(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": []}, "supports: got 1 for 0 queries"),
        ({"supports": [[], []]}, "supports: got 2 for 1 queries"),
        ({"answers": []}, "answers: got none"),
        ({"answers": ["dax", "dax "]}, "answers: got 'dax ' twice"),
        ({"answers": ["dax", ""]}, "answers: got ''"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"repeats": -1}, "repeats: got -1"),
        ({"supports": [[("dax", torch.ones(300, dtype=torch.long))]]}, "prompt: got 315 tokens, expected at most 256"),
    ],
)
def test_what_cannot_be_scored(changes, message):
    with pytest.raises(UserError) as error:
        channel(READER, **{"supports": [[]], "queries": [words("x")], "answers": ANSWERS, **changes})
    assert message in str(error.value)
