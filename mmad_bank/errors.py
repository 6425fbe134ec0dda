"""The exceptions that mmad-bank raises for input it cannot use. Each carries one line that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class MmadBankError(Exception):
    """Base of every error that mmad-bank raises on purpose; the command line prints it as one line.

    Errors come whole from other processes, whatever arguments their constructors take.

    Example:
        >>> import pickle
        >>> print(pickle.loads(pickle.dumps(MissingExtraError("ray", "ray", "work on several processes"))))
        work on several processes needs the package 'ray': pip install 'mmad-bank[ray]'
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), self.__dict__ or None


class InputError(MmadBankError, ValueError):
    """An argument, array or file holds something else than what was asked for."""


class UnknownArgumentError(InputError, TypeError):
    """A method's constructor has no argument of a name; a TypeError too, as Python's own functions raise it."""


class NotFittedError(InputError, AttributeError):
    """Something is asked for an answer before it was fitted; an AttributeError too, as other libraries raise it."""


class MissingSplitError(InputError):
    """A data set has no samples of the split that was asked for."""


class NoneUsableError(InputError):
    """None of many samples or files can be used.

    Args:
        message: Words for what was expected; the first reason is put behind it. If empty, the first reason stands
            alone.
        left_out: Reasons why samples or files could not be used, by sample or file; at least one.

    Attributes:
        left_out: The same reasons; the command line prints a line for each.

    Example:
        >>> str(NoneUsableError("dataset: no sample can be used", {"a": "a.png: damaged", "b": "b.png: damaged"}))
        'dataset: no sample can be used; a.png: damaged'
    """

    def __init__(self, message: str, left_out: Mapping[str, str]) -> None:
        self.left_out = dict(left_out)
        super().__init__("; ".join(part for part in (message, next(iter(self.left_out.values()))) if part))


class FormatError(MmadBankError, ValueError):
    """A file (a bank, a model, a checkpoint, a manifest) is truncated, altered, foreign, or of a newer format."""


class WorkersError(MmadBankError, RuntimeError):
    """Processes that work for this one died again and again, whatever was done about it."""


class MissingExtraError(MmadBankError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'mmad-bank[{extra}]'")


def _again(kind: type[MmadBankError], arguments: tuple[Any, ...]) -> MmadBankError:
    """Return an error with its message, as it was before it was pickled."""
    return kind.__new__(kind, *arguments)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return a question about the name that is nearest to a misspelt word, for a message; empty if none is near.

    Example:
        >>> did_you_mean("patchcor", ["btf", "patchcore"]), did_you_mean("x", ["btf"])
        (" (did you mean 'patchcore'?)", '')
    """
    near = difflib.get_close_matches(word.lower(), list(names), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
