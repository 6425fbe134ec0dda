"""LSFA that fine-tunes its extractors: what is trained, what a saved model holds, and going on after a kill."""

from __future__ import annotations

import sys
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


def test_the_last_block_is_trained_and_the_bank_holds_what_it_gives(fitted: LSFA, parts: list[Sample]) -> None:
    frozen = LSFA(**SMALL, adaptation="none").fit(parts)
    before, after = (one.extractors_.networks["rgb"].state_dict() for one in (frozen, fitted))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("network.blocks.1.")}
    assert fitted.adaptation_ is None
    features = fitted.extractors_([parts[2]])
    for name, rows in features.items():
        assert float(fitted.banks_[name].search(rows[0], 1)[0].max()) < 1e-2
    assert float(frozen.banks_["rgb"].search(features["rgb"][0], 1)[0].max()) > 1e-2
    assert fitted.banks_["rgb"].extractor.endswith("fine-tuned (blocks)")


def test_a_saved_model_predicts_the_same_without_peft(
    fitted: LSFA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted.save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "peft", None)
    one, other = fitted.predict(a_part(60)), methods.load(tmp_path / "model").predict(a_part(60))
    assert one.score == other.score
    assert torch.equal(one.map, other.map)
    assert not list(tmp_path.rglob("*.pt"))


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
    with pytest.raises(InputError, match="finetune: expected 'none', or an extractor rgb with transformer blocks"):
        LSFA(**{**SMALL, "rgb": "resnet18"}, finetune="blocks", finetune_networks=("rgb",)).fit(parts)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="peft"):
        LSFA(**SMALL, finetune="lora").fit(parts)
