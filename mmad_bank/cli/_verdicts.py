"""Calibrations and verdicts in words, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.json_values import inside
from mmad_bank._internal.shares import percent
from mmad_bank._internal.terminal import printable, say
from mmad_bank.cli._values import parse_share
from mmad_bank.errors import InputError

if TYPE_CHECKING:
    from mmad_bank.bank import BankCalibration, FeatureDump, MemoryBank, Verdicts
    from mmad_bank.bank.scores import Rule
    from mmad_bank.calibration import Calibration
    from mmad_bank.methods import Method

AnyMethod = TypeVar("AnyMethod", bound="Method")
NOT_CALIBRATED = (
    "expected a model with a calibration, found one without; fit it anew with validation images, or with"
    " --set calibration=folds"
)

FIT_ANEW = "fit the model anew"

SOME_BAD = 4
"""Exit code of a command that was asked to fail on a bad image, and found one."""
_RATES = (0.1, 0.05, 0.01, 0.001)


def parse_rate(text: str | None) -> float | None:
    """Read ``--false-alarm-rate``; None where it is not given.

    Raises:
        InputError: It is no share above 0 and below 1.

    Example:
        >>> parse_rate("1%"), parse_rate("0.05"), parse_rate(None)
        (0.01, 0.05, None)
    """
    if text is None:
        return None
    with suppress(InputError):
        rate = parse_share(text, "--false-alarm-rate")
        if rate < 1:
            return rate
    raise InputError(f"--false-alarm-rate: expected a share above 0 and below 1, such as 0.01 or 1%, found {text!r}")


def changes_asked(rate: float | None, runtime: str | None = None) -> dict[str, Any]:
    """Return the arguments of a method that a command line changes."""
    asked = {"false_alarm_rate": rate, "runtime": runtime}
    return {name: value for name, value in asked.items() if value is not None}


def as_asked(method: AnyMethod, rate: float | None, runtime: str | None = None) -> AnyMethod:
    """Return a fitted method that judges at a false-alarm rate, by a runtime; itself where none is asked for.

    Raises:
        InputError: It is not calibrated, or on too few images, or has no network that runtimes run.
    """
    changes = changes_asked(rate, runtime)
    if not changes:
        return method
    with argument_called(false_alarm_rate="--false-alarm-rate", runtime="--runtime"):
        return method.with_arguments(**changes)


def word_verdict(is_bad: bool) -> str:
    """Return a verdict as files and lists have it."""
    return "bad" if is_bad else "good"


# Calibrations.


def calibration_facts(calibration: BankCalibration, rate: float | None = None) -> dict[str, Any]:
    """Return a calibration as JSON-able values; ``rate`` is a false-alarm rate to tell beside the usual ones."""
    rates = _rates(rate)
    return {
        **calibration.header(),
        "smallest_rate": calibration.images.smallest_rate,
        "image_scores": {"min": float(calibration.images.scores[0]), "max": float(calibration.images.scores[-1])},
        "thresholds": [_limit(calibration.images, one) for one in rates],
        "patch_thresholds": [_limit(calibration.peaks, one) for one in rates],
    }


def calibration_rows(calibration: BankCalibration, rate: float | None = None) -> dict[str, str]:
    """Return the same for people."""
    facts = calibration_facts(calibration, rate)
    by = f"by {facts['reweight']}" + ("" if facts["reweight"] == "max" else f" of {facts['n_neighbors']} neighbors")
    by += "" if facts["divisor"] == 1 else f" divided by {facts['divisor']:g}"
    low, high = facts["image_scores"]["min"], facts["image_scores"]["max"]
    rows = {
        "calibrated with": f"{facts['images']:,} {printable(facts['origin'])} of {facts['patches']:,} patches, {by}:"
        f" {low:.4g} to {high:.4g}" + ("\noutdated: the bank was extended since" if facts["outdated"] else ""),
        "smallest rate": f"{percent(facts['smallest_rate'])} can be promised with so many images",
    }
    pairs = zip(facts["thresholds"], facts["patch_thresholds"], strict=True)
    rows["bad above"] = "\n".join(_word_limits(image, patch) for image, patch in pairs)
    return rows


def _rates(rate: float | None) -> list[float]:
    return sorted({*_RATES, *([] if rate is None else [rate])}, reverse=True)


def _limit(calibration: Calibration, rate: float) -> dict[str, Any]:
    """Return a threshold; its score is None where there are too few images to extrapolate from."""
    try:
        found = calibration.threshold(rate)
    except InputError:
        return {"rate": rate, "score": None, "extrapolated": True}
    return {"rate": rate, "score": found.score, "extrapolated": found.extrapolated}


def _word_limits(image: Mapping[str, Any], patch: Mapping[str, Any]) -> str:
    rate = f"{percent(image['rate']):>6}"
    if image["score"] is None:
        return f"{rate}  too few images"
    extrapolated = "  (extrapolated)" if image["extrapolated"] else ""
    return f"{rate}  {image['score']:.4g}, patches {patch['score']:.4g}{extrapolated}"


def model_calibration_facts(content: Mapping[str, Any] | None, rate: Any = None) -> dict[str, Any] | None:
    """Return what a model's manifest says of its calibration, in short; None where it has none.

    Args:
        content: The manifest's calibration.
        rate: False-alarm rate of the manifest's arguments; None is the usual one.

    Raises:
        InputError: It says something else; the message names the field.
    """
    from mmad_bank.methods.verdicts import ModelCalibration

    if content is None:
        return None
    with inside("calibration"):
        known = ModelCalibration.from_json(content)
    own = known.own
    thresholds = [_limit(own, rate) for rate in _RATES]
    given = rate if isinstance(rate, float) and 0 < rate < 1 else None
    facts = {
        "images": len(own), "origin": own.origin, "smallest_rate": own.smallest_rate, "thresholds": thresholds,
        "verdicts": _limit(own, own.rate(given)),
    }  # fmt: skip
    return facts if known.views is None else {**facts, "views": known.views.as_json()}


def word_model_calibration(facts: Mapping[str, Any] | None) -> str:
    """Return the same for people, in a line."""
    if facts is None:
        return "none, there are no verdicts; validation images or calibration=folds make one"
    images = (
        f"{facts['images']:,} {printable(facts['origin'])}{_word_views(facts['views']) if 'views' in facts else ''}"
    )
    words = f"{images}; smallest false-alarm rate {percent(facts['smallest_rate'])}"
    used = facts["verdicts"]
    return words if used["score"] is None else f"{words}; bad above {used['score']:.4g}, at {percent(used['rate'])}"


def _word_views(known: Mapping[str, Any]) -> str:
    """Return what is known of the views of parts, as the rest of a sentence."""
    words = f" ({known['usual']} view{'' if known['usual'] == 1 else 's'} each"
    words += f": {printable(', '.join(known['names']))}" if known["names"] else ""
    return f"{words}; {known['incomplete']:,} with fewer do not count)" if known["incomplete"] else f"{words})"


def words_of_model_calibration(facts: Mapping[str, Any] | None) -> list[str]:
    """Return the lines of ``info``: what a model is calibrated on, and above which score an image is bad."""
    if facts is None:
        return []
    limits = [
        f"{percent(one['rate']):>6}  {one['score']:.4g}" + ("  (extrapolated)" if one["extrapolated"] else "")
        for one in facts["thresholds"]
        if one["score"] is not None
    ]
    return [word_model_calibration(facts), *limits]


# Verdicts.


def check_calibrated(bank: MemoryBank, path: object, rule: Rule, rate: float | None) -> BankCalibration:
    """Return a bank's calibration, and warn of an outdated one; or say before the work why images cannot be judged.

    Raises:
        InputError: There is none, it is of another rule, or has too few images for the false-alarm rate.
    """
    found = bank.calibration
    if found is None:
        raise InputError(f"{path}: expected a calibrated bank, found none; mmad-bank calibrate makes one of it")
    if found.rule.divisor != rule.divisor:
        divisor = f"{found.rule.divisor:g}"
        raise InputError(
            f"{path}: is calibrated with image scores that were divided by {divisor}, which only bank.score(...,"
            f" divisor={divisor}) in Python makes; mmad-bank calibrate makes the calibration anew for this command"
        )
    if found.rule != rule:
        raise InputError(
            f"--reweight and --neighbors: expected {found.rule.reweight} and {found.rule.n_neighbors}, as {path} is"
            f" calibrated, found {rule.reweight} and {rule.n_neighbors}"
        )
    found.images.threshold(rate)
    warn_if_outdated(path, found.outdated)
    return found


def check_size_of_images(dump: FeatureDump, patches: int | None, path: object, calibration: BankCalibration) -> None:
    """Refuse images of another size than those that a bank is calibrated with, before they are scored.

    Raises:
        InputError: They have another number of patches.
    """
    from mmad_bank.bank.dump_scores import patches_of_an_image

    found = patches_of_an_image(dump, patches)
    if found != calibration.patches:
        expected = f"expected images of {calibration.patches} patches, as {path} is calibrated"
        raise InputError(f"{dump.sources[0].file}: {expected}, found {found}")


def warn_if_outdated(path: object, is_outdated: bool, anew: str = "mmad-bank calibrate makes it anew") -> None:
    """Say on standard error that a bank or a model's bank was extended since it was calibrated."""
    if is_outdated:
        why = "a bank was extended since, so that too few images are called bad, defects too"
        say(f"warning: {path}: the calibration is outdated, {why}; {anew}")


def verdict_facts(verdicts: Verdicts, names: Sequence[str], scores: Sequence[float]) -> dict[str, Any]:
    """Return verdicts as JSON-able values: the limit, and which images are bad."""
    bad = verdicts.bad.nonzero()[:, 0].tolist()
    p_values = verdicts.p_values.tolist()
    return {
        "false_alarm_rate": verdicts.threshold.rate,
        "threshold": verdicts.threshold.score,
        "patch_threshold": verdicts.patch_threshold.score,
        "extrapolated": verdicts.threshold.extrapolated,
        "good": len(names) - len(bad),
        "bad": len(bad),
        "bad_images": [{"name": names[one], "score": scores[one], "p_value": p_values[one]} for one in bad],
    }


def verdict_rows(facts: Mapping[str, Any] | None, calibration: BankCalibration | None, rule: Rule) -> dict[str, str]:
    """Return the same for people; of a bank that could judge by this rule, and was not asked to, that it could."""
    if calibration is None or (facts is None and calibration.rule != rule):
        return {}
    if facts is None:
        return {"verdicts": "none were asked for; --false-alarm-rate has this calibrated bank judge the images"}
    notes = ["extrapolated"] if facts["extrapolated"] else []
    notes += ["calibrated before the bank was extended"] if calibration.outdated else []
    return {
        "verdicts": f"{facts['bad']:,} bad, {facts['good']:,} good, at a false-alarm rate of"
        f" {percent(facts['false_alarm_rate'])}",
        "bad above": f"{facts['threshold']:.4g} ({len(calibration.images):,} {printable(calibration.origin)}"
        f"{''.join(f', {note}' for note in notes)})",
    }


def end_on_bad(found: bool) -> None:
    """End the command by the code for a bad image, if there is one.

    Raises:
        typer.Exit: With :data:`SOME_BAD`.
    """
    if found:
        raise typer.Exit(SOME_BAD)
