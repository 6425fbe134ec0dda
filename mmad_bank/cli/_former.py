"""Former spellings of options: they are taken and not shown, and a line of warning says how they are spelt now."""

from __future__ import annotations

from collections.abc import Sequence

from mmad_bank._internal.terminal import say

_CATEGORY = {"--category": "--categories"}
_DUMPS = {"--layout": "--axes"}

FORMER_OPTIONS: dict[str, dict[str, str]] = {
    "build": {"--size": "--bank-size", "--precision": "--bank-precision", **_DUMPS},
    "extend": {"--size": "--at-most", **_DUMPS},
    "score": {"--precision": "--bank-precision", **_DUMPS},
    "synth": {
        "--size": "--image-size", "--train": "--train-images", "--validation": "--validation-images",
        "--test": "--test-images", **_CATEGORY,
    },
    "prepare": {"--size": "--image-size", **_CATEGORY},
    "extract": _CATEGORY,
    "fit": {"--embedded": "--bundled", **_CATEGORY},
    "evaluate": _CATEGORY,
    "predict": _CATEGORY,
    "bench": {
        "--batch": "--batches", "--images": "--train-images", "--vectors": "--bank-size",
        "--precision": "--compute-dtype", "--no-memory": "--times-only", "--memory": "",
    },
    "tune": {"--precisions": "--bank-precisions", "--images": "--test-images", **_DUMPS},
}  # fmt: skip
"""Present spellings by command and former one; nothing where the option says what is done without it now."""

FORMER_PAIRS = {"predict": ("--scale",)}
"""Options that took two words, which a comma joins now, by command."""


def present_options(command: str, words: Sequence[str], *, quiet: bool = False) -> list[str]:
    """Put the present spellings of a command's options for former ones, and warn of each on standard error.

    Args:
        command: Name of the command.
        words: Words that follow the command.
        quiet: Whether to leave the warnings out.
    """
    former = FORMER_OPTIONS.get(command, {})
    warnings: dict[str, str] = {}
    end = words.index("--") if "--" in words else len(words)
    present: list[str] = []
    for word in _joined(FORMER_PAIRS.get(command, ()), words[:end], warnings):
        name, *value = word.partition("=")
        if name not in former:
            present.append(word)
        elif former[name]:
            present.append("".join((former[name], *value)))
            warnings[name] = f"{name} is {former[name]} now"
        else:
            warnings[name] = f"{name} is what {command} does without it now"
    for line in () if quiet else warnings.values():
        say(f"warning: {line}")
    return present + list(words[end:])


def _joined(names: Sequence[str], words: Sequence[str], warnings: dict[str, str]) -> list[str]:
    """Join the two numbers behind an option of ``names`` by a comma."""
    joined, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        joined.append(word)
        if word in names and len(rest) > 1 and _is_number(rest[0]) and _is_number(rest[1]):
            low, high = rest.pop(0), rest.pop(0)
            joined[-1] = f"{word}={low},{high}"
            warnings[word] = f"{word} {low} {high} is {word} {low},{high} now"
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
