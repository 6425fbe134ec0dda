"""Networks whose convolutions compute in 8-bit integers: near float32's, measured by a fit, kept by a model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("openvino")

from small_parts import RGB, a_part

from mmad_bank.errors import FormatError, InputError
from mmad_bank.exporting import export
from mmad_bank.features import make_rgb_extractor
from mmad_bank.features.int8 import convolutions, in_int8
from mmad_bank.features.tiles import TiledExtractor
from mmad_bank.methods import M3DM, PatchCore, load
from mmad_bank.ops import system_info

SIZE = 64


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module", params=["efficientnet_lite0", "efficientnet_lite0.reflect", "resnet18"])
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"layers": (1, 2), "grid": (8, 8), "image_size": SIZE, "runtime": "openvino"}
    made = make_rgb_extractor(request.param, "random", compute_dtype="int8", **arguments)
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.fill_(1.0)  # timm begins with zeros behind residual branches, where nothing is left to round
    return made


@pytest.fixture(scope="module")
def measured(network: Any) -> Any:
    own = copy.deepcopy(network)
    own.measure_int8(images(6))
    return own


def exact(network: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.body(network.normalized(x))


def test_features_are_near_float32s(measured: Any) -> None:
    x = images(3, seed=1)
    found = measured(x)
    assert found.dtype == torch.float32
    assert 1e-4 < share(found, exact(measured, x)) < 0.1


@pytest.mark.skipif(not system_info()["cpu"]["vnni"], reason="without VNNI, sums of two products are cut to 16 bits")
def test_features_are_those_of_rounding_in_pytorch(measured: Any) -> None:
    """Integers are exact: what differs is where a float32 between two layers falls on the other side of a half."""
    x = images(2, seed=1)
    assert share(measured(x), exact(in_int8(measured, measured.int8), x)) < 0.01


def test_convolutions_are_run_in_integers(measured: Any) -> None:
    measured(images(1))
    model = measured.__dict__["_compiled"]._made[1].get_runtime_model()
    facts = [{name: own.astype(str) for name, own in node.get_rt_info().items()} for node in model.get_ops()]
    types = [own["runtimePrecision"] for own in facts if own["layerType"] == "Convolution"]
    assert len(types) == len(list(convolutions(measured)))
    assert sum(one in ("u8", "i8") for one in types) >= len(types) - 1, "all but the one that sees the picture"


def test_corrections_bring_features_nearer(measured: Any) -> None:
    x = images(4, seed=2)
    other = copy.deepcopy(measured)
    other.int8.corrections.zero_()
    assert share(measured(x), exact(measured, x)) < share(other(x), exact(measured, x))


def test_corrected_channels_have_float32s_means() -> None:
    torch.manual_seed(0)
    network = make_rgb_extractor("resnet18", "random", image_size=SIZE, compute_dtype="int8", runtime="openvino")
    network.measure_int8(images(5))
    rounded = in_int8(network, network.int8)
    means: dict[str, list[torch.Tensor]] = {"exact": [], "rounded": []}
    for name, one in (("exact", network), ("rounded", rounded)):
        for layer in convolutions(one):
            layer.register_forward_hook(lambda _, __, y, name=name: means[name].append(y.mean(dim=(0, 2, 3))))
        exact(one, images(5))
    for own, expected in zip(means["rounded"], means["exact"], strict=True):
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-3)


def test_weights_stay_and_copies_compute_the_same(network: Any, measured: Any) -> None:
    before, after = network.state_dict(), measured.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"int8.ranges", "int8.corrections"}
    assert torch.equal(pickle.loads(pickle.dumps(measured))(images(1)), measured(images(1)))


def test_tiles_are_measured() -> None:
    network = make_rgb_extractor(
        "efficientnet_lite0", "random", layers=(1,), grid=(8, 8), image_size=SIZE, compute_dtype="int8",
        runtime="openvino",
    )  # fmt: skip
    tiled = TiledExtractor(network, 96, SIZE, 32)
    x = torch.rand(3, 3, 96, 96)
    tiled.measure_int8(x)
    plain = copy.deepcopy(network)
    plain.int8, plain.compute_dtype = None, "float32"
    assert 1e-5 < share(tiled(x), TiledExtractor(plain, 96, SIZE, 32)(x)) < 0.1


def test_a_model_keeps_what_its_fit_measured(tmp_path: Path) -> None:
    parts = [a_part(seed) for seed in range(6)]
    method = PatchCore(**RGB, compute_dtype="int8", runtime="openvino").fit(parts, workdir=tmp_path / "work")
    assert method.extractors_.networks["rgb"].int8.ranges.isfinite().all()
    found = method.predict(a_part(9))
    method.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.arguments()["compute_dtype"] == "int8"
    assert again.predict(a_part(9)).score == found.score
    assert torch.equal(again.predict(a_part(9)).map, found.map)
    resumed = PatchCore(**RGB, compute_dtype="int8", runtime="openvino").fit(parts, workdir=tmp_path / "work")
    assert resumed.predict(a_part(9)).score == found.score
    plain = PatchCore(**RGB).fit(parts)
    assert found.score == pytest.approx(plain.predict(a_part(9)).score, rel=0.2)
    assert found.score != plain.predict(a_part(9)).score
    with pytest.raises(InputError, match="compute_dtype: expected float32 or bfloat16 with runtime=torch, found int8"):
        method.with_arguments(runtime="torch")
    with pytest.raises(InputError, match=r"model: expected float32 or bfloat16 .* found int8"):
        export(method, tmp_path / "exported")


def test_pictures_that_cannot_be_used_are_replaced() -> None:
    parts = [a_part(seed) for seed in range(4)]
    method = PatchCore(**RGB, compute_dtype="int8", runtime="openvino", calibration="none").fit(parts)
    seen = [method.prepare(part).rgb for part in parts]
    assert all(torch.equal(own, other) for own, other in zip(method._some_pictures(parts), seen, strict=True))
    assert len(method._some_pictures([*parts[:3], "no sample"])) == 3  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: PatchCore(**RGB, compute_dtype="int8"), "with runtime=torch, found int8"),
        (lambda: M3DM(**RGB, compute_dtype="int8", runtime="openvino"), "found 'int8'"),
        (lambda: make_rgb_extractor("resnet18", "random", compute_dtype="int8"), "with runtime=torch, found int8"),
        (
            lambda: make_rgb_extractor("vit_tiny_patch16_224", "random", compute_dtype="int8", runtime="openvino"),
            "for the transformer vit_tiny_patch16_224, found int8",
        ),
    ],
)
def test_what_cannot_compute_so_is_refused(make: Callable[[], Any], found: str) -> None:
    with pytest.raises(InputError, match=f"compute_dtype: expected .*{found}"):
        make()


def test_networks_that_saw_nothing_are_refused(network: Any) -> None:
    with pytest.raises(InputError, match="compute_dtype: expected a network whose ranges a fit has measured"):
        network(images(1))


def test_scales_of_another_network_are_refused(tmp_path: Path) -> None:
    parts = [a_part(seed) for seed in range(4)]
    PatchCore(**RGB, calibration="none", runtime="openvino").fit(parts).save(tmp_path / "model")
    method = PatchCore(**RGB, calibration="none", runtime="openvino", compute_dtype="int8").fit(parts)
    with pytest.raises(FormatError):
        method.extractors_.load(tmp_path / "model")
