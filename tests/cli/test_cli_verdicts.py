"""Verdicts of ``mmad-bank fit``, ``predict`` and ``evaluate``, on pictures without depth."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("scipy", "timm", "PIL"):
    pytest.importorskip(package)

from helpers import call, facts, refused, refused_at_last, small_settings
from PIL import Image
from scipy import ndimage

from mmad_bank import methods
from mmad_bank.bank import MemoryBank

SMALL = small_settings(64, 8, 0.5, "auto")
N_TRAIN = 24


def picture(seed: int, scratched: bool = False) -> Image.Image:
    values = np.random.default_rng(seed).integers(110, 140, (64, 64, 3), dtype=np.uint8)
    if scratched:
        values[20:30, 10:50] = (255, 0, 0)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category in MVTec AD's layout."""
    folder = tmp_path_factory.mktemp("data")
    for kind, first, n in (("train/good", 0, N_TRAIN), ("test/good", 100, 6), ("test/scratch", 200, 4)):
        (folder / "plate" / kind).mkdir(parents=True)
        for number in range(n):
            picture(first + number, "scratch" in kind).save(folder / "plate" / kind / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judging") / "plate.model"
    facts("fit", "patchcore", data, "--out", out, *SMALL)
    return out


def predicted(model: Path, data: Path, out: Path, *options: Any) -> dict[str, dict[str, Any]]:
    done = facts("predict", model, data, "--out", out, *options)
    return {one["id"]: one for one in done["samples"]}


def documented() -> tuple[list[str], list[str]]:
    """Return the columns of CSV and the keys of JSON that the page on verdicts has a row for, in its order."""
    page = (Path(__file__).parents[2] / "docs/how-to/verdicts.md").read_text(encoding="utf-8")
    table = page.partition("| CSV | JSON | meaning |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:] for line in table.splitlines()[2:]]
    assert all(len(row) == 6 and row[2].strip() for row in rows), "each has a meaning"
    columns, keys = ([one for row in rows for one in re.findall(r"`([^`]+)`", row[at])] for at in (0, 1))
    return columns, list(dict.fromkeys(keys))


def test_columns_and_keys_are_those_of_the_page(model: Path, data: Path, tmp_path: Path) -> None:
    columns, keys = documented()
    bad = data / "plate/test/scratch/000.png"
    (one,) = predicted(
        model, bad, tmp_path / "out", "--csv", tmp_path / "t.csv", "--jsonl", tmp_path / "t.jsonl"
    ).values()
    with (tmp_path / "t.csv").open(newline="") as file:
        assert next(csv.reader(file)) == columns
    (line,) = (tmp_path / "t.jsonl").read_text().splitlines()
    of_regions = {f"regions[].{name}" for name in json.loads(line)["regions"][0]}
    assert {*json.loads(line), *of_regions, "left_out"} == set(keys), "an object has left_out instead of the others"
    assert one["regions"], "an image with regions has them all"


def test_cells_are_empty_where_the_page_says_so(data: Path, tmp_path: Path) -> None:
    facts("fit", "patchcore", data, "--out", tmp_path / "bare", *SMALL, "--set", "calibration=none")
    predicted(tmp_path / "bare", data, tmp_path / "out", "--csv", tmp_path / "t.csv", "--explain", 0)
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    page = (Path(__file__).parents[2] / "docs/how-to/verdicts.md").read_text(encoding="utf-8")
    for name in documented()[0]:
        (line,) = [one for one in page.splitlines() if one.startswith("| ") and f"`{name}`" in one.split("|")[1]]
        never = line.split("|")[5].strip().startswith("never")
        assert {row[name] == "" for row in rows} == {not never}, name


def test_predict_judges(model: Path, data: Path, tmp_path: Path) -> None:
    found = predicted(model, data, tmp_path / "out", "--csv", tmp_path / "t.csv", "--jsonl", tmp_path / "t.jsonl")
    loaded = methods.load(model)
    for name, one in found.items():
        prediction = loaded.predict(data / f"{name}.png")
        assert (one["verdict"], one["p_value"]) == (prediction.verdict, prediction.p_value)
        assert one["threshold"] == prediction.threshold.score
        assert one["false_alarm_rate"] == pytest.approx(1 / (N_TRAIN + 1))
        assert one["verdict"] == "bad" or "scratch" not in name
        kept = json.loads((tmp_path / "out" / name / "score.json").read_text())
        assert kept["regions"] == one["regions"]
        if "scratch" in name:
            top, left, bottom, right = one["regions"][0]["box"]
            assert top < 30
            assert bottom > 20
            assert left < 50
            assert right > 10
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert lines == list(found.values())
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(found)
    for row in rows:
        one = found[row["id"]]
        assert float(row["score"]) == one["score"]
        assert row["verdict"] == one["verdict"]
        assert row["nearest_sample"].startswith("plate/train/good/")
        if one["regions"]:
            assert [int(row[f"region_{side}"]) for side in ("top", "left", "bottom", "right")] == one["regions"][0][
                "box"
            ]
        assert row["region_area_mm2"] == "", "there is no depth"


def test_the_overlay_shows_regions_and_the_region_of_interest(model: Path, data: Path, tmp_path: Path) -> None:
    bad = data / "plate/test/scratch/000.png"
    (one,) = predicted(model, bad, tmp_path / "bad").values()
    with Image.open(tmp_path / "bad/overlay.png") as file:
        drawn = np.asarray(file)
    factor = 800 // 64
    assert drawn.shape == (64 * factor, 64 * factor, 3)
    numbers = methods.load(model).predict(bad).region_map.numpy()
    assert numbers.max() == len(one["regions"])
    row, column = one["regions"][0]["place"]
    assert numbers[row, column] == 1
    found = numbers.repeat(factor, 0).repeat(factor, 1) > 0
    line = ndimage.binary_dilation(found, np.ones((3, 3))) & ~found
    line[[0, -1]] |= found[[0, -1]]
    line[:, [0, -1]] |= found[:, [0, -1]]
    assert (drawn[line] == 255).all(axis=1).mean() > 0.8, "a white line around the regions, but where labels stand"
    assert (drawn[found] == 255).all(axis=1).mean() < 0.2

    (tmp_path / "roi.json").write_text("[[0, 0], [63, 0], [63, 50], [0, 50]]")
    facts("fit", "patchcore", data, "--out", tmp_path / "roi.model", *SMALL, "--roi", tmp_path / "roi.json")
    predicted(tmp_path / "roi.model", bad, tmp_path / "roi")
    with Image.open(tmp_path / "roi/overlay.png") as file:
        washed = np.asarray(file)[::factor, ::factor].astype(int)
    given = np.asarray(picture(200, True)).astype(float)[55:]
    paler = given + 0.6 * ((given @ (0.299, 0.587, 0.114))[..., None] - given)
    assert np.abs(washed[55:] - (paler * 0.45 + 128 * 0.55)).max() <= 1.5, "gray outside"


def test_fit_and_info_say_what_a_model_is_calibrated_on(model: Path, data: Path, tmp_path: Path) -> None:
    words = f"{N_TRAIN} training images, scored in folds; smallest false-alarm rate 4 %"
    found = facts("info", model)["calibration"]
    assert (found["images"], found["origin"]) == (N_TRAIN, "training images, scored in folds")
    assert [one["extrapolated"] for one in found["thresholds"]] == [False, False, True, True]
    assert found["verdicts"]["rate"] == pytest.approx(0.04), "the smallest, as 1 % cannot be promised"
    said = call("info", model).stdout
    assert words in said
    assert f"bad above {found['verdicts']['score']:.4g}, at 4 %" in said
    assert "   1 %" in said
    fitted = call("fit", "patchcore", data, "--out", tmp_path / "m", *SMALL, "--set", "false-alarm-rate=10%").stdout
    assert f"calibrated on {words}" in fitted
    assert f"bad above {found['thresholds'][0]['score']:.4g}, at 10 %" in fitted


def test_predict_says_the_verdicts_and_ends_by_them(model: Path, data: Path, tmp_path: Path) -> None:
    scratched, good = (data / "plate" / "test" / kind / "000.png" for kind in ("scratch", "good"))
    shown = call("predict", model, scratched, good, "--out", tmp_path / "both", "--fail-on-bad")
    assert shown.exit_code == 4
    assert "bad   " in shown.stdout
    assert "1 bad, 1 good, at a false-alarm rate of 4 %" in shown.stdout
    assert call("predict", model, scratched, "--out", tmp_path / "bad").exit_code == 0
    assert call("predict", model, good, "--out", tmp_path / "good", "--fail-on-bad").exit_code == 0


def test_a_false_alarm_rate_can_be_asked_for(model: Path, data: Path, tmp_path: Path) -> None:
    half = predicted(model, data, tmp_path / "half", "--false-alarm-rate", "50%")
    assert {one["false_alarm_rate"] for one in half.values()} == {0.5}
    few = predicted(model, data, tmp_path / "few", "--false-alarm-rate", 0.01)
    assert all(one["extrapolated"] for one in few.values())
    assert min(one["threshold"] for one in few.values()) >= max(one["threshold"] for one in half.values())
    shown = call("predict", model, data, "--out", tmp_path / "words", "--false-alarm-rate", 0.01)
    assert "at a false-alarm rate of 1 % (extrapolated)" in shown.stdout
    said = refused("predict", model, data, "--out", tmp_path / "no", "--false-alarm-rate", 2)
    assert said.startswith("error: --false-alarm-rate: expected")


@pytest.mark.parametrize("what", ["list.txt", "*.png"])
def test_a_picture_that_a_list_or_a_pattern_names_is_not_written_over(
    model: Path, data: Path, tmp_path: Path, what: str
) -> None:
    for number in range(3):
        picture(300 + number).save(tmp_path / f"{number}.png")
    (tmp_path / "list.txt").write_text("0.png\n1.png\n")
    before = (tmp_path / "0.png").read_bytes()
    command = ("predict", model, tmp_path / what, "--out", tmp_path / "out", "--csv", tmp_path / "0.png")
    assert "0.png' is also an input" in refused_at_last(*command, "--overwrite")
    assert (tmp_path / "0.png").read_bytes() == before


def test_a_model_without_a_calibration(data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    facts("fit", "patchcore", data, "--out", model, *SMALL, "--set", "calibration=none")
    shown = call("predict", model, data, "--out", tmp_path / "out")
    assert shown.exit_code == 0
    assert "none, the model is not calibrated" in shown.stdout
    wanted = "expected a model with a calibration, found one without"
    for number, options in enumerate((("--false-alarm-rate", 0.1), ("--fail-on-bad",))):
        said = refused("predict", model, data, "--out", tmp_path / str(number), *options)
        assert said.startswith(f"error: {options[0]}: {wanted}")
        assert not (tmp_path / str(number)).exists()


def test_a_model_whose_bank_was_extended_is_warned_of(model: Path, data: Path, tmp_path: Path) -> None:
    extended = tmp_path / "model"
    shutil.copytree(model, extended)
    bank = extended / "banks/rgb.safetensors"
    np.save(tmp_path / "more.npy", np.random.default_rng(0).normal(9, 9, (2, 64, MemoryBank.load(bank).dim)))
    assert call("extend", bank, tmp_path / "more.npy", "--in-place", "--radius", 0).exit_code == 0
    words = "the calibration is outdated, a bank was extended since"
    picture = data / "plate/test/good/000.png"
    for place, n in ((model, 0), (extended, 1)):
        for command in (("predict", place, picture, "--out", tmp_path / f"out{n}", "--json"), ("info", place),
                        ("evaluate", place, data)):  # fmt: skip
            done = call(*command)
            assert done.exit_code == 0
            assert done.stderr.count(f"warning: {place}: {words}") == n, command
    assert facts("info", extended)["calibration"]["outdated"]
    assert not facts("info", model)["calibration"]["outdated"]


def test_evaluate_says_how_the_promise_held(model: Path, data: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    done = facts("evaluate", model, data, "--report", report)
    decisions = done["categories"][0]["decisions"]
    assert decisions["confusion"]["found"] == 4
    assert decisions["confusion"]["false_alarms"] + decisions["confusion"]["passed"] == 6
    assert decisions["held_out_images"] == N_TRAIN
    assert decisions["promised_false_alarm_rate"] == pytest.approx(1 / (N_TRAIN + 1))
    assert {one["verdict"] for one in done["categories"][0]["scores"] if one["label"]} == {"bad"}
    page = (report / "index.html").read_text()
    assert 'class="verdict bad"' in page
    assert 'value="verdict:found"' in page
    shown = call("evaluate", model, data, "--false-alarm-rate", "20%")
    assert "verdicts at the promised false-alarm rate" in shown.stdout
    assert "20 %" in shown.stdout
