"""LSFA as a method: adapted features in the banks, averaged scores, and what a saved model holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_parts import RGB, SIZE, a_part

from mmad_bank import methods
from mmad_bank.adaptation import training
from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.methods import LSFA, M3DM, lsfa

pytest.importorskip("timm")

SMALL = {
    **RGB, "xyz_weights": "random", "num_groups": 24, "group_size": 8, "adaptation_steps": 3, "adaptation_batch": 2,
    "queue_size": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def fitted(parts: list[Sample]) -> LSFA:
    return LSFA(**SMALL, ratio=1.0).fit(parts)


def test_the_registry_knows_it() -> None:
    assert "lsfa" in methods.names()
    assert methods.method_class("lsfa") is LSFA


def test_banks_hold_adapted_features_and_scores_are_the_averages(fitted: LSFA, parts: list[Sample]) -> None:
    """With every patch in the banks: nearest distances by plain NumPy, of features adapted by the adaptors."""
    sample = a_part(40)
    prediction = fitted.predict(sample)
    rows: dict[str, list[np.ndarray]] = {"xyz": [], "rgb": []}
    for one in [*parts, sample]:
        for name, features in fitted.extractors_([one]).items():
            with torch.no_grad():
                rows[name].append(fitted.adaptation_.adaptors[name](features)[0].double().numpy())
    patch = {}
    for name, images in rows.items():
        bank = np.concatenate(images[:-1])
        distances = np.linalg.norm(images[-1][:, None] - bank[None], axis=2).min(1) / bank.std()
        patch[name] = distances
        np.testing.assert_allclose(prediction.parts[name].scores.flatten().numpy(), distances, atol=1e-3)
    average = torch.from_numpy((patch["xyz"] + patch["rgb"]) / 2).float()
    from mmad_bank.scoring import anomaly_map

    expected = anomaly_map(average[None], (8, 8), (SIZE, SIZE))[0]
    torch.testing.assert_close(prediction.map, expected, atol=1e-3, rtol=1e-3)
    both = [prediction.parts[name].score for name in ("xyz", "rgb")]
    assert prediction.score == pytest.approx(sum(both) / 2, rel=1e-5)


def test_without_adaptation_the_banks_hold_the_extractors_features(parts: list[Sample]) -> None:
    method = LSFA(**SMALL, ratio=1.0, adaptation="none").fit(parts)
    assert method.adaptation_ is None
    features = method.extractors_([parts[0]])
    for name, rows in features.items():
        held = method.banks_[name].search(rows[0], 1)[0]
        assert float(held.max()) < 1e-2


def test_adaptors_from_a_file_are_taken_as_they_are(parts: list[Sample], fitted: LSFA, tmp_path: Path) -> None:
    fitted.adaptation_.save(tmp_path / "pair.safetensors")
    method = LSFA(**SMALL, adaptation=str(tmp_path / "pair.safetensors")).fit(parts)
    for a, b in zip(fitted.adaptation_.state_dict().values(), method.adaptation_.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_saved_model_predicts_and_explains_the_same(fitted: LSFA, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = methods.load(tmp_path / "model")
    assert isinstance(loaded, LSFA)
    sample = a_part(60)
    one, other = fitted.predict(sample), loaded.predict(sample)
    assert one.score == other.score
    assert torch.equal(one.map, other.map)
    reasons = loaded.explain(other, "rgb", n=2)
    assert reasons == fitted.explain(one, "rgb", n=2)
    assert reasons[0].distance == pytest.approx(float(one.parts["rgb"].scores.max()), rel=1e-3)


def test_one_by_one_and_eight_at_once_agree(fitted: LSFA) -> None:
    samples = [a_part(seed, f"new/{seed}") for seed in range(20, 28)]
    together, apart = fitted.predict_batch(samples), [fitted.predict(sample) for sample in samples]
    for one, other in zip(together, apart, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        torch.testing.assert_close(one.map, other.map, atol=1e-4, rtol=1e-4)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_fit_that_was_killed_goes_on_to_the_same_bytes(
    parts: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lsfa, "train_adaptation", partial(lsfa.train_adaptation, save_every=3))
    original = training.Training.losses

    def die_later(self, step: int):
        if step == 5:
            raise Killed
        return original(self, step)

    def fit(workdir: Path) -> list[torch.Tensor]:
        torch.manual_seed(7)  # the random extractors' weights
        method = LSFA(**{**SMALL, "adaptation_steps": 7}).fit(parts, workdir=workdir)
        return [*method.adaptation_.state_dict().values(), *(bank.vectors for bank in method.banks_.values())]

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "losses", die_later)
        with pytest.raises(Killed):
            fit(tmp_path / "work")
    assert torch.load(tmp_path / "work" / "adaptation.pt", weights_only=True)["step"] == 3
    again, new = fit(tmp_path / "work"), fit(tmp_path / "new")
    assert all(torch.equal(a, b) for a, b in zip(again, new, strict=True))


def test_what_cannot_be_used_is_named() -> None:
    with pytest.raises(InputError, match="losses"):
        LSFA(losses=("contrast",))


# M3DM on adapted features.

M3DM_SMALL = {
    **{name: value for name, value in SMALL.items() if name != "queue_size"}, "ratio": 1.0, "uff_steps": 2,
    "uff_batch": 2, "uff_patches": 16,
}  # fmt: skip


@pytest.mark.slow
def test_m3dm_builds_its_banks_on_adapted_features(parts: list[Sample], tmp_path: Path) -> None:
    method = M3DM(**M3DM_SMALL, adaptation="train").fit(parts)
    assert method.adaptation_ is not None
    adapted = method.adaptation_.adapt(method.extractors_([parts[1]]))
    for name, rows in adapted.items():
        assert float(method.banks_[name].search(rows[0], 1)[0].max()) < 1e-2
    fused = method.uff_.fuse(adapted["xyz"], adapted["rgb"])[0]
    assert float(method.banks_["fusion"].search(fused, 1)[0].max()) < 1e-2
    method.save(tmp_path / "model")
    sample = a_part(60)
    one, other = method.predict(sample), methods.load(tmp_path / "model").predict(sample)
    assert one.score == other.score
    assert torch.equal(one.map, other.map)
    assert method.banks_["rgb"].extractor.endswith("adapted")


@pytest.mark.slow
def test_a_single_bank_of_m3dm_is_adapted_by_both_modalities(parts: list[Sample]) -> None:
    method = M3DM(**M3DM_SMALL, adaptation="train", banks=("rgb",)).fit(parts)
    assert set(method.extractors_.networks) == {"xyz", "rgb"}
    assert tuple(method.banks_) == ("rgb",)
    plain = M3DM(**M3DM_SMALL, banks=("rgb",)).fit(parts)
    assert set(plain.extractors_.networks) == {"rgb"}
    assert plain.adaptation_ is None
