"""The two trainings of AST: the teacher by the likelihood of normal features, the student by the teacher's outputs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.training import check_rate, sample_order, seeded, train
from mmad_bank.methods.ast.flow import CLAMP, Flow, negative_log_likelihood
from mmad_bank.methods.ast.position import position_map
from mmad_bank.methods.ast.student import Student

_WEIGHT_DECAY = 1e-5  # of both trainings in AST's code
POSITIONS = 32


class Images(Protocol):
    """Training images: a list, or any data set of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Return an image's features (C, h, w), and the share of the foreground in its cells, (h, w)."""


def train_teacher(
    images: Images,
    *,
    blocks: int = 4,
    width: int = 64,
    clamp: float = CLAMP,
    positions: int = POSITIONS,
    epochs: int = 72,
    batch: int = 8,
    lr: float = 2e-4,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Flow:
    """Train a normalizing flow to give normal features a high likelihood, under the condition of their positions.

    The loss is the mean over the cells of ½‖z‖² − log |det ∂z/∂x|, which counts 0 in the background. The same arguments
    give the same weights on the same kind of machine, interrupted or not.

    Args:
        images: Training images, looked up one at a time.
        blocks: Number of coupling blocks.
        width: Channels within the blocks.
        clamp: Bound of the log scales of a half-coupling.
        positions: Channels of the map of positions, a multiple of 4.
        epochs: Number of passes over the images.
        batch: Number of images per step, at most all of them.
        lr: Learning rate of Adam, constant.
        seed: Seed of initial weights and order of images.
        resume: File of the training's state. If it is there, training goes on from it; every ``save_every`` steps and
            at the end it is replaced.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Returns:
        The teacher on ``device``, frozen and in evaluation mode.

    Raises:
        InputError: An argument is out of range.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> images = [(torch.rand(6, 3, 3), torch.ones(3, 3)) for _ in range(2)]
        >>> train_teacher(images, blocks=1, width=4, positions=4, epochs=1, batch=2).channels
        6
    """
    run = _Training(images, positions, epochs, batch, lr, seed, torch.device(device))
    with seeded(seed):
        flow = Flow(run.channels, positions, blocks=blocks, width=width, clamp=clamp)

    def losses(step: int) -> Iterator[Tensor]:
        features, foreground, condition = run.batch(step)
        yield (negative_log_likelihood(*flow(features, condition)) * foreground).mean()

    sizes = {"blocks": blocks, "width": width, "clamp": clamp}
    run.train(
        flow, losses, sizes, kind="AST teacher", caller="train_teacher", resume=resume, save_every=save_every,
        progress=progress,
    )  # fmt: skip
    return flow.requires_grad_(False).eval()


def train_student(
    teacher: Flow,
    images: Images,
    *,
    blocks: int = 4,
    width: int = 1024,
    epochs: int = 72,
    batch: int = 8,
    lr: float = 2e-4,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Student:
    """Train a student to give what the teacher gives, on normal images.

    The loss is the mean over channels and cells of (T − S)², which counts 0 in the background.

    Args:
        teacher: The teacher, on ``device``.
        images: Training images, looked up one at a time.
        blocks: Number of residual blocks.
        width: Channels within the student.
        epochs: Number of passes over the images.
        batch: Number of images per step, at most all of them.
        lr: Learning rate of Adam, constant.
        seed: Seed of initial weights and order of images.
        resume: File of the training's state, see :func:`train_teacher`.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Returns:
        The student on ``device``, frozen and in evaluation mode.

    Raises:
        InputError: An argument is out of range.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> images = [(torch.rand(6, 3, 3), torch.ones(3, 3)) for _ in range(2)]
        >>> teacher = Flow(6, 4, blocks=1, width=4)
        >>> train_student(teacher, images, blocks=1, width=8, epochs=1, batch=2).training
        False
    """
    run = _Training(images, teacher.condition, epochs, batch, lr, seed, torch.device(device))
    with seeded(seed):
        student = Student(run.channels, teacher.condition, blocks=blocks, width=width)

    def losses(step: int) -> Iterator[Tensor]:
        features, foreground, condition = run.batch(step)
        with torch.no_grad():
            target, _ = teacher(features, condition)
        yield (squared_difference(target, student(features, condition)) * foreground).mean()

    sizes = {"blocks": blocks, "width": width}
    run.train(
        student, losses, sizes, kind="AST student", caller="train_student", resume=resume, save_every=save_every,
        progress=progress,
    )  # fmt: skip
    return student.requires_grad_(False).eval()


def squared_difference(target: Tensor, output: Tensor) -> Tensor:
    """Return the mean over channels of (T − S)², (B, h, w), of outputs (B, C, h, w).

    Example:
        >>> squared_difference(torch.zeros(1, 2, 1, 1), torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
        tensor([[[5.]]])
    """
    return (target - output.to(target.dtype)).square().mean(1)


class _Training:
    """What both trainings have in common: the images of a step, and Adam."""

    def __init__(
        self, images: Images, positions: int, epochs: int, batch: int, lr: float, seed: int, device: torch.device
    ) -> None:
        check_index(len(images), "images", 1, 2**31 - 1, "training needs an image")
        for name, value in (("epochs", epochs), ("batch", batch)):
            check_index(value, name, 1, 2**31 - 1, "training needs one")
        batch = min(batch, len(images))  # a larger one would look at an image twice in a step
        self.images, self.device, self.n_batch, self.seed = images, device, batch, seed
        self.channels, *grid = images[0][0].shape
        self.condition = position_map(positions, (int(grid[0]), int(grid[1])))[None].to(device)
        self.arguments: dict[str, Any] = {
            "steps": math.ceil(epochs * len(images) / batch), "batch": batch, "lr": check_rate(lr), "seed": seed,
            "images": len(images), "positions": positions, "channels": self.channels, "grid": "x".join(map(str, grid)),
        }  # fmt: skip

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, foreground and positions of the images of a step."""
        chosen = sample_order(len(self.images), step * self.n_batch, self.n_batch, self.seed)
        features, foreground = zip(*(self.images[number] for number in chosen), strict=True)
        condition = self.condition.expand(len(chosen), -1, -1, -1)
        return torch.stack(features).to(self.device), torch.stack(foreground).to(self.device), condition

    def train(self, network: nn.Module, losses: Any, sizes: dict[str, Any], **options: Any) -> None:
        """Take the steps; ``sizes`` are the network's, on which its weights depend as well."""
        network.to(self.device).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=self.arguments["lr"], weight_decay=_WEIGHT_DECAY)
        arguments = {**self.arguments, **sizes}
        train(losses, {"model": network}, optimizer, arguments=arguments, device=self.device, **options)
