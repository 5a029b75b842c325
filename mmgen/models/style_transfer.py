"""Style transfer by a disentangled autoencoder, which encodes the content of a text and decodes it in the other style.

The training texts of two styles are not parallel. Beside the reconstruction of each text in its own style, one of four
objectives trains the transfer: a classifier of outputs, discriminators of decoder states, back-translation, or rewards.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mmgen.data.batch import Batch, placed
from mmgen.data.label import LabelProcessor
from mmgen.data.text import tokens_of, train_word_tokenizer
from mmgen.errors import UserError, check_one_of, check_texts
from mmgen.latents.discrete import reinforce, straight_through
from mmgen.modalities.layers.autoregressive import CausalTransformer, sample
from mmgen.modalities.layers.transformer import Cache
from mmgen.modalities.text import TextEncoder
from mmgen.models.base import REST, Losses, Model
from mmgen.models.edit import AT_ONCE, PLAIN, RARE
from mmgen.models.style.ngrams import style_counts
from mmgen.models.style.spelling import LONGEST, pieces_of, spell_anew
from mmgen.ranges import AtLeast, Share, checked

Objective = Literal["controlled", "cross_aligned", "back_translation", "reinforced"]
PAD, HIDDEN, STOP, UNKNOWN = range(4)  # ids of `train_word_tokenizer`; hidden words are read as <bos>
FEW = 3  # occurrences added if above `RARE`, so that rare words mark no style
LONGER = 5  # most words of a rewrite beyond those of its text


class Content(NamedTuple):
    """The encoded content of b texts of t words, end included."""

    states: Tensor
    """(b, t, d), zero where there is no word."""
    mask: Tensor
    """(b, t) where there is one."""
    words: Tensor
    """(b, v) 1 for the words that were read, 0 for others and for those that were hidden."""

    @property
    def mean(self) -> Tensor:
        """(b, d)."""
        return self.states.sum(1) / self.mask.sum(1, keepdim=True)


class StyleTransfer(Model):
    """p(x | c(x), s): c(x) is the content of a text x, without the words that mark a style; s is its own or the other style.

    All objectives have the reconstruction ``-log p(x | c(x), s)``; in training, c drops words at random. With s' the other
    style, x' the greedy output of p(. | c(x), s') ("reinforced": a sample), and weight w, the phase "generator" adds:

    - "controlled": ``w (-log p(s' | x') + |c(x') - c(x)|^2)``, p(s | x) a classifier of words.
    - "cross_aligned": ``-w log D_s'(h')``, h' the decoder's states along x', which the discriminator of style s' should
      take for those along real texts.
    - "back_translation": ``-log p(x | c(x'), s) + w KL(p(x' | c(x), s') || p(x' | s'))``, p(x | s) a language model of each
      style; the first term has no gradient through x'.
    - "reinforced": ``-log p(x | c(x'), s) - w (R - b) log p(x' | c(x), s')``, ``R = p(s' | x') p(x | c(x'), s)^(1 / length)``,
      b a learned baseline.

    The phase "critic" trains classifier, discriminators or language models on real texts, and discriminators on x' too.

    Args:
        class_names: the two styles.
        vocabulary: number of words v.
        objective: one of the four above.
        dim: width d of the transformers.
        depth: layers of encoder and decoder.
        heads: attention heads.
        dropout: dropout rate.
        noise: share of the words dropped by the encoder in training.
        markers: a word at least this many times as frequent in one style as in the other marks it, and is hidden when a text
            of that style is encoded.
        weight: weight w of the terms of the objective other than the reconstruction.
        words: largest vocabulary of `learn`.

    Raises:
        UserError: not two names, or a number out of its range; in use, no item with text and label, or an unknown style.

    Source: Hu et al. 2017, arXiv 1703.00955 (controlled); Shen et al. 2017, arXiv 1705.09655 (cross_aligned); He et al. 2020,
        arXiv 2002.03912 (back_translation); Luo et al. 2019, DualRL, arXiv 1905.10060 (reinforced: there two models and the
        harmonic mean); markers are hidden as in Li et al. 2018, arXiv 1804.06437. Differences: transformers, with a content
        state per word instead of one vector; each output position sees the content at that position, and input words get a
        learned bonus, to preserve length and content; gradients reach each word of x' but not through the words before it;
        the KL of the language models is exact at each position.

    >>> texts, labels = ["the soup was good", "the tea was good", "the soup was bad", "the tea was bad"] * 9, [1, 1, 0, 0] * 9
    >>> model = StyleTransfer.learn(texts, labels, ["bad", "good"], dim=16, depth=1, heads=2)
    >>> batch = Batch({"text": model.processors["text"]("the tea was good")[None], "label": torch.tensor([1])})
    >>> sorted(model.losses(batch, "generator")), sorted(model.losses(batch, "critic"))
    (['back_translation', 'divergence', 'reconstruction'], ['language_model'])
    >>> len(model.eval().restyle(["The soup was bad!", ""], "good"))
    2
    """

    name = "style_transfer"
    sequences = ("text",)
    phases = ("critic", "generator")
    adversary = "critic"

    @checked
    def __init__(
        self,
        class_names: list[str],
        vocabulary: Annotated[int, AtLeast(UNKNOWN + 1)],
        objective: Objective = "back_translation",
        dim: Annotated[int, AtLeast(1)] = 128,
        depth: Annotated[int, AtLeast(1)] = 2,
        heads: Annotated[int, AtLeast(1)] = 4,
        dropout: Annotated[float, Share()] = 0.1,
        noise: Annotated[float, Share()] = 0.1,
        markers: Annotated[float, AtLeast(1)] = 4.0,
        weight: Annotated[float, AtLeast(0)] = 0.1,
        words: int = 8192,
    ) -> None:
        super().__init__()
        if len(class_names) != 2:
            raise UserError("class_names", got=class_names, expected="two styles", fix="give texts of exactly two styles")
        check_one_of("objective", objective, get_args(Objective))
        self.class_names, self.objective, self.noise, self.weight = list(class_names), objective, noise, weight
        sizes: dict[str, Any] = {"dim": dim, "depth": depth, "heads": heads, "dropout": dropout}
        self.encoder = TextEncoder(vocabulary, **sizes)
        self.decoder = StyleDecoder(vocabulary, **sizes)
        if objective == "back_translation":
            self.critic: nn.Module = StyleLanguageModel(vocabulary, **sizes)
        else:
            self.critic = SequenceCritic(dim, None if objective == "cross_aligned" else vocabulary)
        if objective == "reinforced":
            self.baseline = nn.Linear(dim, 1)
        self.register_buffer("hidden", torch.zeros(2, vocabulary, dtype=torch.bool))  # True for the markers of each style

    @classmethod
    def learn(
        cls, texts: Sequence[str], labels: Sequence[int], class_names: Sequence[str], **settings: Any
    ) -> "StyleTransfer":
        """Build an untrained model with the vocabulary and the markers of these texts.

        Args:
            texts: single sentences of both styles; blank ones are left out.
            labels: 0 or 1 for each, an index of ``class_names``.
            class_names: the two styles.
            settings: arguments of the constructor.

        Raises:
            UserError: a label that is neither, or a style without a text.
        """
        known = [(text, label) for text, label in zip(texts, labels) if text.strip()]
        processor = train_word_tokenizer([text for text, _ in known], settings.get("words", 8192))
        sentences = tokens_of(processor.tokenizer, [text for text, _ in known], add_special_tokens=False)["input_ids"]
        counts = torch.from_numpy(style_counts(sentences, [label for _, label in known], processor.vocabulary)).float()
        total = counts.sum(1, keepdim=True)
        frequency = counts / total + (FEW / total).clamp(min=RARE)  # (2, v)
        model = cls(list(class_names), processor.vocabulary, **settings)
        model.hidden.copy_(frequency / frequency.flip(0) >= settings.get("markers", 4.0))
        written = processor.tokenizer.convert_ids_to_tokens(list(range(processor.vocabulary)))
        model.hidden[:, [not PLAIN.fullmatch(word) for word in written]] = False  # numbers are content
        model.processors |= {"text": processor, "label": LabelProcessor(list(class_names))}
        return model

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that it reads."""
        return ("text",)

    def usable(self, batch: Batch, phase: str = "train") -> dict[str, Tensor]:
        """The items with both."""
        return {REST: batch.having("text", "label")}

    def losses(self, batch: Batch, phase: str = "train") -> Losses:
        """The terms of one phase over the items with text and label; in "train", of both phases, named by them.

        The terms of a phase give no gradient to the other phase's parameters.
        """
        check_one_of("phase", phase, ("train", *self.phases))
        if not self.usable(batch)[REST].any():
            return self.zero_losses("reconstruction")
        ids, mask, style = self.observed(batch, LONGEST)
        terms = {"critic": self.critic_terms, "generator": self.generator_terms}
        if phase != "train":
            return terms[phase](ids, mask, style)
        return Losses({f"{name}_{key}": value for name, of in terms.items() for key, value in of(ids, mask, style).items()})

    def critic_terms(self, ids: Tensor, mask: Tensor, style: Tensor) -> Losses:
        """Loss of classifier, discriminators or language models: texts (b, t) and their styles (b,)."""
        self.monitored = {}
        if self.objective == "back_translation":
            log_p = self.critic(ids, mask, style).log_softmax(-1)  # (b, t, v)
            return Losses(language_model=-_sums(_at(log_p, ids), mask).mean())
        if self.objective != "cross_aligned":
            return Losses(classifier=F.cross_entropy(self.critic(ids, mask), style))
        with torch.no_grad(), still(self.decoder):
            content = self.read(ids, mask, style)
            along = self.decoder(content, style, ids, mask)[0]  # (b, t, d) states along real texts
            other = self.draw(content, 1 - style, temperature=0.0)
            along_other = self.decoder(content, 1 - style, *other)[0]
        real, fake = _at(self.critic(along, mask), style), _at(self.critic(along_other, other[1]), 1 - style)  # (b,)
        return Losses(real=F.softplus(-real).mean(), fake=F.softplus(fake).mean())

    def generator_terms(self, ids: Tensor, mask: Tensor, style: Tensor) -> Losses:
        """Loss of encoder and decoder against constant critics: texts (b, t) and their styles (b,)."""
        content = self.read(ids, mask, style)
        terms = Losses(reconstruction=-self.log_prob(content, style, ids, mask).mean())
        temperature = 1.0 if self.objective == "reinforced" else 0.0
        drawn, real = self.draw(content, 1 - style, temperature=temperature)  # (b, t') each
        with still(self.decoder):  # without dropout, as x' was drawn
            states, logits = self.decoder(content, 1 - style, drawn, real)  # (b, t', d), (b, t', v)
        constant = {name: p.detach() for name, p in self.critic.named_parameters()}

        def judged(*inputs: Tensor) -> Tensor:
            with still(self.critic):
                return functional_call(self.critic, constant, inputs)

        if self.objective == "controlled":
            words = straight_through(logits, drawn)  # (b, t', v)
            terms["classifier"] = self.weight * F.cross_entropy(judged(words, real), 1 - style)
            again = self.read(words, real, 1 - style)
            terms["independence"] = self.weight * (again.mean - content.mean.detach()).square().sum(1).mean()
        elif self.objective == "cross_aligned":
            terms["discriminator"] = self.weight * F.softplus(-_at(judged(states, real), 1 - style)).mean()
        else:
            back = self.log_prob(self.read(drawn, real, 1 - style), style, ids, mask)  # (b,)
            terms["back_translation"] = -back.mean()
            log_q = logits.log_softmax(-1)
            if self.objective == "back_translation":
                log_p = judged(drawn, real, 1 - style).log_softmax(-1)
                divergence = _sums((log_q.exp() * (log_q - log_p)).sum(-1), real)  # (b,)
                terms["divergence"] = self.weight * divergence.mean()
            else:
                turned = _at(judged(drawn, real).softmax(-1), 1 - style)  # (b,)
                reward = (turned * (back / mask.sum(1)).exp()).detach()
                policy, error = reinforce(_sums(_at(log_q, drawn), real), reward, self.baseline(content.mean.detach())[:, 0])
                terms |= {"policy": self.weight * policy, "baseline": error}
                self.monitored = {"reward": reward.mean(), "turned": turned.mean().detach()}
        return terms

    def read(self, words: Tensor, mask: Tensor, style: Tensor) -> Content:
        """c(x) of texts of a style: ids (b, t), or one-hot words with gradients (b, t, v), ends included; mask (b, t)."""
        ids = words if words.dim() == 2 else words.detach().argmax(-1)  # (b, t)
        out = self.hidden[style].gather(1, ids)  # (b, t) True at markers
        if self.training and self.noise:
            out = out | ((torch.rand(ids.shape, device=ids.device) < self.noise) & (ids > UNKNOWN))
        seen = ids.masked_fill(out, HIDDEN)
        if words.dim() == 2:
            states = self.encoder.tokens(seen, mask)  # (b, t, d)
        else:
            hidden = self.encoder.embed(torch.full_like(ids, HIDDEN))
            states = self.encoder.tokens(torch.where(out[..., None], hidden, words @ self.encoder.embed.weight), mask)
        there = states.new_zeros(len(ids), self.hidden.shape[1]).scatter(1, seen.where(mask, PAD), 1.0)  # (b, v)
        there[:, : UNKNOWN + 1] = 0.0
        return Content(torch.where(mask[..., None], states, 0.0), mask, there)

    def log_prob(self, content: Content, style: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """log p(x | c, s) of texts with ends (b, t), in styles (b,): (b,)."""
        return _sums(_at(self.decoder(content, style, ids, mask)[1].log_softmax(-1), ids), mask)

    @torch.no_grad()
    def draw(
        self, content: Content, style: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x ~ p(. | c, s) with its end, and its mask, (b, t') each; greedy at temperature 0.

        Without dropout. A text ends at the latest `LONGER` words beyond the input.
        """
        most = content.mask.sum(1, keepdim=True) + LONGER  # (b, 1), the end included
        with still(self.decoder):
            writing = Writing(self.decoder, content, style)
            ids = sample(
                writing, writing.prompt, int(most.max()), mask=writing.mask, stop=STOP, pad=PAD,  # type: ignore[arg-type]
                temperature=temperature, generator=generator,
            )  # (b, t')  # fmt: skip
        real = (ids == STOP).cumsum(1) - (ids == STOP).long() == 0
        real &= torch.arange(ids.shape[1], device=ids.device) < most
        return ids.masked_fill(~real, PAD), real

    def log_likelihood(self, batch: Batch, samples: int = 1) -> Tensor:
        """Exact log p(x | c(x), s) in its own style, (b,); 0 for items without text or label."""
        ids, mask, style = self.observed(batch)
        return placed(self.log_prob(self.read(ids, mask, style), style, ids, mask), batch.having("text", "label"))

    @torch.no_grad()
    def restyle(self, texts: Sequence[str], target: str) -> list[str]:
        """Rewrite texts in the style ``target``; blank and mostly unknown ones are returned unchanged.

        Texts already in the style are rewritten too. Names, addresses and unknown words are copied in their order, as far as
        the rewrite has places for them.

        Args:
            texts: any; each sentence is rewritten separately, a long one in pieces.
            target: one of ``class_names``.

        Raises:
            UserError: an unknown style, or ``texts`` is no list of strings.
        """
        style = self.class_names.index(check_one_of("target", target, self.class_names))
        texts = check_texts(texts)
        if not texts:
            return []
        tokenizer = self.processors["text"].tokenizer
        read, kept, pieces = pieces_of(texts, tokenizer)
        sources = [
            [UNKNOWN if at in own else word for at, word in enumerate(ids)] for ids, own in zip(read["input_ids"], kept)
        ]
        written: list[list[int]] = [[] for _ in texts]
        found = self.rewritten([[sources[i][at] for _, at, _ in piece] for i, piece in pieces], style)
        for (i, _), words in zip(pieces, found):
            written[i] += words
        rewritten = []
        for text, offsets, ids, words in zip(texts, read["offset_mapping"], sources, written):
            letters = [word for word, (start, end) in zip(ids, offsets) if text[start:end].isalpha()]
            same = words == ids or not words or not letters or 2 * letters.count(UNKNOWN) > len(letters)
            rewritten.append(text if same else spell_anew(text, offsets, ids, words, tokenizer))
        return rewritten

    def rewritten(self, pieces: list[list[int]], style: int) -> list[list[int]]:
        """The greedy rewrite of each piece in a style, without its end."""
        device = self.step.device
        found: list[list[int]] = [[] for _ in pieces]
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        for start in range(0, len(order), AT_ONCE):
            some = order[start : start + AT_ONCE]
            rows = [torch.tensor([*pieces[i], STOP]) for i in some]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)  # (b, t)
            mask = torch.arange(ids.shape[1], device=device) < torch.tensor([len(row) for row in rows], device=device)[:, None]
            of = torch.full((len(some),), style, device=device)
            drawn, _ = self.draw(self.read(ids, mask, 1 - of), of, temperature=0.0)
            for i, row in zip(some, drawn.tolist()):
                found[i] = [word for word in row if word not in (PAD, STOP)][: len(pieces[i]) + LONGER]
        return found

    def observed(self, batch: Batch, longest: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Texts, cut if necessary, with ends and mask (b', t + 1), and styles (b',), of the items with both."""
        batch = batch.items(batch.observed("text", "label"))
        ids, style = batch["text"], batch["label"]
        if len(wrong := style[(style < 0) | (style > 1)]):
            raise UserError("label", got=wrong[0].item(), expected="0 or 1", fix="give texts of exactly two styles")
        mask = batch.masks.get("text", torch.ones_like(ids, dtype=torch.bool))
        ids, mask = ids[:, :longest], mask[:, :longest]
        ids, length = F.pad(ids.where(mask, PAD), (0, 1)), mask.sum(1, keepdim=True)  # (b', t + 1), (b', 1)
        mask = torch.arange(ids.shape[1], device=ids.device) <= length
        return ids.scatter(1, length, STOP), mask, style


class StyleDecoder(nn.Module):
    """p(x_i | x_<i, c, s): a causal transformer over the content, the style and the preceding words.

    Position i also receives the content state at position i and the style; words of the input get a bonus that depends on the
    state of the transformer.

    >>> decoder = StyleDecoder(9, dim=8, depth=1, heads=2)
    >>> content = Content(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 9))
    >>> ids = torch.tensor([[5, 6, 2]] * 2)
    >>> [x.shape for x in decoder(content, torch.tensor([0, 1]), ids, torch.ones_like(ids, dtype=torch.bool))]
    [torch.Size([2, 3, 8]), torch.Size([2, 3, 9])]
    """

    def __init__(self, vocabulary: int, dim: int, depth: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.transformer = CausalTransformer(vocabulary, dim, depth, heads, dropout=dropout)
        self.styles, self.beside, self.copy = nn.Embedding(2, dim), nn.Linear(dim, dim), nn.Linear(dim, 1)
        nn.init.normal_(self.styles.weight, std=0.1)
        barred = torch.zeros(vocabulary).index_fill_(0, torch.tensor([PAD, HIDDEN]), -1e4)  # finite, so that 0 log 0 is 0
        self.register_buffer("barred", barred, persistent=False)

    def forward(self, content: Content, style: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States (b, t', d) and logits (b, t', v) of each word of texts with ends, ids and mask (b, t')."""
        writing = Writing(self, content, style)
        before = self.transformer.embed(ids[:, :-1]) + writing.beside(1, ids.shape[1] - 1)  # (b, t' - 1, d)
        seen = torch.cat([writing.mask, mask[:, :-1]], 1)  # (b, t + t')
        features = self.transformer.features(torch.cat([writing.prompt, before], 1), mask=seen)
        states = features[:, writing.prompt.shape[1] - 1 :]  # (b, t', d)
        return states, writing.logits(states)


class Writing:
    """The decoder with a fixed content and style, for use as a transformer in `sample`."""

    def __init__(self, decoder: StyleDecoder, content: Content, style: Tensor) -> None:
        self.decoder, self.content, self.embed = decoder, content, decoder.transformer.embed
        self.style = decoder.styles(style)[:, None]  # (b, 1, d)
        self.prompt = torch.cat([content.states, self.beside(0, 1)], 1)  # (b, t + 1, d)
        self.mask = F.pad(content.mask, (0, 1), value=True)  # (b, t + 1)

    def beside(self, start: int, n: int) -> Tensor:
        """Content state plus style, added to the inputs of positions ``start`` to ``start + n``, (b, n, d)."""
        states = self.content.states[:, start : start + n]
        return self.decoder.beside(F.pad(states, (0, 0, 0, n - states.shape[1]))) + self.style

    def features(self, inputs: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """`CausalTransformer.features` of the prompt, then of one word after another."""
        written = 0 if cache is None else cache.length - self.prompt.shape[1] + 1
        if written > 0:
            inputs = inputs + self.beside(written, inputs.shape[1])
        return self.decoder.transformer.features(inputs, mask=mask, cache=cache)

    def logits(self, states: Tensor, tokens: slice = slice(None)) -> Tensor:
        """states (b, ..., d) -> (b, ..., v), raised for the words of the input."""
        words = self.content.words if states.dim() == 2 else self.content.words[:, None]
        logits = self.decoder.transformer.logits(states) + self.decoder.copy(states) * words
        return (logits + self.decoder.barred)[..., tokens]


class StyleLanguageModel(nn.Module):
    """p(x | s) by one causal transformer that reads the style first.

    >>> model = StyleLanguageModel(9, dim=8, depth=1, heads=2)
    >>> model(torch.tensor([[5, 2]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([1])).shape
    torch.Size([1, 2, 9])
    """

    def __init__(self, vocabulary: int, dim: int, depth: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.transformer = CausalTransformer(vocabulary, dim, depth, heads, dropout=dropout)
        self.styles = nn.Embedding(2, dim)

    def forward(self, ids: Tensor, mask: Tensor, style: Tensor) -> Tensor:
        """Logits of each word: ids and mask (b, t), style (b,) -> (b, t, v)."""
        return self.transformer(ids[:, :-1], self.styles(style)[:, None], mask[:, :-1])


class SequenceCritic(nn.Module):
    """Two logits of a sequence, one per style: a maximum over windows of three positions.

    Args:
        dim: size of the vector at a position.
        vocabulary: number of words, for a sequence of words; None for vectors.

    >>> SequenceCritic(8)(torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
    torch.Size([2, 2])
    """

    def __init__(self, dim: int, vocabulary: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim) if vocabulary else None
        self.windows, self.head = nn.Conv1d(dim, dim, 3, padding=1), nn.Linear(dim, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: ids (b, t), or words (b, t, v), or vectors (b, t, d); mask (b, t) -> (b, 2)."""
        if self.embed is not None:
            x = x @ self.embed.weight if x.is_floating_point() else self.embed(x)  # (b, t, d)
        x = torch.where(mask[..., None], x, 0.0).transpose(1, 2)  # (b, d, t)
        found = F.gelu(self.windows(x)).masked_fill(~mask[:, None], -torch.inf)  # (b, d, t)
        return self.head(found.amax(2))


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Disable dropout inside the context."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _at(values: Tensor, ids: Tensor) -> Tensor:
    """The entries of the last dimension at ``ids``: (..., v), (...) -> (...)."""
    return values.gather(-1, ids[..., None]).squeeze(-1)


def _sums(values: Tensor, mask: Tensor) -> Tensor:
    """Sum (b, t) over the mask, (b,)."""
    return torch.where(mask, values, 0.0).sum(1)
