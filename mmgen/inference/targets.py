"""Targets of steering by name: a bag of words, a class, a picture or a sound."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmgen.conditioning.attributes import BagOfWords, Discriminator, Toward, TowardByText
from mmgen.data.batch import Batch
from mmgen.data.cards import card_names, open_card
from mmgen.errors import UserError, check_one_of
from mmgen.models.aligned import Aligned
from mmgen.models.base import load
from mmgen.models.class_language_model import ClassLanguageModel
from mmgen.models.classifier import Classifier

BAG = "bag_"  # prefix of the data cards of bags of words
SAME = 0.9  # cosine from which two pictures of a shared space count as one


def topics() -> list[str]:
    """The topics whose bags of words come with mmgen."""
    return [card.removeprefix(BAG) for card in card_names() if card.startswith(BAG)]


def bag(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BagOfWords:
    """A bag of words, by the name of a topic that comes with mmgen, or from a file with a word a line.

    Args:
        name: a topic, such as ``space``, or a path. In the file, a tab and a weight above 0 may follow a word.
        model, tokenizer: see `mmgen.conditioning.language_model.load_language_model`.

    Raises:
        UserError: no such topic or file, the file is not text, or a weight is no number.
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
    """A class of the classifier of hidden states in ``run``.

    Args:
        name: the class, such as ``positive``.
        run: a run of the recipe ``attribute``.
        model: the language model, of the width that the classifier was trained on.

    Raises:
        UserError: not such a classifier, one for language models of another width, or an unknown class.
    """
    head = load(run)
    if not isinstance(head, Classifier) or head.inputs != ("hidden",):
        fix = "train one with `mmgen train attribute`"
        raise UserError(run, got=f"the model {head.name}", expected="a classifier of hidden states", fix=fix)
    standard, width = head.processors["hidden"], model.config.get_text_config().hidden_size
    if standard.shape != (width,):
        got, fix = f"hidden states of {standard.shape[0]} numbers", "train one for this language model"
        raise UserError(f"attribute {run}", got=got, expected=f"{width}, as this language model has", fix=fix)
    names = head.class_names or []
    check_one_of("attribute", name, names)
    head.to(model.device).requires_grad_(False)
    mean, std = (torch.tensor(x, device=model.device) for x in (standard.mean, standard.std))

    def logits(hidden: Tensor) -> Tensor:
        return head.predict(Batch({"hidden": (hidden - mean) / std})).logits

    return Discriminator(logits, names.index(name))


def experts(name: str, run: str, model: PreTrainedModel) -> dict[str, Any]:
    """``experts`` of ``run`` and ``target``, the index of a class: arguments of `DExperts` and `GeDi`.

    Args:
        name: the class, such as ``positive``.
        run: a run of the recipe ``attribute``, or its stage ``experts``.
        model: the language model that the experts were trained on.

    Raises:
        UserError: no experts, those of another language model, or an unknown class.
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
    found.language_model = model  # share the weights
    return {"experts": found.logits, "target": found.class_names.index(name)}


def toward(
    file: str, run: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, whole: bool = False
) -> Toward | TowardByText:
    """A picture or a sound, compared with texts in the shared space of ``run``.

    Args:
        file: a picture or a sound, whichever the space holds.
        run: a run of the recipe ``aligned``; its reference pictures are the contrast.
        model, tokenizer: the language model whose embeddings the space was trained on.
        whole: compare whole texts, by the sentence embedder of the space, instead of the next words.

    Raises:
        UserError: no such file, or one of another kind; no shared space, one for another language model, or one without a
            sentence embedder.
    """
    space = load(run)
    if not isinstance(space, Aligned):
        expected, fix = "a shared space of texts and pictures or sounds", "train one with `mmgen train aligned`"
        raise UserError(run, got=f"the model {space.name}", expected=expected, fix=fix)
    table = model.get_input_embeddings().get_parameter("weight")
    known = space.table.weight.to(model.device)
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
