"""The arguments of M3DM, and the readings of its paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mmad_bank.methods.options import AdaptationOptions, BankGridOptions, Count, Idle, Range, Rate, SomeOf
from mmad_bank.methods.readings import POINTS, Presets, presets
from mmad_bank.methods.shareable import TRAIN

BANKS = ("xyz", "rgb", "fusion")
Factor = Annotated[float, Range(1e-6, 10**6)]
"""A factor of scores, such that float32 can hold their products."""
_GRIDS: Presets = {
    recipe: {f"{bank}_grid": (side, side) for bank, side in zip(BANKS, sides, strict=True)}
    for recipe, sides in {"default": (56, 28, 56), "published": (56, 28, 56), "paper": (28, 28, 28)}.items()
}
_BANKS: Presets = {
    "default": {"standardization": "own", "bank_sizes": "own", "mean_feature": False, "image_divisor": 1.0},
    "published": {"standardization": "shared", "bank_sizes": "reduced", "mean_feature": True, "image_divisor": 1000.0},
    "paper": {"standardization": "own", "bank_sizes": "own", "mean_feature": False, "image_divisor": 1.0},
}
_LEARNING: Presets = {
    "default": {"double_loss": False, "dlf_lr": "optimal"},
    "published": {"double_loss": True, "dlf_lr": "optimal"},
    "paper": {"double_loss": False, "dlf_lr": 1e-4},
}


@dataclass(kw_only=True, eq=False, repr=False)
class M3DMOptions(AdaptationOptions, BankGridOptions):
    """Arguments of M3DM."""

    banks: Annotated[tuple[str, ...], SomeOf(BANKS)] = BANKS
    """Memory banks to build, some of ``"xyz"``, ``"rgb"`` and ``"fusion"``."""

    sampling: Literal["patches", "groups"] = "patches"
    """What the point bank holds: features of patches, to which those of point groups were aligned (PFA), or those of
    the groups themselves. Then it is the only bank, and the groups' scores are interpolated to the pixels that have a
    point."""

    fusion: Literal["uff", "concat"] = "uff"
    """Features of the fusion bank: those of the learnt fusion UFF, or both modalities' side by side."""

    decision: Literal["dlf", "add", "calibrated"] = "dlf"
    """Decision over several banks: the learnt DLF; the sum of the banks' scores; or their scores on the scale of
    held-out normal images (see ``calibration`` and :class:`mmad_bank.fusion.CalibratedFusion`)."""

    uff_weights: str = TRAIN
    """Weights of UFF: ``"train"`` on the samples of ``fit``; a file: the published checkpoint, or one UFF for all
    categories that was trained before (``mmad-bank train-uff`` writes it); or ``"random"`` for tests and timings."""

    uff_steps: Count = 750
    """Optimizer steps of UFF's training."""

    uff_lr: Rate = 0.003
    """Learning rate of UFF's training; the paper's is for 256 images in a step, smaller batches want a smaller one."""

    uff_batch: Count = 256
    """Images in a step of UFF's training."""

    uff_patches: Count | None = None
    """Patches drawn from an image in UFF's training; none takes all."""

    double_loss: bool | None = None
    """Whether UFF's loss is twice the cross-entropy, as in the published code; none takes the recipe's."""

    standardization: Literal["own", "shared", "none"] | None = None
    """Mean and standard deviation that a bank's features are standardized by: its own; those of the published code
    (shared: several banks take the point bank's mean and the RGB bank's standard deviation, and a single bank none
    unless it is of RGB); or none at all. None takes the recipe's."""

    bank_sizes: Literal["own", "reduced"] | None = None
    """Size of the RGB and fusion banks beside a point bank: the ratio of their own patches, or (reduced) of the point
    bank's vectors, as in the published code; none takes the recipe's."""

    mean_feature: bool | None = None
    """Whether, of three banks, the point bank loses all vectors with a component of exactly the mean and gets the mean
    feature, as in the published code; none takes the recipe's."""

    image_divisor: Factor | None = None
    """Number that image scores are divided by before they are reweighted; none takes the recipe's: 1, or 1000 for two
    banks with DLF in the published code."""

    dlf_nu: Annotated[float, Range(above=0, most=1)] = 0.5
    """Bound on the share of normal scores on the wrong side of DLF (ν of the one-class SVMs)."""

    dlf_lr: Rate | Literal["optimal"] | None = None
    """Learning rate of DLF: a constant, or scikit-learn's decreasing schedule (optimal), which the published code
    takes; none takes the recipe's, 0.0001 where the paper is taken literally."""

    dlf_max_iter: Count = 1000
    """Largest number of passes over the training scores of DLF."""

    dlf_factors: tuple[Factor, Factor, Factor] = (1.0, 0.1, 1.0)
    """Factors of the point, RGB and fusion banks' scores before DLF."""

    dlf_pixel_share: Annotated[float, Range(above=0, most=1)] | None = None
    """Share of each training image's pixels that DLF learns from; none takes as many as make a million in all."""

    readings: ClassVar[Presets] = presets(POINTS, _GRIDS, _BANKS, _LEARNING)

    def _idle(self) -> Idle:
        banks, adapts = f"banks={','.join(self.banks)}", self.adaptation != "none"
        both, alone = "fusion" in self.banks or adapts, len(self.banks) == 1
        points = "xyz xyz_weights num_groups group_size batch_norm skip_near_origin interpolation xyz_grid"
        yield not both and "xyz" not in self.banks, points, banks
        yield not both and "rgb" not in self.banks, "rgb rgb_weights rgb_layers rgb_grid", banks
        yield "fusion" not in self.banks and not adapts, "fusion_grid", banks
        yield self.sampling == "groups", "grid xyz_grid", "sampling=groups"
        yield all((self.rgb_grid, self.xyz_grid, self.fusion_grid)), "grid", "rgb_grid, xyz_grid and fusion_grid"
        training = "uff_steps uff_lr uff_batch uff_patches double_loss"
        yield self.uff_weights != TRAIN, training, f"uff_weights={self.uff_weights}"
        yield self.fusion != "uff", f"uff_weights {training}", f"fusion={self.fusion}"
        yield "fusion" not in self.banks, f"fusion uff_weights {training}", banks
        learning = "dlf_nu dlf_lr dlf_max_iter dlf_factors dlf_pixel_share"
        yield self.decision != "dlf", learning, f"decision={self.decision}"
        yield alone, f"decision {learning}", banks
        yield alone or "xyz" not in self.banks, "bank_sizes", banks
        yield len(self.banks) < len(BANKS), "mean_feature", banks
