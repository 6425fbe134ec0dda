"""From nothing to a picture: textures, features, a memory bank, and two defects found and explained.

The job of ``mmad-bank demo`` and of examples/score_a_defect.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmad_bank._files import replacing
from mmad_bank.data.textures import draw_scratch, extract, paste_patch, texture_images
from mmad_bank.errors import MissingExtraError

if TYPE_CHECKING:
    from mmad_bank.bank import MemoryBank, Scores

KINDS = ("clean", "scratch", "pasted patch")
GRID = (28, 28)
_CROP = 56
_PANEL = 2.6
_N_EXPLAINING = 3
_INK, _FAINT, _ACCENT = "#1b1f24", "#6a737d", "#d1242f"


@dataclass
class Explanation:
    """Why an image has its score: its worst patch, and the normal patches nearest to it."""

    patch: int
    """Place of the worst patch, counted row by row on the grid."""
    distances: np.ndarray
    """To the nearest bank vectors, ascending."""
    sources: list[tuple[int, int]]
    """Training image and patch that each of those bank vectors came from."""


@dataclass
class DemoResult:
    """What the demo made and measured."""

    bank_path: Path
    picture_path: Path
    n_rows: int
    dim: int
    n_vectors: int
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step."""
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    """Image scores of each kind of test image, (n,)."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON-able values."""
        return {
            "bank": str(self.bank_path),
            "picture": str(self.picture_path),
            "rows": self.n_rows,
            "dim": self.dim,
            "vectors": self.n_vectors,
            "bank_bytes": self.bank_path.stat().st_size,
            "seconds": dict(self.seconds),
            "image_scores": {kind: [float(value) for value in values] for kind, values in self.scores.items()},
        }


def run(
    folder: str | Path, *, texture: str = "brick", n_images: int = 80, n_test: int = 8, seed: int = 0,
    progress: bool = False,
) -> DemoResult:  # fmt: skip
    """Build a bank from a texture's features, save it, load it, and score clean and defective images it never saw.

    Args:
        folder: Made if it is missing; receives ``bank.safetensors`` and ``picture.png``.
        texture: See :func:`mmad_bank.data.textures.texture_images`.
        n_images: Normal images for the bank.
        n_test: Test images of each kind: clean, scratched, and with a patch of another texture.
        seed: Of images and defects.
        progress: Show progress bars.

    Raises:
        MissingExtraError: A package of the extra ``demo`` is not installed.
        OSError: The folder cannot be written.
    """
    from mmad_bank.bank import MemoryBank
    from mmad_bank.features import EfficientNetLite0

    _require_matplotlib()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bank_path, picture_path = folder / "bank.safetensors", folder / "picture.png"
    seconds: dict[str, float] = {}
    with _timed(seconds, "make images"):
        normal = texture_images(n_images, texture=texture, seed=seed)
        tests = make_tests(n_test, texture=texture, seed=seed)
    with _timed(seconds, "extract features"):
        extractor = EfficientNetLite0()
        features = extract(normal, extractor)
    with _timed(seconds, "build the bank"):
        bank = MemoryBank.build(features, ratio=0.1, extractor=extractor.name, progress=progress)
    with _timed(seconds, "save"):
        bank.save(bank_path)
    with _timed(seconds, "load"):
        bank = MemoryBank.load(bank_path)
    with _timed(seconds, "extract test features"):
        patches = {kind: extract(images, extractor) for kind, images in tests.items()}
    with _timed(seconds, "score"):
        scores = {kind: bank.score(values) for kind, values in patches.items()}
    with _timed(seconds, "draw"):
        draw(picture_path, bank, tests, patches, scores, normal)
    image_scores = {kind: values.image.numpy() for kind, values in scores.items()}
    n_rows = features.shape[0] * features.shape[1]
    return DemoResult(bank_path, picture_path, n_rows, bank.dim, len(bank), seconds, image_scores)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _require_matplotlib() -> None:
    """Say that matplotlib is missing before the work and not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "demo", "the demo's picture") from error


def make_tests(n_test: int, *, texture: str, seed: int) -> dict[str, np.ndarray]:
    """Make test images of each kind, (n_test, 224, 224, 3) uint8, from the part of the photograph no bank has seen."""
    images = texture_images(3 * n_test, texture=texture, split="test", seed=seed)
    clean, to_scratch, to_paste = np.split(images, 3)
    donors = texture_images(n_test, texture="grass" if texture != "grass" else "gravel", split="test", seed=seed)
    scratched = [draw_scratch(image, seed=seed + i)[0] for i, image in enumerate(to_scratch)]
    pasted = [
        paste_patch(image, donor, seed=seed + i)[0]
        for i, (image, donor) in enumerate(zip(to_paste, donors, strict=True))
    ]
    return dict(zip(KINDS, (clean, np.stack(scratched), np.stack(pasted)), strict=True))


def explain(bank: MemoryBank, patches: np.ndarray, scores: Scores, image: int) -> Explanation:
    """Find an image's worst patch and the normal patches nearest to it.

    Args:
        bank: Built from (images, patches, D) features.
        patches: The scored features, (B, P, D).
        scores: What ``bank.score(patches)`` gave.
        image: Which of the B.
    """
    worst = int(scores.patch[image].argmax())
    distances, nearest = bank.search(patches[image, worst : worst + 1], k=_N_EXPLAINING)
    sources = [(origin.image or 0, origin.patch or 0) for origin in bank.provenance(nearest[0])]
    return Explanation(worst, distances[0].numpy(), sources)


def _crop_box(patch: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the top left corner of the crop around a patch, moved to lie inside the image."""
    corner = []
    for place, cells, pixels in zip(divmod(patch, GRID[1]), GRID, size, strict=True):
        centre = (place + 0.5) * pixels / cells
        corner.append(int(np.clip(round(centre - _CROP / 2), 0, pixels - _CROP)))
    return corner[0], corner[1]


def draw(
    path: Path,
    bank: MemoryBank,
    tests: dict[str, np.ndarray],
    patches: dict[str, np.ndarray],
    scores: dict[str, Scores],
    normal: np.ndarray,
) -> None:
    """Draw the first image of each kind: the image, its anomaly map, its worst patch and the nearest normal patches.

    Args:
        path: PNG to write.
        bank: Built from the features of ``normal``.
        tests: Images by kind, (n, H, W, 3), uint8; the first kind is normal.
        patches: Their features by kind, (n, P, D).
        scores: What ``bank.score`` gave for them, by kind.
        normal: The training images, (N, H, W, 3), uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mmad_bank.scoring import anomaly_map

    size = normal.shape[1:3]
    maps = {kind: anomaly_map(values.patch[:1], GRID, size)[0].numpy() for kind, values in scores.items()}
    limits = float(np.median(next(iter(maps.values())))), max(float(values.max()) for values in maps.values())
    width, height = 3 * _PANEL + 1.35, len(tests) * _PANEL + 0.85
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    margins = {"left": 1.2 / width, "right": 1 - 0.1 / width, "top": 1 - 0.35 / height, "bottom": 0.5 / height}
    outer = figure.add_gridspec(len(tests), 3, wspace=0.05, hspace=0.05, **margins)
    label = {"rotation": 0, "ha": "right", "va": "center", "labelpad": 10, "fontsize": 10.5, "linespacing": 1.5}
    for row, kind in enumerate(tests):
        places = [outer[row, column] for column in range(3)]
        explanation = explain(bank, patches[kind], scores[kind], 0)
        plain, over = _draw_row(figure, places, tests[kind][0], maps[kind], explanation, normal, limits)
        plain.set_ylabel(f"{kind}\nscore {float(scores[kind].image[0]):.2f}", color=_INK, **label)
        if row == 0:
            reasons = figure.add_subplot(places[2], frameon=False, xticks=[], yticks=[])
            for axes, title in ((plain, "image"), (over, "anomaly map"), (reasons, "nearest normal patches")):
                axes.set_title(title, fontsize=10.5, color=_INK, pad=7)
    _colour_bar(figure, over)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def _draw_row(
    figure: Any, places: list[Any], image: np.ndarray, heat: np.ndarray, explanation: Explanation,
    normal: np.ndarray, limits: tuple[float, float],
) -> tuple[Any, Any]:  # fmt: skip
    """Draw the image, the map over it, and the worst patch beside its nearest normal patches."""
    plain, over = (_picture(figure, place, image) for place in places[:2])
    opacity = np.clip((heat - limits[0]) / (limits[1] - limits[0]), 0, 1) ** 0.7
    over.imshow(heat, cmap="inferno", vmin=limits[0], vmax=limits[1], alpha=0.12 + 0.8 * opacity)
    corner = _crop_box(explanation.patch, image.shape[:2])
    for axes in (plain, over):
        _frame(axes, corner)
    inner = places[2].subgridspec(4, 2, wspace=0.03, hspace=0, height_ratios=(1, 0.17, 1, 0.17))
    cells = [(image, explanation.patch, "worst patch", _ACCENT)]
    for distance, (source, patch) in zip(explanation.distances, explanation.sources, strict=True):
        cells.append((normal[source], patch, f"image {source}, d = {distance:.1f}", _INK))
    for place, (whole, patch, title, colour) in enumerate(cells):
        top, left = _crop_box(patch, whole.shape[:2])
        axes = _picture(figure, inner[place // 2 * 2, place % 2], whole[top : top + _CROP, left : left + _CROP])
        axes.set_xlabel(title, fontsize=7.5, color=colour, labelpad=3)
        for spine in axes.spines.values():
            spine.set(visible=place == 0, color=_ACCENT, linewidth=1.8)
    return plain, over


def _picture(figure: Any, place: Any, image: np.ndarray) -> Any:
    """Show an image without ticks or frame."""
    axes = figure.add_subplot(place)
    axes.imshow(image, interpolation="lanczos")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _frame(axes: Any, corner: tuple[int, int]) -> None:
    """Frame the place that the crop of the worst patch shows."""
    from matplotlib.patches import Rectangle

    top, left = corner
    axes.add_patch(Rectangle((left, top), _CROP, _CROP, fill=False, edgecolor="white", linewidth=2.6, alpha=0.8))
    axes.add_patch(Rectangle((left, top), _CROP, _CROP, fill=False, edgecolor=_ACCENT, linewidth=1.4))


def _colour_bar(figure: Any, over: Any) -> None:
    """Put one scale below the last map: all maps share it."""
    place, height = over.get_position(), figure.get_figheight()
    axes = figure.add_axes((place.x0, place.y0 - 0.14 / height, place.width, 0.07 / height))
    bar = figure.colorbar(over.images[-1], cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.solids.set_alpha(1)
    axes.tick_params(labelsize=8, colors=_FAINT, length=2, pad=2)
    axes.set_xlabel("distance to the nearest normal patch", fontsize=8, color=_FAINT, labelpad=2)
