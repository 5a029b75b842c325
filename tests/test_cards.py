"""Data cards: read, check, open, cache; every mistake has its own message."""

import errno
import io
import os
import sys
import tarfile
import threading
import types
import zipfile
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmgen import storage
from mmgen.data import cards
from mmgen.data.cards import NoSource, card_names, check_card, describe, open_card, read_card
from mmgen.data.sources.columns import check_value
from mmgen.data.sources.encode import wav
from mmgen.data.sources.files import escapes
from mmgen.data.sources.front_matter import check_front_matter
from mmgen.data.sources.readers import READERS
from mmgen.errors import UserError, UserErrors
from mmgen.storage import cache_folder

NAMES = [
    "bag_food", "bag_health", "bag_legal", "bag_military", "bag_politics", "bag_religion", "bag_science", "bag_space",
    "bag_sports", "bag_technology", "cifar10", "cmu_mosi", "digits", "digits_image_text_audio", "easy_vqa", "factor_shapes",
    "flickr8k", "free_spoken_digits", "mnist", "noto_emoji", "openmoji", "openmoji_facts", "openmoji_shapes",
    "openmoji_spoken", "peg_insertion", "peg_recordings", "rated_reviews", "sst2", "twemoji",
    "yelp_published_outputs", "yelp_sentiment",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMGEN_DATA", raising=False)


@pytest.fixture
def toy(monkeypatch):
    """A reader of ten rows a split that counts how often it ran."""
    module = types.ModuleType("toy_reader")
    module.calls = []
    module.row = lambda i: {"text": f"row {i}", "label": i % 3}

    def read(split, *, start=0):
        module.calls.append(split)
        for i in range(start, start + 10):
            yield module.row(i)

    def read_place(split, place):
        return read(split)

    module.read, module.read_place = read, read_place
    monkeypatch.setitem(sys.modules, "toy_reader", module)
    monkeypatch.setitem(READERS, "toy", "toy_reader:read")
    monkeypatch.setitem(READERS, "toy_place", "toy_reader:read_place")
    return module


def front(**changes):
    """The front matter of a good card, with some fields changed; a field given as None is taken out."""
    ours = {
        "sources": [{"package": ["numpy"], "reader": "toy"}],
        "columns": {"text": {"kind": "text", "language": "en"}, "label": {"kind": "label", "classes": 3}},
        "splits": {"train": 10, "test": 10},
    }
    fields = {
        "pretty_name": "Toy",
        "license": "mit",
        "language": ["en"],
        "task_categories": ["text-classification"],
        "size_categories": ["n<1K"],
        "mmgen": ours | {key: value for key, value in changes.items() if key in ours},
        **{key: value for key, value in changes.items() if key not in ours},
    }
    return {key: value for key, value in fields.items() if value is not None}


@pytest.fixture
def write(tmp_path, toy):
    def write(**changes):
        path = tmp_path / "toy.md"
        path.write_text(f"---\n{yaml.safe_dump(front(**changes), sort_keys=False)}---\n# Toy\nMade here.\n", encoding="utf-8")
        return path

    return write


# the cards that come with mmgen


def test_the_cards():
    assert card_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_card_is_in_order(name):
    assert check_card(name, data=False) == []
    card = read_card(name)
    text = (cards.cards_folder() / f"{name}.md").read_text(encoding="utf-8")
    hub = huggingface_hub.DatasetCard(text).data
    assert hub.pretty_name == card.pretty_name and hub.license and hub.language and hub.task_categories and hub.size_categories
    for heading in ("Where the data come from", "Licence", "Not for", "Who is under-represented", "Splits"):
        body = card.prose.split(f"## {heading}\n")[1].split("##")[0]
        assert len(body.strip()) > 10, heading
    assert card.pretty_name in describe(card) and all(column in describe(card) for column in card.columns)


# what a user writes


def test_unknown_name_and_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"flickr8,.*did you mean 'flickr8k'"):
        read_card("flickr8")
    with pytest.raises(UserError, match=r"nothing\.md"):
        read_card(tmp_path / "nothing.md")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# no front matter", ["no front matter", "two lines ---"]),
        ("---\nlicense: [mit\n---\nprose", ["YAML", "license: [mit"]),
        ("---\n- mit\n---\nprose", ["mit", "mapping"]),
        ("", ["''", "front matter"]),
    ],
)
def test_broken_front_matter(tmp_path, text, words):
    (tmp_path / "bad.md").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_card(tmp_path / "bad.md")
    message = str(error.value)
    assert "\n" not in message and "bad.md" in message
    assert all(word.split(":")[0] in message for word in words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"license": "mitt"}, ["mitt", "'mit'"]),
        ({"license": ["mit", "cc-by-sa-40"]}, ["cc-by-sa-40", "'cc-by-sa-4.0'"]),
        ({"license": "other"}, ["license_name"]),
        ({"licence": "mit"}, ["licence", "did you mean 'license'"]),
        ({"license": None}, ["license", "nothing"]),
        ({"pretty_name": None}, ["pretty_name"]),
        ({"size_categories": ["n<2K"]}, ["n<2K"]),
        ({"language": [False]}, ["language", "False"]),
        ({"mmgen": None}, ["mmgen", "nothing"]),
        ({"mmgen": {**front()["mmgen"], "colums": {}}}, ["colums", "did you mean 'columns'"]),
        ({"mmgen": 3}, ["mmgen", "3"]),
        ({"sources": []}, ["mmgen.sources", "[]"]),
        ({"sources": [{"reader": "toy"}]}, ["sources[0]", "package", "simulator"]),
        ({"sources": [{"path": "a", "hub": "b/c", "reader": "toy"}]}, ["exactly one"]),
        ({"sources": [{"path": "../a", "reader": "toy"}]}, ["../a", "inside"]),
        ({"sources": [{"sdist": "/etc/a.zip", "reader": "toy"}]}, ["/etc/a.zip", "inside"]),
        ({"sources": [{"path": "a", "reader": "os:system"}]}, ["os:system", "a known reader"]),
        ({"sources": [{"package": ["numpy"], "reader": "opnmoji"}]}, ["opnmoji", "'openmoji'"]),
        ({"sources": [{"hub": "a/b", "reader": "toy", "trust_remote_code": True}]}, ["trust_remote_code", "a known key"]),
        ({"sources": [{"package": "numpy", "reader": "toy"}]}, ["numpy", "list"]),
        ({"sources": [{"path": "a", "reader": "toy", "splits": {"train": 0}}]}, ["sources[0].splits.train", "0"]),
        ({"sources": [{"cards": ["./toy.md"], "reader": "toy"}]}, ["./toy.md", "names of cards"]),
        ({"sources": [{"inline": ["a"], "reader": "words"}]}, ["['a']", "split: a list of words"]),
        ({"sources": [{"inline": {"train": "a"}, "reader": "words"}]}, ["inline.train", "got a,", "a list of words"]),
        ({"sources": [{"inline": {"train": []}, "reader": "words"}]}, ["inline.train", "none", "a list of words"]),
        ({"sources": [{"inline": {"train": ["a", False]}, "reader": "words"}]}, ["got False", "quotes around no and yes"]),
        ({"columns": {"x": {"kind": "imag"}}}, ["imag", "'image'"]),
        ({"columns": {"x": {"kind": "audio", "unit": "u", "range": [-1, 1]}}}, ["columns.x.rate"]),
        ({"columns": {"x": {"kind": "label", "classes": "ten"}}}, ["ten", "classes"]),
        ({"columns": {"x": {"kind": "text", "language": "en", "rte": 3}}}, ["rte", "known key"]),
        ({"columns": {"x": {"kind": "vector", "shape": [2, 2], "unit": "m", "range": [0, 1]}}}, ["[2, 2]", "1 number"]),
        ({"columns": {"x": "image"}}, ["image", "x.kind"]),
        ({"splits": {"train": None}}, ["splits.train", "None", "number of rows"]),
        ({"splits": {"../train": 3}}, ["../train"]),
        ({"splits": None}, ["mmgen.splits"]),
    ],
)
def test_a_mistake_in_the_front_matter(write, changes, words):
    path = write(**changes)
    if changes.get("splits", 1) is None:
        path = write(mmgen={key: value for key, value in front()["mmgen"].items() if key != "splits"})
    with pytest.raises(UserErrors) as error:
        read_card(path)
    messages = str(error.value)
    assert len(error.value.errors) == 1, messages
    assert "toy" in messages and all(word in messages for word in words), messages
    assert [str(e) for e in check_card(path)] == messages.splitlines()


def test_all_mistakes_at_once(write):
    path = write(
        license="gpl-9", sources=[{"path": "../up", "reader": "none"}], columns={"x": {"kind": "smell"}}, splits={"train": -1}
    )
    with pytest.raises(UserErrors) as error:
        read_card(path)
    assert len(error.value.errors) == 5
    for word in ("gpl-9", "../up", "none", "smell", "-1"):
        assert word in str(error.value)


_yaml = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(0, 3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["license", "language", "tags", "size_categories", "mmgen", "other"]), _yaml),
    st.dictionaries(st.sampled_from(["sources", "columns", "splits"]), _yaml),
    st.dictionaries(st.sampled_from(["kind", "shape", "range", "rate", "classes", "language"]), _yaml),
)
def test_no_front_matter_is_a_traceback(fields, ours, column):
    column.setdefault("kind", "vector")
    columns = {"mmgen": {"sources": [column], "columns": {"x": column}, "splits": {"train": 1}} | ours}
    for problems in (check_front_matter("card", fields, ""), check_front_matter("card", front() | columns | fields, "prose")):
        assert all(isinstance(problem, UserError) and "\n" not in str(problem) for problem in problems)


@given(
    st.lists(st.sampled_from(["a", "b.npz", "..", "."]), min_size=1), st.sampled_from(["", "/", "C:\\", "\\\\server\\share\\"])
)
def test_escapes(parts, root):
    assert escapes(root + "/".join(parts)) == (bool(root) or ".." in parts)


# opening


def test_open_keeps_the_cards_columns(write, toy):
    toy.row = lambda i: {"text": f"row {i}", "label": i % 3, "more": object()}
    dataset = open_card(write(), "train")
    assert dataset.column_names == ["text", "label"] and len(dataset) == 10
    assert dataset[4] == {"text": "row 4", "label": 1}
    assert str(dataset.split) == "train" and dataset.info.description == "toy from package numpy"


def test_the_first_source_that_can_be_had_wins(write, tmp_path, monkeypatch):
    sources = [
        {"path": "gone", "reader": "toy_place", "splits": {"train": 5}},
        {"package": ["no-such-dist"], "reader": "toy"},
        {"package": ["numpy"], "reader": "toy"},
    ]
    path = write(sources=sources)
    assert "numpy" in open_card(path, "train").info.description
    (tmp_path / "data" / "gone").mkdir(parents=True)
    monkeypatch.setenv("MMGEN_DATA", str(tmp_path / "data"))
    assert "path gone" in open_card(path, "train").info.description
    assert "numpy" in open_card(path, "test").info.description  # the first has no such split
    assert "numpy" in open_card(path, "train", start=1).info.description  # the first has no such option


def test_no_source_names_them_all(write, monkeypatch, tmp_path):
    def unreachable(*args, **settings):
        raise ConnectionError("Couldn't reach\n'some/where' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    sources = [
        {"package": ["no-such-dist", "numpy", "nor-this"], "reader": "toy"},
        {"path": "toy_folder", "reader": "toy_place"},
        {"sdist": "toy-1.0.tar.gz", "reader": "archive_table"},
        {"hub": "some/where", "reader": "hub_table"},
        {"simulator": "peg_insertoin", "reader": "toy_place"},
        {"cards": ["mnist"], "reader": "toy_place"},
    ]
    path = write(sources=sources)
    with pytest.raises(NoSource) as error:
        open_card(path, "train")
    message = str(error.value)
    assert "\n" not in message
    for words in (
        "no-such-dist, nor-this not installed",
        "pip install no-such-dist nor-this",
        "path toy_folder (MMGEN_DATA is not set)",
        "sdist toy-1.0.tar.gz (MMGEN_DATA is not set)",
        "set MMGEN_DATA",
        "hub some/where (Couldn't reach",
        "peg_insertoin",
        "mnist/mnist.npz",
    ):
        assert words in message, words
    assert isinstance(check_card(path)[0], NoSource)
    monkeypatch.setenv("MMGEN_DATA", str(tmp_path))
    with pytest.raises(NoSource, match=f"not in {tmp_path}"):
        open_card(path, "train")
    assert not list(cache_folder().rglob("*.arrow"))


def test_a_link_out_of_the_data_folder(write, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to("/etc")
    with pytest.raises(UserError, match=r"link.*inside"):
        open_card(write(sources=[{"path": "link", "reader": "table"}]), "train", data_folder=tmp_path / "data")
    (tmp_path / "secret.csv").write_text("text,label\na,1\n", encoding="utf-8")
    (tmp_path / "data" / "own").mkdir()
    (tmp_path / "data" / "own" / "train.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(UserError, match=r"train.csv.*inside"):
        open_card(write(sources=[{"path": "own", "reader": "table"}]), "train", data_folder=tmp_path / "data")


@pytest.mark.parametrize(
    ("split", "options", "words"),
    [
        ("tarin", {}, ["tarin", "'train'"]),
        ("train", {"strat": 1}, ["strat", "'start'"]),
        ("train", {"limit": -1}, ["limit: got -1", "a number >= 0"]),
    ],
)
def test_bad_arguments(write, split, options, words):
    with pytest.raises(UserError) as error:
        open_card(write(), split, **options)
    assert all(word in str(error.value) for word in words)


def test_limit(write):
    assert open_card(write(), "train", limit=3)["text"][:] == ["row 0", "row 1", "row 2"]
    assert len(open_card(write(), "train", limit=0)) == len(open_card(write(), "train")) == 10


# the cache


def test_the_second_time_comes_from_the_cache(write, toy):
    path = write()
    first = open_card(path, "train")
    assert open_card(path, "train")[:] == first[:] and toy.calls == ["train"]
    open_card(path, "train", start=1)
    open_card(path, "train", limit=2)
    assert len(toy.calls) == 3
    open_card(write(splits={"train": 9}), "train")  # what does not change the rows does not build them again
    assert len(toy.calls) == 3


def test_changed_data_are_read_again(write, tmp_path):
    (tmp_path / "data").mkdir()
    table = tmp_path / "data" / "train.csv"
    path = write(sources=[{"path": ".", "reader": "table", "rename": {"text": "sentence"}}])
    for rows in (["a,1"], ["a,1", "b,2"]):
        table.write_text("\n".join(["sentence,label", *rows]) + "\n", encoding="utf-8")
        assert len(open_card(path, "train", data_folder=tmp_path / "data")) == len(rows)


@pytest.mark.parametrize("name", ["reader.py", "reader.yaml"])
def test_a_changed_reader_or_table_is_read_again(write, toy, tmp_path, monkeypatch, name):
    monkeypatch.setattr(cards.places, "__file__", str(tmp_path / "sources" / "places.py"))
    (tmp_path / "sources").mkdir()
    path = write()
    for text in ("a", "a", "b"):
        (tmp_path / "sources" / name).write_text(text, encoding="utf-8")
        open_card(path, "train")
    assert len(toy.calls) == 2


def test_half_a_cache_is_not_used(write, toy):
    path = write()
    open_card(path, "train")
    (file,) = cache_folder().rglob("*.arrow")
    partial = file.with_suffix(".partial")
    partial.write_bytes(file.read_bytes()[:100])  # what a kill leaves
    file.unlink()
    assert len(open_card(path, "train")) == 10 and not partial.exists()
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"\.arrow.*delete it"):
        open_card(path, "train")[:]


def test_a_reader_that_fails_leaves_nothing(write, toy):
    def row(i):
        if i == 7:
            raise UserError("row", got=7, expected="less", fix="stop")
        return {"text": "x", "label": 0}

    path, toy.row = write(), row
    with pytest.raises(UserError, match="got 7"):
        open_card(path, "train")
    assert not list(cache_folder().rglob("*.arrow"))
    toy.row = lambda i: {"text": "x", "label": 0}
    assert len(open_card(path, "train")) == 10


def test_two_at_once_build_it_once(write, toy):
    path, opened = write(), []
    both = threading.Barrier(2)

    def row(i):
        threading.Event().wait(0.02)
        return {"text": "x", "label": 0}

    def work():
        both.wait()
        opened.append(len(open_card(path, "train")))

    toy.row = row
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [10, 10] and toy.calls == ["train"]


def test_memory_mapped(write, toy):
    toy.row = lambda i: {"text": "x" * 1_000_000, "label": 0}
    path = write()
    open_card(path, "train")
    before = pa.total_allocated_bytes()
    dataset = open_card(path, "train")
    assert isinstance(dataset.data, datasets.table.MemoryMappedTable) and dataset.cache_files
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_a_cache_that_cannot_be_written(write, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file.*MMGEN_CACHE"):
        open_card(write(), "train")


@pytest.mark.parametrize("denied", ["pathlib.Path.exists", "datasets.Dataset.from_file"])
def test_a_cache_that_cannot_be_read(write, monkeypatch, denied):  # permissions do not bind who runs tests as root
    card = write()
    open_card(card, "train")
    exists = Path.exists

    def refuse(path, *arguments, **options):
        if not str(path).endswith(".arrow"):
            return exists(path)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(denied, refuse)
    with pytest.raises(UserError, match=r"cache: got .*Permission denied.*arrow; change its permissions, or set MMGEN_CACHE"):
        open_card(card, "train")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG])
def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch, number):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path))
    told = rf"cache: got .*{os.strerror(number)}.*set MMGEN_CACHE to a folder"
    with pytest.raises(UserError, match=told), storage.filled_whole(cache_folder() / "one"):
        raise OSError(number, os.strerror(number), str(tmp_path / "one"))


def test_other_parts_of_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "file"))
    told = r"cache: got .*Not a directory.*set MMGEN_CACHE to a folder"
    with pytest.raises(UserError, match=told), storage.filled_whole(cache_folder() / "language_models" / "one"):
        pytest.fail("it was filled")
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path))
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"No space left.*MMGEN_CACHE"), storage.filled_whole(cache_folder() / "one"):
        raise full
    data = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/a.png")  # which is no matter of the cache
    with pytest.raises(PermissionError, match="/elsewhere"), storage.filled_whole(cache_folder() / "one"):
        raise data


def test_a_full_disk(write, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "finalize", full)
    with pytest.raises(UserError, match=r"No space left.*MMGEN_CACHE"):
        open_card(write(), "train")
    assert not list(cache_folder().rglob("*.arrow"))


# data against the card


def test_missing_columns_are_all_named(write, toy):
    toy.row = lambda i: {"sentence": "x"}
    with pytest.raises(UserErrors) as error:
        open_card(write(), "train")
    assert [("text" in str(e), "label" in str(e)) for e in error.value.errors] == [(True, False), (False, True)]
    assert "sentence" in str(error.value)


def test_values_of_another_kind(write, toy):
    toy.row = lambda i: {"text": "x", "label": "cat" if i == 7 else 0}
    with pytest.raises(UserError, match=r"toy: train: row 7: column label: got cat, expected a whole number"):
        open_card(write(), "train")
    toy.row = lambda i: {"text": "x", "label": 0, "vector": [1, "two"] if i == 4 else [1, 2]}
    vector = {"vector": {"kind": "vector", "shape": [2], "unit": "m", "range": [0, 1]}}
    with pytest.raises(UserError, match=r"toy: train: row 4: column vector: got \[1, 'two'\], expected a vector"):
        open_card(write(columns=vector), "train")


def test_check_compares_data_and_card(write, toy):
    sound = wav([0.0] * 80, 8000)
    toy.row = lambda i: {"text": " ", "label": 7, "audio": sound, "vector": [0, 2], "image": sound, "captions": ["one"]}
    columns = {
        "text": {"kind": "text", "language": "en"},
        "label": {"kind": "label", "classes": ["a", "b"]},
        "audio": {"kind": "audio", "rate": 16000, "unit": "amplitude", "range": [-1, 1]},
        "vector": {"kind": "vector", "shape": [2], "unit": "m", "range": [0, 1]},
        "image": {"kind": "image", "shape": [8, 8, 3], "unit": "sRGB", "range": [0, 255]},
        "captions": {"kind": "text", "language": "en", "shape": [5]},
    }
    problems = [str(problem) for problem in check_card(write(columns=columns, splits={"train": 11}))]
    assert len(problems) == 7, problems
    for words in (
        "10 rows, expected 11",
        "got ' ', and in 9 more of 10 rows",
        "got 7, and in 9 more",
        "row 0: column audio: got 8000 Hz",
        "0..2",
        "column image: image bytes: got a file that begins with b'RIFF",
        "1 text,",
    ):
        assert sum(words in problem for problem in problems) == 1, words


def test_check_decodes_pictures(write, toy):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    cut = file.getvalue()[: len(file.getvalue()) // 2]  # the header is whole
    toy.row = lambda i: {"image": {"bytes": cut if i == 3 else file.getvalue(), "path": None}}
    path = write(columns={"image": {"kind": "image", "shape": [64, 64, 1], "unit": "grey", "range": [0, 255]}})
    problems = [str(problem) for problem in check_card(path)]
    assert [problem.split(" (")[0] for problem in problems] == [
        f"toy: {split}: row 3: column image: image bytes: got a damaged or truncated image" for split in ("train", "test")
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_while_it_is_filled_leaves_nothing(tmp_path, error):
    with pytest.raises(error), storage.filled_whole(tmp_path / "cache" / "whole") as partial:
        (partial / "half").write_text("", encoding="utf-8")
        raise error
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "shape", "value", "got"),
    [
        ("vector", [2], [0.0, float("nan")], "nan at entry 1"),
        ("vector", [2], [float("-inf"), 0.0], "-inf at entry 0"),
        ("vector", [2], [0.0, None], "nan at entry 1"),
        ("vector", [2], [0.0, 0.0, 0.0], "shape [3]"),
        ("sequence", [None, 2], [[0.0, 0.0], [float("inf"), 0.0]], "inf at entry 1, 0"),
        ("sequence", [None, 2], [0.0, 0.0], "shape [2]"),
    ],
)
def test_numbers_that_are_none(kind, shape, value, got):
    assert check_value({"kind": kind, "shape": shape, "range": [None, None]}, value)[0] == got


# words in the card, archives and tables


def test_words_in_the_card(write):
    columns = {"text": {"kind": "text", "language": "en"}}
    source = {"inline": {"train": ["b", "a"]}, "reader": "words", "rename": {"text": "word"}}
    path = write(sources=[source], columns=columns)
    rows = open_card(path, "train")
    assert rows[:] == {"text": ["b", "a"]} and rows.info.description == "toy from inline train"
    with pytest.raises(NoSource, match=r"has no split test.*choose one of train"):
        open_card(path, "test")
    source["inline"]["train"] = ["c"]
    assert open_card(write(sources=[source], columns=columns), "train")["text"][:] == ["c"]  # not the old cache


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_an_archive_is_read_and_never_built(write, tmp_path, ending):
    members = {
        "toy-1.0/setup.py": b"raise SystemExit('built')",
        "toy-1.0/data/train.csv": b'text,label\n"a, b",1\nc,2\n',
        "toy-1.0/data/test.jsonl": b'{"text": "d", "label": 0}\n',
    }
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / f"toy-1.0.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(file, "w:gz") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    splits = {"train": 2, "test": 1, "validation": 1}
    path = write(sources=[{"sdist": file.name, "reader": "archive_table"}], splits=splits)
    assert open_card(path, "train", data_folder=folder)["text"][:] == ["a, b", "c"]
    assert open_card(path, "test", data_folder=folder)["label"][:] == [0]
    with pytest.raises(UserError, match=r"'validation'.*validation.parquet"):
        open_card(path, "validation", data_folder=folder)
    assert sorted(p.name for p in folder.iterdir()) == [file.name]
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=f"{file.name}.*download it again"):
        open_card(path, "train", data_folder=folder)


def test_a_source_archive_in_the_cache(write, tmp_path):
    path = write(sources=[{"sdist": "toy-reviews-1.0.zip", "reader": "archive_table"}], splits={"train": 1})
    folder = cache_folder() / "sdists"
    with pytest.raises(NoSource, match=rf"pip download --no-deps --no-binary :all: -d {folder} toy-reviews==1\.0"):
        open_card(path, "train")
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "toy-reviews-1.0.zip", "w") as archive:
        archive.writestr("toy-reviews-1.0/train.csv", "text,label\na,1\n")
    assert open_card(path, "train")["text"][:] == ["a"]
    with pytest.raises(UserError, match=r"other/toy-reviews-1\.0\.zip"):  # no project's archive: no line to type
        open_card(write(sources=[{"sdist": "other/toy-reviews-1.0.zip", "reader": "archive_table"}]), "train")


@pytest.mark.parametrize(
    ("name", "data"), [("train.parquet", b"PAR1"), ("train.jsonl", b"{oops\n"), ("train.csv", b"text\n\xff\n")]
)
def test_a_damaged_table(write, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        open_card(write(sources=[{"path": ".", "reader": "table"}]), "train", data_folder=tmp_path)


# the Hub


def test_the_hub_is_asked_for_data_only(write, monkeypatch):
    asked = []

    def load(*args, **settings):
        asked.append((args, settings))
        return datasets.Dataset.from_dict({"text": ["a"], "label": [1]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = {"hub": "some/where", "revision": "main", "data_files": {"train": "*.csv"}, "reader": "hub_table"}
    path = write(sources=[source])
    assert open_card(path, "train")[0] == {"text": "a", "label": 1}
    assert asked == [(("some/where", None), {"split": "train", "revision": "main", "data_files": {"train": "*.csv"}})]
    open_card(path, "train")  # from the cache: no request
    assert len(asked) == 1
