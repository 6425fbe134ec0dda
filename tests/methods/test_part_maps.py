"""A part owns its map: fused as the method fuses them, the parts' maps give the method's, and metrics are of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_ast import SMALL as SMALL_AST
from small_parts import RGB, SIZE, a_part
from torch import Tensor

from mmad_bank.data import Sample
from mmad_bank.evaluation import FUSED, evaluate
from mmad_bank.methods import AST, BTF, CFM, LSFA, M3DM, MDSS, Method, Part, PatchCore
from mmad_bank.methods.cfm import aggregate
from mmad_bank.metrics import aupro, auroc

pytest.importorskip("timm")
pytest.importorskip("scipy")

POINTS: dict[str, Any] = {"xyz_weights": "random", "num_groups": 24, "group_size": 8}
MAPPED: dict[str, Any] = {
    **POINTS, "rgb": "efficientnet_lite0", "rgb_weights": "random", "image_size": SIZE, "grid": (8, 8), "map_size": 32,
    "epochs": 1, "batch": 2, "pixels_per_image": 50, "sigma": 2.0,
}  # fmt: skip
BRANCHES: dict[str, Any] = {
    "rgb_weights": "random", "image_size": SIZE, "pdn_width": 4, "channels": 8, "teacher_steps": 1, "teacher_batch": 1,
    "student_steps": 1, "student_batch": 1, "patch_size": 60, "coverage": (1.0, 1.0), "sdf_steps": 1, "sdf_batch": 2,
    "sdf_queries": 5, "sdf_width": 8, "sigma": 2.0,
}  # fmt: skip
UFF: dict[str, Any] = {"uff_steps": 2, "uff_batch": 2, "uff_patches": 16}

Maps = Mapping[str, Tensor]


def _only(method: Any, maps: Maps) -> Tensor:
    (only,) = maps.values()
    return only


def _sum(method: Any, maps: Maps) -> Tensor:
    return torch.stack(list(maps.values())).sum(0)


FUSIONS: dict[str, tuple[Callable[[], Method], Callable[[Any, Maps], Tensor]]] = {
    "PatchCore": (lambda: PatchCore(**RGB, sigma=2.0), _only),
    "BTF": (lambda: BTF(**RGB, sigma=2.0), _only),
    "M3DM": (
        lambda: M3DM(**RGB, **POINTS, **UFF, sigma=2.0),
        lambda method, maps: method.dlf_.fuse_pixels(dict(maps)),
    ),
    "M3DM, added": (lambda: M3DM(**RGB, **POINTS, banks=("xyz", "rgb"), decision="add", sigma=2.0), _sum),
    "LSFA": (
        lambda: LSFA(**RGB, **POINTS, adaptation_steps=1, adaptation_batch=1, queue_size=50, sigma=2.0),
        lambda method, maps: _sum(method, maps) / 2,
    ),
    "CFM, sum": (lambda: CFM(**MAPPED, aggregation="sum"), _sum),
    "CFM, rgb": (lambda: CFM(**MAPPED, aggregation="rgb"), lambda method, maps: maps["rgb"]),
    "MDSS": (lambda: MDSS(**BRANCHES), lambda method, maps: method.alignment_.union(maps["rgb"], maps["xyz"])),
    "MDSS, rgb": (lambda: MDSS(**BRANCHES, branches=("rgb",)), _only),
    "AST": (lambda: AST(**SMALL_AST, sigma=2.0), _only),
}
"""By name, a method whose fusion is a formula of its parts' maps, and the formula."""


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(3)]


def some_samples() -> list[Sample]:
    """Two good samples and two with a mask."""
    samples = [a_part(seed, f"part/test/good/{seed:03d}") for seed in (20, 21)]
    for seed in (22, 23):
        mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        mask[28:36, 20 : seed + 8] = True
        name = f"part/test/hole/{seed:03d}"
        samples.append(replace(a_part(seed, name), mask=mask, label=1, defect="hole"))
    return samples


@pytest.mark.parametrize("name", FUSIONS)
def test_the_parts_maps_give_the_methods_own(parts: list[Sample], name: str) -> None:
    make, fuse = FUSIONS[name]
    if name == "BTF":
        pytest.importorskip("open3d")
    method = make().fit(parts)
    prediction = method.predict(a_part(30))
    fused = fuse(method, {name: part.map((SIZE, SIZE)) for name, part in prediction.parts.items()})
    scale = float(prediction.prepared_map.abs().max())
    torch.testing.assert_close(fused, prediction.prepared_map, rtol=1e-4, atol=1e-5 * scale)
    maps = prediction.prepared_maps()
    assert list(maps) == [FUSED, *(prediction.parts if len(prediction.parts) > 1 else ())]
    assert maps[FUSED] is prediction.prepared_map


@pytest.mark.parametrize("recipe", ["paper", "published"])
def test_cfm_smooths_the_product_as_it_does_its_parts(parts: list[Sample], recipe: str) -> None:
    """The product is taken before the smoothing: the smoothing that the parts know makes the method's map of it."""
    prediction = CFM(**{**MAPPED, "group_size": 8}, recipe=recipe).fit(parts).predict(a_part(30))
    scores = aggregate({name: part.scores for name, part in prediction.parts.items()}, "product")
    smooth = replace(prediction.parts["rgb"], scores=scores).map((SIZE, SIZE))
    if recipe == "published":
        smooth = smooth / smooth[smooth != 0].mean()
    torch.testing.assert_close(prediction.prepared_map, smooth, rtol=1e-4, atol=1e-5)


def boxes(part: Part) -> Tensor:
    """Smooth a part's scores as CFM's published code does, by convolutions."""
    smooth = F.interpolate(part.scores[None, None].double(), size=SIZE, mode="bilinear", align_corners=False)
    for width, times in ((5, 5), (7, 3)):
        for _ in range(times):
            smooth = F.conv2d(smooth, torch.ones(1, 1, width, width).double() / width**2, padding=width // 2)
    return smooth[0, 0].float()


def unblurred(part: Part) -> Tensor:
    return F.interpolate(part.scores[None, None], size=SIZE, mode="bilinear", align_corners=False)[0, 0]


def blurred(part: Part) -> Tensor:
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(unblurred(part).numpy(), 2.0))


@pytest.mark.parametrize(
    ("method", "own"),
    [
        (MDSS(**BRANCHES), {"rgb": unblurred, "xyz": blurred}),
        (CFM(**MAPPED, recipe="published"), {"rgb": boxes, "xyz": boxes}),
        (CFM(**MAPPED), {"rgb": blurred, "xyz": blurred}),
    ],
    ids=["MDSS", "CFM published", "CFM"],
)
def test_metrics_of_parts_are_of_the_maps_that_the_method_made(
    parts: list[Sample], method: Method, own: dict[str, Callable[[Part], Tensor]]
) -> None:
    samples = some_samples()
    method.fit(parts)
    evaluation = evaluate(method, samples)
    predictions = [method.predict(sample) for sample in samples]
    masks = torch.stack([sample.mask for sample in samples if sample.mask is not None])
    for name, smooth in own.items():
        maps = torch.stack([smooth(prediction.parts[name]) for prediction in predictions])
        for prediction, expected in zip(predictions, maps, strict=True):
            assert prediction.parts[name].score == pytest.approx(float(expected.max()), rel=1e-4)
        metrics = evaluation.metrics[name]
        assert metrics.pixel_auroc == pytest.approx(auroc(masks, maps), abs=1e-4)
        assert metrics.aupro[0.3] == pytest.approx(aupro(masks, maps), abs=2e-3)
        others = torch.stack([blurred(p.parts[name]) if smooth is not blurred else unblurred(p.parts[name])
                              for p in predictions])  # fmt: skip
        assert abs(auroc(masks, others) - auroc(masks, maps)) > 1e-3, "another smoothing would be noticed"
