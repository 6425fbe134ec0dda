"""All images of a category, small: kept while they are scored, drawn when the colour scale is known."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch

from mmad_bank.evaluation import Evaluation, SampleScore
from mmad_bank.methods.base import Prediction
from mmad_bank.report import pictures
from mmad_bank.report.marks import Marks, drawn

SIDE = 144
"""Pixels of a small picture's longer side."""
PAGE_SIZE = 48
"""Number of images on a page of the list."""
FOLDER = "images"


_VERDICTS = ("found", "false alarm", "missed", "passed")
"""Words for verdicts: bad ones, right and wrong, then good ones, wrong and right."""


@dataclass(frozen=True)
class _Entry:
    """Place of an image in the file: its first byte, and the small picture's height and width."""

    start: int
    height: int
    width: int


class Thumbnails:
    """Small pictures and maps of the images that were scored, in their order.

    They lie in a nameless temporary file, which goes with the object, also after a crash.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="mmad-bank-report-")  # noqa: SIM115 - open as long as the object
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, prediction: Prediction) -> None:
        """Keep an image's picture, the same with its defect's outline, its map, and its regions, all made small."""
        sample = prediction.sample
        inside = pictures.shown(sample)
        colour = pictures.shrunk(pictures.rgb_picture(sample)[inside], SIDE)
        height, width = colour.shape[:2]
        mask = None if sample.mask is None else pictures.shrunk_mask(sample.mask[inside], (height, width))
        scores = pictures.shrunk_map(prediction.prepared_map[inside], (height, width))
        marks = Marks.of(prediction).resized((height, width))
        roi = torch.ones(height, width, dtype=torch.bool) if marks.inside is None else marks.inside
        start = self._file.seek(0, 2)
        for values in (colour, pictures.outlined(colour, mask), scores, (marks.numbers > 0).numpy(), roi.numpy()):
            self._file.write(np.ascontiguousarray(values).tobytes())
        self._entries.append(_Entry(start, height, width))

    def draw(self, number: int, limits: tuple[float, float]) -> bytes:
        """Return a JPEG: the picture with its defect's outline, and beside it the map with the outlines of regions."""
        entry = self._entries[number]
        shape, n_pixels = (entry.height, entry.width), entry.height * entry.width
        self._file.seek(entry.start)
        colour, outlined = (np.frombuffer(self._file.read(3 * n_pixels), np.uint8).reshape(*shape, 3) for _ in range(2))
        scores = np.frombuffer(self._file.read(4 * n_pixels), np.float32).reshape(shape)
        found, inside = (
            torch.from_numpy(np.frombuffer(self._file.read(n_pixels), np.bool_).reshape(shape).copy()) for _ in range(2)
        )
        over = drawn(pictures.overlay(colour, scores, limits), Marks(found, inside=inside))
        both = np.concatenate([outlined, over], axis=1)
        return pictures.encoded(both, "JPEG", quality=85)


def file_of(category: int, image: int) -> str:
    """Return the path of an image's small picture in the report's folder; no name of the data set is part of it."""
    return f"{FOLDER}/{category}-{image:06d}.jpg"


def is_picture(name: str) -> bool:
    """Tell whether a file of the folder has a name that :func:`file_of` gives."""
    return re.fullmatch(r"\d+-\d{6,}\.jpg", name) is not None


def write_pictures(folder: Path, category: int, thumbnails: Thumbnails, limits: tuple[float, float]) -> None:
    """Write the small pictures of a category into the report's folder."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for number in range(len(thumbnails)):
        (folder / file_of(category, number)).write_bytes(thumbnails.draw(number, limits))


def render_gallery(evaluation: Evaluation, category: int, has_pictures: bool) -> str:
    """Return the HTML of the list of all images, highest score first.

    Without scripts it is one long list whose pictures are loaded as they come into view; the page's script adds what
    chooses, orders and pages.
    """
    order = sorted(range(len(evaluation.scores)), key=lambda number: -evaluation.scores[number].score)
    cards = "".join(
        _card(evaluation.scores[number], rank, file_of(category, number) if has_pictures else None)
        for rank, number in enumerate(order, 1)
    )
    name = f"images-{category}"
    return (
        f'<h3 id="{name}-title">All {len(order):,} images, highest score first</h3>'
        f'<div class="gallery" data-page-size="{PAGE_SIZE}" role="group" aria-labelledby="{name}-title">'
        f'{_controls(evaluation, name)}<ol class="cards">{cards}</ol>'
        '<p class="pager"><button type="button" data-step="-1">Previous</button>'
        '<span class="at" aria-live="polite"></span>'
        '<button type="button" data-step="1">Next</button></p></div>'
    )


def _controls(evaluation: Evaluation, name: str) -> str:
    """Return the choices over the list; they are hidden until the script is there to obey them."""
    kinds = "".join(
        f'<option value="kind:{escape(kind, quote=True)}">only {escape(kind)}</option>' for kind in evaluation.kinds
    )
    names = dict.fromkeys(filter(None, map(_judged, evaluation.scores)))
    verdicts = "".join(f'<option value="verdict:{one}">{one}</option>' for one in _VERDICTS if one in names)
    return (
        '<div class="controls">'
        f'<label for="{name}-show">Show</label><select id="{name}-show" class="show"><option value="all">all</option>'
        f'<option value="label:good">good</option><option value="label:defect">defective</option>{kinds}'
        f"{verdicts}</select>"
        f'<label for="{name}-order">Order</label><select id="{name}-order" class="order">'
        '<option value="down">highest score first</option><option value="up">lowest score first</option>'
        '<option value="name">by name</option></select>'
        f'<label for="{name}-name">Name</label><input id="{name}-name" class="name" type="search"></div>'
    )


def _judged(score: SampleScore) -> str:
    """Say of a verdict whether it is right; empty where there is none."""
    if score.verdict is None:
        return ""
    return _VERDICTS[2 * (score.verdict != "bad") + (score.label == 0)]


def _card(score: SampleScore, rank: int, picture: str | None) -> str:
    label = "defect" if score.label else "good"
    data = f'data-label="{label}" data-kind="{escape(score.defect, quote=True)}" data-score="{score.score!r}"'
    judged = _judged(score)
    data += f' data-verdict="{judged}"' if judged else ""
    verdict = f' <span class="verdict {score.verdict}">{judged}</span>' if judged else ""
    image = ""
    if picture is not None:
        words = f"{score.id}: picture{' with the outline of its defect' if score.label else ''}, and its anomaly map"
        image = f'<img src="{picture}" alt="{escape(words, quote=True)}" loading="lazy" decoding="async">'
    return (
        f'<li class="card" {data}>{image}'
        f'<p><span><i class="dot {label}"></i>{escape(score.defect)}{verdict}</span><b>{score.score:#.4g}</b></p>'
        f'<p class="id"><span class="rank">{rank}.</span> {escape(score.id)}</p></li>'
    )
