"""Training and evaluation of a recipe: missing stages for each seed, and figures over seeds."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmgen.data.cards import data_version, read_card
from mmgen.errors import UserError, check_one_of
from mmgen.metrics.significance import paired_low
from mmgen.processes import rank
from mmgen.storage import cache_folder, cache_written
from mmgen.training.config import check_machine, to_dict
from mmgen.training.lock import COPY, check_free, locked
from mmgen.training.memory import keep_freed_memory
from mmgen.training.recipe import Recipe, checked
from mmgen.training.result import Result
from mmgen.training.run_folder import (
    add_metrics,
    check_run_folder,
    check_same_model,
    check_writable,
    link_stage,
    make_run_folder,
    seed_runs,
)
from mmgen.training.run_report import mean_and_deviation, write_reports


def train(
    recipe: Recipe,
    config: Any,
    out: Path,
    resume: bool = False,
    stages_from: Mapping[str, Path] | None = None,
    command: Sequence[str] = (),
    wait: bool = False,
) -> None:
    """Run the stages that are missing in ``out``, for each seed.

    Args:
        recipe: recipe to train.
        config: resolved config.
        out: run folder; with several seeds, the runs are ``seed_0``, ``seed_1``, ... inside it.
        resume: continue the run in ``out``; otherwise nothing may have been trained there. A study of two or more seeds
            may get more seeds, and the lists in ``recipe.extendable`` more entries.
        stages_from: stage -> run folder to take it from instead of training it.
        command: arguments of ``mmgen`` for the reports.
        wait: wait while another command holds the run folder, instead of failing.

    Raises:
        UserError: the folder exists, cannot be written, was made with another config, or is in use by another command; a
            stage has a setting that this machine does not support.
    """
    stages_from = stages_from or {}
    stages = {stage.name: stage for stage in recipe.stages}
    for name in stages_from:
        check_same_model(config, stages_from[name], stages[check_one_of("stage", name, stages)].made_by)
    for key, one in {"": config, **config.nested()}.items():
        check_machine(one, key)
    main = rank() == 0
    if main and not wait:
        check_free(out)  # first, as its message is more useful while another command trains there
        check_run_folder(config, out, resume, recipe.extendable)
    runs = seed_runs(config, out)
    with contextlib.ExitStack() as held:
        held.enter_context(locked([out], command, wait))
        if main:
            check_run_folder(config, out, resume, recipe.extendable)  # again, as another command may have ended since
            make_run_folder(recipe, config, out, command)
        held.enter_context(locked([run for run, _ in runs if run != out], command, wait))
        for folder, seeded in runs:
            run = recipe.run(folder, seeded.seed, resume)
            for name, stage in stages.items():
                own, first = run.stage_folder(name), recipe.run(runs[0][0]).stage_folder(name) / "model"
                if (own / "model").is_dir() and not (resume and name in recipe.extendable.values()):
                    continue
                if name in stages_from:
                    link_stage(recipe.run(stages_from[name]).stage_folder(name), own)
                elif first.is_symlink() and not (own / "model").exists():  # link them for an added seed too
                    link_stage(first.resolve().parent, own)
                else:
                    torch.manual_seed(seeded.seed)
                    stage(run, seeded)


def cached_run(recipe: Recipe, config: Any, kind: str) -> Path:
    """The cached run of this config, trained at first use; other commands wait for the one that trains.

    Args:
        recipe: recipe to train.
        config: resolved config, with a ``data.card``.
        kind: subfolder of the cache.

    Raises:
        UserError: the cache cannot be written.
    """
    checked(config)
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
    """Figures on ``split``, of one run or as means over seeds with ``<key>_sd``.

    They are added to ``out/metrics.json`` under the name of the split, and the report is rewritten.

    Args:
        recipe, config: recipe and config of the run.
        out: run folder.
        split: one of ``recipe.splits``.
        command: arguments of ``mmgen``, shown to other commands that need the folder.
        wait: wait while another command holds the run folder, instead of failing.

    Raises:
        UserError: the split is unknown, a stage is not fully trained, or the folder cannot be written or is in use by
            another command.
    """
    check_one_of("split", split, recipe.splits)
    for key, one in config.nested().items():
        check_machine(one, key)
    runs = seed_runs(config, out)
    if not wait:
        check_free(out, fix=COPY)
    for folder, _ in runs:
        for stage in recipe.stages:
            if not (recipe.run(folder).stage_folder(stage.name) / "model").is_dir():
                fix = "train it to the end with --resume"
                raise UserError(str(folder), got=f"no trained stage {stage.name!r}", expected="a finished run", fix=fix)
    folders = list(dict.fromkeys([out, *(run for run, _ in runs)]))
    with locked(folders, command, wait, COPY):
        for folder in folders:
            check_writable(folder)
        return _evaluate(recipe, runs, out, split)


def _evaluate(recipe: Recipe, runs: Sequence[tuple[Path, Any]], out: Path, split: str) -> dict[str, float]:
    if recipe.evaluate is None:
        raise UserError(recipe.name, got="no evaluation", expected="a recipe with one", fix="give Recipe(...) its evaluate")
    keep_freed_memory()
    figures = []
    for folder, seeded in runs:
        torch.manual_seed(seeded.seed)
        result = recipe.evaluate(recipe.run(folder, seeded.seed), seeded, split)
        if not isinstance(result, Result):
            got, fix = type(result).__name__, "return a Result at its end"
            raise UserError(f"evaluate of {recipe.name}", got=got, expected="a Result", fix=fix)
        figures.append(result.figures())
        add_metrics(folder, split, figures[-1])  # first, so that a full disk loses pictures rather than figures
        result.save(folder, split)
        write_reports(folder, seeded, recipe.folder / "card.md")
    if len(runs) == 1:
        return figures[0]
    found: dict[str, Any] = {}
    for key in figures[0]:
        if not all(key in f for f in figures):  # undefined for some seeds, such as a ratio with zero denominator
            continue
        values = [f[key] for f in figures]
        if isinstance(values[0], bool):
            found[key] = all(values)
        else:
            found[key], found[f"{key}_sd"] = mean_and_deviation(values)
    for key, baselines in recipe.above.items():
        for baseline in baselines:
            if not all(figure in f for f in figures for figure in (key, baseline)):  # for example an arm that was not run
                continue
            low = paired_low([f[key] for f in figures], [f[baseline] for f in figures])
            found[f"{baseline}_diff_low"] = low
    found["seeds"] = len(runs)
    add_metrics(out, split, found)
    write_reports(out, runs[0][1], recipe.folder / "card.md", [folder for folder, _ in runs])
    return found
