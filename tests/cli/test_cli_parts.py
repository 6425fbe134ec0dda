"""Parts that several pictures show, from the shell: fit, predict and evaluate with ``--views``."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("scipy", "timm", "PIL"):
    pytest.importorskip(package)

from helpers import call, facts, refused, small_settings
from PIL import Image

SMALL = (*small_settings(64, 8, 0.5, "auto"), "--set", "calibration-folds=4")
N_TRAIN, VIEWS = 9, ("left", "oben_ä", "right")


def picture(seed: int, scratched: bool = False) -> Image.Image:
    values = np.random.default_rng(seed).integers(110, 140, (64, 64, 3), dtype=np.uint8)
    if scratched:
        values[20:30, 10:50] = (255, 0, 0)
    return Image.fromarray(values)


def add_part(folder: Path, part: int, views: tuple[str, ...] = VIEWS, scratched: str = "", sep: str = "#") -> None:
    for number, view in enumerate(views):
        path = folder / f"{part:03d}{sep}{view}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(10 * part + number, view == scratched).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category in MVTec AD's layout; of part 21 one view only is in the folder of defects."""
    folder = tmp_path_factory.mktemp("data")
    for part in range(N_TRAIN):
        add_part(folder / "plate" / "train" / "good", part)
    for part in range(20, 24):
        add_part(folder / "plate" / "test" / "good", part)
    scratch = folder / "plate" / "test" / "scratch"
    scratch.mkdir()
    (folder / "plate" / "test" / "good" / "021#left.png").unlink()
    picture(900, scratched=True).save(scratch / "021#left.png")
    return folder


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    out = data.parent / "plate.model"
    shown = call("fit", "patchcore", data, "--out", out, *SMALL, "--views", "*/{part}#{view}")
    assert shown.exit_code == 0, shown.output
    said = f"{N_TRAIN} training parts, scored in folds (3 views each: left, oben_ä, right); smallest"
    assert said in shown.stdout
    return out


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """New parts in folders of days: 31 is bad, 32 lacks a view, 33 has one twice, and one picture shows no part."""
    folder = tmp_path_factory.mktemp("new")
    add_part(folder / "monday", 30)
    add_part(folder / "monday", 31, scratched="oben_ä")
    add_part(folder / "monday", 32, ("left", "right"))
    add_part(folder / "monday", 33)
    picture(5).save(folder / "monday" / "033#left.bmp")
    picture(6).save(folder / "monday" / "overview.png")
    return folder


def test_predict_judges_parts(model: Path, new: Path, tmp_path: Path) -> None:
    out, table, lines = tmp_path / "out", tmp_path / "parts.csv", tmp_path / "parts.jsonl"
    command = ("predict", model, new, "--out", out, "--csv", table, "--jsonl", lines, "--views", "{part}#{view}")
    shown = call(*command, "--fail-on-bad")
    assert shown.exit_code == 4, shown.output
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert [(row[0], row[1]) for row in rows[1:4]] == [
        ("monday/030", "good"), ("monday/031", "bad"), ("monday/032", "good"),
    ]  # fmt: skip
    assert shown.stdout.splitlines()[2].endswith("monday/031#oben_ä.png  (view oben_ä of 3)")
    assert "3, shown by 8 pictures" in shown.stdout
    assert "1 bad, 2 good, at a false-alarm rate of 10 %" in shown.stdout
    assert "note: part monday/032: judged by 2 of 3 views, without oben_ä\n" in shown.stderr
    found = "found monday/033#left.bmp and monday/033#left.png\n"
    assert f"left out: part monday/033: expected one picture of view left, {found}" in shown.stderr
    assert "left out: expected names of the form {part}#{view}, found monday/overview.png\n" in shown.stderr
    with table.open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    views = ("left.bmp", "left.png", "oben_ä.png", "right.png")
    out_of_it = [*(f"monday/033#{view}" for view in views), "monday/overview.png"]
    assert sorted(one["id"] for one in cells if one["left_out"]) == out_of_it
    cells = [one for one in cells if not one["left_out"]]
    assert list(cells[0])[:4] == ["part", "view", "views", "id"]
    assert [(one["part"], one["views"], one["verdict"]) for one in cells] == [
        ("monday/030", "3", "good"), ("monday/031", "3", "bad"), ("monday/032", "2", "good"),
    ]  # fmt: skip
    assert (cells[1]["view"], cells[1]["id"]) == ("oben_ä", "monday/031#oben_ä.png")
    assert int(cells[1]["regions"]) >= 1
    read = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sorted(one["id"] for one in read if "left_out" in one) == out_of_it
    read = [one for one in read if "left_out" not in one]
    assert [one["part"] for one in read] == [one["part"] for one in cells]
    assert [(one["view"], one["verdict"]) for one in read[1]["views"]] == [
        ("left", "good"), ("oben_ä", "bad"), ("right", "good"),
    ]  # fmt: skip
    assert (read[2]["missing_views"], read[2]["promised"]) == (["oben_ä"], True)
    assert max(one["score"] for one in read[0]["views"]) == read[0]["score"]
    own = json.loads((out / "monday" / "031#left.png" / "score.json").read_text())
    assert (own["part"], own["view"], own["verdict"]) == ("monday/031", "left", "good")
    assert not (out / "monday" / "overview.png").exists()


def test_a_part_is_judged_by_its_files_in_any_order(model: Path, new: Path, tmp_path: Path) -> None:
    given = [new / "monday" / f"031#{view}.png" for view in ("right", "left", "oben_ä")]
    done = facts("predict", model, *given, "--out", tmp_path / "out", "--views", "{part}#{view}")
    (part,) = done["parts"]
    assert (part["part"], part["view"], part["verdict"]) == ("031", "oben_ä", "bad")
    assert [one["view"] for one in done["samples"]] == ["right", "left", "oben_ä"]
    # The model's own pattern has a folder before the name: it is looked up in the files' paths.
    again = facts("predict", model, *given, "--out", tmp_path / "again")
    assert [one["part"] for one in again["parts"]] == ["031"]
    one = facts("predict", model, given[1], "--out", tmp_path / "one")
    assert (one["parts"][0]["verdict"], one["parts"][0]["missing_views"]) == ("good", ["oben_ä", "right"])


def test_pictures_that_a_list_names_are_sorted_by_part(model: Path, new: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    names = ("031#right", "030#right", "031#left", "030#left")
    listing.write_text("".join(f"{new / 'monday' / name}.png\n" for name in names), encoding="utf-8")
    done = facts("predict", model, listing, "--out", tmp_path / "out")
    assert [(one["part"], len(one["views"])) for one in done["parts"]] == [("031", 2), ("030", 2)]


def test_a_picture_that_cannot_be_read_leaves_its_part_to_the_others(model: Path, new: Path, tmp_path: Path) -> None:
    for view in VIEWS:
        (tmp_path / f"030#{view}.png").write_bytes((new / "monday" / f"030#{view}.png").read_bytes())
    (tmp_path / "030#left.png").write_bytes(b"no picture")
    shown = call("predict", model, tmp_path, "--out", tmp_path / "out", "--views", "{part}#{view}")
    assert shown.exit_code == 3
    assert "note: part 030: judged by 2 of 3 views, without left\n" in shown.stderr
    assert "left out: " in shown.stderr


def test_a_folder_for_each_part(new: Path, tmp_path: Path) -> None:
    for part in range(6):
        add_part(tmp_path / "good", part, ("a", "b"), sep="/")
    model = tmp_path / "model"
    facts("fit", "patchcore", tmp_path / "good", "--out", model, *SMALL, "--views", "{part}/{view}")
    kept = json.loads((model / "model.json").read_text())["calibration"]["views"]
    assert kept == {"pattern": "{part}/{view}", "usual": 2, "names": ["a", "b"], "incomplete": 0}
    add_part(tmp_path / "new", 40, ("a", "b"), sep="/")
    done = facts("predict", model, tmp_path / "new" / "040", "--out", tmp_path / "out")  # the folder of one part
    assert [(one["part"], len(one["views"])) for one in done["parts"]] == [("040", 2)]
    assert "calibrated on  6 training parts, scored in folds (2 views each: a, b)" in call("info", model).stdout


def test_evaluate_counts_images_and_parts(model: Path, data: Path, tmp_path: Path) -> None:
    done = facts("evaluate", model, data, "--report", tmp_path / "report")["categories"][0]
    assert done["images"] == {"good": 11, "anomalous": 1, "failed": 0}
    assert (done["parts"]["good"], done["parts"]["anomalous"], done["parts"]["auroc"]) == (3, 1, 1.0)
    by_name = {one["part"]: one for one in done["parts"]["scores"]}
    assert (by_name["plate/test/021"]["view"], by_name["plate/test/021"]["views"]) == ("left", 3)
    confusion = done["decisions"]["confusion"]
    assert (sum(confusion.values()), confusion["found"], done["decisions"]["unit"]) == (4, 1, "parts")
    assert done["decisions"]["held_out_images"] == N_TRAIN
    shown = call("evaluate", model, data, "--views", "{part}#{view}")
    assert "parts, each by the highest score of its images" in shown.stdout
    assert "verdicts on parts at the promised false-alarm rate" in shown.stdout
    assert f"verdicts are calibrated on {N_TRAIN} training parts, scored in folds" in shown.stdout
    # Without the star the views of part 21 lie in two folders, and so are of two parts.
    said = "2 of 5 parts have fewer than 3 views; */{part}#{view} joins those in folders of several kinds"
    assert said in shown.stdout


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("fit", ("--views", "{part}"), "--views: expected a pattern with {view} once"),
        ("fit", ("--views", "{part}-{view}"), "expected names of the form {part}-{view}, found plate/train/good/000#"),
        ("fit", ("--views", "*/{part}#{view}", "--few-shot", "3"), "--few-shot: expected none with --views"),
        ("predict", ("--views", "{view}"), "--views: expected a pattern with {part} once"),
        ("evaluate", ("--views", "{view}{part}"), "--views: expected a pattern with something between"),
    ],
)
def test_what_is_none_is_refused_before_the_work(
    model: Path, data: Path, tmp_path: Path, command: str, options: tuple[Any, ...], words: str
) -> None:
    given: dict[str, tuple[Any, ...]] = {
        "fit": ("patchcore", data, "--out", tmp_path / "out", *SMALL),
        "predict": (model, data, "--out", tmp_path / "out"),
        "evaluate": (model, data),
    }
    assert words in refused(command, *given[command], *options)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_calibrated_on_pictures_judges_no_parts(data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    facts("fit", "patchcore", data, "--out", model, *SMALL)
    words = "expected a model that is calibrated on parts, found one calibrated on single pictures"
    for command in (("predict", model, data, "--out", tmp_path / "out"), ("evaluate", model, data)):
        assert f"--views: {words}" in refused(*command, "--views", "*/{part}#{view}")
    done = facts("predict", model, data, "--out", tmp_path / "plain", "--csv", tmp_path / "plain.csv")
    assert "parts" not in done
    assert "part" not in done["samples"][0]
    assert (tmp_path / "plain.csv").read_text().startswith("id,score,p_value")


def test_a_model_without_a_calibration_scores_parts(data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    facts("fit", "patchcore", data, "--out", model, *SMALL, "--set", "calibration=none", "--views", "*/{part}#{view}")
    shown = call("predict", model, data, "--out", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    assert "4, shown by 12 pictures" in shown.stdout
    assert "none, the model is not calibrated" in shown.stdout


def test_scores_of_parts_are_watched_by_the_models_calibration(model: Path, new: Path, tmp_path: Path) -> None:
    command = ("predict", model, new, "--out", tmp_path / "out", "--csv", tmp_path / "parts.csv")
    assert call(*command, "--views", "{part}#{view}").exit_code == 3
    said = call("monitor", tmp_path / "parts.csv", "--model", model).stdout
    assert "monitored 3 parts" in said
    assert "no drift in 3 parts" in said
    assert "image" not in said
    watched = facts("monitor", tmp_path / "parts.csv", "--model", model)
    assert (watched["images"], watched["reference"]["images"]) == (3, N_TRAIN)


def test_parts_of_two_categories_with_one_name_are_two(tmp_path: Path) -> None:
    """The pattern takes all folders, so that the names of the parts do not say the category."""
    for category in ("bolts", "nuts"):
        for part in range(3):
            add_part(tmp_path / "data" / category / "train" / "good", part, ("a", "b"))
        add_part(tmp_path / "data" / category / "test" / "good", 7, ("a", "b"))
    models, lines = tmp_path / "models", tmp_path / "parts.jsonl"
    facts("fit", "patchcore", tmp_path / "data", "--out", models, *SMALL, "--views", "*/*/*/{part}#{view}")
    shown = call("predict", models, tmp_path / "data", "--out", tmp_path / "out", "--jsonl", lines)
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:3]] == ["bolts/007", "nuts/007"]
    assert [json.loads(line)["part"] for line in lines.read_text().splitlines()] == ["bolts/007", "nuts/007"]


def test_a_part_may_be_called_as_a_row_of_the_summary(model: Path, tmp_path: Path) -> None:
    for name in ("time", "verdicts"):
        picture(3).save(tmp_path / f"{name}#left.png")
    shown = call("predict", model, tmp_path, "--out", tmp_path / "out", "--views", "{part}#{view}")
    names = [line.split()[0] for line in shown.stdout.splitlines()[1:]]
    assert names == ["time", "verdicts", "parts", "verdicts", "time"]


def test_drift_is_named_by_its_part(model: Path, tmp_path: Path) -> None:
    lines = [{"id": f"{n}#left.png", "part": f"p{n}", "score": 1e3 + n} for n in range(200)]
    (tmp_path / "high.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = call("monitor", tmp_path / "high.jsonl", "--model", model)
    assert shown.exit_code == 5
    number, name = re.search(r"scores have risen since .*, found at part (\d+) \((.*)\)", shown.stdout).groups()
    assert name == f"p{int(number) - 1}"
