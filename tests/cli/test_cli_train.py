"""``mmad-bank fit`` over several categories that share a part, and ``train-uff``, ``train-adaptors``, ``train-sdf``."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

for package in ("scipy", "tifffile", "timm", "PIL", "sklearn", "open3d"):
    pytest.importorskip(package)

from helpers import call, facts, good, refused
from safetensors.torch import load_file

from mmad_bank import methods
from mmad_bank.extraction import Extractors
from mmad_bank.fusion import training
from mmad_bank.methods.shared import TrainedOn, read_trained_on
from mmad_bank.synthetic import write_synthetic

SIZE = 32
NAMES = ["chip_cookie", "stud_tray"]
BOTH = {"images": 7, "categories": NAMES}
FEATURES = "fpfh normals 0.1/30 features 0.25/100 + efficientnet_lite0 stages 1 mean 3"


def settings(*words: str) -> list[str]:
    common = ("rgb=efficientnet_lite0", "rgb_weights=random", "rgb_layers=1", f"image_size={SIZE}")
    return [one for word in (*common, *words) for one in ("--set", word)]


HOLDS = {
    "train-uff": "fusion (UFF) of M3DM\n  made for    xyz features of length 33 and rgb features of length 24\n",
    "train-adaptors": (
        "adaptors of LSFA, vanilla\n  made for    xyz features of length 33 and rgb features of length 24\n"
    ),
    "train-sdf": "signed distances of MDSS\n  made for    sdf_width 8\n",
}
"""What ``info`` says of the files."""
BANKS = ("xyz=fpfh", "grid=4,4")
M3DM = settings(*BANKS, "uff_steps=4", "uff_batch=3")
LSFA = settings(*BANKS, "adaptation_steps=4", "adaptation_batch=3", "queue_size=50")
MDSS = settings(
    "pdn_width=2", "channels=8", "teacher_steps=2", "teacher_batch=2", "student_steps=2", "student_batch=2",
    "patch_size=64", "coverage=2,2", "sdf_steps=3", "sdf_batch=4", "sdf_queries=16", "sdf_width=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, prepared; a picture of the second cannot be read."""
    folder = tmp_path_factory.mktemp("parts")
    write_synthetic(folder / "raw", size=64, n_train=4, n_validation=1, n_test=2, categories=NAMES, workers=1)
    options = ("--recipe", "keep", "--image-size", SIZE, "--workers", 1)
    good("prepare", folder / "raw", "--out", folder / "prepared", *options)
    (broken,) = (folder / "prepared" / "stud_tray" / "train" / "good" / "rgb").glob("002.*")
    broken.write_bytes(b"no picture")
    return folder / "prepared"


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each sample has been described by extractors."""
    times: Counter[str] = Counter()
    describe = Extractors.__call__

    def noting(self: Extractors, samples: Any) -> Any:
        times.update(sample.id for sample in samples if sample.split == "train")
        return describe(self, samples)

    monkeypatch.setattr(Extractors, "__call__", noting)
    return times


def read(path: Path) -> dict[str, list[float]]:
    return {name: values.flatten().tolist() for name, values in load_file(path).items()}


def facts_with_left_out(*arguments: object) -> dict[str, Any]:
    """Run a command that leaves a sample out; return what it says with ``--json``."""
    result = call(*arguments, "--json")
    assert result.exit_code == 3, result.output
    assert "stud_tray/train/good/rgb/002" in result.stderr
    return json.loads(result.stdout)


def test_fit_trains_one_fusion_for_all_categories(parts: Path, tmp_path: Path, described: Counter[str]) -> None:
    out = tmp_path / "models"
    done = facts_with_left_out("fit", "m3dm", parts, "--out", out, *M3DM)
    assert [one["category"] for one in done["models"]] == NAMES
    assert [one["trained_on"] for one in done["models"]] == [{"uff": {**BOTH, "features": FEATURES}}] * 2
    assert set(described.values()) == {1}
    assert len(described) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"], "the work folder goes after success"
    weights = [(out / name / "uff.safetensors").read_bytes() for name in NAMES]
    assert weights[0] == weights[1]
    model = methods.load(out / "stud_tray")
    assert model.trained_on_ == {"uff": TrainedOn(7, tuple(NAMES), FEATURES)}
    assert model.arguments()["uff_weights"] == "train"
    assert facts("info", out / "stud_tray")["trained_on"] == done["models"][1]["trained_on"]
    line = r"trained on +uff: 7 images of chip_cookie, stud_tray\n"
    assert re.search(line, good("info", out / "stud_tray"))
    assert len(re.findall(line, good("info", out))) == 1, "a folder of several models says it once"


def test_fit_per_category_trains_one_for_each(parts: Path, tmp_path: Path) -> None:
    done = facts_with_left_out("fit", "m3dm", parts, "--out", tmp_path / "models", "--per-category", *M3DM)
    expected = [
        {"images": n, "categories": [name], "features": FEATURES} for n, name in zip((4, 3), NAMES, strict=True)
    ]
    assert [one["trained_on"]["uff"] for one in done["models"]] == expected
    own = ["uff of chip_cookie: 4 images of chip_cookie", "uff of stud_tray: 3 images of stud_tray"]
    assert [line.removeprefix("  trained on ").strip() for line in
            good("info", tmp_path / "models").splitlines()[-2:]] == own  # fmt: skip
    alone = facts("fit", "m3dm", parts, "--out", tmp_path / "one", "--categories", "chip_cookie", *M3DM)
    assert alone["models"][0]["trained_on"] == {"uff": expected[0]}
    one, other = (tmp_path / place / "uff.safetensors" for place in ("one", "models/chip_cookie"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("command", "method", "argument", "words", "file", "attribute"),
    [
        ("train-uff", "m3dm", "uff-weights", M3DM, "uff.safetensors", "uff_"),
        ("train-adaptors", "lsfa", "adaptation", LSFA, "adaptation.safetensors", "adaptation_"),
        ("train-sdf", "mdss", "sdf-weights", MDSS, "signed-distance.safetensors", "sdf_"),
    ],
)
def test_a_part_trained_alone_is_that_of_the_fits(
    command: str, method: str, argument: str, words: list[str], file: str, attribute: str, parts: Path, tmp_path: Path
) -> None:
    out, models = tmp_path / "part.safetensors", tmp_path / "models"
    told = facts_with_left_out(command, parts, "--out", out, *words)
    assert {name: told[name] for name in BOTH} == BOTH
    assert told["path"] == str(out)
    trained_on = read_trained_on(out)
    assert trained_on == TrainedOn(7, tuple(NAMES), "" if method == "mdss" else FEATURES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.safetensors"]
    assert facts("info", out)["trained_on"] == trained_on.as_json()
    text = good("info", out)
    assert HOLDS[command] in text, text
    assert "trained on  7 images of chip_cookie, stud_tray\n" in text
    assert (f"extractors  {FEATURES}\n" in text) == (method != "mdss")
    takers = {"sdf-weights": "shape_guided or mdss", "adaptation": "m3dm or lsfa"}.get(argument, method)
    assert f"mmad-bank fit {takers} --set {argument}={out}\n" in text
    assert "part.safetensors' exists" in refused(command, parts, "--out", out, *words)
    fitted = facts_with_left_out("fit", method, parts, "--out", models, *words)
    assert [list(one["trained_on"].values()) for one in fitted["models"]] == [[trained_on.as_json()]] * 2
    own = facts("fit", method, parts, "--out", tmp_path / "own", "--categories", NAMES[0], *words,
                "--set", f"{argument}={out}")  # fmt: skip
    assert list(own["models"][0]["trained_on"].values()) == [trained_on.as_json()]
    assert (models / NAMES[0] / file).read_bytes() == (tmp_path / "own" / file).read_bytes()
    network = getattr(methods.load(tmp_path / "own"), attribute)
    assert read(out) == {name: values.flatten().tolist() for name, values in network.state_dict().items()}


def stopping(losses: Any, at: int) -> Any:
    def stop(self: Any, step: int) -> Any:
        if step == at:
            raise KeyboardInterrupt
        return losses(self, step)

    return stop


@pytest.mark.parametrize("command", ["fit", "train"])
def test_ctrl_c_in_the_shared_training_goes_on(
    command: str, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described: Counter[str]
) -> None:
    words = settings(*BANKS, "uff_steps=60", "uff_batch=1", "uff_patches=4")
    out = tmp_path / ("m" if command == "fit" else "m.safetensors")
    called = ("fit", "m3dm") if command == "fit" else ("train-uff",)
    with monkeypatch.context() as patch:
        patch.setattr(training._Training, "losses", stopping(training._Training.losses, 55))
        stopped = call(*called, parts, "--out", out, *words)
    assert stopped.exit_code == 130
    line = stopped.stderr.splitlines()[-1]
    assert line.startswith("error: interrupted; the same command goes on from here: ")
    for name, n in zip(NAMES, (4, 3), strict=True):
        assert f"{name} holds features of {n} training samples" in line
    assert f"{out}.{command}/.shared holds 50 of 60 steps of the uff training" in line
    result = call(*called, parts, "--out", out, *words)
    assert result.exit_code == 3
    assert f"going on: {out}.{command}/.shared holds 50 of 60 steps of the uff training" in result.stderr
    assert set(described.values()) == {1}
    whole = tmp_path / "whole.safetensors"
    facts_with_left_out("train-uff", parts, "--out", whole, *words)
    file = out / NAMES[0] / "uff.safetensors" if command == "fit" else out
    assert read(file) == read(whole)


def test_a_category_of_no_use_does_not_end_the_fits_of_others(parts: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(parts, data)
    for picture in (data / "stud_tray" / "train" / "good" / "rgb").iterdir():
        picture.write_bytes(b"no picture")
    result = call("fit", "m3dm", data, "--out", tmp_path / "m", *M3DM)
    assert result.exit_code == 3, result.output
    assert "left out: stud_tray: dataset: no sample can be used" in result.stderr
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["chip_cookie"]
    assert methods.load(tmp_path / "m" / "chip_cookie").trained_on_["uff"].categories == ("chip_cookie",)
    for picture in (data / "chip_cookie" / "train" / "good" / "rgb").iterdir():
        picture.write_bytes(b"no picture")
    none = call("fit", "patchcore", data, "--out", tmp_path / "none", *settings("grid=4,4"))
    assert none.exit_code == 2
    assert [line.split(":")[:2] for line in none.stderr.splitlines()] == [
        ["left out", " chip_cookie"], ["left out", " stud_tray"], ["error", " chip_cookie"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train-uff", *M3DM, "--set", "uff_weights=random"), "found uff_weights=random\n"),
        (("train-uff", *M3DM, "--set", "uff-weights=random"), "found uff-weights=random\n"),
        (("train-uff", *M3DM, "--set", "fusion=concat"), "trains its fusion (UFF), found fusion=concat\n"),
        (("train-adaptors", *LSFA, "--set", "finetune=lora"), "trains its adaptors, found finetune=lora\n"),
        (
            ("train-uff", *M3DM, "--set", "banks=xyz,rgb"),
            "trains its fusion (UFF), found banks=xyz,rgb\n",
        ),
        (("train-uff", *M3DM, "--set", "adaptation=train"), "mmad-bank train-adaptors writes one"),
        (("train-adaptors", *LSFA, "--set", "adaptation=none"), "trains its adaptors, found adaptation=none"),
        (("train-sdf", *MDSS, "--set", "branches=rgb"), "trains its signed distances, found branches=rgb\n"),
        (("train-uff", *M3DM, "--out", "uff.pth"), "--out: expected a file name that ends in .safetensors"),
    ],
)
def test_what_cannot_be_trained_is_refused(words: tuple[str, ...], message: str, parts: Path, tmp_path: Path) -> None:
    command, *rest = words
    out = () if "--out" in rest else ("--out", tmp_path / "part.safetensors")
    assert message in refused(command, parts, *out, *rest)
    assert list(tmp_path.iterdir()) == []


def test_files_of_parts_that_are_no_more_whole_are_refused(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "uff.safetensors"
    facts_with_left_out("train-uff", parts, "--out", out, *M3DM)
    whole = out.read_bytes()
    out.write_bytes(whole[:-9])
    assert "uff.safetensors: truncated" in refused("info", out)
    out.write_bytes(whole.replace(b'{\\"images\\":', b'{\\"pigeon\\":'))
    assert "uff.safetensors: altered" in refused("info", out)
    out.write_bytes(whole.replace(b"xyz_mlp.fc1.weight", b"xyz_mlp.fc7.weight"))
    assert "foreign, a safetensors file that holds no memory bank" in refused("info", out)


def test_settings_without_effect_are_named_and_those_of_a_preset_are_not(parts: Path, tmp_path: Path) -> None:
    words = (*settings("grid=4,4"), "--categories", "chip_cookie", "--bundled")
    told = call("fit", "m3dm", parts, "--out", tmp_path / "m", *words, "--set", "uff_steps=1", "--set", "uff_batch=1",
                "--set", "batch-norm=running", "--set", "interpolation=all_centers")  # fmt: skip
    assert told.exit_code == 0, told.output
    assert [line for line in told.stderr.splitlines() if "effect" in line] == [
        "warning: --set batch-norm has no effect with xyz=fpfh",
        "warning: --set interpolation has no effect with xyz=fpfh",
    ]
    alone = call("fit", "patchcore", parts, "--out", tmp_path / "p", "--per-category", *settings("grid=4,4"))
    assert alone.exit_code == 3, alone.output
    assert [line for line in alone.stderr.splitlines() if "effect" in line] == [
        "warning: --per-category has no effect with this method, which shares nothing between categories"
    ]
    refused_options = ("--out", tmp_path / "x", "--few-shot", 0)
    assert "effect" not in call("fit", "m3dm", parts, *refused_options, *M3DM, "--set", "batch-norm=batch").stderr


def test_errors_and_warnings_spell_settings_as_they_were_typed(parts: Path, tmp_path: Path) -> None:
    common = (parts, "--categories", "chip_cookie", *M3DM)
    file = tmp_path / "uff.safetensors"
    good("train-uff", *common, "--out", file)
    for word in ("uff-weights", "uff_weights"):
        given = ("--set", f"{word}={file}", "--set", "rgb-layers=1,2")
        result = call("fit", "m3dm", *common, "--out", tmp_path / "m", *given)
        *lines, line = result.stderr.splitlines()
        assert f"warning: --set uff_batch has no effect with {word}={file}" in lines
        assert line.startswith(f"error: --set {word}: expected weights for xyz features of length 33")
    given = ("--set", f"uff-weights={file}", "--set", "adaptation=train", "--set", "adaptation-steps=1")
    with pytest.warns(UserWarning, match="^--set uff-weights: trained on features of fpfh"):
        good("fit", "m3dm", *common, "--out", tmp_path / "m", *given)
