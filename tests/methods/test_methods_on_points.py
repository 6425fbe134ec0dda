"""Methods on scattered points: fitted on both sides of whole parts, scored point by point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for package in ("timm", "tifffile", "open3d", "scipy"):
    pytest.importorskip(package)

from data_trees import add_real3d
from helpers import facts, refused
from raw_pictures import colours
from small_mdss import SMALL

from mmad_bank.data import Preprocessing, open_dataset, open_points, prepare
from mmad_bank.errors import InputError
from mmad_bank.evaluation import evaluate
from mmad_bank.methods import M3DM, MDSS, load
from mmad_bank.metrics import auroc

SIZE = 64
OPTIONS: dict[str, Any] = {
    "xyz": "fpfh",
    "banks": ("xyz",),
    "image_size": SIZE,
    "grid": (16, 16),
    "sigma": 2.0,
    "ratio": 0.5,
}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("points") / "raw"
    add_real3d(root / "duck", train=3, test=3, n=8000)
    return root


@pytest.fixture(scope="module")
def model(toys: Path) -> M3DM:
    return M3DM(**OPTIONS).fit(open_dataset(toys))


def test_bumps_are_found_point_by_point(toys: Path, model: M3DM) -> None:
    assert model.preprocessing_ == Preprocessing.recipe("keep", size=SIZE)
    assert len(model.train_ids_) == 6  # both sides of three parts
    test = open_dataset(toys, split="test")
    found = evaluate(model, test)
    assert found.failed == {}
    assert found.metrics["fused"].image_auroc == 1.0
    for number in (3, 4, 5):
        sample = test[number]
        prediction = model.predict(sample)
        assert sample.points is not None
        assert sample.points.labels is not None
        scores = prediction.point_scores
        assert (len(scores), scores.dtype) == (8000, torch.float32)
        row, column = sample.points.pixels[17].tolist()
        assert scores[17] == prediction.map[row, column]
        assert auroc(sample.points.labels, scores) > 0.9


def test_a_file_of_points_is_scored_in_the_models_unit(toys: Path, model: M3DM, tmp_path: Path) -> None:
    file, sample = toys / "duck/test/0_bulge_cut.pcd", open_dataset(toys, split="test")[3]
    expected = model.predict(sample)
    for given in (file, open_points(file)):
        assert model.predict(given).score == pytest.approx(expected.score, rel=1e-5)
    model.save(tmp_path / "model")
    assert load(tmp_path / "model").predict(file).score == pytest.approx(expected.score, rel=1e-5)
    with pytest.raises(InputError, match="expected pictures for patchcore, found point clouds alone; m3dm takes these"):
        colours().fit(open_dataset(toys))


def test_prepared_points_give_the_same_model_but_know_no_points(toys: Path, model: M3DM, tmp_path: Path) -> None:
    prepare(toys, tmp_path / "prepared", Preprocessing.recipe("keep", size=SIZE))
    made = M3DM(**OPTIONS).fit(open_dataset(tmp_path / "prepared"))
    assert torch.equal(made.banks_["xyz"].vectors, model.banks_["xyz"].vectors)
    prediction = made.predict(open_dataset(tmp_path / "prepared", split="test")[3])
    assert prediction.size == open_dataset(toys, split="test")[3].size
    with pytest.raises(InputError, match="point_scores: expected a raw sample of scattered points"):
        _ = prediction.point_scores
    file = toys / "duck/test/0_bulge_cut.pcd"  # in millimetres, as the manifest of the prepared data says
    assert made.predict(file).score == pytest.approx(model.predict(file).score, rel=1e-5)


def test_points_from_the_shell(toys: Path, tmp_path: Path) -> None:
    settings = [f"{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
                for name, value in OPTIONS.items()]  # fmt: skip
    options = [word for one in settings for word in ("--set", one)]
    facts("fit", "m3dm", toys, "--out", tmp_path / "model", *options)
    found = facts("evaluate", tmp_path / "model", toys, "--report", tmp_path / "report")
    assert found["categories"][0]["metrics"]["fused"]["image_auroc"] == 1.0
    files = [toys / f"duck/test/{name}.pcd" for name in ("0_good", "0_bulge_cut")]
    scored = facts("predict", tmp_path / "model", *files, "--out", tmp_path / "out")["samples"]
    assert scored[0]["score"] < scored[1]["score"]
    (same,) = facts("predict", tmp_path / "model", files[1], "--units", "mm", "--out", tmp_path / "mm")["samples"]
    (other,) = facts("predict", tmp_path / "model", files[1], "--units", "cm", "--out", tmp_path / "cm")["samples"]
    assert same["score"] == scored[1]["score"] != other["score"]
    assert np.load(tmp_path / "out" / "0_good" / "points.npy").shape == (8000,)
    assert facts("info", toys)["modalities"] == ["xyz"]
    line = refused("fit", "btf", toys, "--bundled", "--out", tmp_path / "other")
    assert (
        "expected pictures and point clouds for btf, found point clouds alone; m3dm takes these with banks=xyz" in line
    )


def test_mdss_scores_points_by_their_distance_from_the_surface(toys: Path) -> None:
    model = MDSS(branches=("xyz",), **SMALL).fit(open_dataset(toys))
    found = evaluate(model, open_dataset(toys, split="test"))
    assert (len(found.scores), found.failed) == (6, {})
