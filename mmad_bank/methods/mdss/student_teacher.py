"""Training of PDN: a teacher distilled from any extractor of the project, and the student that imitates it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.training import as_tensor, check_rate, generator_at, sample_order, seeded, train
from mmad_bank.data import read_rgb
from mmad_bank.data.names import IMAGES, in_order, is_visible
from mmad_bank.data.preprocessing import resize_bicubic
from mmad_bank.errors import InputError
from mmad_bank.methods.mdss.pdn import (
    CHANNELS,
    PDN,
    WIDTH,
    dynamic_quantile,
    mask_on_grid,
    quantile_loss,
    squared_difference,
)

_WEIGHT_DECAY = 1e-5  # EfficientAD's, for the teacher
_SMALLEST_CROP, _P_GREY = 0.5, 0.1
_MOST_FOR_STATISTICS = 10_000  # images, as EfficientAD's
_STUDENT_SEED = 1_000_000_007  # added to the seed: a student that began as its teacher did would resemble it everywhere
_AT_ONCE = 8  # images described together for them


class Extractor(Protocol):
    """Extractor that a teacher learns from: any RGB extractor of :mod:`mmad_bank.features`."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patches."""

    @property
    def dim(self) -> int:
        """Dimensions of one patch feature."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Describe images (B, 3, S, S) in [0, 1] by features (B, h·w, D)."""


class Images(Protocol):
    """Images (3, S, S) in [0, 1], all of one size: a tensor, an array, a list, or an :class:`ImageFolder`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """Return an image as a tensor or an array."""


class ImageFolder:
    """The images in a folder and the folders below it, in the order of their names, cropped to squares.

    Args:
        path: The folder.
        size: Pixels per side of what comes out.

    Raises:
        InputError: It is no folder or has no images; later, when an image is asked for, that it cannot be read.

    Example:
        >>> photos = ImageFolder("photographs", 256)  # doctest: +SKIP
        >>> photos[0].shape  # doctest: +SKIP
        torch.Size([3, 256, 256])
    """

    def __init__(self, path: str | os.PathLike[str], size: int) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{path}: expected a folder of images, found none")
        self.size = check_index(size, "size", 1, 2**15, "pixels per side")
        files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGES and is_visible(file))
        self.paths = sorted(files, key=lambda file: [in_order(part) for part in file.relative_to(folder).parts])
        if not self.paths:
            raise InputError(f"{path}: expected images ({', '.join(IMAGES)}), found none")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Read an image: the square in its middle, resized bicubically."""
        image = read_rgb(self.paths[index])
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = resize_bicubic(image[top : top + side, left : left + side], self.size)
        return torch.from_numpy(square.transpose(2, 0, 1).astype(np.float32) / 255)


def train_teacher(
    extractor: Extractor,
    images: Images,
    *,
    channels: int | None = None,
    width: int = WIDTH,
    steps: int = 10_000,
    batch: int = 16,
    lr: float = 1e-4,
    augment: bool = True,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> PDN:
    """Distil an extractor into a :class:`PDN` (EfficientAD, section 3.1 and appendix A.1).

    The target of a patch is the extractor's feature: standardized by each dimension's mean and standard deviation over
    the images, averaged over neighbouring dimensions down to ``channels`` as PatchCore does, brought bilinearly to
    PDN's grid. The loss is the mean squared difference, Adam with a weight decay of 1e-5 takes the steps. EfficientAD
    distils WideResNet-101 on ImageNet in 60 000 of them.

    Args:
        extractor: Extractor of patch features; on ``device``.
        images: Any images; more kinds make a better teacher.
        channels: Number of channels of the teacher; None takes 384, or the extractor's dimensions if they are fewer.
        width: Width of the teacher, see :class:`PDN`.
        steps: Number of optimizer steps.
        batch: Number of images per step.
        lr: Learning rate.
        augment: Whether to show random crops (half the side or more), mirrored at random, one in ten grey, instead of
            the images.
        seed: Seed of initial weights, order of images, and crops.
        resume: File of the training's state, see :func:`mmad_bank.fusion.train_fusion`.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Returns:
        The teacher on ``device``, frozen and in evaluation mode.

    Raises:
        InputError: An argument is out of range, or an image does not fit.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> from mmad_bank.features import EfficientNetLite0
        >>> extractor = EfficientNetLite0(grid=(16, 16), pretrained=False)
        >>> teacher = train_teacher(extractor, torch.rand(3, 3, 64, 64), width=8, steps=1, batch=2)
        >>> teacher.channels
        384
    """
    run = _Distillation(extractor, images, channels, width, torch.device(device), seed)
    arguments = {
        "steps": steps, "batch": batch, "lr": check_rate(lr), "augment": augment, "seed": seed, "width": width,
        "channels": run.net.channels, "images": len(images), "size": run.size, "dim": extractor.dim,
    }  # fmt: skip
    _check_counts(arguments)
    run.arguments = arguments
    optimizer = torch.optim.Adam(run.net.parameters(), lr=lr, weight_decay=_WEIGHT_DECAY)
    train(
        run.losses, {"model": run.net}, optimizer, kind="PDN teacher", caller="train_teacher", arguments=arguments,
        resume=resume, save_every=save_every, device=device, progress=progress,
    )  # fmt: skip
    return run.net.requires_grad_(False).eval()


def train_student(
    teacher: PDN,
    images: Images,
    masks: Sequence[Any] | Tensor | np.ndarray,
    *,
    steps: int = 10_000,
    batch: int = 4,
    lr: float = 1e-3,
    quantiles: tuple[float, float] = (0.99, 0.999),
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> PDN:
    """Train a student of the teacher's architecture on normal images (MDSS, section 3.1, table 1).

    The loss of a step is :func:`.pdn.quantile_loss` with that step's :func:`.pdn.dynamic_quantile`. MDSS gives no
    number of steps; EfficientAD takes 70 000. Adam is EfficientAD's optimizer; MDSS names none.

    Args:
        teacher: Frozen teacher, on ``device``.
        images: Normal images.
        masks: As many masks (S, S), bool, True on the foreground (:func:`mmad_bank.methods.mdss.pdn.foreground_mask`).
        steps: Number of optimizer steps.
        batch: Number of images per step.
        lr: Learning rate, constant.
        quantiles: Quantiles d of the first and of the last step.
        seed: Seed of initial weights and order of images.
        resume: File of the training's state, see :func:`mmad_bank.fusion.train_fusion`.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Returns:
        The student on ``device``, in evaluation mode.

    Raises:
        InputError: An argument is out of range, or an image or mask does not fit.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> teacher = PDN(16, width=4).eval()
        >>> images, masks = torch.rand(3, 3, 32, 32), torch.ones(3, 32, 32, dtype=torch.bool)
        >>> train_student(teacher, images, masks, steps=2, batch=2).channels
        16
    """
    check_index(len(images), "images", 1, 2**31 - 1, "training needs one")
    if len(masks) != len(images):
        raise InputError(f"masks: expected {len(images)} as there are images, found {len(masks)}")
    for value in quantiles:
        if not 0 <= value < 1:
            raise InputError(f"quantiles: expected 0 <= quantile < 1, found {value!r}")
    size = _as_image(images[0], 0).shape[-1]
    first, last = (float(value) for value in quantiles)
    arguments = {
        "steps": steps, "batch": batch, "lr": check_rate(lr), "first": first, "last": last, "seed": seed,
        "width": teacher.width, "channels": teacher.channels, "images": len(images), "size": size,
    }  # fmt: skip
    _check_counts(arguments)
    with seeded(seed + _STUDENT_SEED):
        student = PDN(teacher.channels, width=teacher.width)
    student.to(device).train()
    grid = PDN.grid(size)

    def losses(step: int) -> Iterator[Tensor]:
        chosen = sample_order(len(images), step * batch, batch, seed)
        mask = mask_on_grid(torch.stack([as_tensor(masks[i], torch.bool) for i in chosen]), grid).to(device)
        pictures = _stack(images, chosen, size).to(device)
        difference = squared_difference(teacher, student, pictures, mask)
        yield quantile_loss(difference, mask, dynamic_quantile(step, steps, first, last))

    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    train(
        losses, {"model": student}, optimizer, kind="PDN student", caller="train_student", arguments=arguments,
        resume=resume, save_every=save_every, device=device, progress=progress,
    )  # fmt: skip
    return student.eval()


class _Distillation:
    """The teacher that is trained, and what it is trained towards."""

    arguments: dict[str, Any]

    def __init__(
        self, extractor: Extractor, images: Images, channels: int | None, width: int, device: torch.device, seed: int
    ) -> None:
        check_index(len(images), "images", 1, 2**31 - 1, "distillation needs one")
        channels = min(CHANNELS, extractor.dim) if channels is None else channels
        check_index(channels, "channels", 1, extractor.dim, "the extractor's dimensions")
        self.extractor, self.images, self.device = extractor, images, device
        self.size = _as_image(images[0], 0).shape[-1]
        self.grid = PDN.grid(self.size)
        with seeded(seed):
            net = PDN(channels, width=width)
        self.net = net.to(device).train()
        self.mean, self.std = self._statistics()

    def losses(self, step: int) -> Iterator[Tensor]:
        """Give the one loss of a step."""
        a = self.arguments
        chosen = sample_order(len(self.images), step * a["batch"], a["batch"], a["seed"])
        pictures = _stack(self.images, chosen, self.size)
        if a["augment"]:
            generator = generator_at(a["seed"], 1, step)
            pictures = torch.stack([random_view(picture, generator) for picture in pictures])
        pictures = pictures.to(self.device)
        yield (self._target(pictures) - self.net(pictures)).square().mean()

    @torch.no_grad()
    def _target(self, pictures: Tensor) -> Tensor:
        features = (self.extractor(pictures) - self.mean) / self.std
        features = F.adaptive_avg_pool1d(features, self.net.channels)
        maps = features.transpose(1, 2).unflatten(2, self.extractor.grid)
        if self.extractor.grid == self.grid:
            return maps
        return F.interpolate(maps, size=self.grid, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every dimension, in float64; a constant dimension keeps its scale."""
        count, total, squares = 0, torch.zeros(1), torch.zeros(1)
        n_images = min(len(self.images), _MOST_FOR_STATISTICS)
        for first in range(0, n_images, _AT_ONCE):
            part = _stack(self.images, range(first, min(first + _AT_ONCE, n_images)), self.size)
            rows = self.extractor(part.to(self.device)).flatten(0, 1).double()
            count += len(rows)
            total, squares = total.to(rows) + rows.sum(0), squares.to(rows) + rows.square().sum(0)
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        return mean.float(), torch.where(std > 0, std, 1.0).float()


def random_view(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random square of a picture (3, S, S) in its size, perhaps mirrored, perhaps grey."""
    side = picture.shape[-1]
    draws = torch.rand(6, generator=generator).tolist()
    crop = max(1, round(side * (_SMALLEST_CROP + (1 - _SMALLEST_CROP) * draws[0])))
    top, left = (int(draw * (side - crop + 1)) for draw in draws[1:3])
    view = picture[None, :, top : top + crop, left : left + crop]
    view = F.interpolate(view, size=(side, side), mode="bilinear", align_corners=False)[0]
    if draws[3] < 0.5:
        view = view.flip(2)
    if draws[4] < 0.5:
        view = view.flip(1)
    if draws[5] < _P_GREY:
        weights = view.new_tensor([0.299, 0.587, 0.114])
        view = (view * weights[:, None, None]).sum(0, keepdim=True).expand(3, -1, -1)
    return view.clamp(0, 1)


def _check_counts(arguments: dict[str, Any]) -> None:
    for name in ("steps", "batch"):
        check_index(arguments[name], name, 1, 2**31 - 1, "training needs one")


def _stack(images: Images, chosen: Sequence[int], size: int) -> Tensor:
    return torch.stack([_as_image(images[i], i, size) for i in chosen])


def _as_image(value: Any, number: int, size: int | None = None) -> Tensor:
    image = as_tensor(value, torch.float32)
    wanted = size or image.shape[-1]
    if image.shape != (3, wanted, wanted):
        expected = f"(3, {wanted}, {wanted})" if size else "(3, S, S)"
        raise InputError(f"images[{number}]: expected {expected}, found {tuple(image.shape)}")
    return image
