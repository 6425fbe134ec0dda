"""LSFA (Tu et al. 2024): features adapted to the data set without labels, then a PatchCore bank of each modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank import scoring
from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.resume import Stages
from mmad_bank.adaptation import (
    LOSSES,
    Compactness,
    FeatureAdaptation,
    FineTuning,
    Prototype,
    has_transformer,
    train_adaptation,
    train_networks,
)
from mmad_bank.errors import InputError
from mmad_bank.extraction import Extractors
from mmad_bank.features.factory import BUNDLED_STAGES
from mmad_bank.methods.one_grid_method import OneGridMethod
from mmad_bank.methods.options import AdaptationOptions, Count, Idle, Range, Rate, SomeOf, accepts_former_names
from mmad_bank.methods.point_bank_method import PointBankMethod
from mmad_bank.methods.shareable import TRAIN, CategoryData, SharedPart, load_part
from mmad_bank.methods.training_features import Dumps, Pairs, made_of, pairs_of

BANKS = ("xyz", "rgb")
NONE = "none"
_IDLE_WITHOUT = {
    "compactness": "compactness", "local_compactness": "queue_size", "alignment": "clc_weight",
    "global": "prototypes clusters",
}  # fmt: skip
"""Arguments that concern some of the losses, by a word in these losses' names."""
ADAPTATION = SharedPart("adaptation", "adaptation", "adaptation_", "adaptors")


@accepts_former_names
@dataclass(kw_only=True, eq=False, repr=False)
class LSFA(PointBankMethod, OneGridMethod, AdaptationOptions):
    """Adaptors trained to agree between modalities (CLC) and to be compact within one (IFC); two banks, averaged.

    Section 3.1 (features and adaptors), 3.2 (CLC), 3.3 (IFC) and 3.4 (banks).

    The recipe is that of the point features and of their alignment: LSFA's own published code does not run, and the
    paper is followed in all else. Both modalities' grid is the paper's, 56 × 56.

    Raises:
        InputError: An argument is out of its range, or is none of its choices.

    Example:
        >>> LSFA("efficientnet_lite0", xyz="fpfh", grid=(28, 28), adaptation_steps=100).clc_weight
        0.6
    """

    name: ClassVar[str] = "lsfa"
    shareable: ClassVar[tuple[SharedPart, ...]] = (ADAPTATION,)
    prediction_arguments: ClassVar[frozenset[str]] = PointBankMethod.prediction_arguments | {"decision"}
    # The decision was chosen by benchmarks/methods.py decisions, on the data sets of seeds 10 and 11.
    bundled: ClassVar[Mapping[str, Any]] = {
        "rgb_layers": BUNDLED_STAGES, "grid": (28, 28), "adaptor": "residual", "adaptation_steps": 60,
        "adaptation_batch": 4, "adaptation_patches": 256, "queue_size": 5000, "decision": "calibrated",
    }  # fmt: skip

    rgb: str = field(default="vit_base_patch8_224.dino", kw_only=False)
    grid: tuple[int, int] = (56, 56)
    reweight: scoring.Reweight = "patchcore"
    adaptation: str = TRAIN

    decision: Literal["add", "calibrated"] = "add"
    """Decision over both banks: the average of their scores, as in the paper, or their scores on the scale of held-out
    normal images (see ``calibration`` and :class:`mmad_bank.fusion.CalibratedFusion`)."""

    adaptation_lr: Rate = 3e-4
    """Learning rate of the adaptors' training."""

    queue_size: Count = 50_000
    """Rows of each FIFO bank that the compactness losses compare with."""

    clc_weight: Annotated[float, Range(0)] = 0.6
    """Weight of the alignment losses (CLC) beside the compactness losses (λ)."""

    losses: Annotated[tuple[str, ...], SomeOf(LOSSES)] = LOSSES
    """Losses of the adaptors' training: CLC's alignment and IFC's compactness, each of patches and of whole images."""

    compactness: Compactness = "distance"
    """Measure of the compactness losses (see :func:`mmad_bank.adaptation.losses.compactness_loss`)."""

    prototypes: Prototype = "kmeans"
    """Vector that stands for a whole image: from k-means of its patches, or their mean."""

    clusters: Count = 4
    """Clusters of the k-means."""

    finetune: FineTuning | Literal["none"] = "none"
    """Training of the extractors themselves, by the same losses, in the place of adaptors: low-rank weights beside
    their attention (``"lora"``, or ``"adalora"``, which moves the ranks to where they matter; both need peft), their
    last blocks, or all."""

    finetune_rank: Annotated[int, Range(1, 2**16)] = 8
    """Rank of LoRA's matrices, and the average rank that AdaLoRA ends with."""

    finetune_blocks: Count = 1
    """Blocks, counted from the last, that the fine-tuning ``"blocks"`` trains."""

    finetune_networks: Annotated[tuple[str, ...], SomeOf(BANKS)] | None = None
    """Modalities whose extractors are fine-tuned; none takes those whose extractor is a transformer."""

    def _idle(self) -> Idle:
        yield self.xyz == "fpfh", "recipe", "xyz=fpfh"  # its other differences are the point network's
        losses = f"losses={','.join(self.losses)}"
        yield self.prototypes != "kmeans", "clusters", f"prototypes={self.prototypes}"
        for words, names in _IDLE_WITHOUT.items():
            yield not any(words in one for one in self.losses), names, losses
        training = "adaptation_lr queue_size clc_weight losses compactness prototypes clusters"
        yield self.adaptation != TRAIN, training, f"adaptation={self.adaptation}"
        yield self.finetune != NONE, "adaptation adaptor", f"finetune={self.finetune}"
        yield self.finetune not in ("lora", "adalora"), "finetune_rank", f"finetune={self.finetune}"
        yield self.finetune != "blocks", "finetune_blocks", f"finetune={self.finetune}"
        yield self.finetune == NONE, "finetune_networks", f"finetune={self.finetune}"

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.finetune != NONE and self.adaptation != TRAIN:
            raise InputError(
                f"adaptation: expected {TRAIN!r} with finetune {self.finetune!r}, which takes the adaptors' place,"
                f" found {self.adaptation!r}"
            )

    def _networks(self, weights: str | None) -> dict[str, nn.Module]:
        return {"xyz": self._xyz_network(weights), "rgb": self._rgb_network(weights)}

    def _bank_names(self) -> tuple[str, ...]:
        return BANKS

    def _standardize(self, bank: str) -> bool:
        """Scale distances so that the average weighs features of different extractors alike.

        Adapted features come out of a layer norm, on which this does next to nothing.
        """
        del bank
        return True

    def _has(self, part: str) -> bool:
        return part != ADAPTATION.name or self.finetune == NONE

    def _learn_adaptation(self, members: Sequence[CategoryData], stages: Stages) -> None:
        options: dict[str, Any] = {
            "steps": self.adaptation_steps, "batch": self.adaptation_batch,
            "patches_per_image": self.adaptation_patches, "queue_size": self.queue_size, "clc_weight": self.clc_weight,
            "losses": tuple(self.losses), "compactness": self.compactness, "prototypes": self.prototypes,
            "clusters": self.clusters, "lr": self.adaptation_lr,
        }  # fmt: skip
        if (kind := self.finetune) == "none":
            self.adaptation_ = learn_adaptation(self, members, stages, layer=self.adaptor, **options)
            return
        (own,) = members  # extractors are no part that categories share
        networks = self.extractors_.networks
        given = {name: own.data[name if name in own.data else input_of(name)] for name in BANKS}
        with argument_called(blocks="finetune_blocks", rank="finetune_rank"):
            train_networks(
                Pairs(given), {name: networks[name] for name in self._tuned(networks)}, finetune=kind,
                rank=self.finetune_rank, blocks=self.finetune_blocks, seed=self.seed,
                resume=stages.state("adaptation.pt"), device=self.device, progress=stages.progress, **options,
            )  # fmt: skip

    # Fine-tuning: the training samples' images and clouds are kept in the place of the features that will change.

    def _tuned(self, networks: Mapping[str, nn.Module]) -> list[str]:
        """Name the modalities whose extractors are trained."""
        if self.finetune == NONE:
            return []
        can = [name for name in BANKS if has_transformer(networks[name])]
        wanted = can if self.finetune_networks is None else [name for name in BANKS if name in self.finetune_networks]
        if not wanted:
            found = ", ".join(f"{name} {networks[name].name}" for name in BANKS)
            raise InputError(
                f"finetune: expected 'none', or a transformer of one modality at least (xyz=point_mae or point_bert, or"
                f" a vision transformer of timm as rgb), found {found}"
            )
        for name in wanted:
            if name not in can:
                raise InputError(
                    f"finetune_networks: expected modalities whose extractor is a transformer, found {name!r}, whose"
                    f" extractor is {networks[name].name}"
                )
        return wanted

    def _training_extractors(self, extractors: Extractors) -> Extractors:
        tuned = self._tuned(extractors.networks)
        return InputsOf(extractors.networks, self.device, tuned) if tuned else extractors

    def _adapted(self, split: str, dumps: Dumps, stages: Stages) -> Dumps:
        if self.finetune == NONE:
            return super()._adapted(split, dumps, stages)

        def table(name: str) -> np.ndarray:
            if name in dumps:
                return dumps[name]
            network, file = self.extractors_.networks[name], f"{split}-{name}-adapted.npy"
            own = {name: dumps[input_of(name)]}
            return made_of(own, file, lambda inputs: network(inputs[name]), stages, self.device)

        return {name: table(name) for name in BANKS}

    def _extractor_name(self, bank: str) -> str:
        name = super()._extractor_name(bank)
        return f"{name} fine-tuned ({self.finetune})" if bank in self._tuned(self.extractors_.networks) else name

    def _decide(self, images: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Average the two banks' scores of images and of places (section 3.4)."""
        image, place = (torch.stack([scores[name] for name in BANKS]).mean(0) for scores in (images, places))
        return image, place


def input_of(modality: str) -> str:
    """Name the output of :class:`InputsOf` for what a modality's extractor is given."""
    return f"{modality}-input"


class InputsOf(Extractors):
    """Extractors some of which hand on what they are given, for a training that goes through them.

    Args:
        networks: The networks, by modality.
        device: Device that they run on.
        inputs: Modalities whose images or clouds, float32 (B, 3, S, S), are kept in the place of features.
    """

    def __init__(self, networks: dict[str, nn.Module], device: str | torch.device, inputs: Sequence[str]) -> None:
        super().__init__(networks, device)
        self.inputs = tuple(inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is extracted."""
        return tuple(input_of(name) if name in self.inputs else name for name in self.networks)

    def _describe(self, modality: str, network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        if modality not in self.inputs:
            return super()._describe(modality, network, batch)
        if modality == "xyz":
            network(batch)  # refuses clouds that have too few points, while samples can still be left out
        return {input_of(modality): batch}


class Adapting(Protocol):
    """A method with an argument ``adaptation``: ``"none"``, ``"train"``, or a file."""

    seed: int
    device: str
    extractors_: Extractors

    def source_of(self, argument: str) -> str:
        """Return what the argument says, or the file of a shared training."""

    def features_of(self, part: str) -> str:
        """Name the extractors whose features a part is trained on."""


def learn_adaptation(
    method: Adapting, members: Sequence[CategoryData], stages: Stages, **options: Any
) -> FeatureAdaptation | None:
    """Train adaptors on a method's features, or take those of a file, or none, as its argument says.

    Args:
        method: Method whose features they are.
        members: The features of each category.
        stages: Stages that the training's state goes to.
        options: Options of :func:`train_adaptation`.
    """
    source = method.source_of(ADAPTATION.argument)
    if source == NONE:
        return None
    if source != TRAIN:
        dims = method.extractors_.dims
        adaptation = FeatureAdaptation(dims["xyz"], dims["rgb"])
        load_part(adaptation, ADAPTATION.argument, source, method.features_of(ADAPTATION.name))
        return adaptation.to(method.device).eval()
    groups = [number for number, one in enumerate(members) for _ in range(one.images)]
    return train_adaptation(
        pairs_of(members), groups=groups, seed=method.seed, resume=stages.state("adaptation.pt"), device=method.device,
        progress=stages.progress, **options,
    )  # fmt: skip
