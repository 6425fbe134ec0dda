"""The colour scale of a model: measured on normal images as if it did not know them, and kept with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_parts import RGB, SIZE, a_part

from mmad_bank import MemoryBank, methods
from mmad_bank.bank.provenance import Source
from mmad_bank.data import Sample
from mmad_bank.errors import FormatError
from mmad_bank.methods import PatchCore
from mmad_bank.methods.map_scale import MapScale, distances_to_others, measure_scale, spread
from mmad_bank.methods.prediction import Gaussian

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def model(parts: list[Sample]) -> PatchCore:
    return PatchCore(**RGB).fit(parts)


def _bank(features: torch.Tensor, ratio: float) -> MemoryBank:
    bank = MemoryBank.build(features, ratio)
    bank.sources = [Source("rgb features", features.shape[0] * features.shape[1], features.shape[1])]
    return bank


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_distances_leave_the_image_itself_out(ratio: float) -> None:
    """Images lie apart from each other, so that the nearest rows are the image's own and many must be passed over."""
    features = torch.randn(4, 40, 6) + 5 * torch.randn(4, 1, 6)
    bank = _bank(features, ratio)
    for image in range(4):
        others = bank.vectors[bank.source_rows // 40 != image]
        wanted = torch.cdist(features[image].double(), others.double()).min(dim=1).values.float()
        found = distances_to_others(bank, features[image], [image])
        assert found is not None
        torch.testing.assert_close(found, wanted)


def test_distances_leave_copies_of_the_image_out() -> None:
    features = torch.randn(4, 40, 6, generator=torch.Generator().manual_seed(0))
    features[3] = features[1]
    bank = _bank(features, 1.0)
    found = distances_to_others(bank, features[1], [1, 3])
    wanted = torch.cdist(features[1].double(), features[[0, 2]].flatten(0, 1).double()).min(dim=1).values.float()
    assert found is not None
    torch.testing.assert_close(found, wanted)


def test_no_other_image_no_distance() -> None:
    features = torch.randn(1, 30, 4)
    assert distances_to_others(_bank(features, 0.5), features[0], [0]) is None


def test_scale_is_of_images_that_are_left_out(model: PatchCore, parts: list[Sample]) -> None:
    maps = []
    for image, part in enumerate(parts):
        bank = model.banks_["rgb"]
        others = MemoryBank(bank.vectors[bank.source_rows // 64 != image])
        patches = model._patches_of(model.prepare(part))["rgb"]
        scores = others.score(patches).patch
        maps.append(Gaussian(model.sigma)(scores.view(8, 8), (SIZE, SIZE)).numpy())
    scale = model.map_scale_
    assert scale is not None
    assert scale.images == 3
    assert "others' patches" in scale.origin
    for quantile, score in scale.quantiles["fused"].items():
        assert score == pytest.approx(np.quantile(np.stack(maps), quantile), rel=1e-4)


def test_a_good_image_is_mostly_dark_and_nowhere_bright(model: PatchCore) -> None:
    assert model.map_scale_ is not None
    low, high = model.map_scale_.limits()
    level = (model.predict(a_part(9)).map - low) / (high - low)
    assert float((level <= 0).float().mean()) > 0.5
    assert float(level.max()) < 0.75


def test_scale_goes_with_the_model(model: PatchCore, parts: list[Sample], tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    assert methods.load(tmp_path / "model").map_scale_ == model.map_scale_
    manifest = tmp_path / "model" / "model.json"
    content = json.loads(manifest.read_text())
    del content["map_scale"], content["checksum"]  # as older versions saved it
    manifest.write_text(json.dumps(content))
    old = methods.load(tmp_path / "model")
    assert old.map_scale_ is None
    assert old.predict(parts[0]).score == model.predict(parts[0]).score


@pytest.mark.parametrize(
    "change",
    [
        {"quantiles": {}},
        {"quantiles": {"fused": {"0.5": 1}}},
        {"quantiles": {"fused": {q: float("nan") for q in ("0.5", "0.9", "0.99", "0.999", "1")}}},
        {"images": "many"},
        {"quantiles": None},
    ],
)
def test_an_altered_scale_is_refused(model: PatchCore, tmp_path: Path, change: dict[str, Any]) -> None:
    model.save(tmp_path / "model")
    manifest = tmp_path / "model" / "model.json"
    content = json.loads(manifest.read_text())
    del content["checksum"]
    content["map_scale"] |= change
    manifest.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"altered or of another version|truncated or altered"):
        methods.load(tmp_path / "model")


def test_one_training_image_gives_no_scale(parts: list[Sample]) -> None:
    assert PatchCore(**RGB).fit(parts[:1]).map_scale_ is None


def test_limits_are_apart_even_where_all_pixels_are_equal() -> None:
    for value in (0.0, 3.0):
        scale = measure_scale([{"fused": torch.full((4, 4), value)}], "images", 1, progress=False)
        assert scale is not None
        low, high = scale.limits()
        assert low == value < high


def test_json_keeps_every_digit() -> None:
    scale = measure_scale([{"fused": torch.rand(8, 8), "rgb": torch.rand(8, 8)}], "images", 1, progress=False)
    assert scale is not None
    assert MapScale.from_json(json.loads(json.dumps(scale.as_json()))) == scale


def test_images_are_spread_evenly() -> None:
    assert spread(1) == [0]
    chosen = spread(160)
    assert chosen[0] == 0
    assert chosen[-1] == 159
    assert set(np.diff(chosen)) <= {10, 11}
