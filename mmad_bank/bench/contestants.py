"""The methods that are measured, not fitted yet, and the images they see: rendered, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from mmad_bank.data import Preprocessing, Sample, preprocess
from mmad_bank.errors import InputError, did_you_mean
from mmad_bank.features.factory import RANDOM
from mmad_bank.methods import Method, method_class
from mmad_bank.methods import names as method_names
from mmad_bank.methods.bank_method import BankMethod
from mmad_bank.synthetic.dataset import render

CATEGORY = "stud_tray"
"""The synthetic part that covers more of its image than the others, about a fifth."""
IMAGES = 244
"""Number of training images of a category (bagel)."""
SMALL_VECTORS = 19_129
"""Number of vectors that 10 % of the patches of these images make on a 28×28 grid."""
QUICK_VECTORS = 300
"""Number of vectors in each bank of tiny networks."""
UNTRAINED: dict[str, Any] = {
    "rgb_weights": RANDOM, "xyz_weights": RANDOM, "uff_weights": RANDOM, "rgb_to_xyz_weights": RANDOM,
    "xyz_to_rgb_weights": RANDOM, "adaptation_steps": 1, "adaptation_batch": 1, "queue_size": 784, "teacher_steps": 1,
    "teacher_images": "own", "student_steps": 1, "sdf_weights": RANDOM, "teacher_epochs": 1, "student_epochs": 1,
}  # fmt: skip
"""Arguments that leave out what training would take, or cut it short, of the methods that have them."""
SIZES: dict[str, Any] = {"group_size": 128}
"""Arguments that all methods which have them share, so that their work is alike."""
_SMALL: dict[str, Any] = {
    "rgb": "efficientnet_lite0", "rgb_layers": (1,), "num_groups": 64, "group_size": 16, "pdn_width": 8, "channels": 16,
    "sdf_width": 16, "map_size": 28, "student_width": 16, "teacher_width": 8,
}  # fmt: skip
_FEW_RATIO = 0.05  # of their patches, in banks whose place others take


def find_methods(text: str) -> list[str]:
    """Read names of methods, joined by commas; capitals and spaces do not count.

    Raises:
        InputError: A name is unknown; all of the unknown ones are named, and those that there are.

    Example:
        >>> find_methods("M3DM, patchcore")
        ['m3dm', 'patchcore']
    """
    known = method_names()
    words = list(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        wrong = ", ".join(f"{word!r}{did_you_mean(word, known)}" for word in unknown) or "none"
        raise InputError(f"methods: expected some of {', '.join(known)}, found {wrong}")
    return words


def samples_of(
    n: int, *, size: int = 224, category: str = CATEGORY, seed: int = 0, recipe: str = "m3dm"
) -> list[Sample]:
    """Make prepared samples, in memory.

    Example:
        >>> samples_of(1)[0].size
        (224, 224)
    """
    return [sample_of(index, size, category, seed, recipe) for index in range(n)]


@lru_cache(maxsize=2 * IMAGES)  # the methods of one run see the same ones
def sample_of(index: int, size: int, category: str, seed: int, recipe: str) -> Sample:
    """Make the prepared sample of a number; the last few hundred are kept."""
    scene = render(category, size=512, seed=seed, index=index)
    rgb, xyz = (torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in (scene.rgb, scene.xyz))
    sample = Sample(rgb.float() / 255, xyz, None, category=category, split="train", id=f"bench/{index:03d}")
    return preprocess(sample, Preprocessing.recipe(recipe, size=size))


def samples_for(method: Method, n: int, seed: int = 0) -> list[Sample]:
    """Make samples that are prepared as a method takes them."""
    return samples_of(n, size=method.image_size, seed=seed, recipe=method.preparation)


def new_method(
    name: str, *, settings: Mapping[str, Any] | None = None, small: bool = False, device: str = "cpu",
    compute_dtype: str = "float32",
) -> Method:  # fmt: skip
    """Make a method with random networks and trainings cut short; it is not fitted yet.

    Args:
        name: Name of the method, see :func:`mmad_bank.methods.names`.
        settings: Constructor arguments that differ from :data:`UNTRAINED`, :data:`SIZES` and the method's defaults.
        small: Whether to take tiny networks, to see whether everything runs.
        device: Device that inference runs on.
        compute_dtype: Number type of the networks' products.

    Raises:
        InputError: There is no such method, or an argument is out of its range.
    """
    cls = method_class(name)
    arguments = {**UNTRAINED, **SIZES, **(_SMALL if small else {}), "compute_dtype": compute_dtype, "device": device}
    given = {key: value for key, value in arguments.items() if key in cls.argument_names()} | dict(settings or {})
    if issubclass(cls, BankMethod):
        if "ratio" in (settings or {}):
            raise InputError("ratio: expected the vectors of a bank (vectors, --bank-size) in its place")
        given["ratio"] = _FEW_RATIO
    return cls(**given)
