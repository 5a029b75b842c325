"""The ``mmgen`` command: parses, calls, prints."""

import argparse
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmgen
from mmgen import processes
from mmgen.errors import UserError, UserErrors, check_at_least, check_seed
from mmgen.training import launch

MODALITIES = ("image", "text", "audio", "vector")
# how each is given on the command line
FORMS = {
    "image": ", a file",
    "text": "",
    "audio": ", a file",
    "vector": ", numbers joined by commas (--vector=-1,0.5) or a .npy, .csv or .json file",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 after a one-line error, 130 or 143 when stopped."""
    if arguments is None and sys.getfilesystemencoding() == "ascii":  # the C locale with PYTHONUTF8=0: no name has an umlaut
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    _write_utf8()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns when data workers fork
    try:
        parser = _parser()
        options, rest = parser.parse_known_args(arguments)
        unknown = [a for a in rest if a.startswith("-") or "=" not in a or not hasattr(options, "values")]
        if unknown:
            fix = f"see `mmgen {options.command} --help`"
            expected = "a known option or key=value" if hasattr(options, "values") else "a known option"
            raise UserError("argument", got=unknown[0], expected=expected, fix=fix)
        if hasattr(options, "seed"):
            check_seed("--seed", options.seed)
        if hasattr(options, "values"):
            options.values = rest
        options.arguments = arguments
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # a reader such as `head` had enough; nothing is left to write at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserErrors as errors:
        _fail(*errors.errors)
        return 2
    except UserError as error:
        _fail(error)
        return 2
    except RuntimeError as error:
        if not processes.peer_lost(error):
            raise
        if not launch.launched():  # or the launching process tells the cause
            reason = str(error).splitlines()[0]
            _complain(f"process {processes.rank()}: lost another process, whose own message says why ({reason})")
        return 1
    except KeyboardInterrupt as stop:
        if processes.rank() == 0:
            _complain(stop if stop.args else "stopped")
        return 128 + getattr(stop, "number", 2)


def _fail(*errors: UserError) -> None:
    """Report errors from whichever process they occurred in."""
    lines = [str(error) for error in errors]
    if launch.launched():
        launch.report(lines)
    else:
        of = f"process {processes.rank()}: " if processes.rank() else ""
        _complain(*(f"{of}{line}" for line in lines))


def _write_utf8() -> None:
    """Read and write UTF-8 in pipes and files whatever the locale; a terminal keeps its own, with ? for what it lacks."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("_", "-") != "utf-8":
            kept = stream.isatty() or os.environ.get("PYTHONIOENCODING")
            stream.reconfigure(**({"errors": "replace"} if kept else {"encoding": "utf-8", "errors": "surrogateescape"}))


def _complain(*messages: object) -> None:
    print("\n".join(f"mmgen: {message}" for message in messages), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmgen", description="Multimodal generation: train, evaluate and use its systems.")
    parser.add_argument("--version", action="version", version=f"mmgen {mmgen.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="recipes, models and data cards")
    command.set_defaults(run=_list)

    command = commands.add_parser("train", help="train a recipe into a run folder", epilog=_OVERRIDES)
    command.add_argument("recipe", help="a recipe's name, or a folder with a train.py of your own")
    command.add_argument("--config", default="config", help="a named config of the recipe, or a YAML file (default: config)")
    command.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE, runs/RECIPE-CONFIG)")
    command.add_argument("--resume", action="store_true", help="go on with what the run folder holds")
    command.add_argument("--processes", type=int, help="processes on this machine, each with its GPU if there are any")
    command.set_defaults(run=_train, values=[])

    text = "dtype=fp32 (or bf16, fp16, auto) can follow: of the frozen language model, where the recipe has one."
    command = commands.add_parser("evaluate", help="a run's figures on held-out data, beside its baselines", epilog=text)
    command.add_argument("folder", type=Path, metavar="RUN")
    command.add_argument("--split", help="the split (default: the recipe's first, usually test)")
    command.add_argument("--json", type=Path, metavar="F", help="write the figures there as one JSON object")
    command.set_defaults(run=_evaluate, values=[])

    command = commands.add_parser("generate", help="any subset of modalities in, any out", epilog=_OPTIONS)
    command.add_argument("folder", metavar="RUN", help="a run folder, a saved model or a Hub name")
    command.add_argument("--to", required=True, help="the modality to make, or several joined by commas")
    for name in MODALITIES:
        command.add_argument(f"--{name}", action="append", help=f"{name} to start from{FORMS[name]}; repeat for several items")
    command.add_argument("--n", type=int, default=1, help="results for each item")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--guidance", type=float, metavar="G", help="how much pictures of a text are held to it; 1: plainly")
    text = "draw more pictures and keep those nearest to the text by a run of the recipe aligned (default: runs/aligned)"
    command.add_argument("--rerank", nargs="?", const="runs/aligned", metavar="RUN", help=text)
    command.add_argument("--from", dest="part", metavar="FILE", help="the upper part of a picture, to be completed")
    text = "write to --out what of this data card's training pictures is nearest to each picture: is it a copy?"
    command.add_argument("--nearest", metavar="CARD", help=text)
    command.add_argument("--out", type=Path, help="folder for pictures and sounds")
    command.add_argument("--json", type=Path, metavar="F", help="write what was made there")
    command.set_defaults(run=_generate, values=[])

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
    command.set_defaults(run=_ask, values=[])

    command = commands.add_parser("steer", help="a language model's texts with and without steering", epilog=_STEERING)
    command.add_argument("language_model", metavar="LM", help="a folder, a Hub name, or an installed package")
    command.add_argument("--prompt", action="append", help="how the text begins; repeat for several")
    text = "words to steer toward: a topic, such as space, or a file with a word a line; repeat for several at once"
    command.add_argument("--bag", action="append", default=[], help=text)
    text = "a class to steer toward, such as positive; repeat for several at once"
    command.add_argument("--attribute", action="append", default=[], metavar="CLASS", help=text)
    text = "a run of the recipe attribute, whose classes they are (default: runs/attribute)"
    command.add_argument("--head", default="runs/attribute", metavar="RUN", help=text)
    text = "a picture or a sound to steer toward; repeat for several at once"
    command.add_argument("--toward", action="append", default=[], metavar="FILE", help=text)
    text = "a run of the recipe aligned, by which texts are compared with it (default: runs/aligned)"
    command.add_argument("--aligned", default="runs/aligned", metavar="RUN", help=text)
    text = "with --toward: rank texts, and with fudge steer them, by the space's sentence embedder, which reads all of a text"
    command.add_argument("--whole", action="store_true", help=text)
    text = (
        "pplm, by the gradient of its own past; fudge, by a look ahead from the likeliest tokens; or gedi, by a language "
        "model of each class, toward one --attribute (default: pplm)"
    )
    command.add_argument("--method", default="pplm", help=text)
    command.add_argument("--n", type=int, default=1, help="texts for each prompt")
    text = "texts that are written for each that is kept, unsteered too: the likeliest by what is steered toward (default: 1)"
    command.add_argument("--candidates", type=int, default=1, help=text)
    command.add_argument("--length", type=int, default=50, help="tokens of a text")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--dtype", default="auto", help=_DTYPE)
    command.add_argument("--json", type=Path, metavar="F", help="write the texts there")
    command.add_argument("--html", type=Path, metavar="F", help="write a page there that colours the words that were raised")
    command.set_defaults(run=_steer, values=[])

    command = commands.add_parser("restyle", help="lines of text in another style, from standard input")
    command.add_argument(
        "folder", metavar="RUN", help="of the recipe style_transfer: a run folder, a saved model or a Hub name"
    )
    command.add_argument("--to", required=True, metavar="STYLE", help="the style, such as positive")
    command.set_defaults(run=_restyle)

    command = commands.add_parser("data", help="list, show, check and write data cards; simulate")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the data cards that come with mmgen").set_defaults(run=_data_list)
    for name, run, text in [
        ("show", _data_show, "what a card says"),
        ("check", _data_check, "the mistakes in it"),
        ("init", _data_init, "write the card of a folder, a table or a data set of the Hub, for you to complete"),
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
    action.add_argument("--episodes", type=int, required=True, help="how many; those that are there are kept")
    action.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the files")
    action.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    action.add_argument("--seed", type=int, default=0)
    action.add_argument("--size", type=int, default=128, metavar="PX", help="side of the pictures (default: 128)")
    text = "round, square or triangle; several take turns (default: all)"
    action.add_argument("--shape", nargs="+", metavar="NAME", help=text)
    action.add_argument("--disturbance", metavar="NAME", help="occlusion, noise, push or moving_hole (default: none)")
    action.add_argument("--json", type=Path, metavar="F", help="write the figures there")
    action.set_defaults(run=_data_simulate)
    return parser


_OVERRIDES = (
    "Any key of the config can follow as key.sub=value, for example fit.steps=100. "
    "STAGE.from=RUN takes a stage from another run instead of training it."
)
_CHAT = (
    "With --chat, a line `image PATH` (or `audio PATH`) sets what is asked about, `shot PATH | question | answer` adds an "
    "example, `forget` drops them, `quit` ends; any other line, and all that end in ?, are questions. In TEXT, \\n is a "
    "line's end."
)
_STEERING = (
    "Options can follow, such as step_size=0.05 window=5. Of pplm, with their defaults: iterations=3 step_size=0.02 gamma=1.5 "
    "kl_scale=0.01 fusion=0.9 window=0 decay=false running_norm=true; a class or a picture takes larger steps, such as "
    "step_size=0.1 gamma=1.0 window=5. Of fudge: strength=1.0 top=20. Of gedi: strength=2.0 top=20. Of the sampling: "
    "temperature=1.0 top_k=10 top_p=1.0, and threshold=0.0, the mean of dist-1, -2 and -3 that the kept candidate must have."
)
_OPTIONS = (
    "Options of the model can follow as key=value, for example beams=3; and dtype=fp32, of the frozen language model in it."
)
_DTYPE = "of the language model: bf16, fp16, fp32, or auto, bf16 where this machine computes it natively (default: auto)"


def _list(options: argparse.Namespace) -> None:
    from mmgen.data.cards import card_names, read_card
    from mmgen.models import MODELS
    from mmgen.training.recipe import recipe_folder, recipe_names

    folders = {name: recipe_folder(name) for name in recipe_names()}
    configs = {name: ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) for name, folder in folders.items()}
    models = {name: Path(__file__).parents[1].joinpath(*place.partition(":")[0].split(".")) for name, place in MODELS.items()}
    _table("recipe", "", {name: f"{_summary(f / 'train.py')} Configs: {configs[name]}." for name, f in folders.items()})
    _table("model", "", {name: _summary(file.with_suffix(".py")) for name, file in models.items()})
    _table("data card", "", {name: read_card(name).pretty_name for name in card_names()})


def _summary(file: Path) -> str:
    """The first line of a Python file's docstring; nothing is imported."""
    with file.open(encoding="utf-8") as lines:
        return lines.readline().strip().strip('"')


def _train(options: argparse.Namespace) -> int | None:
    from mmgen.training import recipe as recipes
    from mmgen.training.lock import check_free

    recipe = recipes.load_recipe(options.recipe)
    stages_from = {v.partition(".from=")[0]: Path(v.partition(".from=")[2]) for v in options.values if ".from=" in v}
    overrides = [value for value in options.values if ".from=" not in value]
    config = recipes.recipe_config(recipe, options.config, overrides)
    suffix = "" if options.config == "config" else f"-{Path(options.config).stem}"
    out = options.out or Path("runs") / f"{recipe.name}{suffix}"
    if options.processes is not None and "RANK" not in os.environ:
        check_at_least("--processes", options.processes, 1)
        check_free(out)
        recipes.check_run_folder(config, out, options.resume, recipe.grows)
        if options.processes > 1:
            return launch.launch(options.processes, options.arguments)
    recipes.train(recipe, config, out, options.resume, stages_from, options.arguments)
    if processes.rank() == 0:
        print(f"trained {out}; next: {shlex.join(['mmgen', 'evaluate', str(out)])}")
    return None


def _evaluate(options: argparse.Namespace) -> None:
    from mmgen.training import recipe as recipes

    _check_file(options.json)
    recipe, config = recipes.open_run(options.folder, options.values)
    split = options.split or recipe.splits[0]
    figures = recipes.evaluate(recipe, config, options.folder, split, options.arguments)
    _write_json(options.json, figures)
    _table(f"{recipe.name} on {split}", "", {name: _figure(value) for name, value in figures.items()})
    if (file := options.folder / "report.html").is_file():
        print(f"report: {file}")


def _generate(options: argparse.Namespace) -> None:
    from mmgen.models.base import load
    from mmgen.training.generate import generate

    if options.json is None or options.json.parent != options.out:  # that one is made
        _check_file(options.json)
    given = {name: values for name in MODALITIES if (values := getattr(options, name))}
    values = [f"{name}={value}" for name in ("guidance", "rerank") if (value := getattr(options, name)) is not None]
    values += options.values
    if options.nearest:
        from mmgen.training.memorisation import picture_column, write_nearest

        picture_column(options.nearest)  # before anything is drawn
        if options.to != "image":
            raise UserError("--nearest", got=f"--to {options.to}", expected="--to image", fix="leave --nearest out")
    dtype, values = _dtype(values)
    model = load(options.folder, **dtype)
    made = generate(model, given, options.to, options.n, options.seed, values, options.out, options.part)
    if options.nearest:
        write_nearest(made, model.processors["image"], options.nearest, options.out)
    _write_json(options.json, made)
    for number, results in enumerate(made):
        for result in results:
            shown = "\t".join(result.values()) if isinstance(result, dict) else result
            print(f"{number}\t{shown}" if len(made) > 1 else shown)


def _ask(options: argparse.Namespace) -> None:
    from mmgen.conditioning.few_shot import Format
    from mmgen.models.base import load
    from mmgen.training import ask

    _check_file(options.json)
    format = None
    if options.format is not None or options.induction:
        format = Format(*(text.replace("\\n", "\n") for text in (options.format or Format.shot, options.induction)))
    answers = options.answers.split(",") if options.answers is not None else []
    if not (options.chat or options.question):
        raise UserError("--question", got="none", expected="at least one, or --chat", fix='add --question "..."')
    given = [(name, file) for name in ("image", "audio") for file in getattr(options, name) or []]
    if options.chat and (options.question or options.json or given[1:]):
        got = "--question" if options.question else "--json" if options.json else "several files"
        expected = "one picture or sound at most, then questions line by line"
        raise UserError("--chat", got=f"{got} too", expected=expected, fix=f"leave {got} out")
    dtype, others = _dtype(options.values)
    if others:
        raise UserError("argument", got=others[0], expected="a known option or dtype=NAME", fix="leave it out")
    model = load(options.folder, **dtype)
    for name, file in given:
        ask.check_modality(model, name, file)
    files = [file for _, file in given]
    if options.chat:
        conversation = ask.Conversation(model, format, answers)
        conversation.show(options.shot)
        for reply in ask.chat(conversation, _lines(), *files):
            _complain(reply) if isinstance(reply, UserError) else print(reply, flush=True)
        return
    made = ask.ask(model, options.question, files, options.shot, format, answers)
    _write_json(options.json, made)
    for number, result in enumerate(made):
        print(f"{number}\t{result['answer']}" if len(made) > 1 else result["answer"])


def _dtype(values: list[str]) -> tuple[dict[str, str], list[str]]:
    """``dtype=NAME`` among options ``key=value``, and the others."""
    found = [value.partition("=")[2] for value in values if value.startswith("dtype=")]
    return {"dtype": found[-1]} if found else {}, [value for value in values if not value.startswith("dtype=")]


def _lines() -> Iterator[str]:
    """What is typed, or piped in, line by line, without the byte order mark that a file may begin with."""
    try:
        yield input("> " if sys.stdin.isatty() else "").removeprefix("\ufeff")
        while True:
            yield input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return


def _steer(options: argparse.Namespace) -> None:
    from mmgen.conditioning.attributes import Together
    from mmgen.conditioning.language_model import load_language_model
    from mmgen.training import steer

    _check_file(options.json)
    _check_file(options.html)
    if not options.prompt:
        raise UserError("--prompt", got="none", expected="at least one", fix='add --prompt "The potato"')
    if not options.bag + options.attribute + options.toward:
        raise UserError("--bag, --attribute or --toward", got="none", expected="at least one", fix="add --bag space")
    if options.whole and not options.toward:
        raise UserError("--whole", got="no --toward", expected="a picture or a sound to compare with", fix="add --toward FILE")
    for file in options.toward:  # before anything is loaded
        if not Path(file).is_file():
            raise UserError(file, got="no such file", expected="a picture or a sound", fix="check the path")
    asked = {f"--{kind} {name}": name for kind in ("bag", "attribute", "toward") for name in getattr(options, kind)}
    if options.method == "gedi" and (len(asked) > 1 or not options.attribute):
        fix = "take --method pplm or fudge"
        raise UserError("--method gedi", got=", ".join(asked), expected="one --attribute and nothing else", fix=fix)
    own, sampling = steer.settings(options.values, options.method)
    model, tokenizer = load_language_model(options.language_model, options.dtype)
    model.to(processes.device())
    named = [
        *(steer.bag(name, model, tokenizer) for name in dict.fromkeys(options.bag)),
        *(steer.attribute(name, options.head, model) for name in dict.fromkeys(options.attribute)),
    ]
    ways = (options.whole and options.method == "fudge", options.whole)  # is it by whole texts that it steers, and ranks?
    toward = {
        whole: [steer.toward(file, options.aligned, model, tokenizer, whole) for file in dict.fromkeys(options.toward)]
        for whole in set(ways)
    }
    for name, part in zip(dict.fromkeys(options.bag), named):
        whole = sum(tokens == 1 for tokens in part.tokens.values())
        print(f"bag {name}: {len(part.tokens)} words, {whole} of one token")
    parts = ([*named, *toward[whole]] for whole in ways)
    attribute, ranked = (p[0] if len(p) == 1 else Together([(part, 1.0) for part in p]) for p in parts)
    if options.method == "gedi":
        own |= steer.experts(options.attribute[0], options.head, model)
    method = steer.METHODS[options.method](attribute, **own)
    numbers = {name: getattr(options, name) for name in ("n", "candidates", "length", "seed")}
    traced = options.html is not None
    made = steer.steer(model, tokenizer, options.prompt, method, ranked=ranked, **numbers, **sampling, traced=traced)
    _write_json(options.json, made)
    if traced:
        steer.write_page(options.html, made, shlex.join(["mmgen", *options.arguments]))
    for row in made:
        figures = f"log p(attribute) {row['attribute']:.2f}, perplexity {row['perplexity'] or math.nan:.1f}"
        print(f"{row['arm']} ({figures}): {row['prompt']}{row['text']}")


def _restyle(options: argparse.Namespace) -> None:
    from mmgen.models.base import load
    from mmgen.training.restyle import restyle

    for line in restyle(load(options.folder), sys.stdin.buffer, options.to):
        print(line, end="", flush=sys.stdin.isatty())


def _data_list(options: argparse.Namespace) -> None:
    from mmgen.data.cards import card_names, read_card

    _table("data card", "", {name: read_card(name).pretty_name for name in card_names()})


def _data_show(options: argparse.Namespace) -> None:
    from mmgen.data.card_files import card_text
    from mmgen.data.cards import describe, read_card

    print(card_text(options.card) if options.yaml else describe(read_card(options.card)), end="" if options.yaml else "\n")


def _data_init(options: argparse.Namespace) -> None:
    from mmgen.data.card_files import write_card

    file = write_card(options.card, options.out)
    print(f"wrote {file}; complete it, then: mmgen data check {shlex.quote(str(file))}")


def _data_check(options: argparse.Namespace) -> None:
    from mmgen.data.cards import CHECKED_ROWS, check_card

    problems = check_card(options.card)
    if problems:
        raise UserErrors(problems)
    read = f"and what up to {CHECKED_ROWS} rows of each split hold"
    print(f"{options.card}: no problem found in the card, row counts, missing values and labels of all rows, {read}")


def _data_simulate(options: argparse.Namespace) -> None:
    from mmgen.data.sources.places import simulator

    _check_file(options.json)
    names = ("out", "episodes", "workers", "seed", "size", "disturbance")
    settings = {name: getattr(options, name) for name in names} | ({"shapes": options.shape} if options.shape else {})
    made = simulator(options.simulator)(**settings)
    _write_json(options.json, made)
    counts = f"{made['episodes']} episodes, {made['observations']} observations, {made['in_contact']:.0%} in contact"
    print(f"{options.out}: {counts}, {made['successes']} successes, {made['observations_per_s']:.0f} observations/s")


def _table(first: str, second: str, rows: dict[str, Any]) -> None:
    width = max(len(name) for name in [first, *rows]) + 2
    print(f"{first:<{width}}{second}".rstrip())
    for name, value in rows.items():
        print(f"  {name:<{width}}{value}".rstrip())


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_file(file: Path | None) -> None:
    """Fail before a result is computed that could not be written."""
    if file is None:
        return
    fix = "choose another"
    if not file.parent.is_dir():
        raise UserError(str(file), got=f"no folder {file.parent}", expected="a file that can be written", fix=fix)
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        got = "a folder" if file.is_dir() else "no permission"
        raise UserError(str(file), got=got, expected="a file that can be written", fix=fix)


def _write_json(file: Path | None, value: Any) -> None:
    if file is None:
        return
    try:
        file.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(str(file), got=str(error), expected="a file that can be written", fix="choose another") from error


def _finite(value: Any) -> Any:
    """``value`` with null for numbers that JSON has not, such as log p of a text that holds nothing."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
