"""Training of UFF: AdamW with a cosine schedule, resumable at any saved step with the same result."""

from __future__ import annotations

import math
import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmad_bank._checks import check_index
from mmad_bank._files import replacing
from mmad_bank._progress import progress_bar
from mmad_bank.errors import FormatError, InputError, MmadBankError
from mmad_bank.fusion.uff import FeatureFusion, Recipe

_BETAS = (0.9, 0.95)


class Pairs(Protocol):
    """Training images: a list of pairs, or any data set of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Return the features of one image's patches: 3-D (P, xyz_dim) and RGB (P, rgb_dim)."""


def train_fusion(
    pairs: Pairs,
    *,
    steps: int = 750,
    warmup: int = 250,
    batch: int = 256,
    images_per_loss: int = 16,
    patches_per_image: int | None = None,
    lr: float = 0.003,
    recipe: Recipe = "paper",
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
        pairs: images' patch features, (P, xyz_dim) and (P, rgb_dim) each; looked up one at a time.
        steps: optimizer steps. M3DM reports its best result at 750.
        warmup: steps of the linear rise, at most ``steps``.
        batch: images a step. The paper says 256, the published run is 16 images times 16 accumulations.
        images_per_loss: images whose patches are contrasted with each other; a step's gradient is the mean over its
            losses.
        patches_per_image: draw so many patches of an image instead of taking all: cheaper steps.
        lr: the learning rate's peak.
        recipe: see :class:`FeatureFusion`.
        seed: of initial weights, order of images, and drawn patches.
        resume: file of the training's state. If it is there, training goes on from it; every ``save_every`` steps and
            at the end it is replaced. Of a finished training it holds the result.
        save_every: steps between saved states.
        device: where to train.
        progress: show a bar on a terminal.

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
    check_index(save_every, "save_every", 1, 2**31 - 1, "steps between saved states")
    xyz, rgb = pairs[0]
    arguments = {
        "steps": steps, "warmup": warmup, "batch": batch, "images_per_loss": images_per_loss, "lr": float(lr),
        "patches_per_image": patches_per_image or 0, "recipe": recipe, "seed": seed, "images": len(pairs),
        "xyz_dim": xyz.shape[-1], "rgb_dim": rgb.shape[-1],
    }  # fmt: skip
    _check_arguments(arguments)
    run = _Training(pairs, arguments, torch.device(device))
    first = run.load(Path(resume)) if resume is not None and Path(resume).exists() else 0
    with progress_bar("UFF", steps) if progress else nullcontext(_silent) as report:
        for step in range(first, steps):
            report(step)
            run.step(step)
            if resume is not None and ((step + 1) % save_every == 0 or step + 1 == steps):
                run.save(Path(resume), step + 1)
    return run.network.eval()


def _check_arguments(arguments: dict[str, Any]) -> None:
    for name in ("steps", "batch", "images_per_loss"):
        check_index(arguments[name], name, 1, 2**31 - 1, "training needs one")
    check_index(arguments["warmup"], "warmup", 0, arguments["steps"], "it is a part of the steps")
    check_index(arguments["patches_per_image"], "patches_per_image", 0, 2**31 - 1, "0 takes all")
    if not 0 < arguments["lr"] < math.inf:
        raise InputError(f"lr: expected a positive finite number, found {arguments['lr']!r}")


def learning_rate(step: int, *, steps: int, warmup: int, lr: float) -> float:
    """Return the rate of a step, counted from 0: linear to ``lr`` in ``warmup`` steps, then a cosine towards 0."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def image_order(n_images: int, first: int, n: int, seed: int) -> list[int]:
    """Return images ``first`` to ``first + n`` of an endless sequence of seeded permutations: no state to save."""
    order: list[int] = []
    while len(order) < n:
        epoch, place = divmod(first + len(order), n_images)
        permutation = torch.randperm(n_images, generator=_generator(seed, 0, epoch))
        order += permutation[place : place + n - len(order)].tolist()
    return order


class _Training:
    """The network and its optimizer, and what a step does to them."""

    def __init__(self, pairs: Pairs, arguments: dict[str, Any], device: torch.device) -> None:
        self.pairs, self.arguments, self.device = pairs, arguments, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments["seed"])
            network = FeatureFusion(arguments["xyz_dim"], arguments["rgb_dim"], recipe=arguments["recipe"])
        self.network = network.to(device).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=arguments["lr"], betas=_BETAS)

    def step(self, step: int) -> None:
        a = self.arguments
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=a["steps"], warmup=a["warmup"], lr=a["lr"])
        images = image_order(a["images"], step * a["batch"], a["batch"], a["seed"])
        self.optimizer.zero_grad()
        parts = [images[i : i + a["images_per_loss"]] for i in range(0, len(images), a["images_per_loss"])]
        for number, part in enumerate(parts):
            loss = self.network.loss(*self._patches(part, _generator(a["seed"], 1 + step, number)))
            if not bool(torch.isfinite(loss)):
                raise MmadBankError(
                    f"train_fusion: the loss is {loss.item()} at step {step} of {a['steps']}: look for NaN or infinity"
                    " in the features, or lower lr"
                )
            (loss * (len(part) / len(images))).backward()
        self.optimizer.step()

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

    def save(self, path: Path, step: int) -> None:
        state = {
            "mmad_bank": "uff training", "arguments": self.arguments, "step": step,
            "model": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        try:
            with replacing(path) as partial:
                torch.save(state, partial)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error

    def load(self, path: Path) -> int:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise FormatError(f"{path}: not the state of a UFF training, or a truncated one") from error
        if not isinstance(state, dict) or state.get("mmad_bank") != "uff training":
            raise FormatError(f"{path}: not the state of a UFF training")
        for name, value in self.arguments.items():
            if state["arguments"].get(name) != value:
                raise FormatError(
                    f"{path}: state of a training with {name} {state['arguments'].get(name)}, now asked for {value}:"
                    " use its arguments, or another file"
                )
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


def _generator(seed: int, stream: int, number: int) -> torch.Generator:
    """A generator for one place of the training, so that a resumed one needs no generator's state."""
    mixed = ((seed * 1_000_003 + stream) * 1_000_003 + number) % 2**63
    return torch.Generator().manual_seed(mixed)


def _silent(done: int) -> None:
    """Report to nobody."""
