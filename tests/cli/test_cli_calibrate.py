"""``mmad-bank calibrate``, and what ``score`` and ``info`` make of a calibrated bank."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call, facts, good, refused

from mmad_bank import MemoryBank
from mmad_bank._internal.shares import percent
from mmad_bank.cli._output import LEFT_OUT
from mmad_bank.cli._verdicts import SOME_BAD


def normal(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 12, 6)).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A bank, dumps of normal images, and of some that are not."""
    np.save(tmp_path / "train.npy", normal(20, 0))
    np.save(tmp_path / "held.npy", normal(99, 1))
    new = normal(8, 2)
    new[[2, 5]] += 4
    np.save(tmp_path / "new.npy", new)
    good("build", tmp_path / "train.npy", "--out", tmp_path / "bank")
    return tmp_path


@pytest.fixture
def calibrated(place: Path) -> Path:
    good("calibrate", place / "bank", place / "held.npy", "--in-place")
    return place


def test_calibrate_writes_what_the_library_would(place: Path) -> None:
    before = (place / "bank").read_bytes()
    report = facts("calibrate", place / "bank", place / "held.npy", "--out", place / "b2", "--false-alarm-rate", "2%")
    assert (place / "bank").read_bytes() == before
    bank = MemoryBank.load(place / "bank")
    expected, found = bank.calibrate(normal(99, 1)), MemoryBank.load(place / "b2").calibration
    assert found is not None
    assert torch.equal(found.images.scores, expected.images.scores)
    assert torch.equal(found.peaks.scores, expected.peaks.scores)
    assert (report["images"], report["smallest_rate"], report["patches"]) == (99, 0.01, 12)
    rates = [0.1, 0.05, 0.02, 0.01, 0.001]
    for kind, calibration in (("thresholds", expected.images), ("patch_thresholds", expected.peaks)):
        thresholds = [calibration.threshold(rate) for rate in rates]
        assert report[kind] == [
            {"rate": one.rate, "score": one.score, "extrapolated": one.extrapolated} for one in thresholds
        ]
    assert [one["extrapolated"] for one in report["thresholds"]] == [False] * 4 + [True]
    good("calibrate", place / "bank", place / "held.npy", "--in-place")
    assert (place / "bank").read_bytes() == (place / "b2").read_bytes()


def test_calibrate_says_the_thresholds(place: Path) -> None:
    text = good("calibrate", place / "bank", place / "held.npy", "--in-place", "--reweight", "max")
    bank = MemoryBank.load(place / "bank")
    assert bank.calibration is not None
    for rate in (0.1, 0.05, 0.01):
        assert f"{percent(rate):>6}  {bank.calibration.images.threshold(rate).score:.4g}, patches " in text
    assert "99 held-out images of 12 patches, by max:" in text
    assert "1 % can be promised" in text
    assert [line for line in text.splitlines() if "extrapolated" in line] == [
        line for line in text.splitlines() if " 0.1 % " in line
    ]


def test_few_images_extrapolate_nothing(place: Path) -> None:
    np.save(place / "few.npy", normal(12, 3))
    report = facts("calibrate", place / "bank", place / "few.npy", "--in-place")
    assert [one["score"] is None for one in report["thresholds"]] == [False, True, True, True]
    assert "too few images" in good("info", place / "bank")
    assert refused("score", place / "bank", place / "new.npy", "--false-alarm-rate", "0.05").startswith(
        "error: --false-alarm-rate: expected at least 1/(n + 1) = 0.07692 with 12 held-out images"
    )


def test_folds_are_the_librarys(place: Path) -> None:
    report = facts("calibrate", place / "bank", place / "train.npy", "--folds", 4, "--in-place")
    expected = MemoryBank.load(place / "bank").calibrate(place / "train.npy", folds=4)
    assert report["image_scores"]["max"] == float(expected.images.scores[-1])
    assert (report["images"], report["origin"]) == (20, "images of the bank, in 4 folds")


def test_calibrate_refuses(place: Path) -> None:
    command = ("calibrate", place / "bank", place / "held.npy")
    before = (place / "bank").read_bytes()
    assert "expected one of them, found neither" in refused(*command)
    assert "expected one of them, found both" in refused(*command, "--in-place", "--out", place / "b2")
    own = refused("calibrate", place / "bank", place / "train.npy", "--in-place")
    assert own.startswith("error: features: expected images that the bank was not built from, found its own (")
    assert own.endswith("or give all of its own with --folds\n")
    other = refused(*command, "--folds", 5, "--in-place")
    assert other.startswith("error: --folds: expected the features that the bank was built from, all 240 rows")
    assert "--folds: expected 2 to 20" in refused(
        "calibrate", place / "bank", place / "train.npy", "--folds", 1, "--in-place"
    )
    for rate in ("0", "1", "100%", "x", "-0.1"):
        assert "--false-alarm-rate: " in refused(*command, "--in-place", "--false-alarm-rate", rate)
    assert "--patches: expected at least 1" in refused(*command, "--in-place", "--patches", 0)
    assert "--neighbors" in refused(*command, "--in-place", "--neighbors", 1)
    assert "mmad-bank calibrate " in refused("calibrate", place / "held.npy", place / "bank", "--in-place")
    assert (place / "bank").read_bytes() == before


def test_files_that_would_count_double_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "more").mkdir()
    np.save(place / "more" / "a.npy", normal(5, 7))
    (place / "link.npy").symlink_to("held.npy")
    once = "error: FEATURES: expected each file once, found "
    for command in (
        ("calibrate", "bank", "--in-place"), ("build", "--out", "b2"), ("extend", "bank", "--in-place"),
        ("tune", "--test", "new.npy"),
    ):  # fmt: skip
        first, *options = command
        bank = [options.pop(0)] if options[0] == "bank" else []
        for features, words in (
            (["held.npy", "held.npy"], "held.npy twice"),
            (["held.npy", "./more/../held.npy"], "held.npy as more/../held.npy again"),
            (["link.npy", "held.npy"], "link.npy as held.npy again"),
            (["more/a.npy", "more"], "more/a.npy beside more, in which it lies"),
        ):
            assert refused(first, *bank, *features, *options) == f"{once}{words}\n"
    held = ("--calibrate", "held.npy", "--calibrate", "link.npy")
    line = refused("extend", "bank", "new.npy", "--in-place", *held)
    assert line == "error: --calibrate: expected each file once, found held.npy as link.npy again\n"
    np.save(place / "copy.npy", normal(99, 1))
    assert facts("calibrate", "bank", "held.npy", "copy.npy", "--in-place")["images"] == 198, "a file of its own"


def test_odd_names_of_images_are_shown_escaped(place: Path) -> None:
    """By score, info, extend and monitor; the table keeps them."""
    names = ["a\n  verdicts  9 bad", "b\x1b[2J", "c"]
    np.savez(place / "odd.npz", features=normal(3, 8), names=names)
    good("calibrate", place / "bank", place / "held.npy", "--in-place")
    text = good("score", place / "bank", place / "odd.npz", "--csv", place / "odd.csv", "--false-alarm-rate", "5%")
    assert r"a\n  verdicts  9 bad  " in text
    assert r"b\x1b[2J " in text
    good("extend", place / "bank", place / "odd.npz", "--out", place / "more", "--radius", 0)
    assert r"names a\n  verdicts  9 bad, b\x1b[2J, c" in good("info", place / "more")
    with (place / "odd.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == names
    (place / "drift.jsonl").write_text("".join(json.dumps({"id": f"{i}\x1b\n", "score": i}) + "\n" for i in range(60)))
    result = call("monitor", place / "drift.jsonl", "--normal", place / "odd.csv")
    assert result.exit_code == 5
    assert r"\x1b\n), found at image" in result.stdout
    assert "\x1b" not in result.output + text


def test_a_bad_file_is_left_out(place: Path) -> None:
    broken = normal(3, 4)
    broken[1, 2, 3] = np.nan
    np.save(place / "nan.npy", broken)
    (place / "text.npy").write_text("no array")
    result = call(
        "calibrate", place / "bank", place / "held.npy", place / "nan.npy", place / "text.npy", "--in-place", "--json"
    )
    assert result.exit_code == LEFT_OUT
    assert json.loads(result.stdout)["images"] == 99
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["left out"] * 2
    assert MemoryBank.load(place / "bank").calibration is not None


def test_defective_names_are_told(place: Path) -> None:
    (place / "held").mkdir()
    for kind in ("good", "hole"):
        (place / "held" / kind).mkdir()
        np.save(place / "held" / kind / "a.npy", normal(1, 5)[0])
    result = call("calibrate", place / "bank", place / "held", "--in-place")
    assert result.exit_code == 0
    assert "1 of 2 images is defective by their names (hole/a)" in result.stderr


def test_score_judges(calibrated: Path) -> None:
    bank = MemoryBank.load(calibrated / "bank")
    expected = bank.judge(bank.score(np.load(calibrated / "new.npy")), 0.05)
    outputs = ("--out", calibrated / "s.npz", "--csv", calibrated / "s.csv")
    report = facts("score", calibrated / "bank", calibrated / "new.npy", "--false-alarm-rate", "5%", *outputs)
    said = report["verdicts"]
    assert (said["false_alarm_rate"], said["extrapolated"], said["outdated"]) == (0.05, False, False)
    assert said["threshold"] == expected.threshold.score
    assert said["patch_threshold"] == expected.patch_threshold.score
    assert said["bad"] == int(expected.bad.sum()) >= 2
    assert said["good"] + said["bad"] == 8
    bad = [one["name"] for one in said["bad_images"]]
    assert {"new[2]", "new[5]"} <= set(bad)
    assert [one["verdict"] for one in report["highest"]] == [
        "bad" if one["name"] in bad else "good" for one in report["highest"]
    ]
    assert report["highest"][0]["p_value"] == 0.01
    with np.load(calibrated / "s.npz") as arrays:
        for name, values in (("p_value", expected.p_values), ("bad", expected.bad), ("bad_patches", None)):
            values = expected.bad_patches if values is None else values
            assert np.array_equal(arrays[name], values.numpy())
    with (calibrated / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["bad" if row["name"] in bad else "good" for row in rows]
    assert [float(row["p_value"]) for row in rows] == pytest.approx(expected.p_values.tolist())
    text = good("score", calibrated / "bank", calibrated / "new.npy", "--false-alarm-rate", "5%")
    assert f"{len(bad)} bad, {8 - len(bad)} good, at a false-alarm rate of 5 %" in text
    assert "bad (p = 0.01), patch " in text
    assert "(99 held-out images)" in text


def test_score_without_a_rate_is_as_it_was(calibrated: Path) -> None:
    good("score", calibrated / "bank", calibrated / "new.npy", "--csv", calibrated / "s.csv", "--out", calibrated / "s")
    assert "verdict" not in (calibrated / "s.csv").read_text()
    with np.load(calibrated / "s") as arrays:
        assert sorted(arrays) == ["image", "names", "nearest", "patch"]
    assert "verdicts" not in facts("score", calibrated / "bank", calibrated / "new.npy")
    assert "--false-alarm-rate has this calibrated" in good("score", calibrated / "bank", calibrated / "new.npy")
    other = good("score", calibrated / "bank", calibrated / "new.npy", "--reweight", "max")
    assert "verdicts" not in other, "the calibration is of another rule"


def test_fail_on_bad(calibrated: Path) -> None:
    """The code for a bad image comes before that for a file that was left out; the file is named all the same."""
    new, held = calibrated / "new.npy", calibrated / "quiet.npy"
    np.save(held, np.load(calibrated / "held.npy")[:5] * 0.5)
    (calibrated / "text.npy").write_text("no array")
    score = ("score", calibrated / "bank")
    assert call(*score, new).exit_code == 0
    assert call(*score, new, "--false-alarm-rate", "1%").exit_code == 0, "judged, and not asked to fail"
    assert call(*score, new, "--fail-on-bad").exit_code == SOME_BAD == 4
    assert call(*score, held, "--fail-on-bad").exit_code == 0
    both = call(*score, new, calibrated / "text.npy", "--fail-on-bad", "--json")
    assert both.exit_code == SOME_BAD
    assert "left out: " in both.stderr
    assert json.loads(both.stdout)["left_out"]
    assert call(*score, held, calibrated / "text.npy", "--fail-on-bad").exit_code == LEFT_OUT
    assert json.loads(both.stdout)["verdicts"]["false_alarm_rate"] == 0.01


def test_score_refuses_to_judge(calibrated: Path) -> None:
    good("build", calibrated / "train.npy", "--out", calibrated / "plain")
    score, rate = ("score", calibrated / "bank", calibrated / "new.npy"), ("--false-alarm-rate", "5%")
    none = refused("score", calibrated / "plain", calibrated / "new.npy", *rate)
    assert none.endswith("plain: expected a calibrated bank, found none; mmad-bank calibrate makes one of it\n")
    other = refused(*score, *rate, "--reweight", "max", "--csv", calibrated / "s.csv")
    assert other.startswith("error: --reweight and --neighbors: expected m3dm and 3, as ")
    assert not (calibrated / "s.csv").exists()
    assert "--false-alarm-rate: " in refused(*score, "--false-alarm-rate", "2")
    np.save(calibrated / "rows.npy", normal(4, 7)[:, :5])
    assert "expected images of 12 patches" in refused("score", calibrated / "bank", calibrated / "rows.npy", *rate)


def test_a_bank_calibrated_with_divided_scores(place: Path) -> None:
    """No option divides: score says what to do, extend goes on with the same rule."""
    bank = MemoryBank.load(place / "bank")
    bank.calibrate(normal(99, 1), divisor=2.5)
    bank.save(place / "divided")
    line = refused("score", place / "divided", place / "new.npy", "--false-alarm-rate", "5%")
    assert line == (
        f"error: {place / 'divided'}: is calibrated with image scores that were divided by 2.5, which only"
        " bank.score(..., divisor=2.5) in Python makes; mmad-bank calibrate makes the calibration anew for this"
        " command\n"
    )
    assert "by m3dm of 3 neighbors divided by 2.5: " in good("info", place / "divided")
    command = (
        "extend",
        place / "divided",
        place / "new.npy",
        "--out",
        place / "more",
        "--calibrate",
        place / "held.npy",
    )
    seen = {one["name"]: one["p_value"] for one in facts(*command)["new_images"]["images"]}
    verdicts = bank.judge(bank.score(np.load(place / "new.npy"), divisor=2.5))
    assert list(seen.values()) == pytest.approx(verdicts.p_values.tolist())
    more = MemoryBank.load(place / "more").calibration
    assert more is not None
    assert (more.rule.divisor, more.outdated) == (2.5, False)
    good("calibrate", place / "divided", place / "held.npy", "--in-place")
    good("score", place / "divided", place / "new.npy", "--false-alarm-rate", "5%")


def test_info_shows_the_calibration(place: Path) -> None:
    assert facts("info", place / "bank")["calibration"] is None
    assert "none, mmad-bank calibrate makes one" in good("info", place / "bank")
    made = facts("calibrate", place / "bank", place / "held.npy", "--in-place")
    said = facts("info", place / "bank")["calibration"]
    assert said == {name: made[name] for name in said}
    assert "99 held-out images of 12 patches, by m3dm of 3 neighbors" in good("info", place / "bank")
    good("extend", place / "bank", place / "new.npy", "--in-place")
    assert facts("info", place / "bank")["calibration"]["outdated"]
    assert "outdated: the bank was extended since" in good("info", place / "bank")
    judged = good("score", place / "bank", place / "new.npy", "--false-alarm-rate", "5%")
    assert "calibrated before the bank was extended" in judged
    assert facts("score", place / "bank", place / "new.npy", "--false-alarm-rate", "5%")["verdicts"]["outdated"]


def test_a_bank_that_was_extended_is_warned_of(calibrated: Path) -> None:
    """One line on standard error of whatever takes its calibration; none of what does not, or of an up-to-date one."""
    bank, new = calibrated / "bank", calibrated / "new.npy"
    words = f"warning: {bank}: the calibration is outdated, a bank was extended since"
    assert "warning" not in call("score", bank, new, "--fail-on-bad").stderr + call("info", bank).stderr
    good("extend", bank, new, "--in-place")
    for command in (("score", bank, new, "--false-alarm-rate", "5%"), ("score", bank, new, "--fail-on-bad"),
                    ("info", bank), ("info", bank, "--json")):  # fmt: skip
        assert call(*command).stderr.count(words) == 1, command
    assert "warning" not in call("score", bank, new).stderr, "scores are as right as ever"
    good("calibrate", bank, calibrated / "held.npy", "--in-place")
    assert "warning" not in call("info", bank).stderr


def test_images_of_another_size_are_refused_before_they_are_scored(calibrated: Path) -> None:
    np.save(calibrated / "small.npy", normal(5, 3)[:, :9])
    said = refused("score", calibrated / "bank", calibrated / "small.npy", "--false-alarm-rate", "5%")
    expected = f"expected images of 12 patches, as {calibrated / 'bank'} is calibrated, found 9"
    assert f"{calibrated / 'small.npy'}: {expected}" in said
    assert good("score", calibrated / "bank", calibrated / "small.npy"), "without verdicts they can be scored"


def test_extend_names_its_own_options_alone(calibrated: Path) -> None:
    np.save(calibrated / "more.npy", 1.5 * normal(20, 8))
    np.save(calibrated / "rows.npy", normal(5, 9).reshape(-1, normal(1, 0).shape[-1])[:-5])
    extend = ("extend", calibrated / "bank", calibrated / "more.npy", "--out", calibrated / "b2")
    for file, words in (
        ("more.npy", "--calibrate: expected images that the bank was not built from, found its own ("),
        ("rows.npy", "expected a multiple of 12 rows, which are the patches of an image, found 55"),
    ):
        said = refused(*extend, "--calibrate", calibrated / file)
        assert words in said
        assert "--folds" not in said
        assert "--patches" not in said
    own = refused("calibrate", calibrated / "bank", calibrated / "train.npy", "--in-place")
    assert "hold others out, or give all of its own with --folds" in own


def test_extend_tells_how_the_thresholds_moved(calibrated: Path) -> None:
    np.save(calibrated / "more.npy", 1.5 * normal(20, 8))
    np.save(calibrated / "other.npy", normal(49, 9))
    bank = MemoryBank.load(calibrated / "bank")
    before = bank.calibration
    assert before is not None
    extend = ("extend", calibrated / "bank", calibrated / "more.npy", "--out", calibrated / "b2")
    report = facts(*extend, "--calibrate", calibrated / "other.npy")
    expected = before.images.p_values(bank.score(np.load(calibrated / "more.npy")).image)
    assert [one["p_value"] for one in report["new_images"]["images"]] == expected.tolist()
    assert [one["name"] for one in report["new_images"]["images"]][:2] == ["more[0]", "more[1]"]
    low = int((expected <= 0.1).sum())
    assert report["new_images"]["low"] == {"rate": 0.1, "images": low, "expected": 2.0}
    assert bank.extend(np.load(calibrated / "more.npy"), calibration=np.load(calibrated / "other.npy")) > 0
    after = bank.calibration
    assert after is not None
    for name, one in (("before", before), ("after", after)):
        found = report["calibration"][name]
        assert not found["outdated"]
        assert found["thresholds"][0]["score"] == one.images.threshold(0.1).score
    text = good(*extend, "--calibrate", calibrated / "other.npy", "--overwrite")
    assert f"{low} of 20 have p-values of at most 0.1, where 2 are expected" in text
    old, new = (one.images.threshold(0.1).score for one in (before, after))
    assert f"  10 %  {old:.4g} → {new:.4g}\n" in text
    kept = MemoryBank.load(calibrated / "b2").calibration
    assert kept is not None
    assert torch.equal(kept.images.scores, after.images.scores)


def test_extend_without_new_images_to_calibrate_with(calibrated: Path) -> None:
    good("build", calibrated / "train.npy", "--out", calibrated / "plain")
    np.save(calibrated / "more.npy", 1.5 * normal(20, 8))
    plain = ("extend", calibrated / "plain", calibrated / "more.npy", "--in-place")
    assert facts(*plain)["calibration"] == {"before": None, "after": None}
    assert facts(*plain, "--calibrate", calibrated / "held.npy")["calibration"]["after"]["images"] == 99
    extend = ("extend", calibrated / "bank", calibrated / "more.npy", "--out", calibrated / "b2")
    text = good(*extend)
    assert "outdated, of before the extension" in text
    assert "new images before" in text
    report = facts(*extend, "--overwrite")
    assert report["calibration"]["after"] == {**report["calibration"]["before"], "outdated": True}


def test_extend_refuses_what_it_adds_as_held_out(calibrated: Path) -> None:
    np.save(calibrated / "more.npy", 1.5 * normal(20, 8))
    extend = ("extend", calibrated / "bank", calibrated / "more.npy", "--in-place")
    before = (calibrated / "bank").read_bytes()
    assert "found its own (" in refused(*extend, "--calibrate", calibrated / "more.npy")
    np.save(calibrated / "copy.npy", np.load(calibrated / "more.npy"))
    assert "of its own among 20" in refused(*extend, "--calibrate", calibrated / "copy.npy")
    assert "--calibrate: expected paths" in refused(*extend, "--calibrate", ",")
    assert (calibrated / "bank").read_bytes() == before
    (calibrated / "text.npy").write_text("no array")
    result = call(*extend, "--calibrate", f"{calibrated / 'held.npy'},{calibrated / 'text.npy'}")
    assert result.exit_code == LEFT_OUT
    assert "text.npy" in result.stderr


def test_extend_takes_images_of_another_size(calibrated: Path) -> None:
    np.save(calibrated / "small.npy", 1.5 * normal(4, 8)[:, :5])
    result = call("extend", calibrated / "bank", calibrated / "small.npy", "--in-place", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["new_images"] is None
    assert result.stderr.startswith("note: the new images are not judged, ")
    assert result.stderr.endswith("small.npy: expected images of 12 patches, found 5\n")
