"""PDN, its mask and its loss, against a few lines of NumPy and SciPy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_bank.errors import FormatError, InputError
from mmad_bank.methods.mdss.pdn import (
    PDN,
    dynamic_quantile,
    foreground_mask,
    mask_on_grid,
    quantile_loss,
    squared_difference,
)

scipy_ndimage = pytest.importorskip("scipy.ndimage")

PUBLISHED = {
    "conv1": ("0", (128, 3, 4, 4)), "conv2": ("3", (256, 128, 4, 4)), "conv3": ("6", (256, 256, 3, 3)),
    "conv4": ("8", (384, 256, 4, 4)),
}  # fmt: skip


def published_state(listed: bool, prefix: str = "") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    state = {}
    for name, (number, shape) in PUBLISHED.items():
        layer = prefix + (number if listed else name)
        state[f"{layer}.weight"] = torch.randn(*shape, generator=generator) * math.prod(shape[1:]) ** -0.5
        state[f"{layer}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return state


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, padding: int) -> np.ndarray:
    """(C, H, W) by (O, C, k, k), in float64."""
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows, weight, optimize=True) + bias[:, None, None]


def pool(x: np.ndarray) -> np.ndarray:
    """Averages of 2×2 with a border of zeros that counts."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)))[:, : (x.shape[1] + 2) // 2 * 2, : (x.shape[2] + 2) // 2 * 2]
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


@pytest.mark.parametrize(("listed", "prefix"), [(False, ""), (True, ""), (False, "module.")])
def test_published_weights_describe_as_numpy_does(tmp_path: Path, listed: bool, prefix: str) -> None:
    torch.save(published_state(listed, prefix), tmp_path / "teacher.pth")
    net = PDN().load_checkpoint(tmp_path / "teacher.pth")
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (image[0].double().numpy() - mean[:, None, None]) / std[:, None, None]
    w = {name: tensor.double().numpy() for name, tensor in published_state(False).items()}
    x = pool(np.maximum(convolve(x, w["conv1.weight"], w["conv1.bias"], 3), 0))
    x = pool(np.maximum(convolve(x, w["conv2.weight"], w["conv2.bias"], 3), 0))
    x = np.maximum(convolve(x, w["conv3.weight"], w["conv3.bias"], 1), 0)
    expected = convolve(x, w["conv4.weight"], w["conv4.bias"], 0)
    with torch.no_grad():
        found = net(image)[0].numpy()
    assert found.shape == expected.shape == (384, *PDN.grid(24))
    assert np.allclose(found, expected, atol=1e-5)
    assert not net.training


@pytest.mark.parametrize("size", [8, 17, 64, 100, 127, 128, 256])
def test_the_grid_is_the_maps(size: int) -> None:
    with torch.no_grad():
        assert PDN(4, width=2)(torch.rand(1, 3, size, size)).shape[2:] == PDN.grid(size)


def test_the_papers_map_is_64_by_64() -> None:
    assert PDN.grid(256) == (64, 64)


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save(published_state(False), tmp_path / "small.pth")
    with pytest.raises(FormatError, match=r"small.pth: expected conv1.weight of shape \(16, 3, 4, 4\)"):
        PDN(width=16).load_checkpoint(tmp_path / "small.pth")
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(FormatError, match="another architecture than PDN"):
        PDN().load_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_the_mask_is_scipys_dilation(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    measured = torch.rand(2, 30, 21, generator=generator) < 0.01
    measured[0, 0, 0] = measured[0, -1, -1] = True
    xyz = torch.rand(2, 3, 30, 21, generator=generator) * measured[:, None] - 0.0
    found = foreground_mask(xyz, size).numpy()
    expected = [scipy_ndimage.binary_dilation(one, np.ones((size, size))) for one in measured.numpy()]
    assert np.array_equal(found, np.stack(expected))


def test_pixels_with_a_zero_or_nan_component_are_background() -> None:
    xyz = torch.ones(1, 3, 1, 4)
    xyz[0, 2, 0, 1] = 0
    xyz[0, 0, 0, 2] = torch.nan
    assert foreground_mask(xyz, 1).tolist() == [[[True, False, False, True]]]


def test_a_cell_is_foreground_if_one_of_its_pixels_is() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 3, 4] = True
    expected = [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert mask_on_grid(mask, (4, 4)).int().tolist() == [expected]


def test_the_quantile_goes_from_the_first_step_to_the_last() -> None:
    values = [dynamic_quantile(step, 11) for step in range(11)]
    assert values[0] == 0.99
    assert values[10] == 0.999
    assert values[5] == pytest.approx(0.9945)
    assert values[1] == pytest.approx(0.99 + 0.009 * (1 - math.cos(math.pi / 10)) / 2)
    assert np.all(np.diff(values) > 0)
    assert dynamic_quantile(0, 1) == 0.99
    assert dynamic_quantile(3, 4, first=0.999, last=0.99) == 0.99


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.95, 0.99, 0.9995])
@pytest.mark.parametrize("share", [0.05, 0.6, 1.0])
def test_the_loss_and_its_gradient_are_numpys(quantile: float, share: float) -> None:
    generator = torch.Generator().manual_seed(8)
    difference = torch.randn(2, 3, 9, 11, generator=generator).square().requires_grad_()
    mask = torch.rand(2, 9, 11, generator=generator) < share
    loss = quantile_loss(difference, mask, quantile)
    loss.backward()
    values = (difference.detach() * mask[:, None]).numpy()
    above = values > np.quantile(values.astype(np.float64), quantile)
    assert loss.item() == pytest.approx(values[above].mean(), rel=1e-6)
    expected = above * mask[:, None].numpy() / above.sum()
    assert np.allclose(difference.grad.numpy(), expected, atol=1e-8)


def test_an_element_equal_to_the_quantile_is_not_above_it() -> None:
    difference = torch.arange(101.0).view(1, 1, 1, 101)
    mask = torch.ones(1, 1, 101)
    assert quantile_loss(difference, mask, 0.98).item() == pytest.approx(99.5)  # the quantile is 98: 99 and 100 count
    assert quantile_loss(difference, mask, 0.985).item() == pytest.approx(99.5)  # 98.5
    assert quantile_loss(difference, mask, 0.99).item() == pytest.approx(100.0)


def test_the_loss_of_equal_elements_is_theirs() -> None:
    assert quantile_loss(torch.full((1, 2, 3, 3), 4.0), torch.ones(1, 3, 3), 0.99).item() == 4.0
    assert quantile_loss(torch.ones(1, 2, 3, 3), torch.zeros(1, 3, 3), 0.99).item() == 0.0


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        (96, (9, 14), (10, 11)), (96, (0, 3), (20, 24)), (96, (0, 24), (0, 24)), (70, (5, 17), (1, 2)),
        (33, (8, 9), (0, 9)),
    ],
)  # fmt: skip
def test_the_foregrounds_window_is_what_the_whole_image_gives_there(size, rows, columns) -> None:
    torch.manual_seed(4)
    teacher, student = (PDN(6, width=4) for _ in range(2))
    images, grid = torch.rand(2, 3, size, size), PDN.grid(size)
    mask = torch.zeros(2, *grid, dtype=torch.bool)
    mask[0, rows[0] : rows[1], columns[0] : columns[1]] = True
    mask[1, rows[0], columns[0]] = True
    windowed, whole = squared_difference(teacher, student, images, mask), squared_difference(teacher, student, images)
    assert windowed.shape == whole.shape
    inside = mask[:, None]
    torch.testing.assert_close(windowed * inside, whole * inside)
    assert bool((windowed[:, :, ~mask.any(0)] == 0).all())  # the window is the union of the masks, here a rectangle
    gradients = [
        torch.autograd.grad((difference * inside).sum(), list(student.parameters())) for difference in (windowed, whole)
    ]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other)


def test_without_foreground_the_difference_is_that_of_the_whole_image() -> None:
    teacher, student, images = PDN(6, width=4), PDN(6, width=4), torch.rand(1, 3, 32, 32)
    difference = squared_difference(teacher, student, images, torch.zeros(1, 8, 8, dtype=torch.bool))
    assert torch.equal(difference, squared_difference(teacher, student, images))


def test_only_the_student_learns_from_the_difference() -> None:
    teacher, student = PDN(5, width=3), PDN(5, width=3)
    images = torch.rand(2, 3, 16, 16)
    difference = squared_difference(teacher, student, images)
    assert torch.allclose(difference, (teacher(images) - student(images)) ** 2)
    difference.sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(bool(parameter.grad.any()) for parameter in student.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PDN(0), "channels: expected 1 to"),
        (lambda: PDN(width=0), "width: expected 1 to"),
        (lambda: PDN(4, width=2)(torch.rand(1, 3, 4, 4)), r"images: expected \(B, 3, H, W\) of 8 pixels"),
        (lambda: foreground_mask(torch.rand(3, 4, 4)), "xyz: expected"),
        (lambda: quantile_loss(torch.rand(1, 1, 2, 2), torch.ones(1, 2, 2), 1.0), "quantile: expected"),
        (lambda: PDN().load_checkpoint("nowhere.pth"), "nowhere.pth: no such checkpoint"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
