"""Tiles: a large image described piece by piece, blended, a few pieces at a time; and PatchCore on them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank.errors import InputError
from mmad_bank.features.tiles import TiledExtractor, check_tiles, starts, whole_grid


class Pointwise(nn.Module):
    """Means of cells of 8 pixels, which depend on nothing around them, and, if asked, where the cell lies in a tile."""

    def __init__(self, tile: int, *, placed: bool = False) -> None:
        super().__init__()
        self.grid, self.dim, self.name, self.placed = (tile // 8, tile // 8), 3, "pointwise", placed
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        maps = F.avg_pool2d(images, 8)
        if self.placed:
            maps = maps * 0 + torch.arange(self.grid[1])
        return maps.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("overlap", [0, 8, 16, 32])
@pytest.mark.parametrize("size", [72, 128, 200])
def test_what_depends_on_nothing_around_is_the_same_in_tiles(size: int, overlap: int) -> None:
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    tiled = TiledExtractor(Pointwise(64), size, 64, overlap)
    assert tiled.grid == (size // 8, size // 8)
    assert torch.allclose(tiled(image), Pointwise(size)(image), atol=1e-6)


def test_tiles_cover_all_and_the_last_ends_with_the_image() -> None:
    for size, tile, overlap in ((128, 64, 0), (136, 64, 16), (72, 64, 32), (2016, 224, 32)):
        side = starts(size, tile, overlap)
        assert side[0] == 0
        assert side[-1] == size - tile
        assert all(0 < after - before <= tile - overlap for before, after in pairwise(side))


def test_features_do_not_jump_between_tiles() -> None:
    """The network tells the column in its tile: from one tile to the next it falls, over the overlap or at once."""
    image = torch.rand(1, 3, 176, 176)
    rows = {}
    for overlap in (0, 32):
        features = TiledExtractor(Pointwise(64, placed=True), 176, 64, overlap)(image)
        rows[overlap] = features.view(22, 22, 3)[10, :, 0].diff()
    assert float(rows[0].min()) == -7  # from the last of 8 columns to the first
    assert float(rows[32].abs().max()) <= 1  # 4 columns share what falls from 7 to 4


def test_few_tiles_are_computed_at_once_and_padding_once() -> None:
    image = torch.rand(1, 3, 320, 320) + 0.01
    network = Pointwise(64)
    tiled = TiledExtractor(network, 320, 64, 0)
    tiled(image)
    assert (max(network.batches), sum(network.batches)) == (8, 25)
    padded = image.clone()
    padded[:, :, :64] = 0
    padded[:, :, 256:] = 0
    network.batches.clear()
    found = tiled(padded)
    assert sum(network.batches) == 15 + 1
    assert torch.allclose(found, Pointwise(320)(padded), atol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (((28, 28), 224, 0, 224), "tiles: expected fewer pixels than image_size, 224, found 224"),
        (((28, 28), 100, 0, 500), "tiles: expected a multiple of the grid's 28 patches along a side, found 100"),
        (((28, 28), 224, 0, 500), "image_size: expected a multiple of 8, the pixels of a patch, found 500"),
        (((28, 28), 224, 12, 512), "tile_overlap: expected a multiple of 8, .* up to half of a tile of 224, found 12"),
        (((28, 28), 224, 120, 512), "tile_overlap: expected .* found 120"),
    ],
)
def test_sizes_that_do_not_fit_are_named(numbers: tuple[tuple[int, int], int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_tiles(*numbers)
    assert whole_grid((28, 14), 224, 448) == (56, 28)
    with pytest.raises(InputError, match="images: expected 128×128 pixels, found 64×64"):
        TiledExtractor(Pointwise(64), 128, 64, 0)(torch.rand(1, 3, 64, 64))


# PatchCore.

ARGUMENTS = {"rgb_weights": "random", "rgb_layers": (1,), "image_size": 160, "grid": (8, 8), "ratio": 0.2}
TILES = {"tiles": 64, "tile_overlap": 16}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("timm", "tifffile"):
        pytest.importorskip(package)
    from data_trees import add_picture

    folder = tmp_path_factory.mktemp("large")
    for number in range(3):
        add_picture(folder / "good" / f"{number}.png", size=(120, 160), seed=number)
    add_picture(folder / "bad.png", size=(120, 160), seed=9, spot=True)
    return folder


def test_patchcore_on_tiles(parts: Path, tmp_path: Path) -> None:
    from mmad_bank import methods
    from mmad_bank.data import open_dataset
    from mmad_bank.methods import PatchCore

    data = open_dataset(parts / "good")
    model = PatchCore("efficientnet_lite0", **ARGUMENTS, **TILES).fit(data)  # type: ignore[arg-type]
    assert "tiles 64 overlap 16 of 160" in (model.banks_["rgb"].extractor or "")
    found = model.predict(parts / "bad.png")
    assert found.parts["rgb"].grid == (20, 20)
    top, left, bottom, right = found.box("rgb")
    assert (bottom - top, right - left) == (8, 8)
    spot = found.map.argmax()
    row, column = divmod(int(spot), 160)
    assert 8 <= row < 24  # the spot lies in rows 12 to 19, columns 16 to 31
    assert 12 <= column < 36
    assert found.score > 1.5 * model.predict(parts / "good" / "0.png").score
    reasons = model.explain(found, n=2)
    assert all(one.sample in model.train_ids_ and one.box is not None for one in reasons)
    model.save(tmp_path / "model")
    again = methods.load(tmp_path / "model").predict(parts / "bad.png")
    assert again.map.equal(found.map)
    whole = PatchCore("efficientnet_lite0", **{**ARGUMENTS, "grid": (20, 20)})  # type: ignore[arg-type]
    assert whole.fingerprint_on(data) != model.fingerprint_on(data)
    other = PatchCore("efficientnet_lite0", **ARGUMENTS, tiles=64, tile_overlap=8)  # type: ignore[arg-type]
    assert other.fingerprint_on(data)["extraction"] != model.fingerprint_on(data)["extraction"]


def test_tiles_and_a_region_of_interest(parts: Path) -> None:
    from mmad_bank.data import RegionOfInterest, open_dataset
    from mmad_bank.methods import PatchCore

    away = RegionOfInterest(polygons=(((100, 0), (159, 0), (159, 119), (100, 119)),))
    model = PatchCore("efficientnet_lite0", **ARGUMENTS, **TILES)  # type: ignore[arg-type]
    model.fit(open_dataset(parts / "good", roi=away))
    found = model.predict(parts / "bad.png")
    assert float(found.map[:, :100].abs().max()) == 0
    assert found.box("rgb")[3] > 100


def test_arguments_of_patchcore() -> None:
    from mmad_bank.methods import PatchCore

    with pytest.raises(InputError, match="tiles: expected fewer pixels than image_size, 224, found 224"):
        PatchCore("efficientnet_lite0", tiles=224)
    assert PatchCore(tile_overlap=16).idle_arguments()["tile_overlap"] == "tiles=none"
    assert "tile_overlap" not in PatchCore(tiles=224, image_size=448).idle_arguments()
