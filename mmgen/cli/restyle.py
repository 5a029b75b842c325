"""``mmgen restyle``: lines of text in another style."""

import argparse
import sys

from mmgen.cli.options import SAVED_MODEL, Commands


def add_restyle(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("restyle", help="rewrite lines of standard input in another style")
    command.add_argument("folder", metavar="RUN", help=f"a model of the recipe style_transfer: {SAVED_MODEL}")
    command.add_argument("--to", required=True, metavar="STYLE", help="the style, such as positive")
    command.add_argument(
        "--language-model",
        metavar="LM",
        help="language model that weighs whole sentences, instead of the saved one of `edit`; '' for none, which is faster",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the lines restyled."""
    from mmgen.inference.restyle import restyle
    from mmgen.models.base import load

    changed = {} if options.language_model is None else {"language_model": options.language_model}
    for line in restyle(load(options.folder, **changed), sys.stdin.buffer, options.to):
        print(line, end="", flush=sys.stdin.isatty())
