"""Scores of whole texts under a language model: attribute log-probability and perplexity; sampling with a seed a text."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from mmgen.conditioning.attributes import Attribute, State, parts_of
from mmgen.conditioning.prefix import positions
from mmgen.conditioning.representations import mean_state
from mmgen.errors import check_at_least

ROWS = 8  # texts in a forward pass: their logits are large


@torch.no_grad()
def text_log_prob(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, start: int, attribute: Attribute | None = None
) -> tuple[Tensor, Tensor]:
    """Attribute log-probability and mean token log-probability of texts under the unsteered language model.

    For an attribute that reads hidden states or whole texts, ``log p(a | x)`` is computed from the whole text. For one of the
    next token, such as a bag of words, it is the mean of ``log p(a | x_<t)`` over the positions t from ``start``. A
    combination applies to each part its own rule.

    Args:
        model: a causal language model.
        ids: (b, t) tokens: a prompt of ``start`` positions, padded on the left, then the text, padded on the right.
        mask: (b, t) True at real tokens.
        start: index of the first position that counts, 1 or more.
        attribute: the attribute; None for none.

    Returns:
        log p(a | x), (b,), 0 without an attribute; and the mean of log p(x_t | x_<t) over the real positions from ``start``,
        (b,), which is minus the logarithm of the perplexity. For a text without such a position, -inf and NaN.

    Raises:
        UserError: ``start`` leaves no prompt.

    >>> from mmgen.conditioning.language_model import load_language_model
    >>> model, tokenizer = load_language_model("tiny", "fp32")
    >>> ids = tokenizer(["hello"], return_tensors="pt").input_ids
    >>> [x.shape for x in text_log_prob(model, ids, torch.ones_like(ids).bool(), start=2)]
    [torch.Size([1]), torch.Size([1])]
    """
    check_at_least("start", start, 1)
    parts = [_rows(model, i, m, start, attribute) for i, m in zip(ids.split(ROWS), mask.split(ROWS))]
    return torch.cat([a for a, _ in parts]), torch.cat([x for _, x in parts])


def _rows(model: PreTrainedModel, ids: Tensor, mask: Tensor, start: int, attribute: Attribute | None) -> tuple[Tensor, Tensor]:
    reads = attribute is not None and attribute.horizon is not None
    output = model(input_ids=ids, use_cache=False, output_hidden_states=reads, **positions(mask))
    log_p = output.logits[:, start - 1 :].float().log_softmax(-1)  # (b, s + 1, v) of the tokens from start and of the next one
    counted = mask[:, start:]  # (b, s)
    each = log_p[:, :-1].gather(2, ids[:, start:, None])[..., 0]  # (b, s)
    mean = (each * counted).sum(1) / counted.sum(1)  # (b,)
    if not counted.any():  # all texts are empty
        return torch.full_like(mean, -torch.inf), mean
    if attribute is None:
        return torch.zeros_like(mean), mean
    hidden = mean_state(output.hidden_states[-1], mask) if reads else None  # (b, d)
    likely = torch.zeros_like(mean)
    for part, weight in parts_of(attribute):
        if part.horizon is not None:
            score = part.log_prob(State(ids, log_p[:, -1], hidden))  # (b,)
        elif getattr(part, "whole", False):
            score = part.log_prob(State(ids, None))  # (b,)
        else:
            steps = range(ids.shape[1] - start)
            scores = torch.stack([part.log_prob(State(ids[:, : start + i], log_p[:, i])) for i in steps], 1)  # (b, s)
            score = torch.where(counted, scores, 0.0).sum(1) / counted.sum(1)
        likely = likely + weight * score
    return likely.masked_fill(~counted.any(1), -torch.inf), mean


class OwnNoise(LogitsProcessor):
    """Sampling by the Gumbel-max trick with one generator for each text, so that a text does not depend on its batch.

    Use it as the last logits processor of `generate` with ``do_sample=False``: the argmax of ``log p + Gumbel noise`` is a
    draw from p.

    Args:
        seeds: one seed for each text.

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
