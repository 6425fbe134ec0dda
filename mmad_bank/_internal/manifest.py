"""JSON headers and manifests of files that may be damaged or a stranger's: limits first, then every value by its kind.

Whatever is wrong becomes a :class:`FormatError` of one line that names the file and says what it is: foreign (of
another program), newer (of a later version of this one), or damaged.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from mmad_bank._internal.decoding import describe
from mmad_bank.errors import FormatError, InputError

LARGEST = 32 << 20  # bytes of JSON; a bank of a hundred thousand source files has a fifth of that


class Manifest:
    """A JSON object whose values are asked for by name and kind.

    Args:
        place: The file, and where in it; named in messages.
        content: The value that the JSON text holds.

    Raises:
        FormatError: It is no object; of the methods: there is no such value, or it is of another kind.

    Example:
        >>> Manifest("model.json", {"dim": "wide"}).integer("dim")
        Traceback (most recent call last):
        mmad_bank.errors.FormatError: model.json: altered, expected an integer for 'dim', found 'wide'
    """

    def __init__(self, place: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise FormatError(f"{place}: altered, expected a JSON object, found {shown(content)}")
        self.place = place
        self.content: dict[str, Any] = content

    def text(self, name: str) -> str:
        """Return a text."""
        return self._of_kind(name, str, "a text")

    def optional_text(self, name: str) -> str | None:
        """Return a text or None."""
        return None if self._is_null(name) else self.text(name)

    def integer(self, name: str, low: int = 0, high: int = 2**62) -> int:
        """Return an integer within limits."""
        value = self._of_kind(name, int, "an integer")
        if not low <= value <= high:
            raise self._wrong(name, f"{low} to {high}", value)
        return value

    def optional_integer(self, name: str, low: int = 0, high: int = 2**62) -> int | None:
        """Return an integer within limits, or None; also where there is none (older files)."""
        return None if self._is_null(name, missing=True) else self.integer(name, low, high)

    def number(self, name: str) -> float:
        """Return a finite number."""
        value = self._of_kind(name, (int, float), "a number")
        if abs(value) > 1e308 or not math.isfinite(value):
            raise self._wrong(name, "a finite number", value)
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """Return a finite number or None; also where there is none (older files)."""
        return None if self._is_null(name, missing=True) else self.number(name)

    def table(self, name: str) -> Manifest:
        """Return an object."""
        return Manifest(self.place, self._of_kind(name, dict, "an object"))

    def optional_table(self, name: str) -> Manifest | None:
        """Return an object or None; also where there is none (older files)."""
        return None if self._is_null(name, missing=True) else self.table(name)

    def tables(self, name: str) -> list[Manifest]:
        """Return a list of objects."""
        return [Manifest(self.place, item) for item in self._of_kind(name, list, "a list")]

    def integers(self, name: str) -> list[int]:
        """Return a list of integers of at least 0."""
        values = self._of_kind(name, list, "a list")
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**62:
                raise self._wrong(name, "integers", value)
        return values

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        return self._all_texts(name, self._of_kind(name, list, "a list"))

    def texts_by_name(self, name: str) -> dict[str, str]:
        """Return an object of texts."""
        values = self._of_kind(name, dict, "an object")
        return dict(zip(values, self._all_texts(name, list(values.values())), strict=True))

    def _all_texts(self, name: str, values: list[Any]) -> list[str]:
        for value in values:
            if not isinstance(value, str):
                raise self._wrong(name, "texts", value)
        return values

    def _is_null(self, name: str, *, missing: bool = False) -> bool:
        return self.content.get(name, None if missing else "") is None

    def _of_kind(self, name: str, kind: type | tuple[type, ...], words: str) -> Any:
        if name not in self.content:
            raise FormatError(f"{self.place}: altered, expected {words} for '{name}', found nothing")
        value = self.content[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._wrong(name, words, value)
        return value

    def _wrong(self, name: str, expected: str, value: Any) -> FormatError:
        return FormatError(f"{self.place}: altered, expected {expected} for '{name}', found {shown(value)}")


def parse_json(
    text: str | bytes, place: str, *, damaged: str = "truncated or altered, it cannot be read", largest: int = LARGEST
) -> Any:
    """Return what JSON says; NaN and infinities, nesting beyond the interpreter's stack and huge texts are damage.

    Raises:
        FormatError: It is not JSON; the message is ``place: damaged (why)``.
    """
    if len(text) > largest:
        raise FormatError(f"{place}: {damaged} (larger than {largest >> 20} MiB)")
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise FormatError(f"{place}: {damaged} (nested too deeply)") from error
    except (ValueError, MemoryError) as error:
        raise FormatError(f"{place}: {damaged} ({describe(error)})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file, as :func:`parse_json` does.

    Raises:
        InputError: The file is missing or cannot be read.
        FormatError: It is not JSON.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return parse_json(text, str(path))


def check_format(content: Any, place: str, kind: str, newest: int) -> Manifest:
    """Return a manifest of our own, once its format and version are known.

    Raises:
        FormatError: It is damaged, foreign or newer.
    """
    manifest = Manifest(place, content)
    found = manifest.content.get("format")
    if found != kind:
        raise FormatError(f"{place}: foreign, expected the format '{kind}', found {shown(found)}")
    version = manifest.integer("version", 1)
    if version > newest:
        raise FormatError(
            f"{place}: newer, format version {version}; this mmad-bank reads up to version {newest}: upgrade it"
        )
    return manifest


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, found {text[:20]}")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"expected finite numbers, found {name}")


def shown(value: Any) -> str:
    """Return words for a value of a damaged file, which may be very long or deep."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 2**64 else "a huge number"
    return text if len(text) <= 60 else f"{text[:60]}..."
