"""``mmad-bank tune``: what it recommends, within which budgets, and bad input."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mmad_bank.bank import MemoryBank
from mmad_bank.cli import app
from mmad_bank.cli.tune import parse_size, read_labels
from mmad_bank.errors import InputError

FEW = ("--ratios", "1%,10%,1", "--precisions", "half,int8", "--index", "exact")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["tune", *(str(argument) for argument in arguments)])


def found(*arguments: object) -> dict[str, Any]:
    result = call(*arguments, *FEW, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return save(tmp_path / "train.npy", 12, 0)


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    return save(tmp_path / "test.npy", 4, 1)


@pytest.fixture
def anomalous(tmp_path: Path) -> Path:
    return save(tmp_path / "anomalous.npy", 3, 2, shift=3.0)


def save(path: Path, n_images: int, seed: int, shift: float = 0.0) -> Path:
    images = np.random.default_rng(seed).normal(size=(n_images, 40, 8)).astype(np.float32)
    images[:, :3] += shift
    np.save(path, images)
    return path


def test_settings_and_front_without_a_budget(train: Path, queries: Path) -> None:
    report = found(train, "--test", queries)
    assert [(one["ratio"], one["precision"]) for one in report["settings"]] == [
        (ratio, precision) for ratio in (0.01, 0.1, 1.0) for precision in ("half", "int8")
    ]
    assert any(one["pareto"] for one in report["settings"])
    assert (report["rows"], report["images"], report["recommendation"]) == (480, 4, None)
    assert all(one["auroc"] is None for one in report["settings"])
    text = call(train, "--test", queries, *FEW).stdout
    assert "480 rows × 8, 4 test images of 40 patches" in text
    assert "no recommendation without a budget" in text


def test_recommended_command_builds_what_was_measured(train: Path, queries: Path, tmp_path: Path) -> None:
    everything = found(train, "--test", queries)["settings"]
    budget = next(one["memory"] for one in everything if (one["ratio"], one["precision"]) == (0.1, "int8"))
    report = found(train, "--test", queries, "--memory", f"{budget}B", "--projection-dim", "4", "--seed", "3")
    best = report["recommendation"]
    assert (best["ratio"], best["precision"], best["memory"]) == (0.1, "int8", budget)
    words = shlex.split(best["command"].replace("BANK", str(tmp_path / "bank")))
    assert words[0] == "mmad-bank"
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    names = {"BANK": tmp_path / "bank", "MemoryBank": MemoryBank, "features": train}
    loaded, built = eval(best["load"], names), eval(best["call"], names)
    images = np.load(queries)
    loaded.score(images)
    assert loaded.nbytes == budget
    assert loaded.source_rows.tolist() == built.source_rows.tolist()
    whole = MemoryBank.build(train, 1.0).score(images).patch
    error = (loaded.score(images).patch - whole).abs().mean() / whole.mean()
    assert best["patch_error"] == pytest.approx(float(error), rel=1e-5)
    assert "load it with precision int8 too" in call(train, "--test", queries, *FEW, "--memory", f"{budget}B").stdout


def test_a_budget_that_nothing_keeps_to(train: Path, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = call(train, "--test", queries, *FEW, "--memory", "10B", "--fps", "1", "--json", "--out", out)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("no setting keeps to 10 B and 1 fps; nearest: mmad-bank build")
    report = json.loads(result.stdout)
    assert report == json.loads(out.read_text(encoding="utf-8"))
    assert report["recommendation"] is None
    assert report["budget"] == {"memory": 10, "fps": 1.0}
    assert report["nearest"]["memory"] == min(one["memory"] for one in report["settings"])


def test_labels_from_everywhere(train: Path, queries: Path, anomalous: Path, tmp_path: Path) -> None:
    both = tmp_path / "extracted"
    both.mkdir()
    np.save(both / "rgb.npy", np.concatenate([np.load(queries), np.load(anomalous)]))
    truth = [0, 0, 0, 0, 1, 1, 1]
    np.save(tmp_path / "labels.npy", np.array(truth))
    (tmp_path / "labels.txt").write_text("\n".join(map(str, truth)), encoding="utf-8")
    by_hand = found(train, "--test", queries, "--anomalous", anomalous)["settings"]
    assert by_hand[-1]["auroc"] == 1.0
    for name in ("labels.npy", "labels.txt"):
        labelled = found(train, "--test", both / "rgb.npy", "--labels", tmp_path / name)["settings"]
        assert [one["auroc"] for one in labelled] == [one["auroc"] for one in by_hand]
    assert found(train, "--test", both / "rgb.npy")["settings"][0]["auroc"] is None
    ids = [f"part/test/{'bump' if label else 'good'}/{i:03}" for i, label in enumerate(truth)]
    (both / "extraction.json").write_text(json.dumps({"ids": ids}), encoding="utf-8")
    extracted = found(train, "--test", both / "rgb.npy", "--by", "auroc", "--fps", "0.001")
    assert [one["auroc"] for one in extracted["settings"]] == [one["auroc"] for one in by_hand]
    assert extracted["recommendation"]["auroc"] == 1.0
    assert read_labels(both / "extraction.json") == truth


def test_images_are_spread_over_all(train: Path, queries: Path, anomalous: Path) -> None:
    report = found(train, "--test", queries, "--anomalous", anomalous, "--images", "3")
    assert report["images"] == 3
    assert report["settings"][-1]["auroc"] == 1.0  # of the first, the fourth and the last
    assert found(train, "--test", queries, "--images", "0")["images"] == 4


def test_plot_is_written(train: Path, queries: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found(train, "--test", queries, "--plot", tmp_path / "front.png", "--memory", "1MB")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200MB", 200_000_000), ("1.5GiB", 3 << 29), ("64 kib", 65536), ("7B", 7), (" .5kB ", 500), ("1gb", 10**9)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "200", "MB", "-1MB", "1e3MB", "0MB", "5 parsecs", "1.2.3MB", "nan B"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"--memory: expected a size such as 200MB or 1\.5GiB, found"):
        parse_size(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--memory", "lots"), "--memory: expected a size such as 200MB or 1.5GiB, found 'lots'"),
        (("--fps", "0"), "--fps: expected a number above 0, found 0"),
        (("--ratios", "1%,200%"), "--ratios: expected shares above 0 and up to 100%"),
        (("--ratios", "few"), "--ratios: expected shares above 0 and up to 100%"),
        (("--precisions", "int4"), "precision: expected one of auto, float32, half, int8, found 'int4'"),
        (("--by", "auroc"), "--by auroc: expected normal and anomalous images"),
        (("--labels", "missing.txt"), "--labels: no such file 'missing.txt'"),
        (("--labels", "{train}"), "--labels: expected 0 or 1 for each image"),
        (("--labels", "{short}"), "--labels: expected a label for each of the 4 images of --test, found 2"),
        (("--labels", "{short}", "--anomalous", "{train}"), "--anomalous and --labels: expected one of them"),
        (("--images", "-1"), "--images: expected a number, or 0 for all, found -1"),
        (("--threads", "0"), "--threads: expected at least 1, found 0"),
        (("--plot", "{folder}/front.gif"), "--plot: expected a .png, .svg or .pdf file, found '.gif'"),
        (("--out", "nowhere/x.json"), "--out: expected a file in an existing folder"),
        (("--out", "{train}"), "--out: '{train}' is also an input"),
        (("--test", "{narrow}"), "{narrow}: expected vectors of length 8"),
        (("--anomalous", "{train}", "--patches", "30"), "{queries}: expected images of 30 patches, found 40"),
    ],
)
def test_bad_input_is_one_line(train: Path, queries: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "short.txt").write_text("0\n1\n", encoding="utf-8")
    np.save(tmp_path / "narrow.npy", np.zeros((2, 40, 5), np.float32))
    paths = {"train": train, "queries": queries, "folder": tmp_path, "short": tmp_path / "short.txt"}
    paths["narrow"] = tmp_path / "narrow.npy"
    result = call(train, "--test", queries, *FEW, *(str(argument).format(**paths) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message.format(**paths)}")
    assert len(result.stderr.splitlines()) == 1


def test_training_features_are_no_test(train: Path) -> None:
    result = call(train, "--test", train, *FEW)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: images: expected others than the features are of")
