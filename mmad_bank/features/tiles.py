"""An extractor over tiles: a large image is described piece by piece, and the pieces are blended where they overlap."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmad_bank.errors import InputError
from mmad_bank.features.int8 import Int8Scales
from mmad_bank.features.runtimes import Frozen, Runtime

_AT_ONCE = 8  # tiles in a batch: what bounds the memory of the network's layers


def whole_grid(grid: tuple[int, int], tile: int, image_size: int) -> tuple[int, int]:
    """Return the grid of an image whose tiles have a grid each.

    Args:
        grid: (h, w) of a tile's patches.
        tile: Side of a tile, in pixels.
        image_size: Side of the image, in pixels.

    Raises:
        InputError: The tile is no smaller than the image, or patches of tiles would not lie on one grid.

    Example:
        >>> whole_grid((28, 28), 224, 1792)
        (224, 224)
    """
    if tile >= image_size:
        raise InputError(f"tiles: expected fewer pixels than image_size, {image_size}, found {tile}")
    for n in grid:
        if tile % n:
            raise InputError(f"tiles: expected a multiple of the grid's {n} patches along a side, found {tile}")
        if image_size % (tile // n):
            cell = tile // n
            raise InputError(f"image_size: expected a multiple of {cell}, the pixels of a patch, found {image_size}")
    return grid[0] * image_size // tile, grid[1] * image_size // tile


def check_tiles(grid: tuple[int, int], tile: int, overlap: int, image_size: int) -> None:
    """Refuse sizes that do not fit each other, see :class:`TiledExtractor`.

    Raises:
        InputError: They do not; the message names the argument.
    """
    whole_grid(grid, tile, image_size)
    for n in grid:
        if not 0 <= overlap <= tile // 2 or overlap % (tile // n):
            expected = f"a multiple of {tile // n}, the pixels of a patch, up to half of a tile of {tile}"
            raise InputError(f"tile_overlap: expected {expected}, found {overlap}")


def starts(image_size: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along a side; the last one ends with the image, and overlaps by more if it must.

    Example:
        >>> starts(512, 224, 32)
        [0, 192, 288]
    """
    return [*range(0, image_size - tile, tile - overlap), image_size - tile]


def falling(n: int, shared: int) -> Tensor:
    """Return the weights (n,) of a tile's patches along a side: 1 inside, falling to 0 over the overlap.

    Args:
        n: Patches of a tile along the side.
        shared: Patches that neighboring tiles share.

    Example:
        >>> falling(4, 1)
        tensor([0.5000, 1.0000, 1.0000, 0.5000])
    """
    steps = torch.arange(n) + 0.5
    return torch.minimum(steps, n - steps).div(max(shared, 0.5)).clamp(max=1)


def blending(image_size: int, tile: int, overlap: int, n: int) -> Tensor:
    """Return the matrix that blends the patches of all tiles along a side to those of the image.

    The weights of a tile are products of its sides' weights, and so is their sum: rows and columns can be blended one
    after the other.

    Args:
        image_size: Side of the image, in pixels.
        tile: Side of a tile, in pixels.
        overlap: Pixels that neighboring tiles share.
        n: Patches of a tile along the side.

    Returns:
        (image_size * n / tile, tiles * n) float32, whose rows have the sum 1.

    Example:
        >>> blending(6, 4, 2, 2)
        tensor([[1.0000, 0.0000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 0.0000, 1.0000]])
    """
    first = torch.tensor(starts(image_size, tile, overlap)) * n // tile
    weights = falling(n, overlap * n // tile)
    matrix = torch.zeros(image_size * n // tile, len(first) * n)
    columns = torch.arange(len(first) * n)
    matrix[(first[:, None] + torch.arange(n)).flatten(), columns] = weights.repeat(len(first))
    return matrix / matrix.sum(1, keepdim=True)


class TiledExtractor(nn.Module):
    """Patch features of a large image, computed a few tiles at a time.

    A network sees a tile as it would see a whole image, at the size that it was trained on. Where tiles overlap, their
    features are averaged with weights that fall to nothing toward a tile's border, whose patches see the least around
    them: so no feature jumps from one tile to the next. The image's own border belongs to one tile and keeps its
    features.

    Args:
        network: Extractor of a tile: (B, 3, tile, tile) to (B, h·w, D), with ``grid``, ``dim`` and ``name``.
        image_size: Side of the images, in pixels.
        tile: Side of a tile, in pixels.
        overlap: Pixels that neighboring tiles share; a multiple of a patch's.

    Raises:
        InputError: The sizes do not fit each other.

    Example:
        >>> from mmad_bank.features import make_rgb_extractor
        >>> network = make_rgb_extractor("efficientnet_lite0", "random", grid=(8, 8), image_size=64)
        >>> tiled = TiledExtractor(network, 160, 64, 16)
        >>> tiled(torch.rand(1, 3, 160, 160)).shape, tiled.grid
        (torch.Size([1, 400, 656]), (20, 20))
    """

    def __init__(self, network: nn.Module, image_size: int, tile: int, overlap: int) -> None:
        super().__init__()
        self.network, self.image_size, self.tile, self.overlap = network, image_size, tile, overlap
        self.tile_grid: tuple[int, int] = network.grid  # type: ignore[assignment]
        check_tiles(self.tile_grid, tile, overlap, image_size)
        self.grid = whole_grid(self.tile_grid, tile, image_size)
        self.dim = int(network.dim)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """Name of the extractor, as a bank file records it."""
        return f"{self.network.name} tiles {self.tile} overlap {self.overlap} of {self.image_size}"

    def by(self, runtime: Runtime) -> TiledExtractor:
        """Return the same extractor with its network run by a library, see :meth:`Frozen.by`."""
        assert isinstance(self.network, Frozen)
        return TiledExtractor(self.network.by(runtime), self.image_size, self.tile, self.overlap)

    @property
    def int8(self) -> Int8Scales | None:
        """What integers need to know of the network's inputs, see :class:`Frozen`."""
        assert isinstance(self.network, Frozen)
        return self.network.int8

    def warm_up(self, size: int) -> None:
        """Compile the network for tiles now, see :meth:`Frozen.warm_up`; the size of the whole image does not count."""
        del size
        assert isinstance(self.network, Frozen)
        self.network.warm_up(self.tile)

    def measure_int8(self, images: Tensor) -> None:
        """Show the network a tile of each image (B, 3, S, S), here and there in it, see :meth:`Frozen.measure_int8`."""
        assert isinstance(self.network, Frozen)
        side = starts(self.image_size, self.tile, self.overlap)
        places = [(top, left) for top in side for left in side]
        chosen = [places[number * len(places) // len(images)] for number in range(len(images))]
        self.network.measure_int8(torch.stack([
            image[:, top : top + self.tile, left : left + self.tile]
            for image, (top, left) in zip(images, chosen, strict=True)
        ]))  # fmt: skip

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Extract patch features: (B, 3, S, S) to float32 (B, h·w, D), row by row over the grid of the whole image.

        Raises:
            InputError: The images have another size.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            found = "×".join(map(str, images.shape[-2:]))
            raise InputError(f"images: expected {self.image_size}×{self.image_size} pixels, found {found}")
        return torch.stack([self._blended(image) for image in images])

    def _blended(self, image: Tensor) -> Tensor:
        """Describe one image (3, S, S): (h·w, D)."""
        side = starts(self.image_size, self.tile, self.overlap)
        places = [(top, left) for top in side for left in side]
        weights = self._weights().to(image.device)
        total = torch.zeros(*self.grid, self.dim, device=image.device)
        weight = torch.zeros(*self.grid, 1, device=image.device)
        black: Tensor | None = None  # the features of a tile of padding, of which there may be many
        for first in range(0, len(places), _AT_ONCE):
            chosen = places[first : first + _AT_ONCE]
            tiles = torch.stack([image[:, top : top + self.tile, left : left + self.tile] for top, left in chosen])
            shown = tiles.flatten(1).any(dim=1).bool()  # of uint8 any is uint8, which is no mask
            if black is None and not bool(shown.all()):
                black = self.network(torch.zeros_like(tiles[:1]))[0]
            features = iter(self.network(tiles[shown]) if bool(shown.any()) else ())
            for (top, left), seen in zip(chosen, shown.tolist(), strict=True):
                own = next(features) if seen else black
                assert own is not None
                rows, columns = self._cells(top, 0), self._cells(left, 1)
                total[rows, columns] += own.view(*self.tile_grid, self.dim) * weights
                weight[rows, columns] += weights
        return total.div_(weight).flatten(0, 1)

    def _cells(self, start: int, axis: int) -> slice:
        """Return the rows (axis 0) or columns (axis 1) of the whole grid that a tile covers."""
        n = self.tile_grid[axis]
        first = start * n // self.tile
        return slice(first, first + n)

    def _weights(self) -> Tensor:
        """Return the weights (h, w, 1) of a tile's patches: 1 inside, falling to 0 over the overlap."""
        sides = [falling(n, self.overlap * n // self.tile) for n in self.tile_grid]
        return torch.outer(*sides)[..., None]
