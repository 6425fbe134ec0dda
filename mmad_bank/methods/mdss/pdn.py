"""PDN and what MDSS makes of it: a student that imitates a teacher on the foreground of normal images (section 3.1).

The patch description network is that of EfficientAD (Batzner et al. 2024), its small variant.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.state_dicts import load_matching, read_torch
from mmad_bank.data.preprocessing import normalize_rgb
from mmad_bank.errors import InputError

CHANNELS, WIDTH = 384, 128
FOREGROUND = 8
"""Side in pixels of the square that the foreground is dilated with."""
_SMALLEST = 8  # pixels per side
_STRIDE, _REACH = 4, 4  # pixels per cell of the map; cells to either side whose pixels an output sees
# The published weights come from a list of layers, ReLU and pooling counted; others name them as here.
_LISTED = {"0": "conv1", "3": "conv2", "6": "conv3", "8": "conv4"}


class PDN(nn.Module):
    """The small patch description network, padded so that a 256×256 image gives a 64×64 map.

    Four convolutions and two average poolings; each output sees 33×33 pixels.

    Args:
        channels: Number of channels of the map.
        width: Number of channels after the first convolution, half of those after the second and third. 128 as
            published; a smaller one costs its square less.

    Raises:
        InputError: A size is below 1.

    Example:
        >>> net = PDN()
        >>> net(torch.rand(1, 3, 64, 64)).shape, net.grid(64)
        (torch.Size([1, 384, 16, 16]), (16, 16))
    """

    def __init__(self, channels: int = CHANNELS, *, width: int = WIDTH) -> None:
        super().__init__()
        self.channels = check_index(channels, "channels", 1, 2**15, "channels of the map")
        self.width = check_index(width, "width", 1, 2**12, "channels of the first convolution")
        self.conv1 = nn.Conv2d(3, width, 4, padding=3)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, padding=3)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.conv4 = nn.Conv2d(2 * width, channels, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Describe images.

        Args:
            images: (B, 3, H, W) in [0, 1]; ImageNet's mean and standard deviation are applied here.

        Returns:
            (B, channels, h, w), (h, w) as :meth:`grid` says.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < _SMALLEST:
            raise InputError(
                f"images: expected (B, 3, H, W) of {_SMALLEST} pixels or more per side, found {tuple(images.shape)}"
            )
        x = F.avg_pool2d(F.relu(self.conv1(normalize_rgb(images))), 2, 2, 1)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2, 2, 1)
        return self.conv4(F.relu(self.conv3(x)))

    @staticmethod
    def grid(size: int) -> tuple[int, int]:
        """Return (h, w) of the map of a square image.

        Example:
            >>> PDN.grid(256), PDN.grid(128)
            ((64, 64), (32, 32))
        """
        side = (((size + 3 + 2) // 2) + 3 + 2) // 2 - 3
        return side, side

    def load_checkpoint(self, path: str | os.PathLike[str]) -> PDN:
        """Load published weights: a state dict with the names ``conv1`` to ``conv4``, or ``0``, ``3``, ``6``, ``8``.

        Returns:
            The network, in evaluation mode.

        Raises:
            InputError: There is no such file.
            FormatError: It is no checkpoint, or one of another network.
        """
        load_matching(self, _renamed(read_torch(path, optional=("state_dict", "model"))), path)
        return self.eval()

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of channels, by the names of the arguments."""
        return {"pdn_width": self.width, "channels": self.channels}

    @staticmethod
    def sizes_in(state: Mapping[str, Tensor]) -> dict[str, int] | None:
        """Return the same of a file's tensors; None if they are another network's."""
        own = _renamed(state)
        if not {"conv1.weight", "conv4.weight"} <= own.keys():
            return None
        return {"pdn_width": len(own["conv1.weight"]), "channels": len(own["conv4.weight"])}


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give published weights the names that they have here."""
    words = {name: name.removeprefix("module.").partition(".") for name in state}
    return {f"{_LISTED.get(layer, layer)}.{rest}": state[name] for name, (layer, _, rest) in words.items()}


def foreground_mask(xyz: Tensor, size: int = FOREGROUND) -> Tensor:
    """Return where the object is, by its point cloud (MDSS, section 4.2).

    A pixel is foreground where a point was measured; the foreground is dilated with a square, which fills missing
    measurements.

    Args:
        xyz: (B, 3, H, W), zeros (or NaN) where nothing was measured.
        size: The square's side in pixels. The middle of an even one is taken as ``scipy.ndimage`` does, at size // 2.

    Returns:
        (B, H, W), bool.

    Example:
        >>> xyz = torch.zeros(1, 3, 1, 7)
        >>> xyz[..., 3] = 0.5
        >>> foreground_mask(xyz, 4).int().tolist()
        [[[0, 1, 1, 1, 1, 0, 0]]]
    """
    if xyz.ndim != 4 or xyz.shape[1] != 3:
        raise InputError(f"xyz: expected (B, 3, H, W), found {tuple(xyz.shape)}")
    check_index(size, "size", 1, 2**12, "the square's side")
    there = (torch.isfinite(xyz) & (xyz != 0)).all(dim=1, keepdim=True).float()
    # A measured pixel p reaches p - size // 2 to p + (size - 1) // 2.
    before, after = (size - 1) // 2, size // 2
    return F.max_pool2d(F.pad(there, (before, after, before, after)), size, 1)[:, 0] > 0


def mask_on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring a mask (B, H, W) to a grid: (B, h, w), bool; a cell is foreground if one of its pixels is."""
    return F.adaptive_max_pool2d(mask[:, None].float(), grid)[:, 0] > 0


def dynamic_quantile(step: int, steps: int, first: float = 0.99, last: float = 0.999) -> float:
    """Return MDSS's dynamic learning factor d of a step, counted from 0: a cosine from ``first`` to ``last``.

    The first step has ``first`` and the last one ``last``, exactly.

    Example:
        >>> [round(dynamic_quantile(step, 3), 4) for step in range(3)]
        [0.99, 0.9945, 0.999]
    """
    if steps == 1:
        return first
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * step / (steps - 1)))


def quantile_loss(difference: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """Average the elements of D ⊙ M above their quantile (MDSS eq. 1).

    The quantile is that of all elements, background zeros among them, interpolated linearly. Where no element is larger
    (they are all the same), those equal to it are averaged.

    Args:
        difference: D, (B, C, h, w), squared differences.
        mask: M, (B, h, w), the foreground.
        quantile: Quantile d, from 0 up to but less than 1.

    Returns:
        The loss, a scalar.

    Example:
        >>> d = torch.arange(5.0).view(1, 1, 1, 5)
        >>> quantile_loss(d, torch.ones(1, 1, 5), 0.5)  # 3 and 4 are above the median
        tensor(3.5000)
    """
    if not 0 <= quantile < 1:
        raise InputError(f"quantile: expected 0 <= quantile < 1, found {quantile!r}")
    values = (difference * mask[:, None]).flatten()
    position = quantile * (len(values) - 1)
    lower = math.floor(position)
    # All that can be above lies among the largest; torch.quantile would sort everything, and refuses 2^24 elements.
    top = values.topk(len(values) - lower).values
    low, high = top[-1].detach(), top[-min(2, len(top))].detach()
    above = top[top > torch.lerp(low, high, position - lower)]
    return above.mean() if len(above) else top.mean()


def squared_difference(teacher: nn.Module, student: nn.Module, images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return D = (T(I) - S(I))²; only the student's part has a gradient.

    Args:
        teacher: A :class:`PDN`.
        student: Another :class:`PDN`.
        images: (B, 3, S, S).
        mask: (B, h, w), the foreground on the grid. D is then computed in the rectangle around it alone, where it is
            what it would be without a mask; elsewhere it is 0.

    Returns:
        (B, C, h, w).
    """
    if mask is None or not bool(mask.any()):
        return _difference(teacher, student, images)
    there, (h, w) = mask.to(images.device).any(0), mask.shape[1:]
    (top, bottom), (left, right) = _extent(there.any(1)), _extent(there.any(0))
    (up, down), (before, after) = _widened(top, bottom, h), _widened(left, right, w)
    pixels = images[..., _pixels(up, down, h, images.shape[2]), _pixels(before, after, w, images.shape[3])]
    inner = _difference(teacher, student, pixels)[..., top - up : bottom - up, left - before : right - before]
    return F.pad(inner, (left, w - right, top, h - bottom))


def _difference(teacher: nn.Module, student: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        target = teacher(images)
    # Inside an autocast the networks give bfloat16: their difference is taken, and averaged later, in the images' type.
    return (target.to(images.dtype) - student(images).to(images.dtype)).square()


def _extent(there: Tensor) -> tuple[int, int]:
    """Return where the first True is, and where the last one ends."""
    places = there.nonzero()[:, 0]
    return int(places[0]), int(places[-1]) + 1


def _widened(first: int, end: int, n: int) -> tuple[int, int]:
    """Return the cells that must be computed for those from ``first`` to ``end``.

    A cell sees 16 pixels, four cells, to either side of its place. So the outer four of a cut see the padding at its
    edges, which the whole image has at its own edges only.
    """
    return max(0, first - _REACH), min(n, end + _REACH)


def _pixels(first: int, end: int, n: int, size: int) -> slice:
    """Return the pixels of a side of ``size`` whose map has the cells from ``first`` to ``end`` of the image's n."""
    return slice(_STRIDE * first, size if end == n else _STRIDE * end)
