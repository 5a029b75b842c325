"""``mmgen evaluate``: figures of a run on held-out data."""

import argparse
from pathlib import Path
from typing import Any

from mmgen.cli.console import print_table, write_json
from mmgen.cli.options import Commands, shared

EPILOG = "dtype=fp32 (or bf16, fp16, auto) can follow: it runs the recipe's frozen language model in that type."


def add_evaluate(commands: Commands) -> None:
    """Declare the command."""
    text = "evaluate a run on held-out data, beside its baselines"
    command = commands.add_parser("evaluate", help=text, epilog=EPILOG)
    command.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    command.add_argument("--split", help="the split (default: the recipe's first, usually test)")
    shared(command, "--json", help="write the figures there as one JSON object")
    command.set_defaults(run=run, values=[])


def run(options: argparse.Namespace) -> None:
    """Evaluate; print the figures and the place of the report."""
    from mmgen.training.run_folder import open_run
    from mmgen.training.study import evaluate

    recipe, config = open_run(options.folder, options.values)
    split = options.split or recipe.splits[0]
    figures = evaluate(recipe, config, options.folder, split, options.arguments)
    write_json(options.json, figures)
    print_table(f"{recipe.name} on {split}", "", {name: _figure(value) for name, value in figures.items()})
    if (file := options.folder / "report.html").is_file():
        print(f"report: {file}")


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
