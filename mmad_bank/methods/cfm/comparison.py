"""Comparison of the observed features with those that the mappings predict (CFM, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmad_bank._internal.former import formerly
from mmad_bank._internal.precision import ComputeDtype
from mmad_bank.methods.cfm.mappings import MODALITIES, CrossmodalMapping, Mode, source_of
from mmad_bank.methods.cfm.pixel_features import PixelFeatures

_CHUNK = {"cpu": 1 << 12}  # pixels mapped at a time
_CHUNK_ELSEWHERE = 1 << 15


@formerly(precision="compute_dtype")
def discrepancies(
    mappings: Mapping[str, CrossmodalMapping],
    image: PixelFeatures,
    mode: Mode = "crossmodal",
    *,
    compute_dtype: ComputeDtype = "float32",
) -> dict[str, Tensor]:
    """Return the maps Ψ of an image by modality (CFM, eq. 3): ‖E/‖E‖ − Ê/‖Ê‖‖ per pixel.

    Args:
        mappings: Mappings, by the modality that they predict.
        image: Features of the image.
        mode: Mode of the mappings, see :func:`make_mappings`.
        compute_dtype: ``"bfloat16"`` runs the mappings' products in bfloat16; what is compared is float32 either way.

    Returns:
        Maps (size²,) float32; 0 where there is no point feature, so that nothing is compared there.
    """
    foreground = image.foreground
    maps = {name: torch.zeros(image.size**2, device=foreground.device) for name in MODALITIES}
    low = torch.autocast(foreground.device.type, torch.bfloat16, enabled=compute_dtype == "bfloat16")
    with torch.no_grad(), low:
        ahead = {name: _input_ahead(one, getattr(image, source_of(name, mode))) for name, one in mappings.items()}
        for pixels, observed, predicted in mapped(mappings, image, foreground, mode, ahead):
            for name, one in predicted.items():
                difference = F.normalize(observed[name], dim=1) - F.normalize(one.float(), dim=1)
                maps[name][pixels] = difference.norm(dim=1)
    return maps


def _input_ahead(mapping: CrossmodalMapping, tokens: Tensor) -> Tensor | None:
    """Apply an input layer's weight to tokens, if it has one.

    Pixels' features are weighted sums of tokens, and the layer is linear: W Σ aᵢ tᵢ + b = Σ aᵢ (W tᵢ) + b. There are
    far fewer tokens than pixels, which saves a third of the mappings' multiplications.
    """
    return (tokens @ mapping.input.weight.T).float() if mapping.architecture == "projection" else None


def mapped(
    mappings: Mapping[str, CrossmodalMapping],
    image: PixelFeatures,
    pixels: Tensor,
    mode: Mode,
    ahead: Mapping[str, Tensor | None] | None = None,
) -> Iterator[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """Yield pixels with their observed and their predicted features, as many at a time as memory should hold.

    ``ahead`` holds the tokens that have gone through the mappings' input layers, see :func:`_input_ahead`.
    """
    if any(mapping.needs_maps for mapping in mappings.values()):
        every = torch.arange(image.size**2, device=pixels.device)
        maps = {name: image.at(name, every) for name in MODALITIES}
        predicted = {
            name: mapping(maps[source_of(name, mode)].view(1, image.size, image.size, -1))[0].flatten(0, 1)[pixels]
            for name, mapping in mappings.items()
        }
        yield pixels, {name: own[pixels] for name, own in maps.items()}, predicted
        return
    for part in pixels.split(_CHUNK.get(pixels.device.type, _CHUNK_ELSEWHERE)):
        observed = {name: image.at(name, part) for name in MODALITIES}
        predicted = {}
        for name, mapping in mappings.items():
            source, tokens = source_of(name, mode), (ahead or {}).get(name)
            if tokens is None:
                predicted[name] = mapping(observed[source])
            else:
                predicted[name] = mapping.after_input(image.at(source, part, tokens) + mapping.input.bias)
        yield part, observed, predicted
