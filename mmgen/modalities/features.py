"""Features of a frozen encoder, computed once and cached on disk."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmgen.data.rows import Column
from mmgen.storage import cache_folder, cache_written, filled_whole


def cached_features(read: Callable[[Tensor], Mapping[str, Tensor]], values: Sequence[Any], process: Callable[[Any], Tensor],
                    key: Mapping[str, Any], batch_size: int = 64) -> dict[str, Tensor]:  # fmt: skip
    """Run ``read`` over all ``values`` once; later calls with the same ``key`` memory-map the result.

    Args:
        read: function of a batch (b, ...) that returns name -> features (b, ...), such as a frozen encoder.
        values: raw values; for a `Column`, errors of ``process`` name the row.
        process: function from a raw value to a tensor.
        key: JSON values of everything that the features depend on: weights, transform, data.
        batch_size: number of values in a batch.

    Returns:
        Name -> (n, ...) float16, memory-mapped.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "features" / digest
    with cache_written(folder):
        if not folder.is_dir():
            _write(read, values, process, folder, batch_size)
        files = {file.stem: numpy.load(file, mmap_mode="c", allow_pickle=False) for file in folder.glob("*.npy")}
    return {name: torch.from_numpy(array) for name, array in files.items()}


def mean_and_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, at least 0.001, of every feature, for standardisation.

    Args:
        features: (n, c); a memory map is read in pieces.

    Returns:
        (c,) and (c,), float64.

    >>> [value.tolist() for value in mean_and_std(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))]
    [[1.0, 5.0], [1.0, 0.001]]
    """
    parts = features.split(1024)
    mean = sum(part.double().sum(0) for part in parts) / len(features)  # (c,)
    variance = sum((part.double() - mean).square().sum(0) for part in parts) / len(features)
    return mean, variance.sqrt().clamp(min=1e-3)


def _write(read, values: Sequence[Any], process, folder: Path, batch_size: int) -> None:
    arrays: dict[str, numpy.memmap] = {}
    with filled_whole(folder) as partial, torch.no_grad():
        for start in tqdm(range(0, len(values), batch_size), desc="features", unit="batch", dynamic_ncols=True):
            rows = range(start, min(start + batch_size, len(values)))
            batch = torch.stack([values.read(i, process) if isinstance(values, Column) else process(values[i]) for i in rows])
            for name, features in read(batch).items():
                if name not in arrays:
                    shape = (len(values), *features.shape[1:])
                    arrays[name] = numpy.lib.format.open_memmap(partial / f"{name}.npy", "w+", numpy.float16, shape)
                arrays[name][start : start + len(batch)] = features.half().cpu().numpy()
        for array in arrays.values():
            array.flush()
