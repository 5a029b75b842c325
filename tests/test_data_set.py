"""Items of tensors from a data card: texts of a picture, features, labels, what is kept, data workers, and mistakes."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mmgen.data import rows as rows_module
from mmgen.data.image import ImageProcessor
from mmgen.data.label import UNKNOWN, UNLABELLED, class_indices
from mmgen.data.rows import DataSet, open_rows, texts_of
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


def data_of(image=None, text=WORDS, text_length=None, limit=0, **options):
    names = ["photo", *(["told"] if text else [])]
    rows = open_rows("my", "train", names, limit=limit)
    columns = {"image": "photo"} | ({"text": "told"} if text else {})
    processors = {"image": image or ImageProcessor(8, 1), "text": text}
    return DataSet(rows, columns, processors, "text" if text else "", text_length, **options)


def test_an_item_is_a_picture_with_one_of_its_texts(card):
    data = data_of()
    assert data.texts == [text for texts in TEXTS for text in texts] == texts_of("my", "told")
    assert data.row_of == [0, 0, 1, 1, 1, 2] and len(data) == 6
    for i, row in enumerate(data.row_of):
        assert torch.equal(data[i]["text"], WORDS(data.texts[i])) and data[i]["image"][0, 0, 0] == 20 * row / 255
    assert [batch.size for batch in data.batches("all", 4)] == [4, 2]
    assert torch.equal(data.batch([5, 0])["image"], data.all("image")[[5, 0]])
    assert len(data_of(limit=1)) == 2


def test_pictures_alone_come_once_each(card):
    for data in (data_of(text=None), data_of().without("text")):
        assert len(data) == 3 and data[2].keys() == {"image"} and data.all("image", 2).shape == (2, 1, 8, 8)


def test_texts_alone_come_each_and_show_no_picture(card):
    blind = data_of().keep("text")
    assert len(blind) == 6 and blind[5].keys() == {"text"} and blind.batch([0, 2]).masks["text"].all(1).any()


def test_a_picture_is_what_the_processor_makes_of_it_and_is_decoded_once(card, monkeypatch):
    process, decoded = ImageProcessor(8, 3, mean=[0.5, 0.4, 0.3], std=[0.5, 0.2, 0.1]), []
    data, pixels = data_of(process), ImageProcessor.pixels
    expected = [process(value) for value in card["photo"]]
    monkeypatch.setattr(ImageProcessor, "pixels", lambda self, value: decoded.append(value) or pixels(self, value))
    for i, row in enumerate(data.row_of):
        assert torch.equal(data[i]["image"], expected[row])
    assert len(decoded) == 3 and {kept.dtype for kept in data.cache.kept.values()} == {torch.uint8, torch.int64}


def test_a_text_or_a_recording_that_rows_share_is_processed_once(card):
    read, heard = [], []

    class Sound:
        kind = "audio"

        def __call__(self, value):
            heard.append(value)
            return torch.zeros(1)

    card["sound"] = [{"bytes": b"a", "path": None}, {"bytes": b"a", "path": None}, {"bytes": b"b", "path": None}]
    rows = open_rows("my", "train", ["told", "sound"])
    columns = {"text": "told", "sound": "sound"}
    data = DataSet(rows, columns, {"text": lambda text: read.append(text) or WORDS(text), "sound": Sound()}, each="text")
    assert len([*data]) == 6 and len(read) == len({text for texts in TEXTS for text in texts}) and len(heard) == 2


def test_numbers_features_and_labels_stand_beside_columns_of_the_card(card):
    card["kind"][1] = None
    rows, features = open_rows("my", "train", ["told"], limit=0), torch.randn(3, 2)
    labels = class_indices(["cat", None, "cow"], ["cat", "dog"])
    columns = {"features": features, "kind": "kind", "label": labels, "text": "told"}
    data = DataSet(rows, columns, {"text": WORDS}, each="text").with_values(number=torch.arange(6))
    assert torch.equal(data.all("features"), features[data.row_of]) and data.sequences == ["text"]
    assert [data.has("kind", i) for i in range(6)] == [True, True, False, False, False, True] and data[2]["kind"] is None
    assert data.batch(range(6))["label"].tolist() == [0, 0, UNLABELLED, UNLABELLED, UNLABELLED, UNKNOWN]
    assert data.all("number").tolist() == [0, 1, 2, 3, 4, 5] and data.raw("kind") == [0, 0, None, None, None, 0]
    assert data.without("text").names == ["features", "kind", "label"]


def test_rows_of_one_group_are_one_item(card):
    rows = open_rows("my", "train", ["photo"])
    data = DataSet(rows, {"image": "photo", "number": [7.0, 8.0, 9.0]}, {"image": ImageProcessor(8, 1)}).grouped("kind")
    assert [item["number"].tolist() for item in data] == [[7.0, 9.0], [8.0]] and data[0]["image"].shape == (2, 1, 8, 8)
    assert data.batch([0, 1]).masks["number"].tolist() == [[True, True], [True, False]]


def test_what_is_kept_is_bounded_and_the_last_used_stays(card):
    entry = 512 + 64  # a picture of 8 x 8 bytes
    data = data_of(text=None, cache=2 * entry)
    whole = data_of(text=None)
    for i in (0, 1, 2, 0, 2, 1):
        assert torch.equal(data[i]["image"], whole[i]["image"]) and data.cache.size <= 2 * entry
    assert [place for _, place in data.cache.kept] == [2, 1] and whole.cache.size == 3 * entry
    none = data_of(cache=0)
    assert torch.equal(none.all("image"), data_of().all("image")) and none.cache.size == 0


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_workers_read_the_same(card, start):
    data = data_of()
    data.all("image")
    loaded = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=start)
    for item, expected in zip(loaded, data, strict=True):
        assert item.keys() == expected.keys() and all(torch.equal(item[name], expected[name]) for name in item)
    assert len(pickle.loads(pickle.dumps(data)).cache.kept) == 0 < len(data.cache.kept)


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
        data_of(text_length=8)
