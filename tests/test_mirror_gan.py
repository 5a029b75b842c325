"""MirrorGAN and its redescriber: attention, phases, penalty, redescription, and what cannot be drawn."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmgen.data.batch import Batch
from mmgen.errors import UserError
from mmgen.latents.spaces import diagonal_normal
from mmgen.models import mirror_gan
from mmgen.models.base import load
from mmgen.models.mirror_gan import Critic, MirrorGAN, SentenceAttention, WordAttention, squared_gradient
from mmgen.models.redescriber import Redescriber, shifted

SMALL = {"dim": 8, "depth": 1, "heads": 2}
OWN = {"encoder": {"width": 4, "dim": 8}, "decoder": SMALL}


def tiny(**more) -> MirrorGAN:
    torch.manual_seed(0)
    sizes = {"sizes": [4, 8], "channels": 1, "vocabulary": 9, "length": 5, "text": SMALL}
    widths = {"noise": 3, "condition": 4, "width": 4, "critic_width": 4, "r1_every": 1, "redescriber": OWN}
    return MirrorGAN(**{**sizes, **widths, **more})


def tiny_redescriber(**more) -> Redescriber:
    torch.manual_seed(0)
    return Redescriber(**{"shape": [1, 8, 8], "vocabulary": 9, "length": 5, **OWN, **more})


def texts(*rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[i < len(row) for i in range(longest)] for row in rows])


IDS, MASK = texts([5, 2], [7, 8, 2], [5, 6, 2], [4, 2])
PICTURES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
BATCH = Batch({"image": PICTURES, "text": IDS}, {"text": MASK})


def gradients(model: MirrorGAN, phase: str, batch: Batch = BATCH) -> set[str]:
    """The parts of the model that a phase gives a gradient to."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    model.losses(batch, phase).total.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


def test_every_place_looks_at_real_words_alone():
    attention = WordAttention(dim=6, width=4).double()
    maps, words = torch.randn(2, 4, 3, 3, dtype=torch.double), torch.randn(2, 5, 6, dtype=torch.double)
    mask = torch.arange(5) < torch.tensor([[2], [5]])
    seen, weights = attention(maps, words, mask)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 9, dtype=torch.double))
    assert (weights[0, :, 2:] == 0).all() and (weights[mask[:, None].expand_as(weights)] > 0).all()
    other = words.masked_fill(~mask[..., None], 1e6)
    assert torch.equal(attention(maps, other, mask)[0], seen)
    alone = attention(maps[:1], words[:1, :2], mask[:1, :2])[0]
    torch.testing.assert_close(alone, seen[:1])


def test_words_are_weighed_by_their_product_with_the_place():
    attention = WordAttention(dim=2, width=2)
    torch.nn.init.eye_(attention.project.weight)
    maps = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    words = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    weights = torch.tensor([2.0, 3.0]).div(2**0.5).softmax(0)
    seen, found = attention(maps, words, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(found[0, 0], weights)
    torch.testing.assert_close(seen.flatten(), torch.stack([2 * weights[0], weights[1]]))


def test_a_sentence_that_matters_alike_everywhere_keeps_its_size():
    attention = SentenceAttention(condition=6, width=4)
    code, maps = torch.randn(2, 6), torch.randn(2, 4, 3, 3)
    seen, weights = attention(torch.zeros_like(maps), code)
    torch.testing.assert_close(seen, attention.project(code)[..., None, None].expand_as(maps))
    seen, weights = attention(maps, code)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 4))
    torch.testing.assert_close(seen.mean((2, 3)), attention.project(code))
    expected = (maps[1, 2].flatten() * attention.project(code)[1, 2]).softmax(0)
    torch.testing.assert_close(weights[1, 2], expected)


@pytest.mark.parametrize("more", [{}, {"augmentation": 0.0}, {"attention": False}, {"sizes": [8]}, {"redescription": 0.0}])
def test_each_phase_gives_a_gradient_to_its_own_parameters_and_all_of_them(more):
    model = tiny(**more).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for phase in model.phases:
        own = {name for name in trained if name.startswith("discriminator.") == (phase == "discriminator")}
        assert gradients(model, phase) == own and own
        ids = {id(p) for group in model.phase_parameters(phase) for p in group["params"]}
        assert ids == {id(trained[name]) for name in own}
    assert not any(name.startswith("redescriber.") for name in trained)


def test_a_single_stage_without_redescription_is_a_plain_conditional_gan():
    model = tiny(sizes=[8], redescription=0.0, redescriber=None, augmentation=0.0, r1=0.0).eval()
    assert model.redescriber is None and len(model.generator.looks) == 0 and len(model.discriminator.stages) == 1
    torch.manual_seed(3)
    found = {phase: model.losses(BATCH, phase) for phase in model.phases}
    torch.manual_seed(3)
    fakes = [model.draw(IDS, MASK)[0][0] for _ in model.phases]
    critic, sentence = model.discriminator.stages[0], model.discriminator.text(IDS, MASK)
    (u, c), (u_fake, c_fake) = critic(PICTURES, sentence), critic(fakes[0], sentence)
    wrong = torch.cat([critic(PICTURES, sentence.roll(by, 0))[1] for by in (1, 2, 3)])
    real, fake = (lambda a: -torch.sigmoid(a).log().mean()), (lambda a: -torch.sigmoid(-a).log().mean())
    torch.testing.assert_close(found["discriminator"]["unconditional"], real(u) + fake(u_fake))
    torch.testing.assert_close(found["discriminator"]["conditional"], real(c) + (fake(c_fake) + fake(wrong)) / 2)
    assert found["discriminator"]["r1"] == 0
    u_fake, c_fake = critic(fakes[1], sentence)
    assert found["generator"].keys() == {"unconditional", "conditional"}
    torch.testing.assert_close(found["generator"].total, real(u_fake) + real(c_fake))


def test_a_pair_is_told_wrong_only_where_the_texts_differ():
    model = tiny(r1=0.0).eval()
    same, mask = texts([5, 2], [5, 2], [5, 2])
    batch = Batch({"image": PICTURES[:3], "text": same}, {"text": mask})
    torch.manual_seed(1)
    one = model.losses(batch, "discriminator")["conditional"]
    sentence = model.discriminator.text(same, mask)
    torch.manual_seed(1)
    drawn, _ = model.draw(same, mask)
    expected = 0.0
    for critic, fake in zip(model.discriminator.stages, drawn):
        real = F.adaptive_avg_pool2d(PICTURES[:3], fake.shape[-1])
        expected += F.softplus(-critic(real, sentence)[1]).mean() + F.softplus(critic(fake, sentence)[1]).mean() / 2
    torch.testing.assert_close(one, expected)


def test_the_penalty_is_the_squared_gradient():
    torch.manual_seed(0)
    critic, x, sentence = Critic(1, 4, 8, 4).double(), torch.randn(3, 1, 4, 4).double(), torch.randn(3, 8).double()

    def output(i: int, one: torch.Tensor) -> float:
        return sum(v.item() for v in critic(one[None], sentence[i : i + 1]))

    by_hand, h = torch.zeros(3, dtype=torch.double), 1e-6
    for i in range(3):
        for place in range(16):
            step = torch.zeros(16, dtype=torch.double)
            step[place] = h
            slope = (output(i, x[i] + step.view(1, 4, 4)) - output(i, x[i] - step.view(1, 4, 4))) / (2 * h)
            by_hand[i] += slope**2
    x.requires_grad_()
    u, c = critic(x, sentence)
    penalty = squared_gradient(u + c, x)
    torch.testing.assert_close(penalty, by_hand.to(penalty), rtol=1e-4, atol=1e-6)
    penalty.mean().backward()
    assert critic.features[0].weight.grad.abs().sum() > 0


def test_the_penalty_comes_every_few_steps_and_as_many_times_as_strong():
    model, found = tiny(r1=3.0, r1_every=4).eval(), []
    for step in range(5):
        model.step.fill_(step)
        torch.manual_seed(0)
        found.append(model.losses(BATCH, "discriminator")["r1"].item())
    assert found[1:4] == [0.0] * 3 and found[0] == found[4] > 0
    every = tiny(r1=3.0, r1_every=1).eval()
    torch.manual_seed(0)
    assert found[0] == pytest.approx(4 * every.losses(BATCH, "discriminator")["r1"].item(), rel=1e-5)
    real, sentence = PICTURES.clone().requires_grad_(), every.discriminator.text(IDS, MASK)
    by_hand = 0.0
    for critic, size in zip(every.discriminator.stages, (4, 8)):
        real = F.adaptive_avg_pool2d(PICTURES, size).requires_grad_()
        by_hand += 3.0 / 2 * squared_gradient(sum(critic(real, sentence)), real).mean()
    assert found[0] == pytest.approx(4 * by_hand.item(), rel=1e-5)


def test_the_redescription_is_the_captioners_own_likelihood():
    model, trained = tiny(redescription=0.7).eval(), tiny_redescriber().eval()
    torch.nn.init.normal_(trained.decoder.prefix.weight)
    model.mirror(trained)
    torch.manual_seed(2)
    term = model.losses(BATCH, "generator")["redescription"]
    torch.manual_seed(2)
    drawn = model.draw(IDS, MASK)[0][-1]
    own = trained.log_likelihood(Batch({"image": drawn, "text": IDS}, {"text": MASK}))
    torch.testing.assert_close(term, -0.7 * own.mean())
    torch.testing.assert_close(trained.losses(Batch({"image": drawn, "text": IDS}, {"text": MASK})).total, -own.mean())


def test_in_training_the_captioner_reads_a_disturbed_picture():
    model = tiny(redescription=0.7, shift=0.0, redescriber={**OWN, "noise": 0.5, "shift": 0.2}).train()
    torch.manual_seed(2)
    term = model.losses(BATCH, "generator")["redescription"]
    torch.manual_seed(2)
    read = model.redescriber.disturbed(model.draw(IDS, MASK)[0][-1])
    torch.testing.assert_close(term, -0.7 * model.redescriber.describe(read).log_prob(IDS, MASK).mean())
    torch.manual_seed(2)
    noise = model.redescriber.disturbed(torch.zeros(50, 1, 8, 8))
    assert noise.std().item() == pytest.approx(0.5, abs=0.03) and abs(noise.mean().item()) < 0.03


def test_the_captioner_is_bitwise_what_it_was_and_yet_moves_the_generator():
    model = tiny(redescription=1.0).train()
    before = {name: value.clone() for name, value in model.redescriber.state_dict().items()}
    optimizers = {phase: torch.optim.AdamW(model.phase_parameters(phase), 0.1, weight_decay=0.1) for phase in model.phases}
    for _ in range(2):
        for phase, optimizer in optimizers.items():
            model.losses(BATCH, phase).total.backward()
            optimizer.step()
            model.zero_grad()
    assert all(torch.equal(value, before[name]) for name, value in model.redescriber.state_dict().items())
    assert not model.redescriber.training and not model.redescriber.decoder.training
    torch.manual_seed(0)
    model.generator_terms(PICTURES, IDS, MASK)["redescription"].backward()
    assert model.generator.expand.weight.grad.abs().sum() > 0 and model.text.embed.weight.grad.abs().sum() > 0


def test_both_text_encoders_can_begin_with_trained_words():
    model, words = tiny(), torch.randn(9, 8)
    model.begin_with_words(words)
    for encoder in (model.text, model.discriminator.text):
        assert torch.equal(encoder.embed.weight, words) and encoder.embed.weight.requires_grad
    with pytest.raises(UserError, match=r"embeddings: got shape \(9, 4\), expected shape \(9, 8\); set text.dim"):
        model.begin_with_words(words[:, :4])


def test_redescription_of_weight_zero_is_none():
    found = []
    for more in ({"redescription": 0.0}, {"redescription": 0.0, "redescriber": None}, {"redescription": 0.9}):
        model = tiny(**more).eval()
        torch.manual_seed(4)
        found.append({k: v.item() for k, v in model.losses(BATCH).items() if "redescription" not in k})
    assert found[0] == found[1] == found[2] and len(found[0]) == 6  # the captioner is drawn last, so all else is the same


def test_a_saved_model_keeps_its_captioner(tmp_path):
    model, trained = tiny().eval(), tiny_redescriber()
    torch.nn.init.normal_(trained.decoder.prefix.weight)
    model.mirror(trained)
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again.redescriber.decoder.prefix.weight, trained.decoder.prefix.weight)
    with pytest.raises(UserError, match="redescriber: got 3 differing tensors"):
        model.mirror(tiny_redescriber(encoder={"width": 4, "dim": 6}, decoder=SMALL))


def test_conditioning_augmentation_is_a_kl_and_a_draw():
    model = tiny(augmentation=0.3).eval()
    q = model.code(model.text(IDS, MASK))
    mean, scale = q.mean, q.base_dist.scale
    by_hand = (0.5 * (mean**2 + scale**2 - 1 - 2 * scale.log())).sum(1).mean()
    torch.testing.assert_close(model.losses(BATCH, "generator")["augmentation"], 0.3 * by_hand)
    model.prior.forward = lambda: diagonal_normal(torch.zeros(3), torch.zeros(3))
    a, b = (model.generate(BATCH.keep(["text"]), "image", generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert not torch.allclose(a, b)
    plain = tiny(augmentation=0.0).eval()
    plain.prior.forward = model.prior.forward
    a, b = (plain.generate(BATCH.keep(["text"]), "image", generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(a, b)


def test_generation_is_of_the_text_the_noise_and_the_generator():
    model = tiny().eval()
    prompts = BATCH.keep(["text"])
    draws = [model.generate(prompts, "image", 2, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert draws[0].shape == (8, 1, 8, 8) and draws[0].abs().max() <= 1
    assert torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], draws[2])
    assert not torch.allclose(draws[0][0], draws[0][1])  # of one prompt
    other = Batch({"text": IDS.flip(0)}, {"text": MASK.flip(0)})
    assert not torch.allclose(model.generate(other, "image", 2, torch.Generator().manual_seed(0)), draws[0])
    longer = Batch({"text": F.pad(IDS, (0, 3), value=7)}, {"text": F.pad(MASK, (0, 3))})  # whatever the padding holds
    torch.testing.assert_close(model.generate(longer, "image", 2, torch.Generator().manual_seed(0)), draws[0])


def test_both_phases_together_are_their_sum():
    model = tiny().eval()
    torch.manual_seed(5)
    both = model.losses(BATCH)
    torch.manual_seed(5)
    apart = [model.losses(BATCH, phase) for phase in model.phases]
    assert both.total.item() == pytest.approx(sum(one.total.item() for one in apart), rel=1e-6)
    assert set(both) == {f"{phase}_{name}" for phase, one in zip(model.phases, apart) for name in one}


def test_a_repeated_batch_has_the_same_discriminator_loss(monkeypatch):
    model = tiny().double().eval()
    monkeypatch.setattr(mirror_gan, "rsample", lambda q, shape=(), generator=None: q.mean.expand(*shape, *q.mean.shape))
    batch = Batch({"image": PICTURES.double(), "text": IDS}, {"text": MASK})
    for phase in model.phases:
        twice = model.losses(batch.items(torch.arange(4).repeat(2)), phase)
        for name, value in model.losses(batch, phase).items():
            torch.testing.assert_close(twice[name], value)


def test_items_that_lack_either_count_nowhere():
    kept = torch.tensor([0, 2, 3])
    present = {"image": torch.tensor([True, False, True, True]), "text": torch.ones(4, dtype=torch.bool)}
    spoilt = Batch({"image": PICTURES.index_fill(0, torch.tensor(1), math.nan), "text": IDS}, {"text": MASK}, present)
    without_text = Batch(BATCH.values, BATCH.masks, {"text": present["image"]})
    for model in (tiny().eval(), tiny_redescriber().eval()):
        found = []
        for batch in (spoilt, without_text, BATCH.items(kept)):
            torch.manual_seed(0)
            found.append({name: value.item() for name, value in model.losses(batch).items()})
        assert found[0] == pytest.approx(found[2]) and found[1] == pytest.approx(found[2])
    likelihood = tiny_redescriber().eval()
    assert likelihood.log_likelihood(spoilt)[1] == 0
    torch.testing.assert_close(likelihood.log_likelihood(spoilt)[kept], likelihood.log_likelihood(BATCH)[kept])


def test_the_redescriber_says_what_it_has_learned():
    model, generator = tiny_redescriber(noise=0.0, shift=0.0), torch.Generator().manual_seed(0)
    pictures = torch.stack([torch.full((1, 8, 8), -1.0), torch.full((1, 8, 8), 1.0)])
    ids, mask = texts([5, 2], [7, 8, 2])
    batch = Batch({"image": pictures, "text": ids}, {"text": mask})
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model.losses(batch).total.backward()
        optimizer.step()
    model.eval()
    assert model.log_likelihood(batch).exp().min() > 0.8
    swapped = Batch({"image": pictures.flip(0), "text": ids}, {"text": mask})
    assert model.log_likelihood(swapped).exp().max() < 0.2
    said = model.generate(batch.keep(["image"]), "text", 2, generator, temperature=0.0)
    assert said[:, :3].tolist() == [[5, 2, 0], [5, 2, 0], [7, 8, 2], [7, 8, 2]] and said.shape == (4, 5)


def test_noise_and_moves_are_of_training_alone():
    model = tiny_redescriber(noise=1.0)
    assert len({model.train().losses(BATCH).total.item() for _ in range(3)}) == 3
    assert len({model.eval().losses(BATCH).total.item() for _ in range(3)}) == 1
    assert tiny_redescriber(noise=0.0, shift=0.0).train().losses(BATCH).total == tiny_redescriber().eval().losses(BATCH).total


def test_moved_pictures_are_crops_whose_edges_repeat():
    x = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(2, 1, 1, 1)
    torch.manual_seed(0)
    found = {tuple(shifted(x, 0.125)[0].flatten().tolist()) for _ in range(100)}
    assert len(found) == 9  # by -1, 0 or 1 each way
    rows = torch.arange(8)
    expected = {
        tuple(x[0, 0][(rows + down).clamp(0, 7)][:, (rows + across).clamp(0, 7)].flatten().tolist())
        for down in (-1, 0, 1)
        for across in (-1, 0, 1)
    }
    assert found == expected and torch.equal(shifted(x, 0.05), x)
    moved = shifted(torch.stack([x[0], x[1]]), 0.125)
    assert torch.equal(moved[0], moved[1])


def prompt(*rows: list[int], present: list[bool] | None = None) -> Batch:
    ids, mask = texts(*rows)
    return Batch({"text": ids}, {"text": mask}, {} if present is None else {"text": torch.tensor(present)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny(sizes=[8, 12]), r"sizes: got \[8, 12\], expected each twice the one before"),
        (lambda: tiny(sizes=[]), r"sizes: got \[\], expected whole numbers"),
        (lambda: tiny(sizes=[8.0]), r"sizes: got \[8.0\], expected whole numbers"),
        (lambda: tiny(redescriber=None), "redescriber: got none, expected one for the redescription"),
        (lambda: tiny(redescription=-1.0), "redescription: got -1.0"),
        (lambda: tiny(r1=-0.1), "r1: got -0.1"),
        (lambda: tiny(r1_every=0), "r1_every: got 0"),
        (lambda: tiny(augmentation=-2.0), "augmentation: got -2.0"),
        (lambda: tiny(noise=0), "noise: got 0"),
        (lambda: tiny(shift=1.0), "shift: got 1.0, expected 0 or more and below 1"),
        (lambda: tiny(redescriber={"encoder": {"widht": 3}}), "encoder.widht: got widht.*did you mean 'width'"),
        (lambda: tiny_redescriber(stop=9), "stop: got 9, expected a token, 0 to 8"),
        (lambda: tiny_redescriber(noise=-1.0), "noise: got -1.0"),
        (lambda: tiny_redescriber(decoder={"stop": 3}), "decoder.stop: got stop"),
        (lambda: tiny(redescription=0.0).mirror(tiny_redescriber()), "redescriber: got one, expected none"),
        (
            lambda: tiny_redescriber().log_likelihood(BATCH.keep(["text"])),
            r"image and text: got no item that has both \(the batch holds text\)",
        ),
        (lambda: tiny().losses(BATCH, "train_gan"), "phase: got train_gan"),
        (lambda: tiny_redescriber().losses(BATCH, "generator"), "phase: got generator"),
        (
            lambda: tiny().losses(Batch({**BATCH.values, "image": PICTURES[..., :4]}, BATCH.masks)),
            r"image: got shape \(1, 8, 4\)",
        ),
        (lambda: tiny().losses(Batch({**BATCH.values, "image": PICTURES / 0}, BATCH.masks)), "image of item 0: got .*inf"),
        (
            lambda: tiny().losses(Batch({"image": PICTURES, "text": IDS + 9}, BATCH.masks)),
            "text of item 0: got .*token ids from 0 to 8",
        ),
        (lambda: tiny().generate(prompt([5, 2]), "text"), "to: got text"),
        (lambda: tiny().generate(prompt([5, 2]), "image", n=0), "n: got 0"),
        (lambda: tiny().generate(prompt([5, 2], []), "image"), "text of item 1: got 0 tokens, expected at least one token"),
        (
            lambda: tiny().generate(prompt([5, 2], [5] * 6), "image"),
            "text of item 1: got 6 tokens, expected at most 5; shorten it",
        ),
        (lambda: tiny().generate(prompt([5, 2], [5, 2], present=[True, False]), "image"), "text: got an item without it"),
        (lambda: tiny().generate(Batch({"image": PICTURES}), "image"), "text: got an item without it"),
        (lambda: tiny().log_likelihood(BATCH), "mirror_gan.log_likelihood: got a call"),
        (lambda: tiny_redescriber().generate(BATCH, "image"), "to: got image"),
        (lambda: tiny_redescriber().generate(prompt([5, 2]), "text"), "image: got an item without it"),
        (lambda: tiny_redescriber().generate(BATCH, "text", n=0), "n: got 0"),
    ],
)
def test_wrong_use_says_so(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
