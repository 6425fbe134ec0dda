"""Words to typed arguments."""

from __future__ import annotations

from typing import Any, Literal, Optional

import pytest
from helpers import refused

from mmad_bank.cli._arguments import argument_types, describe, parse, parse_settings
from mmad_bank.cli._group import spelling
from mmad_bank.errors import InputError, NoneUsableError
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
        ("none", Literal["own", "none"] | None, "none"),
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


def test_a_choice_that_is_called_none_is_told_once() -> None:
    assert describe(Literal["own", "none"] | None) == "own or none"
    assert parse_settings(method_class("m3dm"), ["standardization=none"]).arguments == {"standardization": "none"}


@pytest.mark.parametrize("name", names())
def test_every_method_can_be_set(name: str) -> None:
    """All arguments have types that can be described, and bundled defaults that are arguments."""
    method = method_class(name)
    types = argument_types(method)
    assert all(describe(hint) for hint in types.values())
    assert set(method.bundled_arguments()) <= set(types)
    method(**method.bundled_arguments())


def test_errors_name_the_argument() -> None:
    method = method_class("m3dm")
    found = parse_settings(method, ["ratio=0.05", "banks=rgb,xyz"])
    assert found.arguments == {"ratio": 0.05, "banks": ("rgb", "xyz")}
    for setting, message in (
        ("ratio", "expected NAME=VALUE, found 'ratio'"),
        ("rato=1", r"has no argument 'rato' \(did you mean 'ratio'\?\); it has rgb, "),
        ("ratio=big", "--set ratio: expected a number above 0 and at most 1, such as 0.1 for 10%, found 'big'"),
        ("projection_dim=x", "expected an integer from 1 to 2147483647, auto or none, found 'x'"),
        ("grid=28", "--set grid: expected 2 integers from 1 to 16384 or none, joined by commas, found '28'"),
        ("seed=1", "no argument 'seed'; expected the option --seed of fit"),
        ("few-shot=1", "no argument 'few-shot'; expected the option --few-shot of fit"),
        ("few_shot=1", "no argument 'few_shot'; expected the option --few-shot of fit"),
        ("image-size=big", "--set image-size: expected an integer from 1 to 16384, found 'big'"),
        ("image_size=big", "--set image_size: expected an integer from 1 to 16384, found 'big'"),
        ("imgae-size=3", r"no argument 'imgae-size' \(did you mean 'image-size'\?\); it has rgb, rgb-weights, "),
        ("imgae_size=3", r"no argument 'imgae_size' \(did you mean 'image_size'\?\); it has rgb, rgb_weights, "),
    ):
        with pytest.raises(InputError, match=message):
            parse_settings(method, [setting])


@pytest.mark.parametrize("name", names())
def test_names_may_be_spelt_as_options(name: str) -> None:
    """Every argument by its name in Python and with dashes; what the user has typed is kept for messages."""
    method = method_class(name)
    text = {int: "3", float: "3", bool: "yes"}
    for argument, hint in argument_types(method).items():
        for word in (argument, argument.replace("_", "-")):
            try:
                found = parse_settings(method, [f"{word}={text.get(hint, 'none')}"])
            except InputError as error:
                assert str(error).startswith(f"--set {word}: expected")  # noqa: PT017
            else:
                assert list(found.arguments) == [argument]
                assert found.spelled == {argument: f"--set {word}"}


def test_names_that_options_have() -> None:
    assert parse_settings(method_class("m3dm"), ["neighbors=5"]).arguments == {"n_neighbors": 5}
    assert parse_settings(method_class("patchcore"), ["n-neighbors=5"]).arguments == {"n_neighbors": 5}
    cfm = method_class("cfm")
    assert parse_settings(cfm, ["normalize-for=p_auroc"]).arguments == {"normalize_for": "p_auroc"}


def test_former_names_are_taken_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    found = parse_settings(method_class("m3dm"), ["storage=half", "precision=bfloat16"])
    assert found.arguments == {"bank_precision": "half", "compute_dtype": "bfloat16"}
    assert found.spelled["bank_precision"] == "--set storage"
    assert capsys.readouterr().err.splitlines() == [
        "warning: --set storage is --set bank_precision now", "warning: --set precision is --set compute_dtype now",
    ]  # fmt: skip
    assert parse_settings(method_class("cfm"), ["normalise-for=p_auroc"]).arguments == {"normalize_for": "p_auroc"}
    with pytest.raises(InputError, match="cfm has no argument 'storage'"):
        parse_settings(method_class("cfm"), ["storage=half"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("ratio=2",), "--set ratio: expected a number above 0 and at most 1, such as 0.1 for 10%, found 2"),
        (("neighbors=0",), "--set neighbors: expected an integer from 1 to"),
        (("n_neighbors=0",), "--set n_neighbors: expected an integer from 1 to"),
        (("projection-dim=-1",), "--set projection-dim: expected an integer from 1 to"),
        (("projection_dim=-1",), "--set projection_dim: expected an integer from 1 to"),
        (("reweight=max", "sigma=-1"), "--set sigma: expected"),
    ],
)
def test_errors_of_the_constructor_show_what_was_typed(settings: tuple[str, ...], message: str) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    assert refused("fit", "patchcore", "nowhere", "--out", "model", *words).startswith(f"error: {message}")


def test_later_errors_show_what_was_typed() -> None:
    """Only the arguments that were set: others are not the user's words."""
    spelled = {"num_groups": "--set num-groups"}
    with pytest.raises(InputError, match=r"^--set num-groups and group_size: expected 3"), spelling(spelled):
        raise InputError("num_groups and group_size: expected 3")
    with pytest.raises(NoneUsableError, match=r"^rgb: none"), spelling({"rgb": "--set rgb"}):
        raise NoneUsableError("rgb: none", {"a": "b"})


def test_others_words_for_an_argument_lead_to_it() -> None:
    for word in ("learning-rate", "learning_rate"):
        with pytest.raises(InputError, match=rf"cfm has no argument '{word}' \(did you mean 'lr'\?\)"):
            parse_settings(method_class("cfm"), [f"{word}=0.1"])
