"""Rows of a card: missing values and labels of no class in every recipe, places in errors, and lines of tables."""

import importlib
import io
import re
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from commands import here
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmgen.cli.console import lines
from mmgen.data.batch import collate
from mmgen.data.cards import check_card, open_card, read_card
from mmgen.data.rows import DataSet, open_rows
from mmgen.data.sources.columns import missing_values, stored
from mmgen.data.sources.encode import wav
from mmgen.errors import UserError
from mmgen.judging.classifier import Judge, agreement, make_processor
from mmgen.judging.coherence import pairwise_coherence
from mmgen.modalities.features import cached_features
from mmgen.modalities.kinds import fit_processor
from mmgen.models.classifier import Classifier
from mmgen.training.config import read_yaml
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.run import Run

factorized = importlib.import_module("mmgen.recipes.factorized.train")
multimodal_vae = importlib.import_module("mmgen.recipes.multimodal_vae.train")

WORDS = ("zero", "one")
COLUMNS = {
    "image": {"kind": "image", "shape": [8, 8, 1], "unit": "grey", "range": [0, 255]},
    "word": {"kind": "text", "language": "en"},
    "label": {"kind": "label", "classes": ["zero", "one"]},
}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMGEN_DATA", raising=False)


def picture(i):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(256, size=(8, 8)).astype(np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def rows_of(n=12, **changes):
    """Good rows, with the value of some columns changed in row 5: its pictures are in files."""
    rows = [{"image": picture(i), "word": WORDS[i % 2], "label": i % 2} for i in range(n)]
    rows[5] |= changes
    return rows


@pytest.fixture
def card(tmp_path):
    """Writes a card and its rows, the same for every split, as Parquet."""

    def write(rows, **columns):

        columns = COLUMNS | columns
        fields = {
            "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            "audio": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            "text": pa.list_(pa.string()) if "shape" in columns["word"] else pa.string(),
            "label": pa.int64(),
            "vector": pa.list_(pa.float32()),
        }
        schema = pa.schema([(name, fields[spec["kind"]]) for name, spec in columns.items()])
        splits = dict.fromkeys(("train", "validation", "test"), len(rows))
        (tmp_path / "data").mkdir(exist_ok=True)
        for split in splits:
            pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "data" / f"{split}.parquet")
        ours = {"sources": [{"path": "data", "reader": "table"}], "columns": columns, "splits": splits}
        front = {"pretty_name": "Own", "license": "mit", "language": ["en"], "task_categories": ["other"],
                 "size_categories": ["n<1K"], "mmgen": ours}  # fmt: skip
        file = tmp_path / "own.md"
        file.write_text(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\nMade here.\n", encoding="utf-8")
        return file

    return write


# every recipe: what is missing

NAMED = {  # recipe -> the settings that name its columns
    "captioning": ["data.text=word", "fit_words.steps=1", "fit.steps=1"],
    "aligned": ["data.text=word"],
    "text_to_image": ["data.text=word", "data.label=label", "judge={}", "aligned={}"],
    "redescription_gan": ["data.text=word", "judge={}", "aligned={}"],
    "judge": [],
    "vae": [],
}


def train_first(name, card, tmp_path, monkeypatch, *overrides):
    """The data that the first stage of a recipe's smoke config trains on."""
    recipe, seen = load_recipe(name), []
    config = recipe_config(recipe, "smoke", [f"data.card={card}", *NAMED.get(name, []), *overrides])
    monkeypatch.setattr(Run, "fit", lambda run, model, data, *a, **k: seen.append(data))
    recipe.stages[0](recipe.run(tmp_path / "run"), config)
    return seen[-1]


@pytest.mark.parametrize("name", ["captioning", "aligned", "text_to_image", "redescription_gan"])
def test_a_missing_text_is_named_before_training(card, tmp_path, monkeypatch, name):
    place = re.escape(f"{card(rows_of(word=None))}: train: row 5: column word: got nothing, expected a value; fill it in")
    with pytest.raises(UserError, match=place):
        train_first(name, tmp_path / "own.md", tmp_path, monkeypatch)


@pytest.mark.parametrize("name", list(NAMED))
def test_a_missing_picture_is_named_before_training(card, tmp_path, monkeypatch, name):
    value = {"bytes": None, "path": None} if name == "vae" else None
    split = "validation" if name == "judge" else "train"  # what it trains on
    place = re.escape(f"{card(rows_of(image=value))}: {split}: row 5: column image: got nothing beside 'one', expected")
    with pytest.raises(UserError, match=place):
        train_first(name, tmp_path / "own.md", tmp_path, monkeypatch)


@pytest.mark.parametrize("name", [*NAMED, "multimodal_vae", "factorized"])
def test_a_damaged_picture_is_named_where_it_is_read(card, tmp_path, monkeypatch, name):
    file = card(rows_of(image={"bytes": picture(5)["bytes"][:60], "path": None}))
    place = re.escape(f"{file}: SPLIT: row 5: column image: image bytes: got a damaged or truncated image")
    place = place.replace("SPLIT", "(train|validation)")  # what is read first
    own = ["data.modalities.text.column=word"] if name in ("multimodal_vae", "factorized") else []
    with pytest.raises(UserError, match=place):
        data = train_first(name, file, tmp_path, monkeypatch, *own)
        for i in range(len(data)):
            data[i]


def test_frozen_features_name_the_row(card):
    rows = open_rows(str(card(rows_of(image={"bytes": b"GIF89a", "path": None}))), "test", ["image"])
    read = {"read": lambda x: {"y": x}, "process": lambda value: torch.zeros(len(value["bytes"]) > 9), "key": {}}
    with pytest.raises(UserError, match=r"test: row 5: column image: it"):

        def process(value):
            if value["bytes"] == b"GIF89a":
                raise UserError("it", got="a GIF", expected="none", fix="leave it")
            return torch.zeros(1)

        cached_features(**read | {"values": rows["image"], "process": process})
    with pytest.raises(UserError, match=r"test: row 5: column image: it"):
        cached_features(**read | {"values": rows.select([8, 5])["image"], "process": process})


@pytest.mark.parametrize("gone", [["word"], ["image"]])
def test_multimodal_vae_takes_rows_that_lack_a_modality(card, tmp_path, monkeypatch, gone):
    file = card(rows_of(**dict.fromkeys(gone)))
    data = train_first("multimodal_vae", file, tmp_path, monkeypatch, "data.modalities.text.column=word")
    names = {"word": "text", "image": "image"}
    assert [name for name, value in data[5].items() if value is None] == [names[name] for name in gone]
    assert all(value is not None for value in data[4].values())


@pytest.mark.parametrize("value", [None, "", " "])
def test_null_and_empty_texts_are_missing(card, value):
    with pytest.raises(UserError, match=r"train: row 5: column word: got (nothing|' *'), expected a value"):
        open_rows(str(card(rows_of(word=value))), "train", ["word"])


def test_a_row_that_lacks_every_modality_is_named(card, tmp_path, monkeypatch):
    file = card(rows_of(word=None, image=None))
    with pytest.raises(UserError, match=r"train: row 5: column image: got nothing in any modality"):
        train_first("multimodal_vae", file, tmp_path, monkeypatch, "data.modalities.text.column=word")


@pytest.fixture
def lacking(card):
    """A card of rows that lack a text, a picture and a label."""
    rows = rows_of(24, word=None)
    rows[7]["image"] = rows[9]["label"] = None
    return ["smoke", [f"data.card={card(rows)}", "data.modalities.text.column=word"]]


def test_multimodal_vae_is_judged_on_rows_that_lack_a_modality(lacking, tmp_path):
    recipe, (name, overrides) = load_recipe("multimodal_vae"), lacking
    overrides = [*overrides, "judges={}", "evaluation.items=12", "evaluation.features="]
    overrides += ["evaluation.likelihood_items=12", "evaluation.likelihood_samples=2"]
    config = recipe_config(recipe, name, overrides)
    model = multimodal_vae.build(config)
    model.save_pretrained(tmp_path / "model")
    assert all(np.isfinite(value) for value in recipe.evaluate(recipe.run(tmp_path), config, "test").figures().values())
    data = config.data.items(model.processors, "test")
    batch = collate([data[i] for i in range(24)], model.sequences)
    assert all(torch.isfinite(value) for value in model.losses(batch).values())


def test_coherence_counts_labelled_items_that_have_the_modality(lacking, monkeypatch):
    name, overrides = lacking
    config = recipe_config(load_recipe("multimodal_vae"), name, [*overrides, "judges={}"])
    model = multimodal_vae.build(config)
    data = config.data.items(model.processors, "test")
    labels = open_rows(config.data.card, "test", [], ["label"])["label"][:]
    judge = Judge(SimpleNamespace(class_names=["0"]), 1.0, "validation")  # of two classes it saw one
    monkeypatch.setattr(Judge, "reads", lambda self, processor, values: torch.zeros(len(values), dtype=torch.long))
    pairs = pairwise_coherence(model, dict.fromkeys(("image", "text"), judge), data, labels, torch.Generator())
    # 12 of 24 are of class 0 and 12 of class 1: rows 5, 7 and 9 are of class 1
    assert pairs == {"image to text": pytest.approx(12 / 22), "text to image": pytest.approx(12 / 22)}


def test_factorized_counts_what_is_left_with_nothing_as_wrong(lacking):
    name, overrides = lacking
    config = recipe_config(load_recipe("factorized"), name, overrides)
    model = factorized.build(config, "").eval()
    model.predict = lambda batch: torch.distributions.Categorical(probs=torch.tensor([[0.0, 1.0]] * batch.size))
    data, accuracy = config.data.items(model.processors, "test"), factorized.accuracy
    assert accuracy(model, data) == pytest.approx(11 / 23)  # of class 1, row 9 being without a label
    for lost in ("image", "text"):  # what row 5 or row 7 alone has
        assert accuracy(model, data, lambda batch, lost=lost: batch.without(lost)) == pytest.approx(10 / 23)
        assert 0 <= accuracy(model, data, lambda batch, lost=lost: factorized.zero_filled(batch, lost, lost == "text")) <= 1


VECTOR = {"kind": "vector", "shape": [2], "unit": "m", "range": [0, 1]}
AUDIO = {"kind": "audio", "rate": 8000, "unit": "amplitude", "range": [-1, 1]}


@pytest.mark.parametrize(
    ("spec", "good", "bad", "message"),
    [
        (
            AUDIO,
            wav([0.5] * 800, 8000),
            {"bytes": wav([0.5] * 800, 8000)["bytes"][:400], "path": None},
            "audio bytes: got a sound",
        ),
        (VECTOR, [0.0, 1.0], [0.0, float("nan")], "vector: got nan at entry 1"),
        (VECTOR, [0.0, 1.0], [0.0, None], "vector: got "),
    ],
)
def test_sounds_and_vectors_name_the_row_too(card, spec, good, bad, message):
    rows = [row | {"more": good} for row in rows_of()]
    rows[3]["more"] = None
    column = open_rows(str(card(rows, more=spec)), "train", [], ["more"])["more"]
    processor = fit_processor(spec["kind"], column)
    columns = DataSet(column.rows, {"x": column}, {"x": processor})
    assert columns[3] == {"x": None} and columns[4]["x"].isfinite().all()
    rows[5]["more"] = bad
    column = open_rows(str(card(rows, more=spec)), "train", [], ["more"])["more"]
    with pytest.raises(UserError, match=rf"own.md: train: row 5: column more: {message}"):
        DataSet(column.rows, {"x": column}, {"x": processor})[5]
    if spec == VECTOR:
        with pytest.raises(UserError, match=rf"own.md: train: row 5: column more: {message}"):
            fit_processor("vector", column)


def test_vectors_of_one_length_take_the_room_of_their_numbers(card):
    numbers = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    rows = [row | {"more": vector.tolist()} for row, vector in zip(rows_of(), numbers)]
    column = open_rows(str(card(rows, more=VECTOR)), "train", ["more"]).select([7, 2, 2])["more"]
    processor = fit_processor("vector", column)
    data = DataSet(column.rows, {"x": "more", "y": "more"}, {"x": processor})
    assert isinstance(data.values["x"], torch.Tensor) and data.values["x"].nbytes == 3 * 2 * 4
    for item, row in zip(data, (7, 2, 2)):
        assert torch.equal(item["x"], processor(rows[row]["more"])) and torch.equal(item["y"], torch.tensor(rows[row]["more"]))
    for odd, shape in ((None, 2), ([0.0, None], 2), ([0.0, 1.0, 2.0], None)):
        rows[2]["more"] = odd
        column = open_rows(str(card(rows, more=VECTOR | {"shape": [shape]})), "train", [], ["more"])["more"]
        assert column.vectors() is None and column[2] == odd


# labels


def test_a_missing_label_is_no_class(card, tmp_path, monkeypatch):
    data = train_first("judge", card(rows_of(label=None)), tmp_path, monkeypatch)
    assert len(data) == 11 and data.all("label").unique().tolist() == [0, 1]
    data = train_first("factorized", tmp_path / "own.md", tmp_path, monkeypatch, "data.modalities.text.column=word")
    assert len(data) == 11


@pytest.mark.parametrize("label", [2, -1])
@pytest.mark.parametrize("name", ["judge", "factorized"])
def test_a_label_of_no_class_is_refused(card, tmp_path, monkeypatch, name, label):
    own = ["data.modalities.text.column=word"] if name == "factorized" else []
    with pytest.raises(UserError, match=rf"row 5: column label: got {label}, expected a class of the card, \['zero', 'one'\]"):
        train_first(name, card(rows_of(label=label)), tmp_path, monkeypatch, *own)


def test_a_label_beyond_a_number_of_classes_says_which_there_are(card):
    own = card(rows_of(label=3), label={"kind": "label", "classes": 3})
    with pytest.raises(UserError, match=r"row 5: column label: got 3, expected a class of the card, a whole number 0\.\.2;"):
        open_rows(str(own), "train", ["label"])


def test_no_label_at_all(card, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"own.md: validation: label: got no value in any row"):
        train_first("judge", card([row | {"label": None} for row in rows_of()]), tmp_path, monkeypatch)


def test_classes_that_a_judge_never_saw_count_as_wrong(card, tmp_path, monkeypatch):
    """Of four classes the judge saw two, which it always tells right: half of what is labelled."""
    recipe = load_recipe("judge")
    rows = [{"image": picture(i), "word": "x", "label": i % 4 if i < 8 else None} for i in range(12)]
    config = recipe_config(recipe, "smoke", [f"data.card={card(rows, label={'kind': 'label', 'classes': 4})}"])
    processor = make_processor(config.data)
    model = Classifier("image", "image", list(processor.shape), 2, class_names=["0", "1"])
    model.processors["image"] = processor

    def predict(batch):
        return torch.distributions.Categorical(probs=torch.nn.functional.one_hot(batch["label"].clamp(min=0), 2).float())

    model.predict = predict
    monkeypatch.setattr(Run, "load", lambda run: model)
    assert recipe.evaluate(recipe.run(tmp_path), config, "test")["judge"]["accuracy"] == 0.5
    judge = Judge(model, 0.5, "validation")
    truth = judge.classes_of([0, 1, 2, None, 3])
    assert agreement(torch.tensor([0, 0, 1, 1, 1]), truth) == 0.25
    with pytest.raises(UserError, match="labels: got none of 2 items"):
        judge.classes_of([None, ""])


def test_a_judge_of_one_class_names_card_split_and_column(card, tmp_path, monkeypatch):
    path = card([{"image": picture(i), "word": "x", "label": 1} for i in range(8)])
    with pytest.raises(UserError, match=r"\.md: validation: column label: got one class, 1, expected two classes or more"):
        train_first("judge", path, tmp_path, monkeypatch, "data.split=validation")


@pytest.mark.parametrize("name", ["attribute", "factorized", "mag_sentiment"])
def test_a_card_of_one_class_is_named_before_training(card, name):
    recipe, more = load_recipe(name), {"attribute": ["data.text=word"], "factorized": [], "mag_sentiment": ["data.text=word"]}
    card = card(
        [{"image": picture(i), "word": "x", "label": 0} for i in range(8)], label={"kind": "label", "classes": ["only"]}
    )
    with pytest.raises(UserError, match=r": column label: got one class, only, expected two classes or more"):
        recipe_config(recipe, "smoke", [f"data.card={card}", *more[name]])


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("one", 1),
        ("1", 1),
        (1.0, 1),
        ("1.0", 1),
        ("NaN", None),
        ("null", None),
        (None, None),
        ("", None),
        (float("nan"), None),
        (7, 7),
    ],
)
def test_labels_are_stored_by_name_or_number(value, want):
    assert stored(COLUMNS["label"], value) == want


@pytest.mark.parametrize("value", ["two", 0.5, [1], "1.5", float("inf"), {"a": 1}, True])
def test_what_is_no_label(value):
    with pytest.raises(UserError, match=re.escape(f"label: got {value}")):
        stored(COLUMNS["label"], value)


# data check looks at all rows


def test_check_finds_what_is_missing_in_any_row(card):
    rows = rows_of(200)
    rows[150]["word"], rows[160]["word"], rows[170]["image"], rows[180]["label"] = None, " ", None, None
    rows[190]["label"] = 5
    problems = [str(problem) for problem in check_card(card(rows)) if ": test: " in str(problem)]
    assert [problem.partition(", expected")[0] for problem in problems] == [
        "own: test: row 170: column image: got nothing beside 'zero'",
        "own: test: row 150: column word: got nothing, and in 1 more of 200 rows",
        "own: test: row 180: column label: got nothing beside 'zero'",
        "own: test: row 190: column label: got 5 beside 'zero'",
    ]
    assert check_card(card(rows_of(200))) == []


def test_check_decodes_rows_spread_over_the_split_and_says_how_many(card):
    rows = rows_of(200)
    rows[199]["image"] = {"bytes": picture(1)["bytes"][:60], "path": None}
    problems = [str(problem) for problem in check_card(card(rows))]
    assert len(problems) == 3 and all("row 199: column image: image bytes: got a damaged" in problem for problem in problems)
    done = here("data", "check", card(rows_of()))
    assert done.returncode == 0 and "missing values and labels of all rows, and the values of up to 64 rows" in done.stdout


@pytest.mark.parametrize(("content", "kind"), [(b"\0" * 99, "image"), (b"RIFF", "audio"), (b"", "image"), (b"", "audio")])
def test_check_says_what_no_decoder_reads(card, content, kind):
    spec = COLUMNS["image"] if kind == "image" else AUDIO
    rows = [row | {"more": {"bytes": content, "path": "a.bin"}} for row in rows_of()]
    problems = [str(problem) for problem in check_card(card(rows, more=spec))]
    assert len(problems) == 3 and all("row 0: column more: a.bin: got" in problem for problem in problems)


@given(st.lists(st.none() | st.text(max_size=3) | st.sampled_from(["", " ", "\u2003"]), max_size=9))
def test_missing_texts(values):

    want = [value is None or not value.strip() for value in values]
    column = pa.chunked_array([pa.array(values, pa.string())])
    assert missing_values(column).tolist() == want
    assert missing_values(column.slice(1)).tolist() == want[1:]
    lists = pa.chunked_array([pa.array([None if v is None else ["a", v] for v in values], pa.list_(pa.string()))])
    assert missing_values(lists.slice(1)).tolist() == want[1:]


def test_a_list_of_no_texts_is_not_missing_and_one_with_a_null_is(card):
    several = {"word": {"kind": "text", "language": "en", "shape": [None]}}
    rows = [row | {"word": [row["word"]]} for row in rows_of(word="x")]
    rows[3]["word"] = []
    assert open_rows(str(card(rows, **several)), "train", ["word"])["word"].texts()[2:4] == [["zero"], []]
    rows[4]["word"] = ["a", None]
    with pytest.raises(UserError, match=r"row 4: column word: got \['a', None\]"):
        open_rows(str(card(rows, **several)), "train", ["word"])


# tables


@pytest.fixture
def table(tmp_path, card):
    """Writes a table for a card of words and labels, and opens it."""
    card(rows_of())

    def opened(name, content):
        for split in ("train", "validation", "test"):
            (tmp_path / "data" / f"{split}.parquet").unlink(missing_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
        text = (tmp_path / "own.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---")[1])
        front["mmgen"]["columns"].pop("image", None)
        (tmp_path / "own.md").write_text(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\nMade here.\n", encoding="utf-8")
        rows = open_card(tmp_path / "own.md", "train")[:]
        return list(zip(rows["word"], rows["label"]))

    return opened


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", b"word,label\nzero,0\none,1\n"),
        ("train.csv", BOM + b"word,label\r\nzero,zero\r\none,one\r\n\r\n"),
        ("train.csv", b"\nword,label\nzero,0\n\none,one\n,\n"),
        ("train.jsonl", b'{"word": "zero", "label": 0}\n{"word": "one", "label": "one"}\n\n'),
        ("train.jsonl", BOM + b'{"word": "zero", "label": "0"}\r\n\r\n{"word": "one", "label": 1}'),
    ],
)
def test_tables_as_people_write_them(table, name, content):
    assert table(name, content) == [("zero", 0), ("one", 1)]


def test_empty_cells_and_absent_keys_are_missing(table):
    assert table("train.csv", b"word,label\nzero,\n,1\n") == [("zero", None), (None, 1)]


def test_a_key_that_a_later_line_lacks_is_missing(table):
    assert table("train.jsonl", b'{"word": "zero", "label": 0}\n{"word": "one"}\n') == [("zero", 0), ("one", None)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", b"zero,0\none,two\n", r"own: train.csv: line 3: column label: got two, expected a class"),
        ("train.csv", b'"ze\nro",0\n\none,two\n', r"train.csv: line 5: column label: got two"),
        ("train.csv", b"zero,0\none\n", r"train.csv: line 3: got 1 cell, expected 2"),
        ("train.csv", b"zero,0,0\n", r"train.csv: line 2: got 3 cells, expected 2"),
        ("train.csv", b'zero,0\none,"1\ntwo,1\n', r"train.csv: line 3: got unexpected end of data"),
        ("train.csv", b"zero,0\n\xff,1\n", r"train.csv: line 3: got .*UTF-8"),
        ("train.jsonl", b"\n{oops\n", r"train.jsonl: line 3: got .*expected one JSON object a line"),
        ("train.jsonl", b"[1]\n", r"train.jsonl: line 2: got \[1\], expected one JSON object"),
        ("train.jsonl", b'{"word": ["b"], "label": 0}\n', r"train.jsonl: line 2: column word: got \['b'\]"),
        ("train.jsonl", b'{"word": "\xff"}\n', r"train.jsonl: line 2: got"),
    ],
)
def test_a_mistake_in_a_table_names_its_line(table, name, content, message):
    first = BOM + (b"word,label\n" if name.endswith(".csv") else b'{"word": "a", "label": 0}\n')
    with pytest.raises(UserError, match=message):
        table(name, first + content)


def test_cards_configs_and_questions_may_begin_with_a_byte_order_mark(card, tmp_path, monkeypatch):
    file = card(rows_of())
    file.write_bytes(BOM + file.read_bytes())
    assert read_card(file).name == "own" and check_card(file) == []
    (tmp_path / "own.yaml").write_bytes(BOM + b"seed: 3\n")
    assert read_yaml(tmp_path / "own.yaml") == {"seed": 3}
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffwho is it?\nwhy?\n"))
    assert list(lines()) == ["who is it?", "why?"]
