"""``mmgen train``: train a recipe into a run folder."""

import argparse
import os
import shlex
from pathlib import Path
from typing import NoReturn

from mmgen import processes
from mmgen.cli.options import Commands, shared
from mmgen.errors import check_at_least

EPILOG = (
    "Any key of the config can follow as key.sub=value, for example fit.steps=100. "
    "STAGE.from=RUN takes a stage from another run instead of training it."
)


class RecipeHelp(argparse.Action):
    """``--help``: the options, and the keys of a recipe before it, with the values of a --config before it."""

    def __call__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, *_: object) -> NoReturn:
        """Print the help and exit."""
        from mmgen.training.help import recipe_keys

        parser.print_help()
        if options.recipe is not None:
            print(f"\n{recipe_keys(options.recipe, options.config)}")
        parser.exit()


def add_train(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("train", help="train a recipe into a run folder", epilog=EPILOG, add_help=False)
    text = "show this help; after a recipe, also the keys of its config, after --config NAME with the values there"
    command.add_argument("-h", "--help", nargs=0, action=RecipeHelp, help=text)
    command.add_argument("recipe", help="a recipe's name, or a folder with a train.py of your own")
    command.add_argument("--config", default="config", help="a named config of the recipe, or a YAML file (default: config)")
    shared(command, "--out", help="the run folder (default: runs/RECIPE, runs/RECIPE-CONFIG)")
    command.add_argument("--resume", action="store_true", help="continue the run in the folder")
    command.add_argument("--processes", type=int, help="processes on this machine, each with its GPU if there are any")
    command.set_defaults(run=run, values=[])


def run(options: argparse.Namespace) -> int | None:
    """Train, on several processes if asked."""
    from mmgen.training.launch import launch
    from mmgen.training.lock import check_free
    from mmgen.training.recipe import load_recipe, recipe_config
    from mmgen.training.run_folder import check_run_folder
    from mmgen.training.study import train

    recipe = load_recipe(options.recipe)
    stages_from = {v.partition(".from=")[0]: Path(v.partition(".from=")[2]) for v in options.values if ".from=" in v}
    overrides = [value for value in options.values if ".from=" not in value]
    config = recipe_config(recipe, options.config, overrides)
    suffix = "" if options.config == "config" else f"-{Path(options.config).stem}"
    out = options.out or Path("runs") / f"{recipe.name}{suffix}"
    if options.processes is not None and "RANK" not in os.environ:
        check_at_least("--processes", options.processes, 1)
        check_free(out)
        check_run_folder(config, out, options.resume, recipe.extendable)
        if options.processes > 1:
            return launch(options.processes, options.arguments)
    train(recipe, config, out, options.resume, stages_from, options.arguments)
    if processes.rank() == 0:
        print(f"trained {out}; next: {shlex.join(['mmgen', 'evaluate', str(out)])}")
    return None
