"""Approximate indices by command: how thoroughly they search, what that finds, and whose indices are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import call, facts

faiss = pytest.importorskip("faiss")


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(10, 100, 8)).astype(np.float32))
    return tmp_path / "a.npy"


@pytest.mark.parametrize(
    ("index", "option", "name"), [("IVF32,Flat", "--nprobe", "nprobe"), ("HNSW8", "--ef-search", "ef_search")]
)
def test_build_measures_and_info_repeats_what_is_found(index: str, option: str, name: str, dump: Path) -> None:
    bank = dump.with_name("bank")
    command = ("build", dump, "--out", bank, "--ratio", 0.5, "--index", index, "--overwrite")
    default = facts(*command)["search"]
    assert default["recall"] >= 0.99
    assert default[name] >= 8
    found = facts(*command, option, 1)["search"]
    assert (found[name], found["recall"] < default["recall"]) == (1, True)
    assert facts("info", bank)["search"] == found
    text = call("info", bank).stdout
    assert f"finds {found['recall']:.1%} of a sample's nearest vectors" in " ".join(text.split())


def test_what_does_not_fit_is_refused_before_the_work(dump: Path) -> None:
    bank = dump.with_name("bank")
    for options, message in (
        (("--index", "Fat"), "--index: expected 'exact' or a FAISS factory string"),
        (("--index", "IVF600,Flat"), "with 600 lists"),
        (("--index", "HNSW8", "--nprobe", 4), "nprobe: expected an index with inverted lists"),
        (("--nprobe", 4), "nprobe: expected an index with inverted lists"),
        (("--index", "IVF8,Flat", "--nprobe", 0), "nprobe: expected 1 to"),
    ):
        result = call("build", dump, "--out", bank, "--ratio", 0.5, *options)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
        assert result.stderr.count("\n") == 1
        assert not bank.exists()


def test_the_index_in_a_file_is_read_where_it_is_trusted(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, out = dump.with_name("bank"), dump.with_name("s.npz")
    facts("build", dump, "--out", bank, "--ratio", 0.5, "--index", "IVF8,Flat")
    np.save(dump.with_name("new.npy"), np.load(dump)[:1] + 9)
    calls, deserialize = [], faiss.deserialize_index
    monkeypatch.setattr(faiss, "deserialize_index", lambda data: (calls.append(1), deserialize(data))[1])
    first = facts("score", bank, dump, "--out", out, "--overwrite")
    facts("extend", bank, dump.with_name("new.npy"), "--out", dump.with_name("more"))
    facts("info", bank)
    assert not calls
    assert (
        facts("score", bank, dump, "--out", out, "--overwrite", "--trust-index")["image_scores"]
        == first["image_scores"]
    )
    facts("extend", bank, dump.with_name("new.npy"), "--out", dump.with_name("more"), "--overwrite", "--trust-index")
    assert len(calls) == 2
