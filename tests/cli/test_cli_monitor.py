"""``mmad-bank monitor``: files of scores, what is said of them, and the exit codes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import call, facts, good, refused, refused_at_last, small_settings

from mmad_bank import MemoryBank
from mmad_bank.cli._output import LEFT_OUT
from mmad_bank.cli.monitor import DRIFT
from mmad_bank.methods import load
from mmad_bank.methods.model_folder import checksum_of
from mmad_bank.monitoring import DriftMonitor
from mmad_bank.synthetic import write_synthetic


def normal(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 12, 6)).astype(np.float32)


def write_csv(path: Path, scores: np.ndarray) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["id", "score", "p_value"], *([f"part {i}", score, ""] for i, score in enumerate(scores))])
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A calibrated bank, and the scores of images that drift after the first hundred."""
    np.save(tmp_path / "train.npy", normal(20, 0))
    np.save(tmp_path / "held.npy", normal(99, 1))
    new = normal(300, 2)
    np.save(tmp_path / "calm.npy", new)
    new[100:] *= 1 + np.arange(200)[:, None, None] / 300
    np.save(tmp_path / "creeping.npy", new)
    good("build", tmp_path / "train.npy", "--out", tmp_path / "bank")
    good("calibrate", tmp_path / "bank", tmp_path / "held.npy", "--in-place")
    for name in ("calm", "creeping", "held"):
        good("score", tmp_path / "bank", tmp_path / f"{name}.npy", "--csv", tmp_path / f"{name}.csv")
    return tmp_path


def test_peace(place: Path) -> None:
    report = facts("monitor", place / "calm.csv", "--bank", place / "bank")
    assert not report["drift"]
    assert (report["found_at"], report["since"], report["direction"], report["images"]) == (None, None, None, 300)
    assert report["evidence"]["log10_warning"] == 2
    assert report["reference"] == {"images": 99, "origin": "held-out images"}
    text = good("monitor", place / "calm.csv", "--bank", place / "bank")
    assert "300 of 300 scores have no p-value, which score --false-alarm-rate writes" in " ".join(text.split())
    assert "no drift in 300 images" in text
    assert "drift is found from 100 on" in text
    assert "a chance of at most 1 %" in text


def test_drift_is_told_and_has_its_exit_code(place: Path) -> None:
    monitor = ("monitor", place / "creeping.csv", "--bank", place / "bank")
    result = call(*monitor, "--json")
    assert result.exit_code == DRIFT == 5
    report = json.loads(result.stdout)
    bank = MemoryBank.load(place / "bank")
    assert bank.calibration is not None
    scores = bank.score(np.load(place / "creeping.npy")).image
    expected = DriftMonitor(bank.calibration.images).extend(scores)
    assert expected.found is not None
    image, since, _ = expected.found
    assert report["drift"]
    assert report["direction"] == "up"
    assert report["found_at"] == {"image": image, "name": f"creeping[{image}]"}
    assert report["since"] == {"image": since, "name": f"creeping[{since}]"}
    assert 100 < image < 250
    assert report["evidence"]["log10_largest"] == pytest.approx(max(expected.evidence), abs=1e-6)
    text = call(*monitor)
    assert text.exit_code == DRIFT
    assert f"drift: scores have risen since about image {since + 1} (creeping[{since}]), found at image" in text.stdout


def test_files_follow_each_other(place: Path) -> None:
    """Two files are one run; and a file of scores may stand in the place of the bank."""
    with (place / "creeping.csv").open() as file:
        head, *lines = file.readlines()
    (place / "1.csv").write_text("".join([head, *lines[:150]]))
    (place / "2.csv").write_text("".join([head, *lines[150:]]))
    once = json.loads(call("monitor", place / "creeping.csv", "--bank", place / "bank", "--json").stdout)
    twice = json.loads(call("monitor", place / "1.csv", place / "2.csv", "--bank", place / "bank", "--json").stdout)
    assert once == twice
    other = json.loads(call("monitor", place / "creeping.csv", "--normal", place / "held.csv", "--json").stdout)
    assert other["reference"] == {"images": 99, "origin": "images of held.csv"}
    assert other["found_at"] == once["found_at"]


def test_lines_of_json(place: Path) -> None:
    scores = np.random.default_rng(3).normal(size=30)
    table = write_csv(place / "a.csv", scores)
    lines = [json.dumps({"id": f"part {i}", "score": score, "map": [1]}) for i, score in enumerate(scores.tolist())]
    (place / "a.jsonl").write_text("\n".join([*lines, "", ""]))
    found = [facts("monitor", path, "--normal", table) for path in (table, place / "a.jsonl")]
    assert found[0] == found[1]
    assert found[0]["images"] == 30


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_largest_scores_are_as_good_as_others(place: Path) -> None:
    scores = np.linspace(-1.7, 1.7, 300)
    rng = np.random.default_rng(0)
    rng.shuffle(scores)
    for name, unit in (("one", 1.0), ("huge", 1e308)):
        write_csv(place / f"{name}.csv", scores * unit)
        write_csv(place / f"{name}-normal.csv", scores[:40] * unit)
    pytest.importorskip("matplotlib")
    found = [
        facts(
            "monitor", place / f"{name}.csv", "--normal", place / f"{name}-normal.csv", "--plot", place / f"{name}.png"
        )
        for name in ("one", "huge")
    ]
    assert found[0]["evidence"] == found[1]["evidence"]
    assert (place / "huge.png").stat().st_size > 0.7 * (place / "one.png").stat().st_size


def test_an_integer_that_no_float_holds_is_left_out(place: Path) -> None:
    (place / "huge.jsonl").write_text('{"score": 1.2}\n{"score": 1' + "0" * 400 + "}\n")
    result = call("monitor", place / "huge.jsonl", "--bank", place / "bank", "--json")
    assert result.exit_code == LEFT_OUT
    assert json.loads(result.stdout)["images"] == 1
    assert "huge.jsonl: line 2: expected a finite number for 'score', found '1000" in result.stderr


def test_pictures_that_predict_could_not_use_are_no_scores(place: Path) -> None:
    (place / "a.csv").write_text("id,score,left_out\na,1.5,\nb,,b.png: cannot be read\n")
    (place / "b.jsonl").write_text('{"id": "c", "score": 1.2}\n{"id": "d", "left_out": "d.png: cannot be read"}\n')
    found = facts("monitor", place / "a.csv", place / "b.jsonl", "--bank", place / "bank")
    assert (found["images"], found["left_out"]) == (2, {})


def test_what_is_no_score_is_left_out(place: Path) -> None:
    (place / "a.csv").write_text("name,score\na,1.5\nb,nan\nc,\nd,x\ne,2\n")
    lines = ('{"score": 1.2}', '{"score": true}', '{"points": 3}', "[1]", '{"score": 1', '{"score": "1.1"}', "")
    (place / "b.jsonl").write_text("\n".join(lines))
    (place / "c.csv").write_text("name,points\na,1\n")
    (place / "d.csv").write_text("")
    (place / "e.csv").write_text("name,score\n")
    (place / "f.csv").write_bytes(b"\x89PNG\r\n\x00\x1a\xff")
    files = [place / name for name in ("a.csv", "b.jsonl", "c.csv", "d.csv", "e.csv", "f.csv", "missing.csv")]
    result = call("monitor", *files, "--bank", place / "bank", "--json")
    assert result.exit_code == LEFT_OUT
    report = json.loads(result.stdout)
    assert report["images"] == 4
    said = [line.removeprefix(f"left out: {place}/") for line in result.stderr.splitlines()]
    assert [line.partition(": expected")[0] for line in said[:6]] == [
        *(f"a.csv: line {n}" for n in (3, 4, 5)), *(f"b.jsonl: line {n}" for n in (2, 3, 4)),
    ]  # fmt: skip
    assert said[6].startswith("b.jsonl: line 5: truncated or altered, it cannot be read (")
    assert said[7:9] == [
        "c.csv: expected a column 'score' in the first line, found 'name', 'points'",
        "d.csv: expected a column 'score' in the first line, found none",
    ]
    assert said[9] == "e.csv: expected lines with a score, found none"
    assert said[10] == "f.csv: expected CSV or a JSON object per line, found a file that is no text"
    assert said[11] == "missing.csv: cannot be read (No such file or directory)"
    none = refused_at_last("monitor", files[2], "--bank", place / "bank")
    assert "expected a column 'score'" in none


def test_scores_that_another_calibration_judged_are_left_out(place: Path) -> None:
    good("build", place / "calm.npy", "--out", place / "other")
    good("calibrate", place / "other", place / "train.npy", "--in-place")
    good("score", place / "other", place / "held.npy", "--csv", place / "foreign.csv", "--false-alarm-rate", "5%")
    for name in ("held", "calm"):
        judged = ("--csv", place / f"{name}.csv", "--false-alarm-rate", "5%", "--overwrite")
        good("score", place / "bank", place / f"{name}.npy", *judged)
    files = [place / name for name in ("held.csv", "calm.csv")]
    assert facts("monitor", *files, "--bank", place / "bank")["images"] == 399, "scores that tie with held-out ones too"
    assert "no p-value" not in good("monitor", *files, "--bank", place / "bank")
    result = call("monitor", *files, place / "foreign.csv", "--bank", place / "bank", "--json")
    assert result.exit_code == LEFT_OUT
    assert json.loads(result.stdout)["images"] == 399
    assert "foreign.csv: expected scores that were judged by this calibration, found p-value " in result.stderr
    assert "they are of another model, bank or calibration" in result.stderr
    assert "judged by this calibration" in refused_at_last("monitor", place / "calm.csv", "--bank", place / "other")
    free = call("monitor", place / "foreign.csv", "--normal", place / "calm.csv", "--json")
    assert (json.loads(free.stdout)["images"], json.loads(free.stdout)["left_out"]) == (99, {})


@pytest.mark.parametrize("form", ["{:.4f}", "{:.3g}", "{:.6g}"])
def test_rounded_numbers_are_of_the_same_calibration(place: Path, form: str) -> None:
    """Spreadsheets and other programs write fewer digits."""
    files = []
    for bank in ("bank", "rounded_other"):
        if bank != "bank" and not (place / bank).exists():
            good("build", place / "calm.npy", "--out", place / bank)
            good("calibrate", place / bank, place / "train.npy", "--in-place")
        judged = ("--csv", place / "full.csv", "--false-alarm-rate", "5%", "--overwrite")
        good("score", place / bank, place / "held.npy", *judged)
        with (place / "full.csv").open(newline="") as file:
            rows = [
                (form.format(float(row["score"])), form.format(float(row["p_value"]))) for row in csv.DictReader(file)
            ]
        files.append(place / f"{bank}-rounded.csv")
        files[-1].write_text("score,p_value\n" + "".join(",".join(row) + "\n" for row in rows))
    result = call("monitor", *files, "--bank", place / "bank", "--json")
    assert list(json.loads(result.stdout)["left_out"]) == [str(files[1])]
    assert "judged by this calibration" in result.stderr


def test_wrong_arguments_are_refused(place: Path) -> None:
    scores = place / "calm.csv"
    assert "expected one of them, found none" in refused("monitor", scores)
    both = ("--bank", place / "bank", "--normal", scores)
    assert "expected one of them, found several" in refused("monitor", scores, *both)
    good("build", place / "train.npy", "--out", place / "plain")
    assert "expected a calibrated bank, found none" in refused("monitor", scores, "--bank", place / "plain")
    command = ("monitor", scores, "--bank", place / "bank")
    for rate in ("0", "x", "2", "100%"):
        assert refused(*command, "--false-warning-rate", rate).startswith("error: --false-warning-rate: expected ")
    assert "--plot: expected a .png, .svg or .pdf file" in refused(*command, "--plot", place / "a.txt")


def test_scores_that_would_count_double_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    twice = refused("monitor", "calm.csv", "calm.csv", "--bank", "bank")
    assert twice == "error: SCORES: expected each file once, found calm.csv twice\n"


def test_an_extended_bank_is_named(place: Path) -> None:
    good("extend", place / "bank", place / "creeping.npy", "--out", place / "extended")
    result = call("monitor", place / "calm.csv", "--bank", place / "extended")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: ")
    assert "was extended after it was calibrated" in result.stderr


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_picture_is_written(place: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    result = call("monitor", place / "creeping.csv", "--bank", place / "bank", "--plot", place / f"a{suffix}")
    assert result.exit_code == DRIFT
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert (place / f"a{suffix}").read_bytes().startswith(start)
    again = call("monitor", place / "creeping.csv", "--bank", place / "bank", "--plot", place / f"a{suffix}")
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr


def test_scores_of_a_model(tmp_path: Path) -> None:
    """Its manifest alone is read; a model that is not calibrated is refused, and so is one that is damaged."""
    pytest.importorskip("timm")
    write_synthetic(tmp_path / "data", size=64, n_train=6, n_validation=0, n_test=1, categories=["stud_tray"])
    fit = ("fit", "patchcore", tmp_path / "data", *small_settings(32, 4, 0.2))
    good(*fit, "--out", tmp_path / "model", "--set", "calibration=folds", "--set", "calibration_folds=3")
    good(*fit, "--out", tmp_path / "plain", "--set", "calibration=none")
    calibration = load(tmp_path / "model").calibration_
    assert calibration is not None
    scores = write_csv(tmp_path / "a.csv", calibration.own.scores.numpy())
    report = facts("monitor", scores, "--model", tmp_path / "model")
    assert report["reference"] == {"images": 6, "origin": calibration.origin}
    assert "expected a calibrated model, found none" in refused("monitor", scores, "--model", tmp_path / "plain")
    assert "model.json" in refused("monitor", scores, "--model", tmp_path / "data")
    manifest = json.loads((tmp_path / "model" / "model.json").read_text())
    manifest["calibration"]["images"] = {}
    manifest["checksum"] = checksum_of(manifest)
    (tmp_path / "model" / "model.json").write_text(json.dumps(manifest))
    assert refused("monitor", scores, "--model", tmp_path / "model") == (
        f"error: {tmp_path / 'model' / 'model.json'}: altered or of another version (calibration.images: expected 6"
        " scores of fused and of each part, found none)\n"
    )
