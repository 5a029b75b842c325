"""PixelCNN: all small pictures sum to 1, causality and the blind spot, cached sampling, completion, and wrong input."""

import itertools
import math

import pytest
import torch
from PIL import Image

from mmgen.data.batch import Batch
from mmgen.data.image import ImageProcessor
from mmgen.errors import UserError
from mmgen.modalities.layers.autoregressive import choose
from mmgen.modalities.layers.masked import NETWORKS, MaskedConv2d, Place
from mmgen.models.pixel_cnn import PixelCNN

LIKELIHOODS = ("categorical", "logistic_mixture")


def build(network="gated", likelihood="categorical", shape=(1, 2, 2), levels=2, depth=2, spread=0.4, **settings):
    """A small model in float64 whose weights are large, so that its pixels depend on each other."""
    torch.manual_seed(0)
    sizes = {"width": 6, "depth": depth, "components": 3}
    model = PixelCNN(shape, levels, network, likelihood, **sizes, **settings).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=spread)
    return model


def every_picture(shape, levels):
    """All pictures of these levels, (levels^(c h w), c, h, w) in [0, 1]."""
    values = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape))), dtype=torch.float64)
    return (values / (levels - 1)).reshape(-1, *shape)


def naive(model, label, generator, temperature=1.0, guidance=1.0):
    """Levels (b, c, h, w) drawn from one pass of the whole network a pixel."""
    c, h, w = model.shape
    free = torch.full_like(label, model.classes)
    x = torch.zeros(len(label), c, h, w, dtype=torch.long)
    for row, column in itertools.product(range(h), range(w)):
        features = [model.features(x, of)[..., row, column] for of in (label, free)]
        for j in range(c):
            given, none = (model.head.logits(f, x[:, :j, row, column]).log_softmax(-1) for f in features)
            x[:, j, row, column] = choose(none + guidance * (given - none), temperature, None, None, generator)
    return x


def by_places(network, x, condition):
    """The network's features computed row by row and pixel by pixel, (b, width, h, w); later pixels hold noise meanwhile."""
    (h, w), maps, features = x.shape[2:], {}, torch.zeros(len(x), 6, *x.shape[2:], dtype=x.dtype)
    later = torch.arange(h * w).reshape(h, w)
    for row in range(h):
        above = network.rows(torch.where(later < row * w, x, 9.0), condition, Place((h, w), row, None, maps))
        for column in range(w):
            place, so_far = Place((h, w), row, column, maps), torch.where(later < row * w + column, x, 9.0)
            there = network.pixels(so_far, [m[..., column : column + 1] for m in above], condition, place)
            features[..., row, column] = there[..., 0, 0]
    return features


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("shape", "levels"), [((1, 2, 2), 2), ((3, 1, 2), 4)])
def test_all_pictures_sum_to_one(network, likelihood, shape, levels):
    model, pictures = build(network, likelihood, shape, levels), every_picture(shape, levels)
    log_p = model.log_likelihood(Batch({"image": pictures}))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_p.exp().max() > 1.5 / len(pictures)  # and they differ


@pytest.mark.parametrize("network", NETWORKS)
def test_the_pictures_of_each_label_sum_to_one(network):
    model, pictures = build(network, classes=2), every_picture((1, 2, 2), 2)
    found = [model.log_likelihood(Batch({"image": pictures} | ({} if k is None else {"label": torch.full((16,), k)}))).exp()
             for k in (0, 1, None)]  # fmt: skip
    assert [p.sum().item() for p in found] == pytest.approx([1, 1, 1], abs=1e-12)
    assert all((p - q).abs().max() > 1e-4 for p, q in itertools.combinations(found, 2))


@pytest.mark.parametrize("network", NETWORKS)
def test_features_depend_on_all_earlier_pixels_and_no_others(network):
    h, w = 4, 9
    model = build(network, shape=(1, h, w), depth=4 if network == "plus_plus" else 6)  # all pixels are in the field
    x = torch.randn(1, 2, h, w, dtype=torch.float64, requires_grad=True)
    features, unseen = model.network(x), []
    for i in (0, 1, 8, 9, 17, 20, 31, 35):
        (gradient,) = torch.autograd.grad(features.flatten(2)[..., i].sum(), x, retain_graph=True)
        seen = (gradient != 0).any(1).flatten()
        assert not seen[i:].any(), f"pixel {i}"
        unseen += [(i, j) for j in range(i) if not seen[j]]
    if network == "pixelcnn":  # the blind spot: above and to the right, out of the first window
        assert [divmod(j, w) for i, j in unseen if i == 3 * w + 4] == [(2, 8)]
    else:
        assert unseen == []


@pytest.mark.parametrize("network", NETWORKS)
def test_stored_maps_give_the_features_of_a_whole_pass(network):
    network = build(network, shape=(2, 5, 6), kernel=5, classes=2).network
    x, condition = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(by_places(network, x, condition), network(x, condition), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", ["raster", "above", "left", "corner"])
@pytest.mark.parametrize("kind", ["A", "B"])
def test_a_convolution_at_a_place_is_that_of_the_whole(window, kind):
    convolution, x = MaskedConv2d(2, 3, 5, kind, window).double(), torch.randn(1, 2, 4, 5, dtype=torch.float64)
    whole, maps = convolution(x), {}
    for row in range(3):
        seen = x if kind == "A" else x[:, :, row : row + 1]
        torch.testing.assert_close(convolution(seen, Place((4, 5), row, None, maps)), whole[:, :, row : row + 1])


@pytest.mark.parametrize(
    ("network", "likelihood", "temperature", "guidance"),
    [
        ("pixelcnn", "logistic_mixture", 1.0, 1.0),
        ("gated", "categorical", 0.7, 2.5),
        ("plus_plus", "logistic_mixture", 0.7, 2.5),
        ("plus_plus", "categorical", 1.0, 1.0),
    ],
)
def test_cached_sampling_is_naive_sampling(network, likelihood, temperature, guidance):
    model, label = build(network, likelihood, (3, 3, 4), 4, classes=2), torch.tensor([0, 1, 1])
    options = {"temperature": temperature, "guidance": guidance}
    found = model.generate(Batch({"label": label}), generator=torch.Generator().manual_seed(5), **options)
    expected = naive(model, label, torch.Generator().manual_seed(5), **options)
    assert torch.equal((found * 3).round().long(), expected)
    assert len(expected.unique()) == 4


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_draws_have_the_probabilities_of_the_model(guidance):
    model, pictures = build(classes=2), every_picture((1, 2, 2), 2)
    label = torch.tensor([1])
    drawn = model.generate(Batch({"label": label}), n=8000, generator=torch.Generator().manual_seed(0), guidance=guidance)
    share = (drawn[:, None] == pictures).flatten(2).all(2).double().mean(0)  # (16,)
    given = {"image": pictures} | ({"label": label.repeat(16)} if guidance else {})  # guidance 0: without the label
    assert (share - model.log_likelihood(Batch(given)).exp()).abs().sum() < 0.06


def test_completions_keep_what_is_known_and_follow_the_conditional():
    model, pictures = build(), every_picture((1, 2, 2), 2)
    log_p, given = model.log_likelihood(Batch({"image": pictures})), pictures[4:5]  # 0 1 / 0 0
    for pixels in (1, 2, 3):
        known = torch.arange(4).reshape(2, 2) < pixels
        same = (pictures == given)[:, 0][:, known].all(1)  # (16,)
        each = model.pixel_log_likelihood(Batch({"image": given}))[0]
        torch.testing.assert_close(log_p[same].logsumexp(0), each[known].sum())  # log p(given)
        torch.testing.assert_close(log_p[4] - log_p[same].logsumexp(0), each[~known].sum())
        drawn = model.generate(Batch({"image": given}), n=4000, generator=torch.Generator().manual_seed(0), keep=known)
        share = (drawn[:, None] == pictures).flatten(2).all(2).double().mean(0)
        assert (share - torch.where(same, log_p, -math.inf).softmax(0)).abs().sum() < 0.06


@pytest.mark.parametrize("network", NETWORKS)
def test_known_pixels_come_back_bit_for_bit(network):
    model = build(network, shape=(3, 4, 5), levels=256).float()
    pictures, known = torch.rand(3, 3, 4, 5), torch.arange(20).reshape(4, 5) < torch.tensor([7, 0, 13])[:, None, None]
    present = {"image": torch.tensor([True, True, False])}
    batch = Batch({"image": pictures}, present=present)
    drawn = model.generate(batch, n=2, generator=torch.Generator().manual_seed(0), keep=known).unflatten(0, (3, 2))
    kept = known & present["image"][:, None, None]
    assert torch.equal(*(torch.where(kept[:, None, None], x, 0) for x in (drawn, pictures[:, None].expand_as(drawn))))
    assert ((drawn >= 0) & (drawn <= 1)).all() and not torch.equal(drawn[2, 0], drawn[2, 1])
    changed = torch.where(known[:, None], pictures, torch.nan)  # other pixels are not read
    again = model.generate(
        Batch({"image": changed}, present=present), n=2, generator=torch.Generator().manual_seed(0), keep=known
    )
    assert torch.equal(again, drawn.flatten(0, 1))


def test_upper_rows_alone_are_completed_as_those_of_a_whole_picture():
    model, pictures = build(shape=(1, 4, 5), levels=4).float(), torch.rand(2, 1, 4, 5)
    drawn = [model.generate(Batch({"image": x}), generator=torch.Generator().manual_seed(0), keep=keep)
             for x, keep in ((pictures, "upper"), (pictures[:, :, :2], ""))]  # fmt: skip
    assert torch.equal(*drawn) and torch.equal(drawn[0][:, :, :2], pictures[:, :, :2])


def test_the_upper_part_of_a_file_is_completed():
    model = build(shape=(1, 4, 4), levels=256).float()
    model.processors["image"] = ImageProcessor(4, 1)
    part = model.upper_part(Image.new("L", (4, 3), 51))
    assert torch.equal(part, torch.full((1, 3, 4), 0.2))
    assert torch.equal(model.generate(Batch({"image": part[None]}))[0, :, :3], part)
    with pytest.raises(UserError, match="--from: got 4 x 4 pixels, expected 4 wide and a multiple of 1 below 4 high"):
        model.upper_part(Image.new("L", (4, 4)))


def test_independent_pixels_reach_their_entropy_and_labels_are_followed():
    torch.manual_seed(0)
    model, shares = PixelCNN((1, 4, 4), 2, width=16, depth=2, classes=2, condition_dropout=0.2), torch.tensor([0.3, 0.8])

    def draw(n):
        label = torch.arange(n) % 2
        return Batch({"image": torch.bernoulli(shares[label][:, None, None, None].expand(n, 1, 4, 4)), "label": label})

    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 150)
        optimizer.zero_grad()
        model.losses(draw(128)).total.backward()
        optimizer.step()
    model.eval()
    batch = draw(4000)
    p = shares[batch["label"]][:, None, None, None]
    true = (
        -torch.where(batch["image"] == 1, p, 1 - p).log2().mean((1, 2, 3))
    )  # (4000,) bits a pixel: 0.8813 and 0.7219 expected
    found = -model.log_likelihood(batch) / (16 * math.log(2))
    for k in (0, 1):
        rows = batch["label"] == k
        assert found[rows].mean().item() == pytest.approx(true[rows].mean().item(), abs=0.01)
    drawn = model.generate(Batch({"label": torch.tensor([0, 1])}), n=200, generator=torch.Generator().manual_seed(0))
    assert drawn.unflatten(0, (2, 200)).mean((1, 2, 3, 4)).tolist() == pytest.approx([0.3, 0.8], abs=0.04)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("spread", [0.4, 10.0])
def test_the_negative_log_likelihood_is_never_negative(network, likelihood, spread):
    model = build(network, likelihood, (3, 3, 3), 256, spread=spread).float()
    loss = model.losses(Batch({"image": torch.rand(8, 3, 3, 3)})).total
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (model.log_likelihood(Batch({"image": torch.randint(2, (8, 3, 3, 3)).float()})) <= 0).all()


def test_items_without_a_picture_count_nowhere():
    model, x = build(classes=2), torch.rand(3, 1, 2, 2, dtype=torch.float64)
    x[1] = 1e3
    batch = Batch({"image": x, "label": torch.tensor([0, 7, 1])}, present={"image": torch.tensor([True, False, True])})
    others = Batch({"image": x[[0, 2]], "label": torch.tensor([0, 1])})
    assert torch.equal(model.losses(batch).total, model.losses(others).total)
    assert torch.equal(model.log_likelihood(batch)[[0, 2]], model.log_likelihood(others))
    assert model.log_likelihood(batch)[1] == 0


def test_labels_are_dropped_in_training_alone():
    model = build(classes=2, condition_dropout=0.5)
    batch = Batch({"image": torch.rand(2000, 1, 2, 2, dtype=torch.float64), "label": torch.zeros(2000, dtype=torch.long)})
    kept, free = model.losses(batch).total, model.losses(batch.without("label")).total
    assert model.losses(batch).total == kept and kept != free
    assert model.train().losses(batch).total.item() == pytest.approx(
        ((kept + free) / 2).item(), abs=0.1 * (kept - free).abs().item()
    )


RGB = torch.full((2, 3, 4, 4), 0.5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 4, 5), r"image: got shape \(3, 4, 5\), expected \(3, 4, 4\)"),
        (RGB + torch.tensor([0, 0.6])[:, None, None, None], "image of item 1: got 1.1.*, expected 0 to 1"),
        (RGB - 0.75, "image of item 0: got -0.25, expected 0 to 1"),
        (RGB * math.nan, "image of item 0: got nan, expected finite numbers"),
        (RGB.long(), "image: got torch.int64, expected floating point numbers"),
    ],
)
def test_wrong_pictures(x, message):
    model = build(shape=(3, 4, 4), levels=4).float()
    for call in (model.losses, model.log_likelihood):
        with pytest.raises(UserError, match=message):
            call(Batch({"image": x}))


LEFT = torch.arange(4).expand(4, 4) < 2


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"image": RGB}, {"keep": LEFT}, "keep of item 0: got a known pixel after an unknown one, at row 1, column 0"),
        ({"image": RGB}, {"keep": ~LEFT}, "keep of item 0: got a known pixel after an unknown one, at row 0, column 2"),
        ({"image": RGB}, {"keep": LEFT.float()}, r"keep: got torch.float32 of shape \(4, 4\), expected torch.bool"),
        ({"image": RGB}, {"keep": LEFT[:3]}, r"keep: got torch.bool of shape \(3, 4\), expected .*\(4, 4\) or \(2, 4, 4\)"),
        ({"image": RGB}, {"keep": "uper"}, "keep: got uper, .*did you mean 'upper'"),
        ({}, {"keep": "upper"}, "image: got no item that has it"),
        ({"image": RGB}, {}, r"image: got shape \(3, 4, 4\), expected \(3, 1 to 3, 4\); .*keep"),
        ({"image": RGB[..., :3]}, {"keep": "upper"}, r"image: got shape \(3, 4, 3\), expected \(3, 4, 4\)"),
        ({"image": RGB * 3}, {"keep": "upper"}, "image of item 0: got 1.5, expected 0 to 1"),
        ({}, {"guidance": 2.0}, "guidance: got 2 without a label, expected a label"),
        ({"label": torch.tensor([2])}, {}, "label: got 2, expected 0 to 1"),
        ({}, {"temperature": -1.0}, "temperature: got -1"),
        ({}, {"guidance": math.nan}, "guidance: got nan"),
        ({}, {"n": 0}, "n: got 0"),
        ({}, {"to": "text"}, "to: got text"),
    ],
)
def test_wrong_calls_of_generate(given, options, message):
    model = build(shape=(3, 4, 4), levels=4, classes=2).float()
    with pytest.raises(UserError, match=message):
        model.generate(Batch(given) if given else Batch.nothing(1), **options)


def test_guidance_needs_a_model_of_labels():
    with pytest.raises(UserError, match="guidance: got 2 without a label, expected a model of labels; train with classes=N"):
        build().generate(Batch({"label": torch.tensor([0])}), guidance=2.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kernel": 4}, "kernel: got 4, expected an odd number"),
        ({"levels": 1}, "levels: got 1, expected 2 to 65536"),
        ({"network": "gatd"}, "network: got gatd, .*did you mean 'gated'"),
        ({"likelihood": "normal"}, "likelihood: got normal"),
        ({"condition_dropout": 1.0}, "condition_dropout: got 1.0"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(UserError, match=message):
        PixelCNN(**setting)


def test_a_wrong_option_is_named_with_its_types():
    from mmgen.inference.generate import checked_options  # here, as it is slow to import

    with pytest.raises(UserError, match=r"option keep: got 3, expected str \| torch.Tensor"):
        checked_options(build(), {"keep": 3}, "image")
    assert checked_options(build(), {"keep": "upper", "guidance": 2}, "image") == {"keep": "upper", "guidance": 2}
