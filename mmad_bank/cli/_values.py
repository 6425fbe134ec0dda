"""Values of options: how they are read and checked, the same in every command."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mmad_bank._internal.machine import cores
from mmad_bank._internal.shares import number_of
from mmad_bank.errors import InputError

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_list(text: str, name: str, what: str = "names") -> list[str]:
    """Read words joined by commas; blanks about them and a comma at the end do not count.

    Raises:
        InputError: There is none.

    Example:
        >>> parse_list("bagel, cookie,", "--categories")
        ['bagel', 'cookie']
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise InputError(f"{name}: expected {what} joined by commas, found {text!r}")
    return words


def parse_categories(text: str | None) -> list[str] | None:
    """Read ``--categories``; None where it is not given.

    Raises:
        InputError: It is given and holds no name.
    """
    return None if text is None else parse_list(text, "--categories")


def parse_paths(paths: Sequence[Path], name: str) -> list[Path]:
    """Read paths joined by commas, given once or repeatedly; a path that is there is one, whatever is in its name.

    Raises:
        InputError: A word holds no path.
    """
    found: list[Path] = []
    for path in paths:
        found += [path] if path.exists() else map(Path, parse_list(str(path), name, "paths"))
    return found


def check_once(paths: Sequence[Path], name: str) -> None:
    """Refuse a file or folder that is given twice, under whatever names, or that lies in a folder that is given too.

    What is in it would count double.

    Raises:
        InputError: There is one; ``name`` is the argument's.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        real = Path(os.path.realpath(path))
        if real in seen:
            found = f"{path} twice" if str(path) == str(seen[real]) else f"{seen[real]} as {path} again"
            raise InputError(f"{name}: expected each file once, found {found}")
        seen[real] = path
    for real, path in seen.items():
        folder = next((seen[above] for above in real.parents if above in seen), None)
        if folder is not None:
            raise InputError(f"{name}: expected each file once, found {path} beside {folder}, in which it lies")


def parse_numbers(text: str, name: str, example: str) -> list[int]:
    """Read numbers above 0 that are joined by commas, in ascending order.

    Raises:
        InputError: There is something else; ``example`` shows what was expected.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise InputError(f"{name}: expected numbers above 0 such as {example}, found {text!r}")
    return sorted(set(map(int, words)))


def parse_scale(text: str) -> tuple[float, float]:
    """Read LOW,HIGH."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"--scale: expected two numbers joined by a comma, the lower first, found {text!r}")
    return low, high


def check_positive(name: str, value: int | None) -> None:
    """Refuse a number below 1; None passes.

    Raises:
        InputError: ``name`` is the option's.
    """
    if value is not None and value < 1:
        raise InputError(f"{name}: expected at least 1, found {value}")


def check_plot(path: Path) -> None:
    """Refuse a picture that cannot be drawn, by its suffix.

    Raises:
        InputError: The suffix is another.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot: expected a .png, .svg or .pdf file, found {path.suffix!r}")


def parse_share(text: str, name: str) -> float:
    """Read a share of something, as a number or in percent.

    Raises:
        InputError: It is neither, or not above 0 and up to 1.

    Example:
        >>> parse_share("10%", "--ratio"), parse_share("0.1", "--ratio")
        (0.1, 0.1)
    """
    word = text.strip()
    try:
        share = number_of(word)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InputError(f"{name}: expected a share above 0 and up to 1, such as 0.1 or 10%, found {text!r}")
    return share


def check_device(name: str) -> Any:
    """Read a device's name and make sure that it is there."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:  # which lists all names that PyTorch knows, most of no machine here
        raise InputError(f"--device: expected cpu, cuda or cuda:N, found {name!r}") from error
    try:
        torch.zeros(1, device=device).item()  # devices without data, as "meta", fail here
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise InputError(f"--device: {name!r} cannot be used ({reason})") from error
    return device


def count_workers(wanted: int | None) -> int:
    """Return the number of processes: by default one for every core that this process may use."""
    if wanted is not None:
        return wanted
    return cores()


def parse_size(text: str, name: str = "--memory") -> int:
    """Read a number of bytes with its unit: kB, MB, GB are powers of 1000; KiB, MiB, GiB of 1024.

    Raises:
        InputError: No positive number, or an unknown unit; ``name`` is the option's.

    Example:
        >>> parse_size("200MB"), parse_size("1.5 GiB")
        (200000000, 1610612736)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*", text)
    factor = _UNITS.get(found[2].lower()) if found else None
    if found is None or factor is None or not 1 <= float(found[1]) * factor < 2**63:
        raise InputError(f"{name}: expected a size such as 200MB or 1.5GiB, found {text!r}")
    return int(float(found[1]) * factor)


def parse_count(text: str, name: str) -> int:
    """Read a whole number, also as 1e9 or 1_000_000.

    Raises:
        InputError: No whole number above 0; ``name`` is the option's.

    Example:
        >>> parse_count("1e9", "--rows"), parse_count("765184", "--rows")
        (1000000000, 765184)
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (1 <= value < 2**53 and value == int(value)):
        raise InputError(f"{name}: expected a whole number above 0 such as 1000000 or 1e9, found {text!r}")
    return int(value)


def parse_duration(text: str, name: str) -> float | None:
    """Read a time with its unit, ms, s, m or h, in seconds; None for "none".

    Raises:
        InputError: No number, or an unknown unit; ``name`` is the option's.

    Example:
        >>> parse_duration("90s", "--budget"), parse_duration("1.5h", "--budget"), parse_duration("none", "--budget")
        (90.0, 5400.0, None)
    """
    if text.strip().lower() == "none":
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h)\s*", text.lower())
    if found is None:
        raise InputError(f"{name}: expected a time such as 90s, 10m or 2h, or none, found {text!r}")
    return float(found[1]) * {"ms": 1e-3, "s": 1, "m": 60, "h": 3600}[found[2]]


def parse_projection(text: str | None) -> int | Literal["auto"] | None:
    """Read D|auto."""
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--projection-dim: expected a number of dimensions or 'auto', found {text!r}") from None
