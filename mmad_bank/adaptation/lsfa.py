"""Local-to-global self-supervised feature adaptation (LSFA, Tu et al. 2024): adaptors, losses and training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.checks import as_features, check_index
from mmad_bank._internal.files import replacing
from mmad_bank._internal.state_dicts import load_matching, read_torch
from mmad_bank._internal.tensor_files import write_tensors
from mmad_bank._internal.training import check_rate, generator_at, sample_order, seeded, train
from mmad_bank.errors import InputError
from mmad_bank.fusion.training import Pairs
from mmad_bank.ops import k_center_greedy
from mmad_bank.ops.knn import SearchIndex

Compactness = Literal["distance", "mse"]
Prototype = Literal["kmeans", "mean"]
Layer = Literal["vanilla", "residual"]

MODALITIES = ("xyz", "rgb")
LOSSES = ("local_alignment", "global_alignment", "local_compactness", "global_compactness")
"""CLC's two and IFC's two: the rows of the paper's tables 4 to 6."""

_HEADS, _HEAD_DIM = 12, 512
_BETAS = (0.9, 0.95)
_LLOYD_STEPS = 10


class Adaptor(nn.Module):
    """One vanilla transformer encoder layer over the patches of an image (LSFA, section 3.1 and table 7).

    Post-norm, ReLU, four times the width inside, and in training a dropout of 0.1 on what is added to the residual
    stream, as in Vaswani et al. 2017. (PyTorch's layer also drops attention weights, which costs most of a step's time
    on a CPU; that is left out.) The paper's inputs come out of a layer norm; those of other extractors need not be near
    unit size, so that one scalar mean and standard deviation of the training features bring them there.

    Its last norm takes the length from features, of which those that come out of a layer norm have none to lose, and it
    starts as a random mixture of patches. ``"residual"``, for other extractors and little data, is the same layer with
    its norms before attention and MLP, whose last weights start at zero: it starts as the identity.

    Args:
        dim: length of a feature.
        heads: of the attention; default the largest divisor of ``dim`` up to 12.
        layer: ``"vanilla"`` or ``"residual"``.

    Raises:
        InputError: ``heads`` does not divide ``dim``, or there is no such layer.

    Example:
        >>> adaptor = Adaptor(33).eval()
        >>> adaptor.heads, adaptor(torch.zeros(2, 5, 33)).shape
        (11, torch.Size([2, 5, 33]))
    """

    mean: Tensor
    std: Tensor
    residual: Tensor

    def __init__(self, dim: int, heads: int | None = None, *, layer: Layer = "vanilla") -> None:
        super().__init__()
        self.dim = check_index(dim, "dim", 1, 2**20, "length of a feature")
        self.heads = heads or max(n for n in range(1, _HEADS + 1) if dim % n == 0)
        if dim % self.heads:
            raise InputError(f"heads: expected a divisor of {dim}, found {heads}")
        if layer not in get_args(Layer):
            raise InputError(f"layer: expected one of {', '.join(get_args(Layer))}, found {layer!r}")
        self.layer = nn.TransformerEncoderLayer(dim, self.heads, 4 * dim, batch_first=True)
        self.layer.self_attn.dropout = 0.0
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("residual", torch.tensor(layer == "residual"))  # a file says which layer it holds
        self.layer.norm_first = layer == "residual"
        if layer == "residual":
            for last in (self.layer.self_attn.out_proj, self.layer.linear2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Adapt patches (B, P, D); one that is exactly zero, where nothing was measured, is not attended to and stays.

        An image needs one patch that is not zero.
        """
        present = (patches != 0).any(dim=2)
        adapted = self.layer((patches - self.mean) / self.std, src_key_padding_mask=~present)
        return torch.where(present[..., None], adapted, adapted.new_zeros(()))


class FeatureAdaptation(nn.Module):
    """The adaptors of both modalities, Ψ_P and Ψ_I.

    Args:
        xyz_dim: length of a point feature.
        rgb_dim: length of an RGB feature.
        layer: see :class:`Adaptor`.

    Example:
        >>> adaptation = FeatureAdaptation(xyz_dim=12, rgb_dim=8).eval()
        >>> {name: rows.shape[2] for name, rows in adaptation.adapt({"xyz": torch.rand(1, 4, 12)}).items()}
        {'xyz': 12}
    """

    def __init__(self, xyz_dim: int, rgb_dim: int, *, layer: Layer = "vanilla") -> None:
        super().__init__()
        self.adaptors = nn.ModuleDict({"xyz": Adaptor(xyz_dim, layer=layer), "rgb": Adaptor(rgb_dim, layer=layer)})

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adapt the patches (B, P, D) of the modalities that are given."""
        return {name: self.adaptors[name](patches) for name, patches in features.items()}

    @torch.no_grad()
    def adapt(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adapt without gradients."""
        return self(features)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights to a safetensors file.

        Raises:
            InputError: The file cannot be written; an old one is still there then.
        """
        with replacing(path) as partial:
            write_tensors(partial, self.state_dict())

    def load_checkpoint(self, path: str | os.PathLike[str]) -> FeatureAdaptation:
        """Read what :meth:`save` wrote, of either kind of layer.

        Raises:
            InputError: There is no such file.
            FormatError: It is damaged, or of features of other lengths.
        """
        load_matching(self, read_torch(path), path)
        for adaptor in self.adaptors.values():
            adaptor.layer.norm_first = bool(adaptor.residual)  # type: ignore[union-attr]
        return self


class FeatureQueue:
    """A first-in-first-out bank of features (LSFA, eq. 5 to 7).

    Args:
        capacity: rows that it holds at most.
        dim: length of a feature.
        device: where it is.

    Example:
        >>> queue = FeatureQueue(3, 1)
        >>> queue.enqueue(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
        >>> len(queue), queue.nearest(torch.tensor([[0.2]]))
        (3, tensor([[1.]]))
    """

    def __init__(self, capacity: int, dim: int, device: torch.device | str = "cpu") -> None:
        check_index(capacity, "capacity", 1, 2**31 - 1, "rows of the bank")
        self._rows = torch.zeros(capacity, dim, device=device)
        self._filled, self._next = 0, 0

    def __len__(self) -> int:
        return self._filled

    def enqueue(self, features: Tensor) -> None:
        """Append rows (n, D); the oldest leave when there are too many."""
        capacity = len(self._rows)
        kept = features.detach()[-capacity:]
        places = (self._next + torch.arange(len(kept), device=self._rows.device)) % capacity
        self._rows[places] = kept.to(self._rows)
        self._next = (self._next + len(kept)) % capacity
        self._filled = min(capacity, self._filled + len(kept))

    def nearest(self, queries: Tensor) -> Tensor:
        """Return the entry (n, D) that is nearest to each query, found by the exact search of :mod:`mmad_bank.ops`."""
        _, rows = SearchIndex(self._rows[: self._filled]).search(as_features(queries.detach(), "queries"), 1)
        return self._rows[rows[:, 0]]

    def state_dict(self) -> dict[str, Any]:
        """Return all rows and where the next goes."""
        return {"rows": self._rows[: self._filled].clone(), "next": self._next}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._filled, self._next = len(state["rows"]), int(state["next"])
        self._rows[: self._filled] = state["rows"]


# Losses.


def alignment_loss(rgb: Tensor, xyz: Tensor) -> Tensor:
    """Return the InfoNCE of projected features (n, d), row i of one against all of the other (LSFA, eq. 2 and 3).

    Cross-entropy of the inner products with the diagonal as target, the mean over rows. Local: the patches of an image;
    global: the images of a batch.

    Example:
        >>> alignment_loss(torch.eye(2) * 20, torch.eye(2)).round(decimals=6)
        tensor(0.)
    """
    return F.cross_entropy(rgb @ xyz.T, torch.arange(len(rgb), device=rgb.device))


def compactness_loss(features: Tensor, queue: FeatureQueue, kind: Compactness = "distance") -> Tensor:
    """Return how far features (n, D) are from their nearest entries of a bank (LSFA, eq. 5 and 6).

    The search gives the entry; the distance to it is computed again, so that the gradient reaches the feature. The mean
    over features, where the equations have a sum: the weight of the loss should not grow with the patch grid.

    Args:
        features: the queries.
        queue: the bank; an empty one gives 0.
        kind: ``"distance"``, Euclidean as in the equations, or ``"mse"``, mean squared error as in the text.
    """
    if len(queue) == 0:
        return features.sum() * 0
    difference = features - queue.nearest(features)
    return difference.square().mean() if kind == "mse" else difference.norm(dim=1).mean()


def prototype(patches: Tensor, clusters: int = 4) -> Tensor:
    """Return the vector (D,) that stands for an image: the centre of the largest k-means cluster of patches (n, D).

    The paper says k-means, not how many clusters nor which of them. Centres start farthest-first, so that nothing is
    drawn. The gradient goes through the mean of the cluster's patches. One cluster gives the mean of all.

    Example:
        >>> prototype(torch.tensor([[0.0], [0.2], [9.0]]), clusters=2)
        tensor([0.1000])
    """
    clusters = min(clusters, len(patches))
    if clusters == 1:
        return patches.mean(0)
    rows = patches.detach()
    centres = rows[k_center_greedy(rows, clusters)]
    own = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for _ in range(_LLOYD_STEPS):
        own = torch.cdist(rows, centres).argmin(1)
        member = F.one_hot(own, clusters).to(rows)
        counts = member.sum(0)
        centres = torch.where(counts[:, None] > 0, member.T @ rows / counts.clamp(min=1)[:, None], centres)
    largest = torch.bincount(own, minlength=clusters).argmax()
    return patches[own == largest].mean(0)


# Training.


def train_adaptation(
    pairs: Pairs,
    *,
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
        pairs: images' patch features, (P, xyz_dim) and (P, rgb_dim) each; looked up one at a time.
        steps: optimizer steps; the paper gives no number.
        batch: images a step (published: 8).
        patches_per_image: draw so many patches of an image for the local losses instead of taking all; the adaptors see
            all of them.
        queue_size: rows of each bank (paper: 50 000).
        clc_weight: λ.
        losses: some of :data:`LOSSES`.
        compactness: see :func:`compactness_loss`.
        prototypes: an image's vector: ``"kmeans"``, see :func:`prototype`, or ``"mean"`` of its patches (published).
        clusters: of the k-means.
        layer: of the adaptors, see :class:`Adaptor`.
        lr: AdamW's rate.
        seed: of initial weights, order of images, drawn patches and dropout.
        resume: file of the training's state. If it is there, training goes on from it; every ``save_every`` steps and
            at the end it is replaced.
        save_every: steps between saved states.
        device: where to train.
        progress: show a bar on a terminal.

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
    _check_arguments(arguments)
    run = _Training(pairs, arguments, torch.device(device))
    train(
        run.losses, {"model": run.model, **run.queues}, run.optimizer, kind="LSFA", caller="train_adaptation",
        arguments=arguments, resume=resume, save_every=save_every, device=device, progress=progress,
    )  # fmt: skip
    return run.adaptation.eval()


def _check_arguments(arguments: dict[str, Any]) -> None:
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


class _Training:
    """Adaptors, projection heads, FIFO banks and the optimizer, and the loss of a step."""

    def __init__(self, pairs: Pairs, arguments: dict[str, Any], device: torch.device) -> None:
        self.pairs, self.arguments, self.device = pairs, arguments, device
        self.chosen = set(arguments["losses"].split(","))
        dims = {name: arguments[f"{name}_dim"] for name in MODALITIES}
        with seeded(arguments["seed"]):
            self.adaptation = FeatureAdaptation(dims["xyz"], dims["rgb"], layer=arguments["layer"])
            self.heads = nn.ModuleDict({name: nn.Linear(dim, _HEAD_DIM) for name, dim in dims.items()})
        for name, (mean, std) in _statistics(pairs).items():
            self.adaptation.adaptors[name].mean.fill_(mean)  # type: ignore[operator]
            self.adaptation.adaptors[name].std.fill_(std)  # type: ignore[operator]
        self.model = nn.ModuleDict({"adaptation": self.adaptation, "heads": self.heads}).to(device).train()
        self.queues = {
            f"{scale}_{name}": FeatureQueue(arguments["queue_size"], dim, device)
            for name, dim in dims.items()
            for scale in ("local", "global")
        }
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=arguments["lr"], betas=_BETAS)

    def losses(self, step: int) -> Iterator[Tensor]:
        """Give a step's loss, and then enqueue the features that it was taken on."""
        a = self.arguments
        images = sample_order(a["images"], step * a["batch"], a["batch"], a["seed"])
        features = {name: torch.stack(rows) for name, rows in zip(MODALITIES, self._read(images), strict=True)}
        present = (features["xyz"] != 0).any(dim=2)
        adapted = self.adaptation(features)
        if not all(bool(torch.isfinite(rows).all()) for rows in adapted.values()):
            yield torch.stack([rows.sum() for rows in adapted.values()]).sum()  # which stops the training
        local = [self._local(adapted, present[b], step, b) for b in range(len(images))]
        vectors = {name: self._vectors(adapted[name], present) for name in MODALITIES}
        yield self._alignment(local, vectors) * a["clc_weight"] + self._compactness(local, vectors)
        for name in MODALITIES:
            self.queues[f"local_{name}"].enqueue(torch.cat([own[name] for own, _ in local]))
            self.queues[f"global_{name}"].enqueue(vectors[name])

    def _read(self, images: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        drawn = [self.pairs[image] for image in images]
        for image, (xyz, rgb) in zip(images, drawn, strict=True):
            if xyz.ndim != 2 or len(xyz) != len(rgb) or not bool((xyz != 0).any()) or not bool((rgb != 0).any()):
                raise InputError(
                    f"pairs[{image}]: expected (P, xyz_dim) and (P, rgb_dim), not all zero, found {tuple(xyz.shape)}"
                    f" and {tuple(rgb.shape)}"
                )
        return tuple([pair[i].to(self.device, torch.float32) for pair in drawn] for i in (0, 1))  # type: ignore[return-value]

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
            each = [
                alignment_loss(self.heads["rgb"](both["rgb"]), self.heads["xyz"](both["xyz"])) for _, both in local
            ]
            total = total + torch.stack(each).mean()
        if "global_alignment" in self.chosen:
            total = total + alignment_loss(self.heads["rgb"](vectors["rgb"]), self.heads["xyz"](vectors["xyz"]))
        return total

    def _compactness(
        self, local: list[tuple[dict[str, Tensor], dict[str, Tensor]]], vectors: Mapping[str, Tensor]
    ) -> Tensor:
        """IFC (eq. 8), of both modalities."""
        total, kind = vectors["rgb"].new_zeros(()), self.arguments["compactness"]
        for name in MODALITIES:
            if "local_compactness" in self.chosen:
                rows = torch.cat([own[name] for own, _ in local])
                total = total + compactness_loss(rows, self.queues[f"local_{name}"], kind)
            if "global_compactness" in self.chosen:
                total = total + compactness_loss(vectors[name], self.queues[f"global_{name}"], kind)
        return total


def _statistics(pairs: Pairs) -> dict[str, tuple[float, float]]:
    """Return the mean and the standard deviation of all values of all patches that are not zero, by modality."""
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in MODALITIES}
    for image in range(len(pairs)):
        for name, rows in zip(MODALITIES, pairs[image], strict=True):
            values = rows[(rows != 0).any(dim=1)].double()
            sums[name] += torch.stack([torch.tensor(values.numel()), values.sum(), values.square().sum()]).cpu()
    result = {}
    for name, (count, total, squares) in sums.items():
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
        result[name] = (float(mean), float(std) if float(std) > 0 else 1.0)
    return result
