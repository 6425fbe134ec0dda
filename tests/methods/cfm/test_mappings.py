"""CFM's mappings, the features they work on, and their training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmad_bank.errors import FormatError, InputError, MmadBankError
from mmad_bank.features import PointFeatureAlignment
from mmad_bank.features.point_alignment import measured_points, nearest_groups, pool_to_grid
from mmad_bank.methods.cfm import comparison as module
from mmad_bank.methods.cfm.comparison import discrepancies
from mmad_bank.methods.cfm.mappings import CrossmodalMapping, make_mappings, source_of
from mmad_bank.methods.cfm.pixel_features import PixelFeatures
from mmad_bank.methods.cfm.training import sum_of_cosine_distances, train_mappings


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_cloud(size: int = 20, seed: int = 0) -> torch.Tensor:
    """An organised cloud (H, W, 3) with two thirds of its points, in a disc."""
    xyz = torch.rand(size, size, 3, generator=torch.Generator().manual_seed(seed)) + 0.1
    far = torch.arange(size).float() - (size - 1) / 2
    xyz[(far[:, None] ** 2 + far**2).sqrt() > size * 0.45] = 0
    return xyz


def grouped_image(size: int = 20, map_size: int = 20, groups: int = 12) -> tuple[PixelFeatures, torch.Tensor]:
    """An image with Point-MAE-like tokens, and its point features as the dense alignment has them."""
    xyz, tokens, rgb = a_cloud(size), seeded(groups, 7), seeded(16, 5, seed=1)
    points, pixels = measured_points(xyz)
    nearest, weights = nearest_groups(points, points[:groups])
    table_of_groups, table_of_weights = torch.zeros(size * size, 3).long(), torch.zeros(size * size, 3)
    table_of_groups[pixels], table_of_weights[pixels] = nearest, weights
    align = PointFeatureAlignment((map_size, map_size), (size, size))
    expected = align(tokens[None], points[None, :groups], [points], [pixels])[0]
    shape = (size, size, 3)
    image = PixelFeatures(rgb, tokens, (4, 4), map_size, table_of_groups.view(shape), table_of_weights.view(shape))
    return image, expected


def flat_image(size: int = 8, seed: int = 0, rgb_dim: int = 6, xyz_dim: int = 4) -> PixelFeatures:
    """An image whose point features follow from its RGB features, with every third pixel unmeasured."""
    rgb = seeded(size * size, rgb_dim, seed=seed)
    xyz = torch.tanh(rgb @ seeded(rgb_dim, xyz_dim, seed=99))
    xyz[::3] = 0
    return PixelFeatures(rgb, xyz, (size, size), size)


# Architectures.


def test_a_published_state_dict_maps_as_the_three_layers_it_holds(tmp_path: Path) -> None:
    """Names and shapes are those of the published files; the expected values are NumPy's in float64."""
    generator = np.random.default_rng(0)
    widths = {"input": (960, 768), "projection": (960, 960), "output": (1152, 960)}
    state = {}
    for name, shape in widths.items():
        state[f"{name}.weight"] = generator.normal(0, 0.05, shape)
        state[f"{name}.bias"] = generator.normal(0, 0.05, shape[0])
    torch.save({name: torch.from_numpy(value).float() for name, value in state.items()}, tmp_path / "published.pth")
    x = generator.normal(size=(20, 768))
    hidden = x
    erf = np.vectorize(math.erf)
    for name in widths:
        hidden = hidden @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        if name != "output":
            hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    mapping = CrossmodalMapping(768, 1152).load_checkpoint(tmp_path / "published.pth")
    with torch.no_grad():
        np.testing.assert_allclose(mapping(torch.from_numpy(x).float()).numpy(), hidden, atol=1e-5)
    with pytest.raises(FormatError, match=r"input.weight of shape \(960, 1152\)"):
        CrossmodalMapping(1152, 768).load_checkpoint(tmp_path / "published.pth")


def test_the_encoder_decoder_has_the_widths_of_the_supplement() -> None:
    mapping = CrossmodalMapping(1152, 768, architecture="encoder_decoder")
    assert [(layer.in_features, layer.out_features) for layer in mapping.layers] == [
        (1152, 576), (576, 288), (288, 288), (288, 576), (576, 768),
    ]  # fmt: skip
    x = seeded(3, 1152)
    expected = x
    for number, layer in enumerate(mapping.layers):
        expected = layer(expected) if number == 4 else F.gelu(layer(expected))
    torch.testing.assert_close(mapping(x), expected)


def test_the_convolutional_mapping_keeps_the_size_of_maps_and_sees_neighbours() -> None:
    torch.manual_seed(0)
    mapping = CrossmodalMapping(4, 6, architecture="convolutional")
    maps = seeded(2, 8, 10, 4)
    assert mapping(maps).shape == (2, 8, 10, 6)
    assert sum(p.numel() for p in mapping.parameters()) == 3 * (4 * 4 * 9 + 4) + (4 * 6 * 4 + 6)
    changed = maps.clone()
    changed[0, 4, 4] += 1
    difference = (mapping(changed) - mapping(maps)).abs().sum(-1)
    assert difference[0, 3, 3] > 0
    assert difference[1].max() == 0
    with pytest.raises(InputError, match="even sides"):
        mapping(seeded(1, 7, 8, 4))


def test_intramodal_mappings_differ_in_the_input_layer_only() -> None:
    cross, intra = (make_mappings({"rgb": 768, "xyz": 1152}, mode=mode) for mode in ("crossmodal", "intramodal"))
    for name, own in (("rgb", 768), ("xyz", 1152)):
        assert intra[name].input.in_features == own
        assert cross[name].input.in_features == 768 + 1152 - own
        assert intra[name].projection.weight.shape == cross[name].projection.weight.shape == (960, 960)
        assert intra[name].output.weight.shape == cross[name].output.weight.shape == (own, 960)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CrossmodalMapping(8, 4, architecture="mlp"), "architecture"),
        (lambda: CrossmodalMapping(0, 4), "in_dim"),
        (lambda: CrossmodalMapping(8, 4)(torch.zeros(2, 5)), r"expected \(..., 8\)"),
        (lambda: make_mappings({"rgb": 4, "xyz": 4}, mode="both"), "mode"),
        (lambda: train_mappings([]), "images"),
        (lambda: train_mappings([flat_image()], epochs=0), "epochs"),
        (lambda: train_mappings([flat_image()], lr=float("nan")), "lr"),
        (lambda: train_mappings([flat_image()], pixels_per_image=0), "pixels_per_image"),
        (lambda: PixelFeatures(torch.zeros(3, 4), torch.zeros(4, 4), (2, 2), 2), "rgb"),
        (lambda: PixelFeatures(torch.zeros(4, 4), torch.zeros(3, 4), (2, 2), 2), "xyz"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# Features of pixels.


@pytest.mark.parametrize("map_size", [20, 10, 12])
def test_point_features_are_those_of_the_dense_alignment(map_size: int) -> None:
    image, expected = grouped_image(map_size=map_size)
    every = torch.arange(map_size**2)
    torch.testing.assert_close(image.at("xyz", every), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(image.foreground, (expected != 0).any(1).nonzero()[:, 0])
    assert 0 < len(image.foreground) < map_size**2
    some = torch.tensor([map_size * 3 + 2, 0, map_size**2 - 1])
    torch.testing.assert_close(image.at("xyz", some), expected[some], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("grid", "size"), [((4, 4), 20), ((3, 5), 7), ((8, 8), 4), ((1, 1), 6)])
def test_rgb_features_are_enlarged_bilinearly(grid: tuple[int, int], size: int) -> None:
    rgb = seeded(grid[0] * grid[1], 5)
    image = PixelFeatures(rgb, torch.ones(size * size, 1), grid, size)
    maps = rgb.T.reshape(1, 5, *grid)
    expected = F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(image.at("rgb", torch.arange(size * size)), expected)


# Loss and discrepancies.


def test_the_loss_is_that_of_equation_2() -> None:
    rows = {name: seeded(9, dim, seed=dim) for name, dim in (("rgb", 6), ("xyz", 4))}
    predicted = {name: seeded(*one.shape, seed=50) for name, one in rows.items()}
    expected = 0.0
    for name, one in rows.items():
        e, p = one.double().numpy(), predicted[name].double().numpy()
        expected += (1 - (e * p).sum(1) / np.linalg.norm(e, axis=1) / np.linalg.norm(p, axis=1)).sum()
    assert float(sum_of_cosine_distances(rows, predicted)) == pytest.approx(expected, rel=1e-6)


def test_a_step_follows_the_mean_over_all_pixels_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts or at once, over images with different numbers of measured pixels: one gradient, autograd's own."""
    images = [flat_image(seed=0), flat_image(seed=1, size=8)]
    images[1].xyz[:40] = 0
    start = train_mappings(images, epochs=1, batch=2, lr=1e-30)
    observed = {name: torch.cat([image.at(name, image.foreground) for image in images]) for name in ("rgb", "xyz")}
    loss = sum(
        (1 - F.cosine_similarity(start[name](observed[{"rgb": "xyz", "xyz": "rgb"}[name]]), observed[name])).mean()
        for name in ("rgb", "xyz")
    )
    loss.backward()
    # Adam's first step is lr · g / (|g| + eps).
    expected = {
        name: [(p - 1e-3 * p.grad / (p.grad.abs() + 1e-8)).detach() for p in mapping.parameters()]
        for name, mapping in start.items()
    }
    for chunk in (1 << 12, 7):
        monkeypatch.setitem(module._CHUNK, "cpu", chunk)
        trained = train_mappings(images, epochs=1, batch=2, lr=1e-3)
        for name, mapping in trained.items():
            for got, wanted in zip(mapping.parameters(), expected[name], strict=True):
                torch.testing.assert_close(got.detach(), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["projection", "encoder_decoder", "convolutional"])
@pytest.mark.parametrize("mode", ["crossmodal", "intramodal"])
def test_discrepancies_are_distances_of_unit_vectors(architecture: str, mode: str) -> None:
    image = flat_image(size=8)
    torch.manual_seed(1)
    mappings = make_mappings({"rgb": 6, "xyz": 4}, architecture=architecture, mode=mode)
    maps = discrepancies(mappings, image, mode)
    source = {"rgb": "rgb", "xyz": "xyz"} if mode == "intramodal" else {"rgb": "xyz", "xyz": "rgb"}
    whole = {"rgb": image.rgb, "xyz": image.xyz}
    for name, mapping in mappings.items():
        given = whole[source[name]]
        given = given.view(1, 8, 8, -1) if architecture == "convolutional" else given
        with torch.no_grad():
            predicted = mapping(given).reshape(64, -1).double().numpy()
        observed = whole[name].double().numpy()
        with np.errstate(invalid="ignore"):
            units = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (observed, predicted)]
        expected = np.linalg.norm(units[0] - units[1], axis=1)
        expected[(image.xyz == 0).all(1).numpy()] = 0
        np.testing.assert_allclose(maps[name].numpy(), expected, atol=1e-5)


def test_bfloat16_products_give_float32_maps_close_by() -> None:
    image = PixelFeatures(torch.randn(16, 24), torch.randn(64, 36), (4, 4), 8)
    mappings = make_mappings({"rgb": 24, "xyz": 36})
    exact = discrepancies(mappings, image)
    low = discrepancies(mappings, image, compute_dtype="bfloat16")
    for name, maps in exact.items():
        assert low[name].dtype == torch.float32
        assert not torch.equal(low[name], maps)
        assert torch.allclose(low[name], maps, atol=0.05)


def test_training_learns_the_mapping_and_tells_a_pixel_that_breaks_it() -> None:
    images = [flat_image(seed=seed) for seed in range(6)]
    trained = train_mappings(images, epochs=120, batch=2, lr=3e-3)
    new = flat_image(seed=100)
    broken = flat_image(seed=100)
    broken.xyz[4] = -broken.xyz[4]
    normal, changed = (discrepancies(trained, image)["xyz"] for image in (new, broken))
    assert changed[4] > 3 * normal[normal > 0].median()
    torch.testing.assert_close(changed[5:], normal[5:])


def test_drawn_pixels_are_of_the_foreground_and_differ_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    image = flat_image()
    original = PixelFeatures.at

    def spy(self: PixelFeatures, modality: str, pixels: torch.Tensor) -> torch.Tensor:
        if modality == "rgb":
            seen.append(pixels)
        return original(self, modality, pixels)

    monkeypatch.setattr(PixelFeatures, "at", spy)
    train_mappings([image], epochs=3, batch=1, pixels_per_image=10)
    assert [len(pixels) for pixels in seen] == [10, 10, 10]
    assert all(set(pixels.tolist()) <= set(image.foreground.tolist()) for pixels in seen)
    assert all(len(set(pixels.tolist())) == 10 for pixels in seen)
    assert not torch.equal(seen[0], seen[1])


# A training that is killed, and one that diverges.


class Killed(Exception):
    pass


class Killing:
    """Images that end the process' training when they have been looked up so often."""

    def __init__(self, images: list[PixelFeatures], at: int) -> None:
        self.images, self.left = images, at

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PixelFeatures:
        self.left -= 1
        if self.left == 0:
            raise Killed
        return self.images[index]


def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    images = [flat_image(seed=seed) for seed in range(5)]
    settings = {"epochs": 4, "batch": 2, "pixels_per_image": 20, "save_every": 3}
    whole = train_mappings(images, resume=tmp_path / "whole.pt", **settings)
    with pytest.raises(Killed):
        train_mappings(Killing(images, 15), resume=tmp_path / "broken.pt", **settings)
    resumed = train_mappings(images, resume=tmp_path / "broken.pt", **settings)
    for name, mapping in whole.items():
        for a, b in zip(mapping.parameters(), resumed[name].parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(FormatError, match="lr"):
        train_mappings(images, resume=tmp_path / "broken.pt", lr=0.1, **settings)


def test_a_diverging_training_stops_and_names_the_step() -> None:
    images = [flat_image(seed=seed) for seed in range(4)]
    images[2].rgb[1] = float("nan")
    with pytest.raises(MmadBankError, match=r"loss is nan at step [0-3] of 4"):
        train_mappings(images, epochs=1, batch=1)


def test_fpfh_like_maps_need_no_groups() -> None:
    xyz = pool_to_grid(a_cloud().permute(2, 0, 1), (10, 10)).flatten(1).T
    image = PixelFeatures(seeded(16, 5), xyz, (4, 4), 10)
    torch.testing.assert_close(image.at("xyz", image.foreground), xyz[(xyz != 0).any(1)])


@pytest.mark.parametrize("mode", ["crossmodal", "intramodal"])
def test_the_input_layer_may_come_before_the_interpolation(mode: str) -> None:
    """Discrepancies from tokens that went through the input layer first, against mapping every pixel's features."""
    image, _ = grouped_image()
    torch.manual_seed(2)
    mappings = make_mappings({"rgb": 5, "xyz": 7}, mode=mode)
    maps, on = discrepancies(mappings, image, mode), image.foreground
    whole = {name: image.at(name, on) for name in ("rgb", "xyz")}
    for name, mapping in mappings.items():
        with torch.no_grad():
            predicted = mapping(whole[source_of(name, mode)])
        expected = (F.normalize(whole[name], dim=1) - F.normalize(predicted, dim=1)).norm(dim=1)
        torch.testing.assert_close(maps[name][on], expected, atol=1e-5, rtol=1e-5)
