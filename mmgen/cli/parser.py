"""The parser of ``mmgen``, put together from the commands."""

import argparse
from typing import NoReturn

import mmgen
from mmgen.cli.ask import add_ask
from mmgen.cli.data import add_data
from mmgen.cli.evaluate import add_evaluate
from mmgen.cli.generate import add_generate
from mmgen.cli.listing import add_list
from mmgen.cli.probe import add_probe
from mmgen.cli.restyle import add_restyle
from mmgen.cli.steer import add_steer
from mmgen.cli.train import add_train
from mmgen.errors import UserError

COMMANDS = (add_list, add_train, add_evaluate, add_generate, add_ask, add_steer, add_restyle, add_probe, add_data)


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, like all errors of ``mmgen``."""

    def error(self, message: str) -> NoReturn:
        """Raise the message that argparse would print below its usage."""
        raise UserError.from_line(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``mmgen``; the options it returns carry ``run``, the function of their command."""
    description = "Multimodal generation: train, evaluate and use its systems."
    parser: argparse.ArgumentParser = Parser(prog="mmgen", description=description)
    parser.add_argument("--version", action="version", version=f"mmgen {mmgen.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser
