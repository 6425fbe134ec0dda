"""Codes, the cells under their patches, and the RGB features that they lead to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_bank.data.frame import Frame
from mmad_bank.errors import InputError
from mmad_bank.methods.shape_guided.cells import box_of, cells_under
from mmad_bank.methods.shape_guided.explaining import patch_around
from mmad_bank.methods.shape_guided.memory import DualMemory

IMAGES, CELLS = 3, 10


def memory(ratio: float = 1.0) -> DualMemory:
    """Three images of ten cells, four patches each: patch p of an image lies over its cells p and p + 1."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(IMAGES * 4, 6, generator=generator)
    cells = torch.zeros(IMAGES * 4, CELLS, dtype=torch.bool)
    for number in range(IMAGES * 4):
        cells[number, number % 4 : number % 4 + 2] = True
    colors = torch.randn(IMAGES, CELLS, 5, generator=generator).numpy()
    return DualMemory.build(codes, torch.arange(IMAGES).repeat_interleave(4), cells, colors, ratio=ratio)


def test_all_codes_and_the_features_that_they_lead_to_are_kept() -> None:
    own = memory()
    assert len(own.codes) == IMAGES * 4
    assert own.colors.source_rows.tolist() == [image * CELLS + cell for image in range(IMAGES) for cell in range(5)]
    assert own.colors.provenance([7])[0][2:4] == (1, 2)
    assert own.cells_of(torch.tensor([6]))[0].nonzero().flatten().tolist() == [2, 3]


def test_codes_lead_to_the_features_under_their_patches_each_once() -> None:
    own = memory()
    rows = own.guided(torch.tensor([[0, 1], [9, 0]]))
    assert own.colors.source_rows[rows].tolist() == [0, 1, 2, 2 * CELLS + 1, 2 * CELLS + 2]
    others = own.guided(torch.tensor([[0, 1], [9, 0]]), without=[0])
    assert own.colors.source_rows[others].tolist() == [2 * CELLS + 1, 2 * CELLS + 2]


def test_an_image_is_compared_with_the_others() -> None:
    own = memory()
    codes = own.codes.vectors[4:6]
    distances, rows = own.nearest(codes, 3)
    assert rows[:, 0].tolist() == [4, 5]
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-5)
    far, others = own.nearest(codes, 3, without=[1])
    expected = torch.cdist(codes, own.codes.vectors)
    expected[:, 4:8] = torch.inf
    values, columns = expected.topk(3, largest=False)
    assert torch.equal(others, columns)
    torch.testing.assert_close(far, values)
    assert own.nearest(codes, 50)[1].shape == (2, 12)
    assert own.nearest(codes, 50, without=[1])[1].shape == (2, 8)


def test_features_are_looked_for_among_those_that_count() -> None:
    own = memory()
    rows = torch.tensor([2, 5, 11])
    features = own.colors.vectors[[5, 0]]
    distances, found = own.match(features, rows, 2)
    expected, columns = torch.cdist(features, own.colors.vectors[rows]).topk(2, largest=False)
    assert torch.equal(found, rows[columns])
    torch.testing.assert_close(distances, expected, atol=1e-5, rtol=1e-5)


def test_in_smaller_banks_the_nearest_feature_stands_for_one_that_is_left_out() -> None:
    whole, own = memory(), memory(0.5)
    assert (len(own.codes), len(whole.codes)) == (6, 12)
    linked = (own.places >= 0).nonzero()
    assert len(own.colors) == len(linked) // 2
    table = torch.zeros(IMAGES, CELLS, 5)
    table.view(-1, 5)[whole.colors.source_rows] = whole.colors.vectors
    for image, cell in linked.tolist():
        nearest = torch.cdist(table[image, cell][None], own.colors.vectors).argmin()
        assert int(own.places[image, cell]) == int(nearest)
    kept = own.codes.source_rows
    assert torch.equal(own.images, kept // 4)
    assert [one.nonzero().flatten().tolist()[0] for one in own.cells_of(torch.arange(6))] == (kept % 4).tolist()


def test_links_are_saved_and_refused_beside_other_banks(tmp_path: Path) -> None:
    own = memory(0.5)
    own.save_links(tmp_path / "links.safetensors")
    again = DualMemory.of({"xyz": own.codes, "rgb": own.colors}, tmp_path / "links.safetensors")
    assert torch.equal(again.guided(torch.arange(6)), own.guided(torch.arange(6)))
    assert again.nbytes == own.nbytes
    for banks in ({"xyz": memory().codes, "rgb": own.colors}, {"xyz": own.codes, "rgb": memory(0.1).colors}):
        with pytest.raises(ValueError, match="links of other banks"):
            DualMemory.of(banks, tmp_path / "links.safetensors")
    nowhere, unlinked = replace(own, cells=own.cells * 0), replace(own, places=own.places * 0 - 1)
    for damaged in (nowhere, unlinked):
        damaged.save_links(tmp_path / "links.safetensors")
        with pytest.raises(ValueError, match="codes lead to cells without a feature"):
            DualMemory.of({"xyz": own.codes, "rgb": own.colors}, tmp_path / "links.safetensors")


def test_codes_of_one_image_alone_are_refused_by_the_ratio() -> None:
    own = memory(0.1)
    with pytest.raises(InputError, match=r"ratio: expected .* of several training images, found \d+ kept codes"):
        own.nearest(torch.rand(2, 3), 1, without=own.images.unique().tolist())


def test_the_margin_is_a_cross_that_ends_at_the_border() -> None:
    middle = cells_under(torch.tensor([[4 * 8 + 4]]), (8, 8), (8, 8), margin=2).view(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:7, 4] = expected[4, 2:7] = True
    assert torch.equal(middle, expected)
    corner = cells_under(torch.tensor([[0]]), (8, 8), (8, 8), margin=2).view(8, 8)
    assert corner.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0]]


def test_cells_of_grids_that_do_not_divide_the_picture() -> None:
    pixels = torch.arange(10 * 7)[None].T  # one patch per pixel
    cells = cells_under(pixels, (10, 7), (4, 3))
    rows, columns = torch.arange(10) * 4 // 10, torch.arange(7) * 3 // 7
    assert torch.equal(cells.int().argmax(1), (rows[:, None] * 3 + columns).flatten())
    assert bool((cells.sum(1) == 1).all())


def test_the_middle_and_the_box_of_cells() -> None:
    cells = torch.zeros(4, 4, dtype=torch.bool)
    assert box_of(cells, None) == (None, None)
    cells[1:4, 2] = True
    assert box_of(cells, None) == ((2, 2), None)
    assert box_of(cells, Frame.centred((8, 8), 8)) == ((2, 2), (2, 4, 8, 6))


def test_a_pixel_belongs_to_the_patch_in_whose_middle_it_lies() -> None:
    pixels = torch.tensor([[1, 2, 3], [3, 2, 1], [7, 3, 9]])
    assert [patch_around(pixels, pixel) for pixel in (1, 3, 9, 5)] == [0, 1, 2, None]
