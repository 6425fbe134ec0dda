"""RGB extractors through timm: patch tokens of vision transformers, averaged maps of convolutional networks."""

from __future__ import annotations

import inspect
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.former import formerly
from mmad_bank._internal.precision import ComputeDtype, check_compute_dtype
from mmad_bank._internal.progress import announce
from mmad_bank._internal.state_dicts import load_matching, read_torch
from mmad_bank._internal.weights import cached_file, find, megabytes
from mmad_bank.errors import FormatError, InputError, MissingExtraError
from mmad_bank.features.runtimes import Frozen

DEFAULT_MODEL = "vit_base_patch8_224.dino"
HOW_WITHOUT_DOWNLOAD = (
    "give a file that you have (--set rgb_weights=PATH of fit, --rgb-weights PATH of extract, checkpoint=PATH here), or"
    " take the bundled extractor (--bundled, rgb='efficientnet_lite0'); docs/reference/weights.md names all files"
)
"""ViT-B/8 trained by DINO: M3DM's and CFM's RGB extractor."""


class RGBExtractor(Frozen):
    """Patch features of one or more layers of any timm model, frozen.

    Vision transformers: the patch tokens after the chosen blocks, each through the final norm (M3DM, section 4.1: the
    last one's), which SAM's encoder has in its neck: two convolutions with norms, to 256 values. Prefix tokens (class,
    registers) are left out. Other networks, with stages of different strides: the maps of the chosen stages, averaged
    over 3×3 cells and brought to the first one's grid (PatchCore, Roth et al. 2022, section 3.1). Several layers are
    concatenated. Layers after the last chosen one are cut off, so that they cost no time and no memory.

    Weights come from ``checkpoint``; or, with ``download=True``, from where timm gets them; else they are random, for
    tests and timings.

    Args:
        model: Name of a model in timm, with its training's tag: ``vit_base_patch8_224.dino``,
            ``vit_base_patch14_dinov2.lvd142m``, ``wide_resnet50_2.tv_in1k``, …
        checkpoint: File of the model's weights (torch or safetensors), in timm's names or in those of the publication
            if timm knows how to convert them.
        layers: Numbers of a transformer's blocks, or of stages, counted from 0 and rising. Default: a transformer's
            last block; the stages of other networks with strides 8 and 16 (WideResNet's layers 2 and 3).
        image_size: Pixels per side of the images; a multiple of the patch size. Position embeddings are resampled:
            DINOv2 (patches of 14 pixels, trained at 518) has 16×16 patches at 224 and 37×37 at 518.
        grid: (h, w) that the features are brought to: averaged down, interpolated bilinearly up. None: their own.
        download: Whether timm may fetch the weights.
        compute_dtype: ``"bfloat16"`` runs the products in bfloat16; features are float32 either way.
        plain: Whether maps of convolutional networks are taken as they are, without the average over 3×3 cells. Layers
            of networks of the EfficientNet family count all their stages of blocks then, also those that end at the
            stride of the next one, and the default is the last but one.

    Raises:
        InputError: Model or layers are unknown, or the weights cannot be had; the message says how to give a file.
        FormatError: ``checkpoint`` is for another architecture or no checkpoint.
        MissingExtraError: timm is not installed.

    Example:
        >>> extractor = RGBExtractor("vit_tiny_patch16_224", layers=(3, 5))
        >>> extractor(torch.zeros(1, 3, 224, 224)).shape, extractor.grid, extractor.dim
        (torch.Size([1, 196, 384]), (14, 14), 384)
    """

    mean: Tensor
    std: Tensor

    @formerly(precision="compute_dtype")
    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        layers: Sequence[int] | None = None,
        image_size: int = 224,
        grid: tuple[int, int] | None = None,
        download: bool = False,
        compute_dtype: ComputeDtype = "float32",
        plain: bool = False,
    ) -> None:
        super().__init__()
        check_compute_dtype(compute_dtype)
        if grid is not None and min(grid) < 1:
            raise InputError(f"grid: expected at least one patch along each side, found {tuple(grid)}")
        self.model, self.image_size, self.compute_dtype = model, int(image_size), compute_dtype
        network = _create(model, self.image_size, download and checkpoint is None)
        self.plain, self._every_stage = plain, plain and _names_every_stage(network)
        stages = _stages_of(network) if self._every_stage else list(network.feature_info)
        reductions = [info["reduction"] for info in stages]
        one_grid = hasattr(network, "num_prefix_tokens") or len(set(reductions)) == 1  # SAM's encoder has no prefix
        self.is_transformer = hasattr(network, "blocks") and one_grid
        if self.is_transformer and self.image_size % reductions[0]:
            raise InputError(f"image_size: expected a multiple of {model}'s {reductions[0]}, found {image_size}")
        self.layers = self._choose(layers, reductions)
        # Converted for the whole network: what is in a file may concern layers that are cut off.
        weights = None if checkpoint is None else _read(network, checkpoint)
        network.prune_intermediate_layers(prune_norm=not self.is_transformer, prune_head=True, **self._taken)
        if not self.is_transformer:
            _check_size(network, model, self.image_size)
        if checkpoint is not None and weights is not None:
            load_matching(network, weights, checkpoint)
        self.network = network
        self.dim = sum(_width(stages[layer], self.is_transformer) for layer in self.layers)
        self._own_grid = (math.ceil(self.image_size / reductions[self.layers[0]]),) * 2
        self.grid = self._own_grid if grid is None else (int(grid[0]), int(grid[1]))
        config = network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def transformer(self) -> nn.Module | None:
        """The network, if it is a transformer: what a fine-tuning trains."""
        return self.network if self.is_transformer else None

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of the transformer, those that are used; none of another network."""
        return list(self.network.blocks) if self.is_transformer else []

    @property
    def name(self) -> str:
        """Name of the extractor, as a bank file records it."""
        plain = " plain" if self.plain else ""
        return f"{self.model} layers {','.join(map(str, self.layers))}{plain} grid {self.grid[0]}x{self.grid[1]}"

    def train(self, mode: bool = True) -> RGBExtractor:
        """Stay in evaluation mode: the extractor is frozen, also as a part of a network that is trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Extract patch features.

        Args:
            images: (B, 3, S, S), RGB, uint8 or floating point in [0, 1], S = ``image_size``. Mean and standard
                deviation of the model's training are applied here.

        Returns:
            Features (B, h·w, D), float32, patches in row-major order of the grid.

        Raises:
            InputError: The shape, the type or the range is another one.
        """
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """Extract as :meth:`forward` does, with gradients for weights that want them."""
        return self.run(self.normalized(images))

    def normalized(self, images: Tensor) -> Tensor:
        """Check the images and bring them to the range that the network was trained on, see :meth:`forward`."""
        return (self._in_unit_range(images) - self.mean) / self.std

    def body(self, x: Tensor) -> Tensor:
        """Describe normalized images (B, 3, S, S), see :meth:`forward`."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.compute_dtype == "bfloat16"):
            maps = self.network.forward_intermediates(
                x, intermediates_only=True, stop_early=True, output_fmt="NCHW", norm=self.is_transformer, **self._taken
            )
        features = torch.cat([self._to_grid(one.float()) for one in maps], dim=1)
        return features.flatten(2).transpose(1, 2).contiguous()

    @property
    def _taken(self) -> dict[str, Any]:
        """The layers in timm's words; where it counts every stage of blocks, the stem is its number 0."""
        if self._every_stage:
            return {"indices": [layer + 1 for layer in self.layers], "extra_blocks": True}
        return {"indices": list(self.layers)}

    def _to_grid(self, maps: Tensor) -> Tensor:
        if not (self.is_transformer or self.plain):
            # Border cells average what there is, so that zeros do not set the image's edge apart.
            maps = F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False)
        for grid in (self._own_grid, self.grid):
            size = (min(maps.shape[2], grid[0]), min(maps.shape[3], grid[1]))
            maps = F.adaptive_avg_pool2d(maps, size)
            if size != grid:
                maps = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
        return maps

    def _choose(self, layers: Sequence[int] | None, reductions: list[int]) -> tuple[int, ...]:
        if layers is None and self._every_stage:
            return (max(len(reductions) - 2, 0),)
        if layers is None:
            last = (len(reductions) - 1,)
            layers = last if self.is_transformer else [i for i, stride in enumerate(reductions) if stride in (8, 16)]
            return tuple(layers) or last
        chosen = tuple(layers)
        if not chosen or sorted(set(chosen)) != list(chosen) or not set(chosen) <= {*range(len(reductions))}:
            raise InputError(
                f"layers: expected rising numbers from 0 to {len(reductions) - 1}, as {self.model} has, found {chosen}"
            )
        return chosen

    def _in_unit_range(self, images: Tensor) -> Tensor:
        side = self.image_size
        if images.ndim != 4 or images.shape[0] == 0 or images.shape[1:] != (3, side, side):
            raise InputError(f"images: expected (B, 3, {side}, {side}), found {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            return images.float() / 255.0
        if not images.is_floating_point():
            raise InputError(f"images: expected uint8 or floating point in [0, 1], found {images.dtype}")
        low, high = (float(value) for value in torch.aminmax(images))
        if not (low >= 0.0 and high <= 1.0):
            raise InputError(f"images: expected floating-point values in [0, 1], found {low:g} to {high:g}")
        return images.float()


_OF_ANY_SIZE = {"timm.models.vision_transformer_sam"}
"""Networks that resample their position embeddings at every pass; made for another size they fit no checkpoint."""


def _width(info: dict[str, Any], normed: bool) -> int:
    """Return the number of values of a layer's tokens; the neck that is SAM's norm changes it."""
    return int(info.get("num_chs_norm", info["num_chs"]) if normed else info["num_chs"])


def _names_every_stage(network: Any) -> bool:
    """Tell whether timm can give the map behind every stage of blocks, as it can of the EfficientNet family."""
    return "extra_blocks" in inspect.signature(network.forward_intermediates).parameters


def _stages_of(network: Any) -> list[dict[str, Any]]:
    """Describe the map behind every stage of blocks: its stride and its channels.

    timm lists a stage only before the stride changes; those between two listed ones have the stride of the later one.
    """
    listed = [(int(info["stage"]), int(info["reduction"])) for info in network.feature_info]
    return [
        {
            "reduction": next(reduction for stage, reduction in listed if stage >= number),
            "num_chs": blocks[-1].feature_info("bottleneck")["num_chs"],
        }
        for number, blocks in enumerate(network.blocks, 1)
    ]


def _check_size(network: Any, model: str, image_size: int) -> None:
    """Refuse a size of images that a network with windows or stages is not made for: try it, unless it is its own."""
    config = network.pretrained_cfg
    own = config["input_size"][-1]
    if not config.get("fixed_input_size") or image_size == own:
        return
    try:
        with torch.no_grad():
            network.eval().forward_intermediates(torch.zeros(1, 3, image_size, image_size), intermediates_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"image_size: expected {own} or another size that {model} takes, found {image_size} ({reason})"
        ) from error


def _create(model: str, image_size: int, download: bool) -> Any:
    """Make timm's network for one size of image, with fetched or random weights."""
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "multimodal", f"the extractor {model}") from error
    if not timm.is_model(model.split(".", maxsplit=1)[0]):
        raise InputError(f"model: timm {timm.__version__} has no model {model!r}")
    options: dict[str, Any] = {"num_classes": 0, "pretrained": download}
    if download:
        _announce_download(model)
    try:
        with _quiet_hub():
            if timm.models.model_entrypoint(model.split(".", maxsplit=1)[0]).__module__ in _OF_ANY_SIZE:
                return timm.create_model(model, **options)
            try:
                return timm.create_model(model, img_size=image_size, **options)
            except TypeError as error:  # networks without position embeddings take any size
                if "img_size" not in str(error):
                    raise
                return timm.create_model(model, **options)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if download:
            raise InputError(
                f"model: the weights of {model} could not be fetched ({reason}); {HOW_WITHOUT_DOWNLOAD}"
            ) from error
        raise InputError(f"model: timm cannot make {model} of {image_size} pixels ({reason})") from error


def _announce_download(model: str) -> None:
    """Say what is about to be fetched, unless it is in timm's cache."""
    import timm

    if cached_file(model) is not None:
        return
    known, config = find(model), timm.get_pretrained_cfg(model, allow_unregistered=True)
    source = "an unknown place" if config is None else f"huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else (
        config.url or "an unknown place"
    )  # fmt: skip
    size = f", about {megabytes(known.n_bytes)}" if known is not None else ""
    announce(f"downloading the weights of {model} from {source}{size}; to avoid it, {HOW_WITHOUT_DOWNLOAD}")


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's lines about every retry from the terminal; the error at the end says enough."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read(network: Any, checkpoint: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Read a file's weights, converted by the function that the network's module in timm has for them, if any.

    timm's own loading leaves out what does not fit when the classifier is dropped; here everything must be there.
    """
    state = read_torch(checkpoint, optional=("state_dict", "model"))
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            return convert(state, network)
        except Exception as error:
            raise FormatError(f"{checkpoint}: a checkpoint for another architecture ({error})") from error
    return state
