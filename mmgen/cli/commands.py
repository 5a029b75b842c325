"""The commands: one call each, and what they print."""

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgen import processes
from mmgen.errors import UserError, UserErrors, check_at_least
from mmgen.modalities.kinds import KINDS
from mmgen.training.launch import launch


def complain(*messages: object) -> None:
    """Print each message as a line of its own on stderr."""
    print("\n".join(f"mmgen: {message}" for message in messages), file=sys.stderr)


def run_list(options: argparse.Namespace) -> None:
    from mmgen.data.cards import card_names, read_card
    from mmgen.models import MODELS
    from mmgen.training.recipe import recipe_folder, recipe_names

    folders = {name: recipe_folder(name) for name in recipe_names()}
    configs = {name: ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) for name, folder in folders.items()}
    library = Path(__file__).parents[2]
    models = {name: library.joinpath(*place.partition(":")[0].split(".")) for name, place in MODELS.items()}
    _table("recipe", "", {name: f"{_summary(f / 'train.py')} Configs: {configs[name]}." for name, f in folders.items()})
    _table("model", "", {name: _summary(file.with_suffix(".py")) for name, file in models.items()})
    _table("data card", "", {name: read_card(name).pretty_name for name in card_names()})


def _summary(file: Path) -> str:
    """The first line of a Python file's docstring; nothing is imported."""
    with file.open(encoding="utf-8") as lines:
        return lines.readline().strip().strip('"')


def run_train(options: argparse.Namespace) -> int | None:
    from mmgen.training.lock import check_free
    from mmgen.training.recipe import load_recipe, recipe_config
    from mmgen.training.run_folder import check_run_folder
    from mmgen.training.study import train

    recipe = load_recipe(options.recipe)
    stages_from = {v.partition(".from=")[0]: Path(v.partition(".from=")[2]) for v in options.values if ".from=" in v}
    overrides = [value for value in options.values if ".from=" not in value]
    config = recipe_config(recipe, options.config, overrides)
    suffix = "" if options.config == "config" else f"-{Path(options.config).stem}"
    out = options.out or Path("runs") / f"{recipe.name}{suffix}"
    if options.processes is not None and "RANK" not in os.environ:
        check_at_least("--processes", options.processes, 1)
        check_free(out)
        check_run_folder(config, out, options.resume, recipe.extendable)
        if options.processes > 1:
            return launch(options.processes, options.arguments)
    train(recipe, config, out, options.resume, stages_from, options.arguments)
    if processes.rank() == 0:
        print(f"trained {out}; next: {shlex.join(['mmgen', 'evaluate', str(out)])}")
    return None


def run_evaluate(options: argparse.Namespace) -> None:
    from mmgen.training.run_folder import open_run
    from mmgen.training.study import evaluate

    _check_file(options.json)
    recipe, config = open_run(options.folder, options.values)
    split = options.split or recipe.splits[0]
    figures = evaluate(recipe, config, options.folder, split, options.arguments)
    write_json(options.json, figures)
    _table(f"{recipe.name} on {split}", "", {name: _figure(value) for name, value in figures.items()})
    if (file := options.folder / "report.html").is_file():
        print(f"report: {file}")


def run_generate(options: argparse.Namespace) -> None:
    from mmgen.inference.generate import generate
    from mmgen.models.base import load

    if options.json is None or options.json.parent != options.out:  # that one is made
        _check_file(options.json)
    given = {name: values for name in KINDS if (values := getattr(options, name))}
    values = [f"{name}={value}" for name in ("guidance", "rerank") if (value := getattr(options, name)) is not None]
    values += options.values
    if options.nearest:
        from mmgen.judging.nearest import picture_column, write_nearest

        picture_column(options.nearest)  # before anything is drawn
        if options.to != "image":
            raise UserError("--nearest", got=f"--to {options.to}", expected="--to image", fix="leave --nearest out")
    dtype, values = _dtype(values)
    model = load(options.folder, **dtype)
    made = generate(model, given, options.to, options.n, options.seed, values, options.out, options.part)
    if options.nearest:
        write_nearest(made, model.processors["image"], options.nearest, options.out)
    write_json(options.json, made)
    for number, results in enumerate(made):
        for result in results:
            shown = "\t".join(result.values()) if isinstance(result, dict) else result
            print(f"{number}\t{shown}" if len(made) > 1 else shown)


def run_ask(options: argparse.Namespace) -> None:
    from mmgen.conditioning.few_shot import Format
    from mmgen.inference import ask
    from mmgen.models.base import load

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
        for reply in ask.chat(conversation, lines(), *files):
            complain(reply) if isinstance(reply, UserError) else print(reply, flush=True)
        return
    made = ask.ask(model, options.question, files, options.shot, format, answers)
    write_json(options.json, made)
    for number, result in enumerate(made):
        print(f"{number}\t{result['answer']}" if len(made) > 1 else result["answer"])


def _dtype(values: list[str]) -> tuple[dict[str, str], list[str]]:
    """``dtype=NAME`` among options ``key=value``, and the others."""
    found = [value.partition("=")[2] for value in values if value.startswith("dtype=")]
    return {"dtype": found[-1]} if found else {}, [value for value in values if not value.startswith("dtype=")]


def lines() -> Iterator[str]:
    """The lines that are typed or piped in, without a byte order mark at the start."""
    try:
        yield input("> " if sys.stdin.isatty() else "").removeprefix("\ufeff")
        while True:
            yield input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return


def run_steer(options: argparse.Namespace) -> None:
    from mmgen.conditioning.attributes import Together
    from mmgen.conditioning.language_model import load_language_model
    from mmgen.inference import steer

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
    write_json(options.json, made)
    if traced:
        steer.write_page(options.html, made, shlex.join(["mmgen", *options.arguments]))
    for row in made:
        figures = f"log p(attribute) {row['attribute']:.2f}, perplexity {row['perplexity'] or math.nan:.1f}"
        print(f"{row['arm']} ({figures}): {row['prompt']}{row['text']}")


def run_restyle(options: argparse.Namespace) -> None:
    from mmgen.inference.restyle import restyle
    from mmgen.models.base import load

    for line in restyle(load(options.folder), sys.stdin.buffer, options.to):
        print(line, end="", flush=sys.stdin.isatty())


def run_data_list(options: argparse.Namespace) -> None:
    from mmgen.data.cards import card_names, read_card

    _table("data card", "", {name: read_card(name).pretty_name for name in card_names()})


def run_data_show(options: argparse.Namespace) -> None:
    from mmgen.data.card_files import card_text
    from mmgen.data.cards import describe, read_card

    print(card_text(options.card) if options.yaml else describe(read_card(options.card)), end="" if options.yaml else "\n")


def run_data_init(options: argparse.Namespace) -> None:
    from mmgen.data.card_files import write_card

    file = write_card(options.card, options.out)
    print(f"wrote {file}; complete it, then: mmgen data check {shlex.quote(str(file))}")


def run_data_check(options: argparse.Namespace) -> None:
    from mmgen.data.cards import CHECKED_ROWS, check_card, read_card

    problems = check_card(options.card)
    if problems:
        raise UserErrors(problems)
    card = read_card(options.card)
    _table("column", "kind", {name: spec["kind"] for name, spec in card.columns.items()})
    _table("split", "rows", card.splits)
    read = f"and what up to {CHECKED_ROWS} rows of each split hold"
    print(f"{options.card}: no problem found in the card, row counts, missing values and labels of all rows, {read}")


def run_data_simulate(options: argparse.Namespace) -> None:
    from mmgen.data.sources.places import simulator

    _check_file(options.json)
    names = ("out", "episodes", "workers", "seed", "size", "disturbance")
    settings = {name: getattr(options, name) for name in names} | ({"shapes": options.shape} if options.shape else {})
    made = simulator(options.simulator)(**settings)
    write_json(options.json, made)
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


def write_json(file: Path | None, value: Any) -> None:
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
