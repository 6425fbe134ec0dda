"""``mmad-bank build`` and ``extend`` over workers: the same files, and what is said of the workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import facts, good, refused


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    np.save(tmp_path / "features.npy", np.random.default_rng(0).standard_normal((6, 50, 16), dtype=np.float32))
    return tmp_path / "features.npy"


@pytest.mark.usefixtures("cluster")
def test_build_and_extend_write_the_same_files(tmp_path: Path, dump: Path) -> None:
    np.save(tmp_path / "more.npy", np.random.default_rng(1).standard_normal((40, 16), dtype=np.float32) * 2)
    over = ["--workers", 1, "--scratch", tmp_path]
    local = facts("build", dump, "--out", tmp_path / "a")
    spread = facts("build", dump, "--out", tmp_path / "b", *over)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert local["workers"] is None
    assert (spread["workers"]["count"], spread["workers"]["replaced"]) == (1, 0)
    assert spread["workers"]["bytes_up"] > 30 * 16 * 4
    assert len(spread["workers"]["peak_bytes"]) == 1
    good("extend", tmp_path / "a", tmp_path / "more.npy", "--in-place")
    said = good("extend", tmp_path / "b", tmp_path / "more.npy", "--in-place", *over)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "workers" in said
    assert "round trips" in said


@pytest.mark.usefixtures("cluster")
def test_calibrate_by_folds_writes_the_same_file(tmp_path: Path, dump: Path) -> None:
    """The banks of the folds are selected from some images of a file, as the bank was."""
    good("build", dump, "--out", tmp_path / "bank", "--projection-dim", 9, "--standardize", "--seed", 4)
    good("calibrate", tmp_path / "bank", dump, "--folds", 2, "--out", tmp_path / "a")
    good("calibrate", tmp_path / "bank", dump, "--folds", 2, "--out", tmp_path / "b", "--workers", 2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_calibrate_asks_for_folds_with_workers(tmp_path: Path, dump: Path) -> None:
    good("build", dump, "--out", tmp_path / "bank")
    for option, value in (("--workers", 2), ("--address", "auto")):
        said = refused("calibrate", tmp_path / "bank", dump, "--out", tmp_path / "a", option, value)
        assert said == f"error: {option}: expected --folds beside it, found none\n"


@pytest.mark.usefixtures("cluster")
def test_what_workers_cannot_be_is_refused(tmp_path: Path, dump: Path) -> None:
    assert "--workers: expected at most 2, the CPUs" in refused("build", dump, "--out", tmp_path / "b", "--workers", 9)
    assert "--workers: expected " in refused("build", dump, "--out", tmp_path / "b", "--workers", 0)
    said = refused("build", dump, "--out", tmp_path / "b", "--workers", 1, "--scratch", tmp_path / "gone")
    assert said.startswith("error: --scratch: ")
    said = refused("build", dump, "--out", tmp_path / "b", "--workers", 1, "--device", "cuda:1")
    assert said == "error: --device: expected cpu or cuda, of which each takes one, found 'cuda:1'\n"
    assert not (tmp_path / "b").exists()


def test_scratch_alone_is_refused(tmp_path: Path, dump: Path) -> None:
    said = refused("build", dump, "--out", tmp_path / "b", "--scratch", tmp_path)
    assert said == "error: --scratch: expected --workers or --address beside it, found neither\n"
