"""A recipe: named stages that train into one run folder, and the evaluation that judges the result."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import shlex
import statistics
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from mmgen.data.card_files import absolute_card
from mmgen.data.cards import data_version, read_card
from mmgen.errors import UserError, check_at_least, check_one_of, check_seed
from mmgen.metrics.significance import paired_low
from mmgen.processes import rank
from mmgen.storage import cache_folder, cache_written, read_json, write_json
from mmgen.training import scripts
from mmgen.training.config import build_config, check_machine, parse_overrides, read_yaml, to_dict, write_config
from mmgen.training.lock import COPY, HOLDER, LOCK, check_free, locked
from mmgen.training.memory import keep_freed_memory

Stage = Callable[[Any, Path, bool], None]
RUN_KEYS = {"dtype"}  # config keys that say how a model is run, not what it is


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
        report: ``report(run, config)`` writes the run's ``report.html`` and ``README.md`` from what evaluation left.
        check: ``check(config)`` raises UserError for a config whose values do not fit the data.
        above: figure -> the baselines it is compared with; a study adds ``<baseline>_diff_low`` for each, the lower end of
            the 95 % interval of the difference, paired by seed.
        made_by: stage -> the keys of the config, of sections or ``section.key``, that must be alike in a run that it is taken
            from; ``data``, ``model`` and ``encoder`` for a stage that is not listed.
        grows: a list of the config that ``--resume`` may add to -> the stage that trains what is new, and leaves what it has.
        nested: ``nested(config)`` -> the config of each other recipe that evaluation trains, by the key that holds it.
    """

    name: str
    config: type
    stages: Mapping[str, Stage]
    main: str
    evaluate: Callable[[Path, Any, str], dict[str, float]]
    splits: tuple[str, ...]
    report: Callable[[Path, Any], None]
    check: Callable[[Any], None]
    above: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    made_by: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    grows: Mapping[str, str] = dataclasses.field(default_factory=dict)
    nested: Callable[[Any], Mapping[str, Any]] = lambda config: {}


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
    """The ``RECIPE`` of a recipe's ``train.py``.

    Raises:
        UserError: there is no such recipe, or its script cannot be imported or defines none.
    """
    folder = recipe_folder(name)
    file = folder / "train.py"
    try:
        module = importlib.import_module(_module_name(folder))
    except (ImportError, SyntaxError) as error:
        raise UserError(str(file), got=str(error), expected="a script that imports", fix="fix it") from error
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise UserError(str(file), got="no RECIPE", expected="RECIPE = Recipe(...)", fix="see recipes/judge/train.py")
    return recipe


def _module_name(folder: Path) -> str:
    """The name by which any process imports a recipe: a data worker that was not forked has to find it by the name alone."""
    shipped = folder.resolve().parent == recipes_folder().resolve()
    if shipped and importlib.util.find_spec("mmgen.recipes") is not None:
        return f"mmgen.recipes.{folder.resolve().name}.train"
    return scripts.module_name(folder / "train.py")


def recipe_of(name: str) -> ModuleType:
    """The module of a recipe, for what else its ``train.py`` defines: a judge that it trains and keeps, its ``Config``."""
    return sys.modules[load_recipe(name).config.__module__]


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
    layers = (_sectioned(recipe.config, values) for values in (read_yaml(file), parse_overrides(overrides, recipe.config)))
    return _checked(recipe, build_config(recipe.config, *(_absolute_cards(values, file.parent) for values in layers)))


def open_run(folder: Path, overrides: list[str] = ()) -> tuple[Recipe, Any]:
    """The recipe and the config that a run folder was made with.

    Args:
        folder: the run folder.
        overrides: how it is run now: ``dtype=NAME`` of its frozen language model, or nothing.

    Raises:
        UserError: it is not a run folder.
    """
    file = folder / "run.json"
    if not file.is_file() or not (folder / "config.yaml").is_file():
        fix = "give a folder that `mmgen train` made"
        raise UserError(str(folder), got="no run.json and config.yaml", expected="a run folder", fix=fix)
    recipe = load_recipe(str(read_json(file).get("recipe")))
    values = _sectioned(recipe.config, read_yaml(folder / "config.yaml"))
    now = parse_overrides(list(overrides), recipe.config)
    for key in now:
        check_one_of(f"option of {recipe.name}", key, sorted({path.rpartition(".")[2] for path in _flat(values)} & RUN_KEYS))
    if now:  # of the model, or of a recipe that runs the language model itself
        now = now if "dtype" in values else {"model": now}
    return recipe, _checked(recipe, build_config(recipe.config, values, now))


def _absolute_cards(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of data absolute: a run is used from other folders too. ``folder``, of the config, is tried as well."""
    return {
        key: _absolute_cards(value, folder) if isinstance(value, dict)
        else absolute_card(value, folder) if key == "card" and isinstance(value, str)
        else value
        for key, value in values.items()
    }  # fmt: skip


def _sectioned(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Turn ``data: CARD`` into the section ``data``, with the keys of that section that stand beside it, as in older runs."""
    section = typing.get_type_hints(cls).get("data")
    if not isinstance(values.get("data"), str) or not dataclasses.is_dataclass(section):
        return values
    fields, inner = ({field.name for field in dataclasses.fields(of)} for of in (cls, section))
    moved = {key: value for key, value in values.items() if key in inner - fields}
    return {key: value for key, value in values.items() if key not in moved} | {"data": {**moved, "card": values["data"]}}


def _checked(recipe: Recipe, config: Any) -> Any:
    check_at_least("seeds", config.seeds, 1)
    check_seed("seed", config.seed)
    recipe.check(config)
    return config


def train(
    recipe: Recipe,
    config: Any,
    out: Path,
    resume: bool = False,
    stages_from: Mapping[str, Path] | None = None,
    command: Sequence[str] = (),
    wait: bool = False,
) -> None:
    """Run the stages that are missing in ``out``, once a seed.

    Args:
        recipe: what to train.
        config: its resolved config.
        out: the run folder; with several seeds, ``seed_0``, ``seed_1``, ... inside it are the runs.
        resume: go on with what ``out`` holds; without it nothing may have been trained in the folder. A study, of two seeds or
            more, may get further ones, and so may the lists in ``recipe.grows``.
        stages_from: stage -> a run folder to take that stage from instead of training it.
        command: the arguments of ``mmgen`` that the reports name.
        wait: wait while another command holds the run folder, instead of failing.

    Raises:
        UserError: the folder exists, cannot be written, was made with another config, or is held by another command; a setting
            of a stage that this machine cannot train by.
    """
    stages_from = stages_from or {}
    for name in stages_from:
        check_one_of("stage", name, recipe.stages)
        _check_same_model(config, stages_from[name], recipe.made_by.get(name, ("data", "model", "encoder")))
    for key, one in {"": config, **recipe.nested(config)}.items():
        check_machine(one, key)
    main = rank() == 0
    if main and not wait:
        check_free(out)  # before `check_run_folder`, whose advice is of no use while another command trains there
        check_run_folder(config, out, resume, recipe.grows)
    runs = seed_runs(config, out)
    with contextlib.ExitStack() as held:
        held.enter_context(locked([out], command, wait))
        if main:
            check_run_folder(config, out, resume, recipe.grows)  # another command may have ended since
            _make_run_folder(recipe, config, out, command)
        held.enter_context(locked([run for run, _ in runs if run != out], command, wait))
        for run, seeded in runs:
            for name, stage in recipe.stages.items():
                folder, first = stage_folder(recipe, run, name), stage_folder(recipe, runs[0][0], name) / "model"
                if (folder / "model").is_dir() and not (resume and name in recipe.grows.values()):
                    continue
                if name in stages_from:
                    _link_stage(stage_folder(recipe, stages_from[name], name), folder)
                elif first.is_symlink() and not (folder / "model").exists():  # an added seed takes what the first one took
                    _link_stage(first.resolve().parent, folder)
                else:
                    stage(seeded, run, resume)


def cached_run(recipe: Recipe, config: Any, kind: str) -> Path:
    """The run of this config in the cache, trained at first use; of several commands one trains and the others wait.

    Args:
        recipe: what to train.
        config: its resolved config, with a ``data.card``.
        kind: the folder of the cache.

    Raises:
        UserError: the cache cannot be written.
    """
    recipe.check(config)
    values = [to_dict(config), *data_version(config.data.card, getattr(config.data, "split", "train"))]
    key = hashlib.sha256(json.dumps(values if values[1:] else values[0], sort_keys=True).encode()).hexdigest()[:24]
    run = cache_folder() / kind / f"{read_card(config.data.card).name}-{key}"
    with cache_written(run):
        run.mkdir(parents=True, exist_ok=True)
    train(recipe, config, run, resume=True, wait=True)
    return run


def evaluate(
    recipe: Recipe, config: Any, out: Path, split: str, command: Sequence[str] = (), wait: bool = False
) -> dict[str, float]:
    """The recipe's figures on ``split``: of one run, or the mean over its seeds with ``<key>_sd`` beside each.

    They are added to ``out/metrics.json`` under the split's name, and the report is written anew.

    Args:
        recipe, config: of the run.
        out: the run folder.
        split: one of ``recipe.splits``.
        command: the arguments of ``mmgen`` that other commands are told of meanwhile.
        wait: wait while another command holds the run folder, instead of failing.

    Raises:
        UserError: the split is unknown, a stage was not trained to its end, or the folder cannot be written or is held by
            another command.
    """
    check_one_of("split", split, recipe.splits)
    for key, one in recipe.nested(config).items():
        check_machine(one, key)
    runs = seed_runs(config, out)
    if not wait:
        check_free(out, fix=COPY)
    for run, _ in runs:
        for name in recipe.stages:
            if not (stage_folder(recipe, run, name) / "model").is_dir():
                fix = "train it to the end with --resume"
                raise UserError(str(run), got=f"no trained stage {name!r}", expected="a finished run", fix=fix)
    folders = list(dict.fromkeys([out, *(run for run, _ in runs)]))
    with locked(folders, command, wait, COPY):
        for folder in folders:
            _check_writable(folder)
        return _evaluate(recipe, runs, out, split)


def _evaluate(recipe: Recipe, runs: Sequence[tuple[Path, Any]], out: Path, split: str) -> dict[str, float]:
    keep_freed_memory()
    figures = []
    for run, seeded in runs:
        figures.append(recipe.evaluate(run, seeded, split))
        _add_metrics(run, split, figures[-1])
        recipe.report(run, seeded)
    if len(runs) == 1:
        return figures[0]
    result = {}
    for key in figures[0]:
        if not all(key in f for f in figures):  # a figure that some seeds cannot have, such as a share of no loss
            continue
        values = [f[key] for f in figures]
        if isinstance(values[0], bool):
            result[key] = all(values)
        else:
            result |= {key: statistics.fmean(values), f"{key}_sd": statistics.stdev(values)}
    for key, baselines in recipe.above.items():
        for baseline in baselines:
            if not all(figure in f for f in figures for figure in (key, baseline)):  # an arm that was not run
                continue
            low = paired_low([f[key] for f in figures], [f[baseline] for f in figures])
            result[f"{baseline}_diff_low"] = low
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


def check_run_folder(config: Any, out: Path, resume: bool, grows: Iterable[str] = ()) -> None:
    """Fail if ``out`` exists and is not to be resumed, or was made with another config; a run that trained nothing yet is new.

    More seeds of a study are no other config, nor are lists named in ``grows`` that hold all that they held.

    Raises:
        UserError: it does.
    """
    if _nothing_trained(out):
        return
    if out.exists() and not resume:
        fix = "add --resume to go on with it, or choose another --out"
        raise UserError(str(out), got="a folder that exists", expected="a new one", fix=fix)
    if resume and (out / "config.yaml").is_file():
        before, now = _sectioned(type(config), read_yaml(out / "config.yaml")), _as_read(config)
        for key in grows:
            if set(before.get(key, ())) <= set(now[key]):
                before[key] = now[key]
        if 1 < before.get("seeds", 1) < now["seeds"]:  # a single run is no study: it lies in the folder itself
            before["seeds"] = now["seeds"]
        if changed := _changes(before, now):
            fix = "resume with the same config, or choose another --out"
            raise UserError(str(out), got=f"other values of {', '.join(changed)}", expected="its own config", fix=fix)


def run_details(run: Path) -> dict[str, str]:
    """What every report of a run ends with: the ``command`` that made it, as a shell reads it, and its ``config``."""
    return {
        "command": shlex.join(read_json(run / "run.json")["command"]),
        "config": (run / "config.yaml").read_text(encoding="utf-8"),
    }


def _make_run_folder(recipe: Recipe, config: Any, out: Path, command: Sequence[str]) -> None:
    new, file = _nothing_trained(out), out / "config.yaml"
    grown = file.is_file() and read_yaml(file) != _as_read(config)
    try:
        for run, seeded in [(out, config), *seed_runs(config, out)]:
            run.mkdir(parents=True, exist_ok=True)
            write_config(seeded, run / "config.yaml")
            # a run keeps the command that made it, a study gets the one that added to it
            if new or (grown and run == out) or not (run / "run.json").is_file():
                write_json(run / "run.json", {"recipe": _reference(recipe), "command": ["mmgen", *command]})
    except OSError as error:
        expected = "a folder that can be written"
        raise UserError(str(out), got=str(error), expected=expected, fix="choose another --out") from error


def _nothing_trained(out: Path) -> bool:
    """Whether ``out`` is a run folder whose command failed, or was stopped, before the first checkpoint."""
    if out.is_dir() and (names := {file.name for file in out.iterdir()}) and names <= {LOCK, HOLDER}:  # nor wrote anything
        return True
    return (out / "run.json").is_file() and not any(file.name in ("checkpoints", "model") for file in out.rglob("*"))


def _check_writable(run: Path) -> None:
    """Fail, before hours of evaluation, if what it writes beside the trained model cannot be written."""
    for file in (run, *run.iterdir(), *run.glob("samples/*"), *run.glob("predictions/*")):
        if file.name not in ("model", "stages", "checkpoints", "tensorboard") and not os.access(file, os.W_OK):
            fix = f"change its permissions, or {COPY}"
            raise UserError(str(file), got="no permission to write", expected="a run folder that can be written", fix=fix)


def _as_read(config: Any) -> dict[str, Any]:
    """A config as it is read again from its file: tuples are lists there."""
    return yaml.safe_load(yaml.safe_dump(to_dict(config)))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ, each with both values; how a model is run is no difference."""
    old, new = _flat(before), _flat(now)
    return [
        f"{key} ({old.get(key, 'no such key')}, now {new.get(key, 'no such key')})"
        for key in {**old, **new}
        if (key not in old or key not in new or old[key] != new[key]) and key.rpartition(".")[2] not in RUN_KEYS
    ]


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}": value}
    return flat


def _check_same_model(config: Any, source: Path, keys: Sequence[str]) -> None:
    """A stage taken from another run must have been made for the same data and model."""
    changes = _changes(_sectioned(type(config), read_yaml(source / "config.yaml")), _as_read(config))
    names = [(change, change.partition(" ")[0]) for change in changes]
    if changed := [change for change, name in names if any(name == key or name.startswith(f"{key}.") for key in keys)]:
        fix = "use the same values, or train the stage"
        raise UserError(str(source), got=f"other values of {', '.join(changed)}", expected="a run of the same model", fix=fix)


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
    with contextlib.suppress(FileExistsError):  # another process was first
        (folder / "model").symlink_to((source / "model").resolve(), target_is_directory=True)


def _add_metrics(run: Path, split: str, figures: dict[str, float]) -> None:
    file = run / "metrics.json"
    write_json(file, {**(read_json(file) if file.is_file() else {}), split: figures})
