"""What a language model makes of whole texts: how likely an attribute is of them, and they themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from mmgen.conditioning.attributes import Attribute, State, parts_of
from mmgen.conditioning.prefix import positions
from mmgen.conditioning.representations import mean_state
from mmgen.errors import check_at_least

ROWS = 8  # texts that are read at once: their logits are large


@torch.no_grad()
def text_log_prob(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, start: int, attribute: Attribute | None = None
) -> tuple[Tensor, Tensor]:
    """How likely texts are, and an attribute of them, to the unsteered language model.

    ``log p(a | x)`` of an attribute that reads hidden states, or whole texts, is that of the text. Of one that looks at the
    next token alone, such as a bag of words, it is the mean of ``log p(a | x_<t)`` over the positions t from ``start``. Of
    several together each is told by its own rule.

    Args:
        model: a causal language model.
        ids: (b, t) tokens; a prompt of ``start`` positions, padded on the left, and what follows it, padded on the right.
        mask: (b, t) True at real tokens.
        start: the first position that counts; the prompt has at least one token.
        attribute: None: no attribute.

    Returns:
        log p(a | x), (b,), 0 without an attribute; and the mean of log p(x_t | x_<t) over the real positions from ``start``,
        (b,): the logarithm of one over the perplexity. Of a text without any such position, -inf and NaN.

    Raises:
        UserError: a start that leaves no prompt.

    >>> from mmgen.conditioning.language_model import load_language_model
    >>> model, tokenizer = load_language_model("tiny", "fp32")
    >>> ids = tokenizer(["hello"], return_tensors="pt").input_ids
    >>> [x.shape for x in text_log_prob(model, ids, torch.ones_like(ids).bool(), start=2)]
    [torch.Size([1]), torch.Size([1])]
    """
    check_at_least("start", start, 1)
    found = [_rows(model, i, m, start, attribute) for i, m in zip(ids.split(ROWS), mask.split(ROWS))]
    return torch.cat([a for a, _ in found]), torch.cat([x for _, x in found])


def _rows(model: PreTrainedModel, ids: Tensor, mask: Tensor, start: int, attribute: Attribute | None) -> tuple[Tensor, Tensor]:
    reads = attribute is not None and attribute.horizon is not None
    output = model(input_ids=ids, use_cache=False, output_hidden_states=reads, **positions(mask))
    log_p = output.logits[:, start - 1 :].float().log_softmax(-1)  # (b, s + 1, v) of the tokens from start, and one more
    counted = mask[:, start:]  # (b, s)
    each = log_p[:, :-1].gather(2, ids[:, start:, None])[..., 0]  # (b, s)
    mean = (each * counted).sum(1) / counted.sum(1)  # (b,)
    if not counted.any():  # nothing was written
        return torch.full_like(mean, -torch.inf), mean
    if attribute is None:
        return torch.zeros_like(mean), mean
    hidden = mean_state(output.hidden_states[-1], mask) if reads else None  # (b, d)
    likely = torch.zeros_like(mean)
    for part, weight in parts_of(attribute):
        if part.horizon is not None:
            told = part.log_prob(State(ids, log_p[:, -1], hidden))  # (b,)
        elif getattr(part, "whole", False):
            told = part.log_prob(State(ids, None))  # (b,)
        else:
            places = range(ids.shape[1] - start)
            scores = torch.stack([part.log_prob(State(ids[:, : start + i], log_p[:, i])) for i in places], 1)  # (b, s)
            told = torch.where(counted, scores, 0.0).sum(1) / counted.sum(1)
        likely = likely + weight * told
    return likely.masked_fill(~counted.any(1), -torch.inf), mean


class OwnNoise(LogitsProcessor):
    """Sampling by the Gumbel trick: each text of a batch has a generator of its own, and is the same alone and among others.

    The last of the logits processors, for `generate` with ``do_sample=False``: the largest of ``log p + Gumbel noise`` is a
    draw from p.

    Args:
        seeds: one a text.

    >>> scores = torch.zeros(2, 5)
    >>> OwnNoise([3, 4])(None, scores)[1].equal(OwnNoise([4])(None, scores[:1])[0])
    True
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add Gumbel noise: the highest score is then a sample."""
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])  # (b, v)
        return scores - noise.log().to(scores)
