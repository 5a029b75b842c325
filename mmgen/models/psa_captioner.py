"""Captioner whose soft words enter the frozen language model as keys and values of every layer, not as a prefix."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from mmgen.conditioning.language_model import CACHE
from mmgen.conditioning.pseudo_self_attention import PseudoSelfAttention
from mmgen.data.batch import Batch
from mmgen.models.captioner import PROMPT_SCALE, Captioner
from mmgen.ranges import Above, checked


class PseudoSelfAttentionCaptioner(Captioner):
    """p(text | image) or p(text | audio) by a frozen language model whose layers all attend to soft words.

    ``log p(text | x) = sum_t log LM(text_t | X U_k, X U_v, before, between, after, text_<t)`` with
    ``X = LayerNorm(words(x)) + place``: the soft words are those of a `Captioner`, learned in the same two phases, but are
    not part of the prompt. They precede it, projected to keys and values of every layer by new matrices U; as a condition has
    no order, each soft word adds a learned position vector.

    Args:
        captioner: arguments of `Captioner`.
        scale: learning rate of U and of the position vectors, relative to the soft words.

    Raises:
        UserError: see `Captioner` and `mmgen.conditioning.pseudo_self_attention.PseudoSelfAttention`; a scale of 0 or less.

    Source: Ziegler et al. 2019, Encoder-Agnostic Adaptation for Conditional Language Generation, arXiv 1908.06938. There the
        language model is tuned too, and X is the output of any encoder.
    """

    name = "psa_captioner"
    inside = "captioner"

    @checked
    def __init__(self, captioner: Mapping[str, Any], scale: Annotated[float, Above(0)] = 1.0) -> None:
        super().__init__(**captioner)
        self.scale, lm = scale, self.language_model
        self.attention = PseudoSelfAttention(lm.model.config, lm.width)
        self.place = nn.Parameter(torch.randn(self.words.n, lm.width))

    @torch.no_grad()
    def imitate(self, batches: Iterable[Batch]) -> None:
        """Initialise U to approximate the keys and values of the words in the prompt of a `Captioner`.

        Args:
            batches: one or more, with ``text`` (b, t), whose words replace those of pictures, see `targets`.
        """
        lm, n = self.language_model, self.words.n
        before, between = (len(self.text[k]) for k in ("before", "between"))
        number = torch.arange(n, device=self.place.device)
        at = number + before + between * (number >= n - n // 2)  # position of each word in the prompt of a `Captioner`

        def pairs() -> Iterator[tuple[Tensor, list[Any]]]:
            for batch in batches:
                words = lm.embed(self.targets(batch["text"], batch.masks["text"])).float()  # (b, n, d)
                cache = DynamicCache(config=lm.model.config)
                seen = self._prompt(words).embeddings.to(lm.model.dtype)
                lm.model(inputs_embeds=seen, use_cache=True, **{CACHE: cache}, logits_to_keep=1)
                layers: Any = cache.layers
                made = [(layer.keys, layer.values) for layer in layers]  # each (b, heads, p, d')
                flat = [tuple(part[:, :, at].transpose(1, 2).flatten(2).flatten(0, 1) for part in pair) for pair in made]
                yield self.condition(words).flatten(0, 1), flat

        self.attention.imitate(pairs())

    def phase_parameters(self, phase: str) -> list[dict[str, Any]]:
        """The prompt, U and the position vectors have higher learning rates, and learn only in the phase ``train``."""
        new = [*self.attention.parameters(), self.place]
        return self._groups(phase, (list(self.text.values()), PROMPT_SCALE), (new, self.scale))

    def condition(self, words: Tensor) -> Tensor:
        """Soft words (b, n, d) -> X (b, n, d)."""
        return F.layer_norm(words.float(), words.shape[-1:]) + self.place

    def text_log_prob(self, words: Tensor, batch: Batch) -> Tensor:
        """Exact log p(text | words) for soft words (b, n, d), (b,)."""
        read = (self.language_model, self.condition(words), self._prompt(words[:, :0]))
        return self.attention.log_prob(*read, batch["text"], batch.masks["text"]).sum(1)  # (b,)

    def _captions(self, words: Tensor, **options: Any) -> list[str]:
        return self.attention.generate(self.language_model, self.condition(words), self._prompt(words[:, :0]), **options)
