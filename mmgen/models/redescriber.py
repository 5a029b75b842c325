"""Small captioner trained from scratch, p(text | picture), which scores generated pictures by their prompt."""

import inspect
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from mmgen.data.batch import Batch, placed
from mmgen.distributions import AutoregressiveCategorical
from mmgen.errors import UserError, check_one_of
from mmgen.modalities.kinds import OWN, check_values
from mmgen.modalities.layers.convolution import ConvEncoder
from mmgen.modalities.text import TextDecoder
from mmgen.models.base import REST, Losses, Model, check_generate
from mmgen.ranges import AtLeast, Share, checked


class Redescriber(Model):
    """p(text | x) = prod_i p(text_i | text_<i, f(x)): the features of a picture are the prefix of a causal transformer.

    Training pictures are shifted by a few pixels and noisy, see `disturbed`. The gradient with respect to a picture, which
    `mmgen.models.mirror_gan.MirrorGAN` follows, then changes visible content; that of a captioner of clean pictures changes
    textures that no other network sees. Items without picture or text are ignored.

    Args:
        shape: (c, h, w) of a picture, values from -1 (black) to 1 (white).
        vocabulary: number of tokens.
        length: longest text in tokens, ``stop`` included.
        stop: token that ends a text, the tokenizer's EOS.
        noise: standard deviation of the noise added in training.
        shift: largest shift in training as a share of the side, see `shifted`.
        encoder: settings of `ConvEncoder`.
        decoder: settings of `TextDecoder`.

    Raises:
        UserError: a number out of its range or an unknown setting; in use, no item with both, an empty or too long text,
            or values that are no pictures or tokens.

    Source: Qiao et al. 2019, MirrorGAN, arXiv 1903.05854, section 3.3 (STREAM), with a small convolutional network instead
        of one pretrained on photographs, and a transformer instead of the LSTM.

    >>> model = Redescriber((1, 8, 8), vocabulary=9, length=5, encoder={"width": 4, "dim": 8}, decoder={"dim": 8, "heads": 2})
    >>> model.describe(torch.zeros(2, 1, 8, 8)).log_prob(torch.tensor([[5, 2], [7, 2]])).shape
    torch.Size([2])
    """

    name = "redescriber"
    sequences = ("text",)

    @checked
    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        vocabulary: Annotated[int, AtLeast(1)] = 1024,
        length: Annotated[int, AtLeast(1)] = 24,
        stop: int = 2,
        noise: Annotated[float, AtLeast(0)] = 0.4,
        shift: Annotated[float, Share()] = 0.0625,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= stop < vocabulary:
            raise UserError("stop", got=stop, expected=f"a token, 0 to {vocabulary - 1}", fix="see the tokenizer")
        for what, settings, network in (("encoder", encoder, ConvEncoder), ("decoder", decoder, TextDecoder)):
            known = [name for name in inspect.signature(network).parameters if name not in (*OWN, "stop")]
            for key in settings or {}:
                check_one_of(f"{what}.{key}", key, known)
        self.shape, self.vocabulary, self.length = tuple(shape), vocabulary, length
        self.noise, self.shift = noise, shift
        self.encoder = ConvEncoder(self.shape, **(encoder or {}))  # type: ignore[arg-type]
        self.decoder = TextDecoder(self.encoder.dim, vocabulary, length, stop, **(decoder or {}))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that it describes."""
        return ("image",)

    def describe(self, images: Tensor) -> AutoregressiveCategorical:
        """p(text | picture) of pictures (b, c, h, w), batch shape (b,)."""
        return self.decoder(self.encoder(images))

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with both."""
        return {REST: batch.having("image", "text")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """``-log p(text | x)``, summed over tokens, averaged over the items with both."""
        check_one_of("phase", phase, self.phases)
        if not self.usable(batch)[REST].any():
            return self.zero_losses("caption")
        x, ids, mask, _ = observed(batch, self.shape, self.vocabulary, self.length)
        x = self.disturbed(x) if self.training else x
        return Losses(caption=-self.describe(x).log_prob(ids, mask).mean())

    def disturbed(self, images: Tensor) -> Tensor:
        """Pictures (b, c, h, w), `shifted` and with Gaussian noise.

        Source: Cohen et al. 2019, arXiv 1902.02918, randomised smoothing; Kaur et al. 2019, arXiv 1910.08640, on its
            gradients.
        """
        return shifted(images, self.shift) + self.noise * torch.randn_like(images)

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """Exact log p(text | x), (b,); 0 for items without both."""
        x, ids, mask, there = observed(batch, self.shape, self.vocabulary, self.length)
        return placed(self.describe(x).log_prob(ids, mask), there)

    @torch.no_grad()
    def generate(
        self,
        given: Batch,
        to: str = "text",
        n: int = 1,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Tensor:
        """``n`` captions per picture, token ids (b * n, length), grouped by picture.

        Raises:
            UserError: another ``to``, a number out of its range, or an item without a picture.
        """
        check_generate(to, n, ["text"])
        if not given.having("image").all():
            raise UserError("image", got="an item without it", expected="one an item", fix="give a picture for each")
        check_values("image", given["image"], "image", self.shape)
        p = self.describe(given["image"].repeat_interleave(n, 0))
        return p.sample((), generator, temperature=temperature, top_p=top_p)


def observed(batch: Batch, shape: Sequence[int], vocabulary: int, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures (b', c, h, w), ids and mask (b', t) of the items with both, and their presence mask (b,).

    Raises:
        UserError: no item has both; an empty or too long text; values that are no pictures or tokens.
    """
    there = batch.observed("image", "text")  # (b,)
    x = batch["image"][there]
    check_values("image", x, "image", shape)
    return x, *read_texts(batch, there, vocabulary, length), there


def read_texts(batch: Batch, there: Tensor, vocabulary: int, length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (b', t) of the texts at the mask ``there`` (b,), t at most ``length``.

    Raises:
        UserError: an empty or too long text, or ids outside the vocabulary.
    """
    ids, mask = batch["text"][there], batch.masks["text"][there]
    sizes = mask.sum(1)
    for wrong, expected, fix in (
        (sizes == 0, "at least one token", "give it words, or mark it as missing"),
        (sizes > length, f"at most {length}", "shorten it, or train with a greater length"),
    ):
        if wrong.any():
            item = there.nonzero()[wrong.nonzero()[0, 0], 0].item()
            raise UserError(f"text of item {item}", got=f"{sizes[wrong][0].item()} tokens", expected=expected, fix=fix)
    used = mask.any(0)  # drop columns that only other items fill
    ids, mask = ids[:, used], mask[:, used]
    check_values("text", ids, "text", [vocabulary])
    return ids, mask


def shifted(images: Tensor, share: float) -> Tensor:
    """Pictures (b, c, h, w) shifted by one random offset, at most ``share`` of the side; edge pixels are repeated."""
    most = round(share * images.shape[-1])
    if most == 0:
        return images
    down, across = torch.randint(2 * most + 1, (2,)).tolist()
    padded = torch.nn.functional.pad(images, (most,) * 4, mode="replicate")
    return padded[..., down : down + images.shape[-2], across : across + images.shape[-1]]
