"""The command line: what it prints, and one line on stderr for every mistake."""

import io
import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from PIL import Image

import mmgen
from mmgen import cli
from mmgen.cli import main
from mmgen.cli.console import lines, write_json
from mmgen.data.image import ImageProcessor
from mmgen.data.label import LabelProcessor
from mmgen.data.vector import VectorProcessor
from mmgen.models.classifier import Classifier
from mmgen.training.scripts import recipe_names
from tests.commands import ENVIRONMENT, command
from tests.tiny import tiny_multimodal_vae


@pytest.fixture
def saved(tmp_path):
    model = Classifier("image", "image", [1, 8, 8], classes=3, encoder={"width": 4, "dim": 8})
    model.processors |= {"image": ImageProcessor(size=8, channels=1), "label": LabelProcessor(["red", "green", "blue"])}
    model.save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.fixture
def picture(tmp_path):
    Image.new("L", (8, 8), 200).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def fails(capsys, *arguments: str) -> str:
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mmgen: ")
    return error


def test_list(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in ("captioning", "judge", "openmoji", "flickr8k", "captioner", "smoke"):
        assert name in text


def test_a_reader_that_had_enough():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "mmgen.cli", "list"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command():
    done = subprocess.run([sys.executable, "-m", "mmgen.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"    {name}" in done.stdout for name in ("list", "train", "evaluate", "generate", "probe", "data"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "captionning"], "recipe: got captionning, expected a known name; did you mean 'captioning'?"),
        (["train", "judge", "--config", "smok"], "config of judge: got smok, expected a known name; did you mean 'smoke'?"),
        (
            ["train", "judge", "fit.stps=3"],
            "config key fit.stps: got an unknown key, expected a known one; did you mean 'steps'?",
        ),
        (["train", "judge", "stray"], "argument: got stray, expected a known option or key=value"),
        (["train", "judge", "two", "strays"], "argument: got two strays, expected"),
        (["train", "gone/recipe"], "gone/recipe: got no train.py, expected a recipe's folder"),
        (["train", "vae", "model.settings.beta.beta=-1"], "model.settings.beta.beta: got -1"),
        (["train", "vae", "fit.clip=inf"], "fit.clip: got inf, expected a finite number >= 0"),
        (["train", "judge", "--sed", "3"], "argument: got --sed"),
        (["list", "size=64"], "argument: got size=64, expected a known option; see `mmgen list --help`"),
        (["train", "judge", "--processes", "0"], "--processes: got 0"),
        (["evaluate", "nowhere"], "nowhere: got no run.json and config.yaml, expected a run folder"),
        (["generate", "nowhere/at/all", "--to", "text"], "nowhere/at/all: got no such folder"),
        (["data", "show", "openmojo"], "did you mean 'openmoji'?"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message):
    assert message in fails(capsys, *arguments)


def test_two_mistakes_are_two_lines(capsys):
    assert main(["train", "judge", "fit.stps=3", "seeds=many"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and all(line.startswith("mmgen: config key") for line in lines)


def test_all_mistakes_of_a_config_are_told_at_once_each_with_its_fix(capsys):
    wrong = ["fit.steps=0", "data.size=-1", "model.heads=x", "nonsense=1"]
    assert main(["train", "text_to_image", *wrong]) == 2
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "mmgen: config key model.heads: got x, expected a whole number >= 1; write for example model.heads=8",
        "mmgen: config key nonsense: got an unknown key, expected a known one; choose one of aligned, baseline, data, "
        "discrete_vae, evaluation, fit, fit_baseline, fit_codes, judge, model, seed, seeds",
        "mmgen: data.size: got -1, expected a number >= 1; use 1 or more",
        "mmgen: fit.steps: got 0, expected a number >= 1; use 1 or more",
    ]


@pytest.mark.parametrize("recipe", recipe_names())
def test_help_explains_every_key_of_a_recipe(capsys, recipe):
    with pytest.raises(SystemExit, match="0"):
        main(["train", recipe, "--help"])
    lines = capsys.readouterr().out.splitlines()
    keys = {line.split("=")[0]: after for line, after in pairwise(lines) if re.match(r"  [a-z][\w.]*=.*: (a|one|true) ", line)}
    assert "  seed" in keys and any(key.endswith(".steps") for key in keys)
    assert not [key for key, after in keys.items() if not after.startswith("      ") and key not in ("  seed", "  seeds")]


def test_help_tells_value_range_and_meaning(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "text_to_image", "--help"])
    told = capsys.readouterr().out
    assert "\n  fit_codes.warmup=50: a whole number >= 0\n      steps over which the learning rate rises linearly" in told
    assert "\n  model.dim=256: a whole number" in told and "\n      width of the transformer." in told


def test_help_of_a_recipe_names_the_options_and_the_values_of_the_config_before_it(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "steering", "--config", "smoke", "--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in ("--out", "--resume", "--config", "--processes", "STAGE.from=RUN"))
    assert "values in smoke.yaml" in told and "\n  fit.steps=6: " in told and ".:" not in told
    assert "config of steering: got smok" in fails(capsys, "train", "steering", "--config", "smok", "--help")


def test_a_run_folder_below_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    error = fails(capsys, "train", "judge", "--config", "smoke", "--out", tmp_path / "file" / "run")
    assert "Not a directory" in error and "choose another --out" in error


def test_generate(capsys, saved, picture):
    assert main(["generate", str(saved), "--to", "label", "--image", str(picture), "--n", "2"]) == 0
    once = capsys.readouterr().out
    assert main(["generate", str(saved), "--to", "label", "--image", str(picture), "--n", "2"]) == 0
    assert capsys.readouterr().out == once and set(once.split()) <= {"red", "green", "blue"}


def test_generate_writes_json(capsys, saved, picture, tmp_path):
    arguments = ["generate", saved, "--to", "label", "--image", picture, "--image", picture, "--json", tmp_path / "f.json"]
    assert main([str(a) for a in arguments]) == 0
    assert len(json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))) == 2


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_figures_that_cannot_be_written_are_not_computed(capsys, saved, picture, command, monkeypatch):
    for module in ("mmgen.models.base.load", "mmgen.training.run_folder.open_run"):
        monkeypatch.setattr(module, lambda *given: pytest.fail("computed first"))
    to = ["--to", "label", "--image", picture] if command == "generate" else []
    error = fails(capsys, command, saved, *to, "--json", saved / "none" / "f.json")
    assert f"f.json: got no folder {saved / 'none'}, expected a file that can be written" in error
    assert "f: got a folder" not in error and "got a folder" in fails(capsys, command, saved, *to, "--json", saved)
    monkeypatch.setattr("os.access", lambda file, mode: False)
    assert "got no permission" in fails(capsys, command, saved, *to, "--json", saved / "f.json")


def test_check_says_how_far_it_looked(capsys):
    assert main(["data", "check", "digits"]) == 0
    assert "64 rows of each split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "inputs: got none, expected something to start from; add --image VALUE"),
        (["--text", "hello"], "input modality: got text"),
        (["--image", "a.png", "beams=2"], "option of classifier: got beams"),
        (["--image", "a.png", "--n", "0"], "--n: got 0"),
    ],
)
def test_generate_mistakes(capsys, saved, picture, arguments, message):
    arguments = [str(picture) if a == "a.png" else a for a in arguments]
    assert message in fails(capsys, "generate", saved, "--to", "label", *arguments)


def test_a_picture_that_is_text(capsys, saved, tmp_path):
    (tmp_path / "b.png").write_text("hello", encoding="utf-8")
    error = fails(capsys, "generate", saved, "--to", "label", "--image", tmp_path / "b.png")
    assert "b.png" in error


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda b: b[: len(b) // 2], "config.json"),
        ("config.json", lambda b: b.replace(b"classifier", b"os.system"), "got os.system"),
        ("config.json", lambda b: b.replace(b'"classes"', b'"clases"'), "did you mean 'classes'?"),
        ("model.safetensors", lambda b: b[: len(b) // 2], "model.safetensors"),
        ("processors/image/processor.json", lambda b: b.replace(b'"image"', b'"pickle"'), "got pickle"),
    ],
)
def test_a_damaged_model(capsys, saved, picture, file, change, message):
    place = saved / "model" / file
    place.write_bytes(change(place.read_bytes()))
    assert message in fails(capsys, "generate", saved, "--to", "label", "--image", picture)


def test_weights_of_another_model(capsys, saved, picture, tmp_path):
    other = Classifier("image", "image", [1, 8, 8], classes=5, encoder={"width": 4, "dim": 8})
    other.save_pretrained(tmp_path / "other")
    (saved / "model" / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    error = fails(capsys, "generate", saved, "--to", "label", "--image", picture)
    assert "differing tensors" in error and "head" in error


def test_load_returns_the_same_model(saved):
    model = mmgen.load(saved)
    image = torch.rand(2, 1, 8, 8)
    again = mmgen.load(saved / "model")
    batch = mmgen.Batch({"image": image})
    assert torch.equal(model.predict(batch).logits, again.predict(batch).logits)


def test_json_has_null_for_what_is_no_number(tmp_path):
    file = tmp_path / "f.json"
    write_json(file, [{"a": -math.inf, "b": (math.nan, 1.5), "c": "NaN", "d": True}])
    assert json.loads(file.read_text(encoding="utf-8")) == [{"a": None, "b": [None, 1.5], "c": "NaN", "d": True}]


def test_umlauts_under_the_c_locale(tmp_path):
    """Without UTF-8 mode, which Python would choose by itself: arguments, file names, what is read and what is printed."""
    (tmp_path / "Wörter.md").write_text("---\nname: Schönes\n---\n", encoding="utf-8")
    environment = {**ENVIRONMENT, "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    for card in ("Wörter", "Kärtchen"):
        done = subprocess.run(command("data", "show", f"{card}.md"), env=environment, capture_output=True, cwd=tmp_path)
        said = (done.stdout + done.stderr).decode("utf-8")
        assert card in said and "Traceback" not in said and "codec" not in said


@pytest.mark.parametrize(("terminal", "expected"), [(False, "Schönes\n".encode()), (True, b"Sch?nes\n")])
def test_pipes_are_utf8_and_terminals_keep_their_own(monkeypatch, terminal, expected):
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    stream.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdout", stream)
    cli.write_utf8()
    print("Schönes", file=stream, flush=True)
    assert written.getvalue() == expected


def test_a_text_of_the_c_locale_is_read_as_utf8(monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO("Schönes\n".encode()), encoding="ascii", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    cli.write_utf8()
    assert [*lines()] == ["Schönes"]


def test_generate_from_a_vector(capsys, tmp_path):
    model = tiny_multimodal_vae()
    model.processors |= {"vector": VectorProcessor([0.0] * 5, [1.0] * 5), "image": ImageProcessor(size=8, channels=1)}
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "v.csv").write_text("1,2,3,4,5", encoding="utf-8")
    run = ["generate", str(tmp_path / "model"), "--to", "vector"]
    said = []
    for given in (["--vector", "1,2,3,4,5"], ["--vector", str(tmp_path / "v.csv")], ["--vector=-1,2,3,4,5"]):
        assert main([*run, *given]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert len(said[0]) == 5 and said[0] == said[1] and all(isinstance(number, float) for number in said[2])
    assert "vector: got 2 numbers, expected 5" in fails(capsys, *run, "--vector", "1,2")
    assert "vector: got 'word'" in fails(capsys, *run, "--vector", "word")
