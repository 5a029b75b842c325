"""Texts of a language model with and without steering (``mmgen steer``)."""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmgen import processes
from mmgen.conditioning.attributes import Attribute, BagOfWords, Discriminator, Together
from mmgen.conditioning.gradient import PPLM
from mmgen.conditioning.language_model import check_room, check_text, context_length, load_language_model
from mmgen.conditioning.ranking import OwnNoise, text_log_prob
from mmgen.conditioning.reweighting import DExperts, Fudge, GeDi
from mmgen.data.text import tokens_of
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.inference import targets
from mmgen.inference.generate import check_types
from mmgen.metrics.diversity import distinct
from mmgen.modalities.layers.packed import packed
from mmgen.training.report import WrittenText, write_texts

ARMS = ("unsteered", "steered")
METHODS: dict[str, type] = {"pplm": PPLM, "fudge": Fudge, "dexperts": DExperts, "gedi": GeDi}
BY_EXPERTS = ("dexperts", "gedi")  # methods that take `mmgen.inference.targets.experts`
GIVEN = ("attribute", "streamer", "experts", "target")  # fields of a method that are not settings
SAMPLING = ("temperature", "top_k", "top_p", "threshold")  # options of `steer`; the others are of the method
AT_ONCE = 64  # texts that are written together


class Steered(NamedTuple):
    """Texts of `steer_toward`, see `steer`, and the bags by name."""

    texts: list[dict[str, Any]]
    bags: dict[str, BagOfWords]


def steer_toward(
    language_model: str,
    prompts: Sequence[str],
    bags: Sequence[str] = (),
    attributes: Sequence[str] = (),
    files: Sequence[str] = (),
    *,
    method: str = "pplm",
    head: str = "runs/attribute",
    aligned: str = "runs/aligned",
    whole: bool = False,
    dtype: str = "auto",
    options: Mapping[str, Any] | None = None,
    **writing: Any,
) -> Steered:
    """Continue prompts with and without steering toward bags of words, classes, pictures or sounds, several at once.

    Args:
        language_model: a folder, a Hub name, or an installed package.
        prompts: one or more.
        bags: topics, or files with a word a line.
        attributes: classes of the classifier in ``head``.
        files: pictures or sounds, compared with texts in the shared space ``aligned``.
        method: a key of `METHODS`.
        head: a run of the recipe ``attribute``.
        aligned: a run of the recipe ``aligned``.
        whole: rank texts by the sentence embedder of ``aligned``; fudge steers by it too.
        dtype: type of the weights.
        options: settings of the method and the sampling, see `settings`.
        writing: ``n``, ``candidates``, ``length``, ``seed`` and ``traced`` of `write`.

    Raises:
        UserError: no prompt, no target, a target that cannot be read, or one that the method does not take.
    """
    bags, attributes, files = (list(dict.fromkeys(names)) for names in (bags, attributes, files))
    named = {"bag": bags, "attribute": attributes, "toward": files}
    wanted = [f"--{kind} {name}" for kind, names in named.items() for name in names]
    if not prompts:
        raise UserError("--prompt", got="none", expected="at least one", fix='add --prompt "The potato"')
    if not wanted:
        raise UserError("--bag, --attribute or --toward", got="none", expected="at least one", fix="add --bag space")
    if whole and not files:
        raise UserError("--whole", got="no --toward", expected="a picture or a sound to compare with", fix="add --toward FILE")
    for file in files:
        if not Path(file).is_file():
            raise UserError(file, got="no such file", expected="a picture or a sound", fix="check the path")
    if method in BY_EXPERTS and (len(wanted) > 1 or not attributes):
        fix = "take --method pplm or fudge"
        raise UserError(f"--method {method}", got=", ".join(wanted), expected="one --attribute and nothing else", fix=fix)
    own, sampling = settings(options or {}, method)
    model, tokenizer = load_language_model(language_model, dtype)
    model.to(processes.device())  # type: ignore[arg-type]  # transformers wraps it
    found = {name: targets.bag(name, model, tokenizer) for name in bags}
    classes = [targets.attribute(name, head, model) for name in attributes]

    def together(whole: bool) -> Attribute:
        pictures = [targets.toward(file, aligned, model, tokenizer, whole) for file in files]
        parts: list[Attribute] = [*found.values(), *classes, *pictures]
        return parts[0] if len(parts) == 1 else Together([(part, 1.0) for part in parts])

    ranked = together(whole)
    attribute = together(False) if whole and method != "fudge" else ranked
    if method in BY_EXPERTS:
        own |= targets.experts(attributes[0], head, model)
    steered_by = METHODS[method](attribute, **own)
    return Steered(steer(model, tokenizer, prompts, steered_by, ranked=ranked, **sampling, **writing), found)


def settings(options: Mapping[str, Any], method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into settings of a method of `METHODS` and of the sampling.

    Args:
        options: name -> value.
        method: a key of `METHODS`.

    Raises:
        UserError: an unknown name, a value of another type, or a setting of the method out of its range.

    >>> settings({"step_size": 0.05, "top_k": 0}, "pplm")
    ({'step_size': 0.05}, {'top_k': 0})
    """
    kind = METHODS[check_one_of("method", method, METHODS)]
    own = [f.name for f in fields(kind) if f.name not in GIVEN]
    for name in options:
        check_one_of("option", name, [*own, *SAMPLING])
    types = typing.get_type_hints(kind) | typing.get_type_hints(steer) | typing.get_type_hints(write)
    check_types(options, types, f"{kind.__name__}, steer and write")
    of_method = {k: v for k, v in options.items() if k in own}
    given = {"experts": len, "target": 0} if method in BY_EXPERTS else {}
    kind(Discriminator(torch.nn.Identity(), 0), **of_method, **given)  # checks ranges before anything is loaded
    return of_method, {k: v for k, v in options.items() if k in SAMPLING}


def steer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    method: PPLM | Fudge | DExperts | GeDi,
    threshold: float = 0.0,
    ranked: Attribute | None = None,
    **writing: Any,
) -> list[dict[str, Any]]:
    """Continue prompts with and without steering, sampled with the same random numbers.

    Args:
        model, tokenizer: see `mmgen.conditioning.language_model.load_language_model`.
        prompts: one or more.
        method: the attribute and how to steer toward it.
        threshold: see `best`.
        ranked: the attribute by which `best` ranks candidates; None: that of the method.
        writing: ``n``, ``candidates``, ``length``, ``seed``, ``temperature``, ``top_k``, ``top_p`` and ``traced`` of `write`.

    Returns:
        For each prompt, text and arm (``unsteered``, ``steered``) a dict of ``arm`` and the entries of `write` for the best
        candidate.

    Raises:
        UserError: see `write`.
    """
    check_threshold(threshold)
    arms = [write(model, tokenizer, prompts, ranked or method.attribute, m, **writing) for m in (None, method)]
    return [{"arm": arm, **best(rivals, threshold)} for both in zip(*arms) for arm, rivals in zip(ARMS, both)]


def best(rivals: Sequence[dict[str, Any]], threshold: float = 0.0) -> dict[str, Any]:
    """The candidate with the likeliest attribute, among those that do not repeat themselves.

    Args:
        rivals: candidates for one text.
        threshold: least mean of dist-1, -2 and -3, 0 to 1; ignored if no candidate reaches it.

    Raises:
        UserError: a threshold out of its range.

    Source: Dathathri et al. 2020, section 3.3.

    >>> texts = [{"text": "moon moon moon", "attribute": 3.0}, {"text": "the moon rose", "attribute": 1.0}]
    >>> best(texts)["text"], best(texts, threshold=0.9)["text"]
    ('moon moon moon', 'the moon rose')
    """
    check_threshold(threshold)
    various = [sum(distinct([row["text"]], k) for k in (1, 2, 3)) / 3 >= threshold for row in rivals]
    kept = [row for row, good in zip(rivals, various) if good] or rivals
    return max(kept, key=lambda row: row["attribute"])


def check_threshold(threshold: float) -> None:
    """Fail unless ``threshold`` can be a mean of dist-1, -2 and -3.

    Raises:
        UserError: it is out of its range.
    """
    if not 0 <= threshold <= 1:
        raise UserError("threshold", got=threshold, expected="0 to 1", fix="use 0.8 for example")


def write_page(path: Path, made: Sequence[dict[str, Any]], command: str) -> None:
    """Write an HTML page of the texts of a traced `steer`, unsteered beside steered, with raised words in colour.

    Args:
        path: the file.
        made: the result of `steer`.
        command: the command that made it.
    """
    texts = [
        WrittenText(row["arm"], row["prompt"], row["words"], f"log p(attribute) {row['attribute']:.2f}, perplexity "
                    + ("-" if row["perplexity"] is None else f"{row['perplexity']:.1f}"))
        for row in made
    ]  # fmt: skip
    pairs = [texts[i : i + len(ARMS)] for i in range(0, len(texts), len(ARMS))]
    summary = "The stronger a word's colour, the more steering raised its probability; the tooltip shows the log ratio."
    write_texts(path, "Texts with and without steering", pairs, {"command": command}, summary)


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    attribute: Attribute,
    method: PPLM | Fudge | DExperts | GeDi | None = None,
    n: int = 1,
    candidates: int = 1,
    length: int = 50,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 10,
    top_p: float = 1.0,
    traced: bool = False,
) -> list[list[dict[str, Any]]]:
    """Continue prompts, and score each text by the attribute and the unsteered language model.

    Args:
        model, tokenizer: see `mmgen.conditioning.language_model.load_language_model`.
        prompts: one or more.
        attribute: ranks the texts.
        method: steers them; None: unsteered.
        n: texts a prompt.
        candidates: number of candidates for each text.
        length: tokens of a text.
        seed: 0 or more; each text has its own generator, so it does not depend on the others.
        temperature, top_k, top_p: of the sampling; top_k 0 takes all.
        traced: return how much steering raised each word.

    Returns:
        The candidates for each prompt and text: dicts of ``prompt``, ``text`` (the continuation), ``attribute``,
        log p(attribute | text), and ``perplexity``; -inf and None for an empty text. If traced also ``words``: pairs of a
        word of ``text`` and the log ratio of its steered to its unsteered probability, among the tokens that the method may
        write.

    Raises:
        UserError: no prompt, one without a token, or a number out of its range.
    """
    if seed >= 2**31:
        raise UserError("seed", got=seed, expected="below 2147483648", fix="take a smaller one")
    numbers = {"n": (n, 1), "candidates": (candidates, 1), "length": (length, 1), "seed": (seed, 0), "top_k": (top_k, 0)}
    for what, (value, low) in numbers.items():
        check_at_least(what, value, low)
    if not 0 < temperature < float("inf"):
        raise UserError("temperature", got=temperature, expected="a finite number above 0", fix="use 1 for example")
    if not 0 < top_p <= 1:
        raise UserError("top_p", got=top_p, expected="above 0 and at most 1", fix="use 0.9 for example")
    if isinstance(prompts, str) or not prompts:
        got, fix = repr(prompts) if prompts else "none", "give at least one"
        raise UserError("prompts", got=got, expected="a list of texts", fix=fix)
    for prompt in prompts:
        tokens = len(tokens_of(tokenizer, check_text(prompt)).input_ids)
        if not tokens:
            raise UserError("prompt", got=repr(prompt), expected="at least one token", fix="begin the text, as in 'The'")
        room = (context_length(model) or 0) - tokens
        fix = f"lower --length to {room} or less" if room > 0 else "shorten the prompt"
        check_room(model, tokens + length, "prompt and length", fix)
    texts = [(i, prompt, k) for i, prompt in enumerate(prompts) for k in range(n * candidates)]
    warpers = [TemperatureLogitsWarper(float(temperature)), TopPLogitsWarper(top_p)]
    warpers[1:1] = [TopKLogitsWarper(top_k)] if top_k else []
    made: list[dict[str, Any]] = []
    for at in tqdm(
        range(0, len(texts), AT_ONCE), desc="texts", unit="batch", dynamic_ncols=True, disable=len(texts) <= AT_ONCE
    ):
        made += _write(model, tokenizer, texts[at : at + AT_ONCE], method, attribute, length, seed, warpers, traced)
    return [made[at : at + candidates] for at in range(0, len(made), candidates)]


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[int, str, int]],
    method: PPLM | Fudge | DExperts | GeDi | None,
    attribute: Attribute,
    length: int,
    seed: int,
    warpers: Sequence[Any],
    traced: bool,
) -> list[dict[str, Any]]:
    """Write one text after each of these prompts: (index of the prompt, prompt, index of the text)."""
    given = [prompt for _, prompt, _ in texts]
    encoded = tokens_of(tokenizer, given, return_tensors="pt", padding=True, padding_side="left")
    ids, mask = (encoded[key].to(model.device) for key in ("input_ids", "attention_mask"))
    start = ids.shape[1]
    noise = OwnNoise([(seed * 1009 + i) * 1009 + k for i, _, k in texts])
    steered = {} if method is None else {"custom_generate": method}
    recorder = ScoreRecorder()
    with packed(model):  # unsteered texts too, or the two could not be compared in speed
        output = model.generate(  # type: ignore[operator]  # transformers leaves it out of this type
            ids, attention_mask=mask, do_sample=False, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([*[recorder] * traced, *warpers, noise]), return_dict_in_generate=True,
            output_logits=traced, **steered,
        )  # fmt: skip
    written = output.sequences  # (b, t)
    after = written[:, start:]
    ends = model.generation_config.eos_token_id  # one or several
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    ended = torch.isin(after, torch.tensor([*ends], device=after.device)).cumsum(1) > 0
    real = torch.cat([mask.bool(), ~ended], 1)  # (b, t), without the end of the text
    likely, fluent = text_log_prob(model, written, real, start, attribute)
    continuations = [tokenizer.decode(row[~end], skip_special_tokens=True) for row, end in zip(after, ended)]
    perplexities = [None if x.isnan() else x.neg().exp().item() for x in fluent]
    figures = zip(texts, continuations, likely.tolist(), perplexities)
    rows = [{"prompt": prompt, "text": text, "attribute": a, "perplexity": p} for (_, prompt, _), text, a, p in figures]
    if traced:
        steps = zip(recorder.scores, output.logits, after.T[..., None])  # (b, v), (b, v) and (b, 1) of each token
        # unsteered probabilities, renormalised over the same top-k tokens, which alone would raise them
        pairs = [(to, of.masked_fill(to == -torch.inf, -torch.inf), token) for to, of, token in steps]
        both = [[x.float().log_softmax(-1).gather(1, token)[:, 0] for x in (to, of)] for to, of, token in pairs]
        raised = torch.stack([to - of for to, of in both], 1)  # (b, t)
        for row, tokens, each, end in zip(rows, after, raised, ended):
            row["words"] = words_raised(tokenizer, tokens[~end].tolist(), each[~end].tolist())
    return rows


class ScoreRecorder(LogitsProcessor):
    """A logits processor that changes nothing and keeps the scores of each step."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep the scores (b, v)."""
        self.scores.append(scores)
        return scores


def words_raised(tokenizer: PreTrainedTokenizerBase, tokens: list[int], raised: Sequence[float]) -> list[tuple[str, float]]:
    """Merge tokens into words, each with the space before it and the sum of ``raised`` over its tokens."""
    words: list[tuple[str, float]] = []
    decoded, carried = "", 0.0
    for n, more in enumerate(raised, 1):
        now, carried = str(tokenizer.decode(tokens[:n], skip_special_tokens=True)), carried + more
        if now.endswith("\N{REPLACEMENT CHARACTER}") and n < len(tokens):
            continue  # in the middle of a character of several tokens
        piece, decoded, more, carried = now[len(decoded) :], now, carried, 0.0
        if words and not piece[:1].isspace():  # continues the previous word
            word, before = words.pop()
            piece, more = word + piece, before + more
        words.append((piece, more))
    return words
