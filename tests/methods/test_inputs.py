"""What predict takes, and PyTorch's settings and threads that must not change what it says."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_ast
import torch
from raw_pictures import KEEP, SIZE, colours, picture
from small_parts import SIZE as PART_SIZE
from small_parts import a_part

for package in ("timm", "scipy", "tifffile", "PIL"):
    pytest.importorskip(package)

import tifffile
from PIL import Image

from mmad_bank.data import preprocess
from mmad_bank.errors import InputError
from mmad_bank.methods import AST, BTF, CFM, LSFA, M3DM, MDSS, PatchCore, ShapeGuided
from mmad_bank.methods.base import Method
from mmad_bank.methods.inputs import to_sample


@pytest.fixture(scope="module")
def model() -> PatchCore:
    return colours().fit([preprocess(picture((60, 120), seed), KEEP) for seed in range(3)])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    sample = picture((60, 120), 8, (30, 50))
    rgb, xyz = tmp_path / "rgb" / "008.png", tmp_path / "xyz" / "008.tiff"
    for path in (rgb, xyz):
        path.parent.mkdir()
    Image.fromarray((sample.rgb.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(rgb)
    tifffile.imwrite(xyz, sample.xyz.permute(1, 2, 0).numpy())
    return rgb, xyz


def test_files_arrays_and_samples_are_scored_alike(model: PatchCore, files: tuple[Path, Path]) -> None:
    rgb, xyz = files
    right = model.predict((rgb, xyz))
    array, cloud = np.asarray(Image.open(rgb)), tifffile.imread(xyz)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    alone = [str(rgb), rgb, array, tensor, tensor.float() / 255, Image.open(rgb)]
    pairs = [
        (str(rgb), str(xyz)), (array, cloud), (tensor, torch.from_numpy(cloud).permute(2, 0, 1)), (rgb, cloud),
        (array, xyz),
    ]  # fmt: skip
    for value in (*alone, *pairs):
        found = model.predict(value)
        assert found.score == pytest.approx(right.score, rel=1e-5), value
        torch.testing.assert_close(found.map, right.map)
    several = [rgb, (array, cloud), picture((60, 120), 8, (30, 50)), *alone[1:], *pairs]
    together = model.predict(several)
    assert len(together) == len(several)
    assert {round(one.score, 2) for one in together} == {round(right.score, 2)}
    assert model.predict([]) == []
    assert len(model.predict_batch([rgb, array])) == 2


def test_a_cloud_is_looked_for_where_data_sets_have_it(model: PatchCore, files: tuple[Path, Path]) -> None:
    rgb, xyz = files
    needy = BTF("efficientnet_lite0", "random", image_size=SIZE, grid=(8, 8), rgb_layers=(1,))
    needy.fit([preprocess(picture((60, 120), seed), KEEP) for seed in range(2)])
    assert needy.predict(rgb).score == needy.predict((rgb, xyz)).score
    assert needy.modalities == {"rgb", "xyz"}
    assert model.modalities == {"rgb"}
    xyz.unlink()
    with pytest.raises(
        InputError, match=r"008.png: expected its point cloud too, \(rgb, xyz\), or in .*/xyz; found a pict"
    ):
        needy.predict(rgb)
    with pytest.raises(InputError, match=r"sample: expected \(rgb, xyz\), as the model needs the point cloud"):
        needy.predict(np.asarray(Image.open(rgb)))
    assert model.predict(rgb).size == (60, 120)


def test_the_rest_is_named(model: PatchCore, files: tuple[Path, Path], tmp_path: Path) -> None:
    rgb, xyz = files
    for value, words in (
        (3, "rgb: expected a Sample, a picture .*, found int"),
        (None, "found NoneType"),
        ({}, "found dict"),
        (tmp_path, "expected a picture's file, found a folder; open_dataset reads data sets"),
        (tmp_path / "no.png", "no.png: file not found"),
        (xyz, "008.tiff: "),
        ((rgb, xyz, rgb), r"sample: expected a pair \(rgb, xyz\), found a tuple of 3"),
        ((rgb, None), "xyz: expected a Sample, a picture .*, found NoneType"),
        (np.zeros(4, np.uint8), r"rgb: expected shape .*, found \(4,\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"found \(2, 3, 8, 8\)"),
        (np.full((8, 9, 3), 255.0), "expected values from 0 to 1"),
        ([rgb, 7], "found int"),
    ):
        with pytest.raises(InputError, match=words):
            model.predict(value)


def test_representations_tell_what_there_is(model: PatchCore) -> None:
    assert repr(model) == (
        "<Colours(rgb='efficientnet_lite0', rgb_weights='random', grid=(8, 8), ratio=0.5, image_size=64, sigma=1.0):"
        " fitted on 3 images of part; bank rgb 96 × 3>"
    )
    assert repr(M3DM(ratio=0.2)) == "<M3DM(ratio=0.2): not fitted>"
    prediction = model.predict(picture((60, 120), 3))
    assert repr(prediction).startswith("<Prediction of part/test/good/003: score ")
    assert repr(prediction).endswith("map 60×120>")
    assert (
        repr(picture((60, 120), 3)) == "<Sample part/test/good/003: rgb 3×60×120, xyz 3×60×120, mask 60×120, good, raw>"
    )
    assert repr(replace(picture((60, 120)), xyz=None, id="")).startswith("<Sample without id: rgb 3×60×120, mask")


# PyTorch's settings, and threads.


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SMALL: dict[str, Any] = {"image_size": PART_SIZE}
EMBEDDED: dict[str, Any] = {"rgb": "efficientnet_lite0", "rgb_weights": "random", "rgb_layers": (1,), "grid": (8, 8)}
POINTS: dict[str, Any] = {"xyz_weights": "random", "num_groups": 24, "group_size": 8}
MAKERS: dict[str, Callable[[], Method]] = {
    "patchcore": lambda: PatchCore(**SMALL, **EMBEDDED),
    "btf": lambda: BTF(**SMALL, **EMBEDDED),
    "m3dm": lambda: M3DM(**SMALL, **EMBEDDED, **POINTS, uff_steps=2, uff_batch=2),
    "lsfa": lambda: LSFA(**SMALL, **EMBEDDED, **POINTS, adaptation_steps=2, adaptation_batch=2, queue_size=64),
    "cfm": lambda: CFM(**SMALL, **EMBEDDED, **POINTS, map_size=16, epochs=1),
    "mdss": lambda: MDSS(
        **SMALL, rgb_weights="random", pdn_width=2, channels=4, teacher_steps=1, student_steps=1, sdf_steps=1,
        sdf_batch=2, sdf_width=8, patch_size=50, coverage=(1.0, 1.0),
    ),
    "shape_guided": lambda: ShapeGuided(
        **SMALL, **EMBEDDED, sdf_steps=1, sdf_batch=2, sdf_width=8, patch_size=50, coverage=(1.0, 1.0)
    ),
    "ast": lambda: AST(**small_ast.SMALL),
}  # fmt: skip


class Fitted(dict[str, Method]):
    """Fits a method when it is asked for, once."""

    def __missing__(self, name: str) -> Method:
        self[name] = MAKERS[name]().fit([a_part(seed) for seed in range(3)])
        return self[name]


@pytest.fixture(scope="module")
def fitted() -> dict[str, Method]:
    return Fitted()


@pytest.mark.parametrize(
    "name", [name if name == "patchcore" else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS]
)
def test_settings_of_pytorch_change_nothing(name: str, fitted: dict[str, Method], tmp_path: Path) -> None:
    method, sample = fitted[name], a_part(9)
    right = method.predict(sample)
    method.save(tmp_path / "model")
    around: dict[str, AbstractContextManager[Any]] = {
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16), "float64": default_dtype(torch.float64),
        "inference": torch.inference_mode(), "grad": torch.enable_grad(), "no grad": torch.no_grad(),
        "default device": torch.device("meta"),
    }  # fmt: skip
    for setting, context in around.items():
        with context:
            kept = torch.get_default_dtype(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
            predictions = [one.predict(sample) for one in (method, type(method).load(tmp_path / "model"))]
            reasons = method.explain(predictions[0])
            now = torch.get_default_dtype(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        assert kept == now
        for found in predictions:
            assert found.map.dtype == torch.float32, setting
            assert found.score == pytest.approx(right.score, rel=1e-6), setting
            torch.testing.assert_close(found.map, right.map, rtol=1e-5, atol=1e-6)
            assert not found.map.requires_grad
        assert [one.distance for one in reasons] == pytest.approx(
            [one.distance for one in method.explain(right)], rel=1e-4
        )
    assert method.predict(sample).score == right.score, "nothing of it has stayed"


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["autocast", "float64", "inference"])
def test_fitting_is_not_changed_either(setting: str) -> None:
    contexts = {
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16), "float64": default_dtype(torch.float64),
        "inference": torch.inference_mode(),
    }  # fmt: skip
    parts = [a_part(seed) for seed in range(3)]
    right = MAKERS["m3dm"]().fit(parts)
    with contexts[setting]:
        found = MAKERS["m3dm"]().fit(parts)
    assert found.predict(a_part(9)).score == pytest.approx(right.predict(a_part(9)).score, rel=1e-5)


@pytest.mark.parametrize("name", ["patchcore", "mdss", pytest.param("m3dm", marks=pytest.mark.slow)])
def test_threads_predict_with_one_model(name: str, fitted: dict[str, Method]) -> None:
    method, samples = fitted[name], [a_part(seed) for seed in range(20, 26)]
    right = [method.predict(sample) for sample in samples]
    reasons = [[one.distance for one in method.explain(one)] for one in right]

    def both(number: int) -> tuple[float, torch.Tensor, list[float]]:
        with default_dtype(torch.float32) if number % 2 else nullcontext():
            prediction = method.predict(samples[number % 6])
        return prediction.score, prediction.map, [one.distance for one in method.explain(prediction)]

    with ThreadPoolExecutor(3) as pool:
        for number, (score, values, distances) in enumerate(pool.map(both, range(18))):
            assert score == pytest.approx(right[number % 6].score, rel=1e-6)
            torch.testing.assert_close(values, right[number % 6].map, rtol=1e-5, atol=1e-6)
            assert distances == pytest.approx(reasons[number % 6], rel=1e-5)


def test_the_default_dtype_comes_back_when_the_last_thread_has_done(fitted: dict[str, Method]) -> None:
    with default_dtype(torch.float64), ThreadPoolExecutor(2) as pool:
        list(pool.map(fitted["patchcore"].predict, [replace(a_part(seed)) for seed in range(4)]))
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_grey_arrays_have_three_equal_channels(make: Callable[[np.ndarray], Any]) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sample = to_sample(make(grey), needs_cloud=False)
    assert sample.size == (3, 4)
    assert np.array_equal(np.asarray(sample.rgb), np.stack([grey] * 3))
