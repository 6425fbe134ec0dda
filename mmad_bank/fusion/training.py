"""Training of UFF: AdamW with a cosine schedule, resumable at any saved step with the same result."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.training import (
    Pairs,
    check_rate,
    cosine_rate,
    distinct_groups,
    generator_at,
    sample_order,
    seeded,
    train,
)
from mmad_bank.errors import InputError
from mmad_bank.fusion.uff import FeatureFusion

_BETAS = (0.9, 0.95)


def train_fusion(
    pairs: Pairs,
    *,
    steps: int = 750,
    warmup: int = 250,
    batch: int = 256,
    images_per_loss: int = 16,
    patches_per_image: int | None = None,
    lr: float = 0.003,
    double_loss: bool = False,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> FeatureFusion:
    """Train a :class:`FeatureFusion` on normal images of one or all categories (M3DM, section 4.1).

    AdamW (betas 0.9 and 0.95); the learning rate rises linearly over ``warmup`` steps and falls to zero as a cosine.
    The same arguments give the same weights on the same kind of machine, interrupted or not.

    Args:
        pairs: Images' patch features, (P, xyz_dim) and (P, rgb_dim) each; looked up one at a time.
        steps: Number of optimizer steps. M3DM reports its best result at 750.
        warmup: Number of steps of the linear rise, at most ``steps``.
        batch: Number of images per step. The paper says 256, the published run is 16 images times 16 accumulations.
        images_per_loss: Number of different images whose patches are contrasted with each other, or all images where
            there are fewer; a step's gradient is the mean over its images.
        patches_per_image: Number of patches to draw from an image instead of taking all: cheaper steps.
        lr: Peak of the learning rate.
        double_loss: Whether the loss is doubled, see :class:`FeatureFusion`.
        seed: Seed of initial weights, order of images, and drawn patches.
        resume: File of the training's state. If it is there, training goes on from it; every ``save_every`` steps and
            at the end it is replaced. The file of a finished training holds the result.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Returns:
        The trained network on ``device``, in evaluation mode.

    Raises:
        InputError: An argument is out of range or an image's features do not fit.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> images = [(torch.randn(16, 6), torch.randn(16, 4)) for _ in range(3)]
        >>> uff = train_fusion(images, steps=2, warmup=1, batch=2)
        >>> uff.xyz_dim, uff.rgb_dim
        (6, 4)
    """
    check_index(len(pairs), "pairs", 1, 2**31 - 1, "training needs an image")
    xyz, rgb = pairs[0]
    arguments = {
        "steps": steps, "warmup": warmup, "batch": batch, "images_per_loss": images_per_loss, "lr": float(lr),
        "patches_per_image": patches_per_image or 0, "double_loss": double_loss, "seed": seed, "images": len(pairs),
        "xyz_dim": xyz.shape[-1], "rgb_dim": rgb.shape[-1],
    }  # fmt: skip
    _check_arguments(arguments)
    run = _Training(pairs, arguments, torch.device(device))
    train(
        run.losses, {"model": run.network}, run.optimizer, kind="UFF", caller="train_fusion", arguments=arguments,
        rate=lambda step: cosine_rate(step, steps=steps, warmup=warmup, lr=lr), resume=resume, save_every=save_every,
        device=device, progress=progress,
    )  # fmt: skip
    return run.network.eval()


def _check_arguments(arguments: dict[str, Any]) -> None:
    for name in ("steps", "batch", "images_per_loss"):
        check_index(arguments[name], name, 1, 2**31 - 1, "training needs one")
    check_index(arguments["warmup"], "warmup", 0, arguments["steps"], "it is a part of the steps")
    check_index(arguments["patches_per_image"], "patches_per_image", 0, 2**31 - 1, "0 takes all")
    check_rate(arguments["lr"])


class _Training:
    """The network and its optimizer, and the losses of a step."""

    def __init__(self, pairs: Pairs, arguments: dict[str, Any], device: torch.device) -> None:
        self.pairs, self.arguments, self.device = pairs, arguments, device
        with seeded(arguments["seed"]):
            network = FeatureFusion(arguments["xyz_dim"], arguments["rgb_dim"], double_loss=arguments["double_loss"])
        self.network = network.to(device).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=arguments["lr"], betas=_BETAS)

    def losses(self, step: int) -> Iterator[Tensor]:
        """Give a step's losses, one for each part of the batch whose patches are contrasted."""
        a = self.arguments
        for number, (part, times) in enumerate(self._contrasted(step)):
            loss = self.network.loss(*self._patches(part, generator_at(a["seed"], 1 + step, number)))
            yield loss * (len(part) * times / a["batch"])

    def _contrasted(self, step: int) -> list[tuple[list[int], int]]:
        """Return the sets of images of a step whose patches are contrasted, and how many times each of them is there.

        No set holds an image twice: its patches would have to be told from themselves. Where there are fewer images
        than a step takes, sets come again; if all patches are taken, so does their loss, which is computed once.
        """
        a = self.arguments
        images = sample_order(a["images"], step * a["batch"], a["batch"], a["seed"])
        sets = distinct_groups(images, a["images_per_loss"])
        if a["patches_per_image"]:
            return [(part, 1) for part in sets]
        times = Counter(map(frozenset, sets))
        firsts = {frozenset(part): part for part in reversed(sets)}
        return [(firsts[same], n) for same, n in times.items()]

    def _patches(self, images: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = []
        for image in images:
            xyz, rgb = self.pairs[image]
            if xyz.ndim != 2 or rgb.ndim != 2 or len(xyz) != len(rgb):
                raise InputError(
                    f"pairs[{image}]: expected (P, xyz_dim) and (P, rgb_dim), found {tuple(xyz.shape)} and"
                    f" {tuple(rgb.shape)}"
                )
            n = self.arguments["patches_per_image"]
            if n and n < len(xyz):
                rows = torch.randperm(len(xyz), generator=generator)[:n].to(xyz.device)
                xyz, rgb = xyz[rows], rgb[rows]
            drawn.append((xyz.to(self.device, torch.float32), rgb.to(self.device, torch.float32)))
        return torch.cat([xyz for xyz, _ in drawn]), torch.cat([rgb for _, rgb in drawn])
