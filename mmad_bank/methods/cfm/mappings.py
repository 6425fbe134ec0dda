"""Crossmodal feature mapping (Costanzino et al. 2024, CFM): features of one modality predicted from the other's.

The mappings work on maps of the image's size. A map of 224×224 Point-MAE features takes 231 MB an image, so maps never
exist as a whole: what is kept are the tokens they are interpolated from, a fiftieth of that, and
:class:`PixelFeatures` makes the features of those pixels that are asked for. Bilinear enlargement and the alignment of
point features are both weighted sums of a few tokens a pixel.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.checks import check_index
from mmad_bank._internal.former import formerly
from mmad_bank._internal.precision import ComputeDtype
from mmad_bank._internal.state_dicts import load_matching, read_torch
from mmad_bank._internal.training import check_rate, generator_at, sample_order, seeded, train
from mmad_bank.errors import InputError
from mmad_bank.features.point_alignment import pooling_matrix

Architecture = Literal["projection", "encoder_decoder", "convolutional"]
Mode = Literal["crossmodal", "intramodal"]

MODALITIES = ("rgb", "xyz")
_CHUNK = {"cpu": 1 << 12}  # pixels mapped at a time
_CHUNK_ELSEWHERE = 1 << 15


class CrossmodalMapping(nn.Module):
    """Predicts the features of one modality from those of the other, pixel by pixel (CFM, section 3.2, eq. 1).

    The architectures of the supplement, section B:

    - ``"projection"``, the paper's own and the one that is published: three linear layers, GELU after the first two;
      the hidden width is the mean of input and output, 960 for 768 and 1152;
    - ``"encoder_decoder"``: five linear layers, GELU after all but the last; 768 is mapped over 384, 192, 192 and 384
      to 1152;
    - ``"convolutional"``: two 3×3 convolutions, 2×2 max-pooling, a 3×3 convolution and a 2×2 transposed convolution,
      ReLU after all but the last; all but the last keep the input's channels. It needs whole maps with even sides.

    Args:
        in_dim: length of a given feature.
        out_dim: length of a predicted feature.
        architecture: one of the above.
        hidden_dim: width of the hidden layers of ``"projection"``, if it is not the mean.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> mapping = CrossmodalMapping(768, 1152)
        >>> mapping(torch.zeros(5, 768)).shape, mapping.projection.out_features
        (torch.Size([5, 1152]), 960)
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, architecture: Architecture = "projection", hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        self.in_dim = check_index(in_dim, "in_dim", 1, 2**20, "length of a feature")
        self.out_dim = check_index(out_dim, "out_dim", 1, 2**20, "length of a feature")
        if architecture not in get_args(Architecture):
            raise InputError(
                f"architecture: expected one of {', '.join(get_args(Architecture))}, found {architecture!r}"
            )
        self.architecture = architecture
        if architecture == "projection":
            hidden = (in_dim + out_dim) // 2 if hidden_dim is None else hidden_dim
            self.input = nn.Linear(in_dim, hidden)
            self.projection = nn.Linear(hidden, hidden)
            self.output = nn.Linear(hidden, out_dim)
        elif architecture == "encoder_decoder":
            half, quarter = max(1, in_dim // 2), max(1, in_dim // 4)
            widths = (in_dim, half, quarter, quarter, half, out_dim)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        else:
            self.encode = nn.Sequential(
                nn.Conv2d(in_dim, in_dim, 3, padding=1), nn.ReLU(), nn.Conv2d(in_dim, in_dim, 3, padding=1), nn.ReLU(),
                nn.MaxPool2d(2),
            )  # fmt: skip
            self.decode = nn.Sequential(
                nn.Conv2d(in_dim, in_dim, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(in_dim, out_dim, 2, 2)
            )

    @property
    def needs_maps(self) -> bool:
        """Whether it takes whole maps; else features are mapped one by one."""
        return self.architecture == "convolutional"

    def load_checkpoint(self, path: str | os.PathLike[str]) -> CrossmodalMapping:
        """Load a state dict: CFM's published ones are plain and hold ``input.*``, ``projection.*`` and ``output.*``.

        Raises:
            InputError: There is no such file.
            FormatError: It is no checkpoint, or of another architecture or size.
        """
        load_matching(self, read_torch(path), path)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map features (..., in_dim) to (..., out_dim); the convolutional architecture takes maps (B, H, W, in_dim)."""
        if x.shape[-1] != self.in_dim:
            raise InputError(f"x: expected (..., {self.in_dim}), found {tuple(x.shape)}")
        if self.architecture == "projection":
            return self.after_input(self.input(x))
        if self.architecture == "encoder_decoder":
            for layer in self.layers[:-1]:
                x = F.gelu(layer(x))
            return self.layers[-1](x)
        if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
            raise InputError(f"x: expected maps (B, H, W, {self.in_dim}) with even sides, found {tuple(x.shape)}")
        return self.decode(self.encode(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def after_input(self, hidden: Tensor) -> Tensor:
        """Go on behind the input layer of ``"projection"``: (..., hidden_dim) to (..., out_dim)."""
        return self.output(F.gelu(self.projection(F.gelu(hidden))))


def make_mappings(
    dims: Mapping[str, int], *, architecture: Architecture = "projection", mode: Mode = "crossmodal"
) -> dict[str, CrossmodalMapping]:
    """Make the two mappings, each under the modality that it predicts.

    Args:
        dims: length of a feature of ``"rgb"`` and of ``"xyz"``.
        architecture: see :class:`CrossmodalMapping`.
        mode: ``"intramodal"`` predicts a modality from itself, the ablation of the paper's table 7: the input layer
            alone differs.

    Example:
        >>> make_mappings({"rgb": 768, "xyz": 1152})["rgb"].in_dim
        1152
    """
    hidden = sum(dims[name] for name in MODALITIES) // 2
    return {
        name: CrossmodalMapping(
            dims[source_of(name, mode)], dims[name], architecture=architecture,
            hidden_dim=hidden if architecture == "projection" else None,
        )
        for name in MODALITIES
    }  # fmt: skip


def source_of(modality: str, mode: Mode) -> str:
    """Name the modality that another one is predicted from."""
    if mode not in get_args(Mode):
        raise InputError(f"mode: expected one of {', '.join(get_args(Mode))}, found {mode!r}")
    return modality if mode == "intramodal" else {"rgb": "xyz", "xyz": "rgb"}[modality]


# Features of pixels.


class PixelFeatures:
    """The features of an image's pixels in both modalities, made when they are asked for.

    RGB features are the tokens, enlarged bilinearly. Point features are those of the three nearest groups of every
    measured point, weighted, put on the points' pixels, averaged over 3×3 pixels without padding and brought to the
    map's size by adaptive pooling (CFM, section 3.1, as published). Without ``groups`` they are given as a whole map.

    Args:
        rgb: (h·w, D) tokens.
        xyz: (G, D') tokens of groups, or the map (size², D').
        grid: (h, w) of the RGB tokens.
        size: pixels a side of the maps.
        groups: (H, W, k) the groups that make up each pixel's point.
        weights: (H, W, k) theirs; zero where nothing is measured.

    Example:
        >>> image = PixelFeatures(torch.rand(4, 8), torch.rand(16, 5), (2, 2), 4)
        >>> image.at("rgb", torch.tensor([0, 15])).shape, len(image.foreground)
        (torch.Size([2, 8]), 16)
    """

    def __init__(
        self, rgb: Tensor, xyz: Tensor, grid: tuple[int, int], size: int,
        groups: Tensor | None = None, weights: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.rgb, self.xyz, self.grid, self.size = rgb, xyz, grid, size
        self.groups, self.weights = groups, weights
        if len(rgb) != grid[0] * grid[1]:
            raise InputError(f"rgb: expected {grid[0]} x {grid[1]} tokens, found {len(rgb)}")
        if groups is None and len(xyz) != size * size:
            raise InputError(f"xyz: expected a map of {size} x {size} pixels, found {len(xyz)} rows")

    @property
    def foreground(self) -> Tensor:
        """The pixels (n,) int64 that have a point feature; row by row."""
        if self.weights is None:
            return (self.xyz != 0).any(dim=1).nonzero()[:, 0]
        measured = (self.weights > 0).any(dim=2).float()
        rows, columns = (pooling_matrix(side, self.size).to(measured) for side in measured.shape)
        return (rows @ measured @ columns.T).flatten().nonzero()[:, 0]

    def at(self, modality: str, pixels: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the features (n, D) of pixels, numbered row by row over the map.

        Other ``tokens`` may take the place of the modality's own: what is linear can be done to them before.
        """
        tokens = getattr(self, modality) if tokens is None else tokens
        if modality == "rgb":
            return _sum_of(tokens, *_places(pixels, self.size, self.grid, "bilinear"))
        if self.groups is None or self.weights is None:
            return tokens[pixels]
        shape = (self.groups.shape[0], self.groups.shape[1])
        places, shares = _places(pixels, self.size, shape, "pooled")
        groups = self.groups.flatten(0, 1)[places].flatten(1)
        weights = self.weights.flatten(0, 1)[places] * shares[..., None]
        return _sum_of(tokens, groups, weights.flatten(1))


def _sum_of(tokens: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sums (n, D) of the tokens (T, D) at places (n, e)."""
    return F.embedding_bag(places, tokens, per_sample_weights=weights, mode="sum")


def _places(pixels: Tensor, size: int, grid: tuple[int, int], kind: str) -> tuple[Tensor, Tensor]:
    """Return the cells of a grid (n, e) that the pixels of a map are weighted sums of, and the weights."""
    by_row, rows = (table.to(pixels.device)[pixels // size] for table in _entries(grid[0], size, kind))
    by_column, columns = (table.to(pixels.device)[pixels % size] for table in _entries(grid[1], size, kind))
    cells = by_row[:, :, None] * grid[1] + by_column[:, None, :]
    return cells.flatten(1), (rows[:, :, None] * columns[:, None, :]).flatten(1)


@lru_cache(maxsize=16)
def _entries(n_in: int, n_out: int, kind: str) -> tuple[Tensor, Tensor]:
    """Return columns and values (n_out, most) of the entries of a resampling matrix, padded with values of zero."""
    if kind == "pooled":
        matrix = pooling_matrix(n_in, n_out)
    else:
        matrix = F.interpolate(torch.eye(n_in)[None], size=n_out, mode="linear", align_corners=False)[0].T
    values, columns = matrix.topk(int((matrix != 0).sum(1).max()), dim=1)
    return columns, values


# Comparing what is observed with what is predicted.


@formerly(precision="compute_dtype")
def discrepancies(
    mappings: Mapping[str, CrossmodalMapping],
    image: PixelFeatures,
    mode: Mode = "crossmodal",
    *,
    compute_dtype: ComputeDtype = "float32",
) -> dict[str, Tensor]:
    """Return the maps Ψ of an image by modality (CFM, eq. 3): ‖E/‖E‖ − Ê/‖Ê‖‖ a pixel.

    Args:
        mappings: by the modality that they predict.
        image: its features.
        mode: see :func:`make_mappings`.
        compute_dtype: ``"bfloat16"`` runs the mappings' products in bfloat16; what is compared is float32 either way.

    Returns:
        float32 (size²,) each; 0 where there is no point feature, so that nothing is compared there.
    """
    foreground = image.foreground
    maps = {name: torch.zeros(image.size**2, device=foreground.device) for name in MODALITIES}
    low = torch.autocast(foreground.device.type, torch.bfloat16, enabled=compute_dtype == "bfloat16")
    with torch.no_grad(), low:
        ahead = {name: _input_ahead(one, getattr(image, source_of(name, mode))) for name, one in mappings.items()}
        for pixels, observed, predicted in _mapped(mappings, image, foreground, mode, ahead):
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


def _mapped(
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


# Training.


class Images(Protocol):
    """Training images: a list, or any data set of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PixelFeatures: ...


def train_mappings(
    images: Images,
    *,
    epochs: int = 250,
    batch: int = 4,
    pixels_per_image: int | None = None,
    lr: float = 1e-3,
    architecture: Architecture = "projection",
    mode: Mode = "crossmodal",
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, CrossmodalMapping]:
    """Train both mappings on normal images by the cosine distances of eq. 2, averaged over the pixels of a batch.

    Adam with a constant rate (CFM, section 4). Pixels without a point feature are left out. The same arguments give the
    same weights on the same kind of machine, interrupted or not.

    Args:
        images: looked up one at a time.
        epochs: passes over the images. The paper's results take 250, its ablations 50.
        batch: images a step (published: 4; Eyecandies 2).
        pixels_per_image: draw so many pixels of an image instead of taking all: cheaper steps.
        lr: Adam's rate.
        architecture: see :class:`CrossmodalMapping`.
        mode: see :func:`make_mappings`.
        seed: of initial weights, order of images, and drawn pixels.
        resume: file of the training's state. If it is there, training goes on from it; every ``save_every`` steps and
            at the end it is replaced.
        save_every: steps between saved states.
        device: where to train.
        progress: show a bar on a terminal.

    Returns:
        The mappings on ``device``, in evaluation mode, by the modality that they predict.

    Raises:
        InputError: An argument is out of range.
        FormatError: ``resume`` is no state of a training, or of one with other arguments.
        MmadBankError: The loss is not finite; the message names the step.

    Example:
        >>> images = [PixelFeatures(torch.rand(4, 8), torch.rand(16, 6), (2, 2), 4) for _ in range(3)]
        >>> train_mappings(images, epochs=1)["xyz"].in_dim
        8
    """
    check_index(len(images), "images", 1, 2**31 - 1, "training needs an image")
    for name, value in (("epochs", epochs), ("batch", batch)):
        check_index(value, name, 1, 2**31 - 1, "training needs one")
    if pixels_per_image is not None:
        check_index(pixels_per_image, "pixels_per_image", 1, 2**31 - 1, "None takes all")
    first = images[0]
    arguments = {
        "steps": math.ceil(epochs * len(images) / batch), "batch": batch, "pixels_per_image": pixels_per_image or 0,
        "lr": check_rate(lr), "architecture": architecture, "mode": mode, "seed": seed, "images": len(images),
        "rgb_dim": first.rgb.shape[1], "xyz_dim": first.xyz.shape[1], "size": first.size,
    }  # fmt: skip
    run = _Training(images, arguments, torch.device(device))
    train(
        run.losses, {"model": run.mappings}, run.optimizer, kind="CFM", caller="train_mappings", arguments=arguments,
        resume=resume, save_every=save_every, device=device, progress=progress,
    )  # fmt: skip
    return {name: mapping.eval() for name, mapping in run.mappings.items()}  # type: ignore[misc]


class _Training:
    """The mappings and their optimizer, and the losses of a step."""

    def __init__(self, images: Images, arguments: dict[str, Any], device: torch.device) -> None:
        self.images, self.arguments, self.device = images, arguments, device
        dims = {"rgb": arguments["rgb_dim"], "xyz": arguments["xyz_dim"]}
        with seeded(arguments["seed"]):
            mappings = make_mappings(dims, architecture=arguments["architecture"], mode=arguments["mode"])
        self.mappings = nn.ModuleDict(mappings).to(device).train()
        self.optimizer = torch.optim.Adam(self.mappings.parameters(), lr=arguments["lr"])

    def losses(self, step: int) -> Iterator[Tensor]:
        """Give a step's losses, a part of the pixels each; their sum is the mean over all pixels of the batch."""
        a = self.arguments
        drawn: list[tuple[PixelFeatures, Tensor]] = []
        for image in sample_order(a["images"], step * a["batch"], a["batch"], a["seed"]):
            features = self.images[image]
            drawn.append((features, self._pixels(features.foreground, step, len(drawn))))
        total = sum(len(pixels) for _, pixels in drawn)
        for features, pixels in drawn:
            for _, observed, predicted in _mapped(dict(self.mappings.items()), features, pixels, a["mode"]):  # type: ignore[arg-type]
                yield sum_of_cosine_distances(observed, predicted) / total

    def _pixels(self, foreground: Tensor, step: int, place: int) -> Tensor:
        n = self.arguments["pixels_per_image"]
        if not n or n >= len(foreground):
            return foreground
        generator = generator_at(self.arguments["seed"], 1 + step, place)
        return foreground[torch.randperm(len(foreground), generator=generator)[:n].to(foreground.device)]


def sum_of_cosine_distances(observed: Mapping[str, Tensor], predicted: Mapping[str, Tensor]) -> Tensor:
    """Return CFM's eq. 2, summed over pixels: 1 − cos(E, Ê) of both modalities.

    Example:
        >>> one = torch.tensor([[1.0, 0.0]])
        >>> float(sum_of_cosine_distances({"rgb": one, "xyz": one}, {"rgb": -one, "xyz": one}))
        2.0
    """
    distances = [1 - F.cosine_similarity(predicted[name], observed[name], dim=1) for name in MODALITIES]
    return torch.cat(distances).sum()
