"""User-facing errors: what, got, expected, fix."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


class UserError(ValueError):
    """An input that cannot be used, in one line: ``what: got X, expected Y; fix``.

    Args:
        what: the thing that is wrong, named as the user named it.
        got: the offending value; shortened to 120 characters.
        expected: what would have been accepted.
        fix: the next thing to type or change.

    >>> print(UserError("fit.steps", got=-1, expected="a whole number >= 1", fix="set fit.steps=500"))
    fit.steps: got -1, expected a whole number >= 1; set fit.steps=500
    """

    def __init__(self, what: str, *, got: Any, expected: str, fix: str) -> None:
        shown = got if isinstance(got, str) else repr(got)
        shown = shown if len(shown) <= 120 else f"{shown[:117]}..."
        super().__init__(_one_line(f"{what}: got {shown}, expected {expected}; {fix}"))

    @classmethod
    def from_line(cls, line: str) -> "UserError":
        """The error whose message is ``line``."""
        error = cls.__new__(cls)
        ValueError.__init__(error, line)
        return error

    def __reduce__(self) -> tuple[Callable[[str], "UserError"], tuple[str], dict[str, Any]]:
        """Pickle the message, which is all that other processes need; ``__init__`` cannot be called with it."""
        return type(self).from_line, (str(self),), self.__dict__


class UserErrors(UserError):
    """Several independent mistakes reported together, a line each."""

    def __init__(self, errors: Iterable[UserError]) -> None:
        self.errors = list(errors)
        ValueError.__init__(self, "\n".join(str(error) for error in self.errors))


class Mistakes(list[UserError]):
    """Mistakes to be reported together: ``with mistakes:`` collects errors and continues.

    >>> mistakes = Mistakes()
    >>> with mistakes:
    ...     check_at_least("steps", 0, 1)
    >>> mistakes.fail()
    Traceback (most recent call last):
    mmgen.errors.UserError: steps: got 0, expected a number >= 1; use 1 or more
    """

    def __enter__(self) -> "Mistakes":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            known = {str(one) for one in self}  # a card that cannot be read fails every check of it
            self.extend(one for one in getattr(error, "errors", [error]) if str(one) not in known)
        return isinstance(error, UserError)

    def check_each(self, what: str, values: Iterable[str], names: Iterable[str]) -> None:
        """Add a mistake for each of ``values`` that is not one of ``names``, see `check_one_of`."""
        names = list(names)
        for value in values:
            with self:
                check_one_of(what, value, names)

    def fail(self) -> None:
        """Raise the mistakes, if there are any.

        Raises:
            UserError: the only one.
            UserErrors: several.
        """
        if self:
            raise self[0] if len(self) == 1 else UserErrors(self)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint naming the most similar of ``names``, or all of them when none is similar.

    >>> nearest("captionning", ["captioning", "judge"])
    "did you mean 'captioning'?"
    """
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names) or '(none)'}"


def check_one_of(what: str, value: str, names: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``names``.

    Raises:
        UserError: it is not; the message names the nearest.
    """
    names = list(names)
    if value not in names:
        raise UserError(what, got=value, expected="a known name", fix=nearest(value, names))
    return value


def check_at_least(what: str, value: Number, low: float) -> Number:
    """Return ``value`` if it is at least ``low``.

    Raises:
        UserError: it is smaller.
    """
    if not value >= low:  # a NaN fails too
        raise UserError(what, got=value, expected=f"a number >= {low}", fix=f"use {low} or more")
    return value


def check_seed(what: str, seed: int) -> int:
    """Return ``seed`` if every random generator takes it, and the few above it that are counted from it.

    Raises:
        UserError: it is below 0, or 2^31 or more.
    """
    if not 0 <= seed < 2**31:
        raise UserError(what, got=seed, expected="0 to 2147483647", fix="use 0 for example")
    return seed


def check_sizes(what: str, sizes: object) -> list[int]:
    """Return ``sizes`` as a list if they are whole numbers of 1 or more, such as the widths of layers.

    Raises:
        UserError: they are not, or there is none.
    """
    if not (isinstance(sizes, list | tuple) and sizes and all(type(size) is int and size >= 1 for size in sizes)):
        raise UserError(what, got=repr(sizes), expected="whole numbers of 1 or more", fix=f"write {what}=[32] for example")
    return list(sizes)


def check_share(what: str, value: float) -> float:
    """Return ``value`` if it is 0 or more and below 1.

    Raises:
        UserError: it is not.
    """
    if not 0 <= value < 1:
        raise UserError(what, got=value, expected="0 or more and below 1", fix="use 0.1 for example")
    return value


def check_texts(texts: object) -> list[str]:
    """Return ``texts`` as a list if they are several strings, and not one.

    Raises:
        UserError: they are not.
    """
    several = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else None
    if several is None or not all(isinstance(text, str) for text in several):
        raise UserError("texts", got=repr(texts), expected="a list of strings", fix='write ["..."]')
    return several


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where the message is empty.

    >>> first_line(OSError("no network\\nsee below")), first_line(OSError())
    ('no network', 'OSError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def counted(number: int, noun: str) -> str:
    """A count with its noun in the singular or plural.

    >>> counted(1, "number"), counted(2, "number"), counted(0, "class")
    ('1 number', '2 numbers', '0 classes')
    """
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
