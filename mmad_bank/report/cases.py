"""The images that a report shows: pictures, scores, and the normal patches that explain them."""

from __future__ import annotations

from base64 import b64encode
from functools import lru_cache
from html import escape

import numpy as np

from mmad_bank._internal.palette import SERIES
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.sample import Sample
from mmad_bank.errors import InputError
from mmad_bank.evaluation import (
    FUSED,
    HIGHEST_DEFECT,
    HIGHEST_GOOD,
    LOWEST_DEFECT,
    LOWEST_GOOD,
    Evaluation,
    Example,
)
from mmad_bank.methods.base import Method, Part, Prediction, Reason
from mmad_bank.report import pictures
from mmad_bank.report.charts import colour_of, key
from mmad_bank.report.marks import LABELLED, Marks, annotated

_N_REASONS = 4
_PER_TEXT = 20  # letters of 12 pixels on the page, where a picture's longer side takes about 250
_TITLES = {
    HIGHEST_GOOD: "Highest score of a good image",
    LOWEST_DEFECT: "Lowest score of a defective image",
    HIGHEST_DEFECT: "Highest score of a defective image",
    LOWEST_GOOD: "Lowest score of a good image",
}
_NAMES_ONLY = (
    "Normal patches that explain a score have their picture's name alone where that is not among the training images of"
    " the data set that was evaluated."
)


class Album:
    """Colour scale, training images and order of the parts that the pictures of a category share.

    Args:
        evaluation: Evaluation with the examples to show.
        method: Method that explains them, if it is there.
        training: The training split, if it is there.
    """

    def __init__(self, evaluation: Evaluation, method: Method | None, training: SampleDataset | None) -> None:
        self.evaluation, self.method = evaluation, method
        self.results = list(evaluation.metrics)
        self.limits = pictures.map_limits(method, [example.prediction for example in evaluation.examples])
        self._training = training
        self._places = {} if training is None else {record.id: i for i, record in enumerate(training.records)}
        self.training_sample = lru_cache(maxsize=16)(self._training_sample)
        self.names_only = False
        """Whether a normal patch is named, whose picture is not there."""

    def _training_sample(self, sample_id: str) -> Sample | None:
        """Return a training image in the frame of the maps, or None if it is not there any more."""
        if self._training is None or self.method is None or sample_id not in self._places:
            return None
        try:
            return self.method.prepare(self._training[self._places[sample_id]])
        except InputError:
            return None

    def part_names(self, prediction: Prediction) -> list[str]:
        """Return the parts of a prediction in the order of the results."""
        return [name for name in self.results if name in prediction.parts] or list(prediction.parts)

    def colour(self, part: str) -> str:
        """Return a part's colour in the curves; a method's only part has none there, as it is the result itself."""
        return colour_of(self.results, part) if part in self.results else SERIES[0]

    def rank(self, part: str, score: float) -> str:
        """Say how a score stands to those of the good images."""
        good = [s.parts.get(part, s.score) for s in self.evaluation.scores if s.label == 0]
        below = sum(score > other for other in good)
        return f"above {below} of {len(good)} good images" if good else ""


def render_cases(album: Album) -> str:
    """Return the HTML of all examples, in groups by role."""
    parts: list[str] = []
    examples = album.evaluation.examples
    for role, title in _TITLES.items():
        chosen = [example for example in examples if example.role == role]
        if chosen:
            plural = title if len(chosen) == 1 else title.replace("score of a", "scores of").replace("image", "images")
            parts.append(f"<h3>{escape(plural)}</h3>")
            parts += [_case(album, example) for example in chosen]
    note = f'<p class="hint">{_NAMES_ONLY}</p>' if album.names_only else ""
    return render_scale(album) + note + "".join(parts)


def render_scale(album: Album) -> str:
    """Return the legend of the colours that all maps share."""
    colours = pictures.map_colours(np.linspace(0, 1, 9)).round().astype(int)
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in colours)
    low, high = (f"{limit:.4g}" for limit in album.limits)
    bar = f'<i style="background:linear-gradient(90deg, {stops})"></i>'
    scale = None if album.method is None else album.method.map_scale_
    if scale is None:
        words = "One scale for the maps of this page; the model has none of normal images, and so a good image may be"
        words += " as bright as a defect."
    else:
        extreme = scale.quantiles[FUSED][0.999]
        words = (
            f"The model's scale, one for all its maps. Of {scale.images} {scale.origin}, nine pixels in ten stay below"
            f" {low}, the first colour, and one in a thousand is above {extreme:.4g}."
        )
    words += " Colours are laid over the picture, none below the first, half transparent from the last on."
    return (
        f'<h3>Colours of the anomaly maps</h3><div class="scale" role="img" aria-label="from {low}, dark, to {high},'
        f' bright">{low}{bar}{high}</div><p class="hint">{escape(words)}</p>'
    )


def _case(album: Album, example: Example) -> str:
    """Return the HTML of one image."""
    prediction = example.prediction
    sample = prediction.sample
    kind = "defect" if sample.label else "good"
    rank = album.rank(FUSED, prediction.score)
    head = (
        f'<header><span><i class="dot {kind}"></i><b>{escape(sample.defect)}</b></span>'
        f'<span class="id">{escape(sample.id)}</span>'
        f'<span class="score"><small>{rank}</small>{prediction.score:#.4g}{_verdict(prediction)}</span></header>'
    )
    banks = "".join(_bank(album, prediction, name) for name in album.part_names(prediction))
    return f'<article class="case">{head}{_pictures_of(album, prediction)}<div class="why">{banks}</div></article>'


def _verdict(prediction: Prediction) -> str:
    """Return the verdict of an image and its p-value; nothing without a calibration."""
    if prediction.verdict is None:
        return ""
    found = f"p-value {prediction.p_value:.3g}, {len(prediction.regions)} regions"
    return f' <b class="verdict {prediction.verdict}" title="{found}">verdict: {prediction.verdict}</b>'


def _pictures_of(album: Album, prediction: Prediction) -> str:
    """Return the four pictures of an image: the worst patches framed in the first, the regions outlined in the last."""
    sample, inside = prediction.sample, pictures.shown(prediction.sample)
    colour = pictures.rgb_picture(sample)[inside]
    marks = Marks.of(prediction, [str(number) for number, _ in enumerate(prediction.regions, 1)])
    values = prediction.prepared_map[inside].numpy()
    map_picture = annotated(colour, values, album.limits, marks.resized(values.shape), per_text=_PER_TEXT)
    if sample.mask is None:
        truth, words = colour, "ground truth: not known"
    else:
        defective = bool(sample.mask.any())
        truth = pictures.outlined(colour, sample.mask[inside])
        words = "ground truth: the defect's outline" if defective else "ground truth: no defect"
    frames = _frames(album, prediction)
    shown = pictures.has_depth(sample)
    depth_words = "depth: near is light; grey: not measured"
    depth = [(pictures.depth_picture(sample)[inside], depth_words, "")] if shown else []
    cells = (
        (colour, f"colour; framed: {_whose(album, prediction)} worst patch" if frames else "colour", frames),
        *depth,
        (truth, words, ""),
        (map_picture, map_words(prediction), ""),
    )
    figures = "".join(
        f"<figure>{_picture(np.ascontiguousarray(picture), f'{words}, {sample.id}', extra)}"
        f"<figcaption>{words}</figcaption></figure>"
        for picture, words, extra in cells
    )
    return f'<div class="pictures">{figures}</div>'


def map_words(prediction: Prediction) -> str:
    """Say what is drawn on an anomaly map: regions by their peaks, and the region of interest."""
    words, shown = "anomaly map", prediction.regions[:LABELLED]
    if prediction.calibration is not None:
        limit = prediction.calibration.peaks.threshold(prediction.false_alarm_rate).score
        peaks = ", ".join(f"{number} ({one.peak:.4g})" for number, one in enumerate(shown, 1))
        more = len(prediction.regions) - LABELLED
        peaks += f" and {more} more" if more > 0 else ""
        words += (
            f"; outlined: regions with peaks above {limit:.4g}: {peaks}" if peaks else f"; no peak above {limit:.4g}"
        )
    return words + ("; gray: outside of the region of interest" if prediction.roi is not None else "")


def _whose(album: Album, prediction: Prediction) -> str:
    """Say whose worst patches are framed: each bank's, or each branch's of a method without banks."""
    if len(prediction.parts) == 1:
        return "the"
    names = dict.fromkeys(album.evaluation.label(name).rpartition(" ")[2] for name in prediction.parts)
    return f"each {' or '.join(names)}'s"


def _frames(album: Album, prediction: Prediction) -> str:
    """Return an SVG layer with a frame around each part's worst patch, in the part's colour."""
    frames = []
    size = prediction.prepared_size
    side = pictures.crop_side(size)
    for name in album.part_names(prediction):
        part = prediction.parts[name]
        top, left = pictures.crop_box(part.worst, part.grid, size, side)
        box = f'x="{left + 1}" y="{top + 1}" width="{side - 2}" height="{side - 2}" rx="2"'
        frames.append(f'<rect {box} stroke="#fff" stroke-width="3.2" stroke-opacity="0.75"/>')
        frames.append(f'<rect {box} style="stroke:{album.colour(name)}" stroke-width="1.8"/>')
    rows, columns = pictures.shown(prediction.sample)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    box = f'viewBox="{columns.start} {rows.start} {width} {height}"'
    return f'<svg {box} fill="none" aria-hidden="true">{"".join(frames)}</svg>' if frames else ""


def _bank(album: Album, prediction: Prediction, name: str) -> str:
    """Return a part's score, its worst patch, and the normal patches nearest to that."""
    part = prediction.parts[name]
    rank = f" <span class='hint'>{album.rank(name, part.score)}</span>" if album.evaluation.scores[0].parts else ""
    head = f"<p>{key(album.colour(name))}<b>{escape(album.evaluation.label(name))}</b> {part.score:#.4g}{rank}</p>"
    reasons = [] if album.method is None else album.method.explain(prediction, name, place=part.worst, n=_N_REASONS)
    if not reasons:
        return f'<div class="bank">{head}</div>'
    depth = pictures.shows_depth(name, prediction.sample)
    worst = _crop(prediction.sample, part, part.worst, "its worst patch", depth, album.colour(name))
    nearest = "".join(_reason(album, part, reason, depth) for reason in reasons)
    return f'<div class="bank">{head}<div class="crops">{worst}{nearest}</div></div>'


def _reason(album: Album, part: Part, reason: Reason, depth: bool) -> str:
    """Return a normal patch: its crop if the training image is there, else its name."""
    if reason.sample is None or reason.place is None:
        return f'<figure class="crop"><figcaption>not recorded, distance {reason.distance:#.4g}</figcaption></figure>'
    sample = album.training_sample(reason.sample)
    row, column = reason.place
    words = f"{reason.sample.rsplit('/', 1)[-1]}, distance {reason.distance:#.4g}"
    if sample is None:
        album.names_only = True
        return f'<figure class="crop"><figcaption>{escape(words)}</figcaption></figure>'
    return _crop(sample, part, reason.place, words, depth, hint=f"{reason.sample}, patch row {row}, column {column}")


def _crop(
    sample: Sample, part: Part, place: tuple[int, int], words: str, depth: bool, frame: str = "", hint: str = ""
) -> str:
    """Return the surroundings of a patch as a small figure."""
    style = f"outline-color:{frame}" if frame else ""
    image = _picture(pictures.patch_crop(sample, place, part.grid, depth), hint or words, style=style)
    kind = "crop worst" if frame else "crop"
    opening = f'<figure class="{kind}" title="{escape(hint, quote=True)}">'
    return f"{opening}{image}<figcaption>{escape(words)}</figcaption></figure>"


def _picture(picture: np.ndarray, words: str, extra: str = "", style: str = "") -> str:
    data = b64encode(pictures.encoded(picture, "JPEG", quality=90, subsampling=0)).decode("ascii")
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(words, quote=True)}">'
    height, width = picture.shape[:2]
    return f'<div class="picture" style="aspect-ratio:{width}/{height};{style}">{image}{extra}</div>'
