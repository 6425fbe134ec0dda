"""What may be annotated to the type of an argument: ranges, sets of choices, names of devices."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch

MACHINE = 2**31 - 1
"""The largest number of things that are counted; not worth telling as a limit."""


class Limit:
    """What ``Annotated`` says of the values of a type."""

    @property
    def words(self) -> str:
        """What is put behind the type's name in a message."""
        return ""

    def prepare(self, value: Any) -> Any:
        """Return a value in the form in which its type is looked at."""
        return value

    def holds(self, value: Any) -> bool:
        """Say whether a value of the type is within the limit."""
        raise NotImplementedError


@dataclass(frozen=True)
class Range(Limit):
    """Numbers between two bounds.

    Attributes:
        least: The smallest value; None where there is none, or where it is ``above``.
        most: The largest value, likewise.
        above: Number that values are larger than.
        below: Number that values are smaller than.
        such_as: An example, for people who think of another unit.

    Example:
        >>> Range(1, 4).words, Range(above=0).words, Range(0, below=1).words
        ('from 1 to 4', 'above 0', 'of at least 0 and below 1')
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    such_as: str = ""

    @property
    def words(self) -> str:
        """What is put behind the type's name in a message."""
        return self._worded(self.least, self.most)

    @property
    def told(self) -> str:
        """The same for people who read about the argument, to whom a machine's limits do not matter."""
        least, most = (None if one is None or abs(one) >= MACHINE else one for one in (self.least, self.most))
        return self._worded(least, most)

    def _worded(self, least: float | None, most: float | None) -> str:
        if least is not None and most is not None:
            return f"from {least} to {most}"
        bounds = {"of at least": least, "above": self.above, "at most": most, "below": self.below}
        words = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        return words + (f", such as {self.such_as}" if self.such_as else "")

    def holds(self, value: Any) -> bool:
        """Say whether a number is within the bounds."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class SomeOf(Limit):
    """One or more of some choices, each once.

    Example:
        >>> SomeOf(("rgb", "xyz")).holds(("xyz",)), SomeOf(("rgb", "xyz")).holds(("xyz", "xyz"))
        (True, False)
    """

    choices: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        """Say whether a tuple holds some of the choices, each once."""
        return len(set(value)) == len(value) and set(value) <= set(self.choices)


@dataclass(frozen=True)
class DeviceName(Limit):
    """Names of devices, as PyTorch writes them; whether the machine has the device is not looked at."""

    @property
    def words(self) -> str:
        """What is put behind the type's name in a message."""
        return "that names a device, such as cpu or cuda:0"

    def prepare(self, value: Any) -> Any:
        """Return a device as text."""
        return str(value) if isinstance(value, torch.device) else value

    def holds(self, value: Any) -> bool:
        """Say whether PyTorch knows such a device."""
        try:
            torch.device(value)
        except RuntimeError:
            return False
        return True


Count = Annotated[int, Range(1, MACHINE)]
"""A number of things, one or more."""
Rate = Annotated[float, Range(above=0)]
"""A learning rate."""


def bare(hint: Any) -> Any:
    """Return a type without what is annotated to it.

    Example:
        >>> bare(Count)
        <class 'int'>
    """
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the words that a type takes, if it takes nothing else.

    Example:
        >>> from typing import Literal
        >>> choices_of(Literal["a", "b"]), choices_of(Count | Literal["auto"])
        (('a', 'b'), ())
    """
    kind, limits, inner = parts(hint)
    named = [limit.choices for limit in limits if isinstance(limit, SomeOf)]
    return named[0] if named else tuple(map(str, inner)) if kind is Literal else ()


def parts(hint: Any) -> tuple[Any, tuple[Limit, ...], tuple[Any, ...]]:
    """Return what a type is (a plain one, Union, Literal or tuple), its limits, and the types or choices in it."""
    limits: tuple[Limit, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *others = get_args(hint)
        limits = tuple(others)
    kind = get_origin(hint) or hint
    return (Union if kind is types.UnionType else kind), limits, get_args(hint)
