"""Files of a source: paths confined to their folder, and archives read by member name without unpacking."""

import contextlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from mmgen.errors import UserError, nearest


def escapes(name: str) -> bool:
    """Test whether a relative path as written leaves its folder.

    >>> escapes("mnist/mnist.npz"), escapes("../secrets"), escapes("/etc"), escapes("C:\\\\data")
    (False, True, True, True)
    """
    path = PureWindowsPath(name)  # reads both separators
    return bool(path.anchor) or ".." in path.parts or PurePosixPath(name).is_absolute()


def inside(folder: Path, name: str) -> Path:
    """Resolve ``name`` in ``folder``, whether or not it exists.

    Args:
        folder: the folder.
        name: a path relative to it.

    Returns:
        The resolved path.

    Raises:
        UserError: the path, or a link in it, leads out of the folder.

    >>> inside(Path("/data"), "mnist").name
    'mnist'
    """
    path = (folder / name).resolve()
    if escapes(name) or not path.is_relative_to(folder.resolve()):
        fix = "copy the file into the folder and name it relative to it"
        raise UserError("path", got=name, expected=f"a path that stays inside {folder}", fix=fix)
    return path


class Archive:
    """Source archive (tar or zip) whose members are read by name; nothing is unpacked, built or run.

    Args:
        path: the archive.

    Raises:
        UserError: it is neither tar nor zip, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zipped = zipfile.is_zipfile(path)
        self.names  # noqa: B018 - detects a damaged archive here instead of in the middle of a split

    @property
    def names(self) -> list[str]:
        """The names of its files."""
        with _readable(self.path):
            if self._zipped:
                with zipfile.ZipFile(self.path) as archive:
                    return [info.filename for info in archive.infolist() if not info.is_dir()]
            with tarfile.open(self.path) as archive:
                return [member.name for member in archive if member.isfile()]

    def read(self, name: str) -> bytes:
        """Read one member.

        Args:
            name: one of `names`.

        Raises:
            UserError: it has no such file, or is damaged.
        """
        if name not in self.names:
            raise UserError(f"{self.path.name}: member", got=name, expected="a file it holds", fix=nearest(name, self.names))
        with _readable(self.path):
            if self._zipped:
                with zipfile.ZipFile(self.path) as archive:
                    return archive.read(name)
            with tarfile.open(self.path) as archive:
                return archive.extractfile(name).read()  # type: ignore[union-attr]  # a regular file

    def each(self, ending: str) -> Iterator[tuple[str, bytes]]:
        """Yield the name and content of each file whose name has this ending, in one pass: fast for many small files.

        Raises:
            UserError: it is damaged.
        """
        with _readable(self.path):
            if self._zipped:
                with zipfile.ZipFile(self.path) as archive:
                    yield from ((name, archive.read(name)) for name in archive.namelist() if name.endswith(ending))
                return
            with tarfile.open(self.path) as archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(ending):
                        yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]  # a regular file


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Convert the errors of a damaged archive to a `UserError`."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(str(path), got=str(error), expected="a whole tar or zip archive", fix="download it again") from error
