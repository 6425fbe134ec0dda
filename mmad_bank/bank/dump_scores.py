"""The images of a dump, scored a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from mmad_bank._internal.checks import naming_long_row
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


class Block(NamedTuple):
    """A few images of a dump that are scored together."""

    part: int
    """Number of the part of the dump."""
    first: int
    """The first of the part's rows."""
    rows: int


Scored = Scores | InputError | None
"""A block's scores; why its rows cannot be read or used; or nothing, of a part that is left out already."""


def blocks_of(dump: FeatureDump, per_image: int) -> list[Block]:
    """Return the blocks of a dump of :func:`in_images`, in order."""
    step = max(1, ROWS_AT_ONCE // per_image) * per_image
    return [
        Block(number, first, min(step, part.source.rows - first))
        for number, part in enumerate(dump.parts)
        for first in range(0, part.source.rows, step)
    ]


def score_block(score: ScoreImages, dump: FeatureDump, per_image: int, block: Block) -> Scores | InputError:
    """Return the scores of a block's images on the CPU, or why its rows cannot be read or used."""
    part = dump.parts[block.part]
    try:
        rows = _rows_of(part, block.first, block.rows)
        with naming_long_row(rows, "queries", part.label, lambda row: part.source.place(block.first + row), _Unusable):
            return score(rows.view(-1, per_image, dump.dim)).cpu()
    except _Unusable as error:
        return error


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

    def scored() -> Iterator[Scored]:
        unusable = -1
        for block in blocks_of(dump, per_image):
            found = None if block.part == unusable else score_block(score, dump, per_image, block)
            unusable = block.part if isinstance(found, InputError) else unusable
            yield found

    return gather_scores(dump, per_image, scored(), left_out=left_out, report=report)


def gather_scores(
    dump: FeatureDump,
    per_image: int,
    scored: Iterable[Scored],
    *,
    left_out: dict[str, str] | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> tuple[list[Part], Scores]:
    """Put the scores of a dump's blocks together, wherever they were computed.

    Args:
        dump: As for :func:`score_dump`, and so are the others.
        per_image: Number of patches per image.
        scored: What is known of each of :func:`blocks_of`, in order.
        left_out: Dictionary that takes up why files cannot be used.
        report: Function that is told the number of images that are done.
    """
    own: dict[int, list[Scores]] = {}
    unusable: dict[int, InputError] = {}
    done = 0
    for block, found in zip(blocks_of(dump, per_image), scored, strict=True):
        if isinstance(found, InputError) and block.part not in unusable:
            if left_out is None:
                raise InputError(str(found)) from found
            unusable[block.part] = found
            left_out[dump.parts[block.part].label] = str(found)
            done -= sum(len(one.image) for one in own.pop(block.part, []))
        elif isinstance(found, Scores) and block.part not in unusable:
            own.setdefault(block.part, []).append(found)
            done += len(found.image)
            report(done)
    if not own:
        raise NoneUsableError("", left_out or {})
    return [dump.parts[part] for part in own], Scores.of([one for scores in own.values() for one in scores])


class _Unusable(InputError):
    """A file's rows cannot be read or used."""


def blocks_of_images(part: Part, per_image: int) -> Iterator[Tensor]:
    """Yield the rows of a few images at a time.

    Raises:
        InputError: They cannot be read, or one is not finite.
    """
    step = max(1, ROWS_AT_ONCE // per_image) * per_image
    for first in range(0, part.source.rows, step):
        yield _rows_of(part, first, min(step, part.source.rows - first))


def _rows_of(part: Part, first: int, rows: int) -> Tensor:
    try:
        found = part.read(first, rows)
        part.check(found, first.__add__)
    except InputError as error:
        raise _Unusable(error) from error
    return found
