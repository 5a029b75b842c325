"""Noisy-channel classification: scores an answer by the likelihood of a picture's words given the answer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from mmgen.conditioning.few_shot import check_answers
from mmgen.conditioning.language_model import CACHE, check_room
from mmgen.conditioning.prefix import PrefixLanguageModel, positions
from mmgen.errors import UserError, check_at_least

Shot = tuple[str, Tensor]  # an answer and the words (n,) of its picture


@torch.no_grad()
def channel(
    reader: PrefixLanguageModel,
    supports: Sequence[Sequence[Shot]],
    queries: Sequence[Tensor],
    answers: Sequence[str],
    induction: str = "",
    between: str = ":",
    stop: str = "\n",
    batch_size: int = 16,
) -> Tensor:
    """Log-likelihood of a picture's words after each answer, ``log p(words, stop | induction, support, answer)``.

    With equal prior probabilities of the answers, this is log p(answer | words) up to a constant, by Bayes' rule. A small
    language model is much better at continuing a familiar line than at producing a new name, so the answer comes first and the
    model predicts the words of the picture.

    Args:
        reader: the frozen language model.
        supports: for each of b queries its shots, in order.
        queries: words of b pictures, token ids (n,); (0,) for a picture that is not shown.
        answers: a different texts.
        induction: a sentence before the shots.
        between: text between an answer and the words of its picture.
        stop: text that ends a shot.
        batch_size: number of queries in a forward pass.

    Returns:
        (b, a) float32.

    Raises:
        UserError: there are no queries, or another number of supports; there are no answers, an empty one or two equal ones;
            a support is too long.

    Source: Min et al. 2022, Noisy Channel Language Model Prompting for Few-Shot Text Classification, arXiv 2108.04106.

    >>> reader = PrefixLanguageModel("tiny", "fp32")
    >>> cat, dog = reader.tokens(" a cat"), reader.tokens(" a dog")
    >>> channel(reader, [[("dax", cat), ("wug", dog)]], [cat], ["dax", "wug"]).shape
    torch.Size([1, 2])
    """
    if not queries or len(supports) != len(queries):
        got, expected = f"{len(supports)} for {len(queries)} queries", "one for each of one or more queries"
        raise UserError("supports", got=got, expected=expected, fix="give each query its support")
    answers = check_answers(answers)
    check_at_least("batch_size", batch_size, 1)
    end, start = reader.tokens(stop), reader.tokens(induction)
    heads = [reader.tokens(answer + between) for answer in answers]
    rows = [
        torch.cat([start, *(part for a, w in shots for part in (reader.tokens(a + between), w, end))]) for shots in supports
    ]
    tails = [[torch.cat([head, words, end]) for head in heads] for words in queries]
    longest = max(len(row) + max(map(len, tail)) for row, tail in zip(rows, tails))
    check_room(reader.model, longest, "prompt", "show fewer shots")
    scores = torch.zeros(len(queries), len(answers), device=end.device)
    for place in torch.tensor([len(row) for row in rows]).argsort(stable=True).split(batch_size):
        prompt = reader.prompt([[reader.embed(rows[i])] for i in place])  # (b, p, d)
        cache = DynamicCache(config=reader.model.config)
        if prompt.mask.shape[1]:
            reader.model(inputs_embeds=prompt.embeddings, use_cache=True, **{CACHE: cache}, logits_to_keep=1,
                         **positions(prompt.mask))  # fmt: skip
            cache.batch_repeat_interleave(len(answers))
        flat = [tail for i in place for tail in tails[i]]  # b * a
        ids = torch.nn.utils.rnn.pad_sequence(flat, batch_first=True)  # (b * a, t)
        at = torch.arange(1, ids.shape[1], device=ids.device)  # (t - 1,)
        first = torch.tensor([len(head) for head in heads] * len(place), device=ids.device)[:, None]
        last = torch.tensor([len(tail) for tail in flat], device=ids.device)[:, None]  # (b * a, 1)
        counted = (at >= first) & (at < last)  # (b * a, t - 1)
        mask = F.pad(prompt.mask.repeat_interleave(len(answers), 0), (0, ids.shape[1] - 1), value=True)
        logits = reader.model(inputs_embeds=reader.embed(ids[:, :-1]), use_cache=True, **{CACHE: cache},
                              **positions(mask, prompt.mask.shape[1])).logits  # (b * a, t - 1, v)  # fmt: skip
        log_p = -F.cross_entropy(logits[counted].float(), ids[:, 1:][counted], reduction="none")
        each = torch.zeros(counted.shape, device=ids.device).masked_scatter(counted, log_p).sum(1)  # (b * a,)
        scores[place.to(scores.device)] = each.unflatten(0, (len(place), -1))
    return scores
