"""Which part a picture shows, and from which view, by its name."""

from __future__ import annotations

import unicodedata

import pytest

from mmad_bank.data import PartView, ViewPattern
from mmad_bank.data.views import group_views, names_below
from mmad_bank.errors import InputError


@pytest.mark.parametrize(
    ("pattern", "name", "part", "view"),
    [
        ("{part}_{view}", "p1_top.png", "p1", "top"),
        ("{part}_{view}", "p1_top", "p1", "top"),
        ("{part}_{view}", "plate_12_left.JPG", "plate_12", "left"),
        ("{part}_{view}", "v1.2_top", "v1.2", "top"),  # a dot that begins no suffix of a picture
        ("{part}_{view}", "monday/p1_top.png", "monday/p1", "top"),
        ("{part}_{view}", "plate/test/good/p1_top", "plate/test/good/p1", "top"),
        ("*/{part}_{view}", "plate/test/scratch/p1_top", "plate/test/p1", "top"),
        ("{view}_{part}", "left_plate_12.png", "plate_12", "left"),
        ("{part}/{view}", "p1/left.png", "p1", "left"),
        ("{part}/{view}", "line/p1/left.png", "line/p1", "left"),
        ("{part}/*/{view}", "p1/rgb/left.png", "p1", "left"),
        ("{view}/{part}", "camera 1/0007.png", "0007", "camera 1"),
        ("{part}/*_C{view}_*", "OK/S0001/jack_0001_OK_C1_20230925.jpg", "OK/S0001", "1"),
        ("{part}_C{view}_*", "jack_0001_NG_C3_20230925.jpg", "jack_0001_NG", "3"),
        ("{part}.{view}", "a+b.c(1).png", "a+b", "c(1)"),  # nothing but the fields and stars has a meaning
        ("{part}_{view}", "Stück_№1_oben.png", "Stück_№1", "oben"),
        ("{part}_{view}", "teil\n1_a.png", "teil\n1", "a"),
    ],
)
def test_a_name_tells_part_and_view(pattern: str, name: str, part: str, view: str) -> None:
    assert ViewPattern(pattern).split(name) == PartView(part, view)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("{part}_{view}", "p1.png"), ("{part}_{view}", "_top.png"), ("{part}_{view}", "p1_.png"),
     ("{part}/{view}", "left.png"), ("{part}_C{view}_*", "p1_3_x.png"), ("{part}_{view}", "p_1/top.png"),
     ("{part}-{view}", "")],
)  # fmt: skip
def test_other_names_tell_nothing(pattern: str, name: str) -> None:
    assert ViewPattern(pattern).split(name) is None


def test_a_short_name_is_looked_up_in_the_path_of_its_file() -> None:
    pattern = ViewPattern("{part}/{view}")
    assert pattern.split("left", "/data/p1/left.png") == ("p1", "left")
    assert pattern.split("p2/left.png", "/data/p1/left.png") == ("p2", "left")
    assert ViewPattern("{part}_{view}").split("left.png", "/data/p_1/left.png") is None


def test_letters_that_can_be_written_in_two_ways_are_the_same() -> None:
    names = [unicodedata.normalize(form, "Stück_ä.png") for form in ("NFC", "NFD")]
    assert names[0] != names[1]
    assert ViewPattern("{part}_{view}").split(names[0]) == ViewPattern("{part}_{view}").split(names[1])
    decomposed = ViewPattern(unicodedata.normalize("NFD", "{part}ä{view}"))
    assert decomposed.split("1ä2") == ("1", "2")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "with {part} once"), ("{view}", "with {part} once"), ("{part}", "with {view} once"),
        ("{part}_{part}_{view}", "with {part} once"), ("{part}_{view}_{view}", "with {view} once"),
        ("{part}{view}", "with something between"), ("{part}*{view}", "with something between"),
        ("{view}**{part}", "with something between"), ("{part}_{view}_{time}", "with no other braces"),
        ("{part}_{view}}", "with no other braces"), ("/{part}/{view}", "joined by slashes"),
        ("{part}//{view}", "joined by slashes"), ("../{part}_{view}", "joined by slashes"),
        ("*a*b*{part}_{view}", "with at most 2 stars"), ("{part}_{view}.png", "without the pictures' suffix"),
    ],
)  # fmt: skip
def test_patterns_that_are_none_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(InputError) as found:
        ViewPattern(pattern)
    line = str(found.value)
    assert line.startswith("views: expected a pattern")
    assert words in line
    assert line.endswith(f"such as '{{part}}_{{view}}', found {pattern!r}")


def test_pictures_are_sorted_part_after_part() -> None:
    found = group_views(ViewPattern("{view}/{part}"), ["a/1.png", "a/2.png", "b/2.png", "b/1.png", "b/3.png"])
    assert found.parts == {"1": {"a": 0, "b": 3}, "2": {"a": 1, "b": 2}, "3": {"b": 4}}
    assert found.order == [0, 3, 1, 2, 4]
    assert found.views == [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b"), ("3", "b")]
    assert found.left_out == {}


def test_a_part_with_two_pictures_of_a_view_is_left_out_as_a_whole() -> None:
    names = ["1_a.png", "2_a.png", "2_b.png", "1_b.png", "2_a.jpg", "2_a.bmp"]
    found = group_views(ViewPattern("{part}_{view}"), names)
    assert found.order == [0, 3]
    line = "part 2: expected one picture of view a, found 2_a.png and 2_a.jpg"
    assert found.left_out == dict.fromkeys((1, 2, 4, 5), line)


def test_other_pictures_are_named_in_one_line() -> None:
    names = ["x.png", "1_a.png", *(f"{n}.png" for n in range(5))]
    found = group_views(ViewPattern("{part}_{view}"), names)
    line = "expected names of the form {part}_{view}, found x.png, 0.png, 1.png and 3 more"
    assert found.left_out == dict.fromkeys((0, 2, 3, 4, 5, 6), line)
    assert group_views(ViewPattern("{part}_{view}"), []).order == []


def test_files_are_named_below_the_folder_that_they_share() -> None:
    assert names_below(["/a/b/1.png", "/a/c/1.png"]) == ["b/1.png", "c/1.png"]
    assert names_below(["/a/b/1.png"]) == ["1.png"]
    assert names_below([]) == []
