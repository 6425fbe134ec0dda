"""LSFA (Tu et al. 2024): features adapted to the data set without labels, then a PatchCore bank of each modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from mmad_bank import scoring
from mmad_bank._internal.resume import Stages
from mmad_bank.adaptation import LOSSES, Compactness, FeatureAdaptation, Layer, Prototype, train_adaptation
from mmad_bank.bank import Scores
from mmad_bank.errors import InputError
from mmad_bank.extraction import Extractors
from mmad_bank.features.factory import BUNDLED_STAGES, PRETRAINED
from mmad_bank.features.point_alignment import Recipe
from mmad_bank.features.rgb import Precision
from mmad_bank.methods.bank_method import PointBankMethod
from mmad_bank.methods.training_features import Dumps, Pairs
from mmad_bank.ops.knn import Precision as Storage

BANKS = ("xyz", "rgb")
TRAIN, NONE = "train", "none"


class LSFA(PointBankMethod):
    """Adaptors trained to agree between modalities (CLC) and to be compact within one (IFC); two banks, averaged.

    Section 3.1 (features and adaptors), 3.2 (CLC), 3.3 (IFC) and 3.4 (banks).

    Args:
        rgb: a model's name in timm, or ``"efficientnet_lite0"``, which needs no download from outside the package
            index.
        rgb_weights: ``"pretrained"``, a checkpoint file, or ``"random"``.
        rgb_layers: stages or blocks; None for the extractor's own.
        xyz: ``"point_mae"``, or ``"fpfh"``, which needs no weights.
        xyz_weights: Point-MAE's published checkpoint file, or ``"random"``.
        num_groups: G of Point-MAE, groups in a cloud.
        group_size: S of Point-MAE, points in a group.
        adaptation: ``"train"`` on the samples of :meth:`fit`; ``"none"`` for the same banks without adaptation; or a
            file, for one pair of adaptors that was trained before (:class:`FeatureAdaptation` saves it).
        adaptor: ``"vanilla"`` as in the paper, or ``"residual"``, which starts as the identity: for extractors whose
            features do not come out of a layer norm, and for little data; see :class:`mmad_bank.adaptation.Adaptor`.
        adaptation_steps: steps of the training; the paper gives no number.
        adaptation_batch: images a step.
        adaptation_patches: patches drawn of an image for the local losses; None takes all.
        adaptation_lr: the training's rate.
        queue_size: rows of the FIFO banks.
        clc_weight: λ.
        losses: some of :data:`mmad_bank.adaptation.losses.LOSSES`.
        compactness: ``"distance"`` or ``"mse"``, see :func:`mmad_bank.adaptation.losses.compactness_loss`.
        prototypes: an image's vector: ``"kmeans"`` or ``"mean"``.
        clusters: of the k-means.
        image_size: pixels a side of the prepared images.
        grid: (h, w) of the patches; the paper's is (56, 56).
        recipe: of point features and their alignment, ``"paper"`` or ``"published"``. (LSFA's own published code does
            not run; the paper is followed.)
        ratio: share of the training patches that a bank keeps.
        projection_dim: select in a sparse random projection; None selects on the features themselves.
        reweight: of the image scores.
        n_neighbors: of the reweighting; None for the rule's own.
        sigma: of the map's Gaussian, pixels.
        precision: of the extractors' products.
        storage: of the banks' copies in memory; scores do not change.
        seed: of everything random.
        device: where to extract, train and search.

    Raises:
        InputError: ``losses`` are none of those.

    Example:
        >>> LSFA("efficientnet_lite0", xyz="fpfh", grid=(28, 28), adaptation_steps=100).clc_weight
        0.6
    """

    name: ClassVar[str] = "lsfa"
    bundled: ClassVar[Mapping[str, Any]] = {
        "rgb_layers": BUNDLED_STAGES, "grid": (28, 28), "adaptor": "residual", "adaptation_steps": 60,
        "adaptation_batch": 4, "adaptation_patches": 256, "queue_size": 5000,
    }  # fmt: skip

    def __init__(
        self,
        rgb: str = "vit_base_patch8_224.dino",
        rgb_weights: str = PRETRAINED,
        *,
        rgb_layers: tuple[int, ...] | None = None,
        xyz: str = "point_mae",
        xyz_weights: str = PRETRAINED,
        num_groups: int = 1024,
        group_size: int = 128,
        adaptation: str = TRAIN,
        adaptor: Layer = "vanilla",
        adaptation_steps: int = 1000,
        adaptation_batch: int = 8,
        adaptation_patches: int | None = None,
        adaptation_lr: float = 3e-4,
        queue_size: int = 50_000,
        clc_weight: float = 0.6,
        losses: tuple[str, ...] = LOSSES,
        compactness: Compactness = "distance",
        prototypes: Prototype = "kmeans",
        clusters: int = 4,
        image_size: int = 224,
        grid: tuple[int, int] = (56, 56),
        recipe: Recipe = "paper",
        ratio: float = 0.1,
        projection_dim: int | Literal["auto"] | None = None,
        reweight: scoring.Reweight = "patchcore",
        n_neighbors: int | None = None,
        sigma: float = 4.0,
        precision: Precision = "float32",
        storage: Storage = "auto",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.rgb, self.rgb_weights, self.rgb_layers = rgb, rgb_weights, rgb_layers
        self.xyz, self.xyz_weights, self.num_groups, self.group_size = xyz, xyz_weights, num_groups, group_size
        self.adaptation, self.adaptor = adaptation, adaptor
        self.adaptation_steps, self.adaptation_batch = adaptation_steps, adaptation_batch
        self.adaptation_patches, self.adaptation_lr = adaptation_patches, adaptation_lr
        self.queue_size, self.clc_weight, self.losses, self.compactness = queue_size, clc_weight, losses, compactness
        self.prototypes, self.clusters = prototypes, clusters
        self.image_size, self.grid, self.recipe = image_size, grid, recipe
        self.ratio, self.projection_dim = ratio, projection_dim
        self.reweight, self.n_neighbors, self.sigma = reweight, n_neighbors, sigma
        self.precision, self.storage = precision, storage
        self.seed, self.device = seed, device
        if not losses or not set(losses) <= set(LOSSES):
            raise InputError(f"losses: expected some of {', '.join(LOSSES)}, found {', '.join(losses) or 'none'}")
        self._begin()

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

    def _learn_adaptation(self, dumps: Dumps, stages: Stages) -> None:
        self.adaptation_ = learn_adaptation(
            self, dumps, stages, steps=self.adaptation_steps, batch=self.adaptation_batch,
            patches_per_image=self.adaptation_patches, queue_size=self.queue_size, clc_weight=self.clc_weight,
            losses=tuple(self.losses), compactness=self.compactness, prototypes=self.prototypes,
            clusters=self.clusters, layer=self.adaptor, lr=self.adaptation_lr,
        )  # fmt: skip

    def _decide(self, scores: Mapping[str, Scores]) -> tuple[Tensor, Tensor]:
        """Average the two banks' scores of images and of patches (section 3.4); maps are linear in the latter."""
        images, patches = ([getattr(scores[name], one) for name in BANKS] for one in ("image", "patch"))
        return torch.stack(images).mean(0), torch.stack(patches).mean(0)


class Adapting(Protocol):
    """A method with an argument ``adaptation``: ``"none"``, ``"train"``, or a file."""

    adaptation: str
    seed: int
    device: str
    extractors_: Extractors


def learn_adaptation(method: Adapting, dumps: Dumps, stages: Stages, **options: Any) -> FeatureAdaptation | None:
    """Train adaptors on a method's features, or take those of a file, or none, as its argument says.

    Args:
        method: Whose features they are.
        dumps: The features.
        stages: For the training's state.
        options: Of :func:`train_adaptation`.
    """
    if method.adaptation == NONE:
        return None
    if method.adaptation != TRAIN:
        dims = method.extractors_.dims
        adaptation = FeatureAdaptation(dims["xyz"], dims["rgb"]).load_checkpoint(method.adaptation)
        return adaptation.to(method.device).eval()
    return train_adaptation(
        Pairs(dumps), seed=method.seed, resume=stages.state("adaptation.pt"), device=method.device,
        progress=stages.progress, **options,
    )  # fmt: skip
