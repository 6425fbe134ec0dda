"""Pictures that a teacher learns, among them some that come with packages."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.training import generator_at
from mmad_bank.data.preprocessing import resize_bicubic
from mmad_bank.errors import MissingExtraError
from mmad_bank.methods.mdss.student_teacher import ImageFolder, Images

OWN = "own"
_PURPOSE = "the photographs that a teacher learns"
_OF_SCIKIT_LEARN = ("china.jpg", "flower.jpg")
_OF_SCIKIT_IMAGE = (
    "astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "retina", "rocket"
)  # fmt: skip
_VIEWS = 4  # of each picture


class Photographs:
    """Square views of eleven real pictures: two of scikit-learn, nine of scikit-image; buildings, skin, grass, metal.

    Each picture gives four views: seeded places and sides, from the size asked for to the picture's shorter side, so
    that a teacher sees the same picture coarse and fine.

    Args:
        size: Pixels per side of what comes out.

    Raises:
        MissingExtraError: One of the two packages is not installed.

    Example:
        >>> views = Photographs(64)
        >>> len(views), views[0].shape
        (44, torch.Size([3, 64, 64]))
    """

    def __init__(self, size: int) -> None:
        self.size = check_index(size, "size", 1, 2**15, "pixels per side")
        datasets = import_extra("scikit-learn", "sklearn.datasets", _PURPOSE)
        images = import_extra("scikit-image", "skimage.data", _PURPOSE, "demo")
        pictures = [datasets.load_sample_image(name) for name in _OF_SCIKIT_LEARN]
        pictures += [getattr(images, name)() for name in _OF_SCIKIT_IMAGE]
        self._pictures = [one if one.ndim == 3 else np.stack([one] * 3, axis=2) for one in pictures]

    def __len__(self) -> int:
        return _VIEWS * len(self._pictures)

    def __getitem__(self, index: int) -> Tensor:
        """Return a view (3, S, S) in [0, 1], float32."""
        if not 0 <= index < len(self):
            raise IndexError(f"view {index} of {len(self)}")
        picture = self._pictures[index % len(self._pictures)]
        draws = torch.rand(3, generator=generator_at(0, 1, index)).tolist()
        longest = min(picture.shape[:2])
        shortest = min(self.size, longest)
        side = round(shortest + (longest - shortest) * draws[0])
        top, left = (
            int(draw * (length - side + 1)) for draw, length in zip(draws[1:], picture.shape[:2], strict=False)
        )
        view = resize_bicubic(np.ascontiguousarray(picture[top : top + side, left : left + side]), self.size)
        return torch.from_numpy(view.transpose(2, 0, 1).astype(np.float32) / 255)


def teacher_images(choice: str | None, own: Images, size: int) -> Images:
    """Return the pictures of an argument ``teacher_images``.

    Args:
        choice: A folder; ``"own"``; or None: photographs, and the training samples' pictures where a package is missing
            that has photographs, as a warning says then.
        own: The training samples' pictures.
        size: Pixels per side.

    Raises:
        InputError: It is no folder or has no images.
    """
    if choice == OWN:
        return own
    if choice is not None:
        return ImageFolder(choice, size)
    try:
        return Photographs(size)
    except MissingExtraError as error:
        warnings.warn(f"teacher_images: taking the training samples' own pictures, as {error}", stacklevel=2)
        return own
