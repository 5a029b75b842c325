"""Code of a repository is never run: not of language models, tokenizers and text encoders, and in no call."""

import ast
import json
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from mmgen.conditioning.language_model import load_language_model
from mmgen.conditioning.text_encoder import load_text_encoder
from mmgen.data.text import TextProcessor
from mmgen.errors import UserError
from tests.commands import alone

ROOT = Path(__file__).parent.parent
AUTO = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel",
        "AutoModel": "modeling_own.OwnModel", "AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}  # fmt: skip


def armed(folder: Path, settings: dict, tokenizer_settings: dict | None = None) -> Path:
    """A folder whose config.json names modules beside it, which would leave a file if they were imported."""
    marker = folder / "it_ran"
    folder.mkdir(exist_ok=True)
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nraise ImportError('it ran')\n"
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    if tokenizer_settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_settings), encoding="utf-8")
    return marker


@pytest.fixture
def yes(monkeypatch):
    """A user who says yes to every question, as `printf 'y\\n' |` does."""
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 15)
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


LOADERS = {
    "language model": load_language_model,
    "text encoder": load_text_encoder,
    "tokenizer": TextProcessor.from_pretrained,
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_folder_that_needs_its_own_code_is_refused(kind, tmp_path, yes):
    folder = tmp_path / "armed"
    marker = armed(folder, {"model_type": "own", "auto_map": AUTO}, {"tokenizer_class": "OwnTokenizer", "auto_map": AUTO})
    with pytest.raises(UserError, match=rf"{kind} {folder}: got one that needs code of its own \(auto_map\).*no code"):
        LOADERS[kind](str(folder))
    assert not marker.exists()


def test_a_known_model_with_its_own_code_beside_it_is_loaded_by_the_known_code(tmp_path, yes):
    model, tokenizer = load_language_model("tiny", "fp32")
    folder = tmp_path / "armed"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings, own = (json.loads((folder / f"{n}config.json").read_text(encoding="utf-8")) for n in ("", "tokenizer_"))
    marker = armed(folder, {**settings, "auto_map": AUTO}, {**own, "auto_map": AUTO})
    again, _ = load_language_model(str(folder), "fp32", "scratch")  # by from_config too
    assert type(again) is type(model) and not marker.exists()


def test_a_tokenizer_of_its_own_beside_a_known_model(tmp_path, yes):
    folder = tmp_path / "armed"
    BertModel(BertConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
              ).save_pretrained(folder)  # fmt: skip
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    marker = armed(folder, settings, {"tokenizer_class": "OwnTokenizer", "auto_map": AUTO})
    with pytest.raises(UserError, match=f"text encoder {folder}: got"):
        load_text_encoder(str(folder))
    assert not marker.exists()


@pytest.mark.slow
def test_the_command_says_so_in_one_line(tmp_path):
    folder = tmp_path / "armed"
    marker = armed(folder, {"model_type": "own", "auto_map": AUTO})
    done = alone("steer", folder, "--prompt", "x", "--bag", "space", stdin="y\n")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "needs code of its own" in done.stderr
    assert not marker.exists() and not done.stdout


def test_every_call_forbids_it():
    """``from_pretrained`` and ``from_config`` of transformers' Auto classes; ``datasets`` and ``timm`` run none."""
    found = 0
    for file in (f for folder in ("mmgen", "recipes", "benchmarks", "tests") for f in (ROOT / folder).rglob("*.py")):
        for call in (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
            said = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert said.get("trust_remote_code", "False") == "False", f"{file}:{call.lineno}"
            name = ast.unparse(call.func)
            own = "Auto" in name and name.endswith((".from_pretrained", ".from_config"))
            if own and ROOT / "tests" not in file.parents:
                found += 1
                assert "trust_remote_code" in said, f"{file}:{call.lineno}: {name} without trust_remote_code=False"
            assert name not in ("torch.hub.load", "pipeline", "pickle.load"), f"{file}:{call.lineno}: {name}"
    assert found >= 9
