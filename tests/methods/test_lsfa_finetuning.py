"""LSFA that fine-tunes its extractors: what is trained, what a saved model holds, and going on after a kill."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_parts import SIZE, a_part

from mmad_bank import methods
from mmad_bank.adaptation import finetuning
from mmad_bank.data import Sample
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.methods import LSFA, lsfa

pytest.importorskip("timm")

SMALL = {
    "rgb": "vit_tiny_patch16_224", "rgb_weights": "random", "rgb_layers": (1,), "image_size": SIZE, "grid": (4, 4),
    "xyz_weights": "random", "num_groups": 24, "group_size": 8, "adaptation_steps": 3, "adaptation_batch": 2,
    "queue_size": 100, "ratio": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [a_part(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def fitted(parts: list[Sample]) -> LSFA:
    return LSFA(**SMALL, finetune="blocks").fit(parts)


def changed(one: LSFA, other: LSFA, modality: str) -> set[str]:
    before, after = (method.extractors_.networks[modality].state_dict() for method in (one, other))
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_last_blocks_are_trained_and_the_banks_hold_what_they_give(fitted: LSFA, parts: list[Sample]) -> None:
    frozen = LSFA(**SMALL, adaptation="none").fit(parts)
    for modality, block in (("rgb", "network.blocks.1."), ("xyz", "network.blocks.blocks.11.")):
        names = fitted.extractors_.networks[modality].state_dict()
        assert changed(frozen, fitted, modality) == {name for name in names if name.startswith(block)} != set()
    assert fitted.adaptation_ is None
    features = fitted.extractors_([parts[2]])
    for name, rows in features.items():
        assert float(fitted.banks_[name].search(rows[0], 1)[0].max()) < 1e-2
        assert float(frozen.banks_[name].search(rows[0], 1)[0].max()) > 1e-2
        assert fitted.banks_[name].extractor.endswith("fine-tuned (blocks)")


def test_one_network_can_be_trained_alone_and_a_cloud_of_few_points_is_left_out(parts: list[Sample]) -> None:
    few = a_part(9)
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[30:34, 30:34] = True
    few = replace(few, xyz=few.xyz * mask)
    method = LSFA(**SMALL, finetune="blocks", finetune_networks=("xyz",)).fit([*parts, few])
    assert "expected at least 24 points (num_groups), found 16" in method.skipped_[few.id]
    frozen = LSFA(**SMALL, adaptation="none").fit(parts)
    assert changed(frozen, method, "xyz")
    assert not changed(frozen, method, "rgb")
    assert method.banks_["rgb"].extractor == frozen.banks_["rgb"].extractor
    with pytest.raises(InputError, match=r"finetune_networks: expected .* transformer, found 'xyz', .* is fpfh"):
        LSFA(**{**SMALL, "xyz": "fpfh"}, finetune="blocks", finetune_networks=("xyz",)).fit(parts)


def test_a_saved_model_predicts_the_same_without_peft(
    fitted: LSFA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted.save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "peft", None)
    one, other = fitted.predict(a_part(60)), methods.load(tmp_path / "model").predict(a_part(60))
    assert one.score == other.score
    assert torch.equal(one.map, other.map)
    assert {path.suffix for path in (tmp_path / "model").rglob("*.*")} == {".json", ".safetensors"}


class Killed(Exception):
    pass


def test_a_fit_that_was_killed_goes_on_to_the_same_bytes(
    parts: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lsfa, "train_networks", partial(lsfa.train_networks, save_every=2))
    original = finetuning.NetworkTraining.losses

    def die_later(self, step: int):
        if step == 3:
            raise Killed
        return original(self, step)

    def fit(workdir: Path) -> list[torch.Tensor]:
        method = LSFA(**{**SMALL, "adaptation_steps": 5}, finetune="adalora", finetune_rank=2)
        method.fit(parts, workdir=workdir)
        return [*method.extractors_.networks["rgb"].state_dict().values(), method.banks_["rgb"].vectors]

    with monkeypatch.context() as patch:
        patch.setattr(finetuning.NetworkTraining, "losses", die_later)
        with pytest.raises(Killed):
            fit(tmp_path / "work")
    assert torch.load(tmp_path / "work" / "adaptation.pt", weights_only=True)["step"] == 2
    again, new = fit(tmp_path / "work"), fit(tmp_path / "new")
    assert all(torch.equal(a, b) for a, b in zip(again, new, strict=True))


def test_features_that_others_left_are_not_taken_for_inputs(parts: list[Sample], tmp_path: Path) -> None:
    """What an adapted LSFA extracts is of no use to one that trains its network, and the other way round."""
    settings = {**SMALL, "adaptation_steps": 1}
    LSFA(**settings).fit(parts, workdir=tmp_path / "adapted")
    tuned = LSFA(**settings, finetune="blocks")
    assert not tuned.reuse_features(parts, tmp_path / "adapted", tmp_path / "tuned")
    tuned.fit(parts, workdir=tmp_path / "tuned")
    held = np.load(tmp_path / "tuned" / "train-rgb-input.npy")
    assert np.array_equal(held, torch.stack([one.rgb for one in parts]).numpy())
    assert not LSFA(**settings).reuse_features(parts, tmp_path / "tuned", tmp_path / "again")


def test_what_does_not_go_together_is_named(parts: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="adaptation: expected 'train' with finetune 'lora'"):
        LSFA(**SMALL, finetune="lora", adaptation="none")
    with pytest.raises(InputError, match="finetune_blocks: expected 1 to 2"):
        LSFA(**SMALL, finetune="blocks", finetune_blocks=3).fit(parts)
    with pytest.raises(InputError, match="finetune_rank: expected 1 to "):
        LSFA(**SMALL, finetune="lora", finetune_rank=2**16).fit(parts)
    with pytest.raises(InputError, match=r"finetune_networks: expected .* transformer, found 'rgb', .* is resnet18"):
        LSFA(**{**SMALL, "rgb": "resnet18"}, finetune="blocks", finetune_networks=("rgb",)).fit(parts)
    with pytest.raises(
        InputError, match=r"finetune: .* transformer of one modality at least .* found xyz fpfh .*, rgb "
    ):
        LSFA(**{**SMALL, "rgb": "resnet18", "xyz": "fpfh"}, finetune="blocks").fit(parts)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="peft"):
        LSFA(**SMALL, finetune="lora").fit(parts)
