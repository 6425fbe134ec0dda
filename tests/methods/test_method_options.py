"""The methods' arguments: declared once, checked by the constructor, told by one function."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmad_bank import methods
from mmad_bank._internal.parameters import declarations
from mmad_bank.data import Sample
from mmad_bank.errors import InputError, UnknownArgumentError
from mmad_bank.methods import CFM, LSFA, M3DM, MDSS, Method, PatchCore, Prediction
from mmad_bank.methods.options import FORMER_NAMES

EVERY = [methods.method_class(name) for name in methods.names()]


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("seed", (2**70, "x", 1.0)),
        ("device", ("gpu", 0)),
        ("image_size", (0, -4, 2**20, "224", 224.0)),
        ("sigma", (-1.0, float("nan"), float("inf"), "x", None)),
        ("rgb", (3, None)),
        ("rgb_layers", ((), (-1,), (1.5,), 2)),
        ("compute_dtype", ("float16", torch.bfloat16)),
        ("grid", ((0, 28), (28,), 28, "28")),
        ("ratio", (0, 2.0, float("nan"), "x", True)),
        ("reweight", ("mean",)),
        ("n_neighbors", (0, 2**40)),
        ("projection_dim", (0, "always")),
        ("bank_precision", ("int4",)),
        ("xyz", ("pointnet",)),
        ("num_groups", (0, 2**40)),
        ("group_size", (0, 2.5)),
        ("recipe", ("code",)),
        ("adaptor", ("three_layers",)),
        ("finetune", ("every", None)),
        ("finetune_rank", (0, 1.5)),
        ("finetune_blocks", (0, -1)),
        ("finetune_networks", ((), ("rgb", "fusion"))),
        ("adaptation_steps", (0,)),
        ("adaptation_patches", (0, -1)),
        ("banks", ((), ("rgb", "depth"), ("rgb", "rgb"), "rgb")),
        ("fusion", ("add",)),
        ("decision", ("vote",)),
        ("uff_steps", (0, "many")),
        ("uff_lr", (0, float("nan"), "fast")),
        ("epochs", (0, 1.5)),
        ("batch", (0,)),
        ("lr", (0.0, float("nan"), float("inf"), -1e-3, True)),
        ("map_size", (0,)),
        ("xyz_layers", ((12,), ())),
        ("variant", ("XL",)),
        ("losses", ((), ("contrast",))),
        ("clc_weight", (-0.1, float("inf"))),
        ("branches", ((), ("rgb", "fusion"))),
        ("quantiles", ((1, 0), (0.99, 1.0), (0.99,), 0.99)),
        ("coverage", ((0.0, 1.0), (5.0, float("inf")))),
        ("sdf_batch", (1,)),
        ("sdf_queries", (0, 501)),
        ("teacher_images", (3,)),
    ],
)
def test_wrong_arguments_are_refused_before_the_work(argument: str, values: tuple[Any, ...]) -> None:
    takers = [method for method in EVERY if argument in method.argument_names()]
    assert takers
    for method in takers:
        for value in values:
            with pytest.raises(InputError, match=rf"^{argument}: expected .*, found ") as caught:
                method(**{argument: value})
            assert "\n" not in str(caught.value)


def test_arguments_that_do_not_go_together() -> None:
    with pytest.raises(InputError, match=r"^n_neighbors: expected 2 to"):
        M3DM(n_neighbors=1)
    assert PatchCore(n_neighbors=1).n_neighbors == 1
    with pytest.raises(InputError, match="rgb_to_xyz_weights and xyz_to_rgb_weights: expected two files"):
        CFM(rgb_to_xyz_weights="a.pth")
    with pytest.raises(InputError, match=r"sdf_queries: expected 1 to 60 \(the points of a patch\)"):
        MDSS(patch_size=60, sdf_queries=61)


def test_what_is_kept_can_be_written_as_json(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "uff_weights": tmp_path / "uff.pth", "banks": ["rgb"], "grid": [np.int64(7), 7], "uff_lr": np.float32(0.5),
        "device": torch.device("cpu"),
    }  # fmt: skip
    kept = M3DM(**given).arguments()
    assert json.loads(json.dumps(kept))["uff_weights"] == str(tmp_path / "uff.pth")
    assert (kept["banks"], kept["grid"], kept["uff_lr"], kept["device"]) == (("rgb",), (7, 7), 0.5, "cpu")


def test_defaults_of_a_method_are_its_own() -> None:
    assert (MDSS().image_size, CFM().image_size) == (256, 224)
    assert (PatchCore().reweight, M3DM().reweight, LSFA().reweight) == ("patchcore", "m3dm", "patchcore")
    assert (M3DM().adaptation, LSFA().adaptation) == ("none", "train")
    assert (M3DM().reading("group_size"), CFM(recipe="paper").reading("group_size")) == (128, 32)
    assert (M3DM().rgb, MDSS().rgb) == ("vit_base_patch8_224.dino", "efficientnet_lite0")


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_the_network_and_its_weights_come_first_and_all_else_by_name(method: type[Method]) -> None:
    first, second, *others = inspect.signature(method).parameters.values()
    assert [(one.name, one.kind) for one in (first, second)] == [
        ("rgb", first.POSITIONAL_OR_KEYWORD), ("rgb_weights", first.POSITIONAL_OR_KEYWORD),
    ]  # fmt: skip
    assert {one.kind for one in others} == {first.KEYWORD_ONLY}
    assert method("efficientnet_lite0", "random").rgb_weights == "random"
    with pytest.raises(TypeError):
        method("efficientnet_lite0", "random", (1, 2))  # type: ignore[misc]
    assert method.argument_names() == tuple(one.name for one in methods.parameters(method.name))


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_every_argument_is_documented(method: type[Method]) -> None:
    """By a sentence or more that begin with their subject, and nowhere else: the class says nothing of arguments."""
    for one in methods.parameters(method.name):
        assert one.documentation[:1].isupper(), one
        assert one.documentation.endswith((".", ".)")), one
        assert not one.documentation.startswith(("Of ", "The ")), one
        assert one.type, one
    assert "Args:" not in (inspect.getdoc(method) or "")


def test_every_argument_is_declared_once() -> None:
    """By one field with a docstring; all fields of its name in other classes only change the default."""
    folder = Path(inspect.getfile(methods)).parent
    declared: dict[str, list[str]] = {}
    for path in folder.rglob("*.py"):
        for cls in [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]:
            if any("dataclass" in ast.unparse(one) and "kw_only" in ast.unparse(one) for one in cls.decorator_list):
                for before, node in zip(cls.body, cls.body[1:], strict=False):
                    said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                    if said and isinstance(before, ast.AnnAssign):
                        declared.setdefault(ast.unparse(before.target), []).append(f"{path.name}: {cls.name}")
    several = {name: places for name, places in declared.items() if len(places) > 1}
    # One word of two papers, for two things; the grid, which may be left to the banks where they have their own; and
    # the number type, of which PatchCore takes one more.
    assert several.keys() <= {"aggregation", "compute_dtype", "decision", "grid"}, several
    assert {name for method in EVERY for name in declarations(method)} <= declared.keys()


def test_former_names_are_taken() -> None:
    for former, name in FORMER_NAMES.items():
        takers = [method for method in EVERY if name in method.argument_names()]
        value = {"compute_dtype": "bfloat16", "bank_precision": "half", "normalize_for": "p_auroc"}[name]
        for method in takers:
            with pytest.warns(DeprecationWarning, match=f"^{method.__name__}: {former} is {name} now"):
                assert getattr(method(**{former: value}), name) == value
            told = next(one for one in methods.parameters(method.name) if one.name == name)
            assert told.former == (former,)
    with pytest.raises(TypeError, match="storage"):
        MDSS(storage="half")  # type: ignore[call-arg]


class Written(Method):
    """A method of somebody else's, with a constructor that is written out."""

    name = "written"

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self.image_size, self.seed, self.device = 32, 0, "cpu"
        self._begin()

    def _fit(self, *args: Any) -> None:
        raise NotImplementedError

    def _predict(self, samples: list[Sample]) -> list[Prediction]:
        raise NotImplementedError

    def _save(self, folder: Path) -> dict[str, Any]:
        raise NotImplementedError

    def _load(self, folder: Path, learnt: dict[str, Any]) -> None:
        raise NotImplementedError


def test_a_constructor_that_is_written_out() -> None:
    method = Written(0.7)
    assert method.arguments() == {"threshold": 0.7}
    assert repr(method) == "<Written(threshold=0.7): not fitted>"
    assert [(one.name, one.type) for one in Written.parameters()] == [("threshold", "number")]


def test_parameters_of_no_method() -> None:
    with pytest.raises(InputError, match="method: expected one of patchcore"):
        methods.parameters("magic")


@pytest.mark.parametrize("method", EVERY)
def test_an_unknown_argument_is_refused_with_the_one_that_is_near(method: type[Method]) -> None:
    said = rf"^image_sise: {method.__name__} has no such argument \(did you mean 'image_size'\?\)$"
    with pytest.raises(UnknownArgumentError, match=said) as caught:
        method(image_sise=64)  # type: ignore[call-arg]
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(InputError, match=f"^x: {method.__name__} has no such argument; it has rgb, rgb_weights, "):
        method(x=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("method", "idle"),
    [
        (PatchCore(reweight="max"), {"n_neighbors": "reweight=max", "tile_overlap": "tiles=none"}),
        (PatchCore(reweight="top"), {"n_neighbors": "reweight=top", "tile_overlap": "tiles=none"}),
        (PatchCore(), {"tile_overlap": "tiles=none"}),
        (CFM(), {"normalize_for": "divide_by_means=false"}),
        (CFM(recipe="published"), {"sigma": "smoothing=boxes"}),
        (MDSS(), {}),
        (MDSS(branches=("xyz",), sdf_weights="sdf.safetensors"),
         {"teacher": "branches=xyz", "sdf_lr": "sdf_weights=sdf.safetensors", "statistics": "branches=xyz"}),
        (MDSS(teacher="pdn.pth"), {"rgb": "teacher=pdn.pth", "teacher_images": "teacher=pdn.pth"}),
        (M3DM(xyz="fpfh"), {"batch_norm": "xyz=fpfh", "interpolation": "xyz=fpfh", "skip_near_origin": "xyz=fpfh"}),
        (M3DM(banks=("rgb",)), {"xyz": "banks=rgb", "uff_steps": "banks=rgb", "dlf_nu": "banks=rgb"}),
        (M3DM(banks=("xyz", "rgb")), {"fusion": "banks=xyz,rgb", "mean_feature": "banks=xyz,rgb"}),
        (M3DM(decision="add", uff_weights="uff.pth"),
         {"dlf_lr": "decision=add", "double_loss": "uff_weights=uff.pth", "adaptor": "adaptation=none"}),
        (M3DM(banks=("xyz",), sampling="groups"), {"grid": "sampling=groups"}),
        (LSFA(), {"finetune_rank": "finetune=none", "finetune_networks": "finetune=none"}),
        (LSFA(adaptation="none"), {"queue_size": "adaptation=none", "adaptation_steps": "adaptation=none"}),
        (LSFA(finetune="lora"), {"adaptor": "finetune=lora", "finetune_blocks": "finetune=lora"}),
        (LSFA(losses=("global_alignment",)),
         {"queue_size": "losses=global_alignment", "compactness": "losses=global_alignment"}),
        (LSFA(xyz="fpfh"), {"recipe": "xyz=fpfh"}),
    ],
)  # fmt: skip
def test_arguments_without_effect_are_known(method: Method, idle: dict[str, str]) -> None:
    found = method.idle_arguments()
    assert idle.items() <= found.items()
    assert set(found) <= set(method.argument_names())
    if not idle:
        assert not found


def test_what_has_an_effect_is_not_called_idle() -> None:
    """The idle ones of the defaults are those of what the defaults leave out."""
    adaptors = {"adaptor", "adaptation_steps", "adaptation_batch", "adaptation_patches"}
    assert set(M3DM().idle_arguments()) == adaptors
    assert set(LSFA().idle_arguments()) == {"finetune_rank", "finetune_blocks", "finetune_networks"}
    assert set(M3DM(adaptation="train").idle_arguments()) == set()
    assert set(M3DM(banks=("fusion",), adaptation="train").idle_arguments()) == {
        "decision", "dlf_nu", "dlf_lr", "dlf_max_iter", "dlf_factors", "dlf_pixel_share", "bank_sizes", "mean_feature"
    }  # fmt: skip
