"""Checkpoints: written atomically, and read without executing code.

A checkpoint is a folder ``step_00000500`` with ``model.safetensors`` (the weights that are not frozen),
``optimizer_PHASE.safetensors``, ``ema.safetensors`` if there is a moving average, ``state.json`` (step and counters) and
``random_RANK.json`` (the state of all random generators of that process). It is written to a temporary folder and renamed, so
that a killed process leaves the previous checkpoint intact.
"""

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mmgen.errors import UserError
from mmgen.models.base import like, read_weights, whole
from mmgen.storage import read_json

PREFIX = "step_"


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in ``folder``, oldest first; incomplete ones have other names and are not listed."""
    return sorted(folder.glob(f"{PREFIX}*"))


def write(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    keep: int,
    rank: int = 0,
    barrier=lambda: None,
) -> Path:
    """Write one checkpoint and remove the oldest beyond ``keep``; called by every process.

    Args:
        folder: folder of the checkpoints.
        step: optimiser steps done.
        tensors: file name -> name -> whole (unsharded) tensor.
        state: JSON values.
        keep: number of newest checkpoints to keep.
        rank: rank of this process; rank 0 writes the tensors, every rank its random state.
        barrier: function that waits for the other processes.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = folder / f"{PREFIX}{step:08d}"
    partial = folder / f".partial_{step:08d}"
    with whole_or_nothing(f"checkpoint in {folder}", partial):
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        (partial / f"random_{rank}.json").write_text(json.dumps(random_state()), encoding="utf-8")
        if rank == 0:
            for name, values in tensors.items():
                save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, partial / name)
            (partial / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        barrier()
        if rank == 0:
            shutil.rmtree(final, ignore_errors=True)  # the same step saved again, after a resume
            partial.rename(final)
            for old in checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
    barrier()
    return final


@contextmanager
def whole_or_nothing(what: str, partial: Path) -> Iterator[None]:
    """Remove the folder ``partial`` when writing it fails.

    Raises:
        UserError: the disk is full or not writable.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk raises either
        shutil.rmtree(partial, ignore_errors=True)
        fix = "free space or set --out, then add --resume; earlier checkpoints are whole"
        raise UserError(what, got=str(error), expected="a folder with room to write", fix=fix) from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the JSON values of a checkpoint.

    Raises:
        UserError: they are missing or incomplete.
    """
    state = read_json(checkpoint / "state.json", *_damaged(checkpoint))
    missing = [key for key in ("step", "model", "processes", "logged", "items", "seconds") if key not in state]
    if missing:
        fix = f"remove {checkpoint.name} to resume from the checkpoint before it"
        raise UserError(str(checkpoint / "state.json"), got=f"no {missing[0]}", expected="a whole checkpoint", fix=fix)
    return state


def read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors of one file of a checkpoint.

    Raises:
        UserError: it is missing or cut short.
    """
    return read_weights(checkpoint / name, fix=f"remove {checkpoint.name} to resume from the checkpoint before it")


def random_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators as JSON values."""
    kind, internal, gauss = random.getstate()
    legacy = numpy.random.get_state(legacy=False)
    return {
        "python": [kind, list(internal), gauss],
        "numpy": {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}},
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random_state(checkpoint: Path, rank: int = 0) -> None:
    """Restore the state of every generator of this process from ``checkpoint``.

    Raises:
        UserError: the checkpoint was written by fewer processes.
    """
    file = checkpoint / f"random_{rank}.json"
    count = len(list(checkpoint.glob("random_*.json")))
    if count and not file.is_file():
        fix = f"resume with --processes {count}"
        raise UserError(str(checkpoint), got=f"the state of {count} processes", expected=f"one for process {rank}", fix=fix)
    state = read_json(file, *_damaged(file.parent))
    kind, internal, gauss = state["python"]
    random.setstate((kind, tuple(internal), gauss))
    key = numpy.array(state["numpy"]["state"]["key"], dtype=numpy.uint32)
    numpy.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    torch.set_rng_state(_bytes(state["torch"]))
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_bytes(text) for text in state["cuda"]])


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Any, str]) -> dict[str, Tensor]:
    """Optimiser state by parameter name, as ``{"head.weight/exp_avg": ...}``."""
    return {
        f"{names[parameter]}/{key}": whole(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if torch.is_tensor(value)
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Any, str], state: dict[str, Tensor], source: str
) -> None:
    """Restore the result of `optimizer_tensors`.

    Raises:
        UserError: a tensor belongs to no parameter of this optimiser.
    """
    parameters = {names[p]: p for group in optimizer.param_groups for p in group["params"]}
    for key, value in state.items():
        name, _, kind = key.rpartition("/")
        if name not in parameters:
            fix = "resume with the config that wrote it"
            raise UserError(source, got=key, expected="the optimiser of this model", fix=fix)
        parameter = parameters[name]
        # the step counter is a scalar, which stays on the device chosen by the optimiser
        optimizer.state[parameter][kind] = value if value.ndim == 0 else like(value, parameter)


def _damaged(checkpoint: Path) -> tuple[str, str]:
    """Expectation and fix in errors about unreadable checkpoints."""
    return "a whole checkpoint", f"remove {checkpoint.name} to resume from the checkpoint before it"


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
