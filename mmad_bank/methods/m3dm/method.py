"""M3DM (Wang et al. 2023): memory banks of RGB, point cloud and fused features, and a learnt decision over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank._internal.progress import doing
from mmad_bank._internal.resume import Stages
from mmad_bank.bank import MemoryBank
from mmad_bank.bank.provenance import Source
from mmad_bank.data.frame import Frame
from mmad_bank.errors import InputError
from mmad_bank.features.factory import BUNDLED_STAGES, RANDOM
from mmad_bank.features.patch_grid import repeats, to_grid
from mmad_bank.fusion import DecisionFusion, FeatureFusion, train_fusion
from mmad_bank.fusion.dlf import DivergedError
from mmad_bank.methods.bank_method import BuildBank
from mmad_bank.methods.base import Method
from mmad_bank.methods.lsfa import ADAPTATION, NONE, learn_adaptation
from mmad_bank.methods.m3dm.groups import GroupSampling
from mmad_bank.methods.m3dm.options import BANKS
from mmad_bank.methods.options import BankPrecision, accepts_former_names
from mmad_bank.methods.readings import warn_of_other_reading
from mmad_bank.methods.roi import square_inside
from mmad_bank.methods.shareable import TRAIN, CategoryData, SharedPart, load_part
from mmad_bank.methods.training_features import Dumps, pairs_of

UFF = SharedPart("uff", "uff_weights", "uff_", "fusion (UFF)")
_MEAN_FEATURE = Source("mean feature", 1, None)


@accepts_former_names
@dataclass(kw_only=True, eq=False, repr=False)
class M3DM(GroupSampling):
    """Point features aligned to the image's patches (PFA), fused with RGB (UFF), three banks, and DLF.

    The variants of the paper's tables are choices of ``banks``, ``fusion`` and ``decision``:

    | variant | arguments |
    | --- | --- |
    | single banks | ``banks=("rgb",)``, ``("xyz",)``, ``("fusion",)`` |
    | fused by concatenation | ``banks=("fusion",), fusion="concat"`` |
    | two banks, scores added | ``banks=("xyz", "rgb"), decision="add"`` |
    | three banks on the scale of held-out images | ``decision="calibrated"`` |
    | two banks with DLF | ``banks=("xyz", "rgb")`` |
    | three banks with DLF | the default |
    | point groups as patches | ``banks=("xyz",), sampling="groups"`` |

    By default the point and fusion banks hold 56 × 56 patches of an image, with RGB features repeated, and the RGB bank
    28 × 28; Point-MAE takes the statistics of the cloud's own groups, and a point the features of its three nearest
    groups. The recipe ``"published"`` does the accidents of the authors' code too: one mean and std for all banks,
    smaller RGB and fusion banks, no standardization of single xyz and fusion banks, and more. ``"paper"`` takes the
    paper's sentences literally. Each difference is an argument of its own.

    Attributes:
        uff_: The trained fusion, if there is a fusion bank that needs one.
        dlf_: The trained decision, if there are several banks and ``decision="dlf"``.

    Raises:
        InputError: An argument is out of its range, or is none of its choices.

    Example:
        >>> bundled = M3DM("efficientnet_lite0", xyz="fpfh", uff_steps=100, uff_batch=8, uff_patches=128)
        >>> bundled.banks
        ('xyz', 'rgb', 'fusion')
    """

    name: ClassVar[str] = "m3dm"
    shareable: ClassVar[tuple[SharedPart, ...]] = (ADAPTATION, UFF)
    bundled: ClassVar[Mapping[str, Any]] = {
        "rgb_layers": BUNDLED_STAGES, "grid": (28, 28), "uff_steps": 300, "uff_lr": 3e-4, "uff_batch": 8,
        "uff_patches": 96,
    }  # fmt: skip

    rgb: str = field(default="vit_base_patch8_224.dino", kw_only=False)

    prediction_arguments: ClassVar[frozenset[str]] = frozenset({"bank_precision", "banks", "decision", "runtime"})
    """``banks`` may be some of those that were fitted; the rest of a bank's arguments the decision was learnt with."""

    def _begin(self) -> None:
        super()._begin()
        self.uff_: FeatureFusion | None = None
        self.dlf_: DecisionFusion | None = None

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.adaptation != NONE and len({self._grid(name) for name in BANKS}) > 1:
            raise InputError(
                "rgb_grid, xyz_grid, fusion_grid: expected one grid with an adaptation, which compares both modalities'"
                f" features place by place, found {', '.join('x'.join(map(str, self._grid(name))) for name in BANKS)}"
            )

    def _bank_names(self) -> tuple[str, ...]:
        return tuple(name for name in BANKS if name in self.banks)

    def _grid(self, bank: str) -> tuple[int, int]:
        if self._by_groups:  # their scores are brought to the pixels
            return self.image_size, self.image_size
        own: tuple[int, int] | None = getattr(self, f"{bank}_grid") or self.grid
        if own is None and self.adaptation != NONE:  # adaptors compare both modalities place by place
            own = self.fusion_grid or self.readings[self.recipe]["fusion_grid"]
        return own or self.readings[self.recipe][f"{bank}_grid"]

    def _placed(self, modality: str, patches: Tensor) -> Tensor:
        """Bring a modality's patches (..., P, D) to the fusion bank's grid."""
        return to_grid(patches, self._grid(modality), self._grid("fusion"))

    def _keep_own(self, fitted: Method) -> None:
        assert isinstance(fitted, M3DM)
        missing = [name for name in self.banks if name not in fitted.banks]
        if missing:
            raise InputError(f"banks: expected some of the fitted {', '.join(fitted.banks)}, found {missing[0]!r}")
        fewer = set(self.banks) < set(fitted.banks)
        depend = [name for name, value in _DEPENDENT.items() if fewer and self.reading(name) == value]
        if depend:
            raise InputError(
                f"banks: with {depend[0]}={_DEPENDENT[depend[0]]!r} the banks depend on each other; fit anew"
            )
        learnt = fitted.dlf_ is not None and not fewer
        if self.needs_validation and not learnt:
            raise InputError(
                f"decision: expected 'add' or 'calibrated', as none was learnt for the banks {', '.join(self.banks)}"
            )
        if self._on_one_scale and fitted.calibrated_ is not None:
            self.calibrated_ = fitted.calibrated_.of_parts(dict.fromkeys(self._bank_names()))
        super()._keep_own(fitted)
        if fewer:
            wanted = self._networks_needed()
            networks = {name: network for name, network in self.extractors_.networks.items() if name in wanted}
            self.extractors_ = self._make_extractors(networks)
        self.uff_ = fitted.uff_ if "fusion" in self.banks else None
        self.dlf_ = fitted.dlf_ if self.needs_validation else None

    # Section 3.2: features of both modalities on one patch grid.

    def _networks_needed(self) -> set[str]:
        """Name the modalities that the banks are made of."""
        both = "fusion" in self.banks or self.adaptation != NONE
        return {"xyz", "rgb"} if both else set(self.banks)

    def _networks(self, weights: str | None) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {}
        if "xyz" in self._networks_needed():
            networks["xyz"] = self._xyz_network(weights)
        if "rgb" in self._networks_needed():
            networks["rgb"] = self._rgb_network(weights)
        return networks

    def _learn_adaptation(self, members: Sequence[CategoryData], stages: Stages) -> None:
        self.adaptation_ = learn_adaptation(
            self, members, stages, steps=self.adaptation_steps, batch=self.adaptation_batch,
            patches_per_image=self.adaptation_patches, layer=self.adaptor,
        )  # fmt: skip

    # Section 3.3: unsupervised feature fusion.

    def _has(self, part: str) -> bool:
        return part != UFF.name or ("fusion" in self.banks and self.fusion == "uff")

    def features_of(self, part: str) -> str:
        """Name the extractors; UFF fuses what an adaptation has made of their features."""
        names = super().features_of(part)
        return names if self.adaptation_ is None or part != UFF.name else f"{names} adapted"

    def _learn_features(self, members: Sequence[CategoryData], stages: Stages) -> None:
        if not self._has(UFF.name):
            return
        weights = self.source_of(UFF.argument)
        if weights != TRAIN:
            dims = self.extractors_.dims
            network = FeatureFusion(dims["xyz"], dims["rgb"])
            if weights != RANDOM:
                load_part(network, UFF.argument, weights, self.features_of(UFF.name))
                warn_of_other_reading(self, UFF.argument, weights)
            self.uff_ = network.to(self.device).eval()
            return
        adapted = [one._replace(data=self._adapted("train", one.data, one.stages)) for one in members]
        self.uff_ = train_fusion(
            pairs_of(adapted, self._placed), steps=self.uff_steps, warmup=min(250, self.uff_steps // 3),
            batch=self.uff_batch, patches_per_image=self.uff_patches, lr=self.uff_lr,
            double_loss=self.reading("double_loss"), seed=self.seed, resume=stages.state("uff.pt"), device=self.device,
            progress=stages.progress,
        )  # fmt: skip

    def _compose(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._by_groups:
            return dict(features)
        composed = {name: features[name] for name in self._bank_names() if name != "fusion"}
        if "fusion" in self.banks:
            composed["fusion"] = self._fused(features["xyz"], features["rgb"])
        return composed

    def _fused(self, xyz: Tensor, rgb: Tensor) -> Tensor:
        return torch.cat([self._half("xyz", xyz), self._half("rgb", rgb)], dim=2)

    def _half(self, modality: Literal["xyz", "rgb"], patches: Tensor) -> Tensor:
        """Return a modality's half of the fused features, on the fusion bank's grid."""
        if self.uff_ is None:
            return self._placed(modality, patches)
        if repeats(self._grid(modality), self._grid("fusion")):  # what is repeated is computed once
            return self._placed(modality, self.uff_.fuse_half(modality, patches, compute_dtype=self.compute_dtype))
        return self.uff_.fuse_half(modality, self._placed(modality, patches), compute_dtype=self.compute_dtype)

    def _all_networks(self) -> list[nn.Module]:
        return [*super()._all_networks(), *([] if self.uff_ is None else [self.uff_])]

    # Section 3.4, first half: the banks.

    def _standardize(self, bank: str) -> bool:
        rule = self.reading("standardization")
        return rule == "own" or (rule == "shared" and (len(self.banks) > 1 or bank == "rgb"))

    def _build_banks(self, dumps: Dumps, build: BuildBank) -> dict[str, MemoryBank]:
        banks: dict[str, MemoryBank] = {}
        for name in self._bank_names():  # the point bank is the first
            reduced = "xyz" in banks and self.reading("bank_sizes") == "reduced"
            size = max(1, int(self.ratio * len(banks["xyz"]))) if reduced else None
            banks[name] = build(name, dumps[name], size)
        own = {name: bank.standardization for name, bank in banks.items()}
        if self.reading("mean_feature") and len(banks) == len(BANKS):
            mean = 0.0 if own["xyz"] is None else own["xyz"].mean
            banks["xyz"] = _with_mean_feature(banks["xyz"], mean, self.bank_precision)
            banks["xyz"].standardization = own["xyz"]
        xyz, rgb = own.get("xyz"), own.get("rgb", own.get("xyz"))
        if self.reading("standardization") == "shared" and len(banks) > 1 and xyz is not None and rgb is not None:
            for bank in banks.values():
                bank.standardization = xyz._replace(std=rgb.std)
        return banks

    # Section 3.4, second half: decision layer fusion.

    @property
    def needs_validation(self) -> bool:
        """Whether DLF is learnt, whose sign is looked for on validation samples."""
        return len(self.banks) > 1 and self.decision == "dlf"

    def _learn_decision(self, dumps: Dumps, validation: Dumps | None, stages: Stages) -> None:
        if len(self.banks) == 1 or self.decision != "dlf":
            return
        factors = {name: one for name, one in zip(BANKS, self.dlf_factors, strict=True) if name in self.banks}
        n_images, lr = len(next(iter(dumps.values()))), self.reading("dlf_lr")
        dlf = DecisionFusion(
            factors, nu=self.dlf_nu, max_iter=self.dlf_max_iter, learning_rate=None if lr == "optimal" else lr,
            seed=self.seed, **self._dlf_pixels(n_images),
        )  # fmt: skip

        def write(path: Path) -> None:
            checked_on, most = None, dlf.max_pixels
            if validation is not None:
                checked_on = self._training_scores(validation, self._seen["validation"].frames, stages, most)
            scores = self._training_scores(dumps, self._seen["train"].frames, stages, most)
            with doing("fitting the decision"):
                try:
                    dlf.fit(*scores, held_out=checked_on)
                except DivergedError as error:
                    raise InputError(str(error).replace("learning_rate", "dlf_lr", 1)) from error
            dlf.save(path)

        self.dlf_ = DecisionFusion.load(stages.run("dlf.safetensors", write))

    def _dlf_pixels(self, n_images: int) -> dict[str, int]:
        """Return what DLF is told of the number of pixels, where the arguments say anything."""
        if self.dlf_pixel_share is None:
            return {}
        return {"max_pixels": n_images * max(1, round(self.dlf_pixel_share * self.image_size**2))}

    def _training_scores(
        self, dumps: Dumps, frames: Sequence[Frame | None], stages: Stages, max_pixels: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the banks' scores of images (n,) and of their pixels, as many of each as D_s can take.

        Pixels of padding are not drawn.
        """
        n_images = len(next(iter(dumps.values())))
        drawn = np.random.default_rng(self.seed)
        an_image = max(1, max_pixels // n_images)
        images: dict[str, list[Tensor]] = {name: [] for name in self._bank_names()}
        pixels: dict[str, list[Tensor]] = {name: [] for name in self._bank_names()}
        for own_frames, scores in self._train_scores(dumps, frames, stages):
            maps = {name: self._map_of(name, own.patch) for name, own in scores.items()}
            for name, own in scores.items():
                images[name].append(own.image.cpu())
            for frame, group in groupby(range(len(own_frames)), key=own_frames.__getitem__):
                shown = self._shown_pixels(frame)
                chosen = np.sort(drawn.choice(len(shown), min(len(shown), an_image), replace=False))
                places, rows = shown[torch.from_numpy(chosen)], list(group)
                for name, one in maps.items():
                    pixels[name].append(one[rows].flatten(1)[:, places.to(one.device)].flatten().cpu())
        return tuple({name: torch.cat(x) for name, x in table.items()} for table in (images, pixels))  # type: ignore[return-value]

    def _shown_pixels(self, frame: Frame | None) -> Tensor:
        """Return the numbers of the prepared square's pixels that show the picture."""
        numbers = torch.arange(self.image_size**2).view(self.image_size, self.image_size)
        square = square_inside(self.roi_, frame)
        if square is not None:
            return numbers[square]
        return (numbers if frame is None else numbers[frame.rows, frame.columns]).flatten()

    def _divisor(self) -> float:
        """Divide where the argument says so; the published code does in one variant only."""
        if self.image_divisor is None and not (len(self.banks) == 2 and self.decision == "dlf"):
            return 1.0
        divisor: float = self.reading("image_divisor")
        return divisor

    def _decide(self, images: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.dlf_ is not None:
            return self.dlf_.fuse_images(images), self.dlf_.fuse_pixels(places)
        return torch.stack(list(images.values())).sum(0), torch.stack(list(places.values())).sum(0)

    # Saving.

    def _save(self, folder: Path) -> dict[str, Any]:
        learnt = super()._save(folder)
        if self.uff_ is not None:
            self.uff_.save(folder / "uff.safetensors")
        if self.dlf_ is not None:
            self.dlf_.save(folder / "dlf.safetensors")
        return {**learnt, "uff": self.uff_ is not None, "dlf": self.dlf_ is not None}

    def _load(self, folder: Path, learnt: dict[str, Any]) -> None:
        super()._load(folder, learnt)
        if learnt["uff"]:
            dims = self.extractors_.dims
            network = FeatureFusion(dims["xyz"], dims["rgb"])
            self.uff_ = network.load_checkpoint(folder / "uff.safetensors").to(self.device).eval()
        if learnt["dlf"]:
            self.dlf_ = DecisionFusion.load(folder / "dlf.safetensors")


_DEPENDENT = {"standardization": "shared", "bank_sizes": "reduced", "mean_feature": True}
"""Readings with which banks depend on each other."""


def _with_mean_feature(bank: MemoryBank, mean: float, precision: BankPrecision) -> MemoryBank:
    """Drop vectors that have a component of exactly the mean and append the mean feature, as the published code does.

    There the bank holds standardized features: the dropped ones have a component of zero, the appended one is zero.
    """
    kept = ((bank.vectors - mean) != 0).all(dim=1).nonzero()[:, 0]
    vectors = torch.cat([bank.vectors[kept], bank.vectors.new_full((1, bank.dim), mean)])
    n_rows = sum(source.rows for source in bank.sources)
    rows = torch.cat([bank.source_rows[kept.cpu()], torch.tensor([n_rows])])
    changed = MemoryBank(vectors, source_rows=rows, bank_precision=precision, extractor=bank.extractor)
    changed.sources = [*bank.sources, _MEAN_FEATURE]
    return changed
