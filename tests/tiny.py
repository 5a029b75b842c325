"""One tiny constructor and batch per name of the table MODELS: a new model joins every contract test by its entry here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mmgen.data.batch import Batch
from mmgen.models.aligned import Aligned
from mmgen.models.answerer import Answerer
from mmgen.models.base import Model
from mmgen.models.captioner import Captioner
from mmgen.models.class_language_model import ClassLanguageModel
from mmgen.models.classifier import Classifier
from mmgen.models.discrete_vae import DiscreteVAE
from mmgen.models.edit import Edit
from mmgen.models.factorized import Factorized
from mmgen.models.flow import Flow
from mmgen.models.flow_matching import FlowMatching
from mmgen.models.gan import GAN
from mmgen.models.glow import Glow
from mmgen.models.mag import AdaptedTransformer
from mmgen.models.mirror_gan import MirrorGAN
from mmgen.models.multimodal_vae import MultimodalVAE
from mmgen.models.pixel_cnn import PixelCNN
from mmgen.models.psa_captioner import PseudoSelfAttentionCaptioner
from mmgen.models.redescriber import Redescriber
from mmgen.models.sentence_vae import SentenceVAE
from mmgen.models.style_transfer import StyleTransfer
from mmgen.models.text_to_image import TextToImage
from mmgen.models.vae import VAE
from mmgen.models.vision_touch import VisionTouch


@dataclass(frozen=True)
class Tiny:
    """A model of some thousand weights, a batch for it, and what its verbs take.

    Args:
        model: builds it.
        batch: (items) -> a batch with all its modalities.
        optional: a modality that some items may lack, of floating-point values where the model has any such.
        to: what `generate` draws; None for a model that does not define it.
    """

    model: Callable[[], Model]
    batch: Callable[[int], Batch]
    optional: str
    to: str | None


# Names of the table whose entry is still to come: the contract fails once one has both.
PENDING: frozenset[str] = frozenset()


TINY_CAPTIONER = {
    "language_model": "tiny",
    "dtype": "fp32",
    "encoder": "test_convnext",
    "weights": None,
    "trained_encoder": True,
    "size": 32,
    "stages": [3],
    "grid": 1,
    "words": 3,
    "width": 8,
}


TINY_CODES = {"shape": [1, 8, 8], "codes": 6, "dim": 3, "width": 16, "halvings": 1, "depth": 1}


def pictures_with_captions(n: int) -> Batch:
    """Noise, and captions of one token or more."""
    return Batch(
        {"image": torch.rand(n, 3, 32, 32), "text": torch.randint(3, 200, (n, 4))},
        {"text": torch.arange(4) < torch.arange(n)[:, None] % 4 + 1},
    )


def small_pictures_with_captions(n: int) -> Batch:
    """Grey noise of 8 pixels, and captions of one token or more of a vocabulary of 9."""
    return Batch(
        {"image": torch.rand(n, 1, 8, 8), "text": torch.randint(3, 9, (n, 4))},
        {"text": torch.arange(4) < torch.arange(n)[:, None] % 4 + 1},
    )


def moments(n: int) -> Batch:
    """Noise on all senses of `VisionTouch`, with every target."""
    touch = {"force": (n, 6, 4), "proprioception": (n, 8)}
    return Batch(
        {"image": torch.rand(n, 3, 8, 8), "depth": torch.rand(n, 1, 8, 8), "action": torch.randn(n, 4)}
        | {f"{of}{name}": torch.randn(shape) for of in ("", "far_", "near_") for name, shape in touch.items()}
        | {"flow": torch.randn(n, 2, 8, 8), "contact": (torch.arange(n) % 2).float(), "displacement": torch.randn(n, 4)}
    )


def tiny_models() -> dict[str, Tiny]:
    """Name in the table -> its tiny model."""
    return {
        "classifier": Tiny(
            model=lambda: Classifier("image", "image", [1, 8, 8], classes=3, encoder={"dim": 8, "width": 4}),
            batch=lambda n: Batch({"image": torch.rand(n, 1, 8, 8), "label": torch.arange(n) % 3}),
            optional="image",
            to="label",
        ),
        "vision_touch": Tiny(
            model=lambda: VisionTouch(size=8, latent_dim=3, variational=False, drop=0.0, readings=4),  # its z has no noise
            batch=moments,
            optional="force",
            to=None,
        ),
        "class_language_model": Tiny(
            model=lambda: ClassLanguageModel(["bad", "fair", "good"], "tiny", "fp32", rank=4),
            batch=lambda n: Batch(
                {"text": torch.randint(3, 200, (n, 4)), "label": torch.arange(n) % 3},
                {"text": torch.arange(4) < torch.arange(n)[:, None] % 4 + 1},
            ),
            optional="text",
            to="label",
        ),
        "captioner": Tiny(
            model=lambda: Captioner(**TINY_CAPTIONER),
            batch=pictures_with_captions,
            optional="image",
            to="text",
        ),
        "psa_captioner": Tiny(
            model=lambda: PseudoSelfAttentionCaptioner(TINY_CAPTIONER),
            batch=pictures_with_captions,
            optional="image",
            to="text",
        ),
        "answerer": Tiny(
            model=lambda: Answerer(TINY_CAPTIONER, support=[("a red dot", "is it red?", "yes")]),
            batch=lambda n: Batch(
                {
                    "image": torch.rand(n, 3, 32, 32),
                    "caption": torch.randint(3, 200, (n, 4)),
                    "question": torch.randint(3, 200, (n, 5)),
                    "text": torch.randint(3, 200, (n, 2)),
                },
                {
                    "caption": torch.arange(4) < torch.arange(n)[:, None] % 4 + 1,
                    "question": torch.arange(5) < torch.arange(n)[:, None] % 5 + 1,
                    "text": torch.arange(2) < torch.arange(n)[:, None] % 2 + 1,
                },
            ),
            optional="image",
            to="text",
        ),
        "redescriber": Tiny(
            model=lambda: Redescriber([1, 8, 8], 9, 5, **TINY_REDESCRIBER),
            batch=small_pictures_with_captions,
            optional="image",
            to="text",
        ),
        "mirror_gan": Tiny(
            model=tiny_mirror_gan,
            batch=small_pictures_with_captions,
            optional="image",
            to="image",
        ),
        "gan": Tiny(
            model=tiny_gan,
            batch=lambda n: Batch({"image": torch.rand(n, 1, 8, 8), "label": torch.arange(n) % 3}),
            optional="image",
            to="image",
        ),
        "aligned": Tiny(
            model=tiny_aligned,
            batch=pictures_with_captions,
            optional="image",
            to=None,
        ),
        "factorized": Tiny(
            model=lambda: Factorized(
                {
                    "image": {"kind": "image", "shape": [1, 8, 8], "encoder": {"dim": 8, "width": 4}, "decoder": {"width": 4}},
                    "touch": {"kind": "vector", "shape": [6], "encoder": {"dim": 8}},
                },
                classes=3,
                hidden=8,
                mmd_weight=0.0,  # a repeated batch would draw more from the prior
            ),
            batch=lambda n: Batch({"image": torch.rand(n, 1, 8, 8), "touch": torch.randn(n, 6), "label": torch.arange(n) % 3}),
            optional="touch",
            to="label",
        ),
        "edit": Tiny(
            model=lambda: Edit(["bad", "good"], words=9, pairs=81, triples=20, gaps=3, choices=2),
            batch=lambda n: Batch(
                {"text": torch.randint(3, 9, (n, 4)), "label": torch.arange(n) % 2},
                {"text": torch.ones(n, 4, dtype=torch.bool)},
            ),
            optional="text",
            to=None,
        ),
        "style_transfer": Tiny(
            model=lambda: StyleTransfer(["bad", "good"], 9, dim=8, depth=1, heads=2, dropout=0.0, noise=0.0),
            batch=lambda n: Batch(
                {"text": torch.randint(4, 9, (n, 4)), "label": torch.arange(n) % 2},
                {"text": torch.ones(n, 4, dtype=torch.bool)},
            ),
            optional="text",
            to=None,
        ),
        "mag": Tiny(
            model=lambda: AdaptedTransformer("tiny", {"audio": 5, "video": 3}, classes=3, layer=1),
            batch=lambda n: Batch(
                {
                    "text": torch.randint(3, 200, (n, 4)),
                    "audio": torch.randn(n, 5),
                    "video": torch.randn(n, 3),
                    "label": torch.arange(n) % 3,
                },
                {"text": torch.arange(4) < torch.arange(n)[:, None] % 4 + 1},
            ),
            optional="audio",
            to="label",
        ),
        "discrete_vae": Tiny(
            model=tiny_discrete_vae,
            batch=lambda n: Batch({"image": torch.rand(n, 1, 8, 8), "label": torch.arange(n) % 3}),
            optional="image",
            to="image",
        ),
        "flow_matching": Tiny(
            model=lambda: FlowMatching(shape=[1, 8, 8], classes=3, settings={"dim": 8, "depth": 1, "heads": 2}),
            batch=lambda n: Batch({"image": torch.rand(n, 1, 8, 8), "label": torch.arange(n) % 3}),
            optional="image",
            to="image",
        ),
        "text_to_image": Tiny(
            model=tiny_text_to_image,
            batch=lambda n: Batch(
                {"image": torch.rand(n, 1, 8, 8), "text": torch.randint(3, 9, (n, 4))},
                {"text": torch.arange(4) < torch.arange(n)[:, None] % 4 + 1},
            ),
            optional="text",
            to="image",
        ),
        "pixel_cnn": Tiny(
            model=lambda: PixelCNN((1, 4, 4), levels=4, width=6, depth=2, classes=3, condition_dropout=0.0),
            batch=lambda n: Batch({"image": torch.rand(n, 1, 4, 4), "label": torch.arange(n) % 3}),
            optional="label",  # a picture is read as whole numbers, which pass no gradient on
            to="image",
        ),
        "glow": Tiny(
            model=tiny_glow,
            batch=lambda n: Batch({"image": torch.rand(n, 1, 8, 8), "label": torch.arange(n) % 3}),
            optional="label",  # a picture is rounded to its levels, so that its values get no gradient
            to="image",
        ),
        "flow": Tiny(
            model=lambda: Flow(shape=[4], transforms=2, hidden=8, bins=3, classes=3, condition_dropout=0.0),
            batch=lambda n: Batch({"vector": torch.randn(n, 4), "label": torch.arange(n) % 3}),
            optional="vector",
            to="vector",
        ),
        "vae": Tiny(
            model=tiny_vae,
            batch=lambda n: Batch({"image": torch.rand(n, 1, 8, 8), "label": torch.arange(n) % 3}),
            optional="image",
            to="image",
        ),
        "sentence_vae": Tiny(
            model=tiny_sentence_vae,
            batch=lambda n: Batch(
                {"text": torch.randint(3, 9, (n, 4)), "label": torch.arange(n) % 3},
                {"text": torch.arange(4) < torch.arange(n)[:, None] % 4 + 1},
            ),
            optional="text",
            to="text",
        ),
        "multimodal_vae": Tiny(
            model=tiny_multimodal_vae,
            batch=lambda n: Batch(
                {"image": torch.rand(n, 1, 8, 8), "text": torch.randint(3, 9, (n, 4)), "vector": torch.randn(n, 5)},
                {"text": torch.arange(4) < torch.arange(n)[:, None] % 4 + 1},
            ),
            optional="image",
            to="text",
        ),
    }


def tiny_discrete_vae() -> DiscreteVAE:
    """One whose p(x | z) does not depend on z, as `tiny_multimodal_vae`, and whose codes do not move in training."""
    model = DiscreteVAE(**TINY_CODES, quantizer="gumbel", kl_steps=0)
    torch.nn.init.zeros_(model.codebook.weight)
    return model


def tiny_glow() -> Glow:
    """One whose first batch, which sets its actnorms, is over, and whose levels are too many for their noise to matter."""
    model = Glow([1, 8, 8], levels=2**30, scales=2, depth=1, width=8, classes=3, condition_dropout=0.0)
    model.losses(Batch({"image": torch.rand(8, 1, 8, 8)}))
    return model


def tiny_text_to_image() -> TextToImage:
    """One with the codes of an untrained VAE."""
    model = TextToImage(TINY_CODES, vocabulary=9, text_length=4, end=2, dim=8, depth=1, heads=2)
    model.take_codes(DiscreteVAE(**TINY_CODES))
    return model


TINY_REDESCRIBER = {"encoder": {"width": 4, "dim": 8}, "decoder": {"dim": 8, "depth": 1, "heads": 2}}


def tiny_mirror_gan() -> MirrorGAN:
    """One whose pictures do not depend on z, as `tiny_multimodal_vae`."""
    text, widths = {"dim": 8, "depth": 1, "heads": 2}, {"width": 4, "critic_width": 4, "noise": 3, "condition": 4}
    model = MirrorGAN([4, 8], 1, 9, 5, text, augmentation=0.0, redescriber=TINY_REDESCRIBER, **widths)
    torch.nn.init.zeros_(model.generator.mapping.weight[:, :3])
    return model


def tiny_gan() -> GAN:
    """One whose pictures do not depend on z, as `tiny_multimodal_vae`, and that hides no label."""
    model = GAN([1, 8, 8], classes=3, condition_dropout=0.0, noise=3, width=4, depth=1)
    torch.nn.init.zeros_(model.generator.expand.weight[:, :3])
    return model


def tiny_aligned(sentences: str = "") -> Aligned:
    """One with a trained encoder of pictures."""
    encoder = {"encoder": "test_convnext", "weights": None, "trained_encoder": True, "size": 32, "colours": 2}
    return Aligned("tiny", "fp32", **encoder, dim=4, width=8, text_width=8, sentences=sentences)


def tiny_multimodal_vae() -> MultimodalVAE:
    """One of three modalities whose p(x | z) do not depend on z: its loss is the same whatever noise a batch draws."""
    text = {"dim": 8, "depth": 1, "heads": 2}
    model = MultimodalVAE(
        {
            "image": {"kind": "image", "shape": [1, 8, 8], "encoder": {"dim": 8, "width": 4}, "decoder": {"width": 4}},
            "text": {"kind": "text", "shape": [9, 5], "encoder": text, "decoder": {**text, "stop": 2}},
            "vector": {"kind": "vector", "shape": [5]},
        },
        latent_dim=3,
        objective="mvae",
    )
    for layer in (model.decoders["image"].deconvolution.expand, model.decoders["text"].prefix):
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(model.decoders["vector"].layers[0].weight)
    return model


def tiny_vae() -> VAE:
    """One whose p(x | z) does not depend on z, as `tiny_multimodal_vae`."""
    model = VAE("image", "image", [1, 8, 8], 3, encoder={"dim": 8, "width": 4}, decoder={"width": 4})
    torch.nn.init.zeros_(model.decoder.deconvolution.expand.weight)
    return model


def tiny_sentence_vae() -> SentenceVAE:
    """One whose p(text | z) does not depend on z, as `tiny_multimodal_vae`."""
    small = {"dim": 8, "depth": 1, "heads": 2}
    model = SentenceVAE(9, length=5, latent_dim=3, word_dropout=0.3, free_bits=1e-4, encoder=small, decoder=small)
    torch.nn.init.zeros_(model.decoder.prefix.weight)
    return model
