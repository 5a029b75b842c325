"""Ranges of values that stand in types: ``steps: Annotated[int, AtLeast(1)] = 1000``."""

import functools
import inspect
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, ClassVar, TypeVar

from mmgen.errors import Mistakes, UserError

Function = TypeVar("Function", bound=Callable[..., Any])


class Range:
    """A range of finite numbers, in `words` and with a `fix`, both formatted with the fields of the subclass."""

    words: ClassVar[str]
    fix: ClassVar[str]

    def __str__(self) -> str:
        return self.words.format(**vars(self))

    def holds(self, value: float) -> bool:
        """True if a finite number is inside."""
        raise NotImplementedError

    def check(self, name: str, value: Any) -> None:
        """Fail unless ``value`` is a finite number in the range.

        Raises:
            UserError: it is not.
        """
        if not (isinstance(value, Real) and math.isfinite(value) and self.holds(float(value))):
            infinite = isinstance(value, float) and not math.isfinite(value)
            expected = str(self).replace("a number", "a finite number") if infinite else str(self)
            raise UserError(name, got=value, expected=expected, fix=self.fix.format(**vars(self)))


@dataclass(frozen=True)
class AtLeast(Range):
    """Numbers of ``low`` and more.

    >>> AtLeast(1).check("steps", 0)
    Traceback (most recent call last):
    mmgen.errors.UserError: steps: got 0, expected a number >= 1; use 1 or more
    """

    low: float
    words = "a number >= {low}"
    fix = "use {low} or more"

    def holds(self, value: float) -> bool:
        """True if ``value`` is ``low`` or more."""
        return value >= self.low


@dataclass(frozen=True)
class Between(Range):
    """Numbers from ``low`` to ``high``, both inside."""

    low: float
    high: float
    words = "{low} to {high}"
    fix = "use {low} for example"

    def holds(self, value: float) -> bool:
        """True if ``value`` is neither below ``low`` nor above ``high``."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Above(Range):
    """Numbers above ``low``; with `Between` beside it, up to its end: ``Annotated[float, Above(0), Between(0, 1)]``."""

    low: float
    words = "a number above {low}"
    fix = "use more than {low}"

    def holds(self, value: float) -> bool:
        """True if ``value`` is above ``low``."""
        return value > self.low


@dataclass(frozen=True)
class Share(Range):
    """Numbers from 0 to below 1, such as a dropout rate or a decay; the fix names ``example``."""

    example: float = 0.1
    words = "0 or more and below 1"
    fix = "use {example} for example"

    def holds(self, value: float) -> bool:
        """True if ``value`` is 0 or more and below 1."""
        return 0 <= value < 1


@dataclass(frozen=True)
class Each:
    """Lists whose numbers are each in ``range``; at least one number unless ``empty``."""

    range: Range
    empty: bool = False

    def __str__(self) -> str:
        return f"each {self.range}"

    def check(self, name: str, values: Sequence[Any]) -> None:
        """Fail unless every number is in the range.

        Raises:
            UserError: one is not, or there is none.
        """
        if not (values or self.empty):
            raise UserError(name, got="[]", expected=f"one or more numbers, {self}", fix="add one")
        for value in values:
            self.range.check(name, value)


Seed = Annotated[int, Between(0, 2**31 - 1)]  # what every random generator takes, and the few above that are counted from it


def check_ranges(hint: Any, name: str, value: Any) -> None:
    """Check a value by the ranges that stand in its type; None is in any range.

    Args:
        hint: the type, as ``Annotated[int, AtLeast(1)]``; a plain one has no range.
        name: of the value, for the message.
        value: of that type.

    Raises:
        UserError: it is out of a range.
    """
    for one in ranges_of(hint) if value is not None else ():
        one.check(name, value)


def ranges_of(hint: Any) -> list[Range | Each]:
    """The ranges that stand in a type.

    >>> ranges_of(Annotated[int, AtLeast(1)]), ranges_of(int)
    ([AtLeast(low=1)], [])
    """
    return [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Range | Each)]


def checked(function: Function) -> Function:
    """Make a function, or the constructor of a class, check the ranges in the types of its arguments at each call.

    Raises:
        UserErrors: at a call, every argument that is out of its range.

    >>> @checked
    ... def spread(n: Annotated[int, AtLeast(1)]) -> None: ...
    >>> spread(0)
    Traceback (most recent call last):
    mmgen.errors.UserError: n: got 0, expected a number >= 1; use 1 or more
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        hints, errors = typing.get_type_hints(function, include_extras=True), Mistakes()
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            with errors:
                check_ranges(hints.get(name), name, value)
        errors.fail()
        return function(*args, **kwargs)

    return typing.cast(Function, call)
