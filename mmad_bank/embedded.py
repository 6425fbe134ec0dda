"""The embedded defaults: methods with extractors that need no download from outside the package index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmad_bank.methods.base import Method

EMBEDDED: dict[str, Any] = {"rgb": "efficientnet_lite0", "rgb_weights": "pretrained", "xyz": "fpfh"}
"""Constructor arguments; a method takes those that it has, and adds its own (:attr:`Method.embedded`)."""


def embedded_arguments(method: type[Method]) -> dict[str, Any]:
    """Return the embedded defaults that a method's constructor takes.

    Example:
        >>> from mmad_bank.methods import PatchCore
        >>> embedded_arguments(PatchCore)
        {'rgb': 'efficientnet_lite0', 'rgb_weights': 'pretrained', 'rgb_layers': (1, 2, 4)}
    """
    names = method.argument_names()
    return {**{name: value for name, value in EMBEDDED.items() if name in names}, **method.embedded}
