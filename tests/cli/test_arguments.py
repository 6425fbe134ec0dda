"""Words to typed arguments."""

from __future__ import annotations

from typing import Any, Literal, Optional

import pytest

from mmad_bank.cli._arguments import argument_types, describe, parse, parse_settings
from mmad_bank.embedded import embedded_arguments
from mmad_bank.errors import InputError
from mmad_bank.methods import method_class, names


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("1e-3", float, 1e-3),
        ("word", str, "word"),
        ("none", int | None, None),
        ("7", Optional[int], 7),  # noqa: UP045
        ("auto", int | Literal["auto"] | None, "auto"),
        ("12", int | Literal["auto"] | None, 12),
        ("none", str | None, None),
        ("7", str | int, 7),
        ("NO", bool, False),
        ("2, 3", tuple[int, ...], (2, 3)),
        ("28,28", tuple[int, int], (28, 28)),
        ("rgb,xyz", tuple[str, ...], ("rgb", "xyz")),
        ("", tuple[int, ...], ()),
    ],
)
def test_parse(text: str, hint: Any, value: Any) -> None:
    found = parse(text, hint)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("x", int), ("1.5", int), ("maybe", bool), ("28", tuple[int, int]), ("1,x", tuple[int, ...]),
        ("half", Literal["auto", "paper"]), ("x", int | None), ("", float),
    ],
)  # fmt: skip
def test_values_of_another_type(text: str, hint: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse(text, hint)
    assert describe(hint)


@pytest.mark.parametrize("name", names())
def test_every_method_can_be_set(name: str) -> None:
    """All arguments have types that can be described, and embedded defaults that are arguments."""
    method = method_class(name)
    types = argument_types(method)
    assert all(describe(hint) for hint in types.values())
    assert set(embedded_arguments(method)) <= set(types)
    method(**embedded_arguments(method))


def test_errors_name_the_argument() -> None:
    method = method_class("m3dm")
    assert parse_settings(method, ["ratio=0.05", "banks=rgb,xyz"]) == {"ratio": 0.05, "banks": ("rgb", "xyz")}
    for setting, message in (
        ("ratio", "expected NAME=VALUE, found 'ratio'"),
        ("rato=1", r"has no argument 'rato' \(did you mean 'ratio'\?\); it has rgb, "),
        ("ratio=big", "--set ratio: expected a number, found 'big'"),
        ("projection_dim=x", "expected an integer or auto or none, found 'x'"),
        ("seed=1", "no argument 'seed'"),
    ):
        with pytest.raises(InputError, match=message):
            parse_settings(method, [setting])
