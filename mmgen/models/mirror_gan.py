"""MirrorGAN: pictures drawn from a text in stages with attention to its words, and re-captioned for the loss."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mmgen.data.batch import Batch
from mmgen.errors import UserError, check_one_of, check_sizes
from mmgen.latents.divergences import kl
from mmgen.latents.spaces import GaussianHead, StandardPrior, rsample
from mmgen.modalities.frozen import freeze
from mmgen.modalities.layers.convolution import Residual, channels, halvings
from mmgen.modalities.text import TextEncoder
from mmgen.models.base import REST, Losses, Model, check_generate
from mmgen.models.redescriber import Redescriber, observed, read_texts, shifted
from mmgen.ranges import AtLeast, Share, checked


class MirrorGAN(Model):
    """x = G(z, text), z ~ N(0, 1), trained against discriminators of pictures and pairs, and by re-captioning.

    Each stage draws the whole picture, at twice the size of the one before: every position of its feature map attends to the
    words and the sentence, see `WordAttention` and `SentenceAttention`. Each size has a discriminator with two logits, u for
    the picture and c for the pair. With s(a) = log(1 + e^a), x' generated and t' the other texts, a step minimises in turn

        discriminator: sum over stages of  s(-u(x)) + s(u(x')) + s(-c(x, t)) + (s(c(x', t)) + s(c(x, t'))) / 2
                       + r1 / 2 |d(u(x) + c(x, t)) / dx|^2
        generator:     sum over stages of  s(-u(x')) + s(-c(x', t)),  + redescription * -log p(t | x' of the last stage)
                       + augmentation * KL(q(code | t) || N(0, 1))

    where p(t | x) is a frozen `Redescriber`, which in training reads x' with the disturbances of its own training. One stage
    without it is a plain conditional GAN. Pixels range from -1 to 1. Items without picture or text are ignored.

    Args:
        sizes: side of each stage's picture, each twice the one before.
        channels: channels of a picture, 3 or 1.
        vocabulary: number of tokens.
        length: longest text in tokens.
        text: settings of the two `TextEncoder`s, of generator and discriminators.
        noise: size of z.
        condition: size of the sentence code.
        width: channels of the generator's last maps; doubled for each halving of the size, up to 8 times as many.
        critic_width: the same for the discriminators.
        attention: attend to words and sentence between stages.
        augmentation: weight of the KL of conditioning augmentation, which draws the code; 0: a deterministic code. The KL, in
            nats, bounds the information of the code about the text: many texts need more than a few nats.
        r1: weight of the gradient penalty.
        r1_every: apply it once in this many steps, that many times as strong.
        shift: largest shift of the discriminators' inputs as a share of the side, see `shifted`.
        redescription: weight of the re-captioning loss; 0 for none.
        redescriber: settings of the `Redescriber` other than the data's shape; it is part of the model, with weights set by
            `mirror`.

    Raises:
        UserError: sizes that do not double, a number out of its range, or a redescription without a redescriber; in use, no
            item with both, an empty or too long prompt, or another ``to``.

    Source: Qiao et al. 2019, MirrorGAN, arXiv 1903.05854, section 3, on Xu et al. 2018, AttnGAN, arXiv 1711.10485. Differs in
        that the text encoders are trained too; the code scales and shifts each map instead of batch normalisation; the
        logit of a pair is a projection (Miyato and Koyama 2018, arXiv 1802.05637), so that all mismatched pairs of a batch
        are negatives; and the discriminators have the gradient penalty of Mescheder et al. 2018, arXiv 1801.04406, for local
        convergence, instead of norms.

    >>> model = MirrorGAN([8, 16], vocabulary=9, text={"dim": 8, "heads": 2}, width=8, critic_width=8, redescription=0.0)
    >>> prompt = Batch({"text": torch.tensor([[5, 2]])}, {"text": torch.ones(1, 2, dtype=torch.bool)})
    >>> model.generate(prompt, "image", n=3).shape
    torch.Size([3, 3, 16, 16])
    """

    name = "mirror_gan"
    phases = ("discriminator", "generator")
    adversary = "discriminator"
    sequences = ("text",)

    @checked
    def __init__(
        self,
        sizes: Sequence[int] = (16, 32),
        channels: int = 3,
        vocabulary: Annotated[int, AtLeast(1)] = 1024,
        length: Annotated[int, AtLeast(1)] = 24,
        text: dict[str, Any] | None = None,
        noise: Annotated[int, AtLeast(1)] = 32,
        condition: Annotated[int, AtLeast(1)] = 64,
        width: Annotated[int, AtLeast(1)] = 32,
        critic_width: Annotated[int, AtLeast(1)] = 32,
        attention: bool = True,
        augmentation: Annotated[float, AtLeast(0)] = 0.01,
        r1: Annotated[float, AtLeast(0)] = 1.0,
        r1_every: Annotated[int, AtLeast(1)] = 4,
        shift: Annotated[float, Share()] = 0.125,
        redescription: Annotated[float, AtLeast(0)] = 0.5,
        redescriber: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        sizes = check_sizes("sizes", sizes)
        if any(after != 2 * before for before, after in pairwise(sizes)):
            raise UserError("sizes", got=sizes, expected="each twice the one before", fix="write sizes=[16,32] for example")
        self.shape, self.vocabulary, self.length = (channels, sizes[-1], sizes[-1]), vocabulary, length
        self.r1, self.r1_every, self.shift = r1, r1_every, shift
        self.augmentation, self.redescription = augmentation, redescription
        self.text = TextEncoder(vocabulary, **(text or {}))
        self.code = (GaussianHead if augmentation else nn.Linear)(self.text.dim, condition)
        self.prior = StandardPrior(noise)
        self.generator = Generator(sizes, channels, self.text.dim, noise, condition, width, attention)
        self.discriminator = Discriminator(sizes, channels, TextEncoder(vocabulary, **(text or {})), critic_width)
        self.redescriber = None
        if redescription:
            if redescriber is None:
                fix = "give its settings, or set redescription=0"
                raise UserError("redescriber", got="none", expected="one for the redescription", fix=fix)
            self.redescriber = freeze(Redescriber(self.shape, vocabulary, length, **redescriber), stored=True)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The input of `generate`."""
        return ("text",)

    def mirror(self, trained: Redescriber) -> None:
        """Take the weights of a trained redescriber.

        Raises:
            UserError: it has other settings, or the redescription has no weight.
        """
        if self.redescriber is None:
            fix = "leave it out, or set redescription=0.5"
            raise UserError("redescriber", got="one", expected="none: redescription is 0", fix=fix)
        self.redescriber.load_own_state(trained.own_state(), "redescriber")

    @torch.no_grad()
    def begin_with_words(self, embeddings: Tensor) -> None:
        """Initialise both text encoders with trained token embeddings (v, d), such as a captioner's.

        Raises:
            UserError: another shape.
        """
        for encoder in (self.text, self.discriminator.text):
            if embeddings.shape != encoder.embed.weight.shape:
                got, expected = (f"shape {tuple(x.shape)}" for x in (embeddings, encoder.embed.weight))
                raise UserError("embeddings", got=got, expected=expected, fix="set text.dim to their size")
            encoder.embed.weight.copy_(embeddings)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with both; the wrong pairs of a discriminator are those of its batch."""
        return {REST: batch.having("image", "text")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The terms of one phase over the items with both; in "train", of both phases, named by them.

        The terms of a phase give no gradient to the other phase's parameters.
        """
        check_one_of("phase", phase, ("train", *self.phases))
        if not self.usable(batch)[REST].any():
            return self.zero_losses("unconditional", "conditional")
        x, ids, mask, _ = observed(batch, self.shape, self.vocabulary, self.length)
        terms = {"discriminator": self.discriminator_terms, "generator": self.generator_terms}
        if phase != "train":
            return terms[phase](x, ids, mask)
        return Losses({f"{name}_{key}": value for name, of in terms.items() for key, value in of(x, ids, mask).items()})

    def discriminator_terms(self, x: Tensor, ids: Tensor, mask: Tensor) -> Losses:
        """Loss of the discriminators: pictures (b, c, h, w), ids and mask (b, t)."""
        with torch.no_grad():
            drawn, _ = self.draw(ids, mask)
        sentence = self.discriminator.text(ids, mask)  # (b, d)
        texts = ids.masked_fill(~mask, -1)
        differs = (texts[:, None] != texts).any(2)  # (b, b) True for different texts
        penalised = self.r1 > 0 and int(self.step) % self.r1_every == 0
        sums: dict[str, Any] = {"unconditional": 0.0, "conditional": 0.0, "r1": x.new_zeros(())}
        stages: Any = self.discriminator.stages
        for critic, fake in zip(stages, drawn):
            real = F.adaptive_avg_pool2d(x, fake.shape[-1])
            if penalised and not real.requires_grad:
                real = real.requires_grad_()
            features = critic.features(self._seen(real))
            u, pairs = critic.logits(features, sentence)  # (b,), (b, b)
            c, wrong = pairs.diagonal(), torch.where(differs, F.softplus(pairs), 0.0).sum() / differs.sum().clamp(min=1)
            u_fake, c_fake = critic(self._seen(fake), sentence)
            sums["unconditional"] += F.softplus(-u).mean() + F.softplus(u_fake).mean()
            sums["conditional"] += F.softplus(-c).mean() + (F.softplus(c_fake).mean() + wrong) / 2
            if penalised:
                sums["r1"] = sums["r1"] + self.r1 * self.r1_every / 2 * squared_gradient(u + c, real).mean()
        self.monitored = {"real": (u > 0).float().mean().detach(), "fake": (u_fake > 0).float().mean().detach()}
        return Losses(sums)

    def generator_terms(self, x: Tensor, ids: Tensor, mask: Tensor) -> Losses:
        """Loss of the generator against constant discriminators and redescriber; x is not used."""
        drawn, divergence = self.draw(ids, mask)
        constant = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        seen = [self._seen(fake) for fake in drawn]
        logits = functional_call(self.discriminator, constant, (seen, ids, mask))
        terms = Losses(
            unconditional=sum(F.softplus(-u).mean() for u, _ in logits),  # type: ignore[arg-type]
            conditional=sum(F.softplus(-c).mean() for _, c in logits),  # type: ignore[arg-type]
        )
        if self.augmentation:
            terms["augmentation"] = self.augmentation * divergence.mean()
        if self.redescriber is not None:
            read = self.redescriber.disturbed(drawn[-1]) if self.training else drawn[-1]
            log_prob = self.redescriber.describe(read).log_prob(ids, mask)  # (b,)
            terms["redescription"] = self.redescription * -log_prob.mean()
        self.monitored = {}
        return terms

    def draw(self, ids: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> tuple[list[Tensor], Tensor]:
        """The picture of each stage, (b, c, size, size), and KL(q(code | t) || N(0, 1)) (b,): ids and mask (b, t)."""
        words = self.text.tokens(ids, mask)  # (b, t, d)
        words = torch.where(mask[..., None], words, 0.0)
        sentence = words.sum(1) / mask.sum(1, keepdim=True)  # (b, d)
        z, divergence = rsample(self.prior(), (len(ids),), generator), sentence.new_zeros(len(ids))
        code = self.code(sentence)
        if self.augmentation:
            divergence = kl(code, StandardPrior(code.event_shape[0]).to(z)())
            code = rsample(code, (), generator)
        return self.generator(z.to(words), code.to(words), words, mask), divergence

    @torch.no_grad()
    def generate(self, given: Batch, to: str = "image", n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """``n`` pictures per text, (b * n, c, h, w) from -1 to 1, grouped by text.

        Raises:
            UserError: another ``to``, ``n`` below 1, or a missing, empty or too long text.
        """
        check_generate(to, n, ["image"])
        if not given.having("text").all():
            raise UserError("text", got="an item without it", expected="a prompt for each", fix="add --text PROMPT")
        ids, mask = read_texts(given, given.present["text"], self.vocabulary, self.length)
        return self.draw(ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0), generator)[0][-1]

    def _seen(self, images: Tensor) -> Tensor:
        return shifted(images, self.shift) if self.training else images


def squared_gradient(values: Tensor, x: Tensor) -> Tensor:
    """|d values_i / d x_i|^2 of each item, differentiable: values (b,), x (b, ...) -> (b,)."""
    gradient = torch.autograd.grad(values.sum(), x, create_graph=True)[0]  # (b, ...)
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().flatten(1).sum(1)


class Generator(nn.Module):
    """Network (z, code, words) -> a picture of each size.

    Args:
        sizes, channels, noise, condition, width, attention: see `MirrorGAN`.
        dim: size d of the word features.
    """

    def __init__(
        self, sizes: list[int], channels: int, dim: int, noise: int, condition: int, width: int, attention: bool
    ) -> None:
        super().__init__()
        first = sizes[0]
        while first % 2 == 0 and first > 4:
            first //= 2
        halved = (sizes[-1] // first).bit_length() - 1
        widths = [width * min(2**i, 8) for i in range(halved, -1, -1)]  # of the maps from ``first`` on
        until = (sizes[0] // first).bit_length() - 1  # doublings before the first picture
        self.first = (widths[0], first, first)
        self.mapping = nn.Linear(noise + condition, 2 * condition)
        self.expand = nn.Linear(2 * condition, widths[0] * first**2)
        self.doublings = nn.ModuleList(Doubling(*pair, 2 * condition) for pair in pairwise(widths))
        looks, pictures = widths[until:-1], widths[until:]
        self.looks = nn.ModuleList(Look(w, dim, condition, attention) for w in looks)
        self.pictures = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, w), nn.SiLU(), nn.Conv2d(w, channels, 3, padding=1), nn.Tanh()) for w in pictures
        )

    def forward(self, z: Tensor, code: Tensor, words: Tensor, mask: Tensor) -> list[Tensor]:
        """z (b, noise), code (b, condition), words (b, t, d), mask (b, t) -> [(b, c, size, size)]."""
        style = F.silu(self.mapping(torch.cat([z, code], 1)))  # (b, 2 condition)
        maps = self.expand(style).unflatten(1, self.first)  # (b, w, h, h)
        before = len(self.doublings) - len(self.looks)
        for doubling in self.doublings[:before]:
            maps = doubling(maps, style)
        drawn = [self.pictures[0](maps)]
        for look, doubling, picture in zip(self.looks, self.doublings[before:], self.pictures[1:]):
            maps = doubling(look(maps, code, words, mask), style)
            drawn.append(picture(maps))
        return drawn


class Doubling(nn.Module):
    """Upsampling: a map (b, before, h, w), scaled and shifted by a style (b, s) -> (b, after, 2h, 2w)."""

    def __init__(self, before: int, after: int, style: int) -> None:
        super().__init__()
        self.norm, self.style = nn.GroupNorm(1, before, affine=False), nn.Linear(style, 2 * before)
        # upsample, then convolve: strided transposed convolutions leave a checkerboard pattern
        first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.convolutions = nn.Sequential(first, nn.Upsample(scale_factor=2), nn.SiLU(), second)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Map (b, before, h, w), styled by (b, style), to (b, after, 2 h, 2 w)."""
        scale, move = self.style(style)[..., None, None].chunk(2, 1)  # (b, before, 1, 1) each
        return self.convolutions(F.silu(self.norm(maps) * (1 + scale) + move))


class Look(nn.Module):
    """A stage between two sizes: attention to words and sentence, if any, then residual convolutions."""

    def __init__(self, width: int, dim: int, condition: int, attention: bool) -> None:
        super().__init__()
        self.words = WordAttention(dim, width) if attention else None
        if attention:
            self.sentence, self.merge = SentenceAttention(condition, width), nn.Conv2d(3 * width, width, 1)
        self.think = Residual(width)

    def forward(self, maps: Tensor, code: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """maps (b, w, h, h), code (b, k), words (b, t, d), mask (b, t) -> (b, w, h, h)."""
        if self.words is not None:
            found = [maps, self.words(maps, words, mask)[0], self.sentence(maps, code)[0]]
            maps = maps + self.merge(torch.cat(found, 1))
        return self.think(maps)


class WordAttention(nn.Module):
    """Attention of each position to words: ``sum_i a_ji U e_i`` with ``a_ji = softmax_i(f_j . U e_i / sqrt(w))``.

    Args:
        dim: size d of a word.
        width: channels w of the map.

    Source: Xu et al. 2018, AttnGAN, equation 2; there without the root.

    >>> WordAttention(8, 4)(torch.zeros(2, 4, 3, 3), torch.zeros(2, 5, 8), torch.ones(2, 5).bool())[1].shape
    torch.Size([2, 9, 5])
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, width, bias=False)

    def forward(self, maps: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """maps (b, w, h, h), words (b, t, d), mask (b, t) -> output (b, w, h, h) and weights (b, h h, t)."""
        seen = self.project(words)  # (b, t, w)
        scores = maps.flatten(2).transpose(1, 2) @ seen.transpose(1, 2) / seen.shape[2] ** 0.5  # (b, h h, t)
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        return (weights @ seen).transpose(1, 2).reshape(maps.shape), weights


class SentenceAttention(nn.Module):
    """Attention of each sentence feature to positions: ``a_jk h h V_k c`` with ``a_jk = softmax_j(f_jk V_k c)``.

    Args:
        condition: size of the sentence's code c.
        width: channels w of the map.

    Source: MirrorGAN, equation 4; there without the number of positions h h, which keeps the scale of a sentence with
        uniform attention.

    >>> SentenceAttention(8, 4)(torch.zeros(2, 4, 3, 3), torch.zeros(2, 8))[1].sum(2).tolist()[0]
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(condition, width, bias=False)

    def forward(self, maps: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """maps (b, w, h, h), code (b, condition) -> output (b, w, h, h) and weights (b, w, h h)."""
        seen = self.project(code)[..., None]  # (b, w, 1)
        weights = (maps.flatten(2) * seen).softmax(2)  # (b, w, h h)
        return (weights * weights.shape[2] * seen).reshape(maps.shape), weights


class Critic(nn.Module):
    """The discriminator of one size: convolutions down to 4 pixels, and two logits.

    Args:
        channels, size: shape of a picture.
        dim: size d of a sentence.
        width: channels of the first map.
    """

    def __init__(self, channels_in: int, size: int, dim: int, width: int) -> None:
        super().__init__()
        sides = halvings((size, size))
        widths = channels(width, len(sides))
        layers: list[nn.Module] = [nn.Conv2d(channels_in, width, 3, padding=1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * sides[-1][0] ** 2, dim), nn.LeakyReLU(0.2))
        for layer in self.features:
            if isinstance(layer, nn.Conv2d | nn.Linear):  # no norm keeps the scale of activations
                nn.init.kaiming_normal_(layer.weight, 0.2)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.own, self.project = nn.Linear(dim, 2), nn.Linear(dim, dim, bias=False)

    def logits(self, features: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """u (b,) of each picture and c (b, m) of each pair with a text: features (b, d), sentences (m, d)."""
        u, c = self.own(features).unbind(1)
        return u, c[:, None] + features @ self.project(sentences).T / features.shape[1] ** 0.5

    def forward(self, images: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """u and c, (b,) each, of images (b, c, size, size) paired with sentences (b, d)."""
        u, pairs = self.logits(self.features(images), sentences)
        return u, pairs.diagonal()


class Discriminator(nn.Module):
    """A `Critic` per stage, with their text encoder."""

    def __init__(self, sizes: list[int], channels: int, text: TextEncoder, width: int) -> None:
        super().__init__()
        self.text = text
        self.stages = nn.ModuleList(Critic(channels, size, text.dim, width) for size in sizes)

    def forward(self, images: list[Tensor], ids: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The logits (u, c) of each stage: images [(b, c, size, size)], ids and mask (b, t)."""
        sentence = self.text(ids, mask)  # (b, d)
        return [critic(image, sentence) for critic, image in zip(self.stages, images)]
