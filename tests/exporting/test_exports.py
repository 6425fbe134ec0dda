"""Methods exported to ONNX: what the folder holds, that it scores as Python does, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("onnx", "onnxscript", "onnxruntime", "timm", "PIL"):
    pytest.importorskip(package)

from data_trees import add_picture
from helpers import facts, good, refused, refused_at_last, small_settings
from PIL import Image
from small_parts import CFM_ARGUMENTS, RGB, a_part

from mmad_bank import MemoryBank, exporting, methods
from mmad_bank.data import PicturesDataset
from mmad_bank.errors import InputError
from mmad_bank.exporting import networks, writing
from mmad_bank.exporting.writing import run
from mmad_bank.features import RGBExtractor, make_rgb_extractor
from mmad_bank.features.tiles import TiledExtractor
from mmad_bank.methods import BTF, CFM, M3DM, PatchCore


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good pictures, a model of them, and an export of it."""
    folder = tmp_path_factory.mktemp("export")
    for number in range(6):
        add_picture(folder / "good" / f"{number}.png", size=(96, 128), seed=number)
    add_picture(folder / "new.png", size=(96, 128), seed=9, spot=True)
    settings = small_settings(64, 8, 0.5, calibration="folds")
    good("fit", "patchcore", folder / "good", "--out", folder / "model", *settings, "--set", "reweight=top")
    good("export", folder / "model", "--out", folder / "export")
    return folder


def score_of(folder: Path, file: Path) -> float:
    """Score a picture by nothing but an export's files, ONNX Runtime and the bank."""
    said = json.loads((folder / "export.json").read_text())
    network, bank = said["networks"]["rgb"], said["banks"]["rgb"]
    found = run(folder / network["file"], {"picture": np.array(Image.open(file).convert("RGB"))[None]})
    first, last, left, right = found[network["window"]]
    features = found["features"].reshape(1, *bank["grid"], -1)[:, first:last, left:right]
    patches = torch.from_numpy(features.reshape(1, -1, features.shape[-1]).copy())
    scores = MemoryBank.load(folder / bank["file"]).score(
        patches, reweight=bank["reweight"], n_neighbors=bank["n_neighbors"], divisor=bank["divisor"]
    )
    return float(scores.image[0])


def test_a_picture_is_scored_as_by_python(place: Path) -> None:
    """From the pixels to the verdict."""
    said = json.loads((place / "export" / "export.json").read_text())
    score = score_of(place / "export", place / "new.png")
    expected = methods.load(place / "model").predict(place / "new.png")
    assert score == pytest.approx(expected.score, rel=2e-3)
    held_out = np.array(said["calibration"]["images"]["fused"]["scores"])
    p_value = (1 + (held_out >= score).sum()) / (len(held_out) + 1)
    assert p_value == pytest.approx(expected.p_value)
    assert said["false_alarm_rate"] == pytest.approx(expected.threshold.rate)
    assert said["decision"]["verdict"]["bad_above"] == expected.threshold.score


def test_the_manifest_says_what_the_files_are(place: Path) -> None:
    said = json.loads((place / "export" / "export.json").read_text())
    assert sorted(path.name for path in (place / "export").iterdir()) == [
        "bank-rgb.safetensors", "export.json", "rgb.onnx",
    ]  # fmt: skip
    network = said["networks"]["rgb"]
    assert network["inputs"] == {"picture": {"dtype": "uint8", "shape": [1, "height", "width", 3]}}
    assert network["outputs"]["features"] == {"dtype": "float32", "shape": [1, 64, said_dim(place)]}
    assert network["outputs"]["window"] == {"dtype": "int64", "shape": [4]}
    assert 0 < network["largest_difference"] <= network["tolerance"] == 1e-4
    assert (said["preparation"]["background"], said["method"]) == ("keep", "patchcore")


def said_dim(place: Path) -> int:
    return MemoryBank.load(place / "export" / "bank-rgb.safetensors").dim


def test_pictures_of_a_cloud_are_prepared_outside() -> None:
    """The background is told by the cloud, so the network takes what Python has prepared."""
    method = M3DM(**RGB, banks=("rgb",), calibration="none").fit([a_part(seed) for seed in range(4)])
    (network,) = networks.networks_of(method)
    assert network.takes_pictures
    assert list(network.inputs) == ["images"]


def test_prepared_squares_of_any_number(tmp_path: Path) -> None:
    method = M3DM(**RGB, banks=("rgb",), calibration="none").fit([a_part(seed) for seed in range(4)])
    said = exporting.export(method, tmp_path / "export")
    assert said["networks"]["rgb"]["inputs"] == {"images": {"dtype": "uint8", "shape": ["batch", 3, 64, 64]}}
    assert not said["networks"]["rgb"]["prepares"]
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    found = run(tmp_path / "export" / "rgb.onnx", {"images": images.numpy()})["features"]
    np.testing.assert_allclose(found, method.extractors_.networks["rgb"](images).numpy(), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def of_cfm(tmp_path_factory: pytest.TempPathFactory) -> tuple[CFM, Path]:
    """A CFM and its export."""
    method = CFM("efficientnet_lite0", **CFM_ARGUMENTS).fit([a_part(seed) for seed in range(4)])
    folder = tmp_path_factory.mktemp("cfm") / "export"
    exporting.export(method, folder)
    return method, folder


def test_mappings_between_modalities(of_cfm: tuple[CFM, Path]) -> None:
    method, folder = of_cfm
    said = json.loads((folder / "export.json").read_text())
    assert sorted(said["networks"]) == ["mapping-rgb", "mapping-xyz", "rgb", "xyz-groups"]
    assert said["banks"] == {}
    for name, mapping in method.mappings_.items():
        rows = torch.rand(7, mapping.in_dim)
        (found,) = run(folder / f"mapping-{name}.onnx", {"source": rows.numpy()}).values()
        with torch.no_grad():
            np.testing.assert_allclose(found, mapping(rows).numpy(), atol=1e-4, rtol=1e-4)


def test_mappings_with_convolutions_take_maps(tmp_path: Path) -> None:
    arguments = {**CFM_ARGUMENTS, "architecture": "convolutional", "map_size": 16}
    method = CFM("efficientnet_lite0", **arguments).fit([a_part(seed) for seed in range(2)])
    (mapping,) = (one for one in networks.networks_of(method) if one.name == "mapping-rgb")
    assert mapping.inputs["source"].shape == (1, 16, 16, method.mappings_["rgb"].in_dim)
    writing.save(writing.onnx_of(mapping), tmp_path / "mapping.onnx")
    assert writing.difference(tmp_path / "mapping.onnx", mapping) <= exporting.TOLERANCE


def test_groups_of_points(of_cfm: tuple[CFM, Path]) -> None:
    """What the network says of a cloud is what ONNX says of its groups, in the order of their sampling."""
    method, folder = of_cfm
    network = method.extractors_.networks["xyz"]
    cloud = torch.rand(400, 3) * 0.1
    expected, centers = network([cloud])
    groups = network._groups([cloud], centers)
    inputs = {"groups": groups.numpy(), "centers": centers.numpy()}
    (found,) = run(folder / "xyz-groups.onnx", inputs).values()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet18"])
def test_networks_of_timm(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    extractor = RGBExtractor(model, image_size=64, grid=(8, 8), compute_dtype="bfloat16")
    network = networks.Network(
        "rgb", networks.in_float32(extractor), {"images": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)},
        axes={"images": {0: "batch"}},
    )  # fmt: skip
    writing.save(writing.onnx_of(network), tmp_path / "rgb.onnx")
    assert writing.difference(tmp_path / "rgb.onnx", network) <= exporting.TOLERANCE
    assert extractor.compute_dtype == "bfloat16", "the given network stays as it is"


class Times(torch.nn.Module):
    """A number times a factor, which a test changes once the network is written."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


@pytest.mark.parametrize(("unit", "factor", "later", "refused"), [
    (1.0, 2.0, 2.001, True), (1.0, 2.0, 2.00001, False), (1.0, 0.02, 0.02001, False), (0.01, 0.02, 0.02001, True),
])  # fmt: skip
def test_a_network_that_differs_is_refused(
    unit: float, factor: float, later: float, refused: bool, tmp_path: Path
) -> None:
    """By more than a share of its largest output, or of a unit where that is larger."""
    module = Times(factor).eval()
    network = networks.Network("times", module, {"x": torch.ones(2, 4)}, axes={"x": {0: "rows"}}, unit=unit)
    writing.save(writing.onnx_of(network), tmp_path / "times.onnx")
    module.factor = later
    if not refused:
        assert 0 < writing.difference(tmp_path / "times.onnx", network) <= exporting.TOLERANCE
        return
    expected = r"expected the network times in ONNX Runtime to be within 0\.0001 of PyTorch, found 0\.0005"
    with pytest.raises(InputError, match=expected):
        writing.difference(tmp_path / "times.onnx", network)


@pytest.mark.parametrize(("size", "tile", "overlap"), [(96, 64, 32), (112, 64, 0), (208, 64, 16)])
def test_tiles_are_described_and_blended_in_the_graph(size: int, tile: int, overlap: int, tmp_path: Path) -> None:
    """Of two images at once, one with black tiles, which PyTorch describes once."""
    network = make_rgb_extractor("efficientnet_lite0", "random", layers=(1,), grid=(8, 4), image_size=tile)
    tiled = TiledExtractor(network, size, tile, overlap)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    images[1, :, :, :tile] = 0
    whole = networks.Network(
        "rgb", networks.in_float32(tiled), {"images": images}, axes={"images": {0: "batch"}},
        tile=networks.of_images(networks.in_float32(network), tile, 2),
    )  # fmt: skip
    model = writing.onnx_of(whole)
    assert writing.interface(model)["outputs"]["features"]["shape"] == ["batch", tiled.grid[0] * tiled.grid[1], 24]
    writing.save(model, tmp_path / "rgb.onnx")
    assert writing.difference(tmp_path / "rgb.onnx", whole) <= 1e-5
    assert len(model.graph.node) < 10, "tiles are a loop, not written out"


def test_a_model_with_tiles_scores_as_python_does(tmp_path: Path) -> None:
    for number in range(3):
        add_picture(tmp_path / "good" / f"{number}.png", size=(96, 128), seed=number)
    add_picture(tmp_path / "new.png", size=(96, 128), seed=9, spot=True)
    arguments = {**RGB, "image_size": 128, "tiles": 64, "tile_overlap": 16, "calibration": "none"}
    tiled = PatchCore(**arguments).fit(PicturesDataset([tmp_path / "good"]))
    exporting.export(tiled, tmp_path / "export")
    assert score_of(tmp_path / "export", tmp_path / "new.png") == pytest.approx(
        tiled.predict(tmp_path / "new.png").score, rel=2e-3
    )


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Another(PatchCore):
        name = "another"

    monkeypatch.setattr(networks, "PatchCore", BTF)
    with pytest.raises(InputError, match=r"expected one of patchcore, btf, m3dm, lsfa, cfm and mdss .*, found another"):
        list(networks.networks_of(Another(**RGB)))
    with pytest.raises(InputError, match="not fitted"):
        exporting.export(PatchCore(**RGB), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_of_something_else_is_left_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    line = refused_at_last("export", place / "model", "--out", tmp_path)
    assert "expected a new or empty folder or an export to replace" in line
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert "--overwrite" in refused("export", place / "model", "--out", place / "export")
    before = (place / "export" / "rgb.onnx").stat().st_ino
    done = facts("export", place / "model", "--out", place / "export", "--overwrite")
    assert (place / "export" / "rgb.onnx").stat().st_ino != before
    assert done["bytes"]["rgb.onnx"] == (place / "export" / "rgb.onnx").stat().st_size


def test_without_the_packages_the_line_says_what_brings_them(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refused_at_last("export", place / "model", "--out", tmp_path / "none")
    assert "exporting models needs the package 'onnxscript': pip install 'mmad-bank[export]'" in line
    assert not (tmp_path / "none").exists()


def test_a_missing_model_is_a_line(tmp_path: Path) -> None:
    assert "expected a folder with model.json" in refused("export", tmp_path / "no", "--out", tmp_path / "out")
