"""Episodes of manipulation as HDF5 files, one episode a file, in the layout of the published peg insertion data."""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmgen.errors import UserError, check_one_of

if TYPE_CHECKING:
    import h5py

# field -> shape: T moments, pictures of side s, R readings at each moment
FIELDS: dict[str, tuple[int | str, ...]] = {
    "action": ("T", 4),
    "contact": ("T", "R"),
    "depth_data": ("T", "s", "s", 1),
    "ee_forces_continuous": ("T", "R", 6),
    "ee_pos": ("T", 3),
    "ee_vel": ("T", 3),
    "ee_yaw": ("T", 4),
    "ee_yaw_delta": ("T", 4),
    "image": ("T", "s", "s", 3),
    "optical_flow": ("T", "s", "s", 2),
    "proprio": ("T", 8),
}
REQUIRED = ("action", "contact", "depth_data", "ee_forces_continuous", "image", "optical_flow", "proprio")
FINITE = ("action", "ee_forces_continuous", "optical_flow", "proprio")  # fields checked for finite values
SMALL = ("depth_data", "optical_flow")  # stored as float16: precision 0.1 mm at 0.3 m, and 0.01 pixel at 16 pixels
TYPES = {"image": np.uint8, "contact": np.bool_} | dict.fromkeys(SMALL, np.float16)
LEAST = 2  # smallest number of moments, as targets come from the next one


def write_episode(path: str | Path, fields: Mapping[str, np.ndarray], **attributes: str | float) -> None:
    """Write one episode atomically.

    Row t of every field belongs to observation t; ``action[t + 1]``, ``contact[t + 1]`` and ``ee_forces_continuous[t + 1]``
    lead from observation t to t + 1, and ``optical_flow[t]`` is the flow from picture t to t + 1. Each moment is a chunk of
    the file.

    Args:
        path: the file; an existing one is replaced.
        fields: all of `REQUIRED`, and any others of `FIELDS`, with the shapes given there; units m, rad, N, N m, s and pixels.
        attributes: attributes of the episode, such as ``shape="round"``, ``seed=3``.

    Raises:
        UserError: h5py is missing, a field is unknown, missing or of another shape, an action, force, joint reading or flow is
            not finite, or the file cannot be written.
    """
    h5py = _h5py()
    path = Path(path)
    for name in fields:
        check_one_of(f"{path.name}: field", name, FIELDS)
    _check_shapes(path, {name: np.shape(value) for name, value in fields.items()})
    _check_finite(path, fields)
    partial = path.with_name(f".partial-{path.name}-{os.getpid()}")
    try:
        with h5py.File(partial, "w", libver=("v110", "v110")) as file:
            for name, value in fields.items():
                value = np.asarray(value, TYPES.get(name, np.float32))
                # small fields are a single chunk, as each chunk costs a seek
                chunk = (1, *value.shape[1:]) if value[0].nbytes > 4096 else value.shape
                file.create_dataset(name, data=value, chunks=chunk, compression="lzf", fletcher32=True)
            file.attrs.update(attributes)
        partial.replace(path)
    except OSError as error:
        fix = "choose a folder with space that you may write to"
        raise UserError(str(path), got=str(error), expected="a file that can be written", fix=fix) from error
    finally:
        partial.unlink(missing_ok=True)


def read_episode(path: str | Path, fields: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read one episode, simulated or published.

    Args:
        path: the file.
        fields: names from `FIELDS` to read; None: all that the file has.

    Returns:
        Field -> array as in `write_episode`: image uint8, contact bool, the others in their stored type.

    Raises:
        UserError: h5py is missing, or the file does not exist, is damaged, lacks a field, has one of a wrong shape, has fewer
            than `LEAST` moments, an action, force, joint reading or flow that is not finite, or pixel values outside 0..255.
    """
    path = Path(path)
    for name in fields or ():
        check_one_of(f"{path.name}: field", name, FIELDS)
    with _opened(path) as file:
        shapes = _shapes(file)
        _check_shapes(path, shapes, [*REQUIRED, *(fields or ())])
        _check_types(path, file, shapes)
        arrays = {name: file[name][()] for name in (shapes if fields is None else fields)}
    return _checked(path, arrays)


def read_moment(path: str | Path, t: int, fields: Collection[str]) -> dict[str, np.ndarray]:
    """Read row ``t`` of some fields of a checked episode.

    Raises:
        UserError: the file does not exist, is damaged, lacks a field or that moment, or has invalid values (`read_episode`).
    """
    path = Path(path)
    with _opened(path) as file:
        count = min((len(file[name]) for name in fields), default=0)
        if not 0 <= t < count:
            raise UserError(str(path), got=f"moment {t}", expected=f"0 to {count - 1}", fix="choose one that it has")
        arrays = {name: file[name][t : t + 1] for name in fields}
    return {name: value[0] for name, value in _checked(path, arrays, t).items()}


def check_episode(path: str | Path) -> dict[str, Any]:
    """Check the fields of a file and their shapes by its header.

    Args:
        path: the file.

    Returns:
        Its attributes, with ``moments``, ``size`` (pixels) and ``readings`` (sensor readings at each moment).

    Raises:
        UserError: as `read_episode`, except for invalid values.
    """
    path = Path(path)
    with _opened(path) as file:
        shapes = _shapes(file)
        _check_shapes(path, shapes)
        _check_types(path, file, shapes)
        moments, size, readings = shapes["image"][0], shapes["image"][1], shapes["contact"][1]
        attributes = {name: getattr(value, "item", lambda v=value: v)() for name, value in file.attrs.items()}
    return {**attributes, "moments": moments, "size": size, "readings": readings}


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        fix = "pip install 'mmgen[robotics]'"
        raise UserError("package", got="no h5py", expected="it installed, to read HDF5 files", fix=fix) from error
    return h5py


@contextlib.contextmanager
def _opened(path: Path) -> Iterator["h5py.File"]:
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        fix = "check the path, or delete the cached rows that name it"
        raise UserError(str(path), got="no such file", expected="an HDF5 file of an episode", fix=fix) from error
    except (OSError, RuntimeError, KeyError) as error:  # not HDF5, truncated or corrupted
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    fix = "copy it again, or delete it and simulate it again"
    return UserError(str(path), got=str(error), expected="a whole HDF5 file", fix=fix)


def _shapes(file: "h5py.File") -> dict[str, tuple[int, ...]]:
    return {name: file[name].shape for name in FIELDS if name in file and hasattr(file[name], "shape")}


def _check_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]], names: Collection[str] = REQUIRED) -> None:
    missing = [name for name in dict.fromkeys(names) if name not in shapes]
    if missing:
        fix = "write the missing ones, or leave the file out"
        raise UserError(str(path), got=f"no field {', '.join(missing)}", expected=f"fields {', '.join(REQUIRED)}", fix=fix)
    sizes: dict[str, int] = {}
    for name in ("image", *shapes):  # the pictures come first: they define the number of moments
        shape, pattern = shapes[name], FIELDS[name]
        good = len(shape) == len(pattern)
        for letter, length in zip(pattern, shape):
            good = good and length == (sizes.setdefault(letter, length) if isinstance(letter, str) else letter)
        if not good:
            wanted = (sizes.get(letter, letter) if isinstance(letter, str) else letter for letter in pattern)
            expected = f"({', '.join(str(length) for length in wanted)})"
            fix = "write all the fields over the same moments"
            raise UserError(f"{path}: {name}", got=f"shape {tuple(shape)}", expected=expected, fix=fix)
    if sizes["T"] < LEAST:
        raise UserError(str(path), got=f"{sizes['T']} moments", expected=f"at least {LEAST}", fix="leave the file out")


def _check_types(path: Path, file: "h5py.File", names: Collection[str]) -> None:
    for name in names:
        kinds, expected = ("ui", "whole numbers from 0 to 255") if name == "image" else ("fuib", "numbers")
        if file[name].dtype.kind not in kinds:
            raise UserError(f"{path}: {name}", got=str(file[name].dtype), expected=expected, fix="write the field again")


def _checked(path: Path, arrays: dict[str, np.ndarray], first: int = 0) -> dict[str, np.ndarray]:
    """Check arrays read from moment ``first`` on, and convert them to the types of `read_episode`."""
    _check_finite(path, arrays, first)
    if "contact" in arrays:
        arrays["contact"] = arrays["contact"] != 0
    if "image" in arrays:
        image = arrays["image"]
        low, high = (0, 255) if image.dtype == np.uint8 else (int(image.min(initial=0)), int(image.max(initial=0)))
        if low < 0 or high > 255:
            fix = "write the field again"
            raise UserError(f"{path}: image", got=low if low < 0 else high, expected="whole numbers from 0 to 255", fix=fix)
        arrays["image"] = image.astype(np.uint8, copy=False)
    return arrays


def _check_finite(path: Path, arrays: Mapping[str, np.ndarray], first: int = 0) -> None:
    for name in FINITE:
        if name in arrays and not np.isfinite(arrays[name]).all():
            index = tuple(np.argwhere(~np.isfinite(arrays[name]))[0].tolist())
            at = [first + index[0], *index[1:]]
            got, fix = f"{arrays[name][index]} at {at}", "leave the file out, or repair the sensor's readings"
            raise UserError(f"{path}: {name}", got=got, expected="finite numbers", fix=fix)
