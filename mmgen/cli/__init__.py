"""The ``mmgen`` command: parses, calls, prints."""

import io
import os
import shlex
import sys
from collections.abc import Sequence

from mmgen import processes
from mmgen.cli.console import check_file, complain
from mmgen.cli.parser import build_parser
from mmgen.errors import UserError, UserErrors, check_seed, first_line
from mmgen.training import launch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 after a one-line error, 130 or 143 when stopped."""
    if (
        arguments is None and sys.getfilesystemencoding() == "ascii"
    ):  # the C locale with PYTHONUTF8=0 allows ASCII file names only
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    write_utf8()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns when data workers fork
    try:
        parser = build_parser()
        options, rest = parser.parse_known_args(arguments)
        unknown = [a for a in rest if a.startswith("-") or "=" not in a or not hasattr(options, "values")]
        if unknown:
            fix = f"see `mmgen {options.command} --help`"
            expected = "a known option or key=value" if hasattr(options, "values") else "a known option"
            raise UserError("argument", got=shlex.join(unknown), expected=expected, fix=fix)
        if hasattr(options, "seed"):
            check_seed("--seed", options.seed)
        for file in (getattr(options, "json", None), getattr(options, "html", None)):
            if file is not None and file.parent != getattr(options, "out", None):  # that folder will be made
                check_file(file)
        if hasattr(options, "values"):
            options.values = rest
        options.arguments = arguments
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # a reader such as `head` has closed the pipe; nothing is left to write at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserErrors as errors:
        _fail(*errors.errors)
        return 2
    except UserError as error:
        _fail(error)
        return 2
    except Exception as error:
        reason = first_line(error)
        if not processes.peer_lost(error):
            if launch.launched():
                launch.report([f"{type(error).__name__}: {reason}"], "bug")
            raise
        line = f"process {processes.rank()}: lost another process, whose own message says why ({reason})"
        if launch.launched():  # the launching process reports the cause
            launch.report([line], "lost")
        else:
            complain(line)
        return 1
    except KeyboardInterrupt as stop:
        if processes.rank() == 0:
            complain(stop if stop.args else "stopped")
        return 128 + getattr(stop, "number", 2)


def _fail(*errors: UserError) -> None:
    """Report errors from whichever process they occurred in."""
    lines = [str(error) for error in errors]
    if launch.launched():
        launch.report(lines)
    else:
        of = f"process {processes.rank()}: " if processes.rank() else ""
        complain(*(f"{of}{line}" for line in lines))


def write_utf8() -> None:
    """Read and write UTF-8 in pipes and files whatever the locale; a terminal keeps its own, with ? for what it lacks."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("_", "-") != "utf-8":
            kept = stream.isatty() or os.environ.get("PYTHONIOENCODING")
            stream.reconfigure(encoding=None if kept else "utf-8", errors="replace" if kept else "surrogateescape")
