"""What predict writes and says of its samples: a folder each, verdicts in words, as CSV and as lines of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmad_bank._internal.files import replacing, write_text
from mmad_bank._internal.json_text import json_text
from mmad_bank._internal.shares import percent
from mmad_bank._internal.terminal import printable
from mmad_bank.cli._sample_files import Read
from mmad_bank.errors import MissingExtraError, MmadBankError, NoneUsableError

if TYPE_CHECKING:
    from mmad_bank.data import PartView
    from mmad_bank.methods import Method, Prediction

WRITTEN = ("score.json", "map.npy", "image.png", "overlay.png")
"""Files that are written for each sample that is predicted."""
POINTS = "points.npy"
"""One more for a sample of scattered points: the score of each finite point, in the file's order."""
_NO_FRAME = (
    "prepared by an older version, which did not note the pictures' sizes: the map is in the prepared square's pixels;"
    " prepare the data again for maps in the pictures'"
)
_COLUMNS = (
    "id", "score", "p_value", "verdict", "normalized_score", "threshold", "false_alarm_rate", "extrapolated", "regions",
    "region_top", "region_left", "region_bottom", "region_right", "region_area", "region_area_mm2", "region_peak",
    "nearest_sample", "nearest_distance", "folder", "left_out",
)  # fmt: skip
"""Columns of the table. Those of a region are of the worst one; the nearest sample is that of the first bank."""
_OF_PARTS = ("part", "view", "views")
"""Columns before those where several pictures show one part: the worst view, and the number of views. The others are of
the worst view."""


def row_of(result: Mapping[str, Any], width: int = 4) -> str:
    """Return what the list says of a sample.

    Args:
        result: What score.json has.
        width: Characters of the longest verdict.
    """
    if result["verdict"] is None:
        return f"{result['score']:.4f}  {printable(result['folder'])}"
    regions = f"{len(result['regions'])} region{'' if len(result['regions']) == 1 else 's'}"
    p_value, folder = f"p {result['p_value']:.3g}", printable(result["folder"])
    return f"{result['verdict']:<{width}}  {result['score']:.4f}  {p_value:<8}  {regions:<9}  {folder}"


def verdict_summary(results: Sequence[Mapping[str, Any]], n_out: int, n_samples: int) -> dict[str, str]:
    """Return a row that counts the verdicts, and one that counts the samples without a result if there are some."""
    left_out = {"left out": f"{n_out:,} of {n_samples:,} samples, each named in a line"} if n_out else {}
    judged = [one for one in results if one["verdict"] is not None]
    if not judged:
        return {"verdicts": "none, the model is not calibrated", **left_out}
    n_bad = sum(one["verdict"] == "bad" for one in judged)
    rates = sorted({one["false_alarm_rate"] for one in judged})
    words = percent(rates[0]) + (f" to {percent(rates[-1])}" if len(rates) > 1 else "")
    extrapolated = " (extrapolated)" if any(one["extrapolated"] for one in judged) else ""
    verdicts = f"{n_bad:,} bad, {len(judged) - n_bad:,} good, at a false-alarm rate of {words}{extrapolated}"
    return {"verdicts": verdicts, **left_out}


def none_usable(n_samples: int, failed: Mapping[str, str]) -> NoneUsableError:
    """Return the error of samples none of which can be used; of a single one the reason stands alone."""
    expected = f"SAMPLES: expected one of {n_samples:,} at least that can be used, found none"
    return NoneUsableError(expected if n_samples > 1 else "", failed)


def write_csv(path: Path, results: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> None:
    """Write a line for each sample, or part of several; cells are empty where nothing is known.

    Args:
        path: File to write.
        results: What score.json has.
        left_out: Why others could not be used, by their ids. Each has a line too, so that nobody takes a part that was
            not judged for one that was not there.
    """
    columns = [*_OF_PARTS, *_COLUMNS] if any("part" in one for one in results) else list(_COLUMNS)
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        for one in results:
            of_part = {"views": len(one["views"])} if "part" in one else {}
            table.writerow({**one, **of_part, **_worst(one), "regions": len(one["regions"])})
        table.writerows({"id": name, "left_out": reason} for name, reason in left_out.items())


def write_jsonl(path: Path, results: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> None:
    """Write a JSON object on a line for each sample, or part of several, and those left out, see :func:`write_csv`."""
    lines = [*results, *({"id": name, "left_out": reason} for name, reason in left_out.items())]
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one, allow_nan=False) + "\n" for one in lines)


def _worst(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of the worst region and of the normal patch that explains the score."""
    cells: dict[str, Any] = {}
    if result["regions"]:
        worst = result["regions"][0]
        cells |= dict(zip(("region_top", "region_left", "region_bottom", "region_right"), worst["box"], strict=True))
        cells |= {f"region_{name}": worst[name] for name in ("area", "area_mm2", "peak")}
    for explained in result["explanation"].values():
        for nearest in explained["nearest_normal_patches"][:1]:
            return {**cells, "nearest_sample": nearest["sample"], "nearest_distance": nearest["distance"]}
    return cells


def write_prediction(
    folder: Path, name: str, method: Method, prediction: Prediction, n: int, shown: PartView | None = None
) -> dict[str, Any]:
    """Write a sample's map.npy, its picture, and score.json.

    Args:
        folder: Folder to write into.
        name: Id of the sample.
        method: The method that made the prediction.
        prediction: The prediction.
        n: Number of normal patches to name.
        shown: The part that the sample shows, and the view; None where it is judged by itself.
    """
    from mmad_bank.data.writing import write_png
    from mmad_bank.methods.described import explanation_of, verdict_of
    from mmad_bank.report.pictures import rgb_picture

    folder.mkdir(parents=True, exist_ok=True)
    notes = list(prediction.notes)
    if prediction.sample.frame is None:
        notes.append(_NO_FRAME)
    values = prediction.map.numpy()
    _save_array(folder / "map.npy", values)
    if prediction.sample.points is not None:
        _save_array(folder / POINTS, prediction.point_scores.numpy())
    write_png(folder / "image.png", rgb_picture(prediction.original))
    result = {
        "id": name,
        **({} if shown is None else shown._asdict()),
        "folder": str(folder),
        "score": prediction.score,
        **verdict_of(prediction),
        "size": list(prediction.size),
        "notes": notes,
        "parts": {part: one.score for part, one in prediction.parts.items()},
        "map_range": [float(values.min()), float(values.max())],
        "explanation": {part: explanation_of(method, prediction, part, n) for part in prediction.parts} if n else {},
    }
    write_text(folder / "score.json", json_text(result))
    return result


class ToPredict(NamedTuple):
    """A sample to score.

    Attributes:
        name: Its id.
        read: Function that reads it.
        shown: The part that it shows, and the view; None where it is judged by itself.
    """

    name: str
    read: Read
    shown: PartView | None


@dataclass(frozen=True)
class Writing:
    """What is done with each sample, here or in another process: it is scored, and its files are written.

    Attributes:
        out: Folder of the samples' folders, or of the only one's files if there are not ``several``.
        maps: Folder of maps as TIFF, or None.
        several: Whether there are several.
        explain: Number of normal patches to name.
        force: Whether to score samples that the model was not made for.
    """

    out: Path
    maps: Path | None
    several: bool
    explain: int
    force: bool

    def __call__(self, method: Method, sample: ToPredict) -> dict[str, Any] | str:
        """Return what is said of a sample, or why it cannot be used."""
        from mmad_bank.data.writing import write_map

        folder = self.out / sample.name if self.several else self.out
        try:
            prediction = method.predict(sample.read(), force=self.force)
        except MissingExtraError:
            raise
        except MmadBankError as error:
            return str(error)
        result = write_prediction(folder, sample.name, method, prediction, self.explain, sample.shown)
        if self.maps is not None:
            write_map(self.maps / f"{sample.name}.tiff", prediction.map.numpy())
        return result


def _save_array(path: Path, values: Any) -> None:
    import numpy as np

    with replacing(path) as beside, beside.open("wb") as file:
        np.save(file, values)


def draw_overlay(result: Mapping[str, Any], method: Method, limits: tuple[float, float]) -> None:
    """Draw a sample's overlay from its map and image: heat, the outlines of its regions, the region of interest."""
    import numpy as np
    import torch

    from mmad_bank.data import read_rgb
    from mmad_bank.data.writing import write_png
    from mmad_bank.report.marks import Marks, annotated

    folder = Path(result["folder"])
    values, inside = np.load(folder / "map.npy"), None
    numbers = torch.zeros(values.shape, dtype=torch.int32)
    if method.roi_ is not None:
        inside = method.roi_.inside(*values.shape)
    if result["regions"] and method.calibration_ is not None:
        numbers = method.calibration_.region_map(torch.from_numpy(values), method.false_alarm_rate, inside)
    words = [f"{number}: {region['peak']:.3g}" for number, region in enumerate(result["regions"], 1)]
    marks = Marks(numbers, words, inside)
    write_png(folder / "overlay.png", annotated(read_rgb(folder / "image.png"), values, limits, marks))
