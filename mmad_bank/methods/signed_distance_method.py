"""Common parts of the methods that learn signed distances of points: arguments, the training, where weights come from.

MDSS scores points by them; Shape-guided keeps the codes of their patches in a memory bank.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.limits import MACHINE
from mmad_bank._internal.resume import Stages
from mmad_bank._internal.torch_state import plain_torch
from mmad_bank._internal.training import seeded
from mmad_bank.data.sequences import as_samples
from mmad_bank.features.factory import RANDOM
from mmad_bank.methods.base import Method, Samples
from mmad_bank.methods.mdss.point_patches import JoinedPatches
from mmad_bank.methods.mdss.pulling import train_on_patches, train_signed_distance
from mmad_bank.methods.mdss.signed_distance import Aggregation, SignedDistance
from mmad_bank.methods.mdss.training_data import clouds_of
from mmad_bank.methods.options import Count, Idle, Range, Rate
from mmad_bank.methods.shareable import TRAIN, CategoryData, SharedPart, load_part

SDF = SharedPart("sdf", "sdf_weights", "sdf_", "signed distances")
Coverage = Annotated[float, Range(above=0)]


@dataclass(kw_only=True, eq=False, repr=False)
class SignedDistanceMethod(Method):
    """A method that cuts clouds into patches and learns how far points lie from the patches' normal surface.

    Attributes:
        sdf_: The signed distances; None where the method has been told to do without.
    """

    shareable: ClassVar[tuple[SharedPart, ...]] = (SDF,)

    patch_size: Annotated[int, Range(2, 2**20)] = 500
    """Points in a patch of the cloud."""

    coverage: tuple[Coverage, Coverage] | None = None
    """Patches that a point lies in on average, in training and in prediction: 5 and 10 in Shape-guided's code. None
    takes as few as hold every point, about 3, as MDSS asks for no more."""

    sdf_weights: str = TRAIN
    """Weights of the signed distances: ``"train"`` on the samples of ``fit``; a file of one network for all categories
    that was trained before (``mmad-bank train-sdf`` writes it), as in Shape-guided; or ``"random"`` for tests and
    timings."""

    sdf_steps: Count = 20_000
    """Optimizer steps of the signed distances' training."""

    sdf_batch: Annotated[int, Range(2, MACHINE)] = 32
    """Patches in a step of that training; batch normalization needs two."""

    sdf_queries: Count | None = None
    """Points pulled in each patch; none takes ``patch_size``, which is the most."""

    sdf_lr: Rate = 1e-4
    """Initial learning rate of that training; it falls as a cosine."""

    sdf_width: Annotated[int, Range(1, 2**13)] = 512
    """Width of the implicit function's layers; 512 in the papers."""

    aggregation: Aggregation = "min"
    """Aggregation of a point's distances over the patches that hold it."""

    def _begin(self) -> None:
        super()._begin()
        self.sdf_: SignedDistance | None = None

    def _idle(self) -> Idle:
        training = "sdf_steps sdf_batch sdf_queries sdf_lr"
        yield self.sdf_weights != TRAIN, training, f"sdf_weights={self.sdf_weights}"

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.sdf_queries is not None:
            check_index(self.sdf_queries, "sdf_queries", 1, self.patch_size, "the points of a patch")

    @abstractmethod
    def training_data(self, dataset: Samples, stages: Stages) -> CategoryData:
        """Cut patches, see :meth:`Method.training_data`.

        The data have the attributes ``patches``, (P, K, 3) float32, and ``counts``, (P,) int64, the number of distinct
        points of each.
        """

    def learn_parts(self, members: Sequence[CategoryData], stages: Stages) -> None:
        """Learn the signed distances, or load them, see :meth:`Method.learn_parts`."""
        if self._has(SDF.name):
            self.sdf_ = self._make_sdf(members, stages)

    def train_sdf(
        self, samples: Samples, *, resume: str | os.PathLike[str] | None = None, progress: bool = False
    ) -> SignedDistance:
        """Train signed distances with the arguments of this method; saved, one network serves all categories.

        Args:
            samples: Normal samples of any categories, as :meth:`fit` takes them; what cannot be used is left out.
            resume: File of the training's state.
            progress: Whether to show bars on a terminal.

        Returns:
            The network. A file that its ``save`` writes is what the argument ``sdf_weights`` takes.

        Raises:
            InputError: No sample can be used, or some were prepared otherwise than others.

        Example:
            >>> net = MDSS(sdf_width=8).train_sdf([*bagels, *ropes])  # doctest: +SKIP
            >>> net.save("sdf.safetensors")  # doctest: +SKIP
            >>> MDSS(sdf_width=8, sdf_weights="sdf.safetensors").fit(bagels)  # doctest: +SKIP
        """
        given = as_samples(samples, "samples")
        clouds = clouds_of(given, self._preparing(given).prepare_for_training, progress=progress)
        with plain_torch():
            return train_signed_distance(
                clouds, patch_size=self.patch_size, coverage=self._coverage(0), resume=resume, progress=progress,
                **self._sdf_training(),
            )  # fmt: skip

    def _make_sdf(self, members: Sequence[CategoryData], stages: Stages) -> SignedDistance:
        source = self.source_of(SDF.argument)
        if source == TRAIN:
            patches = JoinedPatches([one.data.patches for one in members])
            return train_on_patches(
                patches, torch.cat([one.data.counts for one in members]), **self._sdf_training(),
                resume=stages.state("sdf.pt"), progress=stages.progress,
            )  # fmt: skip
        with seeded(self.seed):
            network = SignedDistance(self.sdf_width).eval()
        if source != RANDOM:
            load_part(network, SDF.argument, source)
        return network.requires_grad_(False).to(self.device)

    def _coverage(self, use: int) -> float | None:
        """Return the coverage in training (0) or in prediction (1)."""
        return None if self.coverage is None else self.coverage[use]

    def _sdf_training(self) -> dict[str, Any]:
        return {
            "width": self.sdf_width, "steps": self.sdf_steps, "batch": self.sdf_batch, "queries": self.sdf_queries,
            "lr": self.sdf_lr, "seed": self.seed, "device": self.device,
        }  # fmt: skip
