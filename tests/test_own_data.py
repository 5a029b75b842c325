"""Data that no card describes: folders, tables and data sets of the Hub, taken wherever a card is."""

import io
import json
import logging
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from commands import here
from PIL import Image

from mmgen import cli
from mmgen.data import card_files
from mmgen.data.card_files import absolute_card, card_text, write_card
from mmgen.data.cards import NoSource, check_card, check_column, data_version, open_card, read_card
from mmgen.data.rows import open_rows
from mmgen.data.sources import inferred
from mmgen.data.sources.table_files import numbered_rows
from mmgen.errors import UserError
from mmgen.training.recipe import load_recipe, recipe_config
from mmgen.training.run_folder import open_run

THINGS = ("sun", "moon", "star", "tree", "rose", "fish", "bird", "wolf", "bear", "frog")
CAPTIONS = [f"a photograph of {thing}, seen from afar" for thing in THINGS]


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("MMGEN_DATA", raising=False)
    for cached in (inferred.find_unchanged, inferred.find_hub, card_files.log_once):
        cached.cache_clear()


def picture(colour=0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (colour, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def pictures(folder: Path, n: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    return folder


def write(file: Path, text: str, encoding: str = "utf-8") -> Path:
    file.write_bytes(text.encode(encoding))
    return file


def in_metadata(folder):
    write(
        pictures(folder) / "metadata.csv", "file_name,caption\n" + "".join(f'{i}.jpg,"{c}"\n' for i, c in enumerate(CAPTIONS))
    )
    return folder


def in_metadata_lines(folder):
    rows = ({"file_name": f"{i}.jpg", "caption": c} for i, c in enumerate(CAPTIONS))
    write(pictures(folder) / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return folder


def in_semicolons(folder):  # as Excel writes it
    pictures(folder / "img")
    lines = "".join(f"img/{i}.jpg;{c}\r\n" for i, c in enumerate(CAPTIONS))
    return write(folder / "table.csv", f"file;caption\r\n{lines};\r\n", "utf-8-sig")


def in_utf_16(folder):
    pictures(folder)
    return write(folder / "my.csv", "image\tcaption\n" + "".join(f"{i}.jpg\t{c}\n" for i, c in enumerate(CAPTIONS)), "utf-16")


def in_tabs(folder):
    pictures(folder)
    return write(folder / "my.tsv", "path\tcaption\n" + "".join(f"{i}.jpg\t{c}\n" for i, c in enumerate(CAPTIONS)))


def in_absolute_lines(folder):
    rows = ({"image": str(pictures(folder) / f"{i}.jpg"), "caption": c} for i, c in enumerate(CAPTIONS))
    return write(folder / "my.jsonl", "\n".join(map(json.dumps, rows)))


def in_parquet(folder):
    names = [f"img\\{i}.jpg" for i in range(10)]  # as Windows writes paths
    pictures(folder / "img")
    pq.write_table(pa.table({"image_path": names, "caption": CAPTIONS}), folder / "my.parquet")
    return folder / "my.parquet"


def in_parquet_bytes(folder):
    folder.mkdir()
    cells = [picture(i) for i in range(10)]
    pq.write_table(pa.table({"image": cells, "caption": CAPTIONS}), folder / "my.parquet")
    return folder / "my.parquet"


WITH_CAPTIONS = [in_metadata, in_metadata_lines, in_semicolons, in_utf_16, in_tabs, in_absolute_lines, in_parquet,
                 in_parquet_bytes]  # fmt: skip


@pytest.mark.parametrize("made", WITH_CAPTIONS, ids=lambda made: made.__name__)
def test_pictures_with_captions_are_read_as_they_are(tmp_path, made, caplog):
    path = made(tmp_path / "mine")
    card = read_card(path)
    assert {name: spec["kind"] for name, spec in card.columns.items()} == {"image": "image", "caption": "text"}
    assert card.splits == {"train": 8, "validation": 1, "test": 1}
    split = "a hash of each row's file or text, a tenth each for validation and test: train 8, validation 1, test 1"
    assert caplog.messages == [f"{card.name}: no split is named, so the rows are split by {split}"]
    rows = [row for split in card.splits for row in open_card(path, split)]
    assert sorted(row["caption"] for row in rows) == sorted(CAPTIONS)
    by_caption = {row["caption"]: row["image"] for row in rows}
    for i, caption in enumerate(CAPTIONS):
        cell = by_caption[caption]
        assert (cell["bytes"] or Path(cell["path"]).read_bytes()) == picture(i)
    assert check_card(path) == []
    assert recipe_config(load_recipe("captioning"), "smoke", [f"data.card={path}"]).data.card == str(path)


@pytest.mark.parametrize("split_names", [None, ("train", "val", "test"), ("training", "dev", "eval")])
def test_class_folders_are_labels_and_folders_are_splits(tmp_path, split_names):
    for split in split_names or [""]:
        for name in ("cat", "dog"):
            pictures(tmp_path / "pets" / split / name, 6)
    pictures(tmp_path / "pets" / ".thumbnails", 2)
    card = read_card(tmp_path / "pets")
    assert card.columns["label"] == {"kind": "label", "classes": ["cat", "dog"]}
    expected = {"train": 8, "validation": 2, "test": 2} if split_names is None else {"train": 12, "validation": 12, "test": 12}
    assert card.splits == expected
    for split in card.splits:
        rows = open_card(tmp_path / "pets", split)
        assert set(rows["label"]) == {0, 1}  # every class is in every split
        assert all(Path(row["image"]["path"]).parent.name == ["cat", "dog"][row["label"]] for row in rows)
    assert check_card(tmp_path / "pets") == []


def test_files_of_one_name_in_two_folders_are_two(tmp_path):
    for name in ("cat", "dog"):
        pictures(tmp_path / "pets" / name, 10)
    test = [Path(row["image"]["path"]) for row in open_card(tmp_path / "pets", "test")]
    assert {file.parent.name for file in test} == {"cat", "dog"} and len({file.name for file in test}) == 2
    shutil.copytree(tmp_path / "pets", tmp_path / "elsewhere" / "pets")  # the same splits in another place
    moved = [Path(row["image"]["path"]) for row in open_card(tmp_path / "elsewhere" / "pets", "test")]
    assert [file.parts[-2:] for file in moved] == [file.parts[-2:] for file in test]


def test_folders_of_one_class_or_of_none_have_no_label(tmp_path):
    pictures(tmp_path / "flat", 3)
    pictures(tmp_path / "nested" / "inner", 3)
    for name in ("flat", "nested"):
        assert list(read_card(tmp_path / name).columns) == ["image"]


def test_tables_by_split_and_a_column_of_splits(tmp_path):
    pictures(tmp_path)
    for name, rows in {"train": range(6), "valid": range(6, 8), "test-00000-of-00001": range(8, 10)}.items():
        text = "".join(f"{i}.jpg,{CAPTIONS[i].split(',')[0]}\n" for i in rows)
        write(tmp_path / f"{name}.csv", f"file_name,caption\n{text}")
    assert read_card(tmp_path).splits == {"train": 6, "validation": 2, "test": 2}
    for file in tmp_path.glob("*.csv"):
        file.unlink()
    text = "".join(f"{i}.jpg\ttext {i}\t{['train', 'dev', 'test'][i % 3]}\n" for i in range(10))
    write(tmp_path / "all.tsv", f"file_name\tcaption\tsplit\n{text}")
    assert read_card(tmp_path).splits == {"train": 4, "validation": 3, "test": 3}
    assert list(read_card(tmp_path).columns) == ["image", "caption"]
    write(tmp_path / "all.tsv", "file_name\tcaption\tsplit\n0.jpg\ta\ttrain\n1.jpg\tb\t\n")
    with pytest.raises(UserError, match=r"all\.tsv line 3: split: got nothing, expected the name of a split"):
        read_card(tmp_path)


def lists_of_captions(folder):
    rows = ({"file_name": f"{i}.jpg", "caption": [c, c + "!"]} for i, c in enumerate(CAPTIONS))
    return write(folder / "my.jsonl", "\n".join(map(json.dumps, rows)))


def repeated_rows(folder):
    lines = (f'{i}.jpg,"{c}{end}"\n' for i, c in enumerate(CAPTIONS) for end in ("", "!"))
    return write(folder / "my.csv", f"file_name,caption\n{''.join(lines)}")


def numbered_columns(folder):
    lines = "".join(f"{i}.jpg;{c};{c}!;\n" for i, c in enumerate(CAPTIONS))
    return write(folder / "my.csv", f"file_name;caption_0;caption_1;caption_2\n{lines}")


@pytest.mark.parametrize("made", [lists_of_captions, repeated_rows, numbered_columns], ids=lambda made: made.__name__)
def test_several_captions_of_a_picture(tmp_path, made):
    path = made(pictures(tmp_path))
    card = read_card(path)
    assert card.columns["caption"] == {"kind": "text", "language": "und", "shape": [None]}
    rows = [row for split in card.splits for row in open_card(path, split)]
    assert sorted(row["caption"] for row in rows) == sorted([c, c + "!"] for c in CAPTIONS)
    assert check_card(path) == []


def test_rows_that_share_a_picture_stay_in_one_split(tmp_path):
    lines = "".join(f"{i}.jpg,is it {w}?,{a}\n" for i in range(10) for w, a in (("red", "yes"), ("blue", "no")))
    path = write(pictures(tmp_path) / "my.csv", f"file_name,question,answer\n{lines}")
    assert read_card(path).splits == {"train": 16, "validation": 2, "test": 2}  # questions and answers stay rows
    files = {s: {row["image"]["path"] for row in open_card(path, s)} for s in read_card(path).splits}
    assert not files["train"] & files["test"] and not files["train"] & files["validation"] and len(files["test"]) == 1


@pytest.mark.parametrize(
    ("header", "values", "spec"),
    [
        ("label", ["b", "a"] * 5, {"kind": "label", "classes": ["a", "b"]}),
        ("digit", [10, 9] * 5, {"kind": "label", "classes": ["9", "10"]}),
        ("label", list("abcdefghij"), {"kind": "label", "classes": list("abcdefghij")}),
        ("caption", ["a cat", "a dog"] * 5, {"kind": "text", "language": "und"}),  # repeated, but named as texts are
        ("story", [f"once {i}" for i in range(10)], {"kind": "text", "language": "und"}),
        ("image_id", [1, 2] * 5, {"kind": "id"}),
        ("weight", [0.5 * i for i in range(10)], {"kind": "id"}),
        ("box", [[1, 2.5, i] for i in range(9)], {"kind": "vector", "shape": [3], "unit": "unknown", "range": [None, None]}),
        ("objects", [{"id": 1}] * 10, None),
        ("empty", [None] * 10, None),
    ],
)  # fmt: skip
def test_kinds_of_columns(tmp_path, header, values, spec):
    rows = [{"text": f"row {i}", header: value} for i, value in enumerate(values)]
    path = write(tmp_path / "my.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_card(path).columns.get(header) == spec
    assert check_card(path) == []


def test_classes_by_their_names_in_a_parquet_of_datasets(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "mood": datasets.ClassLabel(names=["sad", "glad"])})
    data = datasets.Dataset.from_dict({"text": [f"t {i}" for i in range(10)], "mood": [i % 2 for i in range(10)]}, features)
    data.to_parquet(tmp_path / "my.parquet")
    assert read_card(tmp_path / "my.parquet").columns["mood"] == {"kind": "label", "classes": ["sad", "glad"]}
    rows = open_card(tmp_path / "my.parquet", "train")
    assert all(row["mood"] == int(row["text"].split()[1]) % 2 for row in rows)


def test_sounds(tmp_path):
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(80, np.float32), 8000 * (1 + i % 2))
    write(tmp_path / "metadata.csv", "file_name,transcription\n" + "".join(f"{i}.wav,say {i}\n" for i in range(4)))
    card = read_card(tmp_path)
    assert card.columns["audio"]["kind"] == "audio" and card.columns["transcription"]["kind"] == "text"
    assert check_card(tmp_path) == []
    overrides = [f"data.card={tmp_path}", "model.modality=audio"]
    data = recipe_config(load_recipe("captioning"), "smoke", overrides).data
    assert (data.input, data.text) == ("audio", "transcription")


def test_splits_are_the_same_again_and_small_data_fill_them(tmp_path):
    for n, counts in {1: (1, 0, 0), 2: (1, 0, 1), 3: (1, 1, 1), 12: (10, 1, 1), 50: (40, 5, 5)}.items():
        path = write(tmp_path / f"n{n}.csv", "text\n" + "".join(f"sentence {i}\n" for i in range(n)))
        assert tuple(read_card(path).splits.get(s, 0) for s in ("train", "validation", "test")) == counts
    before = open_card(path, "test")["text"][:]
    inferred.find_unchanged.cache_clear()
    assert open_card(path, "test")["text"][:] == before


# what changes, and what is wrong


def test_changed_files_are_noticed(tmp_path):
    folder = in_metadata(tmp_path / "mine")
    before = open_rows(folder, "train", ["image"]), data_version(folder, "train")
    file = Path(before[0]["image"][0]["path"])
    file.write_bytes(picture(99) + b" ")
    assert data_version(folder, "train") != before[1]
    assert open_rows(folder, "train", ["image"]).fingerprint != before[0].fingerprint  # what caches of features go by
    write(folder / "metadata.csv", "file_name,caption\n" + "".join(f"{i}.jpg,text {i}\n" for i in range(9)))
    assert sum(read_card(folder).splits.values()) == 9
    pictures(tmp_path / "flat", 3)
    assert sum(read_card(tmp_path / "flat").splits.values()) == 3
    pictures(tmp_path / "flat", 5)
    assert sum(read_card(tmp_path / "flat").splits.values()) == 5
    assert data_version("digits", "train") == []


def test_a_missing_picture_is_named_before_training(tmp_path, capsys):
    folder = in_metadata(tmp_path / "mine")
    (folder / "3.jpg").unlink()
    with pytest.raises(UserError) as error:
        recipe_config(load_recipe("captioning"), "smoke", [f"data.card={folder}"])
    message = str(error.value)
    assert "data card mine: " in message and "(metadata.csv line 5): got 3.jpg, which does not exist" in message
    assert any(f": {split}: row " in message for split in ("train", "validation", "test")) and "\n" not in message
    write_folder = folder / "images"
    write_folder.mkdir()
    (write_folder / "3.jpg").write_bytes(picture())
    assert cli.main(["data", "check", str(folder)]) == 2
    assert "write images/3.jpg" in capsys.readouterr().err
    for i in range(10):
        (folder / f"{i}.jpg").unlink(missing_ok=True)
    with pytest.raises(UserError, match="2 more missing files"):
        read_card(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("my.csv", "", r"my\.csv: got an empty file"),
        ("my.csv", "text,label\n", r"my\.csv: got no rows"),
        ("my.csv", "file_name,caption\na.jpg,a dog, running\n", r"my\.csv: line 2: got 3 \w+, expected 2"),
        ("my.csv", "a.jpg,a dog\nb.jpg,a cat\n", r"my\.csv: line 1: got a\.jpg, a dog, expected the names of its columns"),
        ("my.csv", "text,text\na,b\n", r"my\.csv: header: got text twice"),
        ("my.jsonl", '{"text": "a"}\n\n{"text"\n', r"my\.jsonl: line 3: "),
        ("my.jsonl", "[1]\n", r"my\.jsonl: line 1: got \[1\]"),
        ("my.parquet", "PAR1", r"my\.parquet: got .*whole parquet file"),
        ("my.txt", "a\n", r"my\.txt: got a \.txt file, expected a folder, or a table"),
        ("my.csv", "file_name,caption\na.heic,a\nb.heic,b\n", r"column file_name: got a\.heic, expected names that end in"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_card(write(tmp_path / name, text))
    assert "\n" not in str(error.value)


def test_rows_of_a_table_know_their_lines(tmp_path):
    file = write(tmp_path / "my.csv", '\ntext,label\n"two\nlines",a\n\nlast,b\n')
    assert [place for place, _ in numbered_rows(file)] == ["line 3", "line 6"]


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"got no files, expected pictures, sounds or a table"):
        read_card(tmp_path)
    write(tmp_path / "a.heic", "x")
    with pytest.raises(UserError, match=r"got 1 file ending in \.heic"):
        read_card(tmp_path)
    pictures(tmp_path, 2)
    write(tmp_path / "a.wav", "x")
    with pytest.raises(UserError, match="got pictures and sounds, expected one kind"):
        read_card(tmp_path)
    for name in ("one", "two"):
        write(tmp_path / f"{name}.csv", "file_name,caption\n0.jpg,a\n")
    with pytest.raises(UserError, match=r"got tables one\.csv, two\.csv, expected one table, or one for each split"):
        read_card(tmp_path)


def test_a_written_card_with_its_reader_elsewhere(tmp_path):
    text = card_text(in_metadata(tmp_path / "mine")).replace("{path: mine,", "{package: [numpy],")
    with pytest.raises(UserError, match=r"sources\[0\]\.reader: got inferred, expected a source of kind path or hub"):
        read_card(write(tmp_path / "my.md", text))


@pytest.mark.parametrize("given", ["nope", "./nope", "nope/photos.csv", "nope/"])
def test_what_is_nowhere_says_that_it_is_neither(given, capsys):
    assert cli.main(["data", "check", given]) == 2
    error = capsys.readouterr().err
    assert f"got {given.rstrip('/')}" in error.replace("./", "") or f"got {given}" in error
    assert "a card that comes with mmgen, or the path of a folder, a table or a .md file" in error and error.count("\n") == 1


# where a card is taken


def test_a_column_of_another_name_is_taken_and_told(tmp_path, caplog):
    lines = "".join(f"{i}.jpg,text {i},{'ab'[i % 2]}\n" for i in range(10))
    path = write(pictures(tmp_path) / "my.csv", f"photo,description,species\n{lines}")
    with caplog.at_level(logging.WARNING):
        data = recipe_config(load_recipe("captioning"), "smoke", [f"data.card={path}"]).data
    assert (data.input, data.text) == ("photo", "description")
    assert "data.text=description: my has no column word, and description is its only one of text" in caplog.messages
    assert recipe_config(load_recipe("judge"), "smoke", [f"data.card={path}", "data.input=photo"]).data.label == "species"
    with pytest.raises(UserError, match=r"data\.text \(a column of my\): got captoin, .*write data\.text=description"):
        recipe_config(load_recipe("captioning"), "smoke", [f"data.card={path}", "data.text=captoin"])


def test_two_columns_that_will_do_are_both_named(tmp_path):
    lines = "".join(f"{i}.jpg,text {i},more {i}\n" for i in range(10))
    card = read_card(write(pictures(tmp_path) / "my.csv", f"file_name,title,description\n{lines}"))
    with pytest.raises(UserError, match=r"write data\.text=title or data\.text=description"):
        check_column(card, "data.text", "caption", "text")
    with pytest.raises(UserError, match=r"got label, expected a column of label; its columns are image, title"):
        check_column(card, "data.label", "label", "label")


def test_one_text_a_row_where_a_model_reads_one(tmp_path):
    text = "".join(json.dumps({"body": [f"a {i}", f"b {i}"], "label": "xy"[i % 2]}) + "\n" for i in range(20))
    path = write(tmp_path / "my.jsonl", text)
    for name, key in {"attribute": "text", "style_transfer": "text"}.items():
        with pytest.raises(
            UserError, match=rf"data\.{key}=body: got several texts a row, expected one; choose another column"
        ):
            recipe_config(load_recipe(name), "smoke", [f"data.card={path}"])


def test_a_run_keeps_the_absolute_path(tmp_path, monkeypatch):
    in_metadata(tmp_path / "digits")  # the name of a card: a path says that the folder is meant
    monkeypatch.chdir(tmp_path)
    config = recipe_config(load_recipe("captioning"), "smoke", ["data.card=digits/"])
    assert config.data.card == str(tmp_path / "digits")
    assert recipe_config(load_recipe("captioning"), "smoke", ["data=./digits"]).data.card == str(tmp_path / "digits")
    write(tmp_path / "own.yaml", "data: {card: digits/}\n")
    monkeypatch.chdir("/")
    assert recipe_config(load_recipe("captioning"), str(tmp_path / "own.yaml"), []).data.card == str(tmp_path / "digits")
    assert absolute_card("digits") == "digits" and absolute_card("user/flowers") == "user/flowers"
    assert absolute_card("nope.csv") == "/nope.csv"  # so that the error names it


def test_a_run_of_before_sections_opens(tmp_path):
    path = write(tmp_path / "my.csv", "body,mood\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    write(tmp_path / "config.yaml", f"data: {path}\ntext: body\nlabel: mood\n")
    write(tmp_path / "run.json", '{"recipe": "style_transfer", "command": ["mmgen"]}')
    _, config = open_run(tmp_path)
    assert (config.data.card, config.data.text, config.data.label) == (str(path), "body", "mood")


def test_null_takes_a_part_of_a_config_out(tmp_path):
    folder = in_metadata(tmp_path / "mine")
    overrides = [f"data.card={folder}", "data.modalities.audio=null", "model.modalities.audio=null", "judges=null"]
    data = recipe_config(load_recipe("multimodal_vae"), "config", overrides).data
    assert {name: settings["column"] for name, settings in data.modalities.items()} == {"image": "image", "text": "caption"}
    config = recipe_config(load_recipe("text_to_image"), "config", [f"data.card={folder}", "evaluation.features="])
    assert config.aligned  # judged by a space of the same folder
    assert recipe_config(load_recipe("text_to_image"), "config", ["aligned=null", "evaluation.features="]).aligned == {}


def test_a_folder_trains_and_evaluates(tmp_path, monkeypatch, capsys):
    for split in ("train", "validation", "test"):
        for name in ("cat", "dog"):
            pictures(tmp_path / "pets" / split / name, 3)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "judge", "--config", "smoke", "data.card=pets", "fit.steps=2", "--out", "run"]) == 0
    monkeypatch.chdir("/")
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    assert "accuracy" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "pets" / "test")
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 2
    assert "pets: split: got test, expected a known name; choose one of train, validation" in capsys.readouterr().err


# cards of them


def test_init_writes_a_card_and_overwrites_none(tmp_path, capsys):
    folder = in_metadata(tmp_path / "mine")
    assert cli.main(["data", "init", str(folder)]) == 0
    file = tmp_path / "mine.md"
    assert str(file) in capsys.readouterr().out
    assert check_card(file) == [] and read_card(file).splits == read_card(folder).splits
    assert open_card(file, "train")[:] == open_card(folder, "train")[:]
    text = file.read_text(encoding="utf-8")
    assert card_text(folder) == text and "path: mine," in text and str(tmp_path) not in text
    assert cli.main(["data", "init", str(folder)]) == 2
    assert "mine.md: got a file that exists" in capsys.readouterr().err
    assert cli.main(["data", "init", str(folder), "--out", str(folder / "images.md")]) == 0
    assert open_card(folder / "images.md", "test")[:] == open_card(folder, "test")[:]
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"--out: got .*expected a file above or beside the data"):
        write_card(folder, tmp_path / "other" / "card.md")
    with pytest.raises(UserError, match=r"data init: got openmoji, expected a folder"):
        write_card("openmoji")
    shutil.move(tmp_path / "mine", tmp_path / "moved")
    with pytest.raises(NoSource, match="put mine into"):
        open_card(file, "train")


def test_a_column_taken_out_of_a_written_card_is_not_read(tmp_path):
    file = write_card(in_metadata(tmp_path / "mine"))
    text = file.read_text(encoding="utf-8")
    write(file, text.replace("    caption: {kind: text, language: und}\n", ""))
    assert open_card(file, "train").column_names == ["image"]


def test_show_prints_a_card_to_start_from(tmp_path, capsys):
    assert cli.main(["data", "show", "digits", "--yaml"]) == 0
    text = capsys.readouterr().out
    assert read_card(write(tmp_path / "my.md", text)).columns == read_card("digits").columns
    folder = in_metadata(tmp_path / "mine")
    assert cli.main(["data", "show", str(folder), "--yaml"]) == 0
    assert capsys.readouterr().out == card_text(folder)


# the Hub


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    asked = []

    def load(name, config, revision):
        asked.append(name)
        cells = [{"bytes": picture(i), "path": None} for i in range(10)]
        columns = {"image": cells, "text": CAPTIONS, "label": [i % 2 for i in range(10)]}
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns, features)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    card = read_card("user/flowers")
    assert card.name == "flowers" and card.columns["label"]["classes"] == ["no", "yes"]
    assert card.splits == {"train": 6, "validation": 2, "test": 2}
    row = open_card("user/flowers", "train")[0]
    i = CAPTIONS.index(row["text"])
    assert row["image"]["bytes"] == picture(i) and row["label"] == i % 2
    config = recipe_config(load_recipe("captioning"), "smoke", ["data.card=user/flowers"])
    assert (config.data.card, config.data.text) == ("user/flowers", "text") and asked == ["user/flowers"]
    file = write_card("user/flowers", tmp_path / "my.md")
    assert open_card(file, "train")[:] == open_card("user/flowers", "train")[:]


def test_the_hub_without_a_network_is_one_line(monkeypatch, capsys):
    def load(*args, **settings):
        raise ConnectionError("Couldn't reach 'user/flowers' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert cli.main(["data", "show", "user/flowers"]) == 2
    error = capsys.readouterr().err
    assert "got user/flowers" in error and "on the Hub: Couldn't reach" in error and error.count("\n") == 1


def test_a_column_split_may_be_capitalised(tmp_path):
    rows = [f"{split},text {i}" for i, split in enumerate(["Train", "TEST", "train", "val"])]
    (tmp_path / "t.csv").write_text("\n".join(["Split,text", *rows]), encoding="utf-8")
    card = read_card(tmp_path / "t.csv")
    assert card.splits == {"train": 2, "validation": 1, "test": 1} and "Split" not in card.columns


def test_a_file_of_another_kind_is_named_with_its_table(tmp_path):
    for name, media in (("a", "1.png"), ("b", "1.wav")):
        (tmp_path / name).mkdir()
        (tmp_path / name / media).write_bytes(b"x")
        (tmp_path / name / "metadata.csv").write_text(f"file_name,text\n{media},hello\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metadata\.csv line 2: column file_name: got 1\.wav"):
        read_card(tmp_path)


def test_a_missing_caption_of_validation_is_reported_before_training(tmp_path):
    lines = ["file_name,caption,split"]
    for i, split in enumerate(["train"] * 6 + ["validation"] * 2):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'' if i == 7 else f'shade {i}'},{split}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = ("data.input=image", "data.text=caption", f"data.card={tmp_path}")
    done = here("train", "captioning", "--config", "smoke", *columns, "--out", tmp_path / "run")
    assert done.returncode == 2 and "validation: row 1: column caption" in done.stderr
    assert not [*tmp_path.rglob("checkpoints")]


def test_a_folder_that_must_not_be_read_is_not_called_empty(tmp_path, monkeypatch):  # permissions do not bind root
    def walk(folder, onerror=None):
        if onerror is not None:
            onerror(PermissionError(13, "Permission denied", str(tmp_path / "train")))
        return iter(())

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(UserError, match=r"got .*Permission denied.*/train.*; change its permissions"):
        read_card(tmp_path)


def test_a_path_that_must_not_be_searched(tmp_path):
    with pytest.raises(UserError, match=r"got .*File name too long.*; check the path"):
        read_card(tmp_path / ("a" * 300))


def test_a_split_that_the_card_lacks_is_named(tmp_path):
    lines = ["name,split", *(f"word {i},{'trian' if i == 0 else 'train'}" for i in range(4)), "word 9,test"]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    text = card_text(str(tmp_path / "t.csv")).replace("trian: 1", "").replace("{, ", "{").replace(", }", "}")
    (tmp_path / "t.md").write_text(text, encoding="utf-8")
    assert "got a split trian of 1 row in the data" in "\n".join(map(str, check_card(tmp_path / "t.md")))
