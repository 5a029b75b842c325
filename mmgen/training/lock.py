"""Locks on run folders, so that no two commands write to the same one.

The first process of a command holds an operating-system lock (by filelock) on ``RUN/.lock`` while it trains or evaluates. The
lock ends with its process, even a killed one, so there are no stale locks. ``RUN/.lock.json`` describes the holder for the
error of other commands. The lock also works between hosts on network file systems with ``flock``, such as NFS. On file systems
without ``flock``, filelock warns and falls back to a lock file that names its process.
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
from typing import Any

from filelock import FileLock, Timeout

from mmgen.errors import UserError
from mmgen.processes import rank

LOCK, HOLDER = ".lock", ".lock.json"
COPY = "copy the run to a folder that you may write to"


@contextmanager
def locked(
    folders: Sequence[Path], command: Sequence[str] = (), wait: bool = False, fix: str = f"choose another --out, or {COPY}"
) -> Iterator[None]:
    """Lock run folders in a ``with`` block; missing folders are created.

    Only the first process of a command takes the lock; the others write nothing before it does.

    Args:
        folders: the run folders, such as a study and the runs of its seeds.
        command: this command, for the errors of other commands.
        wait: wait for a folder in use instead of failing.
        fix: advice for a folder that cannot be written.

    Raises:
        UserError: another command, named in the message, uses one of the folders; or one cannot be written.
    """
    with contextlib.ExitStack() as held:
        if rank() == 0:
            for folder in folders:
                held.enter_context(_one_locked(folder, command, wait, fix))
        yield


def check_free(folder: Path, **advice: Any) -> None:
    """Check that no other command uses a run folder, which need not exist.

    Args:
        folder: the run folder.
        advice: the ``fix`` of `locked`.

    Raises:
        UserError: another command, named in the message, uses it.
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
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        who, command = f"process {holder['pid']} on {holder['host']} since {holder['started']}", f"`{holder['command']}`"
    except (OSError, ValueError, KeyError, TypeError):  # the holder has just begun, or just ended
        who, command = "another process", "it"
    expected, fix = "a run folder that no other command uses", f"wait until {command} has ended, or choose another folder"
    return UserError(str(folder), got=f"a folder in use by {who}", expected=expected, fix=fix)


def _not_writable(folder: Path, error: OSError, fix: str) -> UserError:
    return UserError(str(folder), got=str(error), expected="a folder that can be written", fix=fix)
