"""Choice of the floating-point format: bfloat16 where the machine computes it natively, float32 elsewhere."""

import functools
import logging
import os
import time

import torch
import torch.nn.functional as F

from mmgen.errors import check_one_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = ("auto", *DTYPES)
# flags of `torch.cpu.get_capabilities`: the first two for x86, the others for Arm
NATIVE_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@functools.cache
def native_bfloat16(device: str | None = None) -> bool:
    """Test whether a device multiplies bfloat16 matrices natively.

    Processors without such instructions emulate them, 5 to 30 times slower than float32. ``ONEDNN_MAX_CPU_ISA`` is respected.

    Args:
        device: ``cuda`` or ``cpu``; None: a GPU where there is one and ``ACCELERATE_USE_CPU`` is not set, else the processor.
    """
    if device is None:
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        device = "cuda" if torch.cuda.is_available() and not on_cpu else "cpu"
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities()
    # the flags describe the processor; oneDNN reports whether it may use the instructions
    return torch.backends.mkldnn.is_available() and any(flags.get(f) for f in NATIVE_FLAGS) and onednn_has_bfloat16()


def resolve_dtype(name: str) -> torch.dtype:
    """Torch dtype of a name; ``auto`` is bfloat16 where `native_bfloat16` holds and float32 elsewhere.

    If this machine emulates an explicit ``bf16``, a warning with the measured slowdown is logged once.

    Args:
        name: ``auto``, ``bf16``, ``fp16`` or ``fp32``.

    Raises:
        UserError: the name is unknown.

    >>> resolve_dtype("fp32"), resolve_dtype("auto") == (torch.bfloat16 if native_bfloat16() else torch.float32)
    (torch.float32, True)
    """
    if check_one_of("dtype", name, NAMES) == "auto":
        return torch.bfloat16 if native_bfloat16() else torch.float32
    if name == "bf16":
        warn_of_emulated_bfloat16("dtype=auto")
    return DTYPES[name]


@functools.cache  # once
def warn_of_emulated_bfloat16(fix: str) -> None:
    """Log once that this machine emulates bfloat16, and by which factor float32 is faster.

    Args:
        fix: the setting that avoids it.
    """
    if not native_bfloat16():
        factor = slowdown_of_bfloat16()
        slower = f"{factor:.0f} times slower" if factor > 1.5 else "no faster"
        logging.getLogger("mmgen").warning(f"bfloat16 is {slower} than float32 on this machine, which emulates it; set {fix}")


def onednn_has_bfloat16() -> bool:
    """Test whether oneDNN, which computes on CPUs, may use bfloat16."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def slowdown_of_bfloat16() -> float:
    """Measure the time of a matrix product in bfloat16 divided by that in float32, each the shortest of three."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(128, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        F.linear(x, weight)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            F.linear(x, weight)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] / seconds[torch.float32]
