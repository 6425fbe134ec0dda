"""The images of a dump, scored a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from mmad_bank.bank.dumps import FeatureDump, Part
from mmad_bank.bank.provenance import Source
from mmad_bank.bank.scores import Scores
from mmad_bank.errors import InputError, NoneUsableError

ROWS_AT_ONCE = 16384
"""Rows that are scored together, in whole images."""

ScoreImages = Callable[[Tensor], Scores]
"""Function that scores images, float32 (B, P, D), such as :meth:`MemoryBank.score`."""


def patches_of_an_image(dump: FeatureDump, patches: int | None) -> int:
    """Find the number of patches per image of the dump.

    Args:
        dump: The features.
        patches: Number of patches per image in (N, D) files; default: a file is one image.

    Raises:
        InputError: Files disagree with each other or with ``patches``, or N is no multiple of ``patches``.
    """
    first = dump.sources[0]
    expected = patches if patches is not None else first.patches or first.rows
    if expected < 1:
        raise InputError(f"patches: expected at least 1, found {expected}")
    for source in dump.sources:
        found = source.patches or (expected if patches is not None else source.rows)
        if found != expected:
            raise InputError(f"{source.file}: expected images of {expected} patches, found {found}")
        if source.rows % expected:
            expected_rows = f"expected a multiple of {expected} rows, which are the patches of an image"
            raise InputError(f"{source.file}: {expected_rows}, found {source.rows}")
    return expected


def in_images(dump: FeatureDump, per_image: int) -> FeatureDump:
    """Return a dump whose (N, D) files are known to be images of ``per_image`` patches."""
    return FeatureDump([replace(part, source=cut_in_images(part.source, per_image)) for part in dump.parts])


def cut_in_images(source: Source, per_image: int) -> Source:
    """Return a (N, D) source cut into images."""
    if source.patches is not None:
        return source
    cut = source._replace(patches=per_image)
    if source.names is None or cut.images == 1:
        return cut
    return cut._replace(names=tuple(f"{source.names[0]}[{number}]" for number in range(cut.images)))


def score_dump(
    score: ScoreImages,
    dump: FeatureDump,
    per_image: int,
    *,
    left_out: dict[str, str] | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> tuple[list[Part], Scores]:
    """Score all images of a dump; in memory are a few images' features and the scores.

    Args:
        score: What scores a few images.
        dump: The features, of :func:`in_images`.
        per_image: Number of patches per image.
        left_out: Dictionary that takes up why a file's rows cannot be read or used, by file; such a file is left out as
            a whole. Default: the first one is an error.
        report: Function that is told the number of images that are done.

    Returns:
        The parts that were scored, and the scores of their images in order, on the CPU.

    Raises:
        InputError: A file cannot be used, or none of them can; the reason is the first one's.
    """
    parts: list[Part] = []
    found: list[Scores] = []
    done = 0
    for part in dump.parts:
        try:
            own = []
            for rows in blocks_of_images(part, per_image):
                own.append(score(rows.view(-1, per_image, dump.dim)).cpu())
                report(done + sum(len(one.image) for one in own))
        except _Unusable as error:
            if left_out is None:
                raise InputError(str(error)) from error
            left_out[part.label] = str(error)
            continue
        done += part.source.images
        parts.append(part)
        found += own
    if not parts:
        raise NoneUsableError("", left_out or {})
    return parts, Scores.of(found)


class _Unusable(InputError):
    """A file's rows cannot be read or used."""


def blocks_of_images(part: Part, per_image: int) -> Iterator[Tensor]:
    """Yield the rows of a few images at a time.

    Raises:
        InputError: They cannot be read, or one is not finite.
    """
    step = max(1, ROWS_AT_ONCE // per_image) * per_image
    for first in range(0, part.source.rows, step):
        try:
            rows = part.read(first, min(step, part.source.rows - first))
            part.check(rows, first.__add__)
        except InputError as error:
            raise _Unusable(error) from error
        yield rows
