"""Every command and snippet of the READMEs: parsed, its recipe and config found, and run where it takes seconds."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from mmgen import cli
from mmgen.cli.parser import build_parser
from mmgen.data.cards import read_card
from mmgen.inference.steer import settings
from mmgen.training.config import parse_overrides
from mmgen.training.recipe import load_recipe, recipe_config

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "recipes").glob("*/README.md"))]


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(encoding="utf-8"), re.M | re.S)


def commands(file: Path) -> list[list[str]]:
    text = "\n".join(blocks(file, "sh")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


MMGEN = [words[1:] for file in READMES for words in commands(file) if words[0] == "mmgen"]


def photographs(folder: Path) -> None:
    """Ten pictures with captions, as a user has them."""
    folder.mkdir()
    names = [f"{i:04}.jpg" for i in range(10)]
    for i, name in enumerate(names):
        Image.new("RGB", (64, 48), (25 * i, 200 - 20 * i, 90)).save(folder / name)
    lines = [f"{name},a plain picture of shade {i}" for i, name in enumerate(names)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,caption", *lines]), encoding="utf-8")


@pytest.mark.parametrize("words", MMGEN, ids=" ".join)
def test_command_is_one_that_runs(words, tmp_path, monkeypatch):
    card = (ROOT / "data_cards" / "digits.md").read_text(encoding="utf-8")
    (tmp_path / "my.md").write_text(card.replace(" image: {", " photo: {").replace(" label: {", " kind: {"), encoding="utf-8")
    (tmp_path / "my.csv").write_text("text,label\nfine,a\npoor,b\ngood,a\nbad,b\n", encoding="utf-8")
    photographs(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    words = words[: words.index("<")] if "<" in words else words  # what the shell reads
    options, rest = build_parser().parse_known_args(words)
    assert all("=" in word and not word.startswith("-") for word in rest)
    if options.command == "train":
        recipe = load_recipe(options.recipe)
        recipe_config(recipe, options.config, [word for word in rest if ".from=" not in word])
    if options.command == "data" and options.action == "show":
        assert read_card(options.card)
    if options.command == "steer":
        settings(parse_overrides(rest), options.method)
    if options.command == "generate":
        for picture in options.image or []:
            assert (ROOT / picture).is_file() or (tmp_path / picture).is_file()


QUICK = ["list", "data show openmoji", "data show digits --yaml", "data check photos/", "data init photos/"]


@pytest.mark.parametrize("words", [line.split() for line in QUICK], ids=" ".join)
def test_quick_command_runs(words, capsys, tmp_path, monkeypatch):
    assert words in MMGEN
    photographs(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 0
    assert capsys.readouterr().out


def test_scripts_that_are_named_exist():
    for file in READMES:
        for words in commands(file):
            for word in words:
                if word.startswith("recipes/"):
                    assert (ROOT / word).is_file(), f"{file.name}: {word}"
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


WITH_SNIPPETS = [file for file in READMES if blocks(file, "python")]


@pytest.mark.parametrize("file", WITH_SNIPPETS, ids=lambda file: file.parent.name)
def test_python_snippets_run(file, tmp_path, monkeypatch, capsys):
    recipe = file.parent.name if file.parent.parent.name == "recipes" else "captioning"
    if recipe == "vision_touch":
        pytest.importorskip("mujoco", reason="pip install 'mmgen[robotics]'")
    if cli.main(["train", recipe, "--config", "smoke", "--out", str(tmp_path / "run")]):
        error = capsys.readouterr().err
        assert "MUJOCO_GL" in error
        pytest.skip(error)
    capsys.readouterr()
    monkeypatch.chdir(ROOT)
    for code in blocks(file, "python"):
        exec(compile(code.replace(f"runs/{recipe}", str(tmp_path / "run")), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()  # what it prints


def test_links_lead_somewhere():
    for file in READMES:
        prose = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)#]+)\)", prose):
            assert link.startswith("http") or (file.parent / link).exists(), f"{file.name}: {link}"
