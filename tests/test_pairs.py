"""Pictures of a data card with their texts: one or several each, kept as bytes, and mistakes in them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmgen.data import rows as rows_module
from mmgen.data.image import ImageProcessor
from mmgen.data.pairs import Pairs, texts_of
from mmgen.data.text import train_tokenizer
from mmgen.errors import UserError

TEXTS = [["a cat", "the cat"], ["a dog", "a dog", "one dog"], ["a cat"]]
WORDS = train_tokenizer(["a cat", "the dog"], 270)


def picture(shade):
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) + np.uint8(shade)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def card(monkeypatch):
    """Stands for a card of three pictures with two, three and one texts; what was decoded is counted."""
    datasets = pytest.importorskip("datasets")
    rows = {"photo": [picture(20 * i) for i in range(len(TEXTS))], "told": list(TEXTS), "kind": [0, 1, 0]}

    def opened(card, split, limit=None):
        return datasets.Dataset.from_dict({name: column[:limit] for name, column in rows.items()})

    monkeypatch.setattr(rows_module, "open_card", opened)
    return rows


def test_an_item_is_a_picture_with_one_of_its_texts(card):
    data = Pairs("my", "train", ("photo", "told"), ImageProcessor(8, 1), WORDS, 20)
    assert data.texts == [text for texts in TEXTS for text in texts] == texts_of("my", "told")
    assert data.items == [0, 0, 1, 1, 1, 2] and len(data) == 6
    for i, row in enumerate(data.items):
        assert torch.equal(data[i]["text"], WORDS(data.texts[i])) and data[i]["image"][0, 0, 0] == 20 * row / 255
    assert [batch.size for batch in data.batches("all", 4)] == [4, 2]
    assert torch.equal(data.batch([5, 0])["image"], data.all()[[5, 0]])
    assert len(Pairs("my", "train", ("photo", "told"), ImageProcessor(8, 1), WORDS, 20, limit=1)) == 2


def test_pictures_alone_come_once_each(card):
    data = Pairs("my", "train", ("photo", "told"), ImageProcessor(8, 1))
    assert len(data) == 3 and data[2].keys() == {"image"} and data.all(2).shape == (2, 1, 8, 8)


def test_a_picture_is_what_the_processor_makes_of_it_and_is_decoded_once(card):
    process, decoded = ImageProcessor(8, 3, mean=[0.5, 0.4, 0.3], std=[0.5, 0.2, 0.1]), []
    data = Pairs("my", "train", ("photo", "told"), process, WORDS, 20)
    eye = data.eye
    data.eye = lambda value: decoded.append(value) or eye(value)
    for i, row in enumerate(data.items):
        torch.testing.assert_close(data[i]["image"], process(card["photo"][row]))
    assert len(decoded) == 3 and all(kept.dtype == torch.uint8 for kept in data.kept.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["a cat", " "], r"my: train: row 1: column told: got \['a cat', ' '\], expected a value"),
        (
            ["a cat" * 9],
            r"my: train: row 1: column told: got \d+ tokens: '(a cat){9}', expected at most 8; set data.text_length=",
        ),
    ],
)
def test_a_text_that_cannot_be_read_is_named_by_its_row(card, text, message):
    card["told"][1] = text
    with pytest.raises(UserError, match=message):
        Pairs("my", "train", ("photo", "told"), ImageProcessor(8, 1), WORDS, 8)
