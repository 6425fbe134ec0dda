"""Fine-tuning of the extractors' transformers in the place of adaptors (LSFA, Tu et al. 2024, section 4.5)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from mmad_bank._internal.checks import check_choice, check_index
from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.training import Pairs, Stateful, check_rate
from mmad_bank.adaptation.adaptor import MODALITIES
from mmad_bank.adaptation.losses import LOSSES, Compactness, Prototype
from mmad_bank.adaptation.training import Training, check_arguments, statistics
from mmad_bank.errors import InputError

FineTuning = Literal["lora", "adalora", "blocks", "all"]
"""What is trained of a network, see :func:`train_networks`."""

_NAME = "default"  # of peft's adapter
_IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # what AdaLoRA's allocator has measured so far, by weight


@runtime_checkable
class Tunable(Protocol):
    """An extractor that may have a transformer, whose features have gradients."""

    dim: int

    @property
    def transformer(self) -> nn.Module | None:
        """The transformer; None of another network."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Its blocks, first to last."""

    def features(self, inputs: Tensor, /) -> Tensor:
        """Return the features (B, P, D) of prepared images or clouds (B, 3, S, S)."""


def has_transformer(network: nn.Module) -> bool:
    """Tell whether an extractor can be fine-tuned."""
    return isinstance(network, Tunable) and network.transformer is not None


def train_networks(
    pairs: Pairs,
    networks: Mapping[str, nn.Module],
    *,
    finetune: FineTuning = "lora",
    rank: int = 8,
    blocks: int = 1,
    steps: int = 1000,
    batch: int = 8,
    patches_per_image: int | None = None,
    queue_size: int = 50_000,
    clc_weight: float = 0.6,
    losses: tuple[str, ...] = LOSSES,
    compactness: Compactness = "distance",
    prototypes: Prototype = "kmeans",
    clusters: int = 4,
    lr: float = 3e-4,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> None:
    """Train extractors themselves by LSFA's losses, without adaptors, in place (LSFA, section 4.5).

    Low-rank weights are added to the linear layers of the blocks' attention, and merged into these at the end: what is
    left is the network that there was, with other weights. The paper does not say which layers, ranks and rates it has.

    Args:
        pairs: Images' inputs, 3-D first: of a network that is trained its prepared cloud or image (3, S, S), of another
            its patch features (P, D); looked up one at a time.
        networks: The extractors to train by modality, ``"xyz"`` or ``"rgb"``, on ``device``; each has a transformer.
        finetune: What is trained. ``"lora"`` (Hu et al. 2022): matrices of low rank. ``"adalora"`` (Zhang et al. 2023):
            the same, one and a half times as many ranks at first, of which those that matter least are taken away
            between a tenth and a half of the steps, over all layers together. ``"blocks"``: the last blocks.
            ``"all"``: every weight.
        rank: Rank of each matrix; for AdaLoRA the average at the end.
        blocks: Number of blocks, counted from the last, that ``"blocks"`` trains.
        steps: Number of optimizer steps, as of :func:`train_adaptation`, from which all others are too.
        batch: Number of images per step.
        patches_per_image: Number of patches to draw from an image for the local losses instead of taking all.
        queue_size: Number of rows of each bank.
        clc_weight: Weight λ of the CLC loss.
        losses: Names of losses.
        compactness: Kind of the compactness loss; it is taken of the modalities that are trained.
        prototypes: Vector that stands for an image.
        clusters: Number of clusters of the k-means.
        lr: Learning rate of AdamW.
        seed: Seed of initial weights, order of images and drawn patches.
        resume: File of the training's state, which holds the weights that are trained, not the others.
        save_every: Number of steps between saved states.
        device: Where to train.
        progress: Whether to show a bar on a terminal.

    Raises:
        InputError: An argument is out of range, a network has no transformer, or an image's features do not fit.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MissingExtraError: ``"lora"`` and ``"adalora"`` need peft.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> from mmad_bank.features import RGBExtractor
        >>> network = RGBExtractor("vit_tiny_patch16_224", image_size=32, layers=(1,))
        >>> images = [(torch.randn(4, 6), torch.rand(3, 32, 32)) for _ in range(2)]
        >>> before = network(images[0][1][None])
        >>> train_networks(images, {"rgb": network}, finetune="blocks", steps=2, batch=2)
        >>> bool((network(images[0][1][None]) == before).all())
        False
    """
    check_index(len(pairs), "pairs", 1, 2**31 - 1, "training needs an image")
    dims = {
        name: int(networks[name].dim) if name in networks else pairs[0][i].shape[-1]  # type: ignore[arg-type]
        for i, name in enumerate(MODALITIES)
    }
    arguments = {
        "finetune": finetune, "rank": rank, "blocks": blocks,
        "networks": "; ".join(f"{name} {network.name}" for name, network in sorted(networks.items())),
        "steps": steps, "batch": batch, "patches_per_image": patches_per_image or 0, "queue_size": queue_size,
        "clc_weight": float(clc_weight), "losses": ",".join(losses), "compactness": compactness,
        "prototypes": prototypes, "clusters": clusters, "lr": check_rate(lr), "seed": seed, "images": len(pairs),
        "xyz_dim": dims["xyz"], "rgb_dim": dims["rgb"],
    }  # fmt: skip
    check_arguments(arguments)
    check_choice(finetune, get_args(FineTuning), "finetune")
    check_index(rank, "rank", 1, 2**16, "rank of a matrix")
    run = NetworkTraining(pairs, arguments, torch.device(device), networks)
    try:
        run.take(caller="train_networks", resume=resume, save_every=save_every, progress=progress)
    finally:
        run.finish()


class NetworkTraining(Training):
    """Networks that are trained in a part, in the place of adaptors."""

    def __init__(
        self, pairs: Pairs, arguments: dict[str, Any], device: torch.device, networks: Mapping[str, nn.Module]
    ) -> None:
        self.networks = networks
        self.trained = tuple(name for name in MODALITIES if name in networks)
        if not self.trained or len(self.trained) < len(networks):
            raise InputError(f"networks: expected xyz, rgb or both, found {', '.join(networks) or 'none'}")
        super().__init__(pairs, arguments, device)

    def finish(self) -> None:
        """Merge what was added, and freeze all."""
        for one in self.tunings.values():
            one.finish()

    def _begin(self, dims: Mapping[str, int]) -> nn.Module:
        own = self.arguments
        self.tunings = {
            name: tune(self.networks[name], own["finetune"], rank=own["rank"], blocks=own["blocks"], steps=own["steps"])
            for name in self.trained
        }
        frozen = statistics(self.pairs, [name for name in MODALITIES if name not in self.networks])
        return _Features(self.networks, frozen)

    def _stateful(self) -> dict[str, Stateful]:
        trained = nn.ParameterList(weight for weight in self.model.parameters() if weight.requires_grad)
        return {"model": trained, **{f"ranks_{name}": one for name, one in self.tunings.items()}}

    def _after(self, step: int) -> None:
        for one in self.tunings.values():
            one.after(step)

    def _penalty(self) -> Tensor | float:
        return sum(one.penalty() for one in self.tunings.values())

    def _check_pair(self, image: int, xyz: Tensor, rgb: Tensor) -> None:
        for name, found in (("xyz", xyz), ("rgb", rgb)):
            fits = found.ndim == 3 if name in self.networks else found.ndim == 2 and bool((found != 0).any())
            if not fits:
                expected = "(3, S, S)" if name in self.networks else f"(P, {name}_dim), not all zero,"
                raise InputError(f"pairs[{image}]: expected {name} {expected}, found {tuple(found.shape)}")


class _Features(nn.Module):
    """Features of both modalities: of networks, or given ones, brought to unit size by one mean and deviation."""

    def __init__(self, networks: Mapping[str, nn.Module], frozen: Mapping[str, tuple[float, float]]) -> None:
        super().__init__()
        self.networks, self.frozen = nn.ModuleDict(networks), dict(frozen)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._of(name, rows) for name, rows in inputs.items()}

    def _of(self, name: str, rows: Tensor) -> Tensor:
        if name in self.networks:
            return self.networks[name].features(rows)  # type: ignore[operator]
        mean, std = self.frozen[name]
        return torch.where((rows != 0).any(dim=2, keepdim=True), (rows - mean) / std, 0.0)


class Tuning:
    """Weights of a network that are trained.

    Args:
        weights: The weights; they want gradients from now on.
    """

    def __init__(self, weights: Iterator[nn.Parameter]) -> None:
        self.weights = list(weights)
        for weight in self.weights:
            weight.requires_grad_(True)

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss."""
        return 0.0

    def after(self, step: int) -> None:
        """Do what is left to do behind the optimizer's step."""

    def finish(self) -> None:
        """Leave a frozen network of the architecture that there was."""
        for weight in self.weights:
            weight.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """Return what must come back beside the weights for the training to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take back what :meth:`state_dict` returned."""


def tune(network: nn.Module, kind: FineTuning, *, rank: int, blocks: int, steps: int) -> Tuning:
    """Prepare an extractor, in place, for a training of some of its weights; see :func:`train_networks`."""
    if not has_transformer(network):
        raise InputError(f"finetune: expected a network with transformer blocks, found {getattr(network, 'name', '')}")
    assert isinstance(network, Tunable)
    assert network.transformer is not None
    if kind == "all":
        return Tuning(network.transformer.parameters())
    if kind == "blocks":
        check_index(blocks, "blocks", 1, len(network.blocks), f"as many as {getattr(network, 'name', '')} has")
        return Tuning(nn.ModuleList(network.blocks[-blocks:]).parameters())
    peft = import_extra("peft", "peft", f"finetune={kind!r}", "finetune")
    names = _attention_layers(network.transformer, network.blocks)
    if not names:
        raise InputError(f"finetune: expected a network with attention, found {getattr(network, 'name', '')}")
    layers = [network.transformer.get_submodule(name) for name in names]
    sides = [side for layer in layers if isinstance(layer, nn.Linear) for side in layer.weight.shape]
    check_index(rank, "rank", 1, min(sides), "no matrix of the attention has a higher one")
    return (LoRA if kind == "lora" else AdaLoRA)(peft, network.transformer, names, rank, steps)


def _attention_layers(transformer: nn.Module, blocks: Sequence[nn.Module]) -> list[str]:
    """Name the linear layers of the blocks' attention, as they are called in the transformer."""
    own = {id(module) for block in blocks for name, module in block.named_modules() if "attn" in name.split(".")}
    return [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear) and id(module) in own]


class LoRA(Tuning):
    """Matrices of low rank beside linear layers, by peft.

    The product's scale is 1 whatever the rank.
    """

    def __init__(self, peft: Any, transformer: nn.Module, names: list[str], rank: int, steps: int) -> None:
        self.tuner = self._tuner(peft, transformer, names, rank, steps)
        super().__init__(weight for name, weight in self.tuner.named_parameters() if ".lora_" in name)

    def _tuner(self, peft: Any, transformer: nn.Module, names: list[str], rank: int, steps: int) -> Any:
        del steps
        return peft.LoraModel(transformer, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names), _NAME)

    def after(self, step: int) -> None:
        """Refuse an attention that reads its layers' weights without calling the layers: it would learn nothing."""
        if any(weight.grad is None for weight in self.weights):
            raise InputError("finetune: expected 'blocks' or 'all', as this network's attention calls no linear layers")

    def finish(self) -> None:
        """Merge the products into the layers."""
        super().finish()
        self.tuner.merge_and_unload(progressbar=False)


class AdaLoRA(LoRA):
    """LoRA whose ranks move to the layers that need them, by peft.

    Each product is B·diag(E)·A with nearly orthogonal A and B. An entry of E is zeroed when its triplet matters least.
    """

    def _tuner(self, peft: Any, transformer: nn.Module, names: list[str], rank: int, steps: int) -> Any:
        if steps < 2:
            raise InputError(f"steps: expected at least 2 for AdaLoRA, found {steps}")
        first = rank + (rank + 1) // 2
        config = peft.AdaLoraConfig(
            init_r=first, target_r=rank, lora_alpha=first, target_modules=names, total_step=steps, tinit=steps // 10,
            tfinal=steps // 2, deltaT=max(1, steps // 100),
        )  # fmt: skip
        return peft.AdaLoraModel(transformer, config, _NAME)

    @property
    def _config(self) -> Any:
        return self.tuner.peft_config[_NAME]

    def penalty(self) -> Tensor | float:
        """Return how far A and B are from orthogonal, ‖PPᵀ - I‖ averaged over the matrices, times peft's weight."""
        distances = []
        for name, weight in self.tuner.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                product = weight @ weight.T if ".lora_A." in name else weight.T @ weight
                distances.append((product - torch.eye(len(product), device=weight.device)).norm())
        return self._config.orth_reg_weight * torch.stack(distances).mean()

    def after(self, step: int) -> None:
        """Measure what the triplets matter, and take some away when it is time."""
        super().after(step)
        self.tuner.update_and_allocate(step)

    def state_dict(self) -> dict[str, Any]:
        """Return which triplets are left, and what has been measured."""
        allocator = self.tuner.rankallocator
        return {"pattern": self._config.rank_pattern, **{name: getattr(allocator, name) for name in _IMPORTANCES}}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._config.rank_pattern = state["pattern"]
        for name in _IMPORTANCES:
            setattr(self.tuner.rankallocator, name, dict(state[name]))
