"""Arguments that are declared once: what is checked, what is kept, what is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from mmad_bank._internal.limits import Count, DeviceName, Range, Rate, SomeOf
from mmad_bank._internal.parameters import (
    accepting_former_names,
    check_parameters,
    checked,
    parameters_of,
)
from mmad_bank._internal.type_words import in_words, limits_in_words
from mmad_bank.errors import InputError

Branches = Annotated[tuple[str, ...], SomeOf(("rgb", "xyz"))]
Share = Annotated[float, Range(above=0, most=1, such_as="0.1 for 10%")]
Device = Annotated[str, DeviceName()]


@dataclass(kw_only=True)
class Base:
    """A group of arguments."""

    count: Count = 3
    """Number of things;
    counted from one."""

    undocumented: str = "x"


@accepting_former_names({"amount": "count", "colour": "color"})
@dataclass(kw_only=True)
class Derived(Base):
    """A class with an argument of its own."""

    word: str = field(default="a", kw_only=False)
    """Word."""

    name: ClassVar[str] = "not an argument"
    count: int = 5

    def __post_init__(self) -> None:
        check_parameters(self)


@pytest.mark.parametrize(
    ("value", "hint", "kept"),
    [
        (np.int32(4), Count, 4),
        (np.float32(0.5), Share, 0.5),
        (np.longdouble(0.5), Share, 0.5),
        (1, Share, 1),
        (Path("a") / "b", str, "a/b"),
        (np.str_("a"), str, "a"),
        (np.str_("auto"), Count | Literal["auto"] | None, "auto"),
        (None, Count | None, None),
        ([1, 2], tuple[Count, Count], (1, 2)),
        ([np.int64(1)], tuple[Count, ...], (1,)),
        (["xyz", "rgb"], Branches, ("xyz", "rgb")),
        (torch.device("cuda", 1), Device, "cuda:1"),
        (np.bool_(True), bool, True),
        (2**31 - 1, Count, 2**31 - 1),
    ],
)
def test_values_are_kept_as_plain_ones(value: Any, hint: Any, kept: Any) -> None:
    found = checked(value, hint, "one")
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (0, Count, "an integer from 1 to 2147483647"),
        (2**31, Count, "an integer from 1 to 2147483647"),
        (True, Count, "an integer from 1 to 2147483647"),
        (1.0, Count, "an integer from 1 to 2147483647"),
        ("4", Count, "an integer from 1 to 2147483647"),
        (torch.tensor(4), Count, "an integer from 1 to 2147483647"),
        (float("nan"), Rate, "a number above 0"),
        (float("inf"), Rate, "a number above 0"),
        (10**400, Rate, "a number above 0"),
        (Fraction(1, 2), Rate, "a number above 0"),
        (np.bool_(True), Rate, "a number above 0"),
        (0, Share, "a number above 0 and at most 1, such as 0.1 for 10%"),
        (1.01, Share, "a number above 0 and at most 1, such as 0.1 for 10%"),
        ((0.5, 1.0), tuple[Annotated[float, Range(0, below=1)], ...], "one or more numbers of at least 0 and below 1"),
        ((1,), tuple[Count, Count], "2 integers from 1 to 2147483647"),
        ((), tuple[Count, ...], "one or more integers from 1 to 2147483647"),
        ("ab", tuple[str, ...], "one or more texts"),
        (("rgb", "rgb"), Branches, "some of rgb, xyz, each once"),
        ("rgb", Branches, "some of rgb, xyz, each once"),
        ((), Branches, "some of rgb, xyz, each once"),
        ("c", Literal["a", "b"], "one of a, b"),
        (1, Literal["a", "b"], "one of a, b"),
        (b"a", str, "text"),
        ("gpu", Device, "text that names a device, such as cpu or cuda:0"),
        (1, bool, "true or false"),
        ("x", Count | Literal["auto"] | None, "an integer from 1 to 2147483647, auto or none"),
    ],
)
def test_other_values_are_refused(value: Any, hint: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(value, hint, "one")
    assert str(caught.value).startswith(f"one: expected {expected}, found ")
    assert len(str(caught.value)) < 200


def test_a_field_is_declared_where_it_stands_first() -> None:
    """A class that names it again changes its default; ``ClassVar`` is none."""
    word, count, undocumented = parameters_of(Derived, {"amount": "count", "colour": "color"})
    assert (word.name, word.default, word.documentation, word.type, word.limits) == ("word", "a", "Word.", "text", "")
    assert (count.name, count.default, count.documentation) == ("count", 5, "Number of things; counted from one.")
    assert (count.type, count.limits, count.former, count.hint) == ("integer", "at least 1", ("amount",), Count)
    assert (undocumented.documentation, undocumented.former) == ("", ())
    with pytest.raises(InputError, match=r"^count: expected an integer from 1 to"):
        Derived(count=0)
    assert Derived("b").word == "b"


def test_a_constructor_that_is_written_out_is_told_as_far_as_it_says() -> None:
    class Plain:
        def __init__(self, size: int = 3, other=None) -> None:
            self.size, self.other = size, other

    size, other = parameters_of(Plain)
    assert (size.type, size.default, size.limits, size.documentation) == ("integer", 3, "", "")
    assert (other.type, other.default) == ("text", None)


def test_former_names() -> None:
    with pytest.warns(DeprecationWarning, match="^Derived: amount is count now") as caught:
        assert Derived(amount=4).count == 4
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="Derived: amount is count now, found both"):
        Derived(amount=4, count=4)
    with pytest.raises(TypeError, match="colour: Derived has no such argument"):
        Derived(colour=4)


@pytest.mark.parametrize(
    ("hint", "words", "limits"),
    [
        (Count | None, "an integer from 1 to 2147483647 or none", "at least 1"),
        (Annotated[int, Range(-(2**63), 2**63 - 1)], f"an integer from {-(2**63)} to {2**63 - 1}", ""),
        (tuple[Annotated[int, Range(1, 9)], Annotated[int, Range(1, 9)]], "2 integers from 1 to 9", "1 to 9"),
        (Branches, "some of rgb, xyz, each once", "rgb, xyz"),
        (Share, "a number above 0 and at most 1, such as 0.1 for 10%", "above 0 and at most 1, such as 0.1 for 10%"),
        (str | None, "text or none", ""),
    ],
)
def test_types_and_limits_in_words(hint: Any, words: str, limits: str) -> None:
    assert in_words(hint) == words
    assert limits_in_words(hint) == limits
