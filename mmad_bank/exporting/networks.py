"""The networks of a fitted method, each with an example of its input, as they are written to ONNX."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmad_bank.errors import InputError
from mmad_bank.exporting.composing import side_of
from mmad_bank.features import EfficientNetLite, PointPatches, RGBExtractor
from mmad_bank.features.point_transformer import PointTransformer
from mmad_bank.features.tiles import TiledExtractor
from mmad_bank.methods import BTF, CFM, LSFA, M3DM, MDSS, Method, PatchCore
from mmad_bank.methods.mdss.pdn import PDN

_EXAMPLES = 2  # images: a batch of one would be taken for a size that never changes
_ROWS = 50
_SIDE = 0.1  # metres
_SMALL = 0.01  # scores of MDSS's branches, which are no features, may be this small


@dataclass(frozen=True)
class Network:
    """A network to write.

    Attributes:
        name: Name of its file, without the ending.
        module: Function of ``inputs``, in evaluation mode, on the CPU.
        inputs: Example of each input, by name.
        output: Name of the output.
        axes: Axes of the inputs whose length may be another, by input: the axis's number and name.
        takes_pictures: Whether its input are prepared pictures, which the preparation may come before.
        grid: (h, w) of the patches that it describes.
        tile: The network of a tile, where ``module`` is an extractor over tiles.
        unit: What counts as the output's largest value where that is smaller.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    output: str = "features"
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    takes_pictures: bool = False
    grid: tuple[int, int] | None = None
    tile: Network | None = None
    unit: float = 1.0


class _Groups(nn.Module):
    """The transformer of a point cloud's groups, without the sampling of these."""

    def __init__(self, network: PointTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, groups: Tensor, centers: Tensor) -> Tensor:
        return self.network.tokens(groups, centers)


class _Differences(nn.Module):
    """The mean over channels of what MDSS's student gets wrong, also where its background is."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(self, images: Tensor) -> Tensor:
        values = images.float() / 255
        return cast("Tensor", (self.teacher(values) - self.student(values)).square().mean(1))


class _Distances(nn.Module):
    """The distances of patches' points from the surface that these patches should have."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        return cast("Tensor", self.network(patches, patches)).abs()


def networks_of(method: Method) -> Iterator[Network]:
    """Yield the networks of a fitted method that ONNX can hold.

    Raises:
        InputError: It is of a kind that has none.
    """
    if isinstance(method, MDSS):
        yield from _of_branches(method)
        return
    if not isinstance(method, (PatchCore, BTF, M3DM, LSFA, CFM)):
        raise InputError(
            f"model: expected one of patchcore, btf, m3dm, lsfa, cfm and mdss to export, found {method.name}"
        )
    extractors = cast("Any", method).extractors_.networks
    if "rgb" in extractors:
        yield _of_pictures(method, extractors["rgb"])
    points = extractors.get("xyz")
    points = points.network if isinstance(points, PointPatches) else points
    if isinstance(points, PointTransformer):
        yield _of_points(points)
    adaptation = getattr(method, "adaptation_", None)
    if adaptation is not None and "xyz" in extractors:
        yield _of_patches(adaptation.adaptors["xyz"], extractors["xyz"].grid)
    if isinstance(method, M3DM) and method.uff_ is not None:
        uff = in_float32(method.uff_)  # of every row: which rows are equal is not looked at
        yield _of_rows("fusion-xyz", nn.Sequential(uff.xyz_norm, uff.xyz_mlp), uff.xyz_dim, "fused")
        yield _of_rows("fusion-rgb", nn.Sequential(uff.rgb_norm, uff.rgb_mlp), uff.rgb_dim, "fused")
    if isinstance(method, CFM):
        for name, mapping in method.mappings_.items():
            yield _of_mapping(f"mapping-{name}", in_float32(mapping), side_of(method))


def _of_pictures(method: Any, network: EfficientNetLite | RGBExtractor | TiledExtractor) -> Network:
    """Return the extractor of pictures; its products are float32's, whatever the method asks for."""
    tile = None
    if network.int8 is not None:
        raise InputError("model: expected float32 or bfloat16 as its compute_dtype to export, found int8")
    if isinstance(network, TiledExtractor):
        tile = of_images(in_float32(network.network), network.tile, _EXAMPLES)
    own = in_float32(network)
    adaptation = getattr(method, "adaptation_", None)
    if adaptation is not None:
        own = nn.Sequential(own, in_float32(adaptation.adaptors["rgb"])).eval()
    # Of tiles the loops are written, not traced: one large image is enough of an example.
    whole = of_images(own, method.image_size, _EXAMPLES if tile is None else 1)
    return replace(whole, takes_pictures=True, grid=network.grid, tile=tile)


def of_images(module: nn.Module, size: int, number: int) -> Network:
    """Return a network of prepared squares, with a number of them as the example."""
    images = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8)
    return Network("rgb", module, {"images": images}, axes={"images": {0: "batch"}})


def _of_points(network: PointTransformer) -> Network:
    """Return the network of a cloud's groups, which has no other number of them than it was made for."""
    groups = torch.rand(network.num_groups, network.group_size, 3) * _SIDE
    centers = torch.rand(1, network.num_groups, 3) * _SIDE
    return Network("xyz-groups", _Groups(in_float32(network)).eval(), {"groups": groups, "centers": centers}, "tokens")


def _of_patches(adaptor: nn.Module, grid: tuple[int, int]) -> Network:
    """Return the adaptor of a cloud's aligned features; a patch of zeros, which has no point, is in the example."""
    patches = torch.rand(_EXAMPLES, grid[0] * grid[1], int(adaptor.dim))  # type: ignore[arg-type]
    patches[:, ::3] = 0
    return Network("adaptor-xyz", in_float32(adaptor), {"patches": patches}, "adapted", {"patches": {0: "batch"}})


def _of_rows(name: str, module: nn.Module, dim: int, output: str, given: str = "rows") -> Network:
    """Return a network of each row alone."""
    return Network(name, module.eval(), {given: torch.rand(_ROWS, dim)}, output, {given: {0: "rows"}})


def _of_mapping(name: str, mapping: Any, size: int) -> Network:
    """Return one of CFM's mappings: of rows, or, with convolutions, of whole maps."""
    if not mapping.needs_maps:
        return _of_rows(name, mapping, mapping.in_dim, "predicted", "source")
    maps = torch.rand(1, size, size, mapping.in_dim)
    return Network(name, mapping, {"source": maps}, "predicted")


def _of_branches(method: MDSS) -> Iterator[Network]:
    """Yield the networks of MDSS's branches: student and teacher in one, and the signed distances of patches."""
    if method.teacher_ is not None and method.student_ is not None:
        both = _Differences(in_float32(method.teacher_), in_float32(method.student_)).eval()
        network = of_images(both, method.image_size, _EXAMPLES)
        grid = PDN.grid(method.image_size)
        yield replace(network, name="differences", output="differences", grid=grid, unit=_SMALL)
    if method.sdf_ is not None:
        patches = torch.rand(_EXAMPLES, method.patch_size, 3) - 0.5
        yield Network(
            "signed-distance", _Distances(in_float32(method.sdf_)).eval(), {"patches": patches}, "distances",
            {"patches": {0: "batch"}}, unit=_SMALL,
        )  # fmt: skip


def in_float32(network: nn.Module) -> Any:
    """Return a copy of a network on the CPU that computes in float32, by PyTorch.

    Nothing of it overwrites its input: PyTorch's exporter takes operators that do so apart, which takes it twice as
    long for a graph of the same nodes.
    """
    own: Any = copy.deepcopy(network).cpu().eval()
    for module in own.modules():
        for name, value in (("compute_dtype", "float32"), ("runtime", "torch"), ("inplace", False)):
            if hasattr(module, name):
                setattr(module, name, value)
    return own
