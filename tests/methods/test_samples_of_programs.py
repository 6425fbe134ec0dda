"""Samples of a program at a method's doors: scored as the file's, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_parts import SIZE, a_part

from mmad_bank.data import Sample
from mmad_bank.errors import InputError
from mmad_bank.methods import PatchCore

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def model() -> PatchCore:
    small = PatchCore("efficientnet_lite0", "random", rgb_layers=(1,), image_size=SIZE, grid=(8, 8))
    return small.fit([a_part(seed) for seed in range(2)])


@pytest.mark.parametrize("prepared", [True, False])
def test_values_of_a_program_are_scored_as_those_of_files(model: PatchCore, prepared: bool) -> None:
    part = a_part(3)
    sample = part if prepared else Sample(part.rgb, part.xyz, part.mask, id=part.id)
    sample = replace(sample, rgb=(part.rgb * 255).round() / 255)
    right = model.predict(sample).score
    hole = sample.xyz.clone()
    hole[:, hole.shape[1] // 2] = float("nan")
    for change in (
        {"rgb": (sample.rgb * 255).round().to(torch.uint8)},
        {"rgb": sample.rgb.numpy().astype(np.float64)},
        {"rgb": sample.rgb.clone().requires_grad_()},
        {"xyz": hole},
    ):
        assert model.predict(replace(sample, **change)).score == pytest.approx(right, rel=1e-5)
    for change in ({"rgb": sample.rgb * 255}, {"rgb": sample.rgb[None]}, {"xyz": None}, {"xyz": hole[:, 1:]}):
        with pytest.raises(InputError, match="expected"):
            model.predict(replace(sample, **change))


def test_a_sample_of_other_values_is_left_out_of_training(model: PatchCore) -> None:
    good, bad = a_part(4), replace(a_part(5), rgb=a_part(5).rgb * 255, id="part/train/good/bright")
    small = PatchCore(**model.arguments()).fit([good, bad])
    assert small.train_ids_ == [good.id]
    assert "found 0" in small.skipped_["part/train/good/bright"]


def test_defects_are_not_learnt_as_normal(model: PatchCore) -> None:
    """By label, in lists and data sets, of training and validation samples; they are named."""
    defect = replace(a_part(6), label=1, defect="hole", id="part/train/hole/006")
    small = PatchCore(**model.arguments()).fit([a_part(4), defect, a_part(5)])
    assert small.train_ids_ == [a_part(4).id, a_part(5).id]
    assert small.skipped_ == {defect.id: f"{defect.id}: labelled anomalous ('hole'), expected normal samples to learn"}
    with pytest.raises(InputError, match="no sample can be used; part/train/hole/006: labelled anomalous"):
        PatchCore(**model.arguments()).fit([defect])


def test_a_list_of_something_else_is_named(model: PatchCore) -> None:
    with pytest.raises(InputError, match=r"dataset\[0\]: expected a Sample, found Tensor"):
        PatchCore(**model.arguments()).fit([torch.zeros(3, 8, 8)])
