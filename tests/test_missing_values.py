"""Missing values as pandas and JSON write them, and values of another type: neither is a class, nor a caption."""

import json

import pytest

from mmgen.data.cards import check_card, check_column, class_names, open_card, read_card
from mmgen.data.rows import open_rows
from mmgen.data.sources.columns import stored
from mmgen.errors import UserError

NAN = float("nan")
LABEL = {"kind": "label", "classes": ["cat", "dog"]}
TEXT = {"kind": "text", "language": "en"}
TEXTS = {**TEXT, "shape": [None]}


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path_factory.mktemp("cache")))


def lines(folder, rows):
    text = "".join(json.dumps({"text": f"text number {i}", **row}) + "\n" for i, row in enumerate(rows))
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def table(folder, labels):
    text = "".join(f"text number {i},{label}\n" for i, label in enumerate(labels))
    (folder / "train.csv").write_text("text,label\n" + text, encoding="utf-8")
    return str(folder)


def test_nan_is_no_class(tmp_path):
    card = lines(tmp_path, [{"label": NAN if i % 3 == 0 else float(i % 2)} for i in range(40)])
    assert class_names(read_card(card), "label") == ["0", "1"]
    assert any("column label: got nothing" in str(problem) for problem in check_card(card))
    rows = [label for split in read_card(card).splits for label in open_card(card, split)["label"]]
    assert rows.count(None) == 14 and set(rows) == {None, 0, 1}


@pytest.mark.parametrize("word", ["NaN", "nan", "null", "None", "NA", '"NA"'])
def test_words_for_missing_are_no_classes_of_a_csv(tmp_path, word):
    card = table(tmp_path, [word if i % 3 == 0 else ("cat", "dog")[i % 2] for i in range(40)])
    assert class_names(read_card(card), "label") == ["cat", "dog"]


@pytest.mark.parametrize(("missing", "count"), [(2, "1 more row"), (3, "2 more rows")])
def test_how_many_rows_lack_a_value(tmp_path, missing, count):
    rows = [{"split": "train", "label": NAN if i < missing else i % 2} for i in range(20)]
    with pytest.raises(UserError, match=rf"row 0: column label: got nothing .*\(as in {count}\)"):
        open_rows(lines(tmp_path, rows), "train", ["label"])


def test_a_nan_caption_is_missing_and_a_number_is_named(tmp_path):
    rows = [{"caption": NAN if i == 5 else f"a dog {i}"} for i in range(12)]
    card = lines(tmp_path, rows)
    assert read_card(card).columns["caption"] == {"kind": "text", "language": "und"}
    assert any("column caption: got nothing" in str(problem) for problem in check_card(card))
    for bad in (5, True, 0.5):
        rows[5] = {"caption": bad}
        lines(tmp_path, rows)
        with pytest.raises(UserError, match=rf"train.jsonl line 6: column caption: got {bad}, expected a text"):
            for split in read_card(card).splits:
                open_rows(card, split, [], ["caption"])


def test_captions_of_which_one_is_nan(tmp_path):
    card = lines(tmp_path, [{"captions": ["a dog", NAN, f"number {i}"]} for i in range(12)])
    assert read_card(card).columns["captions"]["shape"] == [None]
    assert all(len(texts) == 2 for texts in open_card(card, "train")["captions"])


@pytest.mark.parametrize("spec", [TEXT, TEXTS, LABEL, {"kind": "vector", "shape": [2], "unit": "m", "range": [None, None]}])
def test_nan_is_missing_in_every_column(spec):
    assert stored(spec, NAN) is None
    assert stored({"kind": "id"}, NAN) == stored({"kind": "group"}, NAN) == ""


@pytest.mark.parametrize(("spec", "value"), [(TEXT, 5), (TEXT, True), (TEXT, 0.5), (TEXTS, ["a", 5]), (TEXTS, [True])])
def test_numbers_are_no_texts(spec, value):
    with pytest.raises(UserError, match=r"a row: got (5|True|0.5), expected a text; write it as a text"):
        stored(spec, value, "a row")


def test_a_column_of_ids_is_no_label_unless_it_is_named(tmp_path):
    card = read_card(lines(tmp_path, [{"label": i / 7, "score": i / 3} for i in range(12)]))
    with pytest.raises(UserError, match=r"data.label=label: got a column of id, expected label; write a card"):
        check_column(card, "data.label", "label")
    assert check_column(card, "data.label", "score") == "score"


def test_booleans_are_labels_by_name_alone():
    assert stored({"kind": "label", "classes": ["false", "true"]}, True) == 1
    with pytest.raises(UserError, match="label: got True, expected a class: cat, dog, or its number"):
        stored(LABEL, True)
