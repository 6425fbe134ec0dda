"""PatchCore (Roth et al. 2022): one memory bank of RGB patch features."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from mmad_bank import scoring
from mmad_bank._internal.argument_names import argument_called
from mmad_bank._internal.precision import NetworkDtype
from mmad_bank._internal.progress import doing
from mmad_bank._internal.resume import Stages
from mmad_bank._internal.state_dicts import load_state, save_state
from mmad_bank.errors import InputError
from mmad_bank.features.factory import BUNDLED_STAGES, make_rgb_extractor
from mmad_bank.features.runtimes import check_int8
from mmad_bank.features.tiles import TiledExtractor, check_tiles, whole_grid
from mmad_bank.methods.base import Samples
from mmad_bank.methods.one_grid_method import OneGridMethod
from mmad_bank.methods.options import Idle, Range, Side, accepts_former_names

_PICTURES = 32
_PIXELS = _PICTURES * 320**2
"""Pictures that show how a network rounds, and the largest number of their pixels."""


@accepts_former_names
@dataclass(kw_only=True, eq=False, repr=False)
class PatchCore(OneGridMethod):
    """Patches of mid-level feature maps, a greedy coreset of the normal ones, and the distance to the nearest.

    Locally aware patch features of WideResNet-50-2 (section 3.1), a coreset of 10 % (section 3.2), the image score
    reweighted by the crowding around the nearest vector (section 3.3). The weights are the published code's:
    torchvision's first ones on ImageNet (``IMAGENET1K_V1``), which timm names ``tv_in1k``.

    Example:
        >>> from mmad_bank.data import open_dataset
        >>> method = PatchCore("efficientnet_lite0")
        >>> method.fit(open_dataset("parts", "bagel", "train"))  # doctest: +SKIP
        >>> method.predict(open_dataset("parts", "bagel", "test")[0]).score  # doctest: +SKIP
        1.84
    """

    name: ClassVar[str] = "patchcore"
    bundled: ClassVar[Mapping[str, Any]] = {"rgb_layers": BUNDLED_STAGES, "image_size": 320, "grid": (40, 40)}
    """Chosen on painted pictures, see benchmarks/README.md, ``bundled``."""

    reweight: scoring.Reweight = "patchcore"

    compute_dtype: NetworkDtype = "float32"  # type: ignore[assignment]  # one more than other methods take
    """Number type of the network's matrix products; what comes out of them is float32 either way. int8 is the fastest
    where runtime=openvino runs a network of convolutions: a fit measures on some training images how it rounds."""

    tiles: Side | None = None
    """Side of tiles in pixels of the prepared image, which the network sees one by one, as large as it was trained on;
    for images of high resolution, with an ``image_size`` to match. The grid is that of a tile then. None shows the
    network the whole image."""

    tile_overlap: Annotated[int, Range(0, 2**14)] = 32
    """Pixels that neighboring tiles share, over which their features are blended."""

    def _idle(self) -> Idle:
        yield self.tiles is None, "tile_overlap", "tiles=none"

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_int8(self.compute_dtype, self.runtime, str(self.device).partition(":")[0])
        if self.tiles is not None:
            check_tiles(self.grid, self.tiles, self.tile_overlap, self.image_size)

    def _grid(self, bank: str) -> tuple[int, int]:
        own = super()._grid(bank)
        return own if self.tiles is None else whole_grid(own, self.tiles, self.image_size)

    def _extraction_facts(self) -> dict[str, Any]:
        tiles = {} if self.tiles is None else {"tiles": [self.tiles, self.tile_overlap]}
        return {**super()._extraction_facts(), **tiles}

    def _networks_needed(self) -> set[str]:
        return {"rgb"}

    def _networks(self, weights: str | None) -> dict[str, nn.Module]:
        if self.tiles is None:
            return {"rgb": self._rgb_network(weights)}
        with argument_called(layers="rgb_layers"):
            network = make_rgb_extractor(
                self.rgb, weights or self.rgb_weights, layers=self.rgb_layers, grid=self.grid, image_size=self.tiles,
                compute_dtype=self.compute_dtype, runtime=self.runtime,
            )  # fmt: skip
        return {"rgb": TiledExtractor(network, self.image_size, self.tiles, self.tile_overlap)}

    def _ready_extractors(self, dataset: Samples, stages: Stages) -> None:
        """Measure how the network rounds, on training images from all over the data set, or take what was measured."""
        if self.compute_dtype != "int8":
            return
        network: Any = self.extractors_.networks["rgb"]

        def write(path: Path) -> None:
            with doing("measuring how the network rounds to 8 bits"):
                network.measure_int8(torch.stack(self._some_pictures(dataset)))
            save_state(network.int8, path)

        load_state(network.int8, stages.run("int8.safetensors", write))

    def _some_pictures(self, dataset: Samples) -> list[Tensor]:
        """Return prepared normal training pictures, as many as the layers' maps of all of them leave room for."""
        wanted = max(1, min(_PICTURES, _PIXELS // (self.tiles or self.image_size) ** 2, len(dataset)))
        first = [number * len(dataset) // wanted for number in range(wanted)]
        found: list[Tensor] = []
        for number in [*first, *(set(range(len(dataset))) - set(first))]:  # others in the place of what is of no use
            with suppress(InputError):
                sample = self.prepare_for_training(dataset[number])
                if not sample.label and sample.rgb is not None:
                    found.append(sample.rgb)
            if len(found) == wanted:
                break
        return found

    def _bank_names(self) -> tuple[str, ...]:
        return ("rgb",)
