"""Noisy-channel classification: scores an answer by the likelihood of a picture's words given the answer."""

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from mmgen.conditioning.few_shot import check_answers
from mmgen.conditioning.language_model import CACHE, check_room
from mmgen.conditioning.prefix import PrefixLanguageModel, positions
from mmgen.errors import UserError, check_at_least

Shot = tuple[str, Tensor]  # an answer and the words (n,) of its picture
Line = tuple[int, int, tuple[int, ...]]  # the index of a context, the first token to predict after it, and all its tokens


@torch.no_grad()
def channel(
    reader: PrefixLanguageModel,
    supports: Sequence[Sequence[Shot]],
    queries: Sequence[Tensor],
    answers: Sequence[str],
    induction: str = "",
    between: str = ":",
    stop: str = "\n",
    apart: bool = False,
    repeats: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Log-likelihood of a picture's words after each answer, ``log p(words, stop | induction, support, answer)``.

    With equal prior probabilities of the answers, this is log p(answer | words) up to a constant, by Bayes' rule. A small
    language model is much better at continuing a familiar line than at producing a new name, so the answer comes first and the
    model predicts the words of the picture.

    With ``apart`` each shot s of an answer is read alone, and each word is predicted by the mean of the answer's k shots,
    ``sum_t log 1/k sum_s p(word_t | induction, s, answer, word_<t)``: a small language model confuses the lines of a prompt
    that has many.

    Args:
        reader: the frozen language model.
        supports: for each of b queries its shots, in order.
        queries: words of b pictures, token ids (n,); (0,) for a picture that is not shown.
        answers: a different texts.
        induction: a sentence before the shots.
        between: text between an answer and the words of its picture.
        stop: text that ends a shot.
        apart: read each shot of an answer in a prompt of its own instead of all shots in one; see above.
        repeats: extra repetitions of the shots of a prompt.
        batch_size: number of lines to predict in a forward pass.

    Returns:
        (b, a) float32.

    Raises:
        UserError: there are no queries, or another number of supports; there are no answers, an empty one or two equal ones;
            a support is too long.

    Source: Min et al. 2022, Noisy Channel Language Model Prompting for Few-Shot Text Classification, arXiv 2108.04106, on
        prompts of all shots and, there with products instead of means, on ensembles of prompts of one shot.

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
    check_at_least("repeats", repeats, 0)
    end, start = reader.tokens(stop), reader.tokens(induction)

    def line(answer: str, words: Tensor) -> Tensor:
        return torch.cat([reader.tokens(answer + between), words, end])

    def contexts(shots: Sequence[Shot], answer: str) -> list[Tensor]:
        lines = [line(a, words) for a, words in shots if not apart or a.strip() == answer]
        prompts = [[one] for one in lines] if apart and lines else [lines]
        return [torch.cat([start, *prompt * (1 + repeats)]) for prompt in prompts]

    known: dict[tuple[int, ...], int] = {}  # distinct contexts
    wanted: dict[Line, int] = {}  # distinct lines to predict
    places: list[list[int]] = []  # (b * a, k)
    for shots, words in zip(supports, queries):
        for answer in answers:
            head, tail = len(reader.tokens(answer + between)), tuple(line(answer, words).tolist())
            own = [known.setdefault(tuple(context.tolist()), len(known)) for context in contexts(shots, answer)]
            places.append([wanted.setdefault((context, head, tail), len(wanted)) for context in own])
    each = _log_likelihoods(reader, [end.new_tensor(context) for context in known], list(wanted), batch_size)  # (n, t)
    scores = torch.stack([(each[of].logsumexp(0) - log(len(of))).sum() for of in places])
    return scores.unflatten(0, (len(queries), len(answers)))


def _log_likelihoods(
    reader: PrefixLanguageModel, contexts: Sequence[Tensor], lines: Sequence[Line], batch_size: int
) -> Tensor:
    """Log-likelihood (n, t) of each token of n lines, 0 where none is to be predicted; a batch reads each context once."""
    check_room(reader.model, max(len(contexts[c]) + len(ids) for c, _, ids in lines), "prompt", "show fewer shots")
    device = contexts[0].device
    scores = torch.zeros(len(lines), max(len(ids) for *_, ids in lines) - 1, device=device)
    order = sorted(range(len(lines)), key=lambda i: (len(contexts[lines[i][0]]), lines[i]))
    for start in range(0, len(order), batch_size):
        place = order[start : start + batch_size]
        some = [lines[i] for i in place]
        rows = {c: row for row, c in enumerate(dict.fromkeys(c for c, *_ in some))}
        prompt = reader.prompt([[reader.embed(contexts[c])] for c in rows])  # (r, p, d)
        row = torch.tensor([rows[c] for c, *_ in some], device=device)  # (b,)
        cache = DynamicCache(config=reader.model.config)
        if prompt.mask.shape[1]:
            reader.model(inputs_embeds=prompt.embeddings, use_cache=True, **{CACHE: cache}, logits_to_keep=1,
                         **positions(prompt.mask))  # fmt: skip
            cache.batch_select_indices(row)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for *_, t in some], batch_first=True).to(device)  # (b, t)
        at = torch.arange(1, ids.shape[1], device=device)  # (t - 1,)
        first = torch.tensor([n for _, n, _ in some], device=device)[:, None]  # (b, 1)
        last = torch.tensor([len(t) for *_, t in some], device=device)[:, None]  # (b, 1)
        counted = (at >= first) & (at < last)  # (b, t - 1)
        mask = F.pad(prompt.mask[row], (0, ids.shape[1] - 1), value=True)
        logits = reader.model(inputs_embeds=reader.embed(ids[:, :-1]), use_cache=True, **{CACHE: cache},
                              **positions(mask, prompt.mask.shape[1])).logits  # (b, t - 1, v)  # fmt: skip
        log_p = -F.cross_entropy(logits[counted].float(), ids[:, 1:][counted], reduction="none")
        scores[place, : counted.shape[1]] = torch.zeros(counted.shape, device=device).masked_scatter(counted, log_p)
    return scores
