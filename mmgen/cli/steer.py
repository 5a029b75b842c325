"""``mmgen steer``: texts of a language model with and without steering."""

import argparse
import math
import shlex
from pathlib import Path

from mmgen.cli.console import write_json
from mmgen.cli.options import Commands, shared

EPILOG = (
    "Options can follow, for example step_size=0.05 window=5. pplm, with its defaults: iterations=3 step_size=0.02 gamma=1.5 "
    "kl_scale=0.01 fusion=0.9 window=0 decay=false running_norm=true; a class or a picture needs larger steps, for example "
    "step_size=0.1 gamma=1.0 window=5. fudge: strength=1.0 top=20. dexperts: strength=2.0 top=20. gedi: "
    "strength=10.0 alpha=20.0 rho=0.2 tau=0.8. Sampling: temperature=1.0 top_k=10 top_p=1.0 threshold=0.0, the least mean "
    "of dist-1, -2 and -3 of the candidate that is kept."
)
METHODS = (
    "pplm, by gradients in its own past; fudge, by looking ahead from its likeliest tokens; or dexperts and gedi, by a "
    "language model of each class, toward one --attribute (default: pplm)"
)
SETTINGS = ("head", "aligned", "whole", "method", "n", "candidates", "length", "seed", "dtype")


def add_steer(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("steer", help="write texts with a language model, steered and not", epilog=EPILOG)
    command.add_argument("language_model", metavar="LM", help="a folder, a Hub name, or an installed package")
    command.add_argument("--prompt", action="append", default=[], help="beginning of the text; repeat for several")
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
    command.add_argument("--method", default="pplm", help=METHODS)
    shared(command, "--n", help="texts for each prompt (default: 1)")
    text = "candidates for each text, steered or not, of which the one with the likeliest attribute is kept (default: 1)"
    command.add_argument("--candidates", type=int, default=1, help=text)
    command.add_argument("--length", type=int, default=50, help="tokens of a text (default: 50)")
    shared(command, "--seed")
    text = "type of the weights: bf16, fp16, fp32 or auto, bf16 where it is native (default: auto)"
    command.add_argument("--dtype", default="auto", help=text)
    shared(command, "--json", help="write the texts there")
    command.add_argument("--html", type=Path, metavar="F", help="write a page that colours the words that steering raised")
    command.set_defaults(run=run, values=[])


def run(options: argparse.Namespace) -> None:
    """Print the texts, those unsteered beside those steered."""
    from mmgen.inference import steer
    from mmgen.training.config import parse_overrides

    given = {name: getattr(options, name) for name in SETTINGS}
    wanted = (options.bag, options.attribute, options.toward)
    traced, more = options.html is not None, parse_overrides(options.values)
    made = steer.steer_toward(options.language_model, options.prompt, *wanted, **given, traced=traced, options=more)
    write_json(options.json, made.texts)
    if traced:
        steer.write_page(options.html, made.texts, shlex.join(["mmgen", *options.arguments]))
    for name, bag in made.bags.items():
        print(f"bag {name}: {len(bag.tokens)} words, {sum(tokens == 1 for tokens in bag.tokens.values())} of one token")
    for row in made.texts:
        figures = f"log p(attribute) {row['attribute']:.2f}, perplexity {row['perplexity'] or math.nan:.1f}"
        print(f"{row['arm']} ({figures}): {row['prompt']}{row['text']}")
