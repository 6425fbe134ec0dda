"""The training of CFM's mappings (section 3.2, eq. 2)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.training import check_rate, generator_at, sample_order, seeded, train
from mmad_bank.methods.cfm.comparison import mapped
from mmad_bank.methods.cfm.mappings import MODALITIES, Architecture, CrossmodalMapping, Mode, make_mappings
from mmad_bank.methods.cfm.pixel_features import PixelFeatures


class Images(Protocol):
    """Training images: a list, or any data set of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PixelFeatures: ...


def train_mappings(
    images: Images,
    *,
    epochs: int = 250,
    batch: int = 4,
    pixels_per_image: int | None = None,
    lr: float = 1e-3,
    architecture: Architecture = "projection",
    mode: Mode = "crossmodal",
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, CrossmodalMapping]:
    """Train both mappings on normal images by the cosine distances of eq. 2, averaged over the pixels of a batch.

    Adam with a constant rate (CFM, section 4). Pixels without a point feature are left out. The same arguments give the
    same weights on the same kind of machine, interrupted or not.

    Args:
        images: Training images, looked up one at a time.
        epochs: Number of passes over the images. The paper's results take 250, its ablations 50.
        batch: Number of images per step, at most all of them (published: 4; Eyecandies 2).
        pixels_per_image: Number of pixels to draw from an image instead of taking all: cheaper steps.
        lr: Learning rate of Adam.
        architecture: Architecture, see :class:`CrossmodalMapping`.
        mode: Mode of the mappings, see :func:`make_mappings`.
        seed: Seed of initial weights, order of images, and drawn pixels.
        resume: File of the training's state. If it is there, training goes on from it; every ``save_every`` steps and
            at the end it is replaced.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Returns:
        The mappings on ``device``, in evaluation mode, by the modality that they predict.

    Raises:
        InputError: An argument is out of range.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> images = [PixelFeatures(torch.rand(4, 8), torch.rand(16, 6), (2, 2), 4) for _ in range(3)]
        >>> train_mappings(images, epochs=1)["xyz"].in_dim
        8
    """
    check_index(len(images), "images", 1, 2**31 - 1, "training needs an image")
    for name, value in (("epochs", epochs), ("batch", batch)):
        check_index(value, name, 1, 2**31 - 1, "training needs one")
    if pixels_per_image is not None:
        check_index(pixels_per_image, "pixels_per_image", 1, 2**31 - 1, "None takes all")
    first, batch = images[0], min(batch, len(images))  # a larger one would look at an image twice in a step
    arguments = {
        "steps": math.ceil(epochs * len(images) / batch), "batch": batch, "pixels_per_image": pixels_per_image or 0,
        "lr": check_rate(lr), "architecture": architecture, "mode": mode, "seed": seed, "images": len(images),
        "rgb_dim": first.rgb.shape[1], "xyz_dim": first.xyz.shape[1], "size": first.size,
    }  # fmt: skip
    run = _Training(images, arguments, torch.device(device))
    train(
        run.losses, {"model": run.mappings}, run.optimizer, kind="CFM", caller="train_mappings", arguments=arguments,
        resume=resume, save_every=save_every, device=device, progress=progress,
    )  # fmt: skip
    return {name: mapping.eval() for name, mapping in run.mappings.items()}  # type: ignore[misc]


class _Training:
    """The mappings and their optimizer, and the losses of a step."""

    def __init__(self, images: Images, arguments: dict[str, Any], device: torch.device) -> None:
        self.images, self.arguments, self.device = images, arguments, device
        dims = {"rgb": arguments["rgb_dim"], "xyz": arguments["xyz_dim"]}
        with seeded(arguments["seed"]):
            mappings = make_mappings(dims, architecture=arguments["architecture"], mode=arguments["mode"])
        self.mappings = nn.ModuleDict(mappings).to(device).train()
        self.optimizer = torch.optim.Adam(self.mappings.parameters(), lr=arguments["lr"])

    def losses(self, step: int) -> Iterator[Tensor]:
        """Give a step's losses, a part of the pixels each; their sum is the mean over all pixels of the batch."""
        a = self.arguments
        drawn: list[tuple[PixelFeatures, Tensor]] = []
        for image in sample_order(a["images"], step * a["batch"], a["batch"], a["seed"]):
            features = self.images[image]
            drawn.append((features, self._pixels(features.foreground, step, len(drawn))))
        total = sum(len(pixels) for _, pixels in drawn)
        for features, pixels in drawn:
            for _, observed, predicted in mapped(dict(self.mappings.items()), features, pixels, a["mode"]):  # type: ignore[arg-type]
                yield sum_of_cosine_distances(observed, predicted) / total

    def _pixels(self, foreground: Tensor, step: int, place: int) -> Tensor:
        n = self.arguments["pixels_per_image"]
        if not n or n >= len(foreground):
            return foreground
        generator = generator_at(self.arguments["seed"], 1 + step, place)
        return foreground[torch.randperm(len(foreground), generator=generator)[:n].to(foreground.device)]


def sum_of_cosine_distances(observed: Mapping[str, Tensor], predicted: Mapping[str, Tensor]) -> Tensor:
    """Return CFM's eq. 2, summed over pixels: 1 − cos(E, Ê) of both modalities.

    Example:
        >>> one = torch.tensor([[1.0, 0.0]])
        >>> float(sum_of_cosine_distances({"rgb": one, "xyz": one}, {"rgb": -one, "xyz": one}))
        2.0
    """
    distances = [1 - F.cosine_similarity(predicted[name], observed[name], dim=1) for name in MODALITIES]
    return torch.cat(distances).sum()
