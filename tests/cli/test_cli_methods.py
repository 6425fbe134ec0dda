"""``mmad-bank extract``, ``fit``, ``evaluate`` and ``predict`` on a small synthetic data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("scipy", "tifffile", "timm", "matplotlib", "PIL"):
    pytest.importorskip(package)

import tifffile
from helpers import call, facts, small_settings
from helpers import refused_at_last as refused
from PIL import Image

from mmad_bank import MemoryBank, methods
from mmad_bank._internal.folders import working_alone
from mmad_bank.data import Preprocessing, open_dataset, prepare
from mmad_bank.errors import FormatError, MissingExtraError, MmadBankError
from mmad_bank.extraction import Extractors
from mmad_bank.synthetic import write_synthetic

SIZE = 64
SMALL = small_settings(SIZE, 8, 0.2)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, prepared in 64 pixels."""
    folder = tmp_path_factory.mktemp("parts")
    write_synthetic(
        folder / "raw", size=96, n_train=4, n_validation=1, n_test=6, categories=["chip_cookie", "stud_tray"], workers=1
    )
    options = ("--recipe", "keep", "--image-size", SIZE, "--workers", 1)
    assert call("prepare", folder / "raw", "--out", folder / "prepared", *options).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category of wide pictures, raw and padded to multiples of 50 pixels."""
    folder = tmp_path_factory.mktemp("wide")
    write_synthetic(folder / "raw", size=96, n_train=2, n_validation=1, n_test=2, categories=["laid_rope"], workers=1)
    prepare(folder / "raw", folder / "kept", Preprocessing.recipe("keep", size=SIZE, pad_multiple=50))
    return folder


@pytest.fixture(scope="module")
def model(parts: Path) -> Path:
    """PatchCore with an untrained network, of one category."""
    out = parts / "tray.model"
    done = facts("fit", "patchcore", parts / "prepared", "--categories", "stud_tray", "--out", out, *SMALL)
    assert done["models"][0]["images"] == 4
    return out


def test_fit(parts: Path, model: Path) -> None:
    loaded = methods.load(model)
    assert loaded.name == "patchcore"
    assert (loaded.image_size, loaded.arguments()["grid"], loaded.arguments()["ratio"]) == (SIZE, (8, 8), 0.2)
    assert loaded.train_ids_ == [record.id for record in open_dataset(parts / "prepared", "stud_tray").records]
    assert not (parts / "tray.model.fit").exists(), "the work folder goes after success"


def test_fit_all_categories_and_few_shot(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    names = "chip_cookie, stud_tray"
    command = ("fit", "PatchCore", parts / "prepared", "--out", out, "--few-shot", 2, "--seed", 3, *SMALL)
    command = (*command, "--categories", names)
    done = facts(*command)
    assert [one["category"] for one in done["models"]] == ["chip_cookie", "stud_tray"]
    assert [one["images"] for one in done["models"]] == [2, 2]
    assert done["arguments"]["seed"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]
    some = facts("evaluate", out, parts / "prepared", "--categories", "stud_tray,chip_cookie")
    assert [one["category"] for one in some["categories"]] == ["stud_tray", "chip_cookie"]
    assert "models of chip_cookie, stud_tray, found 'moon'" in refused(
        "evaluate", out, parts / "prepared", "--categories", "stud_tray,moon"
    )
    found = facts("evaluate", out, parts / "prepared", "--batch", 4)
    assert [one["category"] for one in found["categories"]] == ["chip_cookie", "stud_tray"]
    alone = facts("evaluate", out, parts / "prepared", "--categories", "stud_tray")
    for one, other in zip(alone["categories"][0]["scores"], found["categories"][1]["scores"], strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)


def test_fit_goes_on_where_it_stopped(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "models"
    command = ("fit", "patchcore", parts / "prepared", "--out", out, *SMALL)
    build = MemoryBank.build
    built: list[int] = []

    def stop_at_the_second(*arguments: Any, **options: Any) -> MemoryBank:
        built.append(1)
        if len(built) == 2:
            raise OSError(28, "No space left on device", "bank")
        return build(*arguments, **options)

    monkeypatch.setattr(MemoryBank, "build", stop_at_the_second)
    assert "No space left" in refused(*command)
    assert (out / "chip_cookie" / "model.json").is_file()
    (tmp_path / "models.fit" / "mine.txt").write_text("a user's file")
    describe = Extractors.__call__
    described: list[str] = []

    def noting(self: Extractors, samples: Any) -> Any:
        described.extend(f"{sample.category} {sample.split}" for sample in samples)
        return describe(self, samples)

    monkeypatch.setattr(Extractors, "__call__", noting)
    done = facts(*command)
    assert [one["seconds"] == 0 for one in done["models"]] == [True, False]
    assert len(built) == 3, "the first model is not fitted again"
    assert described == [], "the training's features are there, and nothing is learnt from validation"
    assert [path.name for path in (tmp_path / "models.fit").iterdir()] == ["mine.txt"]


def test_evaluate_writes_tables_and_json(parts: Path, model: Path, tmp_path: Path) -> None:
    out, markdown = tmp_path / "results.json", tmp_path / "results.md"
    result = call("evaluate", model, parts / "prepared", "--out", out, "--markdown", markdown)
    assert result.exit_code == 0, result.output
    assert "I-AUROC" in result.stdout
    found = json.loads(out.read_text())
    assert [one["category"] for one in found["categories"]] == ["stud_tray"], "what the model was fitted on"
    assert len(found["categories"][0]["scores"]) == 6
    assert 0 <= found["mean"]["fused"]["image_auroc"] <= 1
    assert markdown.read_text().splitlines()[2].startswith("| category | I-AUROC |")


def test_evaluate_writes_a_report(parts: Path, model: Path, tmp_path: Path) -> None:
    found = facts("evaluate", model, parts / "prepared", "--report", tmp_path / "new" / "report")
    page = (tmp_path / "new" / "report" / "index.html").read_text()
    assert found["report"] == str(tmp_path / "new" / "report" / "index.html")
    assert "PatchCore" in page
    assert page.count("its worst patch</figcaption>") == 6, "every image of six is shown once and explained"
    assert "distance" in page


def test_predict_files_and_folder(parts: Path, model: Path, tmp_path: Path) -> None:
    records = open_dataset(parts / "prepared", "stud_tray", "test").records
    (evaluated,) = facts("evaluate", model, parts / "prepared")["categories"]
    scores = {one["id"]: one["score"] for one in evaluated["scores"]}
    one = facts("predict", model, records[0].rgb, records[0].xyz, "--out", tmp_path / "one")["samples"][0]
    assert one["score"] == pytest.approx(scores[records[0].id], rel=1e-5)
    assert json.loads((tmp_path / "one/score.json").read_text()) == one
    assert np.load(tmp_path / "one/map.npy").shape == (96, 96), "the picture's size, not the prepared one"
    assert one["size"] == [96, 96]
    with Image.open(tmp_path / "one/image.png") as image, Image.open(tmp_path / "one/overlay.png") as overlay:
        assert image.size == (96, 96)
        assert overlay.size == (768, 768), "enlarged by a whole number, for outlines and labels"
    alone = facts("predict", model, records[0].rgb, "--out", tmp_path / "alone")["samples"][0]
    assert (alone["id"], alone["score"]) == (one["id"], one["score"])
    lone = shutil.copy(records[0].rgb, tmp_path / "lone.png")  # the model does not look at the cloud
    assert facts("predict", model, lone, "--out", tmp_path / "lone")["samples"][0]["id"] == "lone"
    with Image.open(lone) as given, Image.open(tmp_path / "lone/image.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(given.convert("RGB")))
    top, left, bottom, right = one["explanation"]["rgb"]["box"]
    assert 0 <= top < bottom <= 96
    assert 0 <= left < right <= 96
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "image.png", "map.npy", "overlay.png", "score.json"
    ]  # fmt: skip
    reasons = one["explanation"]["rgb"]["nearest_normal_patches"]
    assert len(reasons) == 4
    assert reasons[0]["sample"].startswith("stud_tray/train/good/")
    assert len(reasons[0]["box"]) == 4
    files = [path for record in records[1:3] for path in (record.rgb, record.xyz)]
    assert len(facts("predict", model, *files, "--out", tmp_path / "two")["samples"]) == 2
    options = ("--categories", "stud_tray", "--out", tmp_path / "all", "--maps", tmp_path / "maps")
    folder = facts("predict", model, parts / "prepared", *options)
    assert {one["id"]: one["score"] for one in folder["samples"]} == pytest.approx(scores, rel=1e-5)
    assert (tmp_path / "all" / records[0].id / "overlay.png").is_file()
    for record in records:  # the layout of MVTec's evaluation: category/test/defect/number.tiff
        values = tifffile.imread(tmp_path / "maps" / f"{record.id}.tiff")
        assert values.dtype == np.float32
        assert values.shape == (96, 96)
        assert np.array_equal(values, np.load(tmp_path / "all" / record.id / "map.npy"))


def test_several_pictures_alone_are_pictures(parts: Path, model: Path, tmp_path: Path) -> None:
    records = open_dataset(parts / "prepared", "stud_tray", "test").records[:3]
    pairs = facts("predict", model, *(path for one in records for path in one.files[:2]), "--out", tmp_path / "pairs")
    alone = facts("predict", model, *(one.rgb for one in records), "--out", tmp_path / "alone")
    assert [(one["id"], one["score"]) for one in alone["samples"]] == [
        (one["id"], one["score"]) for one in pairs["samples"]
    ]
    assert alone["samples"][0]["size"] == [96, 96], "the clouds beside them know the pictures' frames"
    lone = [tmp_path / folder / name for folder in "ab" for name in ("x.JPG", "y.jpeg", "z.bmp")]
    for path, record in zip(lone, records * 2, strict=True):
        path.parent.mkdir(exist_ok=True)
        with Image.open(record.rgb) as image:
            image.save(path)
    found = facts("predict", model, *lone, "--out", tmp_path / "lone")["samples"]
    assert [Path(one["folder"]).name for one in found] == ["x", "y", "z", "x-3", "y-4", "z-5"]
    assert found[0]["score"] == found[3]["score"]
    assert all((tmp_path / "lone" / name / "overlay.png").is_file() for name in ("x", "z-5"))
    assert found[2]["score"] == facts("predict", model, lone[2], "--out", tmp_path / "last")["samples"][0]["score"]
    result = call("predict", model, lone[0], tmp_path / "no.png", "--out", tmp_path / "some", "--json")
    assert (result.exit_code, list(json.loads(result.stdout)["left_out"])) == (3, ["no"])


def test_predict_leaves_a_sample_out_for_any_error_but_a_missing_package(
    parts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = open_dataset(parts / "prepared", "stud_tray", "test").records[:2]
    lone = [Path(shutil.copy(one.rgb, tmp_path / f"lone{i}.png")) for i, one in enumerate(records)]
    right = methods.PatchCore.predict

    def raising(error: MmadBankError) -> Any:
        def predict(self: Any, sample: Any, **options: Any) -> Any:
            if sample == lone[0]:
                raise error
            return right(self, sample, **options)

        return predict

    monkeypatch.setattr(methods.PatchCore, "predict", raising(FormatError("lone0.png: of a newer format")))
    result = call("predict", model, *lone, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 3, result.output
    found = json.loads(result.stdout)
    assert found["left_out"] == {"lone0": "lone0.png: of a newer format"}
    assert [one["id"] for one in found["samples"]] == ["lone1"]
    missing = MissingExtraError("tifffile", "data", "reading clouds")
    monkeypatch.setattr(methods.PatchCore, "predict", raising(missing))
    assert str(missing) in refused("predict", model, *lone, "--out", tmp_path / "other")


@pytest.fixture(scope="module")
def models(parts: Path) -> Path:
    """PatchCore with an untrained network, of each category."""
    out = parts / "models"
    facts("fit", "patchcore", parts / "prepared", "--out", out, *SMALL)
    return out


def test_predict_takes_one_model_per_category(parts: Path, models: Path, tmp_path: Path) -> None:
    data, names = parts / "prepared", ["chip_cookie", "stud_tray"]
    alone: dict[str, float] = {}
    for name in names:
        one = facts("predict", models / name, data, "--categories", name, "--out", tmp_path / name)
        assert (one["colour_scales"], len(one["samples"])) == ({}, 6)
        alone |= {sample["id"]: sample["score"] for sample in one["samples"]}
    both = facts("predict", models, data, "--out", tmp_path / "both", "--maps", tmp_path / "maps")
    assert {one["id"]: one["score"] for one in both["samples"]} == pytest.approx(alone, rel=1e-5)
    scales = {name: methods.load(models / name).map_scale_ for name in names}
    assert both["colour_scales"] == {name: list(scale.limits()) for name, scale in scales.items() if scale}
    assert both["colour_scale"] is None
    for name in names:
        there = sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.png"))
        again = sorted(path.relative_to(tmp_path / "both") for path in (tmp_path / "both" / name).rglob("*.png"))
        assert again == there, "the places of one category alone"
        for path in there:
            assert (tmp_path / "both" / path).read_bytes() == (tmp_path / name / path).read_bytes(), "its own colours"
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == names
    assert {path.relative_to(tmp_path / "maps").parts[0] for path in (tmp_path / "maps").rglob("*.tiff")} == set(names)
    some = facts("predict", models, data, "--categories", "stud_tray, chip_cookie", "--out", tmp_path / "some")
    assert [one["id"].split("/")[0] for one in some["samples"]] == ["stud_tray"] * 6 + ["chip_cookie"] * 6


def test_predict_chooses_categories_as_evaluate_does(parts: Path, models: Path, model: Path, tmp_path: Path) -> None:
    data, out = parts / "prepared", ("--out", tmp_path / "out", "--overwrite")
    result = call("predict", model, data, *out)  # of all categories those that the model was fitted on
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["stud_tray"]
    words = ("predict", models, data, *out, "--categories", "stud_tray,moon")
    assert f"--categories: {models} has models of chip_cookie, stud_tray, found 'moon'" in refused(*words)
    assert "--categories: expected one of" in refused("predict", model, data, *out, "--categories", "moon")
    one = shutil.copytree(models / "stud_tray", tmp_path / "some" / "stud_tray").parent
    result = call("predict", one, data, *out)
    assert result.exit_code == 0, result.output
    assert result.stderr == f"note: {one} has no model of chip_cookie, which is not scored\n"
    result = call("predict", models, data / "stud_tray", *out)
    assert (result.exit_code, result.stderr) == (0, ""), "a category's own folder"
    assert result.stdout.count("stud_tray/test/") == 12
    (one / "stud_tray").rename(one / "bolt")
    assert f"{one}: has models of bolt, found none of them in {data}" in refused("predict", one, data, *out)


def test_evaluate_takes_what_has_a_model_and_data(parts: Path, models: Path, tmp_path: Path) -> None:
    data = parts / "prepared"
    own, whole = call("evaluate", models, data / "stud_tray", "--json"), facts("evaluate", models / "stud_tray", data)
    assert (own.exit_code, own.stderr) == (0, ""), "a category's own folder, its own model"
    (found,) = json.loads(own.stdout)["categories"]
    assert found["scores"] == whole["categories"][0]["scores"]
    one = shutil.copytree(models / "stud_tray", tmp_path / "models" / "stud_tray").parent
    (one / "stud_tray").rename(one / "bolt")
    shutil.copytree(models / "chip_cookie", one / "chip_cookie")
    for command in (("evaluate", one, data), ("predict", one, data, "--out", tmp_path / "out")):
        result = call(*command, "--json")
        assert (result.exit_code, "chip_cookie" in result.stdout) == (0, True), result.output
        assert result.stderr.splitlines() == [
            f"note: {one} has no model of stud_tray, which is not scored",
            f"note: {data} has no data of bolt, which is not scored",
        ]
    assert "--categories: expected one of" in refused("evaluate", one, data, "--categories", "bolt")
    shutil.rmtree(one / "chip_cookie")
    assert f"{one}: has models of bolt, found none of them in {data}" in refused("evaluate", one, data)


def test_predict_of_files_needs_to_know_the_category(parts: Path, models: Path, tmp_path: Path) -> None:
    record = open_dataset(parts / "prepared", "stud_tray", "test").records[0]
    command = ("predict", models, record.rgb, record.xyz, "--out", tmp_path / "out")
    words = f"--categories: expected the category that the files are of, found none; {models} has models of chip_cookie"
    assert words in refused(*command)
    assert "found several" in refused(*command, "--categories", "stud_tray,chip_cookie")
    (one,) = facts(*command, "--categories", "stud_tray")["samples"]
    assert one["folder"] == str(tmp_path / "out")
    (other,) = facts("predict", models / "stud_tray", record.rgb, record.xyz, "--out", tmp_path / "alone")["samples"]
    assert one["score"] == other["score"]


def test_a_category_whose_model_cannot_be_used_is_left_out(parts: Path, models: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(models, tmp_path / "models"))
    (damaged / "chip_cookie" / "model.json").write_text("{")
    result = call("predict", damaged, parts / "prepared", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (list(found["left_out"]), len(found["samples"])) == (["chip_cookie"], 6)
    assert result.stderr.startswith("left out: chip_cookie: ")
    (damaged / "stud_tray" / "model.json").write_text("{")
    result = call("predict", damaged, parts / "prepared", "--out", tmp_path / "none")
    assert (result.exit_code, result.stdout, (tmp_path / "none").exists()) == (2, "", False)


def test_colours_are_the_models(parts: Path, model: Path, tmp_path: Path) -> None:
    record = open_dataset(parts / "prepared", "stud_tray", "test").records[0]
    command = ("predict", model, record.rgb, record.xyz, "--out", tmp_path / "one")
    scale = methods.load(model).map_scale_
    assert scale is not None
    assert facts(*command)["colour_scale"] == list(scale.limits())
    assert facts(*command, "--scale", "1,5", "--overwrite")["colour_scale"] == [1, 5]
    old = shutil.copytree(model, tmp_path / "old")  # as versions before the scale saved it
    manifest = json.loads((old / "model.json").read_text())
    del manifest["map_scale"], manifest["checksum"]
    (old / "model.json").write_text(json.dumps(manifest))
    result = call("predict", old, record.rgb, record.xyz, "--out", tmp_path / "two", "--json")
    (sample,) = json.loads(result.stdout)["samples"]
    assert json.loads(result.stdout)["colour_scale"] == sample["map_range"]
    assert "has no color scale of normal images" in result.stderr


def test_a_raw_sample_is_prepared_as_the_training_was(parts: Path, model: Path, tmp_path: Path) -> None:
    raw, prepared = (open_dataset(parts / name, "stud_tray", "test").records[4] for name in ("raw", "prepared"))
    found = [
        facts("predict", model, record.rgb, record.xyz, "--out", tmp_path / name)["samples"][0]["score"]
        for name, record in (("raw", raw), ("prepared", prepared))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_maps_have_the_pictures_size_and_place(wide: Path, tmp_path: Path) -> None:
    """As MVTec's evaluation wants them, which compares each with the original's mask; from raw and prepared data."""
    for name in ("raw", "kept"):
        model, maps = tmp_path / f"{name}.model", tmp_path / "maps" / name
        done = call("fit", "patchcore", wide / name, "--out", model, *SMALL)
        assert done.exit_code == 0, done.output
        found = facts("predict", model, wide / name, "--out", tmp_path / name, "--maps", maps)
        for one in found["samples"]:
            values, place = tifffile.imread(maps / f"{one['id']}.tiff"), Path(one["id"])
            picture = np.asarray(Image.open(wide / "raw" / place.parent / "rgb" / f"{place.name}.png"))
            assert values.shape == picture.shape[:2] == (72, 144)
            shown = np.asarray(Image.open(Path(one["folder"]) / "image.png")).astype(float)
            assert np.abs(shown - picture).mean() < (1e-9 if name == "raw" else 12), "the picture that was given"
            assert one["notes"] == []


def test_data_of_another_kind_need_force(parts: Path, model: Path, wide: Path, tmp_path: Path) -> None:
    cookies = ("--categories", "chip_cookie")
    words = "of category chip_cookie, while the model was fitted on stud_tray; --force scores it"
    for arguments in (
        ("evaluate", model, parts / "prepared", *cookies, "--report", tmp_path / "report"),
        ("predict", model, parts / "prepared", *cookies, "--out", tmp_path / "out", "--maps", tmp_path / "maps"),
    ):
        assert words in refused(*arguments)
        assert sorted(path.name for path in tmp_path.iterdir()) == []
    result = call("evaluate", model, parts / "prepared", *cookies, "--force")
    assert result.exit_code == 0
    assert "chip_cookie: of category chip_cookie, while the model was fitted on stud_tray" in result.stdout
    result = call("predict", model, parts / "prepared", *cookies, "--force", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: of category chip_cookie")
    assert json.loads(next((tmp_path / "out").rglob("score.json")).read_text())["notes"]
    record = open_dataset(wide / "kept", split="test").records[0]
    assert "prepared otherwise than what the model was fitted on (pad_multiple: 50 against 1)" in refused(
        "predict", model, record.rgb, record.xyz, "--out", tmp_path / "other"
    )
    assert not (tmp_path / "other").exists()


def test_data_that_an_older_version_prepared_are_scored(wide: Path, tmp_path: Path) -> None:
    from mmad_bank.data._images import read_tag, read_xyz
    from mmad_bank.data.writing import write_xyz

    shutil.copytree(wide / "kept", tmp_path / "old")
    for path in (tmp_path / "old").rglob("*.tiff"):
        write_xyz(path, read_xyz(path), read_tag(path).partition(" frame ")[0])
    assert call("fit", "patchcore", tmp_path / "old", "--out", tmp_path / "model", *SMALL).exit_code == 0
    result = call("predict", tmp_path / "model", tmp_path / "old", "--out", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["samples"][0]["size"] == [SIZE, SIZE]
    assert result.stderr.count("\n") == 1
    assert "prepare the data again" in result.stderr


def test_extract_writes_what_build_takes(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "dumps"
    options = ("--rgb-weights", "random", "--xyz", "none", "--image-size", SIZE, "--grid", 8)
    done = facts("extract", parts / "prepared", "--categories", "stud_tray", "--out", out, *options)
    dump = np.load(out / "rgb.npy")
    assert dump.shape == (4, 64, 656)
    written = json.loads((out / "extraction.json").read_text())
    assert written["ids"] == done["ids"]
    assert (written["split"], written["image_size"], written["dumps"]["rgb"]["grid"]) == ("train", SIZE, [8, 8])
    assert sorted(path.name for path in out.iterdir()) == ["extraction.json", "rgb.npy"]
    assert facts("build", out / "rgb.npy", "--out", tmp_path / "bank")["vectors"] == 25
    bank = MemoryBank.load(tmp_path / "bank")
    assert bank.extractor == written["dumps"]["rgb"]["extractor"]
    (origin,) = bank.provenance([3])
    assert (origin.name, origin.place) == (done["ids"][origin.image], divmod(origin.patch, 8))


def test_extract_replaces_an_extraction_as_one_and_leaves_other_files_alone(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "dumps"
    command = ("extract", parts / "prepared", "--categories", "stud_tray")
    command = (*command, "--rgb-weights", "random", "--image-size", SIZE)
    facts(*command, "--grid", 4, "--out", out)
    before = out.stat().st_ino
    facts(*command, "--grid", 8, "--xyz", "none", "--out", out, "--overwrite")
    assert out.stat().st_ino != before  # another folder in its place: no reader sees one old dump and one new
    assert sorted(path.name for path in out.iterdir()) == ["extraction.json", "rgb.npy"]
    (out / "notes.txt").write_text("mine")
    (out / "more").mkdir()
    (out / "more" / "notes.txt").write_text("mine")
    before = out.stat().st_ino
    facts(*command, "--grid", 4, "--out", out, "--overwrite")
    assert out.stat().st_ino == before
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert names == ["extraction.json", "more", "more/notes.txt", "notes.txt", "rgb.npy", "xyz.npy"]
    assert np.load(out / "rgb.npy").shape == (4, 16, 656)
    assert json.loads((out / "extraction.json").read_text())["dumps"]["xyz"]["file"] == str(out / "xyz.npy")
    result = call(*command, "--out", out)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    with working_alone(out):
        result = call(*command, "--out", out, "--overwrite")
    assert (result.exit_code, "another run works in this folder" in result.stderr) == (2, True)


def test_damaged_samples_are_named_and_left_out(parts: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "prepared", tmp_path / "data")
    test = tmp_path / "data" / "stud_tray" / "test" / "good"
    train = tmp_path / "data" / "stud_tray" / "train" / "good"
    (test / "rgb" / "000.png").write_bytes((test / "rgb" / "000.png").read_bytes()[:200])
    (train / "xyz" / "001.tiff").write_bytes(b"II*\0")
    result = call("evaluate", model, tmp_path / "data", "--categories", "stud_tray", "--batch", 3, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, list(found["left_out"])) == (3, ["stud_tray/test/good/000"])
    assert len(found["categories"][0]["scores"]) == 5
    assert "000.png" in result.stderr
    again = call("evaluate", model, tmp_path / "data", "--categories", "stud_tray", "--batch", 3)
    assert (again.exit_code, again.stderr) == (3, "")
    assert f"\nleft out: {test / 'rgb' / '000.png'}: " in again.stdout
    result = call("predict", model, tmp_path / "data", "--categories", "stud_tray", "--out", tmp_path / "out", "--json")
    assert (result.exit_code, list(json.loads(result.stdout)["left_out"])) == (3, ["stud_tray/test/good/000"])
    assert result.stderr.startswith("left out: ")
    options = ("--rgb-weights", "random", "--xyz", "none", "--image-size", SIZE, "--grid", 8)
    command = ("extract", tmp_path / "data", "--categories", "stud_tray", "--out", tmp_path / "dumps")
    result = call(*command, *options, "--json")
    assert (result.exit_code, list(json.loads(result.stdout)["left_out"])) == (3, ["stud_tray/train/good/001"])
    assert np.load(tmp_path / "dumps" / "rgb.npy").shape == (3, 64, 656)
    command = ("fit", "patchcore", tmp_path / "data", "--categories", "stud_tray", "--out", tmp_path / "m", *SMALL)
    result = call(*command, "--json")
    assert result.exit_code == 3, result.output
    assert json.loads(result.stdout)["models"][0]["images"] == 3
    assert "001.tiff" in result.stderr


def test_names_that_are_no_utf8_come_into_reports_and_tables(parts: Path, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(parts / "prepared", data)
    category = data / "stud_tray"
    for kind in ("rgb", "xyz", "gt"):
        for path in (category / "test/good" / kind).glob("000.*"):
            path.rename(path.with_name(f"\udcff{path.suffix}"))
    (category / "test/color").rename(category / "test/\udcfe")
    outputs = tmp_path / "report", tmp_path / "e.json", tmp_path / "e.md"
    words = [word for pair in zip(("--report", "--out", "--markdown"), outputs, strict=True) for word in pair]
    evaluated = facts("evaluate", model, data, *words)
    assert json.loads(outputs[1].read_text())["mean"] == evaluated["mean"]
    assert "\\udcff" in (outputs[0] / "index.html").read_text(encoding="utf-8")
    assert "\\udcfe" in outputs[2].read_text(encoding="utf-8")


def test_two_fits_do_not_share_a_folder_at_a_time(parts: Path, tmp_path: Path) -> None:
    command = ("fit", "patchcore", parts / "prepared", "--categories", "stud_tray", "--out", tmp_path / "m", *SMALL)
    with working_alone(tmp_path / "m.fit"):
        assert "m.fit: another run works in this folder" in refused(*command)
    assert not (tmp_path / "m").exists()
    assert call(*command).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_scales_that_are_none_are_refused_before_the_work(parts: Path, model: Path, tmp_path: Path) -> None:
    for scale in ("nan,nan", "0,inf", "5,1", "2,2", "1", "1,2,3", "1,x", ""):
        line = refused("predict", model, parts / "prepared", "--out", tmp_path / "out", "--scale", scale)
        assert f"--scale: expected two numbers joined by a comma, the lower first, found {scale!r}" in line
    line = refused("predict", model, parts / "prepared", "--out", tmp_path / "out", "--explain", -3)
    assert "--explain: expected at least 0" in line
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_line(parts: Path, model: Path, tmp_path: Path) -> None:
    data, out = parts / "prepared", tmp_path / "out"
    record = open_dataset(data, "stud_tray", "test").records[0]
    (tmp_path / "file").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("text")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.json").write_text("{")
    fit = ("fit", "patchcore", data, "--categories", "stud_tray", *SMALL)
    for arguments, message in (
        (("fit", "patchwork", data, "--out", out), "method: expected one of"),
        (("fit", "patchcore", tmp_path / "no", "--out", out), "expected a folder with a data set"),
        (("fit", "patchcore", data, "--categories", "moon", "--out", out), "expected one of chip_cookie, stud_tray"),
        (("fit", "patchcore", data, "--categories", "stud_try", "--out", out), "(did you mean 'stud_tray'?)"),
        (("prepare", parts / "raw", "--categories", "stud_try", "--out", out), "(did you mean 'stud_tray'?)"),
        (("extract", data, "--categories", "stud_try", "--out", out), "--categories: expected one of"),
        ((*fit, "--out", out, "--few-shot", 9), "--few-shot: expected at most 4"),
        ((*fit, "--out", out, "--device", "gpu"), "--device: expected cpu, cuda or cuda:N, found 'gpu'"),
        ((*fit, "--out", tmp_path / "full"), "--out: expected a new folder or a saved model"),
        ((*fit, "--out", tmp_path / "file" / "m"), "--out: expected a folder, found the file"),
        ((*fit, "--out", out, "--set", "image_size=224"), "prepared"),
        (("evaluate", tmp_path / "no", data), "expected a saved model"),
        (("evaluate", tmp_path / "broken", data), "truncated or altered"),
        (("evaluate", model, tmp_path), "found"),
        (("evaluate", model, data, "--categories", "moon"), "--categories: expected one of"),
        *(
            ((*command, data, *more, "--categories", names), f"expected names joined by commas, found {names!r}")
            for command, more in (
                (("fit", "patchcore"), ("--out", out)),
                (("extract",), ("--out", out)),
                (("prepare",), ("--out", out)),
                (("evaluate", model), ()),
                (("predict", model), ("--out", out)),
            )
            for names in ("", " , ")
        ),
        (("evaluate", model, data, "--out", tmp_path / "no" / "r.json"), "--out: expected a file"),
        (("evaluate", model, data, "--report", tmp_path / "file"), "--report: expected a folder"),
        (("evaluate", model, data, "--batch", 0), "batch: expected 1 to"),
        (("predict", model, record.rgb, record.xyz, record.rgb, "--out", out), "folder, found 3 files"),
        (
            ("predict", model, record.rgb, record.xyz, record.rgb, record.rgb, "--out", out),
            f"or pictures alone, found {record.rgb} after {record.rgb}",
        ),
        (("predict", model, tmp_path / "no.png", "--out", out), "no.png: file not found"),
        (("predict", model, record.rgb, tmp_path / "no.tiff", "--out", out), "no.tiff: file not found"),
        (("predict", model, record.xyz, record.rgb, "--out", out), "expected the picture first"),
        (("predict", model, tmp_path / "file", record.xyz, "--out", out), "cannot be read as a picture"),
        (("predict", model, record.rgb, record.xyz, "--out", tmp_path / "file"), "--out: expected a folder"),
        (("extract", data, "--out", out, "--rgb", "none", "--xyz", "none"), "expected an extractor"),
        (("extract", data, "--out", out, "--xyz", "none", "--rgb-weights", "random"), "was prepared in 64 pixels"),
        (("extract", data, "--out", tmp_path / "file"), "--out: expected a folder"),
    ):
        assert message in refused(*arguments), arguments
    assert not out.exists()
    assert (tmp_path / "full" / "mine").read_text() == "text"


def test_fit_says_when_there_is_no_validation_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from mmad_bank.cli._job import Job

    write_synthetic(tmp_path / "raw", size=64, n_train=1, n_validation=1, n_test=1, categories=["stud_tray"])
    category = tmp_path / "raw/stud_tray"
    for name, said in (("Val", False), ("held_out", True)):
        shutil.move(next(path for path in category.iterdir() if path.name not in ("train", "test")), category / name)
        job = Job(methods.method_class("mdss"), tmp_path / "raw", None, "auto", None, None, 0)
        job.choose_arguments([], bundled=True, device="cpu")
        job.open()
        assert (job.splits["stud_tray"][1] is None) == said
        words = capsys.readouterr().err
        assert (f"fitted without validation: {category}: found no samples of the validation split" in words) == said
        assert (f"{category / name} is not read" in words) == said


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("patchcore", ["rgb-layers=99"], "--set rgb-layers: expected some of 0 to 6, found (99,)"),
        ("cfm", ["rgb_layers=99"], "--set rgb_layers: expected some of 0 to 6, found (99,)"),
        (
            "cfm", ["xyz=point_mae", "xyz_weights=random", "xyz_layers=5,3"],
            "--set xyz_layers: expected rising numbers from 0 to 11, found (5, 3)",
        ),
    ],
)  # fmt: skip
def test_layers_that_a_network_does_not_have_are_refused_as_typed_and_leave_nothing(
    method: str, settings: list[str], message: str, parts: Path, tmp_path: Path
) -> None:
    command = ["fit", method, parts / "prepared", "--categories", "stud_tray", "--out", tmp_path / "m", "--bundled"]
    for setting in (f"image_size={SIZE}", *settings):
        command += ["--set", setting]
    assert refused(*command) == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "kept"
    kept.mkdir()
    refused(*command, "--workdir", kept)
    assert kept.is_dir(), "a folder that the user names stays"


def test_mdss_names_layers_as_typed(parts: Path, tmp_path: Path) -> None:
    command = ("fit", "mdss", parts / "prepared", "--categories", "stud_tray", "--out", tmp_path / "m", "--bundled")
    line = refused(*command, "--set", f"image_size={SIZE}", "--set", "rgb_layers=99")
    assert line == "error: --set rgb_layers: expected some of 0 to 6, found (99,)\n"
