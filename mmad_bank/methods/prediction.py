"""Predictions of methods for samples, in the pixels of the picture that was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank.calibration import Threshold
from mmad_bank.data.frame import Frame
from mmad_bank.data.roi import RegionOfInterest
from mmad_bank.data.sample import Sample, check_sample
from mmad_bank.errors import InputError
from mmad_bank.methods.roi import outside_unflagged, square_inside
from mmad_bank.methods.verdicts import BAD, FUSED, GOOD, ModelCalibration, Region, Verdict
from mmad_bank.scoring import anomaly_map


class Smoothing(Protocol):
    """Way from the scores of a part to its map."""

    def __call__(self, scores: Tensor, size: tuple[int, int], /) -> Tensor:
        """Bring scores (h, w) to a map (H, W) of the prepared square."""


@dataclass(frozen=True)
class Gaussian:
    """Scores are enlarged bilinearly and blurred, see :func:`mmad_bank.scoring.anomaly_map`.

    Attributes:
        sigma: Standard deviation of the Gaussian in pixels; 0 leaves the blur out.

    Example:
        >>> import torch
        >>> Gaussian(0.0)(torch.eye(2), (2, 2))
        tensor([[1., 0.],
                [0., 1.]])
    """

    sigma: float = 4.0

    def __call__(self, scores: Tensor, size: tuple[int, int], /) -> Tensor:
        """Bring scores (h, w) to a map (H, W)."""
        grid = int(scores.shape[0]), int(scores.shape[1])
        return anomaly_map(scores.reshape(1, -1), grid, size, self.sigma)[0]


@dataclass(frozen=True)
class Part:
    """Result of one bank or branch of a method for an image, before the parts are fused.

    A part owns its map: it knows how the method smooths its scores. The map is made when it is asked for and not kept.

    Attributes:
        score: Score of the image; padding has no say in it.
        scores: (h, w) float32 on the CPU, scores of the patches or of the pixels. Patches of padding were not scored;
            with banks they repeat the nearest patch of the picture.
        nearest: (h, w) int64, the bank row that is nearest to each patch; None for a method without banks.
        frame: Place of the grid in the picture; None where that is not known: all of it then.
        smoothing: Way in which the method makes a map of these scores.
        roi: Region of interest that counts; patches outside repeat the nearest patch inside, and maps flag nothing
            there. None for all of the picture.
    """

    score: float
    scores: Tensor
    nearest: Tensor | None = None
    frame: Frame | None = None
    smoothing: Smoothing = Gaussian()
    roi: RegionOfInterest | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the scores."""
        return int(self.scores.shape[0]), int(self.scores.shape[1])

    @property
    def shown(self) -> tuple[slice, slice]:
        """Rows and columns of the grid that lie in the picture, at least in part; the others are padding."""
        rows, columns = self.grid
        return (slice(0, rows), slice(0, columns)) if self.frame is None else self.frame.cells(self.grid)

    @property
    def worst(self) -> tuple[int, int]:
        """(row, column) in the grid of the highest score in the picture."""
        rows, columns = self.shown
        counting = self.counting
        scores = self.scores if counting is None else self.scores.masked_fill(~counting, -torch.inf)
        inside = scores[rows, columns]
        row, column = divmod(int(inside.argmax()), inside.shape[1])
        return row + rows.start, column + columns.start

    @property
    def counting(self) -> Tensor | None:
        """The patches that lie in the region of interest, (h, w) bool; None for all."""
        return None if self.roi is None or self.frame is None else self.roi.cells(self.frame, self.grid)

    def map(self, size: tuple[int, int]) -> Tensor:
        """Return the map (H, W) that the method itself makes of these scores, float32, in the prepared square.

        See :attr:`Prediction.frame` for the way to the picture.
        """
        return outside_unflagged(self.smoothing(self.scores, size), square_inside(self.roi, self.frame))


@dataclass(frozen=True, repr=False)
class Prediction:
    """Result of a method for a sample.

    Two frames are told apart: that of the *picture* which was given, whose pixels :attr:`map`, :attr:`original` and
    :meth:`box` speak of, and the *prepared* square that the networks see (background removed, padded, resized), to
    which :attr:`prepared_map` and :attr:`sample` belong. Metrics are measured in the square, without its padding.

    Attributes:
        score: Score of the image; larger is more anomalous.
        prepared_map: (S, S) float32 on the CPU, score of every pixel of the prepared square.
        sample: The sample after preprocessing, with the mask brought to the square.
        parts: Parts that were fused, by bank or branch.
        given: The sample as it was given.
        notes: Remarks that a reader of the score must know: that the data were prepared otherwise, for instance.
        roi: Region of interest of the model, outside of which nothing was scored; None for all of the picture.
        calibration: What the model knows of held-out normal images; None where it knows none, and there is no verdict.
        false_alarm_rate: Share of the normal images that may be called bad; None takes the calibration's usual one.
    """

    score: float
    prepared_map: Tensor
    sample: Sample
    parts: Mapping[str, Part] = field(default_factory=dict)
    given: Sample | None = None
    notes: tuple[str, ...] = ()
    roi: RegionOfInterest | None = None
    calibration: ModelCalibration | None = None
    false_alarm_rate: float | None = None

    @property
    def frame(self) -> Frame:
        """Place of the prepared square's pixels in the picture; where that is not known, the square is the picture."""
        return self.sample.frame or Frame.centred(self.sample.size, max(self.sample.size))

    @cached_property
    def map(self) -> Tensor:
        """(H, W) float32 on the CPU: the anomaly map in the picture's pixels, padding and resizing undone.

        The map of a sample that was prepared elsewhere and does not know its frame is in the prepared square's pixels.
        """
        values = self.frame.to_picture(self.prepared_map)
        return values if self.roi is None else outside_unflagged(values, self.roi.inside(*self.size))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        return self.frame.picture

    @property
    def prepared_size(self) -> tuple[int, int]:
        """Height and width of the prepared square in pixels."""
        return int(self.prepared_map.shape[0]), int(self.prepared_map.shape[1])

    def prepared_maps(self) -> dict[str, Tensor]:
        """Return the prepared maps (S, S) by result: the method's own, and its parts' if there are several.

        Example:
            >>> list(model.predict(sample).prepared_maps())  # doctest: +SKIP
            ['fused', 'xyz', 'rgb', 'fusion']
        """
        parts = self.parts if len(self.parts) > 1 else {}
        return {FUSED: self.prepared_map, **{name: part.map(self.prepared_size) for name, part in parts.items()}}

    @cached_property
    def original(self) -> Sample:
        """The sample in the picture's pixels: as it was given, or, if prepared, with padding and resizing undone.

        The latter's background stays removed, and its details are those of the prepared square.
        """
        if self.given is not None and not self.given.prepared:
            return check_sample(self.given)  # arrays of 8 bits too become tensors in [0, 1]
        sample, frame = self.sample, self.frame
        return replace(
            sample,
            rgb=frame.to_picture(sample.rgb),
            xyz=frame.nearest_to_picture(sample.xyz),
            mask=None if sample.mask is None else frame.nearest_to_picture(sample.mask),
        )

    @property
    def threshold(self) -> Threshold | None:
        """The score above which an image is bad, and the false-alarm rate; None without a calibration."""
        return None if self.calibration is None else self.calibration.own.threshold(self.false_alarm_rate)

    @property
    def p_value(self) -> float | None:
        """Conformal p-value of the score: of normal images, a share of at most α has one of at most α.

        Where the model is calibrated on parts, at most a share α of the normal parts has *any* such picture. None
        without a calibration.
        """
        return None if self.calibration is None else float(self.calibration.own.p_values(self.score))

    @property
    def verdict(self) -> Verdict | None:
        """``"bad"`` if the score is above the threshold, else ``"good"``; None without a calibration.

        Example:
            >>> model.predict(sample).verdict  # doctest: +SKIP
            'bad'
        """
        threshold = self.threshold
        return None if threshold is None else BAD if self.score > threshold.score else GOOD

    @property
    def normalized_score(self) -> float | None:
        """The score from 0 to 1, the threshold at 0.5; None without a calibration.

        See :meth:`mmad_bank.calibration.Calibration.normalized`.
        """
        return (
            None
            if self.calibration is None
            else float(self.calibration.own.normalized(self.score, self.false_alarm_rate))
        )

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Regions of the map that no normal image has, the worst first; empty without a calibration.

        At most a share ``false_alarm_rate`` of normal images has any. They tell where to look; the verdict rests on the
        image score alone.
        """
        if self.calibration is None:
            return ()
        cloud = self.original.xyz if "xyz" in self.sample.modalities else None
        return self.calibration.regions(self.map, self.false_alarm_rate, cloud, self._counting)

    @cached_property
    def region_map(self) -> Tensor:
        """(H, W) int32: the number of the region that each pixel of the picture belongs to, 0 for none.

        1 is the first of :attr:`regions`. All 0 without a calibration.
        """
        if self.calibration is None:
            return torch.zeros(self.size, dtype=torch.int32)
        return self.calibration.region_map(self.map, self.false_alarm_rate, self._counting)

    @property
    def _counting(self) -> Tensor | None:
        """The pixels (H, W) of the picture that may be in a region; None for all."""
        return None if self.roi is None else self.roi.inside(*self.size)

    @property
    def point_scores(self) -> Tensor:
        """(N,) float32 on the CPU: the score of every scattered point of a sample that is a projection of them.

        Each has that of its pixel, :attr:`mmad_bank.data.Points.pixels`; so have those that are hidden behind another,
        of which :attr:`mmad_bank.data.Points.seen` tells.

        Raises:
            InputError: The sample does not know its points: it has none, or has been prepared to files.
        """
        points = self.sample.points
        if points is None:
            raise InputError("point_scores: expected a raw sample of scattered points (PCD, PLY), found another")
        rows, columns = points.pixels.T
        return self.map[rows, columns]

    def box(self, part: str, place: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """Return the picture's pixels that a patch covers: (top, left, bottom, right), the last two not included.

        Args:
            part: One of :attr:`parts`.
            place: (row, column) in the part's grid; default: where its score is highest.

        Raises:
            InputError: There is no such part, or the place is none of its grid, or padding.
        """
        if part not in self.parts:
            raise InputError(f"part: expected one of {', '.join(self.parts)}, found {part!r}")
        one = self.parts[part]
        place = one.worst if place is None else place
        check_place(place, one)
        return self.frame.box(place, one.grid)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {part.score:.4g}" for name, part in self.parts.items())
        name = f" of {self.sample.id}" if self.sample.id else ""
        height, width = self.size
        return f"<Prediction{name}: score {self.score:.4g} ({parts}), map {height}×{width}>"


def check_explained(
    prediction: Prediction, part: str | None, place: tuple[int, int] | None, n: int, banks: Sequence[str]
) -> tuple[str, tuple[int, int]]:
    """Check what is to be explained, see :meth:`mmad_bank.methods.Method.explain`.

    Args:
        prediction: A prediction.
        part: One of its parts; None takes the first.
        place: (row, column) in the part's grid; None takes where its score is highest.
        n: Number of patches.
        banks: Parts that can be explained, in their order.

    Returns:
        The part and the place.

    Raises:
        InputError: There is no such part, the place is none of its grid, or ``n`` is below 1.
    """
    check_index(n, "n", 1, 2**31 - 1, "nearest patches")
    name = banks[0] if part is None else part
    for known in (banks, tuple(prediction.parts)):
        if name not in known:
            raise InputError(f"part: expected one of {', '.join(known)}, found {name!r}")
    own = prediction.parts[name]
    place = own.worst if place is None else place
    check_place(place, own)
    return name, place


def check_place(place: tuple[int, int], part: Part) -> None:
    """Refuse a place that is not in a part's grid, where another patch would be meant without a word, or is padding."""
    grid = part.grid
    if not isinstance(place, Sequence) or len(place) != 2:
        raise InputError(f"place: expected (row, column), found {place!r}")
    for name, value, n in zip(("row", "column"), place, grid, strict=True):
        check_index(value, f"place: {name}", 0, n - 1, f"the grid has {grid[0]} × {grid[1]} patches")
    for name, value, shown in zip(("row", "column"), place, part.shown, strict=True):
        if not shown.start <= value < shown.stop:
            raise InputError(
                f"place: expected a {name} of the picture, {shown.start} to {shown.stop - 1}, found {value}, which is"
                " padding"
            )
    counting = part.counting
    if counting is not None and not counting[place]:
        raise InputError(f"place: expected a patch in the region of interest, found {place}")


@dataclass(frozen=True)
class Reason:
    """A normal patch that explains a score.

    Attributes:
        sample: The id of the training sample that it was taken from; None if that is not known.
        place: (row, column) of the patch in the training image's patch grid; None if that is not known.
        distance: Distance to the patch that is explained, in the unit of the patch scores.
        box: (top, left, bottom, right), the pixels of the training picture that the patch covers, the last two not
            included; empty if the patch is padding; None if that is not known.
    """

    sample: str | None
    place: tuple[int, int] | None
    distance: float
    box: tuple[int, int, int, int] | None = None
