"""The training of LSFA's adaptors without labels (Tu et al. 2024, eq. 9 and algorithm 1)."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.training import Pairs, Stateful, check_rate, generator_at, sample_order, seeded, train
from mmad_bank.adaptation.adaptor import MODALITIES, FeatureAdaptation, Layer
from mmad_bank.adaptation.losses import (
    LOSSES,
    Compactness,
    FeatureQueue,
    Prototype,
    alignment_loss,
    compactness_loss,
    prototype,
)
from mmad_bank.errors import InputError

_HEAD_DIM = 512
_BETAS = (0.9, 0.95)


def train_adaptation(
    pairs: Pairs,
    *,
    groups: Sequence[int] | None = None,
    steps: int = 1000,
    batch: int = 8,
    patches_per_image: int | None = None,
    queue_size: int = 50_000,
    clc_weight: float = 0.6,
    losses: tuple[str, ...] = LOSSES,
    compactness: Compactness = "distance",
    prototypes: Prototype = "kmeans",
    clusters: int = 4,
    layer: Layer = "vanilla",
    lr: float = 3e-4,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> FeatureAdaptation:
    """Train the adaptors on normal images by IFC + 0.6·CLC (LSFA, eq. 9 and algorithm 1).

    AdamW (betas 0.9 and 0.95) with a constant rate. The same arguments give the same weights on the same kind of
    machine, interrupted or not. Patches without a point feature take no part in the losses of point features, nor in
    those between modalities.

    Args:
        pairs: Images' patch features, (P, xyz_dim) and (P, rgb_dim) each; looked up one at a time.
        groups: Number of each image's category, from 0: every category has banks of its own, as in the published code.
            Default: all are of one.
        steps: Number of optimizer steps; the paper gives no number.
        batch: Number of images per step (published: 8); fewer where the order of images repeats one in it.
        patches_per_image: Number of patches to draw from an image for the local losses instead of taking all; the
            adaptors see all of them.
        queue_size: Number of rows of each bank (paper: 50 000; published: 60 000).
        clc_weight: Weight λ of the CLC loss.
        losses: Names of losses, some of :data:`mmad_bank.adaptation.losses.LOSSES`.
        compactness: Kind of the compactness loss, see :func:`mmad_bank.adaptation.losses.compactness_loss`.
        prototypes: Vector that stands for an image: ``"kmeans"``, see :func:`mmad_bank.adaptation.losses.prototype`, or
            ``"mean"`` of its patches (published).
        clusters: Number of clusters of the k-means.
        layer: Kind of the adaptors, see :class:`mmad_bank.adaptation.Adaptor`.
        lr: Learning rate of AdamW.
        seed: Seed of initial weights, order of images, drawn patches and dropout.
        resume: File of the training's state. If it is there, training goes on from it; every ``save_every`` steps and
            at the end it is replaced.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Returns:
        The adaptors on ``device``, in evaluation mode.

    Raises:
        InputError: An argument is out of range or an image's features do not fit.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> images = [(torch.randn(16, 6), torch.randn(16, 4)) for _ in range(3)]
        >>> train_adaptation(images, steps=2, batch=2).adaptors["rgb"].dim
        4
    """
    check_index(len(pairs), "pairs", 1, 2**31 - 1, "training needs an image")
    xyz, rgb = pairs[0]
    arguments = {
        "steps": steps, "batch": batch, "patches_per_image": patches_per_image or 0, "queue_size": queue_size,
        "clc_weight": float(clc_weight), "losses": ",".join(losses), "compactness": compactness,
        "prototypes": prototypes, "clusters": clusters, "layer": layer, "lr": check_rate(lr), "seed": seed,
        "images": len(pairs),
        "xyz_dim": xyz.shape[-1], "rgb_dim": rgb.shape[-1],
    }  # fmt: skip
    check_arguments(arguments)
    run = Training(pairs, arguments, torch.device(device), _check_groups(groups, len(pairs)))
    if len(set(run.groups)) > 1:
        arguments["groups"] = ",".join(map(str, run.groups))
    run.take(caller="train_adaptation", resume=resume, save_every=save_every, progress=progress)
    assert isinstance(run.adaptation, FeatureAdaptation)
    return run.adaptation.eval()


def _check_groups(groups: Sequence[int] | None, n_images: int) -> list[int]:
    if groups is None:
        return [0] * n_images
    if len(groups) != n_images:
        raise InputError(f"groups: expected a number for each of {n_images} images, found {len(groups)}")
    return [check_index(one, "groups", 0, 2**31 - 1, "number of a category") for one in groups]


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse arguments of a training that are out of range."""
    for name in ("steps", "batch", "queue_size", "clusters"):
        check_index(arguments[name], name, 1, 2**31 - 1, "training needs one")
    check_index(arguments["patches_per_image"], "patches_per_image", 0, 2**31 - 1, "0 takes all")
    if not 0 <= arguments["clc_weight"] < float("inf"):
        raise InputError(f"clc_weight: expected a finite number of at least 0, found {arguments['clc_weight']}")
    losses = arguments["losses"].split(",")
    if len(set(losses)) < len(losses) or not set(losses) <= set(LOSSES):
        raise InputError(f"losses: expected some of {', '.join(LOSSES)}, found {arguments['losses'] or 'none'}")
    for name, allowed in (("compactness", get_args(Compactness)), ("prototypes", get_args(Prototype))):
        if arguments[name] not in allowed:
            raise InputError(f"{name}: expected one of {', '.join(allowed)}, found {arguments[name]!r}")


class Training:
    """Adaptors, projection heads, FIFO banks and the optimizer, and the loss of a step."""

    trained: tuple[str, ...] = MODALITIES
    """Modalities whose features the training changes."""

    def __init__(
        self, pairs: Pairs, arguments: dict[str, Any], device: torch.device, groups: Sequence[int] | None = None
    ) -> None:
        self.pairs, self.arguments, self.device = pairs, arguments, device
        self.groups = groups or [0] * len(pairs)
        self.chosen = set(arguments["losses"].split(","))
        dims = {name: arguments[f"{name}_dim"] for name in MODALITIES}
        with seeded(arguments["seed"]):
            self.adaptation: nn.Module = self._begin(dims)
            self.heads = nn.ModuleDict({name: nn.Linear(dim, _HEAD_DIM) for name, dim in dims.items()})
        self.model = nn.ModuleDict({"adaptation": self.adaptation, "heads": self.heads}).to(device).train()
        # A vector per image and step: more of them never come.
        sizes = {"local": arguments["queue_size"], "global": arguments["steps"] * arguments["batch"]}
        self.queues = {
            self._bank_of(f"{scale}_{name}", group): FeatureQueue(min(size, sizes["local"]), dim, device)
            for name, dim in dims.items()
            if name in self.trained
            for scale, size in sizes.items()
            for group in sorted(set(self.groups))
        }
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=arguments["lr"], betas=_BETAS)

    def take(self, *, caller: str, resume: str | os.PathLike[str] | None, save_every: int, progress: bool) -> None:
        """Take all steps, see :func:`mmad_bank._internal.training.train`."""
        train(
            self.losses, {**self._stateful(), **self.queues}, self.optimizer, kind="LSFA", caller=caller,
            arguments=self.arguments, after=self._after, resume=resume, save_every=save_every, device=self.device,
            progress=progress,
        )  # fmt: skip

    def _begin(self, dims: Mapping[str, int]) -> nn.Module:
        """Make what adapts the features of a batch of pairs; seeded."""
        adaptation = FeatureAdaptation(dims["xyz"], dims["rgb"], layer=self.arguments["layer"])
        for name, (mean, std) in statistics(self.pairs, MODALITIES).items():
            adaptation.adaptors[name].mean.fill_(mean)  # type: ignore[operator]
            adaptation.adaptors[name].std.fill_(std)  # type: ignore[operator]
        return adaptation

    def _stateful(self) -> dict[str, Stateful]:
        """Return what a saved state holds beside the banks."""
        return {"model": self.model}

    def _after(self, step: int) -> None:
        """Do what is left to do behind the optimizer's step."""

    def _penalty(self) -> Tensor | float:
        """Return what is added to the loss."""
        return 0.0

    def losses(self, step: int) -> Iterator[Tensor]:
        """Give a step's loss, and then enqueue the features that it was taken on."""
        a = self.arguments
        # Each image once: the global alignment would have to tell a repeated one from itself.
        images = list(dict.fromkeys(sample_order(a["images"], step * a["batch"], a["batch"], a["seed"])))
        features = {name: torch.stack(rows) for name, rows in zip(MODALITIES, self._read(images), strict=True)}
        adapted = self.adaptation(features)
        present = (adapted["xyz"] != 0).any(dim=2)
        if not all(bool(torch.isfinite(rows).all()) for rows in adapted.values()):
            yield torch.stack([rows.sum() for rows in adapted.values()]).sum()  # which stops the training
        local = [self._local(adapted, present[b], step, b) for b in range(len(images))]
        vectors = {name: self._vectors(adapted[name], present) for name in MODALITIES}
        rows = {f"local_{name}": [own[name] for own, _ in local] for name in self.trained}
        rows |= {f"global_{name}": list(vectors[name].split(1)) for name in self.trained}
        banks = {name: self._by_bank(name, each, images) for name, each in rows.items()}
        yield self._alignment(local, vectors) * a["clc_weight"] + self._compactness(banks) + self._penalty()
        for own_rows in banks.values():
            for bank, enqueued in own_rows.items():
                self.queues[bank].enqueue(enqueued)

    def _read(self, images: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        drawn = [self.pairs[image] for image in images]
        for image, (xyz, rgb) in zip(images, drawn, strict=True):
            self._check_pair(image, xyz, rgb)
        return tuple([pair[i].to(self.device, torch.float32) for pair in drawn] for i in (0, 1))  # type: ignore[return-value]

    def _check_pair(self, image: int, xyz: Tensor, rgb: Tensor) -> None:
        if xyz.ndim != 2 or len(xyz) != len(rgb) or not bool((xyz != 0).any()) or not bool((rgb != 0).any()):
            raise InputError(
                f"pairs[{image}]: expected (P, xyz_dim) and (P, rgb_dim), not all zero, found {tuple(xyz.shape)}"
                f" and {tuple(rgb.shape)}"
            )

    def _local(
        self, adapted: Mapping[str, Tensor], present: Tensor, step: int, b: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw an image's patches: those of each modality for its bank, and those that both have."""
        n, every = self.arguments["patches_per_image"], torch.ones_like(present)
        generator = generator_at(self.arguments["seed"], 1 + step, b)

        def draw(among: Tensor) -> Tensor:
            places = among.nonzero()[:, 0]
            if not n or n >= len(places):
                return places
            return places[torch.randperm(len(places), generator=generator)[:n].to(places.device)]

        both = draw(present)
        own = {"xyz": adapted["xyz"][b, both], "rgb": adapted["rgb"][b, draw(every)]}
        return own, {name: adapted[name][b, both] for name in MODALITIES}

    def _vectors(self, adapted: Tensor, present: Tensor) -> Tensor:
        """Return the images' vectors (B, D), of the patches that lie on the object."""
        clusters = 1 if self.arguments["prototypes"] == "mean" else self.arguments["clusters"]
        return torch.stack([prototype(rows[on], clusters) for rows, on in zip(adapted, present, strict=True)])

    def _alignment(
        self, local: list[tuple[dict[str, Tensor], dict[str, Tensor]]], vectors: Mapping[str, Tensor]
    ) -> Tensor:
        """CLC (eq. 4)."""
        total = vectors["rgb"].new_zeros(())
        if "local_alignment" in self.chosen:
            each = [alignment_loss(self.heads["rgb"](both["rgb"]), self.heads["xyz"](both["xyz"])) for _, both in local]
            total = total + torch.stack(each).mean()
        if "global_alignment" in self.chosen:
            total = total + alignment_loss(self.heads["rgb"](vectors["rgb"]), self.heads["xyz"](vectors["xyz"]))
        return total

    def _compactness(self, banks: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """IFC (eq. 8), of the modalities that are trained; features (n, D) by scale and modality, then by bank."""
        total, kind = torch.zeros((), device=self.device), self.arguments["compactness"]
        for name in self.trained:
            for scale in ("local", "global"):
                own_rows = banks[f"{scale}_{name}"]
                if f"{scale}_compactness" in self.chosen:
                    n_rows = sum(map(len, own_rows.values()))
                    for bank, features in own_rows.items():
                        share = len(features) / n_rows  # each loss is a mean over features
                        total = total + compactness_loss(features, self.queues[bank], kind) * share
        return total

    def _by_bank(self, name: str, rows: Sequence[Tensor], images: Sequence[int]) -> dict[str, Tensor]:
        """Join images' features (n, D) by the banks of a name that they belong to: those of their categories."""
        parts: dict[str, list[Tensor]] = {}
        for image, features in zip(images, rows, strict=True):
            parts.setdefault(self._bank_of(name, self.groups[image]), []).append(features)
        return {bank: torch.cat(own) for bank, own in parts.items()}

    def _bank_of(self, name: str, group: int) -> str:
        """Return the name of a category's bank, in the training's state too."""
        return name if len(set(self.groups)) == 1 else f"{name}_{group}"


def statistics(pairs: Pairs, names: Collection[str]) -> dict[str, tuple[float, float]]:
    """Return the mean and the standard deviation of all values of all patches that are not zero, by modality."""
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in names}
    for image in range(len(pairs) if sums else 0):
        for name, rows in zip(MODALITIES, pairs[image], strict=True):
            if name not in sums:
                continue
            values = rows[(rows != 0).any(dim=1)].double()
            sums[name] += torch.stack([torch.tensor(values.numel()), values.sum(), values.square().sum()]).cpu()
    result = {}
    for name, (count, total, squares) in sums.items():
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
        result[name] = (float(mean), float(std) if float(std) > 0 else 1.0)
    return result
