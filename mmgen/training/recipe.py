"""A recipe: named stages that train into one run folder, and the evaluation that judges the result."""

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from mmgen.errors import UserError, check_one_of
from mmgen.training.config import build_config, parse_overrides, read_yaml, to_dict, write_config

Stage = Callable[[Any, Path, bool], None]


@dataclass(frozen=True)
class Recipe:
    """What ``recipes/NAME/train.py`` defines as ``RECIPE``.

    Args:
        name: of the recipe and of its folder.
        config: its dataclass; it has a ``seed`` and a ``seeds`` among its fields.
        stages: name -> ``stage(config, run, resume)``, run in this order; each leaves ``model/`` in its `stage_folder`.
        main: the stage that works in the run folder itself, the others in ``RUN/stages/NAME``.
        evaluate: ``evaluate(run, config, split)`` -> figures of that run on that split.
        splits: the held-out splits it can be evaluated on, the default first.
        report: ``report(run, config, command)`` writes the run's ``report.html`` and ``README.md`` from what evaluation left.
    """

    name: str
    config: type
    stages: Mapping[str, Stage]
    main: str
    evaluate: Callable[[Path, Any, str], dict[str, float]]
    splits: tuple[str, ...]
    report: Callable[[Path, Any], None]


def recipes_folder() -> Path:
    """Where the recipes are: in the installed package, or beside it in a checkout."""
    spec = importlib.util.find_spec("mmgen.recipes")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).parents[2] / "recipes"


def recipe_names() -> list[str]:
    """The recipes that ``mmgen train`` knows."""
    return sorted(file.parent.name for file in recipes_folder().glob("*/train.py"))


def recipe_folder(name: str) -> Path:
    """The folder of a recipe, by its name or by a path to a folder of one's own.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if (Path(name) / "train.py").is_file():
        return Path(name)
    return recipes_folder() / check_one_of("recipe", name, recipe_names())


def load_recipe(name: str) -> Recipe:
    """The ``RECIPE`` of a recipe's ``train.py``."""
    file = recipe_folder(name) / "train.py"
    key = f"mmgen_recipe_{file.parent.resolve().as_posix()}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, file)
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key].RECIPE


def recipe_config(recipe: Recipe, config: str, overrides: list[str]) -> Any:
    """The resolved config: the dataclass, a named config of the recipe or a YAML file over it, ``key=value`` over that.

    Args:
        recipe: whose config.
        config: the name of a YAML file beside the recipe, or a path to one.
        overrides: ``key.sub=value`` arguments.

    Raises:
        UserError: no such config; unknown keys and wrong types, all at once.
    """
    file = Path(config)
    if file.suffix not in (".yaml", ".yml"):
        folder = _folder(recipe)
        names = [f.stem for f in folder.glob("*.yaml")]
        file = folder / f"{check_one_of(f'config of {recipe.name}', config, names)}.yaml"
    return build_config(recipe.config, read_yaml(file), parse_overrides(overrides))


def open_run(folder: Path) -> tuple[Recipe, Any]:
    """The recipe and the config that a run folder was made with.

    Raises:
        UserError: it is not a run folder.
    """
    file = folder / "run.json"
    if not file.is_file() or not (folder / "config.yaml").is_file():
        fix = "give a folder that `mmgen train` made"
        raise UserError(str(folder), got="no run.json and config.yaml", expected="a run folder", fix=fix)
    recipe = load_recipe(json.loads(file.read_text())["recipe"])
    return recipe, build_config(recipe.config, read_yaml(folder / "config.yaml"))


def train(recipe: Recipe, config: Any, out: Path, resume: bool = False, stages_from: Mapping[str, Path] | None = None) -> None:
    """Run the stages that are missing in ``out``, once a seed.

    Args:
        recipe: what to train.
        config: its resolved config.
        out: the run folder; with several seeds, ``seed_0``, ``seed_1``, ... inside it are the runs.
        resume: go on with what ``out`` holds; without it the folder must not exist.
        stages_from: stage -> a run folder to take that stage from instead of training it.

    Raises:
        UserError: the folder exists, cannot be written, or was made with another config.
    """
    main = int(os.environ.get("RANK", 0)) == 0
    stages_from = stages_from or {}
    for name in stages_from:
        check_one_of("stage", name, recipe.stages)
    if main:
        _make_run_folder(recipe, config, out, resume)
    for run, seeded in seed_runs(config, out):
        for name, stage in recipe.stages.items():
            folder = stage_folder(recipe, run, name)
            if (folder / "model").is_dir():
                continue
            if name in stages_from:
                _link_stage(stage_folder(recipe, stages_from[name], name), folder)
            else:
                stage(seeded, run, resume)


def evaluate(recipe: Recipe, config: Any, out: Path, split: str) -> dict[str, float]:
    """The recipe's figures on ``split``: of one run, or the mean over its seeds with ``<key>_sd`` beside each.

    They are added to ``out/metrics.json`` under the split's name, and the report is written anew.

    Raises:
        UserError: the split is unknown, or a stage was not trained to its end.
    """
    check_one_of("split", split, recipe.splits)
    runs = seed_runs(config, out)
    figures = []
    for run, seeded in runs:
        for name in recipe.stages:
            if not (stage_folder(recipe, run, name) / "model").is_dir():
                fix = "train it to the end with --resume"
                raise UserError(str(run), got=f"no trained stage {name!r}", expected="a finished run", fix=fix)
        figures.append(recipe.evaluate(run, seeded, split))
        _add_metrics(run, split, figures[-1])
        recipe.report(run, seeded)
    if len(runs) == 1:
        return figures[0]
    result = {}
    for key in figures[0]:
        values = [f[key] for f in figures]
        result |= {key: statistics.fmean(values), f"{key}_sd": statistics.stdev(values)}
    result["seeds"] = len(runs)
    _add_metrics(out, split, result)
    return result


def seed_runs(config: Any, out: Path) -> list[tuple[Path, Any]]:
    """The run folder of each seed with its config."""
    if config.seeds == 1:
        return [(out, config)]
    first = config.seed
    return [
        (out / f"seed_{seed}", dataclasses.replace(config, seed=seed, seeds=1)) for seed in range(first, first + config.seeds)
    ]


def stage_folder(recipe: Recipe, run: Path, name: str) -> Path:
    """Where a stage works: the main one in the run folder itself, the others in ``stages/NAME``."""
    return run if name == recipe.main else run / "stages" / name


def launch(processes: int, arguments: list[str]) -> int:
    """Run ``mmgen ARGUMENTS`` on several processes of this machine through torchrun; returns its exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
               "-m", "mmgen.cli", *arguments]  # fmt: skip
    environment = {**os.environ, "MMGEN_PROCESSES": str(processes)}
    import torch

    if not torch.cuda.is_available():
        threads = max(1, (os.cpu_count() or 1) // processes)
        environment = {"OMP_NUM_THREADS": str(threads), **environment, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=environment).returncode


def _make_run_folder(recipe: Recipe, config: Any, out: Path, resume: bool) -> None:
    if out.exists() and not resume:
        fix = "add --resume to go on with it, or choose another --out"
        raise UserError(str(out), got="a folder that exists", expected="a new one", fix=fix)
    if resume and (out / "config.yaml").is_file():
        before, now = read_yaml(out / "config.yaml"), yaml.safe_load(yaml.safe_dump(to_dict(config)))
        if before != now:
            changed = [key for key in now if before.get(key) != now[key]]
            fix = "resume with the same config, or choose another --out"
            raise UserError(str(out), got=f"other values of {', '.join(changed)}", expected="its own config", fix=fix)
    try:
        for run, seeded in [(out, config), *seed_runs(config, out)]:
            run.mkdir(parents=True, exist_ok=True)
            write_config(seeded, run / "config.yaml")
            (run / "run.json").write_text(json.dumps({"recipe": _reference(recipe), "argv": sys.argv[1:]}) + "\n")
    except OSError as error:
        expected = "a folder that can be written"
        raise UserError(str(out), got=str(error), expected=expected, fix="choose another --out") from error


def _reference(recipe: Recipe) -> str:
    """The recipe's name, or the path of a recipe of one's own."""
    folder = _folder(recipe)
    return recipe.name if folder.parent == recipes_folder() else str(folder.resolve())


def _folder(recipe: Recipe) -> Path:
    return Path(sys.modules[recipe.config.__module__].__file__).parent


def _link_stage(source: Path, folder: Path) -> None:
    if not (source / "model").is_dir():
        fix = "name a run whose stage is trained"
        raise UserError(str(source), got="no trained model", expected="a finished stage", fix=fix)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").symlink_to((source / "model").resolve(), target_is_directory=True)


def _add_metrics(run: Path, split: str, figures: dict[str, float]) -> None:
    file = run / "metrics.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**known, split: figures}, indent=2) + "\n")
