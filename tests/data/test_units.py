"""Clouds in other units than metres: read in the unit that is named, and otherwise said."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tifffile")
pytest.importorskip("PIL")
pytest.importorskip("scipy")

from data_trees import add_sample, scene

from mmad_bank._internal.units import UNITS
from mmad_bank.data import Preprocessing, open_dataset, open_sample, preprocess
from mmad_bank.data.preparation import prepare
from mmad_bank.data.prepared import preparation_of
from mmad_bank.errors import InputError

M3DM = Preprocessing(size=64)


@pytest.fixture(params=["mm", "cm", "um"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, str]:
    """A sample in metres, the same in another unit, and the unit."""
    metres, other = tmp_path / "metres", tmp_path / "other"
    add_sample(metres / "part/train/good")
    add_sample(other / "part/train/good", xyz=scene().astype(np.float64) / UNITS[request.param])
    return metres, other, request.param


def test_the_named_unit_gives_metres(parts: tuple[Path, Path, str]) -> None:
    metres, other, unit = parts
    wanted = open_dataset(metres)[0]
    dataset = open_dataset(other, units=unit)
    folder = other / "part/train/good"
    for sample in (dataset[0], open_sample(folder / "rgb/000.png", folder / "xyz/000.tiff", units=unit)):
        assert sample.units == "m"
        assert torch.allclose(sample.xyz, wanted.xyz, rtol=1e-6, atol=0)
    assert dataset.select([0]).units == unit


def test_a_model_reads_what_it_was_fitted_on(parts: tuple[Path, Path, str]) -> None:
    """The unit stays in the settings: raw samples of which nobody says a unit are in the model's."""
    metres, other, unit = parts
    settings = replace(M3DM, units=unit)
    wanted = preprocess(open_dataset(metres)[0], M3DM)
    raw, told = open_dataset(other)[0], open_dataset(other, units=unit)[0]
    for sample in (raw, told, replace(raw, units=unit)):
        assert torch.allclose(preprocess(sample, settings).xyz, wanted.xyz, rtol=1e-6, atol=0)
    again = Preprocessing(**settings.as_json())
    assert again.units == unit
    assert again == M3DM
    assert not again.differences(M3DM)
    assert "units" not in M3DM.as_json()  # as older versions wrote it


def test_prepared_data_are_in_metres_and_know_the_unit(parts: tuple[Path, Path, str], tmp_path: Path) -> None:
    metres, other, unit = parts
    assert prepare(metres, tmp_path / "a", M3DM).written == 1
    assert prepare(other, tmp_path / "b", replace(M3DM, units=unit)).written == 1
    found, wanted = (open_dataset(tmp_path / name)[0] for name in ("b", "a"))
    assert torch.allclose(found.xyz, wanted.xyz, rtol=1e-6, atol=0)
    preparation = preparation_of(tmp_path / "b")
    assert preparation is not None
    assert preparation.units == unit
    with pytest.raises(InputError, match=r"units: .* has been prepared, its clouds are in metres; found 'mm'"):
        open_dataset(tmp_path / "b", units="mm")


def test_a_run_that_could_use_nothing_does_not_stand_in_the_way(tmp_path: Path) -> None:
    add_sample(tmp_path / "raw/part/train/good", xyz=scene() * 1000)
    assert list(prepare(tmp_path / "raw", tmp_path / "out", M3DM).failed) == ["part/train/good/000"]
    assert prepare(tmp_path / "raw", tmp_path / "out", replace(M3DM, units="mm")).written == 1
    with pytest.raises(InputError, match="prepared with other settings"):
        prepare(tmp_path / "raw", tmp_path / "out", M3DM)


@pytest.mark.parametrize(("scale", "unit"), [(1e3, "mm"), (1e6, "um")])
def test_what_does_not_look_like_metres_is_said(tmp_path: Path, scale: float, unit: str) -> None:
    add_sample(tmp_path / "part/train/good", xyz=scene() * np.float32(scale))
    sample = open_dataset(tmp_path)[0]
    with pytest.raises(InputError, match=rf"the cloud spans .*; expected metres: name the unit \(--units {unit}\)"):
        preprocess(sample, M3DM)


def test_a_wrong_unit_is_said(tmp_path: Path) -> None:
    add_sample(tmp_path / "part/train/good", xyz=scene() * 1000)
    sample = open_dataset(tmp_path)[0]
    with pytest.raises(InputError, match=r"found background only; the cloud spans .* m, which is little for metres"):
        preprocess(sample, replace(M3DM, units="um"))
    far = replace(sample, xyz=sample.xyz * 1000)
    with pytest.raises(InputError, match=r"which looks like millimetres; .*, found mm$"):
        preprocess(far, replace(M3DM, units="mm"))


def test_strays_are_no_other_unit(tmp_path: Path) -> None:
    xyz = scene()
    xyz[30, 30] = 5000
    add_sample(tmp_path / "part/train/good", xyz=xyz)
    assert preprocess(open_dataset(tmp_path)[0], M3DM).size == (64, 64)


def test_who_says_metres_is_believed(tmp_path: Path) -> None:
    add_sample(tmp_path / "part/train/good", xyz=scene() * 1000)
    large = replace(M3DM, units="m", inlier_distance=4, removal_distance=5, eps=6)
    sample = preprocess(open_dataset(tmp_path)[0], large)
    assert torch.allclose(sample.xyz / 1000, preprocess(open_dataset(tmp_path, units="mm")[0], M3DM).xyz, rtol=1e-5)


def test_units_are_checked() -> None:
    with pytest.raises(InputError, match="units: expected one of m, cm, mm, um, found 'inch'"):
        Preprocessing(units="inch")


def test_fpfh_says_when_nothing_has_neighbours() -> None:
    pytest.importorskip("open3d")
    from mmad_bank.features.fpfh import FPFH

    cloud = torch.from_numpy(scene())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FPFH((4, 4))(cloud[None])
        FPFH((4, 4), normal_radius=100, feature_radius=250)(cloud[None] * 1000)
    large = (cloud * 1000).repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)  # as resizing to nearest repeats
    descriptor = FPFH((4, 4))
    with pytest.warns(UserWarning, match=r"fewer than 3 neighbours within 0.1; the cloud spans .*\(--units mm\)"):
        descriptor(large[None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        descriptor(large[None])  # once
