"""M3DM, PatchCore and BTF: the papers' arithmetic in a few lines of NumPy, the variants, and the published quirks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_parts import RGB, SIZE, a_part

from mmad_bank import MemoryBank, methods
from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.features.factory import comes_with_a_package
from mmad_bank.fusion import FeatureFusion
from mmad_bank.methods import BTF, M3DM, PatchCore
from mmad_bank.scoring import anomaly_map

pytest.importorskip("timm")
pytest.importorskip("sklearn")

GRID = (8, 8)
SMALL: dict[str, Any] = {
    **RGB, "xyz_weights": "random", "num_groups": 24, "group_size": 8, "uff_steps": 3, "uff_batch": 2,
    "uff_patches": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def fitted(parts: list[Sample]) -> M3DM:
    return M3DM(**SMALL, ratio=1.0).fit(parts)


def described(method: M3DM, samples: list[Sample]) -> dict[str, np.ndarray]:
    """Features by bank, (B, P, D) float64: the parts of the pipeline one by one."""
    features = method.extractors_(samples)
    if method.uff_ is not None:
        features["fusion"] = method.uff_.fuse(features["xyz"], features["rgb"])
    return {name: features[name].double().numpy() for name in method.banks if name in features}


def nearest(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Distances to the nearest row."""
    return np.sqrt(((queries[:, None] - bank[None]) ** 2).sum(-1)).min(1)


# The arithmetic.


def test_three_banks_and_dlf_are_the_papers_arithmetic(fitted: M3DM, parts: list[Sample]) -> None:
    sample = a_part(40)
    prediction = fitted.predict(sample)
    normal, tested = described(fitted, parts), described(fitted, [sample])
    assert fitted.dlf_ is not None
    fused = np.zeros(64)
    for name, factor in (("xyz", 1.0), ("rgb", 0.1), ("fusion", 1.0)):
        mean, std = normal[name].mean(), normal[name].std(ddof=1)
        standardized = (normal[name].reshape(64 * 4, -1) - mean) / std
        scores = nearest((tested[name][0] - mean) / std, standardized)
        np.testing.assert_allclose(prediction.parts[name].scores.flatten(), scores, rtol=2e-4, atol=2e-4)
        fused += factor * scores * float(fitted.dlf_.weights_["pixels"][list(fitted.dlf_.factors).index(name)])
    expected = anomaly_map(torch.from_numpy(fused[None]), GRID, (SIZE, SIZE))[0]
    np.testing.assert_allclose(prediction.map, expected, rtol=1e-3, atol=1e-3)
    images = {name: torch.tensor([part.score]) for name, part in prediction.parts.items()}
    assert prediction.score == pytest.approx(float(fitted.dlf_.fuse_images(images)), rel=1e-5)


def test_the_map_is_the_fusion_of_the_banks_maps_pixel_by_pixel(fitted: M3DM) -> None:
    """Equation 5 works on maps; fusing patches first gives the same, because all steps are linear."""
    prediction = fitted.predict(a_part(41))
    maps = {name: part.map((SIZE, SIZE))[None] for name, part in prediction.parts.items()}
    assert fitted.dlf_ is not None
    torch.testing.assert_close(fitted.dlf_.fuse_pixels(maps)[0], prediction.map, rtol=1e-4, atol=1e-4)


def test_dlf_is_trained_on_the_banks_scores_of_the_training_images(parts: list[Sample]) -> None:
    """With all patches in the banks every training score is zero, and nothing can be learnt from zeros."""
    method = M3DM(**SMALL, ratio=0.25).fit(parts)
    assert method.dlf_ is not None
    scores = [method.predict(sample) for sample in parts]
    images = {name: np.array([p.parts[name].score for p in scores]) for name in method.banks}
    pixels = {name: torch.stack([p.parts[name].map((SIZE, SIZE)) for p in scores]) for name in method.banks}
    from mmad_bank.fusion import DecisionFusion

    again = DecisionFusion().fit({name: torch.from_numpy(x) for name, x in images.items()}, pixels)
    torch.testing.assert_close(method.dlf_.weights_["images"], again.weights_["images"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(method.dlf_.weights_["pixels"], again.weights_["pixels"], rtol=5e-3, atol=5e-3)


def test_btf_is_one_bank_of_both_features_side_by_side(parts: list[Sample]) -> None:
    pytest.importorskip("open3d")
    method = BTF(**RGB, ratio=1.0).fit(parts)
    features = method.extractors_([parts[0]])
    bank = method.banks_["concatenated"]
    assert bank.dim == 24 + 33
    own = bank.vectors[(bank.source_rows < 64)]
    order = bank.source_rows[bank.source_rows < 64].argsort()
    torch.testing.assert_close(own[order], torch.cat([features["rgb"], features["xyz"]], dim=2)[0])


def test_patchcore_scores_with_its_own_reweighting(parts: list[Sample]) -> None:
    method = PatchCore(**RGB, ratio=0.5).fit(parts)
    sample = a_part(42)
    patches = method.extractors_([sample])["rgb"]
    bank = MemoryBank(method.banks_["rgb"].vectors)
    assert method.predict(sample).score == pytest.approx(float(bank.score(patches, reweight="patchcore").image))
    assert len(bank) == 128


# The variants of the papers' tables.


@pytest.mark.parametrize(
    "variant",
    [
        {"banks": ("rgb",)}, {"banks": ("xyz",)}, {"banks": ("fusion",), "fusion": "concat"},
        {"banks": ("xyz", "rgb"), "decision": "add"}, {"banks": ("rgb", "fusion", "xyz")},
        *(pytest.param({"banks": banks}, marks=pytest.mark.slow) for banks in (("fusion",), ("xyz", "rgb"))),
    ],
    ids=lambda variant: "-".join(map(str, variant.values())),
)  # fmt: skip
@pytest.mark.parametrize("recipe", ["default", "paper", "published"])
def test_variants_fit_save_load_and_predict(
    variant: dict[str, Any], recipe: str, parts: list[Sample], tmp_path: Any
) -> None:
    method = M3DM(**SMALL, **variant, recipe=recipe).fit(parts)  # type: ignore[arg-type]
    sample = a_part(43)
    prediction = method.predict(sample)
    assert set(prediction.parts) == set(variant["banks"])
    assert prediction.map.shape == (SIZE, SIZE)
    assert np.isfinite(prediction.score)
    assert (method.dlf_ is not None) == (len(variant["banks"]) > 1 and variant.get("decision") != "add")
    assert (method.uff_ is not None) == ("fusion" in variant["banks"] and variant.get("fusion") != "concat")
    method.save(tmp_path / "model")
    loaded = methods.load(tmp_path / "model")
    again = loaded.predict(sample)
    assert again.score == pytest.approx(prediction.score, rel=1e-6)
    torch.testing.assert_close(again.map, prediction.map)
    assert loaded.arguments() == method.arguments()


def test_added_scores_are_sums(parts: list[Sample]) -> None:
    prediction = M3DM(**SMALL, banks=("xyz", "rgb"), decision="add").fit(parts).predict(a_part(44))
    assert prediction.score == pytest.approx(sum(part.score for part in prediction.parts.values()), rel=1e-6)
    maps = [part.map((SIZE, SIZE)) for part in prediction.parts.values()]
    torch.testing.assert_close(prediction.map, maps[0] + maps[1])


def test_a_bank_needs_only_the_extractors_of_its_modality(parts: list[Sample]) -> None:
    only = M3DM(**SMALL, banks=("rgb",)).fit(parts)
    assert set(only.extractors_.networks) == {"rgb"}


def test_the_published_recipe_shrinks_banks_and_shares_mean_and_std(parts: list[Sample]) -> None:
    method = M3DM(**SMALL, ratio=0.25, recipe="published").fit(parts)
    xyz, rgb, fusion = (method.banks_[name] for name in ("xyz", "rgb", "fusion"))
    assert (len(xyz), len(rgb), len(fusion)) == (64 + 1, 16, 16)
    features = method.extractors_([*parts])
    mean, std = features["xyz"].double().mean(), features["rgb"].double().std()
    for bank in (xyz, rgb, fusion):
        assert bank.standardization is not None
        assert bank.standardization.mean == pytest.approx(float(mean), rel=1e-4, abs=1e-6)
        assert bank.standardization.std == pytest.approx(float(std), rel=1e-5)
    torch.testing.assert_close(xyz.vectors[-1], torch.full((xyz.dim,), float(mean)))
    assert xyz.provenance([64])[0].file == "mean feature"
    grid_place = method.explain(method.predict(parts[0]), "xyz", n=65)
    assert [reason.sample for reason in grid_place].count(None) == 1


def test_published_single_banks_are_not_standardised_but_rgb(parts: list[Sample]) -> None:
    wanted = {"rgb": True, "xyz": False, "fusion": False}
    for name, standardized in wanted.items():
        bank = M3DM(**SMALL, banks=(name,), recipe="published").fit(parts).banks_[name]
        assert (bank.standardization is not None) == standardized, name


def test_two_published_banks_divide_the_largest_score_by_1000_before_it_is_reweighted(parts: list[Sample]) -> None:
    method = M3DM(**SMALL, banks=("xyz", "rgb"), recipe="published", ratio=0.5).fit(parts)
    sample = a_part(45)
    prediction = method.predict(sample)
    tested = described(method, [sample])
    for name, part in prediction.parts.items():
        bank, std = method.banks_[name].vectors.double().numpy(), float(method.banks_[name].standardization.std)  # type: ignore[union-attr]
        patch = tested[name][0][int(part.scores.argmax())]
        center = bank[((bank - patch) ** 2).sum(1).argmin()]
        around = bank[np.argsort(((bank - center) ** 2).sum(1), kind="stable")[1:3]]
        scale, largest = bank.shape[1] ** -0.5, float(part.scores.max()) / 1000
        weight = 1 - np.exp(largest * scale) / np.exp(np.sqrt(((around - patch) ** 2).sum(1)) / std * scale).sum()
        assert part.score == pytest.approx(weight * largest, rel=1e-4)
    assert method.dlf_ is not None
    images = {name: torch.tensor([part.score]) for name, part in prediction.parts.items()}
    assert prediction.score == pytest.approx(float(method.dlf_.fuse_images(images)), rel=1e-5)
    added = M3DM(**SMALL, banks=("xyz", "rgb"), recipe="published", ratio=0.5, decision="add").fit(parts)
    assert added.predict(sample).parts["xyz"].score > 100 * prediction.parts["xyz"].score  # no DLF, no division


def test_a_given_uff_is_not_trained(parts: list[Sample], tmp_path: Any) -> None:
    torch.manual_seed(1)
    given = FeatureFusion(1152, 24)
    given.save(tmp_path / "uff.pth")
    method = M3DM(**SMALL, uff_weights=str(tmp_path / "uff.pth")).fit(parts)
    assert method.uff_ is not None
    torch.testing.assert_close(method.uff_.xyz_mlp.fc1.weight, given.xyz_mlp.fc1.weight)
    with pytest.raises(InputError, match=r"^uff_weights: expected weights for xyz .* 1152 and rgb .* \(.*uff\.pth\)$"):
        M3DM(**{**SMALL, "rgb_layers": (1, 2)}, uff_weights=str(tmp_path / "uff.pth")).fit(parts)


# The interface.


def test_batches_of_eight_score_as_one_by_one(parts: list[Sample]) -> None:
    method = M3DM(**SMALL).fit(parts)
    samples = [a_part(seed) for seed in range(60, 68)]
    together, alone = method.predict_batch(samples), [method.predict(sample) for sample in samples]
    for a, b in zip(together, alone, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-4)
        torch.testing.assert_close(a.map, b.map, rtol=0, atol=1e-4)
    assert method.predict_batch([]) == []


def test_a_training_patch_explains_itself(fitted: M3DM, parts: list[Sample]) -> None:
    prediction = fitted.predict(parts[2])
    for name in fitted.banks:
        reason = fitted.explain(prediction, name, place=(4, 3), n=2)[0]
        assert (reason.sample, reason.place) == (parts[2].id, (4, 3))
        assert reason.distance == pytest.approx(0, abs=1e-3)
    with pytest.raises(InputError, match="part: expected one of xyz, rgb, fusion, found 'depth'"):
        fitted.explain(prediction, "depth")


def test_explaining_with_every_bank_describes_the_sample_once(
    parts: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = M3DM(**SMALL).fit(parts)
    first, second = (method.predict(sample) for sample in (a_part(80), a_part(81)))
    described: list[str] = []
    features = method._features

    def counted(samples: list[Sample]) -> dict[str, torch.Tensor]:
        described.extend(sample.id for sample in samples)
        return features(samples)

    monkeypatch.setattr(method, "_features", counted)
    apart = [method.explain(prediction, name) for prediction in (first, second) for name in method.banks]
    assert described == [first.sample.id, second.sample.id]
    assert apart[0] == method.explain(first, "xyz") != apart[3]


def test_bytes_count_every_network(fitted: M3DM) -> None:
    held = [*fitted.extractors_.networks.values(), fitted.uff_]
    weights = sum(tensor.nbytes for network in held if network for tensor in network.state_dict().values())
    assert fitted.nbytes == weights + fitted.banks_.nbytes


def test_samples_that_cannot_be_used_are_left_out_and_named(parts: list[Sample]) -> None:
    few = replace(a_part(70, "part/train/good/few"), xyz=torch.zeros(3, SIZE, SIZE))
    few.xyz[:, 30, 30:40] = 0.3
    method = M3DM(**SMALL).fit([*parts, few])
    assert method.train_ids_ == [part.id for part in parts]
    assert method.skipped_ == {few.id: f"{few.id}: expected at least 24 points (num_groups), found 10"}
    with pytest.raises(InputError, match="part/train/good/few: expected at least 24 points"):
        method.predict_batch([parts[0], few])
    empty = replace(few, xyz=torch.zeros(3, SIZE, SIZE), id="part/test/good/empty")
    with pytest.raises(InputError, match="part/test/good/empty: xyz: expected measured points, found none"):
        method.predict(empty)
    with pytest.raises(InputError, match="dataset: no sample can be used; part/train/good/few: expected at least"):
        M3DM(**SMALL).fit([few])


def test_missing_measurements_may_be_nan(fitted: M3DM) -> None:
    """Some exports mark them with NaN, others with zeros."""
    sample = a_part(71)
    marked = replace(sample, xyz=torch.where(sample.xyz == 0, torch.nan, sample.xyz))
    assert fitted.predict(marked).score == pytest.approx(fitted.predict(sample).score, rel=1e-6)


def test_wrong_arguments_are_one_line(parts: list[Sample]) -> None:
    with pytest.raises(InputError, match="banks: expected some of xyz, rgb, fusion, each once, found "):
        M3DM(banks=("rgb", "depth"))
    with pytest.raises(InputError, match="banks: expected some of xyz, rgb, fusion, each once, found "):
        M3DM(banks=())
    with pytest.raises(InputError, match="decision: expected one of dlf, add, calibrated, found 'vote'"):
        M3DM(decision="vote")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"xyz_weights: expected the file of Point-MAE's published checkpoint"):
        M3DM(**{**SMALL, "xyz_weights": "pretrained"}).fit(parts)
    with pytest.raises(InputError, match="M3DM: not fitted"):
        M3DM(**SMALL).predict(parts[0])
    with pytest.raises(InputError, match="dataset: expected normal samples, found none"):
        M3DM(**SMALL).fit([])


def test_samples_prepared_in_another_size_are_refused(fitted: M3DM) -> None:
    sample = a_part(72)
    other = replace(sample, rgb=sample.rgb[:, :32, :32], xyz=sample.xyz[:, :32, :32], mask=None)
    with pytest.raises(InputError, match=r"expected a prepared sample of 64×64 pixels \(image_size\), found 32×32"):
        fitted.predict(other)


@pytest.mark.parametrize("method", [PatchCore, BTF, M3DM])
def test_bundled_arguments_fit_the_constructor(method: type) -> None:
    assert comes_with_a_package(method(**method.bundled_arguments()).rgb)


# Resuming.


@pytest.mark.slow
def test_a_training_goes_on_behind_its_last_finished_stage(
    parts: list[Sample], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    build = MemoryBank.build.__func__  # type: ignore[attr-defined]

    def failing(cls: Any, *args: Any, **options: Any) -> MemoryBank:
        calls["build"] += 1
        if calls["build"] == 2:
            raise KeyboardInterrupt
        return build(cls, *args, **options)

    def counted(self: M3DM, sample: Sample) -> Sample:
        calls["prepare"] += 1
        return sample

    monkeypatch.setattr(MemoryBank, "build", classmethod(failing))
    monkeypatch.setattr(M3DM, "prepare", counted)
    with pytest.raises(KeyboardInterrupt):
        M3DM(**SMALL, calibration="none").fit(parts, workdir=tmp_path)
    resumed = M3DM(**SMALL, calibration="none").fit(parts, workdir=tmp_path)
    assert calls == {"build": 4, "prepare": 4}  # the second of three banks again, no image again
    whole = M3DM(**SMALL).fit(parts)
    sample = a_part(73)
    assert resumed.predict(sample).score == whole.predict(sample).score
    other = M3DM(**SMALL, ratio=0.5).fit(parts, workdir=tmp_path)  # other arguments: all anew
    assert calls["prepare"] > 8
    assert len(other.banks_["xyz"]) == 128
