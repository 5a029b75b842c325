"""The house: imports point one way, packages are listed, nothing starts slowly."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
# rooms from the ground up: a module imports from its own room or a lower one; metrics imports errors alone
ROOMS = [
    "errors",
    "processes",
    "storage",
    "ranges",
    "distributions",
    "data",
    "modalities",
    "latents",
    "conditioning",
    "models",
    "training",
    "judging",
    "inference",
    "cli",
    "recipes",
]
BESIDE = {("modalities", "latents"), ("latents", "modalities"), ("cli", "recipes"), ("recipes", "cli")}

# private names of transformers, torch, huggingface_hub, torchaudio and multivae, in this order, that tests read
PRIVATE_ELSEWHERE = {"_attn_implementation", "_forward_hooks", "_hub_mixin_config", "_get_sinc_resample_kernel", "_poe_fusion"}
OPENS_NO_TEXT = ("Image.", "os.", "PIL.", "tarfile.", "zipfile.", "soundfile.")
OPENINGS = ("What", "That", "Of", "How", "Whether", "Those", "Who")  # of no docstring


def modules() -> list[Path]:
    return [f for folder in ("mmgen", "recipes") for f in sorted((ROOT / folder).rglob("*.py"))]


def room(file: Path) -> str:
    first, *rest = file.relative_to(ROOT).with_suffix("").parts
    return "recipes" if first == "recipes" else rest[0]


def imported_names(file: Path) -> set[str]:
    """Modules, and names that may be modules, that a file imports, inside functions and for types too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("mmgen.")}


def imported_files(file: Path) -> set[Path]:
    """Files of mmgen and recipes that a file imports."""
    parts = (name.removeprefix("mmgen.recipes").split(".") for name in imported_names(file))
    places = (ROOT.joinpath("recipes", *rest) if not first else ROOT.joinpath(first, *rest) for first, *rest in parts)
    return {place.with_suffix(".py") for place in places if place.with_suffix(".py").exists()}


@pytest.mark.parametrize("file", [f for f in modules() if room(f) != "__init__"], ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_one_way(file):
    own = room(file)
    for other in {name.split(".")[1] for name in imported_names(file)} & {*ROOMS, "metrics"} - {own}:
        if own == "metrics":
            assert other == "errors", f"metrics imports errors alone, but {file.name} imports {other}"
        elif other == "metrics":
            assert ROOMS.index(own) >= ROOMS.index("training")
        else:
            assert ROOMS.index(other) < ROOMS.index(own) or (own, other) in BESIDE, f"{own} imports {other}"


def test_no_files_import_each_other_in_a_circle():
    graph = {file: imported_files(file) for file in modules()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(str(file.relative_to(ROOT)) for file in error.args[1]))


@pytest.mark.parametrize("file", sorted(ROOT.glob("recipes/*/train.py")), ids=lambda f: f.parent.name)
def test_a_recipe_is_a_page_and_reaches_into_no_other(file):
    text = file.read_text(encoding="utf-8")
    assert "sys.modules" not in text and "load_recipe" not in text
    assert not [name for name in imported_names(file) if name.startswith("mmgen.recipes")]
    assert len(text.splitlines()) <= 260


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(ROOT)))
def test_docstrings_open_with_a_noun_or_a_verb(file):
    path = str(file.relative_to(ROOT))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            first = re.split(r"\W", text, maxsplit=1)[0]
            assert first not in OPENINGS, f"{path}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"


def test_every_package_is_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "mmgen").rglob("__init__.py")}
    assert listed == found | {"mmgen.recipes", "mmgen.data_cards"}
    assert "==" not in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_every_recipe_has_its_files():
    recipes = [f.parent for f in (ROOT / "recipes").glob("*/train.py")]
    assert recipes
    for folder in recipes:
        for name in ("config.yaml", "smoke.yaml", "README.md"):
            assert (folder / name).is_file(), f"{folder.name} lacks {name}"


def test_no_drawers_and_no_files_of_two_ideas():
    for file in modules():
        assert file.stem not in ("utils", "util", "helpers", "common", "misc"), file
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 500, file


def test_only_the_command_line_prints():
    for file in modules():
        calls = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        printing = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not printing or room(file) == "cli", file


def test_processes_join_in_one_place():
    """A ``PartialState()`` elsewhere would not say that the processes compute on the CPU, and each would stay alone."""
    for file in modules():
        assert "PartialState" not in file.read_text(encoding="utf-8") or file.name == "processes.py", file


def names_read(file: Path) -> Iterator[str]:
    """Attributes read of anything but ``self``, names imported, and names given to ``setattr`` and its like."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and re.search(r"attr$|patch|object$", ast.unparse(node.func)):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            yield from (part for name in names for part in name.split("."))


def test_no_test_reads_private_names():
    for file in (f for name in ("tests", "benchmarks") for f in (ROOT / name).rglob("*.py")):
        private = {name for name in names_read(file) if re.match(r"_[^_]", name)} - PRIVATE_ELSEWHERE
        assert not private, f"{file}: test the public behaviour of {', '.join(sorted(private))}, or make the name public"


def test_text_files_are_read_and_written_as_utf8():
    folders = [ROOT / name for name in ("mmgen", "recipes", "benchmarks", "tests")]
    for file in (f for folder in folders for f in folder.rglob("*.py")):
        for call in (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            said = {keyword.arg for keyword in call.keywords} & {"encoding", None}
            if name in ("read_text", "write_text"):  # ruff's PLW1514 sees these only where it knows the type
                assert said, f"{file}:{call.lineno}: {name} without encoding"
            elif (
                name == "open"
                and isinstance(call.func, ast.Attribute)
                and not ast.unparse(call.func).startswith(OPENS_NO_TEXT)
            ):
                modes = [a.value for a in call.args if isinstance(a, ast.Constant)] or ["r"]
                assert said or "b" in str(modes[0]), f"{file}:{call.lineno}: open without encoding"


@pytest.mark.parametrize("code", ["import mmgen", "import mmgen.cli; mmgen.cli.main(['list'])"])
def test_importing_and_listing_load_no_torch(code):
    check = f"{code}; import sys; assert not {{'torch', 'transformers', 'datasets', 'accelerate', 'scipy'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT, capture_output=True, text=True)
    if "list" in code:
        assert "captioning " in done.stdout and "Configs: config, " in done.stdout and "openmoji " in done.stdout


def test_public_names_resolve():
    import mmgen

    assert {"Batch", "Captioner", "Model", "VAE", "collate", "generate", "load", "open_card"} <= {*mmgen.__all__}
    for name in mmgen.__all__:
        assert getattr(mmgen, name) is not None
        assert name in dir(mmgen)
    with pytest.raises(AttributeError, match="lod"):
        mmgen.lod  # noqa: B018


def test_type_checkers_see_the_public_names():
    import mmgen

    files = [ROOT / "mmgen" / "__init__.pyi", ROOT / "mmgen" / "models" / "__init__.py"]  # the first has all of the second
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {alias.asname for node in imports for alias in node.names if alias.asname} == {*mmgen.__all__}
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert (ROOT / "mmgen" / "py.typed").is_file()
    assert config["options.package_data"]["mmgen"] == "py.typed, *.pyi"


def test_the_version_is_cited():
    import mmgen

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mmgen.__version__ and citation["license"] == "Apache-2.0"
