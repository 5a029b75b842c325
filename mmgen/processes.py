"""The processes of one command: the number of this one, and the device that it computes on.

Everything that needs a device asks here. ``accelerate.PartialState()`` joins the other processes when it is first made, and a
process that first makes it without saying that it computes on the CPU stays alone.
"""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING

from mmgen.errors import UserError

if TYPE_CHECKING:  # both are slow to import, and the command line needs `rank` alone
    import torch
    from accelerate import PartialState

LOST = ("connection closed by peer", "connection reset by peer", "connection was likely closed", "broken pipe",
        "remote process exit")  # messages of gloo, of torch's store and of NCCL  # fmt: skip


def rank() -> int:
    """The number of this process among those of the command, 0 for the first or the only one."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes that the launcher started for this command."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join() -> PartialState:
    """Join the other processes of the command: on GPUs by the backend of their kind, on CPUs by gloo.

    Returns:
        accelerate's state, in which ``num_processes`` is the number of all.

    >>> join().num_processes
    1
    """
    from accelerate import PartialState
    from torch.distributed import is_initialized

    joined = is_initialized()
    state = PartialState(cpu=_on_cpu())
    if is_initialized() and not joined:  # threads of gloo abort a process that leaves with its group
        atexit.register(state.destroy_process_group)
    return state


def device() -> torch.device:
    """The device that this process computes on.

    >>> device().type in ("cpu", "cuda", "mps", "xpu")
    True
    """
    return join().device


def check_processes(what: str, asked: int, running: int) -> None:
    """Fail unless as many processes run as were asked for, and all that were launched have joined.

    Args:
        what: the setting that asks, for the message.
        asked: how many; 0 takes what the launcher started. ``MMGEN_PROCESSES``, which ``mmgen train --processes`` sets, goes
            before it.
        running: the processes that have joined.

    Raises:
        UserError: the counts differ, as under ``accelerate launch --cpu --num_processes 2``, which starts one.
    """
    asked = int(os.environ.get("MMGEN_PROCESSES", asked)) or world_size()
    if asked != running:
        fix = f"start with `mmgen train --processes {asked}`, or `torchrun --nproc_per_node {asked}`"
        raise UserError(what, got=f"{running} running", expected=f"{asked} as asked", fix=fix)


def peer_lost(error: BaseException) -> bool:
    """True if ``error`` reports that another process of the command ended in the middle of their communication."""
    return world_size() > 1 and isinstance(error, RuntimeError) and any(text in str(error).lower() for text in LOST)


def _on_cpu() -> bool:
    """Return whether the processes compute on the CPU, where accelerate has to be told so to let several of them join."""
    import torch
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return True
    kind = torch.accelerator.current_accelerator(check_available=True)
    return world_size() > 1 and (kind is None or kind.type == "mps")  # Apple's GPU has no backend for several processes
