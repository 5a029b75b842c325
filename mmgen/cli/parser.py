"""The arguments of each command."""

import argparse
from pathlib import Path
from typing import NoReturn

import mmgen
from mmgen.cli.commands import (
    run_ask,
    run_data_check,
    run_data_init,
    run_data_list,
    run_data_show,
    run_data_simulate,
    run_evaluate,
    run_generate,
    run_list,
    run_restyle,
    run_steer,
    run_train,
)
from mmgen.errors import UserError
from mmgen.modalities.kinds import KINDS

_OVERRIDES = (
    "Any key of the config can follow as key.sub=value, for example fit.steps=100. "
    "STAGE.from=RUN takes a stage from another run instead of training it."
)
_CHAT = (
    "With --chat, the line `image PATH` (or `audio PATH`) chooses the file to ask about, `shot PATH | question | answer` adds "
    "an example, `forget` drops the examples and `quit` ends. Every other line is a question, and so is every line that ends "
    "in a question mark. In TEXT, \\n is a line break."
)
_STEERING = (
    "Options can follow, for example step_size=0.05 window=5. pplm, with its defaults: iterations=3 step_size=0.02 gamma=1.5 "
    "kl_scale=0.01 fusion=0.9 window=0 decay=false running_norm=true; a class or a picture needs larger steps, for example "
    "step_size=0.1 gamma=1.0 window=5. fudge: strength=1.0 top=20. gedi: strength=2.0 top=20. Sampling: temperature=1.0 "
    "top_k=10 top_p=1.0 threshold=0.0, the least mean of dist-1, -2 and -3 of the candidate that is kept."
)
_OPTIONS = (
    "Options of the model can follow as key=value, for example beams=3. dtype=fp32 (or bf16, fp16, auto) runs its frozen "
    "language model in that type."
)
_DTYPE = "type of the weights: bf16, fp16, fp32 or auto, bf16 where it is native (default: auto)"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others of ``mmgen``."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage."""
        raise UserError.from_line(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``mmgen``; each command's ``run`` is a function of `mmgen.cli.commands`."""
    parser = Parser(prog="mmgen", description="Multimodal generation: train, evaluate and use its systems.")
    parser.add_argument("--version", action="version", version=f"mmgen {mmgen.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="recipes, models and data cards")
    command.set_defaults(run=run_list)

    command = commands.add_parser("train", help="train a recipe into a run folder", epilog=_OVERRIDES)
    command.add_argument("recipe", help="a recipe's name, or a folder with a train.py of your own")
    command.add_argument("--config", default="config", help="a named config of the recipe, or a YAML file (default: config)")
    command.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE, runs/RECIPE-CONFIG)")
    command.add_argument("--resume", action="store_true", help="continue the run in the folder")
    command.add_argument("--processes", type=int, help="processes on this machine, each with its GPU if there are any")
    command.set_defaults(run=run_train, values=[])

    text = "dtype=fp32 (or bf16, fp16, auto) can follow: it runs the recipe's frozen language model in that type."
    command = commands.add_parser("evaluate", help="a run's figures on held-out data, beside its baselines", epilog=text)
    command.add_argument("folder", type=Path, metavar="RUN")
    command.add_argument("--split", help="the split (default: the recipe's first, usually test)")
    command.add_argument("--json", type=Path, metavar="F", help="write the figures there as one JSON object")
    command.set_defaults(run=run_evaluate, values=[])

    command = commands.add_parser("generate", help="any subset of modalities in, any out", epilog=_OPTIONS)
    command.add_argument("folder", metavar="RUN", help="a run folder, a saved model or a Hub name")
    command.add_argument("--to", required=True, help="the modality to make, or several joined by commas")
    for name, kind in KINDS.items():
        text = ", ".join(filter(None, [f"{name} to start from", kind.form]))
        command.add_argument(f"--{name}", action="append", help=f"{text}; repeat for several items")
    command.add_argument("--n", type=int, default=1, help="results for each item")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--guidance", type=float, metavar="G", help="classifier-free guidance scale; 1 disables it")
    text = "draw more pictures and keep those nearest to the text by a run of the recipe aligned (default: runs/aligned)"
    command.add_argument("--rerank", nargs="?", const="runs/aligned", metavar="RUN", help=text)
    command.add_argument("--from", dest="part", metavar="FILE", help="the upper part of a picture, to be completed")
    text = "find the training picture of this data card nearest to each generated one, to see copies; written to --out"
    command.add_argument("--nearest", metavar="CARD", help=text)
    command.add_argument("--out", type=Path, help="folder for pictures and sounds")
    command.add_argument("--json", type=Path, metavar="F", help="write what was made there")
    command.set_defaults(run=run_generate, values=[])

    command = commands.add_parser("ask", help="questions about pictures or sounds, after examples or without", epilog=_CHAT)
    command.add_argument("folder", metavar="RUN", help="a captioner or an answerer: a run folder, a saved model or a Hub name")
    for name in ("image", "audio"):
        text = f"{name} that a question is about; repeat for several, one for each question or one for all"
        command.add_argument(f"--{name}", action="append", help=text)
    command.add_argument("--question", action="append", help="repeat for several")
    shot = ("FILE", "QUESTION", "ANSWER")
    command.add_argument("--shot", nargs=3, action="append", metavar=shot, default=[], help="an example; repeat for several")
    command.add_argument("--answers", metavar="A,B,...", help="choose the likeliest of these")
    command.add_argument("--format", metavar="TEXT", help="how examples are written, with {image}, {question} and {answer}")
    command.add_argument("--induction", metavar="TEXT", default="", help="a sentence before the examples")
    command.add_argument("--chat", action="store_true", help="read questions line by line")
    command.add_argument("--json", type=Path, metavar="F", help="write the answers there")
    command.set_defaults(run=run_ask, values=[])

    command = commands.add_parser("steer", help="a language model's texts with and without steering", epilog=_STEERING)
    command.add_argument("language_model", metavar="LM", help="a folder, a Hub name, or an installed package")
    command.add_argument("--prompt", action="append", help="how the text begins; repeat for several")
    text = "words to steer toward: a topic, such as space, or a file with one word per line; repeat for several at once"
    command.add_argument("--bag", action="append", default=[], help=text)
    text = "a class to steer toward, such as positive; repeat for several at once"
    command.add_argument("--attribute", action="append", default=[], metavar="CLASS", help=text)
    text = "a run of the recipe attribute that knows these classes (default: runs/attribute)"
    command.add_argument("--head", default="runs/attribute", metavar="RUN", help=text)
    text = "a picture or a sound to steer toward; repeat for several at once"
    command.add_argument("--toward", action="append", default=[], metavar="FILE", help=text)
    text = "a run of the recipe aligned, which compares texts with it (default: runs/aligned)"
    command.add_argument("--aligned", default="runs/aligned", metavar="RUN", help=text)
    text = "with --toward: rank texts by the sentence embedder of that run, which reads whole texts; fudge also steers by it"
    command.add_argument("--whole", action="store_true", help=text)
    text = (
        "pplm, by the gradient of its own past; fudge, by a look ahead from the likeliest tokens; or gedi, by a language "
        "model of each class, toward one --attribute (default: pplm)"
    )
    command.add_argument("--method", default="pplm", help=text)
    command.add_argument("--n", type=int, default=1, help="texts for each prompt")
    text = (
        "candidates written for each text, steered or not, of which the one with the likeliest attribute is kept (default: 1)"
    )
    command.add_argument("--candidates", type=int, default=1, help=text)
    command.add_argument("--length", type=int, default=50, help="tokens of a text")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--dtype", default="auto", help=_DTYPE)
    command.add_argument("--json", type=Path, metavar="F", help="write the texts there")
    command.add_argument("--html", type=Path, metavar="F", help="write a page that colours the words that steering raised")
    command.set_defaults(run=run_steer, values=[])

    command = commands.add_parser("restyle", help="lines of text in another style, from standard input")
    command.add_argument(
        "folder", metavar="RUN", help="of the recipe style_transfer: a run folder, a saved model or a Hub name"
    )
    command.add_argument("--to", required=True, metavar="STYLE", help="the style, such as positive")
    command.set_defaults(run=run_restyle)

    command = commands.add_parser("data", help="list, show, check and write data cards; simulate")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the data cards that come with mmgen").set_defaults(run=run_data_list)
    for name, run, text in [
        ("show", run_data_show, "what a card says"),
        ("check", run_data_check, "the mistakes in it"),
        ("init", run_data_init, "write the card of a folder, a table or a data set of the Hub, for you to complete"),
    ]:
        action = actions.add_parser(name, help=text)
        text = "a card's name, or the path of your own card, folder or table" if name != "init" else "what it describes"
        action.add_argument("card", help=text)
        action.set_defaults(run=run)
        if name == "show":
            action.add_argument("--yaml", action="store_true", help="the whole card as a file: a start for your own")
        if name == "init":
            action.add_argument("--out", type=Path, metavar="FILE", help="the card (default: NAME.md beside the data)")
    action = actions.add_parser("simulate", help="make episodes of a robot's task, one HDF5 file each")
    action.add_argument("simulator", help="peg_insertion")
    action.add_argument("--episodes", type=int, required=True, help="number of episodes; existing files are kept")
    action.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the files")
    action.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    action.add_argument("--seed", type=int, default=0)
    action.add_argument("--size", type=int, default=128, metavar="PX", help="side of the pictures (default: 128)")
    text = "round, square or triangle; several take turns (default: all)"
    action.add_argument("--shape", nargs="+", metavar="NAME", help=text)
    action.add_argument("--disturbance", metavar="NAME", help="occlusion, noise, push or moving_hole (default: none)")
    action.add_argument("--json", type=Path, metavar="F", help="write the figures there")
    action.set_defaults(run=run_data_simulate)
    return parser
