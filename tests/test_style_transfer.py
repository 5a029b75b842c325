"""Style transfer by an autoencoder: reading, writing, each objective by hand, what it learns, and texts of all kinds."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_edit import BAD, GOOD, THINGS, reviews

from mmgen.data.batch import Batch, collate
from mmgen.errors import UserError
from mmgen.models.base import load
from mmgen.models.style.spelling import LONGEST
from mmgen.models.style_transfer import HIDDEN, LONGER, STOP, UNKNOWN, StyleTransfer, still

OBJECTIVES = ("controlled", "cross_aligned", "back_translation", "reinforced")
TEXTS, LABELS = reviews()
SMALL = {"dim": 16, "depth": 1, "heads": 2}


def learnt(objective: str = "back_translation", **changes) -> StyleTransfer:
    torch.manual_seed(0)
    return StyleTransfer.learn(TEXTS, LABELS, ["bad", "good"], objective=objective, **{**SMALL, **changes}).eval()


def batch_of(model: StyleTransfer, texts: list[str], labels: list[int]) -> Batch:
    read = model.processors["text"]
    return collate([{"text": read(text), "label": torch.tensor(y)} for text, y in zip(texts, labels)], ["text"])


def ids_of(model: StyleTransfer, texts: list[str], labels: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return model.observed(batch_of(model, texts, labels))


# reading


def test_texts_get_an_end_of_their_own():
    model = learnt()
    ids, mask, style = ids_of(model, ["i love the soup !", "soup"], [1, 0])
    assert ids.shape == (2, 6) and style.tolist() == [1, 0]
    assert ids[0, 5] == STOP and ids[1].tolist()[1:] == [STOP, 0, 0, 0, 0]
    assert mask.sum(1).tolist() == [6, 2]


def test_markers_are_the_words_of_one_style():
    model = learnt()
    tokens = model.processors["text"].tokenizer.convert_ids_to_tokens
    for style, words in enumerate(((*BAD, "hate"), (*GOOD, "love"))):
        assert sorted(tokens(model.hidden[style].nonzero()[:, 0].tolist())) == sorted(words)


def test_the_content_does_not_say_which_marker_stood_there():
    model = learnt()
    one, other, neutral = (
        model.read(*ids_of(model, [text], [1])) for text in ("the tea was good .", "the tea was fresh .", "the tea was bad .")
    )
    assert torch.equal(one.states, other.states) and torch.equal(one.words, other.words)
    assert not torch.equal(one.states, neutral.states)  # "bad" is no marker of the style 1
    assert one.words.sum() == 4  # the, tea, was, .


def test_words_are_left_out_in_training_only():
    model = learnt(noise=0.9)
    ids, mask, style = ids_of(model, ["the tea was a room ."] * 20, [1] * 20)
    assert (model.read(ids, mask, style).words.sum(1) > 3).all()
    model.train()
    left = model.read(ids, mask, style).words.sum(1)
    assert 0 < left.mean() < 2
    words = F.one_hot(ids, model.hidden.shape[1]).float()
    assert model.read(words, mask, style).words.sum(1).mean() < 2


def test_words_with_gradients_are_read_as_ids_are():
    model = learnt()
    ids, mask, style = ids_of(model, ["the tea was bad .", "i love the soup"], [0, 1])
    words = F.one_hot(ids, model.hidden.shape[1]).float().requires_grad_()
    soft, hard = model.read(words, mask, style), model.read(ids, mask, style)
    torch.testing.assert_close(soft.states, hard.states)
    assert torch.equal(soft.words, hard.words)
    soft.mean.sum().backward()
    assert (words.grad.abs().sum(-1) > 0).equal(mask & ~model.hidden[style].gather(1, ids))


# writing


def test_what_is_drawn_is_the_likeliest_word_of_the_same_distribution():
    """Cached sampling, word by word, and the teacher-forced pass are one distribution."""
    model = learnt(depth=2)
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.mul_(3)  # far from uniform
    ids, mask, style = ids_of(model, ["the tea was bad .", "soup", "i love the waiter in this room"], [0, 1, 1])
    content = model.read(ids, mask, style)
    drawn, real = model.draw(content, 1 - style, temperature=0.0)
    logits = model.decoder(content, 1 - style, drawn, real)[1]
    assert torch.equal(logits.argmax(-1)[real], drawn[real])
    assert drawn.shape[1] > 3 and len(drawn[real].unique()) > 1


@pytest.mark.parametrize("depth", [1, 2])
def test_padding_changes_nothing(depth):
    model = learnt(depth=depth)
    texts, labels = ["the tea was bad .", "soup", "i love the waiter in this room"], [0, 1, 1]
    together = model.log_likelihood(batch_of(model, texts, labels))
    alone = torch.cat([model.log_likelihood(batch_of(model, [t], [y])) for t, y in zip(texts, labels)])
    torch.testing.assert_close(together, alone)


def test_the_likelihood_of_all_short_texts_sums_to_one():
    model = StyleTransfer(["a", "b"], 7, dim=8, depth=1, heads=2).eval()
    content = model.read(torch.tensor([[5, STOP]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]))
    total, of = 0.0, torch.tensor([1])
    for word in range(7):  # what begins with each word: the end alone, or anything of two places
        rest = torch.arange(7) if word != STOP else torch.tensor([0])
        ids = torch.stack([torch.full_like(rest, word), rest], 1)
        mask = torch.tensor([[True, word != STOP]]).expand(len(ids), 2)
        many = type(content)(*(part.expand(len(ids), *part.shape[1:]) for part in content))
        total += model.log_prob(many, of.expand(len(ids)), ids, mask).exp().sum().item()
    assert total == pytest.approx(1.0, abs=1e-5)


def test_the_style_and_the_place_count():
    model = learnt()
    ids, mask, style = ids_of(model, ["the tea was bad ."], [0])
    content = model.read(ids, mask, style)
    one, other = (model.decoder(content, torch.tensor([s]), ids, mask)[1] for s in (0, 1))
    assert not torch.allclose(one, other)
    with torch.no_grad():
        model.decoder.copy.bias.fill_(9.0)
    copied = model.decoder(content, style, ids, mask)[1].softmax(-1)
    assert (copied @ content.words[0]).min() > 0.99  # a bonus for what was read, and for nothing else


# objectives


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_phase_gives_the_other_no_gradient(objective):
    model = learnt(objective).train()
    batch = batch_of(model, TEXTS[:8] + TEXTS[-4:], LABELS[:8] + LABELS[-4:])
    for phase in model.phases:
        model.zero_grad()
        model.losses(batch, phase).total.backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        own = {p for group in model.phase_parameters(phase) for p in group["params"]}
        assert moved and {p for name, p in model.named_parameters() if name in moved} <= own
        if phase == "generator":
            assert {"decoder.transformer.embed.weight", "encoder.embed.weight", "decoder.copy.weight"} <= moved


def test_both_phases_split_all_parameters():
    for objective in OBJECTIVES:
        model = learnt(objective)
        own = [{id(p) for group in model.phase_parameters(phase) for p in group["params"]} for phase in model.phases]
        assert not own[0] & own[1] and len(own[0] | own[1]) == len(list(model.parameters()))


def test_the_divergence_by_hand():
    model = learnt()
    ids, mask, style = ids_of(model, ["the tea was bad .", "i love the soup"], [0, 1])
    terms = model.generator_terms(ids, mask, style)
    content = model.read(ids, mask, style)
    drawn, real = model.draw(content, 1 - style, temperature=0.0)
    total = 0.0
    for row in range(2):
        n = int(real[row].sum())
        q = torch.distributions.Categorical(logits=model.decoder(content, 1 - style, drawn, real)[1][row, :n])
        p = torch.distributions.Categorical(logits=model.critic(drawn, real, 1 - style)[row, :n])
        total += torch.distributions.kl_divergence(q, p).sum().item()
    assert terms["divergence"].item() == pytest.approx(model.weight * total / 2, rel=1e-4)
    back = model.log_prob(model.read(drawn, real, 1 - style), style, ids, mask)
    assert terms["back_translation"].item() == pytest.approx(-back.mean().item(), rel=1e-5)


def test_the_classifier_is_told_of_real_texts_and_asked_for_the_other_style():
    model = learnt("controlled", weight=1.0)
    ids, mask, style = ids_of(model, ["the tea was bad .", "i love the soup"], [0, 1])
    with torch.no_grad():
        model.critic.head.weight.zero_()
        model.critic.head.bias.copy_(torch.tensor([2.0, 0.0]))  # always style 0
    said = F.softplus(torch.tensor([-2.0, 2.0])).tolist()  # -log p of style 0 and of style 1
    assert model.critic_terms(ids, mask, style)["classifier"].item() == pytest.approx(sum(said) / 2)
    only = ids_of(model, ["the tea was bad ."], [0])
    assert model.generator_terms(*only)["classifier"].item() == pytest.approx(said[1])


def test_the_reward_is_of_what_was_drawn(monkeypatch):
    model = learnt("reinforced", weight=1.0)
    ids, mask, style = ids_of(model, ["the tea was bad .", "i love the soup"], [0, 1])
    content = model.read(ids, mask, style)
    torch.manual_seed(3)
    drawn, real = model.draw(content, 1 - style, temperature=1.0)
    turned = model.critic(drawn, real).softmax(-1).gather(1, 1 - style[:, None])[:, 0]
    back = model.log_prob(model.read(drawn, real, 1 - style), style, ids, mask)
    reward = turned * (back / mask.sum(1)).exp()
    log_q = model.log_prob(content, 1 - style, drawn, real)
    baseline = model.baseline(content.mean)[:, 0]
    torch.manual_seed(3)
    terms = model.generator_terms(ids, mask, style)
    assert terms["policy"].item() == pytest.approx(-((reward - baseline) * log_q).mean().item(), rel=1e-4)
    assert terms["baseline"].item() == pytest.approx((reward - baseline).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_learns_the_styles_and_keeps_the_rest(objective):
    torch.manual_seed(0)
    model = learnt(objective, dim=32, weight=0.2, dropout=0.0).train()
    groups = {phase: [p for g in model.phase_parameters(phase) for p in g["params"]] for phase in model.phases}
    optimisers = {phase: torch.optim.Adam(parameters, lr=0.005) for phase, parameters in groups.items()}
    once = len(TEXTS) // 3  # each sentence
    batch = batch_of(model, TEXTS[:once], LABELS[:once])
    for step in range(150):
        for phase, optimiser in optimisers.items():
            optimiser.param_groups[0]["lr"] = 0.006 * (1 - step / 150)
            model.zero_grad()
            model.losses(batch, phase).total.backward()
            optimiser.step()
    model.eval()
    ids, mask, style = model.observed(batch)
    content = model.read(ids, mask, style)
    own, other = (model.log_prob(content, s, ids, mask).mean().item() for s in (style, 1 - style))
    assert own > other + 1  # nothing apart untrained
    texts = [f"the {thing} was {word} ." for thing in THINGS for word in BAD]
    found = model.restyle(texts, "good")
    kept = [new.split()[1] == old.split()[1] for new, old in zip(found, texts)]
    assert sum(kept) / len(texts) >= 0.7, found
    again = model.restyle(["The tea was BAD!", "", "  "], "good")
    assert again[1:] == ["", "  "] and again[0].startswith("The tea was ")


def test_what_is_drawn_in_training_is_of_the_distribution_that_is_trained():
    model = learnt(depth=2, dropout=0.5, noise=0.5).train()
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.mul_(3)
    ids, mask, style = ids_of(model, ["the tea was bad .", "soup", "i love the waiter in this room"], [0, 1, 1])
    content = model.read(ids, mask, style)
    drawn, real = model.draw(content, 1 - style, temperature=0.0)
    assert model.decoder.training and model.decoder.transformer.training
    with still(model.decoder):
        logits = model.decoder(content, 1 - style, drawn, real)[1]
    assert torch.equal(logits.argmax(-1)[real], drawn[real])
    seen = []
    forward = model.decoder.forward
    model.decoder.forward = lambda *given: seen.append(model.decoder.training) or forward(*given)
    model.generator_terms(ids, mask, style)
    assert seen == [True, False, True]  # the reconstruction, along x', and the translation back


def test_independence_and_discriminators_by_hand():
    model = learnt("controlled", weight=0.5)
    ids, mask, style = ids_of(model, ["the tea was bad .", "i love the soup"], [0, 1])
    content = model.read(ids, mask, style)
    drawn, real = model.draw(content, 1 - style, temperature=0.0)
    again = model.read(drawn, real, 1 - style)
    wanted = (again.mean - content.mean).square().sum(1).mean().item()
    assert model.generator_terms(ids, mask, style)["independence"].item() == pytest.approx(0.5 * wanted, rel=1e-4)
    model = learnt("cross_aligned", weight=0.5)
    content = model.read(ids, mask, style)
    drawn, real = model.draw(content, 1 - style, temperature=0.0)
    along, other = model.decoder(content, style, ids, mask)[0], model.decoder(content, 1 - style, drawn, real)[0]
    told, asked = model.critic(along, mask), model.critic(other, real)
    rows = torch.arange(2)
    terms = model.critic_terms(ids, mask, style) | model.generator_terms(ids, mask, style)
    found = {name: value.item() for name, value in terms.items()}
    assert found["real"] == pytest.approx(-F.logsigmoid(told[rows, style]).mean().item(), rel=1e-5)
    assert found["fake"] == pytest.approx(-F.logsigmoid(-asked[rows, 1 - style]).mean().item(), rel=1e-5)
    assert found["discriminator"] == pytest.approx(-0.5 * F.logsigmoid(asked[rows, 1 - style]).mean().item(), rel=1e-5)


def test_a_phase_tells_of_itself_alone():
    model = learnt("reinforced")
    batch = batch_of(model, ["the tea was bad ."], [0])
    model.losses(batch, "generator")
    assert model.monitored.keys() == {"reward", "turned"}
    model.losses(batch, "critic")
    assert model.monitored == {}


# texts of all kinds


def test_a_text_is_rewritten_alone_as_among_others():
    texts = ["the tea was bad .", "the soup " * 18 + "was cold .", "", "i hate the room !", "Das ist egal."]
    together = MODEL.restyle(texts, "good")
    assert together == [MODEL.restyle([text], "good")[0] for text in texts]
    assert all(len(new.split()) <= len(old.split()) + LONGER + 1 for new, old in zip(together, texts))


def test_of_a_long_text_training_reads_the_first_words():
    model = learnt(noise=0.0, dropout=0.0)
    long = "the tea was bad . " * 20
    cut = batch_of(model, [" ".join(long.split()[:LONGEST])], [0])
    for phase in model.phases:
        whole, short = model.losses(batch_of(model, [long], [0]), phase), model.losses(cut, phase)
        assert {k: v.item() for k, v in whole.items()} == {k: v.item() for k, v in short.items()}


def test_no_special_token_is_written():
    model = learnt()
    with torch.no_grad():
        model.decoder.transformer.embed.weight[:2] *= 1000  # as likely or unlikely as can be
    ids, mask, style = ids_of(model, ["the tea was bad ."] * 50, [0] * 50)
    drawn, real = model.draw(model.read(ids, mask, style), 1 - style, generator=torch.Generator().manual_seed(0))
    assert (drawn[real] >= STOP).all()


def test_a_rare_word_marks_no_style():
    texts = [*TEXTS, "the tea of joe was cold ."] * 2
    model = StyleTransfer.learn(texts, [*LABELS, 0] * 2, ["bad", "good"], **SMALL)
    tokens = model.processors["text"].tokenizer.convert_tokens_to_ids
    assert tokens("joe") != UNKNOWN and not model.hidden[:, tokens("joe")].any() and model.hidden[0, tokens("awful")]


def test_numbers_mark_no_style():
    texts = [f"{text} 30 _num_" if label == 0 else text for text, label in zip(TEXTS, LABELS)]
    model = StyleTransfer.learn(texts, LABELS, ["bad", "good"], **SMALL)
    hidden = model.processors["text"].tokenizer.convert_ids_to_tokens(model.hidden[0].nonzero()[:, 0].tolist())
    assert sorted(hidden) == sorted((*BAD, "hate"))


def test_what_is_kept_is_spelt_and_spaced_as_it_was(monkeypatch):
    tokenizer = MODEL.processors["text"].tokenizer

    def spelt(text, words):
        ids = tokenizer.convert_tokens_to_ids(words.split())
        monkeypatch.setattr(StyleTransfer, "rewritten", lambda self, pieces, style: [ids])
        return MODEL.restyle([text], "good")[0]

    assert spelt("The soup was bad and the tea was bad.", "the soup was good and the tea was good .") == (
        "The soup was good and the tea was good."
    )
    assert spelt("no capital, the TEA was bad", "the tea was great") == "the TEA was great"
    assert spelt("The   tea was bad", "tea the was great") == "Tea the was great"
    assert spelt("the   tea  was bad", "the tea was great") == "the   tea  was great"
    assert spelt("the tea in www.bad.com was cold .", "the tea in <unk> <unk> <unk> <unk> <unk> was great .") == (
        "the tea in www.bad.com was great ."
    )
    assert spelt("Die Suppe was schlecht, Hans.", "the tea was great .") == "Die Suppe was schlecht, Hans."


@settings(max_examples=30)
@given(st.lists(st.text() | st.text("the teawsgodb.,!?'\n "), max_size=5), st.sampled_from(["bad", "good"]))
def test_any_text_comes_back_as_one_text(texts, style):
    found = MODEL.restyle(texts, style)
    assert len(found) == len(texts) and all(isinstance(text, str) for text in found)
    assert all(new == old for new, old in zip(found, texts) if not old.strip())


MODEL = learnt()


def test_long_foreign_and_shouted_texts():
    long = "the soup was bad " * 2500
    found = MODEL.restyle([long.strip(), "Das ist mir völlig egal", "\N{GRINNING FACE} \N{GRINNING FACE}", "THE TEA"], "good")
    assert len(found[0].split()) <= 10000 + (LONGER + 1) * (10000 // LONGEST + 1)
    assert found[1:3] == ["Das ist mir völlig egal", "\N{GRINNING FACE} \N{GRINNING FACE}"]
    assert found[3] == found[3].upper()


def test_unknown_words_are_written_as_they_were(monkeypatch):
    tokens = MODEL.processors["text"].tokenizer.convert_tokens_to_ids
    written = [[tokens("the"), UNKNOWN, tokens("was"), tokens("great"), UNKNOWN, UNKNOWN, tokens(".")]]
    monkeypatch.setattr(StyleTransfer, "rewritten", lambda self, pieces, style: written)
    assert MODEL.restyle(["The McBurger was bad Zoë Zed."], "good") == ["The McBurger was great Zoë Zed."]
    assert MODEL.restyle(["the mcburger was bad ."], "good") == ["the mcburger was great ."]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a"]}, "class_names: got .'a'., expected two styles"),
        ({"objective": "gan"}, "objective: got gan, expected"),
        ({"noise": 1.0}, "noise: got 1.0, expected 0 or more and below 1"),
        ({"markers": 0.5}, "markers: got 0.5, expected"),
        ({"weight": -1}, "weight: got -1, expected"),
        ({"vocabulary": 3}, "vocabulary: got 3, expected"),
        ({"heads": 0}, "heads: got 0, expected"),
        ({"depth": 0}, "depth: got 0, expected"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        StyleTransfer(**{"class_names": ["bad", "good"], "vocabulary": 9, **SMALL, **changes})


def test_bad_calls():
    with pytest.raises(UserError, match="target: got goood, expected"):
        MODEL.restyle(["the tea"], "goood")
    with pytest.raises(UserError, match="texts: got 'the tea', expected a list of strings"):
        MODEL.restyle("the tea", "good")
    with pytest.raises(UserError, match="label: got 2, expected 0 or 1"):
        MODEL.losses(batch_of(MODEL, ["the tea"], [2]), "critic")
    with pytest.raises(UserError, match="text and label: got no item that has both"):
        MODEL.log_likelihood(Batch({"text": torch.tensor([[5]])}))
    with pytest.raises(UserError, match="labels: got no text of label 1, expected 0 and 1"):
        StyleTransfer.learn(["the tea the tea"], [0], ["bad", "good"])


def test_saved_and_loaded_it_writes_the_same(tmp_path):
    MODEL.save_pretrained(tmp_path)
    other = load(tmp_path)
    texts = ["the tea was bad .", "i hate the room !"]
    assert other.restyle(texts, "good") == MODEL.restyle(texts, "good") and torch.equal(other.hidden, MODEL.hidden)
    assert (
        other.processors["text"].tokenizer.bos_token_id == HIDDEN and other.processors["text"].tokenizer.eos_token_id == STOP
    )
