"""Maps, parts and explanations in the picture's pixels; padding has no say in scores and metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import small_ast
import torch

pytest.importorskip("timm")
pytest.importorskip("scipy")

from raw_pictures import KEEP, SIZE, Colours, picture

from mmad_bank.data import Sample, open_dataset, prepare, preprocess
from mmad_bank.errors import InputError
from mmad_bank.evaluation import evaluate
from mmad_bank.methods import AST, CFM, MDSS, PatchCore
from mmad_bank.methods.base import Method
from mmad_bank.synthetic import write_synthetic

SMALL = {"rgb": "efficientnet_lite0", "rgb_weights": "random", "image_size": SIZE, "grid": (8, 8)}


@pytest.fixture(scope="module")
def patchcore() -> PatchCore:
    method = Colours(**SMALL, sigma=1.0, ratio=0.5)
    return method.fit([preprocess(picture((60, 120), seed), KEEP) for seed in range(3)])


@pytest.mark.parametrize("shape", [(60, 120), (120, 60), (100, 100), (31, 97), (300, 200)])
def test_a_defect_is_found_in_the_pictures_pixels(patchcore: PatchCore, shape: tuple[int, int]) -> None:
    spot = (shape[0] // 2 + shape[0] // 8, shape[1] // 3)
    for sample in (picture(shape, 5, spot), preprocess(picture(shape, 5, spot), KEEP)):
        prediction = patchcore.predict(sample)
        assert prediction.map.shape == shape == prediction.size
        assert prediction.map.dtype == torch.float32
        assert prediction.prepared_map.shape == (SIZE, SIZE)
        hot = prediction.map > prediction.map.max() / 2
        centre = torch.nonzero(hot).double().mean(0)
        step = max(shape) / 8  # a patch of the grid, in the picture's pixels
        assert (centre - torch.tensor(spot)).abs().max() < 0.75 * step
        top, left, bottom, right = prediction.box("rgb")
        assert top - step / 2 <= spot[0] <= bottom + step / 2
        assert left - step / 2 <= spot[1] <= right + step / 2
        original = prediction.original
        assert original.size == shape
        assert original.mask is not None
        assert bool(original.mask[spot])
        assert float(original.rgb[:, spot[0], spot[1]].min()) > 0.9
    assert patchcore.predict(picture(shape, 5, spot)).original.rgb.shape == (3, *shape)


def test_explanations_name_pixels_of_the_training_picture(patchcore: PatchCore, tmp_path: Path) -> None:
    patchcore.save(tmp_path / "model")
    for method in (patchcore, Colours.load(tmp_path / "model")):
        reason = method.explain(method.predict(picture((60, 120), 1)), n=1)[0]
        assert reason.place is not None
        assert reason.box is not None
        top, left, bottom, right = reason.box
        assert 0 <= top <= bottom <= 60
        assert 0 <= left < right <= 120
        frame = method.frames_[0]
        assert frame is not None
        assert frame.picture == (60, 120)
        assert frame.box(reason.place, (8, 8)) == reason.box


# Padding.


@pytest.mark.parametrize("place", [(0, 8), (8, 0), (-1, 0), (0, -1), (1.0, 1)])
def test_places_outside_the_grid_are_refused(patchcore: PatchCore, place: tuple[int, int]) -> None:
    prediction = patchcore.predict(picture((60, 120), 1))
    for ask in (lambda: patchcore.explain(prediction, place=place), lambda: prediction.box("rgb", place)):
        with pytest.raises(InputError, match=r"place: (row|column): expected"):
            ask()
    with pytest.raises(InputError, match="part: expected one of rgb, found 'xyz'"):
        prediction.box("xyz")


@pytest.mark.parametrize(("shape", "place", "words"), [
    ((60, 120), (1, 3), "a row of the picture, 2 to 5, found 1"),
    ((120, 60), (3, 6), "a column of the picture, 2 to 5, found 6"),
])  # fmt: skip
def test_places_of_padding_are_refused(
    patchcore: PatchCore, shape: tuple[int, int], place: tuple[int, int], words: str
) -> None:
    prediction = patchcore.predict(picture(shape, 1))
    for ask in (lambda: patchcore.explain(prediction, place=place), lambda: prediction.box("rgb", place)):
        with pytest.raises(InputError, match=f"^place: expected {words}, which is padding$"):
            ask()


def disturbed(sample: Sample) -> Sample:
    """The same prepared sample with other colours in its padding."""
    assert sample.frame is not None
    rgb = torch.rand(sample.rgb.shape, generator=torch.Generator().manual_seed(1))
    rgb[:, sample.frame.rows, sample.frame.columns] = sample.rgb[:, sample.frame.rows, sample.frame.columns]
    return replace(sample, rgb=rgb)


def test_padding_has_no_say_in_scores(patchcore: PatchCore) -> None:
    sample = preprocess(picture((40, 160), 7), KEEP)
    assert sample.frame is not None
    rows, _ = sample.frame.cells((8, 8))
    assert (rows.start, rows.stop) == (3, 5), "most patches are padding"
    prediction, everywhere = patchcore.predict(sample), patchcore.predict(replace(sample, frame=None))
    scores = prediction.parts["rgb"].scores
    torch.testing.assert_close(scores[3:5], everywhere.parts["rgb"].scores[3:5], rtol=1e-4, atol=1e-4)
    assert torch.equal(scores[:3], scores[3].expand(3, -1)), "nothing of the padding reaches the map"
    assert torch.equal(scores[5:], scores[4].expand(3, -1))
    noisy = disturbed(sample)
    right, counted = patchcore.predict(noisy), patchcore.predict(replace(noisy, frame=None))
    assert counted.parts["rgb"].worst[0] not in (3, 4), "padding has the largest score where it counts"
    assert right.parts["rgb"].worst[0] in (3, 4)
    assert counted.score > 1.2 * right.score
    assert float(right.prepared_map.max()) < float(counted.prepared_map.max())


def test_mixed_pictures_in_one_batch_are_scored_as_alone(patchcore: PatchCore) -> None:
    shapes = [(60, 120), (120, 60), (100, 100), (60, 120), (31, 97)]
    samples = [picture(shape, seed) for seed, shape in enumerate(shapes)]
    for sample, together in zip(samples, patchcore.predict_batch(samples), strict=True):
        alone = patchcore.predict(sample)
        assert together.score == pytest.approx(alone.score, rel=1e-4)
        torch.testing.assert_close(together.map, alone.map, rtol=1e-3, atol=1e-3)
        assert torch.equal(together.parts["rgb"].nearest, alone.parts["rgb"].nearest)


def test_square_pictures_without_padding_are_scored_as_ever(patchcore: PatchCore) -> None:
    """To the bit what the bank's own score of all patches gives."""
    sample = preprocess(picture((200, 200), 9, (50, 120)), KEEP)
    prediction = patchcore.predict(sample)
    scores = patchcore.banks_.score(patchcore.extractors_([sample]), reweight="patchcore")["rgb"]
    assert prediction.score == float(scores.image)
    assert torch.equal(prediction.parts["rgb"].scores.flatten(), scores.patch[0])
    unknown = patchcore.predict(replace(sample, frame=None))
    assert torch.equal(unknown.prepared_map, prediction.prepared_map)
    one, other = (evaluate(patchcore, [x, preprocess(picture((200, 200), 8), KEEP)]) for x in (sample, sample))
    whole = evaluate(patchcore, [replace(s, frame=None) for s in (sample, preprocess(picture((200, 200), 8), KEEP))])
    assert one.metrics == other.metrics == whole.metrics


@pytest.fixture(scope="module")
def memoryless() -> list[Method]:
    parts = [preprocess(picture((60, 120), seed), KEEP) for seed in range(2)]
    cfm = CFM(
        "efficientnet_lite0", "random", xyz="fpfh", image_size=SIZE, grid=(8, 8), map_size=32, epochs=1, sigma=1.0
    )
    mdss = MDSS(
        rgb_weights="random", image_size=SIZE, pdn_width=2, channels=4, teacher_steps=1, student_steps=1, sdf_steps=1,
        sdf_batch=2, sdf_width=8, patch_size=50, coverage=(1.0, 1.0),
    )  # fmt: skip
    ast = AST(**{**small_ast.SMALL, "image_size": SIZE})
    return [cfm.fit(parts), mdss.fit(parts), ast.fit(parts)]


def test_methods_without_banks_take_the_pictures_largest_score(memoryless: list[Method]) -> None:
    sample = preprocess(picture((40, 160), 3), KEEP)
    assert sample.frame is not None
    for method in memoryless:
        prediction = method.predict(sample)
        inside = prediction.prepared_map[sample.frame.rows, sample.frame.columns]
        if isinstance(method, CFM | AST):
            assert prediction.score == pytest.approx(float(inside.max()))
        for part in prediction.parts.values():
            rows, columns = part.shown
            assert rows.start <= part.worst[0] < rows.stop
            assert columns.start <= part.worst[1] < columns.stop
        assert prediction.map.shape == (40, 160)


def test_padding_is_not_counted_by_the_metrics(patchcore: PatchCore) -> None:
    samples = [
        preprocess(picture((40, 160), seed, spot), KEEP) for seed, spot in ((1, None), (2, (20, 40)), (3, (20, 90)))
    ]
    found = evaluate(patchcore, samples)
    cut = []
    for sample in samples:
        prediction, frame = patchcore.predict(sample), sample.frame
        assert frame is not None
        assert sample.mask is not None
        cut.append((sample.mask[frame.rows, frame.columns], prediction.prepared_map[frame.rows, frame.columns]))
    from mmad_bank.metrics import aupro, auroc

    masks, maps = (torch.stack(one) for one in zip(*cut, strict=True))
    assert found.metrics["fused"].pixel_auroc == auroc(masks, maps)
    assert found.metrics["fused"].aupro[0.3] == pytest.approx(aupro(masks, maps), abs=1e-9)
    counted = evaluate(patchcore, [replace(sample, frame=None) for sample in samples])
    assert counted.metrics["fused"].pixel_auroc != found.metrics["fused"].pixel_auroc


def test_prepared_data_give_maps_of_the_originals_size(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    write_synthetic(tmp_path / "raw", size=96, n_train=2, n_validation=0, n_test=3, categories=["laid_rope"])
    raw = open_dataset(tmp_path / "raw", split="test")
    prepare(tmp_path / "raw", tmp_path / "ready", KEEP)
    ready = open_dataset(tmp_path / "ready", split="test")
    method = PatchCore(**SMALL, rgb_layers=(1,)).fit(open_dataset(tmp_path / "ready"))
    for one, other in zip(raw, ready, strict=True):
        first, second = method.predict(one), method.predict(other)
        assert one.size == first.map.shape == second.map.shape
        assert one.size[0] != one.size[1]
        torch.testing.assert_close(first.map, second.map, rtol=1e-4, atol=1e-4)
        assert (second.original.rgb - first.original.rgb).abs().mean() < 0.05
