"""The networks of a fitted method, each with an example of its input, as they are written to ONNX."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmad_bank.errors import InputError
from mmad_bank.features import EfficientNetLite, PointPatches, RGBExtractor
from mmad_bank.features.point_transformer import PointTransformer
from mmad_bank.features.tiles import TiledExtractor
from mmad_bank.methods import BTF, CFM, LSFA, M3DM, Method, PatchCore

_EXAMPLES = 2  # images: a batch of one would be taken for a size that never changes
_ROWS = 50
_SIDE = 0.1  # metres


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
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    output: str = "features"
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    takes_pictures: bool = False
    grid: tuple[int, int] | None = None


class _Groups(nn.Module):
    """The transformer of a point cloud's groups, without the sampling of these."""

    def __init__(self, network: PointTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, groups: Tensor, centers: Tensor) -> Tensor:
        return self.network.tokens(groups, centers)


class _Adapted(nn.Module):
    """An extractor with the adaptor of its features behind it (LSFA)."""

    def __init__(self, network: nn.Module, adaptor: nn.Module) -> None:
        super().__init__()
        self.network, self.adaptor = network, adaptor

    def forward(self, images: Tensor) -> Tensor:
        return cast("Tensor", self.adaptor(self.network(images)))


def networks_of(method: Method) -> Iterator[Network]:
    """Yield the networks of a fitted method that ONNX can hold.

    Raises:
        InputError: It is of a kind that has none, or shows its network tiles.
    """
    if not isinstance(method, (PatchCore, BTF, M3DM, LSFA, CFM)):
        raise InputError(f"model: expected one of patchcore, btf, m3dm, lsfa and cfm to export, found {method.name}")
    extractors = cast("Any", method).extractors_.networks
    if "rgb" in extractors:
        yield _of_pictures(method, extractors["rgb"])
    points = extractors.get("xyz")
    points = points.network if isinstance(points, PointPatches) else points
    if isinstance(points, PointTransformer):
        yield _of_points(points)
    if isinstance(method, CFM):
        for name, mapping in method.mappings_.items():
            rows = torch.rand(_ROWS, mapping.in_dim)
            yield Network(
                f"mapping-{name}", in_float32(mapping), {"source": rows}, "predicted", {"source": {0: "rows"}}
            )


def _of_pictures(method: Any, network: nn.Module) -> Network:
    """Return the extractor of pictures; its products are float32's, whatever the method asks for."""
    if isinstance(network, TiledExtractor):
        raise InputError(
            "model: expected a network that sees the whole picture, found tiles"
            f" of {network.tile} pixels, which ONNX cannot blend; fit one with tiles=none"
        )
    assert isinstance(network, (EfficientNetLite, RGBExtractor))
    if network.int8 is not None:
        raise InputError("model: expected float32 or bfloat16 as its compute_dtype to export, found int8")
    own = in_float32(network)
    adaptation = getattr(method, "adaptation_", None)
    if adaptation is not None:
        own = _Adapted(own, in_float32(adaptation.adaptors["rgb"])).eval()
    size = method.image_size
    images = torch.randint(0, 256, (_EXAMPLES, 3, size, size), dtype=torch.uint8)
    return Network(
        "rgb", own, {"images": images}, axes={"images": {0: "batch"}}, takes_pictures=True, grid=network.grid
    )


def _of_points(network: PointTransformer) -> Network:
    """Return the network of a cloud's groups, which has no other number of them than it was made for."""
    groups = torch.rand(network.num_groups, network.group_size, 3) * _SIDE
    centers = torch.rand(1, network.num_groups, 3) * _SIDE
    return Network("xyz-groups", _Groups(in_float32(network)).eval(), {"groups": groups, "centers": centers}, "tokens")


def in_float32(network: nn.Module) -> Any:
    """Return a copy of a network on the CPU that computes in float32, by PyTorch."""
    own: Any = copy.deepcopy(network).cpu().eval()
    for module in own.modules():
        for name, value in (("compute_dtype", "float32"), ("runtime", "torch")):
            if hasattr(module, name):
                setattr(module, name, value)
    return own
