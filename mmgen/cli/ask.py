"""``mmgen ask``: questions about pictures or sounds."""

import argparse

from mmgen.cli.console import complain, lines, print_results, write_json
from mmgen.cli.options import SAVED_MODEL, Commands, shared, split_dtype
from mmgen.errors import UserError

MODALITIES = ("image", "audio")
EPILOG = (
    "With --chat, the line `image PATH` (or `audio PATH`) chooses the file to ask about, `shot PATH | question | answer` adds "
    "an example, `forget` drops the examples and `quit` ends. Every other line is a question, and so is every line that ends "
    "in a question mark. In TEXT, \\n is a line break."
)


def add_ask(commands: Commands) -> None:
    """Declare the command."""
    text = "ask about pictures or sounds, after examples or without"
    command = commands.add_parser("ask", help=text, epilog=EPILOG)
    command.add_argument("folder", metavar="RUN", help=f"a captioner or an answerer: {SAVED_MODEL}")
    for name in MODALITIES:
        text = f"{name} that a question is about; repeat for several, one for each question or one for all"
        command.add_argument(f"--{name}", action="append", default=[], help=text)
    command.add_argument("--question", action="append", default=[], help="repeat for several")
    shot = ("FILE", "QUESTION", "ANSWER")
    command.add_argument("--shot", nargs=3, action="append", metavar=shot, default=[], help="an example; repeat for several")
    command.add_argument("--answers", metavar="A,B,...", help="choose the likeliest of these")
    command.add_argument("--format", metavar="TEXT", help="template of an example, with {image}, {question} and {answer}")
    command.add_argument("--induction", metavar="TEXT", default="", help="a sentence before the examples")
    command.add_argument("--chat", action="store_true", help="read questions line by line")
    shared(command, "--json", help="write the answers there")
    command.set_defaults(run=run, values=[])


def run(options: argparse.Namespace) -> None:
    """Print the answers."""
    from mmgen.conditioning.few_shot import Format
    from mmgen.inference import ask
    from mmgen.models.base import load

    given = [(name, file) for name in MODALITIES for file in getattr(options, name)]
    check_chat(options, len(given))
    dtype, others = split_dtype(options.values)
    if others:
        raise UserError("argument", got=others[0], expected="a known option or dtype=NAME", fix="leave it out")
    format = None
    if options.format is not None or options.induction:
        format = Format(*(text.replace("\\n", "\n") for text in (options.format or Format.shot, options.induction)))
    answers = options.answers.split(",") if options.answers is not None else []
    model = load(options.folder, **dtype)
    files = ask.files_of(model, given)
    if options.chat:
        conversation = ask.Conversation(model, format, answers)
        conversation.show(options.shot)
        for reply in ask.chat(conversation, lines(), *files):
            complain(reply) if isinstance(reply, UserError) else print(reply, flush=True)
        return
    made = ask.ask(model, options.question, files, options.shot, format, answers)
    write_json(options.json, made)
    print_results([[result["answer"]] for result in made])


def check_chat(options: argparse.Namespace, files: int) -> None:
    """Fail unless there is a question, or ``--chat`` without the options that it excludes.

    Raises:
        UserError: no question, or an option that does not go with ``--chat``.
    """
    if not (options.chat or options.question):
        raise UserError("--question", got="none", expected="at least one, or --chat", fix='add --question "..."')
    if options.chat and (options.question or options.json or files > 1):
        got = "--question" if options.question else "--json" if options.json else "several files"
        expected = "one picture or sound at most, then questions line by line"
        raise UserError("--chat", got=f"{got} too", expected=expected, fix=f"leave {got} out")
