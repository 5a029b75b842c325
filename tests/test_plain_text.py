"""Text as text: the name of a special token in what people wrote is never the token."""

import ast
from pathlib import Path

import pytest
import torch

from mmgen.conditioning.attributes import BagOfWords
from mmgen.conditioning.few_shot import Format, answer_tokens
from mmgen.conditioning.gradient import PPLM
from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.prefix import PrefixLanguageModel
from mmgen.conditioning.representations import representation
from mmgen.conditioning.text_encoder import embed_sentences, load_text_encoder
from mmgen.inference import steer
from mmgen.models import edit, style_transfer
from mmgen.models.answerer import Answerer
from mmgen.models.captioner import Captioner
from mmgen.models.style.spelling import pieces_of
from mmgen.models.style.steered_copy import SteeredCopy
from mmgen.training.stages.captioner import caption_vocabulary
from tests.tiny import TINY_CAPTIONER

ROOT = Path(__file__).parent.parent
NAMES = ("<pad>", "<bos>", "<eos>")
WORDS = " ".join(NAMES)
SPECIAL = {0, 1, 2}


@pytest.fixture(scope="module")
def tiny():
    return load_language_model("tiny", "fp32")


@pytest.fixture
def read(monkeypatch, tiny):
    """The ids that the language model reads."""
    model, seen = tiny[0], []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    yield seen
    hook.remove()


def test_prompts_and_questions():
    reader = PrefixLanguageModel("tiny", "fp32")
    assert not SPECIAL & {*reader.tokens(WORDS).tolist()}
    assert reader.tokenizer.decode(reader.tokens(WORDS)) == WORDS
    assert reader.prompt([[WORDS]]).embeddings.shape[1] == len(WORDS)
    ended = answer_tokens(reader, Format("{question} {answer}"), WORDS).tolist()
    assert ended[-1] == 2 and not SPECIAL & {*ended[:-1]}
    model = Answerer(TINY_CAPTIONER, support=[("a red dot", "is it red?", "yes")])
    row = model.row(WORDS, WORDS, WORDS)
    assert not SPECIAL & {*row["question"].tolist(), *row["text"].tolist(), *row["caption"].tolist()[:-1]}


def test_a_template_of_a_developer_names_tokens():
    reader = PrefixLanguageModel("tiny", "fp32")
    assert torch.equal(reader.template("<bos>a"), reader.embed(torch.tensor([1, *reader.tokens("a")])))
    assert len(Captioner(**{**TINY_CAPTIONER, "before": "<bos>", "between": "", "after": ""}).text["before"]) == 1


def test_the_words_of_captions():
    tokens = caption_vocabulary(TINY_CAPTIONER["language_model"], "fp32", [WORDS, "a"])
    assert not SPECIAL & {*tokens}
    text = Captioner(**TINY_CAPTIONER, vocabulary=tokens).processors["text"]
    assert {*text(WORDS).tolist()} <= {*tokens, 2}  # what is taught can be said


def test_steering(tiny, read):
    model, tokenizer = tiny
    bag = BagOfWords(model, tokenizer, [*NAMES])
    assert bag.tokens == {name: len(f" {name}") for name in NAMES}
    read.clear()
    made = steer.steer(model, tokenizer, [WORDS], PPLM(bag, iterations=1), length=2)
    assert made[0]["prompt"] == WORDS
    assert read and not SPECIAL & {*read[0].flatten().tolist()}


def test_copies_that_are_steered(tiny, read):
    copies = SteeredCopy(*tiny, ["bad", "good"], [["bad"], ["good"]])
    read.clear()
    copies.restyle([WORDS], "good")
    assert not SPECIAL & {*read[0].flatten().tolist()}


def test_features_of_texts(tiny, read):
    representation(*tiny, WORDS, [1])
    assert not SPECIAL & {*read[0].flatten().tolist()}
    assert len(read[0][0]) == len(WORDS)
    encoder, tokenizer = load_text_encoder("tiny")
    some = embed_sentences(encoder, tokenizer, ["a <pad>", "a ", "a"])
    assert (some[0] @ some[1]) < 0.999


@pytest.mark.parametrize("module", [edit, style_transfer])
def test_words_of_styles(module, monkeypatch):
    counted, count = [], module.style_counts
    monkeypatch.setattr(module, "style_counts", lambda sentences, *more: counted.extend(sentences) or count(sentences, *more))
    learn = {edit: edit.Edit, style_transfer: style_transfer.StyleTransfer}[module].learn
    model = learn(["<pad> it is good", "it is <eos> bad"] * 4, [1, 0] * 4, ["bad", "good"])
    _, _, pieces = pieces_of(["<pad> it <eos>"], model.processors["text"].tokenizer)
    words = [word for _, piece in pieces for word, _, _ in piece]
    assert len(words) == 7  # < pad > it < eos >
    assert counted and not SPECIAL & {*words, *(word for sentence in counted for word in sentence)}


def test_every_text_is_tokenised_in_one_place():
    for file in (f for folder in ("mmgen", "recipes") for f in (ROOT / folder).rglob("*.py")):
        if file == ROOT / "mmgen" / "data" / "text.py":
            continue
        for call in (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            assert name != "tokenizer", f"{file}:{call.lineno}: use mmgen.data.text.tokens_of"
            assert name not in ("encode_plus", "batch_encode_plus", "apply_chat_template"), f"{file}:{call.lineno}: {name}"
            if name in ("encode", "tokenize") and isinstance(call.func, ast.Attribute):
                assert "tokenizer" not in ast.unparse(call.func.value), f"{file}:{call.lineno}: use mmgen.data.text.tokens_of"
