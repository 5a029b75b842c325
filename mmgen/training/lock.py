"""A lock on run folders, so that no two commands write into one.

The first process of a command holds an operating-system lock (by filelock) on ``RUN/.lock`` while it trains or evaluates. The
lock ends with its process, however that dies, so nobody has to remove a stale one. ``RUN/.lock.json`` says who holds it, for
the message to other commands. The lock binds all hosts of a network file system that passes ``flock`` on, as NFS does. Where a
file system has no ``flock`` at all, filelock warns and falls back to a lock file that names its process.
"""

import contextlib
import json
import os
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mmgen.errors import UserError
from mmgen.processes import rank

LOCK, HOLDER = ".lock", ".lock.json"
COPY = "copy the run to a folder that you may write to"


@contextmanager
def locked(
    folders: Sequence[Path], command: Sequence[str] = (), wait: bool = False, fix: str = f"choose another --out, or {COPY}"
) -> Iterator[None]:
    """Hold run folders while the body runs; the folders are made where they are missing.

    Only the first process of a command locks: the others write nothing before it does.

    Args:
        folders: the run folders, such as a study and the runs of its seeds.
        command: the command that other commands are told of.
        wait: wait while another command holds one of the folders, instead of failing.
        fix: advice where a folder cannot be written.

    Raises:
        UserError: another command holds one of them; the message says which. Or one cannot be written.
    """
    with contextlib.ExitStack() as held:
        if rank() == 0:
            for folder in folders:
                held.enter_context(_one_locked(folder, command, wait, fix))
        yield


def check_free(folder: Path, **advice: str) -> None:
    """Fail if another command holds the run folder; it need not exist.

    Args:
        folder: the run folder.
        advice: the ``fix`` of `locked`.

    Raises:
        UserError: another command holds it; the message says which.
    """
    if (folder / LOCK).is_file():
        with locked([folder], **advice):
            pass


@contextmanager
def _one_locked(folder: Path, command: Sequence[str], wait: bool, fix: str) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise _held(folder) from None
    except OSError as error:
        raise _not_writable(folder, error, fix) from error
    try:
        try:
            _write_holder(folder, command)
        except OSError as error:
            raise _not_writable(folder, error, fix) from error
        yield
    finally:
        with contextlib.suppress(OSError):  # the run folder was removed meanwhile
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _write_holder(folder: Path, command: Sequence[str]) -> None:
    values = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(["mmgen", *command]) if command else "a Python program",
        "started": datetime.now().astimezone().isoformat(" ", "seconds"),
    }
    partial = folder / f"{HOLDER}.partial"
    partial.write_text(json.dumps(values) + "\n", encoding="utf-8")
    partial.replace(folder / HOLDER)


def _held(folder: Path) -> UserError:
    try:
        said = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        who, command = f"process {said['pid']} on {said['host']} since {said['started']}", f"`{said['command']}`"
    except (OSError, ValueError, KeyError, TypeError):  # the holder has just begun, or just ended
        who, command = "another process", "it"
    expected, fix = "a run folder that no other command uses", f"wait until {command} has ended, or choose another folder"
    return UserError(str(folder), got=f"a folder in use by {who}", expected=expected, fix=fix)


def _not_writable(folder: Path, error: OSError, fix: str) -> UserError:
    return UserError(str(folder), got=str(error), expected="a folder that can be written", fix=fix)
