"""What ``mmgen steer`` does: prompts in, what a language model writes after them with and without steering out."""

import typing
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

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

from mmgen.conditioning.attributes import Attribute, BagOfWords, Discriminator, Toward, TowardByText
from mmgen.conditioning.gradient import PPLM
from mmgen.conditioning.language_model import check_room, check_text, context_length
from mmgen.conditioning.ranking import OwnNoise, text_log_prob
from mmgen.conditioning.reweighting import Fudge, GeDi
from mmgen.data.batch import Batch
from mmgen.data.cards import card_names, open_card
from mmgen.data.text import tokens_of
from mmgen.errors import UserError, check_at_least, check_one_of
from mmgen.inference.generate import check_types
from mmgen.metrics.diversity import distinct
from mmgen.modalities.layers.packed import packed
from mmgen.models.aligned import Aligned
from mmgen.models.base import load
from mmgen.models.class_language_model import ClassLanguageModel
from mmgen.models.classifier import Classifier
from mmgen.training.config import parse_overrides
from mmgen.training.report import WrittenText, write_texts

ARMS = ("unsteered", "steered")
BAG = "bag_"  # the names of cards of bags begin so
METHODS: dict[str, type] = {"pplm": PPLM, "fudge": Fudge, "gedi": GeDi}
GIVEN = ("attribute", "streamer", "experts", "target")  # fields of a method that are no settings
SAMPLING = ("temperature", "top_k", "top_p", "threshold")  # options that are of `steer`; the others are of the method
AT_ONCE = 64  # texts that are written together
SAME = 0.9  # cosine from which two pictures of a shared space are as good as one


def topics() -> list[str]:
    """The topics whose bags of words come with mmgen."""
    return [card.removeprefix(BAG) for card in card_names() if card.startswith(BAG)]


def bag(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BagOfWords:
    """A bag of words by the name of a topic that comes with mmgen, or from a file with a word a line.

    Args:
        name: of a topic, such as ``space``, or a path. In a file a tab and a weight above 0 may follow a word.
        model, tokenizer: see `mmgen.conditioning.language_model.load_language_model`.

    Raises:
        UserError: there is neither, the file is not text, or a weight is no number.
    """
    if name in topics():
        return BagOfWords(model, tokenizer, open_card(f"{BAG}{name}", "train")["word"][:])
    if not Path(name).is_file():
        if Path(name).suffix or len(Path(name).parts) != 1:
            expected = "a topic, or a file with a word a line"
            raise UserError(f"bag {name}", got="no such file", expected=expected, fix="check the path")
        check_one_of("bag", name, topics())
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"bag {name}", got=str(error), expected="a text with a word a line", fix="save it as UTF-8") from error
    weights: dict[str, float] = {}
    for number, (word, _, weight) in enumerate((line.rstrip().partition("\t") for line in lines), 1):
        try:
            weights[word] = float(weight or 1)
        except ValueError as error:
            fix = "write the word, a tab and a number"
            what = f"bag {name}: line {number}: weight of {word!r}"
            raise UserError(what, got=weight, expected="a number above 0", fix=fix) from error
    return BagOfWords(model, tokenizer, weights)


def attribute(name: str, run: str, model: PreTrainedModel) -> Discriminator:
    """A class by its name, as the classifier of hidden states in ``run`` has it.

    Args:
        name: of the class, such as ``positive``.
        run: of the recipe ``attribute``.
        model: the language model, of the width that the classifier was trained on.

    Raises:
        UserError: another model, one for another language model's width, or a class that it has not.
    """
    head = load(run)
    if not isinstance(head, Classifier) or head.inputs != ("hidden",):
        fix = "train one with `mmgen train attribute`"
        raise UserError(run, got=f"the model {head.name}", expected="a classifier of hidden states", fix=fix)
    standard, width = head.processors["hidden"], model.config.get_text_config().hidden_size
    if standard.shape != (width,):
        got, fix = f"hidden states of {standard.shape[0]} numbers", "train one for this language model"
        raise UserError(f"attribute {run}", got=got, expected=f"{width}, as this language model has", fix=fix)
    check_one_of("attribute", name, head.class_names)
    head.to(model.device).requires_grad_(False)
    mean, std = (torch.tensor(x, device=model.device) for x in (standard.mean, standard.std))

    def logits(hidden: Tensor) -> Tensor:
        return head.predict(Batch({"hidden": (hidden - mean) / std})).logits

    return Discriminator(logits, head.class_names.index(name))


def experts(name: str, run: str, model: PreTrainedModel) -> dict[str, Any]:
    """What `GeDi` takes beside an attribute, to steer toward a class: the ``experts`` of ``run``, and its number, ``target``.

    Args:
        name: of the class, such as ``positive``.
        run: of the recipe ``attribute``, or one of its stage ``experts``.
        model: the language model, that the experts were trained on.

    Raises:
        UserError: another model, one for another language model, or a class that it has not.
    """
    stage = Path(run) / "stages" / "experts"
    found = load(stage if stage.is_dir() else run)
    if not isinstance(found, ClassLanguageModel):
        fix = "train them with `mmgen train attribute`"
        raise UserError(run, got=f"the model {found.name}", expected="a language model of each class", fix=fix)
    theirs, own = (lm.get_output_embeddings().weight.to(model.device).float() for lm in (found.language_model, model))
    if theirs.shape != own.shape or not torch.allclose(theirs, own, rtol=0.01, atol=1e-3):
        got = f"those of another one, of {theirs.shape[1]} numbers and {len(theirs)} tokens"
        expected = f"experts of this language model, of {own.shape[1]} numbers and {len(own)} tokens"
        raise UserError(f"experts {run}", got=got, expected=expected, fix="train them for this language model")
    check_one_of("attribute", name, found.class_names)
    found.to(model.device).requires_grad_(False)
    found.language_model = model  # the same one, once in memory
    return {"experts": found.logits, "target": found.class_names.index(name)}


def toward(
    file: str, run: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, whole: bool = False
) -> Toward | TowardByText:
    """A picture, or a sound, as the shared space in ``run`` compares texts with it.

    Args:
        file: a picture or a sound, whichever the space holds.
        run: of the recipe ``aligned``; the pictures that it remembers are what the text should not name.
        model, tokenizer: of the language model whose embeddings the space was trained on.
        whole: whole texts, by the sentence embedder of the space, and not the next words.

    Raises:
        UserError: no such file, or one of another kind; another model; one for another language model, or without a sentence
            embedder.
    """
    space = load(run)
    if not isinstance(space, Aligned):
        expected, fix = "a shared space of texts and pictures or sounds", "train one with `mmgen train aligned`"
        raise UserError(run, got=f"the model {space.name}", expected=expected, fix=fix)
    table, known = model.get_input_embeddings().weight, space.table.weight.to(model.device)
    if table.shape != known.shape or not torch.allclose(table.float(), known.float(), rtol=0.01, atol=1e-3):
        got, expected = "a shared space for another language model's tokens", f"one for {len(table)} of width {table.shape[1]}"
        raise UserError(f"aligned {run}", got=got, expected=expected, fix="train one for this language model")
    space.to(model.device).requires_grad_(False)
    value = space.processors[space.modality](file).to(model.device)
    target = space.encode(Batch({space.modality: value[None]}))[space.modality].mean[0]  # (s,)
    others = space.references[space.references @ target < SAME]
    if whole:
        if "sentence" not in space.towers:
            fix = "train one with `mmgen train aligned --config sentences`"
            raise UserError(f"aligned {run}", got="no sentence embedder", expected="one, for whole texts", fix=fix)
        read, decode = partial(space.points, modality="sentence"), partial(tokenizer.batch_decode, skip_special_tokens=True)
        return TowardByText(read, decode, target, others, space.scale.item())
    words = torch.cat([space.word_features(rows) for rows in table.detach().split(4096)])  # (v, w), once for all texts
    unread = tokenizer.all_special_ids  # such as padding
    return Toward(space.encode_features, words, target, others, space.scale.item(), unread=unread)


def settings(options: Sequence[str], method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options ``key=value`` of the command, as settings of a method of `METHODS` and of `steer`.

    Args:
        options: texts ``key=value``.
        method: a key of `METHODS`.

    Raises:
        UserError: an unknown one, one of another type or, of the method, out of its range.

    >>> settings(["step_size=0.05", "top_k=0"], "pplm")
    ({'step_size': 0.05}, {'top_k': 0})
    """
    kind = METHODS[check_one_of("method", method, METHODS)]
    values, own = parse_overrides(list(options)), [f.name for f in fields(kind) if f.name not in GIVEN]
    for name in values:
        check_one_of("option", name, [*own, *SAMPLING])
    types = typing.get_type_hints(kind) | typing.get_type_hints(steer) | typing.get_type_hints(write)
    check_types(values, types, f"{kind.__name__}, steer and write")
    of_method = {k: v for k, v in values.items() if k in own}
    given = {"experts": len, "target": 0} if method == "gedi" else {}
    kind(Discriminator(len, 0), **of_method, **given)  # tells a value out of its range before anything is loaded
    return of_method, {k: v for k, v in values.items() if k in SAMPLING}


def steer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    method: PPLM | Fudge | GeDi,
    threshold: float = 0.0,
    ranked: Attribute | None = None,
    **writing: Any,
) -> list[dict[str, Any]]:
    """Continue prompts with and without steering, drawn by the same random numbers.

    Args:
        model, tokenizer: see `mmgen.conditioning.language_model.load_language_model`.
        prompts: one or more.
        method: the attribute and how to steer toward it.
        threshold: see `best`.
        ranked: the attribute by which `best` chooses; None: that of the method.
        writing: ``n``, ``candidates``, ``length``, ``seed``, ``temperature``, ``top_k``, ``top_p`` and ``traced`` of `write`.

    Returns:
        For each prompt, text and arm (``unsteered``, ``steered``) a dict of ``arm`` and of what `write` says of the best
        candidate.

    Raises:
        UserError: what `write` refuses.
    """
    check_threshold(threshold)
    arms = [write(model, tokenizer, prompts, ranked or method.attribute, m, **writing) for m in (None, method)]
    return [{"arm": arm, **best(rivals, threshold)} for both in zip(*arms) for arm, rivals in zip(ARMS, both)]


def best(rivals: Sequence[dict[str, Any]], threshold: float = 0.0) -> dict[str, Any]:
    """The candidate of which the attribute is likeliest, among those that do not repeat themselves.

    Args:
        rivals: candidates for one text.
        threshold: the mean of dist-1, -2 and -3 that one must have, 0 to 1, unless none has.

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
    """Fail unless it is a mean of dist-1, -2 and -3.

    Raises:
        UserError: it is out of its range.
    """
    if not 0 <= threshold <= 1:
        raise UserError("threshold", got=threshold, expected="0 to 1", fix="use 0.8 for example")


def write_page(path: Path, made: Sequence[dict[str, Any]], command: str) -> None:
    """Write the texts of a traced `steer` as a page, unsteered beside steered, the words that were raised in colour.

    Args:
        path: the file.
        made: what `steer` returned.
        command: that made them.
    """
    texts = [
        WrittenText(row["arm"], row["prompt"], row["words"], f"log p(attribute) {row['attribute']:.2f}, perplexity "
                    + ("-" if row["perplexity"] is None else f"{row['perplexity']:.1f}"))
        for row in made
    ]  # fmt: skip
    pairs = [texts[i : i + len(ARMS)] for i in range(0, len(texts), len(ARMS))]
    summary = (
        "The stronger a word's colour, the likelier steering made it where it stands; under the mouse, by what logarithm."
    )
    write_texts(path, "Texts with and without steering", pairs, {"command": command}, summary)


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    attribute: Attribute,
    method: PPLM | Fudge | GeDi | None = None,
    n: int = 1,
    candidates: int = 1,
    length: int = 50,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 10,
    top_p: float = 1.0,
    traced: bool = False,
) -> list[list[dict[str, Any]]]:
    """Continue prompts, and say what the unsteered language model makes of each text.

    Args:
        model, tokenizer: see `mmgen.conditioning.language_model.load_language_model`.
        prompts: one or more.
        attribute: that the texts are ranked by.
        method: how they are steered; None: not at all.
        n: texts a prompt.
        candidates: r, that are written for each text.
        length: tokens of a text.
        seed: 0 or more; each text has a generator of its own, so it does not depend on the others.
        temperature, top_k, top_p: of the sampling; top_k 0 takes all.
        traced: tell of each word how much steering raised it.

    Returns:
        The candidates for each prompt and text: dicts of ``prompt``, ``text`` (what follows it), ``attribute``,
        log p(attribute | text), and ``perplexity``. Of an empty text they are -inf and None. Of those that are traced also
        ``words``: pairs of a word as it stands in ``text`` and the logarithm of its steered over its own probability, among
        the tokens that the method may write.

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
    method: PPLM | Fudge | GeDi | None,
    attribute: Attribute,
    length: int,
    seed: int,
    warpers: Sequence[Any],
    traced: bool,
) -> list[dict[str, Any]]:
    """One text after each of these prompts: (number of the prompt, prompt, number of the text)."""
    given, left = [prompt for _, prompt, _ in texts], {"padding": True, "padding_side": "left"}
    encoded = tokens_of(tokenizer, given, return_tensors="pt", **left)
    ids, mask = (encoded[key].to(model.device) for key in ("input_ids", "attention_mask"))
    start = ids.shape[1]
    noise = OwnNoise([(seed * 1009 + i) * 1009 + k for i, _, k in texts])
    steered = {} if method is None else {"custom_generate": method}
    kept = _Kept()
    with packed(model):  # unsteered texts too, or the two could not be compared in speed
        output = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([*[kept] * traced, *warpers, noise]), return_dict_in_generate=True,
            output_logits=traced, **steered,
        )  # fmt: skip
    written = output.sequences  # (b, t)
    after = written[:, start:]
    ends = model.generation_config.eos_token_id  # one or several
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    ended = torch.isin(after, torch.tensor([*ends], device=after.device)).cumsum(1) > 0
    real = torch.cat([mask.bool(), ~ended], 1)  # (b, t), without the end of the text
    likely, fluent = text_log_prob(model, written, real, start, attribute)
    said = [tokenizer.decode(row[~end], skip_special_tokens=True) for row, end in zip(after, ended)]
    fluent = [None if x.isnan() else x.neg().exp().item() for x in fluent]
    figures = zip(texts, said, likely.tolist(), fluent)
    rows = [{"prompt": prompt, "text": text, "attribute": a, "perplexity": p} for (_, prompt, _), text, a, p in figures]
    if traced:
        pairs = zip(kept.scores, output.logits, after.T[..., None])  # (b, v), (b, v) and (b, 1) of each token
        # held against the unsteered among the same tokens: what a cut to the likeliest adds, steering did not
        pairs = [(to, of.masked_fill(to == -torch.inf, -torch.inf), token) for to, of, token in pairs]
        both = [[x.float().log_softmax(-1).gather(1, token)[:, 0] for x in (to, of)] for to, of, token in pairs]
        raised = torch.stack([to - of for to, of in both], 1)  # (b, t)
        for row, tokens, each, end in zip(rows, after, raised, ended):
            row["words"] = _words(tokenizer, tokens[~end].tolist(), each[~end].tolist())
    return rows


class _Kept(LogitsProcessor):
    """Keeps the scores that it is given, step by step."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores.append(scores)
        return scores


def _words(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], raised: Sequence[float]) -> list[tuple[str, float]]:
    """Words as they are written, a space before, and of each the sum over its tokens."""
    words: list[tuple[str, float]] = []
    said, carried = "", 0.0
    for n, more in enumerate(raised, 1):
        now, carried = tokenizer.decode(tokens[:n], skip_special_tokens=True), carried + more
        if now.endswith("\N{REPLACEMENT CHARACTER}") and n < len(tokens):
            continue  # in the middle of a character of several tokens
        piece, said, more, carried = now[len(said) :], now, carried, 0.0
        if words and not piece[:1].isspace():  # it goes on
            word, before = words.pop()
            piece, more = word + piece, before + more
        words.append((piece, more))
    return words
