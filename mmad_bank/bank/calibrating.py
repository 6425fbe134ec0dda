"""What a bank's scores of normal images are: the calibration of a bank, made of held-out images or by folds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmad_bank import scoring
from mmad_bank._internal.checks import check_index
from mmad_bank._internal.manifest import Manifest
from mmad_bank.bank.dump_scores import ScoreImages, blocks_of_images, in_images, score_dump
from mmad_bank.bank.dumps import FeatureDump, Part
from mmad_bank.bank.dumps.remote import address_of
from mmad_bank.bank.provenance import Source
from mmad_bank.bank.reporting import Report
from mmad_bank.bank.scores import Rule, Scores
from mmad_bank.calibration import Calibration, Threshold, folds_of
from mmad_bank.errors import InputError

SHARES = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0001)
"""Shares of the normal patches whose limits are kept."""
HELD_OUT = "held-out images"
_IMAGES, _PEAKS = "calibration_images", "calibration_peaks"
OR_FOLDS = ", or give all of its own with folds= (--folds)"
"""What else can be done with a bank's own images, where folds can be asked for."""
_STAGE = "Scoring normal images"


class Verdicts(NamedTuple):
    """What :meth:`MemoryBank.judge` returns, on the CPU."""

    p_values: Tensor
    """(B,) float64: conformal p-value of each image, see :meth:`mmad_bank.calibration.Calibration.p_values`."""
    bad: Tensor
    """(B,) bool: whether the image's score is above :attr:`threshold`."""
    bad_patches: Tensor
    """(B, P) bool: whether the patch's score is above :attr:`patch_threshold`."""
    threshold: Threshold
    """Limit of image scores."""
    patch_threshold: Threshold
    """Limit of patch scores: a share ``rate`` of the normal images has a patch above it."""


@dataclass(frozen=True, eq=False)
class BankCalibration:
    """Scores that a bank gives normal images which took no part in it.

    Attributes:
        images: The image scores.
        peaks: The largest patch score of each image. Its threshold says which patches are bad: at most that share of
            the normal images has any.
        rule: Rule that made the image scores.
        patches: Number of patches per image.
        patch_quantiles: By share of all patches of these images, the score that this share is above. A description:
            patches of one image are alike, so it promises nothing.
        outdated: Whether the bank has been extended since. Distances to it can only have become smaller, so patch
            scores and image scores by ``"max"`` are called bad more rarely than promised. Re-weighted scores may also
            rise, though they seldom do.

    Example:
        >>> import torch
        >>> from mmad_bank import MemoryBank
        >>> generator = torch.Generator().manual_seed(0)
        >>> bank = MemoryBank.build(torch.rand(8, 16, 4, generator=generator))
        >>> calibration = bank.calibrate(torch.rand(99, 16, 4, generator=generator))
        >>> len(calibration.images), calibration.images.smallest_rate
        (99, 0.01)
        >>> verdicts = bank.judge(bank.score(torch.rand(3, 16, 4, generator=generator) + 2), 0.01)
        >>> verdicts.bad, verdicts.p_values
        (tensor([True, True, True]), tensor([0.0100, 0.0100, 0.0100], dtype=torch.float64))
    """

    images: Calibration
    peaks: Calibration
    rule: Rule
    patches: int
    patch_quantiles: Mapping[float, float]
    outdated: bool = False

    @classmethod
    def of(cls, scores: Scores, rule: Rule, origin: str) -> BankCalibration:
        """Return the calibration that scores of normal images give."""
        patch = scores.patch.double()
        quantiles = {share: _upper_quantile(patch.flatten(), share) for share in SHARES if share * patch.numel() >= 1}
        peaks = Calibration(patch.amax(dim=1), origin)
        return cls(Calibration(scores.image, origin), peaks, rule, patch.shape[1], quantiles)

    def __repr__(self) -> str:
        old = ", before the bank was extended" if self.outdated else ""
        return f"<BankCalibration by {self.rule}: {self.images!r}{old}>"

    @property
    def origin(self) -> str:
        """Words for which images they are."""
        return self.images.origin

    def aged(self) -> BankCalibration:
        """Return the same, as of before an extension of the bank."""
        return replace(self, outdated=True)

    def judge(self, scores: Scores, false_alarm_rate: float | None = None) -> Verdicts:
        """Return p-values and verdicts of scores, see :meth:`MemoryBank.judge`."""
        if not isinstance(scores, Scores):
            raise InputError(f"scores: expected what MemoryBank.score returns, found {type(scores).__name__}")
        if scores.rule is not None and scores.rule != self.rule:
            raise InputError(
                f"scores: expected image scores by {self.rule}, as the calibration has, found {scores.rule}; call score"
                f" with {self.rule.in_full()}, or calibrate anew with {scores.rule.in_full()}"
            )
        if scores.patch.ndim != 2 or scores.patch.shape[1] != self.patches:
            raise InputError(
                f"scores: expected images of {self.patches} patches, as the calibration's, found shape"
                f" {tuple(scores.patch.shape)}"
            )
        threshold, patch_threshold = self.images.threshold(false_alarm_rate), self.peaks.threshold(false_alarm_rate)
        image, patch = scores.image.detach().cpu().double(), scores.patch.detach().cpu().double()
        for name, values in (("image", image), ("patch", patch)):
            if values.isnan().any():  # above no limit, it would be judged as good
                raise InputError(f"scores: expected numbers, found NaN in {name}")
        return Verdicts(
            self.images.p_values(image), image > threshold.score, patch > patch_threshold.score, threshold,
            patch_threshold,
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """Return what the bank file keeps as tensors, by name."""
        return {_IMAGES: self.images.scores, _PEAKS: self.peaks.scores}

    def header(self) -> dict[str, Any]:
        """Return what the header of the bank file keeps, JSON-able."""
        return {
            "origin": self.origin,
            "images": len(self.images),
            "patches": self.patches,
            "reweight": self.rule.reweight,
            "n_neighbors": self.rule.n_neighbors,
            "divisor": self.rule.divisor,
            "patch_quantiles": [{"share": share, "score": score} for share, score in self.patch_quantiles.items()],
            "outdated": self.outdated,
        }

    @classmethod
    def restore(cls, header: Manifest, tensors: Mapping[str, Tensor]) -> BankCalibration:
        """Return what :meth:`header` and :meth:`tensors` made.

        Raises:
            FormatError: A value is missing or of another kind.
            InputError: A value is out of its range.
            KeyError: A tensor is missing.
            ValueError: They do not fit together.
        """
        n, origin = header.integer("images", 1), header.text("origin")
        for name in (_IMAGES, _PEAKS):
            if (tensors[name].dtype, tensors[name].shape) != (torch.float64, (n,)):
                raise ValueError(f"{name} are {tensors[name].dtype} {tuple(tensors[name].shape)}")
        rule = check_rule(header.text("reweight"), header.integer("n_neighbors", 1), header.number("divisor"))
        quantiles = {one.number("share"): one.number("score") for one in header.tables("patch_quantiles")}
        outdated = header.content["outdated"]
        if not isinstance(outdated, bool):
            raise ValueError("outdated is neither true nor false")
        images, peaks = (Calibration(tensors[name], origin) for name in (_IMAGES, _PEAKS))
        return cls(images, peaks, rule, header.integer("patches", 1), quantiles, outdated)


def _upper_quantile(values: Tensor, share: float) -> float:
    """Return the smallest value that at most ``share`` of the values are above."""
    return float(values.kthvalue(len(values) - int(share * len(values) * (1 + 1e-12))).values)


def score_held_out(
    score: ScoreImages, dump: FeatureDump, per_image: int, left_out: dict[str, str] | None, report: Report
) -> Scores:
    """Score the images of a dump, see :func:`mmad_bank.bank.dump_scores.score_dump`."""
    total = len(dump) // per_image
    images = in_images(dump, per_image)
    _, scores = score_dump(
        score, images, per_image, left_out=left_out, report=lambda done: report(_STAGE, done, total)
    )  # fmt: skip
    return scores


def score_by_folds(
    build: Callable[[FeatureDump], ScoreImages], dump: FeatureDump, per_image: int, folds: int, report: Report
) -> Scores:
    """Score each image by a bank that was built without its fold.

    Args:
        build: Function from the features of the other folds to what scores with a bank of them.
        dump: The features.
        per_image: Number of patches per image.
        folds: Number of folds, see :func:`mmad_bank.calibration.folds_of`; equal images are in one.
        report: Function that the work reports to.

    Raises:
        InputError: There are fewer images than folds, or all are equal.
    """
    n_images = len(dump) // per_image
    check_index(folds, "folds", 2, n_images, "the number of images")
    whole, done = in_images(dump, per_image), 0
    cut = folds_of(_marks(whole, per_image), folds)
    if len(cut) < 2:
        raise InputError(f"folds: expected at least 2 different images, found {n_images:,} equal ones")
    found: list[tuple[int, Scores]] = []
    for fold in cut:
        score = build(_images_in(whole, fold.others, per_image))
        for run in fold.own:
            _, own = score_dump(score, _images_in(whole, [run], per_image), per_image)
            found.append((run.start, own))
            done += run.stop - run.start
        report(_STAGE, done, n_images)
    return Scores.of([own for _, own in sorted(found, key=lambda one: one[0])])


def _marks(dump: FeatureDump, per_image: int) -> list[bytes]:
    """Return a hash of each image's features."""
    return [
        hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=16).digest()
        for part in dump.parts
        for rows in blocks_of_images(part, per_image)
        for image in rows.view(-1, per_image, dump.dim)
    ]


def _images_in(dump: FeatureDump, runs: Sequence[slice], per_image: int) -> FeatureDump:
    """Return some runs of a dump's images."""
    return FeatureDump(
        [part for run in runs for part in _parts_between(dump, run.start * per_image, run.stop * per_image)]
    )


def _parts_between(dump: FeatureDump, first: int, last: int) -> list[Part]:
    """Return the parts of a dump's images from one row to another."""
    parts, start = [], 0
    for part in dump.parts:
        low, high = max(first - start, 0), min(last - start, part.source.rows)
        if low < high:
            parts.append(_slice(part, low, high))
        start += part.source.rows
    return parts


def _slice(part: Part, low: int, high: int) -> Part:
    """Return the rows of a part between two borders of images."""
    source = part.source
    if (low, high) == (0, source.rows):
        return part
    assert source.patches is not None
    names = tuple(source.name(number) for number in range(low // source.patches, high // source.patches))
    cut = source._replace(rows=high - low, names=names)
    return replace(part, source=cut, fetch=lambda first, count: part.fetch(low + first, count))


def check_all_of_bank(vectors: Tensor, source_rows: Tensor, sources: Sequence[Source], dump: FeatureDump) -> None:
    """Refuse features that a bank was not built from.

    Args:
        vectors: The bank's vectors.
        source_rows: Row of each in its sources.
        sources: The bank's sources.
        dump: The features, which should be all of the sources.

    Raises:
        InputError: They are others, or not all.
    """
    total = sum(source.rows for source in sources)
    if len(dump) == total:
        found = dump.take(source_rows)
        if torch.equal(found.to(vectors.device), vectors):
            return
    raise InputError(
        f"folds: expected the features that the bank was built from, all {total:,} rows of them in their order, found"
        f" {'others' if len(dump) == total else f'{len(dump):,} rows'}"
    )


def check_files_held_out(sources: Sequence[Source], dump: FeatureDump, or_else: str = "") -> None:
    """Refuse files that a bank was built from; ``or_else`` tells what else can be done with them.

    Raises:
        InputError: A file is one of the bank's sources.
    """
    own = {os.path.realpath(source.file) for source in sources if os.path.exists(source.file)}
    own |= {source.file for source in sources if address_of(source.file) is not None}
    for part in dump.parts:
        if {part.source.file, os.path.realpath(part.source.file)} & own:
            raise _not_held_out(f"its own ({part.label})", or_else)


def check_held_out(scores: Scores, source_rows: Tensor, sources: Sequence[Source], or_else: str = "") -> None:
    """Refuse images that a bank was built from, whatever their files are called.

    Such an image has distance 0 wherever the bank took a vector from it. Equal patches alone say nothing: all images of
    one background share those of their corners. So an image counts as one of the bank's if it has half of that one's
    vectors, two at least, at their places, and two of the bank's images must be found.

    Args:
        scores: Scores of the images, on the CPU.
        source_rows: Row of each of the bank's vectors in its sources.
        sources: The bank's sources.
        or_else: Words for what else can be done with them.

    Raises:
        InputError: They are the bank's own.
    """
    per_image = scores.patch.shape[1]
    if any(source.rows % per_image for source in sources):
        return  # images of another size
    rows = source_rows.cpu()
    image_of, place_of = rows // per_image, rows % per_image
    taken = torch.bincount(image_of)
    equal = (scores.patch == 0) & (place_of[scores.nearest] == torch.arange(per_image))
    pairs, counts = torch.stack([equal.nonzero()[:, 0], image_of[scores.nearest[equal]]]).unique(
        dim=1, return_counts=True
    )
    own = pairs[:, (counts >= 2) & (2 * counts >= taken[pairs[1]])]
    if len(own[1].unique()) >= 2:
        raise _not_held_out(f"{len(own[0].unique())} of its own among {len(scores.image)}", or_else)


def _not_held_out(found: str, or_else: str) -> InputError:
    return InputError(
        f"features: expected images that the bank was not built from, found {found}; hold others out{or_else}"
    )


def check_rule(reweight: Any, n_neighbors: int | None, divisor: float = 1.0) -> Rule:
    """Return a rule, or say what is wrong with it."""
    wanted = scoring.check_reweight(reweight, n_neighbors)
    scoring.check_divisor(divisor)
    return Rule(reweight, wanted, float(divisor))
