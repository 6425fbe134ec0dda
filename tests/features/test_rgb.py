"""RGB extractors: against timm's own forward pass, through local files, and cut where nothing more is needed."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmad_bank.errors import FormatError, InputError, MissingExtraError
from mmad_bank.features.rgb import RGBExtractor

timm = pytest.importorskip("timm")
VIT, CNN = "vit_tiny_patch16_224", "resnet18"


def weights_file(model: str, path: Path, key: str | None = None, **options) -> Path:
    """timm's network with seeded weights, classifier included."""
    torch.manual_seed(8)
    network = timm.create_model(model, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state = network.state_dict()
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state if key is None else {key: state, "epoch": 3}, path)
    return path


def images(n: int = 2, side: int = 224) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def normalised(x: torch.Tensor, network) -> torch.Tensor:
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (x.float() / 255 - mean) / std


@pytest.mark.parametrize("name", ["vit.pth", "vit.safetensors", "nested.pth"])
def test_transformers_last_tokens_after_the_final_norm(tmp_path: Path, name: str) -> None:
    path = weights_file(VIT, tmp_path / name, key="state_dict" if name == "nested.pth" else None)
    extractor = RGBExtractor(VIT, path)
    network = timm.create_model(VIT, num_classes=0).eval()
    weights = RGBExtractor(VIT, path).network.state_dict()
    network.load_state_dict(weights)
    with torch.no_grad():
        expected = network.forward_features(normalised(images(), network))[:, 1:]
    features = extractor(images())
    assert features.shape == (2, 196, 192) == (2, 14 * 14, extractor.dim)
    assert torch.allclose(features, expected, atol=1e-5)
    saved = torch.load(path, weights_only=True) if path.suffix == ".pth" else None
    if saved is not None:
        saved = saved.get("state_dict", saved)
        assert all(torch.equal(weights[key], saved[key]) for key in weights)


def test_layers_of_a_transformer_each_through_the_norm_and_the_rest_cut_off(tmp_path: Path) -> None:
    path = weights_file(VIT, tmp_path / "vit.pth")
    whole = timm.create_model(VIT).eval()
    whole.load_state_dict(torch.load(path, weights_only=True))
    taken = {}
    for layer in (2, 4):
        whole.blocks[layer].register_forward_hook(lambda m, x, y, layer=layer: taken.update({layer: whole.norm(y)}))
    with torch.no_grad():
        whole(normalised(images(1), whole))
    extractor = RGBExtractor(VIT, path, layers=(2, 4))
    assert len(extractor.network.blocks) == 5
    assert torch.allclose(extractor(images(1)), torch.cat([taken[2], taken[4]], dim=2)[:, 1:], atol=1e-5)


SMALL_SAM = {"depth": 3, "embed_dim": 48, "num_heads": 3, "global_attn_indexes": (1,), "neck_chans": 32}
SMALL_DINOV2 = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def small(monkeypatch: pytest.MonkeyPatch, **sizes) -> None:
    """Let timm make networks of the true architecture with fewer and narrower blocks."""
    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: original(name, **options, **sizes))


@pytest.mark.parametrize("side", [224, 320])
def test_sams_encoder_is_a_transformer_with_a_neck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    """From the file for 1024 pixels, in its published names; with windows, and at 320 pixels padded ones."""
    small(monkeypatch, **SMALL_SAM)
    torch.manual_seed(1)
    whole = timm.create_model("samvit_base_patch16").eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert whole.pos_embed.shape == (1, 64, 64, 48)
    published = {f"image_encoder.{k}".replace("mlp.fc", "mlp.lin"): v for k, v in whole.state_dict().items()}
    torch.save({**published, "mask_decoder.iou_token.weight": torch.zeros(1)}, tmp_path / "sam.pth")
    extractor = RGBExtractor("samvit_base_patch16.sa1b", tmp_path / "sam.pth", image_size=side)
    n = side // 16
    assert (extractor.is_transformer, extractor.layers, extractor.grid, extractor.dim) == (True, (2,), (n, n), 32)
    with torch.no_grad():
        expected = whole.forward_features(normalised(images(2, side), whole))
    features = extractor(images(2, side))
    assert features.shape == (2, n * n, 32)
    assert torch.allclose(features, expected.flatten(2).transpose(1, 2), atol=1e-4)
    assert len(RGBExtractor("samvit_base_patch16", layers=(0, 1), image_size=64).blocks) == 2
    with pytest.raises(InputError, match="image_size: expected a multiple of samvit_base_patch16's 16, found 100"):
        RGBExtractor("samvit_base_patch16", image_size=100)


@pytest.mark.parametrize(("side", "n"), [(224, 16), (518, 37)])
@pytest.mark.parametrize(("model", "prefix"), [("vit_base_patch14_dinov2", 1), ("vit_base_patch14_reg4_dinov2", 5)])
def test_dinov2_has_its_own_grid_and_no_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, prefix: int, side: int, n: int
) -> None:
    small(monkeypatch, **SMALL_DINOV2)
    path = weights_file(model, tmp_path / "dinov2.pth")  # for 518 pixels
    extractor = RGBExtractor(model, path, image_size=side)
    assert (extractor.grid, extractor.dim) == ((n, n), 48)
    network = timm.create_model(model, img_size=side, num_classes=0).eval()
    network.load_state_dict(extractor.network.state_dict())
    with torch.no_grad():
        expected = network.forward_features(normalised(images(1, side), network))[:, prefix:]
    assert expected.shape[1] == n * n
    assert torch.allclose(extractor(images(1, side)), expected, atol=1e-5)


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", "mvitv2_tiny"])
def test_files_of_networks_whose_last_stage_is_cut_off(tmp_path: Path, model: str) -> None:
    """What timm converts concerns every stage, such as tables of relative positions that are resampled."""
    path = weights_file(model, tmp_path / "whole.pth")
    extractor = RGBExtractor(model, path)
    whole = timm.create_model(model, num_classes=0).eval()
    convert = sys.modules[type(whole).__module__].checkpoint_filter_fn
    state = convert(torch.load(path, weights_only=True), whole)
    whole.load_state_dict({name: tensor for name, tensor in state.items() if name in whole.state_dict()})
    with torch.no_grad():
        maps = whole.forward_intermediates(normalised(images(1), whole), indices=[1], intermediates_only=True)[0]
    averaged = F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)
    assert torch.allclose(extractor(images(1))[:, :, : averaged.shape[2]], averaged, atol=1e-4)
    assert extractor.grid == (28, 28)


PLACED = [
    "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224", "hiera_tiny_224", "hieradet_small", "convnext_atto",
    "mvitv2_tiny", "xcit_nano_12_p8_224",
]  # fmt: skip


@pytest.mark.parametrize(
    "model", [pytest.param(one, marks=pytest.mark.slow if one.startswith("hiera") else ()) for one in PLACED]
)
def test_a_change_in_the_picture_changes_the_patches_there(model: str) -> None:
    """Tokens in rows, maps with channels first or last, prefix tokens: a wrong order would move the change."""
    torch.manual_seed(0)
    extractor = RGBExtractor(model)
    plain = torch.full((1, 3, 224, 224), 0.5)
    marked = plain.clone()
    marked[:, :, 150:164, 60:74] = 1.0
    moved = (extractor(plain) - extractor(marked)).norm(dim=2).view(extractor.grid)
    row, column = divmod(int(moved.argmax()), extractor.grid[1])
    assert abs((row + 0.5) / extractor.grid[0] - 157 / 224) < 0.1
    assert abs((column + 0.5) / extractor.grid[1] - 67 / 224) < 0.1


def test_networks_of_one_grid_without_prefix_are_transformers_too() -> None:
    torch.manual_seed(0)
    extractor = RGBExtractor("mixer_s32_224")
    assert (extractor.layers, extractor.grid, extractor.dim) == ((7,), (7, 7), 512)
    network = timm.create_model("mixer_s32_224", num_classes=0).eval()
    network.load_state_dict(extractor.network.state_dict())
    with torch.no_grad():
        expected = network.forward_features(normalised(images(1), network))
    assert torch.allclose(extractor(images(1)), expected, atol=1e-5)


def test_convolutional_stages_are_averaged_and_brought_to_one_grid(tmp_path: Path) -> None:
    path = weights_file(CNN, tmp_path / "cnn.pth")
    whole = timm.create_model(CNN).eval()
    whole.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        x = whole.maxpool(whole.act1(whole.bn1(whole.conv1(normalised(images(1), whole)))))
        second = whole.layer2(whole.layer1(x))
        third = whole.layer3(second)
    second, third = (F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False) for maps in (second, third))
    third = F.interpolate(third, size=(28, 28), mode="bilinear")
    extractor = RGBExtractor(CNN, path)
    assert (extractor.grid, extractor.dim, extractor.layers) == ((28, 28), 384, (2, 3))
    expected = torch.cat([second, third], dim=1).flatten(2).transpose(1, 2)
    assert torch.allclose(extractor(images(1)), expected, atol=1e-4)
    assert not [name for name in extractor.network.state_dict() if name.startswith(("layer4", "fc"))]


def test_wide_resnet_takes_layers_2_and_3() -> None:
    with torch.device("meta"):
        network = timm.create_model("wide_resnet50_2", num_classes=0)
    assert [info["reduction"] for info in network.feature_info] == [2, 4, 8, 16, 32]
    assert sum(info["num_chs"] for info in network.feature_info[2:4]) == 1536


def test_vit_b8_dino_is_the_default() -> None:
    extractor = RGBExtractor(layers=(0,))  # one block: the size of the whole is not what is tested
    assert (extractor.grid, extractor.dim, extractor.model) == ((28, 28), 768, "vit_base_patch8_224.dino")


def test_grid_averages_down_and_interpolates_up() -> None:
    torch.manual_seed(0)
    extractor = RGBExtractor(VIT, layers=(0,))
    maps = extractor(images(1)).transpose(1, 2).view(1, 192, 14, 14)
    for grid in ((7, 7), (28, 28)):
        extractor.grid = grid
        expected = F.adaptive_avg_pool2d(maps, 7) if grid == (7, 7) else F.interpolate(maps, size=grid, mode="bilinear")
        assert torch.allclose(extractor(images(1)), expected.flatten(2).transpose(1, 2), atol=1e-6)
    assert RGBExtractor(VIT, layers=(0,), grid=(28, 28))(images(1)).shape == (1, 784, 192)


def test_other_image_sizes_resample_the_position_embeddings(tmp_path: Path) -> None:
    path = weights_file(VIT, tmp_path / "vit.pth")
    extractor = RGBExtractor(VIT, path, image_size=128)
    assert extractor.grid == (8, 8)
    assert extractor(images(1, 128)).shape == (1, 64, 192)


def test_a_batch_is_its_images_and_floats_are_bytes_over_255() -> None:
    torch.manual_seed(0)
    extractor = RGBExtractor(VIT, layers=(1,))
    together = extractor(images(3))
    assert torch.allclose(together[1:2], extractor(images(3)[1:2]), atol=1e-5)
    assert torch.allclose(extractor(images(3) / 255), together, atol=1e-5)


def test_bfloat16_is_near_and_float32() -> None:
    torch.manual_seed(0)
    extractor = RGBExtractor(VIT, layers=(2,))
    exact = extractor(images(1))
    extractor.compute_dtype = "bfloat16"
    half = extractor(images(1))
    assert half.dtype == torch.float32
    assert 0 < float((half - exact).norm() / exact.norm()) < 0.05


def test_stays_frozen_and_in_evaluation_mode() -> None:
    extractor = RGBExtractor(CNN).train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_nothing_is_fetched_unasked_and_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create_model(name: str, **options):
        asked.append(options["pretrained"])
        logging.getLogger("huggingface_hub").warning("a line for every retry")
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(InputError, match="cannot make"):
        RGBExtractor(VIT)
    with pytest.raises(InputError) as caught:
        RGBExtractor(VIT, download=True)
    assert asked == [False, True]
    expected = f"model: the weights of {VIT} could not be fetched (no route to host); give a file that you have"
    assert str(caught.value).startswith(expected)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm.*multimodal"):
        RGBExtractor(VIT)


@pytest.mark.parametrize("model", [VIT, CNN])
def test_checkpoints_for_another_architecture_are_refused(tmp_path: Path, model: str) -> None:
    other = weights_file("resnet26" if model == VIT else VIT, tmp_path / "other.pth")
    with pytest.raises(FormatError, match=r"other\.pth: .*(another architecture|missing)") as caught:
        RGBExtractor(model, other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RGBExtractor("no_such_model"), "model: timm .* has no model 'no_such_model'"),
        (lambda: RGBExtractor(f"{VIT}.no_such_tag"), "model: timm cannot make"),
        (lambda: RGBExtractor(VIT, "nowhere.pth"), "nowhere.pth: no such checkpoint"),
        (lambda: RGBExtractor(VIT, layers=(12,)), "layers: expected rising numbers from 0 to 11"),
        (lambda: RGBExtractor(VIT, image_size=100), "image_size: expected a multiple of .* 16"),
        (lambda: RGBExtractor("maxvit_tiny_tf_224", image_size=200), "image_size: expected 224 or another size.*200"),
        (lambda: RGBExtractor(VIT, compute_dtype="half"), "compute_dtype"),
        (lambda: RGBExtractor(VIT, grid=(0, 4)), "grid"),
        (lambda: RGBExtractor(CNN)(images(1, 64)), r"images: expected \(B, 3, 224, 224\)"),
        (lambda: RGBExtractor(CNN)(images(1).float()), r"images: expected floating-point values in \[0, 1\]"),
        (lambda: RGBExtractor(CNN)(images(1).int()), "images: expected uint8 or floating point"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_plain_maps_are_those_of_any_stage_of_blocks() -> None:
    """As AST takes them, of B5, whose stages B0 has. timm lists this one only with ``extra_blocks``."""
    torch.manual_seed(0)
    plain = RGBExtractor("tf_efficientnet_b0", image_size=64, plain=True)
    assert (plain.layers, plain.grid, plain.dim, len(plain.network.blocks)) == ((5,), (2, 2), 192, 6)
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = plain.network.bn1(plain.network.conv_stem((picture - plain.mean) / plain.std))
        for stage in plain.network.blocks:
            x = stage(x)
    torch.testing.assert_close(plain(picture), x.flatten(2).transpose(1, 2))
    torch.manual_seed(0)
    usual = RGBExtractor("tf_efficientnet_b0", image_size=64, layers=(4,))
    assert (usual.dim, len(usual.network.blocks), usual.name) == (320, 7, "tf_efficientnet_b0 layers 4 grid 2x2")
    with pytest.raises(InputError, match="layers: expected rising numbers from 0 to 6"):
        RGBExtractor("tf_efficientnet_b0", image_size=64, layers=(7,), plain=True)
