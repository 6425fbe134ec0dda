"""CFM as a method: features, variants, aggregation, the published quirks, and what a saved model holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_parts import CFM_ARGUMENTS as SMALL
from small_parts import SIZE, a_part

from mmad_bank import methods
from mmad_bank.data import Sample
from mmad_bank.errors import InputError, MmadBankError
from mmad_bank.features import PointFeatureAlignment
from mmad_bank.features.point_alignment import measured_points
from mmad_bank.methods import CFM
from mmad_bank.methods.cfm import aggregate
from mmad_bank.methods.cfm import method as cfm_method
from mmad_bank.methods.cfm.mappings import MODALITIES

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def fitted(parts: list[Sample]) -> CFM:
    return CFM("efficientnet_lite0", **SMALL).fit(parts)


def test_the_registry_and_the_contract_know_it() -> None:
    assert "cfm" in methods.names()
    assert methods.method_class("cfm") is CFM
    assert methods.cfm.CrossmodalMapping(768, 1152).projection.in_features == 960
    assert CFM.preparation == "cfm"


# Features.


def test_features_are_the_papers_maps(fitted: CFM, parts: list[Sample]) -> None:
    """Bilinear RGB tokens; point tokens through the dense alignment of the multimodal methods."""
    features = {name: rows[0] for name, rows in fitted.extractors_([parts[0]]).items()}
    image = fitted._pixels(features)
    every = torch.arange(32 * 32)
    tokens = fitted.extractors_.networks["rgb"](parts[0].rgb[None])[0]
    enlarged = F.interpolate(tokens.T.reshape(1, -1, 8, 8), size=32, mode="bilinear", align_corners=False)
    torch.testing.assert_close(image.at("rgb", every), enlarged[0].flatten(1).T, atol=1e-4, rtol=1e-4)
    points, pixels = measured_points(parts[0].xyz.permute(1, 2, 0))
    groups, centers = fitted.extractors_.networks["xyz"]([points])
    align = PointFeatureAlignment((32, 32), (SIZE, SIZE))
    torch.testing.assert_close(
        image.at("xyz", every), align(groups, centers, [points], [pixels])[0], atol=1e-4, rtol=1e-4
    )


def test_the_cache_is_far_smaller_than_the_maps(parts: list[Sample], tmp_path: Path) -> None:
    CFM("efficientnet_lite0", **{**SMALL, "map_size": None}).fit(parts, workdir=tmp_path)
    cached = sum(path.stat().st_size for path in tmp_path.glob("train-*.npy"))
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == [
        "train-groups.npy", "train-rgb.npy", "train-weights.npy", "train-xyz.npy",
    ]  # fmt: skip
    assert cached < len(parts) * SIZE * SIZE * (656 + 1152) * 4 / 20


# Variants: transformers that really end early.


def n_parameters(method: CFM) -> dict[str, int]:
    networks = method._networks("random")
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def test_a_variant_drops_the_layers_behind_its_own() -> None:
    found = {
        variant: n_parameters(CFM("vit_tiny_patch16_224", **{**SMALL, "grid": (4, 4), "variant": variant}))
        for variant in ("L", "M", "S", "T")
    }
    blocks = {"L": 12, "M": 8, "S": 4, "T": 1}
    # Parameters of one pre-norm block of width d: attention 4d² (+ biases), MLP 8d² (+ biases), two norms.
    vit = 12 * 192**2 + 13 * 192
    point_mae = 12 * 384**2 + 10 * 384  # no bias of q, k, v
    for variant, depth in blocks.items():
        assert found["L"]["rgb"] - found[variant]["rgb"] == (12 - depth) * vit
        assert found["L"]["xyz"] - found[variant]["xyz"] == (12 - depth) * point_mae


def test_a_variants_features_are_those_of_its_layers() -> None:
    wanted = {"L": (1152, (3, 7, 11)), "M": (1152, (1, 4, 7)), "S": (1152, (1, 2, 3)), "T": (384, (0,))}
    for variant, (dim, layers) in wanted.items():
        network = CFM("efficientnet_lite0", **{**SMALL, "variant": variant})._networks("random")["xyz"]
        assert (network.dim, network.layers) == (dim, layers)


def test_the_embedded_network_is_truncated_too() -> None:
    counts = [n_parameters(CFM("efficientnet_lite0", xyz_weights="random", variant=v))["rgb"] for v in "LMST"]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 4


def test_group_sizes_are_those_of_text_and_code() -> None:
    sizes = {
        recipe: CFM("efficientnet_lite0", xyz_weights="random", recipe=recipe)._networks("random")["xyz"].group_size
        for recipe in ("default", "paper", "published")
    }
    assert sizes == {"default": 128, "paper": 32, "published": 128}


# Aggregation, smoothing, score.


def test_the_map_is_the_smoothed_product_and_the_score_its_maximum(fitted: CFM, parts: list[Sample]) -> None:
    from scipy.ndimage import gaussian_filter

    method = CFM("efficientnet_lite0", **{**SMALL, "map_size": None, "epochs": 1}).fit(parts)
    prediction = method.predict(a_part(50))
    rgb, xyz = (prediction.parts[name].scores.double().numpy() for name in MODALITIES)
    expected = gaussian_filter(rgb * xyz, 4.0, mode="reflect")
    np.testing.assert_allclose(prediction.map.numpy(), expected, atol=1e-5)
    assert prediction.score == pytest.approx(expected.max(), abs=1e-5)
    assert (rgb[:2] == 0).all()
    assert (xyz[:2] == 0).all()
    assert rgb.max() > 0


def test_aggregations_are_pixel_by_pixel() -> None:
    maps = {"rgb": torch.tensor([0.5, 1.5, 0.0]), "xyz": torch.tensor([1.0, 0.5, 0.0])}
    assert aggregate(maps, "product").tolist() == [0.5, 0.75, 0]
    assert aggregate(maps, "sum").tolist() == [1.5, 2.0, 0]
    assert aggregate(maps, "max").tolist() == [1.0, 1.5, 0]
    assert aggregate(maps, "rgb").tolist() == maps["rgb"].tolist()
    assert aggregate(maps, "xyz").tolist() == maps["xyz"].tolist()


@pytest.mark.parametrize("normalize_for", ["aupro", "p_auroc"])
def test_the_published_recipe_filters_with_boxes_and_divides(parts: list[Sample], normalize_for: str) -> None:
    method = CFM("efficientnet_lite0", **SMALL, recipe="published", normalize_for=normalize_for).fit(parts)
    prediction = method.predict(parts[0])
    product = prediction.parts["rgb"].scores * prediction.parts["xyz"].scores
    smooth = F.interpolate(product[None, None].double(), size=SIZE, mode="bilinear", align_corners=False)
    for width, times in ((5, 5), (7, 3)):
        for _ in range(times):
            smooth = F.conv2d(smooth, torch.ones(1, 1, width, width).double() / width**2, padding=width // 2)
    smooth = smooth[0, 0]
    mean = smooth[smooth != 0].mean()
    expected = smooth / (mean if normalize_for == "aupro" else smooth.mean().sqrt())
    torch.testing.assert_close(prediction.map.double(), expected, atol=1e-4, rtol=1e-4)
    assert prediction.score == pytest.approx(float(smooth.max() / mean.sqrt()), rel=1e-4)


# Batches, files, resuming.


def test_one_by_one_and_eight_at_once_agree(fitted: CFM) -> None:
    samples = [a_part(seed, f"new/{seed}") for seed in range(20, 28)]
    together, apart = fitted.predict_batch(samples), [fitted.predict(sample) for sample in samples]
    for one, other in zip(together, apart, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        torch.testing.assert_close(one.map, other.map, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "intramodal", "variant": "T", "architecture": "encoder_decoder"},
        {"xyz": "point_bert", "variant": "S"},
    ],
)
def test_a_saved_model_predicts_the_same(parts: list[Sample], tmp_path: Path, changes: dict) -> None:
    method = CFM("efficientnet_lite0", **SMALL, **changes).fit(parts)
    method.save(tmp_path / "model")
    loaded = methods.load(tmp_path / "model")
    assert isinstance(loaded, CFM)
    assert loaded.arguments() == method.arguments()
    assert loaded.nbytes == method.nbytes
    sample = a_part(60)
    one, other = method.predict(sample), loaded.predict(sample)
    assert one.score == other.score
    assert torch.equal(one.map, other.map)


def test_a_truncated_models_files_hold_no_deeper_layer(parts: list[Sample], tmp_path: Path) -> None:
    from safetensors import safe_open

    CFM("efficientnet_lite0", **SMALL, variant="T").fit(parts).save(tmp_path / "model")
    with safe_open(tmp_path / "model" / "extractor-xyz.safetensors", "pt") as file:
        blocks = {name.split(".")[2] for name in file.keys() if name.startswith("blocks.")}  # noqa: SIM118
    assert blocks == {"0"}


def test_published_mappings_are_taken_as_they_are(parts: list[Sample], fitted: CFM, tmp_path: Path) -> None:
    files = {name: str(tmp_path / f"{name}.pth") for name in MODALITIES}
    for name, mapping in fitted.mappings_.items():
        torch.save(mapping.state_dict(), files[name])
    fitted.extractors_.save(tmp_path)
    method = CFM("efficientnet_lite0", **SMALL, rgb_to_xyz_weights=files["xyz"], xyz_to_rgb_weights=files["rgb"])
    method.fit(parts)
    method.extractors_.load(tmp_path)  # the same random extractors
    assert method.predict(parts[1]).score == fitted.predict(parts[1]).score
    told = r"^rgb_to_xyz_weights: expected .* 176 and .* 1152, .*; found .* 1152 and predicted .* 176 \(.*rgb.pth"
    swapped = {"rgb_to_xyz_weights": files["rgb"], "xyz_to_rgb_weights": files["xyz"]}
    with pytest.raises(InputError, match=told):
        CFM("efficientnet_lite0", **SMALL, **swapped).fit(parts)
    with pytest.raises(InputError, match="two files, or 'train' or 'random' for both"):
        CFM(rgb_to_xyz_weights=files["xyz"])


_KILLED = """
import os, signal, sys
import torch
sys.path.insert(0, sys.argv[1])
from small_parts import CFM_ARGUMENTS, a_part
from functools import partial
from mmad_bank.methods.cfm import method, training
from mmad_bank.methods import CFM

method.train_mappings = partial(training.train_mappings, save_every=5)
original, seen = training.sum_of_cosine_distances, []
def die_later(*arguments):
    seen.append(1)
    if len(seen) == 13:  # two parts a step: in step 7 of 8, behind the saved state of step 5
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
training.sum_of_cosine_distances = die_later
torch.manual_seed(7)
CFM("efficientnet_lite0", **{**CFM_ARGUMENTS, "epochs": 4}).fit([a_part(i) for i in range(4)], workdir=sys.argv[2])
"""


def test_a_fit_that_was_killed_goes_on_to_the_same_bytes(
    parts: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, here, str(tmp_path / "work")], check=False, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = torch.load(tmp_path / "work" / "mappings.pt", weights_only=True)
    assert state["step"] == 5
    monkeypatch.setattr(cfm_method, "train_mappings", partial(cfm_method.train_mappings, save_every=5))
    weights = []
    for workdir in (tmp_path / "work", tmp_path / "new"):
        torch.manual_seed(7)  # the random extractors' weights
        method = CFM("efficientnet_lite0", **{**SMALL, "epochs": 4}).fit(parts, workdir=workdir)
        weights.append([p for name in MODALITIES for p in method.mappings_[name].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_diverging_fit_names_the_step(parts: list[Sample]) -> None:
    with pytest.raises(MmadBankError, match="step"):
        CFM("efficientnet_lite0", **{**SMALL, "epochs": 10}, lr=1e30).fit(parts)


def test_what_cannot_be_used_is_named(parts: list[Sample]) -> None:
    for changes in (
        {"variant": "XL"}, {"aggregation": "mean"}, {"mode": "both"}, {"architecture": "mlp"}, {"recipe": "code"},
        {"normalize_for": "f1"},
    ):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(changes))):
            CFM(**changes)
    empty = replace(parts[0], xyz=torch.zeros_like(parts[0].xyz), id="part/train/good/none")
    method = CFM("efficientnet_lite0", **SMALL).fit([*parts, empty])
    assert len(method.train_ids_) == 4
    assert "measured points" in method.skipped_["part/train/good/none"]
