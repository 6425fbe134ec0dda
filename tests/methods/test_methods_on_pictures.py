"""Methods on pictures without point clouds: some take them, the others say what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import ConcatDataset

for package in ("timm", "tifffile"):
    pytest.importorskip(package)

from data_trees import add_mvtec_ad
from raw_pictures import KEEP, Colours, colours, picture
from small_mdss import SMALL
from small_parts import CFM_ARGUMENTS

from mmad_bank.data import SampleDataset, open_dataset, prepare
from mmad_bank.errors import InputError
from mmad_bank.evaluation import evaluate
from mmad_bank.methods import BTF, CFM, M3DM, MDSS


@pytest.fixture
def bottles(tmp_path: Path) -> Path:
    add_mvtec_ad(tmp_path / "raw" / "bottle")
    prepare(tmp_path / "raw", tmp_path / "prepared", KEEP)
    return tmp_path


@pytest.fixture
def train(bottles: Path) -> SampleDataset:
    return open_dataset(bottles / "raw")


def test_raw_and_prepared_pictures_give_the_same_model(bottles: Path, train: SampleDataset) -> None:
    raw, made = colours().fit(train), colours().fit(open_dataset(bottles / "prepared"))
    assert raw.preprocessing_ == made.preprocessing_ == KEEP
    assert torch.equal(raw.banks_["rgb"].vectors, made.banks_["rgb"].vectors)
    found = [evaluate(raw, open_dataset(bottles / name, split="test")) for name in ("raw", "prepared")]
    assert found[0].scores == found[1].scores
    assert found[0].metrics["fused"].image_auroc == 1.0
    assert found[0].metrics["fused"].aupro[0.3] > 0.5


def test_lists_and_wrappers_are_taken_alike(train: SampleDataset) -> None:
    whole = colours().fit(train)
    for samples in (list(train), ConcatDataset([train.select([0, 1]), list(train)[2:]])):
        assert torch.equal(colours().fit(samples).banks_["rgb"].vectors, whole.banks_["rgb"].vectors)  # type: ignore[arg-type]


def test_a_methods_own_modalities_are_known_before_it_is_fitted() -> None:
    assert colours().modalities == M3DM(banks=("rgb",)).modalities == MDSS(branches=("rgb",)).modalities == {"rgb"}
    assert M3DM(banks=("xyz",)).modalities == {"xyz"}
    for method in (M3DM(), M3DM(banks=("fusion",)), M3DM(banks=("rgb",), adaptation="train"), BTF(), CFM(), MDSS()):
        assert method.modalities == {"rgb", "xyz"}


def test_methods_that_need_clouds_refuse_pictures_alone(bottles: Path, train: SampleDataset) -> None:
    words = r"^dataset: expected pictures and point clouds for cfm, found pictures alone; patchcore takes these"
    for samples in (train, list(train), open_dataset(bottles / "prepared")):
        with pytest.raises(InputError, match=words):
            CFM("efficientnet_lite0", **CFM_ARGUMENTS).fit(samples)
    clouds = replace(picture((20, 20)), modalities=frozenset({"xyz"}))
    with pytest.raises(InputError, match="dataset: expected pictures for patchcore, found point clouds alone"):
        colours().fit([clouds])
    with pytest.raises(InputError, match="found some samples without the one or the other"):
        colours().fit([clouds, train[0]])


def test_a_model_of_both_refuses_pictures_alone(train: SampleDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = colours().fit(train)
    monkeypatch.setattr(Colours, "modalities", frozenset({"rgb", "xyz"}))
    words = "expected pictures and point clouds for patchcore, found pictures alone"
    with pytest.raises(InputError, match=f"^dataset: {words}"):
        evaluate(model, train)
    for force in (False, True):  # nothing can be made of what is not there
        with pytest.raises(InputError, match=rf"000\.png: {words}"):
            model.predict(train[0], force=force)


def test_a_background_that_the_cloud_tells_is_no_background_of_pictures(train: SampleDataset) -> None:
    model = colours().fit(train)
    assert model.preprocessing_ is not None
    model.preprocessing_ = replace(model.preprocessing_, background="plane")
    model.categories_ = []
    with pytest.raises(InputError, match=r"000\.png: expected point clouds, by which the background is found"):
        model.predict(train[0])


def test_mdss_scores_pictures_by_its_student(bottles: Path, train: SampleDataset) -> None:
    model = MDSS("efficientnet_lite0", branches=("rgb",), rgb_layers=(1,), **SMALL).fit(train)
    found = evaluate(model, open_dataset(bottles / "raw", split="test"))
    assert (len(found.scores), found.failed) == (4, {})
