"""The answerer: exact likelihoods after a prompt that starts as text and is learned as keys and values."""

import pytest
import torch

import mmgen
from mmgen.data.batch import Batch, collate
from mmgen.errors import UserError
from mmgen.models.answerer import Answerer
from mmgen.storage import fingerprint
from mmgen.training.config import FitConfig
from mmgen.training.loop import fit

CAPTIONER = {
    **{"language_model": "tiny", "dtype": "fp32", "encoder": "test_convnext", "weights": None, "trained_encoder": True},
    **{"size": 32, "stages": [3], "grid": 1, "words": 3, "width": 8, "dropout": 0.0},
}
SUPPORT = [["red", "is it red?", "yes"], ["blue", "is it red?", "no"]]
ITEMS = [("is it?", "no", "dog"), ("who is that there?", "yes", "cats"), ("where?", "no", "red")]


def build(**changes) -> Answerer:
    torch.manual_seed(0)
    return Answerer(CAPTIONER, **{"support": SUPPORT, **changes}).eval()


def batch_of(model: Answerer, items=ITEMS) -> Batch:
    images = torch.rand(len(ITEMS), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return collate([{"image": image, **model.row(*item)} for image, item in zip(images, items)], model.sequences)


def tokens_before(model: Answerer, words: torch.Tensor, question: str) -> torch.Tensor:
    """The whole prompt in tokens: the examples with three tokens of their captions, then the words and the question."""
    tokens = model.language_model.tokens
    parts = []
    for caption, asked, answer in SUPPORT:
        ids = tokens(caption)
        parts += [tokens("Picture:"), torch.cat([ids[:2], ids[-1:]]), tokens(f". {asked} Answer:"), tokens(f" {answer}\n")]
    return torch.cat([*parts, tokens("Picture:"), words, tokens(f". {question} Answer:")])


def log_prob(model: Answerer, before: torch.Tensor, answer: str) -> torch.Tensor:
    ids = model.language_model.tokens(f" {answer}\n")
    logits = model.language_model.model(input_ids=torch.cat([before, ids])[None]).logits[0].log_softmax(-1)
    return logits[len(before) - 1 : -1].gather(1, ids[:, None]).sum()


@torch.no_grad()
def test_at_the_start_the_prompt_is_its_examples_in_words():
    """Hard words are tokens too, so the language model fed with all as one text must say the same of every item."""
    model = build()
    batch = batch_of(model)
    words = model.vocabulary[model.words.logits(model.features(batch), model.table).argmax(-1)]
    expected = [log_prob(model, tokens_before(model, w, q), a) for w, (q, a, _) in zip(words, ITEMS)]
    torch.testing.assert_close(model.log_likelihood(batch), torch.stack(expected), rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_the_phase_prompt_reads_captions():
    model = build()
    words = [torch.cat([ids[:2], ids[-1:]]) for ids in (model.language_model.tokens(caption) for *_, caption in ITEMS)]
    expected = -torch.stack([log_prob(model, tokens_before(model, w, q), a) for w, (q, a, _) in zip(words, ITEMS)]).mean()
    losses = model.losses(batch_of(model).without("image"), "prompt")
    assert list(losses) == ["answer"]
    torch.testing.assert_close(losses.total, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_words_are_learned_from_the_captions_that_are_known():
    model = build()
    some = batch_of(model, [ITEMS[0], ITEMS[1][:2], ITEMS[2]])
    alone = [model.losses(batch_of(model).items(slice(i, i + 1)), "words")["words"] for i in (0, 2)]
    torch.testing.assert_close(model.losses(some, "words")["words"], sum(alone) / 2)
    losses = model.losses(some)
    torch.testing.assert_close(losses["words"], model.words_weight * sum(alone) / 2)
    torch.testing.assert_close(losses["answer"], -model.log_likelihood(some).mean())
    assert "words" not in model.losses(some.without("caption"))


@torch.no_grad()
def test_answers_are_those_of_the_whole_text():
    model = build()
    lm, batch = model.language_model, batch_of(model)
    words = model.vocabulary[model.words.logits(model.features(batch), model.table).argmax(-1)]
    made = model.generate(batch, max_tokens=4)
    for said, w, (question, *_) in zip(made, words, ITEMS):
        before = tokens_before(model, w, question)[None]
        ids = lm.model.generate(input_ids=before, attention_mask=torch.ones_like(before), max_new_tokens=4, do_sample=False,
                                eos_token_id=lm.tokenizer.eos_token_id, pad_token_id=0)  # fmt: skip
        text = lm.tokenizer.decode(ids[0, before.shape[1] :], skip_special_tokens=True)
        assert said == text.partition("\n")[0].strip()
    assert model.generate(batch, n=2, max_tokens=4) == [said for said in made for _ in range(2)]


@torch.no_grad()
def test_what_is_asked_twice_is_answered_once(monkeypatch):
    model = build()
    batch = batch_of(model)
    words, asked = model.encode(batch).mean, [model.row(q, "?")["question"] for q, *_ in ITEMS]
    once, read = model.answer(words, asked), []

    def count(lm, shared, queries, *more) -> list[str]:
        read.append(queries)
        return [str(i) for i in range(len(queries))]

    monkeypatch.setattr("mmgen.models.answerer.answer", count)
    assert len(once) == 3
    assert model.answer(words[[0, 1, 0, 2, 1]], [asked[i] for i in (0, 1, 0, 2, 1)]) == ["0", "1", "0", "2", "1"]
    assert [len(queries) for queries in read] == [3]


def test_the_phase_prompt_changes_the_prompt_alone(tmp_path):
    model = build()
    lm, before = fingerprint(model.language_model.model), {k: v.clone() for k, v in model.own_state().items()}
    data = [model.row(*item) for item in ITEMS]
    start = model.losses(collate(data, model.sequences), "prompt").total.item()
    config = FitConfig(steps=20, batch_size=3, learning_rate=0.002, tracker="none", warmup=1)
    fit(model, data, config, tmp_path, phases=("prompt",))
    assert model.losses(collate(data, model.sequences), "prompt").total.item() < start
    changed = {name.partition(".")[0] for name, value in model.own_state().items() if not torch.equal(value, before[name])}
    assert changed == {"keys", "values"}
    assert fingerprint(model.language_model.model) == lm
    again = mmgen.load(tmp_path)
    assert torch.equal(again.log_likelihood(batch_of(model)), model.log_likelihood(batch_of(model)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support": []}, "support: got 0"),
        ({"format": "{question} {image} {answer}"}, r"format: got '{question} {image} {answer}', expected {image} before"),
        ({"format": "{question} {answer}"}, "expected {image} before {question}"),
    ],
)
def test_what_it_cannot_be_made_of(changes, message):
    with pytest.raises(UserError) as error:
        build(**changes)
    assert message in str(error.value)


def test_what_it_cannot_make():
    model = build()
    with pytest.raises(UserError, match="to: got image"):
        model.generate(batch_of(model), to="image")
    with pytest.raises(UserError, match="n: got 0"):
        model.generate(batch_of(model), n=0)
    with pytest.raises(UserError, match="question: got none"):
        model.generate(batch_of(model).keep(["image"]))
