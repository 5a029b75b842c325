"""The model card as the Hub reads it, and the contact sheet it shows."""

import dataclasses
import io

import pytest
import yaml
from huggingface_hub import ModelCard as HubCard
from PIL import Image

from mmgen.errors import UserError
from mmgen.training.model_card import ModelCard, contact_sheet, write_model_card
from mmgen.training.report import Sample

CARD = ModelCard(
    name="captioning-openmoji",
    description="A frozen language model that captions emoji.",
    license="cc-by-sa-4.0",
    task="image-to-text",
    data="openmoji",
    data_license="cc-by-sa-4.0",
    table={
        "test": {"captioner": {"cider": (0.81, 0.05), "bleu4": 9.3}, "blind": {"cider": 0.38, "bleu4": 4.0}},
        "test_compositional": {"captioner": {"cider": 4.9, "bleu4": float("nan")}, "blind": {"cider": 0.26}},
    },
    command="mmgen train captioning --config config seed=0",
    picture="samples/test.png",
    body="## Use\n\nTo try the method.\n\n## Known bias and limitations\n\n- It saw drawings only.\n- Skin tones are alike.",
    tags=["image-captioning"],
    base_model="HuggingFaceTB/SmolLM2-135M",
)


def written(tmp_path, card=CARD):
    write_model_card(tmp_path / "README.md", card)
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_front_matter_is_the_hubs(tmp_path):
    text = written(tmp_path)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "mmgen"
    assert front["license"] == front["license"].lower() == "cc-by-sa-4.0"
    assert front["pipeline_tag"] == "image-to-text"
    assert front["tags"] == ["mmgen", "image-captioning"]
    assert front["datasets"] == ["openmoji"]
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    results = HubCard(text).data.eval_results
    figures = {(r.dataset_split, r.metric_type): r.metric_value for r in results}
    assert figures == {("test", "cider"): 0.81, ("test", "bleu4"): 9.3, ("test_compositional", "cider"): 4.9}


def test_a_model_without_a_base_or_figures(tmp_path):
    text = written(tmp_path, dataclasses.replace(CARD, base_model=None, table={}, tags=()))
    front = yaml.safe_load(text.split("---\n")[1])
    assert "base_model" not in front
    assert "model-index" not in front


def test_the_card_says_what_a_user_asks(tmp_path):
    text = written(tmp_path)
    for part in (
        CARD.description,
        CARD.command,
        CARD.body,
        "](samples/test.png)",
        "licence cc-by-sa-4.0",
    ):
        assert part in text
    assert "| split | system | CIDEr (0-10) | BLEU-4 (0-100) |" in text
    assert "| test | captioner | 0.81 ±\u00a00.05 | 9.30 |" in text
    assert "| test_compositional | blind | 0.26 | \N{EN DASH} |" in text
    assert "torch 2." in text
    assert "transformers " in text


def test_the_card_of_a_study_loads_its_first_run(tmp_path):
    assert 'mmgen.load("RUN")' in written(tmp_path)
    assert 'mmgen.load("RUN/seed_3")' in written(tmp_path, dataclasses.replace(CARD, run="seed_3"))


def test_a_card_without_a_picture(tmp_path):
    text = written(tmp_path, dataclasses.replace(CARD, picture=None))
    assert "![" not in text and f"{CARD.description}\n\n## Figures" in text


@pytest.mark.parametrize("picture", ["/tmp/test.png", "../other/test.png"])
def test_the_picture_lies_in_the_run_folder(tmp_path, picture):
    with pytest.raises(UserError, match="model card: picture: got"):
        written(tmp_path, dataclasses.replace(CARD, picture=picture))


def sample(text="a cat", colour=(250, 0, 0), mode="RGB", size=(32, 32)):
    return Sample(Image.new(mode, size, colour), {"captioner": text, "reference": "a dog"})


def test_the_sheet_shows_each_picture_in_order():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    sheet = contact_sheet([sample(colour=c) for c in colours], columns=2)
    assert sheet.mode == "RGB"
    assert sheet.width == 416
    middles = [(104, 104), (312, 104), (104, sheet.height // 2 + 104)]
    assert [sheet.getpixel(p) for p in middles] == colours


def test_fewer_pictures_than_columns_make_a_narrow_sheet():
    assert contact_sheet([sample()], columns=4).width == 208


def test_long_texts_wrap_and_stay_inside():
    short = contact_sheet([sample("a cat")])
    for text in ("a cat on a mat " * 12, "x" * 200, "\n".join(["a cat"] * 9)):
        sheet = contact_sheet([sample(text)])
        assert sheet.width == short.width
        assert sheet.height >= short.height + 80
        margin = sheet.crop((202, 208, 208, sheet.height))
        assert margin.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_caption_draws(text):
    assert contact_sheet([sample(text)]).width == 208


def test_transparency_is_white_and_shape_is_kept():
    sheet = contact_sheet([sample(colour=(0, 0, 0, 0), mode="RGBA")])
    assert sheet.getpixel((104, 104)) == (255, 255, 255)
    wide = contact_sheet([sample(size=(64, 16))])
    assert wide.getpixel((104, 104)) == (250, 0, 0)
    assert wide.getpixel((104, 20)) == (255, 255, 255)


def test_encoded_pictures_draw_too():
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 0).save(buffer, format="PNG")
    assert contact_sheet([Sample(buffer.getvalue(), {"captioner": "x"})]).getpixel((104, 104)) == (0, 0, 0)


@pytest.mark.parametrize(("samples", "columns"), [([], 4), ([sample()], 0)])
def test_nothing_to_draw_is_an_error(samples, columns):
    with pytest.raises(UserError, match="contact sheet: got"):
        contact_sheet(samples, columns)
