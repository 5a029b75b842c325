"""The report: valid, self-contained, escaped, and true to its figures and pictures."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from mmgen.errors import UserError
from mmgen.training.report import Sample, cell, metrics_of, picture_grid, write_report

VOID = {"meta", "img", "br"}
TABLE = {
    "test": {"captioner": {"cider": (4.603, 0.125), "bleu4": 61.24}, "blind": {"cider": 0.26}},
    "test_compositional": {"captioner": {"cider": 0.7, "bleu4": float("nan"), "new_metric": 0.5}},
}


class Page(HTMLParser):
    """Open tags, attributes and text of a page; fails where a tag closes another."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data.strip())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def picture(mode="RGB", colour=(200, 30, 60), size=(16, 12)):
    return Image.new(mode, size, colour)


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def write(folder, **changes):
    text = {"captioner": "a cat", "reference": "a red cat\nthe cat", "nearest": "a dog", "blind": ""}
    given = {
        "title": "Captions",
        "table": TABLE,
        "samples": [Sample(picture(), text, note="CIDEr 4.2", group="Best"), Sample(picture(), text, group="Worst")],
        "details": {"Command": "mmgen train captioning seed=0", "Config": "fit:\n  steps: 500"},
        "summary": "What it is.",
    }
    write_report(folder / "report.html", **{**given, **changes})
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_is_balanced_and_says_everything(tmp_path):
    page = Page(write(tmp_path))
    text = [
        "Captions",
        "What it is.",
        "test",
        "captioner",
        "blind",
        "CIDEr",
        "(0-10)",
        "new_metric",
        "4.60 ±\u00a00.12",
        "0.26",
    ]
    text += ["Best", "Worst", "CIDEr 4.2", "a cat", "a red cat\nthe cat", "a dog", "fit:\n  steps: 500"]
    assert not set(text) - set(page.text)
    assert [page.text.index(t) for t in ("Best", "Worst", "Command")] == sorted(
        page.text.index(t) for t in ("Best", "Worst", "Command")
    )
    assert len(page.all("article")) == len(page.all("img")) == 2
    assert len(page.all("details")) == 2
    assert len(page.all("section")) == 3  # figures and a grid for each of the two groups
    assert page.all("html") == [{"lang": "en"}]


def test_the_page_loads_nothing(tmp_path):
    html = write(tmp_path)
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)
    assert all(img["src"].startswith("data:image/") for img in Page(html).all("img"))
    policy = next(m for m in Page(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in html
    assert any(m.get("name") == "viewport" for m in Page(html).all("meta"))


def test_whatever_a_user_or_a_model_wrote_is_escaped(tmp_path):
    evil = "</dd><script>alert(1)</script>\"' onerror='x"
    html = write(
        tmp_path,
        title=evil,
        table={evil: {evil: {evil: 0.5}}},
        samples=[Sample(picture(), {evil: evil, "reference": evil}, note=evil, group=evil)],
        details={evil: evil},
        summary=evil,
    )
    page = Page(html)
    assert not page.all("script")
    assert "<script>" not in html
    assert page.all("img")[0]["alt"] == evil
    assert page.all("img")[0].keys() == {"src", "alt", "width", "height"}
    assert page.text.count(evil) == 13


@given(caption=st.text(max_size=30))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_caption_leaves_the_page_whole(tmp_path, caption):
    text = caption.encode("utf-8", "ignore").decode()  # no lone surrogates: they are no text
    assert len(Page(write(tmp_path, samples=[Sample(picture(), {"captioner": text})])).all("article")) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_encoded_pictures_are_embedded_byte_for_byte(tmp_path, kind):
    data = encoded(picture(), kind)
    source = Page(write(tmp_path, samples=[Sample(data, {"captioner": "x"})])).all("img")[0]
    head, body = source["src"].split(",")
    assert head == f"data:image/{kind.lower()};base64"
    assert base64.b64decode(body) == data
    assert (source["width"], source["height"]) == ("16", "12")


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGB", (1, 2, 3)), ("RGBA", (1, 2, 3, 4)), ("L", 7), ("P", 1), ("CMYK", (9, 8, 7, 6))]
)
def test_pil_pictures_come_back_equal(tmp_path, mode, colour):
    image = picture(mode, colour) if mode != "CMYK" else picture(mode, colour).convert("RGB")
    body = Page(write(tmp_path, samples=[Sample(image, {"captioner": "x"})])).all("img")[0]["src"].split(",")[1]
    back = Image.open(io.BytesIO(base64.b64decode(body)))
    assert back.format == "PNG"
    assert back.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_bytes_that_are_no_picture_are_an_error(tmp_path):
    with pytest.raises(UnidentifiedImageError):
        write(tmp_path, samples=[Sample(b"text", {"captioner": "x"})])


def test_an_empty_report_is_a_page(tmp_path):
    page = Page(write(tmp_path, table={}, samples=[], details={}, summary=""))
    assert not page.all("table")
    assert not page.all("article")


def test_cells():
    assert metrics_of(TABLE) == ["cider", "bleu4", "new_metric"]
    assert cell(TABLE, "test", "captioner", "cider") == "4.60 ±\u00a00.12"
    assert cell(TABLE, "test", "blind", "cider") == "0.26"
    assert cell(TABLE, "test_compositional", "captioner", "cider") == "0.70"
    assert cell(TABLE, "test", "captioner", "bleu4") == "61.2"
    assert cell(TABLE, "test_compositional", "captioner", "new_metric") == "0.500"
    assert cell(TABLE, "test", "blind", "bleu4") == "\N{EN DASH}"
    assert cell(TABLE, "test_compositional", "captioner", "bleu4") == "\N{EN DASH}"
    assert cell({"test": {"a": {"x": (1.5, float("nan"))}}}, "test", "a", "x") == "1.50"


def test_a_grid_holds_each_picture_in_its_place():
    colours = [["red", "lime", "blue"], ["white", "black", "yellow"]]
    grid = picture_grid([[Image.new("RGB", (8, 6), colour) for colour in row] for row in colours])
    assert grid.size == (3 * 48 + 2 * 4, 2 * 36 + 4)  # six times as large, and gaps of 4
    for i, row in enumerate(colours):
        for j, colour in enumerate(row):
            corner = (j * 52, i * 40)
            assert [grid.getpixel((corner[0] + x, corner[1] + y)) for x, y in ((0, 0), (47, 35))] == [
                Image.new("RGB", (1, 1), colour).getpixel((0, 0))
            ] * 2
    assert picture_grid([[Image.new("L", (64, 64))]]).size == (64, 64)  # large ones stay as they are


@pytest.mark.parametrize(("rows", "message"), [([], r"rows of \[\]"), ([[1], [1, 2]], r"rows of \[1, 2\]")])
def test_a_grid_of_nothing(rows, message):
    with pytest.raises(UserError, match=message):
        picture_grid(rows)


def test_a_wide_picture_takes_the_page(tmp_path):
    samples = [Sample(Image.new("RGB", (8, 8)), {"a": "b"}, wide=wide) for wide in (True, False)]
    write_report(tmp_path / "report.html", "t", {}, samples, {})
    articles = [
        attributes for tag, attributes in Page((tmp_path / "report.html").read_text(encoding="utf-8")).tags if tag == "article"
    ]
    assert articles == [{"class": "wide"}, {}]
