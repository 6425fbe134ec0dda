"""Signed distances of points to the normal surface, learnt from patches of normal clouds (MDSS, section 3.2).

The model is that of Shape-guided (Chu et al. 2023): a PointNet (Qi et al. 2017) describes a patch by a code, and an
implicit function (Ma et al. 2022) of point and code says how far the point is from the patch's surface. Nobody knows
true distances: the function is trained by pulling points onto the surface along its gradient.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_choice, check_index
from mmad_bank._internal.files import replacing
from mmad_bank._internal.precision import ComputeDtype, check_compute_dtype
from mmad_bank._internal.state_dicts import load_state, save_state
from mmad_bank.methods.mdss.point_patches import PATCH_SIZE, CloudPatches, cut_patches

Aggregation = Literal["min", "mean"]

WIDTH = 512
_CODE, _HIDDEN_LAYERS = 128, 7
_TINY = 1e-12
_SCORED_AT_ONCE = 1 << 11  # points: the activations of a layer stay in a CPU's cache


class PointEncoder(nn.Module):
    """PointNet without its transforms: patches (B, K, 3) to codes (B, 128), by shared layers and a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(3, 64, 1), nn.Conv1d(64, 128, 1), nn.Conv1d(128, 1024, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(64), nn.BatchNorm1d(128), nn.BatchNorm1d(1024)
        self.fc1, self.fc2 = nn.Linear(1024, 512), nn.Linear(512, _CODE)
        self.bn4, self.bn5 = nn.BatchNorm1d(512), nn.BatchNorm1d(_CODE)

    def forward(self, patches: Tensor) -> Tensor:
        """Encode patches."""
        x = self._largest_in_training(patches) if self.training else self._largest(patches)
        x = F.relu(self.bn4(self.fc1(x)))
        return F.relu(self.bn5(self.fc2(x)))

    def _largest(self, patches: Tensor) -> Tensor:
        """Return the maxima (B, 1024) over the points, with fixed statistics, which are a part of the weights then.

        Adding a bias and cutting off below zero are monotone, so in the widest layer they come after the maximum: its
        1024 values per point are passed over once instead of four times.
        """
        x = patches
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            x = F.relu(F.linear(x, *_folded(conv, norm)))
        weight, bias = _folded(self.conv3, self.bn3)
        return F.relu(F.linear(x, weight).amax(1) + bias)

    def _largest_in_training(self, patches: Tensor) -> Tensor:
        """Return the same with the batch's statistics, without the widest layer's gradient at every point.

        That layer is linear. So mean and variance of its outputs W x are W μ and the diagonal of W Σ Wᵀ, with μ and Σ
        of its 128 inputs; and the norm being monotone in each output, which point is the largest is known before it.
        Only those points need a gradient.
        """
        x = patches.transpose(1, 2)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            x = F.relu(norm(conv(x)))
        x = x.transpose(1, 2).contiguous()
        weight, bias, norm = self.conv3.weight[..., 0], self.conv3.bias, self.bn3
        assert bias is not None
        with torch.no_grad():  # a negative scale of the norm turns the order round
            signed = weight * torch.where(norm.weight < 0, -1.0, 1.0)[:, None]
            places = F.linear(x, signed).argmax(1) + x.shape[1] * torch.arange(len(x), device=x.device)[:, None]
        rows = x.flatten(0, 1)
        # index_select adds its gradients in one order; an index in brackets would add them as threads come.
        chosen = rows.index_select(0, places.flatten()).unflatten(0, places.shape)
        largest = torch.einsum("bcd,cd->bc", chosen, weight) + bias
        mean = rows.mean(0)
        centred = rows - mean
        means = weight @ mean + bias
        variances = ((weight @ (centred.T @ centred / len(rows))) * weight).sum(1)
        _update_statistics(norm, means, variances, len(rows))
        return F.relu((largest - means) * (variances + norm.eps).rsqrt() * norm.weight + norm.bias)


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm1d, means: Tensor, variances: Tensor, n: int) -> None:
    """Let a batch norm's running statistics follow a batch of n rows, as PyTorch's own does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    assert norm.num_batches_tracked is not None
    norm.running_mean.lerp_(means, norm.momentum)
    norm.running_var.lerp_(variances * (n / (n - 1)), norm.momentum)
    norm.num_batches_tracked += 1


def _folded(conv: nn.Conv1d, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return weight (out, in) and bias (out,) of a pointwise convolution and a batch norm of fixed statistics."""
    assert conv.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return conv.weight[..., 0] * scale[:, None], (conv.bias - norm.running_mean) * scale + norm.bias


class ImplicitFunction(nn.Module):
    """Signed distance of a point, given the code of a patch.

    It begins as roughly a sphere of radius 1/2: the last layer adds up the activations with equal weights and
    subtracts 1/2 (Atzmon and Lipman 2020).
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.width = width
        self.point, self.code = nn.Linear(3, width), nn.Linear(_CODE, width)
        self.joint = nn.Linear(2 * width, width)
        hidden = [nn.Linear(width, width) for _ in range(_HIDDEN_LAYERS)]
        for layer in (self.joint, *hidden):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / width))
            nn.init.zeros_(layer.bias)
        self.hidden = nn.ModuleList(weight_norm(layer) for layer in hidden)
        self.out = nn.Linear(width, 1)
        nn.init.normal_(self.out.weight, 2 * math.sqrt(math.pi / width), 1e-6)
        nn.init.constant_(self.out.bias, -0.5)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy it by its weights: PyTorch refuses to pickle a layer whose weight has a norm of its own."""
        learning = [one.requires_grad for one in self.parameters()]
        return _restored, (self.width, self.state_dict(), learning, self.training)

    def weights(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a layer of equal width."""
        linear = self.hidden[layer]
        assert isinstance(linear, nn.Linear)
        return linear.weight.to(dtype), linear.bias.to(dtype)

    def forward(self, points: Tensor, codes: Tensor) -> Tensor:
        """Return signed distances (B, Q) of points (B, Q, 3), given codes (B, 128)."""
        # A patch's code is the same for all its points, so its half of the product is taken once.
        of_points, of_codes = self.joint.weight.split(self.width, dim=1)
        whole = F.linear(F.relu(self.code(codes)), of_codes, self.joint.bias)
        x = F.relu(F.linear(F.relu(self.point(points)), of_points) + whole[:, None])
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.out(x)[..., 0]


def _restored(width: int, state: dict[str, Tensor], learning: list[bool], training: bool) -> ImplicitFunction:
    """Return an implicit function of given weights, on their device."""
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, to be replaced
        made = ImplicitFunction(width)
    made.to(next(iter(state.values())).device).load_state_dict(state)
    for one, learns in zip(made.parameters(), learning, strict=True):
        one.requires_grad_(learns)
    return made.train(training)


class FixedFunction:
    """The implicit function with weights that stay: what prediction evaluates.

    Nearly all work is in the eight products of a point's activations with layers of equal width, 4.2 MFLOP per point
    and patch at a width of 512, where the encoder takes 0.3. Their weights are worked out once; they alone may be of
    another number type. The first layer stays float32, as a coordinate in bfloat16 is off by up to 1/512 of its patch,
    which is as long as many a normal distance; so do the patch's own half and the last layer, where large terms cancel.

    Args:
        function: The implicit function.
        compute_dtype: Number type of those products.
    """

    def __init__(self, function: ImplicitFunction, compute_dtype: ComputeDtype = "float32") -> None:
        check_compute_dtype(compute_dtype)
        self.dtype = torch.bfloat16 if compute_dtype == "bfloat16" else torch.float32
        self.function = function
        of_points, self._of_codes = function.joint.weight.split(function.width, dim=1)
        self._of_points = of_points.to(self.dtype).contiguous()
        # The norm of a weight is multiplied out at every look at it.
        self._hidden = [function.weights(layer, self.dtype) for layer in range(_HIDDEN_LAYERS)]

    def __call__(self, points: Tensor, codes: Tensor) -> Tensor:
        """Return signed distances (B, Q) float32 of points (B, Q, 3), given codes (B, 128), as the function itself."""
        function = self.function
        whole = F.linear(F.relu(function.code(codes)), self._of_codes, function.joint.bias)
        x = F.linear(F.relu(function.point(points)).to(self.dtype), self._of_points)
        x = x.add_(whole[:, None]).relu_()
        for weight, bias in self._hidden:
            x = F.linear(x, weight, bias).relu_()
        return function.out(x.float())[..., 0]


class SignedDistance(nn.Module):
    """Encoder and implicit function together: what one category's normal surface looks like.

    Args:
        width: Width of the implicit function's layers; 512 in the papers.

    Example:
        >>> net = SignedDistance(width=16).eval()
        >>> net.score(torch.rand(300, 3), size=100, coverage=2.0).shape
        torch.Size([300])
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.width = check_index(width, "width", 1, 2**13, "width of the layers")
        self.encoder, self.implicit = PointEncoder(), ImplicitFunction(width)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Return the signed distances (B, Q) of queries (B, Q, 3) to the surfaces of patches (B, K, 3)."""
        return self.implicit(queries, self.encoder(patches))

    def pull(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Move queries (B, Q, 3) along the gradient by their signed distance: q - f(q) ∇f(q) / ‖∇f(q)‖."""
        with torch.enable_grad():
            queries = queries.detach().requires_grad_()
            distance = self(queries, patches)
            (gradient,) = torch.autograd.grad(distance.sum(), queries, create_graph=True)
        length = (gradient.square().sum(-1, keepdim=True) + _TINY).sqrt()
        return queries - distance[..., None] * gradient / length

    @property
    def sizes(self) -> dict[str, int]:
        """Width of the layers, by the name of the argument."""
        return {"sdf_width": self.width}

    @staticmethod
    def sizes_in(state: Mapping[str, Tensor]) -> dict[str, int] | None:
        """Return the same of a file's tensors; None if they are another network's."""
        first = state.get("implicit.point.weight")
        return None if first is None or "encoder.conv1.weight" not in state else {"sdf_width": len(first)}

    def load_checkpoint(self, path: str | os.PathLike[str]) -> SignedDistance:
        """Load what :meth:`save` wrote.

        Returns:
            The network, in evaluation mode.

        Raises:
            InputError: There is no such file.
            FormatError: It is no checkpoint, or one of another network or width.
        """
        return load_state(self, path).eval()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the weights as safetensors; the file's name should end so.

        Raises:
            InputError: The file cannot be written; an old one is still there then.
        """
        with replacing(path) as partial:
            save_state(self, partial)

    @torch.no_grad()
    def score(
        self,
        points: ArrayLike,
        *,
        size: int = PATCH_SIZE,
        coverage: float | None = None,
        aggregation: Aggregation = "min",
        compute_dtype: ComputeDtype = "float32",
    ) -> Tensor:
        """Score the points of a cloud by their distance to the surface that their patch should have.

        Args:
            points: (N, 3), on the network's device or the CPU.
            size: Number of points per patch, as in training.
            coverage: Number of patches that a point lies in on average; None takes as few as hold every point, see
                :func:`cut_patches`.
            aggregation: Aggregation over the patches that hold a point: ``"min"`` (Shape-guided's code) or ``"mean"``;
                MDSS does not say.
            compute_dtype: Number type of most products, see :class:`FixedFunction`.

        Returns:
            (N,) float32 on the CPU, |signed distance| in units of the patches' extents.

        Raises:
            InputError: An argument is out of range.
        """
        check_choice(aggregation, get_args(Aggregation), "aggregation")
        cloud = as_float_tensor(points, "points").cpu()
        cut = cut_patches(cloud, size=size, coverage=coverage)
        return self.score_patches(
            cut, self.codes(cut.points), len(cloud), aggregation=aggregation, compute_dtype=compute_dtype
        )

    @torch.no_grad()
    def codes(self, patches: Tensor) -> Tensor:
        """Return the codes (P, 128) float32 of patches (P, K, 3), on the network's device.

        Example:
            >>> SignedDistance(width=16).eval().codes(torch.rand(3, 100, 3)).shape
            torch.Size([3, 128])
        """
        device, at_once = next(self.parameters()).device, max(1, _SCORED_AT_ONCE // patches.shape[1])
        return torch.cat([self.encoder(part.to(device)) for part in patches.split(at_once)])

    @torch.no_grad()
    def score_patches(
        self,
        cut: CloudPatches,
        codes: Tensor,
        n_points: int,
        *,
        aggregation: Aggregation = "min",
        compute_dtype: ComputeDtype = "float32",
    ) -> Tensor:
        """Score the points of a cloud by their distance to the surfaces that codes describe, one code per patch.

        Args:
            cut: The cloud's patches.
            codes: (P, 128), their own codes or those of the normal patches that they are compared with.
            n_points: Number of points of the cloud.
            aggregation: Aggregation over the patches that hold a point, see :meth:`score`.
            compute_dtype: Number type of most products, see :class:`FixedFunction`.

        Returns:
            (n_points,) float32 on the CPU, see :meth:`score`.
        """
        device, function = next(self.parameters()).device, FixedFunction(self.implicit, compute_dtype)
        codes = codes.to(device)
        # Summed on the CPU, in one order: the same bytes on every run.
        scores = torch.full((n_points,), torch.inf) if aggregation == "min" else torch.zeros(n_points)
        for part in torch.arange(len(cut.points)).split(max(1, _SCORED_AT_ONCE // cut.points.shape[1])):
            patches = cut.points[part, : cut.count].to(device)
            distances = function(patches, codes[part]).abs().cpu().flatten()
            rows = cut.rows[part, : cut.count].flatten()
            scores.scatter_reduce_(0, rows, distances, "amin" if aggregation == "min" else "sum")
        if aggregation == "mean":
            scores /= torch.bincount(cut.rows[:, : cut.count].flatten(), minlength=n_points)
        return scores
