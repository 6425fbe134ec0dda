"""MDSS as a method: its branches, their union, what a kill leaves, and what a saved model holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_mdss import LONGER, SIZE, SMALL, VALIDATION, a_part, parts

from mmad_bank import methods
from mmad_bank.data import Sample
from mmad_bank.errors import FormatError, InputError, MmadBankError
from mmad_bank.features.point_alignment import measured_points
from mmad_bank.methods import MDSS
from mmad_bank.methods.mdss.pdn import PDN, foreground_mask
from mmad_bank.methods.mdss.photographs import Photographs
from mmad_bank.methods.mdss.point_patches import cut_patches

pytest.importorskip("timm")
scipy_ndimage = pytest.importorskip("scipy.ndimage")


@pytest.fixture(scope="module")
def fitted() -> MDSS:
    return MDSS(**SMALL).fit(parts(), validation=VALIDATION)


def test_the_registry_knows_it() -> None:
    assert "mdss" in methods.names()
    assert methods.method_class("mdss") is MDSS
    assert MDSS.preparation == "mdss"
    assert MDSS().image_size == 256


def test_shapes_and_ids(fitted: MDSS) -> None:
    prediction = fitted.predict(a_part(30, "test"))
    assert fitted.train_ids_ == [f"part/train/good/{seed:03d}" for seed in range(4)]
    assert prediction.map.shape == (SIZE, SIZE)
    assert prediction.map.dtype == torch.float32
    assert {name: tuple(part.scores.shape) for name, part in prediction.parts.items()} == {
        "rgb": PDN.grid(SIZE), "xyz": (SIZE, SIZE),
    }  # fmt: skip
    assert fitted.teacher_.channels == 16
    assert fitted.explain(prediction) == []


def own_maps(method: MDSS, sample: Sample) -> dict[str, np.ndarray]:
    """Both branches' maps from the networks, resized by PyTorch and blurred by SciPy."""
    with torch.no_grad():
        d = (method.teacher_(sample.rgb[None]) - method.student_(sample.rgb[None])).square().mean(1)
    cells = F.adaptive_max_pool2d(foreground_mask(sample.xyz[None]).float(), PDN.grid(SIZE))
    rgb = F.interpolate((d * cells)[None], size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0, 0]
    there = (sample.xyz != 0).all(0)
    points = sample.xyz[:, there].T
    xyz = np.zeros((SIZE, SIZE))
    xyz[there.numpy()] = method.sdf_.score(points, size=60, coverage=3.0, aggregation=method.aggregation)
    return {"rgb": rgb.double().numpy(), "xyz": scipy_ndimage.gaussian_filter(xyz, 4.0)}


def test_the_union_is_that_of_the_aligned_maps(fitted: MDSS) -> None:
    normal = [own_maps(fitted, sample) for sample in VALIDATION]
    rgb, xyz = (np.concatenate([maps[name].ravel() for maps in normal]) for name in ("rgb", "xyz"))
    sample = a_part(30, "test")
    maps = own_maps(fitted, sample)
    aligned = (maps["rgb"] - rgb.mean()) / rgb.std() * xyz.std() + xyz.mean()
    prediction = fitted.predict(sample)
    assert np.allclose(prediction.map, np.maximum(aligned, maps["xyz"]), rtol=1e-3, atol=1e-5 * xyz.std())
    assert prediction.score == pytest.approx(maps["rgb"].max() * maps["xyz"].max(), rel=1e-4)
    for name, part in prediction.parts.items():
        assert part.score == pytest.approx(maps[name].max(), rel=1e-4)
    assert fitted.alignment_.rgb_std == pytest.approx(rgb.std(), rel=1e-4)


def test_nonzero_statistics_leave_the_background_out() -> None:
    method = MDSS(**SMALL, statistics="nonzero").fit(parts(), validation=VALIDATION)
    normal = np.concatenate([own_maps(method, sample)["rgb"].ravel() for sample in VALIDATION])
    assert method.alignment_.rgb_mean == pytest.approx(normal[normal != 0].mean(), rel=1e-4)
    assert (normal == 0).any()


def test_the_background_says_nothing(fitted: MDSS) -> None:
    sample = a_part(30, "test")
    scores = fitted.predict(sample).parts["rgb"].scores
    mask = F.adaptive_max_pool2d(foreground_mask(sample.xyz[None]).float(), PDN.grid(SIZE))[0] > 0
    assert (scores[mask] > 0).all()
    assert (scores[~mask] == 0).all()
    assert (~mask).any()


def test_a_batch_is_predicted_as_its_samples_are(fitted: MDSS) -> None:
    samples = [a_part(seed, "test") for seed in (30, 31, 32)]
    for one, sample in zip(fitted.predict_batch(samples), samples, strict=True):
        alone = fitted.predict(sample)
        assert one.score == pytest.approx(alone.score, rel=1e-4)
        assert torch.allclose(one.map, alone.map, rtol=1e-3, atol=1e-6)


def test_products_may_be_of_bfloat16(fitted: MDSS, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    manifest = tmp_path / "model" / "model.json"
    content = json.loads(manifest.read_text())
    del content["checksum"]
    content["arguments"]["compute_dtype"] = "bfloat16"
    manifest.write_text(json.dumps(content))
    sample = a_part(30, "test")
    exact, rounded = (one.predict(sample).parts for one in (fitted, methods.load(tmp_path / "model")))
    for name in ("rgb", "xyz"):
        assert rounded[name].scores.dtype == torch.float32
        assert 0 < (rounded[name].scores - exact[name].scores).abs().max() < 0.02 * exact[name].scores.max()


def test_coverage_is_a_number_of_patches(fitted: MDSS) -> None:
    """SMALL names 3 in prediction; without a number there are as few as hold every point."""
    points = measured_points(a_part(30, "test").xyz.permute(1, 2, 0))[0]
    few = MDSS(**{**SMALL, "coverage": None, "sdf_weights": "random"}, branches=("xyz",)).fit(parts(1))
    cut = cut_patches(points, size=60)
    scores = few.predict(a_part(30, "test")).parts["xyz"].scores
    assert torch.equal(scores[scores != 0], few.sdf_.score(points, size=60))
    assert len(cut.points) != len(cut_patches(points, size=60, coverage=3.0).points)


@pytest.mark.parametrize("branch", ["rgb", "xyz"])
def test_a_branch_alone_is_that_of_both(fitted: MDSS, branch: str, tmp_path: Path) -> None:
    alone = MDSS(**SMALL, branches=(branch,)).fit(parts())
    sample = a_part(30, "test")
    prediction, part = alone.predict(sample), fitted.predict(sample).parts[branch]
    assert list(prediction.parts) == [branch]
    assert torch.equal(prediction.parts[branch].scores, part.scores)
    assert prediction.score == prediction.map.max().item() == part.score
    assert (alone.student_ is None) == (branch == "xyz")
    assert (alone.sdf_ is None) == (branch == "rgb")
    alone.save(tmp_path / "model")
    assert methods.load(tmp_path / "model").predict(sample).score == prediction.score


def test_a_saved_model_predicts_the_same(fitted: MDSS, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = methods.load(tmp_path / "model")
    assert isinstance(loaded, MDSS)
    assert loaded.arguments() == fitted.arguments()
    sample = a_part(30, "test")
    first, second = fitted.predict(sample), loaded.predict(sample)
    assert first.score == second.score
    assert torch.equal(first.map, second.map)
    assert loaded.nbytes == fitted.nbytes > 0
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "model.json", "signed-distance.safetensors", "student.safetensors", "teacher.safetensors",
    ]  # fmt: skip


def test_damaged_models_are_refused(fitted: MDSS, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    manifest = tmp_path / "model" / "model.json"
    content = json.loads(manifest.read_text())
    del content["checksum"]
    for learnt in (
        {},
        {"channels": 16, "alignment": None},
        {"channels": 16, "alignment": {"rgb_mean": 0.0}},
        {"channels": 16, "alignment": {**content["learnt"]["alignment"], "rgb_std": 0.0}},
    ):
        manifest.write_text(json.dumps({**content, "learnt": learnt}))
        with pytest.raises(FormatError, match="altered or of another version"):
            methods.load(tmp_path / "model")
    manifest.write_text(json.dumps({**content, "learnt": {**content["learnt"], "channels": 4}}))
    with pytest.raises(FormatError, match=r"teacher.safetensors: expected conv4.weight of shape \(4, "):
        methods.load(tmp_path / "model")


def test_a_published_teacher_needs_no_extractor(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    published = PDN(16, width=8)
    torch.save(published.state_dict(), tmp_path / "teacher.pth")
    monkeypatch.setattr("mmad_bank.methods.mdss.method.make_rgb_extractor", None)
    method = MDSS(**SMALL, branches=("rgb",), teacher=str(tmp_path / "teacher.pth")).fit(parts())
    states = method.teacher_.state_dict(), published.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    told = (
        r"^teacher: expected weights for pdn_width 4 and channels 16; found weights for pdn_width 8 and channels 16 \("
    )
    with pytest.raises(InputError, match=told):
        MDSS(**{**SMALL, "pdn_width": 4}, branches=("rgb",), teacher=str(tmp_path / "teacher.pth")).fit(parts())


def test_a_teacher_of_other_images_is_another(fitted: MDSS, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image_module.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)).save(tmp_path / "x.png")
    method = MDSS(**{**SMALL, "teacher_images": str(tmp_path)}, branches=("rgb",)).fit(parts())
    assert not torch.equal(method.teacher_.conv1.weight, fitted.teacher_.conv1.weight)


def test_a_teacher_without_pictures_learns_photographs(fitted: MDSS) -> None:
    pytest.importorskip("skimage")
    arguments = {**SMALL, "teacher_images": None}
    method = MDSS(**arguments, branches=("rgb",)).fit(parts())
    views = Photographs(SIZE)
    teacher = MDSS(**arguments).distil(torch.stack([views[i] for i in range(len(views))]))
    assert same_states(method.teacher_, teacher)
    assert not same_states(method.teacher_, fitted.teacher_)


def test_without_photographs_one_line_says_that_the_samples_teach(fitted: MDSS, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.warns(UserWarning, match="teacher_images: taking the training samples' own pictures, as ") as said:
        method = MDSS(**{**SMALL, "teacher_images": None}, branches=("rgb",)).fit(parts())
    (line,) = [str(one.message) for one in said if "teacher_images" in str(one.message)]
    assert "scikit-image" in line
    assert "mmad-bank[demo]" in line
    assert "\n" not in line
    assert same_states(method.teacher_, fitted.teacher_)


def test_one_sdf_serves_several_categories(fitted: MDSS, tmp_path: Path) -> None:
    others = [replace(a_part(seed), id=f"other/train/good/{seed:03d}") for seed in (40, 41)]
    empty = replace(a_part(9), xyz=torch.zeros(3, SIZE, SIZE))
    before = fitted.train_ids_, fitted.preprocessing_
    net = fitted.train_sdf([*parts(), empty, *others])
    assert (fitted.train_ids_, fitted.preprocessing_) == before
    assert same_states(net, MDSS(**SMALL).train_sdf([*parts(), *others]))
    assert not same_states(net, fitted.sdf_)
    assert same_states(MDSS(**SMALL).train_sdf(parts()), fitted.sdf_)  # what a fit trains on the same samples
    file = tmp_path / "sdf.safetensors"
    net.save(file)
    for samples in (parts(), others):
        own = MDSS(**SMALL, branches=("xyz",), sdf_weights=str(file)).fit(samples)
        assert same_states(own.sdf_, net)
        assert own.predict(a_part(30, "test")).score > 0
    told = r"^sdf_weights: expected weights for sdf_width 8; found weights for sdf_width 16 \(.*sdf\.safetensors\)$"
    with pytest.raises(InputError, match=told):
        MDSS(**{**SMALL, "sdf_width": 8}, branches=("xyz",), sdf_weights=str(file)).fit(parts())
    with pytest.raises(InputError, match="samples: no sample can be used"):
        fitted.train_sdf([empty])


def test_random_weights_of_the_sdf_are_those_of_the_seed(fitted: MDSS) -> None:
    first, again = (MDSS(**SMALL, branches=("xyz",), sdf_weights="random").fit(parts(1)) for _ in range(2))
    other = MDSS(**SMALL, branches=("xyz",), sdf_weights="random", seed=1).fit(parts(1))
    assert same_states(first.sdf_, again.sdf_)
    assert not same_states(first.sdf_, other.sdf_)
    assert not same_states(first.sdf_, fitted.sdf_)


def same_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_samples_that_cannot_be_used_are_left_out() -> None:
    empty = replace(a_part(9), xyz=torch.zeros(3, SIZE, SIZE), id="part/train/good/empty")
    method = MDSS(**SMALL, branches=("xyz",)).fit([*parts(2), empty, a_part(2)])
    assert method.train_ids_ == [f"part/train/good/{seed:03d}" for seed in range(3)]
    assert "expected measured points" in method.skipped_["part/train/good/empty"]
    with pytest.raises(InputError, match="no sample can be used; part/train/good/empty"):
        MDSS(**SMALL).fit([empty])
    with pytest.raises(InputError, match="part/train/good/empty: xyz: expected measured points"):
        method.predict(empty)


def test_clouds_of_fewer_points_than_a_patch() -> None:
    few = []
    for sample in parts():
        xyz = sample.xyz.clone()
        xyz[:, :, : SIZE // 2] = xyz[:, :, SIZE // 2 + 1 :] = 0
        few.append(replace(sample, xyz=xyz))
    assert 10 < int(few[0].measured.sum()) < 60 < int(parts()[0].measured.sum())
    method = MDSS(**SMALL).fit([*few, *parts()], validation=few)
    prediction = method.predict(few[0])
    assert torch.isfinite(prediction.map).all()
    assert prediction.score > 0


def states(method: MDSS) -> list[torch.Tensor]:
    return [tensor for network in method._networks().values() for tensor in network.state_dict().values()]


_KILLED = """
import os, signal, sys
import torch
sys.path.insert(0, {tests!r})
torch.set_num_threads({threads})
from mmad_bank._internal import training
from mmad_bank.methods import MDSS
from small_mdss import LONGER, VALIDATION, parts
save, saved = training._State.save, []
def counting(self, path, step):
    save(self, path, step)
    saved.append(path)
    if len(saved) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
training._State.save = counting
MDSS(**LONGER).fit(parts(), validation=VALIDATION, workdir={workdir!r})
"""


@pytest.fixture(scope="module")
def whole() -> MDSS:
    return MDSS(**LONGER).fit(parts(), validation=VALIDATION)


# Saved states: one of the teacher, one of the student, then distances' first.
@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_fit_goes_on_to_the_same_bytes(whole: MDSS, tmp_path: Path, after: int) -> None:
    workdir = tmp_path / "work"
    options = {"tests": str(Path(__file__).parent), "threads": torch.get_num_threads(), "workdir": str(workdir)}
    script = _KILLED.format(**options, after=after)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (workdir / "sdf.pt").exists() == (after == 3)
    resumed = MDSS(**LONGER).fit(parts(), validation=VALIDATION, workdir=workdir)
    assert all(torch.equal(a, b) for a, b in zip(states(resumed), states(whole), strict=True))
    assert resumed.alignment_ == whole.alignment_


def test_other_arguments_do_not_take_up_an_old_fit(fitted: MDSS, tmp_path: Path) -> None:
    for seed in (0, 1):
        method = MDSS(**SMALL, seed=seed).fit(parts(), validation=VALIDATION, workdir=tmp_path)
        assert torch.equal(states(method)[0], states(fitted)[0]) == (seed == 0)


def test_nan_stops_the_fit_with_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmad_bank.methods.preparing.check_sample", lambda sample: sample)  # which would leave it out
    torch.save(PDN(16, width=8).state_dict(), tmp_path / "teacher.pth")
    bad = a_part(0)
    bad.rgb[0, 24, 24] = torch.nan
    with pytest.raises(MmadBankError, match="train_student: the loss is nan at step 0 of 3"):
        MDSS(**SMALL, branches=("rgb",), teacher=str(tmp_path / "teacher.pth")).fit([bad])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"branches": ()}, r"branches: expected some of rgb, xyz, each once, found \(\)"),
        ({"branches": ("rgb", "fusion")}, r"branches: expected some of rgb, xyz, each once, found \('rgb', 'fusion'\)"),
        ({"branches": ("rgb", "rgb")}, "branches: expected"),
        ({"aggregation": "max"}, "aggregation: expected one of min, mean"),
        ({"statistics": "some"}, "statistics: expected one of all, nonzero"),
    ],
)
def test_bad_choices_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MDSS(**arguments)


def test_bad_arguments_of_the_parts_are_named() -> None:
    for arguments, message in (
        ({"student_steps": 0}, "student_steps: expected an integer from 1"),
        ({"sdf_batch": 1}, "sdf_batch: expected an integer from 2"),
        ({"sdf_weights": "nowhere.pth"}, "sdf_weights: expected a file of weights, found no such file"),
        ({"teacher": "nowhere.pth"}, "teacher: expected a file of weights, found no such file"),
        ({"teacher_images": "nowhere"}, "nowhere: expected a folder of images"),
        ({"quantiles": (0.9, 1.0)}, "quantiles: expected"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            MDSS(**{**SMALL, **arguments}).fit(parts(2))
    with pytest.raises(InputError, match="MDSS: not fitted"):
        MDSS(**SMALL).predict(a_part(0))
