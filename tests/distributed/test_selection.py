"""Selection over shares of a dump, by workers in this process: the same rows, and no more bytes than are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmad_bank import ops
from mmad_bank.bank.dumps import FeatureDump, open_dump
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.standardization import Moments, first_shift
from mmad_bank.distributed.selection import LocalCrew, Selection
from mmad_bank.distributed.shares import Cut, Numbering
from mmad_bank.distributed.workers import Worker
from mmad_bank.errors import InputError


def features(seed: int = 0, n: int = 600, dim: int = 24) -> torch.Tensor:
    """Noise, with rows that come again in other blocks."""
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    rows[n // 2 :: 5] = rows[0 : n - n // 2 : 5]
    return rows


def select(
    dump: FeatureDump, n_workers: int, *, rows_at_once: int = 37, moments: Moments | None = None, **worker: Any
) -> tuple[Selection, LocalCrew, list[tuple[str, int, int]]]:
    """Return a selection whose workers have read their shares, and the stages that it reports."""
    reported: list[tuple[str, int, int]] = []
    cut = Cut(dump, n_workers, rows_at_once)
    if moments is not None:
        moments.shift = worker["shift"] = first_shift(dump.read(*cut.ranges[0]))
    crew = LocalCrew([Worker(share, **worker) for share in cut.shares()])
    selection = Selection(crew, cut, lambda *told: reported.append(told))
    selection.read(moments)
    return selection, crew, reported


@pytest.mark.parametrize("n_workers", [1, 2, 3, 7, 30])  # of 30 some get nothing
@pytest.mark.parametrize("stored", ["memory", "file"])
def test_rows_are_those_of_one_process(n_workers: int, stored: str, tmp_path: Path) -> None:
    rows = features()
    np.save(tmp_path / "rows.npy", rows.numpy())
    dump = open_dump(rows if stored == "memory" else tmp_path / "rows.npy")
    for n_select, start in ((1, 0), (60, 599), (600, 3)):
        expected = ops.k_center_greedy(rows, n_select, start=start, return_radius=True)
        selection, _, reported = select(dump, n_workers)
        found = selection.run(n_select, start=start)
        assert found.rows.tolist() == expected.indices.tolist()
        assert found.covering_radius == expected.covering_radius
        assert torch.equal(selection.take(found.rows), rows[expected.indices])
        done = [one for one in reported if one[0] == "Reading features"]
        assert done[-1] == ("Reading features", 600, 600)
        assert n_select == 1 or reported[-1] == ("Selecting the coreset", n_select, n_select)


@pytest.mark.parametrize(("radius", "n_select"), [(4.0, 600), (-1.0, 40), (0.0, 600), (1e9, 600)])
def test_extensions_are_those_of_one_process(radius: float, n_select: int) -> None:
    rows, earlier = features(), features(1)[:50]
    limit = None if radius < 0 else radius
    expected = ops.extend_coreset(rows, earlier, radius=limit, n_select=n_select)
    selection, _, _ = select(open_dump(rows), 3)
    found = selection.run(n_select, earlier=earlier.numpy(), radius=max(radius, 0.0))
    assert found.rows.tolist() == expected.indices.tolist()
    assert found.covering_radius == expected.covering_radius


@pytest.mark.parametrize("scratch", [False, True])
def test_rows_are_projected_and_kept_in_scratch_files(scratch: bool, tmp_path: Path) -> None:
    rows, projection = features(dim=40), SparseProjection(40, 9, 3)
    folder = tmp_path / "scratch"
    folder.mkdir()
    np.save(tmp_path / "rows.npy", rows.numpy())
    where = {"scratch": folder} if scratch else {}
    selection, _, _ = select(open_dump(tmp_path / "rows.npy"), 4, projection=projection, **where)
    found = selection.run(70)
    assert found.rows.tolist() == ops.k_center_greedy(projection(rows), 70).tolist()
    assert torch.equal(selection.take(found.rows), rows[found.rows])
    assert list(folder.iterdir()) == []


def test_moments_are_the_local_ones_to_the_bit() -> None:
    dump, local, joined = open_dump(features() + 2), Moments(), Moments()
    for _, block in dump.blocks(37):
        local.update(block)
    select(dump, 3, moments=joined)
    assert joined.result() == local.result()


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("n_select", [1, 120, 600])  # of 600 the last block is nobody's news
def test_bytes_moved_are_those_of_the_formula(n_workers: int, n_select: int) -> None:
    rows = features()
    selection, crew, _ = select(open_dump(rows), n_workers)
    read = replace(crew.traffic)
    found = selection.run(n_select)
    assert selection.moved == crew.traffic.since(read) == selection.tally.traffic(n_workers, rows.shape[1])
    assert ((found.radii == 0).sum() > 0) == (n_select == 600)
    assert selection.tally.met == n_select if n_select < 600 else 1 < selection.tally.met < 600
    assert selection.tally.offered >= selection.tally.met - 1


def test_an_extension_by_nothing_moves_what_it_should() -> None:
    rows = features()
    selection, _, _ = select(open_dump(rows), 2)
    assert len(selection.run(600, earlier=rows.numpy(), radius=0.5).rows) == 0
    assert selection.tally.met == 600
    assert selection.moved == selection.tally.traffic(2, rows.shape[1])


def test_numbers_of_no_rows() -> None:
    assert Numbering([]).here(np.array([3])).tolist() == [-1]
    assert Numbering([]).in_all(np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("stored", ["memory", "file"])
def test_the_first_bad_row_is_told_as_in_one_process(stored: str, tmp_path: Path) -> None:
    rows = features()
    rows[400, 2] = rows[150, 1] = float("nan")
    np.save(tmp_path / "rows.npy", rows.numpy())
    dump = open_dump(rows if stored == "memory" else tmp_path / "rows.npy")
    with pytest.raises(InputError) as local:
        list(dump.blocks(37))
    with pytest.raises(InputError) as spread:
        select(dump, 3)
    assert str(spread.value) == str(local.value)
    assert "row 150" in str(spread.value)


def test_a_scratch_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^scratch: .*gone: expected a folder, found none$"):
        select(open_dump(features()), 2, scratch=tmp_path / "gone")


def test_a_full_scratch_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=r"^scratch: .*: cannot hold a file of .* MB \(No space left on device\)$"):
        select(open_dump(features()), 2, scratch=tmp_path)
