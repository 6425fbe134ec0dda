"""What the command line's libraries complain of, in the words of every other error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers import call, refused

from mmad_bank.cli._usage import word_usage, word_validation

COMMANDS = (
    "build", "extend", "score", "follow", "calibrate", "monitor", "info", "synth", "prepare", "extract", "fit",
    "train-uff", "train-adaptors", "train-sdf", "evaluate", "predict", "export", "serve", "bench", "tune", "plan",
    "demo",
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build x --out y --seed abc", "--seed: expected an integer, found 'abc'"),
        ("score a b --neighbors 1.5", "--neighbors: expected an integer, found '1.5'"),
        ("fit patchcore x --out y --few-shot 1e3", "--few-shot: expected an integer, found '1e3'"),
        ("synth x --train-images a,b", "--train-images: expected an integer, found 'a,b'"),
        ("tune x --test y --fps fast", "--fps: expected a number, found 'fast'"),
        ("predict m a b --out o --explain x", "--explain: expected an integer, found 'x'"),
        ("score a b --bank-precision int5",
         "--bank-precision: expected one of auto, float32, half, int8, found 'int5' (did you mean 'int8'?)"),
        ("build x --out", "--out: expected a value, found none"),
        ("build x", "--out: expected a value, found none"),
        ("build", "FEATURES...: expected a value, found none"),
        ("build x --out y --standardize=1", "--standardize: expected no value, found one"),
        ("build x --out y --sed 3", "--sed: no such option (did you mean '--seed'?)"),
        ("build x --out y --foo", "--foo: no such option; mmad-bank build --help lists them"),
        ("build x --out y -q", "-q: no such option; mmad-bank build --help lists them"),
        ("--foo", "--foo: no such option; mmad-bank --help lists them"),
        ("info a b c", "arguments: expected BANK|MODEL|DATASET alone, found 'b c' as well"),
        ("evaluate a b c", "arguments: expected MODEL DATASET alone, found 'c' as well"),
        ("demo a", "arguments: expected none, found 'a'"),
        ("tuen", f"command: expected one of {', '.join(COMMANDS)}, found 'tuen' (did you mean 'tune'?)"),
    ],
)  # fmt: skip
def test_usage_errors_are_worded_as_all_others(line: str, message: str) -> None:
    assert refused(*line.split()) == f"error: {message}\n"
    first, *others = line.split()
    result = call(first, "--json", *others)
    assert json.loads(result.stdout)["error"] == {"kind": "usage", "message": message, "exit_code": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "", "--out", "b"], "arguments: expected no empty word, found one in place 1"),
        (["build", "x", "--out", ""], "--out: expected a path, found an empty word"),
        (["build", "x", "--scratch=", "--out", "b"], "--scratch: expected a path, found an empty word"),
        (["score", "bank", ""], "arguments: expected no empty word, found one in place 2"),
        (["build", "x", "--out", "b", "--seed", ""], "--seed: expected an integer, found ''"),
        (["build", "--standardize", "", "--out", "b"], "arguments: expected no empty word, found one in place 2"),
        (["plan", "--spill", ""], "arguments: expected no empty word, found one in place 2"),
        (["build", "--out=b", ""], "arguments: expected no empty word, found one in place 2"),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set_is_no_current_folder(words: list[str], message: str) -> None:
    assert refused(*words) == f"error: {message}\n"


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, "abc", "expected an integer, found 'abc'"),
        (int, 1.5, "expected an integer, found 1.5"),
        (int, "9" * 5000, f"expected an integer, found '{'9' * 5000}'"),
        (float, "", "expected a number, found ''"),
        (bool, "maybe", "expected true or false, found 'maybe'"),
        (tuple[int, float], (1, "\x1b"), r"expected a number, found '\x1b'"),
    ],
)
def test_pydantic(kind: Any, value: Any, words: str) -> None:
    pydantic = pytest.importorskip("pydantic")
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(kind).validate_python(value)
    assert word_validation(caught.value) == words


def test_pydantic_limits() -> None:
    pydantic = pytest.importorskip("pydantic")
    for limits, value, words in (
        ({"ge": 2}, 1, "expected at least 2, found 1"), ({"gt": 2}, 2, "expected more than 2, found 2"),
        ({"le": 2}, 3, "expected at most 2, found 3"), ({"lt": 2}, 2, "expected less than 2, found 2"),
    ):  # fmt: skip
        model = pydantic.create_model("Model", n=(int, pydantic.Field(**limits)))
        with pytest.raises(pydantic.ValidationError) as caught:
            model(n=value)
        assert word_validation(caught.value) == words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x --n abc", "--n: expected an integer, found 'abc'"),
        ("x --share abc", "--share: expected a number, found 'abc'"),
        ("x --on abc", "--on: expected true or false, found 'abc'"),
        ("x --kind b", "--kind: expected one of auto, best, found 'b'"),
        ("x --kind bost", "--kind: expected one of auto, best, found 'bost' (did you mean 'best'?)"),
        ("x --pair 1", "--pair: expected 2 values, found fewer"),
        ("x --n", "--n: expected a value, found none"),
        ("", "FILE: expected a value, found none"),
        ("x --kin b", "--kin: no such option (did you mean '--kind'?)"),
        ("x y z", "arguments: expected FILE alone, found 'y z' as well"),
    ],
)
def test_plain_click(line: str, message: str) -> None:
    """Before typer carried a copy, its errors were click's own."""
    click = pytest.importorskip("click")

    @click.command("name")
    @click.argument("file")
    @click.option("--n", type=int)
    @click.option("--share", type=float)
    @click.option("--on", type=bool)
    @click.option("--kind", type=click.Choice(["auto", "best"]))
    @click.option("--pair", type=int, nargs=2)
    def command(**_: object) -> None:
        raise AssertionError

    with pytest.raises(click.UsageError) as caught:
        command.main(line.split(), standalone_mode=False)
    assert word_usage(caught.value) == message
