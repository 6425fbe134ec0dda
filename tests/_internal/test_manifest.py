"""JSON of strangers: every value by its kind, and one line for whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmad_bank._internal import manifest
from mmad_bank._internal.manifest import Manifest, check_format, parse_json, read_json
from mmad_bank._internal.resume import Stages, fingerprint_of, remove_stages
from mmad_bank.errors import FormatError, InputError

KINDS: dict[str, Callable[[Manifest], Any]] = {
    "text": lambda m: m.text("x"), "integer": lambda m: m.integer("x"), "number": lambda m: m.number("x"),
    "table": lambda m: m.table("x").content, "tables": lambda m: [one.content for one in m.tables("x")],
    "texts": lambda m: m.texts("x"), "integers": lambda m: m.integers("x"),
    "texts by name": lambda m: m.texts_by_name("x"),
}  # fmt: skip
VALUES: list[tuple[Any, set[str]]] = [
    ("a", {"text"}), ("", {"text"}), (0, {"integer", "number"}), (-1, {"number"}), (1.5, {"number"}),
    (2**62, {"integer", "number"}), (2**63, {"number"}), (10**400, set()), (True, set()), (None, set()),
    ([], {"tables", "texts", "integers"}), ([{}], {"tables"}), (["a"], {"texts"}), ([1], {"integers"}),
    ([True], set()), ([-1], set()), ([None], set()), ({}, {"table", "texts by name"}), ({"a": 1}, {"table"}),
    ({"a": "b"}, {"table", "texts by name"}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "right"), VALUES, ids=[str(value)[:20] for value, _ in VALUES])
def test_values_are_taken_as_their_kind_alone(value: Any, right: set[str]) -> None:
    for name, get in KINDS.items():
        manifest = Manifest("a.json", {"x": value})
        if name in right:
            assert get(manifest) == value
        else:
            with pytest.raises(FormatError, match=r"^a\.json: altered, expected .*, found [^\n]*$") as caught:
                get(manifest)
            assert len(str(caught.value)) < 200


def test_optional_values() -> None:
    manifest = Manifest("a.json", {"nothing": None, "text": "a", "number": 2})
    assert manifest.optional_text("nothing") is manifest.optional_number("nothing") is None
    assert manifest.optional_integer("missing") is manifest.optional_table("missing") is None
    assert (manifest.optional_text("text"), manifest.optional_number("number")) == ("a", 2.0)
    for get in (manifest.optional_text, manifest.text, manifest.integer):
        with pytest.raises(FormatError, match=r"expected .* for 'missing', found nothing"):
            get("missing")
    with pytest.raises(FormatError, match="expected 1 to 5 for 'number', found 9"):
        Manifest("a.json", {"number": 9}).integer("number", 1, 5)


@pytest.mark.parametrize(
    ("text", "why"),
    [("[" * 10**6, "nested too deeply"), ("NaN", "found NaN"), ("[-Infinity]", "found -Infinity"),
     ("1e999", "found 1e999"),
     ("9" * 10_000, "digits"), ("", "Expecting value"), ('{"a"', "delimiter"), (b"\xff\xff\xff", "codec")],
    ids=["nested", "nan", "infinite", "overflow", "digits", "empty", "cut", "bytes"],
)  # fmt: skip
def test_texts_that_are_no_json(text: str | bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=rf"^a\.json: truncated or altered, it cannot be read \([^\n]*{why}"):
        parse_json(text, "a.json")
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match=why):
        read_json(tmp_path / "a.json")


def test_huge_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LARGEST", 1000)
    (tmp_path / "a.json").write_text(" " * 2000 + "{}")
    with pytest.raises(FormatError, match="larger than"):
        parse_json(" " * 2000 + "{}", "a.json", largest=1000)
    with pytest.raises(FormatError):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b\.json: cannot be read \(No such file"):
        read_json(tmp_path / "b.json")


def test_own_formats_foreign_and_newer_ones() -> None:
    assert check_format({"format": "f", "version": 2, "a": 1}, "a.json", "f", 2).integer("a") == 1
    for content, message in (
        ({"format": "g", "version": 1}, "foreign, expected the format 'f', found 'g'"),
        ({"version": 1}, "foreign, expected the format 'f', found None"),
        ({"format": "f", "version": 3}, "newer, format version 3; this mmad-bank reads up to version 2: upgrade it"),
        ({"format": "f", "version": 10**30}, "altered, expected 1 to"),
        ({"format": "f"}, "altered, expected an integer for 'version', found nothing"),
        ([], "altered, expected a JSON object, found a list of 0"),
    ):
        with pytest.raises(FormatError, match=message):
            check_format(content, "a.json", "f", 2)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, "[]", "", '{"fingerprint": 3, "files": []}', '{"fingerprint": {"seed": 0}, "files": [3]}', "\x00",
     '{"fingerprint": {"seed": 0}, "files": {"a": "b"}}', '{"fingerprint": {"seed": 0}, "files": ["../notes.txt"]}'],
    ids=lambda text: repr(text[:40]),
)  # fmt: skip
def test_a_damaged_list_of_stages_starts_the_training_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "stages.json").write_text(text)
    assert fingerprint_of(folder) in ({}, {"seed": 0})
    stages = Stages(folder, {"seed": 1})
    stages.run("a.txt", lambda path: path.write_text("1"))
    assert json.loads((folder / "stages.json").read_text()) == {"fingerprint": {"seed": 1}, "files": ["a.txt"]}
    (folder / "stages.json").write_text(text)
    remove_stages(folder)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_a_killed_process_has_emptied_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    for others in (False, True):
        folder.mkdir()
        if others:
            (folder / "notes.txt").write_text("mine")
        remove_stages(folder)
        assert folder.exists() == others
    remove_stages(tmp_path / "none")
