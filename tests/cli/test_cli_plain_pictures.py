"""Plain pictures from the shell: a folder, a list, files and patterns to learn from and to score."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

for package in ("timm", "tifffile"):
    pytest.importorskip(package)

from data_trees import add_mvtec_ad, add_picture
from helpers import call, facts, good, refused, refused_at_last, small_settings
from PIL import Image

from mmad_bank.data.names import in_order

SMALL = (*small_settings(64, 8, 0.2), "--set", "rgb-layers=1")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "parts"
    for number, name in enumerate(("1.png", "2.jpg", "monday/1.png", "monday/am/3.bmp")):
        add_picture(folder / name, seed=number)
    return folder


@pytest.fixture(scope="module")
def model(parts: Path) -> Path:
    place = parts.parent / "model"
    result = call("fit", "patchcore", parts, "--out", place, *SMALL, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == (f"note: {parts}: in no data set's layout; takes all 4 pictures in it (layout pictures)\n")
    found = json.loads(result.stdout)["models"][0]
    assert (found["category"], found["images"], found["left_out"]) == ("parts", 4, {})
    assert not place.with_name("model.fit").exists()
    return place


def test_a_folder_is_scored_and_explained_by_paths(model: Path, tmp_path: Path) -> None:
    add_picture(tmp_path / "new" / "a" / "bad.png", seed=9, spot=True)
    add_picture(tmp_path / "new" / "fine.png", seed=10)
    scored = {one["id"]: one for one in facts("predict", model, tmp_path / "new", "--out", tmp_path / "out")["samples"]}
    assert sorted(scored) == ["a/bad.png", "fine.png"]
    assert scored["a/bad.png"]["score"] > scored["fine.png"]["score"]
    assert Path(scored["a/bad.png"]["folder"]) == tmp_path / "out" / "a" / "bad.png"
    nearest = scored["fine.png"]["explanation"]["rgb"]["nearest_normal_patches"]
    assert {one["sample"] for one in nearest} <= {"1.png", "2.jpg", "monday/1.png", "monday/am/3.bmp"}
    row, column = np.unravel_index(np.load(tmp_path / "out" / "a" / "bad.png" / "map.npy").argmax(), (48, 64))
    assert 8 <= row < 24
    assert 12 <= column < 36
    # Results that lie among the pictures are no pictures to score.
    facts("predict", model, tmp_path / "new", "--out", tmp_path / "new" / "out")
    assert len(facts("predict", model, tmp_path / "new", "--out", tmp_path / "again")["samples"]) == 2


def test_the_place_of_results_does_not_depend_on_how_many_a_folder_has(model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "fine.png"
    add_picture(picture, seed=10)
    listing, pattern = tmp_path / "list.txt", tmp_path / "n*" / "*.png"
    listing.write_text("new/fine.png\n")
    places = [(tmp_path / "new", "fine.png"), (pattern, "fine.png"), (listing, "new/fine.png")]
    for number, (place, name) in enumerate(places):
        (scored,) = facts("predict", model, place, "--out", tmp_path / f"out{number}")["samples"]
        assert (scored["id"], Path(scored["folder"])) == (name, tmp_path / f"out{number}" / name)
    (scored,) = facts("predict", model, picture, "--out", tmp_path / "alone")["samples"]
    assert Path(scored["folder"]) == tmp_path / "alone", "one file's results need no folder of their own"


def test_lists_patterns_and_files(parts: Path, tmp_path: Path) -> None:
    listing = parts / "list.txt"
    listing.write_text("# good ones\nmonday/1.png\n2.jpg\nlost.png\n")
    places: list[tuple[list[object], list[str]]] = [
        ([listing], ["monday/1.png", "2.jpg"]),
        ([parts / "**" / "*.png"], ["1.png", "monday/1.png"]),
        ([parts / "1.png", parts / "monday" / "1.png"], ["1.png", "monday/1.png"]),
        ([parts / "monday", parts / "2.jpg"], ["monday/1.png", "monday/am/3.bmp", "2.jpg"]),
    ]
    for number, (given, ids) in enumerate(places):
        place = tmp_path / f"model{number}"
        result = call("fit", "patchcore", *given, "--out", place, *SMALL, "--json")
        missing = given == [listing]
        assert result.exit_code == (3 if missing else 0), result.output
        assert json.loads((place / "model.json").read_text())["train_ids"] == ids
        assert ("left out: " in result.stderr and "lost.png: file not found" in result.stderr) == missing
        again = call("predict", place, *given, "--out", tmp_path / f"out{number}", "--json")
        scored = [one["id"] for one in json.loads(again.stdout)["samples"]]
        assert scored == (["1", "1-1"] if number == 2 else ids)  # of single files the id is their name, as ever
    listing.unlink()


def test_a_bad_picture_among_many_is_named_and_left_out(parts: Path, model: Path, tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        add_picture(tmp_path / "some" / name)
    (tmp_path / "some" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "some" / "photo.HEIC").write_bytes(b"no picture")
    result = call("fit", "patchcore", tmp_path / "some", "--out", tmp_path / "model", *SMALL)
    assert result.exit_code == 3
    assert "files of these kinds are not read: 1 .heic; convert them\n" in result.stderr
    assert result.stderr.count("left out: ") == 1
    assert "broken.png: cannot be read as" in result.stderr
    scored = call("predict", model, tmp_path / "some", "--out", tmp_path / "out", "--json")
    assert scored.exit_code == 3
    assert list(json.loads(scored.stdout)["left_out"]) == ["broken.png"]
    for name in ("1.png", "2.png"):
        (tmp_path / "some" / name).write_bytes(b"no picture")
    line = refused_at_last("fit", "patchcore", tmp_path / "some", "--out", tmp_path / "none", *SMALL)
    assert "1.png: cannot be read as" in line
    assert not (tmp_path / "none").exists()


def test_most_pictures_of_a_folder_are_damaged(parts: Path, model: Path, tmp_path: Path) -> None:
    """The one that can be read is scored, the others are named and counted; without it, nothing is left behind."""
    add_picture(tmp_path / "some" / "00.png", seed=9)
    whole = (parts / "1.png").read_bytes()
    for number in range(1, 51):
        (tmp_path / "some" / f"{number:02d}.png").write_bytes(whole[: 30 + number])
    tables = ("--csv", tmp_path / "a.csv", "--jsonl", tmp_path / "a.jsonl")
    result = call("predict", model, tmp_path / "some", "--out", tmp_path / "out", *tables)
    assert result.exit_code == 3
    assert result.stdout.splitlines()[1].startswith("  00.png    ")
    assert "  left out  50 of 51 samples, each named in a line\n" in result.stdout
    named = [line.split(":")[1] for line in result.stderr.splitlines() if line.startswith("left out: ")]
    assert named == [f" {tmp_path / 'some' / f'{number:02d}.png'}" for number in range(1, 51)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00.png"]
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    ids = [f"{number:02d}.png" for number in range(51)]
    for table in (rows, lines):
        assert [one["id"] for one in table] == ids, "a picture that nobody judged is told from one that was not there"
        assert [bool(one.get("left_out")) for one in table] == [False] + 50 * [True]
    assert {one["verdict"] + one["score"] for one in rows[1:]} == {""}
    assert rows[1]["left_out"] == lines[1]["left_out"]
    assert "01.png: cannot be read as" in rows[1]["left_out"]
    assert list(lines[1]) == ["id", "left_out"]
    fitted = call("fit", "patchcore", tmp_path / "some", "--out", tmp_path / "model", *SMALL)
    assert fitted.exit_code == 3
    assert ", 50 left out\n" in fitted.stdout
    (tmp_path / "some" / "00.png").write_bytes(whole[:30])
    again = call("predict", model, tmp_path / "some", "--out", tmp_path / "none", "--csv", tmp_path / "b.csv")
    assert (again.exit_code, again.stdout) == (2, "")
    *lines, last = again.stderr.splitlines()
    assert sum(line.startswith("left out: ") for line in lines) == 51
    assert last.startswith("error: SAMPLES: expected one of 51 at least that can be used, found none; ")
    assert "00.png: cannot be read as a picture" in last
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "b.csv").exists()


def test_results_do_not_go_among_the_inputs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        add_picture(Path("new") / f"{number}.png", seed=number)
    Path("link").symlink_to("new")
    add_picture(Path("one") / "1.png", seed=3)
    before = sorted(path for path in tmp_path.rglob("*"))
    own = "expected a folder of its own"
    for inputs, outputs, words in (
        (("new",), ("--out", "new"), f"--out: 'new' is also an input; {own}"),
        (("new",), ("--out", "link"), f"--out: 'link' is also an input; {own}"),
        (("link",), ("--out", "new/../new"), f"--out: 'new/../new' is also an input; {own}"),
        (("one",), ("--out", "one", "--overwrite"), f"--out: 'one' is also an input; {own}"),
        (("one/1.png",), ("--out", "one"), f"--out: 'one' is also an input; {own}"),
        (("one/*.png",), ("--out", "one"), f"--out: 'one' is also an input; {own}"),
        (("new/*.png",), ("--out", "new"), f"--out: 'new' is also an input; {own}"),
        (("new", "one"), ("--out", "one"), f"--out: 'one' is also an input; {own}"),
        (("new",), ("--out", model), f"--out: {str(model)!r} is also an input; {own}"),
        (("new",), ("--out", "out", "--maps", "new"), f"--maps: 'new' is also an input; {own}"),
        (("new",), ("--out", "out", "--maps", "new/maps"), f"--maps: 'new/maps' lies in the input 'new'; {own}"),
    ):
        assert refused_at_last("predict", model, *inputs, *outputs) == f"error: {words}\n"
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert len(facts("predict", model, "new/0.png", "new/1.png", "--out", "new")["samples"]) == 2, "a folder each"


ODD = (
    "esc\x1b[2Jape.png",
    "two\nlines.png",
    "verdicts\x0b  0 bad.png",
    "rtl\u202egnp.png",
    'quo"te, comma.png',
    "c1\x9b1m.png",
)


def test_names_that_steer_a_terminal_are_shown_escaped(model: Path, tmp_path: Path) -> None:
    """Lists and lines on standard error have them escaped; files of results as they are."""
    for number, name in enumerate(ODD):
        add_picture(tmp_path / "new" / name, seed=number)
    bad = "bad\x1b]0;title\x07\n  1.png"
    (tmp_path / "new" / bad).write_text("no picture")
    tables = ("--csv", tmp_path / "a.csv", "--jsonl", tmp_path / "a.jsonl")
    result = call("predict", model, tmp_path / "new", "--out", tmp_path / "out", *tables)
    assert result.exit_code == 3
    shown = [line.split("  ")[1] for line in result.stdout.splitlines()[1:]]
    expected = sorted(ODD, key=lambda name: in_order(name))
    escapes = {"\x1b": r"\x1b", "\n": r"\n", "\x0b": r"\x0b", "\u202e": r"\u202e", "\x9b": r"\x9b"}
    assert [name.strip() for name in shown[: len(ODD)]] == [
        "".join(escapes.get(letter, letter) for letter in name).split("  ")[0] for name in expected
    ]
    assert all(letter.isprintable() or letter == "\n" for letter in result.stdout + result.stderr)
    assert r"left out: " in result.stderr
    assert r"bad\x1b]0;title\x07\n  1.png: cannot be read" in result.stderr
    alone = refused_at_last("predict", model, tmp_path / "new" / bad, "--out", tmp_path / "none")
    assert r"bad\x1b]0;title\x07\n  1.png: cannot be read" in alone
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [*expected, bad]
    assert [json.loads(line)["id"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [*expected, bad]
    scores = facts("monitor", tmp_path / "a.csv", "--normal", tmp_path / "a.csv")
    assert scores["images"] == len(ODD)


def test_links_in_a_circle_are_bad_input(
    parts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an input, in a list, in a folder and as an output: a line each, and before the work."""
    monkeypatch.chdir(tmp_path)
    for suffix in ("", ".png", ".txt", ".npy"):
        Path(f"loop{suffix}").symlink_to(f"again{suffix}")
        Path(f"again{suffix}").symlink_to(f"loop{suffix}")
    Path("nothing").symlink_to("lost")
    np.save("f.npy", np.random.default_rng(0).random((4, 12, 6)))
    for command, start in (
        (("predict", model, "loop", "--out", "o"), "loop: file not found"),
        (("predict", model, "loop.png", "--out", "o"), "loop.png: file not found"),
        (("predict", model, "loop.txt", "--out", "o"), "loop.txt: expected a picture, a folder, a list"),
        (("predict", "loop", parts / "1.png", "--out", "o"), "loop: expected a folder with model.json"),
        (("fit", "patchcore", "loop", "--out", "o"), "loop: expected a folder with a data set, found nothing"),
        (("fit", "patchcore", "loop.txt", "--out", "o"), "loop.txt: expected a folder with a data set, found nothing"),
        (("evaluate", model, "loop"), "loop: expected a folder with a data set, found nothing"),
        (("score", "loop", "f.npy"), "loop: cannot be read"),
        (("build", "loop.npy", "--out", "o"), "loop.npy: no such file or folder"),
        (("build", "f.npy", "--out", "loop"), "--out: expected a file, found 'loop', a link that leads nowhere"),
        (("predict", model, parts / "1.png", "--out", "loop"), "--out: expected a folder, found 'loop', a link that"),
        (("predict", model, parts / "1.png", "--out", "nothing"), "--out: expected a folder, found 'nothing', a link"),
        (("predict", model, parts / "1.png", "--out", "o", "--csv", "loop"), "--csv: expected a file, found 'loop', a"),
    ):
        assert refused(*command).startswith(f"error: {start}"), command
    line = refused_at_last("fit", "patchcore", parts, "--out", "loop", *SMALL)
    assert line == "error: --out: expected a folder, found 'loop', a link that leads nowhere\n"
    assert not Path("loop.fit").exists()
    Path("list.txt").write_text(f"{parts / '1.png'}\nloop.png\n")
    result = call("predict", model, "list.txt", "--out", "o")
    assert (result.exit_code, result.stderr.count("left out: loop.png: file not found")) == (3, 1)
    Path("later").symlink_to("bank")
    good("build", "f.npy", "--out", "later")
    assert Path("bank").is_file(), "a link to a file that is yet to be made is followed"


def test_a_fit_goes_on_unless_a_picture_has_changed(parts: Path, tmp_path: Path) -> None:
    command = ("fit", "patchcore", parts, "--out", tmp_path / "model", "--workdir", tmp_path / "work", *SMALL)
    assert facts(*command)["models"][0]["seconds"] > 0
    assert facts(*command)["models"][0]["seconds"] == 0
    assert "exists; name another" in refused_at_last(*command, "--seed", 1)
    add_picture(parts / "1.png", seed=0)
    assert "exists; name another" in refused_at_last(*command)


def test_folders_in_doubt_and_evaluation_say_what_they_miss(model: Path, parts: Path, tmp_path: Path) -> None:
    for name in ("good/0.png", "scratch/0.png"):
        add_picture(tmp_path / "parts" / name)
    line = refused("fit", "patchcore", tmp_path / "parts", "--out", tmp_path / "model", *SMALL)
    assert "expected a data set in a known layout, or normal pictures alone, found good/ beside scratch/;" in line
    taken = facts("fit", "patchcore", tmp_path / "parts", "--layout", "pictures", "--out", tmp_path / "model", *SMALL)
    assert taken["models"][0]["images"] == 2
    line = refused("evaluate", model, parts)
    assert f"{parts}: expected good and defective samples that are known as such, CATEGORY/test/" in line
    assert "expected a data set, found plain pictures" in refused("prepare", parts, "--out", tmp_path / "prepared")
    line = refused("fit", "cfm", parts, "--bundled", "--out", tmp_path / "cfm")
    assert f"{parts}: expected pictures and point clouds for cfm, found pictures alone; patchcore takes these" in line


def test_models_of_data_sets_score_plain_pictures_and_the_reverse(model: Path, parts: Path, tmp_path: Path) -> None:
    add_mvtec_ad(tmp_path / "data" / "bottle")
    add_mvtec_ad(tmp_path / "data" / "tile")
    assert facts("evaluate", model, tmp_path / "data", "--categories", "tile")["left_out"] == {}
    assert len(facts("predict", model, tmp_path / "data", "--out", tmp_path / "all")["samples"]) == 8
    facts("fit", "patchcore", tmp_path / "data", "--out", tmp_path / "models", *SMALL)
    line = refused_at_last("predict", tmp_path / "models", parts, "--out", tmp_path / "out")
    assert "--categories: expected the category that the files are of, found none" in line
    chosen = ("predict", tmp_path / "models", parts, "--categories", "tile", "--out", tmp_path / "out")
    assert len(facts(*chosen)["samples"]) == 4


def test_a_region_of_interest_is_kept_and_applied(parts: Path, tmp_path: Path) -> None:
    roi = tmp_path / "roi.json"
    roi.write_text("[[40, 0], [63, 0], [63, 47], [40, 47]]")
    command = ("fit", "patchcore", parts, "--roi", roi, "--out", tmp_path / "model", *SMALL)
    assert facts(*command)["models"][0]["left_out"] == {}
    add_picture(tmp_path / "bad.png", seed=9, spot=True)
    facts("predict", tmp_path / "model", tmp_path / "bad.png", "--out", tmp_path / "out")
    found = np.load(tmp_path / "out" / "map.npy")
    assert found.shape == (48, 64)
    assert np.isfinite(found).all()
    assert not found[:, :40].any()
    assert found[:, 40:].min() > 0
    assert facts("info", tmp_path / "model")["roi"] == "a polygon of 4 corners"
    # Another region is another job.
    roi.write_text("[[0, 0], [20, 0], [20, 47]]")
    assert "exists; name another" in refused_at_last(*command)
    roi.write_text("[]")
    line = refused("fit", "patchcore", parts, "--roi", roi, "--out", tmp_path / "other", *SMALL)
    assert "roi.json: expected corners of a polygon [[x, y], [x, y], [x, y], ...], in pixels, found something" in line
    roi.write_text("[[100, 0], [120, 0], [120, 47]]")
    line = refused_at_last("fit", "patchcore", parts, "--roi", roi, "--out", tmp_path / "other", *SMALL)
    assert "1.png: region of interest: no pixel of a picture of 64×48 lies inside" in line
    line = refused("fit", "cfm", parts, "--bundled", "--roi", roi, "--out", tmp_path / "other")
    assert "roi: expected none for cfm, which scores whole pictures" in line


def test_extract_and_info_of_plain_pictures(parts: Path, tmp_path: Path) -> None:
    command = ("extract", parts, "--rgb", "efficientnet_lite0", "--rgb-weights", "random", "--xyz", "none",
               "--image-size", 64, "--grid", 4, "--split", "train", "--out", tmp_path / "out")  # fmt: skip
    assert facts(*command)["ids"] == ["1.png", "2.jpg", "monday/1.png", "monday/am/3.bmp"]
    found = facts("info", parts)
    assert (found["layout"], found["modalities"], found["categories"]) == (
        "pictures",
        ["rgb"],
        {"parts": {"pictures": 4}},
    )
    assert "4 pictures, of which nothing is known" in call("info", parts).stdout


def test_pictures_that_are_tiffs_are_no_pairs(model: Path, tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / name)
    scored = facts("predict", model, tmp_path / "a.tif", tmp_path / "b.tif", "--out", tmp_path / "out")["samples"]
    assert [one["id"] for one in scored] == ["a", "b"]
