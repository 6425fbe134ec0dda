"""Commands with ``--workers`` write what they write without, byte for byte, and say the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import call, facts, good, refused, small_settings

from mmad_bank.distributed.extracting import Extraction
from mmad_bank.errors import InputError
from mmad_bank.extraction import Extractors
from mmad_bank.features import make_rgb_extractor
from mmad_bank.synthetic import write_synthetic

HERE = "--overwrite"
THERE = ("--overwrite", "--workers", 2)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_same(command: tuple[object, ...], out: Path, exit_code: int, *, among: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Run a command in this process and in others; compare its files, and what it says but for the time."""
    said, written = [], []
    for options in ((HERE,), THERE):
        result = call(*command, "--json", *options)
        assert result.exit_code == exit_code, result.output
        told = json.loads(result.stdout)
        assert told.pop("seconds")
        said.append((told, result.stderr))
        written.append(files(out))
    assert said[0] == said[1]
    assert written[0] == written[1]
    assert among <= set(written[0])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads as a process of several has: the features of networks differ in the last bits with their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    """Features of eight files: one is damaged, two have a row that cannot be used, one in the second of its blocks."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "dumps"
    folder.mkdir()
    for number in range(5):
        np.save(folder / f"{number}.npy", generator.random((3, 49, 8), dtype=np.float32) + (number == 3))
    bad = generator.random((500, 49, 8), dtype=np.float32)
    bad[400, 7, 3] = np.nan
    np.save(folder / "bad.npy", bad)
    (folder / "damaged.npy").write_bytes(b"no array")
    long = generator.random((3, 49, 8), dtype=np.float32)
    long[1, 2] = 1e30
    np.save(folder / "long.npy", long)
    np.save(tmp_path / "normal.npy", generator.random((30, 49, 8), dtype=np.float32))
    return folder


def test_score(cluster: Any, dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # paths are relative, also in the other processes' messages
    good("build", "normal.npy", "--out", "line.bank", "--bank-size", 90)
    good("calibrate", "line.bank", "normal.npy", "--folds", 3, "--in-place")
    out = tmp_path / "out"
    out.mkdir()
    command = ("score", "line.bank", "dumps", "--out", "out/scores.npz", "--csv", "out/scores.csv", "--fail-on-bad")
    check_same(command, out, 4, among={"scores.npz", "scores.csv"})
    reasons = json.loads(call(*command, HERE, "--json").stdout)["left_out"]
    assert reasons["dumps/long.npy"].startswith("dumps/long.npy: image 1, patch 2 has a norm above 1e18")
    assert reasons["dumps/bad.npy"] == "dumps/bad.npy: image 400, patch 7 holds NaN or infinity; expected finite values"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw pictures with clouds, one of them damaged, and a calibrated model of the good ones."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("parts")
    write_synthetic(folder / "raw", size=96, n_train=4, n_validation=3, n_test=4, categories=["stud_tray"], workers=1)
    facts("fit", "patchcore", folder / "raw", "--out", folder / "tray.model", *small_settings(64, 8, 0.2, "validation"))
    damaged(folder).write_bytes(b"no picture")
    return folder


def damaged(folder: Path) -> Path:
    return min((folder / "raw/stud_tray/test").rglob("rgb/*.png"))


@pytest.mark.usefixtures("one_thread")
def test_predict(cluster: Any, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tifffile")
    monkeypatch.chdir(parts)
    out = parts / "out"
    out.mkdir()
    command = ("predict", "tray.model", "raw", "--out", "out/samples", "--maps", "out/maps", "--csv", "out/table.csv")
    check_same((*command, "--jsonl", "out/lines.jsonl"), out, 3, among={"table.csv", "lines.jsonl"})
    lines = [json.loads(line) for line in (out / "lines.jsonl").read_text().splitlines()]
    assert [Path(one["id"]).name for one in lines if "left_out" in one] == [damaged(parts).stem]
    assert len(files(out / "maps")) == len(lines) - 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_extract(cluster: Any, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample cannot be read, so that in this process other samples are described together than in others."""
    monkeypatch.chdir(parts)
    shutil.copytree("raw", "read")
    pictures = sorted(Path("read/stud_tray/train").rglob("rgb/*.png"))
    pictures[1].write_bytes(b"no picture")
    networks = ("--rgb", "efficientnet_lite0", "--xyz", "none", "--grid", 8, "--image-size", 64, "--batch", 2)
    check_same(("extract", "read", "--out", "dumps", *networks), parts / "dumps", 3, among={"rgb.npy"})
    assert len(np.load("dumps/rgb.npy")) == len(pictures) - 1


class Unreadable:
    """Samples none of which can be read."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Any:
        raise InputError(f"{number}.png: expected a picture")


def test_a_batch_of_samples_that_cannot_be_read_is_described_by_their_reasons() -> None:
    networks = {"rgb": make_rgb_extractor("efficientnet_lite0", "random")}
    work = Extraction(Unreadable(), Extractors(networks), lambda sample: sample)
    found = work.describe([0, 2])
    assert [reason for _, reason in found] == ["0.png: expected a picture", "2.png: expected a picture"]


@pytest.mark.parametrize("command", ["score", "predict", "extract"])
def test_what_does_not_go_together_is_refused(command: str, tmp_path: Path) -> None:
    for words, said in (
        (("--address", "auto"), "error: --address: expected --workers beside it, found auto alone\n"),
        (("--workers", 0), "error: --workers: expected at least 1, found 0\n"),
    ):
        paths = (tmp_path / "a",) if command == "extract" else (tmp_path / "a", tmp_path / "b")
        line = refused(command, *paths, "--out", tmp_path / "c", *words)
        assert line == said
