"""``mmgen data``: list, show, check and write data cards; simulate."""

import argparse
import shlex

from mmgen.cli.console import print_table, write_json
from mmgen.cli.options import Commands, shared
from mmgen.errors import UserErrors

CARD = "a card's name, or the path of your own card, folder or table"


def add_data(commands: Commands) -> None:
    """Declare the command and its actions."""
    command = commands.add_parser("data", help="list, show, check and write data cards; simulate")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="list the data cards that come with mmgen").set_defaults(run=run_list)
    action = actions.add_parser("show", help="describe a card")
    action.add_argument("card", help=CARD)
    action.add_argument("--yaml", action="store_true", help="print the whole card, as a start for your own")
    action.set_defaults(run=run_show)
    action = actions.add_parser("check", help="name the mistakes in a card")
    action.add_argument("card", help=CARD)
    action.set_defaults(run=run_check)
    text = "write the card of a folder, a table or a data set of the Hub, for you to complete"
    action = actions.add_parser("init", help=text)
    action.add_argument("card", metavar="data", help="a folder, a table or a Hub name")
    shared(action, "--out", metavar="FILE", help="the card (default: NAME.md beside the data)")
    action.set_defaults(run=run_init)
    action = actions.add_parser("simulate", help="simulate episodes of a robot's task, one HDF5 file each")
    action.add_argument("simulator", help="peg_insertion")
    action.add_argument("--episodes", type=int, required=True, help="number of episodes; existing files are kept")
    shared(action, "--out", required=True, metavar="DIR", help="the folder of the files")
    action.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    shared(action, "--seed")
    action.add_argument("--size", type=int, default=128, metavar="PX", help="side of the pictures (default: 128)")
    text = "round, square or triangle; several take turns (default: all)"
    action.add_argument("--shape", nargs="+", metavar="NAME", help=text)
    action.add_argument("--disturbance", metavar="NAME", help="occlusion, noise, push or moving_hole (default: none)")
    shared(action, "--json", help="write the figures there")
    action.set_defaults(run=run_simulate)


def run_list(options: argparse.Namespace) -> None:
    """Print the cards that come with mmgen."""
    from mmgen.data.cards import card_names, read_card

    print_table("data card", "", {name: read_card(name).pretty_name for name in card_names()})


def run_show(options: argparse.Namespace) -> None:
    """Print a card, or its description."""
    from mmgen.data.card_files import card_text
    from mmgen.data.cards import describe, read_card

    print(card_text(options.card) if options.yaml else describe(read_card(options.card)), end="" if options.yaml else "\n")


def run_init(options: argparse.Namespace) -> None:
    """Write a card."""
    from mmgen.data.card_files import write_card

    file = write_card(options.card, options.out)
    print(f"wrote {file}; complete it, then: mmgen data check {shlex.quote(str(file))}")


def run_check(options: argparse.Namespace) -> None:
    """Check a card; print its columns and splits.

    Raises:
        UserErrors: the mistakes in it.
    """
    from mmgen.data.cards import CHECKED_ROWS, check_card, read_card

    if problems := check_card(options.card):
        raise UserErrors(problems)
    card = read_card(options.card)
    print_table("column", "kind", {name: spec["kind"] for name, spec in card.columns.items()})
    print_table("split", "rows", card.splits)
    values = f"the values of up to {CHECKED_ROWS} rows of each split"
    print(f"{options.card}: no problem found in the card, row counts, missing values and labels of all rows, and {values}")


def run_simulate(options: argparse.Namespace) -> None:
    """Simulate episodes; print how many and how fast."""
    from mmgen.data.sources.places import simulator

    names = ("out", "episodes", "workers", "seed", "size", "disturbance")
    settings = {name: getattr(options, name) for name in names} | ({"shapes": options.shape} if options.shape else {})
    made = simulator(options.simulator)(**settings)
    write_json(options.json, made)
    counts = f"{made['episodes']} episodes, {made['observations']} observations, {made['in_contact']:.0%} in contact"
    print(f"{options.out}: {counts}, {made['successes']} successes, {made['observations_per_s']:.0f} observations/s")
