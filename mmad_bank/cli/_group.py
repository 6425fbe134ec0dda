"""One way out for every error: a line on standard error and an exit code, never a traceback.

With ``--json`` the same stands on standard output as an object, ``{"error": {"kind", "message", "exit_code"}}``,
and ``"left_out"`` where of many samples none could be used.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperGroup

from mmad_bank._internal.progress import doing, talk
from mmad_bank._internal.terminal import say
from mmad_bank.cli import _signals
from mmad_bank.cli._former import present_options
from mmad_bank.cli._output import say_left_out
from mmad_bank.cli._usage import check_filled, word_usage
from mmad_bank.errors import FormatError, InputError, MissingExtraError, MmadBankError

BAD_INPUT = 2
UNEXPECTED = 1
DEBUG_VARIABLE = "MMAD_BANK_DEBUG"

PYTHON_NAMES = {
    "n": ("few_shot",), "category": ("categories",), "n_train": ("train_images",), "n_test": ("test_images",),
    "n_validation": ("validation_images",), "layout": ("axes",), "size": ("bank_size", "at_most", "image_size"),
    "precision": ("bank_precision", "bank_precisions"), "bank_precision": ("bank_precisions",),
    "vectors": ("bank_size",), "images": ("train_images", "test_images"), "batch": ("batches",),
}  # fmt: skip
"""Parameters of functions whose options have another name: the parameters that commands have for them."""

_NAMES = re.compile(r"[a-z_]+(?:(?:, | and )[a-z_]+)*(?=: )")
_BOTH_WAYS = re.compile(r"[a-z_]+=(?:True)? \((--[a-z-]+)\)")
_KINDS = {FormatError: "format", MissingExtraError: "missing package", InputError: "input", MmadBankError: "input"}


class _Stop(Exception):
    """A command's end by an error.

    Args:
        message: The line to print.
        code: The exit code.
        kind: Kind of error, for programs: usage, input, format, missing package, file, memory, interrupted or
            unexpected.
        left_out: Reasons why none could be used, by sample.
    """

    def __init__(self, message: str, code: int, kind: str, left_out: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.kind, self.left_out = code, kind, left_out or {}


def _one_line(error: BaseException) -> str:
    """Put an error's text on one line."""
    return " ".join(str(error).split())


def _describe_os_error(error: OSError) -> str:
    """Say which file and what happened, as the operating system words it."""
    if error.strerror is None:
        return _one_line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{_place(error)}the disk is full: {error.strerror}"
    return f"{_place(error)}{error.strerror}"


def _place(error: OSError) -> str:
    name = error.filename
    return f"{os.fsdecode(name)}: " if isinstance(name, (str, bytes, os.PathLike)) else ""


def _translate(error: BaseException, options: Mapping[str, str]) -> _Stop:
    """Turn what a command with some options raised into a line and an exit code."""
    # A signal that came within a library may leave it as any error.
    if isinstance(error, KeyboardInterrupt) or _signals.received():
        return _interrupted(error)
    for class_, kind in _KINDS.items():
        if isinstance(error, class_):
            # Names in it are escaped where it is printed: a line break in one is part of it.
            return _Stop(in_shell(str(error).strip(), options), BAD_INPUT, kind, getattr(error, "left_out", None))
    if isinstance(error, OSError):
        return _Stop(_describe_os_error(error), BAD_INPUT, "file")
    if isinstance(error, MemoryError):
        return _Stop(f"out of memory {_one_line(error)}".strip(), BAD_INPUT, "memory")
    name = type(error).__name__
    line = f"unexpected {name}: {_one_line(error)} (set {DEBUG_VARIABLE}=1 for the traceback)"
    return _Stop(line, UNEXPECTED, "unexpected")


def in_shell(message: str, options: Mapping[str, str]) -> str:
    """Put options in an error's line for the names that they have in Python.

    Args:
        message: Message of an error, with names of parameters in front (``n: expected ...``) and hints in both ways
            (``overwrite=True (--overwrite)``).
        options: The command's options by its parameters.

    Example:
        >>> in_shell("n: expected at most 4, found 9", {"few_shot": "--few-shot"})
        '--few-shot: expected at most 4, found 9'
        >>> in_shell("x: exists; replace it with overwrite=True (--overwrite)", {})
        'x: exists; replace it with --overwrite'
    """

    def spell(found: re.Match[str]) -> str:
        names = (found[0], *PYTHON_NAMES.get(found[0], ()))
        return next((options[name] for name in names if name in options), found[0])

    message = _BOTH_WAYS.sub(r"\1", message)
    names = _NAMES.match(message)
    return message if names is None else re.sub(r"(?!and\b)\b[a-z_]+", spell, names[0]) + message[names.end() :]


@contextmanager
def spelling(names: Mapping[str, str]) -> Iterator[None]:
    """Put what the user has typed in errors and warnings about parameters of a call.

    Args:
        names: Words that the user has typed, by the parameters.
    """
    try:
        with _warnings_spelled(names):
            yield
    except InputError as error:
        worded = as_typed(str(error), names)
        if type(error) is not InputError or worded == str(error):
            raise
        raise InputError(worded) from error


def as_typed(message: str, names: Mapping[str, str]) -> str:
    """Put what the user has typed in a message: the option where it begins with the parameter, else its name alone.

    Args:
        message: Message about parameters of a call.
        names: Words that the user has typed, by the parameters.

    Example:
        >>> as_typed("uff_weights: expected a file (uff_weights.pth)", {"uff_weights": "--set uff-weights"})
        '--set uff-weights: expected a file (uff_weights.pth)'
        >>> as_typed("grid: expected none with rgb_grid", {"rgb_grid": "--set rgb-grid"})
        'grid: expected none with rgb-grid'
    """
    message = in_shell(message, names)
    for name, typed in names.items():
        if "_" in name:  # a word of prose would be another thing
            message = re.sub(rf"(?<![\w./-]){name}(?![\w/-]|\.\w)", typed.rpartition(" ")[2], message)
    return message


@contextmanager
def _warnings_spelled(names: Mapping[str, str]) -> Iterator[None]:
    """Put what the user has typed in the package's warnings, and say each once, of however many splits it is true."""
    show = warnings.showwarning
    said = set()

    def show_spelled(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category is UserWarning:
            message = UserWarning(as_typed(str(message), names))
            if str(message) in said:
                return
            said.add(str(message))
        show(message, category, *place, **more)

    warnings.showwarning = show_spelled
    try:
        yield
    finally:
        warnings.showwarning = show


def _options_of(command: Any) -> dict[str, str]:
    """Return a command's options by its parameters; arguments have no other name in the shell."""
    return {one.name: one.opts[0] for one in command.params if one.param_type_name == "option"}


def _paths_of(command: Any) -> set[str]:
    """Return a command's options that are paths. Versions of typer tell a parameter's type in different ways."""
    types = get_type_hints(command.callback)
    paths = {name for name, found in types.items() if Path in (found, *get_args(found))}
    return {option for one in command.params if one.name in paths for option in one.opts}


def _valued(command: Any) -> set[str]:
    """Return a command's options that take a value."""
    taking = [one for one in command.params if one.param_type_name == "option" and not one.is_flag]
    return {option for one in taking for option in one.opts}


def _interrupted(error: BaseException | None = None) -> _Stop:
    line = _signals.word() if error is None else _signals.line(error)
    return _Stop(line, _signals.code(), "interrupted")


class Group(TyperGroup):
    """A command group whose commands may raise: usage errors and bad input end in ``error: ...`` and exit code 2."""

    _options: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed
    """Options of the command that runs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command; put options' present names for former ones."""
        name, command, rest = super().resolve_command(ctx, args)
        self._options = {} if command is None else _options_of(command)
        words = present_options(name or "", rest, quiet=ctx.resilient_parsing)
        if not ctx.resilient_parsing and command is not None:
            check_filled(words, _paths_of(command), _valued(command))
        return name, command, words

    def invoke(self, ctx: Any) -> Any:
        """Run the command; translate what it raises."""
        try:
            with doing("loading the libraries", until_other=True):
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, _Stop):
            raise
        except BrokenPipeError:
            # Whoever read standard output has closed it (`mmad-bank info BANK | head`): nothing left to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(UNEXPECTED) from None
        except (Exception, KeyboardInterrupt) as error:
            if hasattr(error, "format_message") or os.environ.get(DEBUG_VARIABLE):
                raise
            raise _translate(error, self._options) from error

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program and leave with its exit code."""
        standalone = extra.get("standalone_mode", True)
        extra["standalone_mode"] = False
        if not standalone:
            return super().main(*args, **extra)
        words = list(args[0] if args and args[0] is not None else extra.get("args") or sys.argv[1:])
        as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
        talk(sys.stderr.isatty() and not as_json)
        try:
            code = super().main(*args, **extra)
        except _Stop as stop:
            self._leave(stop, as_json)
        except typer.Abort:
            self._leave(_interrupted(), as_json)
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            self._leave(_Stop(word_usage(error), BAD_INPUT, "usage"), as_json)
        if _signals.received():  # between commands typer itself makes an exit code of an interrupt
            self._leave(_interrupted(), as_json)
        sys.exit(code if isinstance(code, int) else 0)

    @staticmethod
    def _leave(stop: _Stop, as_json: bool) -> None:
        if as_json:
            facts = {"kind": stop.kind, "message": str(stop), "exit_code": stop.code}
            facts |= {"left_out": dict(stop.left_out)} if stop.left_out else {}
            print(json.dumps({"error": facts}, indent=2))
        sys.stdout.flush()
        if len(set(stop.left_out.values())) > 1:  # of one, the error says it
            say_left_out(stop.left_out)
        say(f"error: {stop}")
        sys.exit(stop.code)
