"""Convolutions in 8-bit integers: what they need to know of normal pictures, and a network that computes so.

Post-training quantization as OpenVINO's kernels take it: a layer's input is rounded to 255 steps over the range that
normal pictures gave it, each output channel's weights to 255 steps over their own. Rounding shifts the means of the
channels, which adds up from layer to layer; a correction of each channel's bias takes the shift away, measured with the
layers before it rounded already (Nagel et al. 2019, Data-Free Quantization, section 4.2, with pictures). Ranges and
corrections are two tensors: a saved model holds them beside the weights, and nothing that runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmad_bank.errors import InputError

_AT_ONCE = 4
_TINY = 1e-12  # a step that divides, of a layer or channel of zeros


class Int8Scales(nn.Module):
    """Ranges of the convolutions' inputs and corrections of their biases, in the order of a network's modules.

    Attributes:
        ranges: (L, 2) float32, smallest and largest value of each layer's input; NaN until they are measured.
        corrections: (C,) float32, what each layer's channels are shifted by, one layer after the other.
    """

    ranges: Tensor
    corrections: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        layers = list(convolutions(network))
        self.register_buffer("ranges", torch.full((len(layers), 2), torch.nan, dtype=torch.float32))
        channels = sum(layer.out_channels for layer in layers)
        self.register_buffer("corrections", torch.zeros(channels, dtype=torch.float32))

    def check(self) -> None:
        """Refuse ranges that were not measured.

        Raises:
            InputError: There is one.
        """
        if not bool(self.ranges.isfinite().all() & self.corrections.isfinite().all()):
            raise InputError("compute_dtype: expected a network whose ranges a fit has measured for int8, found none")

    def by_layer(self, network: nn.Module) -> list[tuple[nn.Conv2d, Tensor]]:
        """Return the convolutions of a network like that which was measured, each with its channels' corrections."""
        layers = list(convolutions(network))
        return list(zip(layers, self.corrections.split([layer.out_channels for layer in layers]), strict=True))

    @torch.no_grad()
    def measure(self, network: Any, x: Tensor) -> None:
        """Measure a network's ranges and corrections.

        Args:
            network: The network, see :class:`mmad_bank.features.runtimes.Frozen`; its weights stay as they are.
            x: Normalized images (B, 3, H, W), as :meth:`~mmad_bank.features.runtimes.Frozen.body` takes them.
        """
        seen = _inputs_and_outputs(network, x)
        self.ranges.copy_(torch.stack([torch.stack([low, high]) for low, high, _ in seen]))
        self.corrections.zero_()
        rounded = in_int8(network, self)
        for (layer, own), (_, _, mean) in zip(self.by_layer(rounded), seen, strict=True):
            # The layers run in their order: what this one sees has been corrected.
            layer.register_forward_hook(partial(_shift_to, mean, own))
        rounded.body(x)


def _shift_to(mean: Tensor, into: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...], found: Tensor) -> Tensor:
    """Shift a layer's output (B, C, H, W) to the means (C,) that it should have, and note by what."""
    del layer, inputs
    into.copy_(mean - found.mean(dim=(0, 2, 3)))
    return found + into[:, None, None]


def convolutions(network: nn.Module) -> Iterator[nn.Conv2d]:
    """Yield the convolutions of a network, in the order of its modules."""
    yield from (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))


def _inputs_and_outputs(network: Any, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the smallest and largest value of each convolution's input, and the means of its output's channels."""
    layers = list(convolutions(network))
    seen: dict[nn.Module, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in layers}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], found: Tensor) -> None:
        low, high = torch.aminmax(inputs[0])
        seen[layer].append((low, high, found.sum(dim=(0, 2, 3)) / (found.shape[2] * found.shape[3] * len(x))))

    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        for first in range(0, len(x), _AT_ONCE):
            network.body(x[first : first + _AT_ONCE])
    finally:
        for hook in hooks:
            hook.remove()
    columns = [tuple(map(torch.stack, zip(*seen[layer], strict=True))) for layer in layers]
    return [(low.min(), high.max(), mean.sum(dim=0)) for low, high, mean in columns]


class _RoundedWeights(nn.Module):
    """Rounds each output channel's weights to 255 steps."""

    step: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("step", (weight.abs().flatten(1).amax(dim=1) / 127).clamp(min=_TINY))
        self.register_buffer("zero", torch.zeros(len(weight), dtype=torch.int32))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.fake_quantize_per_channel_affine(weight, self.step, self.zero, 0, -127, 127)


class _RoundedInput:
    """Rounds a layer's input to 255 steps: from 0 where nothing is below it, else the same on both sides of it."""

    def __init__(self, low: float, high: float) -> None:
        self.least, self.most = (0, 255) if low >= 0 else (-128, 127)
        self.step = max(high / self.most, 0.0 if low >= 0 else low / self.least, _TINY)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del layer
        first = torch.fake_quantize_per_tensor_affine(inputs[0], self.step, 0, self.least, self.most)
        return (first, *inputs[1:])


def in_int8(network: Any, scales: Int8Scales) -> Any:
    """Return a copy of a network whose convolutions round as 8-bit integers do.

    By PyTorch it computes in float32 on rounded values, which says what comes out; OpenVINO reads the rounding and
    computes in integers.

    Raises:
        InputError: The scales were not measured.
    """
    scales.check()
    rounded = copy.deepcopy(network)
    for (layer, shift), (low, high) in zip(scales.by_layer(rounded), scales.ranges.tolist(), strict=True):
        layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias + shift, requires_grad=False)
        parametrize.register_parametrization(layer, "weight", _RoundedWeights(layer.weight.detach()))
        layer.register_forward_pre_hook(_RoundedInput(low, high))
    return rounded
