"""The door of pictures, and pictures as tensors: what a method says of them is what Python says."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

for package in ("fastapi", "uvicorn", "multipart", "timm", "tifffile"):
    pytest.importorskip(package)

from concurrent.futures import ThreadPoolExecutor

from data_trees import add_picture
from running_service import Service, calibrated_bank, output, running
from serving_models import as_json, decoded, form, save_depth_model, save_picture_model, send

from mmad_bank.data import read_rgb, read_xyz
from mmad_bank.methods import load
from mmad_bank.methods.described import explanation_of, verdict_of
from mmad_bank.serving import pictures as pictures_door
from mmad_bank.serving.method_models import sample_of
from mmad_bank.serving.training import TrainingImages


class Place(NamedTuple):
    """A service of methods, and what they were fitted on."""

    service: Service
    models: Path
    pictures: Path
    data: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("methods")
    pictures, data = save_picture_model(folder / "models" / "tile"), save_depth_model(folder / "models" / "part")
    add_picture(pictures / "new" / "bad.png", seed=99, spot=True)
    for one in (pictures, data):
        one.rename(folder / one.name)
    calibrated_bank().save(folder / "models" / "plain.bank")
    with running(folder / "models") as service:
        yield Place(service, folder / "models", folder / pictures.name, folder / data.name)


@pytest.mark.parametrize("name", ["new/bad.png", "3.png"])
def test_a_picture_gets_what_python_says(place: Place, name: str) -> None:
    model, picture = load(place.models / "tile"), place.pictures / name
    expected = model.predict(picture)
    reply = send(place.service, "tile", "?pictures=map,overlay,image", image=picture)
    assert reply.status == 200, reply.body
    said = reply.json
    assert (said["model"], said["id"], said["score"]) == ("tile", picture.stem, expected.score)
    assert {key: said[key] for key in verdict_of(expected)} == as_json(verdict_of(expected))
    assert said["verdict"] == ("bad" if name == "new/bad.png" else "good")
    assert said["explanation"] == as_json({"rgb": explanation_of(model, expected, "rgb", 4)})
    shown = {kind: decoded(base64.b64decode(one["png"])) for kind, one in said["pictures"].items()}
    low, high = said["pictures"]["map"]["low"], said["pictures"]["map"]["high"]
    assert shown["map"].shape == (48, 64)
    assert np.allclose(low + shown["map"] / 65535 * (high - low), expected.map.numpy(), atol=(high - low) / 65535)
    assert np.array_equal(shown["image"], read_rgb(picture))
    assert shown["overlay"].shape[2] == 3


def test_the_nearest_normal_patches_are_shown_where_their_pictures_are(place: Place, tmp_path: Path) -> None:
    """A model's training images are in a folder of its name, or in the folder itself."""
    from mmad_bank.report.pictures import patch_crop

    model, picture = load(place.models / "tile"), place.pictures / "new" / "bad.png"
    expected = model.predict(picture)
    part, reasons = expected.parts["rgb"], model.explain(expected, n=4)
    data = tmp_path / "data"
    data.mkdir()
    (data / "tile").symlink_to(place.pictures)
    (data / "part").symlink_to(place.data)
    for folder in (place.pictures, data):
        with running(place.models, data=folder) as service:
            said = send(service, "tile", "?pictures=nearest", image=picture).json
        found = said["explanation"]["rgb"]
        assert said["pictures"] == {}
        crop = decoded(base64.b64decode(found["png"]))
        assert np.array_equal(crop, patch_crop(expected.sample, part.worst, part.grid))
        for one, reason in zip(found["nearest_normal_patches"], reasons, strict=True):
            training = model.prepare(sample_of(read_rgb(place.pictures / reason.sample), None))
            crop = decoded(base64.b64decode(one["png"]))
            assert np.array_equal(crop, patch_crop(training, reason.place, part.grid))
    sample = place.data / "part" / "train" / "good"
    files = {"image": sample / "rgb" / "001.png", "depth": sample / "xyz" / "001.tiff"}
    with running(place.models, data=data) as service:
        reply = send(service, "part", "?pictures=nearest", **files)
        assert [bool(one["png"]) for one in reply.json["explanation"]["rgb"]["nearest_normal_patches"]] == [True] * 4


def test_normal_patches_whose_pictures_are_not_there_are_named_alone(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = place.pictures / "new" / "bad.png"
    plain = send(place.service, "tile", "?pictures=none", image=picture).json["explanation"]["rgb"]
    (tmp_path / "tile").mkdir()
    with running(place.models, data=tmp_path, log_format="text") as service:
        found = send(service, "tile", "?pictures=nearest", image=picture).json["explanation"]["rgb"]
        again = send(service, "tile", "?pictures=nearest", image=picture).json["explanation"]["rgb"]
    assert [one.pop("png") for one in found["nearest_normal_patches"]] == [None] * 4
    assert found.pop("png")
    assert found == plain
    assert again["nearest_normal_patches"][0]["png"] is None
    assert capsys.readouterr().err.count("no training images model=tile") == 1
    reply = send(place.service, "tile", "?pictures=nearest", "image/png", image=picture)
    assert (reply.status, reply.json["error"]) == (
        422, "pictures: expected one of map, overlay, image as image/png is wanted, found nearest",
    )  # fmt: skip


def test_one_part_is_judged_at_a_time(place: Place) -> None:
    files = [("a.png", (place.pictures / "1.png").read_bytes()), ("b.png", (place.pictures / "2.png").read_bytes())]
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in files
    )
    reply = place.service.ask(
        "POST", "/predict/tile", body + b"--x--\r\n", Content_Type="multipart/form-data; boundary=x"
    )
    assert (reply.status, reply.json["error"]) == (
        400, "body: expected one file image, found 2; send a request for each",
    )  # fmt: skip


def test_rates_may_be_percentages_and_rules_are_for_banks(place: Place) -> None:
    picture = place.pictures / "new" / "bad.png"
    found, same = (
        send(place.service, "tile", f"?pictures=none&false_alarm_rate={rate}", image=picture).json
        for rate in ("10%25", "0.1")
    )
    assert found == same
    assert found["false_alarm_rate"] == 0.1
    assert send(place.service, "tile", "?false_alarm_rate=ten%25", image=picture).status == 422
    rgb = read_rgb(picture)
    tensor = {"name": "rgb", "datatype": "UINT8", "shape": list(rgb.shape), "data": rgb.ravel().tolist()}
    asked = {"inputs": [tensor], "parameters": {"reweight": "max"}}
    reply = place.service.ask("POST", "/v2/models/tile/infer", asked)
    assert (reply.status, reply.json["error"]) == (
        400, "parameters: expected false_alarm_rate, found reweight, which is for banks: a method has its rule",
    )  # fmt: skip


def test_a_loaded_model_has_its_networks_compiled(place: Place) -> None:
    pytest.importorskip("openvino")
    from mmad_bank.serving.backend import load_place
    from mmad_bank.serving.catalog import Catalog
    from mmad_bank.serving.settings import Settings

    found = Catalog(place.models).find("tile")
    assert found is not None
    for runtime, there in ((None, False), ("openvino", True)):
        served = load_place(found, Settings(place.models, runtime=runtime))
        network = served.method.extractors_.networks["rgb"]
        assert ("_compiled" in network.__dict__) == there
    made = network.__dict__["_compiled"]._made
    served.method.predict(place.pictures / "1.png")
    assert network.__dict__["_compiled"]._made is made


def test_a_data_set_whose_manifest_is_damaged_shows_nothing(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = place.pictures / "new" / "bad.png"
    data = tmp_path / "data"
    shutil.copytree(place.pictures, data)
    (data / "prepared.json").write_text("{")
    with running(place.models, data=data, log_format="text") as service:
        found = send(service, "tile", "?pictures=nearest", image=picture).json["explanation"]["rgb"]
    assert [one["png"] for one in found["nearest_normal_patches"]] == [None] * 4
    assert "no training images model=tile" in capsys.readouterr().err


def test_a_training_image_is_read_once_for_all_of_its_patches(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none any more when the request's time is over."""
    asked: list[str] = []
    found = TrainingImages.find

    def find(training: TrainingImages, model: str, method: Any, sample_id: str) -> Any:
        asked.append(sample_id)
        time.sleep(0.1)
        return found(training, model, method, sample_id)

    monkeypatch.setattr(TrainingImages, "find", find)
    picture = place.pictures / "new" / "bad.png"
    with running(place.models, data=place.pictures) as service:
        said = send(service, "tile", "?pictures=nearest&explain=40", image=picture).json["explanation"]["rgb"]
        nearest = said["nearest_normal_patches"]
        assert len(nearest) > len(asked) > 5
        assert sorted(asked) == sorted({one["sample"] for one in nearest})
        assert all(one["png"] for one in nearest)
        asked.clear()
        monkeypatch.setattr(pictures_door, "with_crops", partial(_late, pictures_door.with_crops))
        said = send(service, "tile", "?pictures=nearest&explain=40", image=picture).json["explanation"]["rgb"]
    assert not asked
    assert not any(one["png"] for one in said["nearest_normal_patches"])


def _late(function: Any, *arguments: Any) -> Any:
    """Call a function whose last argument is a time by which it has to end as if that were over."""
    return function(*arguments[:-1], time.perf_counter() - 1)


def test_a_picture_may_be_the_whole_answer(place: Place) -> None:
    picture = place.pictures / "new" / "bad.png"
    reply = send(place.service, "tile", "?pictures=overlay&side=64", "image/png", image=picture)
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    assert max(decoded(reply.body).shape) == 64
    expected = load(place.models / "tile").predict(picture)
    assert float(reply.headers["mmad-score"]) == expected.score
    assert reply.headers["mmad-verdict"] == "bad"
    assert send(place.service, "tile", "?pictures=none", image=picture).json["pictures"] == {}


def test_a_rate_and_the_number_of_patches_can_be_chosen(place: Place) -> None:
    picture = place.pictures / "3.png"
    said = send(place.service, "tile", "?false_alarm_rate=0.5&explain=0", image=picture).json
    expected = load(place.models / "tile").with_arguments(false_alarm_rate=0.5).predict(picture)
    assert (said["false_alarm_rate"], said["threshold"]) == (0.5, expected.threshold.score)
    assert said["verdict"] == expected.verdict
    assert said["explanation"] == {}


def test_an_unknown_parameter_is_refused(place: Place) -> None:
    reply = send(place.service, "tile", "?sid=64", image=place.pictures / "3.png")
    assert reply.status == 422
    assert reply.json["error"] == (
        "query: expected pictures, side, explain, false_alarm_rate, units, force, found 'sid'"
    )


def test_networks_are_run_by_the_chosen_library(place: Place) -> None:
    pytest.importorskip("openvino")
    picture = place.pictures / "3.png"
    expected = load(place.models / "tile").predict(picture)
    with running(place.models, runtime="openvino") as service:
        said = send(service, "tile", image=picture).json
    assert said["score"] == pytest.approx(expected.score, rel=1e-4)
    assert said["verdict"] == expected.verdict


def test_a_picture_with_its_point_cloud(place: Place) -> None:
    folder = place.data / "part" / "train" / "good"
    rgb, xyz = folder / "rgb" / "001.png", folder / "xyz" / "001.tiff"
    expected = load(place.models / "part").predict((rgb, xyz))
    said = send(place.service, "part", image=rgb, depth=xyz).json
    assert (said["score"], said["verdict"], said["size"]) == (expected.score, None, list(expected.size))
    alone = send(place.service, "part", image=rgb)
    assert (alone.status, alone.json["error"]) == (400, "body: expected the files image and depth, found image")


@pytest.mark.parametrize(
    ("files", "status", "line"),
    [
        ({}, 400, "body: expected the files image, found none"),
        ({"image": ("a\x01b.png", b"no picture")}, 400, "image (ab.png): cannot be read as a picture"),
        ({"image": ("a.png", b"")}, 400, "image (a.png): cannot be read as a picture"),
        ({"image": ("../../etc/x.png", b"\x89PNG\r\n\x1a\n")}, 400, "image (../../etc/x.png): cannot be read as a"),
        ({"image": ("C:\\x1.png", b"x")}, 400, "image (x1.png): cannot be read"),
        ({"image": ("\\1\\g<9>.png", b"x")}, 400, "image (\\1\\g<9>.png): cannot be read"),
        ({"picture": ("a.png", b"x")}, 400, "body: expected the files image and depth, found 'picture'"),
        ({"image": "picture", "depth": ("a.ply", b"ply\nformat ascii 1.0\n")}, 400, "depth (a.ply): expected a TIFF"),
        ({"image": "picture", "depth": ("a.tiff", b"II*\0")}, 400, "depth (a.tiff): cannot be read"),
        ({"depth": ("a.pcd", b"# .PCD v0.7\n")}, 400, "depth (a.pcd): "),
    ],
)  # fmt: skip
def test_wrong_files_get_one_line(place: Place, files: dict[str, Any], status: int, line: str) -> None:
    given = {name: place.pictures / "3.png" if one == "picture" else one for name, one in files.items()}
    reply = send(place.service, "tile", **given)
    assert (reply.status, reply.json["error"][: len(line)]) == (status, line)
    assert "\n" not in reply.json["error"]
    assert "/tmp" not in reply.json["error"].replace(line, "")


def test_wrong_requests_get_one_line(place: Place) -> None:
    picture, ask = place.pictures / "3.png", place.service.ask
    for query in ("explain=-1", "explain=x", "side=1", "false_alarm_rate=0", "units=inch", "pictures=heat", "force=2"):
        reply = send(place.service, "tile", f"?{query}", image=picture)
        assert (reply.status, list(reply.json)) == (422, ["error"]), query
    assert ask("POST", "/predict/tile", b"x").status == 415
    assert ask("POST", "/predict/tile", b"x", Content_Type="multipart/form-data").status == 400
    assert ask("POST", "/predict/tile", b"--a\r\nx", Content_Type="multipart/form-data; boundary=a").status == 400
    assert send(place.service, "nothing", image=picture).status == 404
    assert "which takes features" in send(place.service, "plain", image=picture).json["error"]
    assert send(place.service, "part", "?false_alarm_rate=0.1", image=picture, depth=picture).status == 400
    body, kind = form(image=("a.png", b"x"))
    assert ask("POST", "/predict/tile", body[:-30], Content_Type=kind).status == 400


def test_pictures_of_several_clients_are_computed_together(place: Place) -> None:
    files = [place.pictures / f"{number}.png" for number in range(12)]
    known = [one.score for one in load(place.models / "tile").predict(files)]
    with ThreadPoolExecutor(12) as pool:
        scores = list(pool.map(lambda path: send(place.service, "tile", image=path).json["score"], files))
    assert scores == pytest.approx(known, rel=1e-5)


# Pictures as tensors.


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_pictures_as_tensors(place: Place, kind: Any) -> None:
    triton = pytest.importorskip("tritonclient.http")
    rows = np.stack([read_rgb(place.pictures / f"{number}.png") for number in range(3)])
    sent = rows if kind is np.uint8 else (rows / 255).astype(np.float32)
    given = triton.InferInput("rgb", sent.shape, "UINT8" if kind is np.uint8 else "FP32")
    given.set_data_from_numpy(sent)
    with triton.InferenceServerClient(place.service.host) as client:
        assert client.get_model_metadata("tile")["platform"] == "mmad-bank_patchcore"
        found = client.infer("tile", [given])
    expected = load(place.models / "tile").predict(list(rows.transpose(0, 3, 1, 2)))
    assert np.array_equal(found.as_numpy("scores"), [one.score for one in expected])
    assert np.array_equal(found.as_numpy("maps"), np.stack([one.map.numpy() for one in expected]))
    assert np.array_equal(found.as_numpy("p_values"), [one.p_value for one in expected])
    assert [word.decode() for word in found.as_numpy("verdicts")] == [one.verdict for one in expected]


def test_a_picture_and_a_cloud_as_tensors(place: Place) -> None:
    folder = place.data / "part" / "train" / "good"
    rgb, xyz = read_rgb(folder / "rgb" / "001.png"), read_xyz(folder / "xyz" / "001.tiff")
    tensors = [
        {"name": "rgb", "datatype": "UINT8", "shape": list(rgb.shape), "data": rgb.tolist()},
        {"name": "xyz", "datatype": "FP32", "shape": list(xyz.shape), "data": xyz.astype(float).tolist()},
    ]
    path = "/v2/models/part/infer"
    found = place.service.ask("POST", path, {"inputs": tensors, "outputs": [{"name": "scores"}]})
    expected = load(place.models / "part").predict((folder / "rgb" / "001.png", folder / "xyz" / "001.tiff"))
    assert output(found, "scores").tolist() == [expected.score]
    alone = place.service.ask("POST", path, {"inputs": tensors[:1]})
    assert (alone.status, alone.json["error"]) == (400, "inputs: expected rgb, xyz, found no xyz")
    other = tensors[1] | {"shape": [1, 1, 3], "data": [1.0, 1.0, 1.0]}
    assert "of one size" in place.service.ask("POST", path, {"inputs": [tensors[0], other]}).json["error"]
    empty = tensors[1] | {"data": np.zeros(xyz.shape).tolist()}
    assert "expected measured points" in place.service.ask("POST", path, {"inputs": [tensors[0], empty]}).json["error"]
    flat = tensors[0] | {"shape": [rgb.size], "data": rgb.ravel().tolist()}
    assert (
        "expected shape [B, H, W, 3]" in place.service.ask("POST", path, {"inputs": [flat, tensors[1]]}).json["error"]
    )
