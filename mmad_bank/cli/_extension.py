"""What extend tells of a calibrated bank: how the new images looked before, and how the thresholds moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mmad_bank._internal.shares import percent
from mmad_bank._internal.terminal import printable, say
from mmad_bank.bank.dump_scores import patches_of_an_image
from mmad_bank.cli._scoring import score_images
from mmad_bank.cli._verdicts import calibration_facts
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.bank import BankCalibration, FeatureDump, MemoryBank

_WATCHED = 0.1  # a share of normal images that a few of them have already


class NewImages(NamedTuple):
    """The images that a bank is extended by, as it saw them before.

    Attributes:
        names: Their names.
        p_values: Their p-values.
    """

    names: list[str]
    p_values: list[float]

    def facts(self) -> dict[str, Any]:
        """Return JSON-able values."""
        n, low = len(self.names), [p for p in self.p_values if p <= _WATCHED]
        return {
            "images": [{"name": name, "p_value": p} for name, p in zip(*self, strict=True)],
            "low": {"rate": _WATCHED, "images": len(low), "expected": _WATCHED * n},
        }

    def __str__(self) -> str:
        n, low = len(self.names), sum(p <= _WATCHED for p in self.p_values)
        return (
            f"{low:,} of {n:,} have p-values of at most {_WATCHED:g}, where {_WATCHED * n:.3g} are expected of images"
            f" like the calibration's; the smallest is {min(self.p_values):.3g}"
        )


def judge_new(bank: MemoryBank, dump: FeatureDump, *, progress: bool) -> NewImages | None:
    """Return p-values of the images that a bank is to be extended by.

    None if it is not calibrated, or with images of another size: then a line on standard error says so.
    """
    calibration = bank.calibration
    if calibration is None:
        return None
    try:
        patches_of_an_image(dump, calibration.patches)
    except InputError as error:
        say(f"note: the new images are not judged, {error}")
        return None
    rule = calibration.rule
    scored = score_images(
        bank, dump, calibration.patches, rule.reweight, rule.n_neighbors, divisor=rule.divisor, progress=progress
    )
    verdicts = calibration.judge(scored.scores, calibration.images.smallest_rate)
    return NewImages([image.name for image in scored.images], verdicts.p_values.tolist())


def extension_facts(
    new: NewImages | None, before: BankCalibration | None, after: BankCalibration | None
) -> dict[str, Any]:
    """Return JSON-able values; None where the bank was or is not calibrated."""
    return {
        "new_images": None if new is None else new.facts(),
        "calibration": {
            name: None if one is None else calibration_facts(one)
            for name, one in (("before", before), ("after", after))
        },
    }


def extension_rows(new: NewImages | None, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the same for people."""
    rows = {} if new is None else {"new images before": str(new)}
    before, after = facts["calibration"]["before"], facts["calibration"]["after"]
    if after is None:
        return rows
    if after["outdated"]:
        rows["calibration"] = (
            "outdated, of before the extension: verdicts are rather too mild; --calibrate makes it anew"
        )
        return rows
    rows["calibrated with"] = f"{after['images']:,} {printable(after['origin'])} of {after['patches']:,} patches"
    pairs = zip(before["thresholds"] if before else [None] * len(after["thresholds"]), after["thresholds"], strict=True)
    rows["bad above"] = "\n".join(_moved(one, other) for one, other in pairs)
    return rows


def _moved(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """Say how a threshold moved."""
    old = "" if before is None else f"{_word(before)} → "
    extrapolated = "  (extrapolated)" if after["extrapolated"] and after["score"] is not None else ""
    return f"{percent(after['rate']):>6}  {old}{_word(after)}{extrapolated}"


def _word(limit: Mapping[str, Any]) -> str:
    return "too few images" if limit["score"] is None else f"{limit['score']:.4g}"
