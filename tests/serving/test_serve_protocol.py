"""The Open Inference Protocol: what clients ask, by JSON and with bytes, and what they get."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import torch
from running_service import Service, calibrated_bank, images, output, running

from mmad_bank import MemoryBank

BANK = calibrated_bank()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("models")
    BANK.save(folder / "tile.bank")
    MemoryBank(torch.rand(20, 4)).save(folder / "plain.safetensors")
    (folder / "notes.txt").write_text("no model")
    with running(folder) as one:
        yield one


def tensor(rows: np.ndarray, **more: Any) -> dict[str, Any]:
    return {
        "name": "patches", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist(), **more
    }  # fmt: skip


# Clients.


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    triton = pytest.importorskip("tritonclient.http")
    with triton.InferenceServerClient(service.host) as one:
        yield one


def test_tritonclient_gets_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tile")
    assert client.is_model_ready("tile", "1")
    assert not client.is_model_ready("tile", "2")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "mmad-bank"
    metadata = client.get_model_metadata("tile")
    assert metadata["inputs"] == [{"name": "patches", "datatype": "FP32", "shape": [-1, -1, 4]}]
    assert [one["name"] for one in metadata["outputs"]] == [
        "patch_scores", "image_scores", "nearest", "p_values", "verdicts", "bad_patches"
    ]  # fmt: skip
    assert [one["name"] for one in client.get_model_metadata("plain")["outputs"]][2:] == ["nearest"]


@pytest.mark.parametrize("sent", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("got", [True, False], ids=["binary out", "JSON out"])
def test_tritonclient_gets_pythons_scores(client: Any, sent: bool, got: bool) -> None:
    import tritonclient.http as triton

    rows = images(5)
    given = triton.InferInput("patches", rows.shape, "FP32")
    given.set_data_from_numpy(rows, binary_data=sent)
    names = [one["name"] for one in client.get_model_metadata("tile")["outputs"]]
    wanted = [triton.InferRequestedOutput(name, binary_data=got) for name in names]
    found = client.infer("tile", [given], outputs=wanted, request_id="seven")
    scores = BANK.score(rows)
    verdicts = BANK.judge(scores)
    assert np.array_equal(found.as_numpy("patch_scores"), scores.patch.numpy())
    assert np.array_equal(found.as_numpy("image_scores"), scores.image.numpy())
    assert np.array_equal(found.as_numpy("nearest"), scores.nearest.numpy())
    assert np.array_equal(found.as_numpy("p_values"), verdicts.p_values.numpy())
    assert np.array_equal(found.as_numpy("bad_patches"), verdicts.bad_patches.numpy())
    words = [word.decode() if isinstance(word, bytes) else word for word in found.as_numpy("verdicts")]
    assert words == ["bad" if bad else "good" for bad in verdicts.bad]
    assert "bad" in words
    answer = found.get_response()
    assert (answer["id"], answer["model_name"]) == ("seven", "tile")
    assert answer["parameters"]["threshold"] == verdicts.threshold.score


def test_tritonclient_manages_the_repository(client: Any) -> None:
    assert [one["name"] for one in client.get_model_repository_index()] == ["plain", "tile"]
    client.unload_model("plain")
    assert not client.is_model_ready("plain")
    states = {one["name"]: (one["state"], one["reason"]) for one in client.get_model_repository_index()}
    assert states == {"plain": ("UNAVAILABLE", "unloaded"), "tile": ("READY", "")}
    client.load_model("plain")
    assert client.is_model_ready("plain")


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_compressed_requests(client: Any, how: str) -> None:
    import tritonclient.http as triton

    rows = images(2)
    given = triton.InferInput("patches", rows.shape, "FP32")
    given.set_data_from_numpy(rows)
    found = client.infer("tile", [given], request_compression_algorithm=how)
    assert np.array_equal(found.as_numpy("image_scores"), BANK.score(rows).image.numpy())


# Requests by hand.


def test_one_image_without_the_axis_of_images(service: Service) -> None:
    rows = images(1)
    found = service.infer("tile", rows[0])
    assert output(found, "patch_scores").shape == (1, 16)
    assert np.array_equal(output(found, "image_scores"), BANK.score(rows).image.numpy())


def test_half_precision_halves_what_is_sent(service: Service) -> None:
    rows = images(2).astype(np.float16)
    head = json.dumps(
        {
            "inputs": [
                {"name": "patches", "datatype": "FP16", "shape": [2, 16, 4], "parameters": {"binary_data_size": 256}}
            ]
        }
    ).encode()
    found = service.ask(
        "POST", "/v2/models/tile/infer", head + rows.tobytes(), Inference_Header_Content_Length=str(len(head))
    )
    assert np.array_equal(output(found, "image_scores"), BANK.score(rows.astype(np.float32)).image.numpy())


def test_parameters_choose_the_rule_and_the_rate(service: Service) -> None:
    rows = images(3)
    largest = service.infer("tile", rows, reweight="max")
    assert np.array_equal(output(largest, "image_scores"), BANK.score(rows, reweight="max").image.numpy())
    assert [one["name"] for one in largest.json["outputs"]] == ["patch_scores", "image_scores", "nearest"]
    strict = service.infer("tile", rows, false_alarm_rate=0.2)
    assert strict.json["parameters"]["threshold"] == BANK.judge(BANK.score(rows), 0.2).threshold.score
    fewer = service.infer("tile", images(1)[:, :9])  # of another size than the calibration's: no verdicts
    assert len(fewer.json["outputs"]) == 3


RIGHT = {"inputs": [tensor(images(1))]}


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"no JSON", 400, "body: expected JSON"),
        (b"[" * 100_000, 400, "body: expected JSON"),
        (b"\xff\xfe", 400, "body: expected JSON"),
        ([], 400, "body: expected a JSON object, found list"),
        ({}, 400, "inputs: expected a list"),
        ({"inputs": []}, 400, "inputs: expected at least one tensor, found none"),
        ({"inputs": [tensor(images(1))] * 17}, 400, "inputs: expected a list of up to 16"),
        ({"inputs": [tensor(images(1))] * 2}, 400, "inputs: expected each name once, found 'patches' again"),
        ({"inputs": [tensor(images(1), name="x")]}, 400, "inputs: expected patches, found 'x'"),
        ({"inputs": [tensor(images(1), datatype="FP8")]}, 400, "inputs: patches: expected a datatype of "),
        ({"inputs": [tensor(images(1), datatype="FP64")]}, 400, "inputs: patches: expected FP32 or FP16, found"),
        ({"inputs": [tensor(images(1), shape=[1, 16, 5])]}, 400, "inputs: patches: expected data of shape"),
        ({"inputs": [tensor(images(1), shape=[1, -16, 4])]}, 400, "inputs: patches: expected a shape"),
        ({"inputs": [tensor(images(1, dim=5))]}, 400, "inputs: patches: expected shape [B, P, 4] or [P, 4], not empty"),
        ({"inputs": [tensor(images(0))]}, 400, "inputs: patches: expected shape [B, P, 4] or [P, 4], not empty"),
        ({"inputs": [tensor(images(1), data=["a"] * 64)]}, 400, "inputs: patches: expected data of FP32, found"),
        ({"inputs": [tensor(images(1), data=[[1], [1, 2]])]}, 400, "inputs: patches: expected data of one shape"),
        ({"inputs": [tensor(images(1) * np.nan)]}, 400, "patches: image 0, patch 0 holds"),
        ({"inputs": [tensor(images(1), data=[1e300] * 64)]}, 400, "patches: image 0, patch 0 holds"),
        ({"inputs": [tensor(images(33))]}, 413, "inputs: expected up to 32 images per request, found 33"),
        ({"inputs": [tensor(images(1), parameters={"binary_data_size": 8})]}, 400, "inputs: patches: expected binary_"),
        ({"inputs": [tensor(images(1), parameters={"shared_memory_region": "a"})]}, 400, "inputs: patches: expected"),
        (RIGHT | {"outputs": [{"name": "colour"}]}, 400, "outputs: expected some of patch_scores, image_scores"),
        (RIGHT | {"outputs": [{"name": "nearest", "parameters": {"classification": 3}}]}, 400, "outputs: nearest: exp"),
        (RIGHT | {"parameters": {"reweight": "best"}}, 400, "reweight: expected one of m3dm, patchcore, max, top"),
        (RIGHT | {"parameters": {"n_neighbors": "3"}}, 400, "parameters: n_neighbors: expected a number"),
        (RIGHT | {"parameters": {"false_alarm_rate": 2}}, 400, "parameters: false_alarm_rate: expected a number above"),
        (RIGHT | {"id": 7}, 400, "id: expected a text"),
        ({"inputs": [tensor(images(1), name="\ud800\n", datatype="X")]}, 400, "inputs: \\ud800\\n: expected a da"),
        (RIGHT | {"outputs": [{"name": "\udfff", "parameters": 1}]}, 400, "outputs: \\udfff: parameters: expected a"),
        ({"inputs": [tensor(images(1), shape=[0, *[2**31 - 1] * 7], data=[])]}, 400, "inputs: patches: expected a sh"),
        (RIGHT | {"parameters": {"reweight": "max", "false_alarm_rate": 0.1}}, 400, "scores: expected image scores by"),
    ],
)  # fmt: skip
def test_wrong_requests_get_one_line(service: Service, body: Any, status: int, line: str) -> None:
    found = service.ask("POST", "/v2/models/tile/infer", body)
    assert (found.status, found.json["error"][: len(line)]) == (status, line)
    assert "\n" not in found.json["error"]


def test_verdicts_of_a_bank_without_calibration_are_refused(service: Service) -> None:
    asked = RIGHT | {"outputs": [{"name": "verdicts"}]}
    assert "outputs: expected some of" in service.ask("POST", "/v2/models/plain/infer", asked).json["error"]
    found = service.infer("plain", images(1), false_alarm_rate=0.1)
    assert (found.status, "expected a bank that is calibrated" in found.json["error"]) == (400, True)


@pytest.mark.parametrize("length", ["x", "-1", "999999", "1" * 30, "9" * 5000])
def test_wrong_lengths_of_the_json(service: Service, length: str) -> None:
    found = service.ask("POST", "/v2/models/tile/infer", b"{}", Inference_Header_Content_Length=length)
    assert (found.status, "Inference-Header-Content-Length: expected" in found.json["error"]) == (400, True)


def test_packed_bodies_are_unpacked_within_the_limit(tmp_path: Path) -> None:
    BANK.save(tmp_path / "tile.bank")
    with running(tmp_path, max_body=100_000) as small:
        bomb = gzip.compress(b" " * 10_000_000)
        found = small.ask("POST", "/v2/models/tile/infer", bomb, Content_Encoding="gzip")
        assert (found.status, found.json["error"]) == (
            413,
            "body: expected up to 100,000 bytes, found more after unpacking",
        )
        found = small.ask("POST", "/v2/models/tile/infer", bomb[:-9], Content_Encoding="gzip")
        assert found.status == 413
        found = small.ask("POST", "/v2/models/tile/infer", b"abc", Content_Encoding="gzip")
        assert (found.status, "damaged data" in found.json["error"]) == (400, True)
        found = small.ask("POST", "/v2/models/tile/infer", b"abc", Content_Encoding="br")
        assert (found.status, "expected gzip or deflate" in found.json["error"]) == (415, True)


@pytest.mark.parametrize(
    "name", ["nothing", "..", "%2e%2e", "..%2ftile", "tile.bank", "notes.txt", "%00", "notes", "a" * 4000]
)
def test_what_is_no_models_name(service: Service, name: str) -> None:
    found = service.get(f"/v2/models/{name}/ready")
    assert (found.status, list(found.json)) == (404, ["error"])


def test_errors_have_one_form(service: Service) -> None:
    assert service.get("/v2/models/tile/infer").status == 405
    assert service.get("/nothing").json == {"error": "Not Found"}
    assert service.ask("POST", "/v2/repository/models/tile/load", {"parameters": {"config": "{}"}}).status == 400
    assert service.ask("POST", "/v2/repository/index", b"[").status == 400
    assert service.ask("POST", "/v2/repository/index", {"ready": True}).json[0]["name"] == "plain"


def test_a_misspelt_parameter_is_refused_and_a_foreign_one_passed_over(service: Service) -> None:
    reply = service.infer("tile", images(1), false_alarm_rte=0.1)
    assert reply.status == 400
    assert reply.json["error"].endswith("found 'false_alarm_rte' (did you mean 'false_alarm_rate'?)")
    assert service.infer("tile", images(1), priority=1, sequence_id=3).status == 200
