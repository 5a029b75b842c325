"""``mmgen generate``: any subset of modalities in, any out."""

import argparse

from mmgen.cli.console import print_results, write_json
from mmgen.cli.options import SAVED_MODEL, Commands, shared, split_dtype
from mmgen.modalities.kinds import KINDS

EPILOG = (
    "Options of the model can follow as key=value, for example beams=3. dtype=fp32 (or bf16, fp16, auto) runs its frozen "
    "language model in that type."
)


def add_generate(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("generate", help="generate any modality from any others", epilog=EPILOG)
    command.add_argument("folder", metavar="RUN", help=SAVED_MODEL)
    command.add_argument("--to", required=True, help="the modality to generate, or several joined by commas")
    for name, kind in KINDS.items():
        text = ", ".join(filter(None, [f"{name} to start from", kind.form]))
        command.add_argument(f"--{name}", action="append", help=f"{text}; repeat for several items")
    shared(command, "--n", help="results for each item (default: 1)")
    shared(command, "--seed")
    command.add_argument("--guidance", type=float, metavar="G", help="classifier-free guidance scale; 1 disables it")
    text = "generate more pictures and keep those nearest to the text by a run of the recipe aligned (default: runs/aligned)"
    command.add_argument("--rerank", nargs="?", const="runs/aligned", metavar="RUN", help=text)
    command.add_argument("--from", dest="part", metavar="FILE", help="the upper part of a picture, to be completed")
    text = "find the training picture of this data card nearest to each generated one, to see copies; written to --out"
    command.add_argument("--nearest", metavar="CARD", help=text)
    shared(command, "--out", help="folder for pictures and sounds")
    shared(command, "--json", help="write the results there")
    command.set_defaults(run=run, values=[])


def run(options: argparse.Namespace) -> None:
    """Generate; print texts, numbers and the paths of files."""
    from mmgen.inference.files import generate_files
    from mmgen.models.base import load
    from mmgen.training.config import parse_overrides

    given = {name: values for name in KINDS if (values := getattr(options, name))}
    values = [f"{name}={value}" for name in ("guidance", "rerank") if (value := getattr(options, name)) is not None]
    dtype, values = split_dtype([*values, *options.values])
    settings = {name: getattr(options, name) for name in ("n", "seed", "out", "part", "nearest")}
    made = generate_files(load(options.folder, **dtype), given, options.to, options=parse_overrides(values), **settings)
    write_json(options.json, made)
    print_results(made)
