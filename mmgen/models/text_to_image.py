"""Text to image by one causal transformer over the tokens of a text and the codes of its picture, in either order."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.data.batch import Batch, placed
from mmgen.data.image import upper_part
from mmgen.data.processors import Source
from mmgen.errors import UserError, check_at_least
from mmgen.modalities.frozen import freeze
from mmgen.modalities.kinds import check_values
from mmgen.modalities.layers.autoregressive import CausalTransformer, sample
from mmgen.modalities.layers.transformer import Cache
from mmgen.models.base import REST, Losses, Model, check_generate
from mmgen.models.discrete_vae import DiscreteVAE
from mmgen.ranges import AtLeast, Share, checked
from mmgen.storage import check_digest, digest, fingerprint

PARTS = ("text", "image")


class TextThenImage(CausalTransformer):
    """`CausalTransformer` over texts and pictures: a start token, a text padded to its full length, and a grid of codes.

    The vocabulary is the text's tokens, then the codes, then the start and the padding. Beside rotary positions,
    each cell of the grid has learned vectors of its row and column.

    Args:
        words: number v of text tokens.
        codes: number K of codes.
        length: most tokens t of a text, end included.
        grid: (h', w'), n cells of a picture.
        dim: width d.
        depth, heads, dropout: settings of the layers.

    >>> model = TextThenImage(10, 16, 3, (2, 2), dim=8, depth=1, heads=2)
    >>> model.text, model.codes, model.start, model.padding
    (slice(0, 10, None), slice(10, 26, None), 26, 27)
    """

    def __init__(
        self,
        words: int,
        codes: int,
        length: int,
        grid: tuple[int, int],
        dim: int,
        depth: int,
        heads: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(words + codes + 2, dim, depth, heads, dropout=dropout)
        self.text, self.codes = slice(0, words), slice(words, words + codes)
        self.start, self.padding = words + codes, words + codes + 1
        self.text_length, self.cells = length, grid[0] * grid[1]
        self.rows, self.columns = (nn.Parameter(0.02 * torch.randn(side, dim)) for side in grid)

    def features(
        self,
        inputs: Tensor,
        prefix: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        first: str = "text",
    ) -> Tensor:
        """`CausalTransformer.features` with row and column vectors: inputs (b, t) or (b, t, d) -> (b, t, d).

        ``first`` names the first part of the sequence, "text" or "image".
        """
        x = inputs if inputs.is_floating_point() else self.embed(inputs)  # (b, t, d)
        before = 1 + (self.text_length if first == "text" else 0)
        past = 0 if cache is None else cache.length
        low, high = max(past, before), min(past + x.shape[1], before + self.cells)  # range of x in the picture
        if low < high:
            cells = (self.rows[:, None] + self.columns).flatten(0, 1)[low - before : high - before]  # (m, d)
            x = x + F.pad(cells, (0, 0, low - past, past + x.shape[1] - high)).to(x.dtype)
        return super().features(x, prefix, mask, cache)


class PictureFirst:
    """A `TextThenImage` with pictures before texts, for use as a transformer in `sample`."""

    def __init__(self, transformer: TextThenImage) -> None:
        self.embed, self.logits = transformer.embed, transformer.logits
        self.features = partial(transformer.features, first="image")


class TextToImage(Model):
    """p(text, z) = p(text) p(z | text), z the codes of a picture by a frozen discrete VAE, token by token.

    The loss, over items with both, is ``-w_t log p(text) - w_i log p(z | text)``, summed over tokens, with a softmax over the
    tokens of each kind. Some training batches are in the other order, ``-w_i log p(z) - log p(text | z)``, so that the model
    can caption; and some texts are dropped, for guidance.

    Args:
        discrete_vae: arguments of the `DiscreteVAE`; `take_codes` copies its weights.
        vocabulary: number v of text tokens.
        text_length: most tokens of a text, end included.
        end: token that ends a text.
        dim: width of the transformer.
        depth: layers of the transformer.
        heads: attention heads.
        dropout: dropout rate.
        drop_text: share of texts dropped in training, 0 to below 1.
        image_first: share of the batches with pictures first.
        text_weight: weight w_t of the text's tokens in the loss.
        image_weight: weight w_i of the picture's codes.

    Raises:
        UserError: a setting out of range; in use, no item with both, an empty or too long text, a picture of
            another size, or a model without `take_codes`.

    Source: Ramesh et al. 2021, DALL-E, arXiv 2102.12092; guidance as in Ho and Salimans 2022, arXiv 2207.12598.
        Differences: weights apply to sums over tokens (there to means, 1 : 7), attention is dense, there is one padding token,
        positions are rotary with learned rows and columns, and captioning is trained too.

    >>> vae = DiscreteVAE((1, 8, 8), codes=16, dim=4, width=16, halvings=1)
    >>> config = {"shape": [1, 8, 8], "codes": 16, "dim": 4, "width": 16, "halvings": 1}
    >>> model = TextToImage(config, vocabulary=10, text_length=3, end=2, dim=16, depth=1, heads=2)
    >>> model.take_codes(vae)
    >>> batch = Batch({"text": torch.tensor([[5, 2]]), "image": torch.rand(1, 1, 8, 8)})
    >>> sorted(model.losses(batch)), model.generate(batch.keep(["text"]), "image", n=2).shape
    (['image', 'text'], torch.Size([2, 1, 8, 8]))
    """

    name = "text_to_image"
    sequences = ("text",)
    from_prior = True

    @checked
    def __init__(
        self,
        discrete_vae: dict[str, Any],
        vocabulary: int,
        text_length: Annotated[int, AtLeast(2)],
        end: int,
        dim: Annotated[int, AtLeast(1)] = 256,
        depth: Annotated[int, AtLeast(1)] = 6,
        heads: Annotated[int, AtLeast(1)] = 8,
        dropout: Annotated[float, Share()] = 0.1,
        drop_text: Annotated[float, Share()] = 0.1,
        image_first: Annotated[float, Share()] = 0.1,
        text_weight: Annotated[float, AtLeast(0)] = 0.1,
        image_weight: Annotated[float, AtLeast(0)] = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= end < vocabulary:
            fix = "give the tokenizer's EOS"
            raise UserError("end", got=end, expected=f"a token, 0 to {vocabulary - 1}", fix=fix)
        self.end, self.text_length = end, text_length
        self.drop_text, self.image_first, self.text_weight, self.image_weight = (
            drop_text,
            image_first,
            text_weight,
            image_weight,
        )
        self.discrete_vae = freeze(DiscreteVAE(**discrete_vae), stored=True)
        codes, grid = self.discrete_vae.k, self.discrete_vae.grid
        self.transformer = TextThenImage(vocabulary, codes, text_length, grid, dim, depth, heads, dropout)
        self.register_buffer("codes_taken", torch.zeros(32, dtype=torch.uint8))  # digest of the VAE of its training

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of `generate`."""
        return PARTS

    def take_codes(self, vae: DiscreteVAE) -> None:
        """Copy the weights of the discrete VAE whose codes are modelled.

        Raises:
            UserError: it has other arguments.
        """
        own, given = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (self.discrete_vae, vae))
        differing = sorted(k for k in own.keys() | given.keys() if own.get(k) != given.get(k))
        if differing:
            key = differing[0]
            got, expected = f"{key} of shape {given.get(key)}", f"{own.get(key)}"
            fix = "give text_to_image the arguments of that VAE"
            raise UserError("discrete VAE", got=got, expected=expected, fix=fix)
        self.discrete_vae.load_state_dict(vae.state_dict())
        self.codes_taken.copy_(digest(fingerprint(self.discrete_vae)))

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with both."""
        return {REST: batch.having(*PARTS)}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The weighted terms ``text`` and ``image``, over the items with both."""
        there = self.usable(batch)[REST]
        if not there.any():
            return self.zero_losses(*PARTS)
        text, codes = self._text(batch.items(there)), self._codes(batch["image"][there])  # (b', t), (b', n)
        first = "image" if self.training and torch.rand(()) < self.image_first else "text"
        kept = None
        if self.training and first == "text":
            kept = torch.rand(len(text), 1, device=text.device) >= self.drop_text  # (b', 1)
            text = torch.where(kept, text, self._no_text(len(text)))
        found = self._log_probs(text, codes, first)
        if kept is not None:
            found["text"] = found["text"] * kept[:, 0]
        weights = {"text": self.text_weight if first == "text" else 1.0, "image": self.image_weight}
        return Losses({name: -weights[name] * found[name].mean() for name in PARTS})

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """Exact log p(z | text) of the codes of pictures, in nats; for a missing text, log p(z).

        Returns:
            (b,); 0 for items without a picture.
        """
        there = batch.observed("image")
        found = self._log_probs(self._prompts(batch)[there], self._codes(batch["image"][there]), "text")["image"]
        return placed(found, there)

    @torch.no_grad()
    def generate(
        self,
        given: Batch,
        to: str,
        n: int = 1,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        rerank: Callable[[Tensor, Batch], Tensor] | None = None,
        candidates: int = 0,
        cached: bool = True,
    ) -> Tensor | list[str]:
        """Pictures from texts, completions of pictures from their upper part, or texts from pictures.

        Args:
            given: ``text`` (b, t) ids, or none for unconditional pictures; ``image`` (b, c, h, w), or (b, c, h0, w) with
                h0 < h to complete it. The codes of an upper part are computed with its last row repeated below; near the
                cut, and everywhere for a small part, they differ from those of the whole picture.
            to: "image" or "text".
            n: results per item.
            generator: makes the draws reproducible.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: keep the k likeliest tokens; 0 all.
            top_p: keep the likeliest tokens of this total probability.
            guidance: classifier-free guidance scale of pictures; 1 disables it.
            rerank: (pictures (b m, c, h, w), ``given``) -> scores (b m,), such as `similarity` in a shared space; the n
                pictures of the highest scores are returned per item, highest first.
            candidates: pictures drawn for each returned one with ``rerank``; 0: 4.
            cached: cache keys and values; slower without, with the same result.

        Returns:
            (b n, c, h, w) in [0, 1], grouped by item; or b n texts.
        """
        check_generate(to, n, PARTS)
        check_at_least("top_k", top_k, 0)
        self._check_codes()
        options = {
            "temperature": temperature,
            "top_k": top_k or None,
            "top_p": top_p,
            "generator": generator,
            "cached": cached,
        }
        if to == "text":
            if guidance != 1.0 or rerank is not None:
                what, got = ("guidance", guidance) if guidance != 1.0 else ("rerank", "a scorer")
                raise UserError(what, got=f"{got} with --to text", expected="an image as --to", fix="leave it out")
            return self._captions(given, n, options)
        if rerank is None:
            if candidates:
                raise UserError("candidates", got=f"{candidates} and no rerank", expected="both", fix="add --rerank RUN")
            return self._pictures(given, n, guidance, options)
        candidates = candidates or 4
        check_at_least("candidates", candidates, 1)
        if not given.having("text").all():
            raise UserError("rerank", got="an item without text", expected="a text to compare with", fix="add --text")
        drawn = self._pictures(given, n * candidates, guidance, options)  # (b n m, c, h, w)
        scores = rerank(drawn, given).reshape(given.size, -1)  # (b, n m)
        best = scores.topk(n, 1).indices + n * candidates * torch.arange(given.size, device=scores.device)[:, None]
        return drawn[best.flatten()]

    def similarity(self, aligned: Model, pictures: Tensor, given: Batch) -> Tensor:
        """Cosine similarity of pictures to their texts in the space of an `mmgen.models.aligned.Aligned`.

        Args:
            aligned: a model of pictures and texts.
            pictures: (b n, c, h, w) in [0, 1], grouped by item.
            given: ``text`` of b items.

        Returns:
            (b n,) cosines.
        """
        aligned = aligned.to(pictures.device)
        decode, word = self.processors["image"].decode, self.processors["text"].decode
        seen = aligned.points([decode(x) for x in pictures], "image")  # (b n, s)
        texts = aligned.points([word(ids[mask]) for ids, mask in zip(given["text"], given.masks["text"])], "text")  # (b, s)
        return (seen.unflatten(0, (len(texts), -1)) * texts[:, None]).sum(-1).flatten()

    def upper_part(self, source: Source) -> Tensor:
        """The upper part of a picture, to be completed: (c, h0, w), h0 whole rows of cells.

        Raises:
            UserError: its width is not that of the model, or its height not a smaller multiple of a cell.
        """
        cell = self.discrete_vae.shape[1] // self.discrete_vae.grid[0]
        return upper_part(source, self.processors["image"], self.discrete_vae.shape, cell)

    def _pictures(self, given: Batch, n: int, guidance: float, options: dict[str, Any]) -> Tensor:
        if guidance != 1.0 and not given.having("text").any():
            raise UserError("guidance", got=f"{guidance:g} without a text", expected="a text to follow", fix="add --text")
        model, prompt = self.transformer, self._prompts(given).repeat_interleave(n, 0)  # (b n, t)
        start = prompt.new_full((len(prompt), 1), model.start)
        known = prompt.new_zeros(len(prompt), 0)  # codes of the upper part, (b n, m)
        if (there := given.having("image")).any():
            if not there.all():
                got, fix = "some items with an upper part and some without", "complete them separately"
                raise UserError("image", got=got, expected="one for all items", fix=fix)
            known = self._known(given["image"]).repeat_interleave(n, 0)
        sequence = torch.cat([start, prompt, known + model.codes.start], 1)
        rest, free = model.cells - known.shape[1], None
        if guidance != 1.0:
            free = torch.cat([start, self._no_text(len(prompt)), known + model.codes.start], 1)
        drawn = sample(model, sequence, rest, guidance=guidance, unconditional=free, tokens=model.codes, **options)
        codes = torch.cat([known, drawn - model.codes.start], 1).unflatten(1, self.discrete_vae.grid)  # (b n, h', w')
        return self.discrete_vae.decode(codes).mean.clamp(0, 1)

    def _captions(self, given: Batch, n: int, options: dict[str, Any]) -> list[str]:
        if not given.having("image").all():
            raise UserError("image", got="an item without it", expected="a picture for each text", fix="add --image FILE")
        if given.having("text").any():
            raise UserError("text", got="one with a picture to describe", expected="none", fix="leave it out")
        model, codes = self.transformer, self._codes(given["image"]).repeat_interleave(n, 0)  # (b n, n')
        prompt = torch.cat([codes.new_full((len(codes), 1), model.start), codes + model.codes.start], 1)
        options |= {"tokens": model.text, "stop": self.end, "pad": self.end}
        ids = sample(PictureFirst(model), prompt, self.text_length, **options)  # type: ignore[arg-type]  # (b n, t)
        return [self.processors["text"].decode(text) for text in ids]

    def _log_probs(self, text: Tensor, codes: Tensor, first: str) -> dict[str, Tensor]:
        """log p of texts (b, t) and codes (b, n), each given the preceding part: (b,) both."""
        model, start = self.transformer, text.new_full((len(text), 1), self.transformer.start)
        parts = {"text": text, "image": codes + model.codes.start}
        order = [first, *(name for name in PARTS if name != first)]
        sequence = torch.cat([start, *(parts[name] for name in order)], 1)
        features = model.features(sequence[:, :-1], first=first)  # (b, t + n, d)
        found, at = {}, 0
        for name in order:
            of = model.text if name == "text" else model.codes
            logits = model.logits(features[:, at : at + parts[name].shape[1]], of).float()  # (b, t or n, v or K)
            wanted, at = parts[name] - of.start, at + parts[name].shape[1]
            if name == "text":
                wanted = wanted.masked_fill(text == model.padding, -100)  # ignored by F.cross_entropy
            found[name] = -F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(1)
        return found

    def _prompts(self, batch: Batch) -> Tensor:
        """The texts, with empty ones for missing, (b, t)."""
        nothing = self._no_text(batch.size)
        there = batch.having("text")
        if not there.any():
            return nothing
        return nothing.masked_scatter(there[:, None], self._text(batch.items(there)))

    def _text(self, batch: Batch) -> Tensor:
        """The texts padded to their full length, (b, t)."""
        ids = batch["text"]
        mask = batch.masks.get("text", torch.ones_like(ids, dtype=torch.bool))
        lengths = mask.sum(1)
        if (lengths == 0).any():
            raise UserError("text", got="no tokens", expected="at least one", fix="write what the picture shows")
        if lengths.max() > self.text_length:
            expected, fix = f"at most {self.text_length}, the end included", "shorten the text"
            raise UserError("text", got=f"{lengths.max().item()} tokens", expected=expected, fix=fix)
        ids = ids.masked_fill(~mask, self.transformer.padding)[:, : self.text_length]
        return F.pad(ids, (0, self.text_length - ids.shape[1]), value=self.transformer.padding)

    def _no_text(self, rows: int) -> Tensor:
        """Empty texts, (rows, t)."""
        ids = torch.full((rows, self.text_length), self.transformer.padding, device=self.step.device)
        ids[:, 0] = self.end
        return ids

    def _codes(self, x: Tensor) -> Tensor:
        """The codes of pictures: x (b, c, h, w) -> (b, n)."""
        self._check_codes()
        check_values("image", x, "image", self.discrete_vae.shape, self.discrete_vae.likelihood)
        return self.discrete_vae.codes(x).flatten(1)

    def _known(self, part: Tensor) -> Tensor:
        """The codes of the upper part of pictures, with the last row repeated below: (b, c, h0, w) -> (b, m)."""
        (channels, height, width), (rows, columns) = self.discrete_vae.shape, self.discrete_vae.grid
        cell, h0 = height // rows, part.shape[2]
        if tuple(part.shape[1:]) != (channels, h0, width) or h0 % cell or not 0 < h0 < height:
            expected = f"({channels}, {cell} to {height - cell} in steps of {cell}, {width})"
            fix = "cut it to this size; `mmgen generate` takes its file by --from"
            raise UserError("image", got=f"shape {tuple(part.shape[1:])}", expected=expected, fix=fix)
        whole = F.pad(part, (0, 0, 0, height - h0), mode="replicate")
        return self._codes(whole)[:, : h0 // cell * columns]

    def _check_codes(self) -> None:
        if not self.codes_taken.any():
            fix = "call take_codes(a trained DiscreteVAE)"
            raise UserError("text_to_image", got="no code book", expected="that of a discrete VAE", fix=fix)

    def load_own_state(self, state: dict[str, Tensor], source: str = "weights") -> None:
        """Load weights and check that the VAE is the one of the transformer's training.

        Raises:
            UserError: it is another.
        """
        super().load_own_state(state, source)
        if self.codes_taken.any():
            own = digest(fingerprint(self.discrete_vae))
            check_digest(f"discrete VAE of {source}", self.codes_taken, own, "", "take both from one run")
