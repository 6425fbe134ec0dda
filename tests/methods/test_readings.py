"""Readings of M3DM and CFM: per-bank grids against a few lines of NumPy, presets, each difference by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_parts import CFM_ARGUMENTS, SIZE, a_part

from mmad_bank import methods
from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.fusion import FeatureFusion
from mmad_bank.methods import CFM, LSFA, M3DM
from mmad_bank.methods.cfm import CrossmodalMapping
from mmad_bank.scoring import anomaly_map

pytest.importorskip("timm")
pytest.importorskip("sklearn")

SMALL: dict[str, Any] = {
    "rgb": "efficientnet_lite0", "rgb_weights": "random", "rgb_layers": (1,), "image_size": SIZE,
    "xyz_weights": "random", "num_groups": 24, "group_size": 8, "uff_weights": "random", "ratio": 1.0,
}  # fmt: skip
COARSE, FINE = (8, 8), (16, 16)
GRIDS: dict[str, Any] = {"rgb_grid": COARSE, "xyz_grid": FINE, "fusion_grid": FINE}


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(3)]


# Grids of the banks.


def repeated(patches: np.ndarray) -> np.ndarray:
    """Enlarge (B, 64, D) to (B, 256, D): each patch stands for 2 × 2."""
    maps = patches.reshape(-1, 8, 8, patches.shape[2])
    return maps.repeat(2, axis=1).repeat(2, axis=2).reshape(len(maps), 256, -1)


def standardized(rows: np.ndarray, of: np.ndarray) -> np.ndarray:
    return (rows - of.mean()) / of.std(ddof=1)


@torch.no_grad()
def mlp(layers: Any, norm: Any, rows: np.ndarray) -> np.ndarray:
    """A layer norm and two layers with GELU, in float64."""
    own = torch.from_numpy(rows)
    own = F.layer_norm(own, own.shape[-1:], norm.weight.double(), norm.bias.double())
    hidden = F.gelu(own @ layers.fc1.weight.double().T + layers.fc1.bias.double())
    return (hidden @ layers.fc2.weight.double().T + layers.fc2.bias.double()).numpy()


@pytest.mark.parametrize("fusion", ["uff", "concat"])
def test_banks_with_grids_of_their_own_are_the_papers_arithmetic(fusion: str, parts: list[Sample]) -> None:
    """Point bank 16 × 16, RGB bank 8 × 8, fusion bank 16 × 16 with RGB repeated; maps are fused pixel by pixel."""
    method = M3DM(**SMALL, **GRIDS, fusion=fusion).fit(parts)  # type: ignore[arg-type]
    sample = a_part(40)
    described = []
    for samples in (parts, [sample]):
        features = {name: rows.double().numpy() for name, rows in method.extractors_(samples).items()}
        halves = features["xyz"], repeated(features["rgb"])
        if method.uff_ is not None:
            uff = method.uff_
            halves = mlp(uff.xyz_mlp, uff.xyz_norm, halves[0]), mlp(uff.rgb_mlp, uff.rgb_norm, halves[1])
        described.append({**features, "fusion": np.concatenate(halves, axis=2)})
    normal, tested = described
    prediction, fused = method.predict(sample), np.zeros((SIZE, SIZE))
    assert method.dlf_ is not None
    for name, factor in (("xyz", 1.0), ("rgb", 0.1), ("fusion", 1.0)):
        bank = standardized(normal[name], normal[name]).reshape(-1, normal[name].shape[2])
        queries = standardized(tested[name][0], normal[name])
        scores = np.sqrt((((queries[:, None] - bank[None]) ** 2).sum(-1)).min(1))
        np.testing.assert_allclose(prediction.parts[name].scores.flatten(), scores, rtol=3e-4, atol=3e-4)
        grid = COARSE if name == "rgb" else FINE
        assert prediction.parts[name].grid == grid
        own = anomaly_map(torch.from_numpy(scores[None]), grid, (SIZE, SIZE))[0].numpy()
        fused += factor * own * float(method.dlf_.weights_["pixels"][list(method.dlf_.factors).index(name)])
    np.testing.assert_allclose(prediction.map, fused, rtol=1e-3, atol=1e-3)


def test_reasons_lie_on_the_grid_of_their_bank(parts: list[Sample]) -> None:
    method = M3DM(**SMALL, **GRIDS).fit(parts)
    prediction = method.predict(parts[1])
    for name, place in (("rgb", (3, 7)), ("xyz", (7, 9)), ("fusion", (7, 9))):
        (own,) = method.explain(prediction, name, place=place, n=1)
        assert (own.sample, own.place) == (parts[1].id, place)
    with pytest.raises(InputError, match="the grid has 8 × 8"):
        method.explain(prediction, "rgb", place=(7, 9))


def test_a_saved_model_keeps_its_grids(parts: list[Sample], tmp_path: Any) -> None:
    method = M3DM(**SMALL, **GRIDS, decision="add").fit(parts)
    method.save(tmp_path / "model")
    loaded = methods.load(tmp_path / "model")
    torch.testing.assert_close(loaded.predict(a_part(41)).map, method.predict(a_part(41)).map)
    assert loaded.arguments() == method.arguments()


@pytest.mark.parametrize(
    ("arguments", "grids"),
    [
        ({}, [(56, 56), (28, 28), (56, 56)]),
        ({"recipe": "published"}, [(56, 56), (28, 28), (56, 56)]),
        ({"recipe": "paper"}, [(28, 28)] * 3),
        ({"grid": (14, 14)}, [(14, 14)] * 3),
        ({"grid": (14, 14), "rgb_grid": (7, 7)}, [(14, 14), (7, 7), (14, 14)]),
        ({"adaptation": "train"}, [(56, 56)] * 3),
    ],
)
def test_grids_of_the_recipes(arguments: dict[str, Any], grids: list[tuple[int, int]]) -> None:
    method = M3DM(**arguments)
    assert [method._grid(name) for name in ("xyz", "rgb", "fusion")] == grids


def test_an_adaptation_wants_one_grid() -> None:
    with pytest.raises(InputError, match=r"^rgb_grid, xyz_grid, fusion_grid: expected one grid .* found 56x56, 28x28,"):
        M3DM(adaptation="train", rgb_grid=(28, 28))


# Recipes, and each difference by itself.


def test_a_recipe_is_a_preset_of_its_readings() -> None:
    names = ("batch_norm", "interpolation", "skip_near_origin", "standardization", "bank_sizes", "mean_feature")
    values = {recipe: [M3DM(recipe=recipe).reading(name) for name in names] for recipe in M3DM.readings}  # type: ignore[arg-type]
    assert values == {
        "default": ["batch", "three_nearest", False, "own", "own", False],
        "published": ["batch", "three_nearest", True, "shared", "reduced", True],
        "paper": ["running", "all_centers", False, "own", "own", False],
    }
    for recipe in M3DM.readings:
        assert M3DM(recipe=recipe, batch_norm="running", mean_feature=True).reading("batch_norm") == "running"  # type: ignore[arg-type]
    assert (M3DM(recipe="paper").reading("dlf_lr"), M3DM().reading("dlf_lr")) == (1e-4, "optimal")
    assert (LSFA().grid, LSFA().reading("interpolation")) == ((56, 56), "three_nearest")
    assert (CFM().reading("smoothing"), CFM(recipe="published").reading("smoothing")) == ("gaussian", "boxes")


@pytest.mark.parametrize("wanted", [{"batch_norm": "running"}, {"interpolation": "all_centers"}, {"recipe": "paper"}])
def test_each_reading_of_the_point_features_changes_them(wanted: dict[str, Any], parts: list[Sample]) -> None:
    def features(**arguments: Any) -> torch.Tensor:
        torch.manual_seed(0)
        network = M3DM(**SMALL, grid=COARSE, banks=("xyz",), **arguments)._xyz_network(None)
        return network(parts[0].xyz[None])

    assert not torch.allclose(features(), features(**wanted), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(features(), features(recipe="published"))  # no point is near the origin


def test_bank_readings_by_themselves(parts: list[Sample]) -> None:
    arguments = {**SMALL, "ratio": 0.5, "grid": COARSE, "decision": "add"}
    banks = M3DM(**arguments, bank_sizes="reduced").fit(parts).banks_
    assert [len(bank) for bank in banks.values()] == [96, 48, 48]
    banks = M3DM(**arguments, mean_feature=True).fit(parts).banks_
    assert len(banks["xyz"]) == 97
    assert len({bank.standardization for bank in banks.values()}) == 3
    banks = M3DM(**arguments, standardization="shared").fit(parts).banks_
    assert len({bank.standardization for bank in banks.values()}) == 1
    banks = M3DM(**arguments, standardization="none").fit(parts).banks_
    assert {bank.standardization for bank in banks.values()} == {None}
    plain, divided = (
        M3DM(**arguments, image_divisor=divisor).fit(parts).predict(a_part(42)).parts["rgb"].score
        for divisor in (None, 1000.0)
    )
    assert 0 < divided < plain / 100


def test_dlf_takes_its_arguments(parts: list[Sample]) -> None:
    arguments: dict[str, Any] = {**SMALL, "ratio": 0.5, "grid": COARSE}
    dlf = M3DM(
        **arguments, dlf_nu=0.25, dlf_lr=1e-3, dlf_max_iter=7, dlf_factors=(2.0, 1.0, 0.5), dlf_pixel_share=0.25
    ).fit(parts).dlf_  # fmt: skip
    assert dlf is not None
    assert (dlf.nu, dlf.learning_rate, dlf.max_iter) == (0.25, 1e-3, 7)
    assert dlf.factors == {"xyz": 2.0, "rgb": 1.0, "fusion": 0.5}
    assert dlf.max_pixels == len(parts) * SIZE * SIZE // 4


@pytest.mark.parametrize(
    ("name", "value"), [("image_divisor", 1e-320), ("image_divisor", 1e300), ("dlf_factors", (1e30, 1e30, 1e30))]
)
def test_factors_that_float32_cannot_hold_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}: expected .* from 1e-06 to 1000000"):
        M3DM(**{name: value})


def test_a_decision_that_diverges_names_its_argument(parts: list[Sample]) -> None:
    with pytest.raises(InputError, match="dlf_lr: DLF diverged"):
        M3DM(**{**SMALL, "ratio": 0.5}, grid=COARSE, dlf_lr=1e308).fit(parts)


# Published weights under another reading.


def test_published_weights_under_another_reading_are_told(parts: list[Sample], tmp_path: Any) -> None:
    FeatureFusion(1152, 24).save(tmp_path / "uff.pth")
    FeatureFusion(1152, 24).save(tmp_path / "uff.safetensors")
    given = {**SMALL, "grid": COARSE, "banks": ("fusion",), "uff_weights": tmp_path / "uff.pth"}
    told = r"^uff_weights: the authors .* with batch_norm=batch, .*; found batch_norm=running, .*uff"
    with pytest.warns(UserWarning, match=told):
        M3DM(**given, recipe="paper").fit(parts)
    quiet = {**given, "group_size": 128}
    with pytest.warns(UserWarning, match="group_size=8"):
        M3DM(**given).fit(parts)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        M3DM(**quiet).fit(parts)
        M3DM(**{**given, "uff_weights": tmp_path / "uff.safetensors"}, recipe="paper").fit(parts)


def test_published_mappings_under_another_reading_are_told(parts: list[Sample], tmp_path: Any) -> None:
    arguments = {**CFM_ARGUMENTS, "rgb": "efficientnet_lite0", "rgb_layers": (1,), "group_size": 32}
    files = {"rgb_to_xyz_weights": tmp_path / "a.pth", "xyz_to_rgb_weights": tmp_path / "b.pth"}
    for path, dims in zip(files.values(), ((24, 1152), (1152, 24)), strict=True):
        torch.save(CrossmodalMapping(*dims).state_dict(), path)
    with pytest.warns(
        UserWarning, match=r"^rgb_to_xyz_weights: the authors .* group_size=128, .*; found group_size=32"
    ):
        CFM(**arguments, **files).fit(parts)
