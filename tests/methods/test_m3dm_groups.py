"""M3DM with a bank of point groups: tokens as patches, and their scores interpolated to the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_parts import SIZE, a_part

from mmad_bank import methods
from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.features import PointBERT, PointMAE
from mmad_bank.features.point_alignment import measured_points
from mmad_bank.methods import M3DM
from mmad_bank.scoring import anomaly_map

pytest.importorskip("timm")

SMALL = {
    "banks": ("xyz",), "sampling": "groups", "xyz_weights": "random", "num_groups": 24, "group_size": 8, "ratio": 1.0,
    "image_size": SIZE, "standardization": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def fitted(parts: list[Sample]) -> M3DM:
    return M3DM(**SMALL).fit(parts)


def tokens_of(network: PointMAE, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and the pixels of the centers found by comparing coordinates."""
    points, pixels = measured_points(sample.xyz.permute(1, 2, 0))
    tokens, centers = network([points])
    rows = [int((points == center).all(1).nonzero()[0, 0]) for center in centers[0]]
    return tokens[0].double().numpy(), np.stack(np.divmod(pixels[rows].numpy(), SIZE), 1)


@pytest.mark.parametrize("rule", ["three_nearest", "all_centers"])
def test_groups_are_scored_and_their_scores_interpolated(fitted: M3DM, parts: list[Sample], rule: str) -> None:
    method = fitted if rule == "three_nearest" else M3DM(**SMALL, interpolation=rule).fit(parts)
    network = method.extractors_.networks["xyz"].network
    bank = np.concatenate([tokens_of(network, one)[0] for one in parts])
    tokens, places = tokens_of(network, a_part(40))
    distances = np.linalg.norm(tokens[:, None] - bank[None], axis=2)
    scores = distances.min(1)
    pixel = np.stack(np.divmod(np.arange(SIZE * SIZE), SIZE), 1)
    apart = np.linalg.norm(pixel[:, None] - places[None], axis=2)
    if rule == "all_centers":
        weights = 1 / (apart + 1e-8)
    else:
        weights = 1 / (apart**2 + 1e-8) * (apart <= np.sort(apart, axis=1)[:, 2:3])
    on = (a_part(40).xyz != 0).all(0).flatten().numpy()
    expected = torch.from_numpy((weights @ scores) / weights.sum(1) * on).float()
    assert 0 < on.sum() < len(on)
    prediction = method.predict(a_part(40))
    part = prediction.parts["xyz"]
    assert part.grid == (SIZE, SIZE)
    same = np.sort(apart, axis=1)[:, 3] > np.sort(apart, axis=1)[:, 2]  # not one of several at one distance
    kept = torch.from_numpy(same if rule == "three_nearest" else np.ones_like(same))
    torch.testing.assert_close(part.scores.flatten()[kept], expected[kept], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        prediction.map, anomaly_map(part.scores.flatten()[None], (SIZE, SIZE), (SIZE, SIZE))[0], atol=1e-4, rtol=1e-4
    )
    row, column = places[scores.argmax()]
    nearest = int(part.nearest[row, column])
    assert method.banks_["xyz"].source_rows[nearest] == distances[scores.argmax()].argmin()
    assert method.banks_["xyz"].extractor.endswith("groups")


def test_the_image_score_is_that_of_the_groups(fitted: M3DM) -> None:
    tokens, _ = tokens_of(fitted.extractors_.networks["xyz"].network, a_part(40))
    expected = fitted.banks_["xyz"].score(torch.from_numpy(tokens).float()[None], reweight="m3dm").image
    assert fitted.predict(a_part(40)).score == pytest.approx(float(expected), rel=1e-4)


def test_a_saved_model_predicts_and_explains_the_same(fitted: M3DM, parts: list[Sample], tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = methods.load(tmp_path / "model")
    one, other = fitted.predict(a_part(60)), loaded.predict(a_part(60))
    assert (one.score, fitted.map_scale_) == (other.score, loaded.map_scale_)
    assert torch.equal(one.map, other.map)
    reasons = loaded.explain(other, n=3)
    assert reasons == fitted.explain(one, n=3)
    assert (one.parts["xyz"].scores[0, 0], one.parts["xyz"].scores.min()) == (0, 0)
    assert all(reason.sample in fitted.train_ids_ and reason.place is None for reason in reasons)
    assert reasons[0].distance == pytest.approx(float(one.parts["xyz"].scores.max()), rel=0.05)
    own = fitted.explain(fitted.predict(parts[1]), n=1)[0]
    assert (own.sample, own.distance) == (parts[1].id, pytest.approx(0, abs=1e-2))


def test_the_colour_scale_is_of_maps_compared_with_the_other_images(fitted: M3DM, parts: list[Sample]) -> None:
    network = fitted.extractors_.networks["xyz"].network
    assert fitted.map_scale_ is not None
    assert fitted.map_scale_.images == len(parts)
    others = np.concatenate([tokens_of(network, one)[0] for one in parts[1:]])
    tokens, _ = tokens_of(network, parts[0])
    farthest = np.linalg.norm(tokens[:, None] - others[None], axis=2).min(1).max()
    assert 0 < fitted.map_scale_.quantiles["fused"][0.9] < farthest


def test_point_bert_takes_the_place_of_point_mae(parts: list[Sample], tmp_path: Path) -> None:
    for sampling in ("groups", "patches"):
        method = M3DM(**{**SMALL, "sampling": sampling, "xyz_grid": (8, 8)}, xyz="point_bert").fit(parts)
        method.save(tmp_path / sampling)
        loaded = methods.load(tmp_path / sampling)
        assert isinstance(loaded.extractors_.networks["xyz"].network, PointBERT)
        one, other = method.predict(a_part(60)), loaded.predict(a_part(60))
        assert (one.score, one.parts["xyz"].score) == (other.score, other.parts["xyz"].score)
        assert torch.equal(one.map, other.map)


def test_patches_and_groups_do_not_take_each_others_features(parts: list[Sample], tmp_path: Path) -> None:
    groups = M3DM(**SMALL)
    groups.fit(parts, workdir=tmp_path / "groups")
    patches = M3DM(**{**SMALL, "sampling": "patches", "xyz_grid": (8, 8)})
    assert not patches.reuse_features(parts, tmp_path / "groups", tmp_path / "patches")
    assert M3DM(**SMALL, n_neighbors=5).reuse_features(parts, tmp_path / "groups", tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"banks": ("xyz", "rgb")}, "banks: expected .* with sampling 'groups'"),
        ({"adaptation": "train"}, "adaptation: expected 'none' with sampling 'groups'"),
        ({"xyz": "fpfh"}, "xyz: expected point_mae or point_bert with sampling 'groups'"),
        ({"sampling": "points"}, "sampling: expected"),
    ],
)
def test_what_does_not_go_together_is_named(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        M3DM(**{**SMALL, **changes})
