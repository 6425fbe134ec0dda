"""The words of the command line: one name, one meaning; sentences in the help; former spellings."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from helpers import call, good, refused

from mmad_bank import methods
from mmad_bank.cli import app
from mmad_bank.cli._former import FORMER_OPTIONS, FORMER_PAIRS, present_options
from mmad_bank.cli._values import parse_list, parse_numbers, parse_paths
from mmad_bank.cli._words import WORDS, option
from mmad_bank.errors import InputError

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FUNCTIONS: dict[str, Callable[..., None]] = {
    command.callback.__name__.replace("_", "-"): command.callback
    for command in app.registered_commands
    if command.callback
}
NAMES_OF_PYTHON = {"--json": "as_json", "--set": "settings"}
"""Options whose parameters have another name, as theirs is taken."""


def options_of(command: str) -> dict[str, tuple[str, Any, Any]]:
    """Return a command's options: the parameter, its type, and what typer knows of it."""
    hints = typing.get_type_hints(FUNCTIONS[command], include_extras=True)
    found = {}
    for name, hint in hints.items():
        for fact in getattr(hint, "__metadata__", ()):
            if isinstance(fact, typer.models.OptionInfo):
                declared = str(fact.default)  # typer takes the first word in an annotation for the name later on
                found[declared] = name, typing.get_args(hint)[0], fact
    return found


def without_none(kind: Any) -> Any:
    """Return a type without its None, and of a list the type of what is in it."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = [one for one in typing.get_args(kind) if one is not types.NoneType]
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind


ALL = [(command, name) for command in FUNCTIONS for name in options_of(command)]


def test_every_command_is_looked_at() -> None:
    assert set(FUNCTIONS) == set(COMMANDS)
    assert {name for _, name in ALL} == set(WORDS), "words that no command takes are none"
    for name, command in COMMANDS.items():
        shown = {one.opts[0] for one in command.params if one.param_type_name == "option"}
        assert shown == set(options_of(name)), name


@pytest.mark.parametrize(("command", "name"), ALL)
def test_a_name_has_one_meaning_and_one_type(command: str, name: str) -> None:
    parameter, kind, info = options_of(command)[name]
    word = WORDS[name]
    assert without_none(kind) == word.kind
    assert word.several or "list" not in str(kind)
    pattern = ".*".join(re.escape(text.format()) for text in word.help.split("{}"))
    assert re.fullmatch(pattern, info.help), "the command fills in the word's sentence, and says nothing else"
    assert info.metavar == word.metavar
    assert "[" not in info.help, "the help takes it for markup and leaves it out"
    assert parameter == NAMES_OF_PYTHON.get(name, name.removeprefix("--").replace("-", "_"))


def test_singular_and_plural() -> None:
    """A list that commas join has a plural's name where there is a word for one of it, and says so in its help."""
    for name, word in WORDS.items():
        if name.endswith("s") and name[:-1] in WORDS:
            assert word.several, name
            assert not WORDS[name[:-1]].several, name
        if word.several:
            assert "joined by" in word.help or name in ("--index", "--set"), name


FRAGMENT = r"(Of|In|For|Whose|With|By|To|From|At|On|As|Likewise|Which|That|Without)\b"


def is_sentence(text: str) -> bool:
    """Whether a text begins with a capital, its subject first, and ends with a full stop, no space doubled.

    Braces are left from a place that nobody has filled in, but for those of a pattern's fields.
    """
    text = re.sub(r"\{(part|view)\}", r"\1", text)
    return bool(re.fullmatch(rf"(?!{FRAGMENT})[A-Z][^{{}}]*[^.\s]\.", text)) and "  " not in text


def test_is_sentence_knows_fragments() -> None:
    assert is_sentence("Seed of the random projection.")
    for text in ("Of the projection.", "seed of it.", "Seed of it", "Device: cpu, ...", "Seed  of it.", "Folder {}."):
        assert not is_sentence(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_made_of_sentences(command: str) -> None:
    for paragraph in COMMANDS[command].help.split("\n\n"):
        assert is_sentence(paragraph), paragraph
        assert not re.search(rf"\. {FRAGMENT}", paragraph), paragraph
    for parameter in COMMANDS[command].params:
        assert is_sentence(parameter.help), (parameter.name, parameter.help)


@pytest.mark.parametrize("command", COMMANDS)
def test_usage_line_names_arguments_as_the_help_does(command: str) -> None:
    lines = good(command, "--help").splitlines()
    usage = next(line.strip() for line in lines if "Usage:" in line)
    arguments = [one for one in COMMANDS[command].params if one.param_type_name == "argument"]
    assert "{" not in usage
    assert "......" not in usage
    assert usage.startswith("Usage: ")
    expected = [one.metavar if one.required else f"[{one.metavar}]" for one in arguments]
    assert usage.endswith(" ".join([command, "[OPTIONS]", *expected]))


def test_a_word_is_filled_in_completely() -> None:
    with pytest.raises(IndexError):
        option("--seed")
    with pytest.raises(KeyError):
        option("--sed")


# Former spellings.


@pytest.mark.parametrize(("command", "former"), [(c, o) for c, table in FORMER_OPTIONS.items() for o in table])
def test_former_spellings_are_taken_and_not_shown(
    command: str, former: str, capsys: pytest.CaptureFixture[str]
) -> None:
    present = FORMER_OPTIONS[command][former]
    options = {name for parameter in COMMANDS[command].params for name in parameter.opts}
    assert former not in options
    assert present in options or not present
    found = present_options(command, ["x", former, "y", f"{former}=z", "--", former])
    kept = ["x", present, "y", f"{present}=z", "--", former] if present else ["x", "y", "--", former]
    assert found == kept
    now = f"is {present} now" if present else f"is what {command} does without it now"
    assert capsys.readouterr().err == f"warning: {former} {now}\n"
    assert present_options(command, [former], quiet=True) == [present][: bool(present)]
    assert capsys.readouterr().err == ""


def test_present_spellings_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for command, names in FORMER_OPTIONS.items():
        words = ["x", "", *filter(None, names.values()), "--", *names]
        assert present_options(command, words) == words
    assert present_options("info", ["--size=3", "--precision"]) == ["--size=3", "--precision"]
    assert capsys.readouterr().err == ""


def test_two_numbers_behind_an_option_are_joined(capsys: pytest.CaptureFixture[str]) -> None:
    assert FORMER_PAIRS == {"predict": ("--scale",)}
    assert present_options("predict", ["m", "--scale", "-1", "2.5", "--scale", "3"]) == [
        "m", "--scale=-1,2.5", "--scale", "3"
    ]  # fmt: skip
    assert capsys.readouterr().err == "warning: --scale -1 2.5 is --scale -1,2.5 now\n"
    for words in (["--scale", "1,2", "3"], ["--scale", "1", "x"], ["--scale=1,2", "3", "4"], ["--scale"]):
        assert present_options("predict", words) == words
    assert present_options("score", ["--scale", "1", "2"]) == ["--scale", "1", "2"]
    assert capsys.readouterr().err == ""


def test_a_former_spelling_does_what_the_present_one_does(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(4, 8, 4)).astype(np.float32))
    words = ("build", tmp_path / "a.npy", "--size", "5", "--precision=half", "--out", tmp_path / "b")
    built = call(*words, "--json")
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["vectors"] == 5
    assert built.stderr == "warning: --size is --bank-size now\nwarning: --precision is --bank-precision now\n"
    refusal = call("fit", "patchcore", tmp_path / "no", "--embedded", "--out", tmp_path / "m")
    assert refusal.exit_code == 2
    first, second = refusal.stderr.splitlines()
    assert first == "warning: --embedded is --bundled now"
    assert second.startswith("error: ")
    assert "no such option" not in second


# Lists.


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_lists_of_nothing_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--key: expected names joined by commas, found '"):
        parse_list(text, "--key")
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 4), np.float32))
    dump, out = tmp_path / "a.npy", ("--out", tmp_path / "out")
    for command, name in (
        (("synth", tmp_path / "new"), "--categories"), (("build", dump, *out), "--key"),
        (("tune", dump, "--test", dump), "--ratios"), (("tune", dump, "--test", dump), "--bank-precisions"),
        (("bench",), "--methods"), (("bench",), "--batches"),
    ):  # fmt: skip
        assert refused(*command, name, text).startswith(f"error: {name}: expected "), name
    assert sorted(tmp_path.iterdir()) == [dump]


def test_lists_of_numbers() -> None:
    assert parse_numbers("8, 1,8,", "--batches", "1,8") == [1, 8]
    for text in ("", "0", "1;2", "-1", "1.5", "one", "1,²"):
        with pytest.raises(InputError, match=r"^--batches: expected numbers above 0 such as 1,8, found '"):
            parse_numbers(text, "--batches", "1,8")


def test_lists_of_paths(tmp_path: Path) -> None:
    """Commas join paths, and may be in the name of one that is there."""
    (tmp_path / "a,b.npy").touch()
    a, c = tmp_path / "a.npy", tmp_path / "c.npy"
    assert parse_paths([Path(f"{a},{c}")], "--test") == [a, c]
    assert parse_paths([tmp_path / "a,b.npy", c], "--test") == [tmp_path / "a,b.npy", c]
    with pytest.raises(InputError, match=r"^--test: expected paths joined by commas, found ','"):
        parse_paths([Path(",")], "--test")


def test_tune_takes_lists_of_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shift in (("a", 0), ("b", 0), ("c", 0), ("d", 3)):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(3, 8, 4)).astype(np.float32) + shift)
    few = ("--ratios", "100%", "--bank-precisions", "float32", "--index", "exact", "--timing", "0s", "--json")
    paths = {name: tmp_path / f"{name}.npy" for name in "abcd"}
    joined = ("--test", f"{paths['b']},{paths['c']}", "--anomalous", paths["d"])
    apart = ("--test", paths["b"], "--test", paths["c"], "--anomalous", paths["d"])
    reports = [
        json.loads(good("tune", paths["a"], *words, *few, "--workdir", tmp_path / "w")) for words in (joined, apart)
    ]
    assert [one["labels"] for one in reports] == [{"from": "--anomalous", "good": 6, "defective": 3}] * 2
    assert reports[0]["settings"] == reports[1]["settings"], "the same images: nothing was measured again"


# Words of single options.


def help_of(command: str, name: str) -> str:
    """Return the help of an argument or option, by its parameter."""
    return next(one.help for one in COMMANDS[command].params if one.name == name)


def test_units_default_to_what_the_command_has() -> None:
    for command in ("prepare", "extract", "fit"):
        assert "(default: m; a cloud that spans more than 10 is refused then)" in help_of(command, "units")
    for command in ("evaluate", "predict"):
        assert "(default: the model's)" in help_of(command, "units")


def test_prepare_takes_raw_data_only() -> None:
    assert help_of("prepare", "dataset") == "Folder of the raw categories."
    for command in ("extract", "fit", "evaluate"):
        assert "raw or prepared" in help_of(command, "dataset")


def test_methods_are_listed_in_one_order() -> None:
    listed = ", ".join(methods.names())
    assert help_of("fit", "method") == f"Method: {listed}."
    assert f"expected one of {listed}, found" in refused("fit", "nothing", "data", "--out", "x")


def test_default_weights_of_extract_are_named() -> None:
    default = next(one.default for one in COMMANDS["extract"].params if one.name == "xyz_weights")
    assert f"{default} says where that file is" in help_of("extract", "xyz_weights")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_american(command: str) -> None:
    texts = [COMMANDS[command].help, *(one.help for one in COMMANDS[command].params)]
    assert not re.findall(r"\w*(?:colour|centre|neighbour|ynthesis[ei]|alise|storages)\w*", " ".join(texts))
