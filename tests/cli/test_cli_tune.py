"""``mmad-bank tune``: what it recommends, within which budgets, and bad input."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from typer.testing import Result

from mmad_bank.bank import MemoryBank
from mmad_bank.cli._labels import read_labels
from mmad_bank.cli._values import parse_size
from mmad_bank.errors import InputError

FEW = ("--ratios", "1%,10%,1", "--bank-precisions", "half,int8", "--index", "exact", "--timing", "0s")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMAD_BANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def call(*arguments: object) -> Result:
    return helpers.call("tune", *arguments)


def found(*arguments: object) -> dict[str, Any]:
    return helpers.facts("tune", *arguments, *FEW)


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
    assert (best["ratio"], best["memory"]) == (0.1, budget)
    # Copies of a tiny bank take the same memory in both precisions; the faster one is recommended then.
    small = tuple(one["precision"] for one in everything if (one["ratio"], one["memory"]) == (0.1, budget))
    assert best["precision"] in small
    words = shlex.split(best["command"])
    assert words[0] == "mmad-bank"
    helpers.good(*words[1:])
    loaded, built = eval(best["load"], {"MemoryBank": MemoryBank}), eval(best["call"], {"MemoryBank": MemoryBank})
    images = np.load(queries)
    loaded.score(images)
    assert loaded.nbytes == budget
    assert loaded.source_rows.tolist() == built.source_rows.tolist()
    whole = MemoryBank.build(train, 1.0).score(images).patch
    error = (loaded.score(images).patch - whole).abs().mean() / whole.mean()
    assert best["patch_error"] == pytest.approx(float(error), rel=1e-5)
    text = call(train, "--test", queries, *FEW, "--memory", f"{budget}B").stdout
    build, score = (line for line in text.splitlines() if line.startswith("  mmad-bank "))
    assert build.endswith(tuple(f"--bank-precision {one}" for one in small))
    assert "precision" not in score, "the bank's file says it"


def test_a_budget_that_nothing_keeps_to(train: Path, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = call(train, "--test", queries, *FEW, "--memory", "10B", "--fps", "1", "--json", "--out", out)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("no setting keeps to 10 B and 1 fps; nearest: 1 %, exact, ")
    assert ": mmad-bank build " in result.stderr
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
    told = call(train, "--test", queries, "--anomalous", anomalous, *FEW).stderr
    assert told == "labels: from --anomalous, 4 good, 3 defective\n"
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


@pytest.mark.parametrize("source", ["npz", "pt", "folder", "by image", "rows"])
def test_labels_of_the_images_names(train: Path, queries: Path, anomalous: Path, tmp_path: Path, source: str) -> None:
    """Names tell normal images from defective ones in the same way, wherever they come from."""
    values = np.concatenate([np.load(queries), np.load(anomalous)])
    names = [f"{'Bad' if i > 3 else 'OK'}/{i:03}" for i in range(7)]
    path, options = tmp_path / f"test.{'pt' if source == 'pt' else 'npz'}", ()
    if source == "pt":
        torch.save({"features": torch.from_numpy(values), "names": names}, path)
    elif source == "folder":
        path = tmp_path / "test"
        for name, image in zip(names, values, strict=True):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(path / f"{name}.npy", image)
    elif source == "by image":
        np.savez(path, **dict(zip(names, values, strict=True)))
        options = ("--by-image",)
    else:
        np.savez(path, features=values.reshape(-1, 8) if source == "rows" else values, names=names)
    result = call(train, "--test", path, *options, *FEW)
    assert result.exit_code == 0, result.output
    assert result.stderr == "labels: from the images' names, 4 good, 3 defective\n"
    assert "I-AUROC" in result.stdout
    report = found(train, "--test", path, *options)
    assert report["labels"] == {"from": "the images' names", "good": 4, "defective": 3}
    assert report["settings"][-1]["auroc"] == 1.0


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["a", "b", "c", "d"], "labels: none, so there is no I-AUROC; give them by --labels or --anomalous, or"),
        (["good/0", "good/1", "bad/2", "3"], "labels: none, "),
        (["one/0", "two/1", "two/2", "two/3"], "labels: none, "),
        (["good/0", "good/1", "normal/2", "x/ok/3"], "labels: from the images' names, 4 good, 0 defective; no I-AUROC"),
    ],
)
def test_why_there_is_no_auroc(train: Path, queries: Path, tmp_path: Path, names: list[str], line: str) -> None:
    np.savez(tmp_path / "named.npz", features=np.load(queries), names=names)
    result = call(train, "--test", tmp_path / "named.npz", *FEW)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1
    assert "I-AUROC" not in result.stdout


def test_images_are_spread_over_all(train: Path, queries: Path, anomalous: Path) -> None:
    report = found(train, "--test", queries, "--anomalous", anomalous, "--test-images", "3")
    assert report["images"] == 3
    assert report["settings"][-1]["auroc"] == 1.0  # of the first, the fourth and the last
    assert found(train, "--test", queries, "--test-images", "0")["images"] == 4


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
        (("--ratios", "1%,200%"), "--ratios: expected a share above 0 and up to 1, such as 0.1 or 10%"),
        (("--ratios", "few"), "--ratios: expected a share above 0 and up to 1, such as 0.1 or 10%"),
        (("--bank-precisions", "int4"), "--bank-precisions: expected one of auto, float32, half, int8, found 'int4'"),
        (("--by", "auroc"), "--by auroc: expected normal and anomalous images"),
        (("--labels", "missing.txt"), "--labels: no such file 'missing.txt'"),
        (("--labels", "{train}"), "--labels: expected 0 or 1 for each image"),
        (("--labels", "{short}"), "--labels: expected a label for each of the 4 images of --test, found 2"),
        (("--labels", "{short}", "--anomalous", "{train}"), "--anomalous and --labels: expected one of them"),
        (("--test-images", "-1"), "--test-images: expected a number, or 0 for all, found -1"),
        (("--budget", "soon"), "--budget: expected a time such as 90s, 10m or 2h, or none, found 'soon'"),
        (("--timing", "1"), "--timing: expected a time such as 90s, 10m or 2h, or none, found '1'"),
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
    assert result.stderr.splitlines()[-1].startswith("error: test images: expected others than the features are of")


PROGRAM = "import sys; from mmad_bank.cli import main; sys.argv[0] = 'mmad-bank'; main()"


def test_printed_commands_can_be_pasted(tmp_path: Path) -> None:
    """Names with spaces and quotes, several files, layers of a layout: what is printed runs as it stands."""
    rng = np.random.default_rng(0)
    inside = tmp_path / "a folder; with 'quotes'"
    inside.mkdir()
    for name, n_images, shift in (("train 1", 4, 0.0), ("train 2", 3, 0.0), ("test $x", 3, 0.0), ("-bad", 3, 2.0)):
        a, b = rng.normal(size=(n_images, 4, 5, 6)) + shift, rng.normal(size=(n_images, 3, 5, 6)) + shift
        np.savez(inside / f"{name}.npz", a=a, b=b)
    (tmp_path / "train 1.bank").write_text("in the way")
    program = tmp_path / "bin" / "mmad-bank"  # tells what a shell makes of the line; the command itself runs in here
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    folder = inside.name
    result = call(
        f"{folder}/train 1.npz", f"{folder}/train 2.npz", "--test", f"{folder}/test $x.npz", "--anomalous",
        f"{folder}/-bad.npz", "--key", "a,b", "--axes", "bchw", "--projection-dim", "4", "--seed", "3", "--fps", "1",
        "--by", "auroc", "--reweight", "max", *FEW,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    commands = [line.strip() for line in result.stdout.splitlines() if line.startswith("  mmad-bank ")]
    assert [line.split()[1] for line in commands] == ["build", "score"]
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=True)
        helpers.good(*json.loads(done.stdout))
    bank = MemoryBank.load(tmp_path / "train 1-2.bank")
    assert [Path(source.file).name for source in bank.sources] == ["train 1.npz", "train 2.npz"]
    assert bank.projection is not None
    assert (bank.dim, bank.projection.dim_out) == (7, 4)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 4
    assert (tmp_path / "train 1.bank").read_text() == "in the way"


@pytest.mark.slow
def test_it_goes_on_after_the_time_and_after_a_kill(train: Path, queries: Path, tmp_path: Path, cache: Path) -> None:
    short = json.loads(call(train, "--test", queries, *FEW, "--json", "--budget", "0s").stdout)
    assert [one["ratio"] for one in short["settings"]] == [0.01]
    assert len(short["waiting"]) == 5
    assert short["time_limit"] == 0
    kept = list((cache / "tune").glob("*/0.01-*.npz"))
    assert len(kept) == 1
    text = call(train, "--test", queries, *FEW, "--budget", "0s").stdout
    assert "not measured, the time was up: 1 %, int8; 10 %, half" in text
    before = kept[0].stat().st_mtime_ns
    # A kill at the third setting leaves the first two.
    script = (
        "import os, signal, sys, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # results of another number of threads are other results
        "from mmad_bank.tuning import measuring\n"
        "keep = measuring.Measuring._keep\n"
        "def killing(self, setting, scored):\n"
        "    keep(self, setting, scored)\n"
        "    if len(self.scored) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "measuring.Measuring._keep = killing\n" + PROGRAM
    )
    arguments = ["tune", str(train), "--test", str(queries), *FEW, "--json"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert kept[0].stat().st_mtime_ns == before
    assert len(list((cache / "tune").glob("*/*-half-*.npz"))) == 3
    whole = json.loads(call(train, "--test", queries, *FEW, "--json").stdout)
    assert whole["settings"][0]["seconds"] == short["settings"][0]["seconds"]
    assert (len(whole["settings"]), whole["waiting"]) == (6, [])
    assert not list((cache / "tune").glob("*"))  # all is measured: nothing is kept


def test_results_are_kept_beside_out(train: Path, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    assert call(train, "--test", queries, *FEW, "--budget", "0s", "--out", out).exit_code == 0
    assert (tmp_path / "t.json.tune" / "stages.json").is_file()
    assert call(train, "--test", queries, *FEW, "--out", out, "--overwrite").exit_code == 0
    assert not (tmp_path / "t.json.tune").exists()
    assert call(train, "--test", queries, *FEW, "--workdir", tmp_path / "w").exit_code == 0
    assert len(list((tmp_path / "w").glob("*.npz"))) == 6


def test_measurements_that_are_not_taken_are_told(train: Path, queries: Path, tmp_path: Path) -> None:
    def notes(*options: str) -> list[str]:
        result = call(train, "--test", queries, *FEW, "--workdir", tmp_path / "w", *options)
        assert result.exit_code == 0, result.output
        return [line for line in result.stderr.splitlines() if not line.startswith(("going on: ", "labels: "))]

    def kept() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "w").glob("*.np[yz]")}

    assert notes("--timing", "0.05s") == []
    first = kept()
    assert len(first) == 7  # six settings and the picks
    # Timed longer than it is asked for now: all is taken.
    assert notes("--timing", "0.01s") == []
    assert kept() == first
    # Timed for less: the settings are measured again, the selection is not.
    again = notes("--timing", "0.06s")
    assert again == ["settings that an earlier run timed for less are measured again; its selected rows are kept"]
    second = kept()
    assert {name for name in first if first[name] == second[name]} == {"picks.npy"}
    assert notes("--timing", "0.06s") == []
    assert kept() == second
    dropped = f"dropped 6 measured settings of an earlier run, of other test images: {tmp_path / 'w'}"
    assert notes("--test-images", "3") == [dropped]
    assert notes("--test-images", "3", "--reweight", "max", "--projection-dim", "4") == [
        "dropped 6 measured settings of an earlier run, of other image score (reweight), projection (projection_dim,"
        f" seed): {tmp_path / 'w'}"
    ]


def test_the_table_says_how_sure_it_is(train: Path, queries: Path, anomalous: Path) -> None:
    given = (train, "--test", queries, "--anomalous", anomalous, *FEW, "--fps", "1", "--by", "auroc")
    text = call(*given).stdout
    assert "I-AUROC" in text
    assert "1.00–1.00" in text
    assert "cannot tell the 6 settings apart" in text
    report = json.loads(call(*given, "--json").stdout)
    best = report["recommendation"]
    assert (best["ratio"], best["alike"], best["within"]) == (0.01, 6, 6)
    assert best["memory"] == min(one["memory"] for one in report["settings"])
    for one in report["settings"]:
        assert one["auroc_low"] <= one["auroc"] <= one["auroc_high"]
        assert one["gap_low"] <= one["gap"] <= one["gap_high"]
        assert one["fps_low"] <= one["fps"] <= one["fps_high"]
