"""Generated results as files: pictures as PNG, sounds as WAV."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmgen.errors import UserError
from mmgen.inference.generate import checked_options, generate
from mmgen.judging.nearest import picture_column, write_nearest
from mmgen.modalities.kinds import KINDS
from mmgen.models.base import Model
from mmgen.storage import saved
from mmgen.training.report import picture_grid


def generate_files(
    model: Model, given: Mapping[str, Any], to: str, n: int = 1, seed: int = 0, options: Mapping[str, Any] | None = None,
    out: Path | None = None, part: str | None = None, nearest: str | None = None,
) -> list[list[Any]]:  # fmt: skip
    """Generate as `mmgen.inference.generate.generate` does, and write pictures and sounds to ``out``.

    Args:
        model, given, to, n, seed, part: see there.
        options: keyword arguments of the model's ``generate``.
        out: folder for results that are files; of several pictures it gets a ``grid.png`` too, a row for each item.
        nearest: a data card: `mmgen.judging.nearest.write_nearest` compares the pictures with its training pictures.

    Returns:
        For each item its results: texts, and paths of files; of several modalities a dict of these by name.

    Raises:
        UserError: a mistake that ``generate`` names, no ``out`` where there are files, or a card without pictures.
    """
    if nearest:  # refused before anything is generated
        picture_column(nearest)
        if to != "image":
            raise UserError("--nearest", got=f"--to {to}", expected="--to image", fix="leave --nearest out")
    values, names = checked_options(model, options or {}, to), [name.strip() for name in to.split(",")]
    kinds = {name: model.processors[name].kind for name in names if name in model.processors}
    for kind in kinds.values():
        if _suffix(kind):
            _make_folder(out, kind)
    results = generate(model, given, to, n, seed, part, **values)
    files = [[_as_text(model, to, result, f"{i * n + j:04d}", out) for j, result in enumerate(item)]
             for i, item in enumerate(results)]  # fmt: skip
    if out is not None and len(results) * n > 1 and kinds.get(to) == "image":
        saved(out / "grid.png", picture_grid(results).save)
    if nearest and out is not None:
        write_nearest(files, model.processors["image"], nearest, out)
    return files


def _as_text(model: Model, to: str, result: Any, stem: str, out: Path | None) -> Any:
    """The printable form of a result: a text, or the path of its written file; of several modalities a dict of these."""
    if isinstance(result, dict):
        return {name: _as_text(model, name, value, f"{stem}_{name}", out) for name, value in result.items()}
    if isinstance(result, str):
        return result
    processor = model.processors[to]
    suffix = _suffix(processor.kind)
    if out is None or not suffix:
        return str(result)
    return saved(out / f"{stem}.{suffix}", lambda file: processor.write(result, file))


def _suffix(kind: str) -> str:
    """The ending of the files of a kind; "" for one that is printed."""
    return KINDS[kind].suffix if kind in KINDS else ""


def _make_folder(out: Path | None, kind: str) -> None:
    """Create the folder of results before generating."""
    if out is None:
        raise UserError("--out", got="none", expected=f"a folder for the {kind} files", fix="add --out DIR")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("--out", got=str(error), expected="a folder that can be written", fix="choose another") from error
