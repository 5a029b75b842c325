"""Run folders: creating, opening, and checking that each is used with its own config."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmgen.errors import UserError, check_one_of
from mmgen.storage import read_json, write_json
from mmgen.training.config import FitConfig, build_config, parse_overrides, read_yaml, to_dict, write_config
from mmgen.training.lock import COPY, HOLDER, LOCK
from mmgen.training.recipe import Recipe, checked, load_recipe, saved_values

MISSING = object()
RUN_KEYS = {"dtype"}  # config keys of how a model is run, not of what it is


def open_run(folder: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Any]:
    """The recipe and the config of a run folder.

    Args:
        folder: run folder.
        overrides: ``dtype=NAME`` of its frozen language model, or nothing.

    Raises:
        UserError: it is not a run folder.
    """
    file = folder / "run.json"
    if not file.is_file() or not (folder / "config.yaml").is_file():
        fix = "give a folder that `mmgen train` made"
        raise UserError(str(folder), got="no run.json and config.yaml", expected="a run folder", fix=fix)
    recipe = load_recipe(str(read_json(file).get("recipe")))
    values = saved_values(recipe.config, folder / "config.yaml")
    now = parse_overrides(list(overrides), recipe.config)
    for key in now:
        check_one_of(f"option of {recipe.name}", key, sorted({path.rpartition(".")[2] for path in _flat(values)} & RUN_KEYS))
    if now:  # a key of the model, or of a recipe with its own language model
        now = now if "dtype" in values else {"model": now}
    return recipe, checked(build_config(recipe.config, values, now))


def seed_runs(config: Any, out: Path) -> list[tuple[Path, Any]]:
    """The run folder of each seed with its config."""
    if config.seeds == 1:
        return [(out, config)]
    first = config.seed
    return [
        (out / f"seed_{seed}", dataclasses.replace(config, seed=seed, seeds=1)) for seed in range(first, first + config.seeds)
    ]


def check_run_folder(config: Any, out: Path, resume: bool, extendable: Iterable[str] = ()) -> None:
    """Check that ``out`` is new, without trained parts, or to be resumed with the same config.

    A study may have more seeds than before, and lists named in ``extendable`` more entries.

    Raises:
        UserError: it is not.
    """
    if _nothing_trained(out):
        return
    if out.exists() and not resume:
        fix = "add --resume to go on with it, or choose another --out"
        raise UserError(str(out), got="a folder that exists", expected="a new one", fix=fix)
    if resume and (out / "config.yaml").is_file():
        before, now = saved_values(type(config), out / "config.yaml"), _as_read(config)
        for key in extendable:
            if set(before.get(key, ())) <= set(now[key]):
                before[key] = now[key]
        if 1 < before.get("seeds", 1) < now["seeds"]:  # a single run, in the folder itself, cannot become a study
            before["seeds"] = now["seeds"]
        if changed := _changes(before, config):
            fix = "resume with the same config, or choose another --out"
            raise UserError(str(out), got=f"other values of {', '.join(changed)}", expected="its own config", fix=fix)


def make_run_folder(recipe: Recipe, config: Any, out: Path, command: Sequence[str]) -> None:
    """Write the config and the command of a run, and of each run of a study."""
    new, file = _nothing_trained(out), out / "config.yaml"
    grown = file.is_file() and read_yaml(file) != _as_read(config)
    try:
        for run, seeded in [(out, config), *seed_runs(config, out)]:
            run.mkdir(parents=True, exist_ok=True)
            write_config(seeded, run / "config.yaml")
            # a run keeps its first command, a study gets the latest
            if new or (grown and run == out) or not (run / "run.json").is_file():
                write_json(run / "run.json", {"recipe": recipe.reference, "command": ["mmgen", *command]})
    except OSError as error:
        expected = "a folder that can be written"
        raise UserError(str(out), got=str(error), expected=expected, fix="choose another --out") from error


def _nothing_trained(out: Path) -> bool:
    """True if the command of the run folder ``out`` ended before the first checkpoint."""
    if out.is_dir() and (names := {file.name for file in out.iterdir()}) and names <= {LOCK, HOLDER}:  # nothing written yet
        return True
    return (out / "run.json").is_file() and not any(file.name in ("checkpoints", "model") for file in out.rglob("*"))


def check_writable(run: Path) -> None:
    """Check, before hours of evaluation, that its output files can be written."""
    written = (file for folder in ("samples", "predictions", "results") for file in run.glob(f"{folder}/*"))
    for file in (run, *run.iterdir(), *written):
        if file.name not in ("model", "stages", "checkpoints", "tensorboard") and not os.access(file, os.W_OK):
            fix = f"change its permissions, or {COPY}"
            raise UserError(str(file), got="no permission to write", expected="a run folder that can be written", fix=fix)


def _as_read(config: Any) -> dict[str, Any]:
    """A config as read from its file, with lists instead of tuples."""
    return yaml.safe_load(yaml.safe_dump(to_dict(config)))


def _changes(before: Mapping[str, Any], config: Any) -> list[str]:
    """The dotted keys with different values, and both values, without keys of how a model is run.

    A key that the version of mmgen which wrote ``before`` did not have counts as its default.
    """
    old, new, defaults = _flat(before), _flat(_as_read(config)), _flat(_as_read(type(config)()))
    return [
        f"{key} ({old.get(key, 'no such key')}, now {new.get(key, 'no such key')})"
        for key in {**old, **new}
        if key.rpartition(".")[2] not in RUN_KEYS
        and (key not in new or (defaults.get(key, MISSING) if key not in old else old[key]) != new[key])
    ]


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}": value}
    return flat


def check_same_model(config: Any, source: Path, keys: Sequence[str]) -> None:
    """Check that a stage of another run was made for the same data and model."""
    changes = _changes(saved_values(type(config), source / "config.yaml"), config)
    names = [(change, change.partition(" ")[0]) for change in changes]
    if changed := [change for change, name in names if any(name == key or name.startswith(f"{key}.") for key in keys)]:
        fix = "use the same values, or train the stage"
        raise UserError(str(source), got=f"other values of {', '.join(changed)}", expected="a run of the same model", fix=fix)


def link_stage(source: Path, folder: Path) -> None:
    """Link the trained model of a stage from another folder."""
    if not (source / "model").is_dir():
        fix = "name a run whose stage is trained"
        raise UserError(str(source), got="no trained model", expected="a finished stage", fix=fix)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another process was first
        (folder / "model").symlink_to((source / "model").resolve(), target_is_directory=True)


def add_metrics(run: Path, split: str, figures: Mapping[str, float]) -> None:
    """Add the figures of a split to ``metrics.json``."""
    file = run / "metrics.json"
    write_json(file, {**(read_json(file) if file.is_file() else {}), split: figures})


def training_minutes(folder: Path, fit: FitConfig) -> float:
    """Minutes that a stage trained, from the speeds in its ``metrics.jsonl``."""
    seconds, before = 0.0, 0
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        logged = json.loads(line)
        seconds += (logged["step"] - before) * fit.batch_size * fit.accumulation / logged["items_per_s"]
        before = logged["step"]
    return seconds / 60
