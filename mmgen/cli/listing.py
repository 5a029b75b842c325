"""``mmgen list``: recipes, models and data cards, a line on each; torch is not imported."""

import argparse
from pathlib import Path

from mmgen.cli.console import print_table
from mmgen.cli.options import Commands


def add_list(commands: Commands) -> None:
    """Declare the command."""
    commands.add_parser("list", help="list recipes, models and data cards").set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the three tables."""
    from mmgen.data.cards import card_names, read_card
    from mmgen.models import MODELS
    from mmgen.training.scripts import recipe_folder, recipe_names

    folders = {name: recipe_folder(name) for name in recipe_names()}
    configs = {name: ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) for name, folder in folders.items()}
    library = Path(__file__).parents[2]
    models = {name: library.joinpath(*place.partition(":")[0].split(".")) for name, place in MODELS.items()}
    print_table("recipe", "", {name: f"{_summary(f / 'train.py')} Configs: {configs[name]}." for name, f in folders.items()})
    print_table("model", "", {name: _summary(file.with_suffix(".py")) for name, file in models.items()})
    print_table("data card", "", {name: read_card(name).pretty_name for name in card_names()})


def _summary(file: Path) -> str:
    """The first line of a Python file's docstring; nothing is imported."""
    with file.open(encoding="utf-8") as lines:
        return lines.readline().strip().strip('"')
