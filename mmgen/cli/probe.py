"""``mmgen probe``: what can be read from the representations of trained models."""

import argparse
from pathlib import Path

from mmgen.cli.console import print_table, write_json
from mmgen.cli.options import Commands, shared

EPILOG = (
    "LABEL_linear and LABEL_nearest are accuracies of logistic regression and of the nearest training item, FACTOR_r2 the "
    "share of variance that ridge regression explains. Penalties are chosen on the split validation."
)


def add_probe(commands: Commands) -> None:
    """Declare the command."""
    text = "read labels and factors from the representations of trained models"
    command = commands.add_parser("probe", help=text, epilog=EPILOG)
    text = "run folders, or their stages/NAME, of models that encode, on one data card"
    command.add_argument("folders", type=Path, nargs="+", metavar="RUN", help=text)
    command.add_argument("--split", default="test", help="the split to judge on (default: test)")
    text = "column of classes to read; repeat for several (default: all of the card)"
    command.add_argument("--label", action="append", default=[], metavar="COLUMN", help=text)
    text = "column of numbers to read; repeat for several (default: the vectors that no model encodes)"
    command.add_argument("--factor", action="append", default=[], metavar="COLUMN", help=text)
    text = "modality that the models encode; repeat for several (default: all of each model)"
    command.add_argument("--input", action="append", default=[], metavar="NAME", help=text)
    text = "network with packaged weights to compare with (default: efficientnet_lite0; '' for none)"
    command.add_argument("--features", default="efficientnet_lite0", metavar="NAME", help=text)
    command.add_argument("--limit", type=int, default=5000, help="most items of each split; 0 takes all (default: 5000)")
    shared(command, "--json", help="write the figures there as one JSON object")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Probe; print a row for each representation."""
    from mmgen.inference.probe import probe

    found = probe(
        options.folders, options.split, options.label, options.factor, options.input, options.features, options.limit
    )
    write_json(options.json, found)
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    rows = {
        of: "  ".join(f"{f'{figures[name]:.4g}' if name in figures else '':>{len(name)}}" for name in names)
        for of, figures in found.items()
    }
    print_table(f"probed on {options.split}", "  " + "  ".join(names), rows)
