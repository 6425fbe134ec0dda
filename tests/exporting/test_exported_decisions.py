"""The decision in export.json: whoever follows it comes to the method's own scores, maps and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("onnx", "onnxscript", "onnxruntime", "timm", "sklearn"):
    pytest.importorskip(package)

from data_trees import add_picture
from exported import ALL, Exported, decide, quantized, repeated
from PIL import Image
from small_parts import CFM_ARGUMENTS, RGB, SIZE, a_part

from mmad_bank import exporting
from mmad_bank.data import RegionOfInterest, Sample, open_dataset
from mmad_bank.exporting.decisions import decision_of
from mmad_bank.exporting.writing import run
from mmad_bank.methods import BTF, CFM, LSFA, M3DM, MDSS, Method, PatchCore

POINTS: dict[str, Any] = {"xyz_weights": "random", "num_groups": 24, "group_size": 8}
FUSION: dict[str, Any] = {**RGB, **POINTS, "uff_steps": 3, "uff_batch": 2, "uff_patches": 16, "calibration": "folds"}
ADAPTED: dict[str, Any] = {**RGB, **POINTS, "adaptation_steps": 2, "adaptation_batch": 2, "queue_size": 100}
ACCURACY = 1e-3  # of scores: networks differ by 1e-4 of their largest value


@pytest.fixture(scope="module")
def parts() -> list[Sample]:
    return [quantized(a_part(seed)) for seed in range(6)]


@pytest.fixture(scope="module")
def m3dm(parts: list[Sample]) -> M3DM:
    """Of three banks on two grids, so that RGB features are repeated in the fusion bank."""
    return M3DM(**{**FUSION, "grid": None}, xyz_grid=(8, 8), rgb_grid=(4, 4), fusion_grid=(8, 8)).fit(parts)


def follows(method: Method, sample: Sample) -> None:
    """The parts of a prediction, put together as the decision says, are the prediction."""
    prediction = method.predict(sample)
    images = {name: part.score for name, part in prediction.parts.items()}
    places = {name: part.scores.numpy() for name, part in prediction.parts.items()}
    score, whole = decide(decision_of(method), images, places)
    assert score == pytest.approx(prediction.score, rel=1e-4)
    expected = prediction.prepared_map.numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("changes", [
    {}, {"decision": "add"}, {"decision": "calibrated"}, {"decision": "calibrated", "banks": ("xyz", "rgb")},
    {"decision": "add", "banks": ("fusion",)},
])  # fmt: skip
def test_m3dm(m3dm: M3DM, changes: dict[str, Any]) -> None:
    method = m3dm.with_arguments(**changes) if changes else m3dm
    follows(method, quantized(a_part(40)))


def test_lsfa(parts: list[Sample]) -> None:
    method = LSFA(**ADAPTED, decision="calibrated", calibration="folds").fit(parts)
    assert decision_of(method)["name"] == "calibrated"
    follows(method, a_part(40))
    averaged = method.with_arguments(decision="add")
    assert decision_of(averaged)["image"]["weights"] == {"xyz": 0.5, "rgb": 0.5}
    follows(averaged, a_part(40))


@pytest.fixture(scope="module")
def cfm(parts: list[Sample]) -> CFM:
    return CFM("efficientnet_lite0", **CFM_ARGUMENTS, recipe="published", calibration="folds", calibration_folds=2).fit(
        parts
    )


@pytest.mark.parametrize("changes", [
    {}, {"normalize_for": "p_auroc"}, {"decision": "calibrated"},
    *({"aggregation": rule} for rule in ("sum", "max", "rgb", "xyz")),
])  # fmt: skip
def test_cfm(cfm: CFM, changes: dict[str, Any]) -> None:
    follows(cfm.with_arguments(**changes) if changes else cfm, a_part(40))


def test_cfm_with_a_gaussian(parts: list[Sample]) -> None:
    follows(CFM("efficientnet_lite0", **CFM_ARGUMENTS).fit(parts[:3]), a_part(40))


MDSS_ARGUMENTS: dict[str, Any] = {
    "rgb_weights": "random", "image_size": SIZE, "pdn_width": 8, "channels": 16, "teacher_images": "own",
    "teacher_steps": 3, "teacher_batch": 2, "student_steps": 3, "student_batch": 2, "patch_size": 60,
    "coverage": (2.0, 3.0), "sdf_steps": 3, "sdf_batch": 3, "sdf_queries": 10, "sdf_width": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def mdss(parts: list[Sample]) -> MDSS:
    return MDSS(**MDSS_ARGUMENTS, calibration="folds", calibration_folds=2, decision="calibrated").fit(parts[:4])


def test_mdss(mdss: MDSS, parts: list[Sample]) -> None:
    follows(mdss, a_part(40))
    aligned = mdss.with_arguments(decision="align")
    assert decision_of(aligned)["map"]["rule"] == "max_of_maps"
    follows(aligned, a_part(40))
    for branch in ("rgb", "xyz"):
        follows(MDSS(**MDSS_ARGUMENTS, branches=(branch,)).fit(parts[:3]), a_part(40))


# From the export alone.


def agrees(method: Method, folder: Path, sample: Sample, accuracy: float = ACCURACY) -> None:
    """The folder's files alone give the method's score, map and verdict."""
    exporting.export(method, folder)
    exported = Exported(folder)
    images: dict[str, float] = {}
    if exported.said["comparison"]:
        places = exported.discrepancies(exported.features(sample))
    elif exported.said["banks"]:
        images, places = exported.bank_scores(sample)
    else:
        places = exported.branches(sample)
    decision, expected = exported.said["decision"], method.predict(sample)
    shown = (ALL, ALL) if sample.frame is None else (sample.frame.rows, sample.frame.columns)
    score, whole = decide(decision, images, places, shown)
    assert score == pytest.approx(expected.score, rel=ACCURACY)
    own = expected.prepared_map.numpy()
    inside = exported.counting(sample, decision["map"]["size"]) if exported.said["roi"] else np.full(own.shape, True)
    np.testing.assert_allclose(whole[inside], own[inside], atol=accuracy * np.abs(own).max())
    if expected.verdict is not None:
        assert ("bad" if score > decision["verdict"]["bad_above"] else "good") == expected.verdict
        assert decision["verdict"]["false_alarm_rate"] == pytest.approx(expected.threshold.rate)


def test_m3dm_by_its_files(m3dm: M3DM, tmp_path: Path) -> None:
    agrees(m3dm, tmp_path / "export", quantized(a_part(40)))
    said = Exported(tmp_path / "export").said
    assert sorted(said["networks"]) == ["fusion-rgb", "fusion-xyz", "rgb", "xyz-groups"]
    assert said["networks"]["fusion-rgb"]["inputs"]["rows"]["shape"][0] == "rows"
    assert [part["network"] for part in said["banks"]["fusion"]["features"]] == ["fusion-xyz", "fusion-rgb"]
    assert said["decision"]["name"] == "dlf"
    assert set(said["decision"]["image"]["weights"]) == set(said["banks"])


def test_features_side_by_side_by_their_files(parts: list[Sample], tmp_path: Path) -> None:
    pytest.importorskip("open3d")
    method = M3DM(**RGB, xyz="fpfh", banks=("fusion",), fusion="concat", calibration="none").fit(parts[:3])
    agrees(method, tmp_path / "concatenated", quantized(a_part(40)))
    agrees(BTF(**RGB, calibration="none").fit(parts[:3]), tmp_path / "btf", quantized(a_part(40)))


def test_adapted_features_by_their_files(parts: list[Sample], tmp_path: Path) -> None:
    agrees(LSFA(**ADAPTED, calibration="none").fit(parts[:3]), tmp_path / "export", quantized(a_part(40)))


def test_mappings_by_their_files(parts: list[Sample], tmp_path: Path) -> None:
    method = CFM("efficientnet_lite0", **CFM_ARGUMENTS).fit(parts[:3])
    agrees(method, tmp_path / "export", quantized(a_part(40)))


def test_branches_by_their_files(mdss: MDSS, tmp_path: Path) -> None:
    agrees(mdss, tmp_path / "export", quantized(a_part(40)))
    said = Exported(tmp_path / "export").said
    assert sorted(said["networks"]) == ["differences", "signed-distance"]
    assert said["networks"]["signed-distance"]["inputs"]["patches"]["shape"] == ["batch", 60, 3]


def a_picture(seed: int, rows: slice, columns: slice) -> Sample:
    """A raw sample that is no square."""
    part = a_part(seed)
    rgb, xyz = (one[:, rows, columns].contiguous() for one in (part.rgb, part.xyz))
    return Sample(rgb, xyz, None, id=part.id, split="train")


def of_rgb() -> M3DM:
    return M3DM(**{**RGB, **POINTS, "calibration": "none", "banks": ("rgb",)})


def of_groups() -> M3DM:
    own = {"banks": ("xyz",), "sampling": "groups", "grid": None, "xyz_grid": (8, 8)}
    return M3DM(**{**RGB, **POINTS, "calibration": "none", **own})


def of_mappings() -> CFM:
    return CFM("efficientnet_lite0", **CFM_ARGUMENTS)


@pytest.mark.parametrize(
    ("rows", "columns", "kinds"),
    [(slice(12, 52), ALL, (of_rgb, of_groups)), (ALL, slice(17, 47), (of_rgb, of_mappings))],
)
def test_what_is_padding_repeats_what_is_nearest(tmp_path: Path, rows: slice, columns: slice, kinds: Any) -> None:
    """Patches of padding are left out, and take the nearest patch's score for the map; groups have their own rule."""
    samples = [a_picture(seed, rows, columns) for seed in range(3)]
    new = a_picture(40, rows, columns)
    for number, kind in enumerate(kinds):
        method = kind().fit(samples)
        accuracy = 5e-3 if kind is of_groups else ACCURACY  # distances in float32
        agrees(method, tmp_path / f"{number}", quantized(method.prepare(new)), accuracy)


def test_what_lies_outside_a_region_of_interest_repeats_what_is_nearest(tmp_path: Path) -> None:
    mask = np.zeros((96, 128), bool)
    mask[20:60, 30:100] = mask[70:80, 5:9] = True
    for number in range(4):
        add_picture(tmp_path / "good" / f"{number}.png", size=(96, 128), seed=number)
    add_picture(tmp_path / "new.png", size=(96, 128), seed=9, spot=True)
    dataset = open_dataset(tmp_path / "good", roi=RegionOfInterest(mask=mask))
    method = PatchCore(**RGB, calibration="none").fit(dataset)
    sample = quantized(method.predict(tmp_path / "new.png").sample)
    exporting.export(method, tmp_path / "export")
    exported = Exported(tmp_path / "export")
    counts = exported.counting(sample, [8, 8])
    picture = np.array(Image.open(tmp_path / "new.png").convert("RGB"))
    found = run(tmp_path / "export" / "rgb.onnx", {"picture": picture[None]})["features"]
    score, own = exported._scored(exported.said["banks"]["rgb"], found[0][counts.ravel()])
    score, whole = decide(exported.said["decision"], {"rgb": score}, {"rgb": repeated(own, counts)})
    expected = method.predict(tmp_path / "new.png")
    assert score == pytest.approx(expected.score, rel=2e-3)
    inside = exported.counting(sample, [SIZE, SIZE])
    wanted = expected.prepared_map.numpy()[inside]
    np.testing.assert_allclose(whole[inside], wanted, atol=2e-3 * wanted.max())
